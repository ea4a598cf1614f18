"""AlbuNet: a U-Net decoder whose blocks enlarge a stack of maps and then convolve it.

Sources:
    Shvets et al. 2018, https://arxiv.org/abs/1803.01207; TernausNet, https://arxiv.org/abs/1801.05746. Layer by layer
    as SIIM-ACR's first place had it, https://github.com/sneddy/pneumothorax-segmentation (models/ternausnets.py, by
    bilinear interpolation, without normalisation). What differs: the number of encoder stages is not fixed to five,
    and maps of odd sizes work.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from masksmith.models.decoders.blocks import Step, Upsample
from masksmith.models.layers import activation_layer, conv_norm_act, initialise, norm_layer

_INNER = (16, 16, 16, 8, 4, 4)  # channels within each block, deepest first, in widths of the decoder
_OUTER = (8, 8, 8, 2, 4, 1)  # channels that come out of it


class _EnlargingBlock(nn.Module):
    """Bilinear interpolation and two convolutions; or one convolution and a 4x4 transposed one."""

    def __init__(self, step: Step, inner: int, *, upsample: str, norm: str, activation: str) -> None:
        super().__init__()
        layer = partial(conv_norm_act, norm=norm, activation=activation)
        bilinear = upsample == "bilinear"
        width = step.in_channels if bilinear else inner
        self.before = nn.Identity() if bilinear else layer(step.in_channels, inner)
        self.up = Upsample(
            width, step.out_channels, mode=upsample, ratio=step.ratio, kernel_size=4, bias=norm == "none"
        )
        self.after = (
            nn.Sequential(layer(width, inner), layer(inner, step.out_channels))
            if bilinear
            else nn.Sequential(norm_layer(norm, step.out_channels), activation_layer(activation))
        )

    def forward(self, features: Tensor, hw: torch.Size) -> Tensor:
        """Return the map (b, out_channels, height, width) at the size ``hw``."""
        enlarged: Tensor = self.after(self.up(self.before(features), hw))
        return enlarged


class AlbuNetDecoder(nn.Module):
    """Pooling below the deepest map, then a block to the size of each map; a convolution at the image's size.

    Behind each block the encoder's map is stacked, but for the stem's and the image.

    Args:
        encoder_channels: Channels of each encoder map, the image's first.
        strides: Stride of each map.
        width: Channels of the decoded map (32 as published); the blocks have 1 to 8 times as many.
        upsample: "bilinear" or "transposed".
        norm: "batch", "group" or "none" (as published).
        activation: A key of ACTIVATIONS.
        deep_supervision: Whether the maps of all blocks but the last come out too.

    Attributes:
        out_channels: Channels of the decoded map.
        out_stride: Stride of the decoded map: that of the image.
        aux_channels: Channels of the auxiliary maps, deepest first; empty without ``deep_supervision``.
    """

    out_stride = 1

    def __init__(
        self,
        encoder_channels: Sequence[int],
        strides: Sequence[int],
        width: int,
        *,
        upsample: str,
        norm: str,
        activation: str,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.blocks = nn.ModuleList()
        self.levels = tuple(range(len(encoder_channels) - 1, -1, -1))
        channels, stride = encoder_channels[-1], 2 * strides[-1]
        outer = [width * times for times in _OUTER[-len(self.levels) :]]
        for level, inner, out_channels in zip(self.levels, _INNER[-len(self.levels) :], outer, strict=True):
            step = Step(level, max(1, round(stride / strides[level])), channels, 0, out_channels)
            self.blocks.append(
                _EnlargingBlock(step, width * inner, upsample=upsample, norm=norm, activation=activation)
            )
            channels = out_channels + (encoder_channels[level] if level > 1 else 0)
            stride = strides[level]
        self.smooth = conv_norm_act(width, width, norm=norm, activation=activation)
        self.out_channels = width
        self.aux_channels = tuple(outer[:-1]) if deep_supervision else ()
        initialise(self)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the decoded map at the size of the first map, and the maps of all blocks but the last.

        Args:
            features: Maps (b, c, h, w) of the encoder, finest first; the first has the size of the image.
        """
        stacked = self.pool(features[-1])
        maps: list[Tensor] = []
        for block, level in zip(self.blocks, self.levels, strict=True):
            stacked = block(stacked, features[level].shape[-2:])
            maps.append(stacked)
            if level > 1:
                stacked = torch.cat([stacked, features[level]], dim=1)
        decoded: Tensor = self.smooth(stacked)
        return decoded, tuple(maps[:-1]) if self.aux_channels else ()
