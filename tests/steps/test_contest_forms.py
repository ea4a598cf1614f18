"""Each contest's download form goes the whole way: read, trained, written as its judge takes it, and scored."""

import csv
from dataclasses import dataclass, field
from importlib.resources import files

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.contest_forms import FORMS, VIEWS
from masksmith.data.rle import DIALECTS, paint_runs
from masksmith.project.folder import Project
from masksmith.project.members import read_members
from masksmith.recipes.ensemble import load_any, member_recipes
from masksmith.recipes.recipe import Recipe
from masksmith.recipes.trial import load_trial
from masksmith.steps.recipes import dotted
from masksmith.submission.score import score_files

SMALL = {
    "folds.count": 2,
    "folds.train": 1,
    "model.encoder": "tu-test_resnet",
    "model.encoder_weights": "none",
    "model.encoder_depth": 3,
    "model.decoder_channels": [32, 16, 16],
    "training.batch_size": 8,
    "training.precision": "32-true",
    "training.threads": 1,
    "training.evaluate_every": 100,
    "training.stages.0.epochs": 1,
    "training.stages.1:": [],
    "prediction.tta": ["identity"],
    "tuning.resamples": 100,
}
OWN = {
    "siim": "siim-unetpp-b4",
    "oncloud": "cloud-unet",
    "carvana": "carvana-unet-tiles",
    "dsb2018": "dsb2018-linknet",
}
"""Form -> the published recipe that goes the whole way on it, made small; the other forms have auto."""


@dataclass(frozen=True)
class Way:
    """What a form is read as, and what its judge takes."""

    layout: str
    task: str
    dialect: str
    columns: str
    train: int = 12
    test: int = 4
    channels: int = 3
    classes: tuple[str, ...] = ()
    metric: str = "dice_per_image"
    options: dict = field(default_factory=dict)


ORGANS = ("large_bowel", "small_bowel", "stomach")
WAYS = {
    "tgs": Way("kaggle_rle", "binary", "tgs", "id,rle_mask", channels=1, metric="tgs_map"),
    "siim": Way("kaggle_rle", "binary", "siim", "ImageId,EncodedPixels", channels=1, test=8),
    "oncloud": Way("band_folders", "binary", "tgs", "id,rle_mask", channels=4),
    "carvana": Way("kaggle_rle", "binary", "tgs", "img,rle_mask", train=3 * VIEWS, test=VIEWS),
    "dsb2018": Way("object_folders", "instances", "dsb", "ImageId,EncodedPixels", metric="dsb_map"),
    "severstal": Way(
        "kaggle_rle", "multilabel", "severstal", "ImageId,EncodedPixels,ClassId", channels=1,
        classes=("1", "2", "3", "4"),
    ),
    "airbus": Way("kaggle_rle", "binary", "airbus", "ImageId,EncodedPixels", metric="f_beta_objects"),
    "uwmadison": Way(
        "kaggle_rle", "multilabel", "severstal_row_major", "", channels=1, classes=ORGANS, test=0,
        options={"dialect": "severstal_row_major"},
    ),
}  # fmt: skip


def make(root, form):
    way = WAYS[form]
    side = None if form == "tgs" else 32
    return ms.example(root / form, train=way.train, test=way.test or 4, layout=form, side=side)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=WAYS)
def won(request, tmp_path_factory):
    """(form, its download, project); read only but for files that are written again."""
    root = tmp_path_factory.mktemp(request.param)
    way, data = WAYS[request.param], make(root, request.param)
    if request.param in OWN:
        small = {"recipe": OWN[request.param], "scale": "small", "overrides": {"training.threads": 1}}
    else:
        small = {"overrides": SMALL}
    ms.compete(data, out=root / "p", **small, **way.options)
    return request.param, data, Project.open(root / "p")


@pytest.mark.slow
def test_the_whole_way(won):
    form, data, project = won
    way, catalog, target = WAYS[form], project.catalog, project.target
    assert (catalog.layout, target.task, catalog.submission.dialect) == (way.layout, way.task, way.dialect)
    assert (len(catalog.train), len(catalog.test)) == (way.train, way.test)
    assert project.cache.channels == way.channels
    assert not way.classes or tuple(target.classes) == way.classes
    if not way.test:
        assert len(list((project.masks_dir / "oof").glob("*/*.png"))) > 0
        return
    asked = ms.submit(project.root, check=project.submission_csv)
    assert asked.ids == way.test
    assert project.submission_csv.read_text().partition("\n")[0] == way.columns
    solution = data.parent / ("solution" if form == "oncloud" else "solution.csv")
    scored = ms.score(project.submission_csv, solution, metric=way.metric)
    assert scored.images == way.test
    _of_its_own(form, data, project)


