"""Watched values: when a score or a loss has stalled, and when a loss has diverged. The state lies in the checkpoint.

Three things may watch: a schedule (its rate falls), a stage (it ends), and the training as a whole (it ends). All
count within a stage, because losses of two stages cannot be compared.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from masksmith.core.progress import logger
from masksmith.training.config import StallConfig, TrainingConfig
from masksmith.training.epochs import Epoch, end_stage
from masksmith.training.events import EventLog

if TYPE_CHECKING:
    from masksmith.training.state import TrainingState

_EXPLODED = 3.0  # a mean loss above this multiple of the stage's best, and above its first, is a divergence

Watcher = Literal["rate", "stage", "training"]


@dataclass(frozen=True)
class Stall:
    """What a watcher has seen: the best value, and how many values in a row brought no gain."""

    best: float | None = None
    stale: int = 0


Stalls = dict[str, dict[str, Any]]
"""Watcher -> the fields of its Stall, as they stand in the checkpoint."""


def watchers_of(config: TrainingConfig, epoch: Epoch) -> dict[Watcher, StallConfig]:
    """Return what is watched in an epoch."""
    found: dict[Watcher, StallConfig] = {}
    schedule, stage = epoch.schedule, config.stages[epoch.stage]
    if schedule.name == "plateau":
        found["rate"] = StallConfig(
            watch=schedule.watch, patience=schedule.patience, min_delta=schedule.min_delta
        )
    if stage.until_plateau is not None:
        found["stage"] = stage.until_plateau
    if config.early_stop is not None:
        found["training"] = config.early_stop
    return found


def advance(stall: Stall, value: float, rule: StallConfig) -> tuple[Stall, bool]:
    """Return the state after ``value``, and whether the watched value has stalled by it.

    A score is to rise, a loss to fall. A stall sets the count back, but not the best value: a rate that was lowered
    has ``patience`` evaluations again.
    """
    gain = value if rule.watch == "score" else -value
    best = None if stall.best is None else stall.best if rule.watch == "score" else -stall.best
    if best is None or gain > best + rule.min_delta:
        return Stall(value, 0), False
    stalled = stall.stale + 1 >= rule.patience
    return Stall(stall.best, 0 if stalled else stall.stale + 1), stalled


def observe(
    stalls: Stalls, rules: Mapping[Watcher, StallConfig], values: Mapping[str, float]
) -> tuple[Stalls, set[Watcher]]:
    """Show each watcher the value that it watches, if there is one; return their new states and who has stalled."""
    after, stalled = dict(stalls), set[Watcher]()
    for watcher, rule in rules.items():
        if rule.watch not in values:
            continue
        state, ended = advance(Stall(**stalls.get(watcher, {})), values[rule.watch], rule)
        after[watcher] = vars(state).copy()
        if ended:
            stalled.add(watcher)
    return after, stalled


def epochs_after(epochs: list[Epoch], done: int, stalled: Collection[Watcher]) -> list[Epoch]:
    """Return the epochs without those that are left out because a stage or the training has stalled."""
    if "training" in stalled:
        return epochs[:done]
    return end_stage(epochs, done) if "stage" in stalled else epochs


def act_on(stalled: Collection[Watcher], state: "TrainingState", log: EventLog) -> None:
    """Lower the rate, or end the stage or the training, where what they watch has stalled by the last epoch."""
    progress = state.progress
    if "rate" in stalled:
        schedule = state.epochs[progress.epoch - 1].schedule
        progress.rate_scale = max(schedule.final_frac, progress.rate_scale * schedule.factor)
        log.write(progress.epoch, "event", rate_scale=progress.rate_scale)
    epochs = epochs_after(state.epochs, progress.epoch, stalled)
    if len(epochs) < len(state.epochs):
        state.epochs = epochs
        ended = "training" if "training" in stalled else "stage"
        log.write(progress.epoch, "event", ended=ended)
        logger.info("%s, epoch %d: no gain; the %s ends here", state.data.name, progress.epoch, ended)


StageLosses = dict[str, list[float]]
"""Stage -> its first and its lowest mean loss of an epoch."""


def divergence_of(mean_loss: float, losses: Sequence[float] | None) -> str | None:
    """Return what is wrong with an epoch's mean loss, None where nothing is.

    Args:
        mean_loss: Of the epoch.
        losses: First and lowest mean loss of its stage so far; None: it is the first epoch.
    """
    first, best = losses or (math.inf, math.inf)
    if math.isfinite(mean_loss) and (mean_loss <= _EXPLODED * best or mean_loss <= first):
        return None
    return f"mean loss {mean_loss:.4g}, first of this stage {first:.4g}, best {best:.4g}"


def note_loss(losses: StageLosses, stage: int, mean_loss: float) -> None:
    """Remember an epoch's mean loss."""
    first, best = losses.get(str(stage), [mean_loss, math.inf])
    losses[str(stage)] = [first, min(best, mean_loss)]
