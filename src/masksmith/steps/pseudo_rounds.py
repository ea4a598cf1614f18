"""Pseudo-labels in rounds: the members teach students, these the next ones, as long as that helps out of fold.

Each round is a run of its own, so that nothing of an earlier one is lost, and a stop anywhere goes on where it was. The
project predicts as before until the rounds are done.

Sources:
    Rounds of pseudo-labels: the first place of TGS Salt, https://arxiv.org/abs/1904.04445; noisy students, Xie et al.
    2020, https://arxiv.org/abs/1911.04252
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from masksmith.core.errors import DiskFullError, DivergedError, InputError
from masksmith.core.files import read_json, write_json
from masksmith.core.progress import clock, gain_text, is_interval, logger
from masksmith.folds.config import ALL
from masksmith.project.folder import Project
from masksmith.project.members import (
    Member,
    members_before,
    read_members,
    remember_members,
    use_members_before,
    with_external,
    write_members,
)
from masksmith.project.runs import Run
from masksmith.recipes.pseudo import QuotaConfig, TeacherConfig
from masksmith.recipes.recipe import Recipe, parse_recipe
from masksmith.recipes.students import quotas_of, student_of
from masksmith.steps.ablate import Judge, Rows, rounds_of
from masksmith.steps.out_of_fold import plain_rows
from masksmith.steps.predict import oof_of, predict_member
from masksmith.steps.pseudo_labels import labelling_of, train_student
from masksmith.steps.runs import open_run
from masksmith.steps.train import is_trained


@dataclass(frozen=True)
class Round:
    """One round; number 0 is what was there before."""

    round: int
    run: str
    """Its run; of round 0 the teachers, joined by commas."""
    taken: list[int]
    """Images with labels, for each fold."""
    shares: list[float]
    """Share of the coverage classes 0 (empty) … 10 among them."""
    score: float
    """Out of fold, plain rule."""
    gain: float | None
    """Over the round before, paired; None for round 0."""
    low: float | None
    high: float | None
    """80% bounds of the gain."""
    seconds: float
    """Of labelling and training, in all calls."""
    kept: bool
    """Whether its lower bound is above 0, as are those of all before it."""


@dataclass(frozen=True)
class Rounds:
    """What the rounds found."""

    metric: str
    images: int
    """Held-out images."""
    rounds: list[Round]
    ended: str
    """Why no further round was begun."""
    start: list[dict[str, Any]]
    """The members before the rounds."""
    members: list[dict[str, Any]]
    """Those of the round that is used; none: no round is."""
    before: dict[str, Any]
    """What `pseudo --off` goes back to."""
    earlier: list[dict[str, Any]]
    """The tables of rounds that began from other members."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.metric} out of fold, {self.images} images; gain over the round before, 80% bounds"]
        lines += [_line(row) for row in self.rounds]
        used = self.rounds[-1] if self.rounds[-1].kept else self.rounds[-2]
        after = (
            f"round {used.round} is used: predict, tune and submit again"
            if used.round
            else "no round is used"
        )
        return "\n".join([*lines, f"{self.ended}; {after}. `blend` tries all rounds together"])


def round_lines(project: Project, members: Sequence[Member]) -> list[str]:
    """Return a line for each round that began from these members, or that made them."""
    return [_line(Round(**row)) for row in rounds_of(project, members)]


def _line(row: Round) -> str:
    if row.gain is None or row.low is None or row.high is None:
        return f"round 0  {row.score:.4f}  {row.run}"
    gain = gain_text(row.gain, row.low, row.high)
    taken = f"{min(row.taken)}" + (f" to {max(row.taken)}" if len(set(row.taken)) > 1 else "")
    shares = " ".join(f"{share:.0%}" for share in row.shares)
    return (
        f"round {row.round}  {row.score:.4f}  {gain}  {taken} images, of coverage class 0 (empty) … 10: {shares}; "
        f"{clock(row.seconds)}, {'kept' if row.kept else 'not kept'}"
    )


def run_rounds(
    project: Project,
    present: Sequence[Member],
    *,
    rounds: int,
    base: Recipe | None = None,
    overrides: tuple[str, ...] = (),
    images: int | None = None,
) -> Rounds:
    """Train students in rounds, and make the last one that is better the members; ``rounds.json`` keeps the table.

    Args:
        project: With folds.
        present: Its members now, which teach the first round. If they are the students of rounds that were run in the
            same way, those from before them do, so that the same call again does nothing.
        rounds: At most so many.
        base: Recipe of the students; None: that of the present member with the largest weight.
        overrides: Dotted changes of it.
        images: Labels a round at most; None: as many as a fold trains on, or what the recipe's ``pseudo`` says.

    Raises:
        InputError: The data, the members or the numbers allow no round, or no label is sure enough for the first.
        StoppedError: Stopped; the members are those from before.
    """
    check_rounds(project, rounds, images)
    old: dict[str, Any] = read_json(project.rounds_json) if project.rounds_json.exists() else {}
    begun: tuple[_Way, dict[str, Any]] | None = None
    if old.get("members") and _plain(present) == old["members"]:
        way = _Way.of(project, members_before(project, old["before"]), base, overrides, images)
        begun = (way, old["before"]) if way.is_that_of(project, old) else None
    way, before = begun or (
        _Way.of(project, present, base, overrides, images),
        remember_members(project),
    )
    found, used, ended = _run(project, way, rounds)
    if used and way.refit:
        used = [*used, *_train(project, used[0].run, [ALL])]
    earlier = old.get("earlier", [])
    if old and old["rounds"][1]["run"] != found[1].run:
        earlier = [*earlier, {**old, "earlier": []}]
    judge = way.judge
    done = Rounds(
        judge.metric.name, len(judge.names), found, ended, _plain(way.start), _plain(used), before, earlier
    )
    write_json(project.rounds_json, done.to_json())
    if used:
        write_members(project, used)
    return done


