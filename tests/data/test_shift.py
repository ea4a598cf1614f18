import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.data.look import describe_numbers, number_names
from masksmith.data.shift import area, measure_shift, shift_finding
from tests.data.alike import texture

NAMES = ["one", "two", "three"]


def test_equal_sets_are_not_told_apart_and_brighter_ones_are():
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((300, 3)), rng.standard_normal((200, 3))
    alike = measure_shift(train, test, NAMES)
    assert alike.low < 0.55 < alike.high
    assert shift_finding(alike) == []
    test[:, 1] += 1.5
    apart = measure_shift(train, test, NAMES)
    assert apart.low > 0.75
    assert apart.reasons[0].startswith("two: train ")
    (finding,) = shift_finding(apart)
    assert "AUC" in finding.detail
    assert "folds.stratify=like_test" in finding.detail
    assert apart.weights.mean() == pytest.approx(1)
    most = np.argsort(apart.likeness)[-30:]
    assert (
        train[most, 1].mean() > train[:, 1].mean() + 1
    )  # the brightest training images look most like the test set


def test_spread_that_differs_is_seen_and_few_or_odd_numbers_are_taken():
    rng = np.random.default_rng(1)
    train, test = rng.standard_normal((200, 3)), 4 * rng.standard_normal((200, 3))
    train[:5, 0], test[:, 2] = np.nan, 0
    train[:, 2] = 0
    assert measure_shift(train, test, NAMES).low > 0.6
    assert measure_shift(train, test[:19], NAMES) is None
    assert shift_finding(None) == []
    assert measure_shift(np.zeros((30, 3)), np.zeros((30, 3)), NAMES).auc == 0.5


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_area_counts_pairs(rows):
    scores, labels = np.array([one for one, _ in rows], float), np.array([one for _, one in rows])
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels] for b in scores[~labels]]
    assert area(scores, labels) == pytest.approx(np.mean(pairs) if pairs else 0)


def test_numbers_of_an_image():
    image = texture(0, h=200, w=70, c=2).astype(np.float32)
    found = dict(zip(number_names(2), describe_numbers(image), strict=True))
    assert (found["height"], found["width"]) == (200, 70)
    assert found["brightness (p50) of band 0"] == pytest.approx(np.median(image[..., 0]), abs=3)
    image[..., 1] = np.nan
    assert np.isnan(describe_numbers(image)[5:10]).all()
    assert len(describe_numbers(np.zeros((1, 1, 20), np.int16))) == len(number_names(20)) == 62
