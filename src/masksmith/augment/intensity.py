"""Intensity augmentation: what changes the values of pixels and moves none of them.

Brightness, contrast, gamma and inversion are composed into one look-up table, which maps the stored integers
straight to float32, so that nothing is rounded or clipped between them. The rest follows in the order of
``IntensityConfig``: CLAHE (before the table, on integers), then on float32 HSV, channel shuffle, channel scale,
blur, motion blur, noise and cut-out (``appearance.py``).
"""

from functools import lru_cache
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field, field_validator, model_validator

from masksmith.augment.distortions import Probability
from masksmith.augment.geometry import Share, ascending, validated
from masksmith.augment.presets import INTENSITY_PRESETS, spell_out
from masksmith.core.arrays import Float, Shaped
from masksmith.core.config import Config

Table = Float[np.ndarray, " values"]
NotNegative = Annotated[float, Field(ge=0)]


class ClaheConfig(Config):
    """Contrast-limited adaptive histogram equalisation, each channel by itself (Zuiderveld 1994)."""

    probability: Probability = 0.0
    """How often it is drawn."""
    tile_px: int = Field(default=32, ge=2)
    """Largest side of a tile on the canvas in pixels (32: 003.pre.16); all tiles are of one size."""
    clip_range: tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]] = (1.0, 4.0)
    """Clip limit, uniform: how many times the mean a histogram's bin may hold."""

    @field_validator("clip_range")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        return ascending(value)


class HsvConfig(Config):
    """Hue, saturation and value; for images of three channels, red first. Values are cut to 0…1."""

    probability: Probability = 0.0
    """How often it is drawn."""
    hue_deg: float = Field(default=20.0, ge=0, le=180)
    """Turn of the hue, uniform in ± this many degrees."""
    saturation: float = Field(default=0.3, ge=0, le=1)
    """Factor, uniform in 1 ± this."""
    value: float = Field(default=0.2, ge=0, le=1)
    """Factor, uniform in 1 ± this."""


class ChannelScaleConfig(Config):
    """Each channel multiplied and shifted by itself: bands of a satellite under another light."""

    probability: Probability = 0.0
    """How often it is drawn."""
    multiply: float = Field(default=0.01, ge=0, lt=1)
    """Factor of a channel, uniform in 1 ± this."""
    add: float = Field(default=0.01, ge=0, le=1)
    """Added to a channel, uniform in ± this share of the full range."""


class BlurConfig(Config):
    """Gaussian blur."""

    probability: Probability = 0.0
    """How often it is drawn."""
    sigma_px_range: tuple[NotNegative, NotNegative] = (0.3, 1.5)
    """Standard deviation on the canvas in pixels, uniform."""

    @field_validator("sigma_px_range")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        return ascending(value)


class MotionBlurConfig(Config):
    """Mean along a line of a drawn direction, as of a camera that moved."""

    probability: Probability = 0.0
    """How often it is drawn."""
    length_px: int = Field(default=7, ge=2, le=101)
    """Longest line in pixels; the length is drawn from 2 to this."""


class NoiseConfig(Config):
    """Zero-mean Gaussian noise, each pixel and channel by itself."""

    probability: Probability = 0.0
    """How often it is drawn."""
    sigma_range: tuple[NotNegative, NotNegative] = (0.005, 0.04)
    """Standard deviation as a share of the full range, uniform."""

    @field_validator("sigma_range")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        return ascending(value)


class CutoutConfig(Config):
    """Rectangles that hide the image (DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552)."""

    probability: Probability = 0.0
    """How often it is drawn."""
    count_range: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 1)
    """How many rectangles."""
    side_frac_range: tuple[Share, Share] = (0.1, 0.3)
    """Each side as a share of the canvas's; the centre is anywhere on the canvas."""
    fill: Literal["zero", "mean"] = "mean"
    """What is seen in them: 0, or the mean of each channel."""
    mask: Literal["keep", "zero", "ignore"] = "keep"
    """What becomes of the mask there: it stays (the net is to guess), is background, or is not judged."""

    @field_validator("count_range", "side_frac_range")
    @classmethod
    def _ascending(cls, value: Any) -> Any:  # noqa: ANN401
        return ascending(value)


