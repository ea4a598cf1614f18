"""Parts of the U-Nets of the TGS Salt kernels: levels, encoders and decoders. All dropout is of single numbers.

Source: A. Kalapahar's report on https://www.kaggle.com/c/tgs-salt-identification-challenge (Models 1 and 2, the
diagram) and the kernel "U-Net with depth"; see traits.py.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from masksmith.core.errors import InputError
from masksmith.models.published.keras import batch_norm, conv, cut_to, up_conv

HALVINGS = 4

# --- what a level is made of --------------------------------------------------------------------------------


class Convs(nn.Module):
    """3x3 convolutions, each with a ReLU.

    Args:
        widths: Channels that come in, and those of each convolution.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(*pair) for pair in pairwise(widths))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return a map of the same size."""
        for one in self.convs:
            features = F.relu(one(features))
        return features


class BatchActivate(nn.Module):
    """Batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = batch_norm(channels)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the map, normalised and activated."""
        return F.relu(self.norm(features))


class ResidualBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, norm, ReLU, 3x3 convolution; what came in is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.activate1, self.conv1 = BatchActivate(channels), conv(channels, channels)
        self.activate2, self.conv2 = BatchActivate(channels), conv(channels, channels)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return a map of the same size and width."""
        inner = self.conv1(self.activate1(features))
        added: Tensor = self.conv2(self.activate2(inner)) + features
        return added


class ResidualLevel(nn.Module):
    """A 3x3 convolution without activation, two residual blocks, norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels)
        self.blocks = nn.ModuleList(ResidualBlock(out_channels) for _ in range(2))
        self.activate = BatchActivate(out_channels)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return a map of the same size."""
        features = self.conv(features)
        for block in self.blocks:
            features = block(features)
        activated: Tensor = self.activate(features)
        return activated


# --- encoders -----------------------------------------------------------------------------------------------


def _refuse_small(image: Tensor, halvings: int) -> None:
    """Raise InputError where nothing would be left of an image's sides."""
    if torch.jit.is_tracing():
        return
    least, (height, width) = 2**halvings, image.shape[-2:]
    if min(height, width) < least:
        raise InputError(
            f"size: images of {height}x{width} on their canvas, but this net halves them {halvings} times; expected at "
            f"least {least}x{least}; set size.resize_hw or size.pad_hw"
        )


class LevelEncoder(nn.Module):
    """Levels with a 2x2 max pooling and dropout between them; sizes are halved and rounded down.

    Args:
        levels: Each from a map to a map of the same size.
        dropouts: Probability of dropout after each pooling, one fewer than levels.
    """

    def __init__(self, levels: Sequence[nn.Module], dropouts: Sequence[float]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.downs = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), nn.Dropout(one)) for one in dropouts)

    def forward(self, image: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Return the map of each level, the first at the size of the image.

        Raises:
            InputError: A side of the image is shorter than 2 to the number of halvings.
        """
        _refuse_small(image, len(self.downs))
        maps = [self.levels[0](image)]
        for down, level in zip(self.downs, self.levels[1:], strict=True):
            maps.append(level(down(maps[-1])))
        return maps


class PooledEncoder(nn.Module):
    """Levels with a 2x2 max pooling between them, whose pooled maps are what joins the decoder."""

    def __init__(self, levels: Sequence[nn.Module]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def forward(self, image: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Return the image, the pooled map of each level but the last, and the map of the last level."""
        maps = [image]
        *upper, last = self.levels
        for level in upper:
            maps.append(F.max_pool2d(level(maps[-1]), 2))
        return [*maps, last(maps[-1])]


class PlainEncoder(nn.Module):
    """Convolutions at full size."""

    def __init__(self, convs: nn.Module) -> None:
        super().__init__()
        self.levels = nn.ModuleList([convs])

    def forward(self, image: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Return one map of the size of the image."""
        return [self.levels[0](image)]


# --- decoders -----------------------------------------------------------------------------------------------


class UpLevel(nn.Module):
    """A transposed convolution to the size of the skip, the skip stacked onto it, dropout, a level.

    Args:
        up: Transposed convolution of stride 2 without padding.
        dropout: Its probability.
        level: From the stacked map to a map of the same size.
    """

    def __init__(self, up: nn.Module, dropout: float, level: nn.Module) -> None:
        super().__init__()
        self.up, self.dropout, self.level = up, nn.Dropout(dropout), level

    def forward(
        self, deep: Float[Tensor, "b c _h _w"], skip: Float[Tensor, "b s _H _W"]
    ) -> Float[Tensor, "b k _H _W"]:
        """Return a map of the skip's size, which is twice that of ``deep`` or one pixel more."""
        grown = cut_to(self.up(deep), skip.shape[-2:])
        level: Tensor = self.level(self.dropout(torch.cat([grown, skip], dim=1)))
        return level


class SkipDecoder(nn.Module):
    """A bottleneck, then a block a level, deepest first."""

    def __init__(self, bottleneck: nn.Module, blocks: Sequence[nn.Module], *, out_channels: int) -> None:
        super().__init__()
        self.bottleneck, self.blocks = bottleneck, nn.ModuleList(blocks)
        self.out_channels = out_channels

    def forward(self, features: list[Tensor]) -> Float[Tensor, "b c h w"]:
        """Return the decoded map at the size of the first map; features: finest first."""
        *skips, deepest = features
        decoded: Tensor = self.bottleneck(deepest)
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            decoded = block(decoded, skip)
        return decoded


class JoinThenUp(nn.Module):
    """The skip stacked onto the map, a transposed convolution to twice the size with a ReLU, two convolutions."""

    def __init__(self, in_channels: int, width: int, out_channels: int) -> None:
        super().__init__()
        self.up, self.convs = up_conv(in_channels, width, 3), Convs(width, width, out_channels)

    def forward(
        self, deep: Float[Tensor, "b c _h _w"], skip: Float[Tensor, "b s _h _w"]
    ) -> Float[Tensor, "b k _H _W"]:
        """Return a map of twice the size."""
        joined = torch.cat([deep, skip], dim=1)
        doubled = torch.Size([2 * side for side in joined.shape[-2:]])
        convolved: Tensor = self.convs(F.relu(cut_to(self.up(joined), doubled)))
        return convolved


class PooledDecoder(nn.Module):
    """Blocks that join a pooled map each and double the size, deepest first."""

    def __init__(self, blocks: Sequence[nn.Module], *, out_channels: int) -> None:
        super().__init__()
        self.blocks, self.out_channels = nn.ModuleList(blocks), out_channels

    def forward(self, features: list[Tensor]) -> Float[Tensor, "b c h w"]:
        """Return the decoded map at the size of the image; features: those of PooledEncoder."""
        _, *skips, decoded = features
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            decoded = block(decoded, skip)
        return decoded


class PlainDecoder(nn.Module):
    """One more convolution at full size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks, self.out_channels = nn.ModuleList([Convs(channels, channels)]), channels

    def forward(self, features: list[Tensor]) -> Float[Tensor, "b c h w"]:
        """Return the decoded map."""
        decoded: Tensor = self.blocks[0](features[-1])
        return decoded
