"""The engine in simulation: many tasks on 1 to 1,000 workers, with stragglers, deaths, a slow store, a busy driver.

    python benchmarks/simulate.py [--workers 1 10 100 1000] [--seed 0] [--picture docs/scaling.svg]

A discrete-event simulation of `--engine ray`: the driver hands the next task of the plan to a worker that is free,
and judges what is finished in the order of the plan, one thing after the other. A worker reads what a task needs from
a store that all share, then computes. Where a worker dies its task alone is given again; a training goes on after its
last checkpoint. Draws come from (seed, task, try) and (seed, worker, life), so that a scenario changes nothing but
what it is about. Task times are those that ``scaling.py`` recorded (``benchmarks/scaling.jsonl``), in their own
spread; what is assumed beyond them is written in SCENARIOS and WORK, and printed.
"""

import argparse
import heapq
import itertools
import math
import random
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

MOST_TIMES = 20.0
"""A straggler takes at most so many times its time."""


@dataclass(frozen=True)
class Task:
    """A piece of work."""

    seconds: float
    """Of a worker, without what it waits for."""
    megabytes: float = 0.0
    """Read from the store first, and again in every try."""


@dataclass(frozen=True)
class Cluster:
    """What runs the tasks. Times in seconds."""

    workers: int
    begin_s: float = 0.0
    """The driver's, to hand out a task."""
    judge_s: float = 0.0
    """The driver's, for each finished task."""
    tail: float = 0.0
    """Share of the tries that straggle, 0 to 1: their times are drawn from a Pareto distribution."""
    tail_power: float = 1.5
    """Of that distribution: the chance to take more than x times as long is x to the minus this."""
    life_s: float = math.inf
    """Mean life of a worker (exponential)."""
    restart_s: float = 120.0
    """Until a new worker takes the place of a dead one."""
    checkpoint_s: float = math.inf
    """Between checkpoints: what a try did before its last one is not done again."""
    store_mbs: float = math.inf
    """MB/s of the store, shared equally by those that read."""
    link_mbs: float = math.inf
    """MB/s that a worker can read at most."""


@dataclass
class Result:
    """What came of it."""

    makespan_s: float
    """Until the last task was judged."""
    busy_s: float
    """Of all workers, reading and computing, lost tries too."""
    lost_s: float
    """Of these, in tries that were cut off, but for what a checkpoint kept."""
    driver_s: float
    """In which the driver was busy."""
    deaths: int
    tries: list[int]
    """Of each task."""
    spans: list[float]
    """Of each task: reading and computing of the try that finished it."""
    judged: list[int] = field(default_factory=list)
    """Tasks in the order in which they were judged."""

    def utilisation(self, workers: int) -> float:
        """Return the share of the workers' time that was not idle and not lost."""
        return (self.busy_s - self.lost_s) / (workers * self.makespan_s)


