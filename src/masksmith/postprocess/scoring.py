"""Scores of stored predictions under a rule: what checkpoints, tuning, ensembles, gates, baselines and reports call."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from masksmith.core.arrays import AnyMask, Codes, Shaped
from masksmith.metrics.protocol import Groups, Metric, Row
from masksmith.postprocess.rules import AnyRule, Arrays, Beside, apply_rule
from masksmith.prediction.store import MAX_CODE

__all__ = [
    "Arrays",
    "RuleMasks",
    "constant",
    "one_layer",
    "rows_of_metrics",
    "score_of",
    "score_rows",
]


def score_rows(
    metric: Metric,
    predictions: Iterable[tuple[str, Codes]],
    targets: Arrays,
    rule: AnyRule,
    beside: Beside | None = None,
) -> dict[str, Row]:
    """Return the metric's row of each image whose probabilities become a mask by ``rule``, by id.

    One image is in memory at a time. ``metric.score`` of the rows is the score of the set (see score_of).

    Args:
        metric: One that can drive the targets' task.
        predictions: Id and codes (h, w, k) of each image.
        targets: Id -> true mask (h, w, 1), or layers.
        rule: How a mask is made of codes.
        beside: What the rule may look at beside the codes.
    """
    return rows_of_metrics([metric], predictions, targets, rule, beside)[0]


def rows_of_metrics(
    metrics: Sequence[Metric],
    predictions: Iterable[tuple[str, Codes]],
    targets: Arrays,
    rule: AnyRule,
    beside: Beside | None = None,
) -> list[dict[str, Row]]:
    """Return score_rows of several metrics; each image becomes a mask once."""
    rows: list[dict[str, Row]] = [{} for _ in metrics]
    for name, codes in predictions:
        mask, target = apply_rule(rule, codes, name, beside), one_layer(targets[name])
        for found, metric in zip(rows, metrics, strict=True):
            found[name] = metric.stats(mask, target)
    return rows


def score_of(metric: Metric, rows: Mapping[str, Row], groups: Groups | None = None) -> float:
    """Return the score of rows by id; ``groups`` holds the group of each, in their order."""
    return metric.score(np.stack(list(rows.values())), groups)


def constant(
    shapes: Iterable[tuple[str, tuple[int, int]]], *, channels: int = 1, on: int | slice | None
) -> Iterator[tuple[str, Codes]]:
    """Yield codes of images of these sizes, full in a channel or a slice of them, 0 elsewhere; None: 0 everywhere."""
    for name, shape in shapes:
        codes = np.zeros((*shape, channels), np.uint16)
        if on is not None:
            codes[..., on] = MAX_CODE
        yield name, codes


def one_layer(mask: Shaped[np.ndarray, "h w k"]) -> Shaped[np.ndarray, "h w *k"]:
    """Return a stored mask of one layer as (h, w); of several layers as it is."""
    return mask[..., 0] if mask.shape[2] == 1 else mask


class RuleMasks(Mapping[str, AnyMask]):
    """Id -> the mask that a rule makes of stored codes, made when it is asked for: no two are in memory."""

    def __init__(self, codes: Mapping[str, Arrays], rule: AnyRule, beside: Beside | None = None) -> None:
        """Keep where the codes (h, w, k) of each id are read from, and what the rule may look at beside them."""
        self.codes, self.rule, self.beside = codes, rule, beside

    def __getitem__(self, name: str) -> AnyMask:
        """Return the mask (h, w), or a layer each label (h, w, k)."""
        return apply_rule(self.rule, self.codes[name][name], name, self.beside)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids."""
        return iter(self.codes)

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.codes)
