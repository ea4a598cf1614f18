"""Means of codes beside their formulas in floating point."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import gmean, hmean, pmean

from masksmith.core.errors import InputError
from masksmith.data.array_store import ArrayStore
from masksmith.prediction.means import KINDS, Blend, ranks_of
from masksmith.prediction.store import MAX_CODE, MeanCodes

RNG = np.random.default_rng(0)
EACH = [RNG.integers(1, MAX_CODE, (7, 5, 2)).astype(np.uint16) for _ in range(3)]
SHARES = [1.0, 2.0, 0.5]


def test_kinds_are_their_formulas():
    probs = np.stack(EACH).astype(float) / MAX_CODE
    weights = np.broadcast_to(np.reshape(SHARES, (3, 1, 1, 1)), probs.shape)
    expected = {
        "mean": np.average(probs, axis=0, weights=SHARES),
        "logit": expit(np.average(logit(probs), axis=0, weights=SHARES)),
        "geometric": gmean(probs, axis=0, weights=weights),
        "harmonic": hmean(probs, axis=0, weights=weights),
        "power 0.5": pmean(probs, 0.5, axis=0, weights=weights),
        "power 2": pmean(probs, 2, axis=0, weights=weights),
        "power 3": pmean(probs, 3, axis=0, weights=weights),
        "max": probs.max(axis=0),
        "vote": np.average(probs > 0.5, axis=0, weights=SHARES),
    }
    assert {*expected, "rank"} == set(KINDS)
    for kind, values in expected.items():
        found = Blend(kind)(EACH, SHARES)
        assert found.dtype == np.uint16
        assert np.abs(found / MAX_CODE - values).max() < 2e-5, kind
        scaled = Blend(kind, exclusive=True)(EACH, SHARES) / MAX_CODE
        assert np.abs(scaled.sum(axis=-1) - 1).max() < 1e-4


def test_ranks():
    blunt = [(0.4 * MAX_CODE + 0.2 * one).astype(np.uint16) for one in EACH]  # the same order, less sharp
    tables = tuple((name, ranks_of([one])) for name, one in (("sharp", EACH[0]), ("blunt", blunt[0])))
    assert all((np.diff(table) > 0).all() for _, table in tables)
    found = Blend("rank", ranks=tables)([EACH[0], blunt[0]], [1, 1]).ravel()
    assert np.corrcoef(np.argsort(np.argsort(found)), np.argsort(np.argsort(EACH[0].ravel())))[0, 1] > 0.98
    one = Blend("rank", ranks=tables).of(["sharp"])
    assert np.abs(one([EACH[0]], [1.0]).astype(int) - EACH[0]).max() <= 64  # its own quantiles, of 257 knots
    assert Blend.from_json(one.to_json(), "x") == one
    for value in (
        {"kind": "median", "exclusive": False, "ranks": {}},
        one.to_json() | {"ranks": {"a": [0, 1]}},
    ):
        with pytest.raises(InputError, match=r"x: a mean of the kind '\w+', expected one of mean, logit"):
            Blend.from_json(value, "x")


def test_stores_of_a_group_are_averaged_first():
    stores = [ArrayStore({"a": one}) for one in EACH]
    codes = MeanCodes(stores, [1.0, 1.0, 2.0], blend=Blend("max"), groups=[0, 0, 1])
    mean = np.rint((EACH[0].astype(float) + EACH[1]) / 2)
    assert np.array_equal(codes["a"], np.maximum(mean, EACH[2]))
    assert np.array_equal(np.concatenate(list(codes.bands("a", at_once=20))), codes["a"])
    alone = MeanCodes(stores[:2], blend=Blend("vote"), groups=[0, 0])
    assert np.array_equal(alone["a"], mean)
    assert np.array_equal(
        Blend("vote")([EACH[0][:1] * 0 + 65535, EACH[0][:1] * 0], [1, 1]) > 32767, np.ones((1, 5, 2))
    )
