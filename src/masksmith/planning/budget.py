"""A budget of wall-clock time, kept across kills.

The seconds spent lie in ``budget.json`` and are written every two seconds. Only a monotonic clock is read, so a
change of the machine's date moves nothing; a gap of more than an hour between two beats (the machine slept, the
process was halted) is no work and is not counted.
"""

import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.core.progress import clock as readable
from masksmith.core.progress import logger

FORMAT_VERSION = 1
_WRITE_EVERY_S = 2.0
_LONGEST_GAP_S = 3600.0
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


class Duration(NamedTuple):
    """A duration as it was asked for."""

    seconds: float
    more: bool
    """Whether it comes on top of what is spent ("+20m")."""


def parse_duration(text: str) -> Duration:
    """Return the seconds of "90s", "20m", "1h30m", "2d", or "+20m" (20 minutes more than are spent).

    Raises:
        InputError: Another form, or nothing at all.
    """
    plain = text.strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", plain)
    if "".join(number + unit for number, unit in parts) != plain.removeprefix("+") or not parts:
        raise InputError(
            f"--budget {text}: expected a duration such as 90s, 20m, 1h30m, or +20m for 20 minutes more"
        )
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise InputError(f"--budget {text}: no time at all; expected more than 0 seconds")
    return Duration(seconds, plain.startswith("+"))


class Budget:
    """Seconds asked for and seconds spent, in ``budget.json``.

    Args:
        path: The file; what it says was spent is counted on.
        asked: The budget of this call, or None for no limit (then nothing is written).
        clock: A monotonic clock in seconds.
        started: When this call began, on that clock (all of it counts); None for now.

    Raises:
        InputError: The file holds no sensible numbers, or a newer masksmith wrote it.
    """

    def __init__(
        self,
        path: Path,
        asked: Duration | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> None:
        self.path, self.clock = path, clock
        self._last = clock()
        before = _read(path)
        self._before = before + (0.0 if started is None else max(0.0, self._last - started))
        self._written = -math.inf
        self.total = math.inf
        if asked is not None:
            self.total = asked.seconds + (before if asked.more else 0.0)
            self.beat()

    @property
    def spent(self) -> float:
        """Seconds spent on this project under a budget, in all calls."""
        gap = self.clock() - self._last
        return self._before + (gap if 0 < gap <= _LONGEST_GAP_S else 0.0)

    @property
    def left(self) -> float:
        """Seconds left; below zero where it was overdrawn, infinity without a budget."""
        return self.total - self.spent

    def beat(self) -> None:
        """Count the time since the last call, and write the seconds spent, every two seconds at most."""
        now = self.clock()
        if now - self._last > _LONGEST_GAP_S:
            logger.warning("%s went by in one go; it is not counted as work", readable(now - self._last))
        self._before, self._last = self.spent, now
        if not math.isinf(self.total) and self._before - self._written >= _WRITE_EVERY_S:
            self._written = self._before
            self.write()

    def write(self) -> None:
        """Write the seconds spent now."""
        if not math.isinf(self.total):
            spent = round(self.spent, 2)
            write_json(self.path, {"format": FORMAT_VERSION, "total_s": self.total, "spent_s": spent})

    def __str__(self) -> str:
        if math.isinf(self.total):
            return "no budget"
        return f"{readable(self.spent)} of {readable(self.total)}"


def _read(path: Path) -> float:
    """Return the seconds spent in earlier calls."""
    if not path.exists():
        return 0.0
    value: Any = read_json(path)
    if not isinstance(value, dict) or value.get("format", 0) > FORMAT_VERSION:
        raise InputError(f"{path}: made by a newer masksmith; update masksmith, or choose another --out")
    numbers = [value.get("spent_s"), value.get("total_s")]
    if not all(isinstance(n, int | float) and math.isfinite(n) and n >= 0 for n in numbers):
        raise InputError(
            f"{path}: spent_s {numbers[0]!r} and total_s {numbers[1]!r}, expected seconds of 0 and more; correct the "
            "file, or remove it to count from 0"
        )
    return float(value["spent_s"])
