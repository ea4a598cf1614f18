"""Which metric drives which task, and how: on masks, class maps, planes or objects."""

from collections.abc import Callable, Mapping

from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.metrics.classes import CLASS_METRICS, class_metric
from masksmith.metrics.planes import per_class
from masksmith.metrics.protocol import Metric

Makers = Mapping[str, Callable[..., Metric]]

OBJECT_METRICS = ("dsb_map", "f_beta_objects", "f_beta_objects_at")
_LEFT_OUT = ("miou", "mdice", "fw_iou")
"""Metrics of classes that score planes too: a plane is a class."""
_MASKS: dict[str, str] = {
    "binary": "binary masks",
    "multiclass": "class maps",
    "multilabel": "labels that may overlap",
    "instances": "objects",
}


def able(makers: Makers, task: str) -> list[str]:
    """Return the names of the metrics that can drive a task."""
    look_up(_MASKS, task, where="task")
    if task == "multiclass":
        return [name for name in makers if name in CLASS_METRICS]
    return [name for name in makers if task != "instances" or name in OBJECT_METRICS]


def for_task(
    makers: Makers, name: str, values: Mapping[str, float], *, task: str, classes: int, where: str
) -> Callable[..., Metric]:
    """Return what makes a metric for a task, as a function of the metric's own parameters (see metrics.metric_for)."""
    asked = values.get("num_classes")
    needed = classes if task == "multiclass" else 2
    if name not in able(makers, task):
        raise InputError(
            f"{where}: {name!r} cannot score {_MASKS[task]} (task {task}); expected one of "
            f"{', '.join(able(makers, task))}"
        )
    if asked is not None and (asked != needed or task == "multilabel"):
        has = (
            f"{classes} classes" if task in ("multiclass", "multilabel") else "a background and a foreground"
        )
        raise InputError(f"{where}: {name}: num_classes={asked:g}, but the masks are of {has}; leave it out")
    if task == "multiclass":
        return _of_class_maps(name, classes)
    if task == "multilabel":
        return _of_planes(makers[name], name, classes)
    return makers[name]


def _of_class_maps(name: str, classes: int) -> Callable[..., Metric]:
    value, average = CLASS_METRICS[name]

    def make(*, num_classes: int = classes, background: int = 1) -> Metric:
        return class_metric(value, num_classes=num_classes, background=background, average=average)

    return make


def _of_planes(make: Callable[..., Metric], name: str, classes: int) -> Callable[..., Metric]:
    def made(**values: float) -> Metric:
        if name not in _LEFT_OUT:
            return per_class(make(**values), classes)
        if "background" in values:
            raise InputError("background: labels that may overlap have none; leave it out")
        return class_metric(name, num_classes=classes, form="planes")

    return made
