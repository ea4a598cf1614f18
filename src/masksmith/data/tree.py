"""A data folder seen as one tree of files, with its zip archives opened in place.

``train.zip`` that holds ``images/a.png`` is seen as ``train/images/a.png``, exactly as if it had been
unpacked; nothing is written. Where both lie there, the unpacked file is read.
"""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from masksmith.errors import InputError
from masksmith.files import digest, file_digest

_NOISE = {"__macosx", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class _Member:
    archive: Path | None  # None: a file of its own
    name: str


def _is_noise(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part.lower() in _NOISE for part in path.parts)


class Tree:
    """Every file of a data folder under its logical path ("train/images/a.png")."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; expected a folder with the data (or its zip files)")
        self.root = root
        self._archives: dict[Path, zipfile.ZipFile] = {}
        self._members: dict[str, _Member] = {}
        archives: list[Path] = []
        for path in sorted(root.rglob("*")):
            inner = PurePosixPath(path.relative_to(root).as_posix())
            if _is_noise(inner) or not path.is_file():
                continue
            if not path.resolve().is_relative_to(root.resolve()):
                raise InputError(f"{path}: the link leads out of {root}; copy the file into the folder")
            if path.suffix.lower() == ".zip":
                archives.append(path)
            else:
                self._members[str(inner)] = _Member(None, str(inner))
        for path in archives:
            for logical, member in self._open(path):
                self._members.setdefault(logical, member)

    def _open(self, path: Path) -> Iterator[tuple[str, _Member]]:
        try:
            archive = self._archives[path] = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise InputError(f"{path}: not a whole zip archive ({error}); download it again") from error
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        for name in names:
            inner = PurePosixPath(name.replace("\\", "/"))
            if inner.is_absolute() or ".." in inner.parts or ":" in inner.parts[0]:
                raise InputError(
                    f"{path}: the member {name!r} climbs out of the archive; do not trust this file"
                )
        base = PurePosixPath(path.relative_to(self.root).with_suffix("").as_posix())
        visible = [name for name in names if not _is_noise(PurePosixPath(name))]
        if visible and all(PurePosixPath(name).parts[0] == base.name for name in visible):
            base = base.parent  # train.zip holds train/…: one level, not two
        for name in visible:
            yield str(base / name.replace("\\", "/")), _Member(path, name)

    def files(self, folder: str = "", *, suffixes: tuple[str, ...] | None = None) -> list[str]:
        """Return the logical paths directly inside ``folder``, sorted; ``suffixes`` are lower case."""
        return [
            path
            for path in self._folders.get(folder, [])
            if suffixes is None or PurePosixPath(path).suffix.lower() in suffixes
        ]

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
            or (self.root / f"{prefix}.zip").exists()
            or any(path == prefix or path.startswith(prefix + "/") for path in self._members)
        )

    def read(self, path: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            InputError: The file cannot be read, or an archive's member is damaged.
        """
        member = self._members[path]
        try:
            if member.archive is None:
                return (self.root / member.name).read_bytes()
            return self._archives[member.archive].read(member.name)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise InputError(f"{self.root / path}: cannot be read ({error})") from error

    @cached_property
    def content_hash(self) -> str:
        """A hash over the names and contents of all files (an archive's own checksums stand for its members)."""
        parts: list[str] = []
        for path, member in sorted(self._members.items()):
            if member.archive is None:
                parts.append(f"{path} {file_digest(self.root / member.name)}")
            else:
                info = self._archives[member.archive].getinfo(member.name)
                parts.append(f"{path} {info.file_size} {info.CRC:08x}")
        return digest(*parts)
