"""Budgets end to end, on a machine whose clock is ours: a step takes as long as the test says."""

import json
import shutil
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import yaml

import masksmith as ms
from masksmith import pipeline
from masksmith.core.errors import DiskFullError, DivergedError, InputError
from masksmith.engines import Done
from masksmith.folds.config import ALL
from masksmith.planning.budget import Budget, Duration
from masksmith.planning.units import Unit
from masksmith.prediction import gate, predict
from masksmith.project.folder import Project
from masksmith.project.members import Member, members_of_run
from masksmith.recipes.recipe import load_recipe
from masksmith.steps import compete as steps_compete
from masksmith.steps import plan as steps_plan
from masksmith.steps import tasks as steps_tasks
from masksmith.steps.plan import Plan, Planner, machine_tools
from masksmith.steps.runs import open_run
from masksmith.steps.submit import write_baseline
from masksmith.training import loop
from masksmith.training.events import read_events
from tests.blends import write_recipe
from tests.engines.fakes import Backwards
from tests.planning.machine import Machine as KnownMachine
from tests.planning.machine import Seconds

MODEL = {  # of the recipe auto, whose stages a budget shortens
    "training.threads": 1,
    "training.precision": "32-true",
    "folds.count": 3,
    "model.encoder": "tu-test_resnet",
    "model.encoder_weights": "none",
    "model.encoder_depth": 3,
    "model.decoder_channels": [8, 8, 8],
    "size.resize_hw": [32, 32],
    "training.batch_size": 8,
    "tuning": load_recipe("smoke").tuning.model_dump(mode="json"),
}
STEP, FORWARD = 2.0, 0.5  # seconds


@dataclass
class Machine:
    """A clock that moves by the work that is done; ``before_step`` may change the speed."""

    now: float = 0.0
    step_s: float = STEP
    before_step: object = None

    def clock(self):
        return self.now

    def seconds(self, model, training, hw, batch):
        return Seconds(build_s=1.0, first_step_s=0.0, step_s=STEP, forward_s=FORWARD)


@pytest.fixture
def machine(monkeypatch):
    machine, train_step = Machine(), loop.train_step

    def step(state, batches):
        if machine.before_step:
            machine.before_step()
        machine.now += machine.step_s
        return train_step(state, batches)

    def counted(build):
        def runtime_of(*arguments, **options):
            runtime = build(*arguments, **options)

            def forward(*inputs):
                machine.now += FORWARD * machine.step_s / STEP
                return runtime(*inputs)

            return forward

        return runtime_of

    def tools(project, asked):
        return replace(machine_tools(project, asked), measure=machine.seconds, runtime=lambda *any_: None)

    monkeypatch.setattr(loop, "train_step", step)
    for module in (predict, gate):
        monkeypatch.setattr(module, "torch_runtime", counted(module.torch_runtime))
    for module in (steps_compete, steps_plan):
        monkeypatch.setattr(module, "machine_tools", tools)
    monkeypatch.setattr(
        pipeline, "Budget", lambda path, asked, started: Budget(path, asked, clock=machine.clock)
    )
    return machine


def compete(example, out, budget, **more):
    return ms.compete(example / "data", out=out, budget=budget, overrides=MODEL, **more)


def read(project, name):
    return json.loads((project / name).read_text())


def kinds(project):
    return [(unit["kind"], unit["fold"]) for unit in read(project, "plan.json")["units"]]


@pytest.mark.slow
def test_a_budget_is_kept_and_more_time_adds_to_it(example, tmp_path, machine):
    result = compete(example, tmp_path, "5m")
    assert 0.95 * 300 - 30 <= machine.now <= 1.05 * 300 + 30
    assert kinds(tmp_path) == [("fold", 0)]  # less than a whole length, so nothing is left over
    first = {path: path.read_bytes() for path in tmp_path.glob("runs/*/checkpoints/*/final.safetensors")}
    assert result.budget.endswith("of 5m00s")
    assert result.submission.ids == 8
    assert "# planned for 5m00s" in (tmp_path / "plan.yaml").read_text()
    again = compete(example, tmp_path, "5m")  # the same budget: it is spent
    assert machine.now <= 1.05 * 300 + 30
    assert again.members == result.members
    more = compete(example, tmp_path, "+10m")
    assert 0.95 * 900 - 60 <= machine.now <= 1.05 * 900 + 30
    assert kinds(tmp_path)[:2] == [("fold", 0), ("refit", ALL)]
    assert {path: path.read_bytes() for path in first} == first  # what was trained stays as it was
    assert len(more.members) > len(result.members)
    spent, total = more.budget.split(" of ")
    assert total.startswith("14m")  # ten minutes more than were spent
    assert spent.startswith(("13m", "14m"))
    page = (tmp_path / "report.html").read_text()
    assert "Budget" in page
    assert "all images, of which each fold lacks some" in page


