"""Trials of a search or a sweep: recipes whose folds are trained one after another, and judged on the same images.

A trial is a run like any other; what its folds scored is kept beside it (see steps/scored).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from masksmith.core import interrupt
from masksmith.core.arrays import Rows
from masksmith.core.errors import DiskFullError, InputError
from masksmith.core.randomness import stream
from masksmith.engines import Engine, Task
from masksmith.metrics.protocol import Groups
from masksmith.planning.budget import Budget
from masksmith.planning.space import Values
from masksmith.postprocess.bootstrap import BOUND_QUANTILE, paired_bootstrap
from masksmith.project.folder import Project
from masksmith.project.members import Member
from masksmith.recipes.recipe import Recipe
from masksmith.steps.runs import open_run
from masksmith.steps.scored import Scored, read_scored, scored_path
from masksmith.steps.tasks import at_hand, scoring_task

_RESAMPLES = 2000


@dataclass
class Trial:
    """A recipe that is tried, and what its folds scored so far."""

    values: Values
    """What it changes of the recipe; none: it is the recipe itself."""
    recipe: Recipe
    folds: dict[int, Scored] = field(default_factory=dict)
    number: int | None = None
    """Of a search's trial; None: the recipe itself."""
    failed: str = ""
    """Why a fold could not be trained."""

    @property
    def seconds(self) -> float:
        """What its folds took in all."""
        return sum(one.seconds for one in self.folds.values())

    @property
    def says(self) -> str:
        """Its values, as text."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items())

    def is_whole(self, folds: Sequence[int]) -> bool:
        """Whether all of these folds are scored."""
        return all(fold in self.folds for fold in folds)


# --- many of them ---


@dataclass
class Line:
    """Folds of a trial, to be trained one after another."""

    trial: Trial
    folds: list[int]
    """Those that are left."""


class Crew:
    """Trains folds of trials on an engine: each trial's one after another, trials side by side where there is room.

    Args:
        project: With its folds made; its lock is held.
        engine: Where they are trained.
        budget: No fold is begun that does not fit.
    """

    def __init__(self, project: Project, engine: Engine, budget: Budget) -> None:
        self.project, self.engine, self.budget = project, engine, budget
        self.took: list[float] = []
        """Seconds of the folds so far."""
        self.out_of_time = False
        """Whether a fold was not begun for want of time."""
        self._busy: dict[str, Line] = {}
        self._held: list[Line] = []

    @property
    def slots(self) -> int:
        """How many folds may be trained at a time, about."""
        return 1 if self.engine.name == "local" else max(1, sum(slot.cores for slot in self.engine.slots()))

    def run_of(self, recipe: Recipe) -> str | None:
        """Return the name of a recipe's run; None where it was not begun."""
        return self.project.name_of_run(recipe)

    def read(self, trial: Trial, folds: Sequence[int]) -> None:
        """Take what was scored of a trial's folds; nothing is trained."""
        for fold in folds:
            if (found := read_scored(scored_path(self.project, trial.recipe, fold))) is not None:
                trial.folds[fold] = found

    def work(self, lines: Iterable[Line], judge: Callable[[Trial], bool]) -> None:
        """Train the folds of lines, each of which is asked for when there is room for it.

        Args:
            lines: May decide on the next line by what was scored until then.
            judge: Called after each fold, and where a trial failed; whether the next fold is to be trained.

        Raises:
            StoppedError: A stop was asked for.
            InputError: As the engine.
        """
        tasks = self._tasks(iter(lines), judge)
        with at_hand(self.project), closing(self.engine.run(tasks)) as ended:
            for done in ended:
                line = self._busy.pop(done.task.name)
                if done.value["failed"]:
                    _fail(line, done.value["failed"], judge)
                    continue
                fold = line.folds[0]
                scored = read_scored(scored_path(self.project, line.trial.recipe, fold))
                assert scored is not None, done.task.name
                self._put(line, fold, scored, judge)
                self.budget.beat()
                if line.folds:
                    self._held.insert(0, line)  # what was begun is finished first

    def _tasks(self, lines: Iterator[Line], judge: Callable[[Trial], bool]) -> Iterator[Task | None]:
        while True:
            interrupt.check_stop()
            task = None if self.out_of_time else self._next(lines, judge)
            if task is None and not self._busy:
                return
            yield task

    def _next(self, lines: Iterator[Line], judge: Callable[[Trial], bool]) -> Task | None:
        """Return the next fold: of a trial that was begun, else of a new one; None: none can begin now."""
        held, self._held = self._held, []
        try:
            while (line := held.pop(0) if held else next(lines, None)) is not None:
                if self._shares_a_net(line):
                    self._held.append(line)
                    if not held:
                        return None
                    continue
                task = self._task_of(line, judge)
                if task is None:
                    continue
                self.out_of_time = not self._has_time(line.trial)
                if self.out_of_time:
                    return None
                self._busy[task.name] = line
                return task
            return None
        finally:
            self._held += held

    def _shares_a_net(self, line: Line) -> bool:
        """Whether another trial is training the same run now: it predicts otherwise, and there is one run of both."""
        others = [one.trial.recipe for one in self._busy.values() if one.trial is not line.trial]
        run = self.run_of(line.trial.recipe) if others else None
        return run is not None and run in map(self.run_of, others)

    def _task_of(self, line: Line, judge: Callable[[Trial], bool]) -> Task | None:
        """Return the task of a line's next fold that is not scored; None: none is left, or it cannot be trained."""
        recipe = line.trial.recipe
        if line.trial.failed:
            _fail(line, line.trial.failed, judge)
        while line.folds:
            fold = line.folds[0]
            path = scored_path(self.project, recipe, fold)
            if (found := read_scored(path)) is not None:
                self._put(line, fold, found, judge)
                continue
            try:
                run = open_run(self.project, recipe)
            except DiskFullError:
                raise
            except InputError as error:
                _fail(line, str(error), judge)
                return None
            return scoring_task(self.project, self.engine, Member(run, fold), path)
        return None

    def _has_time(self, trial: Trial) -> bool:
        took = [one.seconds for one in trial.folds.values()] or self.took
        return self.budget.left > (median(took) if took else 0.0)

    def _put(self, line: Line, fold: int, scored: Scored, judge: Callable[[Trial], bool]) -> None:
        self.took.append(scored.seconds)
        line.trial.folds[fold] = scored
        line.folds.remove(fold)
        if not judge(line.trial):
            line.folds.clear()


