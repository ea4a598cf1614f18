"""Metrics by one protocol: ``stats(pred, target) -> row`` of an image, ``reduce(rows) -> float``.

Because a row says all that a metric needs of an image, the same definition serves validation, the
threshold sweep (thousands of rows at once), the bootstrap and, later, ensembles. ``reduce`` takes rows
with any leading axes, (…, n, k), and weights (…, n). To add a metric, write a reducer and a line in
METRICS.

No metric is called just "iou": the name says how images are averaged. Pixels of value IGNORE in the
target are not counted anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from masksmith.arrays import IGNORE, Mask, Rows
from masksmith.config import look_up

Scores = Float[np.ndarray, "*lead"]
Weights = Float[np.ndarray, "*lead n"]
COUNTS = ("true_positive", "false_positive", "false_negative")


def count_stats(pred: Mask, target: Mask) -> Float[np.ndarray, " k"]:
    """Return (true positives, false positives, false negatives) of one image, in pixels.

    Args:
        pred: (h, w), foreground where it is not 0.
        target: (h, w) of 0, 1 and IGNORE.
    """
    foreground, truth, judged = pred != 0, target == 1, target != IGNORE
    hit = np.count_nonzero(foreground & truth)
    return np.array(
        [hit, np.count_nonzero(foreground & judged) - hit, np.count_nonzero(truth) - hit], np.float64
    )


def _weighted_mean(values: Shaped[np.ndarray, "... n"], weights: Weights | None) -> Scores:
    if weights is None:
        return np.asarray(values.mean(axis=-1), np.float64)
    return np.asarray((values * weights).sum(axis=-1) / weights.sum(axis=-1), np.float64)


def tgs_map_each(rows: Rows) -> Shaped[np.ndarray, "... n"]:
    """Precision of each image averaged over the IoU thresholds 0.50, 0.55 … 0.95, strictly above.

    Decided in integers (``20 * intersection > k * union``): 0.6 as a sum of floats is 0.6000000000000001.
    Nothing predicted and nothing there: 1. One of them empty: 0.
    """
    hit, union = rows[..., 0], rows.sum(axis=-1)
    steps = np.zeros(hit.shape)
    for k in range(10, 20):
        steps += 20 * hit > k * union
    return np.where(union == 0, 1.0, steps / 10)


def _dice_each(rows: Rows) -> Shaped[np.ndarray, "... n"]:
    double, wrong = 2 * rows[..., 0], rows[..., 1] + rows[..., 2]
    return np.where(double + wrong == 0, 1.0, double / np.maximum(double + wrong, 1))


def _iou_each(rows: Rows) -> Shaped[np.ndarray, "... n"]:
    union = rows.sum(axis=-1)
    return np.where(union == 0, 1.0, rows[..., 0] / np.maximum(union, 1))


def _mean_of(each: Callable[[Rows], Shaped[np.ndarray, "... n"]]) -> Callable[[Rows, Weights | None], Scores]:
    def reduce(rows: Rows, weights: Weights | None = None) -> Scores:
        return _weighted_mean(each(rows), weights)

    return reduce


def _iou_pooled(rows: Rows, weights: Weights | None = None) -> Scores:
    weighted = rows if weights is None else rows * weights[..., None]
    total = weighted.sum(axis=-2)
    union = total.sum(axis=-1)
    return np.asarray(np.where(union == 0, 1.0, total[..., 0] / np.maximum(union, 1e-12)), np.float64)


@dataclass(frozen=True)
class Metric:
    """A metric; higher is better.

    ``needs`` says what ``stats`` looks at ("counts" of pixels), so that a sweep over thresholds can make
    rows from histograms where counts are enough.
    """

    name: str
    describes: str
    reducer: Callable[[Rows, Weights | None], Scores]
    stats: Callable[[Mask, Mask], Float[np.ndarray, " k"]] = count_stats
    needs: str = "counts"

    def reduce(
        self, rows: Rows, *, groups: Shaped[np.ndarray, " n"] | None = None, weights: Weights | None = None
    ) -> Scores:
        """Return the score of rows (…, n, k) as an array of the leading shape.

        Args:
            rows: One row an image.
            groups: Group of each image; used by metrics whose ``needs`` is "groups", ignored by the others.
            weights: (…, n), 0 or above; 2 counts an image twice.
        """
        del groups
        return self.reducer(rows, weights)

    def score(self, rows: Rows) -> float:
        """Return the score of rows (n, k) as a number."""
        return float(self.reduce(rows))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "tgs_map",
            "per image: share of the IoU thresholds 0.50, 0.55 … 0.95 that are exceeded; empty/empty = 1",
            _mean_of(tgs_map_each),
        ),
        Metric(
            "dice_per_image", "mean of each image's Dice; empty/empty = 1 (SIIM-ACR)", _mean_of(_dice_each)
        ),
        Metric("iou_per_image", "mean of each image's IoU; empty/empty = 1", _mean_of(_iou_each)),
        Metric("iou_pooled", "sum of intersections over sum of unions; all empty = 1", _iou_pooled),
    )
}


def get_metric(name: str, *, where: str = "metric") -> Metric:
    """Return a metric by name.

    Raises:
        InputError: The name is unknown; the message suggests the nearest.
    """
    return look_up(METRICS, name, where=where)
