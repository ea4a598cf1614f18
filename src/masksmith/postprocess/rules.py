"""A rule for each task: how probabilities become a mask, before and after the search."""

from typing import Any

from masksmith.data.target import Target
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.config import TuningConfig
from masksmith.postprocess.objects import PLAIN_OBJECTS, ObjectRule
from masksmith.postprocess.operators import Rule, plain_rule

AnyRule = Rule | ClassRule | ObjectRule
"""Each has ``apply(codes (h, w, k)) -> mask (h, w)`` and ``describe()``."""


def plain_of(target: Target, config: TuningConfig) -> AnyRule:
    """Return what is done without a search: threshold 0.5, the most probable class, or seeds at their usual height."""
    if target.task == "instances":
        return PLAIN_OBJECTS
    return ClassRule((1.0,) * target.outputs) if target.exclusive else plain_rule(config)


def read_rule(value: dict[str, Any]) -> AnyRule:
    """Rebuild a rule from ``tuning.json``."""
    if "weights" in value:
        return ClassRule(tuple(value["weights"]))
    return ObjectRule(**value) if "seed" in value else Rule(**value)
