import csv
import dataclasses
import shutil

import numpy as np
import pytest
import torch

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.data.layouts import read_catalog
from masksmith.metrics import get_metric
from masksmith.postprocess.operators import Rule, apply_rule
from masksmith.prediction.store import open_codes
from masksmith.project.folder import Project
from masksmith.project.members import members_of_run
from masksmith.steps.report import report_facts
from masksmith.submission.formats import read_mask
from masksmith.training.events import read_events
from tests.conftest import TINY


def stamps(project):
    return {
        path: path.stat().st_mtime_ns
        for path in project.rglob("*")
        if path.is_file()
        and path.name not in (".masksmith.lock", "report.html", "check.json", "current.json", "requests.json")
    }


def the_run(project):
    return Project.open(project).run()


def test_the_project_folder_is_the_contract(trained):
    for name in (
        "data.json",
        "folds.csv",
        "cache",
        "runs",
        "tuning.json",
        "masks",
        "submission.csv",
        "report.html",
    ):
        assert (trained / name).exists(), name
    run = the_run(trained)
    found = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert found == {
        "recipe.yaml",
        "environment.txt",
        "metrics.jsonl",
        "stage.json",
        "checkpoints/fold_0/final.safetensors",
        "checkpoints/fold_0/final.json",
        "oof/fold_0.npy",
        "oof/fold_0.csv",
        "test/fold_0.npy",
        "test/fold_0.csv",
    }
    assert run.path.name == f"auto-{run.recipe.hash[:8]}"


def test_resolved_recipe_has_no_auto_left(trained):
    text = (the_run(trained).path / "recipe.yaml").read_text()
    assert text.startswith("name: auto\n")
    assert "auto" not in text.removeprefix("name: auto\n")


def test_the_same_command_again_does_nothing(example, project):
    before = stamps(project)
    result = ms.compete(example / "data", out=project, overrides=TINY)
    assert stamps(project) == before
    assert "submission: " in str(result)


def test_only_what_is_missing_is_done(example, project):
    run = the_run(project)
    before = stamps(project)
    run.oof(0).unlink()
    shutil.rmtree(project / "masks")
    ms.compete(example / "data", out=project, overrides=TINY)
    after = stamps(project)
    changed = {path.relative_to(project).parts[0] for path in before if after[path] != before[path]}
    assert changed == {"runs", "masks", "submission.csv", "submission.json", "stage.json"}
    assert after[run.final(0)] == before[run.final(0)]
    assert after[run.test(0)] == before[run.test(0)]


def test_changed_values_make_another_run_on_the_same_folds(example, project):
    ms.train(project, overrides=TINY | {"training.clip_norm": 1.0})
    assert len(list((project / "runs").glob("*/recipe.yaml"))) == 2
    first = {run.name for run in (project / "runs").iterdir() if run.is_dir()} - {the_run(project).path.name}
    ms.predict(project)
    with pytest.raises(InputError, match=r"it was made for auto-[0-9a-f]{8}/fold 0, not auto-"):
        ms.submit(project)
    verdict = ms.submit(project, run=first.pop())
    assert verdict.ids == 8


def test_each_verb_alone(example, tmp_path):
    out = tmp_path / "out"
    assert ms.check(example / "data", out).facts["training images"] == 40
    assert ms.folds(out, overrides=TINY).count == 3
    for verb, needs in ((ms.predict, "no run yet"), (ms.tune, "no run yet"), (ms.submit, "no run yet")):
        with pytest.raises(InputError, match=needs):
            verb(out)
    torch.set_num_threads(2)  # the recipe takes one
    try:
        run = ms.train(out, overrides=TINY)
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


def test_check_alone_leaves_nothing(example, tmp_path):
    assert "layout: kaggle_rle" in str(ms.check(example / "data"))


def test_oof_is_at_the_true_size_for_exactly_the_fold(trained):
    project = Project.open(trained)
    store = open_codes(project.run().oof(0))
    assert set(store.ids) == set(project.folds.inside(0))
    assert {store.shape(name) for name in store} == {(101, 101)}


def test_images_without_content_are_out_of_training_and_empty(trained):
    project = Project.open(trained)
    assert project.blank_train  # the example holds some
    masks = [name for name in project.catalog.submission.ids if name in project.blank_test]
    assert all(not read_mask(trained / "masks" / f"{name}.png").any() for name in masks)
    for row in project.folds.rows:
        if row.id in project.blank_train and row.fold == 0:
            assert not open_codes(project.run().oof(0))[row.id].any()


def test_identical_images_share_a_fold(trained):
    project = Project.open(trained)
    black = {row.fold for row in project.folds.rows if row.id in project.blank_train}
    assert len(black) == 1


def test_plain_score_by_hand(trained):
    project, metric = Project.open(trained), get_metric("tgs_map")
    store, masks = open_codes(project.run().oof(0)), project.cache.train_masks
    tuning = read_json(trained / "tuning.json")
    content = [name for name in project.folds.inside(0) if name not in project.blank_train]
    for rule, score in ((Rule(32767, 0, 32767), tuning["plain"]), (Rule(**tuning["found"]), tuning["tuned"])):
        rows = [metric.stats(apply_rule(store[n][..., 0], rule), masks[n][..., 0]) for n in content]
        assert metric.score(np.stack(rows)) == pytest.approx(score)
    empty = np.mean([not (masks[name] == 1).any() for name in content])
    assert tuning["scores"]["nothing"] == pytest.approx(empty)


