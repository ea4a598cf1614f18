"""The whole way on generated data: the contract of the project folder, and what is done again and what is not."""

import csv
import dataclasses
import os
import shutil
from datetime import datetime

import numpy as np
import pytest
import torch

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.data.layouts import read_catalog
from masksmith.metrics import get_metric
from masksmith.postprocess.operators import Rule
from masksmith.prediction.store import open_codes
from masksmith.project.folder import Project
from masksmith.project.members import members_of_run
from masksmith.recipes.recipe import load_recipe
from masksmith.reporting import write_report
from masksmith.steps.report import report_facts
from masksmith.submission.formats import read_mask
from masksmith.training.events import read_events

VOLATILE = {".masksmith.lock", "report.html", "check.json", "current.json", "requests.json"}


def stamps(project):
    files = (path for path in project.rglob("*") if path.is_file() and path.name not in VOLATILE)
    return {path: path.stat().st_mtime_ns for path in files}


def the_run(project):
    return Project.open(project).run()


def compete(example, out, **changes):
    return ms.compete(example / "data", out=out, recipe="smoke", overrides=changes)


def assert_masks_by_the_rule(project, codes, rule):
    for name, image in codes.items():
        mask = read_mask(project / "masks" / f"{name}.png")
        np.testing.assert_array_equal(mask, rule.apply(image[..., 0]))


# --- what one run leaves ----------------------------------------------------------------------------------


def test_the_project_folder_is_the_contract(trained):
    listed = {path.name for path in trained.iterdir()}
    assert listed >= {
        "data.json",
        "folds.csv",
        "cache",
        "runs",
        "tuning.json",
        "masks",
        "submission.csv",
        "report.html",
    }
    project = Project.open(trained)
    run = project.run()
    found = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    fold = {"checkpoints/fold_0/final.safetensors", "checkpoints/fold_0/final.json"}
    fold |= {f"{part}/fold_0.{ending}" for part in ("oof", "test") for ending in ("npy", "csv")}
    fold |= {".updates.lock", "checkpoints/fold_0/.masksmith.lock"}
    assert (
        found == {"recipe.yaml", "environment.txt", "metrics.fold_0.jsonl", "stage.json", "times.json"} | fold
    )
    assert run.path.name == f"smoke-{run.recipe.hash[:8]}"
    assert run.ledger.is_done("folds", project.folds.hash)
    text = (run.path / "recipe.yaml").read_text()
    assert text.startswith("name: smoke\n")
    assert "auto" not in text  # it is resolved
    with pytest.raises(InputError, match="no run 'nothing'; there are smoke-"):
        ms.report(trained, run="nothing")


def test_probabilities_scores_and_masks_by_hand(trained, example):
    project, metric, tuning = Project.open(trained), get_metric("tgs_map"), read_json(trained / "tuning.json")
    store, masks, blank = open_codes(project.run().oof(0)), project.cache.train_masks, project.blank_train
    assert set(store.ids) == set(project.folds.inside(0))
    assert {store.shape(name) for name in store} == {(101, 101)}
    content = [name for name in project.folds.inside(0) if name not in blank]
    for rule, score in ((Rule(32767, 0, 32767), tuning["plain"]), (Rule(**tuning["found"]), tuning["tuned"])):
        rows = [metric.stats(rule.apply(store[n][..., 0]), masks[n][..., 0]) for n in content]
        assert metric.score(np.stack(rows)) == pytest.approx(score)
    empty = np.mean([not (masks[name] == 1).any() for name in content])
    assert tuning["scores"]["nothing"] == pytest.approx(empty)
    test = open_codes(project.run().test(0))
    assert_masks_by_the_rule(trained, {name: test[name] for name in test}, Rule(**tuning["rule"]))
    scored = ms.score(trained / "submission.csv", example / "solution.csv", shape=(101, 101))
    assert scored.images == 8
    assert 0 <= scored.score <= 1
    # images without content are identical, so in one fold; out of training, and empty
    assert blank
    assert len({row.fold for row in project.folds.rows if row.id in blank}) == 1
    assert not any(store[name].any() for name in blank & set(store.ids))
    assert not any(read_mask(trained / "masks" / f"{name}.png").any() for name in project.blank_test)


