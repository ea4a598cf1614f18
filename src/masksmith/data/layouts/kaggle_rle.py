"""Kaggle's layout: folders or archives of images, and CSV tables with the run-lengths of masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.findings import Finding, some
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
from masksmith.data.layouts.rle_labels import (
    Labels,
    Told,
    find_labels,
    is_answer_name,
    is_sample_name,
    listed,
)
from masksmith.data.layouts.rle_sample import sample_table, submission_format
from masksmith.data.run_tables import (
    RunTable,
    find_rle_columns,
    read_run_table,
    unreadable_runs,
)
from masksmith.data.side_tables import collect_facts, read_tables
from masksmith.data.table import Table
from masksmith.data.tree import Tree

_FIRST_PIXEL = "1 1"


def kaggle_rle(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """Kaggle: train and test images, and a table with run-lengths of either: training masks or a sample submission.

    A table names images in the usual folders, or in folders of folders (see nested.py). Images that the sample
    submission names, and no table of masks, are those of the test set.
    """
    tables, errors = read_tables(tree)
    pictures = _find_pictures(tree, tables)
    labels = find_labels(tree, tables, pictures.images, pictures.masks, pictures.test)
    others = {path: table for path, table in tables.items() if labels is None or path != labels.table.path}
    pictures = _without_test(pictures, others, labels)
    sample = sample_table(others, pictures.images, pictures.test, labels.table if labels else None)
    if sample is None and labels is None and not any(map(is_sample_name, errors)):
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


def _named_in(labels: "Labels | None") -> str:
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
        found = None if pictures.masks or is_answer_name(path) else unreadable_runs(table)
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
    known = {*masks.values()}
    images = {name: path for name, path in images.items() if path not in known}
    test = first_images(tree, TEST_FOLDERS)[1]
    found = _Pictures(images, masks, test, {}, [f"{len(images)} images in {folder}/"] if images else [])
    told = [
        table
        for path, table in tables.items()
        if not is_answer_name(path) and find_rle_columns(table, bare=True)
    ]
    if masks or any(_names(table, images) for table in told):
        return found
    pool, test_pool = image_pools(tree)
    named = max(filter(None, (_named(pool, table) for table in told)), key=lambda one: one.hits, default=None)
    if named is None:
        return found
    if not test:
        answers = [table for path, table in tables.items() if is_answer_name(path)]
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


def _without_test(pictures: _Pictures, tables: Mapping[str, Table], labels: "Labels | None") -> _Pictures:
    """Return the images with those of the test set apart, where both lie in one folder and a sample tells."""
    masked = pictures.masks.keys() | (labels.rows.keys() if labels else set())
    for path, table in tables.items():
        columns = find_rle_columns(table, bare=True) if is_sample_name(path) and not pictures.test else []
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
    labels: "Labels | None",
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
    form = submission_format(sample, labels, test, dialect)
    beside = dict(tables)
    told = Told({}, {}, [])
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
            f"{tree.root}: no mask for the training image {listed(bare)}; add masks or take the images out"
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


def _findings(pictures: _Pictures, labels: "Labels | None", sample: RunTable | None) -> list[Finding]:
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
