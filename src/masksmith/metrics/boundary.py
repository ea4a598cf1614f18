"""Metrics of boundaries: boundary F1 and the 95% Hausdorff distance.

A boundary pixel is a foreground pixel with a background pixel above, below, left or right of it; outside the image
all is background, so every mask that is not empty has a boundary. Ignored pixels are background in both masks, so
that what is predicted there changes nothing. Distances are Euclidean, in pixels between centres.

Sources: Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013 (boundary F1; ours takes
a distance equal to the tolerance as near); the Hausdorff distance is defined as MONAI's (the greater of the two
directed percentiles, linear between ranks).
"""

import math

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from masksmith.core.arrays import IGNORE, Mask, Rows
from masksmith.core.errors import InputError
from masksmith.metrics.protocol import Metric, Row, Values, per_image, ratio

Plane = UInt8[np.ndarray, "h w"]
Distances = Float[np.ndarray, " _"]
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def boundary(mask: Plane) -> Plane:
    """Return 1 where a mask of 0 and 1 has a boundary pixel."""
    inner = cv2.erode(mask, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.where(inner == 0, mask, 0).astype(np.uint8)


def boundary_distances(pred: Mask, target: Mask) -> tuple[Distances, Distances]:
    """Return how far each boundary pixel of one mask is from the nearest of the other, in pixels.

    Args:
        pred: (h, w), foreground where it is not 0.
        target: (h, w) of 0, 1 and IGNORE.

    Returns:
        Of the prediction's boundary pixels to the target's, and the reverse; infinite where the other has none.
    """
    found = ((pred != 0) & (target != IGNORE)).astype(np.uint8)
    truth = (target == 1).astype(np.uint8)
    left, top, width, height = cv2.boundingRect(found | truth)  # all boundaries lie inside
    if not width:
        return np.zeros(0), np.zeros(0)
    box = np.s_[top : top + height, left : left + width]
    edges = [boundary(np.ascontiguousarray(mask[box])) for mask in (found, truth)]
    return _directed(edges[0], edges[1]), _directed(edges[1], edges[0])


def _directed(edge: Plane, other: Plane) -> Distances:
    if not other.any():
        return np.full(np.count_nonzero(edge), np.inf)
    if not edge.any():
        return np.zeros(0)
    distance = cv2.distanceTransform(1 - other, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance[edge != 0], np.float64)


def boundary_stats(pred: Mask, target: Mask, *, tolerance_frac: float) -> Row:
    """Return (near, all) boundary pixels of the prediction and (near, all) of the target."""
    tolerance = tolerance_frac * math.hypot(*target.shape) * (1 + 1e-6)  # distances are 32-bit roots
    row: list[int] = []
    for distances in boundary_distances(pred, target):
        row += [int(np.count_nonzero(distances <= tolerance)), distances.size]
    return np.array(row, np.float64)


def boundary_f(rows: Rows) -> Values:
    """Return the F1 of near boundary pixels; both without boundary: 1, one of them: 0."""
    precise, complete = ratio(rows[..., 0], rows[..., 1], 0.0), ratio(rows[..., 2], rows[..., 3], 0.0)
    both = ratio(2 * precise * complete, precise + complete, 0.0)
    return np.where(rows[..., 1] + rows[..., 3] == 0, 1.0, both)


def hausdorff_stats(pred: Mask, target: Mask) -> Row:
    """Return (distance,): the 95% Hausdorff distance of one image; both empty: 0, one: the image's diagonal."""
    there, back = boundary_distances(pred, target)
    if not there.size and not back.size:
        return np.zeros(1)
    if not there.size or not back.size:
        return np.array([math.hypot(*target.shape)])
    return np.array([max(np.percentile(there, 95), np.percentile(back, 95))], np.float64)


def boundary_f1(*, tolerance_frac: float = 0.0075) -> Metric:
    """Return boundary F1, mean over images.

    Args:
        tolerance_frac: Distance up to which a boundary pixel is near, as a share of the image's diagonal, 0 to 1.
            0.0075 is the paper's: 1.07 pixels at 101x101, 10.9 at 1024x1024.
    """
    if not 0 <= tolerance_frac <= 1:
        raise InputError(
            f"tolerance_frac: {tolerance_frac:g}; expected 0 to 1, a share of the image's diagonal"
        )
    return Metric(
        "boundary_f1",
        f"mean over images of the F1 of boundary pixels within {tolerance_frac:g} of the diagonal; both empty = 1, one "
        "= 0",
        boundary_f,
        per_image,
        lambda pred, target: boundary_stats(pred, target, tolerance_frac=tolerance_frac),
        "boundary",
    )


def hausdorff_95() -> Metric:
    """Return the 95% Hausdorff distance in pixels, mean over images; lower is better."""
    return Metric(
        "hausdorff_95",
        "mean over images of the 95% Hausdorff distance in pixels, lower is better; both empty = 0, one = the diagonal",
        lambda rows: rows[..., 0],
        per_image,
        hausdorff_stats,
        "boundary",
        higher_is_better=False,
    )
