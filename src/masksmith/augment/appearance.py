"""The intensity changes that one look-up table cannot make: each a function, applied in the order of ``LOOKS``.

Every function takes an image (h, w, c) of float32, about 0…1, its configuration and a generator of its own, so that
switching one on does not change what another draws.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from masksmith.augment.intensity import (
    BlurConfig,
    ChannelScaleConfig,
    ClaheConfig,
    CutoutConfig,
    HsvConfig,
    IntensityConfig,
    MotionBlurConfig,
    NoiseConfig,
)
from masksmith.core.arrays import IGNORE, Float, Shaped, UInt8

Floats = Float[np.ndarray, "h w c"]
Integers = Shaped[np.ndarray, "h w c"]
AnyMask = UInt8[np.ndarray, "h w *k"]


def clahe(image: Integers, config: ClaheConfig, rng: np.random.Generator) -> Integers:
    """Equalise the histogram of each tile, up to a clip limit, each channel of 8 or 16 bits by itself."""
    height, width, channels = image.shape
    tiles = (-(-width // config.tile_px), -(-height // config.tile_px))
    equaliser = cv2.createCLAHE(clipLimit=float(rng.uniform(*config.clip_range)), tileGridSize=tiles)
    planes = [equaliser.apply(plane) for plane in cv2.split(image)]
    return cv2.merge(planes).reshape(height, width, channels)


def hsv(image: Floats, config: HsvConfig, rng: np.random.Generator) -> Floats:
    """Turn the hue, and multiply saturation and value."""
    turn = rng.uniform(-config.hue_deg, config.hue_deg)
    factors = 1 + rng.uniform(-1, 1, 2) * (config.saturation, config.value)
    seen = cv2.cvtColor(np.clip(image, 0, 1), cv2.COLOR_RGB2HSV)  # hue in degrees, the others 0…1
    seen[..., 0] = (seen[..., 0] + np.float32(turn)) % np.float32(360)
    seen[..., 1:] = np.clip(seen[..., 1:] * factors.astype(np.float32), 0, 1)
    return cv2.cvtColor(seen, cv2.COLOR_HSV2RGB)


def channel_shuffle(image: Floats, config: float, rng: np.random.Generator) -> Floats:
    """Bring the channels into a random order."""
    return image[..., rng.permutation(image.shape[2])]


def channel_scale(image: Floats, config: ChannelScaleConfig, rng: np.random.Generator) -> Floats:
    """Multiply and shift each channel by itself."""
    factor, add = rng.uniform(-1, 1, (2, image.shape[2])).astype(np.float32)
    return image * (1 + factor * np.float32(config.multiply)) + add * np.float32(config.add)


def blur(image: Floats, config: BlurConfig, rng: np.random.Generator) -> Floats:
    """Convolve with a Gaussian."""
    sigma = float(rng.uniform(*config.sigma_px_range))
    if sigma == 0:
        return image
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101).reshape(image.shape)


def motion_blur(image: Floats, config: MotionBlurConfig, rng: np.random.Generator) -> Floats:
    """Take the mean along a line of a drawn length and direction."""
    length, angle = int(rng.integers(2, config.length_px + 1)), float(rng.uniform(0, np.pi))
    side = length | 1  # odd, so that the line has a middle
    along = (np.arange(8 * length + 1) / (8 * length) - 0.5) * (length - 1)
    at = np.rint(np.stack([np.sin(angle) * along, np.cos(angle) * along])).astype(int) + side // 2
    kernel = np.zeros((side, side), np.float32)
    kernel[at[0], at[1]] = 1
    kernel /= kernel.sum()
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101).reshape(image.shape)


def noise(image: Floats, config: NoiseConfig, rng: np.random.Generator) -> Floats:
    """Add Gaussian noise."""
    sigma = np.float32(rng.uniform(*config.sigma_range))
    return image + rng.standard_normal(image.shape, np.float32) * sigma


LOOKS: dict[str, Callable[[Floats, Any, np.random.Generator], Floats]] = {
    "hsv": hsv,
    "channel_shuffle": channel_shuffle,
    "channel_scale": channel_scale,
    "blur": blur,
    "motion_blur": motion_blur,
    "noise": noise,
}
"""Field of IntensityConfig -> function, in the order of application."""

_DRAWN = ("clahe", *LOOKS, "cutout")


def cutout(image: Floats, mask: AnyMask, config: CutoutConfig, rng: np.random.Generator) -> None:
    """Hide rectangles of the image in place, and of the mask where the configuration says so; ignored stays ignored."""
    hw = np.array(image.shape[:2])
    fill = image.mean((0, 1)) if config.fill == "mean" else np.zeros(image.shape[2], np.float32)
    for _ in range(int(rng.integers(config.count_range[0], config.count_range[1], endpoint=True))):
        sides = np.maximum(1, np.rint(rng.uniform(*config.side_frac_range, 2) * hw)).astype(int)
        start = np.floor(rng.random(2) * hw).astype(int) - sides // 2
        top, left = np.maximum(start, 0)
        bottom, right = np.minimum(start + sides, hw)
        image[top:bottom, left:right] = fill
        if config.mask != "keep":
            hidden = mask[top:bottom, left:right]
            hidden[hidden != IGNORE] = 0 if config.mask == "zero" else IGNORE


def _probability(config: IntensityConfig, name: str) -> float:
    part = getattr(config, name)
    return part if isinstance(part, float) else part.probability


def draw_looks(config: IntensityConfig, rng: np.random.Generator) -> dict[str, np.random.Generator]:
    """Draw which changes are made; return a generator for each of them."""
    odds, seeds = rng.random(len(_DRAWN)), rng.integers(2**63, size=len(_DRAWN))
    return {
        name: np.random.default_rng(int(seed))
        for name, odd, seed in zip(_DRAWN, odds, seeds, strict=True)
        if odd < _probability(config, name)
    }


def has_looks(config: IntensityConfig) -> bool:
    """Whether anything but the look-up table can be drawn."""
    return any(_probability(config, name) for name in _DRAWN)


def apply_looks(
    image: Floats, mask: AnyMask, config: IntensityConfig, drawn: dict[str, np.random.Generator]
) -> None:
    """Apply what was drawn to an image and its mask, in place; CLAHE is left out (it acts before the table)."""
    changed = image
    for name, change in LOOKS.items():
        if name in drawn:
            changed = change(changed, getattr(config, name), drawn[name])
    if changed is not image:
        image[...] = changed
    if "cutout" in drawn:
        cutout(image, mask, config.cutout, drawn["cutout"])
