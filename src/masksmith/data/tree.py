"""A data folder seen as one tree of files, with its zip and tar archives opened in place.

``train.zip`` that holds ``images/a.png`` is seen as ``train/images/a.png``, exactly as if it had been
unpacked; nothing is written into the folder. Where both lie there, the unpacked file is read.
"""

import copy
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from masksmith.core.errors import InputError
from masksmith.core.files import digest_of, file_digest
from masksmith.data.tar import SUFFIXES as TAR_SUFFIXES
from masksmith.data.tar import TarArchive, check_member_name, tar_suffix

_NOISE = {"__macosx", "thumbs.db", "desktop.ini"}

# A member is unpacked in memory, so what it may become is bounded by what the archive says before it is read, and
# reading stops where the archive's word ends. Deflate gives at most 1032 bytes for one: only constant bytes come
# near. An all-black mask as uncompressed TIFF does, so below 64 MiB every ratio passes; a real table of
# run-lengths is packed by 3 to 20, whatever its size.
MAX_MEMBER_BYTES = 2**32
MAX_RATIO = 1000
_RATIO_FROM_BYTES = 2**26
_ENCRYPTED = 0x1
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # zipfile cannot unpack the others piece by piece
_LOCAL_HEADER = 30  # bytes before a member's name and data
_DEEPEST_COPY, _LEAST_COPIES = 3, 4
_CLOSED = (".7z", ".rar", ".zst", ".tar.lz", ".tar.z")
"""Archives that are not opened."""


@dataclass(frozen=True, slots=True)
class _Member:
    archive: Path | None  # None: a file of its own
    name: str


