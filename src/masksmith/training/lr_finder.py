"""Learning-rate range test: a short training whose rate grows from step to step, and the loss at each rate.

Source:
    Smith 2015, https://arxiv.org/abs/1506.01186, section 3.3; the smoothed loss and the steepest fall as the choice are
    those of fastai (https://docs.fast.ai/callback.schedule.html).
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
from lightning_fabric import Fabric

from masksmith.core.errors import InputError
from masksmith.core.progress import track
from masksmith.models.segmentation import SegmentationModel
from masksmith.training.config import TrainingConfig
from masksmith.training.data import EpochBatches, FoldData, StepBatches
from masksmith.training.loop import train_step
from masksmith.training.machine import keep_random
from masksmith.training.optim import set_lr
from masksmith.training.state import TrainingState

_SMOOTHING = 0.9  # share of the old value in the smoothed loss
_DIVERGED = 4.0  # a smoothed loss above this multiple of the lowest ends the sweep
_FEWEST = 20  # steps; the first half of them are too noisy to choose by
_NOISY = 10  # steps in which the smoothed loss is the mean of too few


@dataclass(frozen=True)
class LrCurve:
    """What a sweep found."""

    rates: list[float]
    """Learning rates, ascending, as far as the sweep came."""
    losses: list[float]
    """Smoothed training loss at each rate."""
    suggestion: float | None
    """Rate at which the smoothed loss falls fastest; None where it does not fall."""


def find_lr(
    fabric: Fabric,
    model: SegmentationModel,
    config: TrainingConfig,
    data: FoldData,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
) -> LrCurve:
    """Train a copy of the model with a rate that grows exponentially from step to step, until the loss diverges.

    The first stage is trained: its loss, images, optimizer, clipping and frozen parts. Model, data and the global
    random numbers are left as they were; the same call gives the same curve.

    Args:
        fabric: Device and precision.
        model: A freshly built model.
        config: Settled (no "auto" left).
        data: Ids to train on, their images and masks, and the seed.
        lowest: First rate.
        highest: Last rate, unless the loss diverges before.
        steps: Steps of the sweep, 20 or more.

    Raises:
        InputError: Rates out of order, too few steps, or a stage that cannot be trained.
        StoppedError: A stop was asked for.
    """
    if not 0 < lowest < highest:
        raise InputError(f"lowest {lowest} and highest {highest}: expected 0 < lowest < highest")
    if steps < _FEWEST:
        raise InputError(f"steps: {steps}; expected {_FEWEST} or more, fewer show no curve")
    rates = [float(rate) for rate in np.geomspace(lowest, highest, steps)]
    with keep_random(fabric.device):
        alone = config.model_copy(update={"ema_decay": None, "swa": None})
        losses = _train(TrainingState(fabric, copy.deepcopy(model), alone, data), rates)
    return LrCurve(rates[: len(losses)], losses, steepest(rates[: len(losses)], losses))


def _train(state: TrainingState, rates: Sequence[float]) -> list[float]:
    """Make a step at each rate; return the smoothed losses until they diverge."""
    first = state.config.stages[0].optimizer
    assert first is not None  # TrainingConfig refuses a first stage without one
    state.begin_epoch()
    mean, losses = 0.0, list[float]()
    steps = zip(rates, _steps(state), strict=False)
    for rate, batches in track(steps, total=len(rates), what="learning rates"):
        set_lr(state.optimizer.optimizer, rate / first.lr)
        loss = train_step(state, batches).item()
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smoothed = mean / (1 - _SMOOTHING**state.progress.step)
        if not math.isfinite(loss) or (losses and smoothed > _DIVERGED * min(losses)):
            break
        losses.append(smoothed)
    return losses


def _steps(state: TrainingState) -> Iterator[StepBatches]:
    """Yield steps of the first stage, epoch after epoch, without end."""
    for number in count():
        epoch = replace(state.epochs[0], number=number)
        batches = EpochBatches(
            state.tasks[0], state.data.of(state.config.stages[0]), epoch, state.sampling.order(epoch)
        )
        yield from map(batches.make, range(max(1, len(batches.order) // epoch.images)))


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the rate of the steepest fall before the lowest loss, on the logarithm of the rate."""
    lowest = int(np.argmin(losses)) if losses else 0
    if lowest - _NOISY < 2:  # it rises from the beginning
        return None
    slopes = np.gradient(np.array(losses[_NOISY : lowest + 1]), np.log(rates[_NOISY : lowest + 1]))
    return rates[_NOISY + int(np.argmin(slopes))]
