"""YOLO: a text file an image, a line a polygon in fractions of the image: ``class x1 y1 x2 y2 x3 y3 …``.

Source: https://docs.ultralytics.com/datasets/segment/
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any

from masksmith.core.config import read_yaml
from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, Shape
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.findings import Finding, some
from masksmith.data.image_finder import ImageFinder
from masksmith.data.layouts.drawn import SHOWN, Drawing, Notes, drawn_catalog, is_background
from masksmith.data.tree import Tree

_SPLITS = ("train", "val", "test")
_BEYOND = 0.01
"""Share of the image by which rounding may bring a point outside of it."""
_NAMES = ("classes.txt", "obj.names", "classes.names", "labels.txt")


def yolo(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """A text file of polygons for each image (labels/ beside images/, or in one folder), classes in ``data.yaml``.

    An empty text, or none, is an image without objects.
    """
    if asked.masks is not None or not tree.every(".txt"):
        return None
    finder, notes = ImageFinder(tree), Notes()
    config = _config(tree)
    images = _images(tree, config, finder)
    texts = {path: text for path in images if (text := _text_of(tree, path)) is not None}
    if not texts or (config is None and not any(_are_polygons(tree.read(text)) for text in texts.values())):
        return None
    names = config.names if config else _listed_names(tree)
    problems: list[str] = []
    drawings = []
    lines = 0
    for path, split in images.items():
        rows = _Rows(names, notes)
        if path in texts:
            rows.read(tree.read(texts[path]), texts[path])
            lines += rows.count
        problems += rows.problems
        drawings.append(Drawing(path, rows.shapes, split))
    if problems:
        shown = some(problems, apart="\n  ", most=SHOWN)
        raise InputError(f"{tree.root}: {len(problems)} lines cannot be used; correct them:\n  {shown}")
    notes.why.append(
        f"{len(texts)} text files of polygons ({lines} lines)"
        + (f", classes in {config.path}" if config else "")
    )
    if bare := [path for path in images if path not in texts]:
        detail = f"{len(bare)} images have no text file, so no object is on them: {some(bare, most=SHOWN)}"
        notes.findings.append(Finding("note", "images without a text file", detail))
    return drawn_catalog(
        tree,
        asked,
        finder,
        notes,
        layout="yolo",
        drawings=drawings,
        classes=names or (),
        task="instances",
    )


# --- data.yaml --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Config:
    path: str
    names: list[str]
    value: dict[str, Any]


def _config(tree: Tree) -> _Config | None:
    """Return the file that names classes and splits.

    Raises:
        InputError: There are several, or its names are none.
    """
    found = []
    for path in tree.every(".yaml", ".yml"):
        try:
            value = read_yaml(tree.read(path).decode("utf-8-sig"), where=path)
        except (InputError, UnicodeDecodeError):
            continue
        if isinstance(value, dict) and "names" in value and any(split in value for split in _SPLITS):
            found.append(_Config(path, _names(value["names"], path), value))
    if len(found) > 1:
        raise InputError(
            f"{tree.root}: {some([one.path for one in found])} all name classes and splits; keep one of them"
        )
    return found[0] if found else None


def _names(value: object, path: str) -> list[str]:
    found = dict(enumerate(value)) if isinstance(value, list) else value
    if isinstance(found, dict) and set(found) == set(range(len(found))):
        names = [str(found[at]).strip() for at in range(len(found))]
        if all(names) and len(set(names)) == len(names):
            return names
    raise InputError(f"{path}: names: {value!r:.80}; expected a name for each number from 0 on, no two alike")


def _listed_names(tree: Tree) -> list[str] | None:
    for path in tree.every(".txt", ".names"):
        if PurePosixPath(path).name in _NAMES:
            lines = tree.read(path).decode("utf-8", "replace").split("\n")
            if names := [line.strip() for line in lines if line.strip()]:
                return names
    return None


# --- images and texts -------------------------------------------------------------------------------------


def _images(tree: Tree, config: _Config | None, finder: ImageFinder) -> dict[str, str | None]:
    """Return image -> split: those of ``data.yaml``, else all.

    Raises:
        InputError: A path of data.yaml is not there.
    """
    if config is None:
        return dict.fromkeys(finder.plain(), None)
    found: dict[str, str | None] = {}
    absent = []
    for split in _SPLITS:
        given = config.value.get(split)
        for one in given if isinstance(given, list) else [given]:
            if not isinstance(one, str) or not one.strip():
                continue
            paths = _resolve(tree, config, one, finder)
            if not paths and split != "test":
                absent.append(f"{split}: {one}")
            for path in paths:
                found.setdefault(path, split)
    if absent and found:
        raise InputError(f"{config.path}: no images at {some(absent)}; correct the paths, or take them out")
    return found or dict.fromkeys(finder.plain(), None)


def _resolve(tree: Tree, config: _Config, given: str, finder: ImageFinder) -> list[str]:
    """Return the images of a path of data.yaml: of a folder, or of a text file that lists them.

    The path is relative to ``path``, to the file, or to a folder of another computer: then its end counts.
    """
    home = PurePosixPath(config.path).parent
    base = config.value.get("path")
    inner = PurePosixPath(given.replace("\\", "/"))
    tried = [home / inner, PurePosixPath(inner)]
    if isinstance(base, str):
        tried.insert(0, home / base.replace("\\", "/") / inner)
    parts = [part for part in inner.parts if part not in ("..", ".", "/")]
    tried += [home.joinpath(*parts[at:]) for at in range(len(parts))]
    for place in (normpath(one) for one in tried):
        if place in tree and place.endswith(".txt"):
            lines = tree.read(place).decode("utf-8", "replace").split("\n")
            listed = [finder.find(line, near=place) for line in lines if line.strip()]
            return [paths[0] for paths in listed if paths]
        prefix = "" if place == "." else f"{place}/"
        if prefix and (inside := [path for path in finder.paths if path.startswith(prefix)]):
            return inside
    return []


def _text_of(tree: Tree, image: str) -> str | None:
    """Return the text file of an image: in ``labels`` where ``images`` is in its path, else beside it."""
    path = PurePosixPath(image)
    parts = list(path.with_suffix(".txt").parts)
    places = ["/".join(parts)]
    for at in range(len(parts) - 2, -1, -1):
        if parts[at].lower() == "images":
            places.insert(0, "/".join([*parts[:at], "labels", *parts[at + 1 :]]))
    if len(parts) > 1:
        places.append("/".join([*parts[:-2], "labels", parts[-1]]))
    places.append("/".join([*parts[:-1], "labels", parts[-1]]))
    return next((place for place in places if place in tree), None)


def _are_polygons(raw: bytes) -> bool:
    """Whether a text looks like lines of a class and points: where no data.yaml says so."""
    lines = [line.split() for line in raw[:100_000].decode("utf-8", "replace").split("\n") if line.strip()]
    return bool(lines) and all(
        len(line) >= 7 and len(line) % 2 and line[0].isdecimal() and all(map(_is_fraction, line[1:]))
        for line in lines[:20]
    )


def _is_fraction(text: str) -> bool:
    value = _number(text)
    return value is not None and -_BEYOND <= value <= 1 + _BEYOND


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None  # NaN is not


@dataclass
class _Rows:
    """The lines of a text file."""

    names: Sequence[str] | None
    notes: Notes
    shapes: list[Shape] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    count: int = 0

    def read(self, raw: bytes, path: str) -> None:
        """Read all lines; what is wrong becomes problems."""
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.problems.append(f"{path}: no text (byte {error.start}); expected lines of numbers")
            return
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            self.count += 1
            try:
                self._line(line.split(), f"{path}, line {number}")
            except ValueError as error:
                self.problems.append(f"{path}, line {number}: {error}")

    def _line(self, words: Sequence[str], name: str) -> None:
        label = self._label(words[0])
        if len(words) == 5:
            raise ValueError(
                "5 numbers are a box; expected polygons (class x1 y1 x2 y2 x3 y3 …); boxes are no masks"
            )
        if len(words) % 2 == 0:
            raise ValueError(f"{len(words) - 1} coordinates, an odd number; expected pairs of x and y")
        if bad := [word for word in words[1:] if not _is_fraction(word)]:
            raise ValueError(
                f"the coordinate {bad[0]!r:.40}; expected fractions of the image's width and height, from 0 to 1"
            )
        if len(words) < 7:
            self.notes.short.append(name)
        elif not is_background(label):
            self.shapes.append(Shape(label, [[float(word) for word in words[1:]]], relative=True))

    def _label(self, word: str) -> str:
        value = _number(word)
        if value is None or value < 0 or value % 1:
            raise ValueError(f"the class {word!r:.40}; expected a number from 0 on")
        if self.names is None:
            return str(int(value))
        if value >= len(self.names):
            raise ValueError(
                f"the class {word}; expected at most {len(self.names) - 1}, as classes are named"
            )
        return self.names[int(value)]
