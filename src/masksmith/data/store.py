"""Arrays of many sizes in one flat memory-mapped ``.npy`` with a CSV index beside it.

The house keeps decoded images, masks and probabilities in this form. Reading one in a notebook needs no
masksmith::

    flat, index = np.load("oof.npy", mmap_mode="r"), pd.read_csv("oof.csv", dtype={"id": str})
    first = flat[:101 * 101].reshape(101, 101)     # offset, height, width, channels: see the index

Both files are written under temporary names; the index comes last, so it is the index that makes a store.
"""

import csv
import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from masksmith.arrays import Shaped
from masksmith.errors import InputError
from masksmith.files import no_room, write_text

_HEADER = ("id", "offset", "channels", "h", "w", "crc32", "done")


@dataclass(frozen=True)
class Entry:
    """Where one array lies: ``offset`` in elements, shape (h, w, channels)."""

    offset: int
    channels: int
    h: int
    w: int
    crc32: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.h * self.w * self.channels


def _index_path(path: Path) -> Path:
    return path.with_suffix(".csv")


def _read_index(path: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    with _index_path(path).open(newline="") as file:
        for row in csv.reader(file):
            if row and row[-1] == "1":
                offset, channels, h, w, crc = map(int, row[1:6])
                entries[row[0]] = Entry(offset, channels, h, w, crc)
    return entries


class StoreWriter:
    """Writes arrays of known shapes; ``close`` makes the store."""

    def __init__(
        self, path: Path, shapes: Sequence[tuple[str, tuple[int, int, int]]], *, dtype: type[np.generic]
    ) -> None:
        """Begin a store; one that is there is removed.

        Args:
            path: The ``.npy`` file; the index lies beside it with the ending ``.csv``.
            shapes: (id, (h, w, channels)) of every entry, in order.
            dtype: Element type.

        Raises:
            DiskFullError: The file does not fit; it is claimed as a whole before anything is computed.
        """
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.entries: dict[str, Entry] = {}
        self.written: set[str] = set()
        offset = 0
        for name, (h, w, channels) in shapes:
            self.entries[name] = Entry(offset, channels, h, w, 0)
            offset += h * w * channels
        path.parent.mkdir(parents=True, exist_ok=True)
        _index_path(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        self.flat = self._claim(max(offset, 1), dtype)

    def _claim(self, total: int, dtype: type[np.generic]) -> np.memmap:
        try:
            with no_room(self.path):
                flat = np.lib.format.open_memmap(self.temporary, mode="w+", dtype=dtype, shape=(total,))
                if hasattr(os, "posix_fallocate"):  # a hole in a full disk would be a SIGBUS later
                    with self.temporary.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, self.temporary.stat().st_size)
        except BaseException:
            self.temporary.unlink(missing_ok=True)
            raise
        return flat

    def write(self, name: str, array: Shaped[np.ndarray, "h w c"]) -> None:
        """Write one array."""
        place = self.entries[name]
        assert array.shape == (place.h, place.w, place.channels), (name, array.shape, place)
        raw = np.ascontiguousarray(array)
        self.flat[place.offset : place.offset + place.size] = raw.ravel()
        self.entries[name] = replace(place, crc32=zlib.crc32(raw.tobytes()))
        self.written.add(name)

    def close(self) -> None:
        """Give both files their names; every entry must have been written."""
        missing = set(self.entries) - self.written
        assert not missing, (
            f"{self.path}: {len(missing)} entries were not written, for example {min(missing)!r}"
        )
        self.flat.flush()
        self.temporary.replace(self.path)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEADER)
        for name, e in self.entries.items():
            writer.writerow((name, e.offset, e.channels, e.h, e.w, e.crc32, 1))
        write_text(_index_path(self.path), text.getvalue())


def is_whole(path: Path) -> bool:
    """Whether a finished store lies at ``path``."""
    return path.exists() and _index_path(path).exists()


class Store:
    """Reads a finished store; ``store[id]`` is a read-only view of shape (h, w, channels)."""

    def __init__(self, path: Path) -> None:
        if not is_whole(path):
            raise InputError(f"{path}: not there; run the stage that makes it again")
        self.path = path
        self.entries = _read_index(path)
        self.flat = np.load(path, mmap_mode="r")

    @property
    def ids(self) -> list[str]:
        """Ids in the order of the file."""
        return list(self.entries)

    @property
    def channels(self) -> int:
        """Number of channels (the same for all entries)."""
        return next(iter(self.entries.values())).channels if self.entries else 0

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return self.flat.dtype

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def shape(self, name: str) -> tuple[int, int]:
        """(height, width) of an entry in pixels."""
        return self.entries[name].h, self.entries[name].w

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "h w c"]:
        entry = self.entries[name]
        flat = self.flat[entry.offset : entry.offset + entry.size]
        return flat.reshape(entry.h, entry.w, entry.channels)

    def damaged(self, names: Iterable[str] | None = None) -> list[str]:
        """Return the ids whose bytes no longer have the checksum that was written."""
        wanted = self.ids if names is None else names
        return [name for name in wanted if zlib.crc32(self[name].tobytes()) != self.entries[name].crc32]
