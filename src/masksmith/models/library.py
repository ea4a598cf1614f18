"""Decoders of segmentation-models-pytorch on the maps of any encoder, with masksmith's options put into them.

Source: segmentation-models-pytorch 0.6 (https://github.com/qubvel-org/segmentation_models.pytorch, MIT). What
differs: dropout is the model's own (before the head), so FPN's and PSPNet's is off; PAN's attention works for maps
of any size; DPT's last 3x3 convolution counts as decoder, and its class token comes joined to the patches.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch.nn.functional as F
from jaxtyping import Float
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder, DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.pan.decoder import FPABlock, PANDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from masksmith.core.errors import InputError
from masksmith.models.architectures import DILATED_STRIDES, LEAST_ATTENTION
from masksmith.models.config import ModelConfig
from masksmith.models.folded import fold_enlarging
from masksmith.models.layers import activation_layer
from masksmith.models.norms import replace_batch_norm

_ATROUS_RATES = (
    12,
    24,
    36,
)  # of the library and of torchvision; the paper's (6, 12, 18) at twice the resolution
_ASPP_DROPOUT = 0.5  # of the library and of torchvision
_DPT_DROPOUT = 0.1  # of the library and of the authors' code
_DPT_WIDTHS = (1, 2, 4, 4)  # the published (256, 512, 1024, 1024), in widths of the decoder


def _interpolation(config: ModelConfig, published: str) -> str:
    return published if config.upsample == "default" else config.upsample


def _attention(config: ModelConfig) -> str | None:
    return None if config.attention == "none" else config.attention


def _unet(config: ModelConfig, channels: Sequence[int]) -> nn.Module:
    return UnetDecoder(
        encoder_channels=channels,
        decoder_channels=config.decoder_channels,
        n_blocks=len(config.decoder_channels),  # fewer than the encoder has: the last levels are left out
        attention_type=_attention(config),
        add_center_block=config.encoder.startswith(
            "vgg"
        ),  # whose last stage has no convolution after its pooling
        interpolation_mode=_interpolation(config, "nearest"),
    )


def _unetplusplus(config: ModelConfig, channels: Sequence[int]) -> nn.Module:
    few = [width for width in channels[1:] if 0 < width < LEAST_ATTENTION]
    if config.attention == "scse" and few:  # its inner blocks are as wide as the encoder's maps
        raise InputError(
            f"model.attention: 'scse' of architecture 'unetplusplus' needs {LEAST_ATTENTION} channels, and "
            f"{config.encoder!r} has a map of {few[0]}; choose architecture unet, or another encoder"
        )
    return UnetPlusPlusDecoder(
        encoder_channels=channels,
        decoder_channels=config.decoder_channels,
        n_blocks=config.encoder_depth,
        attention_type=_attention(config),
        center=config.encoder.startswith("vgg"),
        interpolation_mode=_interpolation(config, "nearest"),
    )


def _manet(config: ModelConfig, channels: Sequence[int]) -> nn.Module:
    return MAnetDecoder(
        encoder_channels=channels,
        decoder_channels=config.decoder_channels,
        n_blocks=config.encoder_depth,
        interpolation_mode=_interpolation(config, "nearest"),
    )


def _linknet(config: ModelConfig, channels: Sequence[int]) -> nn.Module:
    return LinknetDecoder(
        encoder_channels=channels,
        prefinal_channels=config.decoder_channels[0],
        n_blocks=config.encoder_depth,
    )


def _fpn(config: ModelConfig, channels: Sequence[int]) -> nn.Module:
    if 0 in channels[-4:]:
        raise InputError(
            f"model.encoder_depth: {config.encoder_depth} gives architecture 'fpn' three maps of {config.encoder!r}, "
            "which has none at stride 2; expected 5"
        )
    width = config.decoder_channels[0]
    return FPNDecoder(
        encoder_channels=channels,
        encoder_depth=config.encoder_depth,
        pyramid_channels=2 * width,
        segmentation_channels=width,
        dropout=0.0,
        interpolation_mode=_interpolation(config, "nearest"),
    )


def _pspnet(config: ModelConfig, channels: Sequence[int]) -> nn.Module:
    return PSPDecoder(encoder_channels=channels, out_channels=config.decoder_channels[0], dropout=0.0)


class AnySizeFPA(FPABlock):
    """The library's feature pyramid attention for maps of any size, also below 8x8; the same numbers otherwise."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return the attended map."""

        def resized(small: Tensor, large: Tensor) -> Tensor:
            return F.interpolate(small, size=large.shape[-2:], mode="bilinear", align_corners=True)

        def down(steps: nn.Sequential, features: Tensor) -> Tensor:
            return cast(Tensor, steps[1:](F.max_pool2d(features, 2, ceil_mode=True)))

        x1 = down(self.down1, x)
        x2 = down(self.down2, x1)
        x3 = down(self.down3, x2)
        pyramid = resized(x3, x2) + self.conv2(x2)
        pyramid = resized(pyramid, x1) + self.conv1(x1)
        return cast(Tensor, resized(pyramid, x) * self.mid(x) + resized(self.branch1(x), x))


def _pan(config: ModelConfig, channels: Sequence[int]) -> nn.Module:
    decoder = PANDecoder(
        encoder_channels=channels,
        encoder_depth=config.encoder_depth,
        decoder_channels=config.decoder_channels[0],
        interpolation_mode=_interpolation(config, "bilinear"),
    )
    decoder.fpa.__class__ = AnySizeFPA  # the same weights; only forward differs
    return cast(nn.Module, decoder)


