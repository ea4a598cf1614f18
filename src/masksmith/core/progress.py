"""Progress of a long command: log lines always, a bar on a terminal."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from masksmith.core import interrupt

Item = TypeVar("Item")

logger = logging.getLogger("masksmith")
_ALIKE = 1e-9  # scores that differ less are the same
_NO_INTERVAL = "no interval: one group, or all alike"


def clock(seconds: float) -> str:
    """Return seconds as text: ``48s``, ``12m30s``, ``2h05m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def error_text(standard_error: float) -> str:
    """Return a standard error as text: ``± 0.0104``; that of one group, from which nothing can be drawn, says so."""
    return f"± {standard_error:.4f}" if standard_error > _ALIKE else f"({_NO_INTERVAL})"


def gain_text(gain: float, low: float, high: float) -> str:
    """Return a gain and its bounds as text: ``+0.0087 (+0.0037 … +0.0133)``; of one group there are none."""
    if gain and not is_interval(low, high):
        return f"{gain:+.4f} ({_NO_INTERVAL})"
    return f"{gain:+.4f} ({low:+.4f} … {high:+.4f})"


def is_interval(low: float, high: float) -> bool:
    """Whether bounds say anything: where all draws are the same (there is one group) they do not."""
    return high - low > _ALIKE


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
