"""Which layout is this? A catalogue of a data folder: samples, masks, side tables, submission format.

A layout is a function from a Tree (and the run-length dialect that was asked for, or None) to a Catalog, or to None
when the folder is not of its kind. It is recognised by what its files hold, not by what they are called. To add
one, write the function and a line in LAYOUTS (see CONTRIBUTING).
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from masksmith.core.arrays import Mask
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.data.decode.headers import image_size
from masksmith.data.decode.pictures import IMAGE_SUFFIXES, decode_image
from masksmith.data.dialect import (
    MAX_IMAGES,
    MAX_MASKS,
    Hints,
    Inferred,
    RleRows,
    check_dialect,
    group_rows,
    has_repeats,
    infer_dialect,
    need_rows,
    non_empty,
)
from masksmith.data.ids import check_id
from masksmith.data.masks import is_lossy, mask_levels
from masksmith.data.rle import DIALECTS, NO_RUNS
from masksmith.data.table import Table, need_column, parse_table
from masksmith.data.tree import Tree

ID_COLUMNS = ("id", "imageid", "image_id", "img", "image", "filename")
RLE_COLUMNS = ("rle_mask", "encodedpixels", "rle", "mask_rle", "annotation")
CLASS_COLUMNS = ("classid", "class_id")
MAX_TEXT = 200
"""Most signs of a text that is kept of an image: a column with longer ones names no group."""
_MAX_MASK_PIXELS = 2**26  # of all mask files that are decoded to find a dialect
_PAIRS = re.compile(r"\s*\d+\s+\d+(\s+\d+\s+\d+)*\s*", re.ASCII)


@dataclass(frozen=True)
class Sample:
    """One image; ``image`` and ``mask`` are paths in the data's Tree."""

    id: str
    image: str
    mask: str | None = None
    rle: list[str] | None = None
    """Run-length texts of its rows: none where the table says that it holds nothing, None where there is no table."""
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
    spelled: dict[str, str] = field(default_factory=dict)
    """Id -> how the judge writes it, where that is another text (``a.jpg``, ``a.jpg_1``)."""
    more: dict[str, str] = field(default_factory=dict)
    """Further columns and what each row holds in them (the one class)."""
    reason: str = ""
    """Why this dialect."""
    doubt: str = ""
    """What else fits, or is unusual."""
    asked: bool = False
    """Whether the dialect was asked for."""


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
        plain["train"] = [Sample(**_with_rows(sample)) for sample in value["train"]]
        plain["test"] = [Sample(**sample) for sample in value["test"]]
        plain["submission"] = SubmissionFormat(**value["submission"])
        return cls(**plain)


