import json
from dataclasses import replace

import pytest
from masksmith.planning.machine import Measurements

from masksmith import planner
from masksmith.errors import InputError
from masksmith.models import ModelConfig, build_model
from masksmith.planner import Plan, facts_of, weights_for
from masksmith.planning.cost import stage_hw
from masksmith.planning.rules import load_rules
from masksmith.planning.units import Unit
from masksmith.project import Project
from masksmith.recipe import PseudoConfig
from tests.planning.machine import FACTS, Machine, Seconds

PRETRAINED, SCRATCH = (
    next(one for one in load_rules().candidates if one.encoder == name)
    for name in ("mobilenet_v2", "resnet18")
)


def asked(weights):
    return ModelConfig(encoder_weights=weights)


def test_weights_none_leaves_the_candidates_from_nothing():
    assert weights_for(PRETRAINED, asked("none")) is None
    assert weights_for(SCRATCH, asked("none")) == "none"


def test_hub_weights_only_where_they_can_be_reached(monkeypatch, tmp_path):
    from masksmith.models import encoders

    monkeypatch.setattr(encoders, "fetch_from_hub", lambda source: None)
    assert weights_for(PRETRAINED, asked("auto")) is None
    assert weights_for(PRETRAINED, asked("imagenet")) is None
    assert weights_for(SCRATCH, asked("auto")) == "none"
    assert weights_for(SCRATCH, asked("imagenet")) is None
    monkeypatch.setattr(encoders, "fetch_from_hub", lambda source: tmp_path)
    assert weights_for(PRETRAINED, asked("auto")) == "imagenet"


def test_a_file_fits_the_encoder_that_it_is_of(tmp_path):
    from safetensors.torch import save_file

    model = build_model(PRETRAINED.model("none"), in_channels=3, seed=0)
    path = tmp_path / "w.safetensors"
    save_file({name: value.contiguous() for name, value in model.encoder.state_dict().items()}, path)
    assert weights_for(PRETRAINED, asked(str(path))) == str(path)
    assert weights_for(SCRATCH, asked(str(path))) is None
    other = PRETRAINED.model_copy(update={"encoder": "resnet18"})
    assert weights_for(other, asked(str(path))) is None


@pytest.fixture
def measurements(monkeypatch, trained):
    from masksmith.planning import measure

    monkeypatch.setattr(measure, "timing_of", lambda *any_, **options: (Seconds(step_s=1.0), True))
    return Measurements(1)


@pytest.mark.parametrize(("now", "factor", "forgotten"), [(1.0, 1.0, 0), (2.0, 2.0, 0), (0.5, 1.0, 1)])
def test_what_is_remembered_is_checked(measurements, trained, monkeypatch, now, factor, forgotten):
    from masksmith.planning import measure

    recipe = Project.open(trained).run().recipe
    stage = recipe.training.stages[0]
    hw = stage_hw(recipe.training, stage, FACTS, 8)
    arguments = (recipe.model, recipe.training, hw, recipe.training.batch_size)
    measurements.timing_of(*arguments)
    calls = []
    monkeypatch.setattr(measurements.memory, "forget", lambda: calls.append(1))
    monkeypatch.setattr(measure, "measure", lambda *any_, **options: Seconds(step_s=now))
    measurements.drift(recipe, FACTS)
    assert measurements.factor == factor
    assert len(calls) == forgotten
    assert (measurements.known == {}) == bool(forgotten)
    if not forgotten:
        assert measurements.timing_of(*arguments).step_s == factor


def test_fresh_measurements_need_no_check(measurements, trained):
    measurements.drift(Project.open(trained).run().recipe, FACTS)
    assert measurements.factor == 1.0


@pytest.mark.parametrize(
    ("share", "device", "threads", "expected"),
    [
        (0.98, "cpu", 2, {}),
        (0.75, "cuda", 2, {}),
        (0.75, "cpu", 1, {}),
        (0.75, "cpu", 2, {2: 1.0, 1: 0.5}),
        (0.94, "cpu", 8, {8: 4.0, 6: 3.0, 4: 2.0, 2: 1.0, 1: 0.5}),  # half a core is missing
    ],
)
def test_threads_are_compared_beside_a_neighbour(
    measurements, trained, monkeypatch, share, device, threads, expected
):
    from masksmith.planning import measure

    def measured(model, training, **options):
        return Seconds(step_s=0.5 * training.threads)

    monkeypatch.setattr(measurements, "cores_share", lambda threads: share)
    monkeypatch.setattr(measure, "measure", measured)
    monkeypatch.setattr(measure, "timing_of", lambda *arguments, **options: (measured(*arguments), False))
    recipe = Project.open(trained).run().recipe
    training = recipe.training.model_copy(update={"device": device, "threads": threads})
    recipe = recipe.model_copy(update={"training": training})
    assert measurements.threads_of(recipe, FACTS) == expected
    if expected:  # what this command has measured is not measured twice
        measurements.by_threads.clear()
        for number in expected:
            own = training.model_copy(update={"threads": number})
            hw = stage_hw(own, own.stages[0], FACTS, 8)
            measurements.timing_of(recipe.model, own, hw, own.batch_size)
        monkeypatch.setattr(measure, "measure", None)
        assert measurements.threads_of(recipe, FACTS) == expected


