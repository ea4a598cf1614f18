"""Arrays of many sizes in one flat ``.npy`` with a CSV index beside it.

Decoded images, masks and probabilities are kept in this form. Reading one in a notebook needs no
masksmith::

    flat, index = np.load("oof.npy", mmap_mode="r"), pd.read_csv("oof.csv", dtype={"id": str})
    first = flat[:101 * 101].reshape(101, 101)     # offset, height, width, channels: see the index

masksmith itself reads and writes with ``pread`` and ``pwrite``: pages of a memory map count as memory of the process,
so that a pass over a large store would look, and in a container be treated, like holding all of it.

Both files are written under temporary names; the index comes last, so it is the index that makes a store.
"""

import contextlib
import csv
import io
import os
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from masksmith.core.arrays import Shaped
from masksmith.core.errors import InputError
from masksmith.core.files import (
    append_text,
    digest,
    no_room,
    remove,
    rename,
    temporary_of,
    write_point,
    write_text,
)

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


class _FlatFile:
    """The elements of an open ``.npy`` file, read and written by place."""

    def __init__(self, path: Path, dtype: np.dtype, start: int, *, writable: bool = False) -> None:
        """Open the file; ``start`` is the byte of its first element."""
        self.dtype, self.start = dtype, start
        self._descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def _place(self, entry: Entry) -> tuple[int, int]:
        """Return the first byte of an entry and the number of its bytes."""
        return self.start + entry.offset * self.dtype.itemsize, entry.size * self.dtype.itemsize

    def read(self, entry: Entry) -> bytes:
        """Return the bytes of an entry; fewer where the file ends before it does."""
        at, size = self._place(entry)
        raw = os.pread(self._descriptor, size, at)
        while len(raw) < size and (more := os.pread(self._descriptor, size - len(raw), at + len(raw))):
            raw += more  # one call reads at most 2 GiB
        return raw

    def write(self, entry: Entry, raw: bytes) -> None:
        """Write the bytes of an entry."""
        at, _ = self._place(entry)
        left = memoryview(raw)
        while left:
            done = os.pwrite(self._descriptor, left, at)
            left, at = left[done:], at + done

    def flush(self) -> None:
        """Bring what was written to the disk."""
        os.fsync(self._descriptor)


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