class _Store:
    """Equal shares of a bandwidth: everyone who reads has got the same amount since any moment."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.now, self.served = cluster, 0.0, 0.0
        self.ends: list[tuple[float, int, int]] = []  # (served when it ends, worker, its version)
        self.readers: dict[int, int] = {}  # worker -> version

    def _rate(self) -> float:
        return min(self.cluster.link_mbs, self.cluster.store_mbs / max(1, len(self.readers)))

    def advance(self, now: float) -> None:
        """Serve until now."""
        if self.readers:
            self.served += (now - self.now) * self._rate()
        self.now = now

    def begin(self, worker: int, version: int, megabytes: float) -> None:
        """Let a worker read."""
        self.readers[worker] = version
        heapq.heappush(self.ends, (self.served + megabytes, worker, version))

    def next_end(self) -> tuple[float, int, int] | None:
        """Return (time, worker, version) of the reader that is through first, as things are."""
        while self.ends and self.readers.get(self.ends[0][1]) != self.ends[0][2]:
            heapq.heappop(self.ends)
        if not self.ends:
            return None
        end, worker, version = self.ends[0]
        return self.now + max(0.0, end - self.served) / self._rate(), worker, version


class Simulation:
    """The state of a run; see simulate."""

    def __init__(self, tasks: Sequence[Task], cluster: Cluster, seed: int) -> None:
        self.tasks, self.cluster, self.seed = tasks, cluster, seed
        num = len(tasks)
        self.now = 0.0
        self.waiting = deque(range(num))
        self.left = [task.seconds for task in tasks]  # of its own time, after checkpoints
        self.free = deque(range(cluster.workers))
        self.version = [0] * cluster.workers  # of what a worker does: older events about it are void
        self.work: dict[
            int, tuple[int, float, float, float]
        ] = {}  # worker -> task, begun, computing since, factor
        self.lives = [0] * cluster.workers
        self.store = _Store(cluster)
        self.finished, self.driver_busy = [False] * num, False
        self.events: list[tuple[float, int, str, int, int]] = []
        self.order = itertools.count()
        self.result = Result(0.0, 0.0, 0.0, 0.0, 0, [0] * num, [0.0] * num)
        if math.isfinite(cluster.life_s):
            for worker in range(cluster.workers):
                self._plan_death(worker)

    def _at(self, time: float, kind: str, who: int, version: int = 0) -> None:
        heapq.heappush(self.events, (time, next(self.order), kind, who, version))

    def _plan_death(self, worker: int) -> None:
        draw = random.Random(f"{self.seed} life {worker} {self.lives[worker]}")
        self._at(self.now + draw.expovariate(1 / self.cluster.life_s), "death", worker)

    def run(self) -> Result:
        """Go on until every task is judged."""
        num = len(self.tasks)
        self._drive()
        while len(self.result.judged) < num:
            reading = self.store.next_end()
            if reading and (not self.events or reading[0] <= self.events[0][0]):
                time, kind, who, version = reading[0], "read", reading[1], reading[2]
            else:
                time, _, kind, who, version = heapq.heappop(self.events)
            if kind in ("read", "done") and self.version[who] != version:
                continue
            self.now = time
            self.store.advance(time)
            getattr(self, f"_{kind}")(who)
            self._drive()
        self.result.makespan_s = self.now
        return self.result

    def _drive(self) -> None:
        """Give the driver its next thing to do: hand out a task, else judge the next one of the plan."""
        if self.driver_busy:
            return
        if self.waiting and self.free:
            self._spend(self.cluster.begin_s, "begun", self.waiting.popleft())
        elif (at := len(self.result.judged)) < len(self.tasks) and self.finished[at]:
            self._spend(self.cluster.judge_s, "judge", at)

    def _spend(self, seconds: float, kind: str, who: int) -> None:
        self.driver_busy = True
        self.result.driver_s += seconds
        self._at(self.now + seconds, kind, who)

    def _begun(self, task: int) -> None:
        self.driver_busy = False
        if not self.free:  # the last free worker died meanwhile
            self.waiting.appendleft(task)
            return
        worker = self.free.popleft()
        self.result.tries[task] += 1
        self.work[worker] = task, self.now, math.nan, self._factor(task)
        if self.tasks[task].megabytes:
            self.store.begin(worker, self.version[worker], self.tasks[task].megabytes)
        else:
            self._compute(worker)

    def _factor(self, task: int) -> float:
        draw = random.Random(f"{self.seed} task {task} {self.result.tries[task]}")
        if draw.random() >= self.cluster.tail:
            return 1.0
        return min(MOST_TIMES, draw.paretovariate(self.cluster.tail_power))

    def _read(self, worker: int) -> None:
        del self.store.readers[worker]
        self._compute(worker)

    def _compute(self, worker: int) -> None:
        task, begun, _, factor = self.work[worker]
        self.work[worker] = task, begun, self.now, factor
        self._at(self.now + factor * self.left[task], "done", worker, self.version[worker])

    def _done(self, worker: int) -> None:
        task, begun, _, _ = self.work.pop(worker)
        self.result.busy_s += self.now - begun
        self.result.spans[task] = self.now - begun
        self.version[worker] += 1
        self.finished[task] = True
        self.free.append(worker)

    def _judge(self, task: int) -> None:
        self.driver_busy = False
        self.result.judged.append(task)

    def _death(self, worker: int) -> None:
        self.lives[worker] += 1
        self.result.deaths += 1
        self._at(self.now + self.cluster.restart_s, "back", worker)
        if worker in self.work:
            self._cut_off(worker)
        else:
            self.free.remove(worker)

    def _cut_off(self, worker: int) -> None:
        """Take the task from a worker that died; a checkpoint keeps a part of what it did."""
        task, begun, computing, factor = self.work.pop(worker)
        self.version[worker] += 1
        self.store.readers.pop(worker, None)
        worked = 0.0 if math.isnan(computing) else self.now - computing
        kept = 0.0
        if math.isfinite(self.cluster.checkpoint_s):
            kept = worked // self.cluster.checkpoint_s * self.cluster.checkpoint_s
        self.left[task] -= kept / factor
        self.result.busy_s += self.now - begun
        self.result.lost_s += self.now - begun - kept
        self.waiting.appendleft(task)

    def _back(self, worker: int) -> None:
        self.free.append(worker)
        self._plan_death(worker)


def simulate(tasks: Sequence[Task], cluster: Cluster, *, seed: int = 0) -> Result:
    """Run tasks on a cluster.

    Args:
        tasks: In the order of the plan; at least one.
        cluster: At least one worker.
        seed: Of stragglers and deaths.
    """
    return Simulation(tasks, cluster, seed).run()


# --- what is simulated ----------------------------------------------------------------------------------------


TRAINING_S, EPOCH_S, TRAINING_MB = 3600.0, 60.0, 60.0
"""Assumed: a training of an hour with a checkpoint each minute; 4,000 decoded images of 101x101 with masks and code."""
MILLION, SHARD, IMAGE_MB, OVERLAP = 1_000_000, 250, 1.0, 1.5
"""Images of 1024x1024, images a shard, MB of a file, and pixels that go through the net for one of the image."""
BEGIN_S, WRITE_S = 0.005, 0.02
"""Assumed: of the driver, to hand out a task, and to write the entry of a finished shard."""
SCENARIOS: dict[str, dict[str, float]] = {
    "nothing else": {},
    "stragglers": {"tail": 0.05},
    "deaths": {"life_s": 4 * 3600.0},
    "slow store": {"store_mbs": 200.0, "link_mbs": 100.0},
    "driver": {"begin_s": 1.0, "judge_s": 1.0},
    "all": {"tail": 0.05, "life_s": 4 * 3600.0, "store_mbs": 200.0, "link_mbs": 100.0},
}
"""What differs from perfect workers; under "driver" the numbers are how often its measured times are counted."""


@dataclass(frozen=True)
class Work:
    """Tasks, and what the driver has to do for each."""

    title: str
    tasks: list[Task]
    begin_s: float
    judge_s: float
    checkpoint_s: float = math.inf


def recorded(path: Path) -> tuple[list[float], float, float]:
    """Return the training times of folds as parts of their median, and seconds of a search by images: (a, b).

    Of two lines for one fold the later counts.
    """
    from scaling_model import fit, read_lines  # beside this file

    points = read_lines(path)
    most = max(one.get("folds", 0) for one in points)
    times = [
        one["seconds"] for one in points if one.get("folds") == most and one["stage"].startswith("train ")
    ][1:]  # the first one loads what the others find
    searches = {
        one["images"]: one["seconds"] for one in points if (one["axis"], one["stage"]) == ("images", "search")
    }
    found, _ = fit(list(searches), list(searches.values()), (0, 1))
    middle = statistics.median(times)
    return [one / middle for one in times], found[0], found[1]


def works(path: Path) -> list[Work]:
    """Return the trainings of a contest, and the prediction of a million images."""
    from scaling_model import read_lines

    shares, fixed_s, image_s = recorded(path)
    spread = itertools.cycle(shares)
    forward = next(
        one
        for one in read_lines(path)
        if one["stage"] == "step" and one["recipe"] == "auto" and one["side"] == 512
    )
    mpx_s = forward["forward_s"] / forward["batch"] / (forward["canvas"] ** 2 / 1e6)
    shard_s = SHARD * 1024**2 / 1e6 * OVERLAP * mpx_s
    return [
        Work(
            f"40 trainings of {TRAINING_S / 3600:g} h",
            [Task(TRAINING_S * next(spread), TRAINING_MB) for _ in range(40)],
            BEGIN_S,
            fixed_s + 4000 * image_s,
            EPOCH_S,
        ),
        Work(
            f"prediction: {MILLION // SHARD} shards of {shard_s / 60:.0f} min",
            [Task(shard_s * next(spread), SHARD * IMAGE_MB) for _ in range(MILLION // SHARD)],
            BEGIN_S,
            WRITE_S,
        ),
    ]


def cluster_of(work: Work, scenario: str, workers: int) -> Cluster:
    """Return the cluster of a scenario; only "driver" and "all" count the driver's time."""
    options = dict(SCENARIOS[scenario])
    counts = 1.0 if scenario in ("driver", "all") else 0.0
    options |= {"begin_s": counts * work.begin_s, "judge_s": counts * work.judge_s}
    return replace(Cluster(workers, checkpoint_s=work.checkpoint_s), **options)


