"""The options of each architecture: a table that needs no torch, so that a recipe is checked when it is read.

Sources:
    segmentation-models-pytorch 0.6 (https://github.com/qubvel-org/segmentation_models.pytorch, MIT) for the
    architectures of the library; a paper is named beside each.
"""

import re
from dataclasses import replace
from typing import Any, Literal

from masksmith.models.decoders.traits import HOUSE_ARCHITECTURES, Traits
from masksmith.models.published.traits import OWN_NETS

_ANY_STEM = "stem"
_SMALL_STEM = "stem:conv3x3"  # the maps' strides stay as they are
_UPSAMPLE = frozenset({"upsample:nearest", "upsample:bilinear"})
_SCSE = "attention:scse"  # the library's own

LIBRARY_ARCHITECTURES: dict[str, Traits] = {
    "unet": Traits(
        "levels",
        frozenset({"norm", "activation", _SCSE, "deep_supervision", _ANY_STEM}) | _UPSAMPLE,
        range(3, 6),
        "U-Net: maps joined by concatenation",
        "Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597",
    ),
    "unetplusplus": Traits(
        "levels",
        frozenset({"norm", "activation", _SCSE, "deep_supervision", _SMALL_STEM}) | _UPSAMPLE,
        range(3, 6),
        "U-Net++: nested, dense paths between encoder and decoder",
        "Zhou et al. 2018, https://arxiv.org/abs/1807.10165",
    ),
    "manet": Traits(
        "levels",
        frozenset({"norm", "activation", "deep_supervision", _SMALL_STEM}) | _UPSAMPLE,
        range(3, 6),
        "MA-Net: attention over positions in the centre, over channels in each block",
        "Fan et al. 2020, https://doi.org/10.1109/ACCESS.2020.3025372",
    ),
    "linknet": Traits(
        "one",
        frozenset({"norm", "activation", "deep_supervision", _SMALL_STEM}),
        range(3, 6),
        "LinkNet: maps joined by addition; published width 32",
        "Chaurasia and Culurciello 2017, https://arxiv.org/abs/1707.03718",
    ),
    "fpn": Traits(
        "one",
        frozenset({"activation", _SMALL_STEM}) | _UPSAMPLE,
        range(3, 6),
        "FPN: a pyramid of twice the width, group norm as published; published width 128",
        "Kirillov et al. 2019, https://arxiv.org/abs/1901.02446",
    ),
    "pspnet": Traits(
        "one",
        frozenset({"norm", "activation", _ANY_STEM}),
        range(3, 6),
        "PSPNet: pooling at four scales on the deepest map; published width 512 at encoder_depth 3",
        "Zhao et al. 2017, https://arxiv.org/abs/1612.01105",
    ),
    "pan": Traits(
        "one",
        frozenset({"norm", "activation", "output_stride:16", "output_stride:32", _ANY_STEM}) | _UPSAMPLE,
        range(3, 6),
        "PAN: feature pyramid attention at stride 16 (undilated: 32), then attention upsampling; published width 32",
        "Li et al. 2018, https://arxiv.org/abs/1805.10180",
    ),
    "deeplabv3": Traits(
        "one",
        frozenset({"norm", "activation", "output_stride", _ANY_STEM}),
        range(3, 6),
        "DeepLabV3: dilated convolutions at stride 8; published width 256",
        "Chen et al. 2017, https://arxiv.org/abs/1706.05587",
    ),
    "deeplabv3plus": Traits(
        "one",
        frozenset({"norm", "activation", _ANY_STEM}),
        range(3, 6),
        "DeepLabV3+: dilated convolutions at stride 16, joined with the map at stride 4; published width 256",
        "Chen et al. 2018, https://arxiv.org/abs/1802.02611",
    ),
    "upernet": Traits(
        "one",
        frozenset({"norm", "activation", _ANY_STEM}),
        range(3, 6),
        "UPerNet: pooling at four scales, then a pyramid; published width 256",
        "Xiao et al. 2018, https://arxiv.org/abs/1807.10221",
    ),
    "segformer": Traits(
        "one",
        frozenset({"norm", "activation", _ANY_STEM}),
        range(3, 6),
        "SegFormer's decoder: all levels resized to stride 4 and mixed; published width 256",
        "Xie et al. 2021, https://arxiv.org/abs/2105.15203",
    ),
    "dpt": Traits(
        "one",
        frozenset({"norm", "activation"}),
        range(4, 5),
        "DPT: four taps of a plain ViT made into a pyramid; published width 256",
        "Ranftl et al. 2021, https://arxiv.org/abs/2103.13413",
    ),
}

