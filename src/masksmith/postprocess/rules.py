"""A rule for each task: how probabilities become a mask, before and after the search."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from masksmith.core.arrays import AnyMask, Shaped
from masksmith.core.errors import InputError
from masksmith.data.target import Target
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.config import TuningConfig
from masksmith.postprocess.labels import LabelRules
from masksmith.postprocess.objects import PLAIN_OBJECTS, ObjectRule
from masksmith.postprocess.operator_rule import OperatorRule, Seen, read_operators
from masksmith.postprocess.operators import Rule, plain_rule
from masksmith.prediction.store import MeanCodes

AnyRule = Rule | ClassRule | ObjectRule | LabelRules | OperatorRule
"""Each has ``describe()``, and ``apply(codes (h, w, k))`` that makes a mask (h, w), or a layer each label (h, w, k)."""


@runtime_checkable
class Arrays(Protocol):
    """Arrays (h, w, c) by id, each read when it is asked for, such as a Store."""

    def __getitem__(self, name: str, /) -> Shaped[np.ndarray, "h w c"]:
        """Return the array of an id."""


def plain_of(target: Target, config: TuningConfig) -> AnyRule:
    """Return what is done without a search: threshold 0.5, the most probable class, or seeds at their usual height."""
    if target.task == "instances":
        return PLAIN_OBJECTS
    if target.task == "multilabel":
        return LabelRules((plain_rule(config),) * target.outputs, target.classes)
    return ClassRule((1.0,) * target.outputs) if target.exclusive else plain_rule(config)


@dataclass(frozen=True)
class Beside:
    """What rules may look at beside probabilities, by id."""

    images: Arrays | None = None
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, rule: AnyRule, name: str) -> Seen:
        """Return what a rule looks at of an image.

        Raises:
            InputError: The image has no number by which the rule chooses its threshold.
        """
        numbers = self.numbers.get(name, {})
        if missing := [one for one in columns_of(rule) if one not in numbers]:
            raise InputError(
                f"image {name!r}: no {missing[0]!r}, by which the rule chooses its threshold; give a table with the "
                f"columns {', '.join(columns_of(rule))}"
            )
        needs_image = isinstance(rule, OperatorRule | LabelRules) and rule.needs_image
        return Seen(self.images[name] if needs_image and self.images is not None else None, numbers)


def columns_of(rule: AnyRule) -> list[str]:
    """Return the columns of numbers that a rule looks at."""
    return rule.columns if isinstance(rule, OperatorRule | LabelRules) else []


def apply_rule(
    rule: AnyRule, codes: Shaped[np.ndarray, "..."], name: str, beside: Beside | None = None
) -> AnyMask:
    """Return the mask that a rule makes of the codes of an image, which may be one of ``beside``."""
    if isinstance(rule, OperatorRule | LabelRules) and beside is not None:
        return rule.apply(codes, beside.of(rule, name))
    return rule.apply(codes)


def mask_of(rule: AnyRule, codes: MeanCodes, name: str, beside: Beside | None = None) -> AnyMask:
    """Return the mask that a rule makes of an image; one that looks at each pixel alone reads it in bands of rows."""
    if isinstance(rule, Rule | ClassRule):
        return rule.apply_bands(codes.bands(name), codes.shape(name)[:2])
    return apply_rule(rule, codes[name], name, beside)


def decision_of(rule: AnyRule) -> Rule | ClassRule | ObjectRule | LabelRules:
    """Return the part of a rule that makes a mask of probabilities."""
    return rule.decide if isinstance(rule, OperatorRule) else rule


def read_rule(value: dict[str, Any]) -> AnyRule:
    """Rebuild a rule from ``tuning.json``."""
    if "decide" in value:
        decide = read_rule(value["decide"])
        assert isinstance(decide, Rule | ClassRule | ObjectRule)
        return read_operators(value, decide)
    if "weights" in value:
        return ClassRule(tuple(value["weights"]))
    if "rules" in value:
        rules = [read_rule(one) for one in value["rules"]]
        return LabelRules(
            tuple(one for one in rules if isinstance(one, Rule | OperatorRule)), tuple(value["names"])
        )
    return ObjectRule(**value) if "seed" in value else Rule(**value)
