"""Metrics of pixels that are counted right or wrong: IoU, Dice, precision, recall, the TGS precision.

Ignored pixels of the target are in none of the counts.

Sources: the TGS Salt metric (https://www.kaggle.com/c/tgs-salt-identification-challenge/overview/evaluation); means
over locations as the third place of On Cloud N weighed them.
"""

from collections.abc import Callable

import numpy as np

from masksmith.core.arrays import IGNORE, Mask, Rows
from masksmith.core.errors import InputError
from masksmith.metrics.protocol import (
    Average,
    Metric,
    Row,
    Values,
    per_image,
    per_image_by_group,
    pooled,
    pooled_by_group,
    ratio,
)

COUNTS = ("true_positive", "false_positive", "false_negative", "true_negative")

_AVERAGES: dict[Average, str] = {
    per_image: "mean over images",
    pooled: "pixels of all images pooled",
    pooled_by_group: "mean over groups of a group's pooled pixels",
    per_image_by_group: "mean over groups of the mean over a group's images",
}


def count_stats(pred: Mask, target: Mask) -> Row:
    """Return (true positives, false positives, false negatives, true negatives) of one image, in pixels.

    Args:
        pred: (h, w), foreground where it is not 0.
        target: (h, w) of 0, 1 and IGNORE.
    """
    foreground, truth, judged = pred != 0, target == 1, target != IGNORE
    hit = np.count_nonzero(foreground & truth)
    false = np.count_nonzero(foreground & judged) - hit
    missed = np.count_nonzero(truth) - hit
    right = np.count_nonzero(judged) - hit - false - missed
    return np.array([hit, false, missed, right], np.float64)


def tgs_precision(rows: Rows) -> Values:
    """Return the share of the IoU thresholds 0.50, 0.55 … 0.95 that are exceeded, strictly.

    Decided in integers (``20 * intersection > k * union``): 0.6 as a sum of floats is 0.6000000000000001.
    Nothing predicted and nothing there: 1. One of them empty: 0.
    """
    hit, union = rows[..., 0], rows[..., :3].sum(axis=-1)
    steps = np.zeros(hit.shape)
    for k in range(10, 20):
        steps += 20 * hit > k * union
    return np.where(union == 0, 1.0, steps / 10)


def tgs_hits(name: str, row: Row) -> str:
    """Return how the TGS precision of one image comes about: intersection, union, and each threshold.

    Args:
        name: Of the image.
        row: Of count_stats.
    """
    hit, union = int(row[0]), int(row[:3].sum())
    lines = [f"image {name!r}: intersection {hit} px, union {union} px"]
    if union:
        lines[0] += f", IoU {hit / union:.4f}"
        lines += ["Does this IoU hit at each threshold?", "threshold  hit"]
        lines += [f"{k / 20:.2f}       {20 * hit > k * union}" for k in range(10, 20)]
    else:
        lines[0] += ": nothing is there and nothing is predicted"
    return "\n".join(
        [*lines, f"Average precision value for image {name!r} is {tgs_precision(row[None])[0]:g}"]
    )


def iou(rows: Rows, empty_score: float) -> Values:
    """Return intersection over union (Jaccard)."""
    return ratio(rows[..., 0], rows[..., :3].sum(axis=-1), empty_score)


def dice(rows: Rows, empty_score: float) -> Values:
    """Return twice the intersection over the sum of both areas (F1)."""
    return ratio(2 * rows[..., 0], 2 * rows[..., 0] + rows[..., 1] + rows[..., 2], empty_score)


def precision(rows: Rows, empty_score: float) -> Values:
    """Return the share of the predicted pixels that are there; nothing predicted, but something there: 0."""
    union = rows[..., :3].sum(axis=-1)
    return np.where(union == 0, empty_score, ratio(rows[..., 0], rows[..., 0] + rows[..., 1], 0.0))


def recall(rows: Rows, empty_score: float) -> Values:
    """Return the share of the pixels there that are predicted; something predicted where nothing is: 0."""
    union = rows[..., :3].sum(axis=-1)
    return np.where(union == 0, empty_score, ratio(rows[..., 0], rows[..., 0] + rows[..., 2], 0.0))


def of_counts(
    measure: Callable[[Rows, float], Values], average: Average, *, empty: float = 1.0
) -> Callable[..., Metric]:
    """Return the metric that averages a measure of counts, as a function of its ``empty_score``.

    Args:
        measure: iou, dice, precision or recall.
        average: Over what.
        empty: Default of ``empty_score``: the value where nothing is there and nothing is predicted.
    """

    def make(*, empty_score: float = empty) -> Metric:
        if not 0 <= empty_score <= 1:
            raise InputError(f"empty_score: {empty_score:g} is no score; expected 0 to 1")
        return Metric(
            measure.__name__,
            f"{measure.__name__}, {_AVERAGES[average]}; empty/empty = {empty_score:g}, one of them empty = 0",
            lambda rows: measure(rows, empty_score),
            average,
            count_stats,
            "counts",
        )

    return make


def tgs_map() -> Metric:
    """Return the TGS Salt metric."""
    return Metric(
        "tgs_map",
        "mean over images of the share of the IoU thresholds 0.50, 0.55 … 0.95 that are exceeded; empty/empty = 1",
        tgs_precision,
        per_image,
        count_stats,
        "counts",
    )
