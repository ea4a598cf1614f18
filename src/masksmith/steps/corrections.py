"""``training.corrections`` on a project's files: read, pinned in the recipe, kept as masks beside the cache."""

from dataclasses import replace
from pathlib import Path

from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.core.progress import logger
from masksmith.data.store import Store, is_whole
from masksmith.project.folder import Project
from masksmith.recipes.recipe import Recipe
from masksmith.training.corrections import (
    Corrections,
    MendedMasks,
    corrections_hash,
    read_corrections,
    write_mended,
)
from masksmith.training.data import FoldData


def with_corrections(project: Project, recipe: Recipe) -> Recipe:
    """Return a recipe whose corrections, if it names any, can be used and are pinned by their hash.

    Raises:
        InputError: As read_corrections, or the folder has changed since the recipe was resolved.
    """
    if recipe.training.corrections is None:
        return recipe
    corrections = _kept(project, recipe)
    logger.info("training.corrections: %s: %s", recipe.training.corrections, corrections)
    content = recipe.training.corrections_hash or corrections_hash(recipe.training.corrections)
    training = recipe.training.model_copy(update={"corrections_hash": content})
    return recipe.model_copy(update={"training": training})


def corrected(project: Project, recipe: Recipe, data: FoldData) -> FoldData:
    """Return what a fold is trained on after the recipe's corrections; what it is validated on stays as it is.

    Raises:
        InputError: As with_corrections, or no image is left to train on.
    """
    if recipe.training.corrections is None:
        return data
    corrections = _kept(project, recipe)
    ids = [name for name in data.ids if name not in corrections.dropped]
    if not ids:
        raise InputError(
            f"training.corrections: {recipe.training.corrections}: it drops all {len(data.ids)} images that "
            f"{data.name} is trained on; expected some to be left"
        )
    inside = set(ids)
    weights = {name: one for name, one in corrections.weights.items() if name in inside}
    masks = data.masks
    if mended := [name for name in corrections.mended if name in inside]:
        store = Store(_mended_path(project, recipe))
        store.entries = {
            name: store.entries[name] for name in mended
        }  # held-out ones keep the masks of the data
        masks = MendedMasks(masks, store)
    scalars = {name: one for name, one in data.scalars.items() if name not in corrections.dropped}
    return replace(data, ids=ids, masks=masks, taken=weights, scalars=scalars)


def _content(recipe: Recipe) -> str:
    assert recipe.training.corrections is not None, recipe.name
    return recipe.training.corrections_hash or corrections_hash(recipe.training.corrections)


def _mended_path(project: Project, recipe: Recipe) -> Path:
    """Return where the masks are kept: not in the cache, since nothing can make them again."""
    return project.root / "training_corrections" / f"{_content(recipe)[:16]}.npy"


def _kept(project: Project, recipe: Recipe) -> Corrections:
    """Return a recipe's corrections: those kept in the project, or else those of its folder, which are then kept."""
    folder, content = recipe.training.corrections, _content(recipe)
    assert folder is not None, recipe.name
    path = _mended_path(project, recipe)
    said = path.with_suffix(".json")
    if said.exists():
        value = read_json(said)
        if not value["mended"] or is_whole(path):
            names = frozenset(value["dropped"])
            return Corrections(Path(folder), names, value["weights"], tuple(value["mended"]))
    if corrections_hash(folder) != content:
        raise InputError(
            f"training.corrections: {folder}: it has changed since the run began; bring it back, or set "
            "training.corrections_hash=null for a new run"
        )
    masks = project.cache.train_masks
    found = read_corrections(folder, masks, project.target)
    if found.mended:
        write_mended(path, found, masks, project.target)
    plain = {"dropped": sorted(found.dropped), "weights": dict(found.weights), "mended": list(found.mended)}
    write_json(said, plain)
    return found
