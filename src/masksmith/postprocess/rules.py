"""A rule for each task: how probabilities become a mask, before and after the search."""

from typing import Any

from masksmith.core.arrays import AnyMask
from masksmith.data.target import Target
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.config import TuningConfig
from masksmith.postprocess.labels import LabelRules
from masksmith.postprocess.objects import PLAIN_OBJECTS, ObjectRule
from masksmith.postprocess.operators import Rule, plain_rule
from masksmith.prediction.store import MeanCodes

AnyRule = Rule | ClassRule | ObjectRule | LabelRules
"""Each has ``describe()``, and ``apply(codes (h, w, k))`` that makes a mask (h, w), or a layer each label (h, w, k)."""


def plain_of(target: Target, config: TuningConfig) -> AnyRule:
    """Return what is done without a search: threshold 0.5, the most probable class, or seeds at their usual height."""
    if target.task == "instances":
        return PLAIN_OBJECTS
    if target.task == "multilabel":
        return LabelRules((plain_rule(config),) * target.outputs, target.classes)
    return ClassRule((1.0,) * target.outputs) if target.exclusive else plain_rule(config)


def mask_of(rule: AnyRule, codes: MeanCodes, name: str) -> AnyMask:
    """Return the mask that a rule makes of an image; one that looks at each pixel alone reads it in bands of rows."""
    if isinstance(rule, Rule | ClassRule):
        return rule.apply_bands(codes.bands(name), codes.shape(name)[:2])
    return rule.apply(codes[name])


def read_rule(value: dict[str, Any]) -> AnyRule:
    """Rebuild a rule from ``tuning.json``."""
    if "weights" in value:
        return ClassRule(tuple(value["weights"]))
    if "rules" in value:
        return LabelRules(tuple(Rule(**one) for one in value["rules"]), tuple(value["names"]))
    return ObjectRule(**value) if "seed" in value else Rule(**value)
