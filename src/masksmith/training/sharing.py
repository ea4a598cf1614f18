"""How many threads the trainings of a budget take while other processes use the cores too.

The threads of a step wait for each other, so that a neighbour on one core holds up those on all: beside one busy thread
two threads made 32 images a second where one made 61 (benchmarks/neighbours.py). A training that becomes slow while the
cores are not free goes on with fewer threads for some seconds; they stay if its pace gains. All are taken again when
the cores are free.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

_SLOW = 1.4  # times the pace that was to be expected: neighbours are looked for
_WAIT_S = 15.0  # between two looks for neighbours
_TRIAL_S = 8.0  # after so many seconds of steps the pace with other threads is judged
_PATIENCE_S, _PATIENCE_MOST_S = 60.0, 600.0  # after trials that gained nothing
_FEWER, _MORE = -1, 1  # where a trial goes
_FREE_CORES, _FREE_FRAC = 0.25, 0.03  # cores are free where this process gets all but so many of them


def candidates(most: int) -> list[int]:
    """Return the numbers of threads that are compared: all, three quarters, half, a quarter, one."""
    return sorted({most, most * 3 // 4, most // 2, most // 4, 1} - {0}, reverse=True)


def are_free(share: float, cores: int) -> bool:
    """Whether a process that gets this share of so many cores has them for itself."""
    return (1 - share) * cores < max(_FREE_CORES, _FREE_FRAC * cores)


@dataclass(frozen=True)
class _Trial:
    """What the threads on trial are compared with."""

    threads: int
    slower: float


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
            gain: Other threads stay where they need at most this share of the time.
            clock: Seconds.
        """
        self.threads, self.most = threads, most
        self.cores_share, self.gain, self.clock = cores_share, gain, clock
        self._trial: _Trial | None = None
        self._where: Hashable = None
        self._usual = 1.0
        """The pace that is to be expected with the present threads, as a multiple of that on a quiet machine."""
        self._is_suspect = self._was_free = False
        self._next = clock()
        self._next_trial = {_FEWER: clock(), _MORE: clock() + _PATIENCE_S}
        self._patience_s = {_FEWER: _PATIENCE_S, _MORE: _PATIENCE_S}

    @property
    def is_on_trial(self) -> bool:
        """Whether the present threads are not settled."""
        return self._trial is not None

    def take(self, threads: int) -> None:
        """Take the threads that a training was left with."""
        self.threads, self._trial, self._where = threads, None, None

    def settle(self) -> int:
        """End a trial that is under way, because no pace will judge it; return the threads."""
        if self._trial is not None:
            self.threads, self._trial = self._trial.threads, None
        return self.threads

    def look(self, slower: float, *, seconds: float, where: Hashable) -> int:
        """Return the threads to go on with.

        Args:
            slower: Seconds a pixel over the last moments with the present threads, as a multiple of those on a quiet
                machine.
            seconds: Seconds of steps with the present threads.
            where: Training and stage; paces of two are not compared.
        """
        if where != self._where:
            self.settle()
            self._where, self._is_suspect = where, False
            self._usual = 1.0 if self.threads == self.most else slower
        if self._trial is not None:
            self._judge(self._trial, slower, seconds)
            return self.threads
        self._usual = min(self._usual, slower)
        is_slow = slower >= _SLOW * self._usual and self.threads > 1 and self._may_try(_FEWER)
        if self._is_suspect:  # a second slow look in a row
            self._is_suspect = False
            if is_slow:
                self._try(self._below(), _Trial(self.threads, slower))
        elif self.clock() >= self._next and (is_slow or self.threads < self.most):
            self._look_around(slower, is_slow=is_slow)
        return self.threads

    def _may_try(self, direction: int) -> bool:
        return self.clock() >= self._next_trial[direction]

    def _below(self) -> int:
        return next(number for number in candidates(self.most) if number < self.threads)

    def _above(self) -> int:
        return next(number for number in reversed(candidates(self.most)) if number > self.threads)

    def _look_around(self, slower: float, *, is_slow: bool) -> None:
        """Look whether the cores are free: twice in a row, before all threads are taken.

        Where they are not, the next larger number of threads is tried now and then.
        """
        free = are_free(self.cores_share(self.most), self.most)
        again = free and self.threads < self.most
        if again and self._was_free:
            self.threads, self._usual, again = self.most, 1.0, False
        elif not free and is_slow:
            self._is_suspect = True
        elif not free and self.threads < self.most and self._may_try(_MORE):
            self._try(self._above(), _Trial(self.threads, slower))
        self._was_free = again
        self._next = self.clock() + (0.0 if again else _WAIT_S)

    def _try(self, threads: int, trial: _Trial) -> None:
        self.threads, self._trial = threads, trial

    def _judge(self, trial: _Trial, slower: float, seconds: float) -> None:
        """Keep the threads on trial, try still fewer, or go back and wait longer before the next trial."""
        if seconds < _TRIAL_S:
            return
        now, direction = self.clock(), _FEWER if self.threads < trial.threads else _MORE
        if slower <= self.gain * trial.slower:
            self._trial, self._usual = None, slower
            self._patience_s = {_FEWER: _PATIENCE_S, _MORE: _PATIENCE_S}
            self._next_trial = {direction: now, -direction: now + _PATIENCE_S}
        elif direction == _FEWER and self.threads > 1:
            self._try(self._below(), trial)
        else:
            self.settle()
            self._next_trial[direction] = now + self._patience_s[direction]
            self._patience_s[direction] = min(2 * self._patience_s[direction], _PATIENCE_MOST_S)