def _fail(line: Line, why: str, judge: Callable[[Trial], bool]) -> None:
    line.trial.failed = why
    line.folds.clear()
    judge(line.trial)


# --- judging ---


@dataclass(frozen=True)
class Gain:
    """A score, and how much it is above another one of the same images."""

    score: float
    gain: float
    """Above 0 is for the better."""
    low: float
    """Bounds of its 80% interval over draws of groups of images: 80% of the draws are above ``low`` …"""
    high: float
    """… and 80% below ``high``."""


class Court:
    """Scores trials, and compares them image by image.

    Args:
        project: With its folds.
        recipe: Whose metric it is.
    """

    def __init__(self, project: Project, recipe: Recipe) -> None:
        self.project, self.recipe, self.metric = project, recipe, project.metric(recipe)

    def score(self, trial: Trial) -> float:
        """Return the score of all images that a trial's folds have scored."""
        names, rows = joined(trial.folds, sorted(trial.folds))
        return self.metric.score(rows, self._labels(names))

    def nested(
        self, candidates: Sequence[Sequence[Trial]], reference: Sequence[Trial], folds: Sequence[int]
    ) -> tuple[Gain, list[int]]:
        """Return what choosing the best is worth: each fold is judged by the one that is best on the other folds.

        Args:
            candidates: Trials that differ by nothing but the seed are one candidate; all have as many.
            reference: What the gain is over, of as many trials.
            folds: Two or more; all trials have them.

        Returns:
            Score and gain, and the place of the candidate that was chosen for each fold.
        """
        chosen = []
        for fold in folds:
            others = [one for one in folds if one != fold]
            useful = [np.mean([self._utility(trial, others) for trial in one]) for one in candidates]
            chosen.append(int(np.argmax(useful)))
        picked = [
            joined(
                {fold: candidates[at][seed].folds[fold] for fold, at in zip(folds, chosen, strict=True)},
                folds,
            )
            for seed in range(len(reference))
        ]
        return self.gain_of(picked, [joined(one.folds, folds) for one in reference]), chosen

    def _utility(self, trial: Trial, folds: Sequence[int]) -> float:
        names, rows = joined(trial.folds, folds)
        return self.metric.utility(self.metric.score(rows, self._labels(names)))

    def gain(self, trials: Sequence[Trial], others: Sequence[Trial], folds: Sequence[int]) -> Gain:
        """Return the mean score of trials on some folds, and its gain over as many others, pair by pair.

        All pairs are scored on the same draws of images.
        """
        return self.gain_of(
            [joined(one.folds, folds) for one in trials], [joined(one.folds, folds) for one in others]
        )

    def gain_of(
        self, tables: Sequence[tuple[list[str], Rows]], others: Sequence[tuple[list[str], Rows]]
    ) -> Gain:
        """Return the gain of tables of (names, rows) over others of the same images."""
        scores, before, draws = [], [], []
        for (names, rows), (same, other) in zip(tables, others, strict=True):
            assert names == same
            labels = self._labels(names)
            scores.append(self.metric.score(rows, labels))
            before.append(self.metric.score(other, labels))
            groups = self.project.folds.groups(names).tolist()
            gains, _, _ = paired_bootstrap(
                self.metric, rows, other, groups, labels=list(map(str, labels)), resamples=_RESAMPLES,
                rng=stream(self.recipe.seed),
            )  # fmt: skip
            draws.append(gains)
        low, high = np.quantile(np.mean(draws, axis=0), [BOUND_QUANTILE, 1 - BOUND_QUANTILE])
        utility = self.metric.utility
        gain = float(np.mean([utility(one) for one in scores]) - np.mean([utility(one) for one in before]))
        return Gain(float(np.mean(scores)), gain, float(low), float(high))

    def _labels(self, names: Sequence[str]) -> Groups:
        labels = self.project.metric_groups(self.recipe, names)
        return np.unique(labels, return_inverse=True)[1]


def joined(folds: dict[int, Scored], chosen: Sequence[int]) -> tuple[list[str], Rows]:
    """Return names and rows of some folds' images, fold after fold."""
    parts = [folds[fold] for fold in chosen]
    return [name for one in parts for name in one.names], np.concatenate([one.rows for one in parts])
