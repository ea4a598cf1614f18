"""Progress of a long command: log lines always, a bar on a terminal."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from masksmith.core import interrupt

Item = TypeVar("Item")

logger = logging.getLogger("masksmith")


def clock(seconds: float) -> str:
    """Return seconds as text: ``48s``, ``12m30s``, ``2h05m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def track(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """Yield the items; on a terminal show a bar with the time left.

    Raises:
        StoppedError: A stop was asked for; raised before the next item.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        items = bar(items, total=total, description=what, console=Console(stderr=True), transient=True)
    for item in items:
        interrupt.check_stop()
        yield item
