"""A conditional random field between the pixels of a window: alike colours near each other get alike labels.

Mean field of the fully connected CRF (Krähenbühl & Koltun 2011, https://arxiv.org/abs/1210.5644) with its appearance
kernel, a Gaussian of the distance and of the difference of colours, and Potts costs. As in convolutional CRFs
(Teichmann & Cipolla 2018, https://arxiv.org/abs/1805.04777) a pixel hears a window of 9 by 9 others instead of the
whole image, here spread over the window's reach, and what they say is their weighted mean. It is plain numpy: no wheel
of the original code is kept for present Pythons.
"""

from dataclasses import dataclass

import numpy as np

from masksmith.core.arrays import Codes, Float, Image
from masksmith.prediction.store import MAX_CODE

_STEPS = 5
"""Rounds of the mean field."""
_RINGS = 4
"""Pixels of the window on each side of its middle."""
_EDGE = 1 / MAX_CODE
"""Probabilities are at least this far from 0 and 1."""


@dataclass(frozen=True)
class Crf:
    """The field's parameters (see config)."""

    weight: float
    reach: float
    """Share of the image's longer side."""
    colour: float
    """Share of the range of the image's values."""

    def apply(self, codes: Codes, image: Image, *, exclusive: bool) -> Codes:
        """Return the codes (h, w, k) after the field has looked at the image.

        Args:
            codes: (h, w, k) of classes that sum to 1, or of masks, each alone.
            image: (h, w, c), in its own units.
            exclusive: Whether they are classes.
        """
        prob = np.clip(codes.astype(np.float32) / MAX_CODE, _EDGE, 1 - _EDGE)
        own = np.log(prob) if exclusive else np.log(prob / (1 - prob))
        kernel = self._kernel(image)
        for _ in range(_STEPS):
            if exclusive:
                score = own + self.weight * _heard(kernel, prob)
                prob = np.exp(score - score.max(axis=2, keepdims=True))
                prob /= prob.sum(axis=2, keepdims=True)
            else:
                prob = 1 / (1 + np.exp(-own - self.weight * (2 * _heard(kernel, prob) - 1)))
        return np.rint(prob * MAX_CODE).astype(np.uint16)

    def describe(self) -> str:
        """Return what it does in words."""
        return f"a random field of weight {self.weight:g} (reach {self.reach:.1%}, colours {self.colour:.1%})"

    def _kernel(self, image: Image) -> list[tuple[int, int, Float[np.ndarray, "h w"]]]:
        """Return rows, columns and weight of each neighbour; the weights of a pixel sum to 1, 0 outside the image."""
        known = np.isfinite(image).all(axis=2) if image.dtype.kind == "f" else np.ones(image.shape[:2], bool)
        seen = np.where(known[..., None], image, 0).astype(np.float32)
        for band in np.moveaxis(seen, 2, 0):  # of its own unit; 1% at each end may be outliers
            low, high = np.percentile(band[known], (1, 99)) if known.any() else (0.0, 0.0)
            band /= (float(high - low) or 1.0) * self.colour
        step = max(1, round(self.reach * max(image.shape[:2]) / _RINGS))
        found, total = [], np.full(image.shape[:2], 1e-6, np.float32)
        for row in range(-_RINGS, _RINGS + 1):
            for column in range(-_RINGS, _RINGS + 1):
                if not (row or column):
                    continue
                here, there = _overlap(image.shape[:2], row * step, column * step)
                if not seen[here].size:
                    continue
                apart = np.square(seen[here] - seen[there]).mean(axis=2)
                near = (row**2 + column**2) / (_RINGS / 2) ** 2
                weight = np.zeros(image.shape[:2], np.float32)
                weight[here] = np.exp(-(apart + near) / 2) * (known[here] & known[there])
                total += weight
                found.append((row * step, column * step, weight))
        found = [(row, column, weight / total) for row, column, weight in found]
        alone = 1 - sum((weight for _, _, weight in found), np.zeros_like(total))
        return [*found, (0, 0, alone)]  # a pixel without neighbours that are known hears itself


def _heard(
    kernel: list[tuple[int, int, Float[np.ndarray, "h w"]]], prob: Float[np.ndarray, "h w k"]
) -> Float[np.ndarray, "h w k"]:
    """Return the weighted mean of each pixel's neighbours."""
    mean = np.zeros_like(prob)
    for row, column, weight in kernel:
        here, there = _overlap(prob.shape[:2], row, column)
        mean[here] += weight[here][..., None] * prob[there]
    return mean


def _overlap(hw: tuple[int, ...], row: int, column: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the part of an image that has a neighbour so many rows and columns on, and the part of the neighbours."""
    (top, bottom), (left, right) = (
        (max(0, -by), max(0, side - max(0, by))) for side, by in zip(hw, (row, column), strict=True)
    )
    here = slice(top, bottom), slice(left, right)
    return here, (
        slice(top + row, max(bottom + row, top + row)),
        slice(left + column, max(right + column, left + column)),
    )
