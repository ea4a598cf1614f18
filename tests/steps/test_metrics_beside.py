"""Metrics beside the recipe's, the whole way: measured, kept, predicted with, and shown."""

import json

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.store import Store
from masksmith.metrics import get_metric
from masksmith.project.folder import Project
from masksmith.steps.resolve import check_prediction
from masksmith.training.events import read_events

ASKED = {
    "training.metrics": ["val_loss", "dice_pooled", "hausdorff_95"],
    "training.keep": ["best_val_loss", "best_dice_pooled"],
    "training.evaluate_every": 1,
    "prediction.weights": "best_dice_pooled",
    "prediction.tta": ["identity"],
}


@pytest.mark.slow
def test_from_the_recipe_to_the_report(example, tmp_path):
    out = tmp_path / "project"
    text = ms.compete(example / "data", out=out, recipe="smoke", overrides=ASKED).report.read_text()
    project = Project.open(out)
    run = project.run()
    events = [e for e in read_events(run.events(0)) if e["split"] == "fold" and e["name"] == "dice_pooled"]
    best = max(event["value"] for event in events)
    facts = json.loads((run.checkpoints(0) / "best_dice_pooled.json").read_text())
    assert facts["epoch"] == next(event["epoch"] for event in events if event["value"] == best)
    # what was logged is the score of the predictions that these weights made
    metric, masks = get_metric("dice_pooled"), project.cache.train_masks
    index = (run.path / "oof" / "fold_0.csv").read_text()
    names = [name for name in project.folds.inside(0) if name not in project.blank_train]
    assert all(name in index for name in names)
    codes = Store(run.oof(0))
    rows = [
        metric.stats((codes[name][..., 0] > 32767).astype(np.uint8), masks[name][..., 0]) for name in names
    ]
    assert metric.score(np.stack(rows)) == pytest.approx(best)
    assert "epoch" in json.loads((out / "tuning.json").read_text())["chosen_on_fold"]
    for title in ("dice_pooled of training batches and held-out images", "hausdorff_95 of held-out images"):
        assert title in text
    assert f"dice_pooled {best:.4f} ({facts['epoch']})" in text
    machine = next(
        line for line in (run.path / "environment.txt").read_text().splitlines() if "machine" in line
    )
    assert machine.removeprefix("machine ") in text
    assert set(run.read_times()) == {"oof 0", "test 0"}
    assert "held-out 0." in text
    assert "not recorded" not in text


def test_weights_that_nothing_keeps(project):
    recipe = Project.open(project).run().recipe
    prediction = recipe.prediction.model_copy(update={"weights": "best_dice_pooled"})
    with pytest.raises(
        InputError, match=r"'best_dice_pooled'; expected final, snapshots, top_k, or weights that"
    ):
        check_prediction(recipe.model_copy(update={"prediction": prediction}))


def test_metrics_that_cannot_drive_the_task(trained):
    project = Project.open(trained)
    recipe = project.run().recipe
    asked = ["dice_pooled", "val_loss", "f_beta_objects_at(threshold=2)", "fw_io"]
    training = recipe.training.model_copy(update={"metrics": asked})
    with pytest.raises(InputError) as error:
        project.metrics_beside(recipe.model_copy(update={"training": training}))
    said = str(error.value).splitlines()
    assert len(said) == 2
    assert all(line.startswith("training.metrics: ") for line in said)
