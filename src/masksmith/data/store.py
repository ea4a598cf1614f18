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
_CHUNK = 2**24  # bytes read at once where a checksum is all that is wanted
_AT_ONCE = (
    2**22
)  # bytes of whole rows up to which a window is read at once; beyond, row by row, if it is narrow


@dataclass(frozen=True, slots=True)  # there is one for each image
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

    def read(self, entry: Entry, first: int = 0, num: int | None = None) -> bytes:
        """Return the bytes of an entry, or of ``num`` of its elements; fewer where the file ends before."""
        at, size = self._place(entry)
        at += first * self.dtype.itemsize
        size = size if num is None else num * self.dtype.itemsize
        raw = os.pread(self._descriptor, size, at)
        while len(raw) < size and (more := os.pread(self._descriptor, size - len(raw), at + len(raw))):
            raw += more  # one call reads at most 2 GiB
        return raw

    def crc32(self, entry: Entry, rows: int | None = None) -> int:
        """Return the checksum of an entry, or of its first rows, without holding it in memory."""
        left = (entry.h if rows is None else rows) * entry.w * entry.channels
        crc, first, most = 0, 0, _CHUNK // self.dtype.itemsize
        while left:
            num = min(left, most)
            crc = zlib.crc32(self.read(entry, first, num), crc)
            left, first = left - num, first + num
        return crc

    def write(self, entry: Entry, raw: memoryview, row: int = 0) -> None:
        """Write the bytes of an entry, or those from one of its rows on."""
        at, _ = self._place(entry)
        at += row * entry.w * entry.channels * self.dtype.itemsize
        left = raw
        while left:
            done = os.pwrite(self._descriptor, left, at)
            left, at = left[done:], at + done

    def flush(self) -> None:
        """Bring what was written to the disk."""
        os.fsync(self._descriptor)


