"""Labels that overlap go the whole way: example, folds, training, search, submission, report and score."""

import shutil

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json
from masksmith.data.layouts import read_catalog
from masksmith.data.store import Store, StoreWriter
from masksmith.folds.table import rarest_labels
from masksmith.postprocess.labels import LabelRules
from masksmith.postprocess.rules import read_rule
from masksmith.project.folder import Project
from masksmith.recipes.recipe import load_recipe
from masksmith.steps.recipes import for_data
from masksmith.submission.formats import read_labels

OVERRIDES = {
    "metric": "dice_per_image",
    "training.threads": 1,
    "size.resize_hw": [48, 48],
    "model.image_head": "avg",
    "prediction.image_head": "multiply",
    "training.stages.0.loss": [
        {"name": "bce", "weight": 1.0},
        {"name": "dice", "weight": 1.0},
        {"name": "image_bce", "weight": 0.1},
    ],
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    out = tmp_path_factory.mktemp("labels")
    ms.example(out, train=24, test=4, task="multilabel")
    return out


@pytest.mark.slow
def test_the_whole_way(scenes, tmp_path):
    """With an image head of a logit a label."""
    out = tmp_path / "out"
    result = ms.compete(scenes / "data", out=out, recipe="smoke", overrides=OVERRIDES)
    project, tuning = Project.open(out), read_json(out / "tuning.json")
    assert project.target.classes == ("1", "2", "3")
    assert (result.submission.ids, result.submission.compared) == (4, 4)
    assert isinstance(read_rule(tuning["rule"]), LabelRules)
    assert tuning["searched"] == "top and bottom threshold, pixels of each label"
    assert set(tuning["baselines"]) == {"nothing", "everything"}
    assert tuning["scores"]["plain"] > tuning["scores"]["everything"]
    head, *rows = (out / "submission.csv").read_text().splitlines()
    assert (head, len(rows)) == ("ImageId,ClassId,EncodedPixels", 12)
    assert rows[1].startswith("test_0000.png,2,")
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["1", "2", "3"]
    mask = read_labels(out / "masks", "test_0000", project.target)
    assert mask.shape == (*project.cache.test_images.shape("test_0000"), 3)
    scored = ms.score(out / "submission.csv", scenes / "solution.csv")
    assert (scored.task, list(scored.per_class)) == ("multilabel", ["1", "2", "3"])
    assert ms.score(out / "masks", out / "masks").score == 1
    page = (out / "report.html").read_text()
    assert "<h2>Labels</h2>" in page
    assert "labels that are missing in red" in page
    assert "most often taken for" not in page
    assert not list(out.glob(".masks.*"))
    (out / "masks" / "2" / "test_0000.png").unlink()
    with pytest.raises(InputError, match=r"masks/2/test_0000\.png: no mask there"):
        read_labels(out / "masks", "test_0000", project.target)


@pytest.mark.slow
def test_without_test_images_the_masks_are_those_out_of_fold(scenes, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(scenes / "data", data)
    shutil.rmtree(data / "test_images")
    (data / "sample_submission.csv").unlink()
    short = OVERRIDES | {"training.stages.0.epochs": 1, "metric": "miou"}
    result = ms.compete(data, out=out, recipe="smoke", overrides=short)
    project = Project.open(out)
    names = {row.id for row in project.folds.rows if row.fold == 0}
    for label in ("1", "2", "3"):
        assert {path.stem for path in (result.oof_masks / label).iterdir()} == names
    assert result.oof_masks == out / "masks" / "oof"


def test_the_recipe_of_the_task(scenes, tmp_path):
    ms.check(scenes / "data", tmp_path)
    project = Project.open(tmp_path)
    asked = for_data(project, load_recipe("auto"), "auto", ())
    assert (asked.name, asked.metric) == ("auto-labels", "dice_per_image")
    with pytest.raises(
        InputError, match="pseudo: tgs-pseudo learns from pseudo-labels, which are made of binary"
    ):
        for_data(project, load_recipe("tgs-pseudo"), "tgs-pseudo", ())
    folds = ms.folds(tmp_path, overrides={"folds.count": 3})
    kinds = rarest_labels(project.cache.train_masks, 3)
    spread = np.array([[kinds[row.id] == kind for row in project.folds.rows] for kind in range(4)])
    fold_of = np.array([row.fold for row in project.folds.rows])
    counts = np.array([[one[fold_of == fold].sum() for fold in range(3)] for one in spread])
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 2, folds


def test_the_rarest_label(tmp_path):
    held = {"a": [0, 1], "b": [0], "c": [], "d": [0, 2], "e": [1, 0]}
    writer = StoreWriter(tmp_path / "masks.npy", [(name, (2, 2, 3)) for name in held], dtype=np.uint8)
    for name, labels in held.items():
        mask = np.zeros((2, 2, 3), np.uint8)
        mask[0, 0, labels], mask[1, 1] = 1, 255
        writer.write(name, mask)
    writer.close()
    assert rarest_labels(Store(tmp_path / "masks.npy"), 3) == {"a": 2, "b": 1, "c": 0, "d": 3, "e": 2}


def test_the_example_overlaps_and_leaves_labels_out(scenes):
    catalog = read_catalog(scenes / "data")
    assert catalog.labels == ["1", "2", "3"]
    assert any(len(sample.labels) < 3 for sample in catalog.train)
    assert [tuple(row[:2]) for row in catalog.submission.label_rows[:2]] == [
        ("test_0000", "1"),
        ("test_0000", "2"),
    ]
