"""Competing: unit after unit of training, and after each a better submission.

A baseline submission is written in the first second. Each unit (one training of one fold) is trained and predicted, and
becomes a member of the ensemble if that helps; then tuning and submission are repeated. A stop leaves a complete
submission of what has been trained until then.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masksmith.core import interrupt
from masksmith.core.errors import DiskFullError, DivergedError, InputError, StoppedError
from masksmith.core.progress import logger
from masksmith.engines import Done, Engine, Task
from masksmith.engines.local import LocalEngine
from masksmith.folds.config import ALL
from masksmith.planning.budget import Budget
from masksmith.planning.lengths import fit_weights
from masksmith.planning.units import Unit
from masksmith.project.folder import Project
from masksmith.project.members import Member, with_external, write_members
from masksmith.project.runs import Run, with_free_parts
from masksmith.recipes.ensemble import AnyRecipe
from masksmith.recipes.recipe import Recipe, parse_recipe
from masksmith.steps.folds import folds_of
from masksmith.steps.last_mile import choose, chosen_before, measure, remember
from masksmith.steps.out_of_fold import baseline_scores, plain_score
from masksmith.steps.plan import Plan, Planner, keys_of, machine_tools
from masksmith.steps.predict import oof_of, predict_member
from masksmith.steps.pseudo_labels import make_labels, with_teachers
from masksmith.steps.pseudo_rounds import check_rounds
from masksmith.steps.report import report_members
from masksmith.steps.resolve import check_prediction
from masksmith.steps.result import Result
from masksmith.steps.runs import open_members, open_run
from masksmith.steps.seed_noise import noise_text, read_noise
from masksmith.steps.submit import standing_submission, submit_members, write_baseline, write_oof_masks
from masksmith.steps.tasks import at_hand, failure_of, run_trainings, task_of, with_memory
from masksmith.steps.train import is_trained, keep_interim
from masksmith.steps.tune import tune_members
from masksmith.steps.unit_queue import UnitQueue, kind_of, learn_kinds
from masksmith.submission.validate import Verdict


@dataclass(frozen=True)
class Outcome:
    """What there is at the end, or at a stop.

    ``tuning`` and ``report`` are None where nothing was trained yet: then the submission is the baseline.
    """

    members: list[Member]
    tuning: dict[str, Any] | None
    submission: Verdict | None
    report: Path | None
    oof_masks: Path | None = None
    """Where the held-out images' masks lie, if there are no test images."""
    stopped: int | None = None
    """Exit code of the signal that stopped it."""


class Session:
    """The members so far, and those whose training is under way."""

    def __init__(self, project: Project, engine: Engine | None = None) -> None:
        self.project, self.engine = project, engine or LocalEngine()
        self.members: list[Member] = []
        self.wanted: list[Member] = []
        """The members at the end, where that is known; none: whatever joins."""
        self.under_way: list[Member] = []
        self.tuning: dict[str, Any] | None = None
        self.verdict: Verdict | None = None
        self.oof_masks: Path | None = None
        """Where the held-out images' masks lie, if there are no test images."""
        self.last_mile_s = 0.0

    @property
    def reserve_s(self) -> float:
        """Seconds that trainings leave to the last mile: none as long as there is nothing to choose from."""
        return self.last_mile_s if self.members else 0.0

    @property
    def used(self) -> list[Member]:
        """The members with those of other programs; a blend says itself which of them it takes."""
        return self.members if self.members[0].blend else with_external(self.project, self.members)

    def take(self, members: list[Member]) -> None:
        """Make these the members, and predict what they have not."""
        self.members = members
        for member in members:
            if not member.run.is_external:
                predict_member(self.project, member)

    def add(self, member: Member) -> None:
        """Take a trained member in; teachers stand in for their students until one of these is trained."""
        wanted = [one for one in self.wanted if one == member or one in self.members]
        self.members = wanted or [*self.members, member]

    def publish(self) -> None:
        """Make tuning and submission of the members, if there are any."""
        if not self.members:
            return
        interrupt.heartbeat()
        write_members(self.project, self.members)
        members = self.used
        self.tuning = tune_members(self.project, members)
        interrupt.heartbeat()
        if self.project.catalog.test:
            self.verdict = submit_members(self.project, members)
        else:
            self.oof_masks = write_oof_masks(self.project, members)
        interrupt.heartbeat()

    def outcome(self, *, stopped: int | None = None) -> Outcome:
        """Write the report and return what there is."""
        members = self.used if self.members else []
        report = report_members(self.project, members) if members else None
        if self.verdict is None and self.project.catalog.test:
            self.verdict = standing_submission(self.project)
        return Outcome(members, self.tuning, self.verdict, report, self.oof_masks, stopped)


