"""Segment files with a bundle: masks as PNG, a table of what was found, and more where asked.

Images are decoded and segmented in chunks, so that memory does not grow with their number; each finished chunk is on
the disk, and the same call goes on after the last one. A file that cannot be used is said in the table, and the rest
goes on.
"""

import csv
import io
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from masksmith.core import interrupt
from masksmith.core.arrays import AnyMask, Image
from masksmith.core.errors import InputError
from masksmith.core.files import digest, read_json, remove, write_json, write_member, write_text
from masksmith.core.locks import folder_lock
from masksmith.core.progress import logger
from masksmith.data.array_store import ArrayStore, Images
from masksmith.data.ids import check_id
from masksmith.data.table import need_column, parse_table
from masksmith.deploy.drawing import overlay, png
from masksmith.deploy.features import features, unlike
from masksmith.deploy.listing import Item, list_items
from masksmith.deploy.segmenter import Segmenter, certainty
from masksmith.postprocess.rules import mask_of
from masksmith.prediction.store import MeanCodes
from masksmith.submission.formats import write_masks

CHUNK_IMAGES = 4096
CHUNK_BYTES = 2**28
"""Images that are decoded and segmented together, at most; a larger image alone is on the disk, not in memory."""
_STATE = ".masksmith-apply"


@dataclass(frozen=True)
class Applied:
    """What was segmented."""

    out: Path
    done: int
    refused: list[str] = field(default_factory=list)
    """A message for each file that could not be used."""
    unlike: int = 0
    """Images unlike the training set."""

    def __str__(self) -> str:
        lines = [f"{self.out}: {self.done} images segmented, see apply.csv and masks/"]
        if self.unlike:
            lines.append(f"{self.unlike} images are unlike the training set: see the column `unlike`")
        if self.refused:
            lines += [f"{len(self.refused)} files were not used:", *(f"  {one}" for one in self.refused)]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Picture:
    """One image of a file."""

    id: str
    item: Item
    path: str
    """As the reader takes it, with the number of a slice."""


def apply_model(
    model: Segmenter,
    inputs: Sequence[str | Path],
    out: Path,
    *,
    overlays: bool = False,
    table: Mapping[str, Mapping[str, float]] | None = None,
) -> Applied:
    """Segment images and write ``masks/ID.png``, on request ``overlays/ID.png``, and ``apply.csv``.

    Args:
        model: The model.
        inputs: Files, folders (with sub-folders), archives and patterns. An image's id is its path without the ending,
            and for a file of several images ``_0000``, ``_0001`` … behind it.
        out: Folder of the results: absent, empty or one of an earlier call.
        overlays: Whether to write pictures of the masks over the images.
        table: Id -> name -> number, for a model that takes numbers beside each image.

    Raises:
        InputError: An input is not there, there is no image, or ``out`` holds something else.
        StoppedError: A stop was asked for; what is finished stays.
    """
    items = list_items(inputs)
    _refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out):
        work = _Work(model, out, overlays, table or {})
        rows = work.known(items)
        todo = [item for item in items if item.id not in rows]
        if len(todo) < len(items):
            logger.info("%d of %d files are done already", len(items) - len(todo), len(items))
        for chunk in _chunks(todo, model):
            rows |= work.segment(chunk)
        found = [row for item in items for row in rows[item.id]]
        write_text(out / "apply.csv", _csv_text(found))
    return Applied(
        out,
        sum(not row["error"] for row in found),
        [row["error"] for row in found if row["error"]],
        sum(bool(row["unlike"]) for row in found),
    )


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: it is a file; expected a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / _STATE).is_dir():
        raise InputError(f"{out}: the folder is not empty and not one of `masksmith apply`; name another one")


def read_scalars(path: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return id -> name -> number of a CSV table; its column of ids is called ``id``, or is the first.

    Raises:
        InputError: A column is missing, or a cell is no finite number.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a table with the columns id, {', '.join(names)}")
    table = parse_table(path.read_bytes(), where=str(path))
    key = next((column for column in table.columns if column.lower() == "id"), table.columns[0])
    for name in names:
        need_column(table, name)
    found: dict[str, dict[str, float]] = {}
    for row in table.rows:
        try:
            found[row[key]] = {name: float(row[name]) for name in names}
        except ValueError as error:
            raise InputError(f"{path}: id {row[key]!r}: {error}; expected numbers") from error
        if not np.isfinite(list(found[row[key]].values())).all():
            raise InputError(f"{path}: id {row[key]!r}: {row}; expected finite numbers")
    return found


Row = dict[str, str]


_LAST = ("unlike", "error")


def _csv_text(rows: Sequence[Row]) -> str:
    found = dict.fromkeys(key for row in rows for key in row)
    columns = [*(key for key in found if key not in _LAST), *_LAST]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@dataclass
class _Chunk:
    """Images that are segmented together, and the rows of files that could not be used."""

    images: Images | None = None
    pictures: dict[str, _Picture] = field(default_factory=dict)
    bad: dict[str, Row] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)


