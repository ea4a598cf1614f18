"""Kaggle's layout: folders or archives of images, and CSV tables with the run-lengths of masks."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np

from masksmith.core.arrays import Shaped
from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, LabelRow, SubmissionFormat
from masksmith.data.decode.headers import image_size
from masksmith.data.decode.pictures import decode_image
from masksmith.data.decode.reader import ImageReader
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.dialect import (
    MAX_IMAGES,
    MAX_MASKS,
    Hints,
    Inferred,
    RleRows,
    check_dialect,
    further_doubts,
    group_rows,
    has_repeats,
    infer_dialect,
    need_rows,
    non_empty,
)
from masksmith.data.findings import Finding, some
from masksmith.data.ids import check_name
from masksmith.data.layouts.folders import (
    TEST_FOLDERS,
    TRAIN_FOLDERS,
    find_test_images,
    first_images,
    make_samples,
    masks_of,
    some_ids,
    stray_masks,
)
from masksmith.data.layouts.nested import NamedImages, image_pools, name_images
from masksmith.data.masks import MaskFile, find_convention, is_lossy, look_at_mask, mask_levels
from masksmith.data.run_tables import (
    RunTable,
    find_rle_columns,
    is_rle_name,
    read_run_table,
    reads_as_answers,
    rows_by_label,
    unreadable_runs,
)
from masksmith.data.side_tables import collect_facts, name_has, read_tables
from masksmith.data.table import Table, need_column
from masksmith.data.tree import Tree

_MAX_MASK_PIXELS = 2**26  # of all mask files that are decoded to find a dialect
_MOST_LISTED = 100
_FIRST_PIXEL = "1 1"


def kaggle_rle(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """Kaggle: train and test images, and a table with run-lengths of either: training masks or a sample submission.

    A table names images in the usual folders, or in folders of folders (see nested.py). Images that the sample
    submission names, and no table of masks, are those of the test set.
    """
    tables, errors = read_tables(tree)
    pictures = _find_pictures(tree, tables)
    labels = _find_labels(tree, tables, pictures.images, pictures.masks, pictures.test)
    others = {path: table for path, table in tables.items() if labels is None or path != labels.table.path}
    pictures = _without_test(pictures, others, labels)
    sample = _sample_table(others, pictures.images, pictures.test, labels.table if labels else None)
    if sample is None and labels is None and not any(map(_is_sample_name, errors)):
        _refuse_unreadable(tables, pictures)
        return None
    for path, error in errors.items():
        if "/" not in path:
            raise error
    if not pictures.images:
        closed = f"; unpack {some(tree.closed)} first" if tree.closed else ""
        raise InputError(
            f"{tree.root}: no training images{_named_in(labels)}; expected them in train.zip or train/images/{closed}"
        )
    if labels is None and not pictures.masks:
        _refuse_unreadable(tables, pictures)
        raise InputError(
            f"{tree.root}: no masks: neither a table with run-lengths of the images nor a folder of masks; "
            "a table with test, sample or submission in its name is taken for no masks"
        )
    return _catalog(tree, tables, pictures, sample, labels, asked.dialect)


def _named_in(labels: "_Labels | None") -> str:
    """Return which images a table names that are not there, for a message."""
    if labels is None or not labels.table.ids:
        return ""
    return f", but {labels.table.path} has run-lengths of {len(labels.rows)}: {some_ids(labels.rows)}"


def _refuse_unreadable(tables: Mapping[str, Table], pictures: "_Pictures") -> None:
    """Refuse masks that are written in a way that is not read.

    Raises:
        InputError: There are no mask files, and a column is named as run-lengths and has other texts.
    """
    for path, table in tables.items():
        found = None if pictures.masks or _is_answer_name(path) else unreadable_runs(table)
        if found is not None:
            column, cell = found
            raise InputError(
                f"{path}: the column {column!r} holds {cell[:60]!r}; expected run-lengths 'start length start length "
                "…': other forms (JSON, compressed or packed text) are to be converted first"
            )


# --- the images ---


@dataclass(frozen=True)
class _Pictures:
    """Images and mask files by id."""

    images: dict[str, str]
    masks: dict[str, str]
    test: dict[str, str]
    groups: dict[str, str] = field(default_factory=dict)
    """Training image -> its group, where folders tell."""
    why: list[str] = field(default_factory=list)


def _find_pictures(tree: Tree, tables: Mapping[str, Table]) -> _Pictures:
    """Return the images in the usual folders; where no table names them, those at any depth that one names."""
    folder, images = first_images(tree, TRAIN_FOLDERS)
    masks = masks_of(tree, folder) if images else {}
    drawn = {*masks.values()}
    images = {name: path for name, path in images.items() if path not in drawn}
    test = first_images(tree, TEST_FOLDERS)[1]
    found = _Pictures(images, masks, test, {}, [f"{len(images)} images in {folder}/"] if images else [])
    told = [
        table
        for path, table in tables.items()
        if not _is_answer_name(path) and find_rle_columns(table, bare=True)
    ]
    if masks or any(_names(table, images) for table in told):
        return found
    pool, test_pool = image_pools(tree)
    named = max(filter(None, (_named(pool, table) for table in told)), key=lambda one: one.hits, default=None)
    if named is None:
        return found
    if not test:
        answers = [table for path, table in tables.items() if _is_answer_name(path)]
        by_table = max(
            filter(None, (_named(test_pool, one) for one in answers)), key=lambda one: one.hits, default=None
        )
        test = by_table.images if by_table else {named.key(PurePosixPath(path)): path for path in test_pool}
    return _Pictures(
        named.images, {}, test, named.groups, [f"{named.hits} images are found by their names in a table"]
    )


def _named(paths: Sequence[str], table: Table) -> NamedImages | None:
    runs = find_rle_columns(table, bare=True)
    return name_images(paths, [[row[one] for row in table.rows] for one in table.columns if one not in runs])


def _names(table: Table, images: Mapping[str, str]) -> bool:
    """Whether a table names some of the images."""
    runs = read_run_table(table, find_rle_columns(table, bare=True), images)
    return runs is not None and not images.keys().isdisjoint(runs.ids)


def _without_test(pictures: _Pictures, tables: Mapping[str, Table], labels: "_Labels | None") -> _Pictures:
    """Return the images with those of the test set apart, where both lie in one folder and a sample tells."""
    masked = pictures.masks.keys() | (labels.rows.keys() if labels else set())
    for path, table in tables.items():
        columns = find_rle_columns(table, bare=True) if _is_sample_name(path) and not pictures.test else []
        runs = read_run_table(table, columns, pictures.images) if columns else None
        asked = set(runs.ids) & set(pictures.images) if runs else set()
        if runs and asked and masked.isdisjoint(asked):
            images = {name: one for name, one in pictures.images.items() if name not in asked}
            test = {name: pictures.images[name] for name in pictures.images if name in asked}
            return replace(
                pictures, images=images, test=test, why=[*pictures.why, f"{len(test)} of them in {path}"]
            )
    return pictures


def _catalog(
    tree: Tree,
    tables: dict[str, Table],
    pictures: _Pictures,
    sample: RunTable | None,
    labels: "_Labels | None",
    dialect: str | None,
) -> Catalog:
    images, masks = pictures.images, pictures.masks
    test = pictures.test or find_test_images(tree)
    notes = stray_masks(masks, images)
    if labels is not None and labels.table.labels and masks:
        notes.append(f"{len(masks)} mask files are left out: {labels.table.path} has the masks of each class")
        masks = {}
    if labels is not None:
        labels.check(images)
    form = _submission_format(sample, labels, test, dialect)
    beside = dict(tables)
    told = _Told({}, {}, [])
    if labels is not None:
        told = labels.told({*images} - {*masks}, form.dialect)
        beside[labels.table.path] = _without_runs(beside[labels.table.path], labels.table)
    if sample is not None:
        del beside[sample.path]
        if len(sample.ids) > len(form.ids) and not form.label_rows:
            notes.append(
                f"{sample.path}: {len(sample.ids)} rows for {len(form.ids)} ids; repeated ones count once"
            )
    bare = sorted(set(images) - set(masks) - set(told.rows) - set(told.by_label))
    if bare:
        raise InputError(
            f"{tree.root}: no mask for the training image {_listed(bare)}; add masks or take the images out"
        )
    facts = collect_facts(beside.values(), {"train": images, "test": test})
    return Catalog(
        root=str(tree.root.resolve()),
        layout="kaggle_rle",
        content_hash=tree.content_hash,
        train=[
            replace(one, group=pictures.groups.get(one.id))
            for one in make_samples("train", images, facts, masks=masks, rows=told.rows, labels=told.by_label)
        ],
        test=make_samples("test", test, facts),
        submission=form,
        notes=told.notes + notes + facts.notes,
        labels=labels.names() if labels is not None else [],
        why=pictures.why + [_because(one) for one in (labels and labels.table, sample) if one],
        findings=_findings(pictures, labels, sample),
    )


def _because(runs: RunTable) -> str:
    columns = ", ".join(map(repr, runs.wide.values() or [runs.rle_column]))
    return f"{runs.path}: run-lengths in the column {columns}, ids in {runs.id_column!r}"


def _findings(pictures: _Pictures, labels: "_Labels | None", sample: RunTable | None) -> list[Finding]:
    found = []
    for runs in (labels and labels.table, sample):
        if runs and runs.respelled:
            pairs = [f"{name!r} is {one!r}" for name, one in sorted(runs.respelled.items())]
            detail = (
                f"{runs.path}: {len(pairs)} ids are the images' but for capitals or spaces: {some(pairs)}"
            )
            found.append(
                Finding("warning", "ids that are spelled otherwise", detail, sorted(runs.respelled.values()))
            )
    first = [
        name
        for name, texts in (labels.rows if labels else {}).items()
        if _FIRST_PIXEL in map(str.strip, texts)
    ]
    if labels and len(first) > 1 and not pictures.masks:
        detail = (
            f"{labels.table.path}: {len(first)} rows are {_FIRST_PIXEL!r}, the first pixel alone: {some(first)}; read "
            "as they say; if they stand for an empty mask, empty these cells"
        )
        found.append(Finding("warning", "masks of the first pixel", detail, first))
    if pictures.groups:
        count = len(set(pictures.groups.values()))
        detail = (
            f"ids hold the names of folders: {count} folders, such as {min(pictures.groups.values())!r}; images of one "
            "stay in one fold"
        )
        found.append(Finding("note", "groups by folder", detail))
    return found


def _without_runs(table: Table, runs: RunTable) -> Table:
    """Return a table with the ids of images, and without their run-lengths."""
    dropped = {runs.rle_column, *runs.wide.values(), *([runs.class_column] if runs.labels else [])}
    columns = [column for column in table.columns if column not in dropped]
    names = runs.ids[:: max(1, len(runs.wide))]
    rows = [row | {runs.id_column: name} for row, name in zip(table.rows, names, strict=True)]
    return Table(table.path, columns, rows)


def _listed(names: Sequence[str]) -> str:
    """Return names in full, up to a hundred of them."""
    return some([repr(name) for name in names], most=_MOST_LISTED)


# --- the sample submission ---


def _is_sample_name(path: str) -> bool:
    return "sample_submission" in path.lower()


def _is_answer_name(path: str) -> bool:
    """Whether a table is named after the test images or a submission, and not after the training images."""
    named = name_has(path, "test", "sample", "submission") and not name_has(path, "train")
    return named or _is_sample_name(path)


def _sample_table(
    tables: Mapping[str, Table], images: Collection[str], test: Collection[str], told: RunTable | None
) -> RunTable | None:
    """Return the sample submission: by its name, else a table with run-lengths of the test images.

    Args:
        tables: All but the labels.
        images: The training images.
        test: The test images.
        told: The labels: a sample may have their unusual names of columns.

    Raises:
        InputError: One that is named so has no run-lengths or no ids.
    """
    found: list[tuple[tuple[bool, bool, int], RunTable]] = []
    for path, table in tables.items():
        columns = list(filter(is_rle_name, table.columns))[:1] or _alike(table, told)
        if _is_sample_name(path):
            columns = columns or find_rle_columns(table, bare=True)
            if not columns:
                need_column(table, "rle_mask")
        elif not all(reads_as_answers(table, column) for column in columns):
            continue
        runs = read_run_table(table, columns, test) if columns else None
        if _is_sample_name(path) and runs is None:
            need_column(table, "id")
        if runs is None:
            continue
        known, known_train = (len(set(runs.ids) & set(one)) for one in (test, images))
        if _is_sample_name(path) or known > (0 if _is_answer_name(path) else known_train):
            rank = (_is_sample_name(path), name_has(path, "sample", "submission"), known)
            found.append((rank, runs))
    return max(found, key=lambda one: one[0], default=(None, None))[1]


def sample_format(
    tables: Mapping[str, Table], images: Collection[str], test: dict[str, str], dialect: str | None
) -> SubmissionFormat:
    """Return what the judge expects where mask files tell the masks: as a sample submission has it, if there is one.

    Raises:
        InputError: As _sample_table and _sample_ids.
    """
    sample = _sample_table(tables, images, test, None)
    if sample is None:
        return SubmissionFormat.assumed(test, dialect)
    return _submission_format(sample, None, test, dialect)


def _alike(table: Table, told: RunTable | None) -> list[str]:
    """Return the columns that are called as those of the labels' run-lengths, if all of them are there."""
    columns = (list(told.wide.values()) or [told.rle_column]) if told else []
    return columns if set(columns) <= set(table.columns) else []