def test_submission_is_the_rule_on_the_test_codes(trained):
    tuning = read_json(trained / "tuning.json")
    store = open_codes(the_run(trained).test(0))
    for name in store:
        expected = apply_rule(store[name][..., 0], Rule(**tuning["rule"]))
        np.testing.assert_array_equal(read_mask(trained / "masks" / f"{name}.png"), expected)


def test_submit_check_validates_any_file(project, tmp_path):
    assert ms.submit(project, check=project / "submission.csv").ids == 8
    rows = list(csv.reader((project / "submission.csv").read_text().splitlines()))
    with (tmp_path / "mine.csv").open("w") as file:
        csv.writer(file).writerows([rows[0], *rows[:0:-1]])
    with pytest.raises(InputError, match=r"mine\.csv: line 2: id "):
        ms.submit(project, check=tmp_path / "mine.csv")


def test_score_equals_the_solution(trained, example):
    scored = ms.score(trained / "submission.csv", example / "solution.csv", shape=(101, 101))
    assert scored.images == 8
    assert 0 <= scored.score <= 1


def test_edited_folds_invalidate_the_training(project):
    text = (project / "folds.csv").read_text().splitlines()
    swapped = [line[:-1] + str((int(line[-1]) + 1) % 3) for line in text[1:]]
    (project / "folds.csv").write_text("\n".join([text[0], *swapped]) + "\n")
    with pytest.raises(InputError, match="fold 0 is not trained"):
        ms.predict(project)
    with pytest.raises(InputError, match="made with other weights, folds or settings"):
        ms.tune(project)


def test_foreign_probabilities_are_refused(project):
    run = the_run(project)
    for ending in (".npy", ".csv"):
        shutil.copy(run.test(0).with_suffix(ending), run.oof(0).with_suffix(ending))
    with pytest.raises(InputError, match="it holds other images than fold 0"):
        ms.tune(project)


def test_other_tta_predicts_again_without_training(project):
    run = the_run(project)
    before = stamps(project)
    ms.train(project, overrides=TINY | {"prediction.tta": ["identity"]})
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


def test_a_damaged_submission_is_written_again(project):
    before = (project / "submission.csv").read_text()
    (project / "submission.csv").write_text(before[:-20])
    assert ms.submit(project).compared == 8
    assert (project / "submission.csv").read_text() == before
    next((project / "masks").iterdir()).unlink()
    assert ms.submit(project).compared == 8


def test_other_fold_seed_is_refused(project):
    with pytest.raises(InputError, match=r"folds\.seed: 7 was asked for, but .* was made with another,"):
        ms.folds(project, overrides=TINY | {"folds.seed": 7})


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("miou(num_classes=3)", r"metric: 'miou\(num_classes=3\)' needs class maps"),
        ("iou_by_group", "metric: 'iou_by_group' is a mean over groups, and folds.group_by is null"),
    ],
)
def test_a_metric_that_cannot_be_had_is_refused_before_anything_is_done(example, tmp_path, metric, message):
    with pytest.raises(InputError, match=message):
        ms.compete(example / "data", out=tmp_path / "project", overrides=TINY | {"metric": metric})
    assert not (tmp_path / "project").exists()


def test_the_run_names_the_folds_it_was_trained_on(trained):
    project = Project.open(trained)
    assert project.run().ledger.is_done("folds", project.folds.hash)


def test_unknown_run(project):
    with pytest.raises(InputError, match="no run 'nothing'; there are auto-"):
        ms.report(project, run="nothing")


@pytest.mark.parametrize("select", ["best", "best_val_loss"])
def test_an_epoch_that_was_chosen_on_the_fold_reports_its_optimism(project, select):
    overrides = TINY | {"training.select": select, "training.evaluate_every": 1}
    run = ms.train(project, overrides=overrides)
    ms.predict(project)
    scores = [e["value"] for e in read_events(run.events) if (e["split"], e["name"]) == ("fold", "score")]
    chosen = read_json(run.final(0).with_suffix(".json"))["epoch"]
    tuning = ms.tune(project)
    assert tuning["optimism"] == {"fold_0": pytest.approx(scores[chosen - 1] - scores[-1])}
    assert tuning["chosen_on_fold"][0] == "epoch"
    if select == "best":
        assert scores[chosen - 1] == max(scores)
    page = ms.report(project).read_text()
    assert "The epoch was chosen on the fold itself" in page
    assert "<b>Chosen on the same fold:</b> epoch" in page
    assert "start: best" not in page.partition("<pre")[0]
    assert ("fold 0, held-out images" in page) == (select == "best_val_loss")


