"""The bootstrap: how much of a score is the draw of the images? Groups of images are drawn again, with replacement."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

from masksmith.metrics.protocol import Metric

INTERVAL = (0.1, 0.9)
"""Quantiles that bound the 80% interval of a score."""
_AT_ONCE = 2**20
"""Most numbers of the rows of the draws that are scored together: 8 MiB."""


def resampled_scores(
    metric: Metric,
    tables: Sequence[Shaped[np.ndarray, "n _"]],
    groups: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    resamples: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "tables resamples"]:
    """Return the scores of draws of groups with replacement, each draw for all tables of rows alike (paired).

    Args:
        metric: Of the rows.
        tables: Rows (n, k) of the same images, a table for each prediction.
        groups: What is drawn: a name for each image; images of one name come together.
        labels: The metric's groups where they are others than those that are drawn.
        resamples: Draws.
        rng: Of the draws.
    """
    _, membership = np.unique(np.asarray(groups), return_inverse=True)
    num = int(membership.max()) + 1
    images = [np.flatnonzero(membership == group) for group in range(num)] if metric.by_group else []
    names, own = np.unique(np.asarray(groups if labels is None else labels), return_inverse=True)
    scores = np.empty((len(tables), resamples))
    size = max(1, _AT_ONCE // max(1, tables[0].size))
    for start in range(0, resamples, size):
        drawn = [rng.integers(num, size=num) for _ in range(min(size, resamples - start))]
        part = np.s_[start : start + len(drawn)]
        if metric.by_group:  # a group that is drawn twice counts as two: a weight of 2 would change nothing
            for at, groups_drawn in enumerate(drawn, start=start):
                chosen = np.concatenate([images[group] for group in groups_drawn])
                draws = np.repeat(np.arange(num), [len(images[group]) for group in groups_drawn])
                homes = draws * len(names) + own[chosen]
                scores[:, at] = [metric.score(rows[chosen], homes) for rows in tables]
            continue
        weights = np.stack([np.bincount(one, minlength=num)[membership] for one in drawn]).astype(np.float64)
        for table, rows in enumerate(tables):
            scores[table, part] = metric.reduce(
                np.broadcast_to(rows, (len(drawn), *rows.shape)), weights=weights
            )
    return scores
