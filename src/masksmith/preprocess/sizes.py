"""Sizes: how an image of any size lies on the canvas that a model takes, and how that is undone exactly.

An image is resized (or not), then padded. Training moves it there in one warp together with its augmentation;
prediction applies the same frame, and undoes it on the probabilities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masksmith.core.arrays import Shaped
from masksmith.core.config import Config
from masksmith.core.errors import InputError
from masksmith.preprocess.chains import (
    CropStep,
    GeometryStep,
    PadStep,
    RefractStep,
    ScaleStep,
    Side,
    sizes_along,
)
from masksmith.preprocess.transforms import Border, Chain, PadTo, Scale, Transform, round_up


class SizeConfig(Config):
    """How images of any size become what the model takes: resized, padded, or resized and then padded."""

    resize_hw: tuple[Side, Side] | None = None
    """Height and width that every image is resized to first; None keeps its true size."""
    pad_hw: tuple[Side, Side] | None = None
    """Height and width that it is padded to then, multiples of the model's divisor (in a stage of another scale: the
    next multiples of as much of it); None: the next multiples of the image's own."""
    border: Border = "reflect"
    """What the padding shows: the mirror image (the edge pixel once), the edge pixel, or zeros."""
    chain: tuple[GeometryStep, ...] = ()
    """In place of ``resize_hw`` and ``pad_hw``: a free chain of {name: crop, ratio, count}, {name: refract, ratio},
    {name: scale, hw} and {name: pad, hw}, in this order of doing; prediction undoes it. What comes out is padded to the
    next multiples of the divisor. A crop is for training alone and stands first."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse two rules for the size, and a crop whose inverse prediction would need."""
        if self.chain and (self.resize_hw is not None or self.pad_hw is not None):
            raise ValueError(
                "chain: it stands in place of resize_hw and pad_hw; set these to null, and write them as its steps "
                "{name: scale, hw: …} and {name: pad, hw: …}"
            )
        late = [at for at, step in enumerate(self.chain) if isinstance(step, CropStep) and at]
        if late:
            raise ValueError(
                f"chain[{late[0]}]: a crop has no inverse (what lay outside a window is lost), and prediction has to "
                "undo what stands before it; put it first, where prediction leaves it out, or take it out"
            )

    @property
    def crop(self) -> CropStep | None:
        """The windows of training; None: whole images."""
        first = self.chain[0] if self.chain else None
        return first if isinstance(first, CropStep) else None

    @property
    def resizes(self) -> bool:
        """Whether images are interpolated in prediction."""
        return self.resize_hw is not None or any(isinstance(step, ScaleStep) for step in self.chain)

    @property
    def largest_side(self) -> int | None:
        """The largest side of an image that fits; None: any."""
        if self.pad_hw is not None:
            return None if self.resize_hw is not None else min(self.pad_hw)
        ratio = 1.0
        for step in self.chain:
            if isinstance(step, ScaleStep | PadStep):
                return None if isinstance(step, ScaleStep) else int(min(step.hw) * ratio)
            ratio *= step.ratio if isinstance(step, RefractStep) else 1.0
        return None

    @property
    def whole(self) -> "SizeConfig":
        """The rule without the windows of training."""
        return self if self.crop is None else self.model_copy(update={"chain": self.chain[1:]})

    def turned(self) -> "SizeConfig":
        """Return the rule for images turned by a quarter."""
        resized, padded = self.resize_hw and self.resize_hw[::-1], self.pad_hw and self.pad_hw[::-1]
        chain = tuple(
            step.model_copy(update={"hw": step.hw[::-1]}) if isinstance(step, ScaleStep | PadStep) else step
            for step in self.chain
        )
        return SizeConfig(resize_hw=resized, pad_hw=padded, border=self.border, chain=chain)

    def window_hw(self, hw: tuple[int, int]) -> tuple[int, int]:
        """Return the size of what training takes of an image: a window, or the whole."""
        if self.crop is None:
            return hw
        return max(1, round(hw[0] * self.crop.ratio)), max(1, round(hw[1] * self.crop.ratio))

    def inner_hw(self, hw: tuple[int, int]) -> tuple[int, int]:
        """Return the size of an image before padding to the divisor or to ``pad_hw``."""
        return (sizes_along(self.steps, hw) or [hw])[-1]

    @property
    def steps(self) -> list[RefractStep | ScaleStep | PadStep]:
        """What prediction does to a whole image before it pads to the divisor or to ``pad_hw``, and undoes."""
        if self.resize_hw is not None:
            return [ScaleStep(name="scale", hw=self.resize_hw)]
        return [step for step in self.chain if not isinstance(step, CropStep)]

    def transforms(self, hw: tuple[int, int]) -> list[Transform]:
        """Return the same for an image of (height, width)."""
        return [
            Scale(size) if isinstance(step, ScaleStep) else PadTo(size, self.border)
            for step, size in zip(self.steps, sizes_along(self.steps, hw), strict=True)
        ]

    def zoom_yx(self, hw: tuple[int, int], scale: float = 1.0) -> tuple[float, float]:
        """Return the zoom of an image's rows and columns in a training stage of ``scale``."""
        zoom_y = zoom_x = 1.0
        for step, after in zip(self.steps, sizes_along(self.steps, hw), strict=True):
            if isinstance(step, ScaleStep):
                zoom_y, zoom_x = zoom_y * after[0] / hw[0], zoom_x * after[1] / hw[1]
            hw = after
        return zoom_y * scale, zoom_x * scale