def _chunks(items: Iterable[Item], model: Segmenter) -> Iterator[_Chunk]:
    """Decode files and yield them in chunks."""
    chunk, arrays, size = _Chunk(), dict[str, Image](), 0
    for item in items:
        interrupt.check_stop()
        found = _Chunk()
        try:
            own = {one.id: (one, model.fit(image, where=one.path)) for one, image in _decode(item)}
            for name in own:
                check_id(name, where=item.path)
        except InputError as error:
            found.bad[item.id] = _row(item.id, item.path, error=str(error))
            own = {}
        taken = sum(image.nbytes for _, image in own.values())
        if arrays and (size + taken > CHUNK_BYTES or len(arrays) + len(own) > CHUNK_IMAGES):
            chunk.images = ArrayStore(arrays)
            yield chunk
            chunk, arrays, size = _Chunk(), {}, 0
        arrays |= {name: image for name, (_, image) in own.items()}
        chunk.pictures |= {name: one for name, (one, _) in own.items()}
        chunk.bad |= found.bad
        chunk.items.append(item)
        size += taken
    if chunk.items:
        chunk.images = ArrayStore(arrays) if arrays else None
        yield chunk


def _decode(item: Item) -> Iterator[tuple[_Picture, Image]]:
    """Yield the images of a file."""
    count = item.reader.count(item.path)
    for at in range(count):
        path = item.path if count == 1 else f"{item.path}#{at}"
        name = item.id if count == 1 else f"{item.id}_{at:04d}"
        yield _Picture(name, item, path), item.reader.image(path)


def _row(name: str, path: str, **more: str) -> Row:
    return {"id": name, "file": path, "error": "", "unlike": ""} | more


class _Work:
    """What is done with a chunk, and where it is kept that it is done."""

    def __init__(
        self, model: Segmenter, out: Path, overlays: bool, table: Mapping[str, Mapping[str, float]]
    ) -> None:
        self.model, self.out, self.overlays, self.table = model, out, overlays, table
        self.state = out / _STATE
        self.key = digest(model.bundle.checksum, str(overlays), str(sorted(table.items())))
        self._number = 0

    def known(self, items: Sequence[Item]) -> dict[str, list[Row]]:
        """Return file -> its rows, of the files that are done already."""
        self.state.mkdir(exist_ok=True)
        versions = {item.id: f"{item.path} {item.version}" for item in items}
        rows: dict[str, list[Row]] = {}
        for path in sorted(self.state.glob("chunk-*.json")):
            kept = read_json(path)
            self._number = max(self._number, int(path.stem.rpartition("-")[2]) + 1)
            if kept.get("key") != self.key:
                remove(path)
                continue
            for name, done in kept["files"].items():
                if versions.get(name) == done["version"] and self._is_whole(done["rows"]):
                    rows[name] = done["rows"]
        return rows

    def _is_whole(self, rows: Sequence[Row]) -> bool:
        return all(row["error"] or self._first_mask(row["id"]).exists() for row in rows)

    def _first_mask(self, name: str) -> Path:
        target = self.model.target
        folder = self.out / "masks"
        return (folder / target.classes[0] if target.task == "multilabel" else folder) / f"{name}.png"

    def segment(self, chunk: _Chunk) -> dict[str, list[Row]]:
        """Segment a chunk, write its files, and return file -> its rows."""
        rows: dict[str, list[Row]] = {item.id: [] for item in chunk.items}
        for name, row in chunk.bad.items():
            rows[name].append(row)
        if chunk.images is not None:
            scratch = self.state / "work"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            codes = self.model.predict(chunk.images, list(chunk.pictures), scalars=self.table, folder=scratch)
            for row, picture in self._write(chunk.images, codes, chunk.pictures):
                rows[picture.item.id].append(row)
            shutil.rmtree(scratch)
        files = {
            item.id: {"version": f"{item.path} {item.version}", "rows": rows[item.id]} for item in chunk.items
        }
        write_json(self.state / f"chunk-{self._number:06d}.json", {"key": self.key, "files": files})
        self._number += 1
        return rows

    def _write(
        self, images: Images, codes: MeanCodes, pictures: Mapping[str, _Picture]
    ) -> Iterator[tuple[Row, _Picture]]:
        masks = ((name, mask_of(self.model.rule, codes, name)) for name in pictures)
        where = self.out / "masks"
        for name, mask in write_masks(where, masks, self.model.target, where=where):
            if self.overlays:
                drawn = overlay(images[name], mask, self.model.target)
                write_member(self.out / "overlays" / f"{name}.png", png(drawn))
            yield self._found(name, images, codes, mask, pictures[name]), pictures[name]

    def _found(self, name: str, images: Images, codes: MeanCodes, mask: AnyMask, picture: _Picture) -> Row:
        target, height, width = self.model.target, *images.shape(name)
        row = _row(name, picture.path, height=str(height), width=str(width))
        if target.task == "instances":
            row["objects"] = str(int(mask.max()))
            row["area"] = str(int((mask > 0).sum()))
        elif target.task == "multilabel":
            row |= {f"area {label}": str(int(mask[..., at].sum())) for at, label in enumerate(target.classes)}
        elif target.exclusive:
            counts = np.bincount(mask.ravel(), minlength=len(target.classes))
            row |= {f"area {label}": str(int(counts[at])) for at, label in enumerate(target.classes)}
        else:
            row["area"] = str(int(mask.sum()))
        sure = [certainty(band, exclusive=target.exclusive) * band.size for band in codes.bands(name)]
        row["confidence"] = f"{sum(sure) / np.prod(codes.shape(name)):.4f}"
        row["unlike"] = "; ".join(unlike(features(images, name), self.model.bundle.facts.ranges))
        return row