def test_report_is_one_offline_file_that_escapes(trained):
    page = (trained / "report.html").read_text()
    for needed in (
        *("Score, out of fold", "Check plot", "random", "worst", "median", "best", "data:image/jpeg"),
        *(
            "new images like these expect",
            "false positives in green",
            "Samples by coverage class",
            "training masks; ",
        ),
        "z: largest gap of the cumulative shares",
    ):
        assert needed in page, needed
    outside = page[page.index("</script>") :]  # after plotly's own code
    assert "https://" not in outside.replace("https://plot.ly", "")
    assert "<link" not in outside
    facts = report_facts(Project.open(trained), members_of_run(the_run(trained)))
    evil = dataclasses.replace(facts, title="<script>alert(1)</script>", run="<img src=x>")
    text = write_report(trained.parent / "evil.html", evil).read_text()
    assert "<script>alert(1)" not in text
    assert "<img src=x>" not in text


# --- verbs, and what they do again ------------------------------------------------------------------------


@pytest.mark.slow
def test_each_verb_alone(example, tmp_path):
    assert "layout: kaggle_rle" in str(ms.check(example / "data"))  # leaves nothing
    out = tmp_path / "out"
    assert ms.check(example / "data", out).facts["training images"] == 40
    assert ms.folds(out, recipe="smoke").count == 3
    for verb in (ms.predict, ms.tune, ms.submit):
        with pytest.raises(InputError, match="no run yet"):
            verb(out)
    torch.set_num_threads(2)  # the recipe takes one
    try:
        run = ms.train(out, recipe="smoke", overrides={"training.stages.0.epochs": 1})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    with pytest.raises(InputError, match=r"fold_0\.npy: not there"):
        ms.tune(out)
    ms.predict(out, run=run.path.name)
    with pytest.raises(InputError, match=r"tuning\.json: not there yet; run `masksmith tune"):
        ms.submit(out)
    assert ms.tune(out)["metric"] == "tgs_map"
    assert ms.submit(out).compared == 8
    assert ms.report(out).exists()


@pytest.mark.slow
def test_only_what_is_missing_is_done(example, project):
    run, before = the_run(project), stamps(project)
    result = compete(example, project)
    assert stamps(project) == before
    assert "submission: " in str(result)
    run.oof(0).unlink()
    shutil.rmtree(project / "masks")
    assert compete(example, project).run == result.run
    after = stamps(project)
    changed = {path.relative_to(project).parts[0] for path in before if after[path] != before[path]}
    assert changed == {"runs", "masks", "submission.csv", "submission.json", "stage.json"}
    assert after[run.final(0)] == before[run.final(0)]
    assert after[run.test(0)] == before[run.test(0)]
    assert not list(project.glob("submissions/*"))  # the same bytes, and no copy of them
    text = (project / "submission.csv").read_text()
    (project / "submission.csv").write_text(text[:-20])
    os.utime(project / "submission.csv", (10**9, 10**9))
    assert ms.submit(project).compared == 8
    assert (project / "submission.csv").read_text() == text
    (kept,) = (project / "submissions").iterdir()  # what was replaced, whoever wrote it
    assert (kept.name, kept.read_text()) == (
        f"{datetime.fromtimestamp(10**9):%Y-%m-%d-%H%M%S}-{run.path.name}.csv",
        text[:-20],
    )
    next((project / "masks").iterdir()).unlink()
    assert ms.submit(project).compared == 8