@pytest.mark.slow
def test_a_neighbour_shortens_a_training_and_it_grows_again_when_he_goes(example, tmp_path, machine):
    """Five times as slow for as long as he is there; in the second project he stays."""
    for name, end in (("goes", 100.0), ("stays", 1e9)):
        machine.now, project = 0.0, tmp_path / name

        def neighbour(end=end):
            machine.step_s = 5 * STEP if 30 < machine.now < end else STEP

        machine.before_step = neighbour
        compete(example, project, "4m")
        assert machine.now <= 1.05 * 240 + 30
        assert name == "stays" or machine.now >= 0.95 * 240 - 30
        assert kinds(project)[0] == ("fold", 0)
        (log,) = project.glob("runs/*/metrics*.jsonl")
        found = read_events(log)
        shares = [event["value"] for event in found if event["name"] == "replanned"]
        assert min(shares) < 0.9
        assert name == "stays" or max(shares) > 1.2
        rates = [event["value"] for event in found if event["name"] == "lr"]
        assert rates[-1] < 0.15 * max(rates)  # the rate still fell to its end
        after = rates[rates.index(max(rates)) :]
        assert after == sorted(after, reverse=True)  # and never rose again


@pytest.mark.slow
def test_a_stop_in_a_budget_and_on(example, tmp_path, machine):
    made = []

    def stop():
        made.append(1)
        if len(made) == 30:
            signal.raise_signal(signal.SIGTERM)

    machine.before_step = stop
    assert compete(example, tmp_path, "4m").stopped == 143
    assert read(tmp_path, "submission.json")["kind"] == "interim"
    spent = read(tmp_path, "budget.json")["spent_s"]
    assert spent == pytest.approx(machine.now, abs=0.1)
    assert spent >= 30 * STEP
    assert compete(example, tmp_path, "4m").stopped is None
    assert machine.now <= 1.05 * 240 + 30
    assert read(tmp_path, "submission.json")["kind"] == "trained"
    assert len(kinds(tmp_path)) == 1  # the unit was gone on with


@pytest.mark.slow
def test_what_a_budget_refuses(example, trained, tmp_path, machine):
    with pytest.raises(
        InputError, match=r"8s are left after measuring this machine, but an epoch of tu-test_resnet .*\(7s\)"
    ):
        compete(example, tmp_path / "p", "8s")
    assert read(tmp_path / "p", "submission.json")["kind"] == "baseline"
    assert ms.submit(tmp_path / "p", check=tmp_path / "p" / "submission.csv").ids == 8
    with pytest.raises(InputError, match="'tpu' is not there; this machine has"):
        compete(example, tmp_path / "q", "5m", device="tpu")
    project = shutil.copytree(trained, tmp_path / "r")
    (project / "plan.json").write_text('{"format": 9}')
    with pytest.raises(InputError, match=r"plan\.json: made by a newer masksmith"):
        compete(example, project, "5m")


@pytest.mark.slow
def test_plan_only_writes_the_recipe(example, tmp_path, machine):
    path = tmp_path / "p" / "plan.yaml"
    text = ms.plan(example / "data", budget="10m", out=path.parent, overrides=MODEL)
    assert path.read_text() == text
    again = ms.plan(example / "data", budget="10m", overrides=MODEL)  # a second later the comments may differ
    assert yaml.safe_load(again) == yaml.safe_load(text)
    assert not (tmp_path / "p" / "runs").exists()
    short = {f"training.stages.{stage}.epochs": 1 for stage in range(3)}
    run = ms.train(path.parent, recipe=str(path), overrides=short)  # it is a recipe
    assert run.recipe.model.encoder == "tu-test_resnet"


