"""Plain ViTs as encoders: one map of patches, made into a pyramid or tapped at several depths.

Sources:
    Simple feature pyramid: Li et al. 2022 (ViTDet), https://arxiv.org/abs/2203.16527, section 3: strides of a quarter,
    half, one and two patches from the last map alone, by transposed convolutions and pooling; then 1x1 and 3x3
    convolutions to 256 channels, with layer norm.
    Taps: Ranftl et al. 2021 (DPT), https://arxiv.org/abs/2103.13413: four depths, evenly spread, the class token
    joined to every patch; where a ViT has none, the mean of the patches takes its place.
    ViTs: timm (https://github.com/huggingface/pytorch-image-models, Apache-2.0).
"""

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from masksmith.core.errors import InputError
from masksmith.models.architectures import vit_patch

PYRAMID_WIDTH = 256  # as published
Map = Float[Tensor, "b c h w"]


def _plain_vit(name: str, in_channels: int) -> nn.Module:
    """Return a ViT without classifier whose position embeddings follow the size of the image."""
    options: dict[str, Any] = {"in_chans": in_channels, "num_classes": 0, "pretrained": False}
    if not name.startswith("samvit"):  # it does so without the option
        options["dynamic_img_size"] = True
    try:
        model: Any = timm.create_model(name, **options)
        patch = tuple(model.patch_embed.patch_size)
    except (TypeError, AttributeError, AssertionError, RuntimeError) as error:
        raise InputError(
            f"model.encoder: {name!r} cannot take images of any size ({error}); choose another ViT, for example "
            "vit_small_patch16_224"
        ) from error
    expected = vit_patch(name)
    if patch != (expected, expected):
        raise InputError(
            f"model.encoder: {name!r} has patches of {patch[0]}x{patch[1]}, not of {expected}; choose another ViT"
        )
    return cast(nn.Module, model)


class ViTEncoder(nn.Module):
    """A plain ViT that returns the image and maps of its patches at one stride.

    Args:
        name: A name of timm, without "tu-".
        in_channels: Channels of the images.
        taps: Number of depths, evenly spread, that are returned with the class token joined to every patch, which
            doubles the channels (DPT); 0 returns the last map alone, normalised.
    """

    def __init__(self, name: str, *, in_channels: int, taps: int = 0) -> None:
        super().__init__()
        patch = vit_patch(name)
        assert patch is not None, name
        self.model = _plain_vit(name, in_channels)
        self.taps = taps
        vit = cast(Any, self.model)
        self.num_prefix_tokens = int(getattr(vit, "num_prefix_tokens", 0))
        with torch.no_grad():
            training = self.training
            maps = self.eval()(torch.zeros(1, in_channels, patch, patch))
            self.train(training)
        self.out_channels = [one.shape[1] for one in maps]
        self.strides = [1] + [patch] * (len(maps) - 1)

    def forward(self, image: Map) -> list[Tensor]:
        """Return the image and the maps."""
        vit = cast(Any, self.model)
        if not self.taps:
            found = vit.forward_intermediates(image, indices=1, intermediates_only=True, norm=True)
            return [image, *found]
        depth = len(vit.blocks)
        indices = [depth * (tap + 1) // self.taps - 1 for tap in range(self.taps)]
        if not self.num_prefix_tokens:
            found = vit.forward_intermediates(image, indices=indices, intermediates_only=True)
            return [image, *(_joined(patches, patches.mean(dim=(2, 3))) for patches in found)]
        found = vit.forward_intermediates(
            image, indices=indices, intermediates_only=True, return_prefix_tokens=True
        )
        return [image, *(_joined(patches, tokens[:, 0]) for patches, tokens in found)]


def _joined(patches: Map, token: Float[Tensor, "b c"]) -> Float[Tensor, "b C h w"]:
    """Join a token to every patch: (b, c, h, w) -> (b, 2c, h, w)."""
    return torch.cat([patches, token[:, :, None, None].expand_as(patches)], dim=1)


def _level(channels: int, scale: float, width: int) -> nn.Sequential:
    """Return the way from the last map to one level of the pyramid."""
    steps: list[nn.Module] = []
    if scale == 4:
        half = max(1, channels // 2)
        steps += [nn.ConvTranspose2d(channels, half, 2, stride=2), LayerNorm2d(half), nn.GELU()]
        channels = half
    if scale >= 2:
        half = max(1, channels // 2)
        steps.append(nn.ConvTranspose2d(channels, half, 2, stride=2))
        channels = half
    if scale < 1:
        steps.append(nn.MaxPool2d(2))
    steps += [nn.Conv2d(channels, width, 1, bias=False), LayerNorm2d(width)]
    steps += [nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width)]
    return nn.Sequential(*steps)


class SimpleFeaturePyramid(nn.Module):
    """Maps at a quarter, half, one and two patches from a ViT's last map.

    With patches of 16 pixels these are strides 4, 8, 16 and 32. In front stand the image and a map without channels
    for the level between, as segmentation-models-pytorch has it for transformers.

    Args:
        in_channels: Channels of the image and of the ViT's map.
        depth: Levels after the image: 5 for all, 4 and 3 leave out the deepest.
        width: Channels of each map.
    """

    def __init__(self, in_channels: Sequence[int], *, depth: int, width: int = PYRAMID_WIDTH) -> None:
        super().__init__()
        scales = (4, 2, 1, 0.5)[: depth - 1]
        self.levels = nn.ModuleList(_level(in_channels[-1], scale, width) for scale in scales)
        self.out_channels = [in_channels[0], 0, *([width] * len(scales))]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the image, the empty map and the levels."""
        image, last = features
        levels = [level(last) for level in self.levels]
        batch, _, height, width = levels[0].shape
        return [image, levels[0].new_empty(batch, 0, 2 * height, 2 * width), *levels]
