"""The table of run-lengths of the training images: which it is, and what it says."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from masksmith.core.arrays import Shaped
from masksmith.core.errors import InputError
from masksmith.data.decode.headers import image_size
from masksmith.data.decode.pictures import decode_image
from masksmith.data.decode.reader import ImageReader
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
from masksmith.data.findings import some
from masksmith.data.ids import check_name
from masksmith.data.layouts.folders import (
    some_ids,
)
from masksmith.data.masks import MaskFile, find_convention, is_lossy, look_at_mask, mask_levels
from masksmith.data.run_tables import (
    RunTable,
    find_rle_columns,
    is_rle_name,
    read_run_table,
    rows_by_label,
)
from masksmith.data.side_tables import name_has
from masksmith.data.table import Table
from masksmith.data.tree import Tree

_MAX_MASK_PIXELS = 2**26  # of all mask files that are decoded to find a dialect
_MOST_LISTED = 100


def listed(names: Sequence[str]) -> str:
    """Return names in full, up to a hundred of them."""
    return some([repr(name) for name in names], most=_MOST_LISTED)


def is_sample_name(path: str) -> bool:
    """Whether a table is called as sample submissions are."""
    return "sample_submission" in path.lower()


def is_answer_name(path: str) -> bool:
    """Whether a table is named after the test images or a submission, and not after the training images."""
    named = name_has(path, "test", "sample", "submission") and not name_has(path, "train")
    return named or is_sample_name(path)


@dataclass(frozen=True)
class Told:
    """What a table tells of the masks of images: by image, or by image and label where there are several."""

    rows: dict[str, list[str]]
    by_label: dict[str, dict[str, list[str]]]
    notes: list[str]


@dataclass(frozen=True)
class Labels:
    """The run-lengths of the training images, and what tells their dialect."""

    table: RunTable
    rows: dict[str, list[str]]
    hints: Hints
    looked_at: list[RleRows]

    @classmethod
    def read(cls, tree: Tree, table: RunTable, images: dict[str, str], masks: dict[str, str]) -> "Labels":
        """Read the rows of a table, and what tells their dialect."""
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
                f"{self.table.path}: unknown id {listed(unknown)}: no training image of that name; "
                f"{len(images)} images were found, for example {some_ids(images)}"
            )

    def names(self) -> list[str]:
        """Return the labels that may overlap, if there are several; each is to be the name of a folder."""
        return [check_name(label, where=f"{self.table.path} (classes)") for label in self.table.labels]

    def told(self, others: Collection[str], dialect: str) -> Told:
        """Return what the table says of each image."""
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
            return Told({}, told | {name: {} for name in bare}, notes if bare else [])
        need_rows(self.rows, dialect, where=self.table.path)
        rows = self.rows | {name: [] for name in bare}
        return Told(rows, {}, self.repeated() + (notes if bare else []))

    def need_same(self, other: "Labels", images: Collection[str]) -> None:
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


def find_labels(
    tree: Tree,
    tables: Mapping[str, Table],
    images: dict[str, str],
    masks: dict[str, str],
    test: Collection[str],
) -> Labels | None:
    """Return the run-lengths of the training images, None if there are none.

    A column with a known name counts before others, then the table with most of the images, then one that is named
    after the training. A column without a known name beside a mask for each image counts only where it says the same as
    the masks: a box is also four whole numbers.

    Raises:
        InputError: Two tables say different things of an image, and nothing tells which is right.
    """
    found: list[tuple[tuple[bool, int, bool], Labels]] = []
    for path, table in tables.items():
        if is_answer_name(path):
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
        labels = Labels.read(tree, runs, images, masks)
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
