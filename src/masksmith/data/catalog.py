"""Which layout is this? A catalogue of a data folder: samples, masks, side tables, submission format.

A layout is a function from a Tree to a Catalog, or to None when the folder is not of its kind. To add
one, write the function and a line in LAYOUTS (see CONTRIBUTING).
"""

import csv
import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from masksmith.config import suggest
from masksmith.data.ids import check_id
from masksmith.data.images import IMAGE_SUFFIXES
from masksmith.data.tree import Tree
from masksmith.errors import InputError

ID_COLUMNS = ("id", "imageid", "image_id", "img", "image", "filename")
RLE_COLUMNS = ("rle_mask", "encodedpixels", "rle", "mask_rle", "annotation")
MAX_CELL = 2**26
"""Most signs of a CSV cell: the run-lengths of some 4 million runs."""
MAX_TEXT = 200
"""Most signs of a text that is kept of an image: a column with longer ones names no group."""


@dataclass(frozen=True)
class Sample:
    """One image; ``image`` and ``mask`` are paths in the data's Tree, ``rle`` the run-length text."""

    id: str
    image: str
    mask: str | None = None
    rle: str | None = None
    values: dict[str, float] = field(default_factory=dict)
    """Columns of numbers in the side tables (depths.csv: z)."""
    texts: dict[str, str] = field(default_factory=dict)
    """The other columns (a location, a patient); run-lengths are not among them."""


@dataclass(frozen=True)
class SubmissionFormat:
    """What the judge expects: columns, run-length dialect, and the ids in their order."""

    id_column: str
    rle_column: str
    dialect: str
    ids: list[str]
    source: str  # the file it was read from, or why it was assumed


@dataclass(frozen=True)
class Catalog:
    """Everything that is known of a data folder before an image is decoded."""

    root: str
    layout: str
    content_hash: str
    train: list[Sample]
    test: list[Sample]
    submission: SubmissionFormat
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists for ``data.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Catalog":
        """Rebuild a catalogue from ``data.json``."""
        plain = dict(value)
        plain["train"] = [Sample(**sample) for sample in value["train"]]
        plain["test"] = [Sample(**sample) for sample in value["test"]]
        plain["submission"] = SubmissionFormat(**value["submission"])
        return cls(**plain)


@dataclass(frozen=True)
class Table:
    """A CSV file read as text: an id like 0012 or 76e1428103 stays what it is."""

    path: str
    columns: list[str]
    rows: list[dict[str, str]]


