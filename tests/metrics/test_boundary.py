"""Boundaries: by hand, against brute force on larger masks, and empties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.metrics import get_metric
from masksmith.metrics.boundary import boundary, boundary_distances

from .twins import boundary_f1, edge, gaps, hausdorff


def blob(rng, hw):
    mask = np.zeros(hw, np.uint8)
    for _ in range(rng.integers(1, 4)):
        i, j = rng.integers(0, hw[0]), rng.integers(0, hw[1])
        mask[i : i + rng.integers(1, 14), j : j + rng.integers(1, 14)] = 1
    return mask


def score(name, pred, target):
    metric = get_metric(name)
    return metric.score(metric.stats(pred, target)[None])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_larger_masks_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    pred, target = blob(rng, (25, 31)), blob(rng, (25, 31))
    target[rng.random(target.shape) < 0.05] = 255
    assert score("hausdorff_95", pred, target) == pytest.approx(hausdorff(pred, target), abs=1e-5)
    for share in (0.0, 0.0075, 0.05):
        expected = boundary_f1(share)([(pred, target)], None)
        assert score(f"boundary_f1(tolerance_frac={share})", pred, target) == pytest.approx(expected)
    there, _ = boundary_distances(pred, target)
    found = {spot for spot in np.ndindex(pred.shape) if pred[spot] and target[spot] != 255}
    truth = {spot for spot in np.ndindex(pred.shape) if target[spot] == 1}
    if found and truth:
        assert sorted(there) == pytest.approx(sorted(gaps(edge(found), edge(truth))), abs=1e-5)


def test_the_edge_of_the_image_is_a_boundary():
    full = np.ones((4, 5), np.uint8)
    assert boundary(full).sum() == 14
    assert boundary(full)[1:3, 1:4].sum() == 0
    assert score("boundary_f1", full, np.zeros_like(full)) == 0


def test_by_hand():
    """A square moved by 3 pixels: the far side is 3 away in both directions."""
    target = np.zeros((40, 40), np.uint8)
    target[10:20, 10:20] = 1
    pred = np.roll(target, 3, axis=1)
    assert score("hausdorff_95", pred, target) == pytest.approx(3.0)
    line, lower = np.zeros((9, 30), np.uint8), np.zeros((9, 30), np.uint8)
    line[2], lower[6] = 1, 1
    diagonal = math.hypot(9, 30)
    assert score(f"boundary_f1(tolerance_frac={4.0001 / diagonal})", line, lower) == 1
    assert score(f"boundary_f1(tolerance_frac={4 / diagonal})", line, lower) == 1  # as far as allowed is near
    assert score(f"boundary_f1(tolerance_frac={3.99 / diagonal})", line, lower) == 0


def test_one_far_pixel_in_twenty_is_not_the_95_percent():
    target = np.zeros((60, 60), np.uint8)
    target[5:30, 5:30] = 1  # 96 boundary pixels
    pred = target.copy()
    pred[55, 55] = 1
    assert score("hausdorff_95", pred, target) == 0.0
    pred[40:60:2, 40:60:2] = 1
    assert score("hausdorff_95", pred, target) > 20


def test_four_empty_cases():
    some, none = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    some[3:9, 3:9] = 1
    cases = [(none, none), (some, none), (none, some), (some, some)]
    assert [score("hausdorff_95", *case) for case in cases] == [0, 50, 50, 0]  # the diagonal is 50
    assert [score("boundary_f1", *case) for case in cases] == [1, 0, 0, 1]
    ignored = np.full((30, 40), 255, np.uint8)
    assert score("hausdorff_95", some, ignored) == 0
    assert score("boundary_f1", some, ignored) == 1


def test_thin_images():
    for hw in [(1, 1), (1, 7), (7, 1)]:
        mask = np.ones(hw, np.uint8)
        assert score("hausdorff_95", mask, mask) == 0
        assert score("boundary_f1", mask, mask) == 1
