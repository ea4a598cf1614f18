"""``make faults``: one small run, stopped in every way, must end with the bits of its clean twin.

    python -m tests.faults [--part kills|points|sigkill|disk|all] [--sample N] [--plant rng] [--jobs 2]

kills    one project, its process left by ``os._exit`` 50 times at pseudo-random write points and training steps
points   for every write point and step of the clean run: left there, from nothing, and continued
sigkill  10 real SIGKILLs at random times
disk     for every write point: no space from there on; the command must refuse clearly, and go on when there is room

Write points are where ``masksmith.files`` says that the state on disk is about to change or has changed. The parent
goes the way once, on one thread; each trial is forked from it. ``os.fsync`` does nothing here: a killed process does
not lose what the system has taken. Prints every failure, and last ``N of N survived``; exit code 1 if it was fewer.
"""

import argparse
import errno
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import masksmith as ms  # first: its guard lets torchvision import beside a CPU build of torch

KILLED = 77
TIMEOUT_S = 120
PARTS = ("kills", "points", "sigkill", "disk")

OVERRIDES = {
    "folds.count": 2,
    "model.architecture": "unet_dropout",
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
    "training.stages.0.epochs": 1,
    "training.stages.1.epochs": 1,
    "training.stages.2.epochs": 1,
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
    "masks/*.png",
    "runs/*/recipe.yaml",
    "runs/*/metrics.jsonl",
    "runs/*/checkpoints/*/*",
    "runs/*/oof/*.npy",
    "runs/*/oof/*.csv",
    "runs/*/test/*.npy",
    "runs/*/test/*.csv",
)


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
        if self.strike is not None and self.at is not None and number >= self.at and can_strike(self, phase):
            self.strike()


def can_strike(watch: Watch, phase: str) -> bool:
    """Whether a fault can happen at this phase: a full disk stops neither a removal nor a step."""
    return watch.strike is exit_now or needs_room(phase)


def needs_room(phase: str) -> bool:
    return phase not in ("remove", "step")


def exit_now() -> None:
    os._exit(KILLED)


