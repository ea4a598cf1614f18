"""Decoder blocks that convolve a map before they enlarge it: the same numbers for less than half the work.

A block of U-Net enlarges a map to twice its size by repeating pixels, joins it with the encoder's, and convolves both
3x3. Convolving repeated pixels multiplies the same values again and again; a transposed convolution of stride 2, whose
4x4 weight holds sums of the 3x3 one, does not (Shi et al. 2016, https://arxiv.org/abs/1609.07009, is the relation
between the two). Neither the enlarged map nor the joined one is made. Weights and their names stay as they are; see
``benchmarks/folded.py``.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from segmentation_models_pytorch.decoders.unetplusplus.decoder import DecoderBlock
from torch import Tensor, nn

_SUMS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""Which rows of a 3x3 weight each row of the 4x4 one is the sum of."""


def convolve_enlarged(
    small: Float[Tensor, "b c h w"], joined: Float[Tensor, "b s H W"] | None, conv: nn.Conv2d
) -> Float[Tensor, "b k H W"]:
    """Return ``conv`` of ``small`` enlarged to twice its size, joined with another map.

    Args:
        small: Each of its pixels stands for two by two.
        joined: A map of twice the size, whose channels come after those of ``small``; None: there is none.
        conv: 3x3, padded by one, without stride.
    """
    channels = small.shape[1]
    sums = conv.weight.new_tensor(_SUMS)
    weight = torch.einsum("ar,bs,kcrs->ckab", sums, sums, conv.weight[:, :channels])
    found = F.conv_transpose2d(small, weight, conv.bias, 2, 1)
    if joined is None or not joined.shape[1]:  # a map that gives its size alone
        return found
    return found + F.conv2d(joined, conv.weight[:, channels:], None, 1, 1)


def _convolve(block: UnetDecoderBlock | DecoderBlock, small: Tensor, joined: Tensor | None) -> Tensor:
    conv, *rest = cast(nn.Sequential, block.conv1)
    found = convolve_enlarged(small, joined, cast(nn.Conv2d, conv))
    for layer in (*rest, block.conv2, block.attention2):
        found = cast(nn.Module, layer)(found)
    return found


class FoldedUnetBlock(UnetDecoderBlock):
    """A block of U-Net without the enlarged map."""

    def forward(
        self,
        feature_map: Float[Tensor, "b c h w"],
        target_height: Any,  # noqa: ANN401  # an int, or what an export makes of it
        target_width: Any,  # noqa: ANN401
        skip_connection: Float[Tensor, "b s H W"] | None = None,
    ) -> Float[Tensor, "b k H W"]:
        """Return the map of the next level."""
        height, width = feature_map.shape[2:]
        if (target_height, target_width) != (2 * height, 2 * width):
            return cast(Tensor, super().forward(feature_map, target_height, target_width, skip_connection))
        return _convolve(self, feature_map, skip_connection)


class FoldedNestedBlock(DecoderBlock):
    """A block of U-Net++ without the enlarged map."""

    def forward(
        self, x: Float[Tensor, "b c h w"], skip: Float[Tensor, "b s H W"] | None = None
    ) -> Float[Tensor, "b k H W"]:
        """Return the map of the next level."""
        return _convolve(self, x, skip)


_FOLDED: dict[type[nn.Module], type[nn.Module]] = {
    UnetDecoderBlock: FoldedUnetBlock,
    DecoderBlock: FoldedNestedBlock,
}


def fold_enlarging(model: nn.Module) -> int:
    """Switch blocks that repeat pixels and have no attention before their convolution; return how many there are."""
    chosen = [
        module
        for module in model.modules()
        if type(module) in _FOLDED
        and module.conv1 is not None
        and module.interpolation_mode == "nearest"
        and isinstance(cast(nn.Module, module.attention1).attention, nn.Identity)
    ]
    for module in chosen:
        module.__class__ = _FOLDED[type(module)]  # the same parameters; only forward differs
    return len(chosen)
