"""Images of many bands on their way: check, folds of similar scenes, training, prediction, report."""

import base64
import re
import shutil

import cv2
import numpy as np
import pytest
import tifffile

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json
from masksmith.data import cache
from masksmith.data.decode import reader
from masksmith.preprocess.inputs import InputConfig
from masksmith.project import folder as projects
from masksmith.project.folder import Project
from masksmith.recipes.describe import describe_recipe
from masksmith.recipes.recipe import load_recipe
from tests.stops import stop

OPTIONS = {
    "metric": "iou_by_group",
    "folds.group_by": "similar(count=4)",
    "input.bands": [1, 2, 3, 4],
    "input.scaling": "standard",
    "input.one_hot": {"5": [10, 80]},
    "training.stages.0.epochs": 2,
}
RECIPE = {"recipe": "smoke", "overrides": OPTIONS}


def write_bands(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")


def write_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask)


def chip(rng, level, *, side=32):
    """Five bands of int16, the fifth of names; water is dark in the last amount."""
    mask = np.zeros((side, side), np.uint8)
    cv2.circle(mask, (int(rng.integers(side)), int(rng.integers(side))), int(rng.integers(5, 14)), 1, -1)
    image = rng.normal(level, 60, (side, side, 5))
    image[..., 4] -= 900.0 * mask
    cover = np.where(mask == 1, 80, rng.choice([10, 20, 30]))
    return np.concatenate([image, cover[..., None]], axis=2).astype(np.int16), mask


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    """A folder of twelve chips of four brightnesses (read only)."""
    data = tmp_path_factory.mktemp("chips") / "data"
    rng = np.random.default_rng(3)
    for at in range(15):
        image, mask = chip(rng, 2000 + 1500 * (at % 4))
        write_bands(data / ("images" if at < 12 else "test") / f"{at}.tif", image)
        if at < 12:
            write_mask(data / "labels" / f"{at}.png", mask)
    return data


def bytes_of(out):
    run = Project.open(out).run()
    return {path.name: path.read_bytes() for path in run.path.rglob("*.npy")}


def test_check_says_what_the_bands_hold(chips, tmp_path):
    report = ms.check(chips, tmp_path / "out")
    assert report.facts["channels"] == 6
    assert report.facts["bits"] == "16 (int16)"
    assert report.facts["values"].count("…") == 6
    assert report.facts["values"].endswith("5: 10…80")
    (found,) = (one for one in report.findings if one.title == "bands of few whole values")
    assert found.detail.startswith("band 5: 10, 20, 30, 80; if they are classes or flags")
    for other, message in (
        (
            np.zeros((32, 32, 4), np.int16),
            r"different numbers of bands: 4 \(images/9.tif\), 6 \(images/0.tif\)",
        ),
        (np.zeros((32, 32, 6), np.uint8), "images of types int16 and uint8 mixed"),
    ):
        data = shutil.copytree(chips, tmp_path / "data", dirs_exist_ok=True)
        write_bands(data / "images" / "9.tif", other)
        with pytest.raises(InputError, match=message):
            ms.check(data, tmp_path / "other")


def test_check_names_values_that_may_mean_no_data(tmp_path):
    for at in range(3):
        image = np.random.default_rng(at).normal(size=(8, 8, 2)).astype(np.float32)
        image[0, 0] = (-9999, np.nan)
        write_bands(tmp_path / "data" / "images" / f"{at}.tif", image)
        write_mask(tmp_path / "data" / "masks" / f"{at}.png", np.eye(8, dtype=np.uint8))
    write_bands(tmp_path / "data" / "test" / "same.tif", image)
    write_bands(tmp_path / "data" / "test" / "far.tif", image + np.float32([0, 9]))
    report = ms.check(tmp_path / "data", tmp_path / "out")
    assert report.facts["values"].endswith(" and no data")
    assert report.facts["values (test)"].startswith("0: -9999…")
    (beyond,) = (one for one in report.findings if one.title == "test images beyond the scaling's limits")
    assert beyond.ids == ["far"]
    (found,) = (one for one in report.findings if one.title == "values that may mean no data")
    assert found.detail.startswith("-9999 in band 0; if it means that nothing was measured")