def test_a_project_that_was_edited_or_moved(example, project, tmp_path):
    moved = shutil.copytree(example / "data", tmp_path / "elsewhere")
    ms.check(moved, project)
    assert Project.open(project).catalog.root == str(moved.resolve())
    shutil.rmtree(project / "cache")
    ms.tune(project)  # an older project is rebuilt from its data
    rows = list(csv.reader((project / "submission.csv").read_text().splitlines()))
    with (tmp_path / "mine.csv").open("w") as file:
        csv.writer(file).writerows([rows[0], *rows[:0:-1]])
    assert ms.submit(project, check=project / "submission.csv").ids == 8
    with pytest.raises(InputError, match=r"(?s)mine\.csv: .*line 2: id "):
        ms.submit(project, check=tmp_path / "mine.csv")
    with pytest.raises(InputError, match=r"folds\.seed: 7 was asked for, but .* was made with another,"):
        ms.folds(project, recipe="smoke", overrides={"folds.seed": 7})
    run = the_run(project)
    own = {
        path: path.read_bytes() for ending in (".npy", ".csv") for path in [run.oof(0).with_suffix(ending)]
    }
    for path in own:
        shutil.copy(run.test(0).with_suffix(path.suffix), path)
    with pytest.raises(InputError, match="it holds other images than fold 0"):
        ms.tune(project)
    for path, raw in own.items():
        path.write_bytes(raw)
    text = (project / "folds.csv").read_text().splitlines()
    swapped = [line[:-1] + str((int(line[-1]) + 1) % 3) for line in text[1:]]
    (project / "folds.csv").write_text("\n".join([text[0], *swapped]) + "\n")
    with pytest.raises(InputError, match="fold 0 is not trained"):
        ms.predict(project)
    with pytest.raises(InputError, match="made with other weights, folds or settings"):
        ms.tune(project)
    write_json(project / "runs" / "current.json", "gone")
    with pytest.raises(InputError, match="no run 'gone'"):
        ms.tune(project)


@pytest.mark.slow
def test_other_values_are_another_run_and_other_views_are_not(project):
    run, before = the_run(project), stamps(project)
    assert ms.train(project, recipe="smoke", overrides=["seed=0"]).path == run.path
    assert ms.train(project, recipe="smoke", overrides={"seed": 0}).path == run.path
    ms.train(project, recipe="smoke", overrides={"prediction.tta": ["identity", "hflip"]})
    with pytest.raises(InputError, match="made with other weights, folds or settings"):
        ms.submit(project)
    ms.predict(project)
    with pytest.raises(InputError, match="made from other probabilities or settings"):
        ms.submit(project)
    ms.tune(project)
    ms.submit(project)
    after = stamps(project)
    assert after[run.final(0)] == before[run.final(0)]
    assert after[run.oof(0)] != before[run.oof(0)]
    ms.train(project, recipe="smoke", overrides={"training.clip_norm": 1.0, "training.stages.0.epochs": 1})
    assert len(list((project / "runs").glob("*/recipe.yaml"))) == 2
    assert the_run(project).path != run.path
    ms.predict(project)
    with pytest.raises(InputError, match=r"it was made for smoke-[0-9a-f]{8}/fold 0, not smoke-"):
        ms.submit(project)
    assert ms.submit(project, run=run.path.name).ids == 8


@pytest.mark.slow
def test_a_metric_that_cannot_be_had_is_refused_before_anything_is_done(example, tmp_path):
    with pytest.raises(
        InputError, match=r"metric: 'iou_by_group' is a mean over groups, and folds\.group_by is null"
    ):
        compete(example, tmp_path / "project", metric="iou_by_group")
    assert not (tmp_path / "project").exists()
    with pytest.raises(InputError, match=r"metric: miou: num_classes=3, but the masks are of a .* and a"):
        compete(example, tmp_path / "project", metric="miou(num_classes=3)")
    assert not (tmp_path / "project" / "folds.csv").exists()  # the masks had to be looked at


# --- what was chosen on the fold --------------------------------------------------------------------------


