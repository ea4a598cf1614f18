"""How good stored predictions are under a rule: the one function that checkpoints, tuning, ensembles and reports call."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from masksmith.arrays import Codes, Shaped
from masksmith.metrics.protocol import Groups, Metric, Row
from masksmith.postprocess.operators import PLAIN, Rule, apply_rule
from masksmith.prediction.codes import MAX_CODE


class Arrays(Protocol):
    """Arrays (h, w, c) by id, each read when it is asked for, such as a Store."""

    def __getitem__(self, name: str, /) -> Shaped[np.ndarray, "h w c"]:
        """Return the array of an id."""


def score_rows(
    metric: Metric, predictions: Iterable[tuple[str, Codes]], targets: Arrays, rule: Rule = PLAIN
) -> dict[str, Row]:
    """Return the metric's row of each image whose probabilities become a mask by ``rule``, by id.

    One image is in memory at a time. ``metric.score`` of the rows is the score of the set (see score_of).

    Args:
        metric: Of binary masks.
        predictions: Id and codes (h, w) of each image.
        targets: Id -> true mask (h, w, 1).
        rule: How a mask is made of codes.
    """
    return {
        name: metric.stats(apply_rule(codes, rule), targets[name][..., 0]) for name, codes in predictions
    }


def score_of(metric: Metric, rows: Mapping[str, Row], groups: Groups | None = None) -> float:
    """Return the score of rows by id; ``groups`` holds the group of each, in their order."""
    return metric.score(np.stack(list(rows.values())), groups)


def constant(shapes: Iterable[tuple[str, tuple[int, int]]], *, full: bool) -> Iterator[tuple[str, Codes]]:
    """Yield predictions of nothing, or with ``full`` of everything, for images of these sizes."""
    for name, shape in shapes:
        yield name, np.full(shape, MAX_CODE if full else 0, np.uint16)


def stored(codes: Arrays, names: Sequence[str]) -> Iterator[tuple[str, Codes]]:
    """Yield the stored predictions (h, w) of these images."""
    for name in names:
        yield name, codes[name][..., 0]