def _with_rows(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a sample of data.json as it is today: an older masksmith kept one text an image."""
    text = sample["rle"]
    return sample | {"rle": non_empty([text])} if isinstance(text, str) else sample


def _column(table: Table, names: Sequence[str]) -> str | None:
    return next((column for column in table.columns if column.lower() in names), None)


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
        path.name.replace("image", "mask"),
    )
    return [str(path.parent / name) for name in (*attached, *beside) if str(path.parent / name) != folder]


_TRAIN_IMAGES = (
    "train/images",
    "train/image",
    "train/imgs",
    "train_images",
    "train",
    "train_v2",
    "images",
    "imgs",
    "image",
)
_TEST_IMAGES = ("test/images", "test/image", "test/imgs", "test_images", "test", "test_v2")


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
            if column == id_column or (_named(column) and _reads_as_runs(table, column)):
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


def _reads_as_runs(table: Table, column: str) -> bool:
    """Whether a column holds run-lengths; one that is named so may have bad cells, which are refused one by one."""
    cells = [cell for row in table.rows if (cell := row[column].strip()) not in NO_RUNS]
    fitting = sum(_PAIRS.fullmatch(cell) is not None for cell in cells)
    return 2 * fitting >= max(1, len(cells)) if _named(column) else 0 < fitting == len(cells)


def _named(column: str) -> bool:
    return column.lower() in RLE_COLUMNS


def _rle_column(table: Table, *, bare: bool) -> str | None:
    """Return the column with run-lengths; ``bare`` also takes one by its name alone where all its cells are empty."""
    ordered = sorted(table.columns, key=_named, reverse=True)
    found = next((column for column in ordered if _reads_as_runs(table, column)), None)
    if found is None and bare:
        found = next((one for one in ordered if _named(one) and _all_empty(table, one)), None)
    return found


def _all_empty(table: Table, column: str) -> bool:
    return all(row[column].strip() in NO_RUNS for row in table.rows)


@dataclass(frozen=True)
class RunTable:
    """A table with a column of run-lengths: a row an image, an object, or an image and class."""

    path: str
    id_column: str
    rle_column: str
    class_column: str | None
    cells: list[str]
    """The ids as they stand there."""
    ids: list[str]
    """Ids of images."""
    classes: list[str]
    """The class of each row; none where rows have no class."""
    texts: list[str]

    @property
    def class_names(self) -> list[str]:
        """The classes, sorted."""
        return sorted(set(self.classes))


def _stem(cell: str) -> str:
    path = PurePosixPath(cell)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else cell


def _before_class(cell: str) -> str:
    return cell.rpartition("_")[0]


_ID_FORMS: tuple[Callable[[str], str], ...] = (
    str,
    _stem,
    _before_class,
    lambda cell: _stem(_before_class(cell)),
)
"""How a cell names an image: as it is, by its file, and either with the class behind it."""


def _run_table(table: Table, rle_column: str, ids: Collection[str]) -> RunTable | None:
    """Read a table with the run-lengths of images; None where no column holds ids."""
    best = max(
        (
            (column, form)
            for form in range(len(_ID_FORMS))
            for column in table.columns
            if column != rle_column
        ),
        key=lambda one: len({_ID_FORMS[one[1]](row[one[0]]) for row in table.rows} & set(ids)),
        default=None,
    )
    if best is None:
        return None
    id_column, form = best
    names = [_ID_FORMS[form](row[id_column]) for row in table.rows]
    if not set(names) & set(ids):
        named = _column(table, ID_COLUMNS)
        if named is None:
            return None
        id_column, form = named, 0
        names = [row[id_column] for row in table.rows]
    class_column = _column(table, CLASS_COLUMNS)
    cells = [row[id_column] for row in table.rows]
    classes = [row[class_column] for row in table.rows] if class_column else []
    if not classes and _ID_FORMS[form] in _ID_FORMS[2:]:
        classes = [cell.rpartition("_")[2] for cell in cells]
    return RunTable(
        table.path,
        id_column,
        rle_column,
        class_column,
        cells,
        names,
        classes,
        [row[rle_column] for row in table.rows],
    )


def need_one_class(*tables: RunTable) -> None:
    """Refuse tables with a row an image and class that hold several classes.

    Raises:
        InputError: They do; the message names the classes.
    """
    classes = sorted({name for table in tables for name in table.classes})
    if len(classes) > 1:
        raise InputError(
            f"{tables[0].path}: run-lengths of {len(classes)} classes ({', '.join(map(repr, classes))}), a row an "
            "image and class; masks of one class are read, keep the rows of one class in each table"
        )


def _refuse_unknown(table: RunTable, images: Collection[str]) -> None:
    unknown = set(table.ids) - set(images)
    if unknown:
        raise InputError(
            f"{table.path}: unknown id {_some(unknown)}: no training image of that name; "
            f"{len(images)} images were found, for example {_some(images)}"
        )


@dataclass(frozen=True)
class _Labels:
    """The run-lengths of the training images, and their dialect."""

    table: RunTable
    rows: dict[str, list[str]]
    hints: Hints
    looked_at: list[RleRows]

    @classmethod
    def read(cls, tree: Tree, table: RunTable, images: dict[str, str], masks: dict[str, str]) -> "_Labels":
        rows = group_rows(table.ids, table.texts)
        hints = Hints(
            table.rle_column,
            any(text.strip() == "-1" for text in table.texts),
            has_repeats(rows) and not table.classes,
            bool(table.classes),
        )
        return cls(table, rows, hints, _look(tree, table.path, rows, images, masks))

    def infer(self, asked: str | None) -> Inferred:
        """Return the dialect: the one asked for if nothing speaks against it, else the likeliest."""
        if asked is None:
            return infer_dialect(self.looked_at, self.hints)
        return check_dialect(self.looked_at, asked, self.hints)


def _look(
    tree: Tree, path: str, rows: dict[str, list[str]], images: dict[str, str], masks: dict[str, str]
) -> list[RleRows]:
    """Return what is looked at to find a dialect: images with objects, evenly spaced in the table."""
    told = [name for name, texts in rows.items() if name in images and non_empty(texts)]
    looked_at: list[RleRows] = []
    num_masks = pixels = 0
    for name in told[:: max(1, -(-len(told) // MAX_IMAGES))]:
        shape = image_size(tree.read(images[name]))
        if shape is None:
            continue
        mask = None
        pixels += shape[0] * shape[1]
        if name in masks and num_masks < MAX_MASKS and pixels <= _MAX_MASK_PIXELS:
            num_masks += 1
            mask = _foreground(tree, masks[name], shape)
        looked_at.append(RleRows(non_empty(rows[name]), shape, mask, f"{path}: id {name!r}"))
    return looked_at


def _foreground(tree: Tree, path: str, shape: tuple[int, int]) -> Mask | None:
    """Return a mask file's foreground, None where it is lossy, of another size or no mask: others refuse it."""
    raw = tree.read(path)
    if is_lossy(raw):
        return None
    try:
        levels = mask_levels(decode_image(raw, where=path), where=path)
    except InputError:
        return None
    return (levels > 0).astype(np.uint8) if levels.shape == shape else None


def _submission_format(
    sample: RunTable | None, labels: _Labels | None, test: dict[str, str], dialect: str | None
) -> SubmissionFormat:
    """Return what the judge expects, with the dialect that was asked for or fits."""
    table = sample or (labels.table if labels else None)
    id_column, rle_column = (table.id_column, table.rle_column) if table else ("id", "rle_mask")
    if labels:
        inferred = labels.infer(dialect)
    else:
        hints = Hints(rle_column, any(text.strip() == "-1" for text in (sample.texts if sample else ())))
        inferred = check_dialect([], dialect, hints) if dialect else infer_dialect([], hints)
    form = SubmissionFormat(
        id_column,
        rle_column,
        inferred.dialect,
        sorted(test),
        "no sample_submission.csv: ids are the test images in the order of their names",
        reason=inferred.reason if table else "",
        doubt=inferred.doubt,
        asked=dialect is not None,
    )
    return form if sample is None else _in_form(form, sample, labels, test)


def _in_form(
    form: SubmissionFormat, sample: RunTable, labels: _Labels | None, test: dict[str, str]
) -> SubmissionFormat:
    """Return the format with the sample submission's ids: those that stand there twice count once."""
    if not sample.ids:
        raise InputError(f"{sample.path}: no rows, so the test set is empty; expected one row a test image")
    absent = set(sample.ids) - set(test)
    if absent:
        raise InputError(
            f"{sample.path}: no test image for the id {_some(absent)}; {len(test)} test images were found"
        )
    need_one_class(*([labels.table] if labels else []), sample)
    first = dict(zip(reversed(sample.ids), reversed(sample.cells), strict=True))
    spelled = {name: first[name] for name in sample.ids if first[name] != name}
    more = {sample.class_column: sample.classes[0]} if sample.class_column else {}
    return replace(form, ids=list(dict.fromkeys(sample.ids)), source=sample.path, spelled=spelled, more=more)


def _samples(
    split: str,
    images: dict[str, str],
    masks: dict[str, str],
    rows: dict[str, list[str]],
    side: _Side,
) -> list[Sample]:
    return [
        Sample(
            check_id(name, where=repr(path)),
            path,
            masks.get(name),
            non_empty(rows[name]) if name in rows else None,
            side.values.get((split, name), {}),
            side.texts.get((split, name), {}),
        )
        for name, path in sorted(images.items())
    ]


@dataclass(frozen=True)
class _Tables:
    """The CSV files of a data folder."""

    read: dict[str, Table]
    errors: dict[str, InputError]


def _read_tables(tree: Tree) -> _Tables:
    tables = _Tables({}, {})
    for path in tree.files(suffixes=(".csv",)):
        try:
            tables.read[path] = parse_table(tree.read(path), where=path)
        except InputError as error:
            tables.errors[path] = error
    return tables


def _is_sample_name(path: str) -> bool:
    return "sample_submission" in path.lower()


def _sample_table(tables: _Tables, images: Collection[str], test: Collection[str]) -> RunTable | None:
    """Return the sample submission: by its name, else a table with run-lengths of the test images.

    Raises:
        InputError: One that is named so has no run-lengths or no ids.
    """
    found = []
    for path, table in tables.read.items():
        column = next(filter(_named, table.columns), None) or _rle_column(table, bare=True)
        if _is_sample_name(path) and column is None:
            need_column(table, "rle_mask")
        runs = _run_table(table, column, test) if column else None
        if _is_sample_name(path) and runs is None:
            need_column(table, "id")
        if runs is not None:
            known = len(set(runs.ids) & set(test))
            found.append((_is_sample_name(path), known, known > len(set(runs.ids) & set(images)), runs))
    named = [(known, runs) for is_named, known, _, runs in found if is_named]
    others = [(known, runs) for _, known, more, runs in found if more]
    return max(named or others, key=lambda one: one[0], default=(0, None))[1]


def _label_table(
    tree: Tree, tables: _Tables, images: dict[str, str], masks: dict[str, str], sample: RunTable | None
) -> _Labels | None:
    """Return the table with the run-lengths of the training images, None if there is none.

    A column without a known name beside a mask for each image is one only where it says the same as the masks: a
    box is also four whole numbers.
    """
    found: list[_Labels] = []
    for path, table in tables.read.items():
        if _is_sample_name(path) or (sample and path == sample.path):
            continue
        column = _rle_column(table, bare=not masks)
        runs = _run_table(table, column, images) if column else None
        redundant = 0 < len(images) == len(set(images) & set(masks))
        if runs is None or (redundant and not set(runs.ids) & set(images)):
            continue
        labels = _Labels.read(tree, runs, images, masks)
        if redundant and not _named(runs.rle_column) and not labels.infer(None).equal:
            continue
        found.append(labels)
    return max(found, key=lambda one: len(set(one.table.ids) & set(images)), default=None)


def kaggle_rle(tree: Tree, dialect: str | None = None) -> Catalog | None:
    """Kaggle: train and test images, and a table with run-lengths of either: training masks or a sample submission."""
    tables = _read_tables(tree)
    folder, images = _images_in(tree, _TRAIN_IMAGES) or ("", {})
    masks = _masks_of(tree, folder) if images else {}
    test = _images_in(tree, _TEST_IMAGES)
    sample = _sample_table(tables, images, test[1] if test else {})
    labels = _label_table(tree, tables, images, masks, sample)
    if sample is None and labels is None and not any(map(_is_sample_name, tables.errors)):
        return None
    for error in tables.errors.values():
        raise error
    if not images:
        raise InputError(f"{tree.root}: no training images; expected them in train.zip or train/images/")
    if labels is None and not masks:
        raise InputError(
            f"{tree.root}: no masks: neither a table with run-lengths of the images nor a folder of masks"
        )
    return _kaggle_catalog(tree, tables, images, masks, sample, labels, dialect)


def _kaggle_catalog(
    tree: Tree,
    tables: _Tables,
    images: dict[str, str],
    masks: dict[str, str],
    sample: RunTable | None,
    labels: _Labels | None,
    dialect: str | None,
) -> Catalog:
    test = _test_images(tree)
    notes = _stray_masks(masks, images)
    rows: dict[str, list[str]] = {}
    if labels is not None:
        _refuse_unknown(labels.table, images)
        need_one_class(labels.table)
        rows = dict(labels.rows)
    form = _submission_format(sample, labels, test, dialect)
    if labels is not None:
        need_rows(rows, form.dialect, where=labels.table.path)
        notes += _repeated(labels)
    if sample is not None and len(sample.ids) > len(form.ids):
        notes.append(
            f"{sample.path}: {len(sample.ids)} rows for {len(form.ids)} ids; repeated ones count once"
        )
    bare = set(images) - set(masks) - set(rows)
    if labels is not None and labels.table.classes and bare:
        notes.append(
            f"{len(bare)} images have no row in {labels.table.path}: read as without objects: {_some(bare)}"
        )
        rows |= {name: [] for name in bare}
    elif bare:
        raise InputError(
            f"{tree.root}: no mask for the training image {_some(bare)}; add masks or take the images out"
        )
    beside = {path: table for path, table in tables.read.items() if sample is None or path != sample.path}
    if labels is not None:
        beside[labels.table.path] = _without_runs(beside[labels.table.path], labels.table)
    side = _facts_beside(beside.values(), {"train": images, "test": test})
    return Catalog(
        root=str(tree.root.resolve()),
        layout="kaggle_rle",
        content_hash=tree.content_hash,
        train=_samples("train", images, masks, rows, side),
        test=_samples("test", test, {}, {}, side),
        submission=form,
        notes=notes + side.notes,
    )


def _without_runs(table: Table, runs: RunTable) -> Table:
    """Return a table with the ids of images, and without their run-lengths."""
    columns = [column for column in table.columns if column != runs.rle_column]
    rows = [row | {runs.id_column: name} for row, name in zip(table.rows, runs.ids, strict=True)]
    return Table(table.path, columns, rows)


def _repeated(labels: _Labels) -> list[str]:
    """Return a note on rows that stand twice, word for word."""
    count = sum(len(texts) - len({text.strip() for text in texts}) for texts in labels.rows.values())
    return [f"{labels.table.path}: {count} rows stand twice, word for word, and count once"] if count else []


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


def _facts_beside(tables: Iterable[Table], ids: Mapping[str, Collection[str]]) -> _Side:
    """Collect the columns of tables beside the images; the column with the most ids in it is the id column."""
    side = _Side()
    for given in tables:
        table, column = _with_ids(given, set().union(*ids.values()))
        if column is None:
            side.notes.append(f"{table.path}: none of its columns holds ids of images, so it is left out")
            continue
        found = _side_columns([table], column, ids)
        for key, values in found.values.items():
            side.values.setdefault(key, {}).update(values)
        for key, texts in found.texts.items():
            side.texts.setdefault(key, {}).update(texts)
        side.notes.extend(found.notes)
    return side


def paired_folders(tree: Tree, dialect: str | None = None) -> Catalog | None:
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
        tables = _read_tables(tree)
        side = _facts_beside(tables.read.values(), {"train": images, "test": test})
        return Catalog(
            root=str(tree.root.resolve()),
            layout="paired_folders",
            content_hash=tree.content_hash,
            train=_samples("train", images, masks, {}, side),
            test=_samples("test", test, {}, {}, side),
            submission=_submission_format(None, None, test, dialect),
            notes=_stray_masks(masks, images) + [str(error) for error in tables.errors.values()] + side.notes,
        )
    return None


LAYOUTS: dict[str, Callable[[Tree, str | None], Catalog | None]] = {
    "kaggle_rle": kaggle_rle,
    "paired_folders": paired_folders,
}


def read_catalog(root: Path, *, dialect: str | None = None) -> Catalog:
    """Recognise the layout of a data folder and list what is in it; no image is decoded, and few masks.

    Args:
        root: The data folder.
        dialect: Of the run-lengths, a key of DIALECTS; None infers it.

    Raises:
        InputError: The folder is empty, has no masks or no known layout, its tables contradict its images, or the
            dialect contradicts its tables.
    """
    if dialect is not None:
        look_up(DIALECTS, dialect, where="--dialect")
    tree = Tree(root)
    for layout in LAYOUTS.values():
        catalog = layout(tree, dialect)
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
