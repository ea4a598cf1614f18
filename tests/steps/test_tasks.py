"""Class maps and objects go the whole way: examples that are learnt, written, judged, and resumed to the same bytes."""

import csv

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json
from masksmith.data.layouts import read_catalog
from masksmith.metrics import metric_for
from masksmith.postprocess.objects import ObjectRule
from masksmith.postprocess.rules import plain_of, read_rule
from masksmith.prediction.store import open_codes
from masksmith.project.folder import Project
from masksmith.recipes.recipe import load_recipe
from masksmith.steps.recipes import for_data
from masksmith.steps.resolve import resolve
from masksmith.steps.submit import write_baseline
from tests.stops import stop

LOSSES = {
    "multiclass": [{"name": "cross_entropy"}, {"name": "dice", "params": {"skip_empty": True}}],
    "instances": [{"name": "objects"}],
}
METRICS = {"multiclass": "miou", "instances": "dsb_map"}
TRAINED = {"multiclass": (12, 16), "instances": (12, 16)}
"""Training images and epochs, half of the images being held out."""


def small(task, epochs, **changes):
    """Overrides of ``auto``: the smallest net from nothing, one fold of two."""
    stage = {
        "epochs": epochs,
        "loss": LOSSES[task],
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": {"name": "one_cycle"},
    }
    return {
        "folds.count": 2,
        "folds.train": 1,
        "model.encoder": "tu-test_resnet",
        "model.encoder_weights": "none",
        "model.encoder_depth": 3,
        "model.decoder_channels": [32, 16, 16],
        "training.batch_size": 2,
        "training.ema_decay": 0.8,
        "training.precision": "32-true",
        "training.threads": 1,
        "training.evaluate_every": 100,
        "training.stages": [stage],
        "prediction.tta": ["identity"],
        "tuning.resamples": 100,
        **changes,
    }


@pytest.fixture(scope="module", params=["multiclass", "instances"])
def won(request, tmp_path_factory):
    """(task, folder of the example, project, result); read only."""
    task, root = request.param, tmp_path_factory.mktemp(request.param)
    num_train, epochs = TRAINED[task]
    ms.example(root / "example", train=num_train, test=3, task=task)
    result = ms.compete(root / "example/data", out=root / "p", overrides=small(task, epochs))
    return task, root / "example", root / "p", result


