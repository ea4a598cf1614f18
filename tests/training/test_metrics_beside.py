"""Metrics beside the recipe's: what is logged of held-out images and training batches, and the best weights of each."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from masksmith.core.arrays import IGNORE
from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.metrics import get_metric, metric_for
from masksmith.models.segmentation import Output
from masksmith.recipes.recipe import load_recipe
from masksmith.training import TrainingConfig
from masksmith.training.config import best_of
from masksmith.training.events import read_events
from masksmith.training.measure import batch_scores
from masksmith.training.refit import refit_config
from masksmith.training.step import Truth
from tests.training.test_held_out import planted
from tests.training.tiny import config, make_data, run, same, stage


def evaluations(**values):
    """Give the scores of the epochs in turn, and remember the weights."""
    seen, names = [], list(values)

    def evaluate(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {name: values[name][len(seen) - 1] for name in names}

    return evaluate, seen


def curve(folder, split, name):
    return [
        event["value"]
        for event in read_events(folder / "metrics.jsonl")
        if (event["split"], event["name"]) == (split, name)
    ]


def test_each_is_logged_and_the_best_weights_by_each_stay(tmp_path, monkeypatch):
    planted(monkeypatch, 0.5, 0.4, 0.2, 0.3)
    dice, distance = [0.6, 0.9, 0.9, 0.1], [9.0, 8.0, 7.0, 6.0]
    evaluate, seen = evaluations(score=[0.8, 0.1, 0.2, 0.3], dice_pooled=dice, hausdorff_95=distance)
    names = ["best_score", "best_val_loss", "best_dice_pooled", "best_hausdorff_95"]
    settings = config(stage(4), metrics=["val_loss", "dice_pooled", "hausdorff_95"], keep=names)
    _, facts = run(make_data(tmp_path), tmp_path / "fold", settings, evaluate=evaluate)
    assert facts["kept"] == {name: f"{name}.safetensors" for name in sorted(names)}
    for name, epoch in zip(names, (1, 3, 2, 4), strict=True):  # the first of equal ones; the least distance
        same(load_file(tmp_path / "fold" / f"{name}.safetensors"), seen[epoch - 1])
    assert curve(tmp_path / "fold", "fold", "dice_pooled") == dice
    assert curve(tmp_path / "fold", "fold", "hausdorff_95") == distance
    assert curve(tmp_path / "fold", "fold", "val_loss") == [0.5, 0.4, 0.2, 0.3]
    assert len(curve(tmp_path / "fold", "train", "dice_pooled")) == 4
    assert not list((tmp_path / "fold").glob("weights_*"))


def test_nothing_is_kept_that_is_only_logged(tmp_path):
    evaluate, _ = evaluations(score=[0.1, 0.2], dice_pooled=[0.5, 0.6])
    run(make_data(tmp_path), tmp_path / "fold", config(stage(2), metrics=["dice_pooled"]), evaluate=evaluate)
    assert [path.stem for path in (tmp_path / "fold").glob("*.safetensors")] == ["final"]


def test_without_them_the_log_and_the_weights_are_the_same(tmp_path):
    data = make_data(tmp_path)
    plain, _ = run(data, tmp_path / "plain", config(stage(2)))
    beside, _ = run(data, tmp_path / "beside", config(stage(2), metrics=["dice_pooled", "val_loss"]))
    same(plain, beside)
    logged = [
        [event for event in read_events(tmp_path / name / "metrics.jsonl") if event["split"] != "timing"]
        for name in ("plain", "beside")
    ]
    assert [event for event in logged[1] if event["name"] not in ("dice_pooled", "val_loss")] == logged[0]


def batch_of(mask, *, other=None):
    mask = torch.from_numpy(mask)
    return Truth(mask, other, 1.0)


def test_a_batch_is_scored_as_its_images_would_be():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(3, 1, 5, 4)).astype(np.float32))
    masks = rng.integers(0, 2, (3, 5, 4)).astype(np.uint8)
    masks[0, 0] = IGNORE
    names = ["dice_pooled", "tgs_map", "accuracy"]
    metrics = [get_metric(name) for name in names]
    found = batch_scores(metrics, Output(logits), batch_of(masks), exclusive=False)
    preds = (logits[:, 0].numpy() > 0).astype(np.uint8)
    for name, metric in zip(names, metrics, strict=True):
        rows = [metric.stats(pred, mask) for pred, mask in zip(preds, masks, strict=True)]
        assert found[name] == pytest.approx(metric.score(np.stack(rows)))
    judged = masks != IGNORE
    assert found["accuracy"] == pytest.approx((preds == masks)[judged].mean())


@pytest.mark.parametrize(("task", "exclusive"), [("multiclass", True), ("multilabel", False)])
def test_batches_of_classes_and_of_labels(task, exclusive):
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(2, 3, 6, 5)).astype(np.float32))
    shape = (2, 6, 5) if exclusive else (2, 3, 6, 5)
    masks = rng.integers(0, 3 if exclusive else 2, shape).astype(np.uint8)
    metric = metric_for("miou", task=task, classes=3)
    found = batch_scores([metric], Output(logits), batch_of(masks), exclusive=exclusive)
    preds = logits.argmax(1).numpy() if exclusive else (logits > 0).numpy()
    overlap = []
    for at in range(3):
        pred, true = (preds == at, masks == at) if exclusive else (preds[:, at], masks[:, at] == 1)
        overlap.append((pred & true).sum() / (pred | true).sum())
    assert found["miou"] == pytest.approx(np.mean(overlap))


def test_metrics_that_cannot_be_asked_for(subtests):
    for changes, message in [
        ({"metrics": ["miou", "miou", "val_loss", "val_loss"]}, "metrics: miou, val_loss named twice"),
        (
            {"keep": ["best_dice_pooled", "best"]},
            r"keep: 'best_dice_pooled', 'best'; expected last, raw, best_score",
        ),
        (
            {"metrics": ["dice_pooled"], "keep": ["best_dice"]},
            "keep: 'best_dice'; expected .*best_dice_pooled",
        ),
        (
            {
                "metrics": ["f_beta_objects(beta=1)", "f_beta_objects(beta=2)"],
                "keep": ["best_f_beta_objects"],
            },
            "keep: 'best_f_beta_objects'; expected",
        ),
    ]:
        value = config().model_dump(mode="json") | changes
        with subtests.test(changes=changes), pytest.raises(InputError, match=message):
            validate(TrainingConfig, value, where="training")


def test_a_recipe_names_all_that_is_wrong():
    with pytest.raises(InputError) as error:
        load_recipe(
            "smoke", ('training.metrics=["dice_poled", "iou_by_group", "val_loss", "tgs_map(beta=1)"]',)
        )
    said = str(error.value).splitlines()
    assert len(said) == 3
    assert "training.metrics: 'dice_poled' is unknown; did you mean 'dice_pooled'" in said[0]
    assert "training.metrics: 'iou_by_group' is a mean over groups" in said[1]
    assert "tgs_map" in said[2]


def test_the_name_of_the_file_leaves_out_the_numbers():
    names = ["val_loss", "f_beta_objects(beta=1)", "dice_pooled"]
    assert best_of(config(metrics=names)) == {
        "best_f_beta_objects": "f_beta_objects(beta=1)",
        "best_dice_pooled": "dice_pooled",
    }


def test_a_training_on_all_images_measures_and_keeps_none():
    settings = config(
        metrics=["val_loss", "tgs_map"], keep=["last", "best_val_loss", "best_tgs_map", "best_loss"]
    )
    refit = refit_config(settings, [[4]])
    assert (refit.metrics, refit.keep) == ([], ["last", "best_loss"])


def test_nothing_is_held_out(tmp_path):
    for settings, message in (
        (config(metrics=["tgs_map"]), r"training.metrics: 'tgs_map' needs a score"),
        (config(keep=["best_val_loss"]), r"training.keep: 'best_val_loss' needs a score"),
    ):
        with pytest.raises(InputError, match=message):
            run(make_data(tmp_path), tmp_path / "fold", settings, evaluate=None)


def test_a_recipes_hash_without_them_is_that_of_before():
    plain, asked = load_recipe("smoke"), load_recipe("smoke", ('training.metrics=["tgs_map"]',))
    assert plain.hash != asked.hash
    assert "metrics" in plain.to_yaml()
