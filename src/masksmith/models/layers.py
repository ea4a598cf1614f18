"""Layers that encoders, decoders and heads share. No activation works in place, so that blocks may be recomputed.

Sources:
    Group norm: Wu and He 2018, https://arxiv.org/abs/1803.08494
    Squeeze and excitation in space and channels: Roy et al. 2018, https://arxiv.org/abs/1803.02579; its variants:
        https://github.com/SpaceNetChallenge/SpaceNet_Off_Nadir_Solutions (selim_sef) and
        https://github.com/ybabakhin/kaggle_salt_bes_phalanx
    First weights: He et al. 2015, https://arxiv.org/abs/1502.01852
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from masksmith.core.config import look_up

LEAKY_SLOPE = 0.1  # the simplified U-Net++ of SIIM-ACR; torch's own 0.01 is all but ReLU
MAX_GROUPS = 32  # Wu and He's choice
MIN_HIDDEN = 4  # a single hidden ReLU is dead from the start in every second draw, four in every sixteenth


def num_groups(channels: int) -> int:
    """Return the groups of a group norm: the largest divisor of ``channels`` up to 32 that leaves two channels a group.

    A group of one channel would lose all that is in a map of one pixel (and torch refuses it in a batch of one).
    """
    most = min(MAX_GROUPS, max(1, channels // 2))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(num_groups(channels), channels)


def _no_norm(_channels: int) -> nn.Module:
    return nn.Identity()


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": _group_norm,
    "none": _no_norm,
}

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, LEAKY_SLOPE),
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def norm_layer(name: str, channels: int) -> nn.Module:
    """Return a normalisation of ``channels`` channels.

    Args:
        name: "batch"; "group", in ``num_groups(channels)`` groups; or "none", an
            identity: convolutions before it then need a bias.
        channels: Number of channels.

    Raises:
        InputError: The name is unknown.
    """
    return look_up(NORMS, name, where="model.norm")(channels)


def activation_layer(name: str) -> nn.Module:
    """Return an activation: "relu", "leaky_relu" (slope 0.1), "elu", "silu" or "gelu"; none works in place.

    Raises:
        InputError: The name is unknown.
    """
    return look_up(ACTIVATIONS, name, where="model.activation")()


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    norm: str,
    activation: str,
    stride: int = 1,
) -> nn.Sequential:
    """Return convolution, normalisation and activation; the size is divided by ``stride``, rounded up.

    The convolution has a bias only where no normalisation follows it.
    """
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            bias=norm == "none",
        ),
        norm_layer(norm, out_channels),
        activation_layer(activation),
    )


def up_convolution(
    in_channels: int, out_channels: int, *, ratio: int, kernel_size: int, bias: bool = True
) -> nn.Module:
    """Return a learned enlargement by exactly ``ratio``.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        ratio: By how much height and width grow. 1: a plain 3x3 convolution.
        kernel_size: Of the transposed convolution, 2 to 4, where the ratio is 2. Larger ratios have a kernel of twice
            the ratio, so that no pixel is left out.
        bias: Whether it has a bias; a normalisation behind it makes one useless.
    """
    if ratio == 1:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    kernel = kernel_size if ratio == 2 else 2 * ratio
    padding = -(-(kernel - ratio) // 2)
    return nn.ConvTranspose2d(
        in_channels,
        out_channels,
        kernel,
        stride=ratio,
        padding=padding,
        output_padding=ratio + 2 * padding - kernel,
        bias=bias,
    )


def resize_to(
    features: Float[Tensor, "b c _h _w"],
    hw: torch.Size,
    *,
    mode: str = "bilinear",
    align_corners: bool = False,
) -> Float[Tensor, "b c _H _W"]:
    """Return the map at the size (height, width); a map that has it already is returned as it is.

    A traced network is to serve sizes that it has not seen: there the step is always recorded. Interpolation to the
    same size changes no number.

    Args:
        features: The map.
        hw: Height and width.
        mode: "bilinear" or "nearest".
        align_corners: Of bilinear: whether the corner pixels' centres meet (many nets of 2018), or the edges do.
    """
    if features.shape[-2:] == hw and not torch.jit.is_tracing():
        return features
    corners = align_corners if mode == "bilinear" else None
    return F.interpolate(features, size=hw, mode=mode, align_corners=corners)


class SCSE(nn.Module):
    """Concurrent squeeze and excitation in space and channels.

    The channel gate has two 1x1 convolutions on the mean over all pixels, with ``channels // reduction`` hidden
    channels, but at least four (or ``channels``); the space gate is one 1x1 convolution. Both end in a sigmoid.

    Args:
        channels: Of the map.
        reduction: Factor by which there are fewer hidden channels.
        space_channels: Of the space gate: one for all channels, or ``channels``.
        space_bias: Whether the space gate's convolution has a bias.
        join: "sum" of both gated maps, as published; their "max"; or "gate": the space gate itself is added to the map
            that the channel gate has gated.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        space_channels: int = 1,
        space_bias: bool = True,
        join: Literal["sum", "max", "gate"] = "sum",
    ) -> None:
        super().__init__()
        hidden = max(min(MIN_HIDDEN, channels), channels // reduction)
        self.channel = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )
        self.space = nn.Sequential(nn.Conv2d(channels, space_channels, 1, bias=space_bias), nn.Sigmoid())
        self.join = join
        initialise(self)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the gated map."""
        mean = features.mean(dim=(2, 3), keepdim=True)  # (b, c, h, w) -> (b, c, 1, 1)
        by_channel, space = features * self.channel(mean), self.space(features)
        if self.join == "gate":
            return by_channel + space
        by_space = features * space
        return torch.maximum(by_channel, by_space) if self.join == "max" else by_channel + by_space


def _scse_each(channels: int) -> nn.Module:
    return SCSE(channels, reduction=2, space_channels=channels)


ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {
    "scse": SCSE,
    "scse_max": partial(SCSE, reduction=2, space_bias=False, join="max"),
    "scse_each": _scse_each,
}
"""Attention in a decoder block: as published; the maximum of both gated maps, half as many hidden channels (selim_sef's
zoo of SpaceNet 4); a space gate for each channel, half as many hidden channels (the ResNeXt50 of TGS Salt's first
place, whose code asks itself whether that is a bug)."""


def attention_layer(name: str, channels: int) -> nn.Module:
    """Return the attention of a decoder block; "none" is an identity.

    Raises:
        InputError: The name is unknown.
    """
    if name == "none":
        return nn.Identity()
    return look_up(ATTENTIONS, name, where="model.attention")(channels)


def initialise(module: nn.Module) -> None:
    """Draw all convolutions' weights from torch's generator so that the variance is kept through ReLUs; biases are 0.

    What counts is how many numbers meet in an output: of a transposed convolution with a stride, each output sees only
    1 / stride² of the kernel, which torch's own ``kaiming_normal_`` does not know.
    """
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            seen = layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
        elif isinstance(layer, nn.Conv2d):
            seen = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        else:
            continue
        with torch.no_grad():
            nn.init.normal_(layer.weight, std=math.sqrt(2 / seen))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
