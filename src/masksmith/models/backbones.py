"""Encoders of both libraries, with masksmith's options: which maps there are, stems, and group norm.

Sources:
    Encoders: segmentation-models-pytorch (https://github.com/qubvel-org/segmentation_models.pytorch, MIT) and timm
    (https://github.com/huggingface/pytorch-image-models, Apache-2.0).
    Stem of stride 1, 3x3 instead of 7x7, no pooling: Babakhin et al. 2019, https://arxiv.org/abs/1904.04445
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from masksmith.core.errors import InputError
from masksmith.models.architectures import most_stride, vit_patch
from masksmith.models.config import ModelConfig
from masksmith.models.decoders.hypercolumn import gate_after_stage
from masksmith.models.encoders import timm_name
from masksmith.models.inception import InceptionV3
from masksmith.models.norms import replace_batch_norm
from masksmith.models.taps import ExpandedTaps
from masksmith.models.vit import SimpleFeaturePyramid, ViTEncoder

_TAPS = 4  # of DPT
_PADDED = {"inception_v4": "inceptionv4", "inception_resnet_v2": "inceptionresnetv2"}
"""Nets of timm whose maps have odd sides -> the same net of segmentation-models-pytorch, whose maps halve."""
_NASNETS = ("nasnetalarge", "pnasnet5large")
"""Nets of timm whose first convolution is given padding, so that their maps halve."""
_RESNETS = "resnet18 … resnet152, resnext, wide_resnet and timm's ResNets"


@dataclass(frozen=True)
class Backbone:
    """An encoder, the modules after it, and the maps that come out."""

    encoder: nn.Module
    neck: nn.Module | None
    """What makes a pyramid of a plain ViT's map; None for others."""
    channels: Sequence[int]
    """Channels of each map, the image's first; 0: a map that gives only its size."""
    strides: Sequence[int]
    """Stride of each map. Of a plain ViT as if its patches had 16 pixels: the maps' sizes say the rest."""


def build_backbone(config: ModelConfig, in_channels: int) -> Backbone:
    """Build the encoder of a configuration with random weights.

    Raises:
        InputError: The encoder gives no maps, not as many as ``encoder_depth``, cannot be dilated, or does not support
            ``stem``, ``encoder_norm``, ``encoder_taps`` or ``encoder_attention``.
    """
    patch = vit_patch(config.encoder)
    if patch is not None:
        return _vit_backbone(config, in_channels, patch)
    taps = config.encoder_taps == "expanded"
    encoder = _expanded_encoder(config, in_channels) if taps else _conv_encoder(config, in_channels)
    strides = _strides(config)
    if config.stem != "own":
        replace_stem(encoder, config.stem, name=config.encoder)
    if config.encoder_norm == "group" and not replace_batch_norm(encoder, "group"):
        raise InputError(
            f"model.encoder_norm: 'group' is not supported by {config.encoder!r}, which has no batch norm; choose 'own'"
        )
    if config.encoder_attention == "scse_inside":
        put_attention_inside(encoder, depth=config.encoder_depth, name=config.encoder)
    channels = [int(width) for width in cast(Any, encoder).out_channels]
    if timm_name(config.encoder):
        _check_maps(encoder, channels, strides, in_channels=in_channels, name=config.encoder)
    return Backbone(encoder, None, channels, strides)


def _vit_backbone(config: ModelConfig, in_channels: int, patch: int) -> Backbone:
    taps = _TAPS if config.architecture == "dpt" else 0
    encoder = ViTEncoder(config.encoder.removeprefix("tu-"), in_channels=in_channels, taps=taps)
    if taps:
        return Backbone(encoder, None, encoder.out_channels, encoder.strides)
    neck = SimpleFeaturePyramid(encoder.out_channels, depth=config.encoder_depth)
    return Backbone(encoder, neck, neck.out_channels, [2**level for level in range(config.encoder_depth + 1)])


