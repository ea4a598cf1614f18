"""Every bundled recipe trains on real images, and keeps the numbers of its source."""

import csv
import itertools
import zipfile

import cv2
import numpy as np
import pytest
import torch

from masksmith.preprocess import canvas_of
from masksmith.recipes.ensemble import load_ensemble, member_recipes
from masksmith.recipes.recipe import load_recipe
from masksmith.recipes.sources import list_recipes
from masksmith.recipes.verify import begin_training, scaled, train_one_epoch, write_fold
from masksmith.training.config import TrainingConfig

SIDE = 64  # of images that a recipe takes at their original size


@pytest.fixture(scope="module")
def eight(shared):
    """Grey images (101, 101) and masks of 0 and 1: four with salt, four without."""
    pairs, folder = {True: [], False: []}, shared / "data" / "tgs-salt"
    with (folder / "train.csv").open() as table, zipfile.ZipFile(folder / "train.zip") as archive:
        paths = {info.filename.rpartition("/")[2]: info.filename for info in archive.infolist()}
        masks = {path.rpartition("/")[2]: path for path in archive.namelist() if "masks/" in path}
        for row in itertools.islice(csv.DictReader(table), 200):
            some, name = bool(row["rle_mask"]), f"{row['id']}.png"
            if len(pairs[some]) < 4:
                image = _decode(archive.read(paths[name].replace("masks/", "images/")))
                if image.min() < image.max():
                    pairs[some].append((image, (_decode(archive.read(masks[name])) > 0).astype(np.uint8)))
    return pairs[True] + pairs[False]


def _decode(file):
    plane = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    return plane if plane.ndim == 2 else plane[..., 0]


def resized(recipe, pairs):
    """Return the images small, with as many equal channels as the recipe's input has."""
    channels, hw = recipe.input.channels(1), recipe.size.resize_hw or recipe.size.pad_hw or (SIDE, SIDE)
    return [
        (
            np.repeat(cv2.resize(image, hw[::-1])[..., None], channels, axis=2),
            cv2.resize(mask, hw[::-1], interpolation=cv2.INTER_NEAREST),
        )
        for image, mask in pairs
    ]


def two_epochs(training):
    """Return the first and the last stage, an epoch each; of a single stage two."""
    chosen = training.stages[:1] if len(training.stages) == 1 else [training.stages[0], training.stages[-1]]
    short = {"until_plateau": None, "batch_size": None, "accumulate": None, "data": "labelled"}
    short["epochs"] = 2 // len(chosen)
    stages = [
        stage.model_copy(
            update=short | {"schedule": stage.schedule and stage.schedule.model_copy(update={"cycles": 1})}
        )
        for stage in chosen
    ]
    plain = {"early_stop": None, "select": "last", "keep": [], "top_k": 0, "swa": None, "accumulate": 1}
    return TrainingConfig(**{**dict(training), **plain, "stages": stages})


@pytest.mark.real
@pytest.mark.parametrize("name", [listing.name for listing in list_recipes("recipe")])
def test_two_epochs_on_salt(name, eight, tmp_path):
    recipe = scaled(load_recipe(name), "small")
    recipe = recipe.model_copy(update={"training": two_epochs(recipe.training)})
    data = write_fold(recipe, tmp_path, resized(recipe, eight))
    with torch.random.fork_rng():
        state = begin_training(recipe, recipe.training, data)
        model = state.raw
        before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
        for _ in range(2):
            assert np.isfinite(train_one_epoch(state))
    moved = [key for key, weight in model.named_parameters() if not torch.equal(weight, before[key])]
    assert any(key.startswith("decoder") for key in moved)
    assert "head.weight" in moved
    if "encoder" not in recipe.training.stages[-1].freeze:
        assert any(key.startswith("encoder") for key in moved)
    side = max(2 * model.divisor, 32)
    image = torch.rand(2, data.images.channels, side, side)
    with torch.no_grad():
        logits = model.eval()(image, *(torch.zeros(2, model.num_scalars),) * model.takes_scalars).mask_logits
    assert torch.isfinite(logits).all()


# what the sources say, by the names of their papers