def parse_table(raw: bytes, *, where: str) -> Table:
    """Parse a CSV file with a header line; all cells are text.

    Raises:
        InputError: Not UTF-8, no header, a cell of more than MAX_CELL signs, or a row with another number of cells.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not a UTF-8 text file (byte {error.start}); save it as CSV in UTF-8"
        ) from error
    csv.field_size_limit(MAX_CELL)  # for the whole process; Python's own is less than a large mask's runs
    reader = csv.reader(io.StringIO(text))
    try:
        lines = list(reader)
    except csv.Error as error:
        raise InputError(f"{where}: line {reader.line_num}: {error}; is it a CSV file?") from error
    if not lines:
        raise InputError(f"{where}: the file is empty; expected a header line with column names")
    columns = [column.strip() for column in lines[0]]
    if not any(columns):
        raise InputError(f"{where}: its first line is blank; expected a header line with column names")
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        if len(cells) != len(columns):
            raise InputError(
                f"{where}: line {number} has {len(cells)} cells, expected {len(columns)}: {columns}"
            )
        rows.append(dict(zip(columns, cells, strict=True)))
    return Table(where, columns, rows)


def _column(table: Table, names: Sequence[str]) -> str | None:
    return next((column for column in table.columns if column.lower() in names), None)


def need_column(table: Table, column: str) -> None:
    """Refuse a table without the column.

    Raises:
        InputError: The column is missing; the message lists those that are there.
    """
    if column not in table.columns:
        raise InputError(f"{table.path}: the column {column!r} is missing; {suggest(column, table.columns)}")


def by_stem(paths: Iterable[str], *, where: str) -> dict[str, str]:
    """Index image paths by stem (file name without its ending).

    Raises:
        InputError: Two files share a stem, so an id would be ambiguous.
    """
    stems: dict[str, str] = {}
    for path in paths:
        stem = PurePosixPath(path).stem
        if stem in stems:
            raise InputError(
                f"{where}: {stems[stem]!r} and {path!r} both have the id {stem!r}; keep one file an id"
            )
        stems[stem] = path
    return stems


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(repr(name) for name in listed[:3]) + (
        f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    )


def _images_in(tree: Tree, folders: Sequence[str]) -> tuple[str, dict[str, str]] | None:
    for folder in folders:
        found = tree.files(folder, suffixes=IMAGE_SUFFIXES)
        if found:
            return folder, by_stem(found, where=str(tree.root))
    return None


def _mask_folder(folder: str) -> list[str]:
    """Folder names that hold the masks of the images in ``folder``, likeliest first."""
    path = PurePosixPath(folder)
    beside = ("masks", "mask", "labels", "label", "annotations", "gt")
    attached = (
        f"{path.name}_masks",
        f"{path.name}_mask",
        f"{path.name}masks",
        f"{path.name}annot",
        f"{path.name}_labels",
    )
    return [str(path.parent / name) for name in (*attached, *beside) if str(path.parent / name) != folder]


_TRAIN_IMAGES = (
    "train/images",
    "train/image",
    "train/imgs",
    "train_images",
    "train",
    "images",
    "imgs",
    "image",
)
_TEST_IMAGES = ("test/images", "test/image", "test/imgs", "test_images", "test")


def _masks_of(tree: Tree, folder: str) -> dict[str, str]:
    found = _images_in(tree, _mask_folder(folder))
    return found[1] if found else {}


def _test_images(tree: Tree) -> dict[str, str]:
    found = _images_in(tree, _TEST_IMAGES)
    if found:
        return found[1]
    if tree.has("test") or tree.has("test_images"):
        raise InputError(f"{tree.root}: the test set is empty: expected images in test.zip or test/images/")
    return {}


def _stray_masks(masks: dict[str, str], images: dict[str, str]) -> list[str]:
    stray = set(masks) - set(images)
    return [f"{len(stray)} mask files have no image and are left out: {_some(stray)}"] if stray else []


_Key = tuple[str, str]
"""Split ("train" or "test") and id of an image: one id may be in both splits and is two images then."""


@dataclass(frozen=True)
class _Side:
    """What the side tables say: image -> column -> number or text, and what was left out."""

    values: dict[_Key, dict[str, float]] = field(default_factory=dict)
    texts: dict[_Key, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _keys_of(table: Table, name: str, ids: Mapping[str, Collection[str]]) -> list[_Key]:
    """Return the images that a table's row is about.

    Where the id is in both splits: the one that the name of the table begins with; both where it names none.
    """
    found = [split for split in ids if name in ids[split]]
    named = [split for split in found if PurePosixPath(table.path).stem.lower().startswith(split)]
    return [(split, name) for split in named or found]


def _side_columns(tables: Sequence[Table], id_column: str, ids: Mapping[str, Collection[str]]) -> _Side:
    """Collect the columns of the tables that have the id column; run-lengths and long texts are no facts.

    Args:
        tables: The tables.
        id_column: Their id column.
        ids: "train" and "test" -> the ids of the images.
    """
    side = _Side()
    for table in tables:
        if id_column not in table.columns:
            continue
        for column in table.columns:
            if column == id_column or column.lower() in RLE_COLUMNS:
                continue
            cells = _one_each(table, id_column, column)
            if cells is None:
                side.notes.append(f"{table.path}: the column {column!r}: an id has two values in it")
                continue
            numbers = _numbers(cells)
            are_short = all(len(cell) <= MAX_TEXT for cell in cells.values())
            for key in (key for name in cells for key in _keys_of(table, name, ids)):
                if numbers is not None:
                    side.values.setdefault(key, {})[column] = numbers[key[1]]
                if are_short:  # numbers too: 007 and 7 are two groups
                    side.texts.setdefault(key, {})[column] = cells[key[1]]
    return side


def _one_each(table: Table, id_column: str, column: str) -> dict[str, str] | None:
    """Return id -> cell, None where an id has two different ones."""
    cells: dict[str, str] = {}
    for row in table.rows:
        if cells.setdefault(row[id_column], row[column]) != row[column]:
            return None
    return cells


def _numbers(cells: dict[str, str]) -> dict[str, float] | None:
    """Return the cells as numbers, None where one is none."""
    try:
        numbers = {name: float(cell) for name, cell in cells.items()}
    except ValueError:
        return None
    finite = all(map(math.isfinite, numbers.values()))  # "nan" and "inf" are numbers to Python
    return numbers if finite else None


def _rle_texts(table: Table, id_column: str, rle_column: str, images: dict[str, str]) -> dict[str, str]:
    need_column(table, id_column)
    need_column(table, rle_column)
    texts: dict[str, str] = {}
    for row in table.rows:
        name = row[id_column]
        if name in texts:
            raise InputError(f"{table.path}: the id {name!r} stands twice; expected one row an image")
        texts[name] = row[rle_column]
    unknown = set(texts) - set(images)
    if unknown:
        raise InputError(
            f"{table.path}: unknown id {_some(unknown)}: no training image of that name; "
            f"{len(images)} images were found, for example {_some(images)}"
        )
    return texts


def _submission_format(sample: Table | None, labels: Table | None, test: dict[str, str]) -> SubmissionFormat:
    table = sample or labels
    id_column = (table and _column(table, ID_COLUMNS)) or (table.columns[0] if table else "id")
    rle_column = (table and _column(table, RLE_COLUMNS)) or "rle_mask"
    if sample is None:
        source = "no sample_submission.csv: ids are the test images in the order of their names"
        return SubmissionFormat(id_column, rle_column, dialect_of(rle_column), sorted(test), source)
    if not _column(sample, ID_COLUMNS):
        need_column(sample, "id")
    if not _column(sample, RLE_COLUMNS):
        need_column(sample, "rle_mask")
    ids = [row[id_column] for row in sample.rows]
    if not ids:
        raise InputError(f"{sample.path}: no rows, so the test set is empty; expected one row a test image")
    twice = {name for name in ids if ids.count(name) > 1} if len(set(ids)) != len(ids) else set()
    if twice:
        raise InputError(f"{sample.path}: {_some(twice)} stands twice; expected each test id once")
    absent = set(ids) - set(test)
    if absent:
        raise InputError(
            f"{sample.path}: no test image for the id {_some(absent)}; {len(test)} test images were found"
        )
    return SubmissionFormat(id_column, rle_column, dialect_of(rle_column), ids, sample.path)


def dialect_of(rle_column: str) -> str:
    """Return the run-length dialect that goes with a column's name."""
    return "siim" if rle_column.lower() == "encodedpixels" else "tgs"


