"""Channels that a model makes of a one-channel image, on its canvas.

They are part of the network, so that they travel with exported weights, follow every augmentation and need no place in
a cache. All is computed in float32, before the encoder's normalisation.

Sources:
    Ramp of rows: TGS Salt's first place, https://github.com/ybabakhin/kaggle_salt_bes_phalanx
    (phalanx/salt_dataset.py).
    Cumulative sum: the kernel "U-Net with depth" of the same contest,
    https://www.kaggle.com/code/bguberfain/unet-with-depth.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

BORDER_PX = 5
"""Pixels at each edge that the statistics of the cumulative sum leave out."""
_LEAST_STD = 1e-3  # of the kernel; an even image has a sum of nothing


def depth_ramp(image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Return image, ramp and their product; the ramp is 0 in the first row of the canvas and 1 in the last.

    A canvas of one row has a ramp of 0.
    """
    rows = torch.ones_like(image).cumsum(dim=2) - 1  # so that a traced network serves any height
    ramp = rows / rows[:, :, -1:].clamp(min=1)
    return torch.cat([image, ramp, image * ramp], dim=1)  # (b, 1, h, w) -> (b, 3, h, w)


def cumulative_sum(image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 2 h w"]:
    """Return image and the sum of all rows down to each, of the image less its mean, standardised.

    Means and the standard deviation (at least 0.001) are those of each image within a border of 5 pixels.

    Raises:
        ValueError: The canvas has nothing within the border.
    """
    height, width = image.shape[-2:]
    if min(height, width) <= 2 * BORDER_PX:
        raise ValueError(
            f"derived_channels: 'cumulative_sum' of a canvas of {height}x{width}: there is nothing within the border "
            f"of {BORDER_PX} pixels; expected at least {2 * BORDER_PX + 1} pixels a side"
        )
    total = (image - _inside(image).mean(dim=(2, 3), keepdim=True)).cumsum(dim=2)
    inside = _inside(total)
    mean = inside.mean(dim=(2, 3), keepdim=True)
    std = inside.std(dim=(2, 3), keepdim=True, correction=0).clamp(min=_LEAST_STD)
    return torch.cat([image, (total - mean) / std], dim=1)  # (b, 1, h, w) -> (b, 2, h, w)


def _inside(planes: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 _h _w"]:
    return planes[:, :, BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]


DERIVED: dict[str, Callable[[Tensor], Tensor]] = {"depth_ramp": depth_ramp, "cumulative_sum": cumulative_sum}
"""Value of ``model.derived_channels`` -> what makes the channels of a one-channel image in 0…1."""

DERIVED_COUNT = {"depth_ramp": 3, "cumulative_sum": 2}
"""How many channels come out."""
