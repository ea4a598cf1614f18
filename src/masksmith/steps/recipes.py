"""From the words of a call to a recipe or an ensemble; recipes shown and verified."""

import json
from collections.abc import Sequence
from typing import Any

from masksmith.core.errors import InputError
from masksmith.project.folder import Project
from masksmith.recipes.ensemble import is_ensemble, load_ensemble
from masksmith.recipes.recipe import Recipe, load_recipe

Overrides = Sequence[str] | dict[str, Any]
"""Changes of a recipe: texts of the form KEY=VALUE, or dotted keys with their values."""


def dotted(overrides: Overrides, device: str | None = None) -> tuple[str, ...]:
    """Return overrides as texts of the form KEY=VALUE, with ``training.device`` where one is asked for."""
    if isinstance(overrides, dict):
        texts = tuple(f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items())
    else:
        texts = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    return texts if device is None else (*texts, f"training.device={device}")


def load_single(name: str, overrides: tuple[str, ...], *, what: str) -> Recipe:
    """Load a recipe; an ensemble is refused, and the message says what is done with one recipe alone."""
    if is_ensemble(name):
        members = dict.fromkeys(member.recipe for member in load_ensemble(name).members)
        without = [member for member in members if load_recipe(member).pseudo is None]
        named = ", ".join(without or members)
        raise InputError(f"recipe {name}: it is an ensemble, and {what} one recipe; take one of {named}")
    return load_recipe(name, overrides)


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
