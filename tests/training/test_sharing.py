"""A simulated machine: the threads of a step wait for the slowest, and neighbours take cores."""

from itertools import count, pairwise

import pytest
import torch

from masksmith.errors import StoppedError
from masksmith.progress import Remaining
from masksmith.training import machine as machine_module
from masksmith.training import trainer as trainer_module
from masksmith.training.deadline import Deadline
from masksmith.training.events import EventLog, threads_of
from masksmith.training.loop import train_fold
from masksmith.training.machine import make_fabric
from masksmith.training.sharing import Sharing, are_free, candidates
from masksmith.training.trainer import Trainer
from tests.training.test_resume import leave_at
from tests.training.tiny import TinyNet, config, content, events, make_data, score_of

LOOK_S = 5.0


@pytest.mark.parametrize(
    ("most", "numbers"), [(1, [1]), (2, [2, 1]), (3, [3, 2, 1]), (4, [4, 3, 2, 1]), (16, [16, 12, 8, 4, 1])]
)
def test_candidates(most, numbers):
    assert candidates(most) == numbers


def test_half_a_core_is_a_neighbour():
    assert are_free(0.95, 2)
    assert not are_free(0.75, 2)
    assert not are_free(15.5 / 16, 16)
    assert are_free(62.5 / 64, 64)  # of many cores a few are always busy


class Machine:
    """As measured beside one busy thread, a step with a thread on a shared core takes 3.5 times as long."""

    def __init__(self, *, cores=2, first=None):
        self.cores, self.busy, self.now, self.since, self.looked = cores, 0, 0.0, 0.0, []
        self.sharing = Sharing(
            first or cores, most=cores, cores_share=self.share, gain=0.9, clock=lambda: self.now
        )

    def share(self, threads):
        assert threads == self.cores
        self.looked.append(self.now)
        return 1 - 0.5 * self.busy / self.cores

    def slower(self, threads):
        return self.cores / threads * (3.5 if threads > self.cores - self.busy else 1.0)

    def spend(self, seconds, *, slower=None, where="here", steps_s=LOOK_S):
        """Train for some seconds; return the threads as they followed each other."""
        taken = [self.sharing.threads]
        for _ in range(round(seconds / LOOK_S)):
            self.now += LOOK_S
            self.since += steps_s
            pace = slower or self.slower(self.sharing.threads)
            threads = self.sharing.look(pace, seconds=self.since, where=where)
            if threads != taken[-1]:
                taken.append(threads)
                self.since = 0.0
        return taken


def test_on_a_quiet_machine_nobody_looks_around():
    machine = Machine()
    assert machine.spend(600) == [2]
    assert machine.looked == []


def test_a_neighbour_comes_and_goes():
    machine = Machine()
    machine.spend(30)
    machine.busy = 1
    assert machine.spend(5) == [2]  # one slow moment is no reason
    assert machine.spend(5) == [2, 1]
    assert machine.spend(120) == [1, 2, 1]  # after a minute both are tried again
    machine.busy = 0
    assert machine.spend(20) == [1, 2]
    assert machine.spend(600) == [2]


def test_one_slow_moment_is_no_reason():
    machine = Machine()
    machine.spend(30)
    machine.busy = 1
    assert machine.spend(5, slower=3.0) == [2]
    assert machine.spend(60, slower=1.0) == [2]


def test_a_moment_without_the_neighbour_is_no_reason():
    machine = Machine()
    machine.spend(30)
    machine.busy = 1
    machine.spend(30)
    for _ in range(2):
        looks, machine.busy = len(machine.looked), 0
        while len(machine.looked) == looks:
            assert machine.spend(5, slower=2.0) == [1]
        machine.busy = 1
        assert machine.spend(5, slower=2.0) == [1]
    assert machine.sharing.threads == 1


