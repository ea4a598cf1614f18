"""A rule for each task: how probabilities become a mask, before and after the search."""

from typing import Any

from masksmith.core.arrays import Codes, Mask
from masksmith.data.target import Target
from masksmith.postprocess.classes import ClassRule, class_map
from masksmith.postprocess.config import TuningConfig
from masksmith.postprocess.operators import Rule, plain_rule, triplet_mask

AnyRule = Rule | ClassRule


def plain_of(target: Target, config: TuningConfig) -> AnyRule:
    """Return what is done without a search: threshold 0.5, or the most probable class."""
    return ClassRule((1.0,) * target.outputs) if target.exclusive else plain_rule(config)


def apply_rule(codes: Codes, rule: AnyRule) -> Mask:
    """Return the mask (h, w) that the rule makes of an image's codes (h, w, k)."""
    if isinstance(rule, ClassRule):
        return class_map(codes, rule)
    return triplet_mask(codes[..., 0] if codes.ndim == 3 else codes, rule)


def read_rule(value: dict[str, Any]) -> AnyRule:
    """Rebuild a rule from ``tuning.json``."""
    return ClassRule(tuple(value["weights"])) if "weights" in value else Rule(**value)