def test_comparing_threads_takes_no_longer_than_it_may(measurements, trained, monkeypatch):
    from masksmith.planning import machine, measure

    now = [0.0]

    def measured(model, training, **options):
        now[0] += 6.0
        return Seconds(step_s=0.5 * training.threads)

    monkeypatch.setattr(machine.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(measurements, "cores_share", lambda threads: 0.5)
    monkeypatch.setattr(measure, "measure", measured)
    recipe = with_threads(Project.open(trained).run().recipe, 8)
    assert list(measurements.threads_of(recipe, FACTS)) == [8, 6]


def with_threads(recipe, threads):
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"threads": threads})})


def shared(**changes):
    """Tools of a machine on which two threads take twice as long as one."""

    def measured(model, training, hw, batch):
        return Seconds(step_s=1.0 if training.threads == 1 else 2.0)

    own = {"measure": measured, "threads": lambda recipe, facts: {2: 2.0, 1: 1.0}}
    return replace(Machine().tools(), **own | changes)


def test_a_shared_machine_gets_one_thread(trained):
    project = Project.open(trained)
    recipe = project.run().recipe

    def chosen(threads):
        asked = with_threads(recipe, threads)
        return planner.Planner(project, asked, ["model.encoder"], shared()).choose(1e6)

    found = chosen("auto")
    assert found.recipe.training.threads == 1
    assert [choice.value for choice in found.choices if choice.key == "training.threads"] == ["1"]
    assert chosen(2).recipe.training.threads == 2  # as asked
    assert found.cost.epoch_s < chosen(2).cost.epoch_s


def test_a_budget_for_one_thread_is_not_refused_for_two(trained):
    project = Project.open(trained)
    asked = with_threads(project.run().recipe, "auto")
    alone = shared(threads=lambda recipe, facts: {})
    pinned = ["model.encoder"]
    most = planner.Planner(project, asked, pinned, alone).choose(1e6).cost
    seconds = 0.9 * (most.epoch_s + most.reserve_s)
    with pytest.raises(InputError, match="--budget"):
        planner.Planner(project, asked, pinned, alone).choose(seconds)
    found = planner.Planner(project, asked, pinned, shared()).choose(seconds)
    assert found.recipe.training.threads == 1


def test_threads_stay_from_plan_to_plan(project):
    opened = Project.open(project)
    asked = with_threads(opened.run().recipe, "auto")
    first = planner.Planner(opened, asked, ["model.encoder"], shared()).make(1e6)
    assert first.recipe.training.threads == 1
    prediction = asked.prediction.model_copy(update={"tta": ["identity"]})
    other = asked.model_copy(update={"prediction": prediction})
    quiet = shared(threads=lambda recipe, facts: {})
    pinned = ["model.encoder", "prediction.tta"]
    second = planner.Planner(opened, other, pinned, quiet).make(1e6)
    assert second.recipe.training.threads == 1
    assert second.recipe.hash == first.recipe.hash  # what was trained is a fold of both


@pytest.mark.parametrize(
    ("asked_threads", "device", "cores", "expected"),
    [
        ("auto", "cpu", 2, (1, 2)),  # the plan took one of two
        (1, "cpu", 2, None),
        ("auto", "cuda", 2, None),
        ("auto", "cpu", 1, None),
    ],
)
def test_who_shares_the_cores(trained, monkeypatch, asked_threads, device, cores, expected):
    from masksmith.training import machine

    inner = machine.settle_threads
    monkeypatch.setattr(
        machine, "settle_threads", lambda threads: cores if threads == "auto" else inner(threads)
    )
    project = Project.open(trained)
    recipe = with_threads(project.run().recipe, 1)
    training = recipe.training.model_copy(update={"device": device})
    plan = planner.Plan("", recipe.model_copy(update={"training": training}), [], [])
    made = planner.Planner(project, with_threads(recipe, asked_threads), [], tools())
    found = made.sharing(plan)
    assert (None if found is None else (found.threads, found.most)) == expected
    assert made.sharing(plan) is found  # one for all trainings


def test_the_plan_survives_its_file(trained):
    project = Project.open(trained)
    plan = Plan("x", project.run().recipe, [planner.Choice("a", "b", "c")], [])
    unit = Unit("fold", 0, 0, 100.0, "why", "ref", run="auto-00000000")
    begun = plan.with_unit(unit)
    assert begun.under_way == 0
    assert Plan.from_json(json.loads(json.dumps(begun.to_json())), where="x") == begun
    done = begun.with_unit(replace(unit, took_s=150.0, joined=True), 0)
    assert done.under_way is None
    assert begun.without_unit(0) == plan


