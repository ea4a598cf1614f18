"""What is between encoder and decoder.

Sources:
    Two convolutions: the centre of TernausNet, https://arxiv.org/abs/1801.05746
    Feature pyramid attention: Li et al. 2018, https://arxiv.org/abs/1805.10180; here without the 7x7 branch, as in TGS
        Salt's first place, https://arxiv.org/abs/1904.04445
    Dilated: D-LinkNet, Zhou et al. 2018, DeepGlobe road extraction (CVPR workshops)
    Expectation-maximisation attention: Li et al. 2019, https://arxiv.org/abs/1907.13426
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from masksmith.core.config import look_up
from masksmith.models.layers import activation_layer, conv_norm_act, resize_to

MAX_WIDTH = 512  # as published; a 5x5 convolution of 2048 to 2048 channels would have 105 million weights


class Center(NamedTuple):
    """A centre, and what the decoder must know of it."""

    module: nn.Module
    out_channels: int
    halves: bool
    """Whether its map has half the size of the deepest encoder map, which then joins the first block as a skip."""


class FeaturePyramidAttention(nn.Module):
    """Feature pyramid attention of two scales, without the 7x7 branch.

    The 1x1 branch times the pyramid (5x5 convolutions at half the size, 3x3 at a quarter, resized and added), plus
    the mean over all pixels through a 1x1 convolution. Maps of one pixel and of odd sizes work. The activation is ELU,
    as published.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of the attended map.
        norm: "batch", "group" or "none".
        align_corners: How the pyramid is resized; see ``resize_to``.
        mean_bias: Whether the convolution of the mean has a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: str,
        align_corners: bool = False,
        mean_bias: bool = True,
    ) -> None:
        super().__init__()
        inner = min(in_channels, MAX_WIDTH)
        layer = partial(conv_norm_act, norm=norm, activation="elu")
        self.resize = partial(resize_to, align_corners=align_corners)
        self.pool = nn.Conv2d(in_channels, out_channels, 1, bias=mean_bias)
        self.point = layer(in_channels, out_channels, 1)
        self.to_half = layer(in_channels, inner, 5, stride=2)
        self.at_half = layer(inner, out_channels, 5)
        self.to_quarter = layer(inner, inner, 3, stride=2)
        self.at_quarter = layer(inner, out_channels, 3)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return the attended map, of the same size."""
        half = self.to_half(features)  # (b, c, h, w) -> (b, inner, h/2, w/2)
        quarter = self.at_quarter(self.to_quarter(half))  # -> (b, k, h/4, w/4)
        pyramid = self.at_half(half) + self.resize(quarter, half.shape[-2:])
        pyramid = self.resize(pyramid, features.shape[-2:])  # (b, k, h/2, w/2) -> (b, k, h, w)
        mean = self.pool(features.mean(dim=(2, 3), keepdim=True))  # (b, c, h, w) -> (b, k, 1, 1)
        return self.point(features) * pyramid + mean


class DilatedStack(nn.Module):
    """3x3 convolutions of dilation 1, 2, 4 and 8 one after the other; the input and all four results are added.

    Without normalisation, as published.
    """

    def __init__(self, channels: int, *, activation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation),
                activation_layer(activation),
            )
            for dilation in (1, 2, 4, 8)
        )

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the sum of the input and of each layer's map."""
        total = current = features
        for layer in self.layers:
            current = layer(current)
            total = total + current
        return total


