"""The names of axes in all annotations, and the array types that use them.

====== =============================================================
letter axis
====== =============================================================
b      image in a batch
c      channel (band) of an image, or class of a mask
h, w   height and width in pixels; sizes are always ``(height, width)``
n      image in a data set
k      column of a metric's row
t      threshold
====== =============================================================

Images are ``(h, w, c)`` in numpy and ``(b, c, h, w)`` in torch. Masks are uint8: 0 background,
1 foreground or 0…k-1 classes, ``IGNORE`` left out of losses and scores. Label maps are int32: 0 background, 1, 2 …
one object each, ``UNJUDGED`` left out.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Shaped, UInt8, UInt16

IGNORE = 255
UNJUDGED = -1
"""What IGNORE is in a map of integers with a sign: the labels of objects, or a mask file."""
DISTANCE_TOP = 254
"""Code of the pixels of an object that are farthest from its boundary, in a plane of distances: 255 is IGNORE."""

Image = Shaped[np.ndarray, "h w c"]
Mask = UInt8[np.ndarray, "h w"]
Codes = UInt16[np.ndarray, "h w *k"]
"""Probabilities as codes: of one foreground (h, w) or (h, w, 1), or of k classes."""
Labels = Int32[np.ndarray, "h w"]
AnyMask = UInt8[np.ndarray, "h w *k"] | Int32[np.ndarray, "h w"]
"""A mask, or one of several layers, or a label map."""
Rows = Float[np.ndarray, "*lead n k"]

__all__ = [
    "DISTANCE_TOP",
    "IGNORE",
    "UNJUDGED",
    "AnyMask",
    "Bool",
    "Codes",
    "Float",
    "Image",
    "Int",
    "Int32",
    "Labels",
    "Mask",
    "Rows",
    "Shaped",
    "UInt8",
    "UInt16",
    "dense_labels",
    "foreground_pixels",
    "judged_pixels",
    "row_bands",
]


def judged_pixels(mask: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Return where a mask is judged: uint8 where it is not IGNORE, a label map where it is not UNJUDGED."""
    return np.asarray(mask != (IGNORE if mask.dtype == np.uint8 else UNJUDGED))


def foreground_pixels(mask: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Return where a mask has a class above 0, a label, or an object."""
    return np.asarray((mask > 0) & judged_pixels(mask))


def row_bands(hw: tuple[int, ...], *, at_once: int = 1 << 22) -> Iterator[slice]:
    """Yield the rows of an array of (height, width) in bands of about ``at_once`` elements, top to bottom."""
    height, width = hw[:2]
    step = max(1, at_once // max(1, width))
    for first in range(0, height, step):
        yield slice(first, min(height, first + step))


def dense_labels(labels: Shaped[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], int]:
    """Number what is above 0 in an integer map 1, 2 … in the same order without gaps, 0 elsewhere, and count it."""
    kept = np.maximum(labels, 0)
    highest = int(kept.max(initial=0))
    if highest < 4 * kept.size:  # a table of all numbers is faster than sorting, while it is small
        there = np.bincount(kept.ravel(), minlength=1) > 0
        there[0] = False
        return there.cumsum()[kept], int(there.sum())
    numbers, dense = np.unique(kept, return_inverse=True)
    return dense.reshape(kept.shape) + int(numbers[0] > 0), len(numbers) - int(numbers[0] == 0)
