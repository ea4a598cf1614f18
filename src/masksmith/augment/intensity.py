"""Pointwise intensity augmentation: brightness, contrast and gamma composed into one look-up table.

The table maps the stored integers straight to float32, so nothing is rounded or clipped between the steps.
"""

import numpy as np
from pydantic import Field

from masksmith.arrays import Float
from masksmith.config import Config

Table = Float[np.ndarray, " values"]


class IntensityConfig(Config):
    """Ranges that intensity is drawn from; all zero leaves the image as it is."""

    brightness: float = Field(default=0.0, ge=0, le=1)
    """Added value, uniform in ± this share of the full range."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Factor, uniform in 1 ± this."""
    gamma: float = Field(default=0.0, ge=0, lt=1)
    """Exponent, uniform on the logarithm between 1 - this and its inverse."""


def draw_table(config: IntensityConfig, rng: np.random.Generator, *, max_value: int) -> Table:
    """Draw one table of ``max_value + 1`` float32 values; without changes it is 0…1 evenly.

    Args:
        config: The ranges.
        rng: Where the draws come from.
        max_value: Largest integer a pixel can have (255 or 65535).
    """
    table = np.linspace(0, 1, max_value + 1, dtype=np.float32)
    gamma = float(np.exp(rng.uniform(-1, 1) * -np.log1p(-config.gamma)))
    contrast = rng.uniform(1 - config.contrast, 1 + config.contrast)
    brightness = rng.uniform(-config.brightness, config.brightness)
    if config.gamma:
        table = table**gamma
    return (table * contrast + brightness).astype(np.float32)
