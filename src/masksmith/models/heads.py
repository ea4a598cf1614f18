"""What follows the encoder besides the decoder: the image head, and scalars joined to the deepest map.

Sources:
    Generalised-mean pooling: Radenović et al. 2018, https://arxiv.org/abs/1711.02512
    Scalars tiled onto the deepest map: the "U-Net with depth" of the TGS Salt contest's kernels, whose net of our own
    (models/published) stacks them; before other decoders a 1x1 convolution keeps the map's width.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from masksmith.preprocess import Standardize

_GEM_POWER = 3.0  # the first value of p, as published
_GEM_FLOOR = 1e-6  # powers of numbers below zero are not defined


class GeMPool(nn.Module):
    """Generalised mean over all pixels: (mean of x^p)^(1/p), p learned; p = 1 is the mean, large p the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor([_GEM_POWER]))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Return (b, c); values below 1e-6 count as 1e-6."""
        powers = features.clamp(min=_GEM_FLOOR).pow(self.power)
        return powers.mean(dim=(2, 3)).pow(1 / self.power)


class AvgPool(nn.Module):
    """Mean over all pixels."""

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Return (b, c)."""
        return features.mean(dim=(2, 3))


class MaxPool(nn.Module):
    """Maximum over all pixels."""

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Return (b, c)."""
        return features.amax(dim=(2, 3))


POOLS: dict[str, Callable[[], nn.Module]] = {"avg": AvgPool, "max": MaxPool, "gem": GeMPool}


def build_image_head(pooling: str, channels: int, classes: int) -> nn.Sequential:
    """Return pooling and a linear layer: (b, channels, h, w) -> (b, classes)."""
    linear = nn.Linear(channels, classes)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(POOLS[pooling](), linear)


class ScalarJoin(nn.Module):
    """Joins an image's numbers (scalars) to its deepest map.

    They are standardised, repeated at every pixel and stacked onto the map. Unless that is all (``stacks``), a 1x1
    convolution brings it back to its width, which at first passes the map through, so that pretrained features arrive.

    Args:
        names: Names of the columns.
        channels: Channels of the map.
        stacks: Whether the map leaves with a further channel for each number.
    """

    scalar_mean: Tensor
    scalar_std: Tensor

    def __init__(self, names: Sequence[str], channels: int, *, stacks: bool = False) -> None:
        super().__init__()
        self.names = tuple(names)
        self.mix: nn.Module = nn.Identity() if stacks else _pass_through(channels, more=len(names))
        self.register_buffer("scalar_mean", torch.zeros(len(names)))
        self.register_buffer("scalar_std", torch.ones(len(names)))

    def set_statistics(self, values: Float[np.ndarray, "n s"]) -> None:
        """Take mean and standard deviation from the numbers of the training images.

        Raises:
            InputError: Another number of columns; a column that is not finite, or the same everywhere.
        """
        standard = Standardize(self.names, where="model.scalars").fit(values)
        self.scalar_mean.copy_(torch.from_numpy(standard.mean_))
        self.scalar_std.copy_(torch.from_numpy(standard.std_))

    def forward(
        self, features: Float[Tensor, "b c h w"], scalars: Float[Tensor, "b s"]
    ) -> Float[Tensor, "b k h w"]:
        """Return the map with the scalars mixed in, or stacked onto it behind its own channels."""
        standard = (scalars - self.scalar_mean) / self.scalar_std
        tiled = standard[:, :, None, None].expand(-1, -1, *features.shape[-2:])  # (b, s) -> (b, s, h, w)
        joined: Tensor = self.mix(torch.cat([features, tiled.to(features.dtype)], dim=1))
        return joined


def _pass_through(channels: int, *, more: int) -> nn.Conv2d:
    """Return a 1x1 convolution of ``channels`` and ``more`` channels to the former, which passes those through."""
    mix = nn.Conv2d(channels + more, channels, 1)
    with torch.no_grad():
        mix.weight[:, :channels] = torch.eye(channels)[:, :, None, None]
        nn.init.zeros_(mix.bias)  # type: ignore[arg-type]
    return mix
