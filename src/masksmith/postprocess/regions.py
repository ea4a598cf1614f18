"""Operators on the connected regions of a mask: small ones, holes, the largest.

A mask has 0 and 1, a class map the numbers of classes, a label map (int32) 0 and the numbers of objects, whose regions
are the objects themselves. Regions have 8 neighbours, holes 4. Areas are shares of the image's area.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from masksmith.core.arrays import Int, Mask, Shaped
from masksmith.postprocess.operators import remove_small

Plane = Shaped[np.ndarray, "h w"]
"""A mask, a class map or a label map."""


@dataclass(frozen=True)
class Regions:
    """One of these operators, by its name in a recipe, with its number."""

    op: str
    value: float
    """Share of the image's area, or how many regions."""

    def apply(self, mask: Plane, *, classes: bool = False) -> Plane:
        """Return the mask (h, w) that the operator makes; ``classes`` says that it is a class map."""
        if classes:
            return absorb_small(mask, self.value)
        return _OPERATORS[self.op](mask, self.value)

    def describe(self) -> str:
        """Return what it does in words."""
        if self.op == "largest":
            return (
                "the largest region alone" if self.value == 1 else f"the {self.value:g} largest regions alone"
            )
        what = "holes filled" if self.op == "holes" else "regions removed"
        return f"{what} up to {self.value:.3%} of the image"


def without_small(mask: Plane, frac: float) -> Plane:
    """Return a mask without regions, or a label map without objects, of at most a share of the image's area."""
    if mask.dtype == np.uint8:
        return remove_small(mask, frac)
    return _kept(mask, np.bincount(mask.ravel()) > frac * mask.size)


def largest(mask: Plane, count: float) -> Plane:
    """Return a mask with its largest regions, or objects, alone; of two as large the first."""
    labels = mask
    if mask.dtype == np.uint8:
        labels = cv2.connectedComponents(mask, connectivity=8)[1]
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    kept = np.zeros(len(areas), bool)
    kept[np.argsort(-areas, kind="stable")[: int(count)]] = True
    kept &= areas > 0
    return kept.astype(np.uint8)[labels] if mask.dtype == np.uint8 else _kept(mask, kept)


def fill_holes(mask: Plane, frac: float) -> Plane:
    """Fill holes of at most a share of the image's area; in a label map those that lie inside a single object."""
    _, regions, stats, _ = cv2.connectedComponentsWithStats((mask == 0).astype(np.uint8), connectivity=4)
    wanted = stats[:, cv2.CC_STAT_AREA] <= frac * mask.size
    wanted[0] = False  # the mask itself
    for edge in (regions[0], regions[-1], regions[:, 0], regions[:, -1]):
        wanted[edge] = False
    if not wanted.any():
        return mask
    if mask.dtype == np.uint8:
        return np.where(wanted[regions], 1, mask).astype(np.uint8)
    low, high = (np.zeros(len(wanted), np.int64) for _ in range(2))
    low[:] = np.iinfo(np.int32).max
    for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        for hole, beside in ((one, other), (other, one)):
            meets = (mask[hole] == 0) & (mask[beside] > 0)
            np.minimum.at(low, regions[hole][meets], mask[beside][meets])
            np.maximum.at(high, regions[hole][meets], mask[beside][meets])
    inside = np.where(wanted & (low == high), high, 0).astype(np.int32)
    return np.where(mask == 0, inside[regions], mask)


def absorb_small(classes: Mask, frac: float) -> Mask:
    """Give the regions of a class map of at most a share of the area the class of the nearest pixel of another one."""
    small = np.zeros(classes.shape, bool)
    for value in np.unique(classes):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(
            (classes == value).astype(np.uint8), connectivity=8
        )
        tiny = stats[:, cv2.CC_STAT_AREA] <= frac * classes.size
        tiny[0] = False
        small |= tiny[labels]
    if not small.any() or small.all():
        return classes
    from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]

    rows, columns = distance_transform_edt(small, return_distances=False, return_indices=True)
    return classes[rows, columns]


def _kept(labels: Int[np.ndarray, "h w"], kept: Shaped[np.ndarray, " labels"]) -> Plane:
    """Return the objects that are kept, numbered 1, 2 … in the order of their numbers."""
    kept = kept.copy()
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]


_OPERATORS: dict[str, Callable[[Plane, float], Plane]] = {
    "component_area": without_small,
    "holes": fill_holes,
    "largest": largest,
}