def _run(project: Project, way: "_Way", rounds: int) -> tuple[list[Round], list[Member], str]:
    """Return the rounds, the students of the last one that is kept, and why there were no more."""
    first = way.judge.step("", way.rows, way.rows, 0.0, kept=True)
    assert first.score is not None
    names = ", ".join(dict.fromkeys(one.part for one in way.teachers))
    found = [Round(0, names, [], [], first.score, None, None, None, 0.0, kept=True)]
    rows, used, teachers = way.rows, list[Member](), _lists(way.teachers)
    for number in range(1, rounds + 1):
        try:
            students = _train(project, open_run(project, way.asked(number, teachers)), way.folds)
        except (DivergedError, InputError) as error:
            if number == 1 or isinstance(error, DiskFullError):
                raise
            return found, used, f"round {number} could not be trained ({error})"
        row, after = _row(project, number, students, way.judge, rows)
        found.append(row)
        logger.info("pseudo-labels: %s", _line(row))
        if not row.kept:
            return found, used, f"round {number} shows no certain gain"
        rows, used, teachers = after, students, [TeacherConfig(run=students[0].run.path.name)]
    return found, used, f"{rounds} rounds are done"


@dataclass(frozen=True)
class _Way:
    """What rounds begin from, and how their students are trained."""

    start: list[Member]
    teachers: list[Member]
    """Those of the start that can teach."""
    base: Recipe
    quotas: list[QuotaConfig]
    overrides: tuple[str, ...]
    judge: Judge
    rows: Rows
    """Of the start."""

    @classmethod
    def of(
        cls,
        project: Project,
        start: Sequence[Member],
        base: Recipe | None,
        overrides: tuple[str, ...],
        images: int | None,
    ) -> "_Way":
        """Return the way from these members; see run_rounds."""
        teachers = _teachers(project, start)
        judge, rows = _judged(project, start, sorted({one.fold for one in teachers}))
        base = base or _heaviest(teachers).run.recipe
        if base.metric != judge.recipe.metric:
            raise InputError(
                f"--recipe {base.name}: its metric is {base.metric}, that of the members {judge.recipe.metric}; add "
                f"--set metric={judge.recipe.metric}"
            )
        quotas = [] if base.pseudo is not None and images is None else quotas_for(project, images)
        return cls(list(start), teachers, base, quotas, overrides, judge, rows)

    @property
    def folds(self) -> list[int]:
        """The folds of the students."""
        return sorted({one.fold for one in self.teachers})

    @property
    def refit(self) -> bool:
        """Whether all images were trained on, too."""
        return any(one.fold == ALL for one in self.start)

    def asked(self, number: int, teachers: Sequence[TeacherConfig]) -> Recipe:
        """Return a student's recipe on the members' folds, with the user's changes.

        Raises:
            InputError: A change that is not the students' to make.
        """
        student = student_of(self.base, teachers, number=number, quotas=self.quotas)
        own = self.teachers[0].run.recipe.folds
        folds = own.model_copy(update={"train": len(self.folds), "refit": self.refit})
        student = student.model_copy(update={"folds": folds})
        fixed = ("name", "metric", "folds", "pseudo.teacher", "pseudo.table", "pseudo.set")
        if wrong := [one for one in self.overrides if one.startswith(fixed)]:
            raise InputError(
                f"--set {' --set '.join(wrong)}: folds, metric and teachers of the students are those of the members; "
                "leave it out"
            )
        return parse_recipe(student.to_yaml(), where=student.name, overrides=self.overrides)

    def is_that_of(self, project: Project, table: dict[str, Any]) -> bool:
        """Whether rounds that were run before went the same way."""
        run = project.find_run(self.asked(1, _lists(self.teachers)))
        return run is not None and run.path.name == table["rounds"][1]["run"]


def stop_rounds(project: Project) -> str:
    """Go back to the members from before the rounds; return a line that says so.

    Raises:
        InputError: No round is used.
    """
    found = read_json(project.rounds_json) if project.rounds_json.exists() else {}
    tables = [found, *reversed(found["earlier"])] if found else []
    present = _plain(read_members(project, None))
    used = next((table for table in tables if table["members"] == present), None)
    if used is None:
        raise InputError(
            f"{project.root}: no round of pseudo-labels is used; there is nothing to go back from"
        )
    use_members_before(project, used["before"])
    return "the members from before the rounds are used again: predict, tune and submit"