def _of_its_own(form, data, project):
    rows = rows_of(project.submission_csv)
    groups = {row.id: row.group for row in project.folds.rows}
    folds = {row.id: row.fold for row in project.folds.rows}
    if form == "siim":  # once an id, in the sample's order
        sample = [row["ImageId"] for row in rows_of(data / "sample_submission.csv")]
        assert len(sample) > len(rows)
        assert [row["ImageId"] for row in rows] == list(dict.fromkeys(sample))
        assert all(row["EncodedPixels"] for row in rows)  # -1 where there is none
    if form == "oncloud":
        places = {row["chip_id"]: row["location"] for row in rows_of(data / "train_metadata.csv")}
        assert len({(places[name], fold) for name, fold in folds.items()}) == len(set(places.values()))
        there = {path.stem: path for path in project.predictions_dir.iterdir()}
        assert sorted(there) == sorted(one.id for one in project.catalog.test)
        for name, path in there.items():
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            saved = cv2.imread(str(project.masks_dir / f"{name}.png"), cv2.IMREAD_UNCHANGED)
            assert image.dtype == np.uint8
            assert path.suffix == ".tif"
            assert np.array_equal(image, saved // 255)
        assert ms.score(project.predictions_dir, data.parent / "solution").images == len(there)
        raw = path.read_bytes()
        path.write_bytes(b"no image")
        assert ms.submit(project.root).files == str(project.predictions_dir)  # written again
        assert path.read_bytes() == raw
    if form == "carvana":  # views of a car: a finding with the line that binds them
        said = " ".join(one.detail for one in ms.check(data).findings)
        assert "groups: {pattern: '^([^_]+)_'}" in said or len(set(groups.values())) == 3
    if form == "dsb2018":
        assert list(dict.fromkeys(row["ImageId"] for row in rows)) == project.catalog.submission.ids
    if form == "severstal":
        assert [row["ClassId"] for row in rows] == ["1", "2", "3", "4"] * WAYS[form].test
    if form == "airbus":
        names = [row["ImageId"] for row in rows_of(data / "sample_submission_v2.csv")]
        assert list(dict.fromkeys(row["ImageId"] for row in rows)) == names


def test_cases_of_a_scan_are_bound(tmp_path):
    data = make(tmp_path, "uwmadison")
    found = ms.read(data)
    assert {one.group for one in found.train} == {"case2", "case3", "case4"}
    assert not found.test
    assert rows_of(data / "sample_submission.csv") == []


@pytest.mark.parametrize("form", FORMS)
def test_the_masks_read_are_those_of_the_form(tmp_path, form):
    """Scored against themselves the answers are perfect, and the training masks cover what the tables say."""
    data = make(tmp_path, form)
    solution = data.parent / ("solution" if form == "oncloud" else "solution.csv")
    metric = "dsb_map" if form == "dsb2018" else "dice_per_image"
    assert score_files(solution, solution, metric=metric).score == 1
    again = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    make(tmp_path, form)  # the same once more
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == again


def test_relative_rows_are_joined(tmp_path):
    data = make(tmp_path, "siim")
    rows = {}
    for row in rows_of(data / "train-rle.csv"):
        rows.setdefault(row["ImageId"], []).append(row[" EncodedPixels"])
    assert any(len(texts) > 1 for texts in rows.values())
    for sample in ms.read(data).train:
        mask = np.zeros(32 * 32, np.uint8)
        for text in rows[sample.id]:
            paint_runs(mask, DIALECTS["siim"].read(text, where=sample.id), 1)
        assert np.array_equal(sample.target, mask.reshape(32, 32, order="F"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layout": "kaggle"}, "--layout"),
        ({"layout": "siim", "task": "multiclass"}, "has its own task; leave --task multiclass out"),
        ({"layout": "siim", "large": True}, "leave --large out"),
        ({"layout": "tgs", "side": 64}, "its images have 101 pixels a side"),
        ({"side": 64}, "--side 64: it is that of a contest's form"),
    ],
)
def test_forms_that_are_refused(tmp_path, asked, message):
    with pytest.raises(InputError, match=message):
        ms.example(tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


# --- published recipes on their own forms, made small ---

SYSTEMS = {
    "tgs-model2": "tgs",
    "tgs-winner": "tgs",
    "siim-first-place": "siim",
    "siim-two-resolutions": "siim",
    "siim-two-heads": "siim",
    "siim-fpn-pan-ema": "siim",
    "cloud-location-ensemble": "oncloud",
}
FEWER = {"cloud-location-ensemble": {"members.2:": []}}
"""Its first nets stand for all eight, which differ in encoder, bands and scaling."""


HEAVY = {"tgs-winner", "siim-first-place", "siim-fpn-pan-ema"}
"""Many nets: `make systems` trains them, CI does not."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [pytest.param(one, marks=[pytest.mark.heavy] * (one in HEAVY)) for one in SYSTEMS]
)
def test_a_small_system_on_its_own_form(tmp_path, recipe):
    data, out = make(tmp_path, SYSTEMS[recipe]), tmp_path / "p"
    fewer = FEWER.get(recipe, {})
    result = ms.compete(
        data, out=out, recipe=recipe, overrides={"training.threads": 1} | fewer, scale="small"
    )
    project = Project.open(out)
    assert result.submission.ids == len(project.catalog.test)
    published = load_any(recipe, dotted(fewer))
    losses = {
        tuple(str(stage.loss) for stage in one.training.stages)
        for one in ([published] if isinstance(published, Recipe) else member_recipes(published))
    }
    found = {
        tuple(str(stage.loss) for stage in one.run.recipe.training.stages)
        for one in read_members(project, None)
    }
    assert found == losses


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    sorted(path.name[:-5] for path in files("masksmith.recipes").iterdir() if path.name.endswith(".yaml")),
)
def test_every_recipe_is_made_small(name):
    asked = load_trial(name, (), "small")
    for recipe in [asked] if isinstance(asked, Recipe) else member_recipes(asked):
        assert recipe.folds.train == 1
        assert recipe.training.batch_size <= 8
        assert max(recipe.size.resize_hw or (0,)) <= 64
        assert sum(stage.epochs for stage in recipe.training.stages) <= 3 * len(recipe.training.stages) + 12


def test_overrides_win_over_the_scale():
    assert load_trial("tgs-model1", ("training.batch_size=5",), "small").training.batch_size == 5
    members = member_recipes(load_trial("tgs-best", ("training.batch_size=5",), "small"))
    assert {one.training.batch_size for one in members} == {5}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"scale": "small"}, "auto chooses its recipe by the data"),
        ({"recipe": "tgs-model1", "scale": "tiny"}, "--scale"),
        ({"recipe": "tgs-model1", "scale": "small", "budget": "10m"}, "--scale small with --budget"),
    ],
)
def test_scales_that_are_refused(tmp_path, asked, message):
    with pytest.raises(InputError, match=message):
        ms.compete(make(tmp_path, "severstal"), out=tmp_path / "p", **asked)


@pytest.mark.parametrize(
    ("form", "recipe", "message"),
    [
        (
            "siim",
            "cloud-unet",
            r"no side table has the column 'location'.*--layout oncloud.*similar\(count=10\)",
        ),
        (
            "siim",
            "tgs-depth-unet",
            r"model\.scalars: no column 'z'.*tgs-depth-unet is made for TGS Salt's form",
        ),
        ("siim", "tgs-winner", r"folds\.deal_by: no side table has a column 'z'.*--layout tgs"),
        ("siim", "dsb2018-linknet", r"objects.*a file or row an object.*--layout dsb2018.*--task instances"),
        ("dsb2018", "siim-unet-b4", r"'dice_per_image' cannot score objects.*SIIM-ACR's form"),
        ("dsb2018", "carvana-unet-tiles", r"cannot score objects.*Carvana's form"),
    ],
)
def test_data_of_another_form_are_refused_with_the_way_there(tmp_path, form, recipe, message):
    data = make(tmp_path, form)
    with pytest.raises(InputError, match=message) as refused:
        ms.compete(data, out=tmp_path / "p", recipe=recipe, scale="small")
    assert str(refused.value).count("is made for") == 1
    assert not list((tmp_path / "p").glob("runs/*/checkpoints"))
