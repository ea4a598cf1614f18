"""The rule that makes masks of several labels, which may overlap: a rule of thresholds and areas for each label.

A metric of such masks is a mean over labels of a metric of binary masks, so each label is searched alone, by the sweep
of binary masks over its plane; what was found for all of them is one rule, and is judged as one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from masksmith.core.arrays import Codes, UInt8
from masksmith.metrics.planes import join_rows, metric_of_plane
from masksmith.metrics.protocol import Groups, Metric
from masksmith.postprocess.operator_rule import OperatorRule, Seen
from masksmith.postprocess.operators import Rule
from masksmith.postprocess.rule_sweep import AnySweep
from masksmith.postprocess.search import chooser


@dataclass(frozen=True)
class LabelRules:
    """A rule for each label."""

    rules: tuple[Rule | OperatorRule, ...]
    names: tuple[str, ...]
    """Of the labels."""

    @property
    def needs_image(self) -> bool:
        """Whether a rule looks at the image."""
        return any(isinstance(one, OperatorRule) and one.needs_image for one in self.rules)

    @property
    def columns(self) -> list[str]:
        """The columns of numbers that the rules look at."""
        found = (one.column for one in self.rules if isinstance(one, OperatorRule))
        return list(dict.fromkeys(name for name in found if name is not None))

    def apply(self, codes: Codes, seen: Seen = Seen()) -> UInt8[np.ndarray, "h w k"]:  # noqa: B008
        """Return the masks of 0 and 1, a layer each label, that the rules make of codes (h, w, k).

        Behind the labels' planes may be those of the image head, as many.
        """
        planes = (codes[..., at :: len(self.rules)] for at in range(len(self.rules)))
        made = (
            rule.apply(plane, seen) if isinstance(rule, OperatorRule) else rule.apply(plane)
            for rule, plane in zip(self.rules, planes, strict=True)
        )
        return np.stack(list(made), axis=-1)

    def describe(self, *, many_sizes: bool = False) -> str:
        """Return the rules as a sentence."""
        if len(set(self.rules)) == 1:
            return f"each label: {self.rules[0].describe(many_sizes=many_sizes)}"
        texts = (rule.describe(many_sizes=many_sizes) for rule in self.rules)
        return "; ".join(f"{name}: {text}" for name, text in zip(self.names, texts, strict=True))


@dataclass(frozen=True)
class LabelSweep:
    """The sweep of each label's plane."""

    planes: tuple[AnySweep[Rule | OperatorRule], ...]
    metric: Metric
    """Of all labels together."""

    @property
    def empty(self) -> Float[np.ndarray, "n k"]:
        """The row of an empty prediction of each image."""
        return join_rows(self.metric, [plane.empty for plane in self.planes])

    def rows_of(self, rule: LabelRules) -> Float[np.ndarray, "n k"]:
        """Return each image's row under rules whose thresholds are in the sweeps."""
        parts = [plane.rows_of(one) for plane, one in zip(self.planes, rule.rules, strict=True)]
        return join_rows(self.metric, parts)

    def part(self, chosen: Any) -> "LabelSweep":  # noqa: ANN401
        """Return the sweep of some images (an index array or a boolean one)."""
        return LabelSweep(tuple(plane.part(chosen) for plane in self.planes), self.metric)

    def curve(self) -> list[tuple[float, LabelRules]]:
        """Return nothing: thresholds of several labels lie on no curve."""
        return []


def make_label_sweep(
    make: Callable[[int, Metric], tuple[list[Any], Any]], names: Sequence[str], metric: Metric
) -> tuple[list[LabelRules], LabelSweep]:
    """Return the rules to try, each for all labels alike, and the sweep that holds their thresholds.

    Args:
        make: From the number of a label and the metric of its plane to the rules to try and its sweep, always of the
            same images.
        names: Of the labels.
        metric: Of masks (h, w, k).
    """
    made = [make(at, metric_of_plane(metric)) for at in range(len(names))]
    rules = [LabelRules((rule,) * len(names), tuple(names)) for rule in made[0][0]]  # of each label the same
    return rules, LabelSweep(tuple(sweep for _, sweep in made), metric)


def best_of_labels(
    sweep: LabelSweep, rules: Sequence[LabelRules], metric: Metric, groups: Groups | None = None
) -> tuple[LabelRules, float]:
    """Return the best rule of each label, chosen alone, as one; and the score of all labels together."""
    plane_metric = metric_of_plane(metric)
    each = [
        chooser(plane)(plane, _of_label(rules, at), plane_metric, groups)[0]
        for at, plane in enumerate(sweep.planes)
    ]
    found = LabelRules(tuple(each), rules[0].names)
    return found, metric.score(sweep.rows_of(found), groups)


def _of_label(rules: Iterable[LabelRules], at: int) -> list[Rule | OperatorRule]:
    return [one.rules[at] for one in rules]