def test_a_stage_that_began_from_the_best_epoch_is_named(project):
    from_best = {"start": "best", "optimizer": {"name": "adam", "lr": 0.001}}
    changes = {f"training.stages.2.{key}": value for key, value in from_best.items()}
    run = ms.train(project, overrides=TINY | changes)
    ms.predict(project)
    found = ms.tune(project)
    assert (found["optimism"], found["began_from_best"]) == (None, [f"{run.path.name}/fold 0"])
    assert f"<code>start: best</code>: {run.path.name}/fold 0)" in ms.report(project).read_text()


def test_two_folds_are_averaged(project):
    before = the_run(project).final(0).stat().st_mtime_ns
    ms.train(project, overrides=TINY | {"folds.train": 2})
    assert the_run(project).final(0).stat().st_mtime_ns == before  # the first fold is not trained again
    ms.predict(project)
    tuning = ms.tune(project)
    assert tuning["covers"].startswith("2")
    assert len(tuning["parts"]) == 2
    ms.submit(project)
    run = the_run(project)
    first, second = (open_codes(run.test(fold)) for fold in (0, 1))
    name = first.ids[0]
    mean = np.rint((first[name].astype(float) + second[name]) / 2).astype(np.uint16)
    expected = apply_rule(mean[..., 0], Rule(**tuning["rule"]))
    np.testing.assert_array_equal(read_mask(project / "masks" / f"{name}.png"), expected)


def test_data_without_a_test_set(tmp_path, download):
    shutil.rmtree(download / "test")
    (download / "sample_submission.csv").unlink()
    assert read_catalog(download).test == []
    result = ms.compete(download, out=tmp_path / "out", overrides=TINY)
    assert result.submission is None
    assert "none, there are no test images" in str(result)
    with pytest.raises(InputError, match="there are no test images, so there is nothing to submit"):
        ms.submit(tmp_path / "out")


def test_moved_data_is_found_again(example, project, tmp_path):
    moved = shutil.copytree(example / "data", tmp_path / "elsewhere")
    ms.check(moved, project)
    assert Project.open(project).catalog.root == str(moved.resolve())


def test_report_is_one_offline_file_that_escapes(trained):
    from masksmith.reporting import write_report

    page = (trained / "report.html").read_text()
    for needed in (
        "Score, out of fold",
        "Check plot",
        "random",
        "worst",
        "median",
        "best",
        "data:image/png",
        "false positives in green",
        "Samples by coverage class",
        "z: largest gap of the cumulative shares",
        "coverage of the training masks; ",
        "stage 2",
    ):
        assert needed in page, needed
    outside = page[page.index("</script>") :]  # after plotly's own code
    assert "https://" not in outside.replace("https://plot.ly", "")
    assert "<link" not in outside
    facts = report_facts(Project.open(trained), members_of_run(the_run(trained)))
    evil = dataclasses.replace(facts, title="<script>alert(1)</script>", run="<img src=x>")
    path = write_report(trained.parent / "evil.html", evil)
    text = path.read_text()
    assert "<script>alert(1)" not in text
    assert "<img src=x>" not in text


def test_recipes():
    names = [listing.name for listing in ms.recipes()]
    assert names == sorted(names)
    assert {"auto", "cloud-unet", "water-unet"} <= set(names)
    card = ms.recipes("auto")
    assert card.num_weights > 1e6
    text = str(card)
    assert "size trace" in text
    assert "head             1 x 112x112" in text
    assert "epochs: 14" in text


def test_overrides_of_both_forms_are_the_same_run(project):
    first = ms.train(project, overrides=TINY)
    dotted = [f"{key}={value}" for key, value in TINY.items()]
    assert ms.train(project, overrides=dotted).path == first.path


def test_an_older_project_is_rebuilt_from_its_data(project):
    shutil.rmtree(project / "cache")
    ms.tune(project)
    write_json(project / "runs" / "current.json", "gone")
    with pytest.raises(InputError, match="no run 'gone'"):
        ms.tune(project)


def test_a_given_rule_and_small_regions_go_through_to_masks_and_report(example, project):
    given = {
        "tuning.bottom_thresholds": [0.5],
        "tuning.top_thresholds": [0.5],
        "tuning.min_area_fracs": [0.0],
        "tuning.component_area_frac": 0.01,
    }
    trained = ms.compete(example / "data", out=project, overrides=TINY)
    done = ms.compete(example / "data", out=project, overrides=TINY | given)
    assert done.run == trained.run  # nothing is trained for it
    assert done.tuning["num_rules"] == 1
    assert done.tuning["searched"].startswith("nothing")
    assert done.tuning["rule"] == {
        "top": 32767,
        "min_pixels": 0,
        "bottom": 32767,
        "component_area_frac": 0.01,
        "of_pixels": None,
    }
    rule, store = Rule(**done.tuning["rule"]), open_codes(the_run(project).test(0))
    for name in store.ids:
        mask = apply_rule(store[name][..., 0], rule)
        np.testing.assert_array_equal(read_mask(project / "masks" / f"{name}.png"), mask)
    page = (project / "report.html").read_text()
    assert "without regions up to 1.000% of the image (the recipe gives it; nothing was searched)" in page
    assert "nested gain" not in page
