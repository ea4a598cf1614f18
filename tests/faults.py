"""``make faults``: one small run, stopped in every way, must end with the bits of its clean twin.

    python -m tests.faults [--part kills|points|sigkill|disk|stops|budget|all] [--sample N] [--plant rng] [--jobs 2]
        [--task binary|multiclass|multilabel|instances] [--scratch FOLDER]

kills    one project, its process left by ``os._exit`` 50 times at pseudo-random write points and training steps
points   for every write point and step of the clean run: left there, from nothing, and continued
sigkill  10 real SIGKILLs at random times
disk     for every write point: no space from there on; the command must refuse clearly, and go on when there is room
stops    40 times SIGTERM at a write point or step: a complete submission of what was trained, then continued
budget   the same run with a budget and many units: left at every write point of the plan and of the members, and at
         40 others, and continued

Write points are where ``masksmith.core.files`` says that the state on disk changes or has changed. The parent
goes the way once, on one thread; each trial is forked from it. ``os.fsync`` does nothing here: a killed process does
not lose what the system has taken. Prints every failure, and last ``N of N survived``; exit code 1 if it was fewer.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from masksmith.recipes.sources import AUTO_OF
from tests.faults_ground import (
    KILLED,
    Ground,
    Watch,
    ask_to_stop,
    clean_run,
    exit_now,
    needs_room,
    no_space,
    plant_rng,
    prepare,
    wait,
)

PARTS = ("kills", "points", "sigkill", "disk", "stops", "budget")
_OF_A_BUDGET = ("plan.json", "plan.yaml", "budget.json", "members.json", "current.json", "requests.json")

# --- trials: each yields (faults, what went wrong) ----------------------------------------------------------

Verdicts = Iterator[tuple[int, str | None]]


def judged(ground: Ground, out: Path, faults: int, where: str) -> tuple[int, str | None]:
    """Continue a stopped run to its end and compare it; a folder that survived is removed."""
    code = ground.run(out)
    if code != 0:
        log = out.with_suffix(".log")
        return faults, f"{where}: the continued run ended with exit code {code}, see {log}"
    if found := ground.differences(out):
        shown = "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        return faults, f"{where}: {shown}"
    shutil.rmtree(out)
    return faults, None


def strike_at(ground: Ground, part: str, number: int) -> Verdicts:
    """One point: stopped there, or no room from there on, then continued."""
    out = ground.scratch / f"{part}-{number}"
    point = ground.points[number]
    where = f"{part} {number}: {point.phase} {point.path}"
    strike, expected = STRIKES[part]
    code = ground.run(out, Watch(out, at=number, strike=strike))
    if code not in expected:
        yield 1, f"{where}: exit code {code}, expected {expected}; see {out.with_suffix('.log')}"
        return
    if part == "disk" and "the disk is full" not in (said := out.with_suffix(".log").read_text()):
        yield 1, f"{where}: the refusal does not speak of the disk: {said[-200:]}"
        return
    yield judged(ground, out, 1, where)


def kill_in_turn(ground: Ground, part: str, kills: int) -> Verdicts:
    """One project after the other, killed again and again until it is finished, until all kills are spent."""
    rng, spent, project = random.Random(part), 0, 0
    stop, expected = STOPS[part]
    while spent < kills:
        out, mine, code, project = ground.scratch / f"{part}-{project}", 0, expected, project + 1
        while spent + mine < kills and code == expected:
            code = stop(ground, out, rng)
            mine += code == expected
        spent += mine
        if code in (0, expected):
            yield judged(ground, out, mine, f"{part}: {mine} in {out.name}")
        else:
            log = out.with_suffix(".log")
            yield mine, f"{part}: after {mine} in {out.name}, exit code {code}; see {log}"
            return


def leave(ground: Ground, out: Path, rng: random.Random) -> int:
    """Run until a random point not far from the start of the process, and leave there."""
    return ground.run(out, Watch(out, at=rng.randrange(len(ground.points) // 8), strike=exit_now))


def kill(ground: Ground, out: Path, rng: random.Random) -> int:
    """Run for a random time, and be killed."""
    pid = ground.begin(out)
    time.sleep(rng.uniform(0.05, 0.45) * ground.seconds)
    os.kill(pid, signal.SIGKILL)  # not waited for yet, so the pid is still this process
    return wait(pid)


STRIKES = {"points": (exit_now, (KILLED,)), "disk": (no_space, (2,)), "stops": (ask_to_stop, (143, 0))}
STRIKES["budget"] = STRIKES["points"]
STOPS = {"kills": (leave, KILLED), "sigkill": (kill, -signal.SIGKILL)}


# --- all of them --------------------------------------------------------------------------------------------


def trained_from(ground: Ground) -> int:
    """Return the first point after the folds were made: a stop before it ends without a submission."""
    return next(i for i, point in enumerate(ground.points) if point.path == "submission.json")


def of_a_budget(ground: Ground) -> list[int]:
    """Return the points that only a run with a budget has, and 40 of the others."""
    own = {i for i, point in enumerate(ground.points) if point.path.endswith(_OF_A_BUDGET)}
    others = [i for i in range(len(ground.points)) if i not in own]
    return sorted(own | {others[(2 * i + 1) * len(others) // 80] for i in range(40)})


def plan(ground: Ground, part: str, sample: int | None) -> list[tuple[str, Callable[[], Verdicts]]]:
    """Return the named trials of a part."""
    if part == "kills":
        return [(part, lambda: kill_in_turn(ground, part, sample or 50))]
    if part == "sigkill":
        return [(part, lambda: kill_in_turn(ground, part, sample or 10))]
    able = [i for i, point in enumerate(ground.points) if part != "disk" or needs_room(point.phase)]
    if part == "budget" and sample is None:
        able = of_a_budget(ground)
    if part == "stops":
        able = [i for i in able if i >= trained_from(ground)]
        sample = sample or 40
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
            faults += max(count, 1) if failure else count
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
    parser.add_argument("--task", choices=list(AUTO_OF), default="binary", help="of the generated data")
    parser.add_argument("--sample", type=int, help="so many faults of each part; default: all")
    parser.add_argument("--plant", choices=["rng"], help="plant a bug that must be caught")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument("--scratch", type=Path, help="where to work; default: a new temporary folder")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare()
    if options.plant:
        plant_rng()
    scratch, started = Path(tempfile.mkdtemp(prefix="faults-", dir=options.scratch)), time.monotonic()
    parts = PARTS if options.part == "all" else (options.part,)
    faults = survived = 0
    for budget in (False, True):  # the second ground changes what planning sees, so it comes last
        mine = [part for part in parts if (part == "budget") == budget]
        if not mine:
            continue
        ground = clean_run(scratch / ("budget" if budget else "plain"), options.task, budget=budget)
        print(f"clean run: {ground.seconds:.1f} s, {len(ground.points)} points", flush=True)
        trials = [trial for part in mine for trial in plan(ground, part, options.sample)]
        struck, whole = run_all(ground, trials, options.jobs)
        faults, survived = faults + struck, survived + whole
    if survived == faults:
        shutil.rmtree(scratch)
    else:
        print(f"what failed is kept in {scratch}")
    print(f"{time.monotonic() - started:.0f} s")
    print(f"{survived} of {faults} survived")
    return int(survived < faults)


if __name__ == "__main__":
    sys.exit(main())
