"""Metrics of objects: Data Science Bowl 2018, F-beta as in Airbus Ship Detection.

The objects of a binary mask (uint8) are its connected components; an instance map (uint16 or int32) names them: every
value above 0 is one. Ignored pixels are background in both masks before objects are made, so that what is predicted
there changes nothing, and an object that is entirely inside them is neither hit, missed nor false.

A prediction hits an object of the target if their IoU is above the threshold, strictly. From 0.5 on, an object can be
hit by one prediction at most, so no assignment has to be solved.

Sources: https://www.kaggle.com/c/data-science-bowl-2018/overview/evaluation,
https://www.kaggle.com/c/airbus-ship-detection/overview/evaluation.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from masksmith.core.arrays import IGNORE, UNJUDGED, Rows, dense_labels
from masksmith.core.errors import InputError
from masksmith.metrics.protocol import Metric, Row, Value, Values, per_image, ratio

IGNORE_OBJECT = 65535
"""Ignored pixels of an instance map of 16 bits: 255 would be its 255th object. In one of int32 they are UNJUDGED."""

LabelMap = Shaped[np.ndarray, "h w"]
AtThresholds = Float[np.ndarray, "*lead n 10"]
_STEPS = range(10, 20)  # IoU thresholds 0.50, 0.55 … 0.95 in twentieths
_MANY = 2**17 - 2  # pixels from which a mask might have more components than 16 bits can number


def label_components(
    mask: Bool[np.ndarray, "h w"], *, connectivity: int = 8
) -> tuple[Shaped[np.ndarray, "h w"], int]:
    """Number the connected components of a mask.

    Args:
        mask: True is foreground.
        connectivity: 4, or 8 where pixels that touch at a corner are connected.

    Returns:
        Labels (h, w), 0 for the background, and the number of components.
    """
    kind = cv2.CV_16U if mask.size < _MANY else cv2.CV_32S
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity, ltype=kind)
    return labels, count - 1


def label_objects(
    mask: LabelMap, judged: Bool[np.ndarray, "h w"], *, connectivity: int
) -> tuple[Shaped[np.ndarray, "h w"], int]:
    """Number the objects of a mask or an instance map 1, 2 … without gaps, and count them."""
    if mask.dtype == np.uint8:
        return label_components((mask != 0) & judged, connectivity=connectivity)
    return dense_labels(np.where(judged, mask, 0))


def judged_pixels(target: LabelMap) -> Bool[np.ndarray, "h w"]:
    """Return where the target is not ignored: IGNORE in a mask, IGNORE_OBJECT or UNJUDGED in an instance map."""
    ignored = {np.dtype(np.uint8): IGNORE, np.dtype(np.uint16): IGNORE_OBJECT}
    return np.asarray(target != ignored.get(target.dtype, UNJUDGED))


def object_stats(pred: LabelMap, target: LabelMap, *, connectivity: int = 8) -> Row:
    """Return (predicted objects, true objects, hits at IoU > 0.50, > 0.55 … > 0.95) of one image.

    Args:
        pred: (h, w) mask (uint8, foreground where not 0) or instance map (uint16, int32).
        target: (h, w) mask of 0, 1 and IGNORE, or instance map with IGNORE_OBJECT (int32: UNJUDGED).
        connectivity: Of the components of a mask, 4 or 8.

    Raises:
        InputError: A type that is neither a mask's nor an instance map's.
    """
    for where, labels in (("pred", pred), ("target", target)):
        if labels.dtype not in (np.uint8, np.uint16, np.int32):
            raise InputError(
                f"metric of objects: {where} holds {labels.dtype}, neither masks nor instances; expected uint8 for a "
                "mask, uint16 or int32 for instances"
            )
    judged = judged_pixels(target)
    truth = (target == 1).astype(np.uint8) if target.dtype == np.uint8 else target
    found, num_found = label_objects(pred, judged, connectivity=connectivity)
    there, num_there = label_objects(truth, judged, connectivity=connectivity)
    row = np.zeros(2 + len(_STEPS))
    row[:2] = num_found, num_there
    if num_found and num_there:
        overlap, union = _overlaps(found, there, num_found, num_there)
        row[2:] = [np.count_nonzero(20 * overlap > k * union) for k in _STEPS]
    return row


def _overlaps(
    found: Shaped[np.ndarray, "h w"], there: Shaped[np.ndarray, "h w"], num_found: int, num_there: int
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Return intersection and union, in pixels, of every predicted and true object that overlap."""
    both = (found > 0) & (there > 0)
    wide = num_there + 1
    codes = found[both].astype(np.int64) * wide + there[both]  # one number a pair
    if (num_found + 1) * wide <= found.size:  # a table of all pairs is faster than sorting, while it is small
        table = np.bincount(codes, minlength=1)
        pairs = np.flatnonzero(table)
        overlap = table[pairs]
    else:
        pairs, overlap = np.unique(codes, return_counts=True)
    areas = np.bincount(found.ravel())[pairs // wide] + np.bincount(there.ravel())[pairs % wide]
    return overlap, areas - overlap


def _counts(rows: Rows) -> tuple[Values, Values, AtThresholds]:
    return rows[..., 0], rows[..., 1], rows[..., 2:]


def dsb_precision(rows: Rows) -> Values:
    """Return TP / (TP + FP + FN), mean over the ten thresholds; no objects and none predicted: 1."""
    found, there, hits = _counts(rows)
    return ratio(hits, (found + there)[..., None] - hits, 1.0).mean(axis=-1)


def f_beta(rows: Rows, beta: float) -> AtThresholds:
    """Return F-beta at each of the ten thresholds; no objects and none predicted: 1."""
    found, there, hits = _counts(rows)
    total = np.broadcast_to((beta**2 * there + found)[..., None], hits.shape)
    return ratio((1 + beta**2) * hits, total, 1.0)


def dsb_map(*, connectivity: int = 8) -> Metric:
    """Return the metric of the Data Science Bowl 2018."""
    return _metric(
        "dsb_map",
        "mean over images of TP / (TP + FP + FN) of objects, mean over IoU > 0.50, 0.55 … 0.95; no objects and none "
        "predicted = 1",
        dsb_precision,
        connectivity,
    )


def f_beta_objects(*, beta: float = 2.0, connectivity: int = 8) -> Metric:
    """Return the metric of Airbus Ship Detection: F2 of objects, mean over the ten thresholds, mean over images."""
    _check_beta(beta)
    return _metric(
        "f_beta_objects",
        f"mean over images of F{beta:g} of objects, mean over IoU > 0.50, 0.55 … 0.95; no objects and none predicted "
        "= 1",
        lambda rows: f_beta(rows, beta).mean(axis=-1),
        connectivity,
    )


def f_beta_objects_at(*, iou: float = 0.5, beta: float = 1.0, connectivity: int = 8) -> Metric:
    """Return F-beta of objects at one IoU threshold, mean over images.

    Args:
        iou: 0.5, 0.55 … 0.95; below 0.5 one object could be hit twice.
        beta: Above 1, misses weigh more than false objects.
        connectivity: Of the components of a mask, 4 or 8.
    """
    _check_beta(beta)
    step = round(20 * iou)
    if step not in _STEPS or abs(20 * iou - step) > 1e-6:
        raise InputError(f"iou: {iou:g} is none of the thresholds; expected 0.5, 0.55 … 0.95")
    return _metric(
        "f_beta_objects_at",
        f"mean over images of F{beta:g} of objects at IoU > {iou:g}; no objects and none predicted = 1",
        lambda rows: f_beta(rows, beta)[..., step - _STEPS[0]],
        connectivity,
    )


def _check_beta(beta: float) -> None:
    if beta <= 0:
        raise InputError(f"beta: {beta:g}; expected a number above 0")


def _metric(name: str, describes: str, value: Value, connectivity: int) -> Metric:
    if connectivity not in (4, 8):
        raise InputError(f"connectivity: {connectivity}; expected 4 or 8")
    return Metric(
        name,
        describes,
        value,
        per_image,
        lambda pred, target: object_stats(pred, target, connectivity=connectivity),
        "components",
    )
