"""Metrics of class maps: uint8 (h, w) of classes 0, 1, 2 …; pixels of value IGNORE in the target are not counted."""

import numpy as np

from masksmith.core.arrays import IGNORE, Mask, Rows
from masksmith.core.errors import InputError
from masksmith.metrics.counts import binary_miou
from masksmith.metrics.protocol import Metric, Row, Values, pooled, ratio


def class_stats(pred: Mask, target: Mask, *, num_classes: int) -> Row:
    """Return the right, the predicted and the true pixels of each class, 3 * num_classes counts.

    Raises:
        InputError: A judged pixel is of no class.
    """
    judged = target != IGNORE
    found, truth = pred[judged], target[judged]
    for where, classes in (("pred", found), ("target", truth)):
        if classes.size and classes.max() >= num_classes:
            raise InputError(
                f"metric miou: {where} holds class {classes.max()}, expected 0 to {num_classes - 1} or {IGNORE} in the "
                "target; set num_classes"
            )
    parts = [np.bincount(classes, minlength=num_classes) for classes in (found[found == truth], found, truth)]
    return np.concatenate(parts).astype(np.float64)


def class_miou(rows: Rows) -> Values:
    """Return the mean IoU of the classes that a row has in prediction or target; none at all: 1."""
    hits, found, truth = np.split(rows, 3, axis=-1)  # (…, n, classes) each
    unions = found + truth - hits
    present = (unions > 0).sum(axis=-1).astype(np.float64)
    return ratio(ratio(hits, unions, 0.0).sum(axis=-1), present, 1.0)


def miou(*, num_classes: int = 2) -> Metric:
    """Return mIoU: IoU of each class over the pixels of all images, mean over the classes that are anywhere.

    Args:
        num_classes: Classes with the background, 2 to 255. With 2 it needs counts only.
    """
    if not 2 <= num_classes <= IGNORE:
        raise InputError(f"num_classes: {num_classes}; expected 2 to {IGNORE}, the background counted")
    if num_classes == 2:
        return binary_miou()
    return Metric(
        "miou",
        f"mean over {num_classes} classes of the pooled IoU; a class in no target and no prediction is left out",
        class_miou,
        pooled,
        lambda pred, target: class_stats(pred, target, num_classes=num_classes),
        "classes",
    )
