"""A bundle as one network: raw pixels in, the ensemble's probabilities at the true size out.

It does what the project does to an image, in operations that every exporter knows: scaling, resizing, the border up to
the model's divisor, the model, sigmoid or softmax, cutting the border off, and the weighted mean of the members. Views
(test-time augmentation) and tiles are not in it. Arrays have the axes of numpy images: (b, h, w, c).
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped, UInt8
from timm.layers import Conv2dSame
from torch import Tensor, nn

from masksmith.core.errors import InputError
from masksmith.models.segmentation import SegmentationModel
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.labels import LabelRules
from masksmith.postprocess.objects import ObjectRule
from masksmith.postprocess.operator_rule import OperatorRule
from masksmith.postprocess.operators import Rule
from masksmith.postprocess.rules import AnyRule
from masksmith.prediction.combine import Combine
from masksmith.prediction.store import MAX_CODE
from masksmith.preprocess import SizeConfig
from masksmith.preprocess.chains import Gamma, PadStep, RefractStep, ScaleStep, refracted
from masksmith.preprocess.inputs import Scaler
from masksmith.preprocess.transforms import Border


class TypeMax(nn.Module):
    """Divides by the largest value of the images' type."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return values in 0…1."""
        return pixels / self.largest


class Scaled(nn.Module):
    """What Scaler does, rounded to the same codes."""

    low: Tensor
    high: Tensor

    def __init__(self, scaler: Scaler, *, floating: bool) -> None:
        super().__init__()
        self.scaler, self.floating, self.largest = scaler, floating, float(MAX_CODE)
        limits = scaler.limits or (np.zeros(len(scaler.bands)), np.ones(len(scaler.bands)))
        for name, values in zip(("low", "high"), limits, strict=True):
            numbers = torch.tensor(np.asarray(values), dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(name, numbers)

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return the channels that the model sees, in 0…1."""
        parts = []
        if self.scaler.bands:
            parts.append(self._amounts(pixels[:, self.scaler.bands]))
        for band, values in self.scaler.config.one_hot.items():
            parts += [(pixels[:, int(band)] == value)[:, None].float() for value in values]
        return torch.cat(parts, 1)

    def _amounts(self, values: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        missing = torch.zeros_like(values, dtype=torch.bool)
        if self.floating:
            missing = missing | ~torch.isfinite(values)
        if self.scaler.config.no_data is not None:
            missing = missing | (values == self.scaler.config.no_data)
        low, high = self.low, self.high
        if self.scaler.limits is None:  # each image's own
            low = torch.where(missing, torch.inf, values).amin((2, 3), keepdim=True)
            high = torch.where(missing, -torch.inf, values).amax((2, 3), keepdim=True)
        unit = ((torch.where(missing, low, values) - low) / (high - low)).clamp(0, 1)
        for step in self.scaler.config.chain:
            assert isinstance(step, Gamma), step  # a chain that looks at whole images is refused
            unit = (unit.mul(MAX_CODE).round() / MAX_CODE) ** step.gamma
        return torch.where(missing | (high <= low), 0.0, unit.mul(MAX_CODE).round() / MAX_CODE)


Whole = Any
"""An int; while an exporter traces, something that computes like one."""


def _border(
    planes: Float[Tensor, "b c h w"], dim: int, total: Whole, border: Border
) -> tuple[Float[Tensor, "b c H W"], Whole]:
    """Return planes with a border on both sides of an axis, ``total`` pixels in all, and the pixels before; see Pad."""
    length = planes.shape[dim]
    before = (total - length) // 2
    at = torch.arange(total, device=planes.device) - before
    line = planes[0, 0, :, 0] if dim == 2 else planes[0, 0, 0, :]
    last = (
        torch.ones_like(line, dtype=torch.int64).sum() - 1
    )  # a tensor, so that no exporter makes it a constant
    inside = at.minimum(last).clamp(min=0)
    if border == "reflect":  # 3 2 1 | 0 1 2 3 | 2 1 0
        period = (2 * last).clamp(min=1)
        away = at.abs().remainder(period)
        inside = away.minimum(period - away).minimum(last)
    found = planes.index_select(dim, inside)
    if border == "zero":
        kept = ((at >= 0) & (at <= last)).float()
        found = found * (kept[:, None] if dim == 2 else kept)
    return found, before


def _contiguous(model: SegmentationModel) -> SegmentationModel:
    """Return a copy in float32, channels outermost: with another order of strides torch.export fixes the batch."""
    move: Any = copy.deepcopy(model).float().eval().to  # the stubs leave memory_format out
    found: SegmentationModel = move(memory_format=torch.contiguous_format)
    return found


def _padded_hw(step: RefractStep | PadStep, before: Sequence[Whole]) -> Sequence[Whole]:
    if isinstance(step, PadStep):
        return step.hw
    return [refracted(side, step.ratio) for side in before]


_VIEW_PARTS = 10_000


class Member(nn.Module):
    """A trained fold: pixels (b, c, h, w) as the file has them to probabilities (b, k, h, w)."""

    def __init__(
        self,
        models: list[SegmentationModel],
        *,
        scale: TypeMax | Scaled,
        size: SizeConfig,
        combine: Combine,
        scalars: list[int],
        shares: list[float] | None = None,
        view: float = 1.0,
    ) -> None:
        super().__init__()
        self.shares = shares
        self.view = round(view * _VIEW_PARTS)  # in whole numbers, which any size can be multiplied by
        self.models = nn.ModuleList(_contiguous(model) for model in models)
        self.scale, self.size, self.combine, self.scalars = scale, size, combine, scalars
        self.steps = size.steps
        self.largest = scale.largest
        self.divisor, self.exclusive = models[0].divisor, models[0].exclusive

    def forward(
        self, pixels: Float[Tensor, "b c h w"], scalars: Float[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "b k h w"]:
        """Return the mean probabilities of the fold's weights."""
        planes = self.scale(pixels)
        undo: list[tuple[bool, Whole, Whole, Whole]] = []  # whether it was resized
        for step in self.steps:
            before = planes.shape[2:]
            if isinstance(step, ScaleStep):
                planes = self._resized(planes, step.hw)
                undo.append((True, before, 0, 0))
                continue
            total = _padded_hw(step, before)
            planes, down = _border(planes, 2, total[0], self.size.border)
            planes, right = _border(planes, 3, total[1], self.size.border)
            undo.append((False, before, down, right))
        if self.view != _VIEW_PARTS:
            before = planes.shape[2:]
            planes = self._resized(planes, [self._seen(side) for side in before])
            undo.append((True, before, 0, 0))
        inner = planes.shape[2:]
        whole = inner if self.size.pad_hw is None else [self._seen(side) for side in self.size.pad_hw]
        canvas = [(side + self.divisor - 1) // self.divisor * self.divisor for side in whole]
        planes, top = _border(planes, 2, canvas[0], self.size.border)
        planes, left = _border(planes, 3, canvas[1], self.size.border)
        numbers = () if scalars is None or not self.scalars else (scalars[:, self.scalars],)
        logits = [self.combine(model(planes, *numbers)) for model in self.models]
        each = torch.stack([one.softmax(1) if self.exclusive else one.sigmoid() for one in logits])
        probs = self._mean(each).narrow(2, top, inner[0]).narrow(3, left, inner[1])
        for scaled, hw, down, right in reversed(undo):
            if not scaled:
                probs = probs.narrow(2, down, hw[0]).narrow(3, right, hw[1])
            else:
                probs = F.interpolate(probs, hw, mode="bilinear", align_corners=False)
        return probs

    def _resized(self, planes: Float[Tensor, "b c h w"], hw: Sequence[Whole]) -> Float[Tensor, "b c H W"]:
        planes = F.interpolate(planes, tuple(hw), mode="bilinear", align_corners=False)
        return (planes * self.largest).round() / self.largest

    def _seen(self, side: Whole) -> Whole:
        """Return how long a side is at the scale at which the model looks."""
        return (side * self.view + _VIEW_PARTS // 2) // _VIEW_PARTS

    def _mean(self, each: Float[Tensor, "m b k h w"]) -> Float[Tensor, "b k h w"]:
        if self.shares is None or len(self.models) == 1:
            return each.mean(0)
        total = sum(self.shares)
        return torch.stack([share / total * one for share, one in zip(self.shares, each, strict=True)]).sum(0)


class Ensemble(nn.Module):
    """All members: images (b, h, w, c) to their mean probabilities (b, h, w, k)."""

    def __init__(self, members: list[Member], weights: list[float]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.shares = [weight / sum(weights) for weight in weights]

    def forward(
        self, image: Shaped[Tensor, "b h w c"], scalars: Float[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "b h w k"]:
        """Return the weighted mean of the members' probabilities."""
        pixels = image.to(torch.float32).permute(0, 3, 1, 2)
        each = [
            share * member(pixels, scalars) for share, member in zip(self.shares, self.members, strict=True)
        ]
        return torch.stack(each).sum(0).permute(0, 2, 3, 1)


class Masks(nn.Module):
    """An ensemble, and a rule behind it: images to masks (b, h, w) of classes, or (b, h, w, k) of labels.

    Raises:
        InputError: The rule makes objects, removes small regions, or is a list of operators.
    """

    def __init__(self, ensemble: Ensemble, rule: AnyRule) -> None:
        super().__init__()
        self.ensemble, self.rule = ensemble, rule
        rules = rule.rules if isinstance(rule, LabelRules) else (rule,)
        if any(
            isinstance(one, ObjectRule | OperatorRule) or (isinstance(one, Rule) and one.component_area_frac)
            for one in rules
        ):
            raise InputError(
                f"--mask: the rule of this model looks at more than pixels ({rule.describe()}), a file can hold "
                "thresholds, counts of pixels and classes; export without --mask: `masksmith apply` and `serve` then "
                "use this rule"
            )

    def forward(
        self, image: Shaped[Tensor, "b h w c"], scalars: Float[Tensor, "b s"] | None = None
    ) -> UInt8[Tensor, "b h w *k"]:
        """Return the rule's masks."""
        codes = (self.ensemble(image, scalars) * MAX_CODE).round()
        if isinstance(self.rule, ClassRule):
            return (codes * torch.tensor(self.rule.weights)).argmax(3).to(torch.uint8)
        if isinstance(self.rule, LabelRules):
            layers = [_mask(codes[..., at], cast(Rule, one)) for at, one in enumerate(self.rule.rules)]
            return torch.stack(layers, 3).to(torch.uint8)
        return _mask(codes[..., 0], cast(Rule, self.rule)).to(torch.uint8)


def _mask(codes: Float[Tensor, "b h w"], rule: Rule) -> Bool[Tensor, "b h w"]:
    """Return what Rule.apply does, for a rule that keeps small regions."""
    inside = codes > rule.bottom
    if not rule.min_pixels:
        return inside
    least: Whole = rule.min_pixels
    if rule.of_pixels is not None:  # the same share of the area, rounded up
        area = codes.shape[1] * codes.shape[2]
        least = (rule.min_pixels * area + rule.of_pixels - 1) // rule.of_pixels
    return inside & ((codes > rule.top).sum((1, 2), keepdim=True) >= least)


def same_padding(module: nn.Module) -> None:
    """Give the convolutions of TensorFlow's encoders, which look at each image's size, a padding of their own.

    The sides of all maps are multiples of the strides, since the canvas is one of the divisor: then it never changes.
    """
    for parent in list(module.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, Conv2dSame):
                padding: list[int] = []
                sides = zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)
                for side, dilation, stride in reversed(list(sides)):  # the columns first
                    extra = max((side - 1) * dilation + 1 - stride, 0)
                    padding += [extra // 2, extra - extra // 2]
                plain = nn.Conv2d(
                    conv.in_channels,
                    conv.out_channels,
                    cast(tuple[int, int], conv.kernel_size),
                    cast(tuple[int, int], conv.stride),
                    dilation=cast(tuple[int, int], conv.dilation),
                    groups=conv.groups,
                    bias=conv.bias is not None,
                )
                plain.weight, plain.bias = conv.weight, conv.bias
                setattr(
                    parent,
                    name,
                    nn.Sequential(nn.ZeroPad2d(cast(tuple[int, int, int, int], tuple(padding))), plain),
                )
