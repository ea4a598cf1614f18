"""A centre and a block a level: the form of all decoders of the U-Net family."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from masksmith.models.decoders.blocks import Step
from masksmith.models.decoders.centers import Center
from masksmith.models.layers import initialise, resize_to


def plan_steps(
    *,
    in_channels: int,
    halves: bool,
    encoder_channels: Sequence[int],
    strides: Sequence[int],
    decoder_channels: Sequence[int],
    join_first: bool,
) -> list[Step]:
    """Return where each block begins and ends, deepest first.

    With L encoder maps after the first, the blocks end at maps L-1, …, 1 and at the first map's size, which is the
    image's: L blocks. Below a centre that halves the deepest map they end at L, …, 1; where map 1 is coarser than the
    image one more follows, of the last width.

    Args:
        in_channels: Channels of the centre's map.
        halves: Whether the centre's map has half the size of the deepest encoder map.
        encoder_channels: Channels of each encoder map, the first (at the size of the image) included.
        strides: Stride of each encoder map; two maps may have the same.
        decoder_channels: Widths, one for each encoder map after the first, deepest first.
        join_first: Whether the first map joins; False: it is the image itself, and gives only its size.
    """
    deepest = len(encoder_channels) - 1
    levels = list(range(deepest if halves else deepest - 1, -1, -1))
    if halves and strides[1] == strides[0] and not join_first:
        levels.pop()
    widths = [*decoder_channels, decoder_channels[-1]][: len(levels)]
    steps: list[Step] = []
    stride = strides[deepest] * (2 if halves else 1)
    for level, width in zip(levels, widths, strict=True):
        skip = encoder_channels[level] if level or join_first else 0
        ratio = max(1, round(stride / strides[level]))
        steps.append(Step(level, ratio, in_channels, skip, width))
        in_channels, stride = width, strides[level]
    return steps


class LevelDecoder(nn.Module):
    """A centre, then blocks from the deepest to the finest level.

    Args:
        center: What is between encoder and decoder.
        blocks: One for each step, deepest first.
        steps: Where the blocks begin and end.
        hypercolumns: Whether the decoded map is that of all blocks, resized to the largest and stacked.
        deep_supervision: Whether the maps of all blocks but the last are given, too.
        first_weights: Draws the weights of all convolutions.

    Attributes:
        out_channels: Channels of the decoded map; with ``hypercolumns`` the sum over all blocks.
        out_stride: Stride of the decoded map: that of the image.
        aux_channels: Channels of the auxiliary maps, deepest first; empty without ``deep_supervision``.
    """

    out_stride = 1

    def __init__(
        self,
        center: Center,
        blocks: Sequence[nn.Module],
        steps: Sequence[Step],
        *,
        hypercolumns: bool,
        deep_supervision: bool,
        first_weights: Callable[[nn.Module], None] = initialise,
    ) -> None:
        super().__init__()
        widths = [step.out_channels for step in steps]
        self.center = center.module
        self.blocks = nn.ModuleList(blocks)
        self.levels = tuple(step.level for step in steps)
        self.hypercolumns = hypercolumns
        self.out_channels = sum(widths) if hypercolumns else widths[-1]
        self.aux_channels = tuple(widths[:-1]) if deep_supervision else ()
        first_weights(self)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the decoded map at the size of the first map, and the maps of all blocks but the last.

        Args:
            features: Maps (b, c, h, w) of the encoder, finest first; the first has the size of the image.
        """
        maps = run_blocks(self.blocks, self.levels, self.center(features[-1]), features)
        decoded = maps[-1]
        aux = tuple(maps[:-1]) if self.aux_channels else ()
        if self.hypercolumns:
            decoded = torch.cat([resize_to(each, decoded.shape[-2:]) for each in maps], dim=1)
        return decoded, aux


def run_blocks(
    blocks: Iterable[nn.Module], levels: Sequence[int], decoded: Tensor, features: Sequence[Tensor]
) -> list[Tensor]:
    """Return the map of each block, deepest first: each takes the map below and the encoder's map of its level."""
    maps: list[Tensor] = []
    for block, level in zip(blocks, levels, strict=True):
        decoded = block(decoded, features[level])
        maps.append(decoded)
    return maps
