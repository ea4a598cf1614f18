"""Metrics of several classes: mean IoU and Dice, frequency-weighted IoU, accuracy; and the confusion matrix.

A row holds, of each class, the pixels that are right, predicted and true, so that one set of rows gives every metric
here and the score of each class (``Metric.class_scores``). It is made of one of three forms:

``counts``   Binary masks, as a metric of counts sees them: class 0 is the background, class 1 the foreground.
``classes``  Class maps of 0, 1, 2 …; a pixel has one class. 255 (in 16 bits: 65535) in the target is not judged.
``planes``   Masks that may overlap, (h, w, k), a plane a class, none of them a background. 255 in a plane of the target
             is not judged in that plane.

``background=0`` leaves class 0 out of the average. Its pixels stay judged: where the prediction calls them something
else, that class pays for it.

Sources: mean and frequency-weighted IoU and accuracy as in Long, Shelhamer, Darrell, Fully Convolutional Networks for
Semantic Segmentation, CVPR 2015, section 5 (ours leaves out a class that is in no target and no prediction).
"""

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16

from masksmith.core.arrays import IGNORE, Rows
from masksmith.core.errors import InputError
from masksmith.metrics.counts import count_stats
from masksmith.metrics.protocol import Average, Metric, Row, Value, Values, per_image, pooled, ratio

IGNORE_CLASS = 65535
"""Pixels of a class map of 16 bits that are not judged."""

ClassMap = UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"]
Planes = UInt8[np.ndarray, "h w planes"]
ClassValues = Float[np.ndarray, "*lead n classes"]
Confusion = Int[np.ndarray, "k k"]
Form = Literal["counts", "classes", "planes"]
_LARGE_TABLE = (
    2**22
)  # pairs of classes from which a table of all is larger than sorting the pixels of an image


# --- rows ---


def class_stats(pred: ClassMap, target: ClassMap, *, num_classes: int) -> Row:
    """Return the right, the predicted and the true pixels of each class, 3 * num_classes counts.

    Args:
        pred: (h, w) of 0 to num_classes - 1 where the target is judged.
        target: (h, w) of 0 to num_classes - 1, and IGNORE (16 bits: IGNORE_CLASS).
        num_classes: Classes with the background.

    Raises:
        InputError: A judged pixel is of no class.
    """
    found, truth = _judged(pred, target, num_classes)
    parts = [np.bincount(classes, minlength=num_classes) for classes in (found[found == truth], found, truth)]
    return np.concatenate(parts).astype(np.float64)


def _judged(
    pred: ClassMap, target: ClassMap, num_classes: int
) -> tuple[Int[np.ndarray, " pixels"], Int[np.ndarray, " pixels"]]:
    """Return the classes of the judged pixels."""
    ignored = IGNORE if target.dtype == np.uint8 else IGNORE_CLASS
    judged = target != ignored
    found, truth = pred[judged], target[judged]
    for where, classes in (("pred", found), ("target", truth)):
        if classes.size and classes.max() >= num_classes:
            raise InputError(
                f"class map: {where} holds class {classes.max()}, expected 0 to {num_classes - 1}, or {ignored} in the "
                "target; set num_classes"
            )
    return found.astype(np.int64), truth.astype(np.int64)


def plane_stats(pred: Planes, target: Planes) -> Row:
    """Return the right, the predicted and the true pixels of each plane, 3 * k counts.

    Args:
        pred: (h, w, k), foreground where it is not 0.
        target: (h, w, k) of 0, 1 and IGNORE.
    """
    judged = target != IGNORE
    found, truth = (pred != 0) & judged, target == 1
    parts = [np.count_nonzero(plane, axis=(0, 1)) for plane in (found & truth, found, truth)]
    return np.concatenate(parts).astype(np.float64)


def _of_counts(rows: Rows) -> Float[np.ndarray, "*lead n 6"]:
    """Make rows of two classes of rows (true positive, false positive, false negative, true negative)."""
    hit, false, missed, right = (rows[..., at] for at in range(4))
    return np.stack([right, hit, right + missed, hit + false, right + false, hit + missed], axis=-1)


# --- the value of each class ---


def class_iou(rows: Rows) -> ClassValues:
    """Return intersection over union of each class; NaN where it is neither there nor predicted."""
    hits, found, truth = np.split(rows, 3, axis=-1)
    return ratio(hits, found + truth - hits, np.nan)


def class_dice(rows: Rows) -> ClassValues:
    """Return the Dice of each class; NaN where it is neither there nor predicted."""
    hits, found, truth = np.split(rows, 3, axis=-1)
    return ratio(2 * hits, found + truth, np.nan)


def class_recall(rows: Rows) -> ClassValues:
    """Return the share of each class's pixels that are right; NaN where it is not there."""
    hits, _, truth = np.split(rows, 3, axis=-1)
    return ratio(hits, truth, np.nan)


def _mean_over_classes(values: ClassValues) -> Values:
    present = ~np.isnan(values)
    return ratio(np.where(present, values, 0.0).sum(axis=-1), present.sum(axis=-1).astype(np.float64), 1.0)


def _weighted_iou(rows: Rows, first: int) -> Values:
    _, found, truth = (part[..., first:] for part in np.split(rows, 3, axis=-1))
    values = np.nan_to_num(class_iou(rows)[..., first:])
    return _share((values * truth).sum(axis=-1), truth.sum(axis=-1), found)


