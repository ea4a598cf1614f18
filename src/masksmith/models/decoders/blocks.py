"""Blocks of a decoder: each brings a map to the size of an encoder map, joins it, and computes.

All have the form ``block(features, target)``: ``target`` is the encoder map at which the block ends; it gives the size,
and is stacked or added where the block was built with ``skip_channels`` above 0.

Sources:
    Classical U-Net: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597
    Residual blocks: "U-net with simple ResNet blocks" (TGS Salt); identity mappings of He et al. 2016,
        https://arxiv.org/abs/1603.05027
    LinkNet: Chaurasia and Culurciello 2017, https://arxiv.org/abs/1707.03718
    Halves: the U-Net of fast.ai 0.7, as TGS Salt's first place used it, https://arxiv.org/abs/1904.04445
    Two single convolutions, before and after the skip: selim_sef's zoo of SpaceNet 4,
        https://github.com/SpaceNetChallenge/SpaceNet_Off_Nadir_Solutions; On Cloud N's third place,
        https://github.com/drivendataorg/cloud-cover-winners
    Transposed convolution, normalised and activated before the skip: segmentation_models for Keras, as the ResNeXt50 of
        TGS Salt's first place used it, https://github.com/ybabakhin/kaggle_salt_bes_phalanx
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from masksmith.models.layers import (
    activation_layer,
    attention_layer,
    conv_norm_act,
    norm_layer,
    resize_to,
    up_convolution,
)
from masksmith.models.published import keras


@dataclass(frozen=True)
class Step:
    """Where a block begins and ends.

    Attributes:
        level: Index of the encoder map at which it ends.
        ratio: By how much height and width grow; 1 where two maps have the same stride.
        in_channels: Channels that come from below.
        skip_channels: Channels of the encoder map; 0: it gives only its size.
        out_channels: Channels that go out.
    """

    level: int
    ratio: int
    in_channels: int
    skip_channels: int
    out_channels: int


@dataclass(frozen=True)
class Style:
    """What all blocks of a decoder have in common; the words are those of ModelConfig."""

    norm: str
    activation: str
    upsample: str
    """nearest, bilinear or transposed."""
    attention: str


class Upsample(nn.Module):
    """Bring a map to a given size: by a transposed convolution to ``out_channels``, or by interpolation.

    Where the ratio does not lead exactly to the size (odd maps), the result is resized to it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        mode: str,
        ratio: int,
        kernel_size: int,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.learned = mode == "transposed"
        self.mode = "bilinear" if self.learned else mode
        self.out_channels = out_channels if self.learned else in_channels
        self.layer = (
            up_convolution(in_channels, out_channels, ratio=ratio, kernel_size=kernel_size, bias=bias)
            if self.learned
            else nn.Identity()
        )

    def forward(self, features: Float[Tensor, "b c _h _w"], hw: torch.Size) -> Float[Tensor, "b k _H _W"]:
        """Return the map at the size (height, width)."""
        return resize_to(self.layer(features), hw, mode=self.mode)

    def extra_repr(self) -> str:
        """Return what is printed for this module."""
        return "" if self.learned else self.mode


