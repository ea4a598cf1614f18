"""Faster gradients of depthwise convolutions for bfloat16 training on a CPU.

oneDNN has no quick backward pass of its own for two kinds of depthwise convolution in bfloat16: the gradient of the
image where there is a stride, and the gradient of the weight where the kernel is larger than 3x3. Measured on one core
of an AMD EPYC for (32, 144, 28, 28), a 5x5 kernel and stride 2: 128 ms, against 3 ms of the forward pass. Here

- the gradient of the image of a strided convolution is computed in float32, which has a quick kernel, and
- the gradient of a larger weight is put together from 3x3 blocks of it, each of which has a quick kernel.

Same weights, same names, same numbers (to rounding); see benchmarks/depthwise.py.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn

_BLOCK = 3  # side of the largest weight whose gradient is quick


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution without bias and dilation, with a backward pass that is quick in bfloat16."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        image: Tensor,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
    ) -> Tensor:
        """Return the convolution."""
        ctx.save_for_backward(image, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(image, weight, None, stride, padding, 1, image.shape[1])

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *grads: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Return the gradients of image and weight."""
        image, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        of_image = of_weight = None
        if ctx.needs_input_grad[0]:
            of_image = _image_gradient(grad, image, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(grad, image, weight, ctx.stride, ctx.padding)
        return of_image, of_weight, None, None


def _gradient(
    grad: Tensor, image: Tensor, weight: Tensor, stride: list[int], padding: list[int], *, which: int
) -> Tensor:
    """Return one gradient as PyTorch computes it: of the image (0) or of the weight (1)."""
    wanted = [which == 0, which == 1, False]
    found = torch.ops.aten.convolution_backward(
        grad, image, weight, None, stride, padding, [1, 1], False, [0, 0], image.shape[1], wanted
    )
    return cast(Tensor, found[which])


def _image_gradient(
    grad: Tensor, image: Tensor, weight: Tensor, stride: list[int], padding: list[int]
) -> Tensor:
    if max(stride) == 1:
        return _gradient(grad, image, weight, stride, padding, which=0)
    # rows and columns at the end that no position of the kernel reaches
    spare = [
        size + 2 * pad - side - (count - 1) * step
        for size, pad, side, count, step in zip(
            image.shape[2:], padding, weight.shape[2:], grad.shape[2:], stride, strict=True
        )
    ]
    with torch.autocast(grad.device.type, enabled=False):
        wide = F.conv_transpose2d(
            grad.float(), weight.float(), None, stride, padding, spare, groups=image.shape[1]
        )
    return wide.to(image.dtype)


def _weight_gradient(
    grad: Tensor, image: Tensor, weight: Tensor, stride: list[int], padding: list[int]
) -> Tensor:
    height, width = weight.shape[2:]
    if max(height, width) <= _BLOCK:
        return _gradient(grad, image, weight, stride, padding, which=1)
    padded = F.pad(image, (padding[1], padding[1], padding[0], padding[0]))
    found = torch.empty_like(weight)
    rows, columns = ((count - 1) * step + 1 for count, step in zip(grad.shape[2:], stride, strict=True))
    for top in range(0, max(height - 1, 1), _BLOCK - 1):
        for left in range(0, max(width - 1, 1), _BLOCK - 1):
            block = weight[:, :, top : top + _BLOCK, left : left + _BLOCK].contiguous()
            part = padded[
                :, :, top : top + rows + block.shape[2] - 1, left : left + columns + block.shape[3] - 1
            ]
            part = part.contiguous(memory_format=torch.channels_last)
            found[:, :, top : top + _BLOCK, left : left + _BLOCK] = _gradient(
                grad, part, block, stride, [0, 0], which=1
            )
    return found


def _convolve(image: Tensor, module: nn.Conv2d, padding: list[int]) -> Tensor:
    weight = module.weight
    if torch.is_autocast_enabled(image.device.type):
        dtype = torch.get_autocast_dtype(image.device.type)
        image, weight = image.to(dtype), weight.to(dtype)
    found = cast(Tensor, _Depthwise.apply(image, weight, list(module.stride), padding))
    return found if module.bias is None else found + module.bias.to(found.dtype)[:, None, None]


class QuickDepthwise(nn.Conv2d):
    """A depthwise convolution whose gradients are quick in bfloat16 on a CPU."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c H W"]:
        """Return the convolution of ``input``."""
        if not self.training:
            return super().forward(input)
        return _convolve(input, self, [int(side) for side in self.padding])


class QuickDepthwiseSame(Conv2dSame):
    """The same for TensorFlow's padding, which depends on the size and may be larger at the end."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c H W"]:
        """Return the convolution of ``input``."""
        if not self.training:
            return super().forward(input)
        rows, columns = (
            int(get_same_padding(input.shape[2 + axis], self.kernel_size[axis], self.stride[axis], 1))
            for axis in (0, 1)
        )
        if rows % 2 == 0 and columns % 2 == 0:
            return _convolve(input, self, [rows // 2, columns // 2])
        padded = F.pad(input, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return _convolve(padded, self, [0, 0])


def quicken_depthwise(model: nn.Module) -> int:
    """Switch a model's depthwise convolutions with a stride or a large kernel to the quick form; return their number.

    Convolutions that are dilated or padded by anything but zeros stay as they are.
    """
    chosen = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels > 1
        and (max(module.stride) > 1 or max(module.kernel_size) > _BLOCK)
        and module.dilation == (1, 1)
    ]
    forms = [(module, form) for module in chosen if (form := _quick_form(module)) is not None]
    for module, form in forms:
        module.__class__ = form  # the same parameters; only forward differs
    return len(forms)


def _quick_form(module: nn.Conv2d) -> type[nn.Conv2d] | None:
    """Return the quick form of a convolution; None where its padding is of another kind."""
    if type(module) is nn.Conv2d and isinstance(module.padding, tuple) and module.padding_mode == "zeros":
        return QuickDepthwise
    return QuickDepthwiseSame if type(module) is Conv2dSame else None
