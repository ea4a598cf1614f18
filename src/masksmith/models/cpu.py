"""A faster form of strided depthwise convolutions for bfloat16 training on a CPU.

oneDNN has no quick backward pass for a depthwise convolution with a stride in bfloat16: measured, 51 ms for
(32, 144, 28, 28) where the same convolution without stride takes 6 ms. A strided convolution is the unstrided
one with positions left out, so in training that is what is computed. Same weights, same names, same numbers
(to rounding); see benchmarks/strided_depthwise.py.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn


class SlicedDepthwise(nn.Conv2d):
    """A depthwise convolution that, in training, is computed without stride and then sliced."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c H W"]:
        """Return the convolution of ``input``."""
        if not self.training:
            return super().forward(input)
        dense = F.conv2d(input, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)
        rows, columns = self.stride
        return dense[..., ::rows, ::columns].contiguous(memory_format=torch.channels_last)


class SlicedDepthwiseSame(Conv2dSame):
    """The same for TensorFlow's padding, which depends on the size and may be larger at the end.

    The dense convolution is padded alike on both sides; where it is sliced makes up for the difference.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c H W"]:
        """Return the convolution of ``input``."""
        if not self.training:
            return super().forward(input)
        spans = [
            (side - 1) * dilation for side, dilation in zip(self.kernel_size, self.dilation, strict=True)
        ]
        padding = [span // 2 for span in spans]
        dense = F.conv2d(input, self.weight, self.bias, 1, padding, self.dilation, self.groups)
        rows, columns = (
            slice(padding[axis] - self._before(axis, input.shape[2 + axis]), None, self.stride[axis])
            for axis in (0, 1)
        )
        return dense[..., rows, columns].contiguous(memory_format=torch.channels_last)

    def _before(self, axis: int, size: int) -> int:
        """Return the padding before the first row or column of an image of this size."""
        whole = get_same_padding(size, self.kernel_size[axis], self.stride[axis], self.dilation[axis])
        return int(whole) // 2


def slice_strided_depthwise(model: nn.Module) -> int:
    """Switch a model's strided depthwise convolutions to the sliced form; return how many there were."""
    strided = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels > 1
        and max(module.stride) > 1
    ]
    forms = [(module, form) for module in strided if (form := _sliced_form(module)) is not None]
    for module, form in forms:
        module.__class__ = form  # the same parameters; only forward differs
    return len(forms)


def _sliced_form(module: nn.Conv2d) -> type[nn.Conv2d] | None:
    """Return the sliced form of a convolution; None where its padding is of another kind."""
    if type(module) is nn.Conv2d and isinstance(module.padding, tuple) and module.padding_mode == "zeros":
        return SlicedDepthwise
    if type(module) is Conv2dSame and all(side % 2 for side in module.kernel_size):
        return SlicedDepthwiseSame
    return None
