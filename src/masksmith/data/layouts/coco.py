"""COCO JSON: lists of images, annotations and categories in one file, or one file a split.

Source: https://cocodataset.org/#format-data
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from masksmith.core.errors import InputError
from masksmith.core.files import digest
from masksmith.data.catalog import Catalog, Shape
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.documents import (
    as_counts,
    as_key,
    as_ring,
    as_size,
    holds,
    parse_json,
    records,
)
from masksmith.data.findings import Finding, refuse_all, some
from masksmith.data.image_finder import ImageFinder, split_of, split_of_folders
from masksmith.data.layouts.drawn import SHOWN, Drawing, Notes, complain, drawn_catalog, is_background
from masksmith.data.tree import Tree

_UNNAMED = "object"  # the class where a file has no categories


def coco(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """COCO JSON files of images, annotations and categories; a file of a split "val" is held out.

    Every annotation is an object, whatever its number of parts. Crowds are not judged, unless all are crowds.
    """
    if asked.masks is not None:
        return None
    finder, notes, problems = ImageFinder(tree), Notes(), list[str]()
    files = _files(tree, notes, problems)
    read = [_read(file, finder, problems) for file in files]
    if not problems and not any(one.images for one in read):
        return None
    _complain_of_doubles(read, problems)
    refuse_all(problems, what="annotation files")
    notes.why += [f"{one.file.path} is a COCO file of {len(one.images)} images" for one in read]
    drawings = _drawings(read, notes)
    classes = [name for one in read for name in one.categories.values()]
    return drawn_catalog(
        tree, asked, finder, notes, layout="coco", drawings=drawings, classes=classes, task="instances"
    )


# --- files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    path: str
    value: dict[str, Any]
    split: str | None

    @property
    def annotations(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.value.get("annotations") or []
        return found


def _files(tree: Tree, notes: Notes, problems: list[str]) -> list[_File]:
    """Return the files of images and annotations; what is broken is a problem."""
    found, seen = [], dict[str, str]()
    for path in tree.every(".json"):
        raw = tree.read(path)
        if not holds(raw, '"images"', '"file_name"') or not (
            holds(raw, '"annotations"') or holds(raw, '"categories"')
        ):
            continue
        try:
            value = parse_json(raw, where=path)
        except InputError as error:
            problems.append(str(error))
            continue
        images = records(value.get("images")) if isinstance(value, dict) else None
        if not images or "file_name" not in images[0]:
            continue
        split = split_of(PurePosixPath(path).stem) or split_of_folders(path)
        if (key := digest(raw, str(split))) in seen:
            notes.left_out.append(f"{path}: a copy of {seen[key]}")
            continue
        seen[key] = path
        if value.get("annotations") is not None and records(value["annotations"]) is None:
            problems.append(f"{path}: annotations that are no list of objects; expected COCO JSON")
            continue
        found.append(_File(path, value, split if "annotations" in value else "test"))
    return _with_outlines(found, notes)


def _with_outlines(files: Sequence[_File], notes: Notes) -> list[_File]:
    """Leave out captions and panoptic files, and those of keypoints where others have the same images."""
    drawn = [
        one
        for one in files
        if not one.annotations or any("segmentation" in row or "bbox" in row for row in one.annotations)
    ]
    points = [one for one in drawn if any("keypoints" in row for row in one.annotations)]
    if any(one.annotations and one not in points for one in drawn):
        drawn = [one for one in drawn if one not in points]
    notes.left_out += [
        f"{one.path}: captions, keypoints or segments without outlines" for one in files if one not in drawn
    ]
    return drawn


@dataclass
class _Read:
    """What a file holds, checked."""

    file: _File
    images: dict[str, list[Shape]] = field(default_factory=dict)
    """Path -> what is drawn on it."""
    sizes: dict[str, list[int] | None] = field(default_factory=dict)
    categories: dict[str, str] = field(default_factory=dict)
    """Id -> name."""
    boxes: dict[str, list[Shape]] = field(default_factory=dict)
    """Path -> the boxes without an outline."""
    short: list[str] = field(default_factory=list)
    backgrounds: int = 0
    repeated: list[str] = field(default_factory=list)
    """Ids that several annotations have."""


def _read(file: _File, finder: ImageFinder, problems: list[str]) -> _Read:
    """Check a file; what is wrong with it becomes problems, of each kind one."""
    read = _Read(file)
    paths = _images(read, finder, problems)
    if not read.images:
        return read  # a file of other images
    _categories(read, problems)
    odd = _Odd()
    for at, row in enumerate(file.annotations):
        _annotation(read, paths, row, at, odd)
    count = Counter(as_key(row.get("id")) for row in file.annotations)
    read.repeated = [name for name, times in count.items() if name is not None and times > 1]
    odd.complain(file.path, problems)
    return read


def _images(read: _Read, finder: ImageFinder, problems: list[str]) -> dict[str, str]:
    """Fill in the images of a file; return id -> path."""
    where = read.file.path
    nameless, absent, doubtful, twice = list[str](), list[str](), list[str](), list[str]()
    paths: dict[str, str] = {}
    for at, row in enumerate(records(read.file.value["images"]) or []):
        key, name = as_key(row.get("id")), row.get("file_name")
        if key is None or not isinstance(name, str) or not name.strip():
            nameless.append(f"the {at + 1}th (id {row.get('id')!r:.40}, file_name {name!r:.80})")
            continue
        found = finder.find(name, near=where, split=read.file.split)
        if len(found) != 1:
            (doubtful if found else absent).append(f"{name} ({' or '.join(found)})" if found else name)
        elif paths.get(key) == found[0]:
            continue  # the same entry again
        elif key in paths or found[0] in read.images:
            twice.append(f"{name} (id {key})")
        else:
            paths[key] = found[0]
            read.images[found[0]] = []
            read.sizes[found[0]] = as_size(row.get("height"), row.get("width"))
    if paths or nameless or twice or doubtful:
        complain(problems, where, "images without an id or a file_name", nameless, "correct them")
        complain(
            problems,
            where,
            "images are not in the folder",
            absent,
            "add the files, or take them out of the list",
        )
        complain(
            problems, where, "images fit several files", doubtful, "write folders into file_name, or keep one"
        )
        complain(
            problems,
            where,
            "images are listed twice, or share an id",
            twice,
            "keep one entry an image and id",
        )
    return paths


def _categories(read: _Read, problems: list[str]) -> None:
    where, given = read.file.path, read.file.value.get("categories")
    rows = records(given if given is not None else [])
    if rows is None:
        problems.append(f"{where}: categories that are no list of objects; expected their ids and names")
        return
    odd = []
    for row in rows:
        key, name = as_key(row.get("id")), as_key(row.get("name"))
        if key is None or name is None or read.categories.get(key, name) != name:
            odd.append(f"id {row.get('id')!r:.40}, name {row.get('name')!r:.80}")
        else:
            read.categories[key] = name
    complain(problems, where, "categories without an id or a name, or of one id", odd, "correct them")


# --- annotations ------------------------------------------------------------------------------------------


@dataclass
class _Odd:
    """What is wrong with annotations."""

    images: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    outlines: list[str] = field(default_factory=list)

    def complain(self, where: str, problems: list[str]) -> None:
        complain(
            problems, where, "annotations of images that are not listed", self.images, "correct the image_id"
        )
        complain(
            problems, where, "annotations of unknown categories", self.categories, "correct the category_id"
        )
        complain(problems, where, "annotations that cannot be drawn", self.outlines, "correct or remove them")


def _annotation(read: _Read, paths: dict[str, str], row: dict[str, Any], at: int, odd: _Odd) -> None:
    name = f"annotation {row['id']!r:.40}" if "id" in row else f"the {at + 1}th annotation"
    path = paths.get(as_key(row.get("image_id")) or "")
    if path is None:
        odd.images.append(f"{name} (image_id {row.get('image_id')!r:.40})")
        return
    category = as_key(row.get("category_id"))
    label = read.categories.get(category or "")
    if category is None and not read.categories:
        label = _UNNAMED
    if label is None:
        odd.categories.append(f"{name} (category_id {row.get('category_id')!r:.40})")
        return
    if is_background(label):
        read.backgrounds += 1
        return
    try:
        shapes = list(_shapes(read, path, row, name))
    except ValueError as error:
        odd.outlines.append(f"{name}: {error}")
        return
    crowd = row.get("iscrowd") in (1, True, "1")
    number = len(read.images[path]) if len(shapes) > 1 else None
    read.images[path] += [replace(one, label=label, object=number, unjudged=crowd) for one in shapes]


def _shapes(read: _Read, path: str, row: dict[str, Any], name: str) -> Iterator[Shape]:
    """Yield the parts of an annotation; where there is an area without an outline, it is a box.

    Raises:
        ValueError: It cannot be drawn.
    """
    given = row.get("segmentation")
    if isinstance(given, dict) and given:
        yield _run_shape(read, path, given)
        return
    if given and not isinstance(given, list):
        raise ValueError(f"a segmentation of {given!r:.40}")
    if given and not isinstance(given[0], list | dict):
        given = [given]  # one polygon, not in a list
    for part in given or ():
        if isinstance(part, dict):
            yield _run_shape(read, path, part)
            continue
        ring = as_ring(part)
        if len(ring) < 6:
            read.short.append(name)
        else:
            yield Shape("", [ring])
    box = row.get("bbox")
    if not given and box:
        ring = as_ring(box)
        if len(ring) != 4:
            raise ValueError(f"a bbox of {len(ring)} numbers")
        x, y, width, height = ring
        outline = [x, y, x + width, y, x + width, y + height, x, y + height]
        read.boxes.setdefault(path, []).append(Shape("", [outline], unjudged=True))


def _run_shape(read: _Read, path: str, given: dict[str, Any]) -> Shape:
    size = given.get("size")
    found = as_size(*size) if isinstance(size, list) and len(size) == 2 else None
    if found is None:
        raise ValueError(f"run-lengths of size {size!r:.40}")
    stated = read.sizes[path] = read.sizes[path] or found
    if stated != found:
        raise ValueError(
            f"run-lengths of {found[0]}x{found[1]} in an image of {stated[0]}x{stated[1]} (height x width)"
        )
    counts = given.get("counts")
    told = decode_counts(counts) if isinstance(counts, str) else counts
    return Shape("", runs=as_counts(told, found[0] * found[1]))


def decode_counts(text: str) -> list[int]:
    """Return the run-lengths of COCO's compressed text, the inverse of instances.coco_text.

    Groups of five bits, the lowest first, a sixth bit where more follow; from the fourth number on differences to the
    one before of their kind.

    Raises:
        ValueError: It is no such text.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64) - 48
    if not len(codes):
        return []
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("a counts text that is no compressed run-length")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > 7:
        raise ValueError("a counts text with a run longer than any image")
    place = np.arange(len(codes)) - np.repeat(starts, sizes)
    numbers = np.add.reduceat((codes & 31) << 5 * place, starts)
    numbers -= np.where(codes[ends] & 16, 1 << 5 * sizes, 0)
    numbers[1::2], numbers[2::2] = numbers[1::2].cumsum(), numbers[2::2].cumsum()
    found: list[int] = numbers.tolist()
    return found


