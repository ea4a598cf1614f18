import numpy as np
import pytest

from masksmith.core.arrays import IGNORE
from masksmith.prediction.calibration import LEVELS, count_pixels


def test_calibrated_probabilities_have_no_error_and_others_do():
    rng = np.random.default_rng(0)
    p = rng.random((200, 200))
    codes = np.rint(p * 65535).astype(np.uint16)[..., None]
    target = (rng.random(p.shape) < p).astype(np.uint8)
    target[:20] = IGNORE
    (counts,) = count_pixels([(codes, target)], exclusive=False, planes=1)
    assert counts.error < 0.02
    assert counts.right.sum() + counts.wrong.sum() == (target != IGNORE).sum()
    (always,) = count_pixels([(codes, np.ones_like(target))], exclusive=False, planes=1)
    assert always.error == pytest.approx(0.5, abs=0.02)


def test_curves_are_those_of_each_threshold():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 65536, (30, 40, 2)).astype(np.uint16)
    target = rng.integers(0, 2, (30, 40, 2)).astype(np.uint8)
    for plane, counts in enumerate(count_pixels([(codes, target)], exclusive=False, planes=2)):
        curves, truth = counts.curves(), target[..., plane] == 1
        for level in (0, 100, 200):
            found = codes[..., plane] >= level * 65536 // LEVELS
            hits = (found & truth).sum()
            assert curves["precision"][level] == pytest.approx(hits / found.sum())
            assert curves["recall"][level] == pytest.approx(hits / truth.sum())
            assert curves["Dice"][level] == pytest.approx(2 * hits / (found.sum() + truth.sum()))


def test_classes_count_with_the_most_probable_one():
    codes = np.zeros((1, 3, 3), np.uint16)
    codes[0, :, 0], codes[0, :, 1] = 20000, 40000
    target = np.array([[1, 0, IGNORE]], np.uint8)
    (counts,) = count_pixels([(codes, target)], exclusive=True, planes=1)
    assert (counts.right.sum(), counts.wrong.sum()) == (1, 1)
    assert counts.right[40000 >> 8] == 1
