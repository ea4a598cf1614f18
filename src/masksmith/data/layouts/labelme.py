"""LabelMe: a JSON file an image, with its shapes in the order in which they were drawn.

Source: https://github.com/wkentaro/labelme
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, Shape
from masksmith.data.decode.pictures import decode_image
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.documents import as_key, as_ring, as_size, holds, parse_json, records, unpack_base64
from masksmith.data.image_finder import ImageFinder, split_of_folders
from masksmith.data.layouts.drawn import Drawing, Notes, drawn_catalog, labelled, read_drawings, with_area
from masksmith.data.shapes import ellipse_ring, runs_of
from masksmith.data.tree import Tree

_LINES = ("line", "linestrip", "point", "points")  # without an area


def labelme(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """A JSON file of LabelMe for each image; shapes of one label and group are one object.

    The label ``_background_`` takes away what was drawn before; ``__ignore__`` is not judged.
    """
    if asked.masks is not None:
        return None
    finder, notes = ImageFinder(tree), Notes()
    drawings = read_drawings(
        tree,
        ".json",
        lambda raw: holds(raw, '"shapes"') and (holds(raw, '"imagePath"') or holds(raw, '"imageData"')),
        lambda raw, path: _drawing(parse_json(raw, where=path), path, finder, notes),
    )
    if not drawings:
        return None
    notes.why.append(f"{len(drawings)} JSON files of LabelMe, one an image")
    return drawn_catalog(
        tree,
        asked,
        finder,
        notes,
        layout="labelme",
        drawings=drawings,
        classes=(),
        task=None,
    )


def _drawing(value: object, path: str, finder: ImageFinder, notes: Notes) -> list[Drawing]:
    """Return the image of a file, none where it is none of LabelMe.

    Raises:
        InputError: It has no image, or shapes that cannot be drawn.
    """
    rows = records(value.get("shapes")) if isinstance(value, dict) else None
    if not isinstance(value, dict) or rows is None:
        return []
    size = as_size(value.get("imageHeight"), value.get("imageWidth"))
    shapes: list[Shape] = []
    problems: list[str] = []
    groups: dict[tuple[str, str], int] = {}
    for at, row in enumerate(rows):
        try:
            shape = _shape(row, f"{path}: shape {at + 1}", notes)
        except (ValueError, InputError) as error:
            problems.append(f"shape {at + 1}: {error}")
            continue
        if shape is None:
            continue
        key = as_key(row.get("group_id"))
        number = None if key is None else groups.setdefault((row["label"], key), len(groups))
        shapes.append(with_area(labelled(str(row["label"])), shape, number))
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}; correct them in LabelMe")
    return [Drawing(_image(value, path, finder), shapes, split_of_folders(path), size)]


def _image(value: Mapping[str, Any], path: str, finder: ImageFinder) -> str:
    """Return the image of a file: the one it names, else the one called as itself, else the one inside it.

    Raises:
        InputError: There is none, or several fit.
    """
    name = value.get("imagePath")
    found = finder.find(name, near=path) if isinstance(name, str) else []
    found = found or finder.find(str(PurePosixPath(path).with_suffix(".png")), near="")
    if len(found) > 1:
        raise InputError(f"{path}: imagePath {name!r:.80} fits {' and '.join(found)}; keep one of them")
    if found:
        return found[0]
    if isinstance(value.get("imageData"), str) and value["imageData"]:
        return f"{path}#0"
    raise InputError(
        f"{path}: its image {name!r:.80} is not in the folder, nor in it (imageData); add it, or take the JSON out"
    )


def _shape(row: Mapping[str, Any], name: str, notes: Notes) -> Shape | None:
    """Return the area of a shape, or None where it has none.

    Raises:
        ValueError: It cannot be drawn.
        InputError: Its mask is damaged.
    """
    if not isinstance(row.get("label"), str) or not row["label"].strip():
        raise ValueError(f"the label {row.get('label')!r:.40}")
    kind = row.get("shape_type") or "polygon"
    if kind in _LINES:
        notes.skipped[kind] += 1
        return None
    ring = as_ring(row.get("points"))
    if kind == "mask":
        return _mask(row, ring, name)
    if kind == "circle" and len(ring) == 4:
        x, y = ring[:2]
        radius = ((ring[2] - x) ** 2 + (ring[3] - y) ** 2) ** 0.5
        return Shape("", [ellipse_ring(x, y, radius, radius)])
    if kind == "rectangle" and len(ring) == 4:
        x0, y0, x1, y1 = ring
        ring = [x0, y0, x1, y0, x1, y1, x0, y1]
    elif kind not in ("polygon", "rectangle", "oriented_rectangle"):
        raise ValueError(f"a shape_type {kind!r:.40} of {len(ring) // 2} points")
    if len(ring) < 6:
        notes.short.append(name)
        return None
    return Shape("", [ring])


def _mask(row: Mapping[str, Any], ring: list[float], name: str) -> Shape:
    if len(ring) != 4:
        raise ValueError(f"a mask with {len(ring) // 2} points, not the two corners of its box")
    picture = decode_image(unpack_base64(row.get("mask")), where=f"{name} (mask)")
    left, top = round(min(ring[0::2])), round(min(ring[1::2]))
    return Shape("", runs=runs_of(picture.max(axis=2)), box=[top, left, *picture.shape[:2]])
