"""A discrete-event simulation of `--engine ray`: tasks on workers that may straggle, die, and wait for a store.

The driver hands the next task of the plan to a worker that is free, and judges what is finished in the order of the
plan, one thing after the other. A worker reads what a task needs from a store that all share, then computes. Where a
worker dies its task alone is given again; with checkpoints it goes on after the last one. Draws come from (seed, task,
try) and (seed, worker, life), so that a scenario changes nothing but what it is about. See simulate.py.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

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
