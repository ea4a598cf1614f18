"""What a budget does with the time in which no further training fits: choose weights and ensemble, measure the steps.

Each is what the verb of its name does (`weights`, `blend`, `ablate`), judged out of fold, and begun only if it fits.
What was chosen is remembered with the trainings that it was chosen from, so that the same command keeps it.
"""

from collections.abc import Sequence
from time import perf_counter

from masksmith.core.errors import DiskFullError, InputError
from masksmith.core.files import digest, read_json, write_json
from masksmith.core.progress import clock, logger
from masksmith.folds.config import ALL
from masksmith.planning.budget import Budget
from masksmith.planning.units import Unit
from masksmith.project.folder import Project
from masksmith.project.members import Member, read_members, remember_members
from masksmith.project.runs import Run
from masksmith.recipes.recipe import Recipe
from masksmith.steps.ablate import ablate_members
from masksmith.steps.blend import blend_members
from masksmith.steps.out_of_fold import plain_score
from masksmith.steps.predict import oof_of, predict_member
from masksmith.steps.weights import compare_weights, kinds_of

_SCORINGS_A_CANDIDATE = 15
"""A blend scores the held-out images about so often for each candidate: ten means, and the greedy search, nested."""
_SCORINGS_OF_STEPS = 10
"""And `ablate` so often, without a list of operators."""


def choose(project: Project, members: Sequence[Member], budget: Budget, reserve_s: float) -> list[Member]:
    """Choose weights and ensemble where the time is enough; return the members that are used, predicted.

    Args:
        project: Trained and tuned.
        members: Its members.
        budget: The time.
        reserve_s: Seconds that tuning, submission and report take once more.
    """
    own = _held_out(members)
    if not own:
        return list(members)
    scoring_s = _scoring_s(project, members)
    for run in {one.run.path: one.run for one in own}.values():
        members = _with_best_weights(project, run, members, budget, reserve_s, scoring_s)
    candidates = len([*project.runs_dir.glob("*/oof"), *project.runs_dir.glob("*/weights/*/oof")])
    seconds = _SCORINGS_A_CANDIDATE * candidates * scoring_s + _predicting_s(own, "test")
    if candidates < 2 or not _fits("blend", budget, reserve_s, seconds):
        return list(members)
    try:
        done = blend_members(project, members)
    except DiskFullError:
        raise
    except InputError as error:  # fewer than two candidates have predicted the same images
        logger.info("no blend: %s", error)
        return list(members)
    logger.info("%s", done)
    return _predicted(project, read_members(project, None)) if done.kept else list(members)


def measure(project: Project, members: Sequence[Member], budget: Budget, reserve_s: float) -> None:
    """Measure what each step is worth, if the time is enough, for the report."""
    own = [one for one in members if one.fold != ALL]
    if not own:
        return
    if members[0].scored_by.tuning.operators is not None:
        logger.info("a list of operators takes long to measure: `masksmith ablate` does it")
        return
    seconds = _predicting_s(own, "oof") + _SCORINGS_OF_STEPS * _scoring_s(project, members)
    if _fits("ablate", budget, reserve_s, seconds):
        logger.info("%s", ablate_members(project, members))


def remember(project: Project, units: Sequence[Unit], recipe: Recipe) -> None:
    """Note that the present members were chosen from these trainings."""
    write_json(project.chosen_json, {"of": _identity(units, recipe), "members": remember_members(project)})


def chosen_before(project: Project, units: Sequence[Unit], recipe: Recipe) -> list[Member] | None:
    """Return the members that were chosen from just these trainings, if they are the present ones."""
    if not project.chosen_json.exists():
        return None
    noted = read_json(project.chosen_json)
    if noted != {"of": _identity(units, recipe), "members": remember_members(project)}:
        return None
    return read_members(project, None)


def _identity(units: Sequence[Unit], recipe: Recipe) -> str:
    return digest(*(f"{unit.run} {unit.fold} {unit.joined}" for unit in units), recipe.asked_text)


def _with_best_weights(
    project: Project,
    run: Run,
    members: Sequence[Member],
    budget: Budget,
    reserve_s: float,
    scoring_s: float,
) -> list[Member]:
    own = [one for one in _held_out(members) if one.run.path == run.path]
    kinds = len(kinds_of(run, own))
    seconds = (kinds - 1) * (_predicting_s(own, "oof") + scoring_s) + sum(
        _predicting_s(own, stage) for stage in ("oof", "test")
    )
    if kinds < 2 or not _fits("weights", budget, reserve_s, seconds):
        return list(members)
    done = compare_weights(project, own)
    logger.info("%s", done)
    if not done.kept:
        return list(members)
    again = project.run(run.path.name)
    changed = [Member(again, one.fold) if one.run.path == run.path else one for one in members]
    return _predicted(project, changed)


def _held_out(members: Sequence[Member]) -> list[Member]:
    return [one for one in members if one.fold != ALL and not one.run.is_external]


def _predicted(project: Project, members: Sequence[Member]) -> list[Member]:
    for one in members:
        if not one.run.is_external:
            predict_member(project, one)
    return list(members)


def _scoring_s(project: Project, members: Sequence[Member]) -> float:
    begun = perf_counter()
    plain_score(project, members[0].scored_by, oof_of(project, members))
    return perf_counter() - begun


def _predicting_s(members: Sequence[Member], stage: str) -> float:
    return sum(one.run.read_times().get(one.timed(stage), 0.0) for one in members)


def _fits(what: str, budget: Budget, reserve_s: float, seconds: float) -> bool:
    if seconds <= budget.left - reserve_s:
        return True
    logger.info("no time for `masksmith %s` (about %s); it can be called by itself", what, clock(seconds))
    return False
