"""What a long command says while it works: log lines always, a bar on a terminal."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from masksmith import pulse

Item = TypeVar("Item")

logger = logging.getLogger("masksmith")


def clock(seconds: float) -> str:
    """Return seconds as a person reads them: ``48s``, ``12m30s``, ``2h05m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def track(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """Yield the items; show a bar with the time left on a terminal, nothing elsewhere.

    Raises:
        StoppedError: A stop was asked for; raised before the next item.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        items = bar(items, total=total, description=what, console=Console(stderr=True), transient=True)
    for item in items:
        pulse.beat()
        yield item


class _Pace:
    """Seconds a unit of work; a step that lies ``memory_s`` seconds back counts 1/e."""

    def __init__(self, memory_s: float) -> None:
        self.memory_s, self.work, self.seconds = memory_s, 0.0, 0.0

    def add(self, work: float, seconds: float) -> None:
        kept = math.exp(-seconds / self.memory_s)
        self.work = self.work * kept + work
        self.seconds = self.seconds * kept + seconds

    @property
    def value(self) -> float:
        return self.seconds / self.work if self.work else 0.0


class Remaining:
    """Time left of a training, from the pace of the last steps.

    Work is counted in any unit (pixels, in training). The first steps of a process are slow (memory is claimed,
    kernels are chosen), so the pace leaves out the first ``warm_up`` steps. The pace forgets: a step that lies
    ``memory_s`` seconds back counts 1/e, so that a busy neighbour is noticed and its end too; ``recent`` forgets
    within ``recent_s`` seconds. A trial (``try_out``) shows in ``recent`` alone, until it is believed or given up.
    """

    def __init__(
        self,
        total: int | float,
        *,
        warm_up: int = 3,
        memory_s: float = 30.0,
        recent_s: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = float(total)
        self.warm_up = warm_up
        self.clock = clock
        self.done = 0.0
        self.steps = 0
        self.last = clock()
        self._long, self._short = _Pace(memory_s), _Pace(recent_s)
        self.recent_s = 0.0
        """Seconds of the steps that ``recent`` may be made of."""
        self._is_trial = False

    def restart(self) -> None:
        """Begin to time a step now: what happened since the last one was something else."""
        self.last = self.clock()

    def advance(self, work: int | float) -> None:
        """Count ``work`` (in the unit of ``total``) as done since the last call."""
        now = self.clock()
        seconds = max(0.0, now - self.last)
        self.last = now
        self.done += work
        self.steps += 1
        if self.steps > self.warm_up:
            self._short.add(work, seconds)
            self.recent_s += seconds
            if not self._is_trial:
                self._long.add(work, seconds)

    def skip(self, work: int | float) -> None:
        """Count ``work`` as done, but not for the pace: it was of another kind."""
        self.done += work
        self.restart()

    def forget(self) -> None:
        """Forget the pace: what follows has another one."""
        self.steps = 0
        self._long = _Pace(self._long.memory_s)
        self._forget_recent()
        self.restart()

    def _forget_recent(self) -> None:
        self._short, self.recent_s = _Pace(self._short.memory_s), 0.0

    def try_out(self) -> None:
        """Begin a trial: what the steps ahead take is not what is to be expected."""
        self._is_trial = True
        self._forget_recent()

    def end_trial(self, *, believe: bool) -> None:
        """End a trial, if there is one; ``believe``: its pace is to be expected from here on."""
        if self._is_trial and believe:
            self._long.work, self._long.seconds = self._short.work, self._short.seconds
        elif self._is_trial:
            self._forget_recent()
        self._is_trial = False

    @property
    def pace(self) -> float:
        """Seconds a unit of work; 0 while nothing is known."""
        return self._long.value

    @property
    def recent(self) -> float:
        """Seconds a unit of work over the last moments; 0 while nothing is known."""
        return self._short.value

    @property
    def seconds(self) -> float:
        """Expected seconds until ``total`` is reached; 0 while nothing is known."""
        return max(0.0, self.total - self.done) * self.pace
