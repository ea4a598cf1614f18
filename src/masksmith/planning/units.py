"""What the time left is spent on: units of training, in a stated order that never changes what is trained.

The order: a missing fold of the reference recipe; one more cosine cycle of a trained fold; the same recipe with
another seed; a second recipe. A unit is begun only if enough of it fits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from masksmith.planning.cost import Cost
from masksmith.planning.lengths import cycle_of, with_epochs
from masksmith.planning.rules import Rules
from masksmith.recipe import Recipe

Kind = Literal["fold", "cycle", "seed", "recipe"]


@dataclass(frozen=True)
class Unit:
    """One training of one fold, as the plan lists it.

    ``run`` and ``took_s`` are known when it was begun and when it was finished; ``joined`` says whether it is a
    member of the ensemble, and ``scores`` what the decision rests on.
    """

    kind: Kind
    fold: int
    seed: int
    expected_s: float
    reason: str
    model: str = ""
    epochs: int = 0
    run: str = ""
    took_s: float | None = None
    joined: bool | None = None
    score_before: float | None = None
    score_after: float | None = None

    @property
    def done(self) -> bool:
        """Whether it is trained, predicted and judged."""
        return self.joined is not None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Wish:
    """A unit to begin now, and the recipe that it trains."""

    unit: Unit
    recipe: Recipe
    cost: Cost


@dataclass(frozen=True)
class Reference:
    """The recipe at its whole length, and what a fold of it costs now."""

    recipe: Recipe
    cost: Cost
    folds: int
    """Folds that may be trained."""


def next_unit(
    reference: Reference,
    units: Sequence[Unit],
    left_s: float,
    rules: Rules,
    *,
    run_recipe: Callable[[str], Recipe],
    second: Callable[[], Reference | None],
) -> Wish | None:
    """Return what to begin with ``left_s`` seconds left, or None where nothing more fits.

    Args:
        reference: What the budget was planned for.
        units: All units so far; they are done.
        left_s: Seconds left.
        rules: The rules.
        run_recipe: Returns the recipe of a run by its name.
        second: Returns the second recipe, or None; called only when its turn has come.
    """
    return (
        _fold(reference, units, left_s, rules)
        or _cycle(reference, units, left_s, rules, run_recipe)
        or _seed(reference, units, left_s, rules)
        or _second(reference, units, left_s, rules, second)
    )


def _whole(
    kind: Kind, reference: Reference, fold: int, left_s: float, least: float, rules: Rules, why: str
) -> Wish | None:
    """Return a unit of the reference recipe, shortened to the time left, if at least ``least`` of it fits."""
    recipe, cost = reference.recipe, reference.cost
    epochs = sum(stage.epochs for stage in recipe.training.stages)
    share = min(1.0, (left_s - cost.reserve_s) / cost.train_s)
    if share < least:
        return None
    planned = with_epochs(recipe, max(1, int(share * epochs + 0.05)), rules.length)
    length = sum(stage.epochs for stage in planned.training.stages)
    expected = cost.train_s * min(share, 1.0) + cost.reserve_s
    reason = f"{why}; {f'all {epochs}' if length == epochs else f'{length} of {epochs}'} epochs fit"
    unit = Unit(kind, fold, recipe.seed, round(expected, 1), reason, _model_name(recipe), length)
    return Wish(unit, planned, cost)


def _model_name(recipe: Recipe) -> str:
    return f"{recipe.model.architecture} on {recipe.model.encoder}"


def _fold(reference: Reference, units: Sequence[Unit], left_s: float, rules: Rules) -> Wish | None:
    trained = {unit.fold for unit in units if unit.kind == "fold"}
    missing = [fold for fold in range(reference.folds) if fold not in trained]
    if not missing:
        return None
    epochs = sum(stage.epochs for stage in reference.recipe.training.stages)
    least = rules.units.fold_least_frac if trained else 0.99 / epochs
    return _whole("fold", reference, missing[0], left_s, least, rules, f"fold {missing[0]} is missing")


def _cycle(
    reference: Reference,
    units: Sequence[Unit],
    left_s: float,
    rules: Rules,
    run_recipe: Callable[[str], Recipe],
) -> Wish | None:
    rule, cost = rules.units, reference.cost
    trained = [unit.fold for unit in units if unit.kind == "fold"]
    cycles = [unit.fold for unit in units if unit.kind == "cycle"]
    open_folds = [fold for fold in trained if cycles.count(fold) < rule.cycles_a_fold]
    epochs = min(rule.cycle_epochs_most, int((left_s - cost.reserve_s) / cost.epoch_s))
    if not open_folds or epochs < rule.cycle_epochs_least:
        return None
    fold = min(open_folds, key=lambda fold: (cycles.count(fold), fold))
    before = [unit for unit in units if unit.fold == fold and unit.kind in ("fold", "cycle") and unit.joined][
        -1
    ]
    recipe = cycle_of(
        _start_of(run_recipe(before.run), reference.recipe), run=before.run, epochs=epochs, rule=rule
    )
    reason = f"no further fold fits; a cosine cycle of {epochs} epochs from the weights of {before.run}, fold {fold}"
    expected = epochs * cost.epoch_s + cost.reserve_s
    unit = Unit("cycle", fold, recipe.seed, round(expected, 1), reason, _model_name(recipe), epochs)
    return Wish(unit, recipe, cost)


def _start_of(trained: Recipe, reference: Recipe) -> Recipe:
    """Return the trained recipe with the reference's stages: cycles do not shrink from cycle to cycle."""
    stages = {"stages": reference.training.stages}
    return trained.model_copy(update={"training": trained.training.model_copy(update=stages)})


def _seed(reference: Reference, units: Sequence[Unit], left_s: float, rules: Rules) -> Wish | None:
    """Return the next fold of the next seed, once every fold has its cycles; at most as many seeds as folds."""
    tried = [unit for unit in units if unit.kind == "seed"]
    if len(tried) >= reference.folds:
        return None
    fold, seed = len(tried), reference.recipe.seed + 1
    again = Reference(reference.recipe.model_copy(update={"seed": seed}), reference.cost, reference.folds)
    return _whole(
        "seed", again, fold, left_s, rules.units.fold_least_frac, rules, f"seed {seed}, fold {fold}"
    )


def _second(
    first: Reference,
    units: Sequence[Unit],
    left_s: float,
    rules: Rules,
    second: Callable[[], Reference | None],
) -> Wish | None:
    fold = len([unit for unit in units if unit.kind == "recipe"])
    if left_s < first.cost.reserve_s + rules.units.fold_least_frac * first.cost.train_s:
        return None  # not even worth measuring: it is not the cheaper one
    reference = second()
    if reference is None or fold >= reference.folds:
        return None
    why = f"a second recipe ({_model_name(reference.recipe)}), fold {fold}"
    return _whole("recipe", reference, fold, left_s, rules.units.fold_least_frac, rules, why)
