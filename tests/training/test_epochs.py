import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksmith.training import LossTerm, OptimizerConfig, ScheduleConfig, Stage, TrainingConfig
from masksmith.training.epochs import Epoch, build_epochs, shorten, unshortened

BCE = [LossTerm(name="bce")]


def config(epochs=(2, 3), **second):
    first = Stage(epochs=epochs[0], loss=BCE, optimizer=OptimizerConfig(), schedule=ScheduleConfig())
    return TrainingConfig(stages=[first, Stage(epochs=epochs[1], loss=BCE, **second)], batch_size=4)


def test_epochs_of_the_stages():
    plan = build_epochs(config(), 10)
    assert [epoch.stage for epoch in plan] == [0, 0, 1, 1, 1]
    assert [epoch.at_start for epoch in plan] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert {epoch.at_step for epoch in plan} == {0.1}  # the second stage continues the schedule
    assert not any(epoch.starts_optimizer for epoch in plan)  # the first is begun with the training
    assert build_epochs(config(), 3)[0].steps == 1


def test_a_stage_with_its_own_schedule_starts_it_over():
    own = config(schedule=ScheduleConfig(name="cosine"), optimizer=OptimizerConfig(), batch_size=2)
    plan = build_epochs(own, 10)
    assert [(e.steps, e.span) for e in plan] == [(2, 0)] * 2 + [(5, 1)] * 3
    assert [e.at_start for e in plan] == pytest.approx([0, 0.5, 0, 1 / 3, 2 / 3])
    assert [e.starts_optimizer for e in plan] == [False, False, True, False, False]


def test_shortening_compresses_the_schedule():
    plan = build_epochs(config((4, 8)), 40)  # 12 epochs of 10 steps, one span
    shorter = shorten(plan, 1, 5, 0.5)  # 25 steps of the first stage ahead, 80 of the second
    assert shorter[0] == plan[0]
    assert shorter[1].at(5) == pytest.approx(plan[1].at(5))  # it goes on where it is
    assert [e.stage for e in shorter] == [0, 0, 0, 1, 1, 1, 1]
    assert [e.steps for e in shorter] == [10, 10, 7, 10, 10, 10, 10]  # 5 done + 12, then 40
    last = shorter[-1]
    assert last.at(last.steps) == pytest.approx(1)  # and ends where it was meant to end
    for before, after in itertools.pairwise(shorter[1:]):
        assert before.at(before.steps) == pytest.approx(after.at(0))


def test_an_optimizer_that_a_dropped_stage_starts_is_handed_on():
    own = {"optimizer": OptimizerConfig(name="sgd"), "schedule": ScheduleConfig(name="cosine")}
    settings = config((20, 1), **own)
    settings = settings.model_copy(update={"stages": [*settings.stages, Stage(epochs=10, loss=BCE)]})
    shorter = shorten(build_epochs(settings, 40), 19, 5, 0.09)
    assert [(e.stage, e.starts_optimizer) for e in shorter[19:]] == [(0, False), (2, True)]
    whole = shorten(build_epochs(settings, 40), 19, 5, 1.0)
    assert [e.starts_optimizer for e in whole[19:]] == [False, True] + [False] * 10


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 9), st.floats(0, 1), st.data())
def test_any_shortened_training_is_whole(first, second, step, share, data):
    own = data.draw(st.booleans())
    settings = config((first, second), **({"schedule": ScheduleConfig()} if own else {}))
    plan = build_epochs(settings, 40)
    index = data.draw(st.integers(0, len(plan) - 1))
    shorter = shorten(plan, index, step, share)
    ahead = sum(e.steps for e in plan[index:]) - step
    kept = sum(e.steps for e in shorter[index:]) - (step if len(shorter) > index else 0)
    assert max(0, share * ahead - 2) - 1 <= kept <= max(share * ahead, 1) + 1e-9
    assert shorter[:index] == plan[:index]
    assert len(shorter) >= 1
    assert all(0 < e.steps <= 10 for e in shorter)
    if step and len(shorter) > index and shorter[index].stage == plan[index].stage:
        assert shorter[index].steps >= step
    for epoch in shorter[index:]:
        assert -1e-9 <= epoch.at(step if epoch is shorter[index] else 0) <= epoch.at(epoch.steps) <= 1 + 1e-9


def test_epochs_beyond_the_whole_stay():
    grown = build_epochs(config((6, 2)), 40)
    assert unshortened(grown, build_epochs(config((3, 2)), 40), 5) == grown


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 9), st.floats(0, 1), st.floats(0, 1), st.data())
def test_a_shortened_training_grows_again(first, second, step, cut, share, data):
    own = data.draw(st.booleans())
    settings = config((first, second), **({"schedule": ScheduleConfig()} if own else {}))
    whole = build_epochs(settings, 40)
    at = data.draw(st.integers(0, len(whole) - 1))
    shorter = shorten(whole, at, step, cut)
    index = data.draw(st.integers(min(at, len(shorter) - 1), len(shorter) - 1))  # not before it was shortened
    steps = shorter[index].steps
    later = data.draw(st.integers(min(step, steps) if index == at else 1, steps).filter(bool))
    longer = shorten(unshortened(shorter, whole, index), index, later, share)
    assert longer[:index] == shorter[:index]
    place = [(one.stage, one.number) for one in whole].index((shorter[index].stage, shorter[index].number))
    ahead = sum(one.steps for one in whole[place:]) - later
    kept = sum(one.steps for one in longer[index:]) - later
    assert share * ahead - 2 <= kept <= share * ahead + 1e-9
    assert longer[index].stage_at == shorter[index].stage_at  # its images stay
    assert longer[index].at(later) == pytest.approx(shorter[index].at(later))  # the rate goes on where it is
    for epoch in longer[index:]:
        assert epoch.steps <= 10
        first = later if epoch is longer[index] else 0
        assert -1e-9 <= epoch.at(first) <= epoch.at(epoch.steps) + 1e-9 <= 1 + 2e-9
    if share == 1.0:
        assert [(one.stage, one.number, one.steps) for one in longer[index:]] == [
            (one.stage, one.number, one.steps) for one in whole[place:]
        ]
        assert longer[-1].at(longer[-1].steps) == pytest.approx(1)


def test_without_time_the_training_ends_here():
    plan = build_epochs(config(), 40)
    assert [e.steps for e in shorten(plan, 1, 3, 0.0)] == [10, 3]
    assert len(shorten(plan, 1, 0, 0.0)) == 1
    assert [e.steps for e in shorten(plan, 0, 0, 0.0)] == [1]  # one step is always made


def test_epochs_survive_json():
    for epoch in shorten(build_epochs(config(), 40), 1, 3, 0.5):
        assert Epoch.from_json(epoch.to_json()) == epoch
