"""``compete NEW --from model.msk``: a bundle's weights are a run of the new project, from which its folds start."""

from pathlib import Path

import numpy as np

from masksmith.core.errors import InputError
from masksmith.core.files import write_text
from masksmith.core.progress import logger
from masksmith.deploy.bundle import Bundle, MemberFacts
from masksmith.folds.config import FoldsConfig
from masksmith.planning.lengths import cycle_of
from masksmith.planning.rules import load_rules
from masksmith.project.folder import Project
from masksmith.recipes.recipe import Recipe
from masksmith.training.checkpoint import save_tensors

EPOCHS_FRAC = 0.5
"""Epochs of the fine-tuning, as a share of those that the model was trained for."""


def recipe_from_model(project: Project, bundle: Bundle) -> Path:
    """Take a bundle's weights into the project, and write the recipe that trains them on: one cosine cycle, lower rate.

    The images are scaled, framed and normalised as the model knows them. Fold k starts from the bundle's member k, in
    turn. Its score says how the result does on the new images that were held out; where some of them were among the
    model's own training images, it is too good.

    Returns:
        The recipe, ``from-model.yaml`` in the project.

    Raises:
        InputError: The model was trained on other bands, another type of images, or another task or classes.
    """
    _refuse_other(project, bundle)
    old = bundle.recipes[0]
    if any(recipe.model != old.model for recipe in bundle.recipes):
        raise InputError(
            f"{bundle.path}: its members are of several nets; make a bundle of one: `masksmith bundle P --single`"
        )
    name = f"model-{bundle.checksum[:8]}"
    recipe = _settled(old, bundle.facts.members[0]).model_copy(update={"name": name, "pseudo": None})
    count = max(recipe.folds.count, 2)
    for fold in range(count):
        member = bundle.facts.members[fold % len(bundle.facts.members)]
        weights, checksum = list(member.weights.items())[-1]  # of snapshots the last
        run = project.import_run(name, recipe)
        save_tensors(
            run.final(fold), bundle.tensors(weights, checksum), {"epoch": 0, "from": bundle.facts.name}
        )
    epochs = max(1, round(EPOCHS_FRAC * sum(stage.epochs for stage in old.training.stages)))
    tuned = cycle_of(recipe, run=name, epochs=epochs, rule=load_rules().units)
    if tuned.folds.group_by is not None or tuned.folds.kind != FoldsConfig().kind:
        tuned = tuned.model_copy(update={"folds": FoldsConfig(count=count, train=tuned.folds.train)})
    path = project.root / "from-model.yaml"
    write_text(path, tuned.model_copy(update={"name": "from-model"}).to_yaml())
    logger.info(
        "from %s: %d epochs on the new images, each fold from its trained weights", bundle.path, epochs
    )
    return path


def _settled(recipe: Recipe, member: MemberFacts) -> Recipe:
    """Return the recipe with the limits of the model's own training images, where the scaling measured them."""
    if not member.scaled or member.low is None or recipe.input.scaling not in ("min_max", "standard"):
        return recipe
    fixed = {"scaling": "fixed", "low": member.low, "high": member.high}
    return recipe.model_copy(update={"input": recipe.input.model_copy(update=fixed)})


def _refuse_other(project: Project, bundle: Bundle) -> None:
    cache, facts = project.cache, bundle.facts
    if (cache.channels, cache.train_images.dtype) != (facts.channels, np.dtype(facts.dtype)):
        raise InputError(
            f"{bundle.path}: it was trained on images of {facts.channels} bands of {facts.dtype}, these have "
            f"{cache.channels} of {cache.train_images.dtype}; convert the images, or leave --from out and take what "
            f"fits: --set training.start_from={bundle.path} with a recipe of the same encoder"
        )
    mine, theirs = project.target, bundle.target
    if (mine.task, mine.classes) != (theirs.task, theirs.classes):
        raise InputError(
            f"{bundle.path}: it segments {theirs.task} ({', '.join(theirs.classes)}), these masks are {mine.task} "
            f"({', '.join(mine.classes)}); expected the same, or leave --from out and take what fits: --set "
            f"training.start_from={bundle.path} with a recipe of the same encoder"
        )
