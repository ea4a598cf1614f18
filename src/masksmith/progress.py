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


class Remaining:
    """Time left of a training, from the pace of the last steps.

    Work is counted in any unit (pixels, in training). The first steps of a process are slow (memory is claimed,
    kernels are chosen), so the pace leaves out the first ``warm_up`` steps. The pace forgets: a step that lies
    ``memory_s`` seconds back counts 1/e, so that a busy neighbour is noticed and its end too.
    """

    def __init__(
        self,
        total: int | float,
        *,
        warm_up: int = 3,
        memory_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = float(total)
        self.warm_up = warm_up
        self.memory_s = memory_s
        self.clock = clock
        self.done = 0.0
        self.steps = 0
        self.last = clock()
        self._work = 0.0
        self._seconds = 0.0

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
            kept = math.exp(-seconds / self.memory_s)
            self._work = self._work * kept + work
            self._seconds = self._seconds * kept + seconds

    def skip(self, work: int | float) -> None:
        """Count ``work`` as done, but not for the pace: it was of another kind."""
        self.done += work
        self.restart()

    def forget(self) -> None:
        """Forget the pace: what follows has another one."""
        self.steps, self._work, self._seconds = 0, 0.0, 0.0
        self.restart()

    @property
    def pace(self) -> float:
        """Seconds a unit of work; 0 while nothing is known."""
        return self._seconds / self._work if self._work else 0.0

    @property
    def seconds(self) -> float:
        """Expected seconds until ``total`` is reached; 0 while nothing is known."""
        return max(0.0, self.total - self.done) * self.pace