def no_space() -> None:
    raise Fault(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- the run ----------------------------------------------------------------------------------------------


def unet_dropout(config, in_channels):
    """The house's U-Net with dropout before its head, so that torch's generator matters too."""
    from torch import nn

    from masksmith.models.segmentation import _unet

    net = _unet(config, in_channels)
    net.decoder = nn.Sequential(net.decoder, nn.Dropout(0.2))
    return net


def make_data(folder: Path) -> Path:
    """Generate 24 training and 6 test images of 40x40 pixels."""
    from masksmith.data import synthetic

    size, synthetic.SIZE = synthetic.SIZE, 40
    try:
        return ms.example(folder, train=24, test=6)
    finally:
        synthetic.SIZE = size


def prepare() -> None:
    """Import what a run needs, on one thread, and change what the harness changes."""
    import cv2
    import torch

    import masksmith.stages
    import masksmith.training.loop
    import masksmith.training.stages as training_stages
    from masksmith.models.segmentation import MODELS

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.fsync = lambda _descriptor: None
    MODELS["unet_dropout"] = unet_dropout
    make_batch = training_stages.make_batch

    def step(*arguments, **options):
        from masksmith import files

        files.write_point(Path("batch"), "step")
        return make_batch(*arguments, **options)

    training_stages.make_batch = step


def plant_rng() -> None:
    """The planted bug: training draws from one generator of the process, whose state nobody restores."""
    import numpy as np

    shared = np.random.default_rng(0)
    for name, module in list(sys.modules.items()):
        if name.startswith(("masksmith.training", "masksmith.augment")) and hasattr(module, "stream"):
            module.stream = lambda *_counters: shared


def fork(work: Callable[[], object], log: Path) -> int:
    """Run ``work`` in a forked process; return its pid. Its exit code: 0, 2 for a clear refusal, 1 for any other error."""
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


@dataclass(frozen=True)
class Ground:
    """Where the trials happen, and what they are compared with."""

    scratch: Path
    data: Path
    clean: Path
    points: list[Point]
    seconds: float

    def run(self, out: Path, watch: Watch | None = None) -> int:
        """Run ``compete`` in a process of its own; return its exit code."""
        return wait(self.begin(out, watch))

    def begin(self, out: Path, watch: Watch | None = None) -> int:
        """Start ``compete``; return the pid."""
        return fork(lambda: compete(self.data, out, watch), out.with_suffix(".log"))


def compete(data: Path, out: Path, watch: Watch | None) -> None:
    from masksmith import files

    files.on_write = watch
    ms.compete(data, out=out, overrides=OVERRIDES)


def clean_run(scratch: Path) -> Ground:
    """Make the clean twin, learn its points, and see that a second one is identical.

    The parent goes the way once itself, so that no trial spends its time on imports; it must stay of one thread, because
    a fork takes only one along.
    """
    data, clean, report = make_data(scratch / "example"), scratch / "clean", scratch / "clean.json"

    compete(data, scratch / "warm", None)
    assert threading.active_count() == 1
    if Path("/proc/self/task").is_dir():
        assert len(list(Path("/proc/self/task").iterdir())) == 1, (
            "more than one thread: a fork would be unsafe"
        )
    gc.collect()
    gc.freeze()

    def learn() -> None:
        watch = Watch(clean)
        compete(data, clean, watch)
        report.write_text(json.dumps([vars(point) for point in watch.seen]))

    if wait(fork(learn, scratch / "clean.log")) != 0:
        sys.exit(f"the clean run failed:\n{(scratch / 'clean.log').read_text()}")
    points = [Point(**point) for point in json.loads(report.read_text())]
    for pattern in COMPARED:
        assert list(clean.glob(pattern)), f"{pattern}: nothing in the clean run; is the list of files old?"
    ground = Ground(scratch, data, clean, points, 0.0)
    started = time.monotonic()
    code = ground.run(scratch / "again")
    seconds = time.monotonic() - started
    if code != 0 or (found := differences(clean, scratch / "again")):
        sys.exit(f"two clean runs differ: exit code {code}, {found}")
    return Ground(scratch, data, clean, points, seconds)


# --- comparing --------------------------------------------------------------------------------------------


def content(path: Path) -> object:
    """Return what is compared of a file: its bytes; of the log, the events without their times."""
    if path.name != "metrics.jsonl":
        return path.read_bytes()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [event | {"value": None} if event["split"] == "timing" else event for event in events]


def differences(clean: Path, other: Path) -> list[str]:
    """Return what differs between two project folders, and what was left behind."""
    found = []
    for pattern in COMPARED:
        one, two = ({path.relative_to(root) for path in root.glob(pattern)} for root in (clean, other))
        found += [f"{path}: only in {'the clean run' if path in one else 'this one'}" for path in one ^ two]
        found += [f"{path}: differs" for path in one & two if content(clean / path) != content(other / path)]
    scrap = [path for path in other.rglob(".*") if path.name != ".lock"]
    return sorted(found) + [f"{path.relative_to(other)}: left behind" for path in scrap]


# --- trials: each yields (faults, what went wrong) ----------------------------------------------------------

Verdicts = Iterator[tuple[int, str | None]]


def judged(
    ground: Ground, out: Path, faults: int, where: str, *, finish: bool = True
) -> tuple[int, str | None]:
    """Continue a stopped run to its end and compare it; a folder that survived is removed."""
    code = ground.run(out) if finish else 0
    if code != 0:
        return (
            faults,
            f"{where}: the continued run ended with exit code {code}, see {out.with_suffix('.log')}",
        )
    if found := differences(ground.clean, out):
        shown = "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        return faults, f"{where}: {shown}"
    shutil.rmtree(out)
    return faults, None


def strike_at(ground: Ground, part: str, number: int) -> Verdicts:
    """One point: stopped there, or no room from there on, then continued."""
    out = ground.scratch / f"{part}-{number}"
    point = ground.points[number]
    where = f"{part} {number}: {point.phase} {point.path}"
    strike, expected = (exit_now, KILLED) if part == "points" else (no_space, 2)
    code = ground.run(out, Watch(out, at=number, strike=strike))
    if code != expected:
        yield 1, f"{where}: exit code {code}, expected {expected}; see {out.with_suffix('.log')}"
        return
    if part == "disk" and "the disk is full" not in (said := out.with_suffix(".log").read_text()):
        yield 1, f"{where}: the refusal does not speak of the disk: {said[-200:]}"
        return
    yield judged(ground, out, 1, where)


def kill_often(ground: Ground, kills: int) -> Verdicts:
    """One project after the other, each left at random points until it is finished, until all kills are spent."""
    rng, spent, project = random.Random(0), 0, 0
    reach = max(8, len(ground.points) // 8)
    while spent < kills:
        out, mine, code, project = ground.scratch / f"kills-{project}", 0, KILLED, project + 1
        while spent + mine < kills and code == KILLED:
            code = ground.run(out, Watch(out, at=rng.randrange(reach), strike=exit_now))
            mine += code == KILLED
        spent += max(mine, 1)
        yield (
            judged(ground, out, mine, f"kills: {mine} in project {out.name}")
            if code in (0, KILLED)
            else (
                max(mine, 1),
                f"kills: after {mine} in {out.name}, exit code {code}; see {out.with_suffix('.log')}",
            )
        )


def kill_really(ground: Ground, kills: int) -> Verdicts:
    """As kill_often, with signals that come at random times."""
    rng, spent, project = random.Random(1), 0, 0
    while spent < kills:
        out, mine, code, project = ground.scratch / f"sigkill-{project}", 0, -signal.SIGKILL, project + 1
        while spent + mine < kills and code == -signal.SIGKILL:
            pid = ground.begin(out)
            time.sleep(rng.uniform(0.05, 0.45) * ground.seconds)
            os.kill(pid, signal.SIGKILL)  # not waited for yet, so the pid is still this process
            code = wait(pid)
            mine += code == -signal.SIGKILL
        spent += max(mine, 1)
        yield (
            judged(ground, out, mine, f"sigkill: {mine} in {out.name}")
            if code in (0, -signal.SIGKILL)
            else (
                max(mine, 1),
                f"sigkill: after {mine} in {out.name}, exit code {code}; see {out.with_suffix('.log')}",
            )
        )


# --- all of them --------------------------------------------------------------------------------------------


def plan(ground: Ground, part: str, sample: int | None) -> list[tuple[str, Callable[[], Verdicts]]]:
    """Return the named trials of a part."""
    if part == "kills":
        return [(part, lambda: kill_often(ground, sample or 50))]
    if part == "sigkill":
        return [(part, lambda: kill_really(ground, sample or 10))]
    able = [i for i, point in enumerate(ground.points) if part == "points" or needs_room(point.phase)]
    if sample is not None:
        able = [able[(2 * i + 1) * len(able) // (2 * sample)] for i in range(sample)]
    return [(f"{part} {i}", lambda i=i: strike_at(ground, part, i)) for i in able]


def run_all(ground: Ground, trials: list[tuple[str, Callable[[], Verdicts]]], jobs: int) -> tuple[int, int]:
    """Run the trials, so many at a time; return (faults, survived)."""
    working: dict[int, Path] = {}
    faults = survived = done = 0
    waiting = list(enumerate(trials))
    while waiting or working:
        while waiting and len(working) < jobs:
            number, (_, trial) = waiting.pop(0)
            result = ground.scratch / f"trial-{number}.json"
            working[spawn(trial, result)] = result
        pid, _ = os.wait()
        result = working.pop(pid)
        verdicts = (
            json.loads(result.read_text()) if result.exists() else [[1, f"{result.stem}: the trial died"]]
        )
        done += 1
        for count, failure in verdicts:
            faults += count
            survived += 0 if failure else count
            if failure:
                print(f"FAILED {failure}", flush=True)
        if done % 25 == 0 or not (waiting or working):
            print(f"{done} of {len(trials)} trials, {survived} of {faults} survived", flush=True)
    return faults, survived


def spawn(trial: Callable[[], Verdicts], result: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        result.write_text(json.dumps(list(trial())))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--sample", type=int, help="so many faults of each part; default: all")
    parser.add_argument("--plant", choices=["rng"], help="plant a bug that must be caught")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare()
    if options.plant:
        plant_rng()
    scratch, started = Path(tempfile.mkdtemp(prefix="faults-")), time.monotonic()
    ground = clean_run(scratch)
    print(f"clean run: {ground.seconds:.1f} s, {len(ground.points)} points", flush=True)
    parts = PARTS if options.part == "all" else (options.part,)
    trials = [trial for part in parts for trial in plan(ground, part, options.sample)]
    faults, survived = run_all(ground, trials, options.jobs)
    if survived == faults:
        shutil.rmtree(scratch)
    else:
        print(f"what failed is kept in {scratch}")
    print(f"{time.monotonic() - started:.0f} s")
    print(f"{survived} of {faults} survived")
    return int(survived < faults)


if __name__ == "__main__":
    sys.exit(main())
