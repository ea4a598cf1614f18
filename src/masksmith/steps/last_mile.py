"""What a budget does with the time in which no further training fits: choose weights and ensemble, measure the steps.

Each is what the verb of its name does (`weights`, `blend`, `ablate`), judged out of fold, and begun only if it fits.
"""

from collections.abc import Sequence
from time import perf_counter

from masksmith.core.progress import clock, logger
from masksmith.folds.config import ALL
from masksmith.planning.budget import Budget
from masksmith.project.folder import Project
from masksmith.project.members import Member, read_members
from masksmith.steps.ablate import ablate_members
from masksmith.steps.blend import blend_members, count_candidates
from masksmith.steps.out_of_fold import plain_score
from masksmith.steps.predict import oof_of
from masksmith.steps.weights import compare_weights, kinds_of

_SCORINGS_A_CANDIDATE = 15
"""A blend scores the held-out images about so often for each candidate: ten means, and the greedy search, nested."""


def last_mile(project: Project, members: Sequence[Member], budget: Budget, reserve_s: float) -> list[Member]:
    """Choose weights and ensemble where the time is enough, and measure the steps; return the members that are used.

    Args:
        project: Trained and tuned.
        members: Its members, of which one or more hold out images.
        budget: The time.
        reserve_s: Seconds that tuning, submission and report take once more.
    """
    held_out = [one for one in members if one.fold != ALL and not one.run.is_external]
    if not held_out:
        return list(members)
    begun, oof = perf_counter(), oof_of(project, members)
    plain_score(project, members[0].scored_by, oof)
    scoring_s = perf_counter() - begun
    runs = {one.run.path: one.run for one in held_out}
    for run in runs.values():
        own = [one for one in held_out if one.run.path == run.path]
        kinds = len(kinds_of(run, own))
        if kinds > 1 and _fits("weights", budget, reserve_s, (kinds - 1) * (_predicting_s(own) + scoring_s)):
            logger.info("%s", compare_weights(project, own))
            members = [one if one.run.path != run.path else _again(project, one) for one in members]
    candidates = count_candidates(project, members)
    if candidates > 1 and _fits("blend", budget, reserve_s, _SCORINGS_A_CANDIDATE * candidates * scoring_s):
        done = blend_members(project, members)
        logger.info("%s", done)
        if done.kept:
            members = read_members(project, None)
    views = sum(_predicting_s([one]) for one in held_out)
    if _fits("ablate", budget, reserve_s, views + 10 * scoring_s):
        logger.info("%s", ablate_members(project, members))
    return list(members)


def _again(project: Project, member: Member) -> Member:
    return Member(project.run(member.run.path.name), member.fold)


def _predicting_s(members: Sequence[Member]) -> float:
    return sum(one.run.read_times().get(one.timed("oof"), 0.0) for one in members)


def _fits(what: str, budget: Budget, reserve_s: float, seconds: float) -> bool:
    if seconds <= budget.left - reserve_s:
        return True
    logger.info("no time for `masksmith %s` (about %s); it can be called by itself", what, clock(seconds))
    return False
