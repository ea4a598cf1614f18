"""Ensembles: recipes whose probabilities are averaged, as one YAML file. Read without torch.

Members share the folds and the metric, so that their scores can be compared; all else may differ. Each member predicts
an image at its original size, so input sizes, channels and architectures mix.
"""

import json
from collections.abc import Iterable
from typing import Any

from pydantic import Field

from masksmith.core.config import Config, apply_overrides, validate, write_yaml
from masksmith.core.errors import InputError
from masksmith.folds.config import FoldsConfig
from masksmith.postprocess.config import TuningConfig
from masksmith.recipes.recipe import (
    Recipe,
    first_difference,
    load_recipe,
    load_teachers,
    reaches_teacher,
)
from masksmith.recipes.sources import NAME, parse_table_of, recipe_source

_OWN = {"name", "members", "tuning"}
_SHARED = {"seed", "metric", "folds"}  # of the ensemble, and of each of its members


class EnsembleMember(Config):
    """One recipe of an ensemble."""

    recipe: str
    """A bundled recipe or a YAML file."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of its probabilities; the weights of the trained members are normalised to sum to 1. The trained folds of
    a recipe share its weight."""
    set: list[str] = Field(default_factory=list)
    """Overrides of the recipe, each KEY=VALUE; ``name=…`` gives a variant a name of its own."""


class Ensemble(Config):
    """Recipes whose predictions are averaged."""

    name: str = Field(pattern=NAME)
    """Name of the ensemble."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap; each member trains with the seed of its own recipe."""
    metric: str = "tgs_map"
    """As in a recipe; the members must have the same."""
    folds: FoldsConfig = FoldsConfig()
    """The folds of all members. Only ``train`` may differ, if it is null here: each member then trains as many folds as
    its own recipe says."""
    tuning: TuningConfig = TuningConfig()
    """The search on the averaged probabilities; the ``tuning`` of the members' recipes is not used."""
    members: list[EnsembleMember] = Field(min_length=2)
    """The recipes."""

    def to_yaml(self) -> str:
        """Return the ensemble as YAML, every field named."""
        return write_yaml(self.model_dump(mode="json"))


AnyRecipe = Recipe | Ensemble
"""Both have a metric, folds, tuning and a seed."""


def parse_ensemble(
    text: str, *, where: str, overrides: tuple[str, ...] = (), students: tuple[str, ...] = ()
) -> Ensemble:
    """Parse and check an ensemble and its members, then apply dotted overrides.

    Overrides of name, members and tuning change the ensemble; those of seed, metric and folds the ensemble and every
    member; all others every member. A teacher that is also a member gets that member's overrides, so that it is
    trained once.

    Raises:
        InputError: Unknown or missing key, wrong type, a member that cannot be read, or other folds or another
            metric of one.
    """
    ensemble = validate(Ensemble, parse_table_of(text, where=where), where=where)
    own = [override for override in overrides if _head(override) in _OWN | _SHARED]
    if own:
        changed: dict[str, Any] = apply_overrides(ensemble.model_dump(mode="json"), own)
        ensemble = validate(Ensemble, changed, where=f"{where} with --set {' --set '.join(own)}")
    rest = [override for override in overrides if _head(override) not in _OWN]
    if rest:
        changes = _changed(ensemble, rest, where=where, students=students)
        ensemble = ensemble.model_copy(update={"members": changes})
    member_recipes(ensemble, where=where, students=students)
    return ensemble


def _changed(
    ensemble: Ensemble, overrides: list[str], *, where: str, students: tuple[str, ...]
) -> list[EnsembleMember]:
    """Return the members with the overrides, which also apply to teachers that are members themselves."""
    shared = [override for override in overrides if reaches_teacher(override)]
    before = [
        _load_member(one, shared, at=f"{where}: members[{i}]", students=students)
        for i, one in enumerate(ensemble.members)
    ]
    trained = {recipe.hash for recipe in before}

    def with_teacher(recipe: Recipe) -> list[str]:
        if recipe.pseudo is None or recipe.pseudo.teacher is None:
            return overrides
        teachers = [teacher for teacher, _ in load_teachers(recipe)]
        if any(teacher.hash not in trained for teacher in teachers):
            return overrides
        its = with_teacher(teachers[0]) if len(teachers) == 1 else overrides
        return [f"pseudo.set={json.dumps([*recipe.pseudo.set, *its])}", *overrides]

    return [
        one.model_copy(update={"set": [*one.set, *with_teacher(recipe)]})
        for one, recipe in zip(ensemble.members, before, strict=True)
    ]


