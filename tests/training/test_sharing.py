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
from masksmith.training.sharing import Change, Sharing, candidates, fastest
from masksmith.training.trainer import Trainer
from tests.training.test_resume import leave_at
from tests.training.tiny import TinyNet, config, content, events, make_data, score_of

LOOK_S = 5.0


@pytest.mark.parametrize(
    ("most", "numbers"), [(1, [1]), (2, [2, 1]), (3, [3, 2, 1]), (4, [4, 3, 2, 1]), (16, [16, 12, 8, 4, 1])]
)
def test_candidates(most, numbers):
    assert candidates(most) == numbers


def test_the_fastest_by_enough():
    assert fastest({2: 0.5, 1: 1.0}, 2, gain=0.9) == 1
    assert fastest({2: 0.95, 1: 1.0}, 2, gain=0.9) == 2  # within the noise
    assert fastest({2: 0.95, 1: 1.0}, 1, gain=0.9) == 1
    assert fastest({4: 1.0, 2: 1.0, 1: 0.5}, 1, gain=0.9) == 4  # of two equals the larger


class Machine:
    """As measured beside one busy thread, a step with a thread on a shared core takes 3.5 times as long."""

    def __init__(self, *, cores=2, first=None):
        self.cores, self.busy, self.now, self.probed = cores, 0, 0.0, []
        self.sharing = Sharing(
            first or cores, most=cores, speeds=self.speeds, gain=0.9, clock=lambda: self.now
        )

    def speed(self, threads):
        return threads / (3.5 if threads > self.cores - self.busy else 1.0)

    def speeds(self, numbers):
        self.probed.append(self.now)
        return {number: self.speed(number) for number in numbers}

    def look(self, *, slower=None, where="here"):
        self.now += LOOK_S
        slower = slower or self.cores / self.speed(self.sharing.threads)
        return self.sharing.look(slower, where=where)

    def spend(self, seconds, **options):
        """Train for some seconds; return the threads as they followed each other."""
        taken = [self.sharing.threads]
        for _ in range(round(seconds / LOOK_S)):
            change = self.look(**options)
            taken += [] if change is None else [change.threads]
        return taken


def test_a_quiet_machine_is_probed_every_two_minutes():
    machine = Machine()
    assert machine.spend(600) == [2]
    assert len(machine.probed) == 5


def test_a_neighbour_comes_and_goes():
    machine = Machine()
    machine.spend(30)
    machine.busy = 1
    assert machine.look() is None  # one probe may err
    assert machine.look() == Change(1, 1.75)
    assert machine.spend(120) == [1]
    machine.busy = 0
    assert machine.spend(60) == [1, 2]
    assert machine.spend(600) == [2]


def test_a_moment_without_the_neighbour_is_no_reason():
    machine = Machine()
    machine.spend(30)
    machine.busy = 1
    machine.spend(10)
    for _ in range(20):
        probes, machine.busy = len(machine.probed), 0
        while len(machine.probed) == probes:
            assert machine.look() is None
        machine.busy = 1
        assert machine.look() is None
    assert machine.sharing.threads == 1


def test_a_training_that_begins_among_neighbours_takes_all_cores_when_they_go():
    machine = Machine(first=1)
    machine.busy = 1
    assert machine.spend(60) == [1]
    machine.busy = 0
    assert machine.spend(120) == [1, 2]


def test_a_neighbour_that_shows_in_no_pace_is_found_too():
    machine = Machine()
    machine.busy = 1
    assert machine.spend(120, slower=1.0) == [2]
    assert machine.spend(10, slower=1.0) == [2, 1]  # the plan had expected worse


def test_fewer_threads_that_gain_nothing_are_given_up_and_tried_less_and_less():
    machine = Machine()
    machine.busy = 1
    taken = [machine.now for _ in range(1000) if machine.look(slower=2.0) == Change(1, 1.75)]
    gaps = [after - before for before, after in pairwise(taken)]
    assert len(gaps) >= 3
    assert all(after > 1.6 * before for before, after in pairwise(gaps))
    assert machine.look(slower=2.0) is None
    assert machine.sharing.threads == 2