PUBLISHED = {  # what a recipe must not lose: path -> value
    "tgs-resnet34-hyper": {
        "size.pad_hw": (128, 128),
        "size.border": "edge",
        "model.derived_channels": "depth_ramp",
        "training.stages.0.schedule.final_frac": 0.1,
        "training.stages.3.schedule.final_frac": 0.1,
        "training.stages.3.schedule.cycles": 4,
        "pseudo.min_confident_frac": 0.0,
        "folds.deal_by": "z",
    },
    "tgs-resnext50": {
        "size.resize_hw": (192, 192),
        "size.pad_hw": (224, 224),
        "model.decoder_channels": [128, 64, 32, 16, 8],
        "training.stages.0.schedule.factor": 0.25,
        "training.stages.0.schedule.patience": 10,
        "training.stages.0.until_plateau.patience": 20,
        "training.stages.1.schedule.factor": 0.5,
        "training.stages.1.schedule.patience": 7,
        "training.stages.1.until_plateau.patience": 15,
        "training.stages.2.schedule.cycles": 4,
    },
    "tgs-model1": {
        "size.resize_hw": (128, 128),
        "training.select": "last",
        "training.geometry.hflip": 0.0,
        "training.augment.append_flips": False,
    },
    "tgs-model2": {
        "size.resize_hw": None,
        "training.select": "best",
        "training.geometry.hflip": 0.0,
        "training.augment.append_flips": True,
        "training.stages.0.schedule.factor": 0.5,
        "training.stages.0.schedule.patience": 5,
        "training.stages.1.until_plateau.patience": 20,
    },
    "tgs-depth-unet": {
        "size.chain.0.name": "crop",
        "size.chain.0.ratio": 0.9,
        "size.chain.1.name": "refract",
        "size.chain.1.ratio": 0.9,
        "size.chain.2.hw": (128, 128),
        "model.scalars": ["z"],
        "folds.holdout_frac": 0.15,
        "training.early_stop.patience": 5,
        "training.stages.0.schedule.patience": 3,
        "tuning.bottom_thresholds": [0.5],
    },
    "cloud-unet": {
        "metric": "iou_by_group",
        "folds.count": 4,
        "folds.train": 1,
        "input.high": [22500, 21000, 19500, 17000],
        "training.clip_norm": 2.999,
        "training.geometry.probability": 0.7,
        "training.geometry.rotate_deg": 45,
        "training.geometry.elastic.probability": 0.04,
        "training.intensity.channel_scale.probability": 0.01 + 0.01,
        "training.intensity.channel_scale.add": 0.05,
        "training.intensity.cutout.probability": 0.15,
        "training.stages.0.schedule.factor": 0.5,
        "training.stages.0.schedule.patience": 200,
        "prediction.tta": ["identity", "hflip"],
    },
    "siim-unetpp-b4": {
        "folds.holdout_frac": 0.15,
        "tuning.component_area_frac": 2000 / 1024**2,
    },
    "siim-pan-resnet50": {"model.output_stride": 32, "folds.count": 4},
    "siim-emanet-resnet101": {"model.architecture": "emanet", "folds.train": 2},
}


def value_at(value, path):
    for key in path.split("."):
        value = value[int(key)] if key.isdigit() else getattr(value, key)
    return value


def test_recipes_keep_the_numbers_of_their_sources():
    for name, values in PUBLISHED.items():
        recipe = load_recipe(name)
        assert {path: value_at(recipe, path) for path in values} == values, name


def first_place(weights, *, small_first):
    """The stages of the first place of SIIM-ACR: three trainings at 1024, for two of its nets after one at 512."""
    small = [
        (weights, 50, (8, 1), "adam", 1e-4, "plateau", "previous"),
        (weights, 2, (2, 1), "adam", 1e-4, "constant", "previous"),  # with the encoder frozen
    ]
    return small * small_first + [
        (weights, 50, (2, 1), "adam", 1e-4, "plateau", "previous"),
        (weights, 48, (2, 1), "adam", 1e-5, "cyclic", "previous"),  # 50 there: see the headers
        (weights, 48, (2, 1), "adam", 1e-5, "cyclic", "previous"),
    ]


# Each stage: weights of the loss, epochs, (images a batch, batches a step), optimizer, rate, schedule, start. What no
# source says is named in the headers.
STAGES = {
    "tgs-model1": [({"bce": 1}, 200, (32, 1), "adam", 0.001, "constant", "previous")],
    "tgs-model2": [
        ({"bce": 1}, 80, (64, 1), "adam", 0.01, "plateau", "previous"),
        ({"lovasz": 1}, 200, (32, 1), "adam", 0.01, "plateau", "best"),
    ],
    "tgs-depth-unet": [({"bce": 1}, 5, (32, 1), "adam", 0.001, "plateau", "previous")],
    "tgs-resnext50": [
        ({"bce": 0.5, "dice": 0.5}, 125, (24, 1), "rmsprop", 1e-4, "plateau", "previous"),
        ({"lovasz_elu": 1}, 125, (24, 1), "rmsprop", 5e-5, "plateau", "best"),
        ({"lovasz_elu": 1}, 4 * 80, (24, 1), "rmsprop", 1e-4, "cosine_restarts", "best"),
    ],
    "tgs-resnet34-hyper": [
        *[({"lovasz_elu": 1}, 50, (32, 1), "sgd", 0.01, "cosine", "previous")] * 3,
        ({"lovasz_elu": 1}, 4 * 50, (32, 1), "sgd", 0.01, "cosine_restarts", "previous"),
    ],
    "cloud-unet": [({"jaccard": 1, "focal": 0.1}, 100, (4, 1), "sgd", 0.002, "plateau", "previous")],
    "siim-unetpp-b4": [
        ({"bce": 1, "dice": 1}, 75, (16, 2), "adam", 1e-3, "cosine", "previous"),
        ({"dice": 1}, 50, (4, 8), "adam", 1e-3, "cosine", "previous"),
        ({"focal": 1}, 10, (4, 8), "adam", 1e-5, "cosine", "previous"),
        ({"bce": 1, "dice": 1}, 45, (2, 12), "adam", 5e-4, "cosine", "previous"),
        ({"focal": 1, "dice": 1}, 19, (2, 12), "adam", 1e-5, "cosine", "previous"),
    ],
    "siim-albunet-resnet34": first_place({"bce": 3, "dice": 1, "focal": 4}, small_first=True),
    "siim-scse-seresnext50": first_place({"bce": 3, "dice": 1, "focal": 4}, small_first=True),
    "siim-unet-resnet50": first_place({"bce": 2, "dice": 1, "focal": 2}, small_first=False),
}