def test_a_training_that_begins_among_neighbours_takes_all_cores_when_they_go():
    machine = Machine(first=1)
    machine.busy = 1
    assert machine.spend(60) == [1]
    machine.busy = 0
    assert machine.spend(25) == [1, 2]


def test_fewer_threads_that_gain_nothing_are_given_up_and_tried_less_and_less():
    machine = Machine()
    machine.busy = 1
    machine.spend(5, slower=1.0)
    taken = [machine.now for _ in range(1000) if machine.spend(LOOK_S, slower=2.0) == [2, 1]]
    gaps = [after - before for before, after in pairwise(taken)]
    assert len(gaps) >= 6
    assert all(after > 1.4 * before for before, after in pairwise(gaps[:4]))
    assert gaps[-1] < 700  # but at last every ten minutes


def test_a_trial_lasts_for_seconds_of_steps():
    machine = Machine()
    machine.spend(30)
    machine.busy = 1
    assert machine.spend(10) == [2, 1]
    assert machine.spend(35, slower=9.0, steps_s=1.0) == [1]  # scoring in between is none
    assert machine.sharing.is_on_trial
    assert machine.spend(5, slower=9.0) == [1, 2]
    assert not machine.sharing.is_on_trial


def test_more_threads_are_tried_among_neighbours_that_have_become_fewer():
    machine = Machine(cores=8)
    machine.spend(30)
    machine.busy = 4
    assert machine.spend(60) == [8, 6, 4]
    machine.busy = 2
    assert machine.spend(60)[:2] == [4, 6]
    taken = [machine.spend(5)[-1] for _ in range(360)]
    assert set(taken) == {6, 8}  # eight are tried now and then
    assert taken.count(8) < 20


def test_threads_go_down_until_no_neighbour_holds_them_up():
    machine = Machine(cores=8)
    machine.spend(30)
    machine.busy = 3
    assert machine.spend(60) == [8, 6, 4]  # with 6 it gains nothing
    assert machine.spend(20) == [4]  # slower than planned, but as fast as four threads are
    machine.busy = 6
    assert machine.spend(45) == [4, 2]
    machine.busy = 0
    assert machine.spend(60) == [2, 8]


def test_of_many_threads_that_all_gain_nothing_it_comes_back_to_all():
    machine = Machine(cores=8)
    machine.busy = 1
    machine.spend(5, slower=1.0)
    assert machine.spend(60, slower=2.0) == [8, 6, 4, 2, 1, 8]


def test_a_slow_machine_without_neighbours_keeps_its_threads():
    machine = Machine()
    machine.spend(5)
    assert machine.spend(60, slower=3.0) == [2]
    assert len(machine.looked) == 4  # a look costs time: one in 15 seconds


def test_what_is_faster_than_planned_may_still_have_a_neighbour():
    machine = Machine()
    machine.spend(30, slower=0.3)
    machine.busy = 1
    assert machine.spend(10, slower=1.0) == [2, 1]


def test_no_trial_goes_from_one_stage_or_training_to_another():
    machine = Machine()
    machine.spend(30)
    machine.busy = 1
    assert machine.spend(10) == [2, 1]
    assert machine.spend(5, slower=1.0, where="there") == [1, 2]
    assert machine.spend(60, slower=1.0, where="there") == [2]


def test_a_training_that_ends_on_trial_leaves_the_threads_before():
    machine = Machine()
    machine.spend(30)
    machine.busy = 1
    machine.spend(10)
    assert machine.sharing.threads == 1
    assert machine.sharing.settle() == 2
    assert machine.sharing.settle() == 2


def test_the_threads_of_a_continued_training_are_taken_over():
    machine = Machine()
    machine.spend(30)
    machine.busy = 1
    machine.spend(10)
    machine.sharing.take(1)
    assert machine.sharing.settle() == 1
    assert machine.spend(15) == [1]


