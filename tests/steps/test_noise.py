"""Training masks ranked, corrections taken into trainings, judged, and unlabelled images chosen."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.cli import app
from masksmith.core.errors import InputError
from masksmith.core.files import read_json
from masksmith.project.folder import Project
from masksmith.project.members import Member, read_members
from masksmith.steps.ablate import _tried_labels
from masksmith.steps.labels import CAUSES, _proposal
from masksmith.steps.runs import open_run
from masksmith.steps.train import data_of, train_key
from tests.blends import write_recipe


def table_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def corrections(folder, rows, **masks):
    folder.mkdir()
    (folder / "corrections.csv").write_text("id,action,weight\n" + "".join(f"{row}\n" for row in rows))
    for name, mask in masks.items():
        cv2.imwrite(str(folder / f"{name}.png"), mask)
    return folder


def test_masks_that_members_contradict_come_first(project, tmp_path):
    opened = Project.open(project)
    masks, homes = opened.cache.train_masks, opened.folds.inside(0)
    probs = tmp_path / "probs"
    removed, added, moved = planted = [name for name in homes if 0.1 < masks[name].mean() < 0.6][:3]
    for place, images in (("oof", opened.cache.train_images), ("test", opened.cache.test_images)):
        (probs / place).mkdir(parents=True)
        for name in images:
            mask = masks[name][..., 0] if place == "oof" else np.zeros(images.shape(name))
            if name == removed:  # the mask has it, the members see nothing
                mask = np.zeros_like(mask)
            elif name == added:
                mask = 1 - mask
            elif name == moved:
                mask = np.roll(mask, mask.shape[0] // 6, axis=0)
            np.save(probs / place / f"{name}.npy", np.where(mask == 1, 0.95, 0.05).astype(np.float32))
    ms.add_member(project, "sure", oof=probs / "oof", test=probs / "test", folds=project / "folds.csv")
    found = ms.labels(project, run="sure")
    assert {line.id for line in found.lines[:3]} == set(planted)
    by_id = {line.id: line for line in found.lines}
    assert by_id[removed].cause == "extra"
    assert by_id[removed].proposal == "relabel"
    assert by_id[added].cause in ("missing", "class")
    assert all(
        line.contradicted == 0 and line.cause == "none" and line.proposal == "keep"
        for line in found.lines[3:]
    )
    rows = table_of(opened.labels_csv)
    assert [row["id"] for row in rows] == [line.id for line in found.lines]
    assert set(rows[0]) == {"id", "fold", "score", "contradicted", "cause", "proposal", "shift"}
    proposed = {row["id"]: row["action"] for row in table_of(opened.labels_dir / "corrections.csv")}
    assert proposed == {
        line.id: {"relabel": "mend", "drop": "drop", "down-weight": "keep"}[line.proposal]
        for line in found.lines
        if line.proposal != "keep"
    }
    assert not cv2.imread(str(opened.labels_dir / f"{removed}.png"), cv2.IMREAD_UNCHANGED).any()
    assert "nothing takes by itself" in str(found)
    assert {line.cause for line in found.lines} <= set(CAUSES)
    assert ms.labels(project, run="sure").to_json() == found.to_json()
    with (opened.labels_dir / "corrections.csv").open("a") as table:
        table.write(f"{homes[-1]},drop,1,by hand\n")
    with pytest.raises(
        InputError, match="edited since it was written, and it would be written again; rename"
    ):
        ms.labels(project, run="sure")
    with pytest.raises(
        InputError, match=r"--try: the present members are sure/fold 0.*; expected the trained folds of"
    ):
        ms.try_labels(project, opened.labels_dir, run="sure")


def test_what_is_proposed():
    for score, much, cause, sure, what in (
        (0.95, 0.2, "extra", True, "keep"),
        (0.8, 0.9, "extra", True, "keep"),
        (0.95, 0.9, "objects", True, "keep"),
        (0.95, 0.3, "missing", True, "down-weight"),
        (0.95, 0.9, "border", True, "down-weight"),
        (0.95, 0.9, "missing", True, "relabel"),
        (0.95, 0.9, "shifted", False, "drop"),
    ):
        assert _proposal(score, much, cause, sure=sure) == what


def test_a_training_takes_corrections_and_its_validation_does_not(project, tmp_path):
    opened = Project.open(project)
    run, fold = opened.run(), 0
    outside, inside = opened.folds.outside(fold), opened.folds.inside(fold)
    outside = [name for name in outside if name not in opened.blank_train]
    full = np.full(opened.cache.train_masks.shape(outside[2]), 255, np.uint8)
    rows = [f"{outside[0]},drop,", f"{outside[1]},keep,0.5", f"{outside[2]},mend,", f"{inside[0]},mend,"]
    folder = corrections(tmp_path / "c", rows, **{outside[2]: full, inside[0]: full})
    training = run.recipe.training.model_copy(update={"corrections": str(folder)})
    other = open_run(opened, run.recipe.model_copy(update={"training": training}))
    assert other.path != run.path
    assert other.recipe.training.corrections_hash
    data = data_of(opened, other.recipe, fold, key="")
    assert outside[0] not in data.ids
    assert data.taken == {outside[1]: 0.5}
    assert (data.masks[outside[2]] == 1).all()
    assert (data.masks[inside[0]] == opened.cache.train_masks[inside[0]]).all()
    assert (data.masks[outside[3]] == opened.cache.train_masks[outside[3]]).all()
    assert train_key(opened, other, fold) != train_key(opened, run, fold)
    plain = data_of(opened, run.recipe, fold, key="")
    assert plain.masks is opened.cache.train_masks
    assert plain.ids == outside
    (folder / "corrections.csv").write_text("id,action\n")
    assert (
        data_of(Project.open(project), other.recipe, fold, key="").taken == data.taken
    )  # kept in the project
    opened.cache_files(clear=True)
    assert data_of(Project.open(project), other.recipe, fold, key="").taken == data.taken  # nor of the cache
    shutil.rmtree(project / "training_corrections")
    with pytest.raises(
        InputError, match=r"it has changed since the run began; bring it back, or set training\.corr"
    ):
        data_of(Project.open(project), other.recipe, fold, key="")
    all_of = corrections(tmp_path / "all", [f"{name},drop," for name in outside])
    training = run.recipe.training.model_copy(update={"corrections": str(all_of)})
    with pytest.raises(InputError, match=rf"it drops all {len(outside)} images that fold 0 is trained on"):
        data_of(Project.open(project), run.recipe.model_copy(update={"training": training}), fold, key="")


@pytest.mark.slow
def test_corrections_are_tried_beside_the_run(example, tmp_path):
    out = tmp_path / "p"
    recipe = write_recipe(tmp_path, "quick", **{"training.stages.0.epochs": 1, "folds.train": 2})
    ms.check(example / "data", out)
    before = ms.train(out, recipe=recipe)
    ms.predict(out)
    opened = Project.open(out)
    held, other = (
        [name for name in opened.folds.inside(fold) if name not in opened.blank_train] for fold in (0, 2)
    )
    never = corrections(tmp_path / "none", [])
    with pytest.raises(InputError, match="it changes 0 images, and none that the folds of"):
        ms.try_labels(out, never)
    judged = [name for fold in (0, 1) for name in opened.folds.inside(fold) if name not in opened.blank_train]
    with pytest.raises(InputError, match="it changes all held-out images, so nothing is left to compare on"):
        ms.try_labels(out, corrections(tmp_path / "every", [f"{name},keep,0.5" for name in judged]))
    folder = corrections(tmp_path / "c", [f"{other[0]},drop,", f"{held[0]},drop,"])
    found = ms.try_labels(out, folder)
    assert found.before == before.path.name != found.after
    assert (found.images, found.left_out) == (len(judged) - 1, 1)
    assert found.low <= found.high
    assert f"on all of them {found.gain_all:+.4f}" in str(found)
    assert found.kept == (found.low > 0)
    assert read_members(opened, None)[0].run.path.name == (found.after if found.kept else found.before)
    assert "2 dropped, 0 with less weight, 0 with another mask" in str(found)
    assert read_json(opened.labels_json)["trials"][-1] == found.to_json()
    with pytest.raises(InputError, match="is trained with it already; name another --run"):
        ms.try_labels(out, folder, run=found.after)
    steps = {row.step: row for row in _tried_labels(opened, read_members(opened, None))}
    assert steps[f"labels: {folder}"].gain == found.gain
    assert Member(opened.run(found.after), 0).weights.exists()


def test_images_to_label_next(project, capsys):
    opened = Project.open(project)
    found = ms.next_labels(project, 3)
    ids = [line["id"] for line in found.lines]
    assert len(set(ids)) == 3
    assert set(ids) <= {sample.id for sample in opened.catalog.test}
    assert [row["id"] for row in table_of(opened.annotate_csv)] == ids
    assert "3 images to label next" in str(found)
    with pytest.raises(InputError, match=r"--next 99: expected 1 up to the number of unlabelled images"):
        ms.next_labels(project, 99)
    with pytest.raises(SystemExit):
        app(["labels", str(project), "--next", "2", "--json"], standalone_mode=True)
    assert len(json.loads(capsys.readouterr().out)["images"]) == 2
    with pytest.raises(InputError, match="--try and --next: expected one of them"):
        app(["labels", str(project), "--next", "2", "--try", "x"], standalone_mode=False)
