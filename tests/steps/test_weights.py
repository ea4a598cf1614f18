"""The weights of a training side by side."""

import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json
from masksmith.project.folder import Project
from tests.blends import write_recipe

KEPT = {"training.keep": ["last", "best_score", "raw"], "training.top_k": 2, "training.evaluate_every": 1}


def test_all_kinds_beside_each_other(example, tmp_path):
    recipe = write_recipe(tmp_path, "kept", **KEPT, **{"folds.train": 1})
    ms.check(example / "data", tmp_path / "p")
    ms.train(tmp_path / "p", recipe=recipe)
    ms.predict(tmp_path / "p")
    tuned = ms.tune(tmp_path / "p")
    found = ms.weights(tmp_path / "p")
    rows = {row["weights"]: row for row in found.table}
    assert list(rows) == ["final", "best_score", "last", "raw", "top_k"]
    assert rows["top_k"]["files"] == 2
    assert rows["final"]["score"] == pytest.approx(tuned["scores"]["plain"])
    assert rows["last"]["score"] == rows["final"]["score"]  # select: last
    assert rows["raw"]["score"] != rows["final"]["score"]
    assert rows["best_score"]["chosen_on_fold"]
    assert found.optimism == pytest.approx(max(row["score"] for row in found.table) - found.nested)
    project = Project.open(tmp_path / "p")
    assert read_json(project.run().weights_json)["table"] == found.table
    assert project.run().recipe.prediction.weights == found.chosen
    assert found.kept == (found.gain_low > 0)
    assert f"{found.chosen} {'is taken' if found.kept else 'stays'}" in str(found)
    ms.predict(tmp_path / "p")
    said = ms.tune(tmp_path / "p")
    assert "weights (nested)" in said["chosen_on_fold"]


def test_refusals(project, tmp_path):
    with pytest.raises(
        InputError, match=r"its training kept the weights final alone; train with training\.keep"
    ):
        ms.weights(project)
    with pytest.raises(
        InputError,
        match=r"prediction\.weights: 'swa'; expected final, snapshots, top_k, or weights that training\.keep",
    ):
        ms.train(project, recipe="smoke", overrides=["prediction.weights=swa"])