def _samples(
    split: str,
    images: dict[str, str],
    masks: dict[str, str],
    rle_texts: dict[str, str],
    side: _Side,
) -> list[Sample]:
    return [
        Sample(
            check_id(name, where=repr(path)),
            path,
            masks.get(name),
            rle_texts.get(name),
            side.values.get((split, name), {}),
            side.texts.get((split, name), {}),
        )
        for name, path in sorted(images.items())
    ]


def kaggle_rle(tree: Tree) -> Catalog | None:
    """Kaggle: train and test images, ``train.csv`` and ``sample_submission.csv`` with run-lengths."""
    paths = tree.files(suffixes=(".csv",))
    sample_path = next((path for path in paths if "sample_submission" in path.lower()), None)
    label_path = next((path for path in paths if PurePosixPath(path).stem.lower().startswith("train")), None)
    if sample_path is None and label_path is None:
        return None
    tables = {path: parse_table(tree.read(path), where=path) for path in paths}
    sample = tables[sample_path] if sample_path else None
    labels = tables[label_path] if label_path else None
    found = _images_in(tree, _TRAIN_IMAGES)
    if found is None:
        raise InputError(f"{tree.root}: no training images; expected them in train.zip or train/images/")
    folder, images = found
    masks = _masks_of(tree, folder)
    if labels is None and not masks:
        raise InputError(f"{tree.root}: no masks: neither a train.csv with run-lengths nor a folder of masks")
    test = _test_images(tree)
    form = _submission_format(sample, labels, test)
    texts = _rle_texts(labels, form.id_column, form.rle_column, images) if labels else {}
    bare = set(images) - set(masks) - set(texts)
    if bare:
        raise InputError(
            f"{tree.root}: no mask for the training image {_some(bare)}; add masks or take the images out"
        )
    others = [table for path, table in tables.items() if path != sample_path]
    side = _side_columns(others, form.id_column, {"train": images, "test": test})
    return Catalog(
        root=str(tree.root.resolve()),
        layout="kaggle_rle",
        content_hash=tree.content_hash,
        train=_samples("train", images, masks, texts, side),
        test=_samples("test", test, {}, {}, side),
        submission=form,
        notes=_stray_masks(masks, images) + side.notes,
    )


