"""The decoder of TGS Salt's first place, `resnet34pad_128`: pyramid attention, halves, hypercolumns.

Sources:
    Babakhin et al. 2019, https://arxiv.org/abs/1904.04445; their code,
    https://github.com/ybabakhin/kaggle_salt_bes_phalanx (phalanx/unet_model.py, the net of stage 3). What differs: the
    1x1 convolution to the logits has a bias (it is masksmith's own head); maps of any size work.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from masksmith.models.decoders.blocks import HalvesBlock, Step, Style
from masksmith.models.decoders.centers import FeaturePyramidAttention
from masksmith.models.decoders.levels import run_blocks
from masksmith.models.layers import SCSE, initialise, resize_to

HYPERCOLUMN_DROPOUT = 0.4  # of whole channels


def gate_after_stage(channels: int) -> SCSE:
    """Return the attention that follows a stage of this net's encoder; the next stage sees what it gives."""
    return SCSE(channels, reduction=4, space_bias=False, join="gate")


class _GatedHalves(nn.Module):
    """Half of the channels from below, half from the skip; then the attention of this net.

    The space gate is added to the map, not multiplied: so it is in the code, and so the net was trained.
    """

    def __init__(self, step: Step, *, norm: str) -> None:
        super().__init__()
        style = Style(norm, "relu", "transposed", attention="none")
        self.halves = HalvesBlock(step, style, skip_bias=norm == "none")
        self.gate = SCSE(step.out_channels, space_bias=False, join="gate")

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Return the block's map (b, width, h, w) at the size of the encoder map ``target`` (b, c, h, w)."""
        gated: Tensor = self.gate(self.halves(features, target))
        return gated


class HypercolumnDecoder(nn.Module):
    """Pyramid attention and pooling, a block for each encoder map but the stem's, all levels stacked and convolved.

    With the published stem (stride 1, no pooling) the last block ends at the image's size. Otherwise the decoded map is
    resized to it.

    Args:
        encoder_channels: Channels of each encoder map, the image's first; at least three.
        strides: Stride of each map.
        width: Channels of every block (64 as published); the decoded map has half of them.
        norm: "batch", "group" or "none".
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
        norm: str,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        deepest = len(encoder_channels) - 1
        attended = max(1, min(encoder_channels[-1], 512) // 2)
        self.center = nn.Sequential(
            FeaturePyramidAttention(
                encoder_channels[-1], attended, norm=norm, align_corners=True, mean_bias=norm == "none"
            ),
            nn.MaxPool2d(2, ceil_mode=True),  # rounded up: a map of one pixel stays one
        )
        self.levels = tuple(range(deepest, 1, -1))
        below = [attended] + [width] * (len(self.levels) - 1)
        ratios = [2] + [max(1, round(strides[level + 1] / strides[level])) for level in self.levels[1:]]
        self.blocks = nn.ModuleList(
            _GatedHalves(Step(level, ratio, in_channels, encoder_channels[level], width), norm=norm)
            for level, ratio, in_channels in zip(self.levels, ratios, below, strict=True)
        )
        self.out_channels = -(-width // 2)
        self.dropout = nn.Dropout2d(HYPERCOLUMN_DROPOUT)
        self.fuse = nn.Sequential(
            nn.Conv2d(width * len(self.levels), self.out_channels, 3, padding=1), nn.ELU()
        )
        self.aux_channels = (width,) * (len(self.levels) - 1) if deep_supervision else ()
        initialise(self)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the decoded map at the size of the first map, and the maps of all blocks but the last.

        Args:
            features: Maps (b, c, h, w) of the encoder, finest first; the first has the size of the image.
        """
        maps = run_blocks(self.blocks, self.levels, self.center(features[-1]), features)
        hw = maps[-1].shape[-2:]
        stacked = torch.cat([resize_to(each, hw, align_corners=True) for each in reversed(maps)], dim=1)
        fused: Tensor = self.fuse(self.dropout(stacked))
        fused = resize_to(fused, features[0].shape[-2:])
        return fused, tuple(maps[:-1]) if self.aux_channels else ()
