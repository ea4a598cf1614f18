"""How many threads the trainings of a budget take while other processes use the cores too.

The threads of a step wait for each other, so that a neighbour on one core holds up those on all: beside one busy thread
two threads made 32 images a second where one made 61 (benchmarks/neighbours.py). A probe of a moment says which number
of threads is the fastest; where two in a row agree, a training goes on with it, and goes back if its pace does not
gain.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

_SLOW = 1.25  # a training that is slower than expected by this looks for neighbours
_OFTEN_S, _SELDOM_S = (
    20.0,
    120.0,
)  # between two probes: where something is amiss, and where probes found nothing
_TRIAL_S = 10.0  # after so long with fewer threads the pace is compared
_FASTER_MOST = 2.0  # what fewer threads are expected to gain at most, whatever the probe says

Speeds = Callable[[Sequence[int]], Mapping[int, float]]
"""Returns the speed (in any unit) of each number of threads, now."""


def candidates(most: int) -> list[int]:
    """Return the numbers of threads that are compared: all, three quarters, half, a quarter, one."""
    return sorted({most, most * 3 // 4, most // 2, most // 4, 1} - {0}, reverse=True)


def fastest(speeds: Mapping[int, float], threads: int, *, gain: float) -> int:
    """Return the fastest number of threads, or ``threads`` where it takes more than ``gain`` of their time."""
    best = max(speeds, key=lambda number: (speeds[number], number))
    return best if speeds[threads] <= gain * speeds[best] else threads


@dataclass(frozen=True)
class Change:
    """Another number of threads."""

    threads: int
    faster: float
    """How much faster they are expected to be."""


@dataclass(frozen=True)
class _Trial:
    """Fewer threads, until their pace is known."""

    threads: int
    """To go back to."""
    slower: float
    """With these."""
    where: Hashable
    until: float


class Sharing:
    """The threads of all trainings of a command; asked every few seconds of a training."""

    def __init__(
        self,
        threads: int,
        *,
        most: int,
        speeds: Speeds,
        gain: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with ``threads``.

        Args:
            threads: What trainings begin with.
            most: Threads on a quiet machine.
            speeds: The probe.
            gain: Another number of threads is taken where it needs at most this share of the time.
            clock: Seconds.
        """
        self.threads, self.most = threads, most
        self.speeds, self.gain, self.clock = speeds, gain, clock
        self._trial: _Trial | None = None
        self._wish = 0  # where the last probe wanted to go: up, down, or nowhere
        self._probed, self._wait_s, self._was_slow = clock(), _OFTEN_S, False
        self._not_down_until, self._patience_s = clock(), _SELDOM_S

    def take(self, threads: int) -> None:
        """Take the threads that a training was left with."""
        self.threads, self._trial, self._wish = threads, None, 0

    def look(self, slower: float, *, where: Hashable) -> Change | None:
        """Return the change to be made now, if any.

        Args:
            slower: Seconds a pixel over the last moments, as a multiple of what was expected.
            where: Training and stage; paces of two are not compared.
        """
        if self._trial is not None and (back := self._judge(self._trial, slower, where)):
            return back
        is_slow = slower >= _SLOW
        if is_slow and not self._was_slow:
            self._wait_s = _OFTEN_S
        self._was_slow = is_slow
        amiss = is_slow or self.threads < self.most
        wait_s = 0.0 if self._wish else self._wait_s if amiss else _SELDOM_S
        if self.clock() < self._probed + wait_s:
            return None
        return self._probe(slower, where)

    def _probe(self, slower: float, where: Hashable) -> Change | None:
        speeds = self.speeds(sorted({*candidates(self.most), self.threads}, reverse=True))
        best = fastest(speeds, self.threads, gain=self.gain)
        self._probed = self.clock()
        if best < self.threads and self._probed < self._not_down_until:
            best = self.threads
        wish, before = (best > self.threads) - (best < self.threads), self._wish
        self._wish = wish
        if wish == 0:
            self._wait_s = min(2 * self._wait_s, _SELDOM_S)
        if wish == 0 or wish != before:
            return None
        return self._change(best, speeds, slower, where)

    def _change(self, best: int, speeds: Mapping[int, float], slower: float, where: Hashable) -> Change:
        if best < self.threads:
            self._trial = _Trial(self.threads, slower, where, self._probed + _TRIAL_S)
        faster = min(speeds[best] / speeds[self.threads], max(_FASTER_MOST, best / self.threads))
        self.threads, self._wish, self._wait_s = best, 0, _OFTEN_S
        return Change(best, faster)

    def _judge(self, trial: _Trial, slower: float, where: Hashable) -> Change | None:
        """Go back from fewer threads that gained nothing; the next trial is then twice as far off."""
        if where == trial.where and self.clock() < trial.until:
            return None
        self._trial = None
        if where != trial.where or slower <= self.gain * trial.slower:
            self._patience_s = _SELDOM_S
            return None
        self._not_down_until = self.clock() + self._patience_s
        self._patience_s *= 2
        back = Change(trial.threads, slower / trial.slower)
        self.threads, self._wish = trial.threads, 0
        return back