@pytest.mark.slow
def test_the_whole_way(chips, tmp_path):
    out = tmp_path / "project"
    result = ms.compete(chips, out=out, **RECIPE)
    project = Project.open(out)
    assert result.submission.ids == 3
    seen = project.inputs(project.run().recipe.input)
    assert (seen.channels, seen.test.channels, project.cache.channels) == (6, 6, 6)
    assert seen.statistics.mean[4:] == (0, 0)
    assert project.cache.train_images.dtype == np.int16
    groups = {row.id: row.group for row in project.folds.rows}
    assert set(groups.values()) == {f"similar {at}" for at in range(4)}
    home = {row.group: row.fold for row in project.folds.rows}
    assert all(home[row.group] == row.fold for row in project.folds.rows)
    assert read_json(out / "tuning.json")["metric"] == "iou_by_group"
    pictures = re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", result.report.read_text())
    shown = [cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), 1) for one in pictures]
    high = [one for one in shown if one.shape[:2] == (4 * 32 + 6, 32)]
    assert high
    assert all(one[:32].std(axis=(0, 1)).min() > 20 for one in high)  # three stretched bands

    # again it does nothing
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    ms.compete(chips, out=out, **RECIPE)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == before
    # elsewhere, stopped and gone on with, it ends with the same bits
    with stop("*/fold_0/epoch_0001.json", items=1):
        assert ms.compete(chips, out=tmp_path / "stopped", **RECIPE).stopped == 143
    assert ms.compete(chips, out=tmp_path / "stopped", **RECIPE).stopped is None
    codes = bytes_of(out)
    assert bytes_of(tmp_path / "stopped") == codes
    assert (tmp_path / "stopped" / "submission.csv").read_bytes() == (out / "submission.csv").read_bytes()
    # prepared images that were lost are made again
    run, prepared = project.run(), project.inputs_dir
    images = next(prepared.rglob("train_images.npy")).read_bytes()
    shutil.rmtree(prepared)
    for path in run.path.glob("o*/*.npy"):
        path.unlink()
    ms.compete(chips, out=out, **RECIPE)
    assert next(prepared.rglob("train_images.npy")).read_bytes() == images
    assert bytes_of(out) == codes


def test_another_decoder_prepares_images_anew(example, tmp_path, monkeypatch):
    ms.check(example / "data", tmp_path / "p")

    def first_image():
        train = Project.open(tmp_path / "p").inputs(InputConfig(scaling="min_max")).train
        return train[train.ids[0]].copy()

    before, decode = first_image(), reader.decode_image

    def upside_down(raw, *, where, **options):
        return decode(raw, where=where, **options)[:: 1 if "masks" in where else -1]

    monkeypatch.setattr(reader, "decode_image", upside_down)
    np.testing.assert_array_equal(first_image(), before)
    for module, name in ((cache, "VERSION"), (projects, "CACHE_VERSION")):
        monkeypatch.setattr(module, name, "cache of the next masksmith")
    np.testing.assert_array_equal(first_image(), before[::-1])


def test_folds_of_similar_images_are_made_once(chips, tmp_path):
    out = tmp_path / "out"
    ms.check(chips, out)
    made = ms.folds(out, **RECIPE)
    text = (out / "folds.csv").read_text()
    assert ms.folds(out, **RECIPE).hash == made.hash
    assert (out / "folds.csv").read_text() == text
    assert "similar 0" in text
    with pytest.raises(InputError, match=r"group_by: 'similar\(count=5\)' was asked for, but"):
        ms.folds(out, recipe="smoke", overrides=OPTIONS | {"folds.group_by": "similar(count=5)"})
    for value in ("similar(count=1)", "similar(7)", "similar(count=ten)"):
        message = (
            rf"folds.group_by: .*{re.escape(value)}.* expected similar\(count=N\) with two groups or more"
        )
        with pytest.raises(InputError, match=message):
            load_recipe("smoke", (f"folds.group_by={value}",))


