"""Tasks: the trainings and predictions of a project as an engine's workers do them, and as the driver asks for them.

A worker opens the project by its path. It holds no lock of the project, which is the driver's, but each training holds
one of its fold: no two processes ever train or predict a fold at once, whichever machine they are on. A worker stops
where another driver has taken the project over. A task that runs in the driver's own process works on the driver's
open project.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from masksmith.core import interrupt
from masksmith.core.errors import DiskFullError, DivergedError, InputError
from masksmith.core.files import read_json
from masksmith.core.locks import LOCK, waiting_lock
from masksmith.engines import Engine, Task
from masksmith.folds.config import ALL
from masksmith.planning.budget import Budget
from masksmith.planning.cost import cost_of
from masksmith.planning.rules import load_rules
from masksmith.preprocess import names_by_canvas
from masksmith.project.folder import Project
from masksmith.project.members import Member, with_weights
from masksmith.recipes.recipe import Recipe, parse_recipe
from masksmith.steps.plan import facts_of, machine_tools
from masksmith.steps.predict import is_predicted, join_shards, names_of, predict_member, predict_shard
from masksmith.steps.pseudo_labels import make_labels, teachers_of
from masksmith.steps.scored import score_member
from masksmith.steps.train import build, check_memory, data_of, is_trained, train_member, training_of
from masksmith.training.machine import settle_threads
from masksmith.training.pace import Deadline, Pace

MEASURE_PACE = f"{__name__}:measure_pace"
_LOOK_EVERY_S = 2.0
_AT_HAND: dict[str, tuple[Project, Budget | None]] = {}
"""Path -> project that this process has open as a driver, and its budget."""

# --- on the worker ----------------------------------------------------------------------------------------


def train_fold(where: dict[str, Any], member: dict[str, Any], *, predict: bool) -> None:
    """Train a fold of a run unless it is trained, and predict its images and the test images if that is asked for."""
    with _project(where) as project:
        found = _member(project, member)
        train_member(project, found)
        if predict:
            _predict(project, where, found)


def predict_fold(where: dict[str, Any], member: dict[str, Any]) -> None:
    """Predict the held-out images and the test images of a trained fold, where that is not done."""
    with _project(where) as project:
        _predict(project, where, _member(project, member))


def score_fold(where: dict[str, Any], member: dict[str, Any], *, path: str) -> dict[str, Any]:
    """Train a fold of a trial unless it is trained, and write what its held-out images score (see score_member)."""
    with _project(where) as project:
        return score_member(project, _member(project, member), Path(path))


def predict_part(where: dict[str, Any], member: dict[str, Any], *, stage: str, at: int, count: int) -> None:
    """Predict shard ``at`` of ``count`` of a trained fold's images of a stage, unless that is done."""
    with _project(where) as project:
        found = _member(project, member)
        path, recipe = _shard_path(found, stage, at, count), found.run.recipe
        images = project.inputs(recipe.input).train if stage == "oof" else project.inputs(recipe.input).test
        shapes = {name: images.shape(name) for name in names_of(project, found, stage)}
        canvases = names_by_canvas(shapes, recipe.size, divisor=recipe.model.divisor)
        names = [name for group in canvases.values() for name in group]  # in the order of the batches
        first, end = (len(names) * one // count for one in (at, at + 1))
        with _locked(where, path):
            predict_shard(project, found, stage, names[first:end], path)


def train_unit(
    where: dict[str, Any],
    member: dict[str, Any],
    *,
    reserve_s: float,
    expected: Sequence[float],
    most: float,
) -> dict[str, Any]:
    """Train a unit of a budget within the time that is left, and predict with it.

    Returns:
        "seconds_per_px" of its training, and where it failed "failed", the kind of the error, and its "text".
    """
    with _project(where) as project:
        pace = _pace(project, where, reserve_s, expected, most)
        try:
            found = _member(project, member)
            make_labels(project, found)
            train_member(project, found, pace)
            if where["remote"]:  # the driver predicts what is not predicted
                _predict(project, where, found)
        except (DivergedError, InputError) as error:
            return {"failed": type(error).__name__, "text": str(error), "seconds_per_px": 0.0}
        return {"seconds_per_px": pace.seconds_per_px}


def measure_pace(where: dict[str, Any], recipe: str) -> float:
    """Return the seconds a pixel of the last stage of a resolved recipe (its text) on this machine."""
    with _project(where) as project:
        return pace_of(project, parse_recipe(recipe, where="the recipe of the plan"))


def pace_of(project: Project, recipe: Recipe) -> float:
    """Return the seconds a pixel of a recipe's last stage on this machine, measured."""
    measure = machine_tools(project, recipe).measure
    return cost_of(recipe, facts_of(project, recipe), measure, load_rules().time).paces[-1]


@contextmanager
def _project(where: dict[str, Any]) -> Iterator[Project]:
    if not where["remote"]:
        yield _AT_HAND[where["project"]][0]
        return
    with interrupt.on_heartbeat(_leash(Path(where["project"]) / LOCK, where["driver"])):
        yield _opened(where["project"], tuple(where["loggers"]))


@lru_cache(maxsize=4)
def _opened(root: str, loggers: tuple[str, ...]) -> Project:
    return Project.open(Path(root), loggers=loggers)


def _leash(lock: Path, driver: str) -> Callable[[], None]:
    """Return what asks this process for a stop once another driver has taken the project over."""
    looked = time.monotonic()
    told = False

    def look() -> None:
        nonlocal looked, told
        if told or time.monotonic() - looked < _LOOK_EVERY_S:
            return
        looked = time.monotonic()
        try:
            now = lock.read_text(errors="replace")
        except FileNotFoundError:
            now = ""
        except OSError:
            return  # a shared folder that does not answer for a moment
        if now != driver:
            told = True
            signal.raise_signal(signal.SIGTERM)

    return look


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _member(project: Project, value: dict[str, Any]) -> Member:
    member = Member(project.run(value["run"]), value["fold"], value["interim"])
    return with_weights(member, value["variant"]) if value["variant"] else member


def _predict(project: Project, where: dict[str, Any], member: Member) -> None:
    with _locked(where, member.codes("oof")):
        predict_member(project, member)


def _locked(where: dict[str, Any], path: Path) -> AbstractContextManager[None]:
    """Return the lock of a file of probabilities, which a worker that was cut off may still be writing."""
    return waiting_lock(path.with_name(f".{path.stem}.lock")) if where["remote"] else nullcontext()


def _shard_path(member: Member, stage: str, at: int, count: int) -> Path:
    codes = member.codes(stage)
    return codes.with_name(f"{codes.stem}.part-{at}-of-{count}.npy")


def _pace(project: Project, where: dict[str, Any], *of_deadline: Any) -> Pace:  # noqa: ANN401
    """Return a pace with the driver's budget, which a worker reads once, as no clocks are the same."""
    if not where["remote"]:
        budget = _AT_HAND[where["project"]][1]
        assert budget is not None, "a unit of no budget"
        return Pace(Deadline(lambda: budget.left, *of_deadline), clock=budget.clock)
    known, began = read_json(project.budget_json), time.monotonic()
    left_s = known["total_s"] - known["spent_s"]
    return Pace(Deadline(lambda: left_s - (time.monotonic() - began), *of_deadline))


# --- on the driver ----------------------------------------------------------------------------------------


@contextmanager
def at_hand(project: Project, budget: Budget | None = None) -> Iterator[None]:
    """Let tasks of this project that run in this process work on the open project during the block."""
    key = _place(project)
    before = _AT_HAND.get(key)
    _AT_HAND[key] = project, budget
    try:
        yield
    finally:
        _AT_HAND.pop(key)
        if before is not None:
            _AT_HAND[key] = before


def _place(project: Project) -> str:
    return str(project.root.resolve())


def where_of(project: Project, engine: Engine) -> dict[str, Any]:
    """Return what a task is told of the project, and of the driver that asks.

    Raises:
        InputError: The project augments with a callable, which no other process has.
    """
    remote = engine.name != "local"
    if remote and project.augment is not None:
        raise InputError(
            f"augment: a callable of your own cannot be sent to the workers of --engine {engine.name}; use the local "
            "engine, or the recipe's own augmentation"
        )
    return {
        "project": _place(project),
        "remote": remote,
        "driver": _text(project.root / LOCK) if remote else "",
        "loggers": list(project.loggers),
    }


def _plain(member: Member) -> dict[str, Any]:
    return {
        "run": member.run.path.name,
        "fold": member.fold,
        "interim": member.interim,
        "variant": member.variant,
    }


def task_of(
    project: Project,
    engine: Engine,
    member: Member,
    function: str,
    **more: Any,  # noqa: ANN401
) -> Task:
    """Return a task on a member.

    Args:
        project: Its project.
        engine: That is to run it.
        member: Whom it is about.
        function: One of this module, that takes ``where`` and ``member``.
        more: Its other arguments.
    """
    training = member.run.recipe.training
    if engine.name != "local":
        project.inputs(member.run.recipe.input)  # made now, not by several workers at once
    arguments = {"where": where_of(project, engine), "member": _plain(member), **more}
    gpus = int(training.device == "cuda")
    return Task(
        member.name, f"{__name__}:{function}", arguments, cores=threads_of(member.run.recipe), gpus=gpus
    )


def scoring_task(project: Project, engine: Engine, member: Member, path: Path) -> Task:
    """Return the task that trains and scores a fold of a trial, for the file of its scores."""
    task = task_of(project, engine, member, "score_fold", path=str(path.resolve()))
    return with_memory(project, engine, member, task)


def with_memory(project: Project, engine: Engine, member: Member, task: Task) -> Task:
    """Return a task that trains a member with the memory that it takes, where a node could be filled by several."""
    if engine.name == "local" or task.gpus:
        return task
    return replace(task, memory_mb=_memory_mb(project, member))


def threads_of(recipe: Recipe) -> int:
    """Return the threads that a resolved recipe computes with; on a GPU its images are made with them."""
    return settle_threads(recipe.training.threads)


def _memory_mb(project: Project, member: Member) -> int:
    """Return the MiB that training a member needs by estimate, without the images, of which workers share pages."""
    run, fold = member.run, member.fold
    training = training_of(project, run, fold)
    model = build(project, run, fold, load_weights=False)
    data = data_of(project, run.recipe, fold, key="")
    return check_memory(run.recipe, training, model, data, available=1 << 62).needed >> 20


def run_trainings(
    project: Project,
    engine: Engine,
    units: Sequence[Member],
    *,
    begin: Callable[[Member], bool],
    predict: bool,
) -> Iterator[Member]:
    """Train members, as many at once as the engine can, and yield each when it is trained.

    Args:
        project: The project, at hand.
        engine: Runs them.
        units: In the order in which they are begun.
        begin: Called before a unit is given away; False: it is trained.
        predict: Whether each is predicted with, too.
    """
    left, finished = list(units), set[tuple[str, int]]()
    given: dict[str, Member] = {}

    def wanted() -> Iterator[Task | None]:
        while left:
            unit = next((one for one in left if finished >= _before(project, units, one)), None)
            if unit is None:
                yield None
                continue
            left.remove(unit)
            if begin(unit):
                task = task_of(project, engine, unit, "train_fold", predict=predict)
                task = with_memory(project, engine, unit, task)
                given[task.name] = unit
                yield task
            else:
                finished.add(_key(unit))

    with at_hand(project), closing(engine.run(wanted())) as ended:
        for done in ended:
            unit = given.pop(done.task.name)
            finished.add(_key(unit))
            yield unit


def _before(project: Project, units: Sequence[Member], member: Member) -> set[tuple[str, int]]:
    """Return the units that must be trained before a member: teachers, folds of its refit, what it starts from."""
    found = {_key(one) for one in teachers_of(project, member)}
    if member.fold == ALL and member.run.recipe.folds.refit:
        found |= {_key(one) for one in units if one.run.path == member.run.path and one.fold != ALL}
    if (start := member.run.recipe.training.start_run) is not None:
        found.add((start, member.fold))
    return found & {_key(one) for one in units}


def _key(member: Member) -> tuple[str, int]:
    return member.run.path.name, member.fold


def predict_members(project: Project, engine: Engine, members: Sequence[Member]) -> None:
    """Predict with members where that is not done, as many at once as the engine can.

    Where it has more places than there are members to predict with, each predicts its images in shards.

    Raises:
        InputError: One is not trained, or another program's probabilities are of other images.
    """
    if engine.name == "local":
        _ = project.cache  # damaged files of it are made again, whatever is predicted already
        for member in members:
            predict_member(project, member)
        return
    tasks, shards = list[Task](), list[list[Task]]()
    for member in members:
        if member.run.is_external or not (member.interim or is_trained(project, member)):
            predict_member(project, member)  # it says what is wrong
            continue
        wanted = [stage for stage in ("oof", "test") if not is_predicted(project, member, stage)]
        whole = task_of(project, engine, member, "predict_fold")
        count = sum(slot.at_once(whole) for slot in engine.slots()) // len(members)
        counts = {stage: _count(project, member, stage, count) for stage in wanted}
        if max(counts.values(), default=1) == 1:
            tasks += [whole] if wanted else []
            continue
        for stage, parts in counts.items():
            shards.append([_shard_task(whole, stage, at, parts) for at in range(parts)])
    seconds = dict[str, float]()
    with (
        at_hand(project),
        closing(engine.run([*(task for shard in shards for task in shard), *tasks])) as ended,
    ):
        for done in ended:
            seconds[done.task.name] = done.seconds
    for shard in shards:
        arguments = shard[0].arguments
        member, stage = _member(project, arguments["member"]), arguments["stage"]
        paths = [_shard_path(member, stage, at, len(shard)) for at in range(len(shard))]
        join_shards(project, member, stage, paths, sum(seconds[task.name] for task in shard))


def _count(project: Project, member: Member, stage: str, most: int) -> int:
    """Return in how many shards a member's images are predicted: each has two batches at least.

    Where held-out images decide on the runtime it is one, as each shard would decide for itself.
    """
    options = member.run.recipe.prediction
    if options.runtime != "torch" or member.interim:
        return 1
    return max(1, min(most, len(names_of(project, member, stage)) // (2 * options.batch_size)))


def _shard_task(whole: Task, stage: str, at: int, count: int) -> Task:
    name, function = f"{whole.name}, {stage} {at + 1} of {count}", f"{__name__}:predict_part"
    arguments = {**whole.arguments, "stage": stage, "at": at, "count": count}
    return replace(whole, name=name, function=function, arguments=arguments)


def failure_of(value: dict[str, Any]) -> InputError | DivergedError | None:
    """Return the error that a unit's task ended with; None where it did not fail."""
    if "failed" not in value:
        return None
    if value["failed"] == DivergedError.__name__:
        return DivergedError(value["text"])
    return (DiskFullError if value["failed"] == DiskFullError.__name__ else InputError)(value["text"])
