"""Supervisely: a project of meta.json and data sets, each with img/NAME and ann/NAME.json.

Source: https://docs.supervisely.com/data-organization/00_ann_format_navi/04_supervisely_format_objects
"""

import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, Shape
from masksmith.data.decode.headers import MAX_PIXELS
from masksmith.data.decode.pictures import IMAGE_SUFFIXES, decode_image
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.documents import as_number, as_ring, as_size, holds, parse_json, records, unpack_base64
from masksmith.data.image_finder import ImageFinder, split_of, split_of_folders
from masksmith.data.layouts.drawn import Drawing, Notes, drawn_catalog, labelled, read_drawings, with_area
from masksmith.data.shapes import runs_of
from masksmith.data.tree import Tree

_SPLIT_TAGS = ("train", "val", "test")
_AREAS = ("polygon", "bitmap", "rectangle")


def supervisely(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """A JSON file of Supervisely for each image: polygons with holes, bitmaps and rectangles, in their order.

    A tag train, val or test of an image, else its data set's name, tells the split; meta.json orders the classes.
    """
    if asked.masks is not None:
        return None
    finder, notes = ImageFinder(tree), Notes()
    drawings = read_drawings(
        tree,
        ".json",
        lambda raw: holds(raw, '"objects"', '"size"'),
        lambda raw, path: _drawing(parse_json(raw, where=path), path, finder, notes),
    )
    if not drawings:
        return None
    notes.why.append(f"{len(drawings)} JSON files of Supervisely, one an image")
    return drawn_catalog(
        tree, asked, finder, notes, layout="supervisely", drawings=drawings, classes=_classes(tree), task=None
    )


def _classes(tree: Tree) -> list[str]:
    """Return the classes of areas that meta.json declares."""
    found: list[str] = []
    for path in tree.every(".json"):
        if PurePosixPath(path).name == "meta.json":
            value = parse_json(tree.read(path), where=path)
            rows = records(value.get("classes")) if isinstance(value, dict) else None
            found += [
                str(row["title"])
                for row in rows or []
                if isinstance(row.get("title"), str) and _may_be_area(row)
            ]
    return list(dict.fromkeys(found))


def _may_be_area(row: Mapping[str, Any]) -> bool:
    return row.get("shape", "any") in (*_AREAS, "any")


def _drawing(value: object, path: str, finder: ImageFinder, notes: Notes) -> list[Drawing]:
    """Return the image of a file, none where it is none of Supervisely.

    Raises:
        InputError: It has no image, or objects that cannot be drawn.
    """
    rows = records(value.get("objects")) if isinstance(value, dict) else None
    size = value.get("size") if isinstance(value, dict) else None
    if not isinstance(value, dict) or rows is None or not isinstance(size, dict):
        return []
    shapes: list[Shape] = []
    problems: list[str] = []
    for at, row in enumerate(rows):
        try:
            label = row.get("classTitle")
            if not isinstance(label, str) or not label.strip():
                raise ValueError(f"the classTitle {label!r:.40}")
            area = _area(row, f"{path}: object {at + 1}", notes)
        except (ValueError, InputError) as error:
            problems.append(f"object {at + 1}: {error}")
            continue
        if area is not None:
            shapes.append(with_area(labelled(label), area))
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}; correct them in Supervisely")
    tags = [row.get("name") for row in records(value.get("tags")) or []]
    split = next((split_of(tag) for tag in tags if isinstance(tag, str) and tag.lower() in _SPLIT_TAGS), None)
    found = as_size(size.get("height"), size.get("width"))
    return [Drawing(_image(path, finder), shapes, split or split_of_folders(path), found)]


def _image(path: str, finder: ImageFinder) -> str:
    """Return the image that a file is called after: ds/img/NAME beside ds/ann/NAME.json, else by the name alone.

    Raises:
        InputError: There is none, or several fit.
    """
    place = PurePosixPath(path)
    name = place.stem if place.stem.lower().endswith(IMAGE_SUFFIXES) else place.name
    beside = place.parent.parent / "img" / name
    found = finder.find(str(beside), near="")
    if len(found) != 1:
        why = f"fits {' and '.join(found)}; keep one of them" if found else "is not in the folder; add it"
        raise InputError(f"{path}: its image {str(beside)!r:.200} {why}, or take the JSON out")
    return found[0]


def _area(row: Mapping[str, Any], name: str, notes: Notes) -> Shape | None:
    """Return the area of an object, or None where it has none.

    Raises:
        ValueError: It cannot be drawn.
        InputError: Its bitmap is damaged.
    """
    kind = row.get("geometryType") or ("bitmap" if isinstance(row.get("bitmap"), dict) else "polygon")
    if kind not in _AREAS:
        notes.skipped[str(kind)[:40]] += 1
        return None
    if kind == "bitmap":
        return _bitmap(row.get("bitmap"), name)
    points = row.get("points")
    if not isinstance(points, dict):
        raise ValueError(f"a {kind} without points")
    outer = as_ring(points.get("exterior"))
    if kind == "rectangle" and len(outer) == 4:
        x0, y0, x1, y1 = outer
        outer = [x0, y0, x1, y0, x1, y1, x0, y1]
    if len(outer) < 6:
        notes.short.append(name)
        return None
    holes = points.get("interior") or []
    if not isinstance(holes, list):
        raise ValueError("an interior that is no list of outlines")
    return Shape("", [outer, *(ring for ring in map(as_ring, holes) if len(ring) >= 6)])


def _bitmap(value: object, name: str) -> Shape:
    """Return the area of a PNG that is packed by zlib and base64; its alpha, or what is not black where it has none."""
    if not isinstance(value, dict):
        raise ValueError("a bitmap without its data")
    origin = value.get("origin")
    corner = [as_number(one) for one in origin] if isinstance(origin, list) else []
    if len(corner) != 2 or None in corner:
        raise ValueError(f"the origin {origin!r:.40}, which is no pair of x and y")
    left, top = (round(one or 0) for one in corner)
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(unpack_base64(value.get("data")), MAX_PIXELS)
    except zlib.error as error:
        raise ValueError(f"a bitmap that is not packed by zlib ({error})") from error
    if unpacker.unconsumed_tail:
        raise ValueError(f"a bitmap of more than {MAX_PIXELS} bytes")
    picture = decode_image(raw, where=f"{name} (bitmap)", keep_alpha=True)
    bands = picture.shape[2]
    drawn = picture[..., -1] if bands in (2, 4) else picture.max(axis=2)
    return Shape("", runs=runs_of(drawn), box=[top, left, *drawn.shape])