def compete_project(
    project: Project,
    asked: AnyRecipe,
    budget: Budget,
    *,
    pinned: Sequence[str],
    planned: bool,
    rounds: int = 0,
    engine: Engine | None = None,
) -> Result:
    """Go the way from folds to the report.

    Args:
        project: Checked.
        asked: The recipe, or the ensemble.
        budget: The time.
        pinned: Overrides of the recipe, which a plan obeys.
        planned: Whether the recipe is what a budget plans with; False trains what it says.
        rounds: Rounds of pseudo-labels that a budget may be spent on, too.
        engine: Runs the trainings; None: this process.

    Raises:
        InputError: Rounds that the data do not allow.
    """
    if rounds:
        check_rounds(project, rounds)
    with interrupt.on_heartbeat(budget.beat):
        logger.info("folds:\n%s", folds_of(project, asked))
        planner = None
        if planned:
            assert isinstance(asked, Recipe), asked.name
            tools = machine_tools(project, asked)
            planner = Planner(project, asked, keys_of(pinned), tools, rounds=rounds)
        done = compete_units(project, asked, planner, budget, engine)
    budget.write()
    return Result(
        project=project.root,
        run=done.members[0].run.path.name if done.members else "",
        tuning=done.tuning,
        submission=done.submission,
        report=done.report,
        oof_masks=done.oof_masks,
        members=[member.name for member in done.members],
        noise=noise_text(read_noise(project.noise_json)),
        budget=str(budget) if planned else "",
        stopped=done.stopped,
    )


def compete_units(
    project: Project,
    asked: AnyRecipe,
    planner: Planner | None,
    budget: Budget,
    engine: Engine | None = None,
) -> Outcome:
    """Train what is missing, unit after unit, and keep the best submission so far.

    Args:
        project: With its folds made.
        asked: The recipe, or the ensemble.
        planner: Decides what the time is spent on; None trains the folds that the recipe asks for.
        budget: The time.
        engine: Runs the trainings; None: this process.

    Raises:
        InputError: Nothing can be trained; what was finished before is whole.
    """
    session = Session(project, engine)
    if project.catalog.test and not project.submission_json.exists():
        session.verdict = write_baseline(project, asked)
    try:
        for _ in train_folds(session, asked) if planner is None else train_units(session, planner, budget):
            pass
    except StoppedError as stop:
        logger.warning("%s; finishing what was trained (again to stop at once)", stop)
        with interrupt.finishing():
            return _stopped(session, stop.exit_code)
    with interrupt.finishing():
        return session.outcome()


def train_folds(session: Session, asked: AnyRecipe) -> Iterator[None]:
    """Train the folds that a recipe or an ensemble asks for, each after its teachers."""
    project = session.project
    session.wanted = open_members(project, asked)
    write_members(project, session.wanted)
    units = with_teachers(project, session.wanted)
    trained = [unit for unit in units if is_trained(project, unit)]
    if len(trained) == len(units):
        logger.info("%s: all folds are trained", asked.name)
    for unit in trained:
        predict_member(project, unit)
        session.add(unit)
    session.publish()

    def begin(unit: Member) -> bool:
        make_labels(project, unit)
        if unit in trained:
            if is_trained(project, unit):
                return False
            _leave_out(session, trained, unit)  # its teachers make other labels than those it was trained on
        session.under_way.append(unit)
        return True

    for unit in run_trainings(project, session.engine, units, begin=begin, predict=True):
        trained.append(unit)
        session.add(unit)
        session.under_way.remove(unit)
        session.publish()
        yield


