"""From the words of a call to a recipe or an ensemble; recipes shown and verified."""

import json
from collections.abc import Sequence
from typing import Any

from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.project.folder import Project
from masksmith.recipes.ensemble import AnyRecipe, is_ensemble, load_any, load_ensemble
from masksmith.recipes.recipe import Recipe, load_recipe, parse_recipe
from masksmith.recipes.sources import AUTO_OF, SMOKE_OF

Overrides = Sequence[str] | dict[str, Any]
"""Changes of a recipe: texts of the form KEY=VALUE, or dotted keys with their values."""


def dotted(overrides: Overrides, device: str | None = None, metric: str | None = None) -> tuple[str, ...]:
    """Return overrides as texts of the form KEY=VALUE, with ``training.device`` and ``metric`` where asked for."""
    if isinstance(overrides, dict):
        texts = tuple(f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items())
    else:
        texts = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    extra = {"training.device": device, "metric": metric}
    return (*texts, *(f"{key}={value}" for key, value in extra.items() if value is not None))


def load_single(name: str, overrides: tuple[str, ...], *, what: str) -> Recipe:
    """Load a recipe; an ensemble is refused, and the message says what is done with one recipe alone."""
    if is_ensemble(name):
        members = dict.fromkeys(member.recipe for member in load_ensemble(name).members)
        without = [member for member in members if load_recipe(member).pseudo is None]
        named = ", ".join(without or members)
        raise InputError(f"recipe {name}: it is an ensemble, and {what} one recipe; take one of {named}")
    return load_recipe(name, overrides)


def load_asked(name: str, overrides: tuple[str, ...], *, scale: str | None) -> AnyRecipe:
    """Load a recipe or an ensemble, at a scale where one is asked for.

    Raises:
        InputError: An unknown recipe, override or scale, or a scale of ``auto``.
    """
    if scale is None:
        return load_any(name, overrides)
    if name == "auto":
        raise InputError(
            f"--scale {scale}: auto chooses its recipe by the data; name one (`masksmith recipes` lists them), or take "
            "the recipe smoke, which is small as it is"
        )
    from masksmith.recipes.trial import load_trial

    return load_trial(name, overrides, scale)


def for_data(project: Project, asked: AnyRecipe, name: str, overrides: tuple[str, ...]) -> AnyRecipe:
    """Return the recipe that ``auto`` or ``smoke`` means for a project's data: that of its task.

    ``auto`` also takes a metric of the data. Any other recipe is returned as it is, if it goes with the task.

    Args:
        project: Checked.
        asked: What ``name`` and ``overrides`` were loaded as.
        name: As the user gave it.
        overrides: Of the user; they win.

    Raises:
        InputError: A metric that cannot drive the task, or pseudo-labels for other masks than binary ones.
    """
    target = project.target
    if name in ("auto", "smoke"):
        asked = _fitted(project, asked, name, overrides)
    project.metric(asked)
    if isinstance(asked, Recipe) and asked.pseudo is not None and target.task != "binary":
        raise InputError(
            f"pseudo: {asked.name} learns from pseudo-labels, which are made of binary masks, and the masks are "
            f"{target.task}; take a recipe without pseudo, such as {asked.pseudo.teacher}"
        )
    return asked


def _fitted(project: Project, asked: AnyRecipe, name: str, overrides: tuple[str, ...]) -> AnyRecipe:
    task, keys = project.target.task, {override.partition("=")[0] for override in overrides}
    chosen, why = list[str](), list[str]()
    if name == "smoke" and task in SMOKE_OF:
        chosen += SMOKE_OF[task]
        why.append(f"{', '.join(chosen)}: the masks are {task}")
    if name == "auto" and AUTO_OF[task] != "auto":
        why.append(f"recipe {AUTO_OF[task]}: the masks are {task}")
    if name == "auto" and "metric" not in keys and task == "binary":
        metric, reason = _metric_of(project)
        if metric != asked.metric:
            chosen.append(f"metric={metric}")
            why.append(f"metric {metric}: {reason}")
    if not keys & {"folds", "folds.count", "folds.train"} and any(
        one.held_out for one in project.catalog.train
    ):
        chosen += ["folds.count=2", "folds.train=1"]
        why.append("one fold: the data have a validation set of their own")
    for line in why:
        logger.info("%s: %s", name, line)
    if not why:
        return asked
    if name == "smoke":  # as it was loaded, at its scale
        return parse_recipe(asked.to_yaml(), where="recipe smoke", overrides=(*chosen, *overrides))
    return load_recipe(AUTO_OF[task], (*chosen, *overrides))


def single_for_data(project: Project, asked: Recipe, name: str, overrides: tuple[str, ...]) -> Recipe:
    """Return for_data of a single recipe."""
    found = for_data(project, asked, name, overrides)
    assert isinstance(found, Recipe), found.name
    return found


def _metric_of(project: Project) -> tuple[str, str]:
    """Return the metric of a binary data set: that of the contest whose form its submission has, else Dice."""
    form = project.catalog.submission
    if form.is_assumed:
        return "dice_per_image", "the data name none; --metric sets another"
    metric = CONTEST_METRICS.get(form.dialect, "dice_per_image")
    if metric == "tgs_map" and (form.id_column, form.rle_column) != ("id", "rle_mask"):
        return "dice_per_image", f"the submission is not that of TGS Salt: {form.id_column},{form.rle_column}"
    return metric, f"that of the contest with run-lengths as {form.dialect}"


CONTEST_METRICS = {
    "tgs": "tgs_map",
    "siim": "dice_per_image",
    "airbus": "f_beta_objects",
    "severstal": "dice_per_image",
    "dsb": "dsb_map",
}
"""Dialect of the run-lengths -> metric of the contest that it is named after."""


def load_to_compete_in_budget(name: str, pinned: tuple[str, ...]) -> Recipe:
    """Load a recipe that is trained within a budget.

    Raises:
        InputError: It is an ensemble, or asks for a refit or pseudo-labels, whose trainings a budget does not plan.
    """
    asked = load_single(name, pinned, what="a budget plans")
    if asked.folds.refit:
        raise InputError(
            "folds.refit: true, with a budget that itself decides what is trained; leave it false, or train without "
            "--budget"
        )
    refuse_pseudo_labels(asked)
    return asked


def refuse_pseudo_labels(asked: Recipe) -> None:
    """Refuse a recipe with pseudo-labels, whose two trainings a budget does not plan."""
    if asked.pseudo is not None:
        raise InputError(
            f"pseudo: {asked.name} learns from {asked.pseudo.teacher}, and a budget does not plan that training; "
            f"train without --budget, or give the budget to the recipe {asked.pseudo.teacher}"
        )


def last_recipe(project: Project) -> str:
    """Return the file of the recipe that was worked on last, or the default's name."""
    try:
        return str(project.run().path / "recipe.yaml")
    except InputError:
        return "auto"