# --- all files --------------------------------------------------------------------------------------------


def _complain_of_doubles(read: Sequence[_Read], problems: list[str]) -> None:
    first: dict[str, str] = {}
    clashes: dict[tuple[str, str], list[str]] = {}
    for one in read:
        for path in one.images:
            if path in first:
                clashes.setdefault((first[path], one.file.path), []).append(path)
            first.setdefault(path, one.file.path)
    for (earlier, later), paths in clashes.items():
        complain(
            problems, later, f"images are listed in {earlier} too", paths, "keep them in one of the files"
        )
    outlines = any(shapes for one in read for shapes in one.images.values())
    boxed = [one.file.path for one in read if one.boxes]
    if boxed and not outlines:
        problems.append(
            f"{some(boxed)}: boxes and no outlines; expected polygons or run-lengths (segmentation); boxes are no masks"
        )


def _drawings(read: Sequence[_Read], notes: Notes) -> list[Drawing]:
    every = [shape for one in read for shapes in one.images.values() for shape in shapes]
    crowds = sum(shape.unjudged for shape in every)
    all_crowds = bool(every) and crowds == len(every)
    _say(read, crowds, all_crowds, notes)
    drawings = []
    for one in read:
        notes.short += [f"{one.file.path}: {name}" for name in one.short]
        for path, shapes in one.images.items():
            if all_crowds:
                ordered = [replace(shape, unjudged=False) for shape in shapes]
            else:
                ordered = sorted(shapes, key=lambda shape: not shape.unjudged)
            drawn = [*one.boxes.get(path, ()), *ordered]
            drawings.append(Drawing(path, drawn, one.file.split, one.sizes[path]))
    return drawings


def _say(read: Sequence[_Read], crowds: int, all_crowds: bool, notes: Notes) -> None:
    def say(level: str, title: str, detail: str) -> None:
        notes.findings.append(Finding(level, title, detail))

    if all_crowds:
        say(
            "warning",
            "all annotations are crowds",
            f"iscrowd is 1 in all {crowds} annotations, as brush tools export it: each is read as an object",
        )
    elif crowds:
        say("note", "crowds", f"{crowds} annotations are crowds (iscrowd 1); their pixels are not judged")
    if boxes := sum(len(own) for one in read for own in one.boxes.values()):
        say(
            "warning",
            "boxes without an outline",
            f"{boxes} annotations have a box and no outline; boxes are no masks, so their pixels are not judged",
        )
    if backgrounds := sum(one.backgrounds for one in read):
        say("note", "a category of background", f"{backgrounds} annotations of the background are not drawn")
    repeated = [f"{name} in {one.file.path}" for one in read for name in one.repeated]
    if repeated:
        say(
            "warning",
            "ids of several annotations",
            f"{len(repeated)} ids are those of several annotations; all are read: {some(repeated, most=SHOWN)}",
        )
