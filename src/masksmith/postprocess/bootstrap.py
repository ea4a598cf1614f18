"""The paired bootstrap: is a gain more than the draw of the images?"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from masksmith.metrics.protocol import Metric

BOUND_QUANTILE = 0.2
"""Below it lies the lower 80% bound of a gain."""


def paired_bootstrap(
    metric: Metric,
    rows: Float[np.ndarray, "n k"],
    other: Float[np.ndarray, "n k"],
    groups: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """Resample groups with replacement; return the gains of ``rows`` over ``other``, and the scores of both.

    A gain above 0 is for the better. In a metric of groups, a group that is drawn twice counts as two; ``labels`` are
    the metric's groups where they are others (see search_rule).
    """
    _, membership = np.unique(np.asarray(groups), return_inverse=True)
    num = int(membership.max()) + 1
    images = [np.flatnonzero(membership == group) for group in range(num)] if metric.by_group else []
    names, own = np.unique(np.asarray(groups if labels is None else labels), return_inverse=True)
    gains, own_scores, other_scores = [], [], []
    for _ in range(resamples):
        drawn = rng.integers(num, size=num)
        if metric.by_group:
            chosen = np.concatenate([images[group] for group in drawn])
            draws = np.repeat(np.arange(num), [len(images[group]) for group in drawn])
            homes = draws * len(names) + own[chosen]  # a location of each draw
            before, after = metric.score(other[chosen], homes), metric.score(rows[chosen], homes)
        else:
            weights = np.bincount(drawn, minlength=num)[membership].astype(np.float64)
            before, after = (float(metric.reduce(one, weights=weights)) for one in (other, rows))
        gains.append(metric.utility(after) - metric.utility(before))
        own_scores.append(after)
        other_scores.append(before)
    return np.array(gains), np.array(own_scores), np.array(other_scores)
