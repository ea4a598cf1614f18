"""Numbers that the sources give, and empties, for metrics of counts and of classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from masksmith.core.errors import InputError
from masksmith.metrics import count_stats, get_metric

CLASSES = arrays(np.uint8, (3, 4), elements=st.integers(0, 3))
TARGETS = arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 2, 3, 255]))


def score(name, *rows, groups=None):
    return get_metric(name).score(np.array(rows, float), groups)


def test_tgs_vectors():
    """Checklist section 1: image 2bf5343f03, and a perfect prediction."""
    assert score("tgs_map", [872, 477, 0, 0]) == pytest.approx(0.3)
    assert score("tgs_map", [872, 0, 0, 9]) == 1.0


CASES = {"both empty": [0, 0, 0, 9], "false": [0, 5, 0, 4], "missed": [0, 0, 5, 4], "exact": [5, 0, 0, 4]}


def test_four_empty_cases():
    """1 where both are empty (so SIIM-ACR); 0 in the means over groups (seed 001: 0 if the union is 0)."""
    groups = np.array(["g"])
    averages = ["iou", "dice", "precision", "recall"]
    one = ["tgs_map", *(f"{name}_{over}" for name in averages for over in ("per_image", "pooled"))]
    for names, both_empty in ((one, 1), (["iou_by_group", "iou_per_image_by_group"], 0)):
        for name in names:
            found = [score(name, row, groups=groups) for row in CASES.values()]
            assert found == [both_empty, 0, 0, 1], name


def test_no_judged_pixel():
    nothing = count_stats(np.ones((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    assert nothing.tolist() == [0, 0, 0, 0]
    assert score("accuracy", nothing) == 1
    assert score("miou", nothing) == 1


def test_tgs_is_strict_at_the_thresholds():
    for hit, union, expected in [(3, 5, 0.2), (1, 2, 0.0), (19, 20, 0.9), (951, 1000, 1.0)]:
        assert score("tgs_map", [hit, union - hit, 0, 0]) == pytest.approx(expected), (hit, union)


def test_locations_weigh_the_same_and_an_empty_one_is_0():
    """Checklist S1: sc_weighted and iou_weighted of seed 001, by hand."""
    rows = [[6, 2, 2, 0], [0, 0, 0, 10], [1, 1, 0, 8], [0, 0, 0, 10]]
    groups = np.array(["forest", "forest", "lake", "desert"])
    assert score("iou_by_group", *rows, groups=groups) == pytest.approx((6 / 10 + 1 / 2 + 0) / 3)
    by_image = ((6 / 10 + 0) / 2 + 1 / 2 + 0) / 3
    assert score("iou_per_image_by_group", *rows, groups=groups) == pytest.approx(by_image)
    assert score("iou_pooled", *rows) == pytest.approx(7 / 12)


def test_dice_and_iou_differ_in_averaging_only_as_they_must():
    """Checklist T11: for one definition IoU cannot be above Dice."""
    rows = np.random.default_rng(0).integers(0, 9, (30, 4)).astype(float)
    assert get_metric("iou_pooled").score(rows) < get_metric("dice_pooled").score(rows)
    pooled = get_metric("iou_pooled").score(rows)
    assert get_metric("dice_pooled").score(rows) == pytest.approx(2 * pooled / (1 + pooled))


def test_predicting_nothing_scores_the_share_of_empty_images():
    """Checklist T12: 9378 of 12047 empty images give 0.7785 to a prediction of nothing."""
    rows = np.repeat([[0.0, 0, 0, 9], [0, 0, 5, 4]], [9378, 12047 - 9378], axis=0)
    for name in ("tgs_map", "dice_per_image"):
        assert get_metric(name).score(rows) == pytest.approx(0.7785, abs=5e-5)


def miou_by_loops(pairs, num):
    scores = []
    for kind in range(num):
        both = either = 0
        for pred, target in pairs:
            for spot in np.ndindex(target.shape):
                if target[spot] != 255:
                    both += pred[spot] == kind and target[spot] == kind
                    either += pred[spot] == kind or target[spot] == kind
        if either:
            scores.append(both / either)
    return sum(scores) / len(scores) if scores else 1.0


@settings(deadline=None, max_examples=40)
@given(pairs=st.lists(st.tuples(CLASSES, TARGETS), min_size=1, max_size=3))
def test_miou_of_classes(pairs):
    metric = get_metric("miou(num_classes=4)")
    rows = np.stack([metric.stats(*pair) for pair in pairs])
    assert metric.needs == "classes"
    assert metric.score(rows) == pytest.approx(miou_by_loops(pairs, 4))
    weighted = metric.reduce(rows, weights=np.full(len(rows), 2.0))
    assert float(weighted) == pytest.approx(metric.score(rows))


def test_miou_leaves_out_a_class_that_is_nowhere():
    pred, target = np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8)
    metric = get_metric("miou(num_classes=3)")
    assert metric.score(metric.stats(pred, target)[None]) == pytest.approx((1 / 2 + 0) / 2)


def test_a_class_too_many():
    metric = get_metric("miou(num_classes=3)")
    for pred, target, side in [(3, 0, "pred"), (0, 7, "target")]:
        masks = np.full((2, 2), pred, np.uint8), np.full((2, 2), target, np.uint8)
        with pytest.raises(InputError, match=f"{side} holds class {pred or target}, expected 0 to 2"):
            metric.stats(*masks)
        assert not metric.stats(masks[0], np.full((2, 2), 255, np.uint8)).any()
