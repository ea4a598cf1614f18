"""What a long command says while it works: log lines always, a bar on a terminal."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

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
    """Yield the items; show a bar with the time left on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(items, total=total, description=what, console=Console(stderr=True), transient=True)


class Remaining:
    """Time left of a training, from the pace of the steps made so far.

    The first steps of a process are slow (memory is claimed, kernels are chosen), so the pace leaves out
    the first ``warm_up`` steps.
    """

    def __init__(self, total: int | float, *, warm_up: int = 3) -> None:
        self.total = float(total)
        self.warm_up = warm_up
        self.done = 0.0
        self.steps = 0
        self.counted = 0.0
        self.started = time.monotonic()
        self.warm_at = self.started

    def advance(self, work: int | float) -> None:
        """Count ``work`` (in the unit of ``total``) as done."""
        self.done += work
        self.steps += 1
        if self.steps <= self.warm_up:
            self.warm_at = time.monotonic()
        else:
            self.counted += work

    @property
    def seconds(self) -> float:
        """Expected seconds until ``total`` is reached; 0 while nothing is known."""
        if not self.counted:
            return 0.0
        return (self.total - self.done) * (time.monotonic() - self.warm_at) / self.counted