@pytest.mark.slow
def test_limits_are_written_into_the_resolved_recipe(chips, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(
        InputError, match=r"input.scaling: 'type_max' needs images of 8 or 16 bits without sign"
    ):
        ms.compete(chips, out=out, recipe="smoke", overrides={"input.scaling": "type_max"})
    assert not list(out.glob("runs/*/"))
    report = ms.check(chips, out)
    assert report.facts["scaling"].startswith("fixed: ")
    assert report.facts["scaling"].endswith("10…80 become 0…1")
    run, again = (ms.train(out, recipe="smoke") for _ in range(2))
    assert (run.path, run.recipe) == (again.path, again.recipe)
    seen, project = run.recipe.input, Project.open(out)
    images = np.stack([project.cache.train_images[name] for name in project.cache.train_images])
    assert seen.scaling == "fixed"
    assert (seen.low[5], seen.high[5]) == (10, 80)
    assert seen.low[4] == images[..., 4].min()
    codes, unsettled = project.inputs(seen).train, project.inputs(load_recipe("smoke").input).train
    assert {function(codes[name]) for name in codes for function in (np.min, np.max)} >= {0, 65535}
    for name in codes:
        np.testing.assert_array_equal(unsettled[name], codes[name])
    assert ms.train(out, recipe=str(run.path / "recipe.yaml")).path == run.path


def test_a_recipe_card_has_the_channels_of_its_bands():
    card = describe_recipe("cloud-unet")
    assert card.channels == card.trace[0].channels == 4
    assert "size trace (4 channels, 101x101 on a canvas of 128x128)" in str(card)


# --- real chips -------------------------------------------------------------------------------------------


@pytest.mark.real
def test_check_of_the_water_chips(shared, tmp_path):
    report = ms.check(shared / "data" / "water", tmp_path / "out")
    assert (report.facts["training images"], report.facts["channels"]) == (100, 12)
    assert "8: -9999…4245" in report.facts["values"]
    assert report.facts["scaling"].startswith("fixed: -1393…6568, ")
    assert "-9999" not in report.facts["scaling"]
    found = {one.title: one.detail for one in report.findings}
    assert found["left out"].startswith("55 mask files have no image")
    assert "band 10: 10, 20, 30, 40, 50, 60, 70, 80, 90, 100;" in found["bands of few whole values"]
    assert found["values that may mean no data"].startswith("-9999 in band 8")
    folds = ms.folds(tmp_path / "out", recipe="water-unet")
    assert len({row.group for row in folds.rows}) == 9  # near-duplicates join two of ten
    assert Project.open(tmp_path / "out").cache.train_masks["101"].max() <= 1


@pytest.mark.real
def test_chips_of_sen1floods11(shared, tmp_path):
    """Planar GeoTIFF of floats (radar) and whole numbers, and a mask with -1 for what was not judged."""
    source = shared / "data" / "sen1floods11-sample"
    (label,) = (source / "Labels").glob("*.tif")
    judged = tifffile.imread(label)
    assert (judged == -1).any()
    for kind, channels, dtype in (("S1", 2, np.float32), ("S2", 13, np.int16)):
        (image,) = (source / kind).glob("*.tif")
        data, out = tmp_path / kind, tmp_path / f"{kind}-out"
        for folder, path in (("images", image), ("labels", label)):
            (data / folder).mkdir(parents=True)
            for name in "ab":
                shutil.copy(path, data / folder / f"{name}.tif")
        ms.check(data, out)
        stored = Project.open(out).cache
        assert (stored.channels, stored.train_images.dtype) == (channels, dtype)
        np.testing.assert_array_equal(stored.train_images["a"], np.moveaxis(tifffile.imread(image), 0, 2))
        np.testing.assert_array_equal(stored.train_masks["a"][..., 0], np.where(judged == -1, 255, judged))
