"""Budgets end to end, on a machine whose clock is ours: a step takes as long as the test says."""

import json
import shutil
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest

import masksmith as ms
from masksmith import pipeline
from masksmith.core.errors import DiskFullError, DivergedError, InputError
from masksmith.planning.budget import Budget
from masksmith.planning.units import Unit
from masksmith.prediction import gate, predict
from masksmith.project.folder import Project
from masksmith.project.members import Member, members_of_run
from masksmith.recipes.recipe import load_recipe
from masksmith.steps import compete as steps_compete
from masksmith.steps.plan import Plan, Planner, machine_tools
from masksmith.steps.runs import open_run
from masksmith.steps.submit import write_baseline
from masksmith.training import loop
from masksmith.training.events import read_events
from tests.blends import write_recipe
from tests.conftest import TINY
from tests.planning.machine import Machine as KnownMachine
from tests.planning.machine import Seconds

MODEL = {key: value for key, value in TINY.items() if not key.startswith(("training.stages", "folds.train"))}
MODEL |= {"model.encoder": "tu-test_resnet", "model.decoder_channels": [8, 8, 8]}  # some hundred steps a test
STEP, FORWARD = 2.0, 0.5  # seconds
IMAGE_HEAD = {
    "model.image_head": "avg",
    "prediction.image_head": "gate",
    "training.stages.0.loss": [{"name": "bce"}, {"name": "image_bce"}],
}


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
            machine.before_step(state)
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
    monkeypatch.setattr(pipeline, "machine_tools", tools)
    monkeypatch.setattr(
        pipeline, "Budget", lambda path, asked, started: Budget(path, asked, clock=machine.clock)
    )
    return machine


def plan_of(project):
    return json.loads((project / "plan.json").read_text())


def kinds(project):
    return [(unit["kind"], unit["fold"]) for unit in plan_of(project)["units"]]


def trained_files(project):
    return {path: path.read_bytes() for path in project.glob("runs/*/checkpoints/*/final.safetensors")}


def compete(example, out, budget, **more):
    return ms.compete(example / "data", out=out, budget=budget, overrides=MODEL, **more)


@pytest.mark.slow
def test_a_budget_is_kept_and_more_time_adds_to_it(example, tmp_path, machine):
    result = compete(example, tmp_path, "5m")
    assert 0.95 * 300 - 30 <= machine.now <= 1.05 * 300 + 30
    assert kinds(tmp_path) == [("fold", 0)]  # less than a whole length, so nothing is left over
    first = trained_files(tmp_path)
    assert result.budget.endswith("of 5m00s")
    assert result.submission.ids == 8
    text = (tmp_path / "plan.yaml").read_text()
    assert "# planned for 5m00s" in text
    again = compete(example, tmp_path, "5m")  # the same budget: it is spent
    assert machine.now <= 1.05 * 300 + 30
    assert again.members == result.members
    more = compete(example, tmp_path, "+10m")
    assert 0.95 * 900 - 60 <= machine.now <= 1.05 * 900 + 30
    assert kinds(tmp_path)[:2] == [("fold", 0), ("fold", 1)]
    assert len(kinds(tmp_path)) > 2
    after = trained_files(tmp_path)
    assert {path: after[path] for path in first} == first  # what was trained stays as it was
    assert len(more.members) > len(result.members)
    spent, total = more.budget.split(" of ")
    assert total.startswith("14m")  # ten minutes more than were spent
    assert spent.startswith(("13m", "14m"))
    page = (tmp_path / "report.html").read_text()
    assert "Budget" in page
    assert "fold 1 is missing" in page


def test_a_neighbour_shortens_a_training_and_it_grows_again_when_he_goes(example, tmp_path, machine):
    """Five times as slow for as long as he is there; in the second project he stays."""
    for name, end in (("goes", 100.0), ("stays", 1e9)):
        machine.now, project = 0.0, tmp_path / name

        def neighbour(_state, end=end):
            machine.step_s = 5 * STEP if 30 < machine.now < end else STEP

        machine.before_step = neighbour
        compete(example, project, "4m")
        assert machine.now <= 1.05 * 240 + 30
        assert name == "stays" or machine.now >= 0.95 * 240 - 30
        assert kinds(project)[0] == ("fold", 0)
        (log,) = project.glob("runs/*/metrics.jsonl")
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

    def stop(_state):
        made.append(1)
        if len(made) == 30:
            signal.raise_signal(signal.SIGTERM)

    machine.before_step = stop
    stopped = compete(example, tmp_path, "4m")
    assert stopped.stopped == 143
    assert json.loads((tmp_path / "submission.json").read_text())["kind"] == "interim"
    spent = json.loads((tmp_path / "budget.json").read_text())["spent_s"]
    assert spent == pytest.approx(machine.now, abs=0.1)
    assert spent >= 30 * STEP
    done = compete(example, tmp_path, "4m")
    assert done.stopped is None
    assert machine.now <= 1.05 * 240 + 30
    assert json.loads((tmp_path / "submission.json").read_text())["kind"] == "trained"
    assert len(plan_of(tmp_path)["units"]) == 1  # the unit was gone on with