def _submission_format(
    sample: RunTable | None, labels: "_Labels | None", test: dict[str, str], dialect: str | None
) -> SubmissionFormat:
    """Return what the judge expects, with the dialect that was asked for or fits.

    Raises:
        InputError: The dialect contradicts the labels, or as _sample_ids.
    """
    table = sample or (labels.table if labels else None)
    assert table is not None
    doubts: list[str] = []
    if labels:
        inferred = labels.infer(dialect)
        doubts = further_doubts(labels.looked_at, inferred) if dialect is None else []
    else:
        hints = Hints(table.rle_column, table.has_minus_one)
        inferred = check_dialect([], dialect, hints) if dialect else infer_dialect([], hints)
    form = replace(
        SubmissionFormat.assumed(test, dialect),
        id_column=table.id_column,
        rle_column=table.rle_column,
        dialect=inferred.dialect,
        reason=inferred.reason,
        doubt="; ".join(filter(None, [inferred.doubt, *doubts])),
    )
    told = labels.table.labels if labels else []
    if sample is None:
        return _assumed_rows(form, table, told, test) if told else form
    ids = _sample_ids(sample, test)
    if not ids:  # a contest whose test set stays with the judge
        columns = sample.columns if told else []
        return replace(
            form, ids=ids, source=sample.path, class_column=sample.class_column or "", columns=columns
        )
    if told or sample.labels:
        return _label_form(
            replace(form, ids=ids, source=sample.path), sample, labels.table if labels else None
        )
    classes = {*sample.classes, *(labels.table.classes if labels else ())}
    if len(classes) > 1:
        assert labels is not None
        raise InputError(
            f"{sample.path}: rows of the class {sample.classes[0]!r}, and {labels.table.path} has "
            f"{labels.table.classes[0]!r} alone; expected the same class in both"
        )
    first = dict(zip(reversed(sample.ids), reversed(sample.cells), strict=True))
    return replace(
        form,
        ids=ids,
        source=sample.path,
        spelled={name: first[name] for name in sample.ids if first[name] != name},
        more={sample.class_column: sample.classes[0]} if sample.class_column else {},
    )


