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
from masksmith.ensemble import Judge
from masksmith.errors import DiskFullError, DivergedError, InputError, StoppedError
from masksmith.finish import (
    baseline_scores,
    report_members,
    standing_submission,
    submit_members,
    tune_members,
    write_baseline,
)
from masksmith.members import Member, write_members
from masksmith.metrics import get_metric
from masksmith.opening import check_prediction, open_members, open_run
from masksmith.planner import Plan, Planner
from masksmith.planning.lengths import fit_weights
from masksmith.planning.units import Unit
from masksmith.predicting import oof_of, predict_member
from masksmith.progress import logger
from masksmith.project import Project, with_free_parts
from masksmith.recipe import Recipe, parse_recipe
from masksmith.seeds import noise_text, read_noise
from masksmith.splits import ALL
from masksmith.stages import is_trained, keep_interim, train_member
from masksmith.submission import Verdict
from masksmith.teaching import make_labels, train_taught, with_teachers
from masksmith.training.pace import Deadline, Pace
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
        self.wanted: list[Member] = []
        """The members at the end, where that is known; none: whatever joins."""
        self.under_way: Member | None = None
        self.tuning: dict[str, Any] | None = None
        self.verdict: Verdict | None = None

    def add(self, member: Member) -> None:
        """Take a trained member in; teachers stand in for their pupils until one of these is trained."""
        wanted = [one for one in self.wanted if one == member or one in self.members]
        self.members = wanted or [*self.members, member]

    def publish(self) -> None:
        """Make tuning and submission of the members, if there are any."""
        if not self.members:
            return
        pulse.tick()
        write_members(self.project, self.members)
        self.tuning = tune_members(self.project, self.members)
        pulse.tick()
        if self.project.catalog.test:
            self.verdict = submit_members(self.project, self.members)
        pulse.tick()

    def outcome(self, *, stopped: int | None = None) -> Outcome:
        """Write the report and return what stands."""
        report = report_members(self.project, self.members) if self.members else None
        if self.verdict is None and self.project.catalog.test:
            self.verdict = standing_submission(self.project)
        return Outcome(self.members, self.tuning, self.verdict, report, stopped)