def _deeplabv3(config: ModelConfig, channels: Sequence[int]) -> nn.Module:
    return DeepLabV3Decoder(
        in_channels=channels[-1],
        out_channels=config.decoder_channels[0],
        atrous_rates=_ATROUS_RATES,
        aspp_separable=False,
        aspp_dropout=_ASPP_DROPOUT,
    )


def _deeplabv3plus(config: ModelConfig, channels: Sequence[int]) -> nn.Module:
    return DeepLabV3PlusDecoder(
        encoder_channels=channels,
        encoder_depth=config.encoder_depth,
        out_channels=config.decoder_channels[0],
        atrous_rates=_ATROUS_RATES,
        output_stride=DILATED_STRIDES["deeplabv3plus"],
        aspp_separable=True,
        aspp_dropout=_ASPP_DROPOUT,
    )


def _upernet(config: ModelConfig, channels: Sequence[int]) -> nn.Module:
    return UPerNetDecoder(
        encoder_channels=channels,
        encoder_depth=config.encoder_depth,
        decoder_channels=config.decoder_channels[0],
    )


def _segformer(config: ModelConfig, channels: Sequence[int]) -> nn.Module:
    return SegformerDecoder(
        encoder_channels=channels,
        encoder_depth=config.encoder_depth,
        segmentation_channels=config.decoder_channels[0],
    )


class TapsDecoder(nn.Module):
    """DPT's decoder on the taps of a ViT, with the convolution that its head begins with.

    Args:
        channels: Channels of the image and of each tap, the class token's included.
        patch: Side of a patch in pixels.
        width: Channels of the decoder.
    """

    def __init__(self, channels: Sequence[int], *, patch: int, width: int) -> None:
        super().__init__()
        taps = len(channels) - 1
        self.dpt = DPTDecoder(
            encoder_out_channels=[joined // 2 for joined in channels[1:]],
            encoder_output_strides=[patch] * taps,
            encoder_has_prefix_tokens=True,  # joined to the patches already
            readout="cat",
            intermediate_channels=[width * times for times in _DPT_WIDTHS],
            fusion_channels=width,
        )
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(_DPT_DROPOUT),
        )

    def forward(self, features: list[Tensor]) -> Float[Tensor, "b c h w"]:
        """Return the decoded map, at stride 2."""
        taps = [one.contiguous() for one in features[1:]]  # the library looks at them without their layout
        return cast(Tensor, self.smooth(self.dpt(taps, [None] * len(taps))))


def _dpt(config: ModelConfig, channels: Sequence[int], patch: int) -> nn.Module:
    return TapsDecoder(channels, patch=patch, width=config.decoder_channels[0])


BUILDERS: dict[str, Callable[[ModelConfig, Sequence[int]], nn.Module]] = {
    "unet": _unet,
    "unetplusplus": _unetplusplus,
    "manet": _manet,
    "linknet": _linknet,
    "fpn": _fpn,
    "pspnet": _pspnet,
    "pan": _pan,
    "deeplabv3": _deeplabv3,
    "deeplabv3plus": _deeplabv3plus,
    "upernet": _upernet,
    "segformer": _segformer,
}
"""The library's decoders that take a list of maps of falling size."""


def build_library_decoder(
    config: ModelConfig, encoder_channels: Sequence[int], strides: Sequence[int]
) -> nn.Module:
    """Build a decoder of LIBRARY_ARCHITECTURES, with the configuration's normalisation and activation in it.

    Args:
        config: Which one, and its options.
        encoder_channels: Channels of each encoder map, the image's first; 0: a map that gives only its size.
        strides: Stride of each map.

    Raises:
        InputError: The encoder's maps do not fit this architecture.
    """
    if config.architecture == "dpt":
        decoder = _dpt(config, encoder_channels, strides[-1])
    else:
        decoder = BUILDERS[config.architecture](config, encoder_channels)
    # As in the library, the head is drawn before the decoder is initialised again, so seeds keep giving the same
    # weights.
    unused = nn.Conv2d(config.decoder_channels[-1], 1, 3)
    initialize_decoder(decoder)
    nn.init.xavier_uniform_(unused.weight)
    if config.norm != "batch":
        replace_batch_norm(decoder, config.norm)
    if config.activation != "relu":
        _replace_relu(decoder, config.activation)
    fold_enlarging(decoder)
    return decoder


def _replace_relu(module: nn.Module, name: str) -> None:
    """Put another activation in place of every ReLU of a decoder."""
    for parent in module.modules():
        for key, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, key, activation_layer(name))


def deep_supervision_blocks(config: ModelConfig, decoder: nn.Module) -> tuple[list[nn.Module], list[int]]:
    """Return the blocks of a library's decoder whose maps are supervised, deepest first, and their channels."""
    blocks: Any = decoder.blocks
    if config.architecture == "unetplusplus":  # the paths that end at the deepest map
        return [blocks[f"x_0_{at}"] for at in range(config.encoder_depth - 1)], config.decoder_channels[:-1]
    chosen = list(blocks)[:-1]
    if config.architecture == "linknet":
        return chosen, [block.block[-1][0].out_channels for block in chosen]
    return chosen, config.decoder_channels[:-1]
