"""What all losses share: a batch as planes, one for each class of each image, and the means over them.

Three kinds of target are read:

* ``(b, h, w)`` with logits (b, 1, h, w): binary, 0, 1 and IGNORE; probabilities by the sigmoid;
* ``(b, h, w)`` with logits (b, k, h, w), k > 1: a class map, 0…k-1 and IGNORE; probabilities by the softmax;
* ``(b, k, h, w)``: multi-label, 0, 1 and IGNORE for each class; probabilities by the sigmoid.

The loss ``objects`` alone reads a fourth, whose last plane is no class: see there.

Logits of ignored pixels are replaced by 0 before anything is computed, so even an infinite one does no harm.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from masksmith.core.arrays import IGNORE

Logits = Float[Tensor, "b k h w"]
Target = UInt8[Tensor, "b *classes h w"]
Scalar = Float[Tensor, ""]
Each = Float[Tensor, "b k h w"]


class Planes(NamedTuple):
    """One plane for each class of each image; probabilities instead of logits where a loss asks for them."""

    scores: Float[Tensor, "b k h w"]
    truth: Bool[Tensor, "b k h w"]
    judged: Bool[Tensor, "b k h w"]


def is_class_map(logits: Logits, target: Target) -> bool:
    """Whether the classes exclude each other: a target without a class axis for several channels of logits."""
    return target.ndim == 3 and logits.shape[1] > 1


def split_target(target: Target, num_classes: int) -> tuple[Bool[Tensor, "b k h w"], Bool[Tensor, "b k h w"]]:
    """Return where each class is true and where it is judged.

    Raises:
        ValueError: Another number of classes than logits, or (on the CPU, where looking costs no wait) a class that
            the logits do not have.
    """
    if target.ndim == 4 and target.shape[1] != num_classes:
        raise ValueError(
            f"target of shape {tuple(target.shape)} for {num_classes} channels of logits; expected (b, h, w) or "
            f"(b, {num_classes}, h, w)"
        )
    judged = target != IGNORE
    _refuse_unknown_class(target, judged, num_classes)
    if target.ndim == 4:
        return target == 1, judged
    if num_classes == 1:
        return (target == 1)[:, None], judged[:, None]
    classes = torch.arange(num_classes, dtype=torch.uint8, device=target.device)[:, None, None]
    truth = target[:, None] == classes  # (b, 1, h, w) == (k, 1, 1) -> (b, k, h, w)
    return truth, judged[:, None].expand_as(truth)


def _refuse_unknown_class(target: Target, judged: Bool[Tensor, "b *classes h w"], num_classes: int) -> None:
    if target.device.type != "cpu" or not target.numel():
        return
    highest = 1 if target.ndim == 4 else max(1, num_classes - 1)
    found = int((target * judged).max())
    if found > highest:
        raise ValueError(
            f"target holds the value {found}; expected 0 to {highest}, or {IGNORE} where it is not judged"
        )


def logit_planes(logits: Logits, target: Target) -> Planes:
    """Return the planes with logits; those of ignored pixels are 0."""
    truth, judged = split_target(target, logits.shape[1])
    return Planes(torch.where(judged, logits.float(), 0.0), truth, judged)


def separate_planes(logits: Logits, target: Target, *, loss: str, instead: str) -> Planes:
    """Return the planes with logits, for a loss that judges each class alone.

    Raises:
        ValueError: The target is a class map; ``loss`` is named, and ``instead`` is advised.
    """
    if is_class_map(logits, target):
        raise ValueError(
            f"{loss}: target of shape {tuple(target.shape)} for {logits.shape[1]} channels of logits is a class "
            f"map; expected (b, {logits.shape[1]}, h, w), each class judged alone; for classes that exclude each "
            f"other use {instead}"
        )
    return logit_planes(logits, target)


def probability_planes(logits: Logits, target: Target) -> Planes:
    """Return the planes with probabilities; those of ignored pixels are 0."""
    planes = logit_planes(logits, target)
    probs = planes.scores.softmax(1) if is_class_map(logits, target) else planes.scores.sigmoid()
    return planes._replace(scores=torch.where(planes.judged, probs, 0.0))


def mean_of_pixels(each: Each, judged: Bool[Tensor, "b k h w"]) -> Scalar:
    """Return the mean over the judged pixels of all planes of the batch; 0 where there are none."""
    return (each * judged).sum() / judged.sum().clamp(min=1)


def mean_of_planes(each: Float[Tensor, "r k"], counted: Bool[Tensor, "r k"]) -> Scalar:
    """Return the mean over the planes that count; 0 where there are none."""
    return torch.where(counted, each, 0.0).sum() / counted.sum().clamp(min=1)


def counted_planes(planes: Planes, *, per_image: bool, skip_empty: bool) -> Bool[Tensor, "r k"]:
    """Return which planes count: those with a judged pixel or, with ``skip_empty``, with a true one."""
    dims = (2, 3) if per_image else (0, 2, 3)
    found = (planes.truth if skip_empty else planes.judged).any(dims)
    return found if per_image else found[None]  # (k,) -> (1, k)