class IntensityConfig(Config):
    """Ranges that intensity is drawn from; as they stand here they leave the image as it is.

    A preset's name ("none", "lossless", "light", "heavy") in the place of the table means the preset's table.
    """

    brightness: float = Field(default=0.0, ge=0, le=1)
    """Added value, uniform in ± this share of the full range."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Factor, uniform in 1 ± this."""
    gamma: float = Field(default=0.0, ge=0, lt=1)
    """Exponent, uniform on the logarithm between 1 - this and its inverse."""
    invert: Probability = 0.0
    """Probability of turning dark to bright, before gamma."""
    clahe: ClaheConfig = ClaheConfig()
    """Local contrast."""
    hsv: HsvConfig = HsvConfig()
    """Hue, saturation, value."""
    channel_shuffle: Probability = 0.0
    """Probability of a random order of the channels."""
    channel_scale: ChannelScaleConfig = ChannelScaleConfig()
    """Channels brighter or darker by themselves."""
    blur: BlurConfig = BlurConfig()
    """Gaussian blur."""
    motion_blur: MotionBlurConfig = MotionBlurConfig()
    """Blur along a line."""
    noise: NoiseConfig = NoiseConfig()
    """Gaussian noise."""
    cutout: CutoutConfig = CutoutConfig()
    """Hidden rectangles."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:  # noqa: ANN401
        return spell_out(INTENSITY_PRESETS, value)


def draw_table(config: IntensityConfig, rng: np.random.Generator, *, max_value: int) -> Table:
    """Draw one table of ``max_value + 1`` float32 values; without changes it is 0…1 evenly.

    Args:
        config: The ranges.
        rng: Where the draws come from.
        max_value: Largest integer a pixel can have (255 or 65535).
    """
    table = _even_table(max_value)
    gamma = float(np.exp(rng.uniform(-1, 1) * -np.log1p(-config.gamma)))
    contrast = rng.uniform(1 - config.contrast, 1 + config.contrast)
    brightness = rng.uniform(-config.brightness, config.brightness)
    if rng.random() < config.invert:
        table = 1 - table
    if config.gamma:
        table = table ** np.float32(gamma)
    return table * np.float32(contrast) + np.float32(brightness)


@lru_cache(maxsize=2)
def _even_table(max_value: int) -> Table:
    table = np.linspace(0, 1, max_value + 1, dtype=np.float32)
    table.flags.writeable = False  # it is shared
    return table


def apply_table(table: Table, image: Shaped[np.ndarray, "h w c"], target: Float[np.ndarray, "h w c"]) -> None:
    """Write ``table[image]`` into a contiguous float32 array.

    OpenCV's look-up takes a fifth of the time of numpy's (80 against 375 µs for 512x512 bytes).
    """
    flat, filled = np.ascontiguousarray(image).reshape(image.shape[0], -1), target.reshape(len(target), -1)
    if image.dtype == np.uint8:
        cv2.LUT(flat, table, dst=filled)
    else:
        np.take(table, flat, out=filled, mode="clip")  # nothing is clipped; it spares the check of each index


def scale_intensity(config: IntensityConfig, strength: float, *, where: str = "strength") -> IntensityConfig:
    """Return weaker (below 1) or stronger ranges; 0 changes nothing at all, 1 is ``config``.

    Ranges are multiplied (gamma: its logarithm). What has no range that ends at nothing (inversion, CLAHE, channel
    shuffle, motion blur, cut-out) gets its probability multiplied below 1 and keeps it above.

    Raises:
        InputError: A range leaves what the field allows.
    """
    return config if strength == 1 else _scaled_intensity(config, float(strength), where)


@lru_cache(maxsize=256)
def _scaled_intensity(config: IntensityConfig, strength: float, where: str) -> IntensityConfig:
    values = config.model_dump()
    for name in ("brightness", "contrast"):
        values[name] *= strength
    values["gamma"] = 1 - (1 - config.gamma) ** strength
    for name in ("invert", "channel_shuffle"):
        values[name] *= min(strength, 1.0)
    for name in ("clahe", "motion_blur", "cutout"):
        values[name]["probability"] *= min(strength, 1.0)
    parts = {"hsv": ("hue_deg", "saturation", "value"), "channel_scale": ("multiply", "add")}
    for name, keys in parts.items():
        for key in keys:
            values[name][key] *= strength
    for name, key in (("blur", "sigma_px_range"), ("noise", "sigma_range")):
        values[name][key] = tuple(side * strength for side in values[name][key])
    return validated(IntensityConfig, values, strength, where)
