"""The sample submission: which table it is, and the form that it asks for."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.catalog import LabelRow, SubmissionFormat
from masksmith.data.dialect import (
    Hints,
    check_dialect,
    further_doubts,
    infer_dialect,
)
from masksmith.data.findings import some
from masksmith.data.layouts.rle_labels import Labels, is_answer_name, is_sample_name, listed
from masksmith.data.run_tables import (
    RunTable,
    find_rle_columns,
    is_rle_name,
    read_run_table,
    reads_as_answers,
)
from masksmith.data.side_tables import name_has
from masksmith.data.table import Table, need_column


def sample_table(
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
        if is_sample_name(path):
            columns = columns or find_rle_columns(table, bare=True)
            if not columns:
                need_column(table, "rle_mask")
        elif not all(reads_as_answers(table, column) for column in columns):
            continue
        runs = read_run_table(table, columns, test) if columns else None
        if is_sample_name(path) and runs is None:
            need_column(table, "id")
        if runs is None:
            continue
        known, known_train = (len(set(runs.ids) & set(one)) for one in (test, images))
        if is_sample_name(path) or known > (0 if is_answer_name(path) else known_train):
            rank = (is_sample_name(path), name_has(path, "sample", "submission"), known)
            found.append((rank, runs))
    return max(found, key=lambda one: one[0], default=(None, None))[1]


def sample_format(
    tables: Mapping[str, Table], images: Collection[str], test: dict[str, str], dialect: str | None
) -> SubmissionFormat:
    """Return what the judge expects where mask files tell the masks: as a sample submission has it, if there is one.

    Raises:
        InputError: As sample_table and _sample_ids.
    """
    sample = sample_table(tables, images, test, None)
    if sample is None:
        return SubmissionFormat.assumed(test, dialect)
    return submission_format(sample, None, test, dialect)


def _alike(table: Table, told: RunTable | None) -> list[str]:
    """Return the columns that are called as those of the labels' run-lengths, if all of them are there."""
    columns = (list(told.wide.values()) or [told.rle_column]) if told else []
    return columns if set(columns) <= set(table.columns) else []


def submission_format(
    sample: RunTable | None, labels: "Labels | None", test: dict[str, str], dialect: str | None
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
            f"{sample.path}: no test image for the id {listed(absent)}; {len(test)} test images were found"
        )
    return list(dict.fromkeys(sample.ids))
