"""Scores of stored predictions under a rule: what checkpoints, tuning, ensembles, gates, baselines and reports call."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from masksmith.core.arrays import Codes, Mask, Shaped
from masksmith.metrics.protocol import Groups, Metric, Row
from masksmith.postprocess.operators import PLAIN, Rule, apply_rule
from masksmith.prediction.store import MAX_CODE


@runtime_checkable
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
    return {name: metric.stats(apply_rule(codes, rule), targets[name][..., 0]) for name, codes in predictions}


def score_of(metric: Metric, rows: Mapping[str, Row], groups: Groups | None = None) -> float:
    """Return the score of rows by id; ``groups`` holds the group of each, in their order."""
    return metric.score(np.stack(list(rows.values())), groups)


def constant(shapes: Iterable[tuple[str, tuple[int, int]]], *, full: bool) -> Iterator[tuple[str, Codes]]:
    """Yield predictions of nothing, or with ``full`` of everything, for images of these sizes."""
    for name, shape in shapes:
        yield name, np.full(shape, MAX_CODE if full else 0, np.uint16)


class RuleMasks(Mapping[str, Mask]):
    """Id -> the mask that a rule makes of stored codes, made when it is asked for: no two are in memory."""

    def __init__(self, codes: Mapping[str, Arrays], rule: Rule) -> None:
        """Keep where the codes (h, w, 1) of each id are read from."""
        self.codes, self.rule = codes, rule

    def __getitem__(self, name: str) -> Mask:
        """Return the mask of 0 and 1 (h, w)."""
        return apply_rule(self.codes[name][name][..., 0], self.rule)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids."""
        return iter(self.codes)

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.codes)