class ExpectationMaximizationAttention(nn.Module):
    """A map rebuilt from a few bases that three steps of expectation maximisation fit to each image.

    ``bases`` (c, k) is where the steps start: a buffer, drawn at random, that in training follows the mean of the
    images' fitted bases (momentum 0.9). In training a forward pass therefore changes it: do not recompute this module
    (it is in no list of blocks, so gradient checkpointing leaves it alone).
    Over several processes the first one's buffer counts (DDP broadcasts buffers).

    The published code stops the gradient in all three steps, which leaves its first convolution untrained. Here the
    last step is differentiated; the values are the same. The steps run in float32.
    """

    bases: Tensor

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        norm: str,
        activation: str,
        num_bases: int = 64,
        num_steps: int = 3,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.reduce = conv_norm_act(in_channels, channels, norm=norm, activation=activation)
        self.num_steps = num_steps
        self.momentum = momentum
        self.project = nn.Conv2d(channels, channels, 1)
        self.rebuild = conv_norm_act(channels, channels, 1, norm=norm, activation="relu")[:2]
        self.register_buffer("bases", F.normalize(torch.randn(channels, num_bases), dim=0))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return relu(reduced + rebuilt), where ``reduced`` is the input through a 3x3 convolution to ``channels``."""
        features = self.reduce(features)
        pixels = self.project(features).flatten(2)  # (b, c, h, w) -> (b, c, h*w)
        with torch.autocast(features.device.type, enabled=False):
            bases, shares = self._fit(pixels.float())
            rebuilt = bases @ shares.transpose(1, 2)  # (b, c, k) @ (b, k, h*w) -> (b, c, h*w)
        if self.training:
            self._follow(bases)
        rebuilt = F.relu(rebuilt).view_as(features).to(pixels.dtype)  # (b, c, h*w) -> (b, c, h, w)
        return F.relu(features + self.rebuild(rebuilt))

    def _fit(self, pixels: Float[Tensor, "b c n"]) -> tuple[Float[Tensor, "b c k"], Float[Tensor, "b n k"]]:
        """Return each image's bases, and the share of each pixel that each basis explains."""
        bases = self.bases.float()[None].clone()  # (c, k) -> (1, c, k); a copy: _follow writes in place
        with torch.no_grad():
            for _ in range(self.num_steps - 1):
                bases, _ = _em_step(pixels, bases)
        return _em_step(pixels, bases)

    @torch.no_grad()
    def _follow(self, bases: Float[Tensor, "b c k"]) -> None:
        mean = bases.mean(0)  # (b, c, k) -> (c, k)
        self.bases.lerp_(mean.to(self.bases.dtype), 1 - self.momentum)


def _em_step(
    pixels: Float[Tensor, "b c n"], bases: Float[Tensor, "_b c k"]
) -> tuple[Float[Tensor, "b c k"], Float[Tensor, "b n k"]]:
    """Share the pixels out among the bases, then move each basis to the mean of its pixels, at length 1."""
    shares = torch.softmax(pixels.transpose(1, 2) @ bases, dim=2)  # (b, n, c) @ (b or 1, c, k) -> (b, n, k)
    weights = shares / (shares.sum(1, keepdim=True) + 1e-6)
    return F.normalize(pixels @ weights, dim=1), shares  # (b, c, n) @ (b, n, k) -> (b, c, k)


def _none(channels: int, *, norm: str, activation: str) -> Center:
    return Center(nn.Identity(), channels, halves=False)


def _conv(channels: int, *, norm: str, activation: str) -> Center:
    width = min(channels, MAX_WIDTH)
    layer = partial(conv_norm_act, norm=norm, activation=activation)
    return Center(nn.Sequential(_pool(), layer(channels, width), layer(width, width)), width, halves=True)


def _fpa(channels: int, *, norm: str, activation: str) -> Center:
    width = max(1, min(channels, MAX_WIDTH) // 2)
    return Center(
        nn.Sequential(FeaturePyramidAttention(channels, width, norm=norm), _pool()), width, halves=True
    )


def _dilated(channels: int, *, norm: str, activation: str) -> Center:
    return Center(DilatedStack(channels, activation=activation), channels, halves=False)


def _ema(channels: int, *, norm: str, activation: str) -> Center:
    width = min(channels, MAX_WIDTH)
    return Center(
        ExpectationMaximizationAttention(channels, width, norm=norm, activation=activation),
        width,
        halves=False,
    )


def _pool() -> nn.Module:
    return nn.MaxPool2d(2, ceil_mode=True)  # rounded up: a map of one pixel stays one


CENTERS: dict[str, Callable[..., Center]] = {
    "none": _none,
    "conv": _conv,
    "fpa": _fpa,
    "dilated": _dilated,
    "ema": _ema,
}


def build_center(name: str, channels: int, *, norm: str, activation: str) -> Center:
    """Return a centre for a deepest map of ``channels`` channels.

    "conv": 2x2 max pooling, two 3x3 convolutions (TernausNet, AlbuNet). "fpa": feature pyramid attention to half the
    channels, 2x2 max pooling. Both halve the map, and the deepest map joins the first block as a skip. "dilated" and
    "ema" (after a 3x3 convolution) keep its size. Widths are at most 512, but for "dilated", which keeps the
    encoder's.

    Raises:
        InputError: The name is unknown.
    """
    return look_up(CENTERS, name, where="model.center")(channels, norm=norm, activation=activation)
