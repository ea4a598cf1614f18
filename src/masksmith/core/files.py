"""Files that are whole or absent: temporary name, flush, rename. Hashes. The lock of a project folder.

Temporary files and folders that are moved out of the way have names that nobody else makes
(``.NAME.PID.masksmith-tmp``, ``.NAME.PID.masksmith-old``): only those are ever cleared away.

Everything that the house writes goes through this module: it calls ``write_point`` wherever the state on disk changes,
and a test that wants a process to die, or a disk to be full, at such a place sets ``on_write``.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from masksmith.core.errors import DiskFullError, InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)

LOCK = ".masksmith.lock"
"""Name of the file that is locked while masksmith works in a folder."""
_SCRAP = re.compile(r"\.(?P<name>.+)\.\d+\.masksmith-(?P<kind>tmp|old)", re.DOTALL)

on_write: Callable[[Path, str], None] | None = None
"""Called with (path, phase) at every write point; None, as in the product, does nothing."""


def write_point(path: Path, phase: str) -> None:
    """Say that the state on disk is about to change or has changed.

    Args:
        path: The file or folder as it will be called.
        phase: "write" (nothing of it is there yet), "written" (whole, under its temporary name), "moved" (a folder's
            old content is out of the way), "renamed", "append", "appended", "remove".
    """
    if on_write is not None:
        on_write(path, phase)


@contextlib.contextmanager
def no_room(path: Path) -> Iterator[None]:
    """Turn "no space left" and "read-only" while writing ``path`` into an error that names the file.

    Raises:
        DiskFullError: There is no room.
        InputError: The file cannot be written: no permission, a file where a folder is expected or the other way
            round, or the file system is, or has become, read-only.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"{path}: the disk is full; what was finished before is whole. Make room and repeat the command"
            ) from error
        if error.errno in _READ_ONLY:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); what was finished before is whole. Make it writable "
                "and repeat the command"
            ) from error
        if error.errno in _IN_THE_WAY:
            raise InputError(
                f"{path}: cannot be written, something else is in its place ({error.strerror}); choose another name, "
                "or move it away"
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut; file systems that cannot do so are left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def temporary_of(path: Path) -> Path:
    """Return the name under which this process writes ``path`` until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.masksmith-tmp")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block ends well."""
    temporary = temporary_of(path)
    try:
        with no_room(path):
            write_point(path, "write")
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            write_point(path, "written")
            rename(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # a disk that cannot be written now; the next lock sweeps
            temporary.unlink(missing_ok=True)


def rename(temporary: Path, path: Path) -> None:
    """Give a finished file its name, for good."""
    temporary.replace(path)
    write_point(path, "renamed")
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like atomic_path for a folder: the old one is replaced only by a finished new one.

    What the old one holds under names that the new one has not is somebody else's, and goes into the new one. The
    files are not flushed one by one, so after a power cut they are to be looked at before they are believed. A link
    of that name is replaced, and what it leads to is not touched.
    """
    temporary = temporary_of(path)
    old = path.with_name(f".{path.name}.{os.getpid()}.masksmith-old")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with no_room(path):
            write_point(path, "write")
            temporary.mkdir(parents=True)
            yield temporary
            write_point(path, "written")
            if os.path.lexists(path):
                path.rename(old)
                write_point(path, "moved")
            rename(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # as above: the next lock does both
            _settle(old, path)
            _remove(temporary)


def _settle(old: Path, path: Path) -> None:
    """Put back a folder that was moved away; where its successor has come, hand over what that one does not replace."""
    if not os.path.lexists(old):
        return
    if not os.path.lexists(path):
        old.rename(path)
        return
    if _is_folder(old):
        if not _is_folder(path):
            return  # somebody has put something else there
        for entry in list(old.iterdir()):
            if not os.path.lexists(path / entry.name):
                entry.rename(path / entry.name)
    _remove(old)


def _is_folder(path: Path) -> bool:
    """Whether it is a folder itself and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    """Remove a folder with what it holds, or a file or link (never what the link leads to)."""
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_member(path: Path, content: bytes) -> None:
    """Write a file in the temporary folder that atomic_folder gave."""
    write_point(path, "write")
    path.write_bytes(content)


def append_text(path: Path, lines: str, *, sync: bool = True) -> None:
    """Append whole lines to a text file and (with ``sync``) flush them to the disk; a torn last line is ended first."""
    with no_room(path):
        write_point(path, "append")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            torn = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * torn + lines.encode())
            file.flush()
            if sync:
                os.fsync(file.fileno())
        write_point(path, "appended")


def remove(path: Path) -> None:
    """Remove a file or a link, if it is there.

    Raises:
        InputError: It is a folder, or cannot be removed.
    """
    if os.path.lexists(path):
        with no_room(path):
            write_point(path, "remove")
            path.unlink(missing_ok=True)


def remove_matching(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the files in a folder and below whose whole name matches, then the folders that this has emptied.

    All else stays, empty folders too; links are not followed.
    """
    if not _is_folder(folder):
        return
    emptied = {folder}
    with no_room(folder):
        for place, _, found in os.walk(folder, topdown=False):
            inside = Path(place)
            matching = sorted(inside / name for name in found if names.fullmatch(name))
            for path in matching:
                remove(path)
            if (matching or inside in emptied) and not any(inside.iterdir()):
                inside.rmdir()
                emptied.add(inside.parent)


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read a JSON file of ours.

    Raises:
        InputError: The file is not JSON (it was edited or damaged).
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: line {error.lineno} is not JSON ({error.msg}); remove the file to have it made again"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is no text, so this is not JSON; remove the file to have it made again"
        ) from error


def digest(*parts: bytes | str) -> str:
    """Return a hash (40 hex digits) of the parts; their borders count."""
    state = hashlib.blake2b(digest_size=20)
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Return a hash (40 hex digits) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder/.masksmith.lock`` while the block runs; the lock dies with its process, however that ends.

    What a killed process left unfinished in the folder is removed.

    Raises:
        InputError: Another process is at work here (the message names its pid and host), or the folder cannot be
            written.
    """
    lock = folder / LOCK
    _need_writable(folder, lock)
    with lock.open("a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{folder}: another masksmith is at work here ({file.read().decode().strip() or 'just started'}); "
                "wait for it, stop it, or choose another --out"
            ) from None
        with no_room(lock):
            write_point(lock, "write")
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
            _sweep(folder)
        yield


def _need_writable(folder: Path, lock: Path) -> None:
    if lock.is_symlink():
        raise InputError(f"{lock}: a link, which masksmith does not make; remove it")
    with no_room(folder):
        try:
            write_point(folder, "write")
            folder.mkdir(parents=True, exist_ok=True)
            lock.touch()
        except OSError as error:
            if error.errno not in (*_IN_THE_WAY, *_READ_ONLY):
                raise
            raise InputError(
                f"{folder}: cannot be written as a folder ({error.strerror}); choose another --out"
            ) from error


def is_begun(entry: os.DirEntry[str]) -> bool:
    """Whether a file in a folder is one that masksmith leaves when it is killed before it has written anything."""
    scrap = _SCRAP.fullmatch(entry.name)
    return entry.is_file(follow_symlinks=False) and (entry.name == LOCK or scrap is not None)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left; a folder that was moved away before its successor had come is put back.

    Links are not followed, and a folder inside with a lock of its own is not entered.
    """
    scraps = []
    for place, folders, names in os.walk(folder):
        scraps += [(Path(place), found) for found in map(_SCRAP.fullmatch, (*folders, *names)) if found]
        folders[:] = [
            name
            for name in folders
            if not _SCRAP.fullmatch(name) and not os.path.lexists(Path(place, name, LOCK))
        ]
    for inside, found in scraps:
        scrap = inside / found[0]
        write_point(scrap, "remove")
        if found["kind"] == "old":
            _settle(scrap, inside / found["name"])
        else:
            _remove(scrap)


class Ledger:
    """Which stages of a folder are done, and from which inputs: ``stage.json``.

    A stage is skipped when it is recorded with the same key; the key hashes everything it read and the
    version of its code.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "stage.json"

    def _read(self) -> dict[str, str]:
        return read_json(self.path) if self.path.exists() else {}

    def is_done(self, stage: str, key: str) -> bool:
        """Whether ``stage`` ran to its end with this key."""
        return self._read().get(stage) == key

    def knows(self, stage: str) -> bool:
        """Whether anything is recorded for ``stage``."""
        return stage in self._read()

    def forget(self, stage: str) -> None:
        """Record that ``stage`` is not done: its outputs are about to be replaced."""
        entries = self._read()
        if entries.pop(stage, None) is not None:
            write_json(self.path, entries)

    def mark_done(self, stage: str, key: str) -> None:
        """Record that ``stage`` ran to its end with this key."""
        if not self.is_done(stage, key):
            write_json(self.path, self._read() | {stage: key})
