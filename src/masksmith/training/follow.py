"""What followers of a training over several devices do: the steps that the leader tells, with their part of each."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
from lightning_fabric import Fabric

from masksmith.core.arrays import Int
from masksmith.models.segmentation import SegmentationModel
from masksmith.training.checkpoint import Checkpoints
from masksmith.training.config import TrainingConfig
from masksmith.training.data import FoldData, StepBatches
from masksmith.training.devices import Begin, Restore, told
from masksmith.training.keep import Keeper
from masksmith.training.loop import train_step
from masksmith.training.machine import keep_random
from masksmith.training.optim import set_lr
from masksmith.training.samplers import fresh_before
from masksmith.training.state import TrainingState


def follow_fold(
    fabric: Fabric, model: SegmentationModel, config: TrainingConfig, data: FoldData, *, folder: Path
) -> None:
    """Make this process's part of each step that a leader's ``train_fold`` tells; nothing is written.

    Args:
        fabric: A follower's (see devices.following).
        model: As the leader's.
        config: As the leader's.
        data: As the leader's.
        folder: Where the leader writes the fold's checkpoints.

    Raises:
        InputError: As train_fold, or an image was damaged since it was cached.
    """
    state = TrainingState(fabric, model, config, data)
    checkpoints, keeper = Checkpoints(folder), Keeper(folder, config, data.key)
    with keep_random(fabric.device), ExitStack() as epoch:
        for word in told(fabric):
            if isinstance(word, Restore):
                found = checkpoints.newest()
                assert found is not None, folder  # the leader has just read it or written it
                state.restore(*found)
                fabric.barrier()
            elif isinstance(word, Begin):
                state.progress, state.epochs = word.progress, word.epochs
                if state.starts_from_best:
                    state.start_from(keeper.load(state.progress.best.epoch))
                epoch.close()
                batches_of = epoch.enter_context(_made_ahead(state, word.order))
                state.begin_epoch()
            else:
                batches = batches_of(word.number)
                set_lr(state.optimizer.optimizer, word.lr_factor)
                train_step(state, batches)


@contextmanager
def _made_ahead(
    state: TrainingState, order: Int[np.ndarray, " drawn"]
) -> Iterator[Callable[[int], StepBatches]]:
    """Give the batches of an epoch by their number: new ones, which come in turn, are made ahead on a GPU."""
    batches = state.batches(order)
    repeat = state.sampling.of(batches.epoch).repeat_worst_of
    numbers = range(fresh_before(state.progress.step, repeat), fresh_before(batches.epoch.steps, repeat))
    with closing(batches.new(numbers, device=state.fabric.device.type)) as new:
        coming = numbers.start

        def batches_of(number: int) -> StepBatches:
            nonlocal coming
            if number != coming:
                return batches.make(number)  # the worst again
            coming += 1
            return next(new)

        yield batches_of