def stages_of(recipe):
    return [
        (
            {term.name: term.weight for term in stage.loss},
            stage.epochs,
            recipe.training.batches_of(stage),
            stage.optimizer.name,
            stage.optimizer.lr,
            stage.schedule.name,
            stage.start,
        )
        for stage in recipe.training.stages
    ]


def test_every_stage_is_that_of_its_source():
    assert {name: stages_of(load_recipe(name)) for name in STAGES} == STAGES
    stages = load_recipe("tgs-resnet34-hyper").training.stages
    assert [stage.data for stage in stages] == ["pseudo"] * 3 + [
        "labelled"
    ]  # pseudo-labels in pretraining only
    for name, weights in {
        "siim-two-heads": {"bce": 2.7, "dice": 0.9, "image_bce": 0.1},
        "siim-mask-and-class": {"bce": 1024, "image_bce": 1},
    }.items():
        for stage in load_recipe(name).training.stages:
            assert {term.name: term.weight for term in stage.loss} == weights, name
    for name in ("siim-albunet-resnet34", "siim-unet-resnet50", "siim-scse-seresnext50"):
        shares = [stage.sampler.non_empty_frac for stage in load_recipe(name).training.stages]
        assert shares[0] == (0.8, 0.8), name
        assert shares[-3:] == [(0.8, 0.8), (0.6, 0.6), (0.4, 0.4)], name


def members_of(name):
    """The recipes of an ensemble whose members have equal weights, as in all the published ones."""
    ensemble = load_ensemble(name)
    assert {member.weight for member in ensemble.members} == {1.0}
    return member_recipes(ensemble)


def test_eight_nets_of_the_clouds():
    highest, extremes = [22500, 21000, 19500, 17000], "image_min_max"
    wide, narrow = [256, 128, 96, 48, 32], [64, 32, 24, 16, 8]
    recipes = members_of("cloud-location-ensemble")
    assert all(recipe.input.bands == [0, 1, 2, 3][: len(recipe.input.bands)] for recipe in recipes)
    found = [
        (
            recipe.model.encoder.partition(".")[0],
            len(recipe.input.bands),
            extremes if recipe.input.scaling == extremes else recipe.input.high,
            recipe.model.decoder_channels,
            recipe.model.activation,
            recipe.training.stages[0].epochs,
        )
        for recipe in recipes
    ]
    assert found == [
        ("tf_efficientnetv2_s", 4, highest, wide, "silu", 100),
        ("tf_efficientnetv2_b0", 4, extremes, wide, "silu", 90),
        ("tf_efficientnetv2_b0", 3, highest[:3], wide, "silu", 80),
        ("resnet34", 3, highest[:3], narrow, "relu", 60),
        ("resnet34", 3, extremes, narrow, "relu", 60),
        ("resnet34", 4, [20000], narrow, "relu", 60),
        ("tf_efficientnet_b3", 4, highest, wide, "relu", 70),
        ("tf_efficientnet_b0", 4, [30000], wide, "relu", 60),
    ]


def test_members_of_the_other_ensembles():
    assert [recipe.name for recipe in members_of("tgs-winner")] == ["tgs-resnext50", "tgs-resnet34-hyper"]
    found = [
        (recipe.model.architecture, recipe.model.encoder, recipe.folds.train, recipe.seed)
        for recipe in members_of("siim-fpn-pan-ema")
    ]
    assert found == [
        ("fpn", "resnet50", None, 0),
        ("fpn", "resnet101", None, 0),
        ("fpn", "resnet101", None, 1),
        ("pan", "resnet34", 4, 0),
        ("pan", "resnet50", 4, 0),
        ("emanet", "resnet101", 2, 0),
    ]


def test_the_two_resolutions_and_the_ladder_of_siim():
    small, large = members_of("siim-two-resolutions")
    assert (small.size.resize_hw, large.size.resize_hw) == ((512, 512), (768, 768))
    assert stages_of(small) == STAGES["siim-unetpp-b4"][:3]
    assert stages_of(large) == STAGES["siim-unetpp-b4"]
    assert [round(stage.scale * 512) for stage in small.training.stages] == [256, 512, 512]
    assert small.training.swa.start == 75 + 50 + 10 - 3 + 1  # the last three epochs
    recipe = load_recipe("siim-unetpp-b4")
    sides = [
        canvas_of(recipe.size, [(1024, 1024)], divisor=recipe.model.divisor, scale=stage.scale)
        for stage in recipe.training.stages
    ]
    assert sides == [(256, 256), (512, 512), (512, 512), (768, 768), (768, 768)]
    assert recipe.training.swa.start == 75 + 50 + 10 + 45 + 8