def test_fewer_threads_are_judged_by_the_pace_of_the_same_training():
    for where, after in (("here", 2), ("there", 1)):
        machine = Machine()
        machine.busy = 1
        assert machine.spend(25, slower=2.0) == [2, 1]
        machine.spend(15, slower=2.0, where=where)
        assert machine.sharing.threads == after


def test_threads_follow_the_neighbours_on_many_cores():
    machine = Machine(cores=8)
    machine.spend(15)
    machine.busy = 1
    assert machine.spend(60) == [8, 6]
    machine.busy = 4
    assert machine.spend(180) == [6, 4]
    machine.busy = 2
    assert machine.spend(180) == [4, 6]
    machine.busy = 0
    assert machine.spend(180) == [6, 8]


def test_no_more_than_twice_the_pace_is_expected_of_fewer_threads():
    machine = Machine(first=1)
    machine.speed = lambda threads: {2: 0.1, 1: 1.0}[threads]
    machine.sharing.take(2)
    machine.spend(15, slower=3.5)
    assert machine.look(slower=3.5) is None
    assert machine.look(slower=3.5) == Change(1, 2.0)


def test_a_slow_machine_without_neighbours_keeps_its_threads():
    machine = Machine()
    assert machine.spend(600, slower=3.0) == [2]
    assert machine.probed == [20, 60, 140, 260, 380, 500]  # a probe costs time


def test_a_number_of_threads_that_is_no_candidate_is_compared_too():
    machine = Machine(cores=8, first=3)
    machine.busy = 5
    assert machine.spend(60) == [3]  # 3 of 8 threads are as fast as can be


def test_the_probe_counts_products_and_leaves_the_threads(monkeypatch):
    clock, threads = count(0.0, 0.01), []
    monkeypatch.setattr(machine_module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    speeds = machine_module.thread_speeds([2, 1], seconds=0.2, rounds=2)
    assert speeds == pytest.approx({2: 90, 1: 90}, rel=0.2)  # a look at the clock after each
    assert threads == [2, 1, 2, 1, 7]


# --- in the loop ------------------------------------------------------------------------------------------


class Script(Sharing):
    """Knows at which looks how many threads come next."""

    def __init__(self, changes, *, first=1, faster=2.0):
        self.changes, self.threads, self.faster, self.slower = changes, first, faster, []

    def take(self, threads):
        self.threads = threads

    def look(self, slower, *, where):
        self.slower.append(slower)
        change = self.changes.get(len(self.slower))
        if change is not None:
            self.threads = change
        return None if change is None else Change(change, self.faster)


@pytest.fixture
def taken(monkeypatch):
    """The threads of each step; looks come after each step."""
    found, inner, before = [], Trainer.step, torch.get_num_threads()

    def step(trainer, *args, **kwargs):
        found.append(torch.get_num_threads())
        return inner(trainer, *args, **kwargs)

    monkeypatch.setattr(trainer_module, "_LATE_EVERY_S", 0.0)
    monkeypatch.setattr(Trainer, "step", step)
    yield found
    torch.set_num_threads(before)


def train(data, folder, sharing):
    """Train; by the clock each step takes a second, and a quarter of it was expected."""
    settings, clock, pixels = config(), count(0.0, 1.0), 2 * 12 * 12
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


def test_the_pace_that_a_change_brings_is_believed_at_once(tmp_path, taken):
    script = Script({3: 2}, faster=4.0)
    train(make_data(tmp_path), tmp_path / "run", script)
    before, after = script.slower[2:4]
    assert before == pytest.approx(4.0, rel=0.01)
    assert 1.0 < after < 2.5  # a quarter, and one more step of a second


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


def test_a_rescue_goes_back_to_the_threads_of_the_checkpoint(tmp_path, taken, monkeypatch):
    inner, calls = Trainer.step, []

    def step(trainer, *args, **kwargs):
        calls.append(1)
        return inner(trainer, *args, **kwargs) * (float("nan") if len(calls) == 15 else 1.0)

    monkeypatch.setattr(Trainer, "step", step)
    sharing = Script({12: 2})
    train(make_data(tmp_path), tmp_path / "run", sharing)
    assert taken == [1] * 12 + [2] * 3 + [1] * 10  # the third epoch again
    assert sharing.threads == 1
    assert events(tmp_path / "run", "threads") == []
    assert events(tmp_path / "run", "lr_scale") == [0.3]