TRUE_SIZE = SizeConfig()
"""Images at their true size, padded to the next multiples of the divisor."""


def canvas_of(
    size: SizeConfig,
    sizes: Sequence[tuple[int, int]],
    *,
    divisor: int,
    scale: float = 1.0,
    crop_hw: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Return the canvas (height, width) that holds every image of a training stage.

    Args:
        size: The size rule.
        sizes: True sizes of the images.
        divisor: What the model's sides must be multiples of.
        scale: Zoom of the stage.
        crop_hw: Windows of this size (before the stage's zoom) are looked at; None: whole images.

    Raises:
        InputError: ``pad_hw`` is no multiple of the divisor, or smaller than the images.
    """
    inner = [size.inner_hw(hw) for hw in sizes]
    height, width = (max(hw[axis] for hw in inner) for axis in (0, 1))
    if crop_hw is not None:
        height, width = min(height, crop_hw[0]), min(width, crop_hw[1])
    least = (round(height * scale), round(width * scale))
    if size.pad_hw is None or crop_hw is not None:
        return round_up(least[0], divisor), round_up(least[1], divisor)
    _check_pad(size.pad_hw, (height, width), divisor)
    scaled = (round(side * scale) for side in size.pad_hw)
    padded_h, padded_w = (round_up(side, divisor) for side in scaled)
    return padded_h, padded_w


def _check_pad(wanted: tuple[int, int], least: tuple[int, int], divisor: int) -> None:
    shown = f"{wanted[0]}x{wanted[1]}"
    if wanted[0] % divisor or wanted[1] % divisor:
        near = (round_up(wanted[0], divisor), round_up(wanted[1], divisor))
        raise InputError(
            f"size.pad_hw: {shown} is no multiple of the model's divisor {divisor}; "
            f"the next that is: {near[0]}x{near[1]}"
        )
    if wanted[0] < least[0] or wanted[1] < least[1]:
        raise InputError(
            f"size.pad_hw: {shown} is smaller than an image of {least[0]}x{least[1]}; "
            "give a larger one, or size.resize_hw"
        )


@dataclass(frozen=True)
class Frame:
    """Where an image of one size lies on its canvas: a chain of transforms, fitted to that size."""

    chain: Chain
    canvas_hw: tuple[int, int]

    @classmethod
    def of(cls, hw: tuple[int, int], size: SizeConfig, *, divisor: int) -> "Frame":
        """Return the frame of one image in prediction.

        Raises:
            InputError: As canvas_of.
        """
        canvas = canvas_of(size, [hw], divisor=divisor)
        chain = Chain([*size.transforms(hw), PadTo(canvas, size.border)])
        return cls(chain.fit(np.empty((0, *hw, 1), np.uint8)), canvas)

    def apply(self, image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "H W c"]:
        """Bring an image onto its canvas."""
        return self.chain.transform(image[None])[0]

    def undo(self, probs: Shaped[np.ndarray, "H W k"]) -> Shaped[np.ndarray, "h w k"]:
        """Bring probabilities on the canvas back to the true size of the image."""
        return self.chain.inverse_transform(probs[None])[0]


def names_by_canvas(
    sizes: Mapping[str, tuple[int, int]], size: SizeConfig, *, divisor: int
) -> dict[tuple[int, int], list[str]]:
    """Return the names of the images that lie on each canvas, both in the order of ``sizes``.

    Images of one canvas can share a batch, whatever their own sizes are, and a runtime that is compiled for a shape is
    compiled once for all of them. The canvas depends on the image's own size and the recipe alone: the next multiples
    of the divisor, or ``pad_hw``. It does not depend on other images, so an image alone is predicted as in a set, and
    is not enlarged to have fewer canvases: a needless border changes predictions near it.

    Args:
        sizes: Id -> true (height, width).
        size: How images lie on the canvas.
        divisor: What the model's sides must be multiples of.

    Raises:
        InputError: As canvas_of.
    """
    found: dict[tuple[int, int], list[str]] = {}
    for name, hw in sizes.items():
        found.setdefault(canvas_of(size, [hw], divisor=divisor), []).append(name)
    return found