class Residual(nn.Module):
    """A residual block that normalises and activates before each of its two 3x3 convolutions."""

    def __init__(self, channels: int, *, norm: str, activation: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.body = nn.Sequential(
            norm_layer(norm, channels),
            activation_layer(activation),
            nn.Conv2d(channels, channels, 3, padding=1, bias=bias),
            norm_layer(norm, channels),
            activation_layer(activation),
            nn.Conv2d(channels, channels, 3, padding=1, bias=bias),
        )

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return ``features`` plus what the two convolutions make of them."""
        return features + self.body(features)


def _conv_body(in_channels: int, out_channels: int, *, norm: str, activation: str) -> nn.Sequential:
    return nn.Sequential(
        conv_norm_act(in_channels, out_channels, norm=norm, activation=activation),
        conv_norm_act(out_channels, out_channels, norm=norm, activation=activation),
    )


def _residual_body(in_channels: int, out_channels: int, *, norm: str, activation: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        Residual(out_channels, norm=norm, activation=activation),
        Residual(out_channels, norm=norm, activation=activation),
        norm_layer(norm, out_channels),
        activation_layer(activation),
    )


BODIES = {"conv": _conv_body, "residual": _residual_body}
"""What a U-Net block computes: two convolutions, or a convolution, two residual blocks, normalisation, activation."""


class AddedSkip(nn.Module):
    """Add an encoder map; where its width differs, through a 1x1 convolution."""

    def __init__(self, channels: int, skip_channels: int) -> None:
        super().__init__()
        same = channels == skip_channels
        self.project = nn.Identity() if same else nn.Conv2d(skip_channels, channels, 1)

    def forward(
        self, features: Float[Tensor, "b c h w"], skip: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the sum."""
        return features + self.project(skip)


class StackedSkip(nn.Module):
    """Stack an encoder map upon the decoder's."""

    def forward(
        self, features: Float[Tensor, "b c h w"], skip: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b j h w"]:
        """Return both, the decoder's channels first."""
        return torch.cat([features, skip], dim=1)  # (b, c, h, w), (b, k, h, w) -> (b, c+k, h, w)


class UNetBlock(nn.Module):
    """Upsample, join, compute, attend.

    Args:
        step: Where it begins and ends.
        style: What the decoder's blocks have in common.
        body: A key of BODIES.
        skip: "concat" or "add".
        kernel_size: Of the transposed convolution, if that is how it upsamples.
    """

    def __init__(self, step: Step, style: Style, *, body: str, skip: str, kernel_size: int) -> None:
        super().__init__()
        self.up = Upsample(
            step.in_channels,
            step.out_channels,
            mode=style.upsample,
            ratio=step.ratio,
            kernel_size=kernel_size,
        )
        self.join: nn.Module | None = None
        width = self.up.out_channels
        if step.skip_channels and skip == "add":
            self.join = AddedSkip(width, step.skip_channels)
        elif step.skip_channels:
            self.join = StackedSkip()
            width += step.skip_channels
        self.body = BODIES[body](width, step.out_channels, norm=style.norm, activation=style.activation)
        self.attention = attention_layer(style.attention, step.out_channels)

    def forward(
        self, features: Float[Tensor, "b c _h _w"], target: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b j h w"]:
        """Return the block's map at the target's size."""
        features = self.up(features, target.shape[-2:])
        if self.join is not None:
            features = self.join(features, target)
        return self.attention(self.body(features))


class LinkBlock(nn.Module):
    """LinkNet's block: 1x1 to a quarter of the channels, upsample, 1x1 to the width, then join.

    Args:
        step: Where it begins and ends.
        style: What the decoder's blocks have in common; transposed convolutions are 3x3, and a 3x3 convolution
            follows an interpolation.
        skip: "add", as published, or "concat": stacked, then 1x1 to the width.
    """

    def __init__(self, step: Step, style: Style, *, skip: str) -> None:
        super().__init__()
        quarter = max(1, step.in_channels // 4)
        layer = partial(conv_norm_act, kernel_size=1, norm=style.norm, activation=style.activation)
        self.reduce = layer(step.in_channels, quarter)
        self.up = Upsample(quarter, quarter, mode=style.upsample, ratio=step.ratio, kernel_size=3)
        self.smooth = nn.Identity() if self.up.learned else nn.Conv2d(quarter, quarter, 3, padding=1)
        self.after_up = nn.Sequential(norm_layer(style.norm, quarter), activation_layer(style.activation))
        self.expand = layer(quarter, step.out_channels)
        self.join: nn.Module | None = None
        self.merge: nn.Module = nn.Identity()
        if step.skip_channels and skip == "add":
            self.join = AddedSkip(step.out_channels, step.skip_channels)
        elif step.skip_channels:
            self.join = StackedSkip()
            self.merge = layer(step.out_channels + step.skip_channels, step.out_channels)
        self.attention = attention_layer(style.attention, step.out_channels)

    def forward(
        self, features: Float[Tensor, "b c _h _w"], target: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b j h w"]:
        """Return the block's map at the target's size."""
        features = self.after_up(self.smooth(self.up(self.reduce(features), target.shape[-2:])))
        features = self.expand(features)
        if self.join is not None:
            features = self.merge(self.join(features, target))
        return self.attention(features)


class HalvesBlock(nn.Module):
    """Half of the channels from a 2x2 transposed convolution, half from a 1x1 convolution of the skip, stacked.

    Normalisation and activation follow; there is no other convolution. Without a skip all channels come from below. Of
    an odd number the larger half comes from below.

    Args:
        step: Where it begins and ends.
        style: What the decoder's blocks have in common.
        skip_bias: Whether the 1x1 convolution of the skip has a bias.
    """

    def __init__(self, step: Step, style: Style, *, skip_bias: bool = True) -> None:
        super().__init__()
        from_skip = step.out_channels // 2 if step.skip_channels else 0
        self.up = Upsample(
            step.in_channels,
            step.out_channels - from_skip,
            mode="transposed",
            ratio=step.ratio,
            kernel_size=2,
        )
        self.project = nn.Conv2d(step.skip_channels, from_skip, 1, bias=skip_bias) if from_skip else None
        self.after = nn.Sequential(
            norm_layer(style.norm, step.out_channels), activation_layer(style.activation)
        )
        self.attention = attention_layer(style.attention, step.out_channels)

    def forward(
        self, features: Float[Tensor, "b c _h _w"], target: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b j h w"]:
        """Return the block's map at the target's size."""
        features = self.up(features, target.shape[-2:])
        if self.project is not None:
            features = torch.cat([features, self.project(target)], dim=1)  # -> (b, out_channels, h, w)
        return self.attention(self.after(features))


class TwoConvBlock(nn.Module):
    """Upsample, one 3x3 convolution, stack the skip, another one, attend; without a skip there is no second one."""

    def __init__(self, step: Step, style: Style) -> None:
        super().__init__()
        layer = partial(conv_norm_act, norm=style.norm, activation=style.activation)
        self.up = Upsample(
            step.in_channels, step.in_channels, mode=style.upsample, ratio=step.ratio, kernel_size=2
        )
        self.before = layer(step.in_channels, step.out_channels)
        self.join: nn.Module | None = None
        self.after: nn.Module = nn.Identity()
        self.attention: nn.Module = nn.Identity()
        if step.skip_channels:
            self.join = StackedSkip()
            self.after = layer(step.out_channels + step.skip_channels, step.out_channels)
            self.attention = attention_layer(style.attention, step.out_channels)

    def forward(
        self, features: Float[Tensor, "b c _h _w"], target: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b j h w"]:
        """Return the block's map at the target's size."""
        features = self.before(self.up(features, target.shape[-2:]))
        if self.join is not None:
            features = self.attention(self.after(self.join(features, target)))
        return features


class TransposedBlock(nn.Module):
    """A 4x4 transposed convolution, normalised and activated; the skip stacked; a 3x3 convolution; attention.

    Batch norm has Keras's constants. Convolutions have a bias only where no normalisation follows.
    """

    def __init__(self, step: Step, style: Style) -> None:
        super().__init__()
        width, bias = step.out_channels, style.norm == "none"
        self.up = Upsample(
            step.in_channels,
            width,
            mode="transposed",
            ratio=step.ratio,
            kernel_size=4,
            bias=bias,
        )
        self.after_up = nn.Sequential(keras.norm_layer(style.norm, width), activation_layer(style.activation))
        self.join: nn.Module | None = StackedSkip() if step.skip_channels else None
        self.body = nn.Sequential(
            nn.Conv2d(width + step.skip_channels, width, 3, padding=1, bias=bias),
            keras.norm_layer(style.norm, width),
            activation_layer(style.activation),
        )
        self.attention = attention_layer(style.attention, width)

    def forward(
        self, features: Float[Tensor, "b c _h _w"], target: Float[Tensor, "b k h w"]
    ) -> Float[Tensor, "b j h w"]:
        """Return the block's map at the target's size."""
        features = self.after_up(self.up(features, target.shape[-2:]))
        if self.join is not None:
            features = self.join(features, target)
        return self.attention(self.body(features))
