"""A data folder as ms.read and `masksmith layout` see it."""

import gc
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith import cli


def folder_of_discs(root: Path, *, values: tuple[int, int] = (0, 255), test: int = 1) -> Path:
    rng = np.random.default_rng(0)
    for number in range(6 + test):
        mask = np.full((20, 30), values[0], np.uint8)
        cv2.circle(mask, (8 + number, 10), 5, values[1], -1)
        place = "images" if number < 6 else "test"
        for name, picture in ((place, rng.integers(0, 255, (20, 30, 3), np.uint8)), ("masks", mask)):
            if name == place or number < 6:
                (root / name).mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(root / name / f"p{number // 2}_{number}.png"), picture)
    return root


def test_reading_gives_samples_whose_pixels_come_when_they_are_asked_for(tmp_path):
    data = ms.read(folder_of_discs(tmp_path / "data"))
    assert (data.task, data.classes, len(data.train), len(data.test)) == ("binary", ("foreground",), 6, 1)
    first = data.train[0]
    assert (first.id, first.image.shape, first.target.shape) == ("p0_0", (20, 30, 3), (20, 30))
    assert set(np.unique(first.target)) == {0, 1}
    assert "6 train, 1 test" in repr(data)
    with pytest.raises(ms.InputError, match="image 'p3_6': it has no mask"):
        _ = data.test[0].target
    del data
    gc.collect()
    assert first.image.any()  # a sample outlives the set


def test_reading_into_a_project_keeps_what_was_decoded_and_shows_its_size(tmp_path, capsys):
    root, out = folder_of_discs(tmp_path / "data"), tmp_path / "project"
    ms.read(root, out)
    files = ms.cache(out)
    assert files["cache/train_images.npy"] > 6 * 20 * 30 * 3
    assert ms.cache(out, clear=True) == files
    assert ms.cache(out) == {}
    assert ms.read(root, out).train[5].image.shape == (20, 30, 3)
    cli.cache(out, clear=False)
    shown = capsys.readouterr().out
    assert "train_masks.npy" in shown
    assert "in all" in shown


def test_what_a_description_says_is_so(tmp_path):
    root = folder_of_discs(tmp_path / "data", values=(0, 7))
    (root / "dataset.yaml").write_text(
        "task: multiclass\nclasses: {0: ground, 3: weed, 7: crop}\ngroups: {pattern: '^(p\\d+)_'}\n"
    )
    data = ms.read(root)
    assert (data.task, data.classes) == ("multiclass", ("ground", "weed", "crop"))
    assert [sample.group for sample in data.train] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    (root / "dataset.yaml").write_text("groups: {pattern: '^x'}\n")
    with pytest.raises(ms.InputError, match=r"6 training images have no group by the pattern '.x'"):
        ms.read(root)
    (root / "dataset.yaml").write_text("groups: {column: patient}\n")
    with pytest.raises(ms.InputError, match="no group by the column 'patient'"):
        ms.read(root)


def test_the_layout_is_told_with_its_reasons_and_written_to_be_edited(tmp_path, capsys):
    root = folder_of_discs(tmp_path / "data", values=(0, 7))
    (root / "extra").mkdir()
    (root / "extra" / "plan.png").write_bytes((root / "images" / "p0_0.png").read_bytes())
    found = ms.layout(root, task="multiclass", write=tmp_path / "dataset.yaml")
    assert (found.layout, found.task, found.train, found.test) == ("paired_folders", "multiclass", 6, 1)
    assert found.sizes == {"20x30": 6}
    assert any("extra/" in what for what in found.left_out)
    again = ms.layout(root, layout=tmp_path / "dataset.yaml")
    assert again == found
    with pytest.raises(ms.InputError, match=r"dataset\.yaml: it is there; remove it"):
        ms.layout(root, write=tmp_path / "dataset.yaml")
    cli.layout(root, as_json=True, task="multiclass")
    assert json.loads(capsys.readouterr().out)["classes"] == found.classes
    cli.layout(root, as_json=False, task="multiclass")
    assert "training images: 6" in capsys.readouterr().out


def test_a_layout_that_is_insisted_on_is_obeyed_or_refused(tmp_path):
    root = folder_of_discs(tmp_path / "data")
    assert ms.read(root, layout="paired_folders").layout == "paired_folders"
    with pytest.raises(ms.InputError, match="not of the layout 'object_folders'"):
        ms.read(root, layout="object_folders")
    with pytest.raises(ms.InputError, match=r"--layout: .*pared_folders"):
        ms.read(root, layout="pared_folders")


def test_a_begun_project_refuses_another_layout(tmp_path):
    root, out = folder_of_discs(tmp_path / "data"), tmp_path / "project"
    ms.check(root, out)
    ms.folds(out, recipe="smoke")
    said = tmp_path / "other.yaml"
    said.write_text("images: 'images/p{id}.png'\nmasks: 'masks/p{id}.png'\n")
    catalog = json.loads((out / "data.json").read_text())
    catalog["train"][0]["id"] = "renamed"
    (out / "data.json").write_text(json.dumps(catalog))
    with pytest.raises(ms.InputError, match="it was begun with the layout paired_folders"):
        ms.check(root, out)
