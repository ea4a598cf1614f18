"""Which bands of an image a model sees, and how their values are brought to 0…1. Imports no torch.

Published satellite systems differ mainly in this: a fixed maximum per band, the extremes of each image, or one number
for all (third place of On Cloud N, https://github.com/drivendataorg/cloud-cover-winners).
"""

from typing import Annotated, Literal

from pydantic import Field

from masksmith.config import Config

Band = Annotated[int, Field(ge=0)]


class InputConfig(Config):
    """From an image's file to the numbers that a model sees."""

    bands: list[Band] | None = None
    """Bands of the file by number, from 0, in this order; None: all of them."""
    scaling: Literal["type_max", "fixed", "min_max", "image_min_max", "standard"] = "type_max"
    """What becomes 0 and 1: 0 and the largest value of the file's type (8 or 16 bits without sign); ``low`` and
    ``high``; each band's extremes over the training images; each band's extremes in each image; or each band's mean
    minus and plus three standard deviations over the training images. Values beyond are clipped."""
    low: list[float] | None = None
    """With scaling "fixed": the value of each band (of ``bands``, in that order) that becomes 0; one number: of all."""
    high: list[float] | None = None
    """With scaling "fixed": the value that becomes 1."""
    one_hot: dict[str, list[int]] = Field(default_factory=dict)
    """Bands whose values are names, not amounts (a class of land cover): number of the band -> its values, each of
    which becomes a channel of 0 and 1 after the others."""
