"""The element types of decoded images, and arrays of any shape as images."""

import numpy as np

from masksmith.core.arrays import Shaped
from masksmith.core.errors import InputError

MOST_BANDS = 16
"""Of an array of three axes: a last one no longer than this holds bands, a longer one columns."""

Slices = Shaped[np.ndarray, "n h w c"]


def known_type(array: np.ndarray, *, where: str) -> np.ndarray:
    """Return an array in one of uint8, uint16, int16 and float32: the first of them that holds all its whole numbers.

    Floating numbers become float32, whole numbers beyond 16 bits too (exact up to 2**24).

    Raises:
        InputError: Its elements are no real numbers.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "buif":
        raise InputError(f"{where}: values of type {array.dtype}; expected numbers, convert the file")
    if kind == "f":
        with np.errstate(over="ignore"):
            return array.astype(np.float32, copy=False)
    if kind == "b" or (kind == "u" and size == 1):
        return array.astype(np.uint8, copy=False)
    if (kind, size) in (("u", 2), ("i", 2)):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if size > 1 and low >= 0 and high < 2**16:
        return array.astype(np.uint16)
    return array.astype(np.int16 if -(2**15) <= low and high < 2**15 else np.float32)  # noqa: SIM300


def as_slices(array: np.ndarray, *, where: str) -> Slices:
    """Return an array of two to four axes as images (n, h, w, c).

    (h, w); (h, w, c) or (c, h, w) where the other axes are longer than c, which is at most MOST_BANDS or 4; (n, h, w);
    (n, h, w, c) or (n, c, h, w).

    Raises:
        InputError: It has other axes, or one of no length.
    """
    shape = array.shape
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise InputError(
            f"{where}: an array of shape {shape}; expected (h, w), (h, w, bands), (n, h, w) or (n, h, w, bands)"
        )
    if len(shape) == 2:
        return array[None, :, :, None]
    last, first = shape[-1], shape[-3]
    if last <= MOST_BANDS and last < min(shape[-3:-1]):
        return array[None] if len(shape) == 3 else array
    if len(shape) == 4 and first <= MOST_BANDS and first < min(shape[-2:]):
        return np.moveaxis(array, 1, 3)
    if len(shape) == 4:
        return array
    return (
        np.moveaxis(array, 0, 2)[None]
        if first in (3, 4) and first < min(shape[1:]) // 8
        else array[..., None]
    )
