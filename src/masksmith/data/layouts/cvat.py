"""CVAT for images 1.1: XML files of images with polygons, masks and ellipses.

Source: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
"""

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, Shape
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.documents import as_counts, as_number, as_ring, as_size, holds, parse_xml
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
from masksmith.data.shapes import ellipse_ring, runs_of_rows
from masksmith.data.tree import Tree

_NO_AREAS = ("box", "polyline", "points", "cuboid", "skeleton")


def cvat(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """XML files of CVAT for images; shapes are drawn in the order of z_order, those of one group are one object.

    The attribute ``subset`` tells the split.
    """
    if asked.masks is not None:
        return None
    finder, notes = ImageFinder(tree), Notes()
    classes: list[str] = []

    def read(raw: bytes, path: str) -> list[Drawing]:
        root = parse_xml(raw, where=path)
        found = _drawings(root, path, finder, notes)
        if found:
            notes.why.append(f"{path} is a file of CVAT for images, of {len(found)} images")
            classes.extend(name.text.strip() for name in root.iterfind(".//labels/label/name") if name.text)
        return found

    drawings = read_drawings(tree, ".xml", lambda raw: holds(raw, "<annotations"), read)
    if not drawings:
        return None
    return drawn_catalog(
        tree, asked, finder, notes, layout="cvat", drawings=drawings, classes=classes, task=None
    )


def _drawings(root: Element, path: str, finder: ImageFinder, notes: Notes) -> list[Drawing]:
    """Return the images of a file, none where it is none of CVAT.

    Raises:
        InputError: It is of a video, names images that are not there, or has shapes that cannot be drawn.
    """
    if root.tag != "annotations":
        return []
    if root.find("track") is not None:
        raise InputError(f"{path}: tracks of a video; expected images, export it as 'CVAT for images 1.1'")
    found: dict[str, Drawing] = {}
    problems: list[str] = []
    absent, doubtful, twice, odd = (list[str]() for _ in range(4))
    images = root.findall("image")
    for image in images:
        name = image.get("name", "")
        split = split_of(image.get("subset", ""))
        paths = finder.find(name, near=path, split=split)
        if len(paths) != 1:
            (doubtful if paths else absent).append(name)
            continue
        if paths[0] in found:
            twice.append(name)
        size = as_size(_number(image.get("height")), _number(image.get("width")))
        shapes = _shapes(image, f"{path}: {name}", notes, odd)
        found[paths[0]] = Drawing(paths[0], shapes, split or split_of_folders(name), size)
    if len(absent) == len(images):
        return []  # of other images
    complain(problems, path, "images are not in the folder", absent, "add the files, or take them out")
    complain(problems, path, "images fit several files", doubtful, "keep one of the files")
    complain(problems, path, "images are listed twice", twice, "keep one entry an image")
    complain(problems, path, "shapes cannot be drawn", odd, "correct or remove them")
    if problems:
        raise InputError("\n  ".join(problems))
    return list(found.values())


def _shapes(image: Element, name: str, notes: Notes, odd: list[str]) -> list[Shape]:
    """Return the shapes of an image in their order of drawing; those that cannot be drawn are odd."""
    shapes = []
    for one in sorted(image, key=lambda one: _number(one.get("z_order")) or 0):
        try:
            if (shape := _shape(one, name, notes)) is not None:
                shapes.append(shape)
        except (ValueError, InputError) as error:
            odd.append(f"a {one.tag} on {image.get('name')!r:.80}: {error}")
    return shapes


def _shape(shape: Element, name: str, notes: Notes) -> Shape | None:
    """Return a shape with an area, or None.

    Raises:
        ValueError: It cannot be drawn.
        InputError: Its run-lengths are of another size.
    """
    if shape.tag in _NO_AREAS:
        notes.skipped[shape.tag] += 1
        return None
    if shape.tag not in ("polygon", "mask", "ellipse"):
        return None  # a tag of the whole image
    if not (label := shape.get("label", "").strip()):
        raise ValueError("no label")
    group = _number(shape.get("group_id"))
    area = _area(shape, name, notes)
    return area and with_area(labelled(label), area, int(group) if group else None)


def _area(shape: Element, name: str, notes: Notes) -> Shape | None:
    if shape.tag == "mask":
        counts = as_counts([_number(one) for one in shape.get("rle", "").split(",")])
        top, left, height, width = (int(one) for one in _need(shape.attrib, "top", "left", "height", "width"))
        return Shape(
            "", runs=runs_of_rows(counts, (height, width), where=name), box=[top, left, height, width]
        )
    if shape.tag == "ellipse":
        x, y, across, down = _need(shape.attrib, "cx", "cy", "rx", "ry")
        turned = _number(shape.get("rotation")) or 0
        return Shape("", [ellipse_ring(x, y, across, down, degrees=turned)])
    points = [
        [_number(one) for one in pair.split(",")] for pair in shape.get("points", "").split(";") if pair
    ]
    ring = as_ring(points)
    if len(ring) < 6:
        notes.short.append(name)
        return None
    return Shape("", [ring])


def _need(values: Mapping[str, str], *names: str) -> list[float]:
    found = [_number(values.get(name)) for name in names]
    if None in found:
        raise ValueError(f"no number {names[found.index(None)]!r}")
    return [one for one in found if one is not None]


def _number(text: str | None) -> float | None:
    try:
        return as_number(float(text)) if text is not None else None
    except ValueError:
        return None
