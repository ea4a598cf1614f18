"""What the time left is spent on: units of training, in a stated order that never changes what is trained.

The order: the first fold of the reference recipe; all images, which no fold sees; a missing fold; where it is asked for
a student of pseudo-labels; one more cosine cycle of a trained fold; the same recipe with another seed; a second recipe;
further seeds. A unit is begun only if enough of it fits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from masksmith.folds.config import ALL
from masksmith.planning.cost import Cost, fit
from masksmith.planning.lengths import cycle_of, with_epochs
from masksmith.planning.rules import Rules
from masksmith.recipes.pseudo import QuotaConfig, TeacherConfig
from masksmith.recipes.recipe import Recipe
from masksmith.recipes.students import student_of

Kind = Literal["fold", "refit", "pseudo", "cycle", "seed", "recipe"]


@dataclass(frozen=True)
class Unit:
    """One training of one fold, as the plan lists it."""

    kind: Kind
    fold: int
    seed: int
    expected_s: float
    reason: str
    """Why it was begun, and what became of it if it failed."""
    reference: str
    """Which reference recipe it belongs to: units of another one stay members, and count for nothing else."""
    model: str = ""
    epochs: int = 0
    run: str = ""
    took_s: float | None = None
    """Seconds of the call that finished it, without the submission after it; None while it is under way."""
    joined: bool | None = None
    """Whether it is a member of the ensemble; None while that is not decided."""
    score_before: float | None = None
    """Plain score of its fold without it; None for the first of a fold."""
    score_after: float | None = None
    """And with it."""

    @property
    def done(self) -> bool:
        """Whether it is trained, predicted and decided on."""
        return self.joined is not None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Wish:
    """A unit to begin now, and the recipe that it trains."""

    unit: Unit
    recipe: Recipe


@dataclass(frozen=True)
class Reference:
    """The recipe at its whole length, and what a fold of it costs now."""

    recipe: Recipe
    cost: Cost
    folds: int
    """Folds that may be trained."""
    more_images: float = 1.0
    """How many times the images of a fold's training all images are."""
    rounds: int = 0
    """Rounds of pseudo-labels that are asked for."""
    quotas: Sequence[QuotaConfig] = ()
    """Labels of a round, by coverage."""
    more_labels: float = 1.0
    """How many times the images of a fold's training these are together with the labels."""

    @property
    def name(self) -> str:
        """What its units call it."""
        return self.recipe.hash[:8]


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
    own = [unit for unit in units if unit.reference == reference.name]
    return (
        _refit(reference, own, left_s, rules)
        or _fold(reference, own, left_s, rules)
        or _student(reference, own, left_s, rules)
        or _cycle(reference, own, left_s, rules, run_recipe)
        or _seed(reference, own, left_s, rules, most=1)
        or _second(reference, own, left_s, rules, second)
        or _seed(reference, own, left_s, rules, most=rules.units.seeds_a_fold)
    )


def _whole(
    unit: Unit, recipe: Recipe, cost: Cost, left_s: float, least: float, rules: Rules, *, folds: int
) -> Wish | None:
    """Return a unit of a recipe, shortened to the time left, if at least ``least`` of it fits."""
    part = fit(recipe, cost, left_s, folds=folds)
    if part.share < least:
        return None
    planned = with_epochs(recipe, part.epochs, rules.length)
    fits = f"all {part.whole}" if part.epochs == part.whole else f"{part.epochs} of {part.whole}"
    unit = replace(
        unit,
        seed=recipe.seed,
        expected_s=round(cost.train_s * part.share + cost.reserve_s, 1),
        reason=f"{unit.reason}; {fits} epochs fit",
        model=_model_name(recipe),
        epochs=part.epochs,
    )
    return Wish(unit, planned)


def _model_name(recipe: Recipe) -> str:
    return f"{recipe.model.architecture} on {recipe.model.encoder}"


def _fold(reference: Reference, own: Sequence[Unit], left_s: float, rules: Rules) -> Wish | None:
    begun = {unit.fold for unit in own if unit.kind == "fold"}
    missing = [fold for fold in range(reference.folds) if fold not in begun]
    if not missing:
        return None
    epochs = sum(stage.epochs for stage in reference.recipe.training.stages)
    # the plan saw to it that the first has an epoch; the moments since then do not refuse it
    least = rules.units.fold_least_frac if begun else 0.8 / epochs
    unit = Unit("fold", missing[0], 0, 0.0, f"fold {missing[0]} is missing", reference.name)
    return _whole(unit, reference.recipe, reference.cost, left_s, least, rules, folds=reference.folds)


def _refit(reference: Reference, own: Sequence[Unit], left_s: float, rules: Rules) -> Wish | None:
    """Return a training on all images once a fold has shown what the recipe scores; there is one."""
    if not any(unit.kind == "fold" and unit.joined for unit in own) or any(
        unit.kind == "refit" for unit in own
    ):
        return None
    cost = _longer(reference.cost, reference.more_images)
    unit = Unit("refit", ALL, 0, 0.0, "all images, of which each fold lacks some", reference.name)
    return _whole(
        unit, reference.recipe, cost, left_s, rules.units.fold_least_frac, rules, folds=reference.folds
    )


