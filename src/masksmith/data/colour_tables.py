"""Tables of the colours of classes that lie beside masks in colours: CSV, text (CVAT's labelmap.txt) and JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.table import Table, parse_table
from masksmith.data.tree import Tree

Colours = dict[str, list[int]]
"""Class -> red, green and blue, in the order of the table."""

_NAMED = re.compile(r"class|colou?r|label|palette|legend|categor|mapping|info|config", re.IGNORECASE)
_PARTS = (("r", "g", "b"), ("red", "green", "blue"))
_NAMES = ("readable", "name", "class", "label", "category", "class_name", "label_name", "classes")
_WHOLE = ("color", "colour", "rgb", "color_rgb", "rgb_color", "hex")
_BEFORE = re.compile(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\S.*)")
_BEHIND = re.compile(r"(.*\S?)\s*[:,;\s]\s*(\d+)[\s,;]+(\d+)[\s,;]+(\d+)(?::.*)?")
_MOST_CLASSES = 255


def find_colour_table(tree: Tree) -> tuple[Colours, str]:
    """Return the colours of classes of the first table of them in the root or a folder beside the images, and its path.

    Raises:
        InputError: A table gives two classes one colour, or has parts of colours above 255.
    """
    for path in sorted(
        (path for folder in tree.folders for path in tree.files(folder, suffixes=(".csv", ".txt", ".json"))),
        key=lambda path: (path.count("/"), path),
    ):
        if path.count("/") > 2 or not _NAMED.search(PurePosixPath(path).name):
            continue
        colours = read_colour_table(tree.read(path), where=path)
        if len(colours) > 1:
            return check_colours(colours, where=path), path
    return {}, ""


_LIST = re.compile(
    r"(class|label|obj|object|categor(y|ie))?[-_ ]?(classes|labels|names|categories)", re.IGNORECASE
)
_OF_CLASSES = re.compile(r"class|label|categor|legend", re.IGNORECASE)
_VALUES = (
    "pixel value",
    "pixel_value",
    "value",
    "index",
    "id",
    "class_id",
    "label_id",
    "code",
    "label",
    "number",
)


def find_value_names(tree: Tree) -> tuple[dict[int, str], str]:
    """Return value -> class of the first CSV table of them in the root or a folder beside the images, and its path.

    Its name tells that it is one of classes (``_classes.csv``), one column has different whole numbers from 0 to 255
    and is called so, and another the classes.
    """
    for path in sorted(tree.every(".csv"), key=lambda path: (path.count("/"), path)):
        if path.count("/") > 2 or not _OF_CLASSES.search(PurePosixPath(path).name):
            continue
        try:
            table = parse_table(tree.read(path), where=path)
        except InputError:
            continue
        plain = {column.strip().lower(): column for column in table.columns}
        name = next((plain[one] for one in _NAMES if one in plain), None)
        value = next((plain[one] for one in _VALUES if one in plain and plain[one] != name), None)
        if name is None or value is None:
            continue
        cells = [row[value].strip() for row in table.rows]
        names = [row[name].strip() for row in table.rows]
        numbers = [int(cell) for cell in cells if cell.isdecimal() and int(cell) <= _MOST_CLASSES]
        distinct = len({*numbers}) == len(cells) == len({*names}) and all(names)
        if len(cells) > 1 and distinct:
            return dict(zip(numbers, names, strict=True)), path
    return {}, ""


def find_class_list(tree: Tree) -> tuple[list[str], str]:
    """Return the names of a text file that is called so and has one a line (classes.txt), and its path; [] without one.

    What is not judged (``__ignore__``) stands for no value.
    """
    for path in sorted(tree.every(".txt", ".names"), key=lambda path: (path.count("/"), path)):
        if path.count("/") > 2 or not _LIST.fullmatch(PurePosixPath(path).stem):
            continue
        try:
            lines = [line.strip() for line in tree.read(path).decode("utf-8-sig").splitlines()]
        except (InputError, UnicodeDecodeError):
            continue
        names = [line for line in lines if line and line.lower() != "__ignore__"]
        words = all(re.fullmatch(r"[^\d\s,;:][^,;:]{0,59}", name) for name in names)
        if 1 < len(names) == len({*names}) <= _MOST_CLASSES and words:
            return names, path
    return [], ""


def read_colour_table(raw: bytes, *, where: str) -> Colours:
    """Return the colours of classes in a file, by the ending of its name; none where it is no such table."""
    try:
        if where.lower().endswith(".csv"):
            return _of_table(parse_table(raw, where=where))
        text = raw.decode("utf-8-sig")
        return _of_json(json.loads(text)) if where.lower().endswith(".json") else _of_lines(text.splitlines())
    except (InputError, UnicodeDecodeError, ValueError, RecursionError):
        return {}


def check_colours(colours: Mapping[str, list[int]], *, where: str) -> Colours:
    """Refuse what is no table of colours.

    Raises:
        InputError: A part above 255, one colour of two classes, or too many classes.
    """
    seen: dict[tuple[int, ...], str] = {}
    for name, rgb in colours.items():
        if len(rgb) != 3 or not all(0 <= part <= 255 for part in rgb):
            raise InputError(
                f"{where}: the colour {rgb} of {name!r}; expected red, green and blue from 0 to 255"
            )
        other = seen.setdefault(tuple(rgb), name)
        if other != name:
            raise InputError(f"{where}: {other!r} and {name!r} both have the colour {rgb}; give each its own")
    if len(colours) > _MOST_CLASSES:
        raise InputError(f"{where}: {len(colours)} classes; at most {_MOST_CLASSES} are read")
    return dict(colours)


def _of_table(table: Table) -> Colours:
    plain = {column.strip().lower(): column for column in table.columns}
    parts = next((names for names in _PARTS if set(names) <= plain.keys()), None)
    whole = next((name for name in _WHOLE if name in plain), None)
    if parts is None and whole is None:
        return {}
    taken = {*(parts or ()), whole}
    name = next((one for one in _NAMES if one in plain and one not in taken), None)
    name = name or next((one for one in plain if one not in taken), None)
    if name is None:
        return {}
    found: Colours = {}
    for row in table.rows:
        rgb = [int(row[plain[part]]) for part in parts] if parts else _colour(row[plain[whole or ""]])
        if rgb is None:
            return {}
        found[row[plain[name]].strip()] = rgb
    return found


def _of_lines(lines: Iterable[str]) -> Colours:
    found: Colours = {}
    for line in (line.strip() for line in lines):
        if not line or line.startswith("#"):
            continue
        if match := _BEFORE.fullmatch(line):
            found[match[4].strip()] = [int(match[at]) for at in (1, 2, 3)]
        elif (match := _BEHIND.fullmatch(line)) and match[1].strip():
            found[match[1].strip()] = [int(match[at]) for at in (2, 3, 4)]
        else:
            return {}
    return found


def _of_json(value: object) -> Colours:
    lists = [one for one in value.values() if isinstance(one, dict | list)] if isinstance(value, dict) else []
    if len(lists) == 1 and (inner := _of_json(lists[0])):  # {"labels": [...], "version": 1.2}
        return inner
    if isinstance(value, dict):
        pairs = [(name, _colour(colour)) for name, colour in value.items()]
    elif isinstance(value, list) and all(isinstance(one, dict) for one in value):
        pairs = [(_first(one, _NAMES), _colour(_first(one, _WHOLE))) for one in value]
    else:
        return {}
    found = {str(name): colour for name, colour in pairs if name is not None and colour is not None}
    return found if len(found) == len(pairs) else {}


def _first(row: Mapping[str, object], names: Iterable[str]) -> object:
    return next((row[name] for name in names if name in row), None)


def _colour(value: object) -> list[int] | None:
    if isinstance(value, str):
        if match := re.fullmatch(r"#?([0-9a-fA-F]{6})", value.strip()):
            number = int(match[1], 16)
            return [number >> 16, number >> 8 & 255, number & 255]
        parts = re.findall(r"\d+", value)
        return [int(part) for part in parts] if len(parts) == 3 else None
    if isinstance(value, list) and len(value) == 3 and all(type(part) is int for part in value):
        return [*value]
    return None