def _label_form(form: SubmissionFormat, sample: RunTable, table: RunTable | None) -> SubmissionFormat:
    """Return the format of a sample submission with a row for each image and class.

    Raises:
        InputError: The masks have no classes or other ones, or a row comes twice.
    """
    classes = set(table.labels) if table else set()
    if table and len(set(sample.ids)) == len(sample.ids) and len(set(sample.classes)) == 1 < len(classes):
        return _placeholders(form, sample, table)
    if not sample.classes or not set(sample.classes) <= classes:
        asked = (
            f"rows of {some(sorted(set(sample.classes)), most=8)}"
            if sample.classes
            else "rows without a class"
        )
        there = (
            f"{table.path} has masks of {some(sorted(classes), most=8)}"
            if classes and table
            else "one mask an image"
        )
        raise InputError(
            f"{sample.path}: {asked}, and {there}; expected a row an image and class of the classes in the masks"
        )
    rows = [LabelRow(*row) for row in zip(sample.ids, sample.classes, sample.cells, strict=True)]
    twice = Counter((row.id, row.label) for row in rows).most_common(1)[0]
    if twice[1] > 1:
        raise InputError(
            f"{sample.path}: {twice[1]} rows of the image {twice[0][0]!r} and the class {twice[0][1]!r}; expected one"
        )
    return replace(
        form,
        label_rows=rows,
        class_column=sample.class_column or "",
        columns=sample.columns,
        wide=sample.wide,
    )