@pytest.mark.parametrize(
    "content", [[], {"format": 1}, {"asked": "x", "recipe": {}, "choices": 1, "units": []}]
)
def test_an_edited_plan_is_refused(trained, content):
    if isinstance(content, dict) and "recipe" in content:
        content = content | {"recipe": Project.open(trained).run().recipe.model_dump(mode="json")}
    with pytest.raises(InputError, match=r"plan\.json: not what masksmith writes .*; remove it to plan anew"):
        Plan.from_json(content, where="plan.json")


def tools(*, seconds=1.0):
    machine = Machine()
    return replace(machine.tools(), measure=lambda *any_: Seconds(step_s=seconds))


def test_the_planner_learns_from_the_last_pace(trained):
    project = Project.open(trained)
    recipe = project.run().recipe
    made = planner.Planner(project, recipe, [], tools())
    before = made.cost_of(recipe)
    made.learn(recipe, 0.0)  # nothing was trained
    assert made.slower == 1.0
    made.learn(recipe, 3 * before.paces[-1])
    assert made.slower == pytest.approx(3)
    assert made.cost_of(recipe).train_s == pytest.approx(3 * before.train_s)
    made.learn(recipe, 3 * before.paces[-1])  # as busy as before
    assert made.slower == pytest.approx(3)
    made.learn(recipe, 1e9)
    assert made.slower == 8.0


def test_what_was_trained_without_a_budget_is_taken_over(project):
    opened = Project.open(project)
    recipe = opened.run().recipe
    pinned = ["model.encoder"]
    made = planner.Planner(opened, recipe, pinned, tools()).make(1e6)
    (unit,) = made.units
    assert (unit.kind, unit.fold, unit.run, unit.joined) == ("fold", 0, opened.run().path.name, True)
    assert unit.reference == made.recipe.hash[:8]  # the same model and seed: a fold of this plan
    assert planner.Planner(opened, recipe, pinned, tools()).make(1e6) == made  # the plan stays
    (project / "plan.json").unlink()
    others = (
        {"seed": 5},
        {"size": recipe.size.model_copy(update={"pad_hw": (128, 128)})},
        {"input": recipe.input.model_copy(update={"scaling": "standard"})},
    )
    for change in others:
        other = recipe.model_copy(update=change)
        (unit,) = planner.Planner(opened, other, pinned, tools()).make(1e6).units
        assert unit.reference == recipe.hash[:8]  # a member, but no fold of this plan
        (project / "plan.json").unlink()
    changed = recipe.model_copy(update={"metric": "iou_pooled"})
    with pytest.raises(
        InputError, match=r"metric: 'iou_pooled' was asked for, but auto-.* was judged by 'tgs_map'"
    ):
        planner.Planner(opened, changed, pinned, tools()).make(1e6)


def test_what_a_teacher_taught_is_no_fold_of_a_plan(project, monkeypatch):
    opened = Project.open(project)
    run = opened.run()
    pupil = run.recipe.model_copy(update={"pseudo": PseudoConfig(teacher="auto", teacher_run=run.path.name)})
    monkeypatch.setattr(Project, "run", lambda *any_: replace(run, recipe=pupil))
    monkeypatch.setattr(planner, "is_trained", lambda *any_: True)
    (unit,) = planner.Planner(opened, run.recipe, ["model.encoder"], tools()).make(1e6).units
    assert unit.reference == pupil.hash[:8]


def test_a_refit_that_was_trained_is_no_fold_of_a_plan(project, monkeypatch):
    opened = Project.open(project)
    run = opened.run()
    refit = run.recipe.model_copy(update={"folds": run.recipe.folds.model_copy(update={"refit": True})})
    monkeypatch.setattr(Project, "run", lambda *any_: replace(run, recipe=refit))
    monkeypatch.setattr(planner, "is_trained", lambda *any_: True)
    made = planner.Planner(opened, refit, ["model.encoder"], tools()).make(1e6)
    assert [unit.fold for unit in made.units] == [0]


def test_another_value_is_another_plan(project):
    opened = Project.open(project)
    recipe = opened.run().recipe
    first = planner.Planner(opened, recipe, ["model.encoder"], tools()).make(1e6)
    prediction = recipe.prediction.model_copy(update={"tta": ["identity"]})
    asked = recipe.model_copy(update={"prediction": prediction})
    second = planner.Planner(opened, asked, ["model.encoder", "prediction.tta"], tools()).make(1e6)
    assert first.asked != second.asked
    assert second.recipe.prediction.tta == ["identity"]
    assert second.units == first.units


def test_facts_of_a_project(trained):
    project = Project.open(trained)
    facts = facts_of(project, project.run().recipe)
    assert facts.hw == (101, 101)
    assert (facts.test, facts.channels, facts.folds) == (8, 1, 3)
    assert facts.train == len([name for name in project.folds.outside(0) if name not in project.blank])