def train_asked(project: Project, asked: AnyRecipe, engine: Engine | None = None) -> Run:
    """Train the members that a recipe or an ensemble asks for, where they are not; return the run of the first."""
    members = open_members(project, asked)
    write_members(project, members)
    units = with_teachers(project, members)
    trained = [unit for unit in units if is_trained(project, unit)]
    if len(trained) == len(units):
        logger.info("%s: all folds are trained", asked.name)

    def begin(unit: Member) -> bool:
        make_labels(project, unit)
        return unit.run.recipe.pseudo is not None or not is_trained(project, unit)

    for _ in run_trainings(project, engine or LocalEngine(), units, begin=begin, predict=False):
        pass
    return members[0].run


def _leave_out(session: Session, trained: list[Member], unit: Member) -> None:
    trained.remove(unit)
    session.members = []
    for one in trained:
        session.add(one)


def train_units(session: Session, planner: Planner, budget: Budget) -> Iterator[None]:
    """Train units while there is time for them."""
    project, plan = (
        session.project,
        _with_damage_open(session.project, planner.make(lambda: budget.left), planner),
    )
    if not math.isinf(budget.left):
        session.last_mile_s = planner.rules.time.last_mile_frac * max(0.0, budget.left)
    chosen = chosen_before(project, plan.units, plan.recipe)
    session.take(chosen or _members_of(project, plan))
    session.publish()
    learn_kinds(project, session.engine, planner, plan.recipe)

    def more(plan: Plan) -> Plan | None:
        nonlocal chosen
        wish = planner.next(plan, budget.left - session.reserve_s)
        if wish is None:
            return None
        if chosen:  # there will be more to choose from
            session.take(_members_of(project, plan))
            chosen = None
        run = open_run(project, wish.recipe)
        return planner.save(plan.with_unit(replace(wish.unit, run=run.path.name)))

    def begin(plan: Plan, at: int, on: str) -> Task | None:
        return begin_unit(session, planner, plan, at, budget, on=on)

    queue = UnitQueue(session.engine, planner, plan, more, begin, spent=lambda: budget.spent)
    with at_hand(project, budget), closing(session.engine.run(queue.tasks())) as ended:
        for done in ended:
            queue.take(done)
            for at, trained, took_s in queue.ready():
                judging = budget.spent
                unit = end_unit(session, planner, queue.plan, at, trained)
                took_s += budget.spent - judging
                queue.plan = planner.save(queue.plan.with_unit(replace(unit, took_s=round(took_s, 1)), at))
                session.under_way.pop(0)  # a stop from here on judges it no more
                session.publish()  # after the plan is written: what is said beside the score counts its units
                budget.write()
                logger.info("unit %d done; spent %s", at + 1, budget)
                yield
    plan = queue.plan
    if not session.members:
        raise InputError(
            f"--budget: no time is left ({budget}) and nothing is trained; give more, such as +20m"
        )
    _last_mile(session, planner, plan, budget, again=not chosen)
    logger.info("nothing more fits: spent %s", budget)


def member_of_unit(project: Project, unit: Unit, recipe: Recipe) -> Member:
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


def begin_unit(
    session: Session, planner: Planner, plan: Plan, at: int, budget: Budget, *, on: str = ""
) -> Task | None:
    """Return the task that trains a unit, or None where its time is too short."""
    project, unit = session.project, plan.units[at]
    member = Member(project.run(unit.run), unit.fold)
    cost = planner.cost_of(member.run.recipe)
    if session.members and budget.left < cost.reserve_s and not is_trained(project, member):
        return None
    logger.info("unit %d (%s): %s", at + 1, unit.kind, unit.reason)
    session.under_way.append(member)
    more = {
        "reserve_s": cost.reserve_s + session.reserve_s,
        "expected": list(cost.paces),
        "most": plan.growth(unit, member.run.recipe),
    }
    task = task_of(project, session.engine, member, "train_unit", **more)
    task = with_memory(project, session.engine, member, task)
    return replace(task, name=f"unit {at + 1}: {task.name}", on=on)


