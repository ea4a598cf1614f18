"""The rule that makes a class map of an image's probabilities: the class of the largest one, weighted by class.

With weights 1 it is the most probable class. A metric that counts classes alike (mIoU) rewards rare classes: their
weights then are above 1. Multiplying probabilities by weights is adding an offset to each class's logit (logit
adjustment: Menon et al. 2021, https://arxiv.org/abs/2007.07314).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from masksmith.core.arrays import Codes, Mask, Shaped

_POWERS = (0.1, 0.2, 0.3, 0.45, 0.6)
"""Weights are shares to the minus so much."""
_STEPS = (0.67, 1.5)
"""A single class is weighted by so much."""
_MOST_STEPPED = 24
"""Classes up to which each is tried alone."""
_MOST_WEIGHT = 20.0


@dataclass(frozen=True)
class ClassRule:
    """The class with the largest weighted probability; of two as large the first."""

    weights: tuple[float, ...]
    """Factor of each class's probability."""

    def apply(self, codes: Codes) -> Mask:
        """Return the class map (h, w) that the rule makes of codes (h, w, k)."""
        if set(self.weights) == {1.0}:
            return codes.argmax(axis=-1).astype(np.uint8)
        return (codes * np.array(self.weights, np.float32)).argmax(axis=-1).astype(np.uint8)

    def apply_bands(self, bands: Iterable[Shaped[np.ndarray, "..."]], hw: tuple[int, int]) -> Mask:
        """Return the same of an image of (height, width) whose rows come in bands, top to bottom."""
        mask, row = np.empty(hw, np.uint8), 0
        for band in bands:
            mask[row : row + len(band)] = self.apply(band)
            row += len(band)
        return mask

    def describe(self, *, many_sizes: bool = False) -> str:
        """Return the rule as a sentence."""
        del many_sizes
        if set(self.weights) == {1.0}:
            return "the most probable class"
        return f"the class of the largest probability times its weight ({', '.join(f'{w:.3g}' for w in self.weights)})"


def class_rules(shares: Float[np.ndarray, " k"]) -> list[ClassRule]:
    """Return the rules to try, the plain one first.

    Args:
        shares: Share of each class among the judged pixels, 0 where it never occurs.
    """
    count = len(shares)
    found = [ClassRule((1.0,) * count)]
    present = shares > 0
    found += [rule_of_power(shares, power) for power in _POWERS]
    if count <= _MOST_STEPPED:
        for at in np.flatnonzero(present):
            for step in _STEPS:
                weights = np.ones(count)
                weights[at] = step
                found.append(_rounded(weights))
    return list(dict.fromkeys(found))


def rule_of_power(shares: Float[np.ndarray, " k"], power: float) -> ClassRule:
    """Return the rule whose weights are the shares of the classes, to the minus ``power``; 1 for the most frequent."""
    weights, present = np.ones(len(shares)), shares > 0
    weights[present] = (shares[present] / shares.max()) ** -power
    return _rounded(np.minimum(weights, _MOST_WEIGHT))


def _rounded(weights: Sequence[float] | Float[np.ndarray, " k"]) -> ClassRule:
    return ClassRule(tuple(float(f"{weight:.3g}") for weight in weights))
