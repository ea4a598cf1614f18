"""From the model's configuration and an encoder's maps to a decoder."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.models.decoders.albunet import AlbuNetDecoder
from masksmith.models.decoders.blocks import (
    HalvesBlock,
    LinkBlock,
    Step,
    Style,
    TransposedBlock,
    TwoConvBlock,
    UNetBlock,
)
from masksmith.models.decoders.centers import build_center
from masksmith.models.decoders.emanet import EmaNetDecoder
from masksmith.models.decoders.hypercolumn import HypercolumnDecoder
from masksmith.models.decoders.hyperkernel import HyperkernelDecoder
from masksmith.models.decoders.levels import LevelDecoder, plan_steps
from masksmith.models.decoders.traits import HOUSE_ARCHITECTURES
from masksmith.models.layers import initialise
from masksmith.models.published.keras import initialise_as_keras


def _house_block(config: ModelConfig, step: Step) -> nn.Module:
    return UNetBlock(step, _style(config, "nearest"), body=config.block, skip=config.skip, kernel_size=4)


def _classical_block(config: ModelConfig, step: Step) -> nn.Module:
    return UNetBlock(step, _style(config, "transposed"), body="conv", skip="concat", kernel_size=2)


def _fastai_block(config: ModelConfig, step: Step) -> nn.Module:
    if step.out_channels < 2:
        raise InputError(
            f"model.decoder_channels: {step.out_channels} for {config.architecture!r}, whose levels take half their "
            "channels from the encoder; expected at least 2"
        )
    return HalvesBlock(step, _style(config, "transposed"))


def _link_block(config: ModelConfig, step: Step, *, skip: str) -> nn.Module:
    return LinkBlock(step, _style(config, "transposed"), skip=skip)


def _two_conv_block(config: ModelConfig, step: Step) -> nn.Module:
    return TwoConvBlock(step, _style(config, "nearest"))


def _transposed_block(config: ModelConfig, step: Step) -> nn.Module:
    return TransposedBlock(step, _style(config, "transposed"))


def _style(config: ModelConfig, published: str) -> Style:
    upsample = published if config.upsample == "default" else config.upsample
    return Style(config.norm, config.activation, upsample, config.attention)


BLOCKS: dict[str, Callable[[ModelConfig, Step], nn.Module]] = {
    "house_unet": _house_block,
    "classical_unet": _classical_block,
    "fastai_unet": _fastai_block,
    "linknet_add": partial(_link_block, skip="add"),
    "linknet_concat": partial(_link_block, skip="concat"),
    "cloud_unet": _two_conv_block,
    "transposed_unet": _transposed_block,
}
"""The block of each architecture that is a centre and a block a level."""


def build_decoder(
    config: ModelConfig,
    encoder_channels: Sequence[int],
    strides: Sequence[int],
    *,
    join_first: bool = False,
) -> nn.Module:
    """Build a decoder of HOUSE_ARCHITECTURES; its weights come from torch's generator.

    The module is ``forward(features) -> (decoded, aux)``: the decoded map at the size of the image (EMANet's: of the
    deepest map), and the auxiliary maps of deep supervision, deepest first (none without it). It has the attributes
    ``out_channels``, ``out_stride``, ``aux_channels`` and ``blocks``. Sizes need not be multiples of anything; where
    maps do not double exactly, they are resized.

    Args:
        config: Which architecture and options; it refuses options that the architecture does not list.
        encoder_channels: Channels of each encoder map, finest first; the first map has the size of the image. 0: a
            map that gives only its size.
        strides: Stride of each encoder map; it does not shrink, two maps may have the same.
        join_first: Whether the first map is one of the encoder's (VGG) and joins; False: it is the image itself.

    Raises:
        InputError: Unknown architecture, or widths that do not fit the number of maps or the architecture.
        ValueError: Channels and strides do not go together.
    """
    if len(encoder_channels) != len(strides) or list(strides) != sorted(strides):
        raise ValueError(
            f"encoder_channels {list(encoder_channels)} with strides {list(strides)}: expected one stride a map, "
            "finest first"
        )
    builder = look_up(DECODERS, config.architecture, where="model.architecture")
    by_level = HOUSE_ARCHITECTURES[config.architecture].decoder_channels == "levels"
    if by_level and len(config.decoder_channels) != len(encoder_channels) - 1:
        raise InputError(
            f"model.decoder_channels: {len(config.decoder_channels)} values for {len(encoder_channels) - 1} maps of "
            f"{config.encoder!r}; expected one value a map"
        )
    return builder(config, encoder_channels, strides, join_first)


def _levels(
    config: ModelConfig,
    encoder_channels: Sequence[int],
    strides: Sequence[int],
    join_first: bool,
    first_weights: Callable[[nn.Module], None] = initialise,
) -> nn.Module:
    center = build_center(config.center, encoder_channels[-1], norm=config.norm, activation=config.activation)
    steps = plan_steps(
        in_channels=center.out_channels,
        halves=center.halves,
        encoder_channels=encoder_channels,
        strides=strides,
        decoder_channels=config.decoder_channels,
        join_first=join_first,
    )
    block = BLOCKS[config.architecture]
    return LevelDecoder(
        center,
        [block(config, step) for step in steps],
        steps,
        hypercolumns=config.hypercolumns,
        deep_supervision=config.deep_supervision,
        first_weights=first_weights,
    )


def _hyperkernel(
    config: ModelConfig, encoder_channels: Sequence[int], strides: Sequence[int], join_first: bool
) -> nn.Module:
    return HyperkernelDecoder(
        encoder_channels,
        strides,
        config.decoder_channels,
        norm=config.norm,
        join_first=join_first,
        deep_supervision=config.deep_supervision,
    )


def _hypercolumn(
    config: ModelConfig, encoder_channels: Sequence[int], strides: Sequence[int], join_first: bool
) -> nn.Module:
    width = config.decoder_channels[0]
    if width < 2:
        raise InputError(
            f"model.decoder_channels: {width} for {config.architecture!r}, whose levels take half their channels from "
            "the encoder; expected at least 2"
        )
    return HypercolumnDecoder(
        encoder_channels, strides, width, norm=config.norm, deep_supervision=config.deep_supervision
    )


def _albunet(
    config: ModelConfig, encoder_channels: Sequence[int], strides: Sequence[int], join_first: bool
) -> nn.Module:
    return AlbuNetDecoder(
        encoder_channels,
        strides,
        config.decoder_channels[0],
        upsample=_style(config, "bilinear").upsample,
        norm=config.norm,
        activation=config.activation,
        deep_supervision=config.deep_supervision,
    )


def _emanet(
    config: ModelConfig, encoder_channels: Sequence[int], strides: Sequence[int], join_first: bool
) -> nn.Module:
    return EmaNetDecoder(
        encoder_channels, strides, config.decoder_channels[0], norm=config.norm, activation=config.activation
    )


DECODERS: dict[str, Callable[[ModelConfig, Sequence[int], Sequence[int], bool], nn.Module]] = {
    **dict.fromkeys(BLOCKS, _levels),
    "transposed_unet": partial(_levels, first_weights=initialise_as_keras),
    "hyperkernel_unetpp": _hyperkernel,
    "tgs_hyper_unet": _hypercolumn,
    "albunet": _albunet,
    "emanet": _emanet,
}
"""How each architecture is built; the keys are those of HOUSE_ARCHITECTURES."""
