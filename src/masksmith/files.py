"""Files that are whole or absent: temporary name, flush, rename. Hashes. The lock of a project folder."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masksmith.errors import DiskFullError, InputError


@contextlib.contextmanager
def no_room(path: Path) -> Iterator[None]:
    """Turn "no space left" while writing ``path`` into a DiskFullError that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"{path}: the disk is full; what was finished before is whole. Make room and repeat the command"
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with no_room(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like atomic_path for a folder: the old one is replaced only by a finished new one.

    A link of that name is replaced, and what it leads to is not touched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with no_room(path):
            temporary.mkdir(parents=True)
            yield temporary
            if os.path.lexists(path):
                path.rename(old)
            temporary.rename(path)
    finally:
        if os.path.lexists(old) and not os.path.lexists(path):
            old.rename(path)
        _remove(temporary)
        _remove(old)


def _remove(path: Path) -> None:
    """Remove a folder with what it holds, or a file or link (never what the link leads to)."""
    if path.is_dir() and not path.is_symlink():
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
    """Hold ``folder/.lock`` while the block runs; the lock dies with its process, however that ends.

    What a killed process left unfinished in the folder is removed.

    Raises:
        InputError: Another process is at work here (the message names its pid and host), or the folder cannot be
            written.
    """
    with _writable(folder), (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{folder}: another masksmith is at work here ({file.read().strip() or 'just started'}); "
                "wait for it, stop it, or choose another --out"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        for scrap in list(folder.rglob(".*.tmp")):
            _remove(scrap)
        yield


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    with no_room(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise InputError(
                f"{folder}: cannot be written as a folder ({error.strerror}); choose another --out"
            ) from error
    yield


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
