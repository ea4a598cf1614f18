"""Atomic writes (temporary name, flush, rename), and hashes.

Temporary files, and folders that are moved out of the way, have names that nobody else uses
(``.NAME.PID.masksmith-tmp``, ``.NAME.PID.masksmith-old``): masksmith removes no others (see ``locks``).

Every write of masksmith goes through this module, which calls ``write_point`` wherever the state on disk changes.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from masksmith.core.errors import DiskFullError, InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
CANNOT_WRITE = (*_IN_THE_WAY, *_READ_ONLY)
"""Error numbers of a path that cannot be written, whatever the room."""

on_write: Callable[[Path, str], None] | None = None
"""For tests only: called with (path, phase) at every write point, where it can end the process or raise an error."""


def write_point(path: Path, phase: str) -> None:
    """Mark a place where the state on disk is about to change or has changed; it does nothing outside tests.

    Args:
        path: The final name of the file or folder.
        phase: "write" (before the first byte), "written" (complete, under its temporary name), "moved" (a folder's old
            content is out of the way), "renamed", "append", "appended", "remove".
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
    """Flush the names in a folder to the disk; file systems that cannot do so are ignored."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def temporary_of(path: Path) -> Path:
    """Return the name under which this process writes ``path`` until it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.masksmith-tmp")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds."""
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
        with contextlib.suppress(OSError):  # the disk cannot be written now; the next lock removes it
            temporary.unlink(missing_ok=True)


def rename(temporary: Path, path: Path) -> None:
    """Give a finished file its final name and flush that to the disk."""
    temporary.replace(path)
    write_point(path, "renamed")
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like atomic_path for a folder: the old one is replaced only by a finished new one.

    Entries of the old folder that the new one lacks are not ours and move into the new one. The files are not flushed
    one by one, so verify them after a power cut.

    Raises:
        InputError: A file or a link of that name is there; it stays.
    """
    if os.path.lexists(path) and not _is_folder(path):
        what = "a link" if path.is_symlink() else "a file"
        raise InputError(f"{path}: it is {what}, expected a folder that masksmith made; move it away")
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
            put_back(old, path)
            remove_tree(temporary)


def put_back(old: Path, path: Path) -> None:
    """Put back a folder that was moved away; if its successor is there, give it, and its folders, what they lack."""
    if not os.path.lexists(old):
        return
    if not os.path.lexists(path):
        old.rename(path)
        return
    if _is_folder(old):
        if not _is_folder(path):
            return  # something else was put in its place
        for entry in list(old.iterdir()):
            if not os.path.lexists(path / entry.name):
                entry.rename(path / entry.name)
            elif _is_folder(entry) and _is_folder(path / entry.name):
                put_back(entry, path / entry.name)
        if any(_is_folder(entry) for entry in old.iterdir()):
            return  # a file of ours has the name of a person's folder: that stays beside
    remove_tree(old)


def _is_folder(path: Path) -> bool:
    """Whether it is a folder and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def remove_tree(path: Path) -> None:
    """Remove a folder with its contents, a file, or a link (never the target of the link)."""
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file whole or not at all."""
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write a JSON file whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False)  # piece by piece: the text may be large
        file.write("\n")


def write_member(path: Path, content: bytes) -> None:
    """Write a file in the temporary folder of ``atomic_folder``, or in a folder in it, which is made."""
    write_point(path, "write")
    path.parent.mkdir(parents=True, exist_ok=True)
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
    """Remove a file or a link if it exists.

    Raises:
        InputError: It is a folder, or cannot be removed.
    """
    if os.path.lexists(path):
        with no_room(path):
            write_point(path, "remove")
            path.unlink(missing_ok=True)


def remove_matching(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the files below a folder whose full name matches, then the folders that this has emptied.

    Everything else stays, including folders that were empty before. Links are not followed.
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
    """Read a JSON file that masksmith wrote.

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
    """Return a hash (40 hex digits) of the parts; it depends on where one part ends and the next begins."""
    return digest_of(parts)


def digest_of(parts: Iterable[bytes | str]) -> str:
    """Return the same of parts that come one by one."""
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
