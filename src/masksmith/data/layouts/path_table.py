"""Tables of paths: a column of images, a column of masks, and what else is known of each row."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, Sample
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.decode.reader import STACKS, ending
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.findings import Finding, refuse_all, some
from masksmith.data.ids import check_name
from masksmith.data.layouts.folders import TEST_FOLDERS, first_images, make_samples
from masksmith.data.layouts.nested import has_mask_word
from masksmith.data.layouts.rle_sample import sample_format
from masksmith.data.rle import is_empty
from masksmith.data.run_tables import is_rle_name, reads_as_runs, wide_labels
from masksmith.data.side_tables import collect_facts, name_has, read_tables
from masksmith.data.split_lists import SPLIT_COLUMNS, SPLIT_WORDS
from masksmith.data.table import Table
from masksmith.data.tree import Tree

_IMAGE_WORDS = {
    "image",
    "images",
    "img",
    "photo",
    "picture",
    "filename",
    "fname",
    "file",
    "path",
    "input",
    "scan",
}
_MASK_WORDS = {
    "mask",
    "masks",
    "label",
    "labels",
    "annotation",
    "target",
    "gt",
    "truth",
    "segmentation",
    "seg",
}
_FLAGS = {"is_valid": "val", "is_val": "val", "is_validation": "val", "is_test": "test"}
_YES = {"true", "1", "1.0", "yes"}
_NO = {"false", "0", "0.0", "no"}
_LOOKS = 0.9
"""Least share of cells that end as images do, in a column whose files are not there."""


def path_table(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """Tables with a column of image paths and one of mask paths; a column or the tables' names tell the sets.

    A path is found by its longest end that one file alone has, so that the folder of another machine before it does no
    harm. An image without a mask is one of the test set. Several columns of masks are a label each, several of images
    a band each.
    """
    tables, errors = read_tables(tree)
    files = _Files(tree)
    found = [one for table in tables.values() if (one := _read(table, files)) is not None]
    if not any(one.masks for one in found):
        return None
    found = [one for one in found if one.masks or name_has(one.table.path, "test")]
    refuse_all([problem for one in found for problem in one.problems], what="rows of tables")
    _need_same_columns([one for one in found if one.masks])
    rows, findings = _distinct([row for one in found for row in one.rows], tree)
    ids = dict(zip(_ids([row.images[0] for row in rows], tree), rows, strict=True))
    train = {name: row for name, row in ids.items() if row.split != "test" and any(row.masks)}
    test = {name: row for name, row in ids.items() if name not in train}
    where = some([one.table.path for one in found])
    if not train:
        raise InputError(f"{tree.root}: no row of {where} is a training image with a mask; expected some")
    images = {name: row.images[0] for name, row in train.items()}
    answers = {name: row.images[0] for name, row in test.items()} or first_images(tree, TEST_FOLDERS)[1]
    names = {row.images[0]: name for name, row in ids.items()}
    others = {path: table for path, table in tables.items() if path not in {one.table.path for one in found}}
    facts = collect_facts(
        [*(one.facts(names) for one in found), *others.values()], {"train": images, "test": answers}
    )
    labels = next(one.labels for one in found if one.masks)
    form = sample_format(others, images, answers, asked.dialect)
    samples = make_samples(
        "train",
        images,
        facts,
        masks={name: row.masks[0] for name, row in train.items() if row.masks[0]} if not labels else {},
        held_out=[name for name, row in train.items() if row.split == "val"],
        label_masks={name: _by_label(row, labels) for name, row in train.items()} if labels else None,
    )
    return Catalog(
        root=str(tree.root.resolve()),
        layout="path_table",
        content_hash=tree.content_hash,
        train=[_with_bands(sample, train) for sample in samples],
        test=[_with_bands(sample, test) for sample in make_samples("test", answers, facts)],
        submission=form.with_labels(labels) if labels else form,
        notes=[str(error) for error in errors.values()] + facts.notes,
        labels=[check_name(label, where=f"{where} (columns)") for label in labels],
        why=[one.because for one in found],
        left_out=_left_out(test),
        findings=findings + _findings(train, test),
    )


# --- files by what a table calls them ---


class _Files:
    """The images of a tree by their names."""

    def __init__(self, tree: Tree) -> None:
        known = (*IMAGE_SUFFIXES, *STACKS)
        self._by_name: dict[str, list[PurePosixPath]] = {}
        for path in (path for folder in tree.folders for path in tree.files(folder)):
            if ending(path) in known:
                pure = PurePosixPath(path)
                for name in {pure.name, pure.name.lower(), path[: -len(ending(path))].rpartition("/")[2]}:
                    self._by_name.setdefault(name, []).append(pure)

    def looks(self, cell: str) -> bool:
        """Whether a cell ends as the name of an image."""
        return ending(cell) in (*IMAGE_SUFFIXES, *STACKS)

    def candidates(self, cell: str) -> list[PurePosixPath]:
        """Return the files with the longest end that is also the cell's: of equals all."""
        parts = _parts(cell)
        found = self._by_name.get(parts[-1]) or self._by_name.get(parts[-1].lower(), []) if parts else []
        shared = [_shared(parts, path.parts) for path in found]
        return [path for path, count in zip(found, shared, strict=True) if count == max(shared)]