def _plain(members: Sequence[Member]) -> list[dict[str, Any]]:
    return [member.to_json() for member in members if not member.run.is_external]


# --- who teaches ---


def check_rounds(project: Project, rounds: int, images: int | None = None) -> None:
    """Refuse rounds where there can be none.

    Raises:
        InputError: Numbers below 1, masks that are not binary, or no test images.
    """
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: expected 1 or more")
    if images is not None and images < 1:
        raise InputError(f"--images {images}: expected 1 or more")
    if project.target.task != "binary":
        raise InputError(
            f"{project.root}: pseudo-labels are made of binary masks, and the masks are {project.target.task}"
        )
    if not set(project.cache.test_images) - set(project.blank_test):
        raise InputError(
            f"{project.catalog.root}: there are no test images with content to make pseudo-labels of; add unlabelled "
            "images as test images"
        )


def _teachers(project: Project, members: Sequence[Member]) -> list[Member]:
    """Return the members that hold a fold out and can teach.

    Raises:
        InputError: There are none, or the folds that they hold out are not the first ones.
    """
    own = [one for one in members if one.fold != ALL and not one.run.is_external]
    found = [one for one in own if not one.interim and is_trained(project, one)]
    for run in {one.run.path: one.run for one in members if one.run.is_external}.values():
        logger.warning(
            "%s does not teach: its probabilities of the test images are one mean of all folds, so those of fold k "
            "have seen the masks of fold k",
            run.path.name,
        )
    folds = sorted({one.fold for one in found})
    if not folds:
        raise InputError(
            f"{project.root}: no trained fold of its own can teach ({len(members)} members); run `masksmith train "
            f"{project.root}`"
        )
    if folds != list(range(len(folds))):
        raise InputError(
            f"{project.root}: the members hold out the folds {', '.join(map(str, folds))}; expected the first ones "
            f"without a gap: run `masksmith train {project.root}`"
        )
    return found


def _heaviest(teachers: Sequence[Member]) -> Member:
    return max(teachers, key=lambda one: (one.weight, -teachers.index(one)))


def _lists(teachers: Sequence[Member]) -> list[TeacherConfig]:
    """Return the members' runs with their weights and the folds that each has."""
    parts: dict[tuple[str, str], list[Member]] = {}
    for one in teachers:
        parts.setdefault((one.run.path.name, one.variant), []).append(one)
    return [
        TeacherConfig(
            run=run, weight=own[0].weight, folds=sorted(one.fold for one in own), weights=kind or None
        )
        for (run, kind), own in parts.items()
    ]


def quotas_for(project: Project, images: int | None = None) -> list[QuotaConfig]:
    """Return how many labels of which coverage a round takes: as many as a fold trains on, or ``images``."""
    masks = project.cache.train_masks
    names = [name for name in project.folds.outside(0) if name not in project.blank_train]
    coverage = np.array([float((masks[name] == 1).mean()) for name in names])
    return quotas_of(coverage, images or len(names))


# --- a round ---


def _train(project: Project, run: Run, folds: Sequence[int]) -> list[Member]:
    """Return the students of the folds, trained and predicted."""
    students = [Member(run, fold) for fold in folds]
    for one in students:
        begun, what = time.perf_counter(), f"round {one.fold}"
        try:
            train_student(project, one)
        finally:
            if not run.ledger.knows(one.entry("test")):  # else there was nothing to do
                took = run.read_times().get(what, 0.0) + time.perf_counter() - begun
                run.note_time(what, took)
        predict_member(project, one)
    return students


def _judged(project: Project, start: Sequence[Member], folds: Sequence[int]) -> tuple[Judge, Rows]:
    """Return the judge on the images that the students hold out, and the rows of the members there."""
    recipe, oof = start[0].scored_by, oof_of(project, start)
    inside = {name for fold in folds for name in project.folds.inside(fold)}
    rows = {name: row for name, row in plain_rows(project, recipe, oof).items() if name in inside}
    judge = Judge(project, recipe, list(rows))
    return judge, judge.table(rows)


def _row(
    project: Project, number: int, students: list[Member], judge: Judge, before: Rows
) -> tuple[Round, Rows]:
    """Return the row of a round, and the metric's rows of its students with members of other programs."""
    oof = oof_of(project, with_external(project, students))
    rows = judge.table(plain_rows(project, judge.recipe, oof))
    run = students[0].run
    seconds = sum(run.read_times().get(f"round {one.fold}", 0.0) for one in students)
    step = judge.step("", rows, before, seconds, kept=False)
    labels = list(labelling_of(students).values())
    classes = Counter[int]()
    for one in labels:
        classes.update(dict(enumerate(one.classes)))
    total = max(1, sum(classes.values()))
    shares = [round(classes[at] / total, 4) for at in range(len(labels[0].classes))]
    assert step.score is not None
    assert step.low is not None
    assert step.high is not None
    row = Round(
        number, run.path.name, [one.kept for one in labels], shares, step.score, step.gain, step.low, step.high,
        step.seconds, kept=step.low > 0 and is_interval(step.low, step.high),
    )  # fmt: skip
    return row, rows
