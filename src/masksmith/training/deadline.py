"""When the training of a fold has to end so that what follows it still fits the budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from masksmith.training.sharing import Sharing

_SLACK_FRAC = 0.02
_SLACK_S = 2.0
_AIM = 0.98  # a plan that is changed aims at this share of the time left
_ROOM_FRAC, _ROOM_S = 0.8, 10.0  # a shortened plan grows if it takes at most this share, and so much is left


@dataclass(frozen=True)
class Deadline:
    """The time a training has.

    Attributes:
        left: Seconds left of the whole budget, now.
        reserve_s: Seconds that prediction, tuning, submission and report will take if the paces hold.
        paces: Expected seconds a pixel of each stage (small images cost more a pixel than large ones). Empty: unknown.
        sharing: Decides how many threads are taken; None: those of the recipe.
        busy: How much slower than on a quiet machine the paces already are.
    """

    left: Callable[[], float]
    reserve_s: float
    paces: Sequence[float] = ()
    sharing: Sharing | None = None
    busy: float = 1.0

    def slower(self, pace: float, *, stage: int) -> float:
        """Return how much slower than expected a stage runs at ``pace`` (seconds a pixel); 1 if nothing is known."""
        return pace / self.paces[stage] if self.paces else 1.0

    def pace_of(self, stage: int, pace: float, slower: float) -> float:
        """Return the pace to reckon with in a stage: the expected one times ``slower``, else the present ``pace``."""
        return self.paces[stage] * slower if self.paces else pace

    def for_training(self, slower: float) -> float:
        """Return the seconds left for training; a machine slower than expected needs a longer reserve."""
        return self.left() - self.reserve_s * max(1.0, slower)

    def share(self, steps_s: float, other_s: float, slower: float) -> float | None:
        """Return the share of the steps ahead that fits, or None where all of them do.

        Args:
            steps_s: Seconds that the steps ahead would take.
            other_s: Seconds of the evaluations among them.
            slower: How much slower than expected the machine is.
        """
        left = self.for_training(slower)
        if steps_s <= 0 or steps_s + other_s <= left + max(_SLACK_S, _SLACK_FRAC * left):
            return None
        return min(1.0, max(0.0, (_AIM * left - other_s) / steps_s))

    def fitting(self, seconds: float, slower: float) -> float:
        """Return the share of so many seconds of steps and evaluations that fits, 0 to 1."""
        return min(1.0, max(0.0, _AIM * self.for_training(slower) / seconds)) if seconds > 0 else 1.0

    def has_room(self, seconds: float, slower: float) -> bool:
        """Whether much time would be left over after so many seconds of steps and evaluations."""
        left = self.for_training(slower)
        return seconds <= min(_ROOM_FRAC * left, left - _ROOM_S)