def compete_units(project: Project, asked: Judge, planner: Planner | None, budget: Budget) -> Outcome:
    """Train what is missing, unit after unit, and keep the best submission so far.

    Args:
        project: With its folds made.
        asked: The recipe, or the ensemble.
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


def _folds(work: _Work, asked: Judge) -> Iterator[None]:
    """Train the folds that a recipe or an ensemble asks for, each after its teachers."""
    project = work.project
    work.wanted = open_members(project, asked)
    write_members(project, work.wanted)
    units = with_teachers(project, work.wanted)
    trained = [unit for unit in units if is_trained(project, unit)]
    if len(trained) == len(units):
        logger.info("%s: all folds are trained", asked.name)
    for unit in trained:
        predict_member(project, unit)
        work.add(unit)
    work.publish()
    for unit in units:
        if unit in trained:
            make_labels(project, unit)
            if is_trained(project, unit):
                continue
            _leave_out(work, trained, unit)  # its teachers make other labels than those it was trained on
        work.under_way = unit
        train_taught(project, unit)
        predict_member(project, unit)
        trained.append(unit)
        work.add(unit)
        work.publish()
        yield


def _leave_out(work: _Work, trained: list[Member], unit: Member) -> None:
    trained.remove(unit)
    work.members = []
    for one in trained:
        work.add(one)


def _units(work: _Work, planner: Planner, budget: Budget) -> Iterator[None]:
    """Train units while there is time for them."""
    project, plan = work.project, _with_damage_open(work.project, planner.make(budget.left), planner)
    work.members = [_joined(project, unit, plan.recipe) for unit in plan.units if unit.joined]
    for member in work.members:
        predict_member(project, member)
    work.publish()
    while True:
        if plan.under_way is None:
            wish = planner.next(plan, budget.left)
            if wish is None:
                break
            run = open_run(project, wish.recipe)
            plan = planner.save(plan.with_unit(replace(wish.unit, run=run.path.name)))
        at = plan.under_way
        assert at is not None
        started = budget.spent
        unit = _attempt(work, planner, plan, at, budget)
        if unit is None:
            break  # what is under way waits for more time
        plan = planner.save(plan.with_unit(replace(unit, took_s=round(budget.spent - started, 1)), at))
        budget.write()
        logger.info("unit %d done; spent %s", at + 1, budget)
        yield
    if not work.members:
        raise InputError(
            f"--budget: no time is left ({budget}) and nothing is trained; give more, such as +20m"
        )
    logger.info("nothing more fits: spent %s", budget)


def _joined(project: Project, unit: Unit, recipe: Recipe) -> Member:
    """Return the member of a unit, which predicts as the plan's recipe does, with weights that its training keeps.

    What is asked of the plan's net another net may not be able to do, such as a view that moves rows: it goes on
    predicting as it did.
    """
    run = project.run(unit.run)
    prediction = fit_weights(recipe.prediction, run.recipe.training)
    free = with_free_parts(run.recipe, recipe.model_copy(update={"prediction": prediction}))
    try:
        check_prediction(parse_recipe(free.to_yaml(), where=unit.run))
    except InputError as error:
        logger.warning("%s; it goes on predicting as it did", error)
        free = free.model_copy(update={"prediction": run.recipe.prediction})
    return Member(project.set_free_parts(run, free), unit.fold)


def _attempt(work: _Work, planner: Planner, plan: Plan, at: int, budget: Budget) -> Unit | None:
    """Train, predict, judge and submit a unit; return it judged, or None where the time will not do for it."""
    project, unit = work.project, plan.units[at]
    member = Member(project.run(unit.run), unit.fold)
    cost = planner.cost_of(member.run.recipe)
    if work.members and budget.left < cost.reserve_s and not is_trained(project, member):
        return None
    logger.info("unit %d (%s): %s", at + 1, unit.kind, unit.reason)
    work.under_way = member
    try:
        deadline = Deadline(lambda: budget.left, cost.reserve_s, cost.paces)
        pace = Pace(deadline, clock=budget.clock)
        train_member(project, member, pace)
        planner.learn(member.run.recipe, pace.seconds_per_px)
        predict_member(project, member)
        unit = _judge(project, unit, member, work.members)
    except (DivergedError, InputError) as error:
        if isinstance(error, DiskFullError):
            raise  # it goes on when there is room
        if not work.members:
            planner.save(plan.without_unit(at))
            raise
        logger.warning("%s; this unit is left out", error)
        return replace(unit, joined=False, reason=f"{unit.reason}; it failed: {error}")
    if unit.joined:
        work.members = [*work.members, member]
        work.publish()
    return unit


def _with_damage_open(project: Project, plan: Plan, planner: Planner) -> Plan:
    """Return the plan in which units whose weights were damaged are to be trained again."""
    for at, unit in enumerate(plan.units):
        if unit.joined and not is_trained(project, Member(project.run(unit.run), unit.fold)):
            plan = planner.save(plan.with_unit(replace(unit, joined=None, took_s=None), at))
    return plan


def _judge(project: Project, unit: Unit, member: Member, members: Sequence[Member]) -> Unit:
    """Decide whether a member joins.

    The first of all does, and a training on all images. The first of another fold does if it beats predicting
    nothing or everything there (it may have been cut short). Any other does if its fold's plain score does not fall by
    it.
    """
    if not members or member.fold == ALL:  # nothing is held out that could judge it
        return replace(unit, joined=True)
    recipe, others = member.run.recipe, [one for one in members if one.fold == member.fold]
    utility = get_metric(recipe.metric).utility
    after = plain_score(project, recipe, oof_of(project, [*others, member]))
    if others:
        before, beaten = plain_score(project, recipe, oof_of(project, others)), "without it"
        joined = utility(after) >= utility(before)
    else:
        baselines = baseline_scores(project, recipe, fold=member.fold).values()
        before, beaten = max(baselines, key=utility), "of the baseline"
        joined = utility(after) > utility(before)
    logger.info(
        "fold %d: %.4f %s, %.4f with %s: it %s; %s",
        member.fold, before, beaten, after, member.name, "joins" if joined else "does not join",
        noise_text(read_noise(project.noise_json)),
    )  # fmt: skip
    return replace(unit, joined=joined, score_before=before, score_after=after)


def _stopped(work: _Work, exit_code: int) -> Outcome:
    """Make a complete submission of what has been trained."""
    project, member = work.project, work.under_way
    if member is not None and member not in work.members:
        if is_trained(project, member):
            predict_member(project, member)
            probe = Unit("fold", member.fold, 0, 0.0, "", "")
            if work.wanted or _judge(project, probe, member, work.members).joined:
                work.add(member)
        elif not work.members:
            interim = keep_interim(project, member)
            work.members = [interim] if interim else []
    for one in work.members:
        predict_member(project, one)
    work.publish()
    return work.outcome(stopped=exit_code)
