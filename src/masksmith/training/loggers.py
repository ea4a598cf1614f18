"""``--log tensorboard | mlflow | wandb``: the events of a fold's log handed on to an experiment tracker.

``metrics.fold_k.jsonl`` stays the log of record. After each checkpoint the events that a tracker has not got yet are
sent, so a training that goes on continues the tracker's run, and no point comes twice. How many were sent stands in
``runs/RUN/loggers/NAME.FOLD.json``. A tracker that fails is left for the rest of the process, with a warning; the next
call sends what it missed.
"""

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.core.files import digest, read_json, write_json
from masksmith.core.progress import logger
from masksmith.training.events import read_events

Event = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """What is logged, and where a tracker without a server of its own writes."""

    folder: Path
    """Of all trackers of the project."""
    project: str
    run: str
    """"RUN/fold_0": with another number behind it where it was begun anew."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The recipe as plain values."""
    id: str = ""
    """What the tracker called the run in an earlier process; empty for a new one."""


@runtime_checkable
class Tracker(Protocol):
    """A run of an experiment tracker that is open."""

    id: str
    """By which it can be opened again."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve: "fold/score" -> value."""

    def close(self) -> None:
        """Write what is not written yet."""


class _Tensorboard:
    def __init__(self, place: Place) -> None:
        try:
            module: Any = import_module("torch.utils.tensorboard")
        except ImportError:
            module = import_module("tensorboardX")
        self.id = place.run
        self.writer: Any = module.SummaryWriter(str(place.folder / "tensorboard" / place.run))
        if not place.id:
            self.writer.add_text(
                "recipe", "\n".join(f"    {key}: {value}" for key, value in _flat(place.config))
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Mlflow:
    """MLflow's client, without its state of the process; MLFLOW_TRACKING_URI names a server in place of files."""

    def __init__(self, place: Place) -> None:
        entities: Any = import_module("mlflow.entities")
        tracking: Any = import_module("mlflow.tracking")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:  # a database needs more packages; MLflow 3 takes files only where this is set
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (place.folder / "mlflow").resolve().as_uri()
        self.metric, self.client = entities.Metric, tracking.MlflowClient(uri)
        if place.id:
            self.id = place.id
            self.client.update_run(self.id, status="RUNNING")
            return
        known = self.client.get_experiment_by_name(place.project)
        experiment = known.experiment_id if known else self.client.create_experiment(place.project)
        self.id = self.client.create_run(experiment, run_name=place.run).info.run_id
        params = [entities.Param(key, str(value)[:500]) for key, value in _flat(place.config)]
        for at in range(0, len(params), 100):  # no more go at once
            self.client.log_batch(self.id, params=params[at : at + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(
            self.id, metrics=[self.metric(name, value, now, step) for name, value in values.items()]
        )

    def close(self) -> None:
        self.client.set_terminated(self.id)


class _Wandb:
    """Weights & Biases, offline unless WANDB_MODE says otherwise; ``wandb sync`` sends such runs later."""

    def __init__(self, place: Place) -> None:
        wandb: Any = import_module("wandb")
        self.id = place.id or digest(place.project, place.run, str(place.folder.resolve()))[:12]
        place.folder.mkdir(parents=True, exist_ok=True)
        self.run: Any = wandb.init(
            project=place.project, name=place.run, id=self.id, dir=str(place.folder), config=dict(place.config),
            mode=os.environ.get("WANDB_MODE") or "offline", resume="allow", reinit="finish_previous",
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


@dataclass(frozen=True)
class _Kind:
    open: Callable[[Place], Tracker]
    packages: tuple[str, ...]
    """One of them is needed."""


LOGGERS: dict[str, _Kind] = {
    "tensorboard": _Kind(_Tensorboard, ("tensorboard", "tensorboardX")),
    "mlflow": _Kind(_Mlflow, ("mlflow",)),
    "wandb": _Kind(_Wandb, ("wandb",)),
}
"""What ``--log`` can name; each is an extra of that name."""


def check_loggers(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, each once.

    Raises:
        InputError: An unknown one, or one whose package is not installed; a line for each.
    """
    wrong = []
    for name in dict.fromkeys(names):
        try:
            kind = look_up(LOGGERS, name, where="--log")
        except InputError as error:
            wrong.append(str(error))
            continue
        if not any(importlib.util.find_spec(package) for package in kind.packages):
            wrong.append(
                f"--log {name}: {' or '.join(kind.packages)} is not installed; install it, or masksmith[{name}]"
            )
    if wrong:
        raise InputError("\n".join(wrong))
    return tuple(dict.fromkeys(names))


class Follower:
    """Hands the events of one fold on to one tracker, each once.

    Args:
        name: A key of LOGGERS.
        events: ``metrics.fold_k.jsonl``.
        fold: Whose events.
        place: What the tracker is told.
        sent: File with how many events were sent.
    """

    def __init__(self, name: str, events: Path, *, fold: int, place: Place, sent: Path) -> None:
        self.name, self.events, self.fold, self.place, self.sent = name, events, fold, place, sent
        self._tracker: Tracker | None = None
        self._failed = False

    def sync(self) -> None:
        """Send what was not sent yet; a failure is said once, and never raised."""
        if self._failed:
            return
        before = self._before()
        done, last = before.get("sent", 0), before.get("last")
        try:
            events = [event for event in read_events(self.events) if event["fold"] == self.fold]
            count = before.get("sent", 0)
            if count and events[count - 1 : count] != [before.get("last")]:  # the training was begun anew
                self.close()
                before = {"attempt": before.get("attempt", 1) + 1, "sent": 0, "id": ""}
            fresh = events[before.get("sent", 0) :]
            if not fresh:
                return
            tracker = self._open(before)
            now = before | {"id": tracker.id, "sent": len(events), "last": events[-1]}
            write_json(
                self.sent, now
            )  # before they are sent: a kill in between loses a point and doubles none
            for own in _epochs(fresh):
                tracker.log(int(own[0]["epoch"]), _values(own))
                done, last = done + len(own), own[-1]
        except Exception as error:  # whatever it is, a training is worth more
            self._failed = True
            logger.warning(
                "--log %s: %s: %s; the training goes on without it", self.name, type(error).__name__, error
            )
            if self._tracker is not None:
                with contextlib.suppress(Exception):  # the disk may be what failed
                    write_json(self.sent, before | {"id": self._tracker.id, "sent": done, "last": last})

    def close(self) -> None:
        """Let the tracker write what it holds."""
        if self._tracker is None:
            return
        try:
            self._tracker.close()
        except Exception as error:  # as above
            logger.warning("--log %s: %s: %s", self.name, type(error).__name__, error)
        self._tracker = None

    def _before(self) -> dict[str, Any]:
        try:
            found = read_json(self.sent) if self.sent.exists() else {}
        except InputError:
            found = {}
        return {"attempt": 1, "sent": 0, "id": ""} | (found if isinstance(found, dict) else {})

    def _open(self, before: Mapping[str, Any]) -> Tracker:
        if self._tracker is None:
            attempt = before["attempt"]
            run = self.place.run if attempt == 1 else f"{self.place.run}-{attempt}"
            self._tracker = LOGGERS[self.name].open(replace(self.place, run=run, id=before["id"]))
        return self._tracker


def _epochs(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Yield the events of each epoch."""
    for _, own in groupby(events, key=lambda event: int(event["epoch"])):
        yield list(own)


def _values(events: Sequence[Event]) -> dict[str, float]:
    """Return the numbers of an epoch: "SPLIT/NAME" -> value."""
    values = {f"{one['split']}/{one['name']}": one["value"] for one in events}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield (dotted key, value) of a table in tables and lists."""
    inner = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    )
    if inner is None:
        yield key, value
        return
    for name, one in inner:
        yield from _flat(one, f"{key}.{name}" if key else str(name))
