"""The lock of a project folder; whoever takes it removes what killed processes left there."""

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from masksmith.core.errors import InputError
from masksmith.core.files import CANNOT_WRITE, no_room, put_back, remove_tree, write_point

LOCK = ".masksmith.lock"
"""Name of the file that is locked while masksmith works in a folder."""
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.\d+\.masksmith-(?P<kind>tmp|old)", re.DOTALL)


@contextlib.contextmanager
def folder_lock(folder: Path, *, instead: str = "") -> Iterator[None]:
    """Hold ``folder/.masksmith.lock`` during the block; the operating system releases it when the process ends.

    Leftovers of killed processes in the folder are removed.

    Args:
        folder: Made if it is absent.
        instead: What may be done while another process is at work, for the message.

    Raises:
        InputError: Another process holds the lock (the message names its pid and host), or the folder cannot be
            written.
    """
    lock = folder / LOCK
    _make_writable(folder, lock)
    with lock.open("a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{folder}: another masksmith is at work here ({file.read().decode().strip() or 'just started'}); "
                f"wait for it, stop it, {instead or 'or choose another --out'}"
            ) from None
        with no_room(lock):
            write_point(lock, "write")
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
            _remove_leftovers(folder)
        yield


def _make_writable(folder: Path, lock: Path) -> None:
    if lock.is_symlink():
        raise InputError(f"{lock}: a link, which masksmith does not make; remove it")
    with no_room(folder):
        try:
            write_point(folder, "write")
            folder.mkdir(parents=True, exist_ok=True)
            lock.touch()
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            raise InputError(
                f"{folder}: cannot be written as a folder ({error.strerror}); choose another --out"
            ) from error


def is_leftover(entry: os.DirEntry[str]) -> bool:
    """Whether a file is one that masksmith leaves if it is killed before its first output is complete."""
    found = _LEFTOVER.fullmatch(entry.name)
    return entry.is_file(follow_symlinks=False) and (entry.name == LOCK or found is not None)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders; put back a folder that was moved away before its successor was in place.

    Links are not followed, and a folder with a lock of its own is skipped.
    """
    leftovers = []
    for place, folders, names in os.walk(folder):
        leftovers += [(Path(place), found) for found in map(_LEFTOVER.fullmatch, (*folders, *names)) if found]
        folders[:] = [
            name
            for name in folders
            if not _LEFTOVER.fullmatch(name) and not os.path.lexists(Path(place, name, LOCK))
        ]
    for inside, found in leftovers:
        leftover = inside / found[0]
        write_point(leftover, "remove")
        if found["kind"] == "old":
            put_back(leftover, inside / found["name"])
        else:
            remove_tree(leftover)