def _parts(cell: str) -> tuple[str, ...]:
    return PurePosixPath(cell.strip().replace("\\", "/")).parts


def _shared(cell: Sequence[str], path: Sequence[str]) -> int:
    """Return how many folders above the file are the same in both."""
    pairs = zip(reversed(cell[:-1]), reversed(path[:-1]), strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(cell), len(path)) - 1)


@dataclass(frozen=True)
class _Column:
    """A column whose cells name files."""

    name: str
    masks: bool
    paths: dict[str, str]
    """Cell -> path of its file."""
    problems: dict[str, str]
    """Cell -> why it names no file."""


def _column(table: Table, name: str, files: _Files) -> _Column | None:
    """Return a column of paths: half of its files are there, or it is named so and its cells look so."""
    cells = list(dict.fromkeys(cell for row in table.rows if not is_empty(cell := row[name])))
    found = {cell: files.candidates(cell) for cell in cells}
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
    is_named = bool(words & (_MASK_WORDS | _IMAGE_WORDS))
    looking = sum(map(files.looks, cells))
    there = sum(map(bool, found.values()))
    are_there = 2 * there >= len(cells) and bool(looking or is_named)
    if not cells or not (are_there or (is_named and looking >= _LOOKS * len(cells))):
        return None
    if words & (_MASK_WORDS | _IMAGE_WORDS):
        masks = bool(words & _MASK_WORDS)
    else:
        masks = 2 * sum(has_mask_word(path) for paths in found.values() for path in paths[:1]) > there
    return _resolved(name, masks, found)


def _resolved(name: str, masks: bool, found: Mapping[str, list[PurePosixPath]]) -> _Column:
    """Return a column with the one file of each cell; of several, those count that lie as masks or images do."""
    paths, problems = {}, {}
    for cell, every in found.items():
        fitting = [path for path in every if has_mask_word(path) == masks] if len(every) > 1 else every
        exact = [path for path in every if path.parts == _parts(cell)]
        chosen = exact or fitting or every
        if len(chosen) == 1:
            paths[cell] = str(chosen[0])
        elif chosen:
            problems[cell] = f"may be {' or '.join(sorted(map(str, chosen))[:2])}; write more of its path"
        else:
            problems[cell] = "is not there"
    # a folder that is called otherwise in the table is so in all rows: train/b.png is not val/b.png
    apart = {cell: _apart(cell, path) for cell, path in paths.items()}
    usual = Counter(apart.values()).most_common(1)
    for cell, pair in apart.items():
        if pair and pair != usual[0][0]:
            problems[cell] = f"is not there ({paths.pop(cell)} is another file)"
    return _Column(name, masks, paths, problems)


