"""Where masks to be scored come from: a folder of mask files, or a table of run-lengths; one image is read at a time.

A source has ids and gives each one's Picture: numbers, colours or planes as the file holds them. What they mean is
found afterwards, over both sources (see ``meaning``).
"""

import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from masksmith.core.arrays import Int, Shaped
from masksmith.core.errors import InputError
from masksmith.data.decode.palette import decode_indices, has_palette
from masksmith.data.decode.pictures import IMAGE_SUFFIXES, decode_image, is_grey
from masksmith.data.dialect import (
    Hints,
    Inferred,
    RleRows,
    check_dialect,
    has_repeats,
    infer_dialect,
    need_rows,
    non_empty,
)
from masksmith.data.findings import some
from masksmith.data.masks import is_lossy
from masksmith.data.rle import decode, decode_rows
from masksmith.data.run_tables import CLASS_COLUMNS, ID_COLUMNS, RLE_COLUMNS
from masksmith.data.table import Table, need_column, parse_table
from masksmith.data.tree import Tree

MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
Shape = tuple[int, int]
Kind = Literal["numbers", "colours", "planes"]

_TOGETHER = ("imageid_classid", "image_label", "id_class", "image_class")
"""Columns whose cells are an id and a class, joined by the last "_"."""
_CLASS_COLUMNS = (*CLASS_COLUMNS, "class", "label")
_RLE_COLUMNS = (*RLE_COLUMNS, "segmentation", "predicted")
_SIZE_COLUMNS = ("height", "width")


@dataclass(frozen=True)
class Picture:
    """What a source holds of an image."""

    kind: Kind
    """Numbers (h, w); colours (h, w) as red * 65536 + green * 256 + blue; or planes (h, w, k)."""
    array: Shaped[np.ndarray, "h w *k"]
    lossy: bool = False
    """Whether it is a JPEG."""

    @property
    def shape(self) -> Shape:
        """(height, width)."""
        return self.array.shape[0], self.array.shape[1]


# --- folders ----------------------------------------------------------------------------------------------


