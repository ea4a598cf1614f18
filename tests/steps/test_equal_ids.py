"""Training and test images of equal ids, as in many downloads (1.png … n.png): each id names two images."""

import csv

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.data.rle import encode
from masksmith.data.store import Store
from masksmith.postprocess.operators import Rule
from masksmith.prediction.store import open_codes
from masksmith.preprocess.inputs import InputConfig
from masksmith.project.folder import Project
from masksmith.recipes.recipe import load_recipe
from masksmith.steps.submit import write_baseline
from masksmith.steps.train import data_of, scalars_of
from masksmith.submission.formats import read_mask
from tests.blends import write_pupil, write_recipe

IDS = [str(at) for at in range(1, 13)]
BLANK = {"train": {"1", "3"}, "test": {"2", "3"}}  # of the ids 1 to 4 each combination
SIDE = 32


def write_split(folder, split, rng):
    """Write 12 noisy images, white ones of BLANK, and a table of their masks (all but a strip) and depths."""
    (folder / split / "images").mkdir(parents=True)
    rows = [("id", "rle_mask", "z") if split == "train" else ("id", "z")]
    for name in IDS:
        image = rng.integers(0, 200, (SIDE, SIDE), dtype=np.uint8)
        mask = np.ones((SIDE, SIDE), np.uint8)
        mask[: rng.integers(1, 6)] = 0
        image = np.full_like(image, 255) if name in BLANK[split] else image
        cv2.imwrite(str(folder / split / "images" / f"{name}.png"), image)
        rows.append((name, encode(mask), int(name)) if split == "train" else (name, 1000 + int(name)))
    with (folder / f"{split}.csv").open("w") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set (read only)."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in BLANK:
        write_split(root, split, rng)
    return root


@pytest.fixture(scope="module")
def pupil(tmp_path_factory):
    """The path of a recipe with pseudo-labels, on images and depths."""
    folder, depths = (
        tmp_path_factory.mktemp("recipes"),
        {"folds.count": 2, "folds.train": 1, "model.scalars": ["z"]},
    )
    return write_pupil(folder, "pupil", write_recipe(folder, "teacher", **depths), changes=depths)


def test_a_baseline_and_statistics(folder, pupil, tmp_path):
    report = ms.check(folder, tmp_path / "p")
    found = {one.title: one.ids for one in report.findings}
    assert found["training images without content"] == ["1", "3"]
    assert found["test images without content"] == ["2", "3"]
    assert found["ids of both sets"] == sorted(IDS)
    project, recipe = Project.open(tmp_path / "p"), load_recipe(pupil)
    assert (project.blank_train, project.blank_test) == (BLANK["train"], BLANK["test"])
    write_baseline(project, recipe)  # everything is better than nothing
    for name in IDS:
        mask = read_mask(tmp_path / "p" / "masks" / f"{name}.png")
        assert mask.all() if name not in BLANK["test"] else not mask.any(), name
    limits = project.inputs(InputConfig(scaling="min_max")).train
    brightest = max(limits[name].max() for name in IDS if name not in BLANK["train"])
    assert brightest == 65535  # 199, not the white
    assert [scalars_of(project, recipe, one)["7"] for one in ("oof", "test")] == [(7.0,), (1007.0,)]


@pytest.mark.slow
def test_all_the_way(folder, pupil, tmp_path):
    result = ms.compete(folder, out=tmp_path / "p", recipe=pupil)
    project = Project.open(tmp_path / "p")
    paths = (next(project.runs_dir.glob(f"{one}-*")) for one in ("teacher", "pupil"))
    teacher, learner = (project.run(path.name) for path in paths)
    data = data_of(project, learner.recipe, 0, key="")
    assert set(data.ids) == set(project.folds.outside(0)) - BLANK["train"]
    held_out, seen = open_codes(learner.oof(0)), project.folds.inside(0)
    assert {name for name in seen if not held_out[name].any()} == BLANK["train"] & set(seen) != set()
    taught, labels = open_codes(teacher.test(0)), Store(learner.pseudo(0))
    assert set(labels) == set(IDS) - BLANK["test"]
    for name in labels:
        np.testing.assert_array_equal(labels[name], taught[name] > 32767)
    codes, rule = open_codes(learner.test(0)), Rule(**result.tuning["rule"])
    with (tmp_path / "p" / "submission.csv").open() as file:
        rows = {row["id"]: row["rle_mask"] for row in csv.DictReader(file)}
    assert list(rows) == sorted(IDS)
    for name in IDS:
        assert codes[name].any() == (name not in BLANK["test"]), name
        mask = read_mask(tmp_path / "p" / "masks" / f"{name}.png")
        np.testing.assert_array_equal(mask, rule.apply(codes[name][..., 0]))
        assert rows[name] == encode(mask), name
