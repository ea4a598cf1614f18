import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from masksmith.errors import InputError
from masksmith.metrics import METRICS, count_stats, get_metric

MASK = arrays(np.uint8, (4, 5), elements=st.integers(0, 1))
TARGET = arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 255]))
SETS = st.lists(st.tuples(MASK, TARGET), min_size=1, max_size=6)


def iou_by_sets(pred, target):
    judged = {(i, j) for i, j in np.ndindex(target.shape) if target[i, j] != 255}
    found = {spot for spot in judged if pred[spot]}
    truth = {spot for spot in judged if target[spot] == 1}
    return len(found & truth), len(found | truth), len(found), len(truth)


def tgs_map_by_definition(pairs):
    scores = []
    for pred, target in pairs:
        both, either, _, _ = iou_by_sets(pred, target)
        hits = [1.0 if either == 0 else float(both * 20 > k * either) for k in range(10, 20)]
        scores.append(sum(hits) / 10)
    return sum(scores) / len(scores)


def dice_by_definition(pairs):
    parts = [iou_by_sets(*pair) for pair in pairs]
    return sum(2 * b / (f + t) if f + t else 1.0 for b, _, f, t in parts) / len(parts)


def iou_by_definition(pairs):
    parts = [iou_by_sets(*pair) for pair in pairs]
    return sum(b / e if e else 1.0 for b, e, _, _ in parts) / len(parts)


def pooled_by_definition(pairs):
    parts = [iou_by_sets(*pair) for pair in pairs]
    union = sum(e for _, e, _, _ in parts)
    return sum(b for b, _, _, _ in parts) / union if union else 1.0


TWINS = {
    "tgs_map": tgs_map_by_definition,
    "dice_per_image": dice_by_definition,
    "iou_per_image": iou_by_definition,
    "iou_pooled": pooled_by_definition,
}


def rows_of(metric, pairs):
    return np.stack([metric.stats(pred, target) for pred, target in pairs])


def test_every_metric_has_a_twin():
    assert set(TWINS) == set(METRICS)


@pytest.mark.parametrize("name", sorted(TWINS))
@given(pairs=SETS)
def test_equals_the_definition(name, pairs):
    metric = METRICS[name]
    assert metric.score(rows_of(metric, pairs)) == pytest.approx(TWINS[name](pairs))


@pytest.mark.parametrize("name", sorted(TWINS))
@given(pairs=SETS, seed=st.integers(0, 9))
def test_weights_are_repetitions_and_order_is_nothing(name, pairs, seed):
    metric, rng = METRICS[name], np.random.default_rng(seed)
    rows = rows_of(metric, pairs)
    counts = rng.integers(0, 3, len(rows)) + (np.arange(len(rows)) == 0)
    repeated = np.repeat(rows, counts, axis=0)
    assert float(metric.reduce(rows, weights=counts.astype(float))) == pytest.approx(metric.score(repeated))
    assert metric.score(rng.permutation(rows)) == pytest.approx(metric.score(rows))


@pytest.mark.parametrize("name", sorted(TWINS))
def test_leading_axes(name):
    rows = np.random.default_rng(0).integers(0, 50, (3, 2, 7, 3)).astype(float)
    together = METRICS[name].reduce(rows)
    assert together.shape == (3, 2)
    assert together[2, 1] == METRICS[name].score(rows[2, 1])


def test_tgs_vectors():
    metric = get_metric("tgs_map")
    assert metric.score(np.array([[872.0, 477.0, 0.0]])) == pytest.approx(0.3)  # 872 / 1349
    assert metric.score(np.array([[872.0, 0.0, 0.0]])) == 1.0


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0, 0, 0], 1.0),  # empty, predicted empty
        ([0, 5, 0], 0.0),  # empty, predicted something
        ([0, 0, 5], 0.0),  # something, predicted empty
        ([5, 0, 0], 1.0),  # something, predicted exactly
    ],
)
def test_tgs_four_empty_cases(row, expected):
    assert get_metric("tgs_map").score(np.array([row], float)) == expected


@pytest.mark.parametrize(
    ("hit", "union", "expected"), [(3, 5, 0.2), (1, 2, 0.0), (19, 20, 0.9), (951, 1000, 1.0)]
)
def test_tgs_is_strict_at_the_thresholds(hit, union, expected):
    row = np.array([[hit, union - hit, 0]], float)
    assert get_metric("tgs_map").score(row) == pytest.approx(expected)


@given(pred=MASK, target=TARGET)
def test_ignored_pixels_do_not_count(pred, target):
    other = np.where(target == 255, 1 - pred, pred).astype(np.uint8)
    np.testing.assert_array_equal(count_stats(pred, target), count_stats(other, target))


def test_unknown():
    with pytest.raises(InputError, match="'tgs_mpa' is unknown; did you mean 'tgs_map'"):
        get_metric("tgs_mpa")