def _placeholders(form: SubmissionFormat, sample: RunTable, table: RunTable) -> SubmissionFormat:
    """Return the format where the sample has one row an image, of one class: it stands for all of them."""
    doubt = (
        f"{sample.path} has one row an image, all of the class {sample.classes[0]!r}: taken for a placeholder of the "
        f"{len(table.labels)} classes of {table.path}; a row an image and class is written"
    )
    spelled = dict(zip(sample.ids, sample.cells, strict=True))
    rows = [LabelRow(name, label, spelled[name]) for name in form.ids for label in table.labels]
    return replace(
        form,
        label_rows=rows,
        class_column=sample.class_column or "",
        columns=sample.columns,
        doubt="; ".join(filter(None, [form.doubt, doubt])),
    )


def _assumed_rows(
    form: SubmissionFormat, table: RunTable, labels: Sequence[str], test: Mapping[str, str]
) -> SubmissionFormat:
    """Return the format with a row for each test image and class, its cells as in the table of the training masks."""
    cell, name, label = table.cells[0], table.ids[0], table.classes[0]
    by_file = cell not in (name, f"{name}_{label}")

    def spell(one: str) -> str:
        return PurePosixPath(test[one]).name if by_file else one

    return replace(
        form,
        label_rows=[
            LabelRow(one, kind, spell(one) if table.class_column else f"{spell(one)}_{kind}")
            for one in form.ids
            for kind in labels
        ],
        class_column=table.class_column or "",
        columns=table.columns,
        wide=table.wide,
    )


