"""Label maps of objects, read from every form in which data sets keep them, and written for those who judge.

A label map is int32 (h, w): 0 is background, 1, 2 … n one object each, without gaps, UNJUDGED what is left out. A
number says nothing but which pixels belong together. An object stays one, however many parts it has: it is what one
file, one row or one number of a label image names.

Where two objects claim a pixel, the smaller one has it, so that none hides another; of two as large, the earlier one.
The true extent of the larger is lost there, so the pixels are counted (``Objects.shared``) and said
(``object_findings``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cv2
import numpy as np

from masksmith.core.arrays import IGNORE, UNJUDGED, Int, Labels, Mask, Shaped, dense_labels
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.data.decode.pictures import decode_image, is_grey
from masksmith.data.findings import Finding, refuse_all, some
from masksmith.data.masks import THRESHOLD, is_lossy
from masksmith.data.rle import DIALECTS, Runs, check_runs, is_empty, label_runs

MAX_PNG_LABEL = 65534
"""Most objects of a label image of 16 bits: 65535 is what is not judged (see metrics.objects)."""

Spots = Int[np.ndarray, " _"]
"""Pixels of an object, counted row by row from 0."""
Given = TypeVar("Given")


@dataclass(frozen=True)
class Objects:
    """The objects of one image, and what was not plain about them."""

    labels: Labels
    count: int
    shared: int = 0
    """Pixels that several objects claim."""
    empty: list[str] = field(default_factory=list)
    """Names (a file, a row) of the objects without a pixel."""
    hidden: list[str] = field(default_factory=list)
    """Names of those whose every pixel belongs to others: doubles, as a rule."""


# --- from files, rows and images ---


def objects_of_files(files: Iterable[tuple[str, bytes]], *, shape: tuple[int, int]) -> Objects:
    """Return the objects of an image that has a mask file for each of them.

    Args:
        files: Path and bytes of each; one is held at a time.
        shape: (height, width) of the image.

    Raises:
        InputError: A file is damaged, of another size than the image, in colours, or has more than two values; all of
            them are named.
    """
    return _paint(files, lambda path, raw: _spots_of_file(raw, shape, where=path), shape, what="object files")


def _spots_of_file(raw: bytes, shape: tuple[int, int], *, where: str) -> Spots:
    levels = _one_channel(decode_image(raw, where=where), where=where)
    if levels.shape != shape:
        raise InputError(
            f"{where}: the object file is {levels.shape[0]}x{levels.shape[1]} but its image is {shape[0]}x{shape[1]}; "
            "expected equal sizes"
        )
    if is_lossy(raw):
        return np.flatnonzero(levels >= THRESHOLD)
    spots = np.flatnonzero(levels != 0)  # of bool it is fast
    inside = levels.ravel()[spots]
    if len(inside) and inside.min() != inside.max():
        raise InputError(
            f"{where}: an object file with the values {some(np.unique(levels).tolist(), most=8)}; expected 0 and one "
            "other; a label image that holds several objects is one file an image"
        )
    return spots


def _one_channel(image: Shaped[np.ndarray, "h w c"], *, where: str) -> Shaped[np.ndarray, "h w"]:
    if image.dtype.kind not in "iu":
        raise InputError(f"{where}: labels of {image.dtype}; expected whole numbers, convert it to 16 bits")
    if not is_grey(image):
        raise InputError(f"{where}: labels in colours; expected one channel, a number for each object")
    return image[..., 0]


def objects_of_rows(texts: Sequence[str], *, shape: tuple[int, int], dialect: str, where: str) -> Objects:
    """Return the objects of an image whose table has a row of run-lengths for each; an empty text is no object.

    Args:
        texts: The rows.
        shape: (height, width) of the image.
        dialect: Key of rle.DIALECTS.
        where: The table and the id, for messages.

    Raises:
        InputError: As rle.decode; all rows are named.
    """
    how = look_up(DIALECTS, dialect, where="dialect")
    rows = [(f"{where}, row {number}", text) for number, text in enumerate(texts, start=1)]
    told = [(name, text) for name, text in rows if not is_empty(text)]

    def spots(name: str, text: str) -> Spots:
        runs = how.read(text, where=name)
        check_runs(runs, shape=shape, where=name)
        flat = _pixels_of(runs)
        return flat if how.order == "C" else flat % shape[0] * shape[1] + flat // shape[0]

    return _paint(told, spots, shape, what="rows of run-lengths")


def _pixels_of(runs: Runs) -> Spots:
    starts, lengths = runs[:, 0], runs[:, 1]
    first = np.repeat(starts - np.concatenate([[0], lengths.cumsum()[:-1]]), lengths)
    return first + np.arange(int(lengths.sum()))


def _paint(
    given: Iterable[tuple[str, Given]],
    spots_of: Callable[[str, Given], Spots],
    shape: tuple[int, int],
    *,
    what: str,
) -> Objects:
    """Paint objects into one map (see paint_objects)."""
    found: list[tuple[str, Spots]] = []
    empty, problems = [], []
    for name, value in given:
        try:
            spots = spots_of(name, value)
        except InputError as error:
            problems.append(str(error))
            continue
        if len(spots):
            found.append((name, spots.astype(np.int32)))  # an image has at most 2**28 pixels
        else:
            empty.append(name)
    refuse_all(problems, what=what)
    return paint_objects(found, shape, empty=empty)


def paint_objects(
    found: Sequence[tuple[str, Spots]], shape: tuple[int, int], *, empty: Sequence[str] = ()
) -> Objects:
    """Return objects in one map, the largest painted first, so that a small one is never covered.

    Args:
        found: Name and pixels of each, one pixel or more, each once.
        shape: (height, width) of the image.
        empty: Names of the objects without a pixel.
    """
    flat = np.zeros(shape[0] * shape[1], np.int32)
    for at in sorted(range(len(found)), key=lambda at: (-len(found[at][1]), -at)):
        flat[found[at][1]] = at + 1
    labels, kept = _dense(flat.reshape(shape), len(found))
    hidden = [name for (name, _), there in zip(found, kept, strict=True) if not there]
    claimed = sum(len(spots) for _, spots in found) - int(np.count_nonzero(flat))
    return Objects(labels, len(found) - len(hidden), claimed, list(empty), hidden)


def _dense(labels: Labels, highest: int) -> tuple[Labels, Shaped[np.ndarray, " numbers"]]:
    """Number the objects without gaps in the order of their numbers; return which of 1 … ``highest`` are there."""
    there = np.bincount(labels.ravel(), minlength=highest + 1) > 0
    there[0] = False
    return there.cumsum(dtype=np.int32)[labels], there[1:]


def objects_of_image(
    image: Shaped[np.ndarray, "h w c"], *, where: str, unjudged: Iterable[int] = ()
) -> Objects:
    """Return the objects of a label image: every number above 0 is one.

    Args:
        image: As decoded, whole numbers of any size, one channel (or three that are equal).
        where: The file, for messages.
        unjudged: Numbers that say "not judged" (65535); -1 always does.

    Raises:
        InputError: Colours, fractions, or numbers below -1.
    """
    values = _one_channel(image, where=where)
    if values.min(initial=0) < UNJUDGED:
        raise InputError(
            f"{where}: labels from {int(values.min())} on; expected 0, a number above it for each object, and -1 "
            "where it is not judged"
        )
    judged = (values >= 0) & ~np.isin(values, list(unjudged))  # uint16 has no -1
    dense, count = dense_labels(np.where(judged, values, 0))
    labels = dense.astype(np.int32)
    labels[~judged] = UNJUDGED
    return Objects(labels, count)


def objects_of_mask(mask: Mask) -> Objects:
    """Return the connected regions (8 neighbours) of a mask of 0, 1 and IGNORE: for data that names no objects."""
    count, labels = cv2.connectedComponents((mask == 1).astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    labels[mask == IGNORE] = UNJUDGED
    return Objects(labels, count - 1)


def object_findings(found: Mapping[str, Objects]) -> list[Finding]:
    """Return what a person should know of the objects of a set, by the id of their image."""
    shared = {name: one.shared for name, one in found.items() if one.shared}
    empty = {name: one.empty for name, one in found.items() if one.empty}
    hidden = {name: one.hidden for name, one in found.items() if one.hidden}
    findings = []
    if shared:
        detail = f"{sum(shared.values())} pixels are claimed by several objects; the smaller object has them"
        findings.append(Finding("note", "objects that overlap", detail, list(shared)))
    for title, names, what in (
        ("empty objects", empty, "have no pixel"),
        ("objects that are hidden", hidden, "lie wholly within others (copies of them, as a rule)"),
    ):
        if names:
            every = [name for own in names.values() for name in own]
            detail = f"{len(every)} {what} and are left out: {some(every)}"
            findings.append(Finding("warning", title, detail, list(names)))
    return findings


# --- what is handed in ---


def label_png(labels: Labels, *, where: str = "label image") -> bytes:
    """Return a label map as a PNG of 16 bits: 0 background, a number for each object, 65535 not judged.

    Args:
        labels: (h, w), 0, 1 … without need of order or completeness, and UNJUDGED.
        where: The image, for messages.

    Raises:
        InputError: A number above MAX_PNG_LABEL, which 16 bits do not hold.
    """
    highest = int(labels.max(initial=0))
    if highest > MAX_PNG_LABEL:
        raise InputError(
            f"{where}: object number {highest:,}; a PNG of 16 bits holds at most {MAX_PNG_LABEL:,} objects; write "
            "run-lengths or COCO JSON, or cut the image into tiles"
        )
    _, raw = cv2.imencode(".png", np.where(labels == UNJUDGED, 65535, labels).astype(np.uint16))
    return raw.tobytes()


def object_rows(labels: Labels, *, dialect: str) -> list[str]:
    """Return a run-length text for each object, sorted by their first pixels; without an object the empty text.

    Raises:
        InputError: The dialect has one row an image (the message names those with a row an object).
    """
    how = look_up(DIALECTS, dialect, where="dialect")
    if not how.by_object:
        able = ", ".join(name for name, one in DIALECTS.items() if one.by_object)
        raise InputError(
            f"dialect: {dialect!r} has one row an image, objects need a row each; expected one of {able}"
        )
    objects = label_runs(labels, order=how.order)
    return [how.write(runs) for runs in objects] or [how.write(np.zeros((0, 2), np.int64))]


def coco_annotations(
    labels: Labels, *, image_id: int | str, category_id: int = 1, first_id: int = 1
) -> list[dict[str, Any]]:
    """Return the annotations of an image's objects in COCO's form, ready for ``json.dump``.

    ``segmentation`` is COCO's compressed run-length text (see coco_text), ``bbox`` x, y, width and height.
    Source: https://cocodataset.org/#format-data

    Args:
        labels: (h, w).
        image_id: Of the image, in the file's list of images.
        category_id: Of all its objects.
        first_id: Id of its first object; those after it count on.
    """
    height, width = labels.shape
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "iscrowd": 0,
            "area": int(runs[:, 1].sum()),
            "bbox": _box(runs, height),
            "segmentation": {"size": [height, width], "counts": coco_text(runs, num_pixels=labels.size)},
        }
        for number, runs in enumerate(label_runs(labels, order="F"), start=first_id)
    ]


def _box(runs: Runs, height: int) -> list[int]:
    first, last = runs[:, 0], runs[:, 0] + runs[:, 1] - 1
    left, right = int(first[0]) // height, int(last[-1]) // height
    top, bottom = first % height, last % height
    if (first // height != last // height).any():  # a run that goes on in the next column touches both edges
        top, bottom = np.array([0]), np.array([height - 1])
    return [left, int(top.min()), right - left + 1, int(bottom.max() - top.min()) + 1]


def coco_text(runs: Runs, *, num_pixels: int) -> str:
    """Return COCO's compressed text of an object's runs (column by column, sorted).

    The lengths of background and foreground by turns, from the fourth number on as differences to the one before
    of their kind; each number in groups of five bits, the lowest first, a sixth bit where more follow, as letters
    from "0" on. Written from the description in https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.h
    and compared with what it makes.
    """
    starts, ends = runs[:, 0], runs.sum(axis=1)
    edges = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [num_pixels]])
    counts = np.diff(edges)
    if counts[-1] == 0:
        counts = counts[:-1]
    counts[3:] -= counts[1:-2].copy()
    letters = []
    for number in counts.tolist():
        more = True
        while more:
            group, number = number & 31, number >> 5
            more = number != (-1 if group & 16 else 0)
            letters.append(chr(48 + group + 32 * more))
    return "".join(letters)
