"""What a budget does with the time in which no training fits any more."""

from dataclasses import replace

import pytest

import masksmith as ms
from masksmith.core.files import read_json
from masksmith.folds.config import ALL
from masksmith.planning.budget import Budget, Duration
from masksmith.project.folder import Project
from masksmith.project.members import read_members
from masksmith.steps import blend
from masksmith.steps.last_mile import last_mile
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


def test_the_ensemble_is_chosen_and_the_steps_are_measured(opened, tmp_path):
    before = read_members(opened, None)
    used = last_mile(opened, before, budget_of(tmp_path, 1000.0), 5.0)
    assert used != before
    assert used == read_members(opened, None)
    assert used[0].blend.kind == read_json(opened.blend_json)["chosen"]["kind"]
    steps = read_json(opened.ablation_json)
    assert steps["members"] == [member.name for member in used]
    assert any(step["step"].startswith("blend: ") and step["kept"] for step in steps["steps"])


def test_nothing_is_begun_that_does_not_fit(opened, tmp_path, caplog):
    before = read_members(opened, None)
    with caplog.at_level("INFO", logger="masksmith"):
        assert last_mile(opened, before, budget_of(tmp_path, 5.0), 5.0) == before
    assert not opened.blend_json.exists()
    assert not opened.ablation_json.exists()
    for what in ("blend", "ablate"):
        assert f"no time for `masksmith {what}` (about" in caplog.text


def test_weights_are_compared_where_several_were_kept(example, tmp_path):
    kept = {"training.keep": ["last", "raw"], "folds.train": 1, "training.stages.0.epochs": 1}
    ms.check(example / "data", tmp_path / "p")
    ms.train(tmp_path / "p", recipe=write_recipe(tmp_path, "kept", **kept))
    ms.predict(tmp_path / "p")
    opened = Project.open(tmp_path / "p")
    before = read_members(opened, None)
    used = last_mile(opened, before, budget_of(tmp_path, 1000.0), 5.0)
    found = read_json(before[0].run.weights_json)
    assert [row["weights"] for row in found["table"]] == ["final", "last", "raw"]
    assert [member.run.recipe.prediction.weights for member in used] == [found["chosen"]]


def test_a_training_on_all_images_stays_in_a_blend(opened):
    present = read_members(opened, None)
    refit = replace(present[0], run=replace(present[0].run, path=opened.runs_dir / "refit"), fold=ALL)
    found = blend.blend_members(opened, [*present, refit])
    assert found.kept
    assert not any(row["kind"] == "rank" for row in found.table)  # it has no held-out pixels to be ranked by
    value = read_json(opened.members_json)["members"]
    weights = {(row["run"], row["fold"]): row["weight"] for row in value}
    assert weights["refit", ALL] == pytest.approx(1 / len(found.chosen["weights"]))
