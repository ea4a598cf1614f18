"""Time: how long steps take, how long a training still needs, and a shorter or longer rest where the time asks for it.

All that the loop knows of time is a ``Pace``. It is told of each step and each scoring, and asked now and then for
other epochs. Without a ``Deadline`` it never gives any.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from masksmith.training.epochs import Epoch, is_scored, shorten, unshortened, work_ahead

if TYPE_CHECKING:
    from masksmith.training.state import TrainingState

_WARM_UP = 3  # first steps of a stage, which are slow: memory is claimed, kernels are chosen
_MEMORY_S = 30.0  # a step so many seconds ago counts 1/e: a busy neighbour is noticed, and its end too
_CHECK_EVERY_S = 5.0
_SLACK_FRAC, _SLACK_S = 0.02, 2.0  # late by less than this is not late
_AIM_FRAC = 0.98  # epochs that are shortened aim at this share of the time left
_GROW_AIM_FRAC = 0.96  # and those that grow at this one, so that they are not late a moment after
_ROOM_FRAC, _ROOM_S = 0.9, 5.0  # epochs grow if they take at most this share, and so much is left
_GROWTH = 1.05  # and if they grow by a twentieth at least
_LATE_AT = 0.8  # and not after this share of a schedule: its rate is too low for steps to come back


@dataclass(frozen=True)
class Deadline:
    """When a training has to end."""

    left: Callable[[], float]
    """Seconds left now, for the training and what follows it."""
    reserve_s: float
    """Seconds that prediction, tuning, submission and report will take at the expected paces."""
    expected: Sequence[float] = ()
    """Expected seconds a pixel of each stage (small images cost more a pixel than large ones). Empty: unknown."""
    most: float = 1.0
    """How many times the recipe's epochs a training may grow to where steps are faster than expected; 1 or more."""

    def slowdown(self, pace: float, stage: int) -> float:
        """Return how much slower than expected a stage runs at ``pace`` (seconds a pixel); 1 if nothing is known."""
        return pace / self.expected[stage] if self.expected else 1.0

    def seconds_for(self, work: dict[int, int], pace: float, stage: int) -> float:
        """Return the seconds for the pixels of each stage, where ``stage`` now runs at ``pace``."""
        slowdown = self.slowdown(pace, stage)
        paces = {one: self.expected[one] * slowdown if self.expected else pace for one in work}
        return sum(pixels * paces[one] for one, pixels in work.items())

    def for_training(self, slowdown: float) -> float:
        """Return the seconds left for training; a machine slower than expected needs a longer reserve."""
        return self.left() - self.reserve_s * max(1.0, slowdown)


class Pace:
    """Measured seconds of steps and scorings, as the loop reports them; work is counted in pixels."""

    def __init__(
        self, deadline: Deadline | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.deadline, self.clock = deadline, clock
        self.scoring_s = 0.0
        """Seconds of the last scoring."""
        self.epoch_s = 0.0
        """Seconds of the steps of the epoch under way in this process, and their number."""
        self.epoch_steps = 0
        self._work = self._seconds = 0.0
        self._steps, self._last = 0, clock()
        self._next_check = self._last + _CHECK_EVERY_S

    @property
    def seconds_per_px(self) -> float:
        """Seconds a pixel over the last half minute; 0 while nothing is known."""
        return self._seconds / self._work if self._work else 0.0

    def begin_epoch(self, *, new_stage: bool) -> None:
        """Time the steps from now on; a new stage has another pace."""
        if new_stage:
            self._work = self._seconds = 0.0
            self._steps = 0
        self.epoch_s, self.epoch_steps = 0.0, 0
        self._last = self.clock()

    def step(self, work: int) -> None:
        """Count a step of so many pixels."""
        now = self.clock()
        seconds, self._last = max(0.0, now - self._last), now
        self.epoch_s, self.epoch_steps, self._steps = (
            self.epoch_s + seconds,
            self.epoch_steps + 1,
            self._steps + 1,
        )
        if self._steps > _WARM_UP:
            kept = math.exp(-seconds / _MEMORY_S)
            self._work, self._seconds = self._work * kept + work, self._seconds * kept + seconds

    def scored(self) -> None:
        """Count what came after the last step as a scoring of the fold."""
        now = self.clock()
        self.scoring_s, self._last = now - self._last, now

    def adjusted_epochs(self, state: "TrainingState") -> list[Epoch] | None:
        """Return the epochs to follow from here on where the present ones do not fit the time left, else None.

        They are shortened where they would end too late. Where time is left over, steps that were left out return, and
        as many more as the deadline allows.
        """
        now = self.clock()
        if self.deadline is None or now < self._next_check or not self.seconds_per_px:
            return None
        self._next_check = now + _CHECK_EVERY_S
        index, step, epoch = state.progress.epoch, state.progress.step, state.epoch
        slowdown = self.deadline.slowdown(self.seconds_per_px, epoch.stage)
        left = self.deadline.for_training(slowdown)
        needed, whole = (
            self._seconds_ahead(state, state.epochs),
            unshortened(state.epochs, state.longest(self.deadline.most), index),
        )
        is_over = index + 1 == len(state.epochs) and step == epoch.steps
        is_late = needed > left + max(_SLACK_S, _SLACK_FRAC * left)
        has_room = (
            (state.is_adjusted or self.deadline.most > 1)
            and epoch.at(step) <= _LATE_AT
            and needed <= min(_ROOM_FRAC * left, left - _ROOM_S)
        )
        if is_over or not (is_late or has_room):
            return None
        source, aim = (state.epochs, _AIM_FRAC) if is_late else (whole, _GROW_AIM_FRAC)
        total = self._seconds_ahead(state, source)
        # the last scoring comes however short the rest is
        share = min(1.0, max(0.0, (aim * left - self.scoring_s) / max(total, 1e-9)))
        adjusted = shorten(source, index, step, share)
        if has_room and self._seconds_ahead(state, adjusted) <= _GROWTH * needed:
            return None
        return adjusted

    def _seconds_ahead(self, state: "TrainingState", epochs: Sequence[Epoch]) -> float:
        """Return the seconds of the steps ahead in ``epochs``, and of their scorings."""
        assert self.deadline is not None
        done, canvases = state.progress.epoch, state.canvases
        work = work_ahead(epochs, canvases, done, state.progress.step)
        scorings = sum(is_scored(state.config, epochs, at) for at in range(done + 1, len(epochs) + 1))
        steps_s = self.deadline.seconds_for(work, self.seconds_per_px, state.epoch.stage)
        return steps_s + scorings * self.scoring_s