def test_too_little_is_refused_and_the_baseline_stands(example, tmp_path, machine):
    with pytest.raises(InputError, match=r"8s are left, but one epoch of tu-test_resnet .*\(6s\)") as refused:
        compete(example, tmp_path, "8s")
    assert "on this machine" in str(refused.value)
    assert json.loads((tmp_path / "submission.json").read_text())["kind"] == "baseline"
    assert ms.submit(tmp_path, check=tmp_path / "submission.csv").ids == 8


def test_a_device_that_is_not_there(example, tmp_path):
    with pytest.raises(InputError, match="'tpu' is not there; this machine has"):
        compete(example, tmp_path, "5m", device="tpu")


def test_plan_only_writes_the_recipe(example, tmp_path, machine):
    text = ms.plan(example / "data", budget="10m", out=tmp_path / "p", overrides=MODEL)
    assert (tmp_path / "p" / "plan.yaml").read_text() == text
    assert not (tmp_path / "p" / "runs").exists()
    assert text == ms.plan(example / "data", budget="10m", overrides=MODEL)
    short = {f"training.stages.{stage}.epochs": 1 for stage in range(3)}
    run = ms.train(
        tmp_path / "p", recipe=str(tmp_path / "p" / "plan.yaml"), overrides=short
    )  # it is a recipe
    assert run.recipe.model.encoder == "tu-test_resnet"


def test_a_plan_of_a_newer_version(example, tmp_path, machine, project):
    shutil.copytree(project, tmp_path / "p")
    (tmp_path / "p" / "plan.json").write_text('{"format": 9}')
    with pytest.raises(InputError, match=r"plan\.json: made by a newer masksmith"):
        compete(example, tmp_path / "p", "5m")


def test_a_member_that_makes_it_worse_does_not_join(example, project, monkeypatch):
    opened = Project.open(project)
    (member,) = members_of_run(opened.run())
    unit = Unit("cycle", 0, 0, 1.0, "x", "ref", run=member.run.path.name)
    first = steps_compete.accept_unit(opened, unit, member, [])
    assert first.joined
    assert first.score_before is None
    elsewhere = Member(member.run, 1)
    monkeypatch.setattr(steps_compete, "plain_score", lambda *any_: 0.1)
    assert not steps_compete.accept_unit(
        opened, unit, member, [elsewhere]
    ).joined  # below predicting nothing there
    scores = iter([0.4, 0.5, 0.5, 0.5])  # with it, without it
    monkeypatch.setattr(steps_compete, "plain_score", lambda *any_: next(scores))
    worse = steps_compete.accept_unit(opened, unit, member, [member])
    assert (worse.joined, worse.score_before, worse.score_after) == (False, 0.5, 0.4)
    assert steps_compete.accept_unit(opened, unit, member, [member]).joined


def test_a_member_joins_by_a_distance_that_falls(project, monkeypatch):
    from dataclasses import replace

    from masksmith.steps import compete as steps_compete

    opened = Project.open(project)
    (trained,) = members_of_run(opened.run())
    recipe = trained.run.recipe.model_copy(update={"metric": "hausdorff_95"})
    member = Member(replace(trained.run, recipe=recipe), 0)
    monkeypatch.setattr(steps_compete, "oof_of", lambda *any_: {})
    unit = Unit("cycle", 0, 0, 1.0, "x", "ref", run="x")
    for after, joined in ((4.0, True), (5.0, True), (6.0, False)):
        scores = iter([after, 5.0])  # with it, without it
        monkeypatch.setattr(steps_compete, "plain_score", lambda *any_, scores=scores: next(scores))
        assert steps_compete.accept_unit(opened, unit, member, [trained]).joined == joined
    baselines = {"nothing": 90.0, "everything": 30.0}
    monkeypatch.setattr(steps_compete, "baseline_scores", lambda *any_, **more: baselines)
    for after, joined in ((29.0, True), (31.0, False)):
        monkeypatch.setattr(steps_compete, "plain_score", lambda *any_, after=after: after)
        judged = steps_compete.accept_unit(opened, unit, member, [Member(trained.run, 1)])
        assert (judged.joined, judged.score_before) == (joined, 30.0)


