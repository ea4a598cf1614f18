"""Small recipes, teachers and ensembles as YAML files, for tests of what several recipes do together."""

import json

from masksmith.core.config import write_yaml
from masksmith.recipes.recipe import load_recipe
from tests.conftest import TINY

SMALL = {key: value for key, value in TINY.items() if key != "folds.train"} | {
    "model.encoder": "tu-test_resnet",
    "model.decoder_channels": [8, 8, 8],
}
THREE = {"count": 3}


def dotted(changes):
    return tuple(f"{key}={json.dumps(value)}" for key, value in changes.items())


def write_recipe(folder, name, **changes):
    """Write a small recipe; return its path."""
    path = folder / f"{name}.yaml"
    path.write_text(load_recipe("auto", (f"name={name}", *dotted(SMALL | changes))).to_yaml())
    return str(path)


def write_pupil(folder, name, teacher, *, data=("pseudo", "both", "labelled"), changes=None, **pseudo):
    """Write a small recipe whose stages are trained on ``data``, with labels of ``teacher``."""
    path = folder / f"{name}.yaml"
    value = load_recipe("auto", (f"name={name}", *dotted(SMALL | (changes or {})))).model_dump(mode="json")
    value["pseudo"] = {"teacher": teacher, "min_confident_frac": 0.0} | pseudo
    for stage, one in zip(value["training"]["stages"], data, strict=True):
        stage["data"] = one
    path.write_text(write_yaml(value))
    return str(path)


def write_ensemble(folder, name, *members, **fields):
    """Write an ensemble of recipes (a path, or a table); return its path."""
    listed = [{"recipe": one} if isinstance(one, str) else one for one in members]
    path = folder / f"{name}.yaml"
    value = {"name": name, "folds": THREE, "tuning": {"resamples": 200}, "members": listed} | fields
    path.write_text(write_yaml(value))
    return str(path)
