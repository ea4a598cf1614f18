"""The whole way on real data: a small part of TGS Salt, with fixed epochs."""

import csv
import zipfile

import pytest

import masksmith as ms
from masksmith.project.folder import Project
from masksmith.training.events import read_events

pytestmark = [pytest.mark.real, pytest.mark.slow]

SETTINGS = {
    "folds.count": 4,
    "folds.train": 1,
    "training.threads": 1,
    "training.stages.0.epochs": 7,
    "training.stages.1.epochs": 1,
    "training.stages.2.epochs": 2,
    "training.batch_size": 16,
}


def copy_part(source, target, *, train, test):
    """Copy the first images of the download, in its own layout; the rest of it stays where it is."""
    target.mkdir()
    rows = {}
    for name, number in (("train", train), ("sample_submission", test)):
        with (source / f"{name}.csv").open() as file:
            rows[name] = list(csv.reader(file))[: number + 1]
        with (target / f"{name}.csv").open("w") as file:
            csv.writer(file).writerows(rows[name])
    (target / "depths.csv").write_bytes((source / "depths.csv").read_bytes())
    for archive, table in (("train", "train"), ("test", "sample_submission")):
        ids = {row[0] for row in rows[table][1:]}
        with (
            zipfile.ZipFile(source / f"{archive}.zip") as old,
            zipfile.ZipFile(target / f"{archive}.zip", "w") as new,
        ):
            for info in old.infolist():
                if info.filename.rpartition("/")[2].removesuffix(".png") in ids:
                    new.writestr(info, old.read(info))
    return target


def test_a_part_of_tgs_clearly_beats_predicting_nothing(shared, tmp_path):
    data = copy_part(shared / "data" / "tgs-salt", tmp_path / "tgs", train=240, test=40)
    weights = shared / "weights" / "mobilenet_v2-imagenet.safetensors"
    result = ms.compete(
        data, out=tmp_path / "out", overrides=SETTINGS | {"model.encoder_weights": str(weights)}
    )
    scores = result.tuning["scores"]
    assert scores["nested"] > scores["nothing"] + 0.1
    assert scores["plain"] > scores["nothing"] + 0.1
    assert result.submission.ids == 40


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("tgs-depth-unet", [2]),
        ("tgs-model1", [2]),
        ("tgs-model2", [2, 1]),
        ("tgs-baseline-cnn", [2]),
        ("tgs-diagram", [2]),
    ],
)
def test_the_kernels_of_tgs_go_the_whole_way(shared, tmp_path, name, lengths):
    data = copy_part(shared / "data" / "tgs-salt", tmp_path / "tgs", train=36, test=6)
    cheap = {"training.threads": 1, "training.batch_size": 8, "tuning.resamples": 100}
    for i, epochs in enumerate(lengths):
        cheap |= {f"training.stages.{i}.epochs": epochs, f"training.stages.{i}.batch_size": None}
    result = ms.compete(data, out=tmp_path / "out", recipe=name, overrides=cheap)
    run = Project.open(tmp_path / "out").run()
    train = [one for one in read_events(run.events(0)) if (one["split"], one["name"]) == ("train", "loss")]
    assert len(train) == sum(lengths)
    assert train[1]["value"] < train[0]["value"]
    assert run.recipe.model.encoder == "own"
    assert result.submission.ids == 6


def test_check_and_plan_of_the_whole_download(shared, tmp_path):
    report = ms.check(shared / "data" / "tgs-salt", tmp_path / "out")
    assert report.facts["training images"] == 3222
    assert report.facts["empty masks"] == "1269 (39.4%)"
    found = {finding.title: len(finding.ids) for finding in report.findings}
    assert found == {
        "training images without content": 69,
        "test images without content": 89,
        "identical training images": 69,
        "test images that are also training images": 89,
        "nearly equal training images": 4,
        "test images nearly equal to training images": 5,
        "neighbouring tiles": 1019,
    }
    folds = ms.folds(tmp_path / "out")
    assert {row.fold for row in folds.rows if row.coverage_class == 0} == {0, 1, 2, 3, 4}
    balance = folds.balance()
    assert (balance.max(axis=0) - balance.min(axis=0) <= 1).all()
    weights = str(shared / "weights" / "mobilenet_v2-imagenet.safetensors")
    overrides = {"model.encoder_weights": weights, "training.threads": 1}
    text = ms.plan(shared / "data" / "tgs-salt", budget="3h", out=tmp_path / "out", overrides=overrides)
    recipe = (tmp_path / "out" / "plan.yaml").read_text()
    assert recipe == text
    assert "encoder: mobilenet_v2" in text
    assert "# mobilenet_v2: unet on mobilenet_v2, weights: " in text
    assert "# 32: for 25" in text
    assert "train: " in text
