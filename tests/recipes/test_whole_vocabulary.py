"""Options end to end: what a recipe says reaches model, training and prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import masksmith as ms
from masksmith.augment import CallableAugment
from masksmith.core.errors import InputError
from masksmith.models.segmentation import build_model
from masksmith.prediction.combine import build_combine
from masksmith.prediction.predict import predict_probs
from masksmith.prediction.runtimes import torch_runtime
from masksmith.prediction.store import MAX_CODE
from masksmith.project.folder import Project
from masksmith.project.members import read_members
from masksmith.recipes.recipe import load_recipe, parse_recipe
from masksmith.steps.predict import weights_of
from masksmith.steps.train import build, load, scalars_of
from masksmith.training.machine import make_fabric

pytestmark = pytest.mark.slow

STAGE = {
    "epochs": 2,
    "loss": [
        {"name": "bce", "weight": 2.7},
        {"name": "dice", "weight": 0.9},
        {"name": "image_bce", "weight": 0.1},
    ],
    "optimizer": {"name": "rmsprop", "lr": 1e-4, "weight_decay": 0.0},
    "schedule": {"name": "cosine_restarts", "cycles": 2, "warmup_frac": 0.0},
    "sampler": {"name": "non_empty", "non_empty_frac": [0.8, 0.4]},
    "accumulate": 2,
    "batch_size": 4,
}
RICH = {
    "size.resize_hw": [30, 30],
    "size.pad_hw": [32, 32],
    "size.border": "edge",
    "model.architecture": "house_unet",
    "model.encoder": "resnet18",
    "model.attention": "scse",
    "model.center": "fpa",
    "model.hypercolumns": True,
    "model.deep_supervision": True,
    "model.image_head": "gem",
    "model.scalars": ["z"],
    "model.norm": "group",
    "model.activation": "elu",
    "model.stem": "conv3x3_stride1",
    "training.threads": 1,
    "training.precision": "32-true",
    "training.geometry": "heavy",
    "training.intensity": "light",
    "training.mixing.cutmix.probability": 0.5,
    "training.mixing.mixup.probability": 0.5,
    "training.evaluate_every": 1,
    "training.top_k": 2,
    "training.stages": [STAGE],
    "prediction.weights": "snapshots",
    "prediction.snapshot_weights": [9, 1],
    "prediction.image_head": "multiply",
}


@pytest.fixture(scope="module")
def rich(example, tmp_path_factory):
    """A project whose recipe uses the options that the default leaves out."""
    out = tmp_path_factory.mktemp("rich") / "project"
    result = ms.compete(example / "data", out=out, recipe="smoke", overrides=RICH)
    return Project.open(out), result


def test_the_resolved_recipe_spells_out_every_value(rich):
    project, result = rich
    recipe = project.run().recipe
    assert recipe.training.geometry.elastic.probability == 0.2  # the preset's name is gone
    assert recipe.model.scalars == ["z"]
    assert result.submission is not None


def test_snapshots_predict_together(rich):
    project, _ = rich
    member = read_members(project, None)[0]
    assert [path.name for path in weights_of(member)] == ["snapshot_1.safetensors", "snapshot_2.safetensors"]
    run = member.run
    fabric, name = make_fabric(run.recipe.training), project.folds.inside(0)[0]
    runtimes = []
    for path in weights_of(member):
        model = build(project, run, 0, load_weights=False)
        load(model, path)
        runtimes.append(torch_runtime(fabric, model.eval(), build_combine(run.recipe.prediction)))
    each = [
        dict(
            predict_probs(
                fabric,
                model,
                project.cache.train_images,
                [name],
                tta=run.recipe.prediction.tta,
                batch_size=4,
                size=run.recipe.size,
                runtime=runtime,
                scalars=scalars_of(project, run.recipe),
            )
        )[name]
        for runtime in runtimes
    ]
    flat = np.load(run.oof(0), mmap_mode="r")
    stored = flat[: each[0].size].reshape(each[0].shape) / MAX_CODE
    assert project.folds.inside(0)[0] == name
    np.testing.assert_allclose(stored, np.average(each, axis=0, weights=[9, 1]), atol=2e-3)
    assert np.abs(stored - each[0]).max() < np.abs(stored - each[1]).max()
    assert np.abs(each[0] - each[1]).max() > 1e-4  # two snapshots, not one twice


def test_scalars_are_standardised_by_the_training_images(rich):
    project, _ = rich
    run = project.run()
    model = build(project, run, 0, load_weights=False)
    load(model, run.final(0))
    seen = scalars_of(project, run.recipe)
    ids = [name for name in project.folds.outside(0) if name not in project.blank_train]
    values = np.array([seen[name] for name in ids])
    buffers = {name: value for name, value in model.named_buffers() if "scalar" in name}
    mean = next(value for name, value in buffers.items() if name.endswith("mean"))
    std = next(value for name, value in buffers.items() if name.endswith("std"))
    np.testing.assert_allclose(mean.flatten(), values.mean(0), rtol=1e-4)
    np.testing.assert_allclose(std.flatten(), values.std(0), rtol=1e-3)


def test_top_k_can_predict_in_their_place(rich):
    project, _ = rich
    run = project.run()
    before = json.loads((project.root / "tuning.json").read_text())["scores"]["plain"]
    recipe = run.recipe.model_copy(
        update={
            "prediction": run.recipe.prediction.model_copy(
                update={"weights": "top_k", "snapshot_weights": None}
            )
        }
    )
    project.set_free_parts(run, recipe)
    ms.predict(project.root)
    after = ms.tune(project.root)["scores"]["plain"]
    assert len(weights_of(read_members(project, None)[0])) == 2
    assert np.isfinite([before, after]).all()
    project.set_free_parts(project.run(), run.recipe)


def test_weights_that_a_training_did_not_keep(project):
    opened = Project.open(project)
    run = opened.run()
    recipe = run.recipe.model_copy(
        update={"prediction": run.recipe.prediction.model_copy(update={"weights": "top_k"})}
    )
    opened.set_free_parts(run, recipe)
    with pytest.raises(InputError, match=r"prediction\.weights: 'top_k' .* kept none; set training\.top_k"):
        ms.predict(project)


def test_impossible_values_are_refused_before_training(project):
    for changes, message in (
        ({"model.scalars": ["depth"]}, r"model\.scalars: no column 'depth'; .*Known: z"),
        (
            {"prediction.image_head": "multiply"},
            r"prediction\.image_head: 'multiply' needs a head that the model does not have",
        ),
        (
            {"training.stages.0.loss": [{"name": "image_bce", "weight": 1.0}]},
            r"training\.stages\[0\]\.loss\[0\]\.name: 'image_bce' needs an image head",
        ),
        ({"size.pad_hw": [100, 100]}, r"size\.pad_hw: 100x100 is no multiple of the model's divisor 8"),
        (
            {"training.intensity.hsv.probability": 0.5},
            r"training\.intensity\.hsv\.probability: 0\.5 needs images of 3 channels, these have 1",
        ),
        (
            {"metric": "iou_by_group"},
            r"metric: 'iou_by_group' is a mean over groups, and folds\.group_by is null",
        ),
        (
            {"model.image_head": "avg", "prediction.image_head": "gate"},
            r"prediction\.image_head: 'gate', but no stage's loss trains the image head; add one of image_bce",
        ),
        (
            {"training.aux_weight": 0.9},
            r"training\.aux_weight: 0\.9 weighs nothing without model\.deep_supervision",
        ),
        (
            {"prediction.weights": "snapshots"},
            r"prediction\.weights: 'snapshots', but no stage .* cosine_restarts",
        ),
        (
            {"prediction.snapshot_weights": [1, 3]},
            r"snapshot_weights: \[1\.0, 3\.0\] have no effect with weights 'final'",
        ),
        (
            {
                "training.stages.0.schedule": {"name": "cosine_restarts", "cycles": 2, "warmup_frac": 0.0},
                "training.stages.0.epochs": 2,
                "prediction.weights": "snapshots",
                "prediction.snapshot_weights": [1, 1, 3],
            },
            r"prediction\.snapshot_weights: 3 numbers .* but the training takes 2 snapshots",
        ),
        ({"prediction.weights": "top_k"}, r"prediction\.weights: 'top_k', but training\.top_k is 0"),
        (
            {"training.stages.0.loss": [{"name": "tversky", "params": {"alpha": 0.0, "beta": 0.0}}]},
            r"training\.stages\[0\]\.loss\[0\]\.params: alpha 0 and beta 0: errors would cost nothing",
        ),
        ({"model.encoder": "resnet81"}, r"model\.encoder: 'resnet81' is unknown; did you mean"),
        (
            {"model.scalars": ["z"], "prediction.runtime": "openvino"},
            r"prediction\.runtime: 'openvino' has no form .* scalars \(z\)",
        ),
    ):
        with pytest.raises(InputError, match=message):
            ms.train(project, recipe="smoke", overrides=changes)


def test_an_image_without_its_number(project):
    data = json.loads((project / "data.json").read_text())
    del data["train"][3]["values"]["z"]
    (project / "data.json").write_text(json.dumps(data))
    recipe = load_recipe("auto", ('model.scalars=["z"]',))
    message = rf"the training image '{data['train'][3]['id']}' has no 'z' in the side tables"
    with pytest.raises(InputError, match=message):
        scalars_of(Project.open(project), recipe)


def test_a_callable_of_your_own(project):
    seen = []

    def darken(image, mask):
        seen.append(image.shape)
        return {"image": image // 2, "mask": mask}

    mine = CallableAugment("darken", darken)
    short, named = {"training.stages.0.epochs": 1}, {"training.augment.custom": "darken"}
    with pytest.raises(InputError, match=r"training\.augment\.custom: the recipe names 'darken', .* is None"):
        ms.train(project, recipe="smoke", overrides=short | named)
    run = ms.train(project, recipe="smoke", overrides=short | named, augment=mine)
    assert seen
    assert run.recipe.training.augment.custom == "darken"
    with pytest.raises(InputError, match=r"the recipe names None, .* is 'darken'"):
        ms.train(project, recipe="smoke", overrides=short, augment=mine)


def test_the_recipe_of_the_readme_can_be_read_and_built():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    text = readme.partition("```yaml\n")[2].partition("```")[0]
    recipe = parse_recipe(f"name: readme\n{text}", where="README.md")
    assert recipe.training.stages[1].schedule.cycles == 4
    small = recipe.model.model_copy(update={"encoder": "resnet18", "encoder_weights": "none"})
    output = build_model(small, in_channels=1, seed=0)(torch.rand(2, 1, 32, 32))
    assert output.image_logits.shape == (2, 1)