def _sample_ids(sample: RunTable, test: Collection[str]) -> list[str]:
    """Return the ids of a sample submission, each once.

    Raises:
        InputError: There are none and test images are there, or one without a test image.
    """
    if not sample.ids and test:
        raise InputError(f"{sample.path}: no rows, so the test set is empty; expected one row a test image")
    absent = sorted(set(sample.ids) - set(test))
    if absent:
        raise InputError(
            f"{sample.path}: no test image for the id {_listed(absent)}; {len(test)} test images were found"
        )
    return list(dict.fromkeys(sample.ids))


# --- the labels ---


@dataclass(frozen=True)
class _Told:
    """What a table tells of the masks of images: by image, or by image and label where there are several."""

    rows: dict[str, list[str]]
    by_label: dict[str, dict[str, list[str]]]
    notes: list[str]


@dataclass(frozen=True)
class _Labels:
    """The run-lengths of the training images, and what tells their dialect."""

    table: RunTable
    rows: dict[str, list[str]]
    hints: Hints
    looked_at: list[RleRows]

    @classmethod
    def read(cls, tree: Tree, table: RunTable, images: dict[str, str], masks: dict[str, str]) -> "_Labels":
        rows = group_rows(table.ids, table.texts)
        hints = Hints(
            table.rle_column,
            table.has_minus_one,
            has_repeats(rows) and not table.classes,
            bool(table.classes),
            _contest_by_rows(table),
        )
        return cls(table, rows, hints, _look(tree, table.path, rows, images, masks))

    def infer(self, asked: str | None) -> Inferred:
        """Return the dialect: the one asked for if nothing speaks against it, else the likeliest."""
        if asked is None:
            return infer_dialect(self.looked_at, self.hints)
        return check_dialect(self.looked_at, asked, self.hints)

    def check(self, images: Collection[str]) -> None:
        """Refuse rows of unknown images."""
        unknown = sorted(set(self.table.ids) - set(images))
        if unknown:
            raise InputError(
                f"{self.table.path}: unknown id {_listed(unknown)}: no training image of that name; "
                f"{len(images)} images were found, for example {some_ids(images)}"
            )

    def names(self) -> list[str]:
        """Return the labels that may overlap, if there are several; each is to be the name of a folder."""
        return [check_name(label, where=f"{self.table.path} (classes)") for label in self.table.labels]

    def told(self, others: Collection[str], dialect: str) -> _Told:
        """Return the rows of the images; those of ``others`` without a row are empty where no row of an image is.

        Where rows have classes, they are empty too.

        Raises:
            InputError: An image has more rows than the dialect or a label has.
        """
        only_objects = bool(self.table.classes) or not self.table.has_empty
        bare = set(others) - set(self.rows) if only_objects else set()
        notes = [
            f"{len(bare)} images have no row in {self.table.path}: read as without objects: {some_ids(bare)}"
        ]
        if self.table.labels:
            told = rows_by_label(self.table)
            return _Told({}, told | {name: {} for name in bare}, notes if bare else [])
        need_rows(self.rows, dialect, where=self.table.path)
        rows = self.rows | {name: [] for name in bare}
        return _Told(rows, {}, self.repeated() + (notes if bare else []))

    def need_same(self, other: "_Labels", images: Collection[str]) -> None:
        """Refuse another table that says something else of a training image."""
        for name in sorted(self.rows.keys() & other.rows.keys() & set(images)):
            if set(non_empty(self.rows[name])) != set(non_empty(other.rows[name])):
                raise InputError(
                    f"{self.table.path} and {other.table.path}: different run-lengths of the training image {name!r}; "
                    "keep the table with the masks, and take the other out of the folder"
                )

    def repeated(self) -> list[str]:
        """Return a note on rows that are repeated word for word."""
        count = sum(len(texts) - len({text.strip() for text in texts}) for texts in self.rows.values())
        return [f"{self.table.path}: {count} rows are repeated word for word and count once"] if count else []


