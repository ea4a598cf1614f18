"""Objects: by hand, as instance maps, and with what is ignored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from masksmith.core.errors import InputError
from masksmith.metrics import IGNORE_OBJECT, get_metric
from masksmith.metrics.objects import label_components, object_stats

from .twins import dsb, f_mean

INSTANCES = arrays(np.uint16, (4, 5), elements=st.sampled_from([0, 0, 3, 9, 300]))
TARGETS = arrays(np.uint16, (4, 5), elements=st.sampled_from([0, 0, 2, 255, IGNORE_OBJECT]))


def boxes(*spans, hw=(12, 40), dtype=np.uint8):
    mask = np.zeros(hw, dtype)
    for number, (first, last) in enumerate(spans, start=1):
        mask[2:10, first:last] = 1 if dtype == np.uint8 else number
    return mask


def score(name, pred, target):
    metric = get_metric(name)
    return metric.score(metric.stats(pred, target)[None])


def test_by_hand():
    """Three true objects, three predicted: one exact, one at IoU 8 / 10, one false, one missed."""
    target = boxes((0, 10), (12, 22), (24, 30))
    pred = boxes((0, 10), (14, 22), (34, 38))
    assert object_stats(pred, target).tolist() == [3, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1]  # 0.8 is not above 0.8
    expected = (6 * (2 / 4) + 4 * (1 / 5)) / 10
    assert score("dsb_map", pred, target) == pytest.approx(expected)
    assert score("f_beta_objects", pred, target) == pytest.approx((6 * (10 / 15) + 4 * (5 / 15)) / 10)
    assert score("f_beta_objects_at", pred, target) == pytest.approx(4 / 6)


def test_four_empty_cases():
    some, none = boxes((0, 10)), boxes()
    cases = [(none, none), (some, none), (none, some), (some, some)]
    for name in ("dsb_map", "f_beta_objects", "f_beta_objects_at"):
        assert [score(name, *case) for case in cases] == [1, 0, 0, 1], name


def test_touching_instances_are_apart_and_merged_ones_cost():
    target = boxes((0, 10), (10, 20), dtype=np.uint16)
    assert object_stats(target.astype(np.int32), target).tolist() == [2, 2, *[2] * 10]
    merged = boxes((0, 20))  # one component over two instances: IoU 1/2 with each, which is not above 0.5
    assert object_stats(merged, target).tolist() == [1, 2, *[0] * 10]


def test_a_type_that_says_neither_mask_nor_instances():
    mask = boxes((0, 10))
    for kind in (bool, np.int64, np.float32, np.uint32):
        stats = object_stats if kind != np.uint32 else object_stats.__wrapped__
        with pytest.raises(InputError, match=f"pred holds {np.dtype(kind)}, neither masks nor instances"):
            stats(mask.astype(kind), mask)
        with pytest.raises(InputError, match=f"target holds {np.dtype(kind)}, neither masks nor instances"):
            stats(mask, mask.astype(kind))


def test_corners_connect_by_eight_only():
    mask = np.eye(3, dtype=np.uint8)
    assert object_stats(mask, mask)[0] == 1
    assert object_stats(mask, mask, connectivity=4)[0] == 3


def objects(labels, judged):
    kinds = {int(label) for label in labels[judged].ravel()} - {0}
    return [
        {spot for spot in np.ndindex(labels.shape) if labels[spot] == kind and judged[spot]} for kind in kinds
    ]


@settings(deadline=None, max_examples=60)
@given(pred=INSTANCES, target=TARGETS)
def test_instances_equal_the_definition(pred, target):
    judged = target != IGNORE_OBJECT
    found, there = objects(pred, judged), objects(np.where(judged, target, 0), judged)
    assert score("dsb_map", pred, target) == pytest.approx(dsb(found, there))
    assert score("f_beta_objects", pred.astype(np.int32), target) == pytest.approx(f_mean(2)(found, there))


def test_objects_inside_what_is_ignored_do_not_count():
    target = boxes((0, 10))
    target[:, 20:] = 255
    assert object_stats(boxes((0, 10), (24, 30)), target).tolist() == [1, 1, *[1] * 10]
    whole = np.full((12, 40), IGNORE_OBJECT, np.uint16)
    assert score("dsb_map", boxes((0, 10)), whole) == 1


def test_many_small_objects_are_paired_by_sorting():
    """300 x 300 single pixels against themselves without one row: more pairs than a table would hold."""
    mask = np.zeros((600, 600), np.uint8)
    mask[::2, ::2] = 1
    pred = mask.copy()
    pred[0] = 0
    assert object_stats(pred, mask).tolist() == [90_000 - 300, 90_000, *[90_000 - 300] * 10]


def test_more_components_than_16_bits_number():
    mask = np.zeros((600, 600), bool)
    mask[::2, ::2] = True
    labels, count = label_components(mask)
    assert count == labels.max() == 300 * 300
    board = np.indices((600, 600)).sum(axis=0) % 2 == 0
    assert label_components(board, connectivity=4)[1] == 180_000
    small = np.indices((362, 362)).sum(axis=0) % 2 == 0  # just below where 32 bits are taken
    assert label_components(small, connectivity=4)[1] == small.sum() == 65522


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_int32_maps_with_what_is_not_judged_and_any_numbers(seed):
    """-1 is not judged, 65535 is an object, and no number matters."""
    rng = np.random.default_rng(seed)
    pred, target = (rng.choice([0, 1, 2, 65535], (6, 7)).astype(np.int32) for _ in range(2))
    hidden = rng.random((6, 7)) < 0.2
    named = np.select([target == 1, target == 2, target == 65535], [700_000_000, 3, 70_000], 0).astype(
        np.int32
    )
    for labels in (target, named):
        labels[hidden] = -1
    expected = object_stats(
        np.where(pred == 65535, 9, pred).astype(np.uint16),
        np.where(hidden, IGNORE_OBJECT, np.where(target == 65535, 9, target)).astype(np.uint16),
    )
    np.testing.assert_array_equal(object_stats(pred, target), expected)
    np.testing.assert_array_equal(object_stats(pred, named), expected)
