import numpy as np
import pytest

from masksmith.folds.table import FoldRow, coverage_class
from masksmith.metrics import get_metric
from masksmith.project.runs import environment
from masksmith.reporting.tables import (
    ScoredImage,
    class_lines,
    fold_lines,
    group_lines,
    machine_of,
    metrics_beside,
    training_lines,
)

FULL, EMPTY = np.ones((2, 2), np.uint8), np.zeros((2, 2), np.uint8)


def row(name, *, fold, target, group="g"):
    return FoldRow(name, group, float(target.mean()), coverage_class(int(target.sum()), 4), fold)


def judged(metric, pred, target, group):
    return ScoredImage(metric.stats(pred, target), group)


def test_folds_with_and_without_a_score():
    for name in ("iou_per_image", "iou_by_group"):
        metric = get_metric(name)
        rows = [
            row("a", fold=0, target=FULL),
            row("b", fold=0, target=EMPTY),
            row("c", fold=1, target=FULL),
            row("blank", fold=0, target=EMPTY),
        ]
        known = {"a": judged(metric, FULL, FULL, "x"), "b": judged(metric, FULL, EMPTY, "y")}
        first, second = fold_lines(rows, known, metric)
        assert (first.images, first.coverage, first.score) == (3, pytest.approx(1 / 3), 0.5)
        assert first.classes == [2, *[0] * 9, 1]
        assert (second.images, second.score) == (1, None)


def test_groups_are_sorted_from_the_worst():
    for name in ("iou_pooled", "hausdorff_95"):
        metric = get_metric(name)
        rows = [row(one, fold=0, target=FULL) for one in "abc"]
        known = {"a": judged(metric, FULL, FULL, "high"), "b": judged(metric, EMPTY, FULL, "low")}
        found = [(line.group, line.images) for line in group_lines(rows, known, metric)]
        assert found == [("low", 1), ("high", 1)]


def test_a_line_for_each_class():
    table = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]])
    colours = np.array([[0, 0, 0], [255, 0, 16], [1, 2, 3], [9, 9, 9]], np.uint8)
    ground, tree, never, missed = class_lines(table, ["ground", "tree", "never", "missed"], colours)
    assert (ground.iou, ground.dice) == (pytest.approx(6 / 11), pytest.approx(12 / 17))
    assert (tree.share, tree.iou, tree.precision, tree.recall) == (4 / 14, 3 / 6, 3 / 5, 3 / 4)
    assert (tree.colour, tree.taken_for) == ("#ff0010", "ground (25.0%)")
    assert (never.iou, never.dice, never.precision, never.recall, never.taken_for) == (*[None] * 4, "")
    assert (missed.iou, missed.precision, missed.recall, missed.taken_for) == (0, None, 0, "ground (100.0%)")


def test_each_training_has_its_times_and_its_best_epochs():
    def event(epoch, split, name, value, curve="fold 0"):
        return {"curve": curve, "split": split, "name": name, "epoch": epoch, "value": value}

    events = [event(epoch, "train", "loss", 1 / epoch) for epoch in (1, 2, 3)]
    events += [event(epoch, "timing", "seconds", 60.0) for epoch in (1, 2, 3)]
    events += [event(epoch, "timing", "images_per_s", 10.0 * epoch) for epoch in (1, 2, 3)]
    for name, values in {
        "score": (0.1, 0.3, 0.3),
        "val_loss": (0.5, 0.4, 0.6),
        "hausdorff_95": (9.0, 7.0, 8.0),
    }.items():
        events += [event(epoch, "fold", name, value) for epoch, value in enumerate(values, start=1)]
    events += [event(1, "train", "loss", 1.0, "fold 1")]
    first, second = training_lines(events, predicted={"fold 0": {"test": 90.0}}, lower={"hausdorff_95"})
    assert (first.epochs, first.minutes, first.images_per_s, first.predicted) == (3, 3.0, 20.0, "test 1.5")
    assert first.best == [
        ("score", 0.3, 2, 0.3),
        ("val_loss", 0.4, 2, 0.6),
        ("hausdorff_95", 7.0, 2, 8.0),
    ]
    assert (second.epochs, second.minutes, second.predicted, second.best) == (1, 0.0, "", [])
    assert metrics_beside(events) == ["hausdorff_95"]


def test_the_machine_is_read_from_the_environment():
    assert machine_of("python 3\nmachine A, 2 cores\ntorch 2\n") == "A, 2 cores"
    assert machine_of("python 3\n") == ""
    made = machine_of(environment())
    assert "cores" in made
    assert "GiB" in made