def test_the_share_of_the_cores_is_processor_time_a_core(monkeypatch):
    wall, used, threads = count(0.0, 0.1), iter((5.0, 5.6)), []
    monkeypatch.setattr(machine_module.time, "monotonic", lambda: next(wall))
    monkeypatch.setattr(machine_module.time, "process_time", lambda: next(used))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    share = machine_module.cores_share(2, seconds=0.25)
    assert share == pytest.approx(0.6 / 0.4 / 2)  # 0.1 s each look, the last at 0.4
    assert threads == [2, 7]  # as it was


# --- in the loop ------------------------------------------------------------------------------------------


class Script(Sharing):
    """Knows at which looks how many threads come next; ``trial`` are those to go back to."""

    def __init__(self, changes, *, first=1, trial=None):
        self.changes, self.threads, self.trial, self.looks = changes, first, trial, 0

    @property
    def is_on_trial(self):
        return self.trial is not None and self.threads != self.trial

    def take(self, threads):
        self.threads = threads

    def settle(self):
        self.threads = self.trial or self.threads
        return self.threads

    def look(self, slower, *, seconds, where):
        self.looks += 1
        self.threads = self.changes.get(self.looks, self.threads)
        return self.threads


@pytest.fixture
def taken(monkeypatch):
    """The threads of each step; looks come after each step."""
    found, inner, before = [], Trainer.step, torch.get_num_threads()

    def step(trainer, *args, **kwargs):
        found.append(torch.get_num_threads())
        return inner(trainer, *args, **kwargs)

    monkeypatch.setattr(trainer_module, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(Trainer, "step", step)
    yield found
    torch.set_num_threads(before)


def train(data, folder, sharing):
    """Train; by the clock each step takes twice what was planned."""
    settings, clock, pixels = config(), count(0.0, 0.5), 2 * 12 * 12
    train_fold(
        make_fabric(settings),
        TinyNet(),
        settings,
        data,
        folder=folder,
        log=EventLog(folder / "metrics.jsonl", fold=0),
        evaluate=score_of,
        remaining=Remaining(1e6, warm_up=0, clock=lambda: next(clock)),
        deadline=Deadline(lambda: 1e9, reserve_s=0.0, paces=[0.25 / pixels], sharing=sharing),
    )


def test_a_change_is_an_event_and_the_steps_after_it_follow(tmp_path, taken):
    script = Script({3: 2, 9: 1})
    train(make_data(tmp_path), tmp_path / "run", script)
    assert taken == [1] * 3 + [2] * 6 + [1] * 11
    assert events(tmp_path / "run", "threads") == [2, 1]
    assert threads_of(tmp_path / "run" / "metrics.jsonl", fold=0) == 1
    assert threads_of(tmp_path / "run" / "metrics.jsonl", fold=1) is None


def test_the_pace_and_where_it_was_are_told(tmp_path, taken):
    told = []

    class Listening(Script):
        def look(self, slower, *, seconds, where):
            told.append((slower, where))
            return self.threads

    train(make_data(tmp_path), tmp_path / "run", Listening({}))
    assert [slower for slower, _ in told] == pytest.approx([2.0] * 20)
    assert {where for _, where in told} == {("k", 0, 0)}


def test_a_training_that_ends_on_trial_is_predicted_with_the_threads_before(tmp_path, taken):
    train(make_data(tmp_path), tmp_path / "run", Script({18: 2}, trial=1))
    assert taken == [1] * 18 + [2] * 2
    assert events(tmp_path / "run", "threads") == [2, 1]


def test_a_stop_on_trial_goes_on_with_the_threads_before(tmp_path, taken, monkeypatch):
    data, second = make_data(tmp_path), Script({})
    with monkeypatch.context() as patch:
        leave_at(patch, 13, StoppedError("stop", exit_code=143))
        with pytest.raises(StoppedError):
            train(data, tmp_path / "left", Script({10: 2}, trial=1))
    train(data, tmp_path / "left", second)
    assert taken == [1] * 10 + [2] * 2 + [1] * 8
    assert second.threads == 1


def test_a_fresh_training_begins_with_the_threads_of_the_one_before(tmp_path, taken):
    train(make_data(tmp_path), tmp_path / "run", Script({}, first=2))
    assert set(taken) == {2}
    assert events(tmp_path / "run", "threads") == [2]


def test_left_after_a_change_it_goes_on_as_it_was(tmp_path, taken, monkeypatch):
    """Stopped at its 13th step, where a checkpoint is of that very step."""
    data = make_data(tmp_path)
    train(data, tmp_path / "whole", Script({3: 2, 17: 1}))
    whole = list(taken)
    taken.clear()
    with monkeypatch.context() as patch:
        leave_at(patch, 13, StoppedError("stop", exit_code=143))
        with pytest.raises(StoppedError):
            train(data, tmp_path / "left", Script({3: 2}))
    second = Script({5: 1})
    train(data, tmp_path / "left", second)
    assert taken == whole
    assert content(tmp_path / "left") == content(tmp_path / "whole")


def test_what_a_killed_process_changed_after_its_last_checkpoint_is_undone(tmp_path, taken, monkeypatch):
    """The log says what the weights at the end went through."""
    data = make_data(tmp_path)
    with monkeypatch.context() as patch:
        leave_at(patch, 13, KeyboardInterrupt())  # the last checkpoint is of step 10
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "left", Script({12: 2}))
    assert events(tmp_path / "left", "threads") == [2]
    taken.clear()
    sharing = Script({}, first=2)
    train(data, tmp_path / "left", sharing)
    assert taken == [1] * 10
    assert sharing.threads == 1
    assert events(tmp_path / "left", "threads") == []