ENCODER_FAMILIES: dict[str, str] = {
    "densenet": "DenseNet: each layer sees all before it. Huang et al. 2017, https://arxiv.org/abs/1608.06993",
    "dpn": "Dual path network: a residual and a dense path. Chen et al. 2017, https://arxiv.org/abs/1707.01629",
    "efficientnet-": "EfficientNet. Tan and Le 2019, https://arxiv.org/abs/1905.11946",
    "inception_v3": "Inception v3, timm's with padding. Szegedy et al. 2015, https://arxiv.org/abs/1512.00567",
    "inceptionv4": "Inception v4. Szegedy et al. 2016, https://arxiv.org/abs/1602.07261",
    "inceptionresnetv2": "Inception-ResNet v2. Szegedy et al. 2016, https://arxiv.org/abs/1602.07261",
    "mit_": "SegFormer's encoder. Xie et al. 2021, https://arxiv.org/abs/2105.15203",
    "mobilenet_v2": "MobileNetV2. Sandler et al. 2018, https://arxiv.org/abs/1801.04381",
    "mobileone": "MobileOne. Vasu et al. 2022, https://arxiv.org/abs/2206.04040",
    "nasnetalarge": "NASNet-A-Large, timm's with padding. Zoph et al. 2017, https://arxiv.org/abs/1707.07012",
    "pnasnet5large": "PNASNet-5-Large, timm's with padding. Liu et al. 2017, https://arxiv.org/abs/1712.00559",
    "resnet": "ResNet. He et al. 2015, https://arxiv.org/abs/1512.03385",
    "resnext": "ResNeXt: grouped convolutions. Xie et al. 2016, https://arxiv.org/abs/1611.05431",
    "se": "SENet: channels gated by their means. Hu et al. 2017, https://arxiv.org/abs/1709.01507",
    "timm-efficientnet": "EfficientNet with NoisyStudent's weights. Xie et al. 2020, https://arxiv.org/abs/1911.04252",
    "timm-sk": "SKNet: kernels of two sizes, chosen by channel. Li et al. 2019, https://arxiv.org/abs/1903.06586",
    "timm-tf_efficientnet_lite": "EfficientNet-Lite; the installed weights go by timm's name, tf_efficientnet_lite0",
    "vgg": "VGG: plain 3x3 convolutions. Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556",
    "xception": "Xception: separable convolutions. Chollet 2016, https://arxiv.org/abs/1610.02357",
}
"""Beginning of an encoder's name -> what it is, and the paper. Every other encoder of timm can be named too."""


def encoder_family(name: str) -> str:
    """Return what an encoder is, by the longest beginning of its name that is known; empty where none is."""
    known = [start for start in ENCODER_FAMILIES if name.startswith(start)]
    return ENCODER_FAMILIES[max(known, key=len)] if known else ""


ARCHITECTURES: dict[str, Traits] = {
    **LIBRARY_ARCHITECTURES,
    **{
        name: replace(traits, options=traits.options | {_ANY_STEM})
        for name, traits in HOUSE_ARCHITECTURES.items()
    },
    **OWN_NETS,
}
"""Name -> its options; the same keys as MODELS."""

OWN_ENCODER = "own"
"""What ``model.encoder`` is for a net that brings its own."""

DILATED_STRIDES = {"deeplabv3": 8, "deeplabv3plus": 16, "emanet": 8, "pan": 16}
"""Architectures that keep the deepest map at this stride: later stages are dilated instead of strided."""

MAY_STOP_EARLY = frozenset({"unet"})
"""Architectures whose decoder may end before the image's size: the logits are then enlarged bilinearly."""
MOST_LEFT_OUT = 2
"""Levels that such a decoder may leave out."""

