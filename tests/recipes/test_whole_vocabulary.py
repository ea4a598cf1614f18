"""Options of the vocabulary through the whole way: what a recipe says reaches model, training and prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import masksmith as ms
from masksmith.core.config import apply_overrides
from masksmith.core.errors import InputError
from masksmith.prediction.store import MAX_CODE
from masksmith.project.folder import Project
from masksmith.recipes.recipe import load_recipe, parse_recipe
from masksmith.steps.predict import weights_of
from masksmith.steps.train import build, load, scalars_of

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
    "model.encoder": "resnet18",
    "model.decoder_channels": [32, 16, 8],
    "size.resize_hw": [60, 60],
    "size.pad_hw": [64, 64],
    "size.border": "edge",
    "model.architecture": "house_unet",
    "model.attention": "scse",
    "model.center": "fpa",
    "model.hypercolumns": True,
    "model.deep_supervision": True,
    "model.image_head": "gem",
    "model.scalars": ["z"],
    "model.norm": "group",
    "model.activation": "elu",
    "model.stem": "conv3x3_stride1",
    "training.geometry": "heavy",
    "training.intensity": "light",
    "training.mixing.cutmix.probability": 0.5,
    "training.mixing.mixup.probability": 0.5,
    "training.evaluate_every": 1,
    "training.top_k": 2,
    "training.stages": [STAGE],
    "prediction.weights": "snapshots",
    "prediction.image_head": "multiply",
}


@pytest.fixture(scope="module")
def rich(example, tmp_path_factory):
    """A project whose recipe uses what the default leaves out."""
    out = tmp_path_factory.mktemp("rich") / "project"
    result = ms.compete(example / "data", out=out, recipe="smoke", overrides=RICH)
    return Project.open(out), result


@pytest.mark.slow
def test_the_recipe_that_was_resolved_shows_every_value(rich):
    project, result = rich
    recipe = project.run().recipe
    assert recipe.training.geometry.elastic.probability == 0.2  # spelt out, the preset's name is gone
    assert recipe.model.scalars == ["z"]
    assert result.submission is not None


@pytest.mark.slow
def test_snapshots_predict_together(rich):
    project, _ = rich
    member = ms.pipeline.read_members(project, None)[0]
    assert [path.name for path in weights_of(member)] == ["snapshot_1.safetensors", "snapshot_2.safetensors"]
    from masksmith.prediction.combine import build_combine
    from masksmith.prediction.predict import predict_probs
    from masksmith.prediction.runtimes import torch_runtime
    from masksmith.training.machine import make_fabric

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
    np.testing.assert_allclose(stored, np.mean(each, axis=0), atol=2e-3)
    assert np.abs(each[0] - each[1]).max() > 1e-4  # two snapshots, not one twice


@pytest.mark.slow
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


@pytest.mark.slow
def test_top_k_can_predict_in_their_place(rich):
    project, _ = rich
    run = project.run()
    before = json.loads((project.root / "tuning.json").read_text())["scores"]["plain"]
    recipe = run.recipe.model_copy(
        update={"prediction": run.recipe.prediction.model_copy(update={"weights": "top_k"})}
    )
    project.set_free_parts(run, recipe)
    ms.predict(project.root)
    after = ms.tune(project.root)["scores"]["plain"]
    assert len(weights_of(ms.pipeline.read_members(project, None)[0])) == 2
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
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
        ({"prediction.weights": "top_k"}, r"prediction\.weights: 'top_k', but training\.top_k is 0"),
        (
            {"training.stages.0.loss": [{"name": "tversky", "params": {"alpha": 0.0, "beta": 0.0}}]},
            r"training\.stages\[0\]\.loss\[0\]\.params: alpha 0 and beta 0: errors would cost nothing",
        ),
        ({"model.encoder": "resnet81"}, r"model\.encoder: 'resnet81' is unknown; did you mean"),
    ],
)
def test_what_cannot_be_is_refused_before_training(project, changes, said):
    with pytest.raises(InputError, match=said):
        ms.train(project, recipe="smoke", overrides=changes)


def test_scalars_with_openvino_are_refused(project):
    changes = {"model.scalars": ["z"], "prediction.runtime": "openvino"}
    with pytest.raises(InputError, match=r"prediction\.runtime: 'openvino' has no form .* scalars \(z\)"):
        ms.train(project, recipe="smoke", overrides=changes)


def test_an_image_without_its_number(project):
    data = json.loads((project / "data.json").read_text())
    del data["train"][3]["values"]["z"]
    (project / "data.json").write_text(json.dumps(data))
    opened = Project.open(project)
    recipe = load_recipe("auto", ('model.scalars=["z"]',))
    with pytest.raises(
        InputError, match=rf"the image '{data['train'][3]['id']}' has no 'z' in the side tables"
    ):
        scalars_of(opened, recipe)


def test_a_callable_of_your_own(project):
    from masksmith.augment import CallableAugment

    seen = []

    def darken(image, mask):
        seen.append(image.shape)
        return {"image": image // 2, "mask": mask}

    named = {"training.augment.custom": "darken"}
    with pytest.raises(InputError, match=r"training\.augment\.custom: the recipe names 'darken', .* is None"):
        ms.train(project, recipe="smoke", overrides=named)
    run = ms.train(project, recipe="smoke", overrides=named, augment=CallableAugment("darken", darken))
    assert seen
    assert run.recipe.training.augment.custom == "darken"
    with pytest.raises(InputError, match=r"the recipe names None, .* is 'darken'"):
        ms.train(project, recipe="smoke", augment=CallableAugment("darken", darken))


def test_the_recipe_of_the_readme_can_be_read_and_built():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    text = readme.partition("```yaml\n")[2].partition("```")[0]
    recipe = parse_recipe(f"name: readme\n{text}", where="README.md")
    assert recipe.training.stages[1].schedule.cycles == 4
    from masksmith.models.segmentation import build_model

    small = recipe.model.model_copy(update={"encoder": "resnet18", "encoder_weights": "none"})
    output = build_model(small, in_channels=1, seed=0)(torch.rand(2, 1, 32, 32))
    assert output.image_logits.shape == (2, 1)


def test_overrides_reach_lists_and_tables():
    recipe = load_recipe().model_dump(mode="json")
    changed = apply_overrides(recipe, ("training.stages.0.sampler={name: class_aware}",))
    assert changed["training"]["stages"][0]["sampler"] == {"name": "class_aware"}
