"""VGG Image Annotator (VIA 1 and 2): a JSON file of images with their regions.

Source: https://www.robots.ox.ac.uk/~vgg/software/via/
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, Shape
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.documents import as_number, as_ring, holds, parse_json, records
from masksmith.data.image_finder import ImageFinder, split_of, split_of_folders
from masksmith.data.layouts.drawn import (
    Drawing,
    Notes,
    complain,
    drawn_catalog,
    labelled,
    read_drawings,
    with_area,
)
from masksmith.data.shapes import ellipse_ring
from masksmith.data.tree import Tree

_UNNAMED = "object"  # the class of regions without an attribute
_NO_AREAS = ("rect", "polyline", "point")


def via(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """JSON files of VIA, as it saves projects and exports annotations; the one attribute of regions is their class."""
    if asked.masks is not None:
        return None
    finder, notes = ImageFinder(tree), Notes()
    drawings = read_drawings(
        tree,
        ".json",
        lambda raw: holds(raw, '"regions"', '"filename"'),
        lambda raw, path: _drawings(parse_json(raw, where=path), path, finder, notes),
    )
    if not drawings:
        return None
    return drawn_catalog(
        tree,
        asked,
        finder,
        notes,
        layout="via",
        drawings=drawings,
        classes=(),
        task="instances",
    )


def _drawings(value: object, path: str, finder: ImageFinder, notes: Notes) -> list[Drawing]:
    entries = value.get("_via_img_metadata", value) if isinstance(value, dict) else None
    rows = records(list(entries.values())) if isinstance(entries, dict) else None
    rows = [row for row in rows or [] if isinstance(row.get("filename"), str) and "regions" in row]
    split = split_of(PurePosixPath(path).stem) or split_of_folders(path)
    found: dict[str, Drawing] = {}
    problems: list[str] = []
    absent, odd, twice = list[str](), list[str](), list[str]()
    regions = [(row["filename"], _regions(row["regions"])) for row in rows]
    attribute = _attribute([one for _, own in regions for one in own])
    for name, own in regions:
        paths = finder.find(name, near=path, split=split)
        if len(paths) != 1:
            absent.append(name)
            continue
        if paths[0] in found:
            twice.append(name)
        shapes = []
        for at, region in enumerate(own):
            try:
                shape = _shape(region, attribute, f"{path}: {name}", notes)
            except ValueError as error:
                odd.append(f"region {at + 1} of {name}: {error}")
                continue
            shapes += [shape] if shape else []
        found[paths[0]] = Drawing(paths[0], shapes, split)
    if not found:
        return []
    complain(
        problems,
        path,
        "images are not in the folder, or fit several files",
        absent,
        "add them, or take them out",
    )
    complain(problems, path, "images are listed twice", twice, "keep one entry an image")
    complain(problems, path, "regions cannot be drawn", odd, "correct or remove them")
    if problems:
        raise InputError("\n  ".join(problems))
    notes.why.append(f"{path} is a file of VIA with {len(found)} images")
    return list(found.values())


def _regions(value: object) -> list[dict[str, Any]]:
    return records(list(value.values()) if isinstance(value, dict) else value) or []


def _attribute(regions: list[dict[str, Any]]) -> str | None:
    """Return the attribute that names the class: the one that all regions have, with the fewest values."""
    given = [one.get("region_attributes") or {} for one in regions]
    if not given or not all(isinstance(one, dict) for one in given):
        return None
    common = [
        key for key in given[0] if all(isinstance(one.get(key), str) and one[key].strip() for one in given)
    ]
    return min(common, key=lambda key: len({one[key] for one in given}), default=None)


def _shape(region: Mapping[str, Any], attribute: str | None, name: str, notes: Notes) -> Shape | None:
    form = region.get("shape_attributes")
    if not isinstance(form, dict):
        raise ValueError("no shape_attributes")
    label = region["region_attributes"][attribute] if attribute else _UNNAMED
    kind = form.get("name")
    if kind in _NO_AREAS:
        notes.skipped[kind] += 1
        return None
    if kind in ("circle", "ellipse"):
        across, down = ("r", "r") if kind == "circle" else ("rx", "ry")
        numbers = [as_number(form.get(key)) for key in ("cx", "cy", across, down)]
        if None in numbers:
            raise ValueError(f"a {kind} without its numbers")
        x, y, width, height = (one for one in numbers if one is not None)
        return with_area(labelled(label), Shape("", [ellipse_ring(x, y, width, height)]))
    xs, ys = form.get("all_points_x"), form.get("all_points_y")
    if (
        kind not in ("polygon", None)
        or not isinstance(xs, list)
        or not isinstance(ys, list)
        or len(xs) != len(ys)
    ):
        raise ValueError(f"a {kind!r:.40} without as many x as y")
    ring = as_ring([one for pair in zip(xs, ys, strict=True) for one in pair])
    if len(ring) < 6:
        notes.short.append(name)
        return None
    return with_area(labelled(label), Shape("", [ring]))