MAYBE_USELESS = (
    *("block", "upsample", "skip", "norm", "activation", "stem"),
    *("attention", "center", "hypercolumns", "deep_supervision", "output_stride"),
)
"""Fields of ModelConfig that not every architecture supports; the others work with all."""

LEAST_ATTENTION = 16
"""Channels that the library's scSE needs: it has a sixteenth of them in its middle."""
_FPN_GROUPS = 32

_PLAIN_VIT = re.compile(r"(tu-)?(aimv2|beit3|deit3?|eva|eva02|samvit|vit)_(?!s?relpos).*patch(?P<patch>\d+)")
_PATCH_16 = re.compile(r"(tu-)?(test_vit\d?|flexivit_\w+)(\.|$)")


def vit_patch(encoder: str) -> int | None:
    """Return the side of a patch, in pixels, if ``encoder`` is one of timm's plain ViTs (DINO, SAM, DeiT, …).

    It is told from the name, so that sizes are known before a model exists; building the model checks it.
    """
    if _PATCH_16.match(encoder):
        return 16
    found = _PLAIN_VIT.match(encoder)
    return int(found["patch"]) if found else None


def most_stride(architecture: str, output_stride: int | Literal["own"]) -> int:
    """Return the stride that no encoder map goes beyond: later stages are dilated instead.

    Args:
        architecture: A key of ARCHITECTURES.
        output_stride: As in ModelConfig; "own" is what the architecture was published with.
    """
    return DILATED_STRIDES.get(architecture, 32) if output_stride == "own" else output_stride


