"""What the shapes in one mask file say of its values: areas of classes, edges, numbered objects."""

import cv2
import numpy as np

from masksmith.core.arrays import IGNORE, Bool, Shaped

TOP = 65535
"""Largest value of 16 bits; it is read as 255 (see masks.mask_levels)."""
BETWEEN = (32, 224)
"""Values of a JPEG mask that are near neither 0 nor 255: its noise stays below 32, edges lie within."""
# Pixels between lie on edges, one or two wide, where a mask is binary: at qualities 10 to 95 at most 2% of them have a
# 3x3 neighbourhood of about their own value. In masks of three or four classes 40% to 95% have (at 101x101 and more).
_FLAT_RANGE, _FLAT_SHARE, _FLAT_PIXELS = 24, 0.1, 16


def inner(levels: Shaped[np.ndarray, "h w"]) -> tuple[int, int]:
    """Return the pixels between the least and the largest value, and how many of them have an equal neighbour."""
    inner = (levels > levels.min()) & (levels < levels.max())
    return int(inner.sum()), int((inner & equal_neighbours(levels)).sum())


def loose(levels: Shaped[np.ndarray, "h w"]) -> int:
    """Return how many pixels between the least and the largest value lie beside other values than 0, and none equal."""
    there = levels != 0
    beside = np.zeros(levels.shape, bool)
    beside[1:] |= there[:-1]
    beside[:-1] |= there[1:]
    beside[:, 1:] |= there[:, :-1]
    beside[:, :-1] |= there[:, 1:]
    inner = (levels > levels.min()) & (levels < levels.max())
    return int((inner & beside & ~equal_neighbours(levels)).sum())


def heights(levels: Shaped[np.ndarray, "h w"]) -> Shaped[np.ndarray, "h w"]:
    """Return the values with the largest of 16 bits back above the others (see mask_levels)."""
    if levels.dtype != np.uint16 or not IGNORE < levels.max() < TOP:
        return levels
    return np.where(levels == IGNORE, np.uint16(TOP), levels)


def ramp(heights: Shaped[np.ndarray, "h w"]) -> int:
    """Return how many pixels between have a lower and a higher value among their eight neighbours."""
    heights, around = heights.astype(np.float32), np.ones((3, 3), np.uint8)
    slope = (cv2.erode(heights, around) < heights) & (heights < cv2.dilate(heights, around))
    return int((slope & (heights > heights.min()) & (heights < heights.max())).sum())


def numbered(levels: Shaped[np.ndarray, "h w"]) -> int:
    """Return the largest value, where the values are 0 to it without gaps and each is one region; else 0."""
    from scipy import ndimage  # type: ignore[import-untyped]

    highest = int(levels.max())
    if levels.min() != 0 or highest > levels.size or len(np.unique(levels)) != highest + 1:
        return 0
    for number, box in enumerate(ndimage.find_objects(levels.astype(np.int32)), start=1):
        regions = cv2.connectedComponents((levels[box] == number).astype(np.uint8), connectivity=8)[0]
        if regions != 2:  # the background is one
            return 0
    return highest


def equal_neighbours(levels: Shaped[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return where a pixel has one of equal value above, below or beside it."""
    down, right = levels[1:] == levels[:-1], levels[:, 1:] == levels[:, :-1]
    equal = np.zeros(levels.shape, bool)
    equal[1:] |= down
    equal[:-1] |= down
    equal[:, 1:] |= right
    equal[:, :-1] |= right
    return equal


def modes(levels: Shaped[np.ndarray, "h w"], between: Shaped[np.ndarray, "h w"]) -> tuple[int, ...]:
    """Return the values of flat areas, () where none of them lies between."""
    around = np.ones((3, 3), np.uint8)
    flat = cv2.subtract(cv2.dilate(levels, around), cv2.erode(levels, around)) <= _FLAT_RANGE
    num_flat = int((flat & between).sum())
    if num_flat < _FLAT_PIXELS or num_flat < _FLAT_SHARE * between.sum():
        return ()
    near = np.convolve(np.bincount(levels[flat], minlength=256), np.ones(17), "same")
    found = []
    while near.max() >= _FLAT_PIXELS:
        value = int(near.argmax())
        found.append(value)
        near[max(0, value - BETWEEN[0]) : value + BETWEEN[0] + 1] = 0
    return tuple(sorted(found))
