"""Test-time augmentation: each entry is a transform of a batch and its exact inverse.

Transforms are applied *before* padding: 101 is padded to 112 by 5 and 6 pixels, so a flip after the padding
would shift the image by one.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from masksmith.core.arrays import Shaped

Planes = Shaped[np.ndarray, "b _ _ c"]


class Symmetry(NamedTuple):
    """A transform and its inverse."""

    apply: Callable[[Planes], Planes]
    undo: Callable[[Planes], Planes]
    turns: bool = False
    """Whether height and width are swapped: a size rule for 64x256 becomes one for 256x64."""


def _same(planes: Planes) -> Planes:
    return planes


def _hflip(planes: Planes) -> Planes:
    return planes[:, :, ::-1]


def _vflip(planes: Planes) -> Planes:
    return planes[:, ::-1]


def _transpose(planes: Planes) -> Planes:
    return planes.transpose(0, 2, 1, 3)


def _turned(quarters: int) -> Callable[[Planes], Planes]:
    """Return a rotation by ``quarters`` * 90 degrees, counterclockwise."""

    def turn(planes: Planes) -> Planes:
        return np.rot90(planes, quarters, axes=(1, 2))

    return turn


def _antitranspose(planes: Planes) -> Planes:
    return _transpose(planes[:, ::-1, ::-1])


TTA: dict[str, Symmetry] = {
    "identity": Symmetry(_same, _same),
    "hflip": Symmetry(_hflip, _hflip),
    "vflip": Symmetry(_vflip, _vflip),
    "rot90": Symmetry(_turned(1), _turned(-1), turns=True),
    "rot180": Symmetry(_turned(2), _turned(2)),
    "rot270": Symmetry(_turned(-1), _turned(1), turns=True),
    "transpose": Symmetry(_transpose, _transpose, turns=True),
    "antitranspose": Symmetry(_antitranspose, _antitranspose, turns=True),
}
"""The eight symmetries of the square (D4)."""
