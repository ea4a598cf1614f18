"""Every image under every rule, whatever kind of rule: what the search reads.

A sweep of thresholds (``search.Sweep``) is made from histograms and holds thousands of rules. ``RuleSweep`` serves
rules of any kind: every image's prediction is made by each of them, some dozens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

from masksmith.core.arrays import Shaped
from masksmith.metrics.protocol import Metric, Row

AnyRule = TypeVar("AnyRule")


@runtime_checkable
class AppliedRule(Protocol):
    """A rule that makes a prediction of an image's codes; frozen, so that it can be found again."""

    def apply(self, codes: np.ndarray, /) -> np.ndarray:
        """Return the prediction (h, w): a mask, or the labels of objects."""

    def describe(self) -> str:
        """Return the rule as a sentence."""


@runtime_checkable
class AnySweep(Protocol[AnyRule]):
    """What the search asks of a sweep."""

    @property
    def empty(self) -> Float[np.ndarray, "n k"]:
        """The row of an empty prediction of each image."""

    def rows_of(self, rule: AnyRule) -> Float[np.ndarray, "n k"]:
        """Return each image's row under a rule."""

    def part(self, chosen: Any) -> "AnySweep[AnyRule]":  # noqa: ANN401
        """Return the sweep of some images (an index array or a boolean one)."""

    def curve(self) -> list[tuple[float, AnyRule]]:
        """Return threshold and rule of a curve to be drawn, by threshold; [] where the rules lie on none."""


@runtime_checkable
class ScoredSweep(Protocol):
    """A sweep that scores many rules faster than from their rows."""

    def scores(self, rules: Sequence[Any], metric: Metric) -> Float[np.ndarray, " rules"]:
        """Return the score of each rule by a metric that is no mean over groups."""


@dataclass(frozen=True)
class RuleSweep(Generic[AnyRule]):
    """Rows of every image under every rule: ``rows[i, r]`` is the metric's row of image i under ``rules[r]``."""

    rules: tuple[AnyRule, ...]
    rows: Float[np.ndarray, "n r k"]
    empty: Float[np.ndarray, "n k"]
    """The row of an empty prediction of each image."""

    def rows_of(self, rule: AnyRule) -> Float[np.ndarray, "n k"]:
        """Return each image's row under one of ``rules``."""
        return self.rows[:, self.rules.index(rule)]

    def part(self, chosen: Any) -> "RuleSweep[AnyRule]":  # noqa: ANN401
        """Return the sweep of some images (an index array or a boolean one)."""
        return RuleSweep(self.rules, self.rows[chosen], self.empty[chosen])

    def curve(self) -> list[tuple[float, AnyRule]]:
        """Return nothing: rules of several numbers lie on no curve."""
        return []


def apply_each(codes: Shaped[np.ndarray, "..."], rules: Sequence[Any]) -> Iterator[Shaped[np.ndarray, "h w"]]:
    """Yield the prediction that each rule makes of an image's codes."""
    for rule in rules:
        yield rule.apply(codes)


def sweep_rules(
    pairs: Iterable[tuple[Shaped[np.ndarray, "..."], Shaped[np.ndarray, "h w"]]],
    rules: Sequence[AnyRule],
    metric: Metric,
    *,
    apply_all: Callable[..., Iterable[np.ndarray]] = apply_each,
) -> RuleSweep[AnyRule]:
    """Make every image's prediction by every rule and measure it; one image and one prediction are held at a time.

    Args:
        pairs: Codes and target of each image, at least one; each is looked at once.
        rules: At least one, of the form of AppliedRule.
        metric: Of such predictions and targets.
        apply_all: (codes, rules) -> the prediction of each rule, where they have work in common.
    """
    rows, empty = [], []
    for codes, target in pairs:
        own: list[Row] = []
        for prediction in apply_all(codes, rules):
            if not own:
                empty.append(metric.stats(np.zeros_like(prediction), target))
            own.append(metric.stats(prediction, target))
        rows.append(np.stack(own))
    return RuleSweep(tuple(rules), np.stack(rows), np.stack(empty))
