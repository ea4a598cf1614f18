"""What a budget does with the time in which no training fits any more."""

import dataclasses
from dataclasses import replace

import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json
from masksmith.folds.config import ALL
from masksmith.planning.budget import Budget, Duration
from masksmith.planning.units import Unit
from masksmith.project.folder import Project
from masksmith.project.members import read_members
from masksmith.steps import blend, last_mile
from masksmith.steps.ablate import ablation_of
from tests.blends import add, write_recipe


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def opened(project, tmp_path):
    for seed, name in enumerate(("first", "second")):
        add(project, tmp_path, name, seed=seed, weight=0.2)
    return Project.open(project)


def budget_of(tmp_path, seconds):
    return Budget(tmp_path / "budget.json", Duration(seconds, more=False), clock=Clock())


def test_the_ensemble_is_chosen_remembered_and_measured(opened, tmp_path):
    before, budget = read_members(opened, None), budget_of(tmp_path, 1000.0)
    used = last_mile.choose(opened, before, budget, 5.0)
    assert used != before
    assert used == read_members(opened, None)
    assert used[0].blend.kind == read_json(opened.blend_json)["chosen"]["kind"]
    units = [Unit("fold", 0, 0, 1.0, "", "", run=before[0].run.path.name, joined=True)]
    last_mile.remember(opened, units, before[0].run.recipe)
    assert last_mile.chosen_before(opened, units, before[0].run.recipe) == used
    assert last_mile.chosen_before(opened, [*units, units[0]], before[0].run.recipe) is None
    last_mile.measure(opened, used, budget, 5.0)
    steps = read_json(opened.ablation_json)
    assert steps["members"] == [member.name for member in used]
    assert any(step["step"].startswith("blend: ") and step["kept"] for step in steps["steps"])
    assert ablation_of(opened, used) == steps["steps"]
    other = [replace(one, weight=one.weight + 0.1 * at) for at, one in enumerate(used)]
    assert [one.name for one in other] == [one.name for one in used]
    assert ablation_of(opened, other) == []  # the same names at other weights are another ensemble
    ms.blend(opened.root, off=True)
    assert last_mile.chosen_before(opened, units, before[0].run.recipe) is None


def test_nothing_is_begun_that_does_not_fit(opened, tmp_path, caplog):
    before, budget = read_members(opened, None), budget_of(tmp_path, 5.0)
    with caplog.at_level("INFO", logger="masksmith"):
        assert last_mile.choose(opened, before, budget, 5.0) == before
        last_mile.measure(opened, before, budget, 5.0)
    assert not opened.blend_json.exists()
    assert not opened.ablation_json.exists()
    for what in ("blend", "ablate"):
        assert f"no time for `masksmith {what}` (about" in caplog.text


def test_other_weights_are_taken_and_predicted(example, tmp_path, monkeypatch):
    kept = {"training.keep": ["last", "raw"], "folds.train": 1, "training.stages.0.epochs": 1}
    ms.check(example / "data", tmp_path / "p")
    ms.train(tmp_path / "p", recipe=write_recipe(tmp_path, "kept", **kept))
    ms.predict(tmp_path / "p")
    opened = Project.open(tmp_path / "p")
    before = read_members(opened, None)
    found = ms.weights(tmp_path / "p")
    assert [row["weights"] for row in found.table] == ["final", "last", "raw"]
    raw = before[0].run.recipe
    raw = raw.model_copy(update={"prediction": raw.prediction.model_copy(update={"weights": "raw"})})

    def compared(project, members):
        project.set_free_parts(members[0].run, raw)
        return dataclasses.replace(found, chosen="raw")

    def no_blend(*_):
        raise InputError("1 candidate, expected two or more")

    monkeypatch.setattr(last_mile, "compare_weights", compared)
    monkeypatch.setattr(last_mile, "blend_members", no_blend)
    used = last_mile.choose(opened, before, budget_of(tmp_path, 1000.0), 5.0)
    assert [member.run.recipe.prediction.weights for member in used] == ["raw"]
    ms.tune(tmp_path / "p")  # what it needs was predicted
    assert ms.submit(tmp_path / "p").ids == 8


def test_a_training_on_all_images_stays_in_a_blend(opened):
    present = read_members(opened, None)
    refit = replace(present[0], run=replace(present[0].run, path=opened.runs_dir / "refit"), fold=ALL)
    found = blend.blend_members(opened, [*present, refit])
    assert found.kept
    assert not any(row["kind"] == "rank" for row in found.table)  # it has no held-out pixels to be ranked by
    value = read_json(opened.members_json)["members"]
    weights = {(row["run"], row["fold"]): row["weight"] for row in value}
    assert weights["refit", ALL] == pytest.approx(1 / len(found.chosen["weights"]))
