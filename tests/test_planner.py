import json

import pytest

from masksmith import planner
from masksmith.models import ModelConfig, build_model
from masksmith.planner import Plan, _Measurements, facts_of, weights_for
from masksmith.planning.rules import load_rules
from masksmith.planning.units import Unit
from masksmith.project import Project
from tests.planning.machine import FACTS, Seconds

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
    return _Measurements(1)


@pytest.mark.parametrize(("now", "factor", "forgotten"), [(1.0, 1.0, 0), (2.0, 2.0, 0), (0.5, 1.0, 1)])
def test_what_is_remembered_is_checked(measurements, trained, monkeypatch, now, factor, forgotten):
    from masksmith.planning import measure

    recipe = Project.open(trained).run().recipe
    stage = recipe.training.stages[0]
    from masksmith.planning.cost import stage_hw

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


def test_the_plan_survives_its_file_and_learns(trained):
    project = Project.open(trained)
    recipe = project.run().recipe
    cost = planner.Cost(100, 10, 5, 5, 5, 1e-6)
    plan = Plan("x", recipe, cost, [planner.Choice("a", "b", "c")], [])
    unit = Unit("fold", 0, 0, 100.0, "why", run="default-00000000")
    begun = plan.begun(unit)
    assert begun.under_way == unit
    assert Plan.from_json(json.loads(json.dumps(begun.to_json())), where="x") == begun
    done = begun.finished(Unit(**{**vars(unit), "took_s": 150.0, "joined": True}))
    assert done.under_way is None
    assert done.slower == 1.5
    assert done.cost_now.train_s == 150
    resumed = begun.finished(Unit(**{**vars(unit), "took_s": 1.0, "joined": True}), at_one_go=False)
    assert resumed.slower == 1.0
    endless = begun.finished(Unit(**{**vars(unit), "took_s": 1e9, "joined": True}))
    assert endless.slower == 8.0


def test_facts_of_a_project(trained):
    project = Project.open(trained)
    facts = facts_of(project, project.run().recipe)
    assert facts.hw == (101, 101)
    assert (facts.test, facts.channels, facts.folds) == (8, 1, 3)
    assert facts.train == len([name for name in project.folds.outside(0) if name not in project.blank])