@dataclass
class FolderMasks:
    """Mask files, ``<id>.png`` as a rule: of each id one, one a class (``<class>/<id>.png``), or one an object."""

    path: Path
    files: dict[str, list[str]]
    """Id -> its files: one, or one a class, or its objects'."""
    planes: list[str]
    """Names of the classes that have a file each; none where an id has one file."""
    objects: bool
    """Whether each of an id's files is an object."""
    tree: Tree
    as_planes: bool = False
    """Whether three channels are three classes and not a colour."""
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = sorted(self.files)

    def where(self, name: str) -> str:
        """Return what to call an image's mask in a message."""
        files = self.files[name]
        return str(self.path / files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")

    def read(self, name: str) -> Picture:
        """Read an image's mask; of files of classes or objects all at once."""
        pictures = [
            _decode(self.tree.read(file), where=str(self.path / file), as_planes=self.as_planes)
            for file in self.files[name]
        ]
        if not (self.planes or self.objects):
            return pictures[0]
        for file, picture in zip(self.files[name], pictures, strict=True):
            if picture.kind != "numbers" or picture.shape != pictures[0].shape:
                raise InputError(
                    f"{self.path / file}: {_text(picture)}; expected one channel of "
                    f"{pictures[0].shape[0]}x{pictures[0].shape[1]} as in the other files of {name!r}"
                )
        masks = [one.array >= 128 if one.lossy else one.array for one in pictures]
        if self.planes:
            return Picture("planes", np.stack(masks, axis=-1))
        return Picture("numbers", paint_objects([mask != 0 for mask in masks], pictures[0].shape))


def _text(picture: Picture) -> str:
    channels = "" if picture.array.ndim == 2 else f"x{picture.array.shape[2]}"
    return f"{picture.kind} of {picture.shape[0]}x{picture.shape[1]}{channels}"


def open_folder(path: Path, *, as_planes: bool) -> FolderMasks:
    """Find the masks of a folder: its files, at any depth, by their names without the ending.

    Args:
        path: The folder; zip files in it stay closed.
        as_planes: Read three channels as three classes that may overlap, not as a colour.

    Raises:
        InputError: No mask file, or two of one id.
    """
    tree = Tree(path)
    files = [file for folder in tree.folders for file in tree.files(folder, suffixes=MASK_SUFFIXES)]
    if not files:
        raise InputError(
            f"{path}: no masks; expected files named by id, such as a.png ({', '.join(MASK_SUFFIXES)})"
        )
    parts = [PurePosixPath(file) for file in files]
    if objects := _object_files(parts):
        return FolderMasks(path, objects, [], objects=True, tree=tree, as_planes=as_planes)
    stems = Counter(part.stem for part in parts)
    twice = [stem for stem, count in stems.items() if count > 1]
    classes = sorted({part.parts[0] for part in parts if len(part.parts) == 2})
    if twice and len(classes) > 1 and "images" not in classes and all(len(part.parts) == 2 for part in parts):
        return FolderMasks(
            path, _class_files(path, parts, classes), classes, objects=False, tree=tree, as_planes=as_planes
        )
    if twice:
        named = [str(part) for part in parts if part.stem == twice[0]]
        raise InputError(
            f"{path}: {len(twice)} ids have several files, such as {twice[0]!r}: {some(named)}; expected one mask an "
            "id, or a folder a class; name the folder that holds the masks"
        )
    by_id = {part.stem: [file] for part, file in zip(parts, files, strict=True)}
    return FolderMasks(path, by_id, [], objects=False, tree=tree, as_planes=as_planes)


def _object_files(parts: list[PurePosixPath]) -> dict[str, list[str]]:
    """Return id -> its files ``<id>/masks/….png``, one an object; beside them may lie ``<id>/images/<id>.png``."""
    nested = all(len(part.parts) >= 3 and part.parts[-2] in ("masks", "images") for part in parts)
    if not nested or any(part.parts[-2] == "images" and part.stem != part.parts[-3] for part in parts):
        return {}
    objects: dict[str, list[str]] = {}
    for part in parts:
        if part.parts[-2] == "masks":
            objects.setdefault(part.parts[-3], []).append(str(part))
    return objects


def _class_files(path: Path, parts: list[PurePosixPath], classes: list[str]) -> dict[str, list[str]]:
    found: dict[str, dict[str, str]] = {}
    for part in parts:
        if found.setdefault(part.stem, {}).setdefault(part.parts[0], str(part)) != str(part):
            raise InputError(f"{path}: {part.parts[0]} has two files of the id {part.stem!r}; expected one")
    absent = [
        f"{kind}/{stem}.png" for stem, files in sorted(found.items()) for kind in classes if kind not in files
    ]
    if absent:
        raise InputError(
            f"{path}: a folder a class ({', '.join(classes)}), and {len(absent)} masks are missing: "
            f"{', '.join(absent)}; an empty mask is a file too"
        )
    return {stem: [files[kind] for kind in classes] for stem, files in found.items()}


def _decode(raw: bytes, *, where: str, as_planes: bool) -> Picture:
    if PurePosixPath(where).suffix.lower() == ".npy":
        return _decode_npy(raw, where=where)
    if has_palette(raw):
        return Picture("numbers", decode_indices(raw, where=where))
    image = decode_image(raw, where=where)
    if image.dtype.kind not in "iu":
        raise InputError(f"{where}: a mask of {image.dtype}; expected whole numbers, convert it")
    channels = image.shape[2]
    if channels == 1 or (channels == 3 and not as_planes and is_grey(image)):
        return Picture("numbers", image[..., 0], is_lossy(raw))
    if channels == 3 and not as_planes and image.max() > 1:
        return Picture("colours", _packed(image, where=where), is_lossy(raw))
    return Picture("planes", image, is_lossy(raw))


def _packed(image: Shaped[np.ndarray, "h w 3"], *, where: str) -> Int[np.ndarray, "h w"]:
    if image.dtype != np.uint8:
        raise InputError(f"{where}: colours of {image.dtype}; expected 8 bits, or one channel")
    return image.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def _decode_npy(raw: bytes, *, where: str) -> Picture:
    try:
        array = np.load(io.BytesIO(raw), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise InputError(f"{where}: not a whole .npy file ({error}); write it again") from error
    if (
        not isinstance(array, np.ndarray)
        or array.dtype.kind not in "iub"
        or array.ndim not in (2, 3)
        or not array.size
    ):
        shape = getattr(array, "shape", "?")
        raise InputError(
            f"{where}: an array of {getattr(array, 'dtype', type(array).__name__)} and shape {shape}; expected whole "
            "numbers of shape (h, w), or (h, w, classes); threshold probabilities first"
        )
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.ndim == 3 and array.shape[2] > 1:
        return Picture("planes", array)
    return Picture("numbers", array.reshape(array.shape[:2]))


def paint_objects(masks: list[Shaped[np.ndarray, "h w"]], shape: Shape) -> Int[np.ndarray, "h w"]:
    """Return a map of objects 1, 2 …; a pixel that several claim is the smallest one's, so that none is hidden."""
    labels = np.zeros(shape, np.int32)
    for number, mask in enumerate(sorted(masks, key=lambda one: -int(np.count_nonzero(one))), start=1):
        labels[mask != 0] = number
    return labels


# --- tables of run-lengths --------------------------------------------------------------------------------


@dataclass
class TableMasks:
    """A table with a row an image, an object, or an image and class."""

    path: Path
    rows: dict[str, dict[str, list[str]]]
    """Id -> class ("" where rows have none) -> texts, those that are empty too."""
    column: str
    """Of the run-lengths."""
    shapes: Mapping[str, Shape]
    """Id -> (height, width), where the table tells."""
    planes: list[str] = field(default_factory=list)
    """Classes, where there are several (see same_classes)."""
    objects: bool = False
    """Whether each row is an object."""
    dialect: str = ""
    shape_of: Callable[[str], Shape] | None = None
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = list(self.rows)

    @property
    def kinds(self) -> list[str]:
        """Names of its classes."""
        return sorted({kind for kinds in self.rows.values() for kind in kinds}, key=_natural)

    def where(self, name: str) -> str:
        """Return what to call an image's mask in a message."""
        return f"{self.path}: id {name!r}"

    def read(self, name: str) -> Picture:
        """Paint an image's run-lengths; ``dialect`` and ``shape_of`` are set by then."""
        assert self.shape_of is not None
        shape, told = self.shape_of(name), self.rows[name]
        if self.objects:
            texts = non_empty([text for texts in told.values() for text in texts])
            where = self.where(name)
            masks = [decode(text, shape=shape, dialect=self.dialect, where=where) for text in texts]
            return Picture("numbers", paint_objects(masks, shape))
        masks = [
            decode_rows(
                non_empty(told.get(kind, [])), shape=shape, dialect=self.dialect, where=self.where(name)
            )
            for kind in self.planes or [""]
        ]
        return Picture("planes", np.stack(masks, axis=-1)) if self.planes else Picture("numbers", masks[0])

    @property
    def has_repeats(self) -> bool:
        """Whether an image has several rows (of a class)."""
        return has_repeats(self.by_row)

    @property
    def by_row(self) -> dict[str, list[str]]:
        """Id, with its class where there are several, -> its texts."""
        return {
            f"{name}_{kind}" if kind else name: texts
            for name, kinds in self.rows.items()
            for kind, texts in kinds.items()
        }


Source = FolderMasks | TableMasks


def open_table(path: Path) -> TableMasks:
    """Read a table of run-lengths.

    Raises:
        InputError: No such file, no ids, no run-lengths, no rows, or sizes that are no whole numbers.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a submission in CSV, or a folder of masks")
    table = parse_table(path.read_bytes(), where=str(path))
    together, rle_column = _find(table, _TOGETHER), _column(table, _RLE_COLUMNS)
    id_column = together or _column(table, ID_COLUMNS)
    class_column = None if together else _find(table, _CLASS_COLUMNS)
    rows: dict[str, dict[str, list[str]]] = {}
    for row in table.rows:
        name, kind = row[id_column], row[class_column] if class_column else ""
        if together:
            name, joint, kind = name.rpartition("_")
            if not joint:
                raise InputError(
                    f"{path}: {kind!r} in the column {together!r}; expected an id, _ and a class"
                )
        rows.setdefault(name, {}).setdefault(kind, []).append(row[rle_column])
    if not rows:
        raise InputError(f"{path}: no rows; expected one row an image")
    return TableMasks(path, rows, rle_column, _sizes(table, id_column, together is not None))


def same_classes(tables: list[TableMasks]) -> None:
    """Give tables the classes that are in any of them; where that is one, they hold plain masks.

    Raises:
        InputError: One of them has no classes, and another has several.
    """
    names = sorted({kind for table in tables for kind in table.kinds}, key=_natural)
    several = [table for table in tables if len(table.kinds) > 1]
    bare = [table for table in tables if "" in table.kinds]
    if several and bare:
        raise InputError(
            f"{bare[0].path}: rows without a class, and {several[0].path} has {len(several[0].kinds)} classes "
            f"({some(several[0].kinds)}); expected a column ClassId, or ids such as a.jpg_1 in a column ImageId_ClassId"
        )
    for table in tables:
        table.planes = names if len(names) > 1 and not bare else []
        if not table.planes:
            table.rows = {
                name: {"": [text for texts in kinds.values() for text in texts]}
                for name, kinds in table.rows.items()
            }


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isascii() and name.isdigit() else (10**9, name)


def _find(table: Table, names: tuple[str, ...]) -> str | None:
    return next((column for column in table.columns if column.lower() in names), None)


def _column(table: Table, names: tuple[str, ...]) -> str:
    column = _find(table, names)
    if column is None:
        need_column(table, names[0])
    assert column is not None
    return column


def _sizes(table: Table, id_column: str, together: bool) -> dict[str, Shape]:
    columns = [_find(table, (name,)) for name in _SIZE_COLUMNS]
    if None in columns:
        return {}
    sizes = {}
    for row in table.rows:
        cells = [row[str(column)] for column in columns]
        if not all(cell.isascii() and cell.isdigit() and int(cell) > 0 for cell in cells):
            raise InputError(
                f"{table.path}: a size of {cells[0]!r} x {cells[1]!r}; expected whole numbers above 0"
            )
        name = row[id_column]
        sizes[name.rpartition("_")[0] if together else name] = (int(cells[0]), int(cells[1]))
    return sizes


def infer_table_dialect(table: TableMasks, *, asked: str | None) -> Inferred:
    """Find the dialect of a table whose ``shape_of`` is set, or check the one that was asked for."""
    rows = table.by_row
    texts = [text.strip() for found in rows.values() for text in found]
    hints = Hints(table.column, "-1" in texts, has_repeats(rows), by_class=bool(table.planes))
    assert table.shape_of is not None
    images = [
        RleRows(told, table.shape_of(name), where=table.where(name))
        for name, kinds in table.rows.items()
        for texts in kinds.values()
        if (told := non_empty(texts))
    ]
    return infer_dialect(images, hints) if asked is None else check_dialect(images, asked, hints)


def read_as(table: TableMasks, dialect: str) -> None:
    """Read a table in a dialect.

    Raises:
        InputError: An id with more rows than the dialect has, or with an empty row beside runs.
    """
    need_rows(table.by_row, dialect, where=str(table.path))
    table.dialect = dialect