def _nested_image_folders(tree: Tree) -> list[str]:
    """Deeper folders of images, those of a training set first, those of a test or validation set left out."""
    found = [
        PurePosixPath(folder) for folder in tree.folders if PurePosixPath(folder).name in ("images", "imgs")
    ]
    kept = [path for path in found if not {"test", "val", "valid", "validation"} & set(path.parts)]
    return [str(path) for path in sorted(kept, key=lambda path: ("train" not in path.parts, path))]


def _with_ids(table: Table, ids: set[str]) -> tuple[Table, str | None]:
    """Return the table with ids in its id column, and that column: the one with the most ids, or names of files."""
    for id_of in (str, lambda cell: PurePosixPath(cell).stem):
        known = {column: len(ids & {id_of(row[column]) for row in table.rows}) for column in table.columns}
        column = max(known, key=lambda one: known[one])
        if known[column]:
            rows = [row | {column: id_of(row[column])} for row in table.rows]
            return Table(table.path, table.columns, rows), column
    return table, None


def _tables_beside(tree: Tree, ids: Mapping[str, Collection[str]]) -> _Side:
    """Read the tables beside a folder of pairs; the column with the most ids in it is the id column."""
    side = _Side()
    for path in tree.files(suffixes=(".csv",)):
        try:
            table = parse_table(tree.read(path), where=path)
        except InputError as error:
            side.notes.append(str(error))
            continue
        table, column = _with_ids(table, set().union(*ids.values()))
        if column is None:
            side.notes.append(f"{path}: none of its columns holds ids of images, so it is left out")
        else:
            found = _side_columns([table], column, ids)
            for key, values in found.values.items():
                side.values.setdefault(key, {}).update(values)
            for key, texts in found.texts.items():
                side.texts.setdefault(key, {}).update(texts)
            side.notes.extend(found.notes)
    return side


def paired_folders(tree: Tree) -> Catalog | None:
    """A folder of images and a folder of masks with the same file names; ``test/`` and tables by id are optional."""
    for folder in (*_TRAIN_IMAGES, *_nested_image_folders(tree)):
        images = by_stem(tree.files(folder, suffixes=IMAGE_SUFFIXES), where=str(tree.root))
        masks = _masks_of(tree, folder) if images else {}
        if not masks:
            continue
        bare = set(images) - set(masks)
        if bare:
            raise InputError(
                f"{tree.root}: no mask for the image {_some(bare)} of {folder}/; add masks or take the images out"
            )
        test = _test_images(tree)
        side = _tables_beside(tree, {"train": images, "test": test})
        return Catalog(
            root=str(tree.root.resolve()),
            layout="paired_folders",
            content_hash=tree.content_hash,
            train=_samples("train", images, masks, {}, side),
            test=_samples("test", test, {}, {}, side),
            submission=_submission_format(None, None, test),
            notes=_stray_masks(masks, images) + side.notes,
        )
    return None


LAYOUTS: dict[str, Callable[[Tree], Catalog | None]] = {
    "kaggle_rle": kaggle_rle,
    "paired_folders": paired_folders,
}


def read_catalog(root: Path) -> Catalog:
    """Recognise the layout of a data folder and list what is in it; no image is decoded.

    Raises:
        InputError: The folder is empty, has no masks or no known layout, or its tables contradict its images.
    """
    tree = Tree(root)
    for layout in LAYOUTS.values():
        catalog = layout(tree)
        if catalog is not None:
            return catalog
    images = [path for folder in tree.folders for path in tree.files(folder, suffixes=IMAGE_SUFFIXES)]
    if not tree.folders:
        raise InputError(
            f"{root}: the folder is empty; expected images and masks, or a competition's download"
        )
    if images:
        raise InputError(
            f"{root}: {len(images)} images (for example {images[0]!r}) but no masks: expected a folder 'masks' beside "
            "the images with the same file names, or a train.csv with run-lengths"
        )
    raise InputError(
        f"{root}: no images ({', '.join(IMAGE_SUFFIXES)}) in {len(tree.folders)} folders; "
        f"known layouts: {', '.join(LAYOUTS)}"
    )
