"""Folds: stratified by how much of an image is foreground, identical images and groups kept together.

Folds are written once to ``folds.csv`` and never computed again: scores of different days stay comparable.
"""

import csv
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from masksmith.core.arrays import IGNORE, Int, Shaped
from masksmith.core.config import Config, suggest
from masksmith.core.errors import InputError
from masksmith.core.files import digest, write_text
from masksmith.data.catalog import Sample
from masksmith.data.findings import some
from masksmith.data.groups import group_name, merged
from masksmith.data.store import Arrays
from masksmith.data.table import need_column, parse_table
from masksmith.folds.assignment import assign_folds, deal_folds, hold_out, hold_out_highest

NUM_CLASSES = 11
ALL = 999
"""The "fold" of a training on all images: nothing is held out."""
NEIGHBOURS = "neighbours()"
"""Of ``group_by``: tiles whose edges continue each other."""
EVERY_GROUP = "groups()"
"""Of ``fold_by``: each group is a fold."""
_SIMILAR = re.compile(r"similar\(count=(\d{1,6})\)")
_COLUMNS = ("id", "group", "coverage", "coverage_class", "fold")


class FoldsConfig(Config):
    """How folds are made, and how many of them are trained."""

    count: int = Field(default=5, ge=2, le=100)
    """Number of folds, 2 to 100."""
    train: int | None = Field(default=None, ge=1)
    """Train only this many folds (the first ones); None trains all."""
    refit: bool = False
    """Whether one more training follows the folds: on all images, as long as theirs were (the median of their chosen
    epochs). It predicts test images only; no score can be honest about it."""
    seed: int = Field(default=0, ge=0)
    """Seed of the assignment."""
    holdout_frac: float | None = Field(default=None, gt=0, lt=1)
    """One split instead of folds: this share of the images is held out (as fold 0) and the rest, fold 1, trains; count
    must be 2 and train 1. None: folds of equal size."""
    stratify: Literal["coverage", "non_empty", "none", "like_test"] = "coverage"
    """What is spread evenly: the 11 coverage classes (and the rarest class or label, and the source: folder and size,
    where there are several), images with and without foreground, or nothing (at random). "like_test": nothing; the
    share ``holdout_frac`` that is held out are the images that look most like the test set (adversarial validation)."""
    deal_by: str | None = None
    """Column of numbers in a side table: images are sorted by it and dealt out to the folds in turn (as TGS Salt's
    first place did by depth), without stratification. None: as ``stratify`` says."""
    group_by: str | None = None
    """Column of a side table (a location, a patient): images of the same value stay in one fold, and are a group of
    the metrics of groups and of the bootstrap. Where no table says so, "similar(count=10)" makes so many groups of
    images with similar bands (k-means, seeded by ``seed``), "neighbours()" one of tiles whose edges continue each
    other. None: what is bound anyway stays together: known groups, nearly equal images, patients and places."""
    fold_by: str | None = None
    """Column of a table that says the fold: the images of one value are one fold (a fold column, or a site, for
    leave-one-site-out); ``count`` is the number of values. "groups()": each group is a fold. None: folds are made."""

    @property
    def similar_count(self) -> int | None:
        """How many groups of similar images are asked for; None: none are."""
        found = _SIMILAR.fullmatch(self.group_by or "")
        return int(found[1]) if found else None

    @property
    def has_column(self) -> bool:
        """Whether ``group_by`` names a column."""
        return self.group_by not in (None, NEIGHBOURS) and self.similar_count is None

    @field_validator("group_by")
    @classmethod
    def _is_spelt_right(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("similar("):
            found = _SIMILAR.fullmatch(value)
            if not found or int(found[1]) < 2:
                raise ValueError(f"{value!r}; expected similar(count=N) with two groups or more")
        return value

    @property
    def kind(self) -> str:
        """The rule of the folds besides seed and groups, as text; it is kept beside the folds."""
        rule = f"holdout_frac {self.holdout_frac}, stratify {self.stratify}, deal_by {self.deal_by}"
        return rule if self.fold_by is None else f"{rule}, fold_by {self.fold_by}"

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse a single split of several folds, and two rules at once."""
        if self.holdout_frac is not None and (self.count, self.train, self.refit) != (2, 1, False):
            raise ValueError(
                f"holdout_frac: {self.holdout_frac} is one split, whose held-out part is fold 0; it goes with count 2, "
                f"train 1 and refit false, not with count {self.count}, train {self.train} and refit {self.refit}"
            )
        if self.deal_by is not None and (self.stratify != "coverage" or self.holdout_frac is not None):
            raise ValueError(
                f"deal_by: {self.deal_by!r} deals images out in their order, without stratification and to folds of "
                "equal size; leave stratify at 'coverage' and holdout_frac at null"
            )
        if self.fold_by is not None and self.kind != f"{FoldsConfig().kind}, fold_by {self.fold_by}":
            raise ValueError(
                f"fold_by: {self.fold_by!r} says the fold of each image; leave stratify at 'coverage' and deal_by and "
                "holdout_frac at null"
            )
        if self.stratify == "like_test" and self.holdout_frac is None:
            raise ValueError(
                "stratify: 'like_test' holds out the images that look most like the test set; say how many with "
                "holdout_frac: 0.2, count: 2, train: 1"
            )


def fold_name(fold: int) -> str:
    """Return a fold's name for people and files."""
    return "fold_all" if fold == ALL else f"fold_{fold}"


def coverage_class(foreground: int, total: int) -> int:
    """Return the coverage class 0..10: the smallest i with ``10 * coverage <= i``; 0 is exactly empty.

    The eleven classes of the TGS Salt kernels, in integers: no coverage falls between two floats.
    """
    return -(-10 * foreground // total) if total else 0


@dataclass(frozen=True)
class FoldRow:
    """The fold of one training image, and why."""

    id: str
    group: str
    coverage: float
    coverage_class: int
    fold: int


@dataclass(frozen=True)
class Folds:
    """All rows of ``folds.csv``."""

    rows: list[FoldRow]

    @property
    def count(self) -> int:
        """Number of folds."""
        return max(row.fold for row in self.rows) + 1

    @property
    def hash(self) -> str:
        """A hash over who is in which fold."""
        return digest(*(f"{row.id} {row.group} {row.fold}" for row in self.rows))

    def inside(self, fold: int) -> list[str]:
        """Ids that fold ``fold`` is validated on."""
        return [row.id for row in self.rows if row.fold == fold]

    def outside(self, fold: int) -> list[str]:
        """Ids that fold ``fold`` is trained on."""
        return [row.id for row in self.rows if row.fold != fold]

    def groups(self, names: Sequence[str]) -> Shaped[np.ndarray, " n"]:
        """Group of each of these images."""
        home = {row.id: row.group for row in self.rows}
        return np.array([home[name] for name in names])

    def balance(self) -> Int[np.ndarray, "folds classes"]:
        """Number of images of each coverage class in each fold."""
        table = np.zeros((self.count, NUM_CLASSES), np.int64)
        for row in self.rows:
            table[row.fold, row.coverage_class] += 1
        return table

    def __str__(self) -> str:
        head = "fold  images  mean coverage  images of coverage class 0 (empty) … 10"
        lines = [head]
        for fold, counts in enumerate(self.balance()):
            mean = np.mean([row.coverage for row in self.rows if row.fold == fold])
            lines.append(
                f"{fold:4d}  {counts.sum():6d}  {mean:13.3f}  " + " ".join(f"{n:4d}" for n in counts)
            )
        return "\n".join(lines)


def group_values(samples: Sequence[Sample], column: str, *, key: str = "group_by") -> dict[str, str]:
    """Return id -> value of a side table's column, as text.

    Raises:
        InputError: No table has the column, an image has no value in it, or every image has its own.
    """
    values: dict[str, str] = {}
    for sample in samples:
        if column in sample.texts:
            values[sample.id] = sample.texts[column]
    if not values:
        known = sorted({name for sample in samples for name in (*sample.texts, *sample.values)})
        have = suggest(column, known) if known else "there is no table with a column beside the run-lengths"
        raise InputError(f"folds.{key}: no side table has the column {column!r}; {have}")
    bare = [sample.id for sample in samples if not values.get(sample.id, "").strip()]
    if bare:
        raise InputError(
            f"folds.{key}: {len(bare)} training images have no {column!r}, for example {bare[0]!r}; fill it in"
        )
    if len(set(values.values())) == len(values):
        raise InputError(
            f"folds.{key}: every one of the {len(values)} images has its own {column!r} (for example "
            f"{next(iter(values.values()))!r}), so it groups nothing; name another column, or null"
        )
    return values


def merge_groups(
    duplicates: Mapping[str, str], values: Mapping[str, str], *, blank: Collection[str]
) -> dict[str, str]:
    """Return id -> group: images of one value, and the values that share an identical image.

    Args:
        duplicates: Id -> key, equal for identical images.
        values: Id -> value of ``folds.group_by``.
        blank: Images without content: they are out of training, so that one in two groups
            does not merge them.
    """
    ids = list(values)
    alike = {name: key for name, key in duplicates.items() if name not in blank}
    home = merged(ids, [values, alike])
    tied: dict[int, set[str]] = {}
    for name in ids:
        tied.setdefault(home[name], set()).add(values[name])
    return {name: group_name(sorted(tied[home[name]])) for name in ids}


def need_groups(folds: Folds, values: Mapping[str, str], path: Path, *, column: str) -> None:
    """Refuse folds that were made without a group column, or with another.

    Raises:
        InputError: Two images of one value are in two groups.
    """
    home: dict[str, FoldRow] = {}
    for row in folds.rows:
        other = home.setdefault(values[row.id], row)
        if other.group != row.group:
            raise InputError(
                f"folds.group_by: {column!r} was asked for, but {path} has {values[row.id]!r} in two groups (images "
                f"{other.id!r} and {row.id!r}), and folds are never made again; choose another --out"
            )


def make_folds(
    counts: Mapping[str, tuple[int, int]],
    groups: Mapping[str, str],
    config: FoldsConfig,
    *,
    values: Mapping[str, float] | None = None,
    kinds: Mapping[str, int] | None = None,
    sources: Mapping[str, str] | None = None,
    given: Mapping[str, int] | None = None,
) -> Folds:
    """Make folds, groups kept together: stratified, at random, of one split, or dealt out by a number.

    Args:
        counts: Id -> (foreground pixels, judged pixels).
        groups: Id -> group (see bound_groups and merge_groups).
        config: Which rule, number of folds and seed.
        values: Id -> the number of ``config.deal_by`` (see deal_values), or likeness to the test set for ``like_test``.
        kinds: Id -> the rarest class or label, which is spread evenly beside coverage.
        sources: Id -> where it comes from, which is spread evenly too.
        given: Id -> fold, where the data set has a split of its own.

    Raises:
        InputError: Fewer groups than folds, groups too large for the share that is held out, or divided by a split that
            is given.
    """
    names = sorted(counts)
    classes = [coverage_class(*counts[name]) for name in names]
    homes = [groups[name] for name in names]
    share = config.holdout_frac
    if given:
        assigned = np.array([given[name] for name in names])
        _refuse_divided(names, homes, assigned)
    elif config.deal_by is not None:
        assert values is not None, config.deal_by
        assigned = deal_folds([values[name] for name in names], homes, count=config.count)
    elif config.stratify == "like_test":
        assert values is not None
        assert share is not None
        assigned = hold_out_highest([values[name] for name in names], homes, share=share)
    else:
        first = classes if kinds is None else [kinds[name] for name in names]
        spread = {
            "coverage": first,
            "non_empty": [int(kind > 0) for kind in classes],
            "none": [0] * len(classes),
        }
        more = [classes] if kinds is not None else []
        more += [_numbered([sources[name] for name in names])] if sources is not None else []
        further = more if config.stratify == "coverage" else []
        if share is None or share == 1 / config.count:  # halves are folds of equal size
            assigned = assign_folds(
                spread[config.stratify], homes, count=config.count, seed=config.seed, further=further
            )
        else:
            assigned = hold_out(spread[config.stratify], homes, share=share, seed=config.seed)
    return Folds(
        [
            FoldRow(name, groups[name], counts[name][0] / max(counts[name][1], 1), kind, int(fold))
            for name, kind, fold in zip(names, classes, assigned, strict=True)
        ]
    )


def _numbered(values: Sequence[str]) -> list[int]:
    """Return the number of each value among the sorted different ones."""
    order = {value: at for at, value in enumerate(sorted(set(values)))}
    return [order[value] for value in values]


def _refuse_divided(names: Sequence[str], groups: Sequence[str], folds: Int[np.ndarray, " n"]) -> None:
    """Refuse a split that is given and has images of one group in several parts.

    Raises:
        InputError: A group is divided.
    """
    home: dict[str, int] = {}
    divided: dict[str, str] = {}
    for at, (group, fold) in enumerate(zip(groups, folds.tolist(), strict=True)):
        first = home.setdefault(group, at)
        if folds[first] != fold:
            divided.setdefault(group, f"{names[first]!r} and {names[at]!r}")
    if divided:
        raise InputError(
            f"folds: {len(divided)} groups of identical images, or of a patient or place, are in several parts of the "
            f"data's own split, for example {next(iter(divided.values()))}; take them out of one, or make folds of "
            "your own with folds.count=5"
        )


def given_folds(values: Mapping[str, str], config: FoldsConfig) -> dict[str, int]:
    """Return id -> fold by the values of ``folds.fold_by``: numbers in their order, else texts in theirs.

    Raises:
        InputError: There are not as many values as folds.
    """
    found = set(values.values())
    order = sorted(found, key=lambda one: (int(one), one) if all(map(str.isdecimal, found)) else (0, one))
    if len(order) != config.count:
        raise InputError(
            f"folds.fold_by: {config.fold_by!r} has {len(order)} values ({some(order)}), folds.count {config.count}; "
            + (f"set folds.count={len(order)}" if 1 < len(order) <= 100 else "expected 2 to 100 values")
        )
    return {name: order.index(value) for name, value in values.items()}


def rarest_classes(masks: Arrays, num_classes: int) -> dict[str, int]:
    """Return id -> the rarest class that its class map (h, w, 1) holds; 0 where nothing is judged.

    Rare is what few images hold; of two in as many images the one of fewer pixels.
    """
    found = {name: np.bincount(masks[name].ravel(), minlength=IGNORE + 1)[:num_classes] for name in masks}
    return {name: max(0, rarest) for name, rarest in _rarest(found).items()}


def rarest_labels(masks: Arrays, num_labels: int) -> dict[str, int]:
    """Return id -> 1 + the rarest label in its mask (h, w, num_labels), 0 where it holds none; see rarest_classes."""
    found = {name: (masks[name] == 1).sum(axis=(0, 1)) for name in masks}
    assert all(len(one) == num_labels for one in found.values())
    return {name: 1 + rarest for name, rarest in _rarest(found).items()}


def _rarest(found: Mapping[str, Int[np.ndarray, " k"]]) -> dict[str, int]:
    """Return id -> the rarest class of which an image has pixels, -1 where it has none."""
    images = np.sum([pixels > 0 for pixels in found.values()], axis=0)
    order = np.lexsort((np.sum(list(found.values()), axis=0), images))  # the rarest first
    return {name: int(next((at for at in order if pixels[at]), -1)) for name, pixels in found.items()}


def deal_values(samples: Sequence[Sample], column: str) -> dict[str, float]:
    """Return id -> number of a side table's column, for ``folds.deal_by``.

    Raises:
        InputError: No table has such a column of numbers, or an image has no number in it.
    """
    known = sorted({name for sample in samples for name in sample.values})
    if column not in known:
        have = suggest(column, known) if known else "the data has no table with a column of numbers"
        raise InputError(f"folds.deal_by: no side table has a column {column!r} of numbers; {have}")
    bare = [sample.id for sample in samples if column not in sample.values]
    if bare:
        raise InputError(
            f"folds.deal_by: {len(bare)} training images have no {column!r}, for example {bare[0]!r}; fill it in"
        )
    return {sample.id: sample.values[column] for sample in samples}


def write_folds(folds: Folds, path: Path) -> None:
    """Write ``folds.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in folds.rows:
        writer.writerow((row.id, row.group, f"{row.coverage:.6f}", row.coverage_class, row.fold))
    write_text(path, text.getvalue())


def read_folds(path: Path, *, ids: Iterable[str]) -> Folds:
    """Read ``folds.csv``, which a person may have written.

    Args:
        path: The file.
        ids: The training ids of the data set.

    Raises:
        InputError: A missing column, an unknown, repeated or missing id, a fold that is no number, or a group in
            two folds.
    """
    table = parse_table(path.read_bytes(), where=str(path))
    for column in _COLUMNS:
        need_column(table, column)
    rows = []
    for number, cells in enumerate(table.rows, start=2):
        try:
            row = FoldRow(
                cells["id"],
                cells["group"],
                float(cells["coverage"]),
                int(cells["coverage_class"]),
                int(cells["fold"]),
            )
        except ValueError as error:
            raise InputError(f"{path}: line {number}: {error}; expected a number") from error
        if not 0 <= row.coverage_class < NUM_CLASSES:
            raise InputError(
                f"{path}: line {number}: coverage_class {row.coverage_class}; expected 0 to {NUM_CLASSES - 1}"
            )
        rows.append(row)
    _check_folds(rows, set(ids), path)
    return Folds(rows)


def _check_folds(rows: list[FoldRow], ids: set[str], path: Path) -> None:
    names = [row.id for row in rows]
    for name in names:
        if name not in ids:
            raise InputError(f"{path}: the id {name!r} is not in the data set")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: the id {twice!r} appears twice")
    if len(names) < len(ids):
        raise InputError(
            f"{path}: {len(ids) - len(names)} training images have no fold, for example {min(ids - set(names))!r}"
        )
    home: dict[str, FoldRow] = {}
    for row in rows:
        first = home.setdefault(row.group, row)
        if first.fold != row.fold:
            raise InputError(
                f"{path}: images of group {row.group!r} are in folds {first.fold} and {row.fold}; "
                "a group must stay in one fold"
            )
    present = {row.fold for row in rows}
    if present != set(range(len(present))):
        raise InputError(f"{path}: the folds are {sorted(present)}; expected 0, 1, 2 … without a gap")
