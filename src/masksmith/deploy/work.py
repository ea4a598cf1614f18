"""What is done with a chunk of images, and where it is kept that it is done."""

import errno
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from masksmith.core import interrupt
from masksmith.core.arrays import AnyMask
from masksmith.core.errors import DiskFullError, InputError
from masksmith.core.files import atomic_path, digest, no_room, read_json, remove, write_json
from masksmith.data.array_store import Images, bands_of
from masksmith.deploy.chunks import Chunk, Chunks
from masksmith.deploy.features import features, unlike
from masksmith.deploy.listing import Item
from masksmith.deploy.outputs import KINDS, Masks, OfImage, OfSeveral
from masksmith.deploy.picture import Picture, Segmented
from masksmith.deploy.segmenter import Segmenter, certainty
from masksmith.postprocess.rules import Beside, mask_of
from masksmith.submission.formats import write_masks

STATE = ".masksmith-apply"
"""Folder in the results with what is known of them."""
Row = dict[str, str]
"""A line of ``apply.csv``."""


def is_done(row: Row) -> bool:
    """Whether an image has a mask."""
    return "confidence" in row


def _row(name: str, path: str, **more: str) -> Row:
    return {"id": name, "file": path, "error": "", "unlike": ""} | more


class Work:
    """The results of a folder.

    Args:
        model: The model.
        out: The folder; it is locked.
        kinds: Keys of KINDS, sorted.
        table: Id -> name -> number.
        dialect: Of run-lengths.
    """

    def __init__(
        self,
        model: Segmenter,
        out: Path,
        kinds: Sequence[str],
        table: Mapping[str, Mapping[str, float]],
        dialect: str,
    ) -> None:
        self.model, self.out = model, out
        self.state = out / STATE
        self.state.mkdir(exist_ok=True)
        found = [(name, KINDS[name]) for name in kinds]
        self.of_image = {name: kind for name, kind in found if isinstance(kind, OfImage)}
        self.of_several = {name: kind for name, kind in found if isinstance(kind, OfSeveral)}
        asked = (model.asked, list(self.of_image), sorted(table.items()))
        self.key = digest(model.bundle.checksum, str(asked))
        self.masks = Masks(out / "masks", model.target, dialect)
        self._chunks = Chunks(model, self.state, self.key, table)
        self._rows: dict[str, tuple[str, list[Row]]] = {}  # id of a file -> its version, its images
        self._number = 0

    # --- what is done ---

    def remember(self, items: Sequence[Item]) -> None:
        """Read what earlier calls have done of these files."""
        versions = {item.id: _version(item) for item in items}
        for path in sorted(self.state.glob("chunk-*.json")):
            kept = read_json(path)
            self._number = max(self._number, int(path.stem.rpartition("-")[2]) + 1)
            if kept.get("key") != self.key:
                remove(path)
                continue
            for name, done in kept["files"].items():
                if versions.get(name) == done["version"] and all(map(self._is_whole, done["rows"])):
                    self._rows[name] = done["version"], done["rows"]
        self._chunks.remove_others([item for item in items if not self.is_known(item)])

    def is_known(self, item: Item) -> bool:
        """Whether a file, as it is now, is done."""
        return item.id in self._rows and self._rows[item.id][0] == _version(item)

    def _is_whole(self, row: Row) -> bool:
        if not is_done(row):
            return True
        files = [] if row["error"] else [self._place(self.out, kind, row["id"]) for kind in self.of_image]
        return all(path.exists() for path in [self._first_mask(row["id"]), *files])

    def _first_mask(self, name: str) -> Path:
        target = self.model.target
        folder = self.masks.folder
        return (folder / target.classes[0] if target.task == "multilabel" else folder) / f"{name}.png"

    def _place(self, out: Path, kind: str, name: str) -> Path:
        how = self.of_image[kind]
        return out / (how.folder or kind) / f"{name}{how.ending}"

    # --- images ---

    def segment(self, items: Sequence[Item]) -> None:
        """Segment files, write what is written of each image, and remember it."""
        for chunk in self._chunks.of(items):
            rows: dict[str, list[Row]] = {item.id: [] for item in chunk.items}
            for item in chunk.items:
                if item.id in chunk.bad:
                    rows[item.id].append(_row(item.id, item.path, error=chunk.bad[item.id]))
            if chunk.images is not None:
                for row, picture in self._segmented(chunk, chunk.images):
                    rows[picture.item.id].append(row)
            files = {item.id: {"version": _version(item), "rows": rows[item.id]} for item in chunk.items}
            write_json(self.state / f"chunk-{self._number:06d}.json", {"key": self.key, "files": files})
            self._number += 1
            self._rows |= {item.id: (_version(item), rows[item.id]) for item in chunk.items}
            if chunk.scratch is not None:
                shutil.rmtree(chunk.scratch)

    def _segmented(self, chunk: Chunk, images: Images) -> Iterator[tuple[Row, Picture]]:
        scratch = self.state / "work"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        codes = self.model.predict(
            images,
            list(chunk.pictures),
            scalars=chunk.numbers,
            folder=chunk.scratch or scratch,
            key=None if chunk.scratch is None else chunk.scratch.name,
        )
        files = scratch / "files"  # each image's are moved to their places when they are whole
        beside, probs = Beside(images, chunk.numbers), codes.first(self.model.target.outputs)
        masks = ((name, mask_of(self.model.rule, codes, name, beside)) for name in chunk.pictures)
        for name, mask in write_masks(files / "masks", masks, self.model.target, where=self.masks.folder):
            one = Segmented(chunk.pictures[name], images, probs, mask, self.model.target)
            row = self._found(one)
            row["error"] = "; ".join(self._write(one, files))
            _move(files, self.out)
            yield row, one.picture
        shutil.rmtree(scratch)

    def _write(self, one: Segmented, files: Path) -> Iterator[str]:
        """Write what is asked for of an image, and yield what cannot be."""
        for kind, how in self.of_image.items():
            path = self._place(files, kind, one.picture.id)
            try:
                with no_room(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    how.write(path, one)
            except DiskFullError:
                raise
            except InputError as error:
                path.unlink(missing_ok=True)
                yield str(error)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                yield f"{one.picture.path}: its name is too long for {kind}; shorten it"

    def _found(self, one: Segmented) -> Row:
        target, mask, (height, width) = one.target, one.mask, one.hw
        name, codes = one.picture.id, one.codes
        row = _row(name, one.picture.path, height=str(height), width=str(width))
        if target.task == "instances":
            row["objects"] = str(int(mask.max()))
            row["area"] = str(np.count_nonzero(mask))
        else:
            areas = _areas(mask, target.outputs, exclusive=target.exclusive)
            names = ["area"] if target.task == "binary" else [f"area {label}" for label in target.classes]
            row |= dict(zip(names, map(str, areas), strict=True))
        sure = [certainty(band, exclusive=target.exclusive) * band.size for band in codes.bands(name)]
        row["confidence"] = f"{sum(sure) / np.prod(codes.shape(name)):.4f}"
        row["unlike"] = "; ".join(unlike(features(one.images, name), self.model.bundle.facts.ranges))
        return row

    # --- several images ---

    def finish(self, items: Sequence[Item], gone: Sequence[Item] = ()) -> list[Row]:
        """Write what is written of several images, where it has changed, and return the rows of all.

        Args:
            items: Files that are there.
            gone: Files that were there when they were segmented.
        """
        pictures = [
            Picture(row["id"], item, row["file"])
            for item in items
            for row in self._rows[item.id][1]
            if is_done(row)
        ]
        problems: dict[str, list[str]] = {}
        for kind, how in self.of_several.items():
            for name, error in self._write_groups(kind, how, pictures):
                problems.setdefault(name, []).append(error)
        rows = [row for item in [*items, *gone] for row in self._rows[item.id][1]]
        return [
            row | {"error": "; ".join(filter(None, [row["error"], *problems.get(row["id"], ())]))}
            for row in sorted(rows, key=lambda row: row["id"])
        ]

    def _write_groups(
        self, kind: str, how: OfSeveral, pictures: Sequence[Picture]
    ) -> Iterator[tuple[str, str]]:
        """Yield the id of each image that could not be written, and why."""
        path = self.state / f"{kind}.json"
        known = read_json(path) if path.exists() else {}
        written: dict[str, str] = {}
        grouped: set[str] = set()
        for name, own in how.groups(pictures).items():
            grouped |= {one.id for one in own}
            versions = "\n".join(f"{one.id} {one.path} {_version(one.item)}" for one in own)
            key = digest(self.key, self.masks.dialect, versions)
            if known.get(name) != key or not (self.out / name).exists():
                interrupt.check_stop()
                try:
                    with atomic_path(self.out / name) as temporary:
                        how.write(temporary, own, self.masks)
                except DiskFullError:
                    raise
                except InputError as error:
                    yield own[0].id, str(error)
                    continue
            written[name] = key
        if written != known:
            write_json(path, written)
        for one in pictures:
            if one.id not in grouped:
                yield one.id, f"{one.path}: not written as {kind}; expected {how.expects}"


def _version(item: Item) -> str:
    return f"{item.path} {item.version}"


def _areas(mask: AnyMask, count: int, *, exclusive: bool) -> list[int]:
    """Return the pixels of each class or label."""
    found = np.zeros(count, np.int64)
    for rows in bands_of(mask.shape[0], mask.shape[1]):
        part = mask[rows]
        if exclusive:
            found += np.bincount(part.ravel(), minlength=count)
        else:
            found += np.count_nonzero(part.reshape(-1, count), axis=0)
    return found.tolist()


def _move(files: Path, out: Path) -> None:
    """Move all files of a folder to their places in another."""
    for path in sorted(files.rglob("*")):
        if path.is_file():
            place = out / path.relative_to(files)
            with no_room(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