def _table(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class StoreWriter:
    """Writes arrays of known shapes; ``close`` makes the store.

    With a key, what was committed outlasts the process: a writer opened with the same key, shapes and type goes on
    and finds it in ``written``. Until it is closed the array is called ``.NAME.masksmith-part``; its journal
    ``.NAME.masksmith-part.csv`` holds the hash of the key and the size, then (id, crc32) of every entry that is on the
    disk.
    """

    def __init__(
        self,
        path: Path,
        shapes: Sequence[tuple[str, tuple[int, int, int]]],
        *,
        dtype: type[np.generic],
        key: str | None = None,
    ) -> None:
        """Begin a store, or go on with it; a finished one that is there is removed.

        Args:
            path: The ``.npy`` file; the index lies beside it with the ending ``.csv``.
            shapes: (id, (h, w, channels)) of every entry, in order.
            dtype: Element type.
            key: What the arrays are made from; None begins again and leaves nothing when the process dies.

        Raises:
            DiskFullError: The file does not fit; it is claimed as a whole before anything is computed.
        """
        self.path = path
        part = path.with_name(f".{path.name}.masksmith-part")
        self.journal = part.with_name(f"{part.name}.csv")
        self.temporary = part if key is not None else temporary_of(path)
        self.entries: dict[str, Entry] = {}
        self.written: set[str] = set()
        self._kept: set[str] = set()  # what the journal holds
        offset = 0
        for name, (h, w, channels) in shapes:
            self.entries[name] = Entry(offset, channels, h, w, 0)
            offset += h * w * channels
        total = max(offset, 1)
        self._begun = (
            None if key is None else (digest(key, str(np.dtype(dtype)), str(self.entries)), str(total))
        )
        remove(_index_path(path))
        goes_on = self._begun is not None and self._journal_rows()[:1] == [list(self._begun)]
        if goes_on and path.exists() and not part.exists():
            path.replace(part)  # the process died between this rename and the index
        remove(path)
        if not (goes_on and self._take_up(dtype, total)):
            remove(self.journal)
            remove(part)
            self._flat = self._claim(total, dtype)
        if self._begun is not None:
            write_text(self.journal, _table([self._begun, *self._journal_lines(self.written)]))

    def _journal_rows(self) -> list[list[str]]:
        if not self.journal.exists():
            return []
        with self.journal.open(newline="", errors="replace") as file, contextlib.suppress(csv.Error):
            return [row for row in csv.reader(file) if row]
        return []

    def _journal_lines(self, names: Iterable[str]) -> list[tuple[str, int]]:
        return [(name, self.entries[name].crc32) for name in names]

    def _take_up(self, dtype: type[np.generic], total: int) -> bool:
        """Open the part that is there and find its whole entries; False if it is not as it was claimed."""
        try:
            size = self.temporary.stat().st_size
            flat = np.lib.format.open_memmap(self.temporary, mode="r+")  # it would make a short file longer
        except (OSError, ValueError):  # not there, or no array
            return False
        if (flat.shape, flat.dtype) != ((total,), np.dtype(dtype)) or size < flat.offset + flat.nbytes:
            return False
        self._flat = _FlatFile(self.temporary, flat.dtype, flat.offset, writable=True)
        for name, *crc in self._journal_rows()[1:]:
            if place := self.entries.get(name):
                found = zlib.crc32(self._flat.read(place))
                if crc == [str(found)]:
                    self.entries[name] = replace(place, crc32=found)
                    self.written.add(name)
        self._kept = set(self.written)
        return True

    def _claim(self, total: int, dtype: type[np.generic]) -> "_FlatFile":
        try:
            with no_room(self.path):
                write_point(self.temporary, "write")
                self.path.parent.mkdir(parents=True, exist_ok=True)
                flat = np.lib.format.open_memmap(self.temporary, mode="w+", dtype=dtype, shape=(total,))
                if hasattr(os, "posix_fallocate"):  # a full disk is noticed now, not after an hour
                    with self.temporary.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, self.temporary.stat().st_size)
                write_point(self.temporary, "written")
        except BaseException:
            with contextlib.suppress(OSError):
                self.temporary.unlink(missing_ok=True)
            raise
        return _FlatFile(self.temporary, flat.dtype, flat.offset, writable=True)

    def write(self, name: str, array: Shaped[np.ndarray, "h w c"]) -> None:
        """Write one array."""
        place = self.entries[name]
        assert array.shape == (place.h, place.w, place.channels), (name, array.shape, place)
        raw = np.ascontiguousarray(array, self._flat.dtype).tobytes()
        with no_room(self.path):
            self._flat.write(place, raw)
        self.entries[name] = replace(place, crc32=zlib.crc32(raw))
        self.written.add(name)

    def commit(self) -> None:
        """Make what was written so far outlast this process (with a key; without one there is nothing to do).

        Nothing is flushed to the disk: the system keeps what a killed process wrote, and after a power cut the
        checksums of the journal tell what is whole.
        """
        if self._begun is None:
            return
        fresh = self.written - self._kept
        if fresh:
            append_text(
                self.journal,
                _table(self._journal_lines([name for name in self.entries if name in fresh])),
                sync=False,
            )
            self._kept |= fresh

    def close(self) -> None:
        """Give both files their names; every entry must have been written."""
        missing = set(self.entries) - self.written
        assert not missing, (
            f"{self.path}: {len(missing)} entries were not written, for example {min(missing)!r}"
        )
        self.commit()
        with no_room(self.path):
            self._flat.flush()
            write_point(self.path, "written")
            rename(self.temporary, self.path)
        rows = [(name, e.offset, e.channels, e.h, e.w, e.crc32, 1) for name, e in self.entries.items()]
        write_text(_index_path(self.path), _table([_HEADER, *rows]))
        remove(self.journal)


def is_whole(path: Path) -> bool:
    """Whether a finished store lies at ``path``."""
    return path.exists() and _index_path(path).exists()


