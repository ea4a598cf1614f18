"""When the training of a fold has to end so that what follows it still fits the budget."""

from collections.abc import Callable
from dataclasses import dataclass

_SLACK_FRAC = 0.02
_SLACK_S = 2.0
_AIM = 0.98  # a shortened plan aims at this share of the time left


@dataclass(frozen=True)
class Deadline:
    """The time a training has.

    Attributes:
        left: Seconds left of the whole budget, now.
        reserve_s: Seconds that prediction, tuning, submission and report will take at ``pace``.
        pace: Seconds a pixel that ``reserve_s`` was estimated at; 0 if unknown.
    """

    left: Callable[[], float]
    reserve_s: float
    pace: float = 0.0

    def for_training(self, pace: float) -> float:
        """Return the seconds left for training; a machine slower than expected needs a longer reserve."""
        slower = max(1.0, pace / self.pace) if self.pace else 1.0
        return self.left() - self.reserve_s * slower

    def share(self, steps_s: float, other_s: float, pace: float) -> float | None:
        """Return the share of the steps ahead that fits, or None where all of them do.

        Args:
            steps_s: Seconds that the steps ahead would take.
            other_s: Seconds of the evaluations among them.
            pace: Seconds a pixel, as measured just now.
        """
        left = self.for_training(pace)
        if steps_s + other_s <= left + max(_SLACK_S, _SLACK_FRAC * left):
            return None
        return min(1.0, max(0.0, (_AIM * left - other_s) / steps_s))
