"""Anytime: unit after unit of training, and after each a better submission.

A baseline submission stands from the first second. Each unit (one training of one fold) is trained, predicted, judged
and joined to the members; then tuning and submission are made anew. A stop leaves a complete submission of what has
been trained until then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masksmith import pulse
from masksmith.budget import Budget
from masksmith.errors import DivergedError, InputError, StoppedError
from masksmith.finish import report_members, submit_members, tune_members, write_baseline
from masksmith.members import Member, members_of_run, write_members
from masksmith.noise import noise_text, read_noise
from masksmith.planner import Plan, Planner
from masksmith.planning.units import Unit
from masksmith.predicting import oof_of, predict_member
from masksmith.progress import Remaining, clock, logger
from masksmith.project import Project
from masksmith.recipe import Recipe
from masksmith.stages import is_trained, keep_interim, open_run, train_member, work_of
from masksmith.submission import Verdict
from masksmith.tuning import plain_score


@dataclass(frozen=True)
class Outcome:
    """What stands at the end, or at a stop.

    ``tuning`` and ``report`` are None where nothing was trained yet: then the submission is the baseline.
    """

    members: list[Member]
    tuning: dict[str, Any] | None
    submission: Verdict | None
    report: Path | None
    stopped: int | None = None
    """Exit code of the signal that stopped it."""


class _Work:
    """The members so far, and the one whose training is under way."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.members: list[Member] = []
        self.under_way: Member | None = None
        self.tuning: dict[str, Any] | None = None
        self.verdict: Verdict | None = None

    def publish(self) -> None:
        """Make tuning and submission of the members."""
        write_members(self.project, self.members)
        self.tuning = tune_members(self.project, self.members)
        if self.project.catalog.test:
            self.verdict = submit_members(self.project, self.members)

    def outcome(self, *, stopped: int | None = None) -> Outcome:
        """Write the report and return what stands."""
        report = report_members(self.project, self.members) if self.members else None
        return Outcome(self.members, self.tuning, self.verdict, report, stopped)


def compete_units(project: Project, asked: Recipe, planner: Planner | None, budget: Budget) -> Outcome:
    """Train what is missing, unit after unit, and keep the best submission so far.

    Args:
        project: With its folds made.
        asked: The recipe.
        planner: Decides what the time is spent on; None trains the folds that the recipe asks for.
        budget: The time.

    Raises:
        InputError: Nothing can be trained; what was finished before is whole.
    """
    work = _Work(project)
    if project.catalog.test and not project.submission_json.exists():
        work.verdict = write_baseline(project, asked)
    try:
        for _ in _folds(work, asked) if planner is None else _units(work, planner, budget):
            work.under_way = None
    except StoppedError as stop:
        logger.warning("%s; finishing what was trained (again to stop at once)", stop)
        with pulse.finishing():
            return _stopped(work, stop.exit_code)
    with pulse.finishing():
        return work.outcome()


def _folds(work: _Work, asked: Recipe) -> Iterator[None]:
    """Train the folds that a recipe asks for."""
    project, run = work.project, open_run(work.project, asked)
    project.make_current(run)
    members = members_of_run(run)
    missing = [member for member in members if not is_trained(project, member)]
    if not missing:
        logger.info("run %s: all folds are trained", run.path.name)
    remaining = Remaining(work_of(project, run, [member.fold for member in missing]))
    work.members = [member for member in members if member not in missing]
    for member in work.members:
        predict_member(project, member)
    if work.members:
        work.publish()
    for member in missing:
        work.under_way = member
        train_member(project, member, remaining=remaining)
        predict_member(project, member)
        work.members = sorted([*work.members, member], key=lambda one: one.fold)
        work.publish()
        yield


def _units(work: _Work, planner: Planner, budget: Budget) -> Iterator[None]:
    """Train units while there is time for them."""
    project, plan = work.project, planner.make(budget.left)
    work.members = _joined(project, plan)
    for member in work.members:
        predict_member(project, member)
    if work.members:
        work.publish()
    while True:
        going_on = plan.under_way is not None
        if not going_on:
            wish = planner.next(plan, budget.left)
            if wish is None:
                break
            run = open_run(project, wish.recipe)
            plan = planner.save(plan.begun(replace(wish.unit, run=run.path.name)))
        elif work.members and budget.left < plan.cost_now.reserve_s:
            break  # what is under way waits for more time
        unit, started = plan.units[-1], budget.spent
        logger.info("unit %d (%s): %s", len(plan.units), unit.kind, unit.reason)
        unit = _work_on(work, unit, plan, budget)
        unit = replace(unit, took_s=round(budget.spent - started, 1))
        plan = planner.save(plan.finished(unit, at_one_go=not going_on))
        budget.write()
        logger.info("unit %d done in %s; spent %s", len(plan.units), clock(unit.took_s or 0.0), budget)
        yield
    if not work.members:
        raise InputError(
            f"--budget: no time is left ({budget}) and nothing is trained; give more, such as +20m"
        )
    logger.info("nothing more fits: spent %s", budget)


def _work_on(work: _Work, unit: Unit, plan: Plan, budget: Budget) -> Unit:
    """Train, predict, judge and submit a unit; return it judged."""
    from masksmith.training.deadline import Deadline

    project, cost = work.project, plan.cost_now
    work.under_way = member = Member(project.run(unit.run), unit.fold)
    try:
        train_member(project, member, deadline=Deadline(lambda: budget.left, cost.reserve_s, cost.pace))
    except DivergedError as error:
        if not work.members:
            raise
        logger.warning("%s; it is left out", error)
        return replace(unit, joined=False, reason=f"{unit.reason}; it diverged")
    predict_member(project, member)
    unit = _judge(project, unit, member, work.members)
    if unit.joined:
        work.members = [*work.members, member]
    work.publish()
    return unit


def _joined(project: Project, plan: Plan) -> list[Member]:
    members = [Member(project.run(unit.run), unit.fold) for unit in plan.units if unit.joined]
    return [member for member in members if is_trained(project, member)]


def _judge(project: Project, unit: Unit, member: Member, members: Sequence[Member]) -> Unit:
    """Let a member join if its fold's plain score does not fall by it; the first of a fold always joins."""
    others = [one for one in members if one.fold == member.fold]
    if not others:
        return replace(unit, joined=True)
    before = plain_score(project, member.run.recipe, oof_of(project, others))
    after = plain_score(project, member.run.recipe, oof_of(project, [*others, member]))
    joined = after >= before
    logger.info(
        "fold %d: %.4f with %d members, %.4f with %s: it %s; %s",
        member.fold, before, len(others), after, member.name, "joins" if joined else "does not join",
        noise_text(read_noise(project.noise_json)),
    )  # fmt: skip
    return replace(unit, joined=joined, score_before=before, score_after=after)


def _stopped(work: _Work, exit_code: int) -> Outcome:
    """Make a complete submission of what has been trained."""
    project, member = work.project, work.under_way
    if member is not None and is_trained(project, member) and member not in work.members:
        work.members = [*work.members, member]
    elif member is not None and not work.members:
        interim = keep_interim(project, member)
        work.members = [interim] if interim else []
    for one in work.members:
        predict_member(project, one)
    if work.members:
        work.publish()
    return work.outcome(stopped=exit_code)
