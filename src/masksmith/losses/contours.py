"""Losses that look at the boundary.

Distances are Euclidean, in pixels, from a pixel's centre to that of the nearest judged pixel of the other label: 1
beside the boundary. They are computed on the CPU with OpenCV and carry no gradient. A plane that is all foreground or
all background has no boundary; its distances are 0. Ignored pixels are of neither label.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from masksmith.core.arrays import IGNORE
from masksmith.losses.options import NonNegative, Positive, Radius
from masksmith.losses.pixelwise import bce_of_each
from masksmith.losses.planes import (
    Logits,
    Scalar,
    Target,
    mean_of_pixels,
    probability_planes,
    separate_planes,
)


def _signed_distance(labels: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Return the distance to the other label, negative on the foreground, 0 where there is no boundary."""
    fore, back = labels == 1, labels == 0
    if not (fore.any() and back.any()):
        return np.zeros(labels.shape, np.float32)
    to_fore, to_back = (
        cv2.distanceTransform((~kind).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for kind in (fore, back)
    )
    return back * to_fore - fore * to_back


def signed_distances(
    truth: Bool[Tensor, "b k h w"], judged: Bool[Tensor, "b k h w"]
) -> Float[Tensor, "b k h w"]:
    """Return the signed distance map of each plane: negative on the foreground, 0 on ignored pixels.

    On another device than the CPU this waits for the device.
    """
    labels = torch.where(judged, truth.to(torch.uint8), IGNORE).flatten(0, 1).cpu().numpy()
    maps = np.stack([_signed_distance(plane) for plane in labels])
    return torch.from_numpy(maps).to(truth.device).reshape(truth.shape)  # (b*k, h, w) -> (b, k, h, w)


def boundary_bce(logits: Logits, target: Target, *, w0: NonNegative = 10.0, sigma: Positive = 5.0) -> Scalar:
    """Binary cross-entropy with weights that grow towards the boundary; binary or multi-label.

    The weight of a pixel at distance d is ``1 + w0 exp(-d² / (2 sigma²))``. In U-Net (Ronneberger et al. 2015,
    https://arxiv.org/abs/1505.04597), d is the sum of the distances to the two nearest cells; a mask does not tell
    cells apart, so here it is the distance to its boundary. Mean over the judged pixels of the batch; without a
    boundary it is ``bce``.

    Args:
        logits: Before any sigmoid.
        target: 0, 1 and IGNORE.
        w0: Additional weight at the boundary.
        sigma: Width of the emphasised zone, in pixels.

    Raises:
        ValueError: The target is a class map.
    """
    planes = separate_planes(logits, target, loss="boundary_bce", instead="cross_entropy and boundary")
    distances = signed_distances(planes.truth, planes.judged)
    near = torch.exp(-(distances**2) / (2 * sigma**2)) * (distances != 0)
    return mean_of_pixels(bce_of_each(planes) * (1 + w0 * near), planes.judged)


def band_bce(
    logits: Logits,
    target: Target,
    *,
    radius: Radius = 10,
    extra: NonNegative = 2.0,
) -> Scalar:
    """Binary cross-entropy with a larger weight in a band around the boundary; binary or multi-label.

    A pixel is in the band where the share of foreground in the window around it, 2 radius + 1 wide, lies strictly
    between 0.005 and 0.995; its weight is ``1 + extra``. The mean over the judged pixels of the batch is weighted, so
    that the weights do not change the size of the loss. From public kernels for Kaggle's Carvana contest, which pool
    the mask like this, with a radius of 5 for images 128 wide, 10 for 256 and 512, and 20 for 1024. Unlike
    ``boundary_bce`` it is fast on any device, and its weights jump at the edge of the band.

    Args:
        logits: Before any sigmoid.
        target: 0, 1 and IGNORE.
        radius: In pixels; ignored pixels and those outside of the image are left out of the share.
        extra: Additional weight in the band.

    Raises:
        ValueError: The target is a class map.
    """
    planes = separate_planes(logits, target, loss="band_bce", instead="cross_entropy and boundary")
    share = _sum_around(planes.truth, radius) / _sum_around(planes.judged, radius).clamp(min=1)
    weights = (1 + extra * ((share > 0.005) & (share < 0.995))) * planes.judged
    return (bce_of_each(planes) * weights).sum() / weights.sum().clamp(min=1)


def _sum_around(plane: Bool[Tensor, "b k h w"], radius: int) -> Int[Tensor, "b k h w"]:
    """Return how many pixels are set in the window around each; differences of running sums, whatever the radius."""
    counts = plane.int()
    for dim in (2, 3):
        sides = (radius + 1, radius)
        padded = F.pad(counts, (*sides, 0, 0) if dim == 3 else (0, 0, *sides))
        running = padded.cumsum(dim, dtype=torch.int32)
        length = counts.shape[dim]
        counts = running.narrow(dim, 2 * radius + 1, length) - running.narrow(dim, 0, length)
    return counts


def boundary(logits: Logits, target: Target) -> Scalar:
    """Distance-map boundary loss: mean of probability times signed distance to the boundary.

    Kervadec et al. 2019, https://arxiv.org/abs/1812.07032. As in the authors' code, background has its distance d > 0,
    foreground 1 - d <= 0. Mean over the judged pixels and classes of the batch, in pixels. It falls below 0 (a right
    prediction has the least value, not 0) and is 0 on planes without a boundary: add it with a small
    weight, such as 0.01, to a region loss.
    """
    planes = probability_planes(logits, target)
    distances = signed_distances(planes.truth, planes.judged)
    distances = torch.where(distances < 0, distances + 1, distances)
    return mean_of_pixels(planes.scores * distances, planes.judged)


def hausdorff(logits: Logits, target: Target, *, alpha: Positive = 2.0) -> Scalar:
    """Hausdorff loss by distance transforms: mean of (p - g)² (d_p^alpha + d_g^alpha).

    d_g is the distance to the boundary of the target and d_p that to the boundary of the prediction (p > 0.5), 0 where
    there is no such boundary. Mean over the judged pixels and classes of the batch. Karimi & Salcudean 2019,
    https://arxiv.org/abs/1904.10030. Where neither has a boundary (an empty mask, predicted empty or full)
    it is 0 and has no gradient: add it to a region loss.

    Args:
        logits: Before any sigmoid or softmax.
        target: Binary, multi-label or a class map.
        alpha: Power of the distances: how much the farthest errors are emphasised.
    """
    planes = probability_planes(logits, target)
    found = planes.scores.detach() > 0.5
    far = sum(signed_distances(mask, planes.judged).abs() ** alpha for mask in (found, planes.truth))
    return mean_of_pixels((planes.scores - planes.truth.float()) ** 2 * far, planes.judged)


def active_contour(logits: Logits, target: Target, *, region_weight: NonNegative = 1.0) -> Scalar:
    """Active contour loss: length of the predicted contour + ``region_weight`` times the area of errors.

    The length is the mean over pixels of the norm of the probabilities' forward differences, the area the mean of
    p (1 - g)² + (1 - p) g² over the judged pixels and classes of the batch. Chen et al. 2019, "Learning Active Contour
    Models for Medical Image Segmentation" (CVPR), with means instead of sums. A right prediction
    still costs its contour's length; differences to an ignored pixel do not count. Because the differences look
    forward, flipping image and target changes the length a little where the contour is slanted.

    Args:
        logits: Before any sigmoid or softmax.
        target: Binary, multi-label or a class map.
        region_weight: The paper's lambda.
    """
    planes = probability_planes(logits, target)
    probs, truth, judged = planes.scores, planes.truth.float(), planes.judged
    steps = []
    for dim in (2, 3):
        both = judged.narrow(dim, 1, judged.shape[dim] - 1) & judged.narrow(dim, 0, judged.shape[dim] - 1)
        step = torch.where(both, probs.diff(dim=dim), 0.0) ** 2
        steps.append(F.pad(step, (0, int(dim == 3), 0, int(dim == 2))))  # none beyond the last pixel
    length = torch.sqrt(steps[0] + steps[1] + 1e-8)  # 1e-8: the authors'; a root has no slope at 0
    wrong = probs * (1 - truth) + (1 - probs) * truth  # truth is 0 or 1, so its square is itself
    return mean_of_pixels(length + region_weight * wrong, judged)
