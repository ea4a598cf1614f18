"""What a project is doing now, read from its files alone: nothing is locked, written or decoded. Imports no torch.

``look`` returns a ``Live``: ``masksmith watch`` shows it in a terminal, and a page may show the same.
"""

import contextlib
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from masksmith.core.errors import InputError
from masksmith.core.files import read_json
from masksmith.folds.config import ALL
from masksmith.project.folder import Project
from masksmith.project.members import members_of_run, read_members
from masksmith.project.process import Process, mtime, process_of
from masksmith.project.runs import Run
from masksmith.training.events import read_events

Curve = tuple[tuple[float, float], ...]
"""(epoch, value), in the order of the log."""
State = Literal["waiting", "training", "predicting", "trained", "done", "stopped", "left out"]


@dataclass(frozen=True)
class Training:
    """One fold of a run, or all images."""

    run: str
    fold: int
    """A number, or 999 for all images."""
    state: State
    kind: str = "fold"
    """What a plan trains it for: fold, refit, cycle, seed or recipe."""
    epoch: int = 0
    """Finished epochs."""
    epochs: int | None = None
    score: float | None = None
    """Of the held-out images at the last scoring (higher is better), and the best of all with its epoch."""
    best: float | None = None
    best_epoch: int | None = None
    left_s: float | None = None
    """Seconds that it still trains, as the training itself estimated, less what has gone by since."""
    spent_s: float = 0.0
    """Seconds of its epochs."""
    images_per_s: float | None = None
    peak_gib: float | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    """Name of a value ("loss", "score", "val_loss", "lr", a metric) -> its curve; those of training batches that have
    the name of a metric of held-out images are called "train NAME"."""
    note: str = ""
    """The last thing that happened out of turn: shortened, ended early, rescued; why a unit was left out."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.run}, {'all images' if self.fold == ALL else f'fold {self.fold}'}"


@dataclass(frozen=True)
class Live:
    """A project at one moment."""

    root: Path
    state: Literal["absent", "working", "done", "stopped"]
    """"stopped": no process is at work, and there is something left to do."""
    says: str
    """What it is doing, in a sentence."""
    at: float
    """When it was looked at, in seconds since 1970."""
    process: Process | None = None
    trainings: tuple[Training, ...] = ()
    left_s: float | None = None
    """Seconds until the end of the budget, or of all trainings at the pace so far; None: nothing is known yet."""
    spent_s: float | None = None
    """Of the budget; None where there is none."""
    budget_s: float | None = None
    metric: str = ""
    score: float | None = None
    """Out of fold, of what the present submission is made of; None before the first."""
    standard_error: float | None = None
    baselines: dict[str, float] = field(default_factory=dict)
    """Trivial prediction -> its score."""
    submission: Path | None = None
    report: Path | None = None
    """The files, where they are there."""
    pictures: tuple[Path, ...] = ()
    """The masks that were written last, newest first."""

    @property
    def under_way(self) -> Training | None:
        """The training that is at work."""
        return next((one for one in self.trainings if one.state in ("training", "predicting")), None)

    @property
    def done(self) -> int:
        """Trainings that need nothing more."""
        return sum(one.state in ("done", "left out") for one in self.trainings)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        value: dict[str, Any] = _plain(asdict(self))
        return value


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return a value as JSON has it: paths are texts, numbers that are not finite are null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def look(root: Path, *, pictures: int = 6) -> Live:
    """Return what a project is doing now.

    Args:
        root: Project folder; it may be absent, half begun or under work.
        pictures: Paths of so many masks at most.
    """
    project, now = Project(root), time.time()
    process = process_of(root)
    working = process is not None and process.works
    if not project.data_json.exists():
        if working:
            return Live(root, "working", "reading the data", now, process)
        return Live(root, "absent", "no masksmith project", now, process)
    plan, budget, tuning = (
        _table(path) for path in (project.plan_json, project.budget_json, project.tuning_json)
    )
    trainings = _ordered(_trainings(project, plan, working=working, now=now))
    scores: dict[str, Any] = tuning["scores"] if isinstance(tuning.get("scores"), dict) else {}
    spent, total = budget.get("spent_s"), budget.get("total_s")
    live = Live(
        root,
        "working",
        "",
        now,
        process,
        tuple(trainings),
        spent_s=spent,
        budget_s=total,
        metric=tuning.get("metric", ""),
        score=scores.get("chosen"),
        standard_error=tuning.get("standard_error"),
        baselines={name: scores[name] for name in tuning.get("baselines", ()) if name in scores},
        submission=_if_there(project.submission_csv),
        report=_if_there(project.report_html),
        pictures=_newest(project.masks_dir, pictures),
    )
    if not working:
        return _at_rest(project, live)
    left = _left_s(live, beat=mtime(project.budget_json))
    return replace(live, says=_doing(live), left_s=left)


# --- trainings --------------------------------------------------------------------------------------------


def _trainings(project: Project, plan: dict[str, Any], *, working: bool, now: float) -> list[Training]:
    """Return the units of a plan, and the folds of the runs beside it."""
    units = [unit for unit in plan.get("units", ()) if isinstance(unit, dict)]
    found = []
    for unit in units:
        run = _run(project.runs_dir / str(unit.get("run", "")) / "recipe.yaml")
        if run is None:
            continue
        one = _training(run, int(unit.get("fold", 0)), int(unit.get("epochs", 0)) or None, now)
        one = replace(one, kind=str(unit.get("kind", "fold")))
        if unit.get("joined") is not None:
            state: State = "done" if unit["joined"] else "left out"
            note = one.note if unit["joined"] else _left_out(unit)
            one = replace(one, state=state, note=note)
        found.append(one)
    known = {one.run for one in found}
    for path in sorted(project.runs_dir.glob("*/recipe.yaml")):
        run = _run(path)
        if run is None or run.is_external or path.parent.name in known:
            continue
        epochs = sum(stage.epochs for stage in run.recipe.training.stages)
        found += [_training(run, member.fold, epochs, now) for member in members_of_run(run)]
    begun = [one for one in found if one.state == "stopped"]
    if working and begun:  # of all that were begun, the one whose files changed last is at work
        last = max(begun, key=lambda one: _touched(project, one))
        found[found.index(last)] = replace(last, state="training")
    elif working and not begun:
        predicted = [one for one in found if one.state == "trained"]
        if predicted:
            last = max(predicted, key=lambda one: _touched(project, one))
            found[found.index(last)] = replace(last, state="predicting")
    return [one if one.state == "training" else replace(one, left_s=None) for one in found]


def _ordered(trainings: Sequence[Training]) -> list[Training]:
    rank = {
        "done": 0,
        "left out": 0,
        "trained": 0,
        "predicting": 1,
        "training": 1,
        "stopped": 2,
        "waiting": 3,
    }
    return sorted(trainings, key=lambda one: rank[one.state])


def _training(run: Run, fold: int, epochs: int | None, now: float) -> Training:
    """Return a fold of a run; "stopped" stands for begun and not finished."""
    try:
        done = read_json(run.ledger.path) if run.ledger.path.exists() else {}
    except InputError:
        done = {}
    where = run.checkpoints(fold).name
    events = [event for event in _events(run.events(fold)) if event.get("fold") == fold]
    curves = _curves(events)
    times = {event["name"]: event["value"] for event in events if event["split"] == "timing"}
    state: State = "waiting"
    if f"{where}/train" in done:
        state = "done" if f"{where}/{'test' if fold == ALL else 'oof'}" in done else "trained"
    elif run.checkpoints(fold).is_dir():
        state = "stopped"
    scores = curves.get("score", ())
    best = max(scores, key=lambda one: (one[1], -one[0]), default=None)
    epoch = int(curves["loss"][-1][0]) if "loss" in curves else 0
    left = times.get("left_s")
    return Training(
        run.path.name,
        fold,
        state,
        epoch=epoch,
        epochs=int(times["epochs"]) if "epochs" in times else epochs,
        score=scores[-1][1] if scores else None,
        best=best and best[1],
        best_epoch=best and int(best[0]),
        left_s=None if left is None else max(0.0, left - max(0.0, now - mtime(run.events(fold)))),
        spent_s=sum(event["value"] for event in events if event["name"] == "seconds"),
        images_per_s=times.get("images_per_s"),
        peak_gib=times.get("peak_gib"),
        curves=curves,
        note=_note(events),
    )


def _left_out(unit: dict[str, Any]) -> str:
    """Say why a unit is no member."""
    before, after = unit.get("score_before"), unit.get("score_after")
    if isinstance(before, float) and isinstance(after, float):
        return f"left out: {after:.4f} with it, {before:.4f} without"
    return f"left out: {str(unit.get('reason', '')).rpartition('; ')[2]}"


def _curves(events: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    found: dict[str, list[tuple[float, float]]] = {}
    held_out = {event["name"] for event in events if event["split"] == "fold"}
    for event in events:
        if event["split"] not in ("train", "fold") or event["name"] == "stage":
            continue
        twice = event["split"] == "train" and event["name"] in held_out
        found.setdefault(f"train {event['name']}" if twice else event["name"], []).append(
            (event["epoch"], event["value"])
        )
    return {name: tuple(curve) for name, curve in found.items()}


def _note(events: Sequence[dict[str, Any]]) -> str:
    """Say the last event that is no number of an epoch."""
    last = next((event for event in reversed(events) if event["split"] == "event"), None)
    if last is None:
        return ""
    at, name, value = last["epoch"], last["name"], last["value"]
    said = {
        "replanned": lambda: f"{value:.0%} of the steps ahead will be made, for the time left",
        "ended": lambda: f"the {value} ended early: no gain",
        "rate_scale": lambda: f"learning rate lowered to {value:.2g} of the schedule",
        "lr_scale": lambda: f"diverged, and went back with {value:.2g} of the learning rate",
    }
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return f"epoch {at:g}: {said[name]()}"
    return f"epoch {at:g}: {name} {value}"


# --- what is going on -------------------------------------------------------------------------------------


def _doing(live: Live) -> str:
    one = live.under_way
    if one is None:
        return "at work between trainings: planning, tuning or writing"
    if one.state == "predicting":
        return f"predicting with {one.name}"
    of = f" of {one.epochs}" if one.epochs else ""
    return f"training {one.name}: epoch {one.epoch + 1}{of}"


def _at_rest(project: Project, live: Live) -> Live:
    """Say what a project without a process has come to."""
    try:
        asked = {(member.run.path.name, member.fold) for member in read_members(project, None)}
    except InputError:
        asked = set()
    unit = next((one for one in live.trainings if one.state == "stopped"), None)
    open_ = [one for one in live.trainings if (one.run, one.fold) in asked and one.state != "done"]
    if asked and not open_ and live.score is not None and (unit is None or unit.kind == "fold"):
        makes = "1 training makes" if len(asked) == 1 else f"{len(asked)} trainings make"
        return replace(live, state="done", says=f"done: {makes} the submission")
    count = (
        f"{live.done} of {len(live.trainings)} trainings are done" if live.trainings else "nothing is trained"
    )
    who = "no process is at work"
    if live.process is not None and live.process.alive:
        who = f"pid {live.process.pid} is alive, but holds no lock here at the moment"
    return replace(live, state="stopped", says=f"{who}; {count}. The same command goes on from there")


def _left_s(live: Live, *, beat: float) -> float | None:
    if live.budget_s is not None and live.spent_s is not None:
        return max(0.0, live.budget_s - live.spent_s - max(0.0, live.at - beat))
    one = live.under_way
    waiting = [other for other in live.trainings if other.state == "waiting"]
    if one is None or one.left_s is None:
        return None
    done = [other.spent_s for other in live.trainings if other.state == "done" and other.spent_s]
    each = sum(done) / len(done) if done else one.spent_s + one.left_s
    return one.left_s + each * len(waiting)


# --- files ------------------------------------------------------------------------------------------------


def _table(path: Path) -> dict[str, Any]:
    """Return a JSON file's table; empty where there is none, or something else."""
    try:
        value = read_json(path) if path.exists() else {}
    except (InputError, OSError):
        return {}
    return value if isinstance(value, dict) else {}


