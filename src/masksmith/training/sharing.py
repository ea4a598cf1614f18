"""How many threads the trainings of a budget take while other processes use the cores too.

The threads of a step wait for each other, so that a neighbour on one core holds up those on all: beside one busy thread
two threads made 32 images a second where one made 61 (benchmarks/neighbours.py). A training that becomes slow while the
cores are not free goes on with fewer threads for some seconds; they stay if its pace gains, and all are taken again
when the cores are free.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

_SLOW = 1.4  # times the pace that was to be expected: neighbours are looked for
_WAIT_S = 15.0  # between two looks for neighbours
_TRIAL_S = 8.0  # after so long the pace of fewer threads is judged
_PATIENCE_S, _PATIENCE_MOST_S = 60.0, 600.0  # after trials that gained nothing
_FREE_CORES = 0.25  # cores are free where this process gets all but so many of them


def candidates(most: int) -> list[int]:
    """Return the numbers of threads that are compared: all, three quarters, half, a quarter, one."""
    return sorted({most, most * 3 // 4, most // 2, most // 4, 1} - {0}, reverse=True)


def are_free(share: float, cores: int) -> bool:
    """Whether a process that gets this share of so many cores has them for itself."""
    return (1 - share) * cores < _FREE_CORES


@dataclass(frozen=True)
class _Trial:
    """What fewer threads are compared with."""

    threads: int
    slower: float
    until: float


class Sharing:
    """The threads of all trainings of a command; asked every few seconds of a training."""

    def __init__(
        self,
        threads: int,
        *,
        most: int,
        cores_share: Callable[[int], float],
        gain: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with ``threads``.

        Args:
            threads: What trainings begin with.
            most: Threads on a quiet machine.
            cores_share: Returns the share of so many cores that this process gets now.
            gain: Fewer threads stay where they need at most this share of the time.
            clock: Seconds.
        """
        self.threads, self.most = threads, most
        self.cores_share, self.gain, self.clock = cores_share, gain, clock
        self._trial: _Trial | None = None
        self._where: Hashable = None
        self._usual = 1.0
        """The pace that is to be expected with the present threads, as a multiple of the planned one."""
        self._is_suspect = self._was_free = False
        self._next = self._next_trial = clock()
        self._patience_s = _PATIENCE_S

    def take(self, threads: int) -> None:
        """Take the threads that a training was left with."""
        self.threads, self._trial, self._where = threads, None, None

    def settle(self) -> int:
        """End a trial that is under way, because no pace will judge it; return the threads."""
        if self._trial is not None:
            self.threads, self._trial = self._trial.threads, None
        return self.threads

    def look(self, slower: float, *, where: Hashable) -> int:
        """Return the threads to go on with.

        Args:
            slower: Seconds a pixel over the last moments, as a multiple of what was planned.
            where: Training and stage; paces of two are not compared.
        """
        if where != self._where:
            self.settle()
            self._where, self._is_suspect = where, False
            self._usual = 1.0 if self.threads == self.most else slower
        if self._trial is not None:
            self._judge(self._trial, slower)
            return self.threads
        self._usual = min(self._usual, slower)
        is_slow = slower >= _SLOW * self._usual and self.threads > 1 and self.clock() >= self._next_trial
        if self._is_suspect:  # a second slow look in a row
            self._is_suspect = False
            if is_slow:
                self._try_fewer(_Trial(self.threads, slower, self.clock() + _TRIAL_S))
        elif self.clock() >= self._next and (is_slow or self.threads < self.most):
            self._look_around(is_slow=is_slow)
        return self.threads

    def _look_around(self, *, is_slow: bool) -> None:
        """Look whether the cores are free; twice in a row, before more threads are taken."""
        free = are_free(self.cores_share(self.most), self.most)
        self._is_suspect = is_slow and not free
        if free and self._was_free and self.threads < self.most:
            self.threads, self._usual, free = self.most, 1.0, False
        self._was_free = free
        self._next = self.clock() + (0.0 if free and self.threads < self.most else _WAIT_S)

    def _try_fewer(self, trial: _Trial) -> None:
        self._trial = trial
        self.threads = next(number for number in candidates(self.most) if number < self.threads)

    def _judge(self, trial: _Trial, slower: float) -> None:
        """Keep the threads under trial, try still fewer, or go back and wait longer before the next trial."""
        now = self.clock()
        if now < trial.until:
            return
        if slower <= self.gain * trial.slower:
            self._trial, self._usual, self._patience_s = None, slower, _PATIENCE_S
        elif self.threads > 1:
            self._try_fewer(_Trial(trial.threads, trial.slower, now + _TRIAL_S))
        else:
            self.settle()
            self._next_trial = now + self._patience_s
            self._patience_s = min(2 * self._patience_s, _PATIENCE_MOST_S)
