"""Test-time augmentation: views of an image, each with its exact inverse: a symmetry, a scale, a shift.

Symmetries are applied *before* padding: 101 is padded to 112 by 5 and 6 pixels, so a flip after the padding
would shift the image by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from masksmith.core.arrays import Shaped
from masksmith.core.config import look_up
from masksmith.preprocess import Frame, SizeConfig, round_up

Planes = Shaped[np.ndarray, "b _ _ c"]


class Symmetry(NamedTuple):
    """A transform and its inverse."""

    apply: Callable[[Planes], Planes]
    undo: Callable[[Planes], Planes]
    turns: bool = False
    """Whether height and width are swapped: a size rule for 64x256 becomes one for 256x64."""
    mirrors: bool = False
    """Whether left becomes right."""


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
    "hflip": Symmetry(_hflip, _hflip, mirrors=True),
    "vflip": Symmetry(_vflip, _vflip, mirrors=True),
    "rot90": Symmetry(_turned(1), _turned(-1), turns=True),
    "rot180": Symmetry(_turned(2), _turned(2)),
    "rot270": Symmetry(_turned(-1), _turned(1), turns=True),
    "transpose": Symmetry(_transpose, _transpose, turns=True, mirrors=True),
    "antitranspose": Symmetry(_antitranspose, _antitranspose, turns=True, mirrors=True),
}
"""The eight symmetries of the square (D4)."""


@dataclass(frozen=True)
class View:
    """One way to look at an image: symmetry, then shift, then scale."""

    symmetry: Symmetry
    scale: float = 1.0
    """Factor on the size that the image has without it."""
    shift: tuple[int, int] = (0, 0)
    """Rows and columns of mirrored border before the image, which move it on the model's grid of strides."""
    mirror: tuple[int, ...] = ()
    """The class that each class becomes in a mirror image; empty where none changes."""

    def apply(self, image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "H W c"]:
        """Return the image as it is seen, before it is scaled."""
        seen = self.symmetry.apply(image[None])[0]
        if self.shift == (0, 0):
            return seen
        return np.pad(seen, ((self.shift[0], 0), (self.shift[1], 0), (0, 0)), mode="symmetric")

    def undo(self, probs: Shaped[np.ndarray, "H W k"]) -> Shaped[np.ndarray, "h w k"]:
        """Return probabilities of what is seen as those of the image."""
        found = self.symmetry.undo(probs[None, self.shift[0] :, self.shift[1] :])[0]
        return found[..., list(self.mirror)] if self.mirror and self.symmetry.mirrors else found

    def frame(self, hw: tuple[int, int], size: SizeConfig, divisor: int) -> Frame:
        """Return how what is seen, of (height, width), lies on its canvas."""
        return _frame(self.scale, self.shift, hw, size.turned() if self.symmetry.turns else size, divisor)


@lru_cache(maxsize=4096)
def _frame(
    scale: float, shift: tuple[int, int], hw: tuple[int, int], size: SizeConfig, divisor: int
) -> Frame:
    if (scale, shift) != (1.0, (0, 0)):
        own = hw[0] - shift[0], hw[1] - shift[1]
        inner = size.inner_hw(own)
        height, width = (max(1, round(inner[at] * scale * hw[at] / own[at])) for at in (0, 1))
        padded = size.pad_hw and (
            round_up(round(size.pad_hw[0] * scale), divisor),
            round_up(round(size.pad_hw[1] * scale), divisor),
        )
        size = SizeConfig(resize_hw=(height, width), pad_hw=padded, border=size.border)
    return Frame.of(hw, size, divisor=divisor)


def views_of(
    tta: Sequence[str],
    scales: Sequence[float] = (1.0,),
    shifts: Sequence[tuple[int, int]] = ((0, 0),),
    mirror: tuple[int, ...] = (),
) -> list[View]:
    """Return every symmetry at every scale and shift.

    Raises:
        InputError: An unknown key of TTA.
    """
    symmetries = [look_up(TTA, key, where="prediction.tta") for key in tta]
    return [
        View(symmetry, scale, (shift[0], shift[1]), mirror)
        for symmetry, scale, shift in product(symmetries, scales, shifts)
    ]
