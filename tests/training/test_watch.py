import math

import pytest

from masksmith.training import ScheduleConfig, StallConfig
from masksmith.training.epochs import build_epochs, end_stage
from masksmith.training.watch import Stall, advance, divergence_of, note_loss, observe, watchers_of
from tests.training.tiny import config, stage


def shown(rule, values):
    state, ends = Stall(), []
    for value in values:
        state, stalled = advance(state, value, rule)
        ends.append(stalled)
    return ends, state


def test_a_score_that_does_not_rise_stalls():
    ends, state = shown(StallConfig(patience=2), [0.1, 0.3, 0.2, 0.3, 0.25, 0.29])
    assert ends == [False, False, False, True, False, True]  # the count starts over, the best stays
    assert state == Stall(0.3, 0)


def test_a_loss_that_does_not_fall_stalls():
    ends, state = shown(StallConfig(watch="loss", patience=1), [0.5, 0.4, 0.45, 0.39])
    assert ends == [False, False, True, False]
    assert state == Stall(0.39, 0)


def test_a_held_out_loss_is_to_fall():
    assert shown(StallConfig(watch="val_loss", patience=1), [0.5, 0.4, 0.45])[0] == [False, False, True]


def test_a_small_gain_is_none():
    assert shown(StallConfig(patience=1, min_delta=0.25), [0.0, 0.25, 0.75])[0] == [False, True, False]
    assert shown(StallConfig(watch="loss", patience=1, min_delta=0.25), [1.0, 0.75, 0.25])[0] == [
        False,
        True,
        False,
    ]


def test_each_watches_its_own_value():
    rules = {"stage": StallConfig(watch="loss", patience=1), "training": StallConfig(patience=1)}
    stalls, stalled = observe({}, rules, {"loss": 1.0})
    assert (stalls, stalled) == ({"stage": {"best": 1.0, "stale": 0}}, set())
    stalls, stalled = observe(stalls, rules, {"loss": 2.0})
    assert stalled == {"stage"}
    stalls, stalled = observe(stalls, rules, {"score": 0.5})
    assert not stalled
    assert observe(stalls, rules, {"score": 0.5})[1] == {"training"}


def test_who_watches():
    stall = StallConfig(patience=3)
    plateau = ScheduleConfig(name="plateau", watch="loss", patience=4, min_delta=0.1)
    settings = config(stage(schedule=plateau), stage(until_plateau=stall), early_stop=StallConfig(patience=7))
    plan = build_epochs(settings, 10)
    found = [watchers_of(settings, epoch) for epoch in (plan[0], plan[-1])]
    rate = StallConfig(watch="loss", patience=4, min_delta=0.1)
    assert found[0] == {"rate": rate, "training": settings.early_stop}
    assert found[1] == {"stage": stall, "training": settings.early_stop}


def test_a_stage_that_ends_compresses_its_schedule():
    first, second = stage(6), stage(3).model_copy(update={"optimizer": None, "schedule": None})
    plan = build_epochs(config(first, second), 10)
    cut = end_stage(plan, 2)
    assert [epoch.stage for epoch in cut] == [0, 0, 1, 1, 1]
    assert cut[:2] == plan[:2]
    assert cut[2].at(0) == pytest.approx(plan[1].at(5))
    assert cut[-1].at(5) == pytest.approx(1)
    assert [epoch.stage_at for epoch in cut[2:]] == [0, 0.5, 1]


def test_a_stage_with_its_own_schedule_just_ends():
    plan = build_epochs(config(stage(6), stage(3)), 10)
    cut = end_stage(plan, 2)
    assert cut == [*plan[:2], *plan[6:]]
    assert end_stage(cut, 2) == cut  # it has ended
    assert end_stage(plan, 9) == plan
    assert end_stage(plan, 8) == plan[:8]  # the last stage: the training ends


def test_a_loss_near_zero_may_triple():
    losses = {}
    for loss in (0.5, 0.001, 0.01, 0.4):
        assert divergence_of(loss, losses.get("0")) is None
        note_loss(losses, 0, loss)
    assert losses == {"0": [0.5, 0.001]}
    for bad in (0.6, math.nan, math.inf):
        assert divergence_of(bad, losses["0"]).endswith("first of this stage 0.5, best 0.001")
    assert divergence_of(math.nan, None) is not None