def _touched(project: Project, one: Training) -> tuple[float, float]:
    """Return when a training's files changed last."""
    run = _run(project.runs_dir / one.run / "recipe.yaml")
    if run is None:
        return 0.0, 0.0
    at = mtime(run.checkpoints(one.fold))
    return max(at, mtime(run.events(one.fold))), at


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


def _newest(folder: Path, count: int) -> tuple[Path, ...]:
    """Return the files of a folder that were written last; of a very large folder, of its first 5,000."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number >= 5000:
                break
            if entry.name.endswith(".png") and not entry.name.startswith("."):
                found.append((entry.stat().st_mtime, entry.name))
    return tuple(folder / name for _, name in sorted(found, reverse=True)[:count])


def _run(recipe: Path) -> Run | None:
    try:
        return _read_run(recipe, mtime(recipe))
    except (InputError, OSError):
        return None


@lru_cache(maxsize=256)
def _read_run(recipe: Path, _changed: float) -> Run:
    return Project(recipe.parents[2]).run(recipe.parent.name)


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        found = path.stat()
        return _read_events(path, found.st_mtime_ns, found.st_size)
    except OSError:
        return []


@lru_cache(maxsize=64)
def _read_events(path: Path, _changed: int, _size: int) -> list[dict[str, Any]]:
    wanted = {"fold", "epoch", "split", "name", "value"}
    return [event for event in read_events(path) if isinstance(event, dict) and event.keys() >= wanted]