def _bytes_of(array: np.ndarray, dtype: np.dtype) -> memoryview:
    """Return the bytes of an array in this type; of one that lies in memory like that without a copy."""
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data


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
    and finds it in ``written``, and the first rows of entries that were not whole in ``rows``. Until it is closed the
    array is called ``.NAME.masksmith-part``; its journal ``.NAME.masksmith-part.csv`` holds the hash of the key and the
    size, then (id, crc32) of every entry that is on the disk; for its first rows alone (id, crc32, number of rows).
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
        self.rows: dict[str, int] = {}
        """Entries of which only the first rows were written -> how many."""
        self._kept: set[str] = set()  # what the journal holds
        self._kept_rows: dict[str, int] = {}
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
            write_text(self.journal, _table([self._begun, *self._journal_lines([*self.written, *self.rows])]))

    def _journal_rows(self) -> list[list[str]]:
        if not self.journal.exists():
            return []
        with self.journal.open(newline="", errors="replace") as file, contextlib.suppress(csv.Error):
            return [row for row in csv.reader(file) if row]
        return []

    def _journal_lines(self, names: Iterable[str]) -> list[tuple[str | int, ...]]:
        rows = self.rows
        return [(name, self.entries[name].crc32, *([rows[name]] if name in rows else [])) for name in names]

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
        newest = {name: rest for name, *rest in self._journal_rows()[1:] if name in self.entries}
        for name, rest in newest.items():
            self._take_up_entry(name, rest)
        self._kept, self._kept_rows = set(self.written), dict(self.rows)
        return True

    def _take_up_entry(self, name: str, line: Sequence[str]) -> None:
        """Count an entry, or its first rows, as written where the checksum is that of its line in the journal."""
        place, crc = self.entries[name], line[:1]
        rows = int(line[1]) if len(line) == 2 and line[1].isdecimal() and int(line[1]) < place.h else None
        if len(line) > 1 and rows is None:
            return
        found = self._flat.crc32(place, rows)
        if crc != [str(found)]:
            return
        self.entries[name] = replace(place, crc32=found)
        if rows is None:
            self.written.add(name)
        else:
            self.rows[name] = rows

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
        raw = _bytes_of(array, self._flat.dtype)
        with no_room(self.path):
            self._flat.write(place, raw)
        self.entries[name] = replace(place, crc32=zlib.crc32(raw))
        self.rows.pop(name, None)
        self.written.add(name)

    def write_rows(self, name: str, first: int, array: Shaped[np.ndarray, "n w c"]) -> None:
        """Write the next rows of an array, from row ``first`` on; with the last one it is written."""
        place, before = self.entries[name], self.rows.get(name, 0)
        assert array.shape[1:] == (place.w, place.channels), (name, array.shape, place)
        assert first == before, (name, first, before)
        assert first + len(array) <= place.h, (name, first, array.shape, place)
        raw = _bytes_of(array, self._flat.dtype)
        with no_room(self.path):
            self._flat.write(place, raw, first)
        self.entries[name] = replace(place, crc32=zlib.crc32(raw, place.crc32 if before else 0))
        self.rows[name] = first + len(array)
        if self.rows[name] == place.h:
            del self.rows[name]
            self.written.add(name)

    def commit(self) -> None:
        """Make what was written so far outlast this process (with a key; without one there is nothing to do).

        Nothing is flushed to the disk: the system keeps what a killed process wrote, and after a power cut the
        checksums of the journal tell what is whole.
        """
        if self._begun is None:
            return
        fresh = self.written - self._kept
        fresh |= {name for name, rows in self.rows.items() if self._kept_rows.get(name) != rows}
        if fresh:
            append_text(
                self.journal,
                _table(self._journal_lines([name for name in self.entries if name in fresh])),
                sync=False,
            )
            self._kept, self._kept_rows = set(self.written), dict(self.rows)

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
        self._whole: set[str] = set()  # entries of which a part may be read: their checksums were compared
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
            raise self._damaged(name)
        return array

    def parts(self, name: str) -> Iterator[Shaped[np.ndarray, "n w c"]]:
        """Yield ``store[name]`` some rows at a time, from the top; the checksum is compared with the last of them.

        Raises:
            InputError: The array was damaged since it was written.
        """
        entry, crc = self.entries[name], 0
        row = entry.w * entry.channels
        step = max(1, _CHUNK // max(1, row * self.dtype.itemsize))
        for first in range(0, entry.h, step):
            count = min(step, entry.h - first)
            raw = self._bytes(name, first * row, count * row)
            crc = zlib.crc32(raw, crc)
            if first + count == entry.h and crc != entry.crc32:
                raise self._damaged(name)
            yield np.frombuffer(raw, self.dtype).reshape(count, entry.w, entry.channels)

    def window(self, name: str, rows: slice, columns: slice) -> Shaped[np.ndarray, "h w c"]:
        """Return a part of ``store[name]``, reading no other rows of it.

        A part has no checksum: that of the whole entry is compared once, when a part of it is asked for first.

        Args:
            name: Id of the entry.
            rows: First row and the one after the last, within the image.
            columns: The same of the columns.

        Raises:
            InputError: The array was damaged since it was written.
        """
        entry = self.entries[name]
        assert 0 <= rows.start < rows.stop <= entry.h, (name, rows, entry)
        assert 0 <= columns.start < columns.stop <= entry.w, (name, columns, entry)
        if name not in self._whole:
            if self._flat.crc32(entry) != entry.crc32:
                raise self._damaged(name)
            self._whole.add(name)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        num = height * entry.w * entry.channels
        if num * self.dtype.itemsize <= _AT_ONCE or 4 * width > entry.w:
            first = rows.start * entry.w * entry.channels
            array = np.frombuffer(self._bytes(name, first, num), self.dtype)
            return array.reshape(height, entry.w, entry.channels)[:, columns]
        firsts = ((row * entry.w + columns.start) * entry.channels for row in range(rows.start, rows.stop))
        raw = b"".join(self._bytes(name, first, width * entry.channels) for first in firsts)
        return np.frombuffer(raw, self.dtype).reshape(height, width, entry.channels)

    def _bytes(self, name: str, first: int, num: int) -> bytes:
        """Return the bytes of ``num`` elements of an entry."""
        raw = self._flat.read(self.entries[name], first, num)
        if len(raw) < num * self.dtype.itemsize:
            raise self._refusal(f"the file is cut off within {name!r}")
        return raw

    def _damaged(self, name: str) -> InputError:
        return self._refusal(f"{name!r} in it was damaged since it was written (wrong checksum)")

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
        return np.frombuffer(self._bytes(name, 0, entry.size), self.dtype).reshape(
            entry.h, entry.w, entry.channels
        )

    def damaged(self, names: Iterable[str] | None = None) -> list[str]:
        """Return the ids whose bytes no longer have the checksum that was written."""
        wanted = self.ids if names is None else names
        return [name for name in wanted if self._flat.crc32(self.entries[name]) != self.entries[name].crc32]


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

    def window(self, joined: str, rows: slice, columns: slice) -> Shaped[np.ndarray, "h w c"]:
        """See Store."""
        store, name = self._find(joined)
        return store.window(name, rows, columns)

    def __getitem__(self, joined: str) -> Shaped[np.ndarray, "h w c"]:
        store, name = self._find(joined)
        return store[name]


def joined_id(key: str, name: str) -> str:
    """Return what a JoinedStore calls an array of one of its stores."""
    return f"{key}/{name}"


class Stored:
    """One array of a store: it is read where it is indexed by rows and columns, ``stored[3:9, 4:8]``."""

    def __init__(self, store: "Store | JoinedStore", name: str, *, flat: bool = False) -> None:
        """Find the array.

        Args:
            store: Where it lies.
            name: Its id.
            flat: Leave out the last axis, of one channel.
        """
        self.store, self.name, self.flat = store, name, flat
        self.dtype = store.dtype
        hw = store.shape(name)
        self.shape: tuple[int, ...] = hw if flat else (*hw, store.channels)
        self.ndim = len(self.shape)

    def __getitem__(self, part: tuple[slice, slice]) -> Shaped[np.ndarray, "h w *c"]:
        window = self.store.window(self.name, *part)
        return window[..., 0] if self.flat else window


Arrays = Store | JoinedStore
"""What a training reads images and masks from."""
