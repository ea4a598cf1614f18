"""A published recipe made small, to see it go the whole way in minutes: ``--scale small``.

Its net is as narrow as in ``verify``, its images and windows have an eighth of their sides, and each stage lasts an
epoch (or one a cycle). Losses, optimizers, schedules, sampling and post-processing stay, and so do the stages.
"""

import json
from typing import Any

from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.recipes.ensemble import AnyRecipe, Ensemble, load_any, parse_ensemble
from masksmith.recipes.recipe import Recipe, load_recipe, load_teachers
from masksmith.training.config import Stage

SCALES = ("small",)
_SHARE = 8  # that sides are divided by
_LEAST_SIDE = 32
_BATCH = 8


def load_trial(name: str, overrides: tuple[str, ...], scale: str) -> AnyRecipe:
    """Load a recipe or an ensemble at a scale; the overrides come after and win.

    Raises:
        InputError: An unknown scale, recipe or override.
    """
    look_up({one: one for one in SCALES}, scale, where="--scale")
    asked = load_any(name)
    if isinstance(asked, Recipe):
        return load_recipe(name, (*trial_overrides(asked), *overrides))
    return parse_ensemble(
        _small_ensemble(asked).to_yaml(), where=f"{name} at --scale {scale}", overrides=overrides
    )


def trial_overrides(recipe: Recipe) -> list[str]:
    """Return the overrides that make a recipe small."""
    from masksmith.recipes.verify import scaled  # with torch

    small, training, prediction = scaled(recipe, "small"), recipe.training, recipe.prediction
    changes: dict[str, Any] = {
        "folds.train": 1,
        "size.resize_hw": small.size.resize_hw or _inside(small.size.pad_hw),
        "size.pad_hw": small.size.pad_hw,
        "size.chain": small.size.model_dump(mode="json")["chain"],
        "model.encoder": small.model.encoder,
        "model.encoder_weights": "none",
        "model.encoder_weights_hash": None,
        "model.decoder_channels": small.model.decoder_channels,
        "training.batch_size": min(training.batch_size, _BATCH),
        "training.crop_hw": _eighth(training.crop_hw),
        "prediction.tile_hw": _eighth(prediction.tile_hw),
        "tuning.resamples": 100,
    }
    for at, stage in enumerate(training.stages):
        changes[f"training.stages.{at}.epochs"] = _cycles(training.stages[: at + 1])
        if stage.batch_size is not None:
            changes[f"training.stages.{at}.batch_size"] = min(stage.batch_size, _BATCH)
    if training.swa is not None:
        changes["training.swa.start"] = 0.0
    if recipe.pseudo is not None:
        changes["pseudo.min_confident_frac"] = 0.0  # a net after an epoch is sure of nothing
        changes["pseudo.quotas"] = None  # its masks may have any coverage
    if recipe.pseudo is not None and recipe.pseudo.teacher is not None:
        teachers = load_teachers(recipe)
        if len(teachers) > 1:
            raise InputError(
                f"--scale: {recipe.name} learns from the ensemble {recipe.pseudo.teacher}, which has no small scale; "
                "name one recipe as pseudo.teacher"
            )
        changes["pseudo.set"] = [*recipe.pseudo.set, *trial_overrides(teachers[0][0])]
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def _eighth(hw: tuple[int, int] | None) -> tuple[int, int] | None:
    return None if hw is None else (max(_LEAST_SIDE, hw[0] // _SHARE), max(_LEAST_SIDE, hw[1] // _SHARE))


def _inside(pad_hw: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the size of an image on a small canvas, with a border as wide in proportion as that of 101 on 128."""
    return None if pad_hw is None else (round(0.79 * pad_hw[0]), round(0.79 * pad_hw[1]))


def _cycles(stages: list[Stage]) -> int:
    """Return the cycles of the schedule that the last of these stages has or continues."""
    schedule = next((one.schedule for one in reversed(stages) if one.schedule is not None), None)
    return max(1, schedule.cycles) if schedule is not None else 1


def _small_ensemble(ensemble: Ensemble) -> Ensemble:
    """Return an ensemble of small recipes; of two that are the same then, the second has a seed of its own."""
    members, seen = [], set()
    for at, member in enumerate(ensemble.members):
        texts = [*member.set, *trial_overrides(load_recipe(member.recipe, tuple(member.set)))]
        recipe = load_recipe(member.recipe, tuple(texts))
        if recipe.hash in seen:
            texts.append(f"seed={recipe.seed + at}")
            recipe = load_recipe(member.recipe, tuple(texts))
        seen.add(recipe.hash)
        members.append(member.model_copy(update={"set": texts}))
    folds = ensemble.folds.model_copy(update={"train": 1})
    return ensemble.model_copy(update={"members": members, "folds": folds})
