"""What is damaged is named, made again from what is left, and ends with the same bits."""

import json
import os

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.prediction.runtimes import torch_runtime
from masksmith.project.folder import Project
from tests.faults_ground import differences
from tests.stops import at_write


def flip(path, at=-1):
    """Change one bit of a file in place, as a failing disk would: a memory map of it sees that."""
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def flip_a_training_image(out):
    """Change a pixel of an image of fold 0's training; return its id."""
    project = Project.open(out)
    name = next(name for name in project.folds.outside(0) if name not in project.blank_train)
    store = project.cache.train_images
    flip(store.path, np.load(store.path, mmap_mode="r").offset + store.entries[name].offset)
    return name


def die():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_cache_that_becomes_unreadable_while_it_is_trained_on(example, trained, tmp_path):
    """First a bit of an image flips, then a file is cut off; the image or mask is named each time."""
    out, hit = tmp_path / "out", []

    def compete():
        return ms.compete(example / "data", out=out, recipe="smoke")

    with (
        pytest.raises(
            InputError, match=r"train_images\.npy: '\w+' in it was damaged .* repeat the command"
        ) as told,
        at_write("*/epoch_0002.json", lambda: hit.append(flip_a_training_image(out))),
    ):
        compete()
    assert f"'{hit[0]}'" in str(told.value)
    assert (Project.open(out).run().checkpoints(0) / "epoch_0002.json").exists()
    with (
        pytest.raises(InputError, match=r"train_masks\.npy: the file is cut off within "),
        at_write("*/epoch_0004.json", lambda: os.truncate(out / "cache" / "train_masks.npy", 5000)),
    ):
        compete()
    compete()
    assert differences(trained, out) == []


@pytest.mark.slow
def test_a_damaged_cache_is_made_again(project, caplog):
    path = project / "cache" / "test_images.npy"
    whole = path.read_bytes()
    os.truncate(path, 5000)
    ms.predict(project)
    assert "test_images.npy: it or its index was cut off" in caplog.text
    assert path.read_bytes() == whole
    name = flip_a_training_image(project)
    with pytest.raises(InputError, match=rf"train_images\.npy: '{name}' in it was damaged"):
        ms.report(project)  # before anything is built on it
    ms.report(project)
    assert Project.open(project).cache.train_images.damaged() == []


def test_a_project_for_other_data_that_was_begun_leaves_no_cache_that_counts_as_made(example, tmp_path):
    ms.check(example / "data", tmp_path / "out")
    ms.example(tmp_path / "other", train=12, test=2, seed=1)
    with pytest.raises(KeyboardInterrupt), at_write("*/train_masks.csv", die, phase="write"):
        ms.check(tmp_path / "other" / "data", tmp_path / "out")
    assert ms.check(example / "data", tmp_path / "out").facts["training images"] == 40
    assert len(Project.open(tmp_path / "out").cache.train_masks) == 40


@pytest.mark.slow
def test_damaged_weights_of_a_trained_fold_are_trained_again(example, trained, project, caplog):
    run = Project.open(project).run()
    before = run.oof(0).stat().st_mtime_ns
    flip(run.final(0))
    with pytest.raises(InputError, match="fold 0 is not trained; run `masksmith train"):
        ms.predict(project)
    ms.train(project, recipe="smoke")
    assert "final.safetensors: the checksum is wrong" in caplog.text
    assert "fold 0 has to be trained again" in caplog.text
    ms.compete(example / "data", out=project, recipe="smoke")
    assert differences(trained, project) == []
    assert run.oof(0).stat().st_mtime_ns == before  # the weights are the same, so the probabilities stand


def test_a_prediction_that_was_stopped_goes_on(project, monkeypatch):
    """Stopped after the first batch of the held-out images; the second call begins with the second batch."""
    views = ["identity", "hflip"]
    changes = {"prediction.batch_size": 4, "prediction.tta": views}
    ms.train(project, recipe="smoke", overrides=changes)
    opened = Project.open(project)
    journal = opened.run().oof(0).with_name(".fold_0.npy.masksmith-part.csv")
    with pytest.raises(KeyboardInterrupt), at_write(str(journal), die, phase="appended"):
        ms.predict(project)
    assert len(journal.read_text().splitlines()) == 5
    counts = []

    def counted(*given):
        runtime = torch_runtime(*given)
        return lambda planes: counts.append(len(planes)) or runtime(planes)

    monkeypatch.setattr("masksmith.prediction.gate.torch_runtime", counted)
    ms.predict(project)
    seen = set(opened.folds.inside(0)) - opened.blank_train
    test = set(opened.cache.test_images) - opened.blank_test
    assert sum(counts) == len(views) * (len(seen) - 4 + len(test))
    assert not journal.exists()


@pytest.mark.slow
def test_whole_weights_of_another_training_are_named(project):
    """Those of an older masksmith, or of other folds: a training can begin with them."""
    ledger = Project.open(project).run().path / "stage.json"
    text = ledger.read_text()
    done = json.loads(text)
    ledger.write_text(text.replace(done["fold_0/train"], "0" * len(done["fold_0/train"])))
    for verb in (ms.predict, lambda one: ms.bundle(one, one / "m.msk")):
        with pytest.raises(
            InputError, match=r"final\.safetensors is there, but of other data.*training\.start_from=FILE"
        ):
            verb(project)
