"""The search of an ensemble on small arrays."""

import numpy as np
import pytest
from scipy.optimize import minimize

from masksmith.core import interrupt
from masksmith.core.errors import StoppedError
from masksmith.metrics import get_metric
from masksmith.postprocess.blends import PRESENT, Mix, MixRows, MixSweep, Moments, ways_to_mix
from masksmith.postprocess.operators import PLAIN
from masksmith.prediction.means import ranks_of

METRIC = get_metric("dice_per_image")
NUM = 12


def members(noise, seed=0):
    """Masks and codes of members whose errors are independent, of these spreads."""
    rng = np.random.default_rng(seed)
    truth = {f"{at}": (rng.random((16, 16)) < 0.4).astype(np.uint8) for at in range(NUM)}
    each = {
        name: [
            np.clip((0.2 + 0.6 * mask + rng.normal(0, spread, mask.shape)) * 65535, 0, 65535).astype(
                np.uint16
            )[..., None]
            for spread in noise
        ]
        for name, mask in truth.items()
    }
    return truth, each


def source_of(truth, each):
    num = len(next(iter(each.values())))
    ranks = [ranks_of(each[name][at] for name in each) for at in range(num)]
    codes = lambda name: [*each[name], each[name][0]]  # noqa: E731
    return MixRows(list(truth), codes, truth.__getitem__, METRIC, PLAIN, False, ranks)


def moments_of(truth, each):
    return Moments.of(
        (np.stack([one.ravel() / 65535 for one in each[name]]), truth[name].ravel().astype(float))
        for name in truth
    )


def ways(noise, **how):
    truth, each = members(noise)
    sweep = MixSweep(source_of(truth, each), np.arange(NUM))
    return sweep, ways_to_mix(sweep, METRIC, None, moments=moments_of(truth, each), **how)


def score(sweep, mix):
    return METRIC.score(sweep.rows_of(mix))


def test_ways():
    sweep, found = ways([0.5, 0.5, 2.5])
    assert found["best single"].members in ([0], [1])
    assert found["best pair"] == Mix.of([1, 1, 0])
    assert found["equal, mean"] == Mix.of([1, 1, 1])
    assert score(sweep, found["greedy"]) >= score(sweep, found["best single"])
    assert 2 not in found["simplex"].members or found["simplex"].weights[2] < 0.1
    assert score(sweep, found["simplex"]) > score(sweep, found["equal, mean"])
    assert np.array_equal(sweep.rows_of(PRESENT), sweep.rows_of(Mix.of([1, 0, 0])))
    assert Mix.of([2, 4, 0]) == Mix.of([1, 2, 0])
    assert Mix.of([0, 3, 0], "max") == Mix.of([0, 1, 0])  # one member is its own mean


def test_limits():
    _, found = ways([0.5, 0.6, 0.7, 0.8], fits=lambda mix: len(mix.members) <= 2)
    assert max(len(mix.members) for mix in found.values()) == 2
    _, found = ways([0.5, 0.6, 0.7], fits=lambda mix: mix.members == [2])
    assert {mix.members[0] for mix in found.values()} == {2}
    assert "best pair" not in found


def test_simplex_weights_are_the_least_squares():
    truth, each = members([0.4, 0.6, 0.9], seed=3)
    moments = moments_of(truth, each)
    found = moments.simplex(np.arange(NUM), lambda _: True)
    probs = np.stack([np.concatenate([each[name][at].ravel() for name in truth]) for at in range(3)]) / 65535
    y = np.concatenate([truth[name].ravel() for name in truth])
    best = minimize(
        lambda w: ((w @ probs - y) ** 2).mean(), np.ones(3) / 3, bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )  # fmt: skip
    assert np.allclose(np.asarray(found.weights) / sum(found.weights), best.x, atol=0.02)
    errors = np.corrcoef(probs - y)
    assert np.allclose(moments.error_correlation(), errors, atol=1e-6)


def test_a_stop_keeps_what_is_known(monkeypatch):
    source = source_of(*members([0.5, 0.5]))
    source.fill([PRESENT])
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 5:
            raise StoppedError("stopped", exit_code=130)

    monkeypatch.setattr("masksmith.postprocess.blends.check_stop", stop)
    with pytest.raises(StoppedError):
        source.fill([Mix.of([1, 1])])
    assert list(source.known) == [PRESENT]
    monkeypatch.setattr("masksmith.postprocess.blends.check_stop", interrupt.check_stop)
    source.fill([Mix.of([1, 1])])
    assert len(source.known) == 2
