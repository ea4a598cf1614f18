"""What `check` says: leaks first, what to do with each, and everything in one go where files cannot be used."""

import json

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json
from tests.data.alike import texture


@pytest.fixture
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out") / "project"


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def pairs(root, images, *, mask=None):
    for name, image in images.items():
        write(root / "images" / f"{name}.png", image)
        own = np.zeros(image.shape[:2], np.uint8)
        own[4:20, 6:20] = 255
        write(root / "masks" / f"{name}.png", own if mask is None else mask(name, own))
    return root


def found(report):
    return {one.title: one for one in report.findings}


def test_leaks_come_first_with_number_example_and_what_to_do(tmp_path, out):
    images = {f"pat{at // 3}_{at % 3}": texture(at) for at in range(24)}
    images |= {"pat0_2": texture(0) + 1, "pat7_0": texture(3), "pat7_1": np.full((64, 64, 1), 3, np.uint8)}
    pairs(tmp_path, images)
    write(tmp_path / "test" / "t.png", texture(5) + 1)
    write(tmp_path / "test" / "u.png", texture(99, h=32))
    report = ms.check(tmp_path, out)
    said = found(report)
    near = said["nearly equal training images"]
    assert near.ids == ["pat0_0", "pat0_2"]
    assert near.detail.startswith("2 near-duplicates in 1 groups (largest 2; for example pat0_0, pat0_2)")
    crossing = said["test images nearly equal to training images"]
    assert crossing.ids == ["t"]
    assert "'t' and the training image 'pat1_2'" in crossing.detail
    assert said["identical training images"].ids == ["pat1_0", "pat7_0"]
    names = said["groups that the ids suggest"]
    assert "groups: {pattern: '^([^_]+)_'}" in names.detail
    assert said["test images of other sizes"].ids == ["u"]
    levels = [one.level for one in report.findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    kept = read_json(out / "check.json")
    assert [one["title"] for one in kept["findings"]] == [one.title for one in report.findings]


def test_validation_images_like_training_images(tmp_path, out):
    for split, seeds in (("train", range(6)), ("val", range(4, 8))):
        for seed in seeds:
            write(tmp_path / split / f"{split}{seed}.png", texture(seed) + (split == "val"))
            mask = np.zeros((64, 64), np.uint8)
            mask[5:30, 5:30] = 1
            write(tmp_path / f"{split}annot" / f"{split}{seed}.png", mask)
    report = found(ms.check(tmp_path, out))["validation images nearly equal to training images"]
    assert report.ids == ["val4", "val5"]
    assert "folds.count=5" in report.detail
    made = ms.folds(out, recipe="smoke", overrides={"metric": "miou", "folds.count": 2, "folds.train": 1})
    assert made.inside(0) == ["val4", "val5", "val6", "val7"]  # the data's own split is taken as it is
    (out / "folds.csv").unlink()
    made = ms.folds(out, recipe="smoke", overrides={"metric": "miou", "folds.count": 3})
    home = {row.id: row.fold for row in made.rows}
    assert home["train4"] == home["val4"]


def test_rare_classes_have_number_and_example(tmp_path):
    def mask(name, own):
        own[own > 0] = 1
        own[30:50, 30:50] = 2
        if name == "3":
            own[60:, 60:] = 3
        own[:1, :1] = 4
        return own

    report = ms.check(pairs(tmp_path, {str(at): texture(at) for at in range(8)}, mask=mask))
    few, small = found(report)["classes in few images"], found(report)["classes of few pixels"]
    assert few.detail.startswith("1 of 5 classes are in fewer than 5 images: 3 in 1 (for example '3')")
    assert few.ids == ["3"]
    assert small.detail.startswith("1 of 5 classes have less than 0.1% of the pixels: 4 0.024%")


def test_all_damaged_files_and_what_else_is_wrong_are_said_in_one_go(tmp_path, out):
    images = {str(at): texture(at) for at in range(12)} | {
        "8": texture(9),
        "11": np.full((64, 64, 1), 2, np.uint8),
    }
    pairs(tmp_path, images, mask=lambda name, own: own[:30] if name == "5" else own)
    for path in ("images/1.png", "images/2.png", "masks/3.png"):
        raw = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError) as refused:
        ms.check(tmp_path, out)
    text = str(refused.value)
    for path in ("images/1.png: ", "images/2.png: ", "masks/3.png: ", "masks/5.png: the mask is 30x64"):
        assert path in text
    assert "What else was found, without them:\n  warning: identical training images: 2 images" in text
    assert "training images without content: 1 training images" in text
    kept = json.loads((out / "check.json").read_text())
    assert kept["findings"][0]["level"] == "error"
    assert kept["findings"][0]["ids"] == ["1", "2", "3", "5"]
    assert kept["facts"]["images that can be used"] == "8 training, 0 test"


def test_where_nothing_is_left_the_damage_alone_is_said(tmp_path):
    pairs(tmp_path, {"a": texture(0), "b": texture(1)})
    for name in "ab":
        (tmp_path / "images" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    with pytest.raises(
        InputError, match=r"2 images cannot be used:\n  images/a.png.*\n  images/b.png"
    ) as refused:
        ms.check(tmp_path)
    assert "What else" not in str(refused.value)


def test_tiles_and_shift_are_findings(tmp_path, out):
    whole = cv2.GaussianBlur(
        np.random.default_rng(0).standard_normal((320, 480)).astype(np.float32), (0, 0), 2.5
    )
    whole = np.clip(110 + 250 * whole, 0, 200).astype(np.uint8)
    tiles = [whole[64 * y : 64 * y + 64, 64 * x : 64 * x + 64] for y in range(5) for x in range(7)]
    pairs(tmp_path, {f"{at * 8 % 35:03}": tile for at, tile in enumerate(tiles)})
    for seed in range(25):
        write(tmp_path / "test" / f"x{seed}.png", texture(seed) + 30)
    report = ms.check(tmp_path, out)
    assert 'folds.group_by="neighbours()"' in found(report)["neighbouring tiles"].detail
    assert found(report)["neighbouring tiles"].level == "warning"
    assert "AUC" in found(report)["test images that look unlike training images"].detail
    assert report.facts["train against test"].startswith("AUC ")
    with pytest.raises(InputError, match="folds of 1 groups of images"):
        ms.folds(out, recipe="smoke", overrides={"folds.group_by": "neighbours()"})
    like = {"folds.stratify": "like_test", "folds.holdout_frac": 0.2, "folds.count": 2, "folds.train": 1}
    made = ms.folds(out, recipe="smoke", overrides=like)
    assert len(made.inside(0)) == 7
    level = {
        name: float(np.median(cv2.imread(str(tmp_path / "images" / f"{name}.png"))))
        for name in made.outside(0)
    }
    held = [float(np.median(cv2.imread(str(tmp_path / "images" / f"{name}.png")))) for name in made.inside(0)]
    assert np.mean(held) > np.mean(list(level.values()))
