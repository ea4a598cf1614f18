"""The rule that a list of operators is: each with its number, in the order in which they are applied.

Probabilities, a random field that changes them, a rule that makes a mask of them, operators on the regions of the mask.
Whether an image has a mask at all (the triplet, the gate) and which threshold it has are decided image by image, so a
search has the rows of all such choices from those of a few masks (see operator_sweep).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from masksmith.core.arrays import Codes, Image, Shaped
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.config import REGIONS
from masksmith.postprocess.crf import Crf
from masksmith.postprocess.objects import ObjectRule
from masksmith.postprocess.operators import Rule
from masksmith.postprocess.regions import Plane, Regions
from masksmith.prediction.store import code_of, prob_of

COVERAGE = "coverage"
HALF = code_of(0.5)


@dataclass(frozen=True)
class Split:
    """Another bottom threshold, a code, in images whose number is above a cut."""

    of: str
    """COVERAGE, or a column of numbers."""
    cut: float
    bottom: int


class Seen(NamedTuple):
    """What a rule may look at beside an image's probabilities."""

    image: Image | None = None
    numbers: Mapping[str, float] = {}  # never written to


@dataclass(frozen=True)
class OperatorRule:
    """Operators with their numbers."""

    decide: Rule | ClassRule | ObjectRule
    """What makes a mask of probabilities; a Rule keeps small regions, which are operators of their own here."""
    crf: Crf | None = None
    regions: tuple[Regions, ...] = ()
    gate: int | None = None
    """Code that the image head's probability must exceed."""
    split: Split | None = None

    @property
    def needs_image(self) -> bool:
        """Whether the rule looks at the image."""
        return self.crf is not None

    @property
    def columns(self) -> list[str]:
        """The columns of numbers that it looks at."""
        return [] if self.column is None else [self.column]

    @property
    def column(self) -> str | None:
        """The column of numbers that it looks at."""
        return None if self.split is None or self.split.of == COVERAGE else self.split.of

    def does(self, op: str) -> bool:
        """Whether an operator changes anything: one that was found to be best left out does not."""
        if op in REGIONS:
            return any(one.op == op for one in self.regions)
        if op == "triplet" and isinstance(self.decide, Rule):
            return self.decide.min_pixels > 0
        parts = {"crf": self.crf, "gate": self.gate, "threshold_by": self.split}
        return parts.get(op, self.decide) is not None

    @property
    def bottom(self) -> int:
        """The code that a pixel must exceed, where the rule has one: that of images up to the cut."""
        assert isinstance(self.decide, Rule)
        return self.decide.bottom

    def apply(self, codes: Codes, seen: Seen = Seen()) -> Plane:  # noqa: B008
        """Return the mask (h, w) that the operators make of codes (h, w, k).

        Behind a gate the last plane holds the image head's probability. Operators of masks look at the first plane.
        """
        planes = self._planes(codes)
        if self.gate is not None and not gate_code(codes) > self.gate:
            return np.zeros(codes.shape[:2], np.uint8)
        decide = self.decide
        if self.split is not None and self.split_number(planes, seen.numbers) > self.split.cut:
            assert isinstance(decide, Rule)
            decide = replace(decide, top=self.split.bottom, bottom=self.split.bottom)
        if self.crf is not None:
            assert seen.image is not None
            planes = self.crf.apply(planes, seen.image, exclusive=isinstance(decide, ClassRule))
        mask = decide.apply(planes)
        for one in self.regions:
            mask = one.apply(mask, classes=isinstance(decide, ClassRule))
        return mask

    def _planes(self, codes: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        if not isinstance(self.decide, Rule):
            return codes
        return codes[..., None] if codes.ndim == 2 else codes[..., :1]

    def split_number(self, codes: Codes, numbers: Mapping[str, float]) -> float:
        """Return the number of an image by which its threshold is chosen."""
        assert self.split is not None
        if self.split.of == COVERAGE:
            return np.count_nonzero(codes[..., 0] > HALF) / (codes.shape[0] * codes.shape[1])
        return numbers[self.split.of]

    def describe(self, *, many_sizes: bool = False) -> str:
        """Return the operators as a sentence."""
        return "; ".join(self._parts(many_sizes))

    def _parts(self, many_sizes: bool) -> Iterator[str]:
        if self.crf is not None:
            yield self.crf.describe()
        yield self.decide.describe(many_sizes=many_sizes)
        if self.split is not None:
            yield f"p > {prob_of(self.split.bottom):.3f} where {self.split.of} is above {self.split.cut:g}"
        yield from (one.describe() for one in self.regions)
        if self.gate is not None:
            yield f"no mask unless the image head is above {prob_of(self.gate):.3f}"


def gate_code(codes: Codes) -> int:
    """Return the code of the image head of an image: that of its likeliest tile."""
    return int(codes[..., -1].max())


def simplest(rule: OperatorRule) -> Rule | ClassRule | ObjectRule | OperatorRule:
    """Return the same rule without a list, where another kind says all of it: large images can have those in bands."""
    if rule.crf is not None or rule.gate is not None or rule.split is not None:
        return rule
    if not rule.regions:
        return rule.decide
    (first, *more) = rule.regions
    if more or first.op != "component_area" or not isinstance(rule.decide, Rule):
        return rule
    return replace(rule.decide, component_area_frac=first.value)


def as_operators(rule: Rule | ClassRule | ObjectRule | OperatorRule) -> OperatorRule:
    """Return any rule of one mask as a list of operators."""
    if isinstance(rule, OperatorRule):
        return rule
    if isinstance(rule, Rule) and rule.component_area_frac:
        small = Regions("component_area", rule.component_area_frac)
        return OperatorRule(replace(rule, component_area_frac=0.0), regions=(small,))
    return OperatorRule(rule)


def read_operators(value: Mapping[str, Any], decide: Rule | ClassRule | ObjectRule) -> OperatorRule:
    """Rebuild the rule from JSON; ``decide`` is rebuilt already."""
    return OperatorRule(
        decide,
        crf=Crf(**value["crf"]) if value["crf"] else None,
        regions=tuple(Regions(**one) for one in value["regions"]),
        gate=value["gate"],
        split=Split(**value["split"]) if value["split"] else None,
    )