def _load_member(
    member: EnsembleMember, overrides: Iterable[str] = (), *, at: str, students: tuple[str, ...] = ()
) -> Recipe:
    try:
        return load_recipe(member.recipe, (*member.set, *overrides), students=students)
    except InputError as error:
        raise InputError(f"{at}: {error}") from error


def _head(override: str) -> str:
    return override.partition("=")[0].partition(".")[0]


def member_recipes(
    ensemble: Ensemble, *, where: str | None = None, students: tuple[str, ...] = ()
) -> list[Recipe]:
    """Return the recipes of the members, in their order; ``students`` are those that the ensemble teaches.

    Raises:
        InputError: One cannot be read, is an ensemble itself, has other folds or another metric, or is a duplicate; a
            training that is both member and teacher, or teacher of two members, has two prediction settings.
    """
    where = where or f"ensemble {ensemble.name}"
    recipes: list[Recipe] = []
    for i, member in enumerate(ensemble.members):
        at = f"{where}: members[{i}]"
        recipe = _load_member(member, at=at, students=students)
        _check_agrees(ensemble, recipe, at=f"{at} ({recipe.name})")
        for j, other in enumerate(recipes):
            if other.hash == recipe.hash:
                raise InputError(
                    f"{at} ({recipe.name}) is the training of members[{j}] once more; raise that one's weight, or "
                    "change a value that decides the weights, such as seed, in its set"
                )
        recipes.append(recipe)
    _check_predictions(recipes, where=where)
    return recipes


def _check_predictions(recipes: list[Recipe], *, where: str) -> None:
    """Refuse a training with two prediction settings: a run holds one set of probabilities."""
    seen: dict[str, Recipe] = {}
    waiting = list(recipes)
    while waiting:
        one = waiting.pop()
        other = seen.setdefault(one.hash, one)
        if other.prediction != one.prediction:
            raise InputError(
                f"{where}: {one.name} is a member and a teacher, or the teacher of two, and is to predict in two "
                "ways; give it the same prediction in the sets of all"
            )
        if one.pseudo is not None and one.pseudo.teacher is not None:
            waiting += [teacher for teacher, _ in load_teachers(one)]


def _check_agrees(ensemble: Ensemble, recipe: Recipe, *, at: str) -> None:
    """Refuse a member whose scores cannot be compared with those of the others."""
    found: tuple[str, Any, Any] | None = None
    if recipe.metric != ensemble.metric:
        found = "metric", recipe.metric, ensemble.metric
    elif differs := first_difference(recipe.folds, ensemble.folds):
        found = f"folds.{differs[0]}", *differs[1:]
    elif ensemble.folds.train not in (None, recipe.folds.train):
        found = "folds.train", recipe.folds.train, ensemble.folds.train
    elif recipe.folds.refit != ensemble.folds.refit:
        found = "folds.refit", recipe.folds.refit, ensemble.folds.refit
    if found is not None:
        key, its, own = found
        raise InputError(
            f"{at}: {key}: {its!r}, but the ensemble has {own!r}, and its members must agree on that; add "
            f'"{key}={write_yaml(own).partition(chr(10))[0]}" to the set of this member'
        )


def is_ensemble(name: str) -> bool:
    """Whether a bundled name or a YAML file is an ensemble: it has the key ``members``.

    Raises:
        InputError: Neither, or not YAML.
    """
    text, where = recipe_source(name)
    return "members" in parse_table_of(text, where=where)


def load_ensemble(name: str, overrides: tuple[str, ...] = (), *, students: tuple[str, ...] = ()) -> Ensemble:
    """Load a bundled ensemble by name, or one from a file, and apply dotted overrides."""
    text, where = recipe_source(name)
    return parse_ensemble(text, where=where, overrides=overrides, students=students)


def load_any(name: str, overrides: tuple[str, ...] = ()) -> AnyRecipe:
    """Load a recipe or an ensemble."""
    return load_ensemble(name, overrides) if is_ensemble(name) else load_recipe(name, overrides)
