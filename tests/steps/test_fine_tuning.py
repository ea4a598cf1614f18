"""A bundle's net is trained on, on other images."""

from dataclasses import replace

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.store import Store
from masksmith.deploy.bundle import Bundle
from masksmith.deploy.segmenter import Segmenter
from masksmith.project.folder import Project
from masksmith.steps.fine_tuning import recipe_from_model


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.msk"
    ms.bundle(trained, path)
    return path


def test_the_first_step_starts_from_the_weights_of_the_bundle(model, tmp_path):
    ms.example(tmp_path / "new", train=20, test=4)
    still = {"training.stages.0.epochs": 1, "training.stages.0.optimizer.lr": 1e-12, "folds.train": 1}
    ms.compete(tmp_path / "new/data", out=tmp_path / "p", from_model=model, overrides=still)
    project = Project.open(tmp_path / "p")
    found = Store(next((tmp_path / "p/runs").glob("from-model-*/oof/fold_0.npy")))
    names = list(project.folds.inside(0))
    before = Segmenter(model).predict(project.cache.train_images, names)
    for name in names:
        apart = np.abs(found[name].astype(int) - before[name].astype(int)) / 65535
        assert apart.mean() < 0.02  # the statistics of batch normalisation went one epoch on
    recipe = project.run().recipe
    assert recipe.training.start_run == next((tmp_path / "p/runs").glob("model-*")).name


def test_a_budget_trains_a_model_on(model, tmp_path):
    ms.example(tmp_path / "new", train=20, test=4)
    result = ms.compete(tmp_path / "new/data", out=tmp_path / "p", from_model=model, budget="25s")
    assert result.tuning is not None
    assert "from-model" in result.tuning["run"]


def test_other_images_masks_and_recipes_are_refused(model, tmp_path):
    ms.example(tmp_path / "classes", train=12, test=2, task="multiclass")
    with pytest.raises(InputError, match="it was trained on images of 1 bands of uint8, these have 3"):
        ms.compete(tmp_path / "classes/data", out=tmp_path / "p", from_model=model)
    with pytest.raises(InputError, match="the model has a recipe of its own; leave --recipe out"):
        ms.compete(tmp_path / "classes/data", out=tmp_path / "p", from_model=model, recipe="smoke")
    with pytest.raises(InputError, match="no such file; expected a model"):
        ms.compete(tmp_path / "classes/data", out=tmp_path / "p", from_model=tmp_path / "absent.msk")


def test_a_model_of_other_classes_or_of_several_nets_is_refused(trained, model):
    project = Project.open(trained)
    other = Bundle(model)
    other.facts = replace(other.facts, target=other.facts.target | {"classes": ["salt"]})
    with pytest.raises(
        InputError, match=r"it segments binary \(salt\), these masks are binary \(foreground\)"
    ):
        recipe_from_model(project, other)
    mixed = Bundle(model)
    first = mixed.facts.members[0]
    recipe = first.recipe | {"model": first.recipe["model"] | {"dropout": 0.4}}
    mixed.facts = replace(mixed.facts, members=[first, replace(first, recipe=recipe)])
    with pytest.raises(InputError, match="its members are of several nets"):
        recipe_from_model(project, mixed)