class Store:
    """Reads a finished store; ``store[id]`` is a read-only array of shape (h, w, channels), read when asked for."""

    def __init__(self, path: Path, *, on_damage: Callable[[], None] | None = None) -> None:
        """Open a store.

        Args:
            path: The ``.npy`` file.
            on_damage: Called before damage is refused, so that the owner of the store can have it made again.

        Raises:
            InputError: It is not there, cut off, or one of its two files cannot be read.
        """
        if not is_whole(path):
            raise InputError(f"{path}: not there; run the stage that makes it again")
        self.path = path
        self.on_damage = on_damage
        try:
            self.entries = _read_index(path)
            flat = np.load(path, mmap_mode="r")
            wanted = max((entry.offset + entry.size for entry in self.entries.values()), default=0)
            if flat.ndim != 1 or wanted > flat.size:
                raise ValueError(f"{wanted} elements in the index, an array of shape {flat.shape}")
            self._flat = _FlatFile(path, flat.dtype, flat.offset)
        except (ValueError, EOFError, csv.Error) as error:
            raise self._refusal(
                f"it or its index was cut off or changed since it was written ({error})"
            ) from error

    def _refusal(self, what: str) -> InputError:
        """Return the error for damage, after the store's owner was told."""
        todo = f"remove {self.path.name} and run the stage that makes it again"
        if self.on_damage is not None:
            with contextlib.suppress(InputError, OSError):  # the damage is what matters now
                self.on_damage()
            todo = (
                "repeat the command: it is made again from the data. If this happens again, look at the disk"
            )
        return InputError(f"{self.path}: {what}; {todo}")

    def checked(self, name: str) -> Shaped[np.ndarray, "h w c"]:
        """Return ``store[name]`` after comparing its checksum.

        3 to 10 µs for 101x101 bytes: about a thousandth of a training step.

        Raises:
            InputError: The array was damaged since it was written.
        """
        array = self[name]
        if zlib.crc32(array.data) != self.entries[name].crc32:
            raise self._refusal(f"{name!r} in it was damaged since it was written (wrong checksum)")
        return array

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
        return self._flat.dtype

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def shape(self, name: str) -> tuple[int, int]:
        """(height, width) of an entry in pixels."""
        return self.entries[name].h, self.entries[name].w

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "h w c"]:
        entry = self.entries[name]
        raw = self._flat.read(entry)
        if len(raw) < entry.size * self.dtype.itemsize:
            raise self._refusal(f"the file is cut off within {name!r}")
        return np.frombuffer(raw, self.dtype).reshape(entry.h, entry.w, entry.channels)

    def damaged(self, names: Iterable[str] | None = None) -> list[str]:
        """Return the ids whose bytes no longer have the checksum that was written."""
        wanted = self.ids if names is None else names
        return [name for name in wanted if zlib.crc32(self[name].data) != self.entries[name].crc32]


@dataclass(frozen=True)
class JoinedStore:
    """Several stores of one element type read as one: what store "a" calls ``name`` is called ``a/name`` here.

    So an id may be in two stores: it names two arrays.
    """

    stores: Mapping[str, "Store | JoinedStore"]
    """One or more."""

    def __post_init__(self) -> None:
        assert len({store.dtype for store in self.stores.values()}) == 1, self.stores

    def _find(self, joined: str) -> tuple["Store | JoinedStore", str]:
        key, _, name = joined.partition("/")
        return self.stores[key], name

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return next(iter(self.stores.values())).dtype

    @property
    def channels(self) -> int:
        """Number of channels (the same for all entries)."""
        return next(iter(self.stores.values())).channels

    def __iter__(self) -> Iterator[str]:
        return (joined_id(key, name) for key, store in self.stores.items() for name in store)

    def shape(self, joined: str) -> tuple[int, int]:
        """See Store."""
        store, name = self._find(joined)
        return store.shape(name)

    def checked(self, joined: str) -> Shaped[np.ndarray, "h w c"]:
        """See Store."""
        store, name = self._find(joined)
        return store.checked(name)

    def __getitem__(self, joined: str) -> Shaped[np.ndarray, "h w c"]:
        store, name = self._find(joined)
        return store[name]


def joined_id(key: str, name: str) -> str:
    """Return what a JoinedStore calls an array of one of its stores."""
    return f"{key}/{name}"


Arrays = Store | JoinedStore
"""What a training reads images and masks from."""
