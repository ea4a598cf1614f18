"""Pseudo-labels from a CSV file of run-lengths, and the table of duplicates."""

import csv
import logging

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.rle import encode
from masksmith.data.store import Store
from masksmith.project.corrections import Corrections
from masksmith.project.folder import Project
from masksmith.recipes.pseudo import PseudoConfig
from masksmith.recipes.recipe import load_recipe
from masksmith.steps.pseudo_labels import read_labels
from masksmith.steps.train import _pseudo_data, data_of, train_key
from tests.blends import write_pupil


@pytest.fixture
def labels(project, tmp_path):
    """Four test images labelled: the left half of each is foreground; the last one is not sure."""
    opened = Project.open(project)
    test = opened.cache.test_images
    path, names = tmp_path / "labels.csv", [name for name in test if name not in opened.blank_test][:4]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "rle_mask", "confidence"])
        for at, name in enumerate(names):
            mask = np.zeros(test.shape(name), np.uint8)
            mask[:, : mask.shape[1] // 2] = 1
            writer.writerow([name, encode(mask), 0.5 if at == 3 else 0.95])
    return path, names


def pupil(tmp_path, path):
    return write_pupil(tmp_path, "pupil", None, data=("both",), table=str(path), min_confident_frac=0.9)


def test_labels_of_a_table_are_trained_on_and_never_scored(project, labels, tmp_path, caplog):
    path, names = labels
    with caplog.at_level(logging.INFO, "masksmith"):
        ms.train(project, recipe=pupil(tmp_path, path))
    assert "3 of 4 test images kept" in caplog.text
    assert "may have seen the training masks" in caplog.text
    opened = Project.open(project)
    run = opened.run()
    assert run.recipe.pseudo.table_hash
    masks = Store(run.pseudo(0))
    assert list(masks) == names[:3]
    for name in masks:
        half = masks[name].shape[1] // 2
        assert masks[name][:, :half].all()
        assert not masks[name][:, half:].any()
    path.unlink()  # what was begun needs it no longer
    ms.predict(project)
    scored = Store(run.oof(0))
    assert set(scored) == set(opened.folds.inside(0))
    again = run.pseudo(0).with_suffix(".labels.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in again] == ["id", *names[:3]]


def test_what_a_teacher_labels_can_be_given_as_a_table(project, labels, tmp_path):
    ms.train(project, recipe=pupil(tmp_path, labels[0]))
    opened = Project.open(project)
    written = opened.run().pseudo(0).with_suffix(".labels.csv")
    found = read_labels(opened, PseudoConfig(table=str(written)))
    masks = Store(opened.run().pseudo(0))
    for name in masks:
        mask, confident = found[name]
        np.testing.assert_array_equal(mask, masks[name][..., 0])
        assert confident == 0.95


def test_what_a_label_weighs(project, labels, tmp_path):
    """The weights are read, handed to the training, written beside the labels, and part of what a training is."""
    path, names = labels
    rows = path.read_text().splitlines()
    weighed = [f"{row},{weight}" for row, weight in zip(rows, ("weight", 0.25, 1, 2, 1), strict=True)]
    path.write_text("\n".join(weighed))
    recipe = pupil(tmp_path, path)
    ms.train(project, recipe=recipe)
    opened = Project.open(project)
    run = opened.run()
    data = data_of(opened, run.recipe, 0, key="", pseudo=_pseudo_data(opened, run, 0))
    assert data.pseudo.weights == {names[0]: 0.25, names[1]: 1.0, names[2]: 2.0}
    both = data.of(run.recipe.training.stages[0])
    assert both.weights == {f"pseudo/{name}": weight for name, weight in data.pseudo.weights.items()}
    key = train_key(opened, run, 0)
    run.pseudo(0).with_suffix(".weights.json").write_text("{}")
    assert train_key(opened, run, 0) != key
    table = PseudoConfig(table=str(run.pseudo(0).with_suffix(".labels.csv")))
    assert read_labels(opened, table).weight == data.pseudo.weights
    mixed = write_pupil(
        tmp_path,
        "mixed",
        None,
        data=("both",),
        table=str(path),
        changes={"training.mixing.mixup.probability": 0.5},
    )
    with pytest.raises(InputError, match=r"it has weights, and training\.mixing makes one image of several"):
        ms.train(project, recipe=mixed)


def test_tables_that_are_no_labels_are_refused(project, labels, tmp_path):
    opened, (path, names) = Project.open(project), labels
    train = next(iter(opened.cache.train_images))

    def refused(text, match):
        path.write_text(text)
        with pytest.raises(InputError, match=match):
            read_labels(opened, PseudoConfig(table=str(path)))

    if train not in opened.cache.test_images:
        refused(
            f"id,rle_mask\n{train},1 1\n",
            r"1 of 1 images are no test images .*of which 1 are training images; only",
        )
    refused("id,rle_mask\nnobody,1 1\n", r"1 of 1 images are no test images \(first 'nobody'\); only these")
    refused(
        f"id,rle_mask,confidence\n{names[0]},1 1,sure\n",
        r"confidence of 1 rows \(first .*'sure'\); expected numbers",
    )
    refused(
        f"id,rle_mask,weight\n{names[0]},1 1,-1\n",
        r"weight of 1 rows \(first .*'-1'\); expected .* 0 or more",
    )
    refused(f"id,rle_mask,weight\n{names[0]},1 1,0\n", r"weight of all 1 images is 0; expected some above 0")
    refused(f"id,note\n{names[0]},hello\n", r"0 columns of run-lengths in id, note; expected rle_mask")
    path.write_text(f"id,rle_mask\n{names[0]},1 1\n")
    with pytest.raises(InputError, match="it has changed since the run began"):
        read_labels(opened, PseudoConfig(table=str(path), table_hash="0" * 40))
    with pytest.raises(ValueError, match="expected one of them: a recipe, or a CSV file"):
        PseudoConfig()
    with pytest.raises(ValueError, match="set and teacher_run belong to a teacher"):
        PseudoConfig(table="a.csv", set=["seed=1"])
    gone = load_recipe(pupil(tmp_path, tmp_path / "absent.csv"))
    with pytest.raises(InputError, match="no such file; expected a CSV of test images' run-lengths"):
        _ = gone.hash


def test_duplicates_are_listed(download, tmp_path):
    images = sorted((download / "train/images").iterdir())
    again = download / "test/images"
    copy = sorted(again.iterdir())[0]
    copy.write_bytes(images[3].read_bytes())
    ms.check(download, tmp_path / "p")
    with (tmp_path / "p/duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    alike = {row["group"]: [] for row in rows}
    for row in rows:
        alike[row["group"]].append((row["id"], row["split"], row["like"]))
    assert [(images[3].stem, "train", "identical"), (copy.stem, "test", "identical")] in alike.values()
    assert all(len(group) > 1 for group in alike.values())


def test_masks_that_people_drew_are_labels(project, tmp_path):
    opened = Project.open(project)
    test = opened.cache.test_images
    drawn, (one, two) = Corrections(tmp_path / "annotations"), list(test)[:2]
    asked = PseudoConfig(table=str(drawn.table))
    mask = np.zeros(test.shape(one)[:2], np.uint8)
    mask[:3], mask[-1] = 1, 255
    drawn.mend(one, mask, version=0)
    drawn.say(two, "keep", version=0)
    found = read_labels(opened, asked)
    assert found.ids == [one]
    np.testing.assert_array_equal(found[one][0], mask)
    drawn.say(one, "wrong", version=1)
    with pytest.raises(InputError, match="no image in it has a mask; draw some"):
        read_labels(opened, asked)