def _strides(config: ModelConfig) -> list[int]:
    """Return the strides of a convolutional encoder's maps, the image's first."""
    most = most_stride(config.architecture, config.output_stride)
    own = [min(2**level, most) for level in range(config.encoder_depth + 1)]
    if not config.stem.endswith("stride1"):
        return own
    return [1, 1, *(stride // 4 for stride in own[2:])]  # twice by the convolution, twice by the pooling


def _conv_encoder(config: ModelConfig, in_channels: int) -> nn.Module:
    """Return an encoder of either library, dilated where the architecture wants it."""
    name = timm_name(config.encoder)
    stride = most_stride(config.architecture, config.output_stride)
    if name and name.partition(".")[0] == "inception_v3":
        if stride < 2**config.encoder_depth:
            raise _no_maps(config, stride, ValueError("its poolings cannot be dilated"))
        return InceptionV3(name, in_channels=in_channels, depth=config.encoder_depth)
    # windows follow the size of the image
    options = {"strict_img_size": False} if name and name.startswith(("swin_", "swinv2_")) else {}
    try:
        encoder: nn.Module = smp.encoders.get_encoder(
            f"tu-{name}" if name else config.encoder,
            in_channels=in_channels,
            depth=config.encoder_depth,
            weights=None,
            output_stride=32 if stride >= 2**config.encoder_depth else stride,
            **options,
        )
    except (
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        AssertionError,
        NotImplementedError,
        KeyError,
    ) as error:
        raise _no_maps(config, stride, error) from error
    if name and name.startswith(_NASNETS):
        first = next(one for one in encoder.modules() if isinstance(one, nn.Conv2d))
        first.padding = (1, 1)
    return encoder


def _expanded_encoder(config: ModelConfig, in_channels: int) -> nn.Module:
    """Return an EfficientNet that gives the maps within its blocks."""
    name = timm_name(config.encoder)
    if name is None:
        raise InputError(
            f"model.encoder_taps: 'expanded' needs one of timm's EfficientNets, and {config.encoder!r} is "
            "segmentation-models-pytorch's; expected for example tf_efficientnet_b4"
        )
    stride = most_stride(config.architecture, config.output_stride)
    if stride < 2**config.encoder_depth:
        raise InputError(
            f"model.encoder_taps: 'expanded' cannot be dilated to stride {stride}, as architecture "
            f"{config.architecture!r} wants it; choose encoder_taps 'own'"
        )
    return ExpandedTaps(name, in_channels=in_channels, depth=config.encoder_depth)


def put_attention_inside(encoder: nn.Module, *, depth: int, name: str) -> None:
    """Put attention behind each stage of a ResNet, so that the next stage sees what it gives.

    Args:
        encoder: Changed in place.
        depth: Maps of the encoder; the stages behind the last one are left as they are.
        name: Of the encoder, for messages.

    Raises:
        InputError: The encoder has no such stages.
    """
    owner = cast(nn.Module, encoder.model) if timm_name(name) else encoder
    stages = dict(owner.named_children())
    for at in range(1, depth):
        stage = stages.get(f"layer{at}")
        if not isinstance(stage, nn.Sequential):
            raise InputError(
                f"model.encoder_attention: 'scse_inside' is not supported by {name!r}, which has no stages of residual "
                f"blocks; choose 'scse', or one of {_RESNETS}"
            )
        stage.append(gate_after_stage(cast(Any, encoder).out_channels[at + 1]))


def _no_maps(config: ModelConfig, stride: int, error: Exception) -> InputError:
    depth = config.encoder_depth
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if stride < 2**depth:
        return InputError(
            f"model.encoder: {config.encoder!r} cannot be dilated to stride {stride}, as architecture "
            f"{config.architecture!r} wants it ({reason}); choose encoder_depth {stride.bit_length() - 1} or another "
            "encoder, for example resnet34"
        )
    return InputError(
        f"model.encoder: {config.encoder!r} gives no {depth} maps that halve from one to the next ({reason}); try "
        "another encoder_depth, or another encoder, for example resnet34 or convnext_tiny"
    )


def _check_maps(
    encoder: nn.Module, channels: Sequence[int], strides: Sequence[int], *, in_channels: int, name: str
) -> None:
    """Run a small image through an encoder and compare its maps with what it promises.

    Raises:
        InputError: It takes no image of this size, or its maps have other sizes.
    """
    side = 2 * max(strides)
    training = encoder.training
    try:
        with torch.no_grad():
            maps: list[Tensor] = encoder.eval()(torch.zeros(1, in_channels, side, side))
    except Exception as error:  # whatever a library makes of a size that it was not built for
        padded = _PADDED.get(name.removeprefix("tu-").partition(".")[0])
        other = (
            f"{padded!r}, the same net with padding"
            if padded
            else "another encoder, for example resnet34 or convnext_tiny"
        )
        raise InputError(
            f"model.encoder: {name!r} cannot take images of any size: {side}x{side} fails with {str(error)!r}; choose "
            f"{other}"
        ) from error
    finally:
        encoder.train(training)
    found = [tuple(one.shape[1:]) for one in maps]
    wanted = [
        (width, side // stride, side // stride) for width, stride in zip(channels, strides, strict=False)
    ]
    if found != wanted or len(channels) != len(strides):
        raise InputError(
            f"model.encoder: {name!r} gives maps of (channels, height, width) {found} for {side}x{side}; expected "
            f"{len(strides)} maps at strides {list(strides)}; try another encoder_depth, or another encoder"
        )


def replace_stem(encoder: nn.Module, stem: str, *, name: str) -> None:
    """Change the first layers of a ResNet.

    Args:
        encoder: Changed in place.
        stem: "stride1": no stride and no pooling; "conv3x3": a 3x3 convolution with random weights in place of the
            larger one; "conv3x3_stride1": both.
        name: Of the encoder, for messages.

    Raises:
        InputError: The encoder has no such layers.
    """
    stages = cast(nn.Module, encoder.model) if timm_name(name) else encoder
    layers = dict(stages.named_children())
    conv, pool = layers.get("conv1"), layers.get("maxpool")
    first = conv[0] if isinstance(conv, nn.Sequential) else conv
    if not isinstance(first, nn.Conv2d) or pool is None:
        raise InputError(
            f"model.stem: {stem!r} is not supported by {name!r}, which does not begin with a convolution and a "
            f"pooling; choose 'own', or one of {_RESNETS}"
        )
    if stem.startswith("conv3x3"):
        if first.kernel_size == (3, 3):
            raise InputError(
                f"model.stem: {stem!r} is not supported by {name!r}, whose first convolution is 3x3 already; choose "
                f"{'stride1' if stem.endswith('stride1') else 'own'!r}"
            )
        small = nn.Conv2d(
            first.in_channels,
            first.out_channels,
            3,
            stride=cast(tuple[int, int], first.stride),
            padding=1,
            bias=False,
        )
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")  # as ResNets begin
        _replace_module(encoder, first, small)
        first = small
    if stem.endswith("stride1"):
        first.stride = (1, 1)
        _replace_module(encoder, pool, nn.Identity())


def _replace_module(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in module.modules():
        for key, child in parent.named_children():
            if child is old:
                setattr(parent, key, new)
