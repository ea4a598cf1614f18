"""The paired bootstrap: is a gain more than the draw of the images?"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from masksmith.metrics.bootstrap import resampled_scores
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
    before, after = resampled_scores(
        metric, (other, rows), groups, labels=labels, resamples=resamples, rng=rng
    )
    gains = after - before if metric.higher_is_better else before - after
    return gains, after, before