def image(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.slow
def test_a_bundle_gives_the_masks_of_the_project_again(won, tmp_path):
    _, data, out, _ = won
    ms.bundle(out, tmp_path / "model.msk")
    images = next(
        path for path in sorted((data / "data").rglob("*")) if path.name.startswith(("test", "stage1_test"))
    )
    done = ms.apply(tmp_path / "model.msk", images, tmp_path / "out")
    masks = {path.name: path for path in (tmp_path / "out/masks").rglob("*.png")}
    assert done.done == len(masks) == len(list((out / "masks").glob("*.png")))
    for path in (out / "masks").glob("*.png"):
        assert masks[path.name].read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_an_example_is_learnt_better_than_by_its_trivial_baselines(won):
    task, _, out, result = won
    tuning, metric = result.tuning, METRICS[task]
    assert tuning["metric"] == metric
    trivial = ["0 everywhere"] if task == "multiclass" else ["nothing", "everything"]
    assert tuning["baselines"] == trivial
    for name in ("chosen", "nested"):
        assert tuning["scores"][name] > max(tuning["scores"][one] for one in trivial) + 0.05
    last = str(result).splitlines()
    assert last[0].startswith(f"{metric} out of fold: {tuning['scores']['chosen']:.4f} ± ")
    assert all(f"{name} {tuning['scores'][name]:.4f}" in last[0] for name in trivial)
    assert result.run.startswith({"multiclass": "auto-classes-", "instances": "auto-objects-"}[task])
    assert read_json(out / "submission.json")["kind"] == "trained"


@pytest.mark.slow
def test_scores_and_masks_are_those_of_the_stored_probabilities(won):
    task, _, out, result = won
    project = Project.open(out)
    target, masks, run = project.target, project.cache.train_masks, project.run()
    metric = metric_for(METRICS[task], task=task, classes=len(target.classes))
    store = open_codes(run.oof(0))
    assert set(store.ids) == set(project.folds.inside(0))
    for rule, score in (
        (plain_of(target, run.recipe.tuning), result.tuning["plain"]),
        (read_rule(result.tuning["found"]), result.tuning["tuned"]),
    ):
        rows = [metric.stats(rule.apply(store[name]), masks[name][..., 0]) for name in store]
        assert metric.score(np.stack(rows)) == pytest.approx(score)
    codes = store[store.ids[0]]
    sums = codes.sum(axis=-1, dtype=np.int64)
    if task == "multiclass":
        assert (abs(sums - 65535) <= 4).all()  # a softmax, but for rounding
    else:
        assert sums.std() > 1000
        assert isinstance(read_rule(result.tuning["rule"]), ObjectRule)
    test, rule = open_codes(run.test(0)), read_rule(result.tuning["rule"])
    assert {path.name for path in (out / "masks").iterdir()} == {f"{name}.png" for name in test}
    for name in test:
        np.testing.assert_array_equal(image(out / "masks" / f"{name}.png"), rule.apply(test[name]))


@pytest.mark.slow
def test_files_for_the_judge(won, tmp_path):
    task, example, out, result = won
    found = {path.stem: image(path) for path in (out / "masks").iterdir()}
    truth = {path.stem: image(path).astype(np.int32) for path in (example / "solution").iterdir()}
    assert {mask.dtype for mask in found.values()} == {
        np.dtype(np.uint8 if task == "multiclass" else np.uint16)
    }
    assert {name: mask.shape for name, mask in found.items()} == {
        name: mask.shape for name, mask in truth.items()
    }
    metric = metric_for(METRICS[task], task=task, classes=4)
    kind = np.uint8 if task == "multiclass" else np.int32
    rows = [metric.stats(found[name].astype(kind), truth[name].astype(kind)) for name in sorted(truth)]
    scored = ms.score(out / "masks", example / "solution")
    assert (scored.score, scored.images) == (pytest.approx(metric.score(np.stack(rows))), 3)
    assert scored.score > scored.nothing
    with (out / "submission.csv").open() as file:
        head, *lines = csv.reader(file)
    assert result.submission.compared == 3
    assert ms.submit(out, check=out / "submission.csv").ids == 3
    if task == "multiclass":
        assert head == ["id", "class", "rle_mask"]
        assert [line[:2] for line in lines] == [[name, str(at)] for name in sorted(found) for at in (1, 2, 3)]
    else:
        assert head == ["ImageId", "EncodedPixels"]
        objects = {name: int(mask.max()) for name, mask in found.items()}
        assert {name: sum(line[0] == name for line in lines) for name in found} == objects
        assert all(len(np.unique(mask)) == mask.max() + 1 for mask in found.values())
        coco = read_json(out / "objects.json")
        names = {one["id"]: one["file_name"].removesuffix(".png") for one in coco["images"]}
        assert names == dict(enumerate(sorted(found), start=1))
        numbers = [one["id"] for one in coco["annotations"]]
        assert numbers == list(range(1, sum(objects.values()) + 1))
        for number, name in names.items():
            areas = [one["area"] for one in coco["annotations"] if one["image_id"] == number]
            assert sorted(areas) == sorted(np.bincount(found[name].ravel())[1:].tolist())
    (tmp_path / "bad.csv").write_text("\n".join(",".join(line) for line in [head, *lines, lines[0]]) + "\n")
    with pytest.raises(
        InputError, match=r"(?s)bad\.csv: .*(appears twice|rows of the classes 1; expected 1, 2, 3)"
    ):
        ms.submit(out, check=tmp_path / "bad.csv")


@pytest.mark.slow
def test_the_page_shows_classes_and_objects(won):
    task, _, out, _ = won
    page = (out / "report.html").read_text()
    for needed in ("Check plot", "random", "worst", "median", "best", "data:image/jpeg"):
        assert needed in page, needed
    outside = page[page.index("</script>") :]
    if task == "multiclass":
        for needed in ("IoU", "taken for", "0 everywhere"):
            assert needed in outside, needed
    else:
        assert "an object" in outside
        assert "too many objects" in outside or "too few objects" in outside


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multiclass", "instances"])
def test_stopped_and_resumed_without_test_images_on_windows(task, tmp_path):
    """The same bytes as without a stop; with no test images the masks are those out of fold."""
    ms.example(tmp_path / "example", train=6, test=0, task=task)
    data = tmp_path / "example/data"
    assert not read_catalog(data).test
    asked = small(task, 2, **{"training.crop_hw": [48, 48], "training.windows_per_image": 2})
    whole = ms.compete(data, out=tmp_path / "whole", overrides=asked)
    assert (whole.submission, whole.oof_masks) == (None, tmp_path / "whole/masks/oof")
    assert {path.stem for path in whole.oof_masks.iterdir()} == {
        *Project.open(tmp_path / "whole").folds.inside(0)
    }
    assert f"masks: {whole.oof_masks} (out of fold)" in str(whole)
    out = tmp_path / "stopped"
    for epoch in (0, 1):
        with stop(f"*/fold_0/epoch_{epoch:04d}.json"):
            assert ms.compete(data, out=out, overrides=asked).stopped == 143
    assert ms.compete(data, out=out, overrides=asked).stopped is None
    kinds = ("runs/*/checkpoints/*/final.safetensors", "runs/*/oof/*", "masks/oof/*")
    first, second = (
        {path.relative_to(root): path.read_bytes() for kind in kinds for path in root.glob(kind)}
        for root in (tmp_path / "whole", out)
    )
    assert len(first) == 6
    assert first == second


@pytest.mark.slow
def test_what_cannot_drive_a_task_is_refused_before_training(won, tmp_path):
    task, example, out, _ = won
    other = {"multiclass": "instances", "instances": "multiclass"}[task]
    able = {"multiclass": "miou, mdice", "instances": "dsb_map, f_beta_objects"}[task]
    for metric in ("tgs_map", METRICS["instances" if task == "multiclass" else "multiclass"]):
        with pytest.raises(InputError, match=rf"cannot score .*\(task {task}\); expected one of {able}"):
            ms.compete(example / "data", out=tmp_path / "p", metric=metric)
    assert not (tmp_path / "p/runs").exists()
    project = Project.open(out)
    for loss in LOSSES[other][0]["name"], "bce":
        with pytest.raises(InputError, match=rf"loss\[0\]\.name: '{loss}' (cannot learn|judges each class)"):
            resolve(
                project,
                load_recipe(
                    "smoke", (f"metric={METRICS[task]}", f"training.stages.0.loss=[{{name: {loss}}}]")
                ),
            )
    wrong = {"multiclass": "binary", "instances": "multiclass"}[task]
    contradicted = {
        "multiclass": "4 different values",
        "instances": "--task multiclass, but the images have a file",
    }
    for folder, asked, message in (
        (None, {"task": wrong}, contradicted[task]),
        (None, {"task": "pixels"}, "--task: 'pixels' is unknown"),
        (out, {"ignore": [3]}, r"begun with --task None and values \[\] not judged, now None and \[3\]"),
        (out, {"task": task}, rf"begun with --task None .* now {task} and \[\]"),
    ):
        with pytest.raises(InputError, match=message):
            ms.check(example / "data", folder, **asked)
    ms.check(example / "data", out)  # nothing was lost


@pytest.mark.slow
def test_other_verbs_take_the_recipe_of_the_task(won, tmp_path):
    task, example, _, _ = won
    ms.check(example / "data", tmp_path / "p")
    assert ms.folds(tmp_path / "p", overrides={"folds.count": 2}).count == 2
    asked = small(task, 1, **{"training.crop_hw": [32, 32]})
    del asked["folds.train"]
    assert ms.lr(tmp_path / "p", overrides=asked).page.exists()
    project = Project.open(tmp_path / "p")
    recipe = load_recipe({"multiclass": "auto-classes", "instances": "auto-objects"}[task])
    assert write_baseline(project, recipe).compared == 3
    kind = read_json(project.submission_json)
    assert kind["masks"] == ("0 everywhere" if task == "multiclass" else "nothing")


def test_the_metric_of_a_contest_belongs_to_its_columns(download, tmp_path):
    """Run-lengths down the columns alone do not make it TGS Salt."""
    for at, (head, metric) in enumerate((("id,rle_mask", "tgs_map"), ("img,rle_mask", "dice_per_image"))):
        for name in ("train.csv", "sample_submission.csv"):
            lines = (download / name).read_text().splitlines()
            (download / name).write_text("\n".join([head, *lines[1:]]) + "\n")
        ms.check(download, tmp_path / str(at))
        project = Project.open(tmp_path / str(at))
        assert for_data(project, load_recipe("auto"), "auto", ()).metric == metric


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "instances"])
def test_smoke_takes_the_loss_and_metric_of_the_task(task, tmp_path):
    ms.example(tmp_path / "e", train=4, test=1, task=task)
    ms.check(tmp_path / "e" / "data", tmp_path / "p")
    project, own = Project.open(tmp_path / "p"), load_recipe("smoke")
    losses = {"multiclass": ["cross_entropy", "dice"], "instances": ["objects"]}
    found = for_data(project, own, "smoke", ())
    assert found.metric == METRICS.get(task, "dice_per_image" if task == "multilabel" else own.metric)
    assert [one.name for one in found.training.stages[0].loss] == losses.get(task, ["bce", "dice"])
    assert found.model == own.model
    short = ("training.stages.0.epochs=1",)
    assert for_data(project, load_recipe("smoke", short), "smoke", short).training.stages[0].epochs == 1
