"""Columns of the side tables: do they differ between the training and the test images?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from masksmith.core.arrays import Float
from masksmith.data.catalog import Catalog, Sample

LEAST_GAP = 0.1
"""Difference of two distributions, 0…1, below which they are not called different, however many images there are."""
LEVEL = 0.01
"""Probability, by chance, of a warning in a set whose columns do not differ (Bonferroni)."""
MOST_VALUES = 30
"""A column of text with more values is not one of kinds; it is named, and not compared."""

_Values = dict[str, float] | dict[str, str]


@dataclass(frozen=True)
class Column:
    """A column of numbers or of kinds; ``gap`` is None where the test images have none."""

    name: str
    train: _Values
    """Id -> value, of the images that have one."""
    test: _Values
    gap: float | None
    """Numbers: largest gap of the cumulative shares (Kolmogorov-Smirnov). Kinds: half the sum of the differences of
    their shares (total variation)."""
    chance: float | None
    """Probability of such a gap if both came from one population."""
    shifted: bool
    """Whether that is worth a warning."""
    only_test: list[str]
    """Kinds that no training image has."""

    @property
    def numeric(self) -> bool:
        """Whether it holds numbers."""
        return not any(isinstance(value, str) for value in self.train.values())


def compare_columns(catalog: Catalog) -> tuple[list[Column], list[str]]:
    """Return the columns of a data set, those that shift most first, and the names of those of too many values."""
    numeric = sorted({name for sample in catalog.train for name in sample.values})
    texts = sorted({name for sample in catalog.train for name in sample.texts} - set(numeric))
    sets = catalog.train, catalog.test
    pairs: list[tuple[str, _Values, _Values]] = []
    many = []
    for name in numeric:
        ours, theirs = (_numbers(samples, name) for samples in sets)
        pairs.append((name, ours, theirs))
    for name in texts:
        train, test = (_texts(samples, name) for samples in sets)
        if len(set(train.values())) > MOST_VALUES:
            many.append(name)
        elif train:
            pairs.append((name, train, test))
    columns = [_column(name, train, test, LEVEL / len(pairs)) for name, train, test in pairs]
    return sorted(columns, key=lambda one: (not one.shifted, -(one.gap or 0), one.name)), many


def _numbers(samples: Sequence[Sample], name: str) -> dict[str, float]:
    return {one.id: one.values[name] for one in samples if name in one.values}


def _texts(samples: Sequence[Sample], name: str) -> dict[str, str]:
    return {one.id: text for one in samples if (text := one.texts.get(name, "").strip())}


def _column(
    name: str,
    train: _Values,
    test: _Values,
    level: float,
) -> Column:
    if not test:
        return Column(name, train, test, None, None, False, [])
    if any(isinstance(value, str) for value in train.values()):
        ours, theirs = (Counter(map(str, one.values())) for one in (train, test))
        gap, chance = _gap_of_kinds(ours, theirs)
        unseen = sorted(set(theirs) - set(ours))
        return Column(name, train, test, gap, chance, gap >= LEAST_GAP and chance < level, unseen)
    gap, chance = _gap_of_numbers(np.array(list(train.values())), np.array(list(test.values())))
    return Column(name, train, test, gap, chance, gap >= LEAST_GAP and chance < level, [])


def _gap_of_numbers(ours: Float[np.ndarray, " n"], theirs: Float[np.ndarray, " m"]) -> tuple[float, float]:
    from scipy import stats  # type: ignore[import-untyped]  # not before: it takes a second

    found = stats.ks_2samp(ours, theirs, method="asymp")
    return float(found.statistic), float(found.pvalue)


def _gap_of_kinds(ours: Counter[str], theirs: Counter[str]) -> tuple[float, float]:
    from scipy import stats

    kinds = sorted(set(ours) | set(theirs))
    table = np.array([[one[kind] for kind in kinds] for one in (ours, theirs)], np.float64)
    shares = table / table.sum(axis=1, keepdims=True)
    gap = float(np.abs(shares[0] - shares[1]).sum() / 2)
    return gap, float(stats.chi2_contingency(table).pvalue) if len(kinds) > 1 else 1.0
