"""Small recipes, teachers and ensembles as YAML files, for tests of what several recipes do together."""

import json

import numpy as np

import masksmith as ms
from masksmith.core.config import write_yaml
from masksmith.project.folder import Project
from masksmith.recipes.recipe import load_recipe

THREE = {"count": 3}
SMALL = {"folds.train": None, "size.resize_hw": [48, 48], "training.stages.0.epochs": 3}


def dotted(changes):
    return tuple(f"{key}={json.dumps(value)}" for key, value in changes.items())


def small_recipe(name, changes):
    """The recipe "smoke" of three epochs, on all three folds, with dotted changes."""
    return load_recipe("smoke", (f"name={name}", *dotted(SMALL | changes)))


def write_recipe(folder, name, **changes):
    """Write a small recipe; return its path."""
    path = folder / f"{name}.yaml"
    path.write_text(small_recipe(name, changes).to_yaml())
    return str(path)


def write_pupil(folder, name, teacher, *, data=("pseudo", "both", "labelled"), changes=None, **pseudo):
    """Write a small recipe with a stage of one epoch for each of ``data``, and labels of ``teacher``."""
    path = folder / f"{name}.yaml"
    value = small_recipe(name, changes or {}).model_dump(mode="json")
    value["pseudo"] = {"teacher": teacher, "min_confident_frac": 0.0} | pseudo
    first = value["training"]["stages"][0] | {"epochs": 1}
    later = first | {"optimizer": None, "schedule": None}
    value["training"]["stages"] = [(later if at else first) | {"data": one} for at, one in enumerate(data)]
    path.write_text(write_yaml(value))
    return str(path)


def write_ensemble(folder, name, *members, **fields):
    """Write an ensemble of recipes (a path, or a table); return its path."""
    listed = [{"recipe": one} if isinstance(one, str) else one for one in members]
    path = folder / f"{name}.yaml"
    tuning = load_recipe("smoke").tuning.model_dump(mode="json")
    value = {"name": name, "folds": THREE, "tuning": tuning, "members": listed} | fields
    path.write_text(write_yaml(value))
    return str(path)


def write_probs(project, folder, *, spread, seed):
    """Write probabilities of all images by the true masks, with independent errors; return (oof, test)."""
    rng = np.random.default_rng(seed)
    for place, images in (("oof", project.cache.train_images), ("test", project.cache.test_images)):
        (folder / place).mkdir(parents=True)
        for name in images:
            hw = images.shape(name)
            mask = project.cache.train_masks[name][..., 0] == 1 if place == "oof" else np.zeros(hw)
            probs = np.clip(0.25 + 0.5 * mask + rng.normal(0, spread, hw), 0, 1).astype(np.float32)
            np.save(folder / place / f"{name}.npy", probs)
    return {"oof": folder / "oof", "test": folder / "test"}


def add(project, tmp_path, name, *, spread=0.12, seed=0, **how):
    probs = write_probs(Project.open(project), tmp_path / name, spread=spread, seed=seed)
    ms.add_member(project, name, folds=project / "folds.csv", **probs, **how)