def _check_members(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that would unpack to more than it can honestly hold, or that is not to be read plainly.

    Raises:
        InputError: A member climbs out, is encrypted, appears twice, is packed in a way that cannot be bounded, claims
            too much, or shares its bytes with another.
    """
    seen: set[PurePosixPath] = set()
    for info in infos:
        member = f"{path}: the member {info.filename!r}"
        inner = check_member_name(info.filename, where=member)
        if inner in seen:
            raise InputError(f"{member} appears twice; pack the archive again with one file a name")
        seen.add(inner)
        if info.flag_bits & _ENCRYPTED:
            raise InputError(f"{member} is encrypted; unpack the archive with its password")
        if info.compress_type not in _METHODS:
            raise InputError(
                f"{member} is packed by method {info.compress_type}; expected stored or deflated members, "
                "unpack the archive or pack it again"
            )
        if info.file_size > MAX_MEMBER_BYTES:
            raise InputError(
                f"{member} claims {info.file_size:,} bytes; at most {MAX_MEMBER_BYTES:,} are read, unpack the archive"
            )
        if info.file_size > max(_RATIO_FROM_BYTES, MAX_RATIO * info.compress_size):
            raise InputError(
                f"{member} claims {info.file_size:,} bytes from {info.compress_size:,}, more than {MAX_RATIO} to 1; "
                "if you trust it, unpack the archive"
            )
    _check_overlap(path, infos)


def _check_overlap(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    # https://www.bamsoftware.com/hacks/zipbomb/: many members over the same packed bytes
    ordered = sorted(infos, key=lambda info: info.header_offset)
    for info, following in pairwise(ordered):
        if info.header_offset + _LOCAL_HEADER + info.compress_size > following.header_offset:
            raise InputError(
                f"{path}: the members {info.filename!r} and {following.filename!r} share their bytes; do not trust "
                "this file"
            )


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member's bytes; one that holds more or less than the archive says is refused."""
    info = copy.copy(archive.getinfo(name))
    declared = info.file_size
    info.file_size = declared + 1  # zipfile would cut off what is beyond it
    with archive.open(info) as file:
        raw = file.read(declared + 1)
    if len(raw) != declared:
        more = "more" if len(raw) > declared else f"only {len(raw):,}"
        raise zipfile.BadZipFile(f"the archive claims {declared:,} bytes, there are {more}")
    return raw


def archive_suffix(name: str) -> str | None:
    """Return the ending by which a file's name is that of an archive that is opened; None where it is none."""
    return ".zip" if name.lower().endswith(".zip") else tar_suffix(name)


def _is_noise(path: PurePosixPath) -> bool:
    if ".." in path.parts:
        return False  # no hidden file: it leads out
    return any(part.startswith(".") or part.lower() in _NOISE for part in path.parts)


def _files(root: Path) -> list[Path]:
    """Return the files at any depth, sorted; folders behind links are left alone: they may lead in circles."""
    found = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return sorted(found)


class Tree:
    """Every file of a data folder under its logical path ("train/images/a.png").

    Args:
        root: The folder.
        only: One file in it, or archive, that is looked at alone.
        open_archives: Whether archives are opened; else they are left out.
        strict: Whether a link that leads out and a name that is no UTF-8 raise; else they are in ``refused``, as links
            to nothing are.

    Raises:
        InputError: No such folder, an archive that is not to be trusted, a link that leads out, or a name that is no
            UTF-8.
    """

    def __init__(
        self, root: Path, *, only: Path | None = None, open_archives: bool = True, strict: bool = True
    ) -> None:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; expected a folder with the data (or its zip files)")
        self.root = root
        self._archives: dict[Path, zipfile.ZipFile | TarArchive] = {}
        self._members: dict[str, _Member] = {}
        self.kept: dict[str, Any] = {}
        """What was read of it once, by name, as the tables."""
        self.refused: dict[str, str] = {}
        """Files that are not in the tree, of one that is not strict -> why."""
        archives: list[Path] = []
        for path in _files(root) if only is None else [only]:
            inner = PurePosixPath(path.relative_to(root).as_posix())
            if _is_noise(inner) or not (path.is_file() or path.is_symlink()):
                continue
            if trouble := self._trouble(path, str(inner)):
                if not strict:
                    self.refused[str(inner)] = trouble
                elif path.is_file():
                    raise InputError(trouble)
                continue
            if archive_suffix(path.name):
                archives += [path] * open_archives
            else:
                self._members[str(inner)] = _Member(None, str(inner))
        for path in archives:
            for logical, member in self._open(path):
                self._members.setdefault(logical, member)
        self.copies = self._without_copies()
        """Folder that repeats what is around it (data/data, as unpacked twice) -> its files, which are left out."""

    def _without_copies(self) -> dict[str, int]:
        inner: dict[str, list[str]] = {}
        for path in self._members:
            parents = path.split("/")[:-1]
            for depth in range(1, min(len(parents), _DEEPEST_COPY) + 1):
                inner.setdefault("/".join(parents[:depth]), []).append(path)
        found: dict[str, int] = {}
        for folder, paths in sorted(inner.items()):
            around = "" if "/" not in folder else folder.rpartition("/")[0] + "/"
            pairs = ((path, around + path.removeprefix(f"{folder}/")) for path in paths)
            known = all(
                twin in self._members and not twin.startswith(f"{folder}/") for _, twin in pairs
            )  # most often the first says no: nothing is kept of a large folder
            if not known or len(paths) < _LEAST_COPIES:
                continue
            twins = {path: around + path.removeprefix(f"{folder}/") for path in paths}
            if self._are_equal(twins):
                found[folder] = len(paths)
                for path in paths:
                    del self._members[path]
        return found

    def _are_equal(self, twins: dict[str, str]) -> bool:
        """Whether files and their twins are of equal sizes, and the first of them of equal bytes."""
        if any(self._size(path) != self._size(twin) for path, twin in twins.items()):
            return False
        return all(self.read(path) == self.read(twin) for path, twin in sorted(twins.items())[:_LEAST_COPIES])

    def _size(self, path: str) -> int:
        member = self._members[path]
        if member.archive is None:
            return (self.root / member.name).stat().st_size
        archive = self._archives[member.archive]
        return archive.getinfo(member.name).file_size if isinstance(archive, zipfile.ZipFile) else -1

    def _trouble(self, path: Path, inner: str) -> str:
        """Return why a file is left alone; nothing where it is not."""
        if any("\ud800" <= sign <= "\udfff" for sign in inner):  # bytes that are no UTF-8
            return f"{self.root}: the name {inner!r} is not valid UTF-8; rename the file"
        if path.is_symlink() and not path.is_file():
            return (
                f"{path}: a link to {str(path.readlink())!r}, which is no file; copy the file into the folder"
            )
        if path.is_symlink() and not path.resolve().is_relative_to(self.root.resolve()):
            return f"{path}: the link leads out of {self.root}; copy the file into the folder"
        return ""

    def _open(self, path: Path) -> Iterator[tuple[str, _Member]]:
        suffix = archive_suffix(path.name) or ""
        names = self._open_zip(path) if suffix == ".zip" else self._open_tar(path)
        base = PurePosixPath(path.relative_to(self.root).as_posix()[: -len(suffix)])
        visible = [name for name in names if not _is_noise(PurePosixPath(name.replace("\\", "/")))]
        if visible and all(PurePosixPath(name).parts[0] == base.name for name in visible):
            base = base.parent  # train.zip holds train/…: one level, not two
        for name in visible:
            yield str(base / name.replace("\\", "/")), _Member(path, name)

    def _open_zip(self, path: Path) -> list[str]:
        try:
            archive = self._archives[path] = zipfile.ZipFile(path)
        # what zipfile raises for damaged directories: bad fields, cut records, versions and names it does not know
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise InputError(f"{path}: not a whole zip archive ({error}); download it again") from error
        infos = [
            info
            for info in archive.infolist()
            if not info.filename.endswith("/")
            and not _is_noise(PurePosixPath(info.filename.replace("\\", "/")))
        ]
        _check_members(path, infos)
        return [info.filename for info in infos]

    def _open_tar(self, path: Path) -> list[str]:
        archive = self._archives[path] = TarArchive(path, most=MAX_MEMBER_BYTES)
        return archive.names

    @property
    def closed(self) -> list[str]:
        """The archives that stay closed: those of other kinds, and those within an archive."""
        return sorted(
            path
            for path, member in self._members.items()
            if path.lower().endswith(_CLOSED) or (member.archive and archive_suffix(path))
        )

    def files(self, folder: str = "", *, suffixes: tuple[str, ...] | None = None) -> list[str]:
        """Return the logical paths directly inside ``folder``, sorted; ``suffixes`` are lower case."""
        return [
            path
            for path in self._folders.get(folder, [])
            if suffixes is None or PurePosixPath(path).suffix.lower() in suffixes
        ]

    def every(self, *suffixes: str) -> list[str]:
        """Return the logical paths of all files with these endings (lower case), sorted."""
        return sorted(path for suffix in suffixes for path in self._by_suffix.get(suffix, ()))

    @cached_property
    def _by_suffix(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self._members:
            found.setdefault(PurePosixPath(path).suffix.lower(), []).append(path)
        return found

    @cached_property
    def _folders(self) -> dict[str, list[str]]:
        folders: dict[str, list[str]] = {}
        for path in sorted(self._members):
            parent = str(PurePosixPath(path).parent)
            folders.setdefault("" if parent == "." else parent, []).append(path)
        return folders

    @property
    def folders(self) -> list[str]:
        """Every logical folder that directly holds a file, sorted; "" is the root."""
        return sorted(self._folders)

    def has(self, prefix: str) -> bool:
        """Whether a folder, an archive or a file of that logical name lies there, even an empty one."""
        return (
            (self.root / prefix).exists()
            or any((self.root / f"{prefix}{suffix}").exists() for suffix in (".zip", *TAR_SUFFIXES))
            or any(path == prefix or path.startswith(prefix + "/") for path in self._members)
        )

    def __contains__(self, path: str) -> bool:
        """Whether a file of that logical path lies there."""
        return path in self._members

    def on_disk(self, path: str) -> Path | None:
        """Return where a file lies, None where it is in an archive."""
        member = self._members[path]
        return self.root / member.name if member.archive is None else None

    def read(self, path: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            InputError: The file cannot be read, or an archive's member is damaged.
        """
        member = self._members[path]
        try:
            if member.archive is None:
                return (self.root / member.name).read_bytes()
            archive = self._archives[member.archive]
            return (
                archive.read(member.name)
                if isinstance(archive, TarArchive)
                else _read_member(archive, member.name)
            )
        except (
            OSError,
            EOFError,
            ValueError,
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
            struct.error,
        ) as error:
            raise InputError(f"{self.root / path}: cannot be read ({error})") from error

    def version(self, path: str) -> str:
        """Return what changes when a file is written anew: size and time; of a member those of its archive."""
        member = self._members[path]
        stat = (member.archive or self.root / member.name).stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    @cached_property
    def content_hash(self) -> str:
        """A hash over the names and contents of all files.

        A zip's own checksums stand for its members, and the hash of a tar for all of its.
        """
        return digest_of(self._contents())

    def _contents(self) -> Iterator[str]:
        """Yield the name and the content's hash of each file."""
        whole: dict[Path, str] = {}
        for path, member in sorted(self._members.items()):
            archive = self._archives[member.archive] if member.archive else None
            if member.archive is None:
                yield f"{path} {file_digest(self.root / member.name)}"
            elif isinstance(archive, zipfile.ZipFile):
                info = archive.getinfo(member.name)
                yield f"{path} {info.file_size} {info.CRC:08x}"
            else:
                if member.archive not in whole:
                    whole[member.archive] = file_digest(member.archive)
                yield f"{path} {whole[member.archive]}"