def _contest_by_rows(table: RunTable) -> str:
    """Return the contest of a table whose run-lengths go row by row in its published solutions; empty: another one.

    UW-Madison's scans are square, so that nothing in the data tells the order; its kernels reshape the runs by rows
    (https://www.kaggle.com/code/awsaf49/uwmgi-mask-data).
    """
    columns = [column.strip().lower() for column in table.columns]
    scans = all(re.fullmatch(r"case\d+_day\d+_slice_\d+", cell) for cell in table.cells[:_MOST_LISTED])
    return "UW-Madison's contest" if columns == ["id", "class", "segmentation"] and scans else ""


def _find_labels(
    tree: Tree,
    tables: Mapping[str, Table],
    images: dict[str, str],
    masks: dict[str, str],
    test: Collection[str],
) -> _Labels | None:
    """Return the run-lengths of the training images, None if there are none.

    A column with a known name counts before others, then the table with most of the images, then one that is named
    after the training. A column without a known name beside a mask for each image counts only where it says the same as
    the masks: a box is also four whole numbers.

    Raises:
        InputError: Two tables say different things of an image, and nothing tells which is right.
    """
    found: list[tuple[tuple[bool, int, bool], _Labels]] = []
    for path, table in tables.items():
        if _is_answer_name(path):
            continue
        columns = find_rle_columns(table, bare=not masks)
        runs = read_run_table(table, columns, images) if columns else None
        if runs is None:
            continue
        known = len(set(runs.ids) & set(images))
        answers = read_run_table(table, columns, test)
        if answers and len(set(answers.ids) & set(test)) > known:
            continue
        redundant = 0 < len(images) == len(set(images) & set(masks))
        if redundant and not known:
            continue
        labels = _Labels.read(tree, runs, images, masks)
        is_named = is_rle_name(columns[0])
        if redundant and not is_named and not labels.infer(None).equal:
            continue
        found.append(((is_named, known, name_has(path, "train")), labels))
    found.sort(key=lambda one: one[0], reverse=True)  # of equals the first
    for (named, _, for_train), other in found[1:]:
        (best_named, _, best_for_train), best = found[0]
        if named or not (best_named or (best_for_train and not for_train)):
            best.need_same(other, images)
    return found[0][1] if found else None


