"""The ground of the faults: one small run, its write points, its clean twin, and what is compared. See faults.py."""

import errno
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import masksmith as ms  # first: its guard lets torchvision import beside a CPU build of torch

KILLED = 77
TIMEOUT_S = 120

OVERRIDES = {
    "folds.count": 2,
    "model.dropout": 0.2,  # so that torch's generator matters too
    "model.encoder": "tu-test_resnet",
    "model.encoder_weights": "none",
    "model.encoder_depth": 3,
    "model.decoder_channels": [8, 8, 8],
    "training.batch_size": 4,
    "training.threads": 1,
    "training.precision": "32-true",
    "training.device": "cpu",
    "training.evaluate_every": 1,
    "training.select": "best",
    "training.top_k": 2,
    "training.keep": ["last", "best_loss"],
    "prediction.batch_size": 4,
    "tuning.resamples": 100,
    "tuning.bottom_thresholds": [0.4, 0.5],
    "tuning.top_thresholds": [0.5, 0.6],
    "tuning.min_area_fracs": [0.0, 0.01],
}

# What must be the same bytes as in the clean twin; every pattern must find something there.
COMPARED = (
    "folds.csv",
    "tuning.json",
    "submission.csv",
    "submission.json",
    "masks/**/*.png",
    "runs/*/recipe.yaml",
    "runs/*/metrics*.jsonl",
    "runs/*/checkpoints/*/*",
    "runs/*/oof/*.npy",
    "runs/*/oof/*.csv",
    "runs/*/test/*.npy",
    "runs/*/test/*.csv",
)

COMPARED_OF = {"instances": ("objects.json",)}

# Of a run with a budget too: its units, in the order of the plan, and what is averaged.
COMPARED_BUDGET = (*COMPARED, "plan.json", "ensemble/members.json")
BUDGET = "9h"  # all units are trained: what is planned does not hang on the clock


class Fault(OSError):
    """Raised in place of the system's own error."""


@dataclass(frozen=True)
class Point:
    """Where a run can be stopped: a write point of the product, or a step of the training."""

    path: str
    phase: str


class Watch:
    """Counts the points that a process comes by, and strikes at one of them and (for a full disk) at all after it."""

    def __init__(self, out: Path, *, at: int | None = None, strike: Callable[[], None] | None = None) -> None:
        self.out, self.at, self.strike = out.resolve(), at, strike
        self.seen: list[Point] = []

    def __call__(self, path: Path, phase: str) -> None:
        number = len(self.seen)
        path = Path(path).absolute()
        name = str(path.relative_to(self.out)) if path.is_relative_to(self.out) else path.name
        self.seen.append(Point(name, phase))
        if self.is_due(number, phase):
            self.strike()

    def is_due(self, number: int, phase: str) -> bool:
        """Whether to strike now: a full disk stays full, and stops neither a removal nor a step."""
        if self.strike is None or self.at is None:
            return False
        return number >= self.at and needs_room(phase) if self.strike is no_space else number == self.at


def needs_room(phase: str) -> bool:
    return phase not in ("remove", "step")


def exit_now() -> None:
    os._exit(KILLED)


def ask_to_stop() -> None:
    """Send SIGTERM to this process."""
    signal.raise_signal(signal.SIGTERM)


