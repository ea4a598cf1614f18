"""A training on all images after the folds: its length, its place among the members, and what it is not part of."""

import json
from pathlib import Path

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.folds.config import ALL
from masksmith.project.folder import Project
from masksmith.project.members import Member, members_of_run
from masksmith.recipes.recipe import load_recipe
from masksmith.steps.predict import test_of as mean_of_test
from masksmith.steps.train import is_trained, training_of
from masksmith.training.checkpoint import facts_of
from masksmith.training.refit import refit_config

pytestmark = pytest.mark.slow

REFIT = {"folds.refit": True}


def test_a_refit_joins_the_test_prediction_and_no_score(trained, project, example):
    """As long as the fold, on all images; done once, and stale where the fold that it follows is damaged."""

    def compete():
        return ms.compete(example / "data", out=project, recipe="smoke", overrides=REFIT)

    result, opened = compete(), Project.open(project)
    run = opened.run()
    assert [member.fold for member in members_of_run(run)] == [0, ALL]
    assert result.members[-1].endswith("/fold all")
    assert result.tuning["scores"] == json.loads((trained / "tuning.json").read_text())["scores"]
    assert not run.oof(ALL).exists()
    name = opened.catalog.test[0].id
    mean = mean_of_test(opened, members_of_run(run))[name].astype(float)
    parts = [np.load(run.test(fold), mmap_mode="r")[: mean.size].reshape(mean.shape) for fold in (0, ALL)]
    np.testing.assert_allclose(mean, np.mean([part.astype(float) for part in parts], axis=0), atol=0.5)

    fold, whole = facts_of(run.final(0)), facts_of(run.final(ALL))
    assert whole["lengths"] == fold["lengths"] == [6]
    assert whole["best_epoch"] == 0  # nothing was scored
    assert training_of(opened, run, ALL).select == "last"
    assert len(opened.folds.outside(ALL)) == len(opened.catalog.train)
    assert opened.folds.inside(ALL) == []

    stamps = [run.final(fold).stat().st_mtime_ns for fold in (0, ALL)]
    compete()
    assert [run.final(fold).stat().st_mtime_ns for fold in (0, ALL)] == stamps
    raw = bytearray(run.final(0).read_bytes())
    raw[-1] ^= 1
    run.final(0).write_bytes(raw)
    assert not is_trained(opened, Member(run, ALL))
    with pytest.raises(InputError, match=r"folds\.refit: .* fold 0 of .* is not trained"):
        training_of(opened, run, ALL)


def test_with_top_k_it_predicts_with_its_final_weights(project, example):
    changes = REFIT | {"training.top_k": 1, "prediction.weights": "top_k", "training.stages.0.epochs": 2}
    result = ms.compete(example / "data", out=project, recipe="smoke", overrides=changes)
    assert result.members[-1].endswith("/fold all")


def test_other_groups_make_the_tuning_stale(project):
    opened = Project.open(project)
    before = json.loads((project / "tuning.json").read_text())
    text = opened.folds_csv.read_text().splitlines()
    alone = [row for row in opened.folds.rows if row.fold == 0 and row.coverage > 0][:2]
    for at, line in enumerate(text):
        if line.startswith(f"{alone[1].id},"):
            text[at] = line.replace(f",{alone[1].group},", f",{alone[0].group},")
    opened.folds_csv.write_text("\n".join(text) + "\n")
    ms.compete(Path(opened.catalog.root), out=project, recipe="smoke")
    after = json.loads((project / "tuning.json").read_text())
    assert after["gain_low"] != before["gain_low"] or after["standard_error"] != before["standard_error"]


def test_what_it_cannot_be_had_with_is_refused(example, project, tmp_path):
    schedule = {"name": "plateau", "patience": 2}
    with pytest.raises(InputError, match=r"training\.stages\[0\]\.schedule\.watch: 'score' needs a score"):
        ms.train(project, recipe="smoke", overrides=REFIT | {"training.stages.0.schedule": schedule})
    with pytest.raises(InputError, match=r"folds\.refit: true, with a budget"):
        ms.compete(example / "data", out=tmp_path / "p", budget="5m", overrides=REFIT)


def test_what_needs_a_score_is_left_out_of_it():
    config = load_recipe("auto", ("training.select=best", "training.top_k=2")).training
    refit = refit_config(config, [[14, 4, 10], [14, 4, 20], [14, 4, 16]])
    assert (refit.select, refit.top_k) == ("last", 0)
    assert [stage.epochs for stage in refit.stages] == [14, 4, 16]
