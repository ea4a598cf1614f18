"""Metrics by one protocol: ``stats(pred, target) -> row`` of an image, ``reduce(rows) -> score``.

A row holds all that a metric needs of an image, so the same definition serves validation, the threshold sweep
(thousands of rows at once), the bootstrap and ensembles. To add a metric, write a function that returns a Metric, and
a line in METRICS; its keyword arguments are what a recipe may set, ``metric: f_beta_objects(beta=1)``.

No metric is called just "iou": the name says how images are averaged. Pixels of value IGNORE in the target are not
judged; each module describes how.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace

from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.metrics.boundary import boundary_f1, hausdorff_95
from masksmith.metrics.classes import CLASS_METRICS, confusion, of_classes
from masksmith.metrics.counts import COUNTS, count_stats, dice, iou, of_counts, precision, recall, tgs_map
from masksmith.metrics.objects import IGNORE_OBJECT, dsb_map, f_beta_objects, f_beta_objects_at
from masksmith.metrics.planes import per_class
from masksmith.metrics.protocol import Metric, per_image, per_image_by_group, pooled, pooled_by_group
from masksmith.metrics.tasks import able, for_task

METRICS: dict[str, Callable[..., Metric]] = {
    "tgs_map": tgs_map,
    "dice_per_image": of_counts(dice, per_image),
    "dice_pooled": of_counts(dice, pooled),
    "f1_per_image": of_counts(dice, per_image),  # the same number under the name that classifiers use
    "f1_pooled": of_counts(dice, pooled),
    "iou_per_image": of_counts(iou, per_image),
    "iou_pooled": of_counts(iou, pooled),
    "iou_by_group": of_counts(iou, pooled_by_group, empty=0.0),
    "iou_per_image_by_group": of_counts(iou, per_image_by_group, empty=0.0),
    "precision_per_image": of_counts(precision, per_image),
    "precision_pooled": of_counts(precision, pooled),
    "recall_per_image": of_counts(recall, per_image),
    "recall_pooled": of_counts(recall, pooled),
    **{name: of_classes(value, average) for name, (value, average) in CLASS_METRICS.items()},
    "dsb_map": dsb_map,
    "f_beta_objects": f_beta_objects,
    "f_beta_objects_at": f_beta_objects_at,
    "boundary_f1": boundary_f1,
    "hausdorff_95": hausdorff_95,
}

__all__ = [
    "COUNTS",
    "IGNORE_OBJECT",
    "METRICS",
    "Metric",
    "confusion",
    "count_stats",
    "get_metric",
    "metric_for",
    "metrics_of",
    "per_class",
]


def get_metric(text: str, *, where: str = "metric") -> Metric:
    """Return a metric by name, or by name and numbers as in ``"f_beta_objects(beta=1)"``.

    Raises:
        InputError: The name or a parameter is unknown (the message suggests the nearest), or a value is no number in
            its range.
    """
    name, values = _parse(text, where=where)
    return _make(METRICS[name], name, values, where=where)


def metric_for(text: str, *, task: str, classes: int, where: str = "metric") -> Metric:
    """Return a metric as it drives a task: on class maps of so many classes, on each plane of labels, on objects.

    Args:
        text: A name, or a name and numbers, as for get_metric.
        task: "binary" takes metrics of masks of 0 and 1. "multiclass" takes those of CLASS_METRICS, with the number of
            classes filled in. "multilabel" takes every metric of binary masks, mean over the planes; ``miou``,
            ``mdice`` and ``fw_iou`` leave out a class that is nowhere. "instances" takes those of objects.
        classes: Classes of the target: with the background (multiclass), or planes (multilabel).
        where: Of the name, for messages.

    Raises:
        InputError: As get_metric; or the metric cannot drive the task: the message names those that can.
    """
    name, values = _parse(text, where=where)
    make = for_task(METRICS, name, values, task=task, classes=classes, where=where)
    return _make(make, name, values, where=where)


def metrics_of(task: str) -> list[str]:
    """Return the names of the metrics that can drive a task, in the order of METRICS."""
    return able(METRICS, task)


def _parse(text: str, *, where: str) -> tuple[str, dict[str, float]]:
    name, bracket, rest = text.partition("(")
    name = name.strip()
    make = look_up(METRICS, name, where=where)
    return name, _parameters(make, rest.rstrip(), where=f"{where}: {name}") if bracket else {}


def _make(make: Callable[..., Metric], name: str, values: dict[str, float], *, where: str) -> Metric:
    try:
        metric = make(**values)
    except InputError as error:
        raise InputError(f"{where}: {name}: {error}") from error
    written = ", ".join(f"{key}={value:g}" for key, value in values.items())
    return replace(metric, name=f"{name}({written})" if written else name)


def _parameters(make: Callable[..., Metric], text: str, *, where: str) -> dict[str, float]:
    """Read ``beta=1, connectivity=4)``; a number is whole where its default is."""
    if not text.endswith(")"):
        raise InputError(f"{where}: the bracket of '({text}' is not closed; expected (name=number, …)")
    known = inspect.signature(make).parameters
    values: dict[str, float] = {}
    for part in filter(None, map(str.strip, text[:-1].split(","))):
        key, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(f"{where}: {part!r} is no parameter; expected name=number")
        default = look_up(known, key, where=where).default
        if key in values:
            raise InputError(f"{where}: {key!r} is given twice")
        values[key] = _number(number, type(default), where=f"{where}: {key}")
    return values


def _number(text: str, kind: type[float], *, where: str) -> float:
    expected = "a whole number" if kind is int else "a number"
    try:
        value = kind(text)
    except ValueError as error:
        raise InputError(f"{where}: {text!r}; expected {expected}") from error
    if not math.isfinite(value):
        raise InputError(f"{where}: {text!r}; expected {expected}")
    return value
