"""Arrays of many sizes in one flat memory-mapped ``.npy`` with a CSV index beside it.

The house keeps decoded images, masks and probabilities in this form. Reading one in a notebook needs no
masksmith::

    flat, index = np.load("oof.npy", mmap_mode="r"), pd.read_csv("oof.csv", dtype={"id": str})
    first = flat[:101 * 101].reshape(101, 101)     # offset, height, width, channels: see the index

An index line is appended after its array has been written, so a store that was cut off holds whole
entries only, and the rest is made anew.
"""

import csv
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
            if len(row) == len(_HEADER) and row[-1] == "1":  # a torn last line is not an entry
                offset, channels, h, w, crc = map(int, row[1:6])
                entries[row[0]] = Entry(offset, channels, h, w, crc)
    return entries


class StoreWriter:
    """Writes arrays of known shapes; entries that an earlier, cut-off writer finished are kept."""

    def __init__(
        self, path: Path, shapes: Sequence[tuple[str, tuple[int, int, int]]], *, dtype: type[np.generic]
    ) -> None:
        """Open or begin a store.

        Args:
            path: The ``.npy`` file; the index lies beside it with the ending ``.csv``.
            shapes: (id, (h, w, channels)) of every entry, in order.
            dtype: Element type.

        Raises:
            DiskFullError: The file does not fit; it is claimed as a whole before anything is computed.
        """
        self.path = path
        self.places: dict[str, Entry] = {}
        offset = 0
        for name, (h, w, channels) in shapes:
            self.places[name] = Entry(offset, channels, h, w, 0)
            offset += h * w * channels
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._continues(offset, dtype):
            self._begin(offset, dtype)
        self.flat = np.lib.format.open_memmap(path, mode="r+")
        self.done = set(_read_index(path))

    def _continues(self, total: int, dtype: type[np.generic]) -> bool:
        if not (self.path.exists() and _index_path(self.path).exists()):
            return False
        flat = np.load(self.path, mmap_mode="r")
        there = _read_index(self.path)
        same = all(name in self.places and there[name].offset == self.places[name].offset for name in there)
        return flat.dtype == dtype and flat.shape == (max(total, 1),) and same

    def _begin(self, total: int, dtype: type[np.generic]) -> None:
        self.path.unlink(missing_ok=True)
        write_text(_index_path(self.path), ",".join(_HEADER) + "\n")
        try:
            with no_room(self.path):
                flat = np.lib.format.open_memmap(self.path, mode="w+", dtype=dtype, shape=(max(total, 1),))
                flat.flush()
                del flat
                with self.path.open("r+b") as file:  # a hole in a full disk would be a SIGBUS later
                    os.posix_fallocate(file.fileno(), 0, self.path.stat().st_size)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise

    def write(self, name: str, array: Shaped[np.ndarray, "h w c"]) -> None:
        """Write one array; its index line follows it."""
        place = self.places[name]
        assert array.shape == (place.h, place.w, place.channels), (name, array.shape, place)
        raw = np.ascontiguousarray(array)
        self.flat[place.offset : place.offset + place.size] = raw.ravel()
        row = (name, place.offset, place.channels, place.h, place.w, zlib.crc32(raw.tobytes()), 1)
        with no_room(_index_path(self.path)), _index_path(self.path).open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)
        self.done.add(name)

    def close(self) -> None:
        """Flush to the disk."""
        self.flat.flush()


class Store:
    """Reads a finished store; ``store[id]`` is a read-only view of shape (h, w, channels)."""

    def __init__(self, path: Path) -> None:
        if not path.exists() or not _index_path(path).exists():
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
