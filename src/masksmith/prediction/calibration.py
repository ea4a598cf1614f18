"""What probabilities are worth: how often what is predicted with p is right, and what a threshold keeps."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from masksmith.core.arrays import Bool, Shaped, UInt16, judged_pixels

LEVELS = 256
"""Probabilities that are told apart."""
_BINS = 16


@dataclass(frozen=True)
class PixelCounts:
    """Pixels by probability: of the foreground or of a label; of a class map, of the most probable class.

    Attributes:
        wrong: Pixels of each of LEVELS probabilities that are not of the class.
        right: Those that are.
    """

    wrong: Int[np.ndarray, " levels"]
    right: Int[np.ndarray, " levels"]

    def reliability(self) -> list[tuple[float, float, int]]:
        """Return (mean probability, share that is right, pixels) of each bin with pixels."""
        total = (self.wrong + self.right).reshape(_BINS, -1)
        level = ((np.arange(LEVELS) + 0.5) / LEVELS).reshape(_BINS, -1)
        right, pixels = self.right.reshape(_BINS, -1).sum(axis=1), total.sum(axis=1)
        there = np.flatnonzero(pixels)
        mean = (total * level).sum(axis=1)
        return [
            (float(mean[at] / pixels[at]), float(right[at] / pixels[at]), int(pixels[at])) for at in there
        ]

    @property
    def error(self) -> float:
        """Expected calibration error: mean gap of both, weighted by pixels; 0…1. Naeini et al. 2015."""
        bins = self.reliability()
        return sum(abs(p - share) * n for p, share, n in bins) / max(1, sum(n for *_, n in bins))

    def curves(self) -> dict[str, Float[np.ndarray, " levels"]]:
        """Return precision, recall and Dice of all pixels together, above each threshold i / LEVELS."""
        hits, extra = (np.cumsum(one[::-1])[::-1].astype(np.float64) for one in (self.right, self.wrong))
        total = max(1, int(self.right.sum()))
        found = hits + extra
        return {
            "precision": np.divide(hits, found, out=np.full(LEVELS, np.nan), where=found > 0),
            "recall": hits / total,
            "Dice": 2 * hits / np.maximum(1, found + total),
        }


def count_pixels(
    pairs: Iterable[tuple[Shaped[np.ndarray, "_ _ _"], Shaped[np.ndarray, "..."]]],
    *,
    exclusive: bool,
    planes: int,
) -> list[PixelCounts]:
    """Count judged pixels by probability; one image is in memory at a time.

    Args:
        pairs: Codes (h, w, k) and the true mask (h, w), or a layer each label (h, w, k).
        exclusive: Whether the mask has classes and the probabilities are a softmax: then one entry, of the most
            probable class.
        planes: Labels, or 1; further planes of the codes are not looked at.
    """
    counts = np.zeros((planes, 2, LEVELS), np.int64)
    for codes, target in pairs:
        if exclusive:
            _add(
                counts[0],
                codes.max(axis=-1),
                target == codes.argmax(axis=-1),
                np.asarray(judged_pixels(target)),
            )
            continue
        layers = target if target.ndim == 3 else target[..., None]
        for at in range(planes):
            layer = layers[..., at]
            _add(counts[at], codes[..., at], layer > 0, np.asarray(judged_pixels(layer)))
    return [PixelCounts(one[0], one[1]) for one in counts]


def _add(
    counts: Int[np.ndarray, "2 levels"],
    codes: UInt16[np.ndarray, "h w"],
    right: Bool[np.ndarray, "h w"],
    judged: Bool[np.ndarray, "h w"],
) -> None:
    level = (codes[judged] >> 8).astype(np.int64)
    counts += np.bincount(level + LEVELS * right[judged], minlength=2 * LEVELS).reshape(2, LEVELS)
