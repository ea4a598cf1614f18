import numpy as np
import pytest

from masksmith.folds.table import FoldRow, coverage_class
from masksmith.metrics import get_metric
from masksmith.reporting.tables import ScoredImage, class_lines, fold_lines, group_lines

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