@pytest.mark.slow
def test_an_epoch_that_was_chosen_on_the_fold_reports_its_optimism(project):
    for select in ("best", "best_val_loss"):
        changes = {"training.select": select, "training.evaluate_every": 1, "training.stages.0.epochs": 4}
        run = ms.train(project, recipe="smoke", overrides=changes)
        ms.predict(project)
        scores = [
            e["value"] for e in read_events(run.events(0)) if (e["split"], e["name"]) == ("fold", "score")
        ]
        chosen = read_json(run.final(0).with_suffix(".json"))["epoch"]
        tuning = ms.tune(project)
        assert tuning["optimism"] == {"fold_0": pytest.approx(scores[chosen - 1] - scores[-1])}
        assert tuning["chosen_on_fold"][0] == "epoch"
        assert select == "best_val_loss" or scores[chosen - 1] == max(scores)
        page = ms.report(project).read_text()
        assert "The epoch was chosen on the fold itself" in page
        assert "<b>Chosen on the same fold:</b> epoch" in page
        assert "start: best" not in page.partition("<pre")[0]
        assert ("fold 0, held-out images" in page) == (select == "best_val_loss")
    stage = load_recipe("smoke").training.stages[0].model_dump(mode="json") | {"epochs": 2}
    from_best = stage | {"start": "best", "optimizer": {"name": "adam", "lr": 0.001}}
    run = ms.train(project, recipe="smoke", overrides={"training.stages": [stage, from_best]})
    ms.predict(project)
    found = ms.tune(project)
    assert (found["optimism"], found["began_from_best"]) == (None, [f"{run.path.name}/fold 0"])
    page = ms.report(project).read_text()
    assert f"<code>start: best</code>: {run.path.name}/fold 0)" in page
    assert "stage 2" in page


@pytest.mark.slow
def test_two_folds_are_averaged(project):
    before = the_run(project).final(0).stat().st_mtime_ns
    ms.train(project, recipe="smoke", overrides={"folds.train": 2})
    assert the_run(project).final(0).stat().st_mtime_ns == before  # the first fold is not trained again
    ms.predict(project)
    tuning = ms.tune(project)
    assert tuning["covers"].startswith("2")
    assert len(tuning["parts"]) == 2
    ms.submit(project)
    first, second = (open_codes(the_run(project).test(fold)) for fold in (0, 1))
    mean = {name: np.rint((first[name].astype(float) + second[name]) / 2).astype(np.uint16) for name in first}
    assert_masks_by_the_rule(project, mean, Rule(**tuning["rule"]))


@pytest.mark.slow
def test_a_given_rule_and_small_regions_go_through_to_masks_and_report(example, project):
    trained = the_run(project).path.name
    given = {
        "bottom_thresholds": [0.5],
        "top_thresholds": [0.5],
        "min_area_fracs": [0.0],
        "component_area_frac": 0.01,
    }
    done = compete(example, project, **{f"tuning.{key}": value for key, value in given.items()})
    assert done.run == trained  # nothing is trained for it
    assert done.tuning["num_rules"] == 1
    assert done.tuning["searched"].startswith("nothing")
    rule = {"top": 32767, "min_pixels": 0, "bottom": 32767, "component_area_frac": 0.01, "of_pixels": None}
    assert done.tuning["rule"] == rule
    store = open_codes(the_run(project).test(0))
    assert_masks_by_the_rule(project, {name: store[name] for name in store}, Rule(**rule))
    page = (project / "report.html").read_text()
    assert "without regions up to 1.000% of the image (the recipe gives it; nothing was searched)" in page
    assert "nested gain" not in page


@pytest.mark.slow
def test_data_without_a_test_set(tmp_path, download):
    shutil.rmtree(download / "test")
    (download / "sample_submission.csv").unlink()
    assert read_catalog(download).test == []
    result = ms.compete(
        download, out=tmp_path / "out", recipe="smoke", overrides={"training.stages.0.epochs": 1}
    )
    assert result.submission is None
    assert "none, there are no test images" in str(result)
    with pytest.raises(InputError, match="there are no test images, so there is nothing to submit"):
        ms.submit(tmp_path / "out")


def test_recipes():
    names = [listing.name for listing in ms.recipes()]
    assert names == sorted(names)
    assert {"auto", "cloud-unet", "smoke", "water-unet"} <= set(names)
    card = ms.recipes("auto")
    assert card.num_weights > 1e6
    for text in ("size trace", "head             1 x 112x112", "epochs: 14"):
        assert text in str(card), text