def table_of(work: Work, counts: Sequence[int], seed: int) -> dict[str, list[tuple[float, float, Result]]]:
    """Return scenario -> for each number of workers: times as fast as one perfect worker, utilisation, result."""
    alone = sum(task.seconds for task in work.tasks)
    found: dict[str, list[tuple[float, float, Result]]] = {}
    for scenario in SCENARIOS:
        for workers in counts:
            result = simulate(work.tasks, cluster_of(work, scenario, workers), seed=seed)
            row = alone / result.makespan_s, result.utilisation(workers), result
            found.setdefault(scenario, []).append(row)
    return found


def draw(panels: Sequence[tuple[Work, dict, Sequence[int]]], path: Path) -> None:
    """Draw the speed-up over the number of workers, both by decades."""
    from masksmith.reporting.drawing import FAINT, INK, RULE, SERIES, Drawing

    width, side, top = 760, 300, 78
    drawing = Drawing(width, 460, "How many times as fast as one worker (simulated)")
    colours = (INK, *SERIES)
    for panel, (work, table, counts) in enumerate(panels):
        left, decades = 62 + 370 * panel, math.log10(max(counts))

        def at(x: float, y: float, left: int = left, decades: float = decades) -> tuple[float, float]:
            return left + side * math.log10(x) / decades, top + side * (1 - math.log10(max(y, 1)) / decades)

        drawing.text(left, top - 14, work.title, size=12, weight="600")
        for power in range(math.floor(decades) + 1):
            value = 10**power
            for one, other in (
                (at(1, value), at(10**decades, value)),
                (at(value, 1), at(value, 10**decades)),
            ):
                drawing.path([one, other], colour=RULE, width=1)
            x, y = at(1, value)
            drawing.text(x - 6, y + 4, f"{value:,}", size=11, colour=FAINT, anchor="end")
            drawing.text(
                at(value, 1)[0], top + side + 16, f"{value:,}", size=11, colour=FAINT, anchor="middle"
            )
        drawing.text(left + side / 2, top + side + 34, "workers", size=12, colour=FAINT, anchor="middle")
        drawing.path([at(1, 1), at(10**decades, 10**decades)], colour=FAINT, width=1, dash="4 3")
        for colour, rows in zip(colours, table.values(), strict=True):
            points = [at(count, row[0]) for count, row in zip(counts, rows, strict=True)]
            drawing.path(points, colour=colour, width=2)
            drawing.dots(points, colour=colour)
    place = 62.0
    for colour, name in zip(colours, SCENARIOS, strict=True):
        drawing.text(place, 442, name, size=12, colour=colour, weight="600")
        place += 7.2 * len(name) + 26
    drawing.write(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    parser.add_argument("--workers", type=int, nargs="+", default=steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=Path, default=Path(__file__).with_name("scaling.jsonl"))
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    panels = []
    for work in works(asked.lines):
        table = table_of(work, asked.workers, asked.seed)
        panels.append((work, table, asked.workers))
        seconds = [task.seconds for task in work.tasks]
        print(
            f"\n{work.title}: {sum(seconds) / 3600:.1f} h in all, {min(seconds) / 60:.0f} to "
            f"{max(seconds) / 60:.0f} min each; driver: {work.begin_s:g} s to hand out, {work.judge_s:.2g} s to judge"
        )
        print(f"{'workers':14s}" + "".join(f"{count:>15,d}" for count in asked.workers))
        for scenario, rows in table.items():
            print(f"{scenario:14s}" + "".join(f"{speed:>9.1f} ({used:4.0%})" for speed, used, _ in rows))
        for scenario in ("deaths", "all"):
            told = [
                f"{one.deaths} deaths, {one.lost_s / max(1e-9, one.busy_s):.1%} lost"
                for *_, one in table[scenario]
            ]
            print(f"  {scenario}, {asked.workers[-1]} workers: {told[-1]}; 1 worker: {told[0]}")
        last = table["driver"][-1][2]
        print(
            f"  driver busy {last.driver_s / last.makespan_s:.0%} of the time at {asked.workers[-1]} workers"
        )
    if asked.picture:
        draw(panels, asked.picture)


if __name__ == "__main__":
    main()