def test_a_member_that_makes_it_worse_does_not_join(project, monkeypatch):
    """By a score that rises and by a distance that falls: beside others of its fold, and as the first of it."""
    opened = Project.open(project)
    (trained,) = members_of_run(opened.run())
    unit = Unit("cycle", 0, 0, 1.0, "x", "ref", run=trained.run.path.name)
    first = steps_compete.accept_unit(opened, unit, trained, [])
    assert (first.joined, first.score_before) == (True, None)
    monkeypatch.setattr(steps_compete, "oof_of", lambda *any_: {})
    baselines = {"nothing": 90.0, "everything": 30.0}
    monkeypatch.setattr(steps_compete, "baseline_scores", lambda *any_, **more: baselines)
    for metric, cases, best in (
        ("tgs_map", ((0.4, False), (0.5, True), (0.6, True)), 90.0),
        ("hausdorff_95", ((0.4, True), (0.5, True), (0.6, False)), 30.0),
    ):
        recipe = trained.run.recipe.model_copy(update={"metric": metric})
        member = Member(replace(trained.run, recipe=recipe), 0)
        for after, joined in cases:
            scores = iter([after, 0.5])  # with it, without it
            monkeypatch.setattr(steps_compete, "plain_score", lambda *any_, scores=scores: next(scores))
            judged = steps_compete.accept_unit(opened, unit, member, [trained])
            assert (judged.joined, judged.score_before, judged.score_after) == (joined, 0.5, after)
        for after in (best - 1, best + 1):
            monkeypatch.setattr(steps_compete, "plain_score", lambda *any_, after=after: after)
            judged = steps_compete.accept_unit(opened, unit, member, [Member(trained.run, 1)])
            assert (judged.joined, judged.score_before) == ((after > best) == (metric == "tgs_map"), best)


def test_the_baseline_is_the_better_of_nothing_and_everything(project):
    opened = Project.open(project)
    verdict = write_baseline(opened, opened.run().recipe)
    assert verdict.empty == verdict.ids
    facts = read(project, "submission.json")
    assert (facts["kind"], facts["masks"]) == ("baseline", "nothing")
    masks = opened.cache.train_masks
    content = [name for name in masks if name not in opened.blank_train]
    assert facts["score"] == pytest.approx(np.mean([not masks[name].any() for name in content]))


@pytest.mark.slow
def test_a_unit_that_diverges_is_left_out(example, tmp_path, machine, monkeypatch):
    inner = steps_tasks.train_member

    def train_member(project, member, pace):
        if member.run.recipe.training.start_run is not None:
            raise DivergedError("fold 0, epoch 1: training diverged again")
        inner(project, member, pace)

    monkeypatch.setattr(steps_tasks, "train_member", train_member)
    assert compete(example, tmp_path, "10m").submission.ids == 8
    units = read(tmp_path, "plan.json")["units"]
    assert units[0]["kind"] == "fold"
    assert all(unit["joined"] is (unit["kind"] == "fold") for unit in units)
    cycles = [unit["reason"] for unit in units if unit["kind"] == "cycle"]
    assert cycles
    assert all("it failed: fold 0, epoch 1: training diverged again" in reason for reason in cycles)


@pytest.mark.slow
def test_units_of_a_budget_on_workers_of_two_kinds(project, monkeypatch):
    """The pace of each kind is measured once; units end backwards, and are judged in the order of the plan."""
    opened, tools = Project.open(project), KnownMachine().tools()
    recipe = opened.run().recipe
    seeds = [open_run(opened, recipe.model_copy(update={"seed": seed})) for seed in (1, 2)]
    units = [Unit("seed", 0, at + 1, 1.0, "a seed", "ref", run=run.path.name) for at, run in enumerate(seeds)]
    planner, engine = Planner(opened, recipe, [], tools), Backwards("fast", "slow")
    monkeypatch.setattr(planner, "make", lambda left: planner.save(Plan("x", recipe, [], units)))
    monkeypatch.setattr(planner, "next", lambda *any_: None)
    monkeypatch.setattr(steps_tasks, "machine_tools", lambda *any_: tools)
    monkeypatch.setattr(steps_compete, "_last_mile", lambda *any_, **more: None)
    budget = Budget(opened.budget_json, Duration(3600, more=False))
    outcome = steps_compete.compete_units(opened, recipe, planner, budget, engine)
    names = [f"unit {at + 1}: {run.path.name}/fold 0" for at, run in enumerate(seeds)]
    assert engine.given == ["pace of fast", "pace of slow", *names]
    assert engine.ran == ["pace of slow", "pace of fast", *reversed(names)]
    done = planner.load().units
    assert all(unit.done and unit.took_s > 0 for unit in done)
    assert done[0].joined  # the first of all
    assert [one.run.path.name for one in outcome.members] == [unit.run for unit in done if unit.joined]
    assert set(planner.slower_by) == {"fast", "slow"}


