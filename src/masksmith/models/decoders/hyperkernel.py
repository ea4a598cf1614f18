"""The simplified U-Net++ with hyperkernel paths.

Sources:
    The design, layer by layer: G. Balezo's report on SIIM-ACR Pneumothorax and its notebooks (Keras, EfficientNet-B4),
    after U-Net++, Zhou et al. 2018, https://arxiv.org/abs/1807.10165. The report's diagram stacks at the residual
    join; the code adds, and so does this. Published taps: four maps at strides 2 to 16 of 144, 192, 336 and 960
    channels; widths 256 in the middle, then 128, 64, 32, 16 and 8. As in the code, the deepest map is activated before
    it is pooled and before it is stacked; all layers, their constants and their first weights are Keras's.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from masksmith.models.layers import LEAKY_SLOPE, resize_to, up_convolution
from masksmith.models.published.keras import conv, cut_to, initialise_as_keras, norm_layer, up_conv

DEEP_DROPOUT = 0.5  # of the bridge and of the two deepest levels in the published notebooks
FINE_DROPOUT = 0.1  # of all finer levels


class HyperkernelResidual(nn.Module):
    """Leaky ReLU and normalisation, two 3x3 convolutions, plus the normalised input."""

    def __init__(self, channels: int, *, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LeakyReLU(LEAKY_SLOPE),
            norm_layer(norm, channels),
            conv(channels, channels),
            norm_layer(norm, channels),
            nn.LeakyReLU(LEAKY_SLOPE),
            conv(channels, channels),
            norm_layer(norm, channels),
        )
        self.shortcut = norm_layer(norm, channels)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the sum of both ways."""
        return self.body(features) + self.shortcut(features)


def _body(in_channels: int, out_channels: int, *, norm: str, dropout: float, residuals: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(dropout),
        conv(in_channels, out_channels),
        *(HyperkernelResidual(out_channels, norm=norm) for _ in range(residuals)),
        nn.LeakyReLU(LEAKY_SLOPE),
    )


def _up(in_channels: int, out_channels: int, ratio: int) -> nn.Module:
    """Return the published 3x3 transposed convolution, or what takes its place where a map does not double."""
    if ratio == 2:
        return up_conv(in_channels, out_channels, 3)
    return up_convolution(in_channels, out_channels, ratio=ratio, kernel_size=3)


def _bring(features: Tensor, up: nn.Module, hw: torch.Size) -> Tensor:
    """Return the map, enlarged: what is beyond the size is cut off, as in Keras; what falls short of it is resized."""
    return resize_to(cut_to(up(features), hw), hw)


def _ratios(strides: Sequence[int]) -> list[int]:
    """Return by how much each map is finer than the one below it, deepest first."""
    return [max(1, round(deep / fine)) for fine, deep in pairwise(strides)][::-1]


class HyperkernelDecoder(nn.Module):
    """Each decoder map goes up a level, and by further transposed convolutions to all finer levels.

    With L encoder maps after the first: the deepest is activated, pooled and convolved (middle, twice the first
    width). At level l = L … 1 a 3x3 transposed convolution brings the map from below to the level; it is stacked with
    what the paths of the deeper levels have brought there and with the encoder's map, and convolved. The paths act on
    the new maps only. At level 0, the image's size, half the last width (rounded up) follows, without paths; the first
    encoder map is stacked there only with ``join_first``. A doubled map ends where the encoder's does: at 2n or 2n + 1
    rows of n, Keras's paddings "same" and "valid".

    Attributes:
        widths: Channels that are stacked at each level, deepest first.
        out_channels: Channels of the decoded map.
        out_stride: Stride of the decoded map: that of the image.
        aux_channels: Channels of the auxiliary maps, deepest first; empty without ``deep_supervision``.
    """

    out_stride = 1

    def __init__(
        self,
        encoder_channels: Sequence[int],
        strides: Sequence[int],
        decoder_channels: Sequence[int],
        *,
        norm: str,
        join_first: bool,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        middle, final = 2 * decoder_channels[0], -(-decoder_channels[-1] // 2)
        taps = list(encoder_channels[:0:-1])  # deepest first, without the image
        ratios = [2, *_ratios(strides)]  # into level L, L-1, …, 0
        below = [middle, *decoder_channels]
        widths = [*decoder_channels, final]
        self.bridge = nn.LeakyReLU(LEAKY_SLOPE)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.middle = _body(taps[0], middle, norm=norm, dropout=DEEP_DROPOUT, residuals=2)
        self.ups = nn.ModuleList(
            _up(deep, width, ratio) for deep, width, ratio in zip(below, widths, ratios, strict=True)
        )
        self.paths = nn.ModuleList(  # paths[i][j]: what brings level i's jth oldest map on from the level below
            nn.ModuleList(_up(width, width, ratios[i]) for width in decoder_channels[:i])
            for i in range(len(taps))
        )
        stacked = [sum(decoder_channels[: i + 1]) + tap for i, tap in enumerate(taps)]
        self.join_first = join_first
        self.widths = (*stacked, final + (encoder_channels[0] if join_first else 0))
        self.blocks = nn.ModuleList(
            _body(width_in, width, norm=norm, dropout=DEEP_DROPOUT if i < 2 else FINE_DROPOUT, residuals=1)
            for i, (width_in, width) in enumerate(zip(self.widths, widths, strict=True))
        )
        self.dropout = nn.Dropout(DEEP_DROPOUT / 2)  # before the head, as published
        self.out_channels = final
        self.aux_channels = tuple(decoder_channels) if deep_supervision else ()
        initialise_as_keras(self)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the decoded map at the size of the first map, and the maps of all levels but the last.

        Args:
            features: Maps (b, c, h, w) of the encoder, finest first; the first has the size of the image.
        """
        deepest = self.bridge(features[-1])
        decoded = self.middle(self.pool(deepest))
        arrived: list[Tensor] = []  # by the paths, oldest first
        maps: list[Tensor] = []
        for i, path in enumerate(self.paths):
            tap = features[-1 - i] if i else deepest
            hw = tap.shape[-2:]
            climbing = zip(arrived, cast(nn.ModuleList, path), strict=True)
            arrived = [_bring(each, up, hw) for each, up in climbing]
            arrived.append(_bring(decoded, self.ups[i], hw))
            decoded = self.blocks[i](torch.cat([*reversed(arrived), tap], dim=1))
            maps.append(decoded)
        decoded = _bring(decoded, self.ups[-1], features[0].shape[-2:])
        if self.join_first:
            decoded = torch.cat([decoded, features[0]], dim=1)
        decoded = self.dropout(self.blocks[-1](decoded))
        return decoded, tuple(maps) if self.aux_channels else ()
