"""Every bundled recipe trains on real images: two epochs at the small scale, on eight of TGS Salt."""

import csv
import itertools
import zipfile

import cv2
import numpy as np
import pytest
import torch

from masksmith.data.store import Store, StoreWriter
from masksmith.models import build_model
from masksmith.progress import Remaining
from masksmith.recipe import list_recipes, load_recipe
from masksmith.training.config import TrainingConfig
from masksmith.training.machine import make_fabric
from masksmith.training.stages import FoldData
from masksmith.training.trainer import Trainer
from masksmith.verification import scaled

SIDE = 64  # of images that a recipe takes at their true size
BUNDLED = [listing.name for listing in list_recipes()]


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


def data_of(recipe, pairs, folder):
    """The images as the data of a fold, small, with as many equal channels as the recipe's input has."""
    given = recipe.input
    channels = len(given.bands or [0]) + sum(len(values) for values in given.one_hot.values())
    names = [f"salt_{i}" for i in range(len(pairs))]
    hw = recipe.size.resize_hw or recipe.size.pad_hw or (SIDE, SIDE)
    images = StoreWriter(folder / "images.npy", [(name, (*hw, channels)) for name in names], dtype=np.uint8)
    masks = StoreWriter(folder / "masks.npy", [(name, (*hw, 1)) for name in names], dtype=np.uint8)
    for name, (image, mask) in zip(names, pairs, strict=True):
        images.write(name, np.repeat(cv2.resize(image, hw[::-1])[..., None], channels, axis=2))
        masks.write(name, cv2.resize(mask, hw[::-1], interpolation=cv2.INTER_NEAREST)[..., None])
    images.close()
    masks.close()
    scalars = {name: (float(at),) * len(recipe.model.scalars) for at, name in enumerate(names)}
    stores = Store(folder / "images.npy"), Store(folder / "masks.npy")
    return FoldData(
        0, names, *stores, seed=0, size=recipe.size, scalars=scalars if recipe.model.scalars else {}
    )


def two_epochs(training):
    """The first and the last stage, an epoch each; of a single stage two."""
    chosen = training.stages[:1] if len(training.stages) == 1 else [training.stages[0], training.stages[-1]]
    short = {"until_plateau": None, "batch_size": None, "accumulate": None, "data": "labelled"}
    stages = [
        stage.model_copy(
            update=short
            | {
                "epochs": 2 // len(chosen),
                "schedule": stage.schedule and stage.schedule.model_copy(update={"cycles": 1}),
            }
        )
        for stage in chosen
    ]
    calm = {"early_stop": None, "select": "last", "keep": [], "top_k": 0, "swa": None, "accumulate": 1}
    return TrainingConfig(**{**dict(training), **calm, "stages": stages})


@pytest.mark.real
@pytest.mark.parametrize("name", BUNDLED)
def test_two_epochs_on_salt(name, eight, tmp_path):
    recipe = scaled(load_recipe(name), "small")
    data = data_of(recipe, eight, tmp_path)
    training = two_epochs(recipe.training)
    with torch.random.fork_rng():
        model = build_model(recipe.model, in_channels=data.images.channels, seed=0)
        if data.scalars:
            model.set_scalar_statistics(np.array(list(data.scalars.values()), np.float32))
        before = {key: value.clone() for key, value in model.state_dict().items()}
        trainer = Trainer(make_fabric(training), model, training, data)
        for _ in range(2):
            mean, _ = trainer.run_epoch(Remaining(0), None, on_cycle=lambda: None)
            trainer.end_epoch()
            assert np.isfinite(mean)
    moved = [key for key, weight in model.named_parameters() if not torch.equal(weight, before[key])]
    assert any(key.startswith("decoder") for key in moved)
    assert "head.weight" in moved
    if "encoder" not in training.stages[-1].freeze:
        assert any(key.startswith("encoder") for key in moved)
    image = torch.rand(2, data.images.channels, 2 * model.divisor, 2 * model.divisor)
    with torch.no_grad():
        logits = model.eval()(image, *(torch.zeros(2, model.num_scalars),) * model.takes_scalars).mask_logits
    assert torch.isfinite(logits).all()


# what the sources say, by the names of their papers


PUBLISHED = {  # what a recipe must not lose: path -> value
    "tgs-resnet34-hyper": {
        "size.pad_hw": (128, 128),
        "size.border": "edge",
        "model.derived_channels": "depth_ramp",
        "training.batch_size": 32,
        "training.stages.0.optimizer.lr": 0.01,
        "training.stages.0.schedule.final_frac": 0.1,
        "training.stages.3.schedule.cycles": 4,
        "training.stages.3.epochs": 200,
        "folds.deal_by": "z",
    },
    "tgs-resnext50": {
        "size.resize_hw": (192, 192),
        "size.pad_hw": (224, 224),
        "model.decoder_channels": [128, 64, 32, 16, 8],
        "training.batch_size": 24,
        "training.stages.1.optimizer.lr": 5e-5,
        "training.stages.2.epochs": 4 * 80,
    },
    "siim-unetpp-b4": {
        "training.stages.1.batch_size": 4,
        "training.stages.1.accumulate": 8,
        "training.accumulate": 12,
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


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_recipes_keep_the_numbers_of_their_sources(name):
    recipe = load_recipe(name)
    for path, expected in PUBLISHED[name].items():
        assert value_at(recipe, path) == expected, path


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("siim-albunet-resnet34", {"bce": 3, "dice": 1, "focal": 4}),
        ("siim-unet-resnet50", {"bce": 2, "dice": 1, "focal": 2}),
        ("siim-scse-seresnext50", {"bce": 3, "dice": 1, "focal": 4}),
        ("siim-two-heads", {"bce": 2.7, "dice": 0.9, "image_bce": 0.1}),
        ("siim-mask-and-class", {"bce": 1024, "image_bce": 1}),
    ],
)
def test_weights_of_the_losses(name, weights):
    for stage in load_recipe(name).training.stages:
        assert {term.name: term.weight for term in stage.loss} == weights


@pytest.mark.parametrize("name", ["siim-albunet-resnet34", "siim-unet-resnet50", "siim-scse-seresnext50"])
def test_the_positive_share_slides(name):
    shares = [stage.sampler.non_empty_frac for stage in load_recipe(name).training.stages]
    assert shares[0] == (0.8, 0.8)
    assert shares[-3:] == [(0.8, 0.8), (0.6, 0.6), (0.4, 0.4)]


def test_the_ladder_of_siim():
    from masksmith.preprocess import canvas_of

    recipe = load_recipe("siim-unetpp-b4")
    sides = [
        canvas_of(recipe.size, [(1024, 1024)], divisor=recipe.model.divisor, scale=stage.scale)
        for stage in recipe.training.stages
    ]
    assert sides == [(256, 256), (512, 512), (512, 512), (768, 768), (768, 768)]
    epochs = [stage.epochs for stage in recipe.training.stages]
    assert epochs == [75, 50, 10, 45, 19]
    assert recipe.training.swa.start == sum(epochs[:-1]) + 8
