"""Losses that are a mean over pixels.

All of them average over the judged pixels of the whole batch (and over its classes), so an image with many ignored
pixels counts less.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from masksmith.core.arrays import IGNORE
from masksmith.losses.options import ClassWeights, NonNegative, Positive, Share, Smoothing
from masksmith.losses.planes import (
    Each,
    Logits,
    Planes,
    Scalar,
    Target,
    is_class_map,
    logit_planes,
    mean_of_pixels,
    probability_planes,
    separate_planes,
)


def bce_of_each(planes: Planes, *, pos_weight: float = 1.0, label_smoothing: float = 0.0) -> Each:
    """Return the binary cross-entropy of each pixel of planes with logits."""
    truth = planes.truth.float() * (1 - label_smoothing) + label_smoothing / 2
    weight = None if pos_weight == 1.0 else planes.scores.new_tensor(pos_weight)
    return F.binary_cross_entropy_with_logits(planes.scores, truth, reduction="none", pos_weight=weight)


def bce(
    logits: Logits, target: Target, *, pos_weight: Positive = 1.0, label_smoothing: Smoothing = 0.0
) -> Scalar:
    """Binary cross-entropy, mean over the judged pixels of the batch; binary or multi-label.

    Args:
        logits: Before any sigmoid.
        target: 0, 1 and IGNORE.
        pos_weight: Factor of the foreground part; above 1 favours recall, below 1 precision.
        label_smoothing: The targets become ``s/2`` and ``1 - s/2``; confident predictions cost, too. Szegedy et al.
            2016, https://arxiv.org/abs/1512.00567

    Raises:
        ValueError: The target is a class map.
    """
    planes = separate_planes(logits, target, loss="bce", instead="cross_entropy")
    each = bce_of_each(planes, pos_weight=pos_weight, label_smoothing=label_smoothing)
    return mean_of_pixels(each, planes.judged)


def balanced_bce(logits: Logits, target: Target) -> Scalar:
    """Binary cross-entropy in which foreground and background weigh the same; binary or multi-label.

    The mean over the batch's judged foreground and the mean over its background are averaged, for each class; where
    there is only one of the two, it is used alone. Up to a factor this is the loss of Xie & Tu 2015,
    https://arxiv.org/abs/1504.06375, whose weights are the shares in the batch; unlike theirs, it does not vanish
    together with one of the shares.

    Raises:
        ValueError: The target is a class map.
    """
    planes = separate_planes(logits, target, loss="balanced_bce", instead="cross_entropy")
    each = bce_of_each(planes)
    kinds = (planes.truth & planes.judged, ~planes.truth & planes.judged)
    counts = torch.stack([kind.sum((0, 2, 3)) for kind in kinds])  # 2 x (k,) -> (2, k)
    means = torch.stack([(each * kind).sum((0, 2, 3)) for kind in kinds]) / counts.clamp(min=1)
    by_class = means.sum(0) / (counts > 0).sum(0).clamp(min=1)  # (2, k) -> (k,)
    judged = (counts > 0).any(0)
    return (by_class * judged).sum() / judged.sum().clamp(min=1)


def focal_of_each(
    scores: Float[Tensor, "*shape"], truth: Bool[Tensor, "*shape"], *, gamma: float, alpha: float | None
) -> Float[Tensor, "*shape"]:
    """Return the binary focal loss of each logit."""
    right = torch.where(truth, scores, -scores)  # logit of the true label
    # not 1 - p: that would lose the small ones; the floor keeps the slope of a power below 1 finite
    wrong = torch.sigmoid(-right).clamp(min=1e-12)
    each = wrong**gamma * -F.logsigmoid(right)
    return each if alpha is None else each * torch.where(truth, alpha, 1 - alpha)


def focal(logits: Logits, target: Target, *, gamma: NonNegative = 2.0, alpha: Share | None = None) -> Scalar:
    """Focal loss -(1 - p_t)^gamma log p_t, mean over the judged pixels of the batch.

    p_t is the probability of the true label (by the softmax on a class map), so pixels that are already right get
    less weight. Lin et al. 2017, https://arxiv.org/abs/1708.02002

    Args:
        logits: Before any sigmoid or softmax.
        target: Binary, multi-label or a class map.
        gamma: 0 is cross-entropy.
        alpha: Weight of foreground, with 1 - alpha for background; None weighs both with 1. (The paper's 0.25.)

    Raises:
        ValueError: ``alpha`` is given for a class map, which has no background.
    """
    planes = logit_planes(logits, target)
    if not is_class_map(logits, target):
        return mean_of_pixels(focal_of_each(*planes[:2], gamma=gamma, alpha=alpha), planes.judged)
    if alpha is not None:
        raise ValueError(
            f"focal: alpha = {alpha} for a class map of {logits.shape[1]} classes; expected None: it weighs "
            "foreground against background"
        )
    log_probs = planes.scores.log_softmax(1)
    log_true = torch.where(planes.truth, log_probs, 0.0).sum(1, keepdim=True)  # (b, k, h, w) -> (b, 1, h, w)
    wrong = (-torch.expm1(log_true)).clamp(min=1e-12)
    return mean_of_pixels(wrong**gamma * -log_true, planes.judged[:, :1])


@lru_cache(maxsize=16)  # asked for at every step
def weights_of_classes(pixels: tuple[int, ...], how: ClassWeights) -> tuple[float, ...]:
    """Return a weight for each class from its number of pixels in the training masks; those that occur average 1.

    Args:
        pixels: Judged pixels of each class. A class without any weighs 1.
        how: "none": 1. "inverse_frequency": in proportion to 1 / n. "effective_number": in proportion to
            (1 - b) / (1 - b^n), Cui et al. 2019, https://arxiv.org/abs/1901.05555, with b = 1 - 1 / (mean of n over the
            classes): rare classes weigh as with inverse_frequency, and common ones all about the same.
    """
    counts = np.array(pixels, np.float64)
    there = counts > 0
    if how == "none" or not there.any():
        return (1.0,) * len(pixels)
    scale = counts[there].mean()
    numbers = (
        counts if how == "inverse_frequency" else -np.expm1(-counts / scale)
    )  # (1 - 1/s)^n -> exp(-n / s)
    weights = np.where(there, 1 / np.where(there, numbers, 1), 0)
    weights /= weights[there].mean()
    return tuple(float(weight) for weight in np.where(there, weights, 1.0))


def cross_entropy(
    logits: Logits,
    target: Target,
    pixels: tuple[int, ...] = (),
    *,
    class_weights: ClassWeights = "none",
    label_smoothing: Smoothing = 0.0,
) -> Scalar:
    """Softmax cross-entropy of a class map, (weighted) mean over the judged pixels of the batch.

    Args:
        logits: k >= 2 channels, before any softmax.
        target: A class map (b, h, w).
        pixels: Judged pixels of each class in the training masks, for class_weights; without them all weigh 1.
        class_weights: How a pixel weighs by its true class, see weights_of_classes.
        label_smoothing: This share of the target is spread evenly over all classes; confident predictions cost, too.

    Raises:
        ValueError: The target is no class map.
    """
    if not is_class_map(logits, target):
        raise ValueError(
            f"cross_entropy: target of shape {tuple(target.shape)} for {logits.shape[1]} channels of logits; "
            "expected (b, h, w) for 2 channels or more; for classes that are judged alone use bce"
        )
    planes = logit_planes(logits, target)
    truth, weights = target.long(), None
    total = planes.judged[:, 0].sum().clamp(min=1)
    if class_weights != "none" and pixels:
        weights = planes.scores.new_tensor(weights_of_classes(pixels, class_weights))
        total = (weights[truth * planes.judged[:, 0]] * planes.judged[:, 0]).sum().clamp(min=1e-6)
    summed = F.cross_entropy(
        planes.scores,
        truth,
        weight=weights,
        ignore_index=IGNORE,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return summed / total


def mse(logits: Logits, target: Target) -> Scalar:
    """Squared error of the probabilities (Brier score), mean over judged pixels and classes of the batch."""
    planes = probability_planes(logits, target)
    return mean_of_pixels((planes.scores - planes.truth.float()) ** 2, planes.judged)


def smooth_l1(logits: Logits, target: Target, *, beta: Positive = 1.0) -> Scalar:
    """Smooth L1 of the probabilities: squared error / (2 beta) below ``beta``, absolute error - beta/2 above.

    Mean over judged pixels and classes of the batch. Girshick 2015, https://arxiv.org/abs/1504.08083. An error of a
    probability is at most 1, so with the paper's ``beta`` of 1 it is half of ``mse``.
    """
    planes = probability_planes(logits, target)
    each = F.smooth_l1_loss(planes.scores, planes.truth.float(), beta=beta, reduction="none")
    return mean_of_pixels(each, planes.judged)
