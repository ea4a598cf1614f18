"""Losses of overlap: ratios of soft areas.

A plane is one class of one image (with ``per_image=False``: of the whole batch). All are means over the planes with a
judged pixel. An empty plane (no true pixel; a class that is absent from an image) is included: its
loss grows with what is predicted on it, and ``smooth`` sets how steeply. ``skip_empty`` leaves empty planes out; then
another term must penalise false positives on them.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from masksmith.losses.options import NonNegative, Positive
from masksmith.losses.planes import Logits, Scalar, Target, counted_planes, mean_of_planes, probability_planes


class Areas(NamedTuple):
    """Soft areas in pixels of each plane; r is the number of images, or 1 for the whole batch."""

    overlap: Float[Tensor, "r k"]
    predicted: Float[Tensor, "r k"]
    true: Float[Tensor, "r k"]
    counted: Bool[Tensor, "r k"]


def _areas(logits: Logits, target: Target, *, per_image: bool, skip_empty: bool) -> Areas:
    planes = probability_planes(logits, target)
    truth = planes.truth.float()
    dims = (2, 3) if per_image else (0, 2, 3)
    overlap, predicted, true = (one.sum(dims) for one in (planes.scores * truth, planes.scores, truth))
    if not per_image:
        overlap, predicted, true = overlap[None], predicted[None], true[None]  # (k,) -> (1, k)
    return Areas(overlap, predicted, true, counted_planes(planes, per_image=per_image, skip_empty=skip_empty))


def _dice_score(areas: Areas, smooth: float) -> Float[Tensor, "r k"]:
    return (2 * areas.overlap + smooth) / (areas.predicted + areas.true + smooth)


def dice(
    logits: Logits,
    target: Target,
    *,
    smooth: Positive = 1.0,
    per_image: bool = True,
    skip_empty: bool = False,
) -> Scalar:
    """1 - soft Dice, (2 overlap + smooth) / (predicted + true + smooth).

    Milletari et al. 2016, https://arxiv.org/abs/1606.04797

    Args:
        logits: Before any sigmoid or softmax.
        target: Binary, multi-label or a class map.
        smooth: In pixels, above and below: an empty plane that is predicted empty costs nothing.
        per_image: False sums over the batch first: small objects count less, and the loss depends on the batch.
        skip_empty: Whether planes on which nothing is true are left out ("soft Dice on positives only").
    """
    areas = _areas(logits, target, per_image=per_image, skip_empty=skip_empty)
    return mean_of_planes(1 - _dice_score(areas, smooth), areas.counted)


def log_dice(
    logits: Logits,
    target: Target,
    *,
    smooth: Positive = 1.0,
    per_image: bool = True,
    skip_empty: bool = False,
) -> Scalar:
    """-log of the soft Dice coefficient; see ``dice`` for the parameters.

    It is steeper than ``dice`` where the overlap is small. "BCE - log Dice" is the terms ``bce`` and ``log_dice``.
    """
    areas = _areas(logits, target, per_image=per_image, skip_empty=skip_empty)
    return mean_of_planes(-_dice_score(areas, smooth).log(), areas.counted)


def jaccard(
    logits: Logits,
    target: Target,
    *,
    smooth: Positive = 1e-5,
    per_image: bool = True,
    skip_empty: bool = False,
) -> Scalar:
    """1 - soft IoU, (overlap + smooth) / (union + smooth).

    The default ``smooth`` is so small that an empty plane costs about 1 until all of it is predicted empty, with
    almost no gradient: set it to 1 where many images are empty. Otherwise as in ``dice``. Rahman & Wang 2016,
    https://doi.org/10.1007/978-3-319-50835-1_22
    """
    areas = _areas(logits, target, per_image=per_image, skip_empty=skip_empty)
    union = areas.predicted + areas.true - areas.overlap
    return mean_of_planes(1 - (areas.overlap + smooth) / (union + smooth), areas.counted)


def _tversky_score(areas: Areas, *, alpha: float, beta: float, smooth: float) -> Float[Tensor, "r k"]:
    false_pos, false_neg = areas.predicted - areas.overlap, areas.true - areas.overlap
    return (areas.overlap + smooth) / (areas.overlap + alpha * false_pos + beta * false_neg + smooth)


def tversky(
    logits: Logits,
    target: Target,
    *,
    alpha: NonNegative = 0.3,
    beta: NonNegative = 0.7,
    smooth: Positive = 1.0,
    per_image: bool = True,
    skip_empty: bool = False,
) -> Scalar:
    """1 - Tversky index, overlap / (overlap + alpha false positives + beta false negatives), smoothed.

    0.5 and 0.5 make it Dice (with twice the ``smooth``), 1 and 1 make it IoU. Salehi et al. 2017,
    https://arxiv.org/abs/1706.05721

    Args:
        logits: Before any sigmoid or softmax.
        target: Binary, multi-label or a class map.
        alpha: Weight of false positives.
        beta: Weight of false negatives; above ``alpha`` it finds more.
        smooth: In pixels, above and below.
        per_image: False sums over the batch first.
        skip_empty: Whether planes on which nothing is true are left out.
    """
    areas = _areas(logits, target, per_image=per_image, skip_empty=skip_empty)
    score = _tversky_score(areas, alpha=alpha, beta=beta, smooth=smooth)
    return mean_of_planes(1 - score, areas.counted)


def focal_tversky(
    logits: Logits,
    target: Target,
    *,
    alpha: NonNegative = 0.3,
    beta: NonNegative = 0.7,
    gamma: Positive = 4 / 3,
    smooth: Positive = 1.0,
    per_image: bool = True,
    skip_empty: bool = False,
) -> Scalar:
    """(1 - Tversky index)^(1/gamma) of each plane; above 1, ``gamma`` makes it steeper where a plane is nearly right.

    Abraham & Khan 2018, https://arxiv.org/abs/1810.07842. The other parameters are those of ``tversky``. Below a loss
    of 1e-6 it is constant, because the gradient of the root is unbounded at 0.
    """
    areas = _areas(logits, target, per_image=per_image, skip_empty=skip_empty)
    score = _tversky_score(areas, alpha=alpha, beta=beta, smooth=smooth)
    return mean_of_planes((1 - score).clamp(min=1e-6) ** (1 / gamma), areas.counted)
