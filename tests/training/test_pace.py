"""Time of a training on a clock of ours: a step takes as long as the test says."""

import pytest

from masksmith.core.errors import StoppedError
from masksmith.training import StallConfig, loop
from masksmith.training.machine import make_fabric
from masksmith.training.pace import Deadline, Pace
from masksmith.training.state import TrainingState
from tests.training.tiny import TinyNet, config, events, leave_at, make_data, run, same, stage

PX = 2 * 12 * 12  # of a step


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def steps(pace, clock, *seconds, work=PX):
    for one in seconds:
        clock.now += one
        pace.step(work)


def test_the_pace_is_that_of_the_last_half_minute_and_leaves_out_the_first_steps():
    clock = Clock()
    pace = Pace(clock=clock)
    pace.begin_epoch(new_stage=True)
    steps(pace, clock, 9, 9, 9, work=10)
    assert pace.seconds_per_px == 0  # nothing is known
    steps(pace, clock, 1, 1, work=10)
    assert pace.seconds_per_px == pytest.approx(0.1)
    clock.now += 7
    pace.scored()
    assert pace.scoring_s == 7
    steps(pace, clock, 1, work=10)  # what was scored is no step
    assert pace.seconds_per_px == pytest.approx(0.1)
    assert (pace.epoch_s, pace.epoch_steps) == (30, 6)
    steps(pace, clock, *[4] * 30, work=10)  # a neighbour came
    assert pace.seconds_per_px == pytest.approx(0.4, rel=0.05)
    pace.begin_epoch(new_stage=False)
    assert pace.seconds_per_px > 0
    assert (pace.epoch_s, pace.epoch_steps) == (0, 0)
    pace.begin_epoch(new_stage=True)
    assert pace.seconds_per_px == 0


def test_a_deadline_counts_with_what_is_slower_than_expected():
    deadline = Deadline(lambda: 100.0, reserve_s=20.0, expected=[2.0, 1.0])
    assert deadline.slowdown(4.0, 0) == 2
    assert (
        deadline.seconds_for({0: 3, 1: 5}, 4.0, 0) == 3 * 4 + 5 * 2
    )  # what one stage shows holds for the others
    assert [deadline.for_training(slowdown) for slowdown in (1.0, 2.0, 0.5)] == [80, 60, 80]
    unknown = Deadline(lambda: 100.0, reserve_s=20.0)
    assert unknown.slowdown(4.0, 0) == 1
    assert unknown.seconds_for({0: 3, 1: 5}, 4.0, 0) == 8 * 4


@pytest.fixture
def training(tmp_path):
    """A training of 40 epochs of 5 steps and its pace, under a deadline that the test sets."""
    data, settings, clock = make_data(tmp_path), config(stage(40)), Clock()
    state = TrainingState(make_fabric(settings), TinyNet(), settings, data)
    left = [1e9]
    pace = Pace(Deadline(lambda: left[0] - clock.now, reserve_s=10.0), clock=clock)
    pace.begin_epoch(new_stage=True)

    def made(number, seconds):
        """Make steps (epochs go by as they do); return what the pace asks for after the last."""
        for _ in range(number):
            if state.progress.step == state.epoch.steps:
                state.progress.epoch, state.progress.step = state.progress.epoch + 1, 0
            state.progress.step += 1
            steps(pace, clock, seconds)
        return pace.adjusted_epochs(state)

    return state, pace, made, left


def num_steps(epochs):
    return sum(epoch.steps for epoch in epochs)


def test_what_fits_is_left_alone_and_what_does_not_is_shortened(training):
    state, pace, made, left = training
    left[0] = 212.0  # 200 steps of a second and the reserve, within the slack
    assert made(10, 1.0) is None
    left[0] = 110.0
    assert pace.adjusted_epochs(state) is None  # it was checked a moment ago
    shorter = made(10, 1.0)
    assert num_steps(shorter) == pytest.approx(20 + 0.98 * 80, abs=1)
    assert shorter[-1].at(shorter[-1].steps) == pytest.approx(1)  # the rate still ends where it should
    pace.scoring_s = 0.5
    left[0] = 100.0  # a scoring after each epoch: 40 of them take as long as 20 steps
    assert num_steps(made(6, 1.0)) == pytest.approx(26 + 0.98 * 64 / 1.1, abs=2)


def test_no_time_is_left(training):
    state, _, made, left = training
    left[0] = 5.0
    ended = made(7, 1.0)
    assert num_steps(ended) == 7  # here and now
    state.epochs = ended
    assert made(0, 0.0) is None
    state.progress.step = state.epoch.steps
    assert made(0, 0.0) is None  # nothing is left to leave out


