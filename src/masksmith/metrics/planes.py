"""Metrics of masks that may overlap: a metric of binary masks on each plane, mean over the planes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, UInt8

from masksmith.core.arrays import Rows
from masksmith.core.errors import InputError
from masksmith.metrics.classes import ClassValues
from masksmith.metrics.counts import iou, of_counts
from masksmith.metrics.protocol import Metric, Row, Values, pooled

AnyPlanes = UInt8[np.ndarray, "..."]


def per_class(metric: Metric, classes: int) -> Metric:
    """Return the mean over classes of a metric of binary masks, for masks (h, w, classes).

    A row is the rows of the planes one after the other. A class that is nowhere has the metric's own value for
    empty/empty; ``Metric.class_scores`` gives each class, ``Metric.each`` the metric of one plane.

    Args:
        metric: Of binary masks (uint8, the target of 0, 1 and IGNORE), with any average.
        classes: Planes, 1 or more.

    Raises:
        InputError: No class, or a metric that is itself one of classes or planes.
    """
    if classes < 1:
        raise InputError(f"metric {metric.name}: {classes} classes; expected 1 or more")
    if metric.needs in ("classes", "planes"):
        raise InputError(
            f"metric {metric.name}: it is of {'class maps' if metric.needs == 'classes' else 'planes'}; expected one "
            "of binary masks, which is then scored on each plane"
        )

    def stats(pred: AnyPlanes, target: AnyPlanes) -> Row:
        if not pred.shape == target.shape == (*target.shape[:2], classes):
            raise InputError(
                f"metric {metric.name}: masks of {pred.shape} and {target.shape}; expected both (h, w, {classes})"
            )
        planes = [[np.ascontiguousarray(mask[..., at]) for mask in (pred, target)] for at in range(classes)]
        return np.concatenate([metric.stats(*plane) for plane in planes])

    def class_value(rows: Rows) -> ClassValues:
        return metric.value(rows.reshape(*rows.shape[:-1], classes, -1))

    def value(rows: Rows) -> Values:
        return class_value(rows).mean(axis=-1)

    return replace(
        metric,
        describes=f"mean over {classes} classes that may overlap; each: {metric.describes}",
        value=value,
        stats=stats,
        needs="planes",
        class_value=class_value,
        each=metric,
    )


def metric_of_plane(metric: Metric) -> Metric:
    """Return the metric of a plane alone: what is best for each plane by it is best for all by ``metric``.

    Metrics of classes (``miou``, ``mdice``, ``fw_iou``) count the pixels of a class in all images together, and each
    rises with the pooled IoU of a class.
    """
    return of_counts(iou, pooled)() if metric.each is None else metric.each


def join_rows(metric: Metric, parts: Sequence[Float[np.ndarray, "n part"]]) -> Float[np.ndarray, "n k"]:
    """Return rows of a metric of planes from the rows that ``metric_of_plane`` has of each plane."""
    if metric.each is not None:
        return np.concatenate(parts, axis=-1)
    hits, false, missed = (np.stack([part[..., at] for part in parts], axis=-1) for at in range(3))
    return np.concatenate([hits, hits + false, hits + missed], axis=-1)