def test_the_baseline_is_the_better_of_nothing_and_everything(example, project):
    opened = Project.open(project)
    recipe = opened.run().recipe
    verdict = write_baseline(opened, recipe)
    assert verdict.empty == verdict.ids
    facts = json.loads((project / "submission.json").read_text())
    assert facts["kind"] == "baseline"
    assert facts["masks"] == "nothing"
    masks = opened.cache.train_masks
    content = [name for name in masks if name not in opened.blank_train]
    assert facts["score"] == pytest.approx(np.mean([not masks[name].any() for name in content]))


def test_a_unit_that_diverges_is_left_out(example, tmp_path, machine, monkeypatch):
    inner = steps_compete.train_member

    def train_member(project, member, pace):
        if member.run.recipe.training.start_run is not None:
            raise DivergedError("fold 0, epoch 1: training diverged again")
        inner(project, member, pace)

    monkeypatch.setattr(steps_compete, "train_member", train_member)
    result = compete(example, tmp_path, "10m")
    units = plan_of(tmp_path)["units"]
    assert units[0]["kind"] == "fold"
    assert all(unit["joined"] is (unit["kind"] == "fold") for unit in units)
    cycles = [unit["reason"] for unit in units if unit["kind"] == "cycle"]
    assert cycles
    assert all("it failed: fold 0, epoch 1: training diverged again" in reason for reason in cycles)
    assert result.submission.ids == 8


@pytest.fixture
def attempt(project):
    """A function that attempts a trained fold as a unit, beside the members that are given; and its planner."""
    opened = Project.open(project)
    (member,) = members_of_run(opened.run())
    planner = Planner(opened, member.run.recipe, [], KnownMachine().tools())
    unit = Unit("cycle", 0, 0, 1.0, "a cycle", "ref", run=member.run.path.name)
    plan = Plan("x", member.run.recipe, [], [unit])

    def attempted(*, beside):
        work = steps_compete.Session(opened)
        work.members = [member] * beside
        return steps_compete.train_unit(work, planner, plan, 0, Budget(opened.root / "b.json", None))

    return attempted, planner


def failing(error):
    def fail(*any_):
        raise error

    return fail


@pytest.mark.parametrize("verb", ["predict_member", "accept_unit"])
def test_a_unit_that_cannot_be_predicted_or_scored_is_left_out(attempt, monkeypatch, verb):
    attempted, planner = attempt
    monkeypatch.setattr(
        steps_compete, verb, failing(InputError("prediction.weights: 'snapshots': none were kept"))
    )
    unit = attempted(beside=1)
    assert (unit.joined, unit.done) == (False, True)  # a later call does not trip over it
    assert unit.reason == "a cycle; it failed: prediction.weights: 'snapshots': none were kept"
    with pytest.raises(InputError, match="'snapshots': none were kept"):
        attempted(beside=0)
    assert planner.load().units == []


def test_a_full_disk_in_prediction_ends_the_call(attempt, monkeypatch):
    attempted, _ = attempt
    monkeypatch.setattr(
        steps_compete, "predict_member", failing(DiskFullError("oof/fold_0.npy: 3 bytes are left"))
    )
    with pytest.raises(DiskFullError, match="3 bytes are left"):
        attempted(beside=1)


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
    work = steps_compete.Session(opened)
    assert list(steps_compete.train_units(work, planner, Budget(project / "b.json", None))) == []
    assert [member.run.recipe.prediction.weights for member in work.members] == ["final"]


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"model.derived_channels": "depth_ramp", "prediction.tta": ["identity"]}, {}),
        ({}, IMAGE_HEAD),
    ],
)
def test_a_run_that_cannot_predict_as_the_plan_asks_goes_on_as_it_did(
    example, tmp_path, changes, asked, caplog
):
    ms.check(example / "data", tmp_path / "p")
    project = Project.open(tmp_path / "p")
    run = open_run(project, load_recipe(write_recipe(tmp_path, "a", **changes)))
    views = {"prediction.tta": ["identity", "vflip"], "tuning.resamples": 300}
    planned = load_recipe(write_recipe(tmp_path, "b", **asked | views))
    unit = Unit("fold", 0, 0, 1.0, "", "", run=run.path.name)
    member = steps_compete.member_of_unit(project, unit, planned)
    assert member.run.recipe.prediction == run.recipe.prediction
    assert project.run(run.path.name).recipe == member.run.recipe  # it can still be read
    assert member.run.recipe.tuning.resamples == 300
    assert "it goes on predicting as it did" in caplog.text
    able = planned.model_copy(update={"prediction": run.recipe.prediction})
    assert steps_compete.member_of_unit(project, unit, able).run.recipe.prediction == able.prediction
