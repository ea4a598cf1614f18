"""The lock of a project folder; whoever takes it removes what killed processes left there."""

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from masksmith.core import interrupt
from masksmith.core.errors import InputError
from masksmith.core.files import (
    CANNOT_WRITE,
    no_room,
    put_back,
    read_json,
    remove_tree,
    write_json,
    write_point,
)

LOCK = ".masksmith.lock"
"""Name of the file that is locked while masksmith works in a folder."""
_UPDATES = ".updates.lock"
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.\d+\.masksmith-(?P<kind>tmp|old)", re.DOTALL)


@contextlib.contextmanager
def folder_lock(folder: Path, *, instead: str = "", wait: bool = False) -> Iterator[None]:
    """Hold ``folder/.masksmith.lock`` during the block; the operating system releases it when the process ends.

    Leftovers of killed processes in the folder are removed.

    Args:
        folder: Made if it is absent.
        instead: What may be done while another process is at work, for the message.
        wait: Whether to wait for another process that holds the lock, in place of a refusal.

    Raises:
        InputError: Another process holds the lock (the message names its pid and host), or the folder cannot be
            written.
        StoppedError: A stop was asked for while it was waited for.
    """
    lock = folder / LOCK
    _make_writable(folder, lock)
    with lock.open("a+b", buffering=0) as file:
        try:
            _wait_for(file) if wait else fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


@contextlib.contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold a lock on a file of that name during the block, and wait for another process that holds it.

    The lock ends with its process, on whatever machine that is, where the file system has locks across machines (NFS
    4, Lustre and GPFS have). The file stays.

    Raises:
        InputError: A link of that name is there, or it cannot be written.
        StoppedError: A stop was asked for while it was waited for.
    """
    with no_room(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "ab") as file:
        _wait_for(file)
        yield


def _wait_for(file: IO[bytes]) -> None:
    """Take the lock of an open file; processes that wait for one look every tenth of a second."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            interrupt.check_stop()
            time.sleep(0.1)


def update_json(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read a JSON file (nothing, where there is none), change it and write it, while no other process does the same."""
    with waiting_lock(path.with_name(_UPDATES)):
        write_json(path, change(read_json(path) if path.exists() else {}))


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