def _longer(cost: Cost, times: float) -> Cost:
    """Return the cost of epochs of so many times the images."""
    return replace(cost, train_s=cost.train_s * times, epoch_s=cost.epoch_s * times)


def _student(reference: Reference, own: Sequence[Unit], left_s: float, rules: Rules) -> Wish | None:
    """Return a student of the fold with the fewest; a fold whose last student did not join gets no more.

    The members of its fold teach the first student, each student the next: none of them has seen the fold.
    """
    last = {unit.fold: unit for unit in own if unit.kind == "pseudo"}
    students = [unit.fold for unit in own if unit.kind == "pseudo"]
    members = [unit for unit in own if unit.joined and unit.kind != "pseudo" and unit.fold != ALL]
    able = [
        fold
        for fold in sorted({unit.fold for unit in members})
        if students.count(fold) < reference.rounds and (fold not in last or last[fold].joined)
    ]
    if not able:
        return None
    fold = min(able, key=lambda fold: (students.count(fold), fold))
    number = students.count(fold) + 1
    teachers = [last[fold]] if fold in last else [unit for unit in members if unit.fold == fold]
    runs = [TeacherConfig(run=name, folds=[fold]) for name in dict.fromkeys(unit.run for unit in teachers)]
    student = student_of(reference.recipe, runs, number=number, quotas=reference.quotas)
    taught = f"pseudo-labels, round {number}, fold {fold}, taught by {', '.join(one.run for one in runs)}"
    unit = Unit("pseudo", fold, 0, 0.0, taught, reference.name)
    cost, least = _longer(reference.cost, reference.more_labels), rules.units.fold_least_frac
    return _whole(unit, student, cost, left_s, least, rules, folds=reference.folds)


def _cycle(
    reference: Reference,
    own: Sequence[Unit],
    left_s: float,
    rules: Rules,
    run_recipe: Callable[[str], Recipe],
) -> Wish | None:
    """Return a cycle of the fold with the fewest; a fold whose last cycle did not join gets no more."""
    rule, cost = rules.units, reference.cost
    last = {unit.fold: unit for unit in own if unit.kind in ("fold", "cycle")}
    cycles = [unit.fold for unit in own if unit.kind == "cycle"]
    able = [fold for fold, unit in last.items() if unit.joined and cycles.count(fold) < rule.cycles_a_fold]
    epochs = min(rule.cycle_epochs_most, int((left_s - cost.reserve_s) / cost.epoch_s))
    if not able or epochs < rule.cycle_epochs_least:
        return None
    fold = min(able, key=lambda fold: (cycles.count(fold), fold))
    run = last[fold].run
    trained = run_recipe(run)
    # from the stages of the reference: cycles do not shrink from cycle to cycle
    training = trained.training.model_copy(update={"stages": reference.recipe.training.stages})
    recipe = cycle_of(trained.model_copy(update={"training": training}), run=run, epochs=epochs, rule=rule)
    reason = f"no further fold fits; a cosine cycle of {epochs} epochs from the weights of {run}, fold {fold}"
    expected = round(epochs * cost.epoch_s + cost.reserve_s, 1)
    unit = Unit("cycle", fold, recipe.seed, expected, reason, reference.name, _model_name(recipe), epochs)
    return Wish(unit, recipe)


def _seed(
    reference: Reference, own: Sequence[Unit], left_s: float, rules: Rules, *, most: int
) -> Wish | None:
    """Return the fold with the fewest further seeds, up to ``most``; one whose last seed did not join gets no more."""
    last = {unit.fold: unit for unit in own if unit.kind == "seed"}
    seeds = [unit.fold for unit in own if unit.kind == "seed"]
    able = [
        fold
        for fold in range(reference.folds)
        if seeds.count(fold) < most and (fold not in last or last[fold].joined)
    ]
    if not able:
        return None
    fold = min(able, key=lambda fold: (seeds.count(fold), fold))
    seed = reference.recipe.seed + 1 + seeds.count(fold)
    again = reference.recipe.model_copy(update={"seed": seed})
    unit = Unit("seed", fold, seed, 0.0, f"seed {seed}, fold {fold}", reference.name)
    least = rules.units.fold_least_frac
    return _whole(unit, again, reference.cost, left_s, least, rules, folds=reference.folds)


def _second(
    reference: Reference,
    own: Sequence[Unit],
    left_s: float,
    rules: Rules,
    second: Callable[[], Reference | None],
) -> Wish | None:
    fold, least = len([unit for unit in own if unit.kind == "recipe"]), rules.units.fold_least_frac
    if fold >= reference.folds or left_s < reference.cost.reserve_s + least * reference.cost.train_s:
        return None  # not even worth measuring: it is not the cheaper one
    other = second()
    if other is None:
        return None
    why = f"a second recipe ({_model_name(other.recipe)}), fold {fold}"
    unit = Unit("recipe", fold, 0, 0.0, why, reference.name)
    return _whole(unit, other.recipe, other.cost, left_s, least, rules, folds=reference.folds)
