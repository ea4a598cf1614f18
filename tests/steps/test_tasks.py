"""Trainings and predictions as tasks of an engine, with other machines that are played in this process."""

import json
import signal

import pytest

import masksmith as ms
from masksmith.augment import CallableAugment
from masksmith.core import interrupt
from masksmith.core.errors import DiskFullError, DivergedError, InputError, StoppedError
from masksmith.core.files import read_json, remove_tree, write_text
from masksmith.core.locks import LOCK
from masksmith.engines.local import LocalEngine
from masksmith.folds.config import ALL
from masksmith.planning.units import Unit
from masksmith.project.folder import Project
from masksmith.steps import tasks, work
from masksmith.steps.plan import Plan, Planner
from masksmith.steps.unit_queue import UnitQueue, choose_slot, kind_of
from masksmith.training import loop
from tests.engines.fakes import Backwards, Died
from tests.planning.machine import Machine

SMALL = {
    "folds.count": 2,
    "folds.train": 2,
    "training.threads": 1,
    "training.stages.0.epochs": 2,
    "size.resize_hw": [32, 32],
    "tuning.resamples": 100,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ms.example(tmp_path_factory.mktemp("tasks"), train=18, test=3)


def use(monkeypatch, engine):
    monkeypatch.setattr(work, "open_engine", lambda address: engine)
    return engine


def compete(data, out, **changes):
    return ms.compete(data, out=out, recipe="smoke", overrides=SMALL | changes)


def results(project):
    """What must be the same with every engine."""
    wanted = (
        "submission.csv",
        "runs/*/checkpoints/*/final.safetensors",
        "runs/*/oof/*.npy",
        "runs/*/test/*.npy",
    )
    return {
        str(path.relative_to(project)): path.read_bytes()
        for glob in wanted
        for path in sorted(project.glob(glob))
    }


@pytest.mark.slow
def test_the_order_of_the_workers_and_their_deaths_change_nothing(data, tmp_path, monkeypatch):
    """Two folds and all images, which wait for the folds; each dies once at its second step."""
    local = compete(data, tmp_path / "local", **{"folds.refit": True})
    engine, steps, step = use(monkeypatch, Backwards()), dict[int, int](), loop.train_step

    def deadly(state, batches):
        fold = state.data.fold
        steps[fold] = steps.get(fold, 0) + 1
        if steps[fold] == 2:
            raise Died
        return step(state, batches)

    monkeypatch.setattr(loop, "train_step", deadly)
    other = compete(data, tmp_path / "other", **{"folds.refit": True})
    run = Project.open(tmp_path / "other").run()
    first, last = f"{run.path.name}/fold 0", f"{run.path.name}/fold all"
    assert engine.given == [first, f"{run.path.name}/fold 1", last]
    assert engine.ran[1:] == [first, last]
    assert sorted(engine.died) == sorted(engine.given)
    assert other.members == local.members
    assert results(tmp_path / "other") == results(tmp_path / "local")
    logs = [run.events(fold) for fold in (0, 1, ALL)]
    assert len({log.name for log in logs}) == 3
    for log in logs:
        events = [json.loads(line) for line in log.read_text().splitlines()]
        assert [event["epoch"] for event in events if event["name"] == "loss"] == [1, 2]
    ledger = read_json(run.path / "stage.json")
    assert {f"fold_{k}/{what}" for k in (0, 1) for what in ("train", "oof", "test")} <= ledger.keys()
    assert set(run.read_times()) >= {f"{what} {k}" for k in (0, 1) for what in ("oof", "test")}
    ms.train(tmp_path / "other", recipe="smoke", overrides=SMALL | {"folds.refit": True}, engine="fake")
    assert len(engine.given) == 3  # nothing is trained twice


@pytest.mark.slow
def test_train_and_predict_with_an_engine(data, tmp_path, monkeypatch):
    ms.check(data, tmp_path)
    engine = use(monkeypatch, Backwards())
    changes = SMALL | {"folds.train": 2, "prediction.batch_size": 1}
    run = ms.train(tmp_path, recipe="smoke", overrides=changes, engine="fake")
    assert not run.oof(0).exists()
    names = [f"{run.path.name}/fold {fold}" for fold in (1, 0)]
    assert engine.ran == names
    ms.predict(tmp_path, engine="fake")
    assert engine.ran[2:] == names
    whole = results(tmp_path)
    # more places than members: shards, of which one was left by a driver that had another number of places
    remove_tree(run.oof(0).parent)
    remove_tree(run.test(0).parent)
    write_text(run.oof(0).with_name("fold_0.part-0-of-9.npy"), "left over")
    engine = use(monkeypatch, Backwards(*"aaaaaaa"))
    ms.predict(tmp_path, engine="fake")
    assert engine.ran[-1] == f"{names[1]}, oof 1 of 3"
    assert len(engine.ran) == 6 + 2
    assert results(tmp_path) == whole
    left = {path.name for path in run.oof(0).parent.iterdir()}
    assert {name for name in left if not name.startswith(".")} == {
        f"fold_{k}.{end}" for k in (0, 1) for end in ("npy", "csv")
    }
    assert not [name for name in left if "part" in name]
    assert run.read_times()["oof 0"] > 0
    ms.predict(tmp_path, engine="fake")
    assert len(engine.ran) == 8


def test_a_callable_of_ones_own_cannot_be_sent(project):
    opened = Project.open(project, augment=CallableAugment("mine", dict))
    with pytest.raises(
        InputError, match=r"^augment: a callable of your own cannot be sent .* --engine fake; use"
    ):
        tasks.where_of(opened, Backwards())
    assert not tasks.where_of(opened, LocalEngine())["remote"]


def test_a_worker_stops_when_another_driver_has_the_project(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_LOOK_EVERY_S", 0.0)
    lock, before = tmp_path / LOCK, signal.getsignal(signal.SIGTERM)
    write_text(lock, "pid 1 on a\n")
    with interrupt.graceful(), interrupt.on_heartbeat(tasks._leash(lock, "pid 1 on a\n")):
        interrupt.check_stop()
        write_text(lock, "pid 2 on a\n")
        with pytest.raises(StoppedError, match="SIGTERM"):
            interrupt.check_stop()
        with pytest.raises(StoppedError):  # it is told once: a second signal would end the process
            interrupt.check_stop()
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_a_unit_failed_with_comes_back():
    for kind in (InputError, DiskFullError, DivergedError):
        found = tasks.failure_of({"failed": kind.__name__, "text": "why", "seconds_per_px": 0.0})
        assert (type(found), str(found)) == (kind, "why")
    assert tasks.failure_of({"seconds_per_px": 1.0}) is None


# --- budgets ----------------------------------------------------------------------------------------------


def test_units_are_judged_in_the_order_of_the_plan(project):
    opened = Project.open(project)
    recipe, name = opened.run().recipe, opened.run().path.name
    planner = Planner(opened, recipe, [], Machine().tools())
    planner.slower_by = {"slow": 3.0, "fast": 1.0}
    engine, now, places = Backwards("slow", "fast", "fast"), [0.0], []

    def more(plan):
        return (
            plan.with_unit(Unit("fold", len(plan.units), 0, 1.0, "", "r", run=name))
            if len(plan.units) < 4
            else None
        )

    def begin(plan, at, on):
        places.append((at, on, planner.slower))
        return tasks.Task(f"unit {at}", "json:dumps", {"obj": at}, on=on)

    queue = UnitQueue(engine, planner, Plan("x", recipe, [], []), more, begin, spent=lambda: now[0])
    judged = []
    for done in engine.run(queue.tasks()):
        now[0] += 1
        queue.take(done)
        for at, ended, seconds in queue.ready():
            judged.append((at, ended.value, seconds, kind_of(engine, ended.worker)))
            queue.plan = queue.plan.with_unit(Unit("fold", at, 0, 1.0, "", "r", run=name, joined=True), at)
    assert engine.ran == ["unit 2", "unit 3", "unit 1", "unit 0"]
    assert places == [(0, "node 1", 1.0), (1, "node 2", 1.0), (2, "node 0", 3.0), (3, "node 0", 3.0)]
    assert judged == [
        (0, "0", 4.0, "fast"),
        (1, "1", 3.0, "fast"),
        (2, "2", 1.0, "slow"),
        (3, "3", 1.0, "slow"),
    ]
    assert choose_slot(Backwards("fast", "fast"), planner, recipe, []) == ""  # all are alike
    assert choose_slot(LocalEngine(), planner, recipe, []) == ""
    assert kind_of(LocalEngine(), "this machine") == ""