def test_it_grows_again_where_time_is_won_back(training):
    state, _, made, left = training
    left[0] = 160.0
    state.epochs = made(10, 3.0)
    assert num_steps(state.epochs) == pytest.approx(10 + 0.98 * 120 / 3, abs=1)
    left[0] = 300.0
    longer = made(10, 1.0)
    assert num_steps(longer) > 1.5 * num_steps(state.epochs)
    assert longer[-1].at(longer[-1].steps) == pytest.approx(1)
    state.epochs, left[0] = longer, 180.0  # no room for a tenth more
    assert made(2, 1.0) is None


def test_it_does_not_grow_at_the_end_of_a_schedule_or_beyond_the_recipe(training):
    state, _, made, left = training
    assert made(10, 1.0) is None  # all the time of the world, and nothing was left out
    left[0] = 80.0
    state.epochs = made(6, 3.0)
    left[0] = 1e9
    made(num_steps(state.epochs) - 20, 0.01)
    assert state.epoch.at(state.progress.step) > 0.8
    assert made(1, 6.0) is None


def test_it_grows_beyond_the_recipe_as_far_as_the_deadline_says(training):
    state, pace, made, left = training
    pace.deadline = Deadline(pace.deadline.left, pace.deadline.reserve_s, most=1.5)
    left[0] = 270.0  # 200 steps of a second were planned; a fifth more fits
    longer = made(10, 1.0)
    assert num_steps(longer) == pytest.approx(10 + 0.96 * 250, abs=1)
    assert longer[-1].at(longer[-1].steps) == pytest.approx(1)
    assert longer[-1].number > max(epoch.number for epoch in state.whole)
    state.epochs = longer
    left[0] = 1e9
    assert num_steps(made(10, 1.0)) == 300  # half as many again, and no more


@pytest.fixture
def slow(monkeypatch):
    """A clock that moves by a second with each step; the function returns a pace with so many seconds left."""
    clock, inner = Clock(), loop.train_step

    def step(*args):
        clock.now += 1.0
        return inner(*args)

    monkeypatch.setattr(loop, "train_step", step)

    def pace_of(left, most=1.0):
        end = clock.now + left
        return Pace(Deadline(lambda: end - clock.now, reserve_s=0.0, most=most), clock=clock)

    return pace_of


def test_a_training_keeps_its_deadline_and_says_so(tmp_path, slow):
    pace = slow(31.0)
    run(make_data(tmp_path), tmp_path / "fold", config(stage(40)), pace=pace)
    assert 27 <= pace.clock.now <= 33
    assert events(tmp_path / "fold", "replanned")[0] == pytest.approx(0.98 * 26 / 195, abs=0.03)
    rates = events(tmp_path / "fold", "lr")
    assert rates[-1] < 0.1 * max(rates)


def test_a_training_that_grew_is_resumed_as_it_was(tmp_path, slow, monkeypatch):
    """Stopped in epochs that its recipe does not list; with no deadline it goes on with what the checkpoint says."""
    data, settings = make_data(tmp_path), config(stage(10))
    pace = slow(71.0, most=2.0)
    whole, facts = run(data, tmp_path / "whole", settings, pace=pace)
    assert 66 <= pace.clock.now <= 72  # the recipe's 50 steps are over after 50
    assert events(tmp_path / "whole", "lr")[-1] < 0.1 * max(events(tmp_path / "whole", "lr"))
    with monkeypatch.context() as patch:
        leave_at(patch, 58, StoppedError("stop", exit_code=143))
        with pytest.raises(StoppedError):
            run(data, tmp_path / "left", settings, pace=slow(71.0, most=2.0))
    again, after = run(data, tmp_path / "left", settings)
    assert after["lengths"] == facts["lengths"]
    same(whole, again)


def test_a_shortened_training_is_resumed_as_it_was(tmp_path, slow, monkeypatch):
    """Stopped after it was shortened; with all the time of the world it goes on with what the checkpoint says."""
    data, settings = make_data(tmp_path), config(stage(40), early_stop=StallConfig(watch="loss", patience=99))
    whole, facts = run(data, tmp_path / "whole", settings, pace=slow(31.0))
    with monkeypatch.context() as patch:
        leave_at(patch, 13, StoppedError("stop", exit_code=143))
        with pytest.raises(StoppedError):
            run(data, tmp_path / "left", settings, pace=slow(31.0))
    again, after = run(data, tmp_path / "left", settings)
    assert after["lengths"] == facts["lengths"]
    same(whole, again)