def _right_share(rows: Rows, first: int) -> Values:
    hits, found, truth = (part[..., first:] for part in np.split(rows, 3, axis=-1))
    return _share(hits.sum(axis=-1), truth.sum(axis=-1), found)


def _share(part: Values, whole: Values, found: ClassValues) -> Values:
    """Return ``part / whole``; of no pixels 1 if none are predicted either, else 0."""
    return np.where(whole > 0, ratio(part, whole, 0.0), (found.sum(axis=-1) == 0).astype(np.float64))


# --- metrics ---


def class_metric(
    name: str,
    *,
    num_classes: int,
    background: int = 1,
    form: Form = "classes",
    average: Average = pooled,
) -> Metric:
    """Return a metric of classes.

    Args:
        name: A key of CLASS_VALUES.
        num_classes: Classes with the background; planes in the form "planes".
        background: 1, or 0 to leave class 0 out of the average; planes have none.
        form: What masks are, see the module.
        average: pooled, or per_image: the mean over images of each image's value.

    Raises:
        InputError: A number of classes, or a ``background``, that cannot be.
    """
    if not 2 <= num_classes <= IGNORE_CLASS and form != "planes":
        raise InputError(f"num_classes: {num_classes}; expected 2 to {IGNORE_CLASS}, the background counted")
    if background not in (0, 1):
        raise InputError(f"background: {background}; expected 1, or 0 to leave class 0 out of the average")
    first = 1 - background if form != "planes" else 0
    each, whole, text = CLASS_VALUES[name]
    rows_of: Callable[[Rows], Rows] = _of_counts if form == "counts" else np.asarray
    over = "the background and the foreground" if form == "counts" else f"{num_classes} classes"
    return Metric(
        name,
        text.format(over=over if not first else f"{over} without the background")
        + ("" if average is pooled else "; mean over images"),
        lambda rows: whole(rows_of(rows), first),
        average,
        _stats_of(form, num_classes),
        form,
        class_value=lambda rows: each(rows_of(rows)),
    )


def _stats_of(form: Form, num_classes: int) -> Callable[..., Row]:
    if form == "classes":
        return lambda pred, target: class_stats(pred, target, num_classes=num_classes)
    return count_stats if form == "counts" else plane_stats


CLASS_VALUES: dict[str, tuple[Value, Callable[[Rows, int], Values], str]] = {
    "miou": (
        class_iou,
        lambda rows, first: _mean_over_classes(class_iou(rows)[..., first:]),
        "mean over {over} of the pooled IoU; a class in no target and no prediction is left out, none at all = 1",
    ),
    "mdice": (
        class_dice,
        lambda rows, first: _mean_over_classes(class_dice(rows)[..., first:]),
        "mean over {over} of the pooled Dice; a class in no target and no prediction is left out, none at all = 1",
    ),
    "fw_iou": (
        class_iou,
        _weighted_iou,
        "mean over {over} of the pooled IoU, weighted by the pixels of each class; none there and none predicted = 1",
    ),
    "accuracy": (
        class_recall,
        _right_share,
        "share of the judged pixels of {over} that are right; none judged = 1",
    ),
}
"""Name -> value of each class in a row, value of a row from a first class on, and what it is."""


def of_classes(name: str, average: Average = pooled) -> Callable[..., Metric]:
    """Return a metric of classes as a function of their number; with 2 it takes binary masks and needs counts only."""

    def make(*, num_classes: int = 2, background: int = 1) -> Metric:
        form: Form = "counts" if num_classes == 2 else "classes"
        return class_metric(name, num_classes=num_classes, background=background, form=form, average=average)

    return make


CLASS_METRICS: dict[str, tuple[str, Average]] = {
    "miou": ("miou", pooled),
    "mdice": ("mdice", pooled),
    "fw_iou": ("fw_iou", pooled),
    "accuracy": ("accuracy", pooled),
    "accuracy_per_image": ("accuracy", per_image),
}
"""Name of a metric -> its key in CLASS_VALUES, and its average."""


# --- the confusion matrix ---


def class_confusion(pred: ClassMap, target: ClassMap, *, num_classes: int) -> Confusion:
    """Return how many judged pixels of each class (row) were predicted as each class (column).

    Arguments and errors are those of class_stats, whose row is the diagonal, the sums of columns and those of rows.
    """
    found, truth = _judged(pred, target, num_classes)
    pairs = truth * num_classes + found
    if num_classes**2 <= _LARGE_TABLE:
        return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    table = np.zeros(num_classes**2, np.int64)
    seen, counts = np.unique(pairs, return_counts=True)
    table[seen] = counts
    return table.reshape(num_classes, num_classes)


def confusion(pairs: Iterable[tuple[ClassMap, ClassMap]], *, num_classes: int) -> Confusion:
    """Return the confusion matrix of a set, (k, k) pixels: a row a true class, a column a predicted one.

    Args:
        pairs: Prediction and target of each image, as for class_stats; one pair is held at a time.
        num_classes: Classes with the background.
    """
    table = np.zeros((num_classes, num_classes), np.int64)
    for pred, target in pairs:
        table += class_confusion(pred, target, num_classes=num_classes)
    return table
