"""A search over values of a recipe: trial after trial, each judged beside the recipe itself on the same images.

The recipe is trained first, and its first fold with two seeds more: what differs less than seeds do is no difference.
A trial's folds are trained one after another; a trial that is worse than the best one beyond draws of images and seeds
is given up. The best of many looks better than it is: what it is worth is estimated on folds that it was not chosen on.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from masksmith.core import interrupt
from masksmith.core.errors import InputError, StoppedError
from masksmith.core.files import digest, read_json, write_json, write_text
from masksmith.core.progress import clock, logger
from masksmith.engines import Engine
from masksmith.planning.budget import Budget
from masksmith.planning.cost import cost_of, fit
from masksmith.planning.lengths import with_epochs
from masksmith.planning.rules import load_rules
from masksmith.planning.space import Choice, Space, Values, check_space, parse_space, values_in, with_values
from masksmith.project.folder import Project
from masksmith.recipes.recipe import Recipe, parse_recipe
from masksmith.steps.compare import flat_values
from masksmith.steps.folds import folds_of
from masksmith.steps.plan import facts_of, machine_tools
from masksmith.steps.resolve import resolve
from masksmith.steps.runs import refuse_unfit
from masksmith.steps.seed_noise import SEEDS, noise_of, noise_text
from masksmith.steps.study import Study
from masksmith.steps.trials import Court, Crew, Line, Trial

FORMAT_VERSION = 1
_MOST_FAILURES = 10
_OF_DATA = ("model", "size", "input", "prediction")
"""Parts of a recipe whose values the data may refuse."""


@dataclass(frozen=True)
class Length:
    """How long trials are trained."""

    asked: str
    """As it was asked for, such as "10m"; empty: as the recipe says."""
    epochs: int
    """Epochs of a fold."""
    whole: int
    """Those of the recipe."""
    key: str = ""
    """A hash of data, recipe, space and this."""

    def of(self, recipe: Recipe) -> Recipe:
        """Return a recipe of this length."""
        return with_epochs(recipe, self.epochs, load_rules().length) if self.asked else recipe

    def __str__(self) -> str:
        if not self.asked:
            return f"as long as the recipe says: {self.whole} epochs a fold"
        return (
            f"{self.epochs} of the recipe's {self.whole} epochs a fold, which is about {self.asked} a trial"
        )


def length_of(project: Project, asked: Recipe, text: str, seconds: float | None) -> Length:
    """Return how long trials are trained.

    Args:
        project: With folds.
        asked: The recipe.
        text: The time of a trial as it was asked for; empty: as the recipe says.
        seconds: The same in seconds, for all its folds.

    Raises:
        InputError: Not one epoch a fold fits it.
    """
    whole = sum(stage.epochs for stage in asked.training.stages)
    if seconds is None:
        return Length("", whole, whole)
    tools, rules = machine_tools(project, asked), load_rules()
    recipe, folds = tools.resolve(asked), len(asked.folds.trained)
    cost = cost_of(recipe, facts_of(project, asked), tools.measure, rules.time, runtime=tools.runtime)
    epochs = fit(recipe, cost, seconds / folds + cost.finish_s, folds=1).epochs
    least = folds * (cost.train_s / whole + cost.predict_s)
    if seconds < least:
        raise InputError(
            f"--trial {text}: one epoch of {folds} folds takes about {clock(math.ceil(least))} here; give more, train "
            "fewer folds (--set folds.train=1), or leave --trial out"
        )
    return Length(text, min(epochs, whole), whole)


class Search:
    """A search in its project.

    Args:
        project: With folds; its lock is held.
        asked: The recipe that is changed.
        space: What may be tried.
        length: Of trials.
        study: What was tried.
        crew: Trains folds.
        most: Most trials; None: as many as the budget allows.
    """

    def __init__(
        self, project: Project, asked: Recipe, space: Space, length: Length, study: Study, crew: Crew,
        *, most: int | None = None,
    ) -> None:  # fmt: skip
        self.project, self.asked, self.space, self.length = project, asked, space, length
        self.study, self.crew, self.most = study, crew, most
        self.folds = list(asked.folds.trained)
        self.court = Court(project, asked)
        self.base = Trial({}, length.of(asked))
        self.seeds = [
            Trial({"seed": seed}, self.base.recipe.model_copy(update={"seed": seed}))
            for seed in range(asked.seed + 1, asked.seed + SEEDS)
        ]
        self.trials: list[Trial] = []
        self.pruned: set[int] = set()
        self.noise: dict[str, Any] | None = None
        self.ended = ""
        """Why it ended, in words."""
        self._failures = 0

    def run(self) -> None:
        """Try what there is time for.

        Raises:
            InputError: The recipe itself cannot be trained, or not in this time.
            StoppedError: A stop was asked for.
        """
        logger.info("search: trials are trained %s", self.length)
        again = list(self._recorded())  # a call that ends early leaves what earlier ones found
        self.crew.work(self._first(), self._judge_first)
        if not self.base.is_whole(self.folds):
            raise self._too_short(0.0)
        self._measure_noise()
        if self.crew.out_of_time:
            self.ended = "the budget is spent"
            return
        score = self.court.score(self.base)
        logger.info(
            "search: the recipe itself: %s %.4f; %s", self.court.metric.name, score, noise_text(self.noise)
        )
        self.study.learn(values_in(self.asked, self.space), self.court.metric.utility(score))
        self.crew.work(self._next(again), self._judge)
        if self.crew.out_of_time:
            self.ended = "the budget is spent"

    @property
    def whole(self) -> list[Trial]:
        """The recipe itself, and the trials of which all folds are scored."""
        return [one for one in (self.base, *self.trials) if one.is_whole(self.folds)]

    @property
    def best(self) -> Trial:
        """The best of those; of equals the first."""
        return max(self.whole, key=lambda one: self.court.metric.utility(self.court.score(one)))

    def difference(self, folds: int) -> float:
        """Return by how much two trainings of so many folds may differ if only the seed does; 0: not measured."""
        return 0.0 if self.noise is None else float(self.noise["difference"]) / folds**0.5

    # --- the recipe itself ---

    def _first(self) -> Iterator[Line]:
        yield Line(self.base, self.folds[:1])
        for seed in self.seeds:
            yield Line(seed, self.folds[:1])
        for fold in self.folds[1:]:
            yield Line(self.base, [fold])

    def _judge_first(self, trial: Trial) -> bool:
        if trial.failed:
            raise InputError(f"search: the recipe itself cannot be trained: {trial.failed}")
        if len(self.base.folds) == 1 and trial is self.base:
            (took,) = (one.seconds for one in trial.folds.values())
            ahead = (len(self.folds) - 1) + len(self.seeds) + len(self.folds)
            new = not self.study.records()
            if new and self.crew.budget.left < took * ahead / self.crew.slots:
                raise self._too_short(took)
        return True

    def _too_short(self, took: float) -> InputError:
        folds = 2 * len(self.folds) + len(self.seeds)
        needs = f"; about {clock(math.ceil(took * folds / self.crew.slots))} in all" if took else ""
        return InputError(
            f"--budget: {self.crew.budget}, which is too short: the recipe itself, two more seeds of a fold and one "
            f"trial are {folds} trainings of a fold{f' of {clock(math.ceil(took))} each' if took else ''}{needs}. Give "
            "more, or shorten them with --trial or --set folds.train=1; what is trained is kept"
        )

    def _measure_noise(self) -> None:
        trials, fold = [self.base, *self.seeds], self.folds[0]
        if not all(one.is_whole([fold]) for one in trials):
            return  # no time was left
        scores = {str(one.recipe.seed): self.court.gain([one], [self.base], [fold]).score for one in trials}
        runs = [self.crew.run_of(one.recipe) or "" for one in trials]
        self.noise = noise_of(
            self.court.metric.name, runs, scores, fold=fold, same_labels=self.asked.pseudo is not None
        )

    # --- trials ---

    def _recorded(self) -> Iterator[Trial]:
        """Read the trials of earlier calls; yield those that were whole."""
        for record in self.study.records():
            trial = self._trial(record.number, record.values)
            trial.failed = record.why
            if record.state == "pruned":
                self.pruned.add(record.number)
            if record.state != "failed":
                self.crew.read(trial, self.folds)
            if record.state == "whole":
                yield trial

    def _next(self, again: Sequence[Trial]) -> Iterator[Line]:
        for trial in again:
            yield Line(trial, list(self.folds))  # what is scored is read, what is lost trained again
        while not self.ended:
            if self.most is not None and len(self.trials) >= self.most:
                self.ended = f"{self.most} trials were asked for"
                return
            found = self.study.next()
            if found is None:
                self.ended = "everything in the space was tried"
                return
            yield Line(self._trial(*found), list(self.folds))

    def _trial(self, number: int, values: Values) -> Trial:
        failed = ""
        try:
            recipe = self.length.of(with_values(self.asked, values))
        except InputError as error:  # values that each go with the recipe, and not with one another
            recipe, failed = self.asked, str(error)
        self.trials.append(Trial(values, recipe, number=number, failed=failed))
        return self.trials[-1]

    def _judge(self, trial: Trial) -> bool:
        """Note what a trial scored so far, and decide whether its next fold is trained."""
        number = trial.number
        assert number is not None
        if not self.study.is_under_way(number):  # it was judged by an earlier call
            return True
        if trial.failed:
            self.study.fail(number, trial.failed)
            logger.warning("trial %d: %s; it is left out", number, trial.failed)
            self._failures += 1
            if self._failures >= _MOST_FAILURES:
                self.ended = (
                    f"{_MOST_FAILURES} trials in a row could not be trained, the last one: {trial.failed}"
                )
            return False
        self._failures = 0
        score, done = self.court.score(trial), sorted(trial.folds)
        self.study.report(number, len(done) - 1, self.court.metric.utility(score))
        best = self.best
        gain = self.court.gain([trial], [best], done)
        said = f"{gain.gain:+.4f} ({gain.low:+.4f} … {gain.high:+.4f}) beside the best so far"
        logger.info(
            "trial %d: %.4f on %d of %d folds, %s; %s",
            number,
            score,
            len(done),
            len(self.folds),
            said,
            trial.says,
        )
        if trial.is_whole(self.folds):
            self.study.finish(number, self.court.metric.utility(score))
            return False
        if gain.high + self.difference(len(done)) < 0:
            self.study.prune(number)
            self.pruned.add(number)
            logger.info("trial %d: worse beyond draws of images and seeds; given up", number)
            return False
        return True


# --- what it is a search of ---


def begin(
    project: Project, asked: Recipe, space: Space, trial: str, seconds: float | None, *, where: str
) -> Length:
    """Write what is searched, or go on with what was begun here; return how long trials are.

    ``search/`` holds it: ``base.yaml`` (the recipe), ``space.yaml``, ``asked.json`` (data, length, and a hash of all).

    Raises:
        InputError: Another recipe, space, length or data than it was begun with: the message says what differs; or a
            space that the recipe or the data refuse; or a length that is too short.
    """
    folder = project.search_dir
    base, listed = asked.to_yaml(), space.to_yaml()
    folds_of(project, asked)
    if (folder / "asked.json").exists():
        return _same(project, asked, space, trial)
    if asked.training.start_run is not None:
        raise InputError(
            f"training.start_run: {asked.training.start_run}: a cycle of trained weights says nothing about seeds; "
            "name a whole recipe with --recipe"
        )
    check_space(space, asked, where=where)
    length = length_of(project, asked, trial, seconds)
    _check_on_data(project, asked, space, length, where=where)
    write_text(folder / "base.yaml", base)
    write_text(folder / "space.yaml", listed)
    key = digest(project.catalog.content_hash, base, listed, trial)
    value = {"data": project.catalog.content_hash, "trial": trial, "epochs": length.epochs, "key": key}
    write_json(folder / "asked.json", {"format": FORMAT_VERSION, **value})
    return replace(length, key=key)


def _same(project: Project, asked: Recipe, space: Space, trial: str) -> Length:
    folder = project.search_dir
    value = read_json(folder / "asked.json")
    try:
        before = value["data"], value["trial"]
        whole = sum(stage.epochs for stage in asked.training.stages)
        length = Length(trial, int(value["epochs"]), whole, str(value["key"]))
        texts = [(folder / name).read_text(encoding="utf-8") for name in ("base.yaml", "space.yaml")]
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: not what masksmith writes ({type(error).__name__}: {error}); remove it to search anew: what "
            "was trained is found again"
        ) from error
    recipe = parse_recipe(texts[0], where=str(folder / "base.yaml"))
    known = parse_space(texts[1], where=str(folder / "space.yaml"))
    plain = [one.model_dump(mode="json") for one in (recipe, asked)]
    axes = [{key: axis.model_dump(mode="json") for key, axis in one.axes.items()} for one in (known, space)]
    wrong = [
        *_differences("recipe", *map(flat_values, plain)),
        *_differences("space", *({key: str(axis) for key, axis in one.items()} for one in axes)),
        *_differences("--trial", {"": before[1] or "none"}, {"": trial or "none"}),
        *_differences("data", {"": before[0][:12]}, {"": project.catalog.content_hash[:12]}),
    ]
    if wrong:
        lines = "".join(f"\n  {line}" for line in wrong)
        raise InputError(
            f"{project.root}: another search was begun here; expected the same recipe, space, --trial and data, or "
            f"another --out:{lines}"
        )
    return length


def _differences(what: str, before: dict[str, str], now: dict[str, str]) -> list[str]:
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    return [
        f"{what}{key and f': {key}'}: it was {before.get(key, 'not there')}, now {now.get(key, 'not there')}"
        for key in keys
    ]


def _check_on_data(project: Project, asked: Recipe, space: Space, length: Length, *, where: str) -> None:
    """Refuse values that the data or the machine refuse, and keys that change nothing at this length.

    Raises:
        InputError: A line for each.
    """
    wrong = []
    for key, axis in space.axes.items():
        recipes = [length.of(with_values(asked, {key: value})) for value in axis.corners]
        if axis.count > 1 and len({(one.hash, one.prediction.model_dump_json()) for one in recipes}) == 1:
            shortened = f" trained for {length.epochs} epochs" if length.asked else ""
            wrong.append(
                f"{where}: {key}: its values make no difference to the recipe{shortened}; leave it out"
            )
            continue
        if not isinstance(axis, Choice) and key.partition(".")[0] not in _OF_DATA:
            continue
        for value, recipe in zip(axis.corners, recipes, strict=True):
            try:
                refuse_unfit(project, recipe)
                if recipe.pseudo is None:
                    resolve(project, recipe)
            except InputError as error:
                wrong.append(f"{where}: {key}: {value!r} is refused: {error}")
    if wrong:
        raise InputError("\n".join(wrong))


def search_project(
    project: Project,
    asked: Recipe,
    space: Space,
    budget: Budget,
    engine: Engine,
    *,
    length: Length,
    most: int | None,
) -> "tuple[Search, int | None]":
    """Search until the budget, the trials or the space are at their end, or a stop.

    Returns:
        The search, and the exit code of the signal that stopped it.

    Raises:
        InputError: The recipe itself cannot be trained, or not in this time.
        StoppedError: A stop before there was anything to judge.
    """
    study = Study(project.search_dir / "search.db", space, seed=asked.seed)
    search = Search(project, asked, space, length, study, Crew(project, engine, budget), most=most)
    stopped = None
    try:
        with interrupt.on_heartbeat(budget.beat):
            search.run()
    except StoppedError as stop:
        if not search.base.is_whole(search.folds):
            raise
        stopped, search.ended = stop.exit_code, "stopped"
        logger.warning("%s; the same command goes on", stop)
    finally:
        study.close()
        budget.write()
    return search, stopped


def held_out(asked: Recipe) -> Recipe:
    """Return the recipe without a training on all images, which holds nothing out to be judged by."""
    if not asked.folds.refit:
        return asked
    return asked.model_copy(update={"folds": asked.folds.model_copy(update={"refit": False})})
