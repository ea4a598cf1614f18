"""What a metric is: rows of images, a value of a row, and an average.

An image is measured once, by ``stats(pred, target) -> row``. ``value(rows)`` is the score of each row, and an
average says over what: each image, all images pooled, or groups. A row is made so that it can be summed where its
metric pools. Rows may have any leading axes, (…, n, k), weights (…, n).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from masksmith.core.arrays import Rows
from masksmith.core.errors import InputError

Scores = Float[np.ndarray, "*lead"]
Values = Float[np.ndarray, "*lead n"]
Weights = Float[np.ndarray, "*lead n"]
Groups = Shaped[np.ndarray, " n"]
Row = Float[np.ndarray, " k"]
Value = Callable[[Rows], Values]
Average = Callable[[Value, Rows, Weights, Groups | None], Scores]
Needs = Literal["counts", "components", "boundary", "classes", "planes"]


def weighted_mean(values: Values, weights: Weights) -> Scores:
    """Return the mean over the last axis."""
    return np.asarray((values * weights).sum(axis=-1) / weights.sum(axis=-1), np.float64)


def per_image(value: Value, rows: Rows, weights: Weights, groups: Groups | None) -> Scores:
    """Mean over images of each image's value."""
    del groups
    return weighted_mean(value(rows), weights)


def pooled(value: Value, rows: Rows, weights: Weights, groups: Groups | None) -> Scores:
    """Value of the summed rows of all images."""
    del groups
    return np.asarray(value((rows * weights[..., None]).sum(axis=-2)[..., None, :])[..., 0], np.float64)


def pooled_by_group(value: Value, rows: Rows, weights: Weights, groups: Groups | None) -> Scores:
    """Mean over groups of the value of a group's summed rows; each group counts once."""
    assert groups is not None
    order, starts = _by_group(groups)
    sums = np.add.reduceat((rows * weights[..., None])[..., order, :], starts, axis=-2)  # (…, groups, k)
    present = np.add.reduceat(weights[..., order], starts, axis=-1) > 0
    return weighted_mean(value(sums), present.astype(np.float64))


def per_image_by_group(value: Value, rows: Rows, weights: Weights, groups: Groups | None) -> Scores:
    """Mean over groups of the mean of a group's images; each group counts once."""
    assert groups is not None
    order, starts = _by_group(groups)
    sums = np.add.reduceat((value(rows) * weights)[..., order], starts, axis=-1)  # (…, groups)
    totals = np.add.reduceat(weights[..., order], starts, axis=-1)
    present = (totals > 0).astype(np.float64)
    return weighted_mean(sums / np.where(totals > 0, totals, 1.0), present)


def _of_class(value: Value, at: int, rows: Rows) -> Values:
    return value(rows)[..., at]


GROUPED = (pooled_by_group, per_image_by_group)


def _by_group(groups: Groups) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " g"]]:
    """Return the order that brings the images of a group together, and where each group starts in it."""
    _, member = np.unique(groups, return_inverse=True)
    order = np.argsort(member, kind="stable")
    return order, np.searchsorted(member[order], np.arange(int(member.max()) + 1))


def ratio(part: Values, whole: Values, empty: float) -> Values:
    """Return ``part / whole``, and ``empty`` where ``whole`` is 0."""
    return np.divide(part, whole, out=np.full(whole.shape, empty, np.float64), where=whole > 0)


@dataclass(frozen=True)
class Metric:
    """One definition for validation, sweeps over thresholds, the bootstrap and ensembles.

    Attributes:
        name: As it is written in a recipe, with its parameters.
        describes: Averaging, and the score on empty/empty.
        value: Rows (…, n, k) -> the value of each, (…, n).
        average: per_image, pooled, pooled_by_group or per_image_by_group.
        stats: (pred, target) of one image -> its row.
        needs: What ``stats`` looks at: "counts" of pixels (a sweep makes them from histograms), "components" (objects:
            the connected components of a mask, or the labels of an instance map), the "boundary" of a mask, "classes"
            (class maps), or "planes" (masks that may overlap, a plane a class).
        higher_is_better: False for a distance.
        class_value: Rows (…, n, k) -> the value of each class in each, (…, n, classes), NaN for a class that is
            nowhere; None where a metric knows no classes.
        each: The metric of one plane, where a metric of planes is its mean over classes: what is tuned class by class.
    """

    name: str
    describes: str
    value: Value
    average: Average
    stats: Callable[..., Row]
    needs: Needs
    higher_is_better: bool = True
    class_value: Value | None = None
    each: "Metric | None" = None

    @property
    def by_group(self) -> bool:
        """Whether it is a mean over groups, so that ``reduce`` needs them."""
        return self.average in GROUPED

    def reduce(self, rows: Rows, *, groups: Groups | None = None, weights: Weights | None = None) -> Scores:
        """Return the score of rows (…, n, k) as an array of the leading shape.

        Args:
            rows: One row an image, at least one.
            groups: Group of each image: needed where ``by_group``, else without effect.
            weights: (…, n), 0 or above; 2 counts an image twice. A group of weight 0 is not there.

        Raises:
            InputError: No rows, no groups where they are needed, or weights that are negative or all 0.
        """
        return self._averaged(self.value, rows, groups, weights)

    def class_scores(
        self, rows: Rows, *, groups: Groups | None = None, weights: Weights | None = None
    ) -> Float[np.ndarray, "*lead classes"]:
        """Return the score of each class of rows (…, n, k), in the order of the classes, the background with them.

        A class that is nowhere is NaN in metrics that leave it out. A metric without classes has its score alone, as
        the only class. Arguments and errors are those of reduce.
        """
        value = self.class_value
        if value is None:
            return self.reduce(rows, groups=groups, weights=weights)[..., None]
        scores = [
            self._averaged(partial(_of_class, value, at), rows, groups, weights)
            for at in range(value(rows[..., :1, :]).shape[-1])
        ]
        return np.stack(scores, axis=-1)

    def _averaged(self, value: Value, rows: Rows, groups: Groups | None, weights: Weights | None) -> Scores:
        if rows.shape[-2] == 0:
            raise InputError(f"metric {self.name}: 0 images were given; expected at least one")
        if self.by_group and groups is None:
            raise InputError(
                f"metric {self.name}: it is a mean over groups and none were given; in a recipe, set folds.group_by to "
                "the column of the group"
            )
        if weights is None:
            weights = np.ones(rows.shape[:-1])
        elif (weights < 0).any() or (weights.sum(axis=-1) <= 0).any():
            raise InputError(
                f"metric {self.name}: weights sum to {weights.sum(axis=-1).min():g}, the least is {weights.min():g}; "
                "expected 0 or above, and one above 0"
            )
        return self.average(value, rows, weights, groups)

    def score(self, rows: Rows, groups: Groups | None = None) -> float:
        """Return the score of rows (n, k) as a number."""
        return float(self.reduce(rows, groups=groups))

    def utility(self, score: float) -> float:
        """Return the score with its sign such that higher is better."""
        return score if self.higher_is_better else -score
