"""What each image costs a score: how much better the score would be if the image were predicted without an error."""

import numpy as np
from jaxtyping import Float

from masksmith.core.arrays import Rows
from masksmith.metrics.protocol import GROUPED, Groups, Metric, pooled, pooled_by_group


def image_costs(
    metric: Metric, rows: Rows, perfect: Rows, groups: Groups | None = None
) -> Float[np.ndarray, " n"]:
    """Return the gain of the score if one image alone were right, for each image; above 0 is for the better.

    Of a mean over images the costs of all images add up to what the score lacks. Of a pooled score they do not: there
    an image costs by its pixels.

    Args:
        metric: Of the rows.
        rows: (n, k), a row an image.
        perfect: Rows of the same images predicted right: ``metric.stats(target, target)``.
        groups: The metric's group of each image, where it is a mean over groups.
    """
    if metric.average not in GROUPED:
        return _costs(metric, rows, perfect)
    assert groups is not None
    names, member = np.unique(groups, return_inverse=True)
    costs = np.empty(len(rows))
    for at in range(len(names)):
        inside = member == at
        costs[inside] = _costs(metric, rows[inside], perfect[inside]) / len(names)
    return costs


def _costs(metric: Metric, rows: Rows, perfect: Rows) -> Float[np.ndarray, " n"]:
    """Return the costs within one group."""
    if metric.average in (pooled, pooled_by_group):
        before = metric.value(rows.sum(axis=0)[None])[0]
        after = metric.value(rows.sum(axis=0) - rows + perfect)
    else:
        before, after = metric.value(rows) / len(rows), metric.value(perfect) / len(rows)
    return np.asarray(after - before if metric.higher_is_better else before - after, np.float64)