def _apart(cell: str, path: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the folders of cell and file before those that they share; None where one of them has no more."""
    own, other = _parts(cell)[:-1], PurePosixPath(path).parts[:-1]
    count = _shared((*own, ""), (*other, ""))
    rest = own[: len(own) - count], other[: len(other) - count]
    return rest if all(rest) else None


# --- rows ---


@dataclass(frozen=True)
class _Row:
    """An image and what belongs to it."""

    images: tuple[str, ...]
    masks: tuple[str | None, ...]
    split: str
    """train, val, test, or nothing."""
    where: str


@dataclass(frozen=True)
class _PathTable:
    """A table of paths."""

    table: Table
    images: list[_Column]
    masks: list[_Column]
    splits: list[str]

    @property
    def labels(self) -> list[str]:
        """The labels of several columns of masks."""
        return list(wide_labels([one.name for one in self.masks])) if len(self.masks) > 1 else []

    @property
    def because(self) -> str:
        """Why it is a table of paths."""
        images, masks = (", ".join(repr(one.name) for one in own) for own in (self.images, self.masks))
        return f"{self.table.path}: {len(self.rows)} rows, paths of images in {images}, of masks in {masks or 'none'}"

    @cached_property
    def rows(self) -> list[_Row]:
        """The rows whose images are there."""
        rows = []
        for at, (row, split) in enumerate(zip(self.table.rows, self.splits, strict=True)):
            images = tuple(one.paths.get(row[one.name], "") for one in self.images)
            masks = tuple(one.paths.get(row[one.name]) for one in self.masks)
            if all(images):
                rows.append(_Row(images, masks, split, f"{self.table.path}: row {at + 1}"))
        return rows

    @property
    def problems(self) -> list[str]:
        """What is wrong with each row."""
        found = []
        bare = {split for split in ("train", "val") if self._is_bare(split)}
        for at, row in enumerate(self.table.rows, start=1):
            for column in (*self.images, *self.masks):
                cell = row[column.name]
                if cell in column.problems:
                    found.append(
                        f"{self.table.path}: row {at}: {column.name} {cell!r} {column.problems[cell]}"
                    )
                elif is_empty(cell) and not column.masks:
                    found.append(
                        f"{self.table.path}: row {at}: {column.name} is empty; expected the path of an image"
                    )
            split = self.splits[at - 1]
            if split in ("train", "val") and split not in bare and self._has_none(row):
                found.append(
                    f"{self.table.path}: row {at}: an image of the split {self.splits[at - 1]} without a mask"
                )
        return found

    def _has_none(self, row: Mapping[str, str]) -> bool:
        return all(is_empty(row[one.name]) for one in self.masks)

    def _is_bare(self, split: str) -> bool:
        """Whether no image of a split has a mask, and those of another one have: it is to be segmented."""
        rows = [row for row, one in zip(self.table.rows, self.splits, strict=True) if one == split]
        return all(map(self._has_none, rows)) and not all(map(self._has_none, self.table.rows))

    def facts(self, names: Mapping[str, str]) -> Table:
        """Return the table with ids in the place of paths."""
        dropped = {one.name for one in (*self.images, *self.masks)}
        kept = [one for one in self.table.columns if one not in dropped]
        rows = []
        for row in self.table.rows:
            path = self.images[0].paths.get(row[self.images[0].name], "")
            if path in names:
                rows.append({"": names[path]} | {one: row[one] for one in kept if one})
        return Table(self.table.path, ["", *filter(None, kept)], rows)


def _read(table: Table, files: _Files) -> _PathTable | None:
    """Return a table with a column of images; None where it has none, or has run-lengths."""
    if any(is_rle_name(one) and reads_as_runs(table, one) for one in table.columns):
        return None
    table = _with_header(table, files)
    columns = [one for name in table.columns if (one := _column(table, name, files)) is not None]
    images, masks = ([one for one in columns if one.masks == masks] for masks in (False, True))
    if not masks and len(images) == 2 and not _are_same(*images) and _is_headless(table):
        images, masks = images[:1], [replace(images[1], masks=True)]
    for own in (images, masks):
        strong = [one for one in own if any(map(files.looks, one.paths or one.problems))]
        own[:] = strong or own
        own[:] = [one for at, one in enumerate(own) if not any(_are_same(one, other) for other in own[:at])]
    return _PathTable(table, images, masks, _splits(table)) if images else None


def _are_same(one: _Column, other: _Column) -> bool:
    """Whether two columns name the same files, or files of the same names in another format."""
    own, others = set(one.paths.values()), set(other.paths.values())
    return own == others or (_formats(own).isdisjoint(_formats(others)) and _stems(own) == _stems(others))


def _formats(paths: Collection[str]) -> set[str]:
    return {{".tiff": ".tif", ".jpeg": ".jpg"}.get(kind := ending(path).lower(), kind) for path in paths}


def _stems(paths: Collection[str]) -> list[str]:
    return sorted(PurePosixPath(path).name[: -len(ending(path))] for path in paths)


_HEADLESS = "column 1"


def _is_headless(table: Table) -> bool:
    return table.columns[:1] == [_HEADLESS]


def _with_header(table: Table, files: _Files) -> Table:
    """Return a table whose first line names files, not columns, with names of columns."""
    if sum(files.looks(one) and bool(files.candidates(one)) for one in table.columns) < 2:
        return table
    columns = [f"column {at}" for at in range(1, len(table.columns) + 1)]
    every = [table.columns, *(list(row.values()) for row in table.rows)]
    return Table(table.path, columns, [dict(zip(columns, cells, strict=True)) for cells in every])


def _splits(table: Table) -> list[str]:
    """Return the split of each row: by a column, else by the table's name; empty where nothing tells.

    Raises:
        InputError: A column has both names of splits and other words.
    """
    for column in table.columns:
        cells = [row[column].strip().lower() for row in table.rows]
        told = {cell for cell in cells if cell}
        if column.lower() in _FLAGS and told <= _YES | _NO:
            return [_FLAGS[column.lower()] if cell in _YES else "" for cell in cells]
        if column.lower() in SPLIT_COLUMNS and told & SPLIT_WORDS.keys():
            if other := sorted(told - SPLIT_WORDS.keys()):
                raise InputError(
                    f"{table.path}: the column {column!r} has {some(list(map(repr, other)))}; expected train, val "
                    "or test"
                )
            return [SPLIT_WORDS.get(cell, "") for cell in cells]
    named = next(
        (split for word, split in SPLIT_WORDS.items() if len(word) > 2 and name_has(table.path, word)), ""
    )
    return [named] * len(table.rows)


def _distinct(rows: Sequence[_Row], tree: Tree) -> tuple[list[_Row], list[Finding]]:
    """Return the rows, each image once, and a finding on those that are repeated.

    Raises:
        InputError: Rows of one image differ.
    """
    first: dict[str, _Row] = {}
    twice, torn = [], []
    for row in rows:
        known = first.setdefault(row.images[0], row)
        if known is not row:
            twice.append(row.images[0])
            if known != replace(row, where=known.where):
                torn.append(
                    f"{known.where} and {row.where}: {row.images[0]!r} has other files or another split"
                )
    refuse_all(torn, what="images with two rows")
    detail = f"{len(twice)} rows are repeated and count once: {some(twice)}"
    return list(first.values()), [Finding("warning", "rows that stand twice", detail, twice)] if twice else []


def _need_same_columns(found: Sequence[_PathTable]) -> None:
    """Refuse tables with different columns of images or masks."""
    for one in found[1:]:
        own, first = (([*map(_name, part.images)], [*map(_name, part.masks)]) for part in (one, found[0]))
        if [len(part) for part in own] != [len(part) for part in first] or (
            len(own[1]) > 1 and own[1] != first[1]
        ):
            raise InputError(
                f"{one.table.path}: paths in the columns {some(own[0] + own[1])}, in {found[0].table.path} in "
                f"{some(first[0] + first[1])}; expected the same columns"
            )


def _name(column: _Column) -> str:
    return column.name


def _ids(paths: Sequence[str], tree: Tree) -> list[str]:
    """Return the ids of images: their names without the ending, with as many folders as make them differ.

    Raises:
        InputError: Two files differ in their endings alone.
    """
    whole = [path[: -len(ending(path))] for path in paths]
    twice = [name for name, count in Counter(whole).items() if count > 1]
    if twice:
        raise InputError(
            f"{tree.root}: {some(twice)}: two images differ in their endings alone; rename one of them"
        )
    parts = [PurePosixPath(name).parts for name in whole]
    levels = range(1, max(map(len, parts), default=1) + 1)
    names = (["/".join(one[-count:]) for one in parts] for count in levels)
    return next((found for found in names if len(set(found)) == len(found)), whole)


def _by_label(row: _Row, labels: Sequence[str]) -> dict[str, str]:
    return {label: path for label, path in zip(labels, row.masks, strict=True) if path}


def _with_bands(sample: Sample, rows: Mapping[str, _Row]) -> Sample:
    images = rows[sample.id].images if sample.id in rows else ()
    return replace(sample, bands=list(images)) if len(images) > 1 else sample


def _left_out(test: Mapping[str, _Row]) -> list[str]:
    masks = [path for row in test.values() for path in row.masks if path]
    return (
        [f"{len(masks)} masks of the test set, for example {masks[0]}: it is to be segmented"]
        if masks
        else []
    )


def _findings(train: Mapping[str, _Row], test: Mapping[str, _Row]) -> list[Finding]:
    """Return findings on images without a mask and on masks of several images."""
    found = []
    if others := [name for name, row in test.items() if row.split in ("train", "val")]:
        detail = (
            f"{len(others)} images of {test[others[0]].split} have no masks: they are read as test images"
        )
        found.append(Finding("warning", "a split without masks", detail, others))
    bare = [name for name, row in test.items() if not row.split]
    if bare:
        detail = f"{len(bare)} rows have no mask: taken for the test set: {some(bare)}"
        found.append(Finding("note", "images without a mask", detail, bare))
    counts = Counter(path for row in train.values() for path in row.masks if path)
    shared = {path for path, count in counts.items() if count > 1}
    if shared:
        ids = [name for name, row in train.items() if shared & set(row.masks)]
        detail = f"{len(shared)} masks belong to several images, such as {min(shared)}: {some(ids)}"
        found.append(Finding("warning", "one mask for several images", detail, ids))
    return found
