"""How surely members contradict a mask, and which image to label next."""

import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.postprocess.label_quality import (
    confident_frac,
    disagreement,
    noise_score,
    pick_diverse,
    shift_of,
    standardised,
    uncertainty,
)


def square(top, left, *, side=60, size=20):
    mask = np.zeros((side, side, 1), np.int8)
    mask[max(0, top) : top + size, max(0, left) : left + size] = 1
    return mask


def probs(mask, sure=0.97):
    return np.where(mask > 0, sure, 1 - sure).astype(np.float32)


def test_sure_contradictions_count_most():
    there, nothing = square(20, 20), np.zeros((60, 60, 1), np.int8)
    assert disagreement(there, probs(there)) == 0
    assert disagreement(nothing, probs(there)) > 0.8  # removed
    assert disagreement(there, probs(nothing)) > 0.8  # added
    assert disagreement(there, probs(nothing)) > 3 * disagreement(there, probs(nothing, sure=0.6))
    assert disagreement(nothing, np.zeros((60, 60, 1))) == 0
    near = disagreement(there, probs(square(20, 22)))
    assert near < disagreement(there, probs(square(20, 30))) < disagreement(there, probs(square(40, 40)))
    unjudged = np.full_like(there, -1)
    assert disagreement(unjudged, probs(there)) == 0
    half = there.copy()
    half[:, 30:] = -1
    assert disagreement(half, probs(square(20, 10))) < disagreement(there, probs(square(20, 10)))


def test_the_surest_contradiction_ranks():
    there, nothing = square(20, 20), np.zeros((60, 60, 1), np.int8)
    corner = probs(there)
    corner[2:10, 2:10] = 0.97
    scores = [noise_score(there, one, exclusive=False) for one in (probs(there), corner, probs(nothing))]
    assert scores[0] == pytest.approx(0.03, abs=1e-3)
    assert 0.9 < scores[1] < scores[2] < 0.98
    both = np.concatenate([1 - there, there], axis=-1)
    soft = np.concatenate([1 - corner, corner], axis=-1)
    assert noise_score(both, soft, exclusive=True) == pytest.approx(scores[1])
    assert noise_score(np.full_like(there, -1), corner, exclusive=False) == 0


def test_a_shift_is_found_with_its_sign():
    for moved in ((28, 20), (20, 12), (26, 27)):
        assert shift_of(square(*moved), probs(square(20, 20))) == (20 - moved[0], 20 - moved[1])
    assert shift_of(square(20, 20), probs(square(20, 20))) is None
    assert shift_of(square(21, 20), probs(square(20, 20))) is None  # below 3% of the side
    assert shift_of(square(0, 0, size=8), probs(square(40, 40))) is None  # too far
    assert shift_of(np.zeros((60, 60, 1), np.int8), probs(square(20, 20))) is None
    assert shift_of(square(0, 0, side=6, size=2), probs(square(3, 3, side=6, size=2))) is None


def test_uncertainty_splits_into_noise_and_disagreement():
    half, low, high = (np.full((5, 5, 1), code, np.uint16) for code in (32768, 0, 65535))
    assert uncertainty([half, half], exclusive=False) == pytest.approx((1, 0), abs=1e-3)
    assert uncertainty([low, high], exclusive=False) == pytest.approx((1, 1), abs=1e-3)
    assert uncertainty([low], exclusive=False) == pytest.approx((0, 0), abs=1e-3)
    classes = np.zeros((5, 5, 4), np.uint16) + 16384
    assert uncertainty([classes], exclusive=True)[0] == pytest.approx(2, abs=1e-3)
    assert confident_frac(np.array([[[0.1, 0.5, 0.9, 0.81]]])) == 0.75


def test_what_is_picked_is_uncertain_and_unlike():
    scores = np.array([0.9, 0.89, 0.88, 0.5, 0.4, 0.0])
    looks = np.array([[0.0], [0.0], [0.1], [5.0], [9.0], [50.0]])
    assert pick_diverse(scores, looks, 1) == [0]
    assert pick_diverse(scores, looks, 3) == [0, 5, 4]  # of all 24 that are asked about
    many = np.concatenate([np.linspace(1, 0.5, 16), np.zeros(5)])
    assert max(pick_diverse(many, np.arange(21.0)[:, None], 2)) < 16
    for count in (0, 7):
        with pytest.raises(InputError, match=rf"--next {count}: expected 1 up to .*, 6"):
            pick_diverse(scores, looks, count)
    table = standardised([np.array([[1.0, np.nan], [3.0, np.nan]]), np.array([[2.0], [2.0]])])
    assert table == pytest.approx(np.array([[-(0.5**0.5), 0, 0], [0.5**0.5, 0, 0]]))