def _look(
    tree: Tree, path: str, rows: dict[str, list[str]], images: dict[str, str], masks: dict[str, str]
) -> list[RleRows]:
    """Return what is looked at to find a dialect: images with objects, evenly spaced in the table."""
    told = [name for name, texts in rows.items() if name in images and non_empty(texts)]
    looked_at: list[RleRows] = []
    files: dict[str, MaskFile] = {}
    levels: dict[str, Shaped[np.ndarray, "h w"]] = {}
    pixels = 0
    for name in told[:: max(1, -(-len(told) // MAX_IMAGES))]:
        shape = _shape(tree, images[name])
        if shape is None:
            continue
        where = f"{path}: id {name!r}"
        pixels += shape[0] * shape[1]
        if name in masks and len(levels) < MAX_MASKS and pixels <= _MAX_MASK_PIXELS:
            found = _mask_file(tree, masks[name], shape)
            if found is not None:
                files[where] = look_at_mask(found, name=name, path=masks[name], lossy=False)
                levels[where] = found
        looked_at.append(RleRows(non_empty(rows[name]), shape, None, where))
    try:
        convention = find_convention(files.values(), where=path)
    except InputError:  # others refuse the masks
        return looked_at
    return [
        replace(one, mask=convention.apply(levels[one.where], lossy=False)) if one.where in levels else one
        for one in looked_at
    ]


def _shape(tree: Tree, path: str) -> tuple[int, int] | None:
    """Return the size of an image: from its header, or of its pixels; None where it is damaged, which others refuse."""
    try:
        height, width = image_size(tree.read(path)) or ImageReader(tree).image(path).shape[:2]
    except InputError:
        return None
    return height, width


def _mask_file(tree: Tree, path: str, shape: tuple[int, int]) -> Shaped[np.ndarray, "h w"] | None:
    """Return a mask file's values, None where it is lossy, of another size or no mask: others refuse it."""
    raw = tree.read(path)
    if is_lossy(raw):
        return None
    try:
        levels = mask_levels(decode_image(raw, where=path), where=path)
    except InputError:
        return None
    return levels if levels.shape == shape else None
