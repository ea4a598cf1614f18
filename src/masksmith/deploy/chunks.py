"""Decode files and hand them on in chunks, so that memory grows neither with their number nor with their size."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from masksmith.core import interrupt
from masksmith.core.arrays import Image
from masksmith.core.errors import DiskFullError, InputError
from masksmith.core.files import digest
from masksmith.data.array_store import ArrayStore, Images
from masksmith.data.decode.tiff import count_pages, large_rows
from masksmith.data.ids import check_id
from masksmith.data.store import Store, StoreWriter, is_whole
from masksmith.deploy.listing import Item
from masksmith.deploy.picture import Picture
from masksmith.deploy.segmenter import Segmenter
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.operators import Rule

CHUNK_IMAGES = 4096
CHUNK_BYTES = 2**28
"""Images that are decoded and segmented together, at most; a larger image alone is on the disk, not in memory."""
MOST_AT_ONCE = 2**28
"""Pixels of an image up to which its objects, or its overlapping labels, are made: they need it as a whole."""
_LARGE = "large-"


@dataclass
class Chunk:
    """Images that are segmented together, and what is said of files that could not be used."""

    images: Images | None = None
    pictures: dict[str, Picture] = field(default_factory=dict)
    numbers: dict[str, Mapping[str, float]] = field(default_factory=dict)
    """Of each image, where the model takes some."""
    bad: dict[str, str] = field(default_factory=dict)
    """Id of a file -> why it cannot be used."""
    items: list[Item] = field(default_factory=list)
    scratch: Path | None = None
    """Of a large image: where its pixels and probabilities lie, also when the process dies."""


class Chunks:
    """Makes chunks of files.

    Args:
        model: The model.
        folder: Where large images lie until they are segmented.
        key: Hash of what segmentations depend on beside the files.
        table: Id of an image or of its file, or the last part of it -> name -> number.
    """

    def __init__(
        self, model: Segmenter, folder: Path, key: str, table: Mapping[str, Mapping[str, float]]
    ) -> None:
        self.model, self.folder, self.key, self.table = model, folder, key, table

    def of(self, items: Iterable[Item]) -> Iterator[Chunk]:
        """Decode files and yield them in chunks; an image of which there are rows is one of its own."""
        chunk, arrays, size = Chunk(), dict[str, Image](), 0

        def finished() -> Chunk:
            chunk.images = ArrayStore(arrays) if arrays else None
            return chunk

        for item in items:
            interrupt.check_stop()
            found = self._decoded(item)
            own = {} if isinstance(found, str | Chunk) else found
            taken = sum(image.nbytes for _, image in own.values())
            full = size + taken > CHUNK_BYTES or len(arrays) + len(own) > CHUNK_IMAGES
            if chunk.items and (isinstance(found, Chunk) or (arrays and full)):
                yield finished()
                chunk, arrays, size = Chunk(), {}, 0
            if isinstance(found, Chunk):
                yield found
                continue
            if isinstance(found, str):
                chunk.bad[item.id] = found
            arrays |= {name: image for name, (_, image) in own.items()}
            chunk.pictures |= {name: one for name, (one, _) in own.items()}
            chunk.numbers |= {name: self._numbers(one) for name, (one, _) in own.items()}
            chunk.items.append(item)
            size += taken
        if chunk.items:
            yield finished()

    def _decoded(self, item: Item) -> dict[str, tuple[Picture, Image]] | Chunk | str:
        """Return the images of a file by id, the chunk of a large image, or why the file cannot be used."""
        if item.error:
            return item.error
        try:
            rows = _rows_of(item)
            if rows is not None:
                return self._large(item, rows)
            images = _decode(item, self.model.bundle.facts.channels)
            own = {one.id: (one, self.model.fit(image, where=one.path)) for one, image in images}
            for name, (one, _) in own.items():
                check_id(name, where=item.path)
                self._numbers(one)
            return own
        except DiskFullError:
            raise
        except InputError as error:
            return str(error)

    def _numbers(self, one: Picture) -> Mapping[str, float]:
        """Return the numbers of an image.

        Raises:
            InputError: The model takes some, and there is one missing.
        """
        names = self.model.scalars
        keys = (one.id, one.item.id, PurePosixPath(one.item.id).name)
        found = next((self.table[key] for key in keys if key in self.table), {})
        if missing := [name for name in names if name not in found]:
            raise InputError(
                f"{one.path}: no {missing[0]!r} of the id {one.id!r} or {keys[-1]!r}, which this model takes beside "
                f"each image; give a --table with the columns id, {', '.join(names)}"
            )
        return {name: found[name] for name in names}

    # --- large images ---

    def _scratch(self, item: Item) -> Path:
        return self.folder / f"{_LARGE}{digest(self.key, item.path, item.version)}"

    def remove_others(self, items: Sequence[Item]) -> None:
        """Remove what is left of large images that are no longer wanted."""
        wanted = {self._scratch(item) for item in items}
        for path in self.folder.glob(f"{_LARGE}*"):
            if path not in wanted:
                shutil.rmtree(path)

    def _large(self, item: Item, rows: Iterator[Image]) -> Chunk:
        """Return the chunk of a large image, whose pixels are on the disk.

        Raises:
            InputError: The file is damaged or not for this model, or too large for its rule.
        """
        check_id(item.id, where=item.path)
        facts, (height, width) = self.model.bundle.facts, _size_of(item)
        if height * width > MOST_AT_ONCE and not isinstance(self.model.rule, Rule | ClassRule):
            raise InputError(
                f"{item.path}: {height}x{width} pixels; this model's masks are made of images of up to "
                f"{MOST_AT_ONCE:,}, cut it into tiles"
            )
        one = Picture(item.id, item, item.path)
        numbers, scratch = self._numbers(one), self._scratch(item)
        path, shape = scratch / "images.npy", (height, width, facts.channels)
        if not is_whole(path):
            writer = StoreWriter(path, [(item.id, shape)], dtype=np.dtype(facts.dtype).type, key=scratch.name)
            row = 0
            for band in rows:
                interrupt.check_stop()
                done = min(max(writer.rows.get(item.id, 0) - row, 0), len(band))
                fitted = self.model.fit(band, where=item.path)[done:]
                if len(fitted) and item.id not in writer.written:
                    writer.write_rows(item.id, row + done, fitted)
                    writer.commit()
                row += len(band)
            writer.close()
        return Chunk(Store(path), {item.id: one}, {item.id: numbers}, {}, [item], scratch)


def _decode(item: Item, channels: int) -> Iterator[tuple[Picture, Image]]:
    """Yield the images of a file; pages of a TIFF are the bands of one where the model takes so many, else images."""
    reader, path = item.reader, item.path
    count = reader.count(path)
    if count == 1:
        image = reader.image(path)
        pages = count_pages(reader.raw(path), path) if image.shape[2] != channels else 1
        if pages == 1 or reader.image(f"{path}#0").shape[2] != channels:
            yield Picture(item.id, item, path), image
            return
        count = pages
    for at in range(count):
        yield Picture(f"{item.id}_{at:04d}", item, f"{path}#{at}"), reader.image(f"{path}#{at}")


def _rows_of(item: Item) -> Iterator[Image] | None:
    """Return the rows of a large image from the top, some at a time; None where it is decoded as a whole."""
    place = item.reader.tree.on_disk(item.path)
    return None if place is None else large_rows(place, where=item.path)


def _size_of(item: Item) -> tuple[int, int]:
    """Return (height, width) of a TIFF of which there are rows."""
    import tifffile

    place = item.reader.tree.on_disk(item.path)
    assert place is not None
    with tifffile.TiffFile(place) as file:
        page = file.pages.first
        return page.imagelength, page.imagewidth
