"""Label Studio: a JSON list of tasks with polygons and brush masks.

Sources: https://labelstud.io/guide/export and, of the brush's run-lengths,
https://github.com/HumanSignal/label-studio-converter/blob/master/label_studio_converter/brush.py
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from masksmith.core.arrays import Mask, UInt8
from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, Shape
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.documents import as_counts, as_number, as_ring, as_size, holds, parse_json, records
from masksmith.data.findings import Finding, some
from masksmith.data.image_finder import ImageFinder, split_of, split_of_folders
from masksmith.data.layouts.drawn import (
    SHOWN,
    Drawing,
    Notes,
    complain,
    drawn_catalog,
    labelled,
    read_drawings,
    with_area,
)
from masksmith.data.shapes import ellipse_ring, runs_of
from masksmith.data.tree import Tree

_KINDS = ("polygonlabels", "brushlabels", "ellipselabels")
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio writes before the name of an uploaded file
_Bits = UInt8[np.ndarray, " _"]


def label_studio(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """JSON of Label Studio: polygons, ellipses and brush masks of the first annotation of each task that counts."""
    if asked.masks is not None:
        return None
    finder, notes = ImageFinder(tree), Notes()
    drawings = read_drawings(
        tree,
        ".json",
        lambda raw: holds(raw, '"data"', '"annotations"') or holds(raw, '"data"', '"completions"'),
        lambda raw, path: _drawings(_tasks(parse_json(raw, where=path)), path, finder, notes),
    )
    if not drawings:
        return None
    return drawn_catalog(
        tree,
        asked,
        finder,
        notes,
        layout="label_studio",
        drawings=drawings,
        classes=(),
        task=None,
    )


def _tasks(value: object) -> list[dict[str, Any]]:
    """Return the tasks of a file that has an image, none where it is none of Label Studio."""
    rows = records([value] if isinstance(value, dict) else value) or []
    return [
        row
        for row in rows
        if isinstance(row.get("data"), dict)
        and records(row.get("annotations", row.get("completions"))) is not None
    ]


def _drawings(tasks: list[dict[str, Any]], path: str, finder: ImageFinder, notes: Notes) -> list[Drawing]:
    problems: list[str] = []
    absent, doubtful, bare, several, odd = (list[str]() for _ in range(5))
    found: dict[str, Drawing] = {}
    split = split_of(PurePosixPath(path).stem) or split_of_folders(path)
    for task in tasks:
        name, paths = _image(task, path, finder, split)
        if len(paths) != 1:
            (doubtful if paths else absent).append(name)
            continue
        chosen, others = _chosen(task)
        if chosen is None:
            bare.append(paths[0])
            continue
        several += [name] if others else []
        shapes, size = _shapes(chosen, name, notes, odd)
        if paths[0] in found:
            problems.append(f"{path}: two tasks with the image {paths[0]}; keep one of them")
        found[paths[0]] = Drawing(paths[0], shapes, split, size)
    if len(absent) == len(tasks):
        return []  # of other images
    complain(problems, path, "images are not in the folder", absent, "add the files, or take their tasks out")
    complain(problems, path, "images fit several files", doubtful, "keep one of the files")
    complain(problems, path, "shapes cannot be drawn", odd, "correct or remove them")
    if problems:
        raise InputError("\n  ".join(problems))
    if bare:
        notes.left_out.append(f"{path}: {len(bare)} tasks without an annotation: {some(bare)}")
    if several:
        detail = (
            f"{len(several)} tasks of {path} have several annotations; the one that is marked as ground truth is "
            f"taken, else the first: {some(several, most=SHOWN)}"
        )
        notes.findings.append(Finding("warning", "several annotations of an image", detail))
    if found:
        notes.why.append(f"{path} is an export of Label Studio with {len(found)} images")
    return list(found.values())


def _chosen(task: Mapping[str, Any]) -> tuple[dict[str, Any] | None, int]:
    """Return the annotation of a task that counts, and how many others it has that are not cancelled."""
    given = records(task.get("annotations", task.get("completions"))) or []
    counted = [
        one
        for one in given
        if one.get("was_cancelled") is not True and records(one.get("result")) is not None
    ]
    marked = [one for one in counted if one.get("ground_truth") is True]
    return next(iter(marked + counted), None), len(counted) - 1


def _image(
    task: Mapping[str, Any], path: str, finder: ImageFinder, split: str | None
) -> tuple[str, list[str]]:
    """Return what a task calls its image, and the paths that fit."""
    texts = [text for text in task["data"].values() if isinstance(text, str)]
    if isinstance(task.get("file_upload"), str):
        texts.append(task["file_upload"])
    for text in texts:
        try:
            parts = urlsplit(text)
        except ValueError:
            continue
        inner = unquote(parts.query.partition("d=")[2] or parts.path)
        name = PurePosixPath(inner)
        for one in (name, name.with_name(_UPLOAD.sub("", name.name)) if name.name else name):
            if paths := finder.find(str(one), near=path, split=split):
                return text, paths
    return (texts or [f"task {task.get('id')!r:.40}"])[0], []


# --- shapes -----------------------------------------------------------------------------------------------


def _shapes(
    annotation: Mapping[str, Any], name: str, notes: Notes, odd: list[str]
) -> tuple[list[Shape], list[int] | None]:
    """Return the shapes of an annotation, and the size that its brush masks are of."""
    shapes: list[Shape] = []
    size: list[int] | None = None
    for row in records(annotation.get("result")) or []:
        kind, value = row.get("type"), row.get("value")
        if kind not in _KINDS:
            if isinstance(kind, str) and kind.endswith("labels"):
                notes.skipped[kind] += 1
            continue
        try:
            if not isinstance(value, dict) or row.get("image_rotation") not in (None, 0):
                raise ValueError("no value, or an image that was turned; turn the image and draw again")
            labels = value.get(kind)
            if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
                raise ValueError(f"{kind}: {labels!r:.40}; expected one label")
            area = _area(kind, value, row, f"{name}", notes)
            if area is not None:
                size = as_size(row.get("original_height"), row.get("original_width")) if area.runs else size
                shapes.append(with_area(labelled(labels[0]), area))
        except ValueError as error:
            odd.append(f"{row.get('id')!r:.40} on {name}: {error}")
    return shapes, size


def _area(
    kind: str, value: Mapping[str, Any], row: Mapping[str, Any], name: str, notes: Notes
) -> Shape | None:
    if kind == "brushlabels":
        size = as_size(row.get("original_height"), row.get("original_width"))
        if size is None:
            raise ValueError("a brush mask without original_height and original_width")
        if not isinstance(value.get("rle"), list):
            raise ValueError("a brush mask that is not in format rle")
        return Shape("", runs=runs_of(decode_brush(value["rle"], (size[0], size[1]))))
    if kind == "ellipselabels":
        numbers = [as_number(value.get(key)) for key in ("x", "y", "radiusX", "radiusY", "rotation")]
        x, y, across, down, turned = (0.0 if one is None else one for one in numbers)
        if None in numbers[:4] or turned:
            raise ValueError("an ellipse without its numbers, or a turned one; draw it as a polygon")
        return Shape("", [ellipse_ring(x / 100, y / 100, across / 100, down / 100)], relative=True)
    ring = [one / 100 for one in as_ring(value.get("points"))]
    if len(ring) < 6:
        notes.short.append(name)
        return None
    return Shape("", [ring], relative=True)


def decode_brush(rle: list[Any], shape_hw: tuple[int, int]) -> Mask:
    """Return the mask of a brush: where the fourth of four channels is not 0.

    The bytes hold 32 bits of the number of values, 5 of the bits of a value less 1, four times 4 of the bits of a
    length less 1, then blocks: a bit that is 1 where one value is repeated, two that choose one of the four lengths,
    the length less 1, and the value, or as many values (https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack).

    Raises:
        ValueError: It is no such code of that size.
    """
    codes = as_counts(rle)
    if max(codes, default=0) > 255:
        raise ValueError("brush run-lengths that are no bytes")
    reader = _BitReader(np.unpackbits(np.array(codes, np.uint8)))
    total = reader.number(32)
    if total != 4 * shape_hw[0] * shape_hw[1]:
        raise ValueError(f"a brush mask of {total} values, not 4x{shape_hw[0]}x{shape_hw[1]}")
    word = reader.number(5) + 1
    sizes = [reader.number(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    at = 0
    while at < total:
        repeated = reader.number(1)
        end = at + reader.number(sizes[reader.number(2)]) + 1
        if end > total:
            raise ValueError("a brush mask with more values than it says")
        values[at:end] = reader.number(word) != 0 if repeated else reader.flags(end - at, word)
        at = end
    return values.reshape(*shape_hw, 4)[..., 3]


class _BitReader:
    def __init__(self, bits: _Bits) -> None:
        self.bits, self.at = bits, 0

    def take(self, count: int) -> _Bits:
        """Return the next bits.

        Raises:
            ValueError: There are fewer.
        """
        found = self.bits[self.at : self.at + count]
        if len(found) < count:
            raise ValueError("a brush mask that is cut off")
        self.at += count
        return found

    def number(self, count: int) -> int:
        return int("".join(map(str, self.take(count).tolist())), 2)

    def flags(self, count: int, word: int) -> _Bits:
        """Return which of the next values are not 0."""
        return self.take(count * word).reshape(count, word).max(axis=1, initial=0)