def divisor_of(
    architecture: str, *, encoder: str, depth: int, stem: str, output_stride: int | Literal["own"] = "own"
) -> int:
    """Return what height and width must be multiples of.

    Nets with an encoder of their own say it. Convolutional encoders: the stride of the deepest map. Plain ViTs: the
    patch, and twice the patch where the pyramid goes one level deeper (encoder_depth 5) or DPT does.
    """
    own = ARCHITECTURES[architecture].divisor
    if own is not None:
        return own
    patch = vit_patch(encoder)
    if patch is not None:
        if architecture == "dpt":
            return max(patch, 2 ** (depth + 1))
        return 2 * patch if depth == 5 else patch
    deepest = min(2**depth, most_stride(architecture, output_stride))
    return max(1, deepest // 4) if stem.endswith("stride1") else deepest


def _supports(traits: Traits, field: str, value: object) -> bool:
    return field in traits.options or f"{field}:{value}" in traits.options


def check_options(architecture: str, values: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse options that an architecture does not support.

    Args:
        architecture: A key of ARCHITECTURES.
        values: Fields of a ModelConfig.
        defaults: Their defaults; a field at its default is never refused.

    Raises:
        ValueError: The message names the field, and the architectures that have use for it.
    """
    traits = ARCHITECTURES[architecture]
    _check_encoder(architecture, traits, values)
    for field in MAYBE_USELESS:
        value = values[field]
        if value == defaults[field] or _supports(traits, field, value):
            continue
        able = [name for name, one in ARCHITECTURES.items() if _supports(one, field, value)]
        raise ValueError(
            f"{field}: {value!r} is not supported by architecture {architecture!r}; leave {field} at "
            f"{defaults[field]!r}, or choose {' or '.join(able)}"
        )
    _check_depth(architecture, traits, values["encoder_depth"])
    _check_channels(architecture, traits, values)
    _check_vit(architecture, values)


def _check_encoder(architecture: str, traits: Traits, values: dict[str, Any]) -> None:
    """Refuse an encoder by name for a net with its own, and the other way round."""
    encoder = values["encoder"]
    if not traits.has_own_encoder:
        if encoder == OWN_ENCODER:
            raise ValueError(
                f"encoder: {encoder!r} does not fit architecture {architecture!r}, which takes any encoder; name one, "
                f"for example resnet34, say 'auto', or choose {' or '.join(OWN_NETS)}"
            )
        return
    if encoder != OWN_ENCODER:
        raise ValueError(
            f"encoder: {encoder!r} does not fit architecture {architecture!r}, which has its own; "
            f"expected {OWN_ENCODER!r}"
        )
    if values["encoder_weights"] not in ("auto", "none"):
        raise ValueError(
            f"encoder_weights: {values['encoder_weights']!r} is not supported by architecture {architecture!r}, whose "
            "encoder begins with random weights; choose 'auto' or 'none'"
        )
    if values["encoder_norm"] != "own":
        raise ValueError(
            f"encoder_norm: {values['encoder_norm']!r} is not supported by architecture {architecture!r}, whose "
            "layers are as published; choose 'own'"
        )


def _check_depth(architecture: str, traits: Traits, depth: int) -> None:
    if depth not in traits.depths:
        raise ValueError(
            f"encoder_depth: {depth} does not fit architecture {architecture!r}; "
            f"expected {' or '.join(map(str, traits.depths))}"
        )


def _check_channels(architecture: str, traits: Traits, values: dict[str, Any]) -> None:
    channels, depth = values["decoder_channels"], values["encoder_depth"]
    least = depth - (MOST_LEFT_OUT if architecture in MAY_STOP_EARLY else 0)
    if traits.decoder_channels == "levels" and not least <= len(channels) <= depth:
        fewer = "" if least == depth else f" (the last {MOST_LEFT_OUT} may be left out)"
        raise ValueError(
            f"decoder_channels: {len(channels)} values for encoder_depth {depth}; expected one value a level{fewer}"
        )
    if traits.decoder_channels == "one" and len(channels) != 1:
        raise ValueError(
            f"decoder_channels: {len(channels)} values, but architecture {architecture!r} has one width; "
            f"expected one number, for example [{channels[0] if channels else 128}] ({traits.describes})"
        )
    if architecture == "fpn" and channels[0] % _FPN_GROUPS:
        raise ValueError(
            f"decoder_channels: {channels[0]} does not fit architecture 'fpn', whose group norm has {_FPN_GROUPS} "
            f"groups; expected a multiple of {_FPN_GROUPS}"
        )
    if architecture in LIBRARY_ARCHITECTURES and values["attention"] == "scse":
        few = [width for width in channels if width < LEAST_ATTENTION]
        if few:
            raise ValueError(
                f"decoder_channels: {few[0]} is too few for attention 'scse' of the library, which needs "
                f"{LEAST_ATTENTION}; give at least {LEAST_ATTENTION}, or choose architecture house_unet"
            )


def _check_vit(architecture: str, values: dict[str, Any]) -> None:
    encoder, depth = values["encoder"], values["encoder_depth"]
    patch = vit_patch(encoder)
    if architecture == "dpt" and (patch is None or patch & (patch - 1)):
        raise ValueError(
            f"encoder: {encoder!r} does not fit architecture 'dpt', which needs a plain ViT whose patch is a power of "
            "two (vit_small_patch16_224, samvit_base_patch16, …); other ViTs work with the other architectures"
        )
    if patch is None:
        return
    if values["stem"] != "own":
        raise ValueError(
            f"stem: {values['stem']!r} is not supported by {encoder!r}, which cuts patches; choose 'own'"
        )
    if values["encoder_taps"] != "own":
        raise ValueError(
            f"encoder_taps: {values['encoder_taps']!r} is not supported by {encoder!r}, whose blocks do not halve the "
            "size; choose 'own'"
        )
    if values["encoder_attention"] == "scse_inside":
        raise ValueError(
            f"encoder_attention: 'scse_inside' is not supported by {encoder!r}, which has no stages; choose 'scse'"
        )
    if values["encoder_norm"] != "own":
        raise ValueError(
            f"encoder_norm: {values['encoder_norm']!r} is not supported by {encoder!r} (layer norm); choose 'own'"
        )
    most = most_stride(architecture, values["output_stride"])
    if 2**depth > most:
        raise ValueError(
            f"encoder_depth: {depth} does not fit architecture {architecture!r} on {encoder!r}, which cannot be "
            f"dilated; expected {most.bit_length() - 1}"
        )
