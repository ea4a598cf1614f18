"""Images of many bands on their way: check, folds of similar scenes, training, prediction, report."""

import base64
import re

import cv2
import numpy as np
import pytest
import tifffile

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json
from masksmith.data import cache
from masksmith.preprocess.inputs import InputConfig
from masksmith.project import folder as projects
from masksmith.project.folder import Project
from masksmith.recipes.recipe import load_recipe
from tests.conftest import TINY
from tests.steps.test_interrupted import stop_at_step

OPTIONS = {
    key: value
    for key, value in TINY.items()
    if not key.startswith(("folds", "training.stages", "training.batch"))
} | {"folds.count": 3, "folds.group_by": "similar(count=4)", "training.stages.0.epochs": 2}
NAMES = {"input.one_hot": {"5": [10, 80]}}
RECIPE = {"recipe": "cloud-unet", "overrides": OPTIONS | NAMES | {"model.activation": "relu"}}


def chip(rng, level, *, side=32):
    """Five bands of int16, the fifth of names; water is dark in the last amount."""
    mask = np.zeros((side, side), np.uint8)
    cv2.circle(mask, (int(rng.integers(side)), int(rng.integers(side))), int(rng.integers(5, 14)), 1, -1)
    image = rng.normal(level, 60, (side, side, 5))
    image[..., 4] -= 900.0 * mask
    cover = np.where(mask == 1, 80, rng.choice([10, 20, 30]))
    return np.concatenate([image, cover[..., None]], axis=2).astype(np.int16), mask


@pytest.fixture(scope="session")
def chips(tmp_path_factory):
    """A folder of twelve chips of four brightnesses (read only)."""
    data = tmp_path_factory.mktemp("chips") / "data"
    for folder in ("images", "labels", "test"):
        (data / folder).mkdir(parents=True)
    rng = np.random.default_rng(3)
    for at in range(15):
        image, mask = chip(rng, 2000 + 1500 * (at % 4))
        folder = "images" if at < 12 else "test"
        tifffile.imwrite(data / folder / f"{at}.tif", image, photometric="minisblack", planarconfig="contig")
        if at < 12:
            cv2.imwrite(str(data / "labels" / f"{at}.png"), mask)
    return data


def bytes_of(run):
    return {path.name: path.read_bytes() for path in run.path.rglob("*.npy")}


@pytest.fixture(scope="session")
def whole(chips, tmp_path_factory):
    """A project that went the whole way with two channels of names beside four bands."""
    out = tmp_path_factory.mktemp("bands") / "project"
    return out, ms.compete(chips, out=out, **RECIPE)


def test_check_says_what_the_bands_hold(chips, tmp_path):
    report = ms.check(chips, tmp_path / "out")
    assert report.facts["channels"] == 6
    assert report.facts["bits"] == "16 (int16)"
    assert report.facts["values"].count("…") == 6
    assert report.facts["values"].endswith("5: 10…80")
    (found,) = (one for one in report.findings if one.title == "bands of few whole values")
    assert found.detail.startswith("band 5: 10, 20, 30, 80; if they are classes or flags")


def test_check_names_values_that_may_mean_no_data(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir()
    for at in range(3):
        image = np.random.default_rng(at).normal(size=(8, 8, 2)).astype(np.float32)
        image[0, 0] = (-9999, np.nan)
        tifffile.imwrite(
            tmp_path / "data" / "images" / f"{at}.tif", image, photometric="minisblack", planarconfig="contig"
        )
        cv2.imwrite(str(tmp_path / "data" / "masks" / f"{at}.png"), np.eye(8, dtype=np.uint8))
    report = ms.check(tmp_path / "data", tmp_path / "out")
    assert report.facts["values"].endswith(" and no data")
    (found,) = (one for one in report.findings if one.title == "values that may mean no data")
    assert found.detail.startswith("-9999 in band 0; if it means that nothing was measured")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            np.zeros((32, 32, 4), np.int16),
            r"images of different numbers of bands: 4 \(images/9.tif\), 6 \(images/0.tif\)",
        ),
        (np.zeros((32, 32, 6), np.uint16), "images of types int16 and uint16 mixed"),
    ],
)
def test_other_bands_in_the_same_folder(chips, tmp_path, other, message):
    import shutil

    data = shutil.copytree(chips, tmp_path / "data")
    tifffile.imwrite(data / "images" / "9.tif", other, photometric="minisblack", planarconfig="contig")
    with pytest.raises(InputError, match=message):
        ms.check(data, tmp_path / "out")


@pytest.mark.slow
def test_the_whole_way(whole):
    out, result = whole
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
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", result.report.read_text())
    shown = [cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), 1) for one in pictures]
    high = [one for one in shown if one.shape[:2] == (4 * 32 + 6, 32)]
    assert high
    assert all(one[:32].std(axis=(0, 1)).min() > 20 for one in high)  # three stretched bands


@pytest.mark.slow
def test_again_it_does_nothing_and_elsewhere_the_same(whole, chips, tmp_path):
    out, _ = whole
    run = Project.open(out).run()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    ms.compete(chips, out=out, **RECIPE)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == before
    ms.compete(chips, out=tmp_path / "other", **RECIPE)
    assert bytes_of(Project.open(tmp_path / "other").run()) == bytes_of(run)