def end_unit(session: Session, planner: Planner, plan: Plan, at: int, done: Done) -> Unit:
    """Predict with a unit that was trained and judge it; return it with the decision on it."""
    project, unit = session.project, plan.units[at]
    member = Member(project.run(unit.run), unit.fold)
    try:
        if (failure := failure_of(done.value)) is not None:
            raise failure
        planner.kind = kind_of(session.engine, done.worker)
        planner.learn(member.run.recipe, done.value["seconds_per_px"])
        predict_member(project, member)
        unit = accept_unit(project, unit, member, session.members)
    except (DivergedError, InputError) as error:
        if isinstance(error, DiskFullError):
            raise  # it goes on when there is room
        if not session.members:
            planner.save(plan.without_unit(at))
            raise
        logger.warning("%s; this unit is left out", error)
        return replace(unit, joined=False, reason=f"{unit.reason}; it failed: {error}")
    if unit.joined:
        session.members = [*session.members, member]
    return unit


def _last_mile(session: Session, planner: Planner, plan: Plan, budget: Budget, *, again: bool) -> None:
    """Choose weights and ensemble, unless that was done with these trainings, and measure the steps."""
    project, finish_s = session.project, planner.cost_of(plan.recipe).finish_s
    if again:
        used = session.used
        chosen = choose(project, used, budget, finish_s)
        if chosen != used:
            session.members = chosen
            session.publish()
            remember(project, plan.units, plan.recipe)
    measure(project, session.used, budget, finish_s)


def _members_of(project: Project, plan: Plan) -> list[Member]:
    return [member_of_unit(project, unit, plan.recipe) for unit in plan.units if unit.joined]


def _with_damage_open(project: Project, plan: Plan, planner: Planner) -> Plan:
    """Return the plan in which units whose weights were damaged are to be trained again."""
    for at, unit in enumerate(plan.units):
        if unit.joined and not is_trained(project, Member(project.run(unit.run), unit.fold)):
            plan = planner.save(plan.with_unit(replace(unit, joined=None, took_s=None), at))
    return plan


def accept_unit(project: Project, unit: Unit, member: Member, members: Sequence[Member]) -> Unit:
    """Return the unit with the decision whether its member joins the ensemble.

    The first of all does, and a training on all images. The first that predicts its images does if it beats predicting
    nothing or everything there (it may have been cut short). Any other, of the same fold or of another repeat, does if
    the plain score of these images does not fall by it.
    """
    if not members or member.fold == ALL:  # nothing is held out to decide by
        return replace(unit, joined=True)
    recipe, folds = member.run.recipe, project.folds
    inside = set(folds.inside(member.fold))
    others = [one for one in members if inside.intersection(folds.inside(one.fold))]
    utility = project.metric(recipe).utility

    def score(judged: Sequence[Member]) -> float:
        oof = oof_of(project, judged)
        return plain_score(project, recipe, {name: codes for name, codes in oof.items() if name in inside})

    after = score([*others, member])
    if inside <= {name for one in others for name in folds.inside(one.fold)}:
        before, beaten = score(others), "without it"
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


def _stopped(session: Session, exit_code: int) -> Outcome:
    """Make a complete submission of what has been trained."""
    project = session.project
    for member in [one for one in session.under_way if one not in session.members]:
        if is_trained(project, member):
            predict_member(project, member)
            probe = Unit("fold", member.fold, 0, 0.0, "", "")
            if session.wanted or accept_unit(project, probe, member, session.members).joined:
                session.add(member)
        elif not session.members and (interim := keep_interim(project, member)):
            session.members = [interim]
    for one in session.members:
        predict_member(project, one)
    session.publish()
    return session.outcome(stopped=exit_code)
