"""Chains in a recipe: what is done to an image's values (``input.chain``) and to its geometry (``size.chain``).

Values first, then geometry, each in the order in which it is written. Values change alike in training, prediction and
a bundle, and need no inverse, as masks have none of them. Geometry moves masks too, and prediction undoes it on the
probabilities: padding bit for bit, scaling by interpolation. A random window cannot be undone. So ``crop`` stands
first, where training cuts windows and prediction takes the whole image through the rest.

Sources:
    Crop, refract, scale as a chain of scikit-learn transforms: a kernel of TGS Salt (0.9, 0.9, 128x128).
    CLAHE: Zuiderveld 1994, "Contrast limited adaptive histogram equalization", Graphics Gems IV.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field

from masksmith.core.arrays import Bool, UInt16
from masksmith.core.config import Config
from masksmith.core.errors import InputError

HW = tuple[int, int]
Side = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Codes = UInt16[np.ndarray, "h w k"]
_FULL = 65535
_RATIO_UNIT = 1_000_000


# --- values -------------------------------------------------------------------------------------------------


class Clahe(Config):
    """Contrast limited adaptive histogram equalisation, each band by itself."""

    name: Literal["clahe"]
    tile_px: Annotated[int, Field(ge=2)] = 32
    """Side of the tiles whose histograms are equalised."""
    clip: Annotated[float, Field(gt=0)] = 2.0
    """Most pixels of a histogram's bin, as a multiple of the mean one; contrast is limited by it."""


class Equalize(Config):
    """Histogram equalisation of the whole image, each band by itself."""

    name: Literal["equalize"]


class Percentile(Config):
    """Stretch of each band between two of its percentiles in the image; what lies beyond is clipped."""

    name: Literal["percentile"]
    low: Percent = 1.0
    """Percentile that becomes 0."""
    high: Percent = 99.0
    """Percentile that becomes 1."""

    def model_post_init(self, _: object) -> None:
        """Refuse a stretch of nothing."""
        if self.low >= self.high:
            raise ValueError(f"low: {self.low:g} is not below high, {self.high:g}")


class Gamma(Config):
    """Power of the values in 0…1: below 1 brightens, above 1 darkens."""

    name: Literal["gamma"]
    gamma: Annotated[float, Field(gt=0)]
    """The exponent."""


ValueStep = Annotated[Clahe | Equalize | Percentile | Gamma, Field(discriminator="name")]


def apply_values(codes: Codes, chain: Sequence[ValueStep], missing: Bool[np.ndarray, "h w k"]) -> Codes:
    """Return codes of 0…1 after a chain; pixels where nothing was measured stay 0 and do not count."""
    for step in chain:
        planes = [_changed(step, codes[..., at], missing[..., at]) for at in range(codes.shape[2])]
        codes = np.stack(planes, axis=2)
        codes[missing] = 0
    return codes


def _changed(
    step: ValueStep, plane: UInt16[np.ndarray, "h w"], missing: Bool[np.ndarray, "h w"]
) -> UInt16[np.ndarray, "h w"]:
    if isinstance(step, Gamma):
        unit = np.arange(_FULL + 1) / _FULL
        return np.rint(unit**step.gamma * _FULL).astype(np.uint16)[plane]
    if isinstance(step, Clahe):
        tiles = (-(-plane.shape[1] // step.tile_px), -(-plane.shape[0] // step.tile_px))
        equaliser = cv2.createCLAHE(clipLimit=step.clip, tileGridSize=tiles)
        return np.asarray(equaliser.apply(np.ascontiguousarray(plane)), np.uint16)
    known = plane[~missing]
    if not known.size or known.min() == known.max():
        return plane.copy()  # a band of one value has no contrast to change
    if isinstance(step, Percentile):
        low, high = np.percentile(known, [step.low, step.high])
        if low == high:
            return plane.copy()
        unit = np.clip((plane.astype(np.float64) - low) / (high - low), 0, 1)
        return np.rint(unit * _FULL).astype(np.uint16)
    below = np.cumsum(np.bincount(known, minlength=_FULL + 1))
    first = below[known.min()]
    table = np.clip((below - first) / (below[-1] - first), 0, 1)
    return np.rint(table * _FULL).astype(np.uint16)[plane]


def looks_at_whole(chain: Sequence[ValueStep]) -> bool:
    """Whether a pixel's value depends on other pixels of the image."""
    return any(not isinstance(step, Gamma) for step in chain)


# --- geometry -----------------------------------------------------------------------------------------------


class CropStep(Config):
    """Random windows of each image, for training; prediction takes the whole image. Only as the first of a chain."""

    name: Literal["crop"]
    ratio: Ratio = 0.9
    """Sides of a window as a share of the image's."""
    count: Annotated[int, Field(ge=1)] = 1
    """Windows of an image in an epoch."""


class RefractStep(Config):
    """Mirror the edges outwards (``size.border``) until the image is ``ratio`` of its new sides; undone exactly."""

    name: Literal["refract"]
    ratio: Ratio = 0.9
    """Sides of the image as a share of the new ones: 90x90 at 0.9 become 100x100."""


class ScaleStep(Config):
    """Scale to a size, bilinear with pixel centres at half; undone by scaling back."""

    name: Literal["scale"]
    hw: tuple[Side, Side]
    """Height and width."""


class PadStep(Config):
    """Pad (``size.border``) to a size, an odd pixel below and to the right; undone exactly."""

    name: Literal["pad"]
    hw: tuple[Side, Side]
    """Height and width, at least those of the image at this place of the chain."""


GeometryStep = Annotated[CropStep | RefractStep | ScaleStep | PadStep, Field(discriminator="name")]


def refracted(side: Any, ratio: float) -> Any:  # noqa: ANN401
    """Return the side of which ``side`` is a share, rounded; it may be what computes like an int in a traced graph."""
    part = round(ratio * _RATIO_UNIT)
    return (2 * _RATIO_UNIT * side + part) // (2 * part)


def sizes_along(chain: Sequence[GeometryStep], hw: HW) -> list[HW]:
    """Return the size of an image after each step that prediction takes (all but ``crop``).

    Raises:
        InputError: A pad is smaller than the image.
    """
    found: list[HW] = []
    for step in chain:
        if isinstance(step, CropStep):
            continue
        if isinstance(step, RefractStep):
            hw = refracted(hw[0], step.ratio), refracted(hw[1], step.ratio)
        else:
            if isinstance(step, PadStep) and (step.hw[0] < hw[0] or step.hw[1] < hw[1]):
                raise InputError(
                    f"size.chain: pad to {step.hw[0]}x{step.hw[1]}: smaller than an image, {hw[0]}x{hw[1]} there; give "
                    "a larger one, or scale before it"
                )
            hw = step.hw
        found.append(hw)
    return found