def test_a_unit_that_cannot_be_predicted_or_scored_is_left_out(project, monkeypatch):
    opened = Project.open(project)
    (member,) = members_of_run(opened.run())
    planner = Planner(opened, member.run.recipe, [], KnownMachine().tools())
    unit = Unit("cycle", 0, 0, 1.0, "a cycle", "ref", run=member.run.path.name)
    plan = Plan("x", member.run.recipe, [], [unit])

    def attempt(verb, error, *, beside):
        def fail(*any_):
            raise error

        session = steps_compete.Session(opened)
        session.members = [member] * beside
        with monkeypatch.context() as patch:
            patch.setattr(steps_compete, verb, fail)
            task = steps_compete.begin_unit(session, planner, plan, 0, Budget(opened.root / "b.json", None))
            return steps_compete.end_unit(
                session, planner, plan, 0, Done(task, {"seconds_per_px": 0.0}, 1.0, "")
            )

    refused = InputError("prediction.weights: 'snapshots': none were kept")
    for verb in ("predict_member", "accept_unit"):
        unit = attempt(verb, refused, beside=1)
        assert (unit.joined, unit.done) == (False, True)  # a later call does not trip over it
        assert unit.reason == f"a cycle; it failed: {refused}"
        with pytest.raises(InputError, match="'snapshots': none were kept"):
            attempt(verb, refused, beside=0)
        assert planner.load().units == []
    with pytest.raises(DiskFullError, match="3 bytes are left"):  # a full disk ends the call
        attempt("predict_member", DiskFullError("oof/fold_0.npy: 3 bytes are left"), beside=1)


def test_a_member_predicts_with_weights_that_its_training_kept(project, monkeypatch):
    """As a cosine cycle, which keeps no snapshots, in a plan whose folds predict with theirs."""
    opened = Project.open(project)
    run = opened.run()
    snapshots = run.recipe.prediction.model_copy(update={"weights": "snapshots"})
    recipe = run.recipe.model_copy(update={"prediction": snapshots})
    planner = Planner(opened, recipe, [], KnownMachine().tools())
    unit = Unit("cycle", 0, 0, 1.0, "a cycle", "ref", run=run.path.name, took_s=1.0, joined=True)
    monkeypatch.setattr(planner, "make", lambda left: Plan("x", recipe, [], [unit]))
    monkeypatch.setattr(planner, "next", lambda *any_: None)
    session = steps_compete.Session(opened)
    assert list(steps_compete.train_units(session, planner, Budget(project / "b.json", None))) == []
    assert [member.run.recipe.prediction.weights for member in session.members] == ["final"]


@pytest.mark.slow
def test_a_run_that_cannot_predict_as_the_plan_asks_goes_on_as_it_did(example, tmp_path, caplog):
    ms.check(example / "data", tmp_path / "p")
    project = Project.open(tmp_path / "p")
    views = {"prediction.tta": ["identity", "vflip"], "tuning.resamples": 300}
    head = {"model.image_head": "avg", "prediction.image_head": "gate"}
    head |= {"training.stages.0.loss": [{"name": "bce"}, {"name": "image_bce"}]}
    for changes, asked in (({"model.derived_channels": "depth_ramp"}, views), ({}, views | head)):
        caplog.clear()
        run = open_run(project, load_recipe(write_recipe(tmp_path, "a", **changes)))
        planned = load_recipe(write_recipe(tmp_path, "b", **asked))
        unit = Unit("fold", 0, 0, 1.0, "", "", run=run.path.name)
        member = steps_compete.member_of_unit(project, unit, planned)
        assert member.run.recipe.prediction == run.recipe.prediction
        assert project.run(run.path.name).recipe == member.run.recipe  # it can still be read
        assert member.run.recipe.tuning.resamples == 300
        assert "it goes on predicting as it did" in caplog.text
        able = planned.model_copy(update={"prediction": run.recipe.prediction})
        assert steps_compete.member_of_unit(project, unit, able).run.recipe.prediction == able.prediction
