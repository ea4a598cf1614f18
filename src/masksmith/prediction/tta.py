"""Test-time augmentation: each entry is a transform of a batch and its exact inverse.

Transforms are applied *before* padding: 101 is padded to 112 by 5 and 6 pixels, so a flip after the padding
would shift the image by one.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from masksmith.arrays import Shaped

Planes = Shaped[np.ndarray, "b _ _ c"]


class Symmetry(NamedTuple):
    """A transform and its inverse."""

    apply: Callable[[Planes], Planes]
    undo: Callable[[Planes], Planes]


def _same(planes: Planes) -> Planes:
    return planes


def _hflip(planes: Planes) -> Planes:
    return planes[:, :, ::-1]


def _vflip(planes: Planes) -> Planes:
    return planes[:, ::-1]


def _transpose(planes: Planes) -> Planes:
    return planes.transpose(0, 2, 1, 3)


TTA: dict[str, Symmetry] = {
    "identity": Symmetry(_same, _same),
    "hflip": Symmetry(_hflip, _hflip),
    "vflip": Symmetry(_vflip, _vflip),
    "transpose": Symmetry(_transpose, _transpose),
}