def test_what_came_before_the_first_checkpoint_is_no_event(tmp_path, taken, monkeypatch):
    """Killed between the event and the first checkpoint, the next process begins anew."""
    from masksmith.training import loop

    def killed(run):
        raise KeyboardInterrupt

    data, run = make_data(tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(data, run, Script({}, first=2))
    assert events(run, "threads") == [2]
    train(data, run, Script({}))
    assert events(run, "threads") == []
    assert set(taken) == {1}


@pytest.mark.parametrize(
    ("sharing", "threads", "told"),
    [
        (Script({12: 2}), [1] * 12 + [2] * 3, []),  # the change is undone with the steps after it
        (Script({8: 2}), [1] * 8 + [2] * 7, [2]),  # it came before the checkpoint
        (Script({8: 2}, trial=1), [1] * 8 + [2] * 7, [2, 1]),  # it was on trial, and the trial is over
    ],
)
def test_a_rescue_goes_back_to_the_threads_of_the_checkpoint(
    tmp_path, taken, monkeypatch, sharing, threads, told
):
    """The 15th step ends in no number; the third epoch is trained again."""
    inner, calls = Trainer.step, []

    def step(trainer, *args, **kwargs):
        calls.append(1)
        return inner(trainer, *args, **kwargs) * (float("nan") if len(calls) == 15 else 1.0)

    monkeypatch.setattr(Trainer, "step", step)
    train(make_data(tmp_path), tmp_path / "run", sharing)
    after = told[-1] if told else 1
    assert taken == threads + [after] * 10
    assert sharing.threads == after
    assert events(tmp_path / "run", "threads") == told
    assert events(tmp_path / "run", "lr_scale") == [0.3]


def test_a_kill_on_trial_goes_on_with_the_threads_before(tmp_path, taken, monkeypatch):
    """The checkpoint of an epoch that ended on trial has the settled number, and the log says so."""
    data, second = make_data(tmp_path), Script({})
    with monkeypatch.context() as patch:
        leave_at(patch, 13, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "left", Script({8: 2}, trial=1))
    train(data, tmp_path / "left", second)
    assert taken == [1] * 8 + [2] * 4 + [1] * 10
    assert second.threads == 1
    assert events(tmp_path / "left", "threads") == [2, 1]
