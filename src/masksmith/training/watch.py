"""Watched values: when a score or a loss has stalled. Pure functions; the state lies in the checkpoint.

Three things may watch: a schedule (its rate falls), a stage (it ends), and the training as a whole (it ends). All
count within a stage, because losses of two stages cannot be compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from masksmith.training.config import StallConfig, TrainingConfig
from masksmith.training.plan import Epoch

Watcher = Literal["rate", "stage", "training"]


@dataclass(frozen=True)
class Stall:
    """What a watcher has seen: the best value, and the looks in a row without a gain."""

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
    """Return the state after a look at ``value``, and whether the watched value has stalled by it.

    A score is to rise, a loss to fall. A stall sets the count back, but not the best value: a rate that was lowered
    has ``patience`` looks again.
    """
    gain = value if rule.watch == "score" else -value
    best = None if stall.best is None else stall.best if rule.watch == "score" else -stall.best
    if best is None or gain > best + rule.min_delta:
        return Stall(value, 0), False
    stalled = stall.stale + 1 >= rule.patience
    return Stall(stall.best, 0 if stalled else stall.stale + 1), stalled


def look(
    stalls: Stalls, rules: Mapping[Watcher, StallConfig], watch: str, value: float
) -> tuple[Stalls, set[Watcher]]:
    """Show ``value`` to all that watch ``watch``; return their new states and who has stalled."""
    after, stalled = dict(stalls), set[Watcher]()
    for watcher, rule in rules.items():
        if rule.watch != watch:
            continue
        state, ended = advance(Stall(**stalls.get(watcher, {})), value, rule)
        after[watcher] = vars(state).copy()
        if ended:
            stalled.add(watcher)
    return after, stalled
