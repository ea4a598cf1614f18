"""Folds: stratified by how much of an image is foreground, identical images and groups kept together.

Folds are written once to ``folds.csv`` and never computed again: scores of different days stay comparable.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from masksmith.core.arrays import IGNORE, Int, Shaped
from masksmith.core.config import suggest
from masksmith.core.errors import InputError
from masksmith.core.files import digest
from masksmith.data.catalog import Sample
from masksmith.data.findings import some
from masksmith.data.groups import group_name, merged
from masksmith.data.store import Arrays
from masksmith.folds.assignment import assign_folds, deal_folds, hold_out, hold_out_highest
from masksmith.folds.config import FoldsConfig

NUM_CLASSES = 11


def coverage_class(foreground: int, total: int) -> int:
    """Return the coverage class 0..10: the smallest i with ``10 * coverage <= i``; 0 is exactly empty.

    The eleven classes of the TGS Salt kernels, in integers: no coverage falls between two floats.
    """
    return -(-10 * foreground // total) if total else 0


@dataclass(frozen=True)
class FoldRow:
    """The folds of one training image, and why."""

    id: str
    group: str
    coverage: float
    coverage_class: int
    fold: int
    more: tuple[int, ...] = ()
    """Of further repeats."""

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that hold it out, one a repeat."""
        return (self.fold, *self.more)


@dataclass(frozen=True)
class Folds:
    """All rows of ``folds.csv``."""

    rows: list[FoldRow]

    @property
    def count(self) -> int:
        """Number of folds of one repeat."""
        return max(row.fold for row in self.rows) + 1

    @property
    def repeats(self) -> int:
        """How often each image is held out."""
        return len(self.rows[0].folds)

    @property
    def total(self) -> int:
        """Number of folds of all repeats."""
        return self.count * self.repeats

    @property
    def hash(self) -> str:
        """A hash over who is in which fold."""
        return digest(*(" ".join(map(str, (row.id, row.group, *row.folds))) for row in self.rows))

    def inside(self, fold: int) -> list[str]:
        """Ids that fold ``fold`` is validated on."""
        return [row.id for row in self.rows if fold in row.folds]

    def outside(self, fold: int) -> list[str]:
        """Ids that fold ``fold`` is trained on."""
        return [row.id for row in self.rows if fold not in row.folds]

    def groups(self, names: Sequence[str]) -> Shaped[np.ndarray, " n"]:
        """Group of each of these images."""
        home = {row.id: row.group for row in self.rows}
        return np.array([home[name] for name in names])

    def balance(self) -> Int[np.ndarray, "folds classes"]:
        """Number of images of each coverage class in each fold."""
        table = np.zeros((self.total, NUM_CLASSES), np.int64)
        for row in self.rows:
            table[row.folds, row.coverage_class] += 1
        return table

    def __str__(self) -> str:
        head = "fold  images  mean coverage  images of coverage class 0 (empty) … 10"
        lines = [head]
        for fold, counts in enumerate(self.balance()):
            mean = np.mean([row.coverage for row in self.rows if fold in row.folds])
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
            is given; repeats of a split that is given, or of so few groups that two repeats are the same.
    """
    if config.repeats > 1:
        _refuse_fixed(config, given)
        made = [
            make_folds(
                counts,
                groups,
                config.model_copy(update={"repeats": 1, "seed": config.seed + repeat}),
                kinds=kinds,
                sources=sources,
            )
            for repeat in range(config.repeats)
        ]
        return _repeated(made)
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


def _refuse_fixed(config: FoldsConfig, given: Mapping[str, int] | None) -> None:
    if given:
        raise InputError(
            f"folds.repeats: {config.repeats}, but the data's own split is the same each time; set folds.repeats=1, or "
            "make folds of your own with folds.count=5 and folds.train=null"
        )


def _repeated(made: Sequence[Folds]) -> Folds:
    """Return the folds of all repeats, numbered through.

    Raises:
        InputError: Two repeats hold the same images out together.
    """
    count, seen = made[0].count, dict[frozenset[frozenset[str]], int]()
    for repeat, folds in enumerate(made):
        parts = frozenset(frozenset(folds.inside(fold)) for fold in range(count))
        if (first := seen.setdefault(parts, repeat)) != repeat:
            raise InputError(
                f"folds.repeats: repeat {repeat + 1} has the same folds as repeat {first + 1}, so few groups of images "
                f"there are ({len({row.group for row in folds.rows})}); expected {repeat} at most, another folds.count "
                "or folds.seed"
            )
    return Folds(
        [
            replace(rows[0], more=tuple(row.fold + count * at for at, row in enumerate(rows) if at))
            for rows in zip(*(folds.rows for folds in made), strict=True)
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