@pytest.mark.slow
def test_a_stopped_training_goes_on_exactly(whole, chips, tmp_path, monkeypatch):
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_at_step(patch, 3)
        assert ms.compete(chips, out=out, **RECIPE).stopped == 143
    assert ms.compete(chips, out=out, **RECIPE).stopped is None
    assert bytes_of(Project.open(out).run()) == bytes_of(Project.open(whole[0]).run())
    assert (out / "submission.csv").read_bytes() == (whole[0] / "submission.csv").read_bytes()


@pytest.mark.slow
def test_lost_prepared_images_are_made_again(whole, chips, tmp_path):
    import shutil

    out = shutil.copytree(whole[0], tmp_path / "project")
    run, prepared = Project.open(out).run(), Project.open(out).inputs_dir
    codes = bytes_of(run)
    images = next(prepared.rglob("train_images.npy")).read_bytes()
    shutil.rmtree(prepared)
    for path in run.path.glob("o*/*.npy"):
        path.unlink()
    ms.compete(chips, out=out, **RECIPE)
    assert next(prepared.rglob("train_images.npy")).read_bytes() == images
    assert bytes_of(Project.open(out).run()) == codes


def test_another_decoder_prepares_images_anew(example, tmp_path, monkeypatch):
    ms.check(example / "data", tmp_path / "p")

    def first_image():
        train = Project.open(tmp_path / "p").inputs(InputConfig(scaling="min_max")).train
        return train[train.ids[0]].copy()

    before, decode = first_image(), cache.decode_image

    def upside_down(raw, *, where):
        return decode(raw, where=where)[:: 1 if "masks" in where else -1]

    monkeypatch.setattr(cache, "decode_image", upside_down)
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
        ms.folds(out, recipe="cloud-unet", overrides=OPTIONS | {"folds.group_by": "similar(count=5)"})


@pytest.mark.parametrize("value", ["similar(count=1)", "similar(7)", "similar(count=ten)"])
def test_a_misspelt_group(value):
    with pytest.raises(
        InputError, match=r"folds.group_by: .* expected similar\(count=N\) with two groups or more"
    ):
        load_recipe("cloud-unet", (f"folds.group_by={value}",))


def test_type_max_is_obeyed_or_refused(chips, tmp_path):
    with pytest.raises(
        InputError, match=r"input.scaling: 'type_max' needs images of 8 or 16 bits without sign"
    ):
        ms.compete(chips, out=tmp_path / "out", overrides=TINY | {"input.scaling": "type_max"})
    assert not list((tmp_path / "out").glob("runs/*/"))


def test_limits_are_written_into_the_resolved_recipe(chips, tmp_path):
    report = ms.check(chips, tmp_path / "out")
    assert report.facts["scaling"].startswith("fixed: ")
    assert report.facts["scaling"].endswith("10…80 become 0…1")
    run = ms.train(tmp_path / "out", overrides=TINY)
    again = ms.train(tmp_path / "out", overrides=TINY)
    assert (run.path, run.recipe) == (again.path, again.recipe)
    seen, project = run.recipe.input, Project.open(tmp_path / "out")
    images = np.stack([project.cache.train_images[name] for name in project.cache.train_images])
    assert seen.scaling == "fixed"
    assert (seen.low[5], seen.high[5]) == (10, 80)
    assert seen.low[4] == images[..., 4].min()
    codes = project.inputs(seen).train
    assert (codes.flat.min(), codes.flat.max()) == (0, 65535)
    np.testing.assert_array_equal(project.inputs(load_recipe("auto").input).train.flat, codes.flat)
    taken = ms.train(tmp_path / "out", recipe=str(run.path / "recipe.yaml"))
    assert taken.path == run.path


def test_a_recipe_card_has_the_channels_of_its_bands():
    from masksmith.recipes.describe import describe_recipe

    card = describe_recipe("cloud-unet")
    assert card.channels == 4
    assert "size trace (4 channels, 101x101 on a canvas of 128x128)" in str(card)
    assert card.trace[0].channels == 4


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
    assert len({row.group for row in folds.rows}) == 10
    project = Project.open(tmp_path / "out")
    assert project.cache.train_masks["101"].max() <= 1


@pytest.mark.real
@pytest.mark.parametrize("kind", ["S1", "S2"])
def test_a_chip_of_sen1floods11(shared, tmp_path, kind):
    """Planar GeoTIFF of floats (radar) and whole numbers, and a mask with -1 for what was not judged."""
    import shutil

    source = shared / "data" / "sen1floods11-sample"
    (image,), (label,) = (list((source / one).glob("*.tif")) for one in (kind, "Labels"))
    for folder, path in (("images", image), ("labels", label)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in "ab":
            shutil.copy(path, tmp_path / "data" / folder / f"{name}.tif")
    ms.check(tmp_path / "data", tmp_path / "out")
    cache = Project.open(tmp_path / "out").cache
    assert cache.channels == {"S1": 2, "S2": 13}[kind]
    assert cache.train_images.dtype == {"S1": np.float32, "S2": np.int16}[kind]
    expected = np.moveaxis(tifffile.imread(image), 0, 2)
    np.testing.assert_array_equal(cache.train_images["a"], expected)
    judged = tifffile.imread(label)
    np.testing.assert_array_equal(cache.train_masks["a"][..., 0], np.where(judged == -1, 255, judged))
    assert (judged == -1).any()
