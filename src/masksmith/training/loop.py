"""The training of one fold, top to bottom.

``train_fold`` draws batches, makes a step of each, scores the fold now and then, keeps what is worth keeping and writes
a checkpoint after each epoch. ``train_step`` is the step: forward, loss, backward, optimizer, average. What is saved
and restored is in ``state.py``; everything about time is in ``pace.py``; what several devices need is in ``devices.py``
and ``follow.py``: here is what the leader does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from masksmith.core.errors import DivergedError, InputError, StoppedError
from masksmith.core.progress import logger, track
from masksmith.core.randomness import stream
from masksmith.metrics import Metric
from masksmith.models.segmentation import SegmentationModel
from masksmith.training.checkpoint import Checkpoints, is_finished
from masksmith.training.config import TrainingConfig
from masksmith.training.data import FoldData, StepBatches
from masksmith.training.devices import Begin, Next, tell, tell_restored
from masksmith.training.events import EventLog, log_adjusted, log_epoch
from masksmith.training.final import remove_temporary, write_final
from masksmith.training.held_out import HeldOut, needs_val_loss
from masksmith.training.keep import Keeper
from masksmith.training.machine import keep_random
from masksmith.training.measure import batch_scores
from masksmith.training.pace import Pace
from masksmith.training.refit import refuse_scores
from masksmith.training.state import TrainingState
from masksmith.training.step import batch_loss, forward, image_losses, of_all_processes, to_device
from masksmith.training.watch import act_on, divergence_of, note_loss, observe, watchers_of

_CHECK_LOSS_EVERY = 20  # steps: reading the loss makes a GPU wait
_RESCUE_LR = 0.3  # after a divergence the rate is multiplied by this, once


def train_fold(
    fabric: Fabric,
    model: SegmentationModel,
    config: TrainingConfig,
    data: FoldData,
    *,
    folder: Path,
    log: EventLog,
    evaluate: Callable[[SegmentationModel], Mapping[str, float]] | None,
    pace: Pace,
    metrics: Sequence[Metric] = (),
) -> None:
    """Train one fold, from its newest checkpoint if there is one, and write ``final.safetensors``.

    Args:
        fabric: Device and precision; of several processes the leader's (see devices.leading).
        model: A freshly built model.
        config: Settled (no "auto" left).
        data: Ids to train on, their images and masks, and the seed.
        folder: Where the fold's checkpoints lie.
        log: The log of record.
        evaluate: Returns the "score" of a model on the fold's held-out images, and what ``config.metrics`` asks for
            beside it; None where none are held out.
        pace: Measures the time, and shortens the training where it has a deadline.
        metrics: Measured on the training batches.

    Raises:
        InputError: Nothing to train on, or something that needs a score where nothing is held out.
        DivergedError: The loss exploded a second time; the last good checkpoint is kept.
        StoppedError: A stop was asked for; the checkpoint written is of this very step.
    """
    if not data.ids:
        raise InputError(f"{data.name}: no images to train on")
    if evaluate is None:
        refuse_scores(config)
    if is_finished(folder / "final.safetensors", data.key):
        remove_temporary(folder)  # the process died between the last checkpoint and the ledger
        return
    state = TrainingState(fabric, model, config, data, metrics=metrics)
    held_out = HeldOut.of(config, data, model.divisor)
    checkpoints, keeper = Checkpoints(folder), Keeper(folder, config, data.key)
    _resume(state, checkpoints, keeper, log)
    with keep_random(fabric.device):
        while state.progress.epoch < len(state.epochs):
            try:
                lr = train_epoch(state, pace, keeper, log)
                epoch, losses = state.epoch, state.progress.stage_losses
                values, trained = {"loss": state.mean_loss}, state.mean_metrics
                problem = divergence_of(values["loss"], losses.get(str(epoch.stage)))
                if problem is not None:
                    _rescue(state, checkpoints, keeper, log, problem)
                    continue
                note_loss(losses, epoch.stage, values["loss"])
                rules = watchers_of(config, epoch)
                _, stalled = observe(
                    state.progress.stalls, rules, values
                )  # an epoch that is the last is scored
                if evaluate is not None and state.is_scored(stalled):
                    values |= evaluate(state.kept)
                    if needs_val_loss(config, epoch):
                        values["val_loss"] = held_out.loss(fabric, state.kept, epoch, state.loss_of)
                    pace.scored()
            except StoppedError:
                _save(state, checkpoints, keeper)
                raise
            state.progress.stalls, stalled = observe(state.progress.stalls, rules, values)
            keeper.note(state, values)
            state.end_epoch()
            log_epoch(log, state, pace, lr, values, trained)
            act_on(stalled, state, log)
            _save(state, checkpoints, keeper)
            log.sync()
        write_final(state, keeper, evaluate)
    remove_temporary(folder)


def train_epoch(state: TrainingState, pace: Pace, keeper: Keeper, log: EventLog) -> float:
    """Make the steps of the epoch under way that are not made yet; return the last learning rate.

    The epoch ends early where the loss is no longer finite, and where ``pace`` leaves out the rest of it.
    """
    progress = state.progress
    if state.starts_from_best:
        state.start_from(keeper.load(progress.best.epoch))
    order, num_steps = state.draw_order(), state.epoch.steps - progress.step
    tell(state.fabric, Begin(progress, state.epochs, order))
    state.begin_epoch()
    pace.begin_epoch(new_stage=state.epoch.number == 0 and progress.step == 0)
    for batches in track(
        state.steps_ahead(order) if num_steps else (), total=num_steps, what=state.data.name
    ):
        tell(state.fabric, Next(batches.number, state.lr_factor(progress.step)))
        state.set_lr(progress.step)
        train_step(state, batches)
        pace.step(state.step_work)
        if state.ends_cycle():
            keeper.snapshot(state)
            state.add_to_swa("cycle")
        if progress.step % _CHECK_LOSS_EVERY == 0 and not math.isfinite(state.loss_sum.item()):
            break
        epochs = pace.adjusted_epochs(state)
        if epochs is not None:
            log_adjusted(log, state, epochs)
            state.epochs = epochs
        if progress.step == state.epoch.steps:
            break
    return state.set_lr(state.epoch.steps - 1)


def train_step(state: TrainingState, batches: StepBatches) -> Tensor:
    """Make one step: forward, loss and backward for each batch, then optimizer and average; return the mean loss."""
    epoch, data, device = state.epoch, state.data, state.fabric.device
    # dropout and the like draw numbers that belong to the step, wherever the training was begun
    counters = (
        data.seed,
        data.fold,
        epoch.stage,
        epoch.number,
        state.progress.step,
        1 + state.fabric.global_rank,
    )
    torch.manual_seed(int(stream(*counters).integers(2**62)))
    step_loss, num_processes = torch.zeros((), device=device), state.fabric.world_size
    weights: Sequence[list[float] | None] = batches.weights or [None] * len(batches.batches)
    for arrays, indices, own in zip(batches.batches, batches.indices, weights, strict=True):
        part = to_device(arrays, device)
        output, batch = of_all_processes(
            state.fabric, forward(state.fabric, state.model, part), part, len(indices)
        )
        loss = batch_loss(state.loss_of, output, batch, own) * (len(indices) / batches.images)
        state.fabric.backward(loss * num_processes if num_processes > 1 else loss)
        step_loss += loss.detach()
        if state.metrics:
            found = batch_scores(state.metrics, output, batch, exclusive=state.raw.exclusive)
            state.add_metrics(found, share=len(indices) / batches.images)
        if state.sampling.by_loss and state.leads:
            state.sampling.note(epoch, indices, image_losses(state.loss_of, output, batch))
    if state.config.clip_norm is not None:
        state.fabric.clip_gradients(
            state.model, state.optimizer, max_norm=state.config.clip_norm, error_if_nonfinite=False
        )
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.average:
        state.average.update(state.raw)
    state.sampling.note_step(epoch, state.progress.step, step_loss)
    state.progress.step += 1
    state.loss_sum += step_loss
    return step_loss


def _resume(state: TrainingState, checkpoints: Checkpoints, keeper: Keeper, log: EventLog) -> None:
    """Go on from the newest whole checkpoint, or write the first one."""
    found, name = checkpoints.newest(), state.data.name
    if found is not None and found[1].get("key") != state.data.key:
        logger.warning("%s: the checkpoint was trained on other data or folds; starting over", name)
        checkpoints.clear()
        found = None
    if found is None:
        log.cut_back(-1.0)
        keeper.clear()
        _save(state, checkpoints, keeper)
        tell_restored(state.fabric)
        return
    state.restore(*found)
    tell_restored(state.fabric)
    keeper.drop(state.progress.best)
    log.cut_back(state.position)
    logger.info("%s: resuming after epoch %.2f", name, state.position)


def _save(state: TrainingState, checkpoints: Checkpoints, keeper: Keeper) -> None:
    checkpoints.save(state.progress.epoch, state.tensors(), state.facts(), step=state.progress.step)
    keeper.drop(state.progress.best)


def _rescue(
    state: TrainingState, checkpoints: Checkpoints, keeper: Keeper, log: EventLog, problem: str
) -> None:
    """Go back to the last checkpoint with a lower rate; the second time, stop."""
    found, where = checkpoints.newest(), f"{state.data.name}, epoch {state.progress.epoch + 1}"
    if found is None or state.progress.lr_scale < 1:
        raise DivergedError(
            f"{where}: training diverged again ({problem}) after the learning rate had been multiplied by "
            f"{_RESCUE_LR}; the last good checkpoint is kept. Lower training.stages.0.optimizer.lr, or train with "
            "training.precision=32-true"
        )
    state.restore(*found)
    state.progress.lr_scale = _RESCUE_LR
    log.cut_back(state.position)
    _save(state, checkpoints, keeper)
    tell_restored(state.fabric)
    log.write(state.position, "event", rescued=problem, lr_scale=_RESCUE_LR)
    logger.warning(
        "%s: training diverged (%s); back to epoch %.2f with %.1f times the learning rate",
        where, problem, state.position, _RESCUE_LR,
    )  # fmt: skip
