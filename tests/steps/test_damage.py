"""What is damaged is named, made again from what is left, and ends with the same bits."""

import os

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.project.folder import Project
from tests.conftest import TINY
from tests.faults_ground import differences


def flip(path, at=-1):
    """Change one bit of a file in place, as a failing disk would: a memory map of it sees that."""
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def at_epoch(monkeypatch, epoch, damage):
    """Call ``damage`` once, when the checkpoint of ``epoch`` is on the disk."""
    done = []

    def look(path, phase):
        if path.name == f"epoch_{epoch:04d}.json" and phase == "renamed" and not done:
            done.append(path)
            damage()

    monkeypatch.setattr("masksmith.core.files.on_write", look)


def flip_a_training_image(out):
    """Change a pixel of an image of fold 0's training; return its id."""
    project = Project.open(out)
    name = next(name for name in project.folds.outside(0) if name not in project.blank_train)
    store = project.cache.train_images
    flip(store.path, np.load(store.path, mmap_mode="r").offset + store.entries[name].offset)
    return name


def test_an_image_that_becomes_unreadable_in_epoch_3(example, trained, tmp_path, monkeypatch):
    out, hit = tmp_path / "out", []
    at_epoch(monkeypatch, 2, lambda: hit.append(flip_a_training_image(out)))
    with pytest.raises(
        InputError, match=r"train_images\.npy: '\w+' in it was damaged .* repeat the command"
    ) as told:
        ms.compete(example / "data", out=out, overrides=TINY)
    assert f"'{hit[0]}'" in str(told.value)
    run = Project.open(out).run()
    assert (run.checkpoints(0) / "epoch_0002.json").exists()
    monkeypatch.setattr("masksmith.core.files.on_write", None)
    ms.compete(example / "data", out=out, overrides=TINY)
    assert differences(trained, out) == []


def test_a_cache_that_is_cut_off_in_epoch_3(example, trained, tmp_path, monkeypatch):
    """The mask that can no longer be read is named."""
    out = tmp_path / "out"
    path = out / "cache" / "train_masks.npy"
    at_epoch(monkeypatch, 2, lambda: os.truncate(path, 5000))
    with pytest.raises(InputError, match=r"train_masks\.npy: the file is cut off within "):
        ms.compete(example / "data", out=out, overrides=TINY)
    monkeypatch.setattr("masksmith.core.files.on_write", None)
    ms.compete(example / "data", out=out, overrides=TINY)
    assert differences(trained, out) == []


def test_a_cache_that_was_cut_off_is_made_again(project, caplog):
    path = project / "cache" / "test_images.npy"
    whole = path.read_bytes()
    os.truncate(path, 5000)
    ms.predict(project)
    assert "test_images.npy: it or its index was cut off" in caplog.text
    assert path.read_bytes() == whole


def test_a_damaged_image_is_named_before_anything_is_built_on_it(project):
    name = flip_a_training_image(project)
    with pytest.raises(InputError, match=rf"train_images\.npy: '{name}' in it was damaged"):
        ms.report(project)
    ms.report(project)  # the cache was made again
    assert Project.open(project).cache.train_images.damaged() == []


def test_a_project_for_other_data_that_was_begun_does_not_leave_a_cache_that_counts_as_made(
    example, tmp_path, monkeypatch
):
    ms.check(example / "data", tmp_path / "out")
    ms.example(tmp_path / "other", train=12, test=2, seed=1)

    def die(path, phase):
        if path.name == "train_masks.csv" and phase == "write":
            raise KeyboardInterrupt

    monkeypatch.setattr("masksmith.core.files.on_write", die)
    with pytest.raises(KeyboardInterrupt):
        ms.check(tmp_path / "other" / "data", tmp_path / "out")
    monkeypatch.setattr("masksmith.core.files.on_write", None)
    assert ms.check(example / "data", tmp_path / "out").facts["training images"] == 40
    assert len(Project.open(tmp_path / "out").cache.train_masks) == 40


def test_damaged_weights_of_a_trained_fold_are_trained_again(example, trained, project, caplog):
    run = Project.open(project).run()
    before = run.oof(0).stat().st_mtime_ns
    flip(run.final(0))
    with pytest.raises(InputError, match="fold 0 is not trained; run `masksmith train"):
        ms.predict(project)
    ms.train(project, overrides=TINY)
    assert "final.safetensors: the checksum is wrong" in caplog.text
    assert "fold 0 has to be trained again" in caplog.text
    ms.compete(example / "data", out=project, overrides=TINY)
    assert differences(trained, project) == []
    assert run.oof(0).stat().st_mtime_ns == before  # the weights are the same, so the probabilities stand


def test_a_prediction_that_was_stopped_goes_on(example, trained, project, monkeypatch):
    """Stopped after the first batch of the held-out images; the second call begins with the second batch."""
    run = Project.open(project).run()
    overrides = TINY | {"prediction.batch_size": 4}
    ms.train(project, overrides=overrides)
    journal = run.oof(0).with_name(".fold_0.npy.masksmith-part.csv")

    def stop(path, phase):
        if path == journal and phase == "appended":
            raise KeyboardInterrupt

    monkeypatch.setattr("masksmith.core.files.on_write", stop)
    with pytest.raises(KeyboardInterrupt):
        ms.predict(project)
    assert len(journal.read_text().splitlines()) == 5
    monkeypatch.setattr("masksmith.core.files.on_write", None)
    from masksmith.prediction import predict as module

    counts, forward = [], module._forward
    monkeypatch.setattr(
        module,
        "_forward",
        lambda *given: counts.append(len(given[2])) or forward(*given),
    )
    ms.predict(project)
    seen = [
        name
        for name in Project.open(project).folds.inside(0)
        if name not in Project.open(project).blank_train
    ]
    test = [
        name
        for name in Project.open(project).cache.test_images
        if name not in Project.open(project).blank_test
    ]
    assert sum(counts) == 2 * (len(seen) - 4 + len(test))  # two views of each
    assert not journal.exists()
