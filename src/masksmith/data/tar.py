"""Tar archives read in place: members are indexed once and read where they lie.

A compressed tar has no random access: it is unpacked once into a temporary file without a name, which is gone with the
process.
"""

import bz2
import gzip
import lzma
import os
import struct
import tarfile
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from masksmith.core.errors import InputError

SUFFIXES: dict[str, type[gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile] | None] = {
    ".tar": None,
    ".tar.gz": gzip.GzipFile,
    ".tgz": gzip.GzipFile,
    ".tar.bz2": bz2.BZ2File,
    ".tbz2": bz2.BZ2File,
    ".tar.xz": lzma.LZMAFile,
    ".txz": lzma.LZMAFile,
}
"""Ending of an archive's name in lower case -> how it is unpacked; None: it is not compressed."""
MAX_UNPACKED_BYTES = 2**37
"""Most bytes that a compressed archive is unpacked to: 128 GiB."""
MAX_RATIO = 1000
_RATIO_FROM_BYTES = 2**26
_CHUNK = 2**20
_MOST_LINKS = 16  # of a chain that is followed

# What Python's modules raise for damaged archives: bad headers, numbers, names and streams.
_DAMAGE = (
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    ArithmeticError,
    LookupError,
)


def tar_suffix(name: str) -> str | None:
    """Return the ending by which a file's name is that of a tar archive, in lower case; None where it is none."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def check_member_name(name: str, *, where: str) -> PurePosixPath:
    """Return the path of a member within its archive.

    Raises:
        InputError: It leads out of the archive or is no UTF-8; ``where`` names archive and member.
    """
    inner = PurePosixPath(name.replace("\\", "/"))
    if not inner.parts or inner.is_absolute() or ".." in inner.parts or ":" in inner.parts[0]:
        raise InputError(f"{where} climbs out of the archive; do not trust this file")
    if any("\ud800" <= sign <= "\udfff" for sign in name):
        raise InputError(
            f"{where} has a name that is not valid UTF-8; unpack the archive and rename the file"
        )
    return inner


@dataclass(frozen=True)
class _Place:
    offset: int
    size: int


class TarArchive:
    """The files of a tar archive by name.

    Args:
        path: The archive.
        most: Most bytes of a member.

    Raises:
        InputError: It is damaged or unpacks to more than it can honestly hold; a member climbs out, appears twice,
            is a device, is sparse or claims too much, or a link leads out.
    """

    def __init__(self, path: Path, *, most: int) -> None:
        self.path = path
        self._most = most
        try:
            self._file = _unpacked(path)
            weakref.finalize(self, self._file.close)
            self._places = dict(self._index())
        except InputError:
            raise
        except _DAMAGE as error:
            raise InputError(f"{path}: not a whole tar archive ({error}); download it again") from error

    @property
    def names(self) -> list[str]:
        """Names of the files, in the archive's order."""
        return list(self._places)

    def _index(self) -> Iterator[tuple[str, _Place]]:
        found: dict[str, _Place] = {}
        links: dict[str, str] = {}
        total = os.fstat(self._file.fileno()).st_size
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            for info in archive:
                if info.isdir():
                    continue
                member = f"{self.path}: the member {info.name!r}"
                name = str(check_member_name(info.name, where=member))
                if name in found or name in links:
                    raise InputError(f"{member} appears twice; pack the archive again with one file a name")
                if info.issym() or info.islnk():
                    links[name] = _target(info, name, member)
                elif not info.isreg() or info.issparse():
                    raise InputError(f"{member} is no plain file; unpack the archive, or take it out")
                else:
                    self._check_size(info, member, total)
                    found[name] = _Place(info.offset_data, info.size)
            # tarfile takes a damaged header for the end of the archive
            if os.pread(self._file.fileno(), tarfile.BLOCKSIZE, archive.offset).strip(b"\0"):
                raise tarfile.ReadError(f"a damaged header at byte {archive.offset:,}")
        yield from found.items()
        for name in links:  # a link to nothing, or to a folder, is passed over
            end = name
            for _ in range(_MOST_LINKS):
                end = links.get(end, end)
            if end in found:
                yield name, found[end]

    def _check_size(self, info: tarfile.TarInfo, member: str, total: int) -> None:
        if info.size > self._most:
            raise InputError(
                f"{member} claims {info.size:,} bytes; at most {self._most:,} are read, unpack the archive"
            )
        if info.size < 0 or info.offset_data + info.size > total:
            raise InputError(
                f"{member} claims {info.size:,} bytes, more than the archive holds; download it again"
            )

    def read(self, name: str) -> bytes:
        """Return the bytes of a member.

        Raises:
            OSError: It cannot be read whole.
        """
        place, parts = self._places[name], []
        at, end = place.offset, place.offset + place.size
        while at < end:  # a read gives at most 2 GiB
            part = os.pread(self._file.fileno(), end - at, at)
            if not part:
                raise OSError(f"the archive ends {end - at:,} bytes too early")
            parts.append(part)
            at += len(part)
        return b"".join(parts)


def _target(info: tarfile.TarInfo, name: str, member: str) -> str:
    """Return the member that a link leads to: a symbolic one from its folder, a hard one from the archive's top."""
    parts = list(PurePosixPath(name).parent.parts) if info.issym() else []
    aim = PurePosixPath(info.linkname.replace("\\", "/"))
    for part in aim.parts:
        if part == ".." and parts:
            parts.pop()
        elif part == ".." or aim.is_absolute():
            raise InputError(f"{member} is a link that leads out of the archive; do not trust this file")
        else:
            parts.append(part)
    return "/".join(parts)


def _unpacked(path: Path) -> IO[bytes]:
    """Return the open archive, unpacked into a temporary file where it is compressed."""
    unpack = SUFFIXES[tar_suffix(path.name) or ".tar"]
    if unpack is None:
        return path.open("rb")
    bound = min(MAX_UNPACKED_BYTES, max(_RATIO_FROM_BYTES, MAX_RATIO * path.stat().st_size))
    done, file = 0, tempfile.TemporaryFile(prefix="masksmith-")  # noqa: SIM115 - open as long as the archive
    try:
        with unpack(path) as packed:
            while part := packed.read(_CHUNK):
                done += len(part)
                if done > bound:
                    raise InputError(
                        f"{path}: unpacks to more than {bound:,} bytes from {path.stat().st_size:,}; if you trust "
                        "it, unpack the archive"
                    )
                file.write(part)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