def no_space() -> None:
    raise Fault(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- the run ----------------------------------------------------------------------------------------------


def make_data(folder: Path, task: str) -> Path:
    """Generate 24 training and 6 test images of 40x40 pixels; of scenes the sides are 80 to 96."""
    from masksmith.data import synthetic

    sizes = synthetic.SIZE, synthetic.SIDES
    synthetic.SIZE, synthetic.SIDES = 40, (80, 96)
    try:
        return ms.example(folder, train=24, test=6, task=task)
    finally:
        synthetic.SIZE, synthetic.SIDES = sizes


def overrides_of(task: str) -> dict[str, object]:
    """Return the overrides for the recipe of a task: every stage is an epoch long."""
    from masksmith.recipes.recipe import load_recipe
    from masksmith.recipes.sources import AUTO_OF

    stages = load_recipe(AUTO_OF[task]).training.stages
    return OVERRIDES | {f"training.stages.{at}.epochs": 1 for at in range(len(stages))}


def prepare() -> None:
    """Import what a run needs, on one thread, and change what the harness changes."""
    import cv2
    import torch

    import masksmith.training.data as training_stages

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.fsync = lambda _descriptor: None
    make_batch = training_stages.make_batch

    def step(*arguments, **options):
        from masksmith.core import files

        files.write_point(Path("batch"), "step")
        return make_batch(*arguments, **options)

    training_stages.make_batch = step


def plant_rng() -> None:
    """The planted bug: training draws from one generator of the process, whose state nobody restores."""
    import numpy as np

    importlib.import_module("masksmith.training.loop")
    shared = np.random.default_rng(0)
    for name, module in list(sys.modules.items()):
        if name.startswith(("masksmith.training", "masksmith.augment")) and hasattr(module, "stream"):
            module.stream = lambda *_counters: shared


def fork(work: Callable[[], object], log: Path) -> int:
    """Run ``work`` in a forked process and return its pid; it exits with 0, 2 (a refusal) or 1 (another error)."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(TIMEOUT_S)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        work()
        code = 0
    except ms.InputError as error:
        print(f"refused: {error}", flush=True)
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def steady_machine() -> None:
    """Plan for a machine of known speed, by rules for short trainings: folds, cycles, a seed, a second net."""
    from functools import partial

    import masksmith.steps.compete as competing
    import masksmith.steps.plan as planner
    from masksmith.steps.resolve import resolve
    from tests.planning.machine import Machine

    machine = Machine(largest=8)
    rules = planner.load_rules()
    net = {
        "encoder": "tu-test_resnet",
        "pretrained": False,
        "encoder_depth": 3,
        "decoder_channels": [8, 8, 8],
    }
    names = ("unet_dropout", "unetplusplus")
    short = {
        "candidates": [
            rules.candidates[-1].model_copy(update={"architecture": name} | net) for name in names
        ],
        "length": rules.length.model_copy(
            update={"epochs_least": 1, "epochs_most": 3, "single_stage_below": 1}
        ),
        "units": rules.units.model_copy(
            update={"cycle_epochs_least": 1, "cycle_epochs_most": 1, "cycles_a_fold": 1, "seeds_a_fold": 2}
        ),
    }
    planner.load_rules = lambda: rules.model_copy(update=short)
    competing.machine_tools = lambda project, _asked: replace(
        machine.tools(), resolve=partial(resolve, project)
    )


@dataclass(frozen=True)
class Ground:
    """Where the trials happen, and what they are compared with."""

    scratch: Path
    data: Path
    clean: Path
    points: list[Point]
    seconds: float
    task: str = "binary"
    budget: bool = False

    def run(self, out: Path, watch: Watch | None = None) -> int:
        """Run ``compete`` in a process of its own; return its exit code."""
        return wait(self.begin(out, watch))

    def begin(self, out: Path, watch: Watch | None = None) -> int:
        """Start ``compete``; return the pid."""
        return fork(lambda: self.compete(out, watch), out.with_suffix(".log"))

    def compete(self, out: Path, watch: Watch | None) -> None:
        """Run ``compete`` here."""
        compete(self.data, out, watch, overrides_of(self.task), budget=self.budget)

    def differences(self, out: Path) -> list[str]:
        """Return what differs between the clean twin and a project folder, and what was left behind."""
        return differences(self.clean, out, self.compared, budget=self.budget)

    @property
    def compared(self) -> tuple[str, ...]:
        """Patterns of the files that must be the same."""
        return (*(COMPARED_BUDGET if self.budget else COMPARED), *COMPARED_OF.get(self.task, ()))


def compete(
    data: Path, out: Path, watch: Watch | None, overrides: dict[str, object], *, budget: bool
) -> None:
    from masksmith.core import files

    files.on_write = watch
    if budget:  # which decides epochs and batch itself
        own = ("training.stages", "training.batch_size")
        overrides = {key: value for key, value in overrides.items() if not key.startswith(own)}
    result = ms.compete(data, out=out, overrides=overrides, budget=BUDGET if budget else None)
    if result.stopped is not None:
        assert result.submission is not None, "a stop without a submission"
        os._exit(result.stopped)


def clean_run(scratch: Path, task: str, *, budget: bool = False) -> Ground:
    """Make the clean twin, learn its points, and see that a second one is identical.

    The parent goes the way once itself, so that no trial spends its time on imports; it must stay of one thread,
    because a fork takes only one along.
    """
    data, clean, report = make_data(scratch / "example", task), scratch / "clean", scratch / "clean.json"
    ground = Ground(scratch, data, clean, [], 0.0, task, budget)

    scratch.mkdir(exist_ok=True)
    if budget:
        steady_machine()
    ground.compete(scratch / "warm", None)
    assert threading.active_count() == 1
    if Path("/proc/self/task").is_dir():
        assert len(list(Path("/proc/self/task").iterdir())) == 1, (
            "more than one thread: a fork would be unsafe"
        )
    gc.collect()
    gc.freeze()

    def learn() -> None:
        watch = Watch(clean)
        ground.compete(clean, watch)
        report.write_text(json.dumps([vars(point) for point in watch.seen]))

    if wait(fork(learn, scratch / "clean.log")) != 0:
        sys.exit(f"the clean run failed:\n{(scratch / 'clean.log').read_text()}")
    points = [Point(**point) for point in json.loads(report.read_text())]
    for pattern in ground.compared:
        assert list(clean.glob(pattern)), f"{pattern}: nothing in the clean run; is the list of files old?"
    started = time.monotonic()
    code = ground.run(scratch / "again")
    seconds = time.monotonic() - started
    if code != 0 or (found := ground.differences(scratch / "again")):
        sys.exit(f"two clean runs differ: exit code {code}, {found}")
    return replace(ground, points=points, seconds=seconds)


# --- comparing --------------------------------------------------------------------------------------------


LOCKS = (".masksmith.lock", ".updates.lock")


def content(path: Path) -> object:
    """Return what is compared of a file: its bytes; of the log, the events without their times."""
    if path.name == "plan.json":
        plan = json.loads(path.read_text())
        return plan | {"units": [unit | {"took_s": 0, "expected_s": 0} for unit in plan["units"]]}
    if not path.match("metrics*.jsonl"):
        return path.read_bytes()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [event | {"value": None} if event["split"] == "timing" else event for event in events]


def differences(
    clean: Path, other: Path, compared: Iterable[str] = COMPARED, *, budget: bool = False
) -> list[str]:
    """Return what differs between two project folders, and what was left behind."""
    found: list[str] = []
    for pattern in compared:
        one, two = (
            {path.relative_to(root) for path in root.glob(pattern) if path.name not in LOCKS}
            for root in (clean, other)
        )
        found += [f"{path}: only in {'the clean run' if path in one else 'this one'}" for path in one ^ two]
        found += [f"{path}: differs" for path in one & two if content(clean / path) != content(other / path)]
    scrap = [path for path in other.rglob(".*") if path.name not in LOCKS]
    scrap += [*other.glob("runs/*/interim"), *([] if budget else other.glob("ensemble/*"))]
    return sorted(found) + [f"{path.relative_to(other)}: left behind" for path in scrap]
