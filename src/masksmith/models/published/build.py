"""From the model's configuration to the nets of OWN_NETS: their encoders and decoders, drawn as Keras draws them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from masksmith.models.backbones import Backbone
from masksmith.models.config import ModelConfig
from masksmith.models.published.keras import initialise_as_keras, up_conv
from masksmith.models.published.unets import (
    HALVINGS,
    Convs,
    JoinThenUp,
    LevelEncoder,
    PlainDecoder,
    PlainEncoder,
    PooledDecoder,
    PooledEncoder,
    ResidualLevel,
    SkipDecoder,
    UpLevel,
)

_STRIDES = tuple(2**level for level in range(HALVINGS + 1))


@dataclass(frozen=True)
class OwnNet:
    """How a net is built."""

    backbone: Callable[[int, int], Backbone]
    """From the channels of the image and the width."""
    decoder: Callable[[Sequence[int], int], nn.Module]
    """From the channels of the maps and the width."""


def _widths(width: int) -> list[int]:
    """Return the channels of each level, which double from one to the next."""
    return [width * stride for stride in _STRIDES]


# --- tgs_depth_unet -----------------------------------------------------------------------------------------


def _depth_backbone(in_channels: int, width: int) -> Backbone:
    """Return four levels and the pooled map below them, which the bottleneck of the decoder takes."""
    widths = _widths(width)[:HALVINGS]
    levels = [
        Convs(before, own, own) for before, own in zip([in_channels, *widths[:-1]], widths, strict=True)
    ]
    encoder = LevelEncoder([*levels, nn.Identity()], dropouts=[0.0] * HALVINGS)
    return Backbone(encoder, None, [*widths, widths[-1]], _STRIDES)


def _depth_decoder(channels: Sequence[int], width: int) -> nn.Module:
    *widths, deepest = _widths(width)
    blocks = [UpLevel(up_conv(2 * own, own, 2), 0.0, Convs(2 * own, own, own)) for own in reversed(widths)]
    return SkipDecoder(Convs(channels[-1], deepest, deepest), blocks, out_channels=width)


# --- tgs_model1 and tgs_model2 ------------------------------------------------------------------------------

_AFTER_POOLING = (0.25, 0.5, 0.5, 0.5)
_AFTER_JOIN = 0.5


def _two_convs(in_channels: int, out_channels: int) -> nn.Module:
    return Convs(in_channels, out_channels, out_channels)


def _tgs_backbone(level: Callable[[int, int], nn.Module]) -> Callable[[int, int], Backbone]:
    def build(in_channels: int, width: int) -> Backbone:
        widths = _widths(width)
        levels = [level(*pair) for pair in zip([in_channels, *widths[:-1]], widths, strict=True)]
        return Backbone(LevelEncoder(levels, _AFTER_POOLING), None, widths, _STRIDES)

    return build


def _tgs_decoder(level: Callable[[int, int], nn.Module]) -> Callable[[Sequence[int], int], nn.Module]:
    def build(channels: Sequence[int], width: int) -> nn.Module:
        blocks = [
            UpLevel(up_conv(2 * own, own, 3), _AFTER_JOIN, level(2 * own, own))
            for own in reversed(channels[:-1])
        ]
        return SkipDecoder(nn.Identity(), blocks, out_channels=width)

    return build


# --- tiny_diagram_unet --------------------------------------------------------------------------------------


def _diagram_backbone(in_channels: int, width: int) -> Backbone:
    """Return five levels of three convolutions; the last one ends with half its width."""
    *widths, deepest = _widths(width)
    levels = [
        Convs(before, own, own, own) for before, own in zip([in_channels, *widths[:-1]], widths, strict=True)
    ]
    encoder = PooledEncoder([*levels, Convs(widths[-1], deepest, deepest, widths[-1])])
    return Backbone(encoder, None, [in_channels, *widths, widths[-1]], (*_STRIDES, _STRIDES[-1]))


def _diagram_decoder(channels: Sequence[int], width: int) -> nn.Module:
    blocks = [JoinThenUp(2 * own, own, own // 2) for own in reversed(_widths(width)[1:HALVINGS])]
    return PooledDecoder([*blocks, JoinThenUp(2 * width, width, width)], out_channels=width)


# --- tgs_baseline_cnn ---------------------------------------------------------------------------------------


def _plain_backbone(in_channels: int, width: int) -> Backbone:
    return Backbone(PlainEncoder(Convs(in_channels, width, width, width)), None, [width], [1])


def _plain_decoder(channels: Sequence[int], width: int) -> nn.Module:
    return PlainDecoder(width)


NETS: dict[str, OwnNet] = {
    "tgs_depth_unet": OwnNet(_depth_backbone, _depth_decoder),
    "tgs_model1": OwnNet(_tgs_backbone(_two_convs), _tgs_decoder(_two_convs)),
    "tgs_model2": OwnNet(_tgs_backbone(ResidualLevel), _tgs_decoder(ResidualLevel)),
    "tgs_baseline_cnn": OwnNet(_plain_backbone, _plain_decoder),
    "tiny_diagram_unet": OwnNet(_diagram_backbone, _diagram_decoder),
}
"""How each net is built; the keys are those of OWN_NETS."""


def build_own_backbone(config: ModelConfig, in_channels: int) -> Backbone:
    """Build the encoder of a net of OWN_NETS; its weights come from torch's generator."""
    backbone = NETS[config.architecture].backbone(in_channels, config.decoder_channels[0])
    initialise_as_keras(backbone.encoder)
    return backbone


def build_own_decoder(config: ModelConfig, channels: Sequence[int], strides: Sequence[int]) -> nn.Module:
    """Build the decoder of a net of OWN_NETS: ``forward(features)`` returns a map of ``out_channels`` channels.

    Args:
        config: Which one, and its width.
        channels: Channels of each of the encoder's maps, finest first; the deepest with the scalars stacked onto it.
        strides: Stride of each map.
    """
    del strides  # they are the net's own
    decoder = NETS[config.architecture].decoder(channels, config.decoder_channels[0])
    initialise_as_keras(decoder)
    return decoder
