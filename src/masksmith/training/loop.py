"""The training of one fold, top to bottom. Read ``train_fold``; everything else here serves it.

Each epoch: draw batches by counter, step, average; score the fold now and then; write a checkpoint. If
the loss leaves the finite numbers or explodes, the last checkpoint is restored once with a lower rate. If
the time will not do, the plan is shortened; if a stop is asked for, a checkpoint is written where it stands.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from masksmith.errors import DivergedError, InputError, StoppedError
from masksmith.files import remove
from masksmith.models import SegmentationModel
from masksmith.progress import Remaining, clock, logger
from masksmith.training.checkpoint import Checkpoints, copy_weights, is_finished, save_tensors
from masksmith.training.config import TrainingConfig
from masksmith.training.deadline import Deadline
from masksmith.training.events import EventLog
from masksmith.training.stages import FoldData
from masksmith.training.trainer import DivergenceError, LateError, Trainer

_RESCUE_LR = 0.3  # after a divergence the rate is multiplied by this, once


def train_fold(
    fabric: Fabric,
    model: SegmentationModel,
    config: TrainingConfig,
    data: FoldData,
    *,
    folder: Path,
    log: EventLog,
    evaluate: Callable[[SegmentationModel], float],
    remaining: Remaining,
    deadline: Deadline | None = None,
) -> None:
    """Train one fold, from its newest checkpoint if there is one, and write ``final.safetensors``.

    Args:
        fabric: Device and precision.
        model: A freshly built model.
        config: Settled (no "auto" left).
        data: Ids to train on, their images and masks, and the seed.
        folder: Where the fold's checkpoints lie.
        log: The log of record.
        evaluate: Returns the score of a model on the fold's held-out images.
        remaining: Knows the time left; told of every step.
        deadline: When the training has to end; the plan is shortened where it would not. None: no hurry.

    Raises:
        DivergedError: The loss exploded a second time; the last good checkpoint is kept.
        StoppedError: A stop was asked for; the checkpoint written is of this very step.
    """
    if not data.ids:
        raise InputError(f"fold {data.fold}: no images to train on")
    if is_finished(folder / "final.safetensors", data.key):
        _tidy(folder)  # the process died between the last checkpoint and the ledger
        return
    trainer = Trainer(fabric, model, config, data)
    checkpoints = Checkpoints(folder)
    planned = trainer.work_ahead()
    _begin(trainer, checkpoints, log)
    remaining.done += planned - trainer.work_ahead()
    with torch.random.fork_rng():
        _run(trainer, checkpoints, log, evaluate, remaining, deadline)
    _finish(trainer, folder)
    _tidy(folder)


def _begin(trainer: Trainer, checkpoints: Checkpoints, log: EventLog) -> None:
    """Go on from the newest whole checkpoint, or write the first one."""
    found = checkpoints.newest()
    fold = trainer.data.fold
    if found is not None and found[1].get("key") != trainer.data.key:
        logger.warning("fold %d: the checkpoint was trained on other data or folds; beginning anew", fold)
        checkpoints.clear()
        found = None
    if found is not None:
        trainer.restore(*found)
        logger.info("fold %d: going on after epoch %.2f", fold, trainer.position)
    log.cut_back(trainer.position)
    if found is None:
        _save(trainer, checkpoints)


def _save(trainer: Trainer, checkpoints: Checkpoints) -> None:
    progress = trainer.progress
    checkpoints.save(progress.epoch, trainer.tensors(), trainer.facts(), step=progress.step)


def _run(
    trainer: Trainer,
    checkpoints: Checkpoints,
    log: EventLog,
    evaluate: Callable[[SegmentationModel], float],
    remaining: Remaining,
    deadline: Deadline | None,
) -> None:
    """Train epoch after epoch until the plan is done."""
    seconds, steps = 0.0, 0  # of the epoch under way, in this process
    while (progress := trainer.progress).epoch < len(trainer.plan):
        epoch, first, started, before = (
            trainer.plan[progress.epoch],
            progress.step,
            time.monotonic(),
            remaining.done,
        )
        try:
            mean_loss, rate = trainer.run_epoch(remaining, deadline)
            seconds, steps = seconds + time.monotonic() - started, steps + epoch.steps - first
            score = _score(trainer, checkpoints.folder, evaluate)
        except DivergenceError as error:
            _rescue(trainer, checkpoints, log, error)
            remaining.done = before
            seconds, steps = 0.0, 0
            continue
        except LateError as late:
            seconds, steps = seconds + time.monotonic() - started, steps + progress.step - first
            _replan(trainer, log, late.share, remaining)
            _save(trainer, checkpoints)
            continue
        except StoppedError:
            _save(trainer, checkpoints)
            raise
        progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
        pace = steps * epoch.batch_size / seconds if seconds else 0.0
        log.write(progress.epoch, "train", loss=mean_loss, lr=rate)
        log.write(progress.epoch, "timing", seconds=seconds, images_per_s=pace)
        if score is not None:
            log.write(progress.epoch, "fold", score=score)
        _save(trainer, checkpoints)
        _say(trainer, mean_loss, score, rate, pace, remaining)
        seconds, steps = 0.0, 0


def _score(trainer: Trainer, folder: Path, evaluate: Callable[[SegmentationModel], float]) -> float | None:
    """Score the average after the epoch under way, if it is its turn, and keep it where it is the best."""
    done, progress = trainer.progress.epoch + 1, trainer.progress
    if not trainer.is_evaluated(done):
        return None
    started = time.monotonic()
    score = evaluate(trainer.average.model)
    trainer.evaluate_s = time.monotonic() - started
    if score > progress.best_score:
        progress.best_score, progress.best_epoch = score, done
        if trainer.config.select == "best":
            save_tensors(folder / "best.safetensors", trainer.average.model.state_dict(), {"epoch": done})
    return score


def _replan(trainer: Trainer, log: EventLog, share: float, remaining: Remaining) -> None:
    """Shorten the plan and say so in the log of record."""
    position, before = trainer.position, trainer.work_ahead()
    trainer.shorten(share)
    dropped = before - trainer.work_ahead()
    remaining.total -= dropped
    log.write(position, "event", replanned=share)
    logger.warning(
        "fold %d, epoch %.2f: the time left is not enough; %.0f%% of the steps ahead are kept",
        trainer.data.fold, position, 100 * share,
    )  # fmt: skip


def _rescue(trainer: Trainer, checkpoints: Checkpoints, log: EventLog, error: Exception) -> None:
    """Go back to the last checkpoint with a lower rate; the second time, stop."""
    found = checkpoints.newest()
    where = f"fold {trainer.data.fold}, epoch {trainer.progress.epoch + 1}"
    if found is None or trainer.progress.lr_scale < 1:
        raise DivergedError(
            f"{where}: training diverged again ({error}) after the learning rate had been multiplied by {_RESCUE_LR}; "
            "the last good checkpoint is kept. Lower training.stages.0.optimizer.lr, or train with "
            "training.precision=32-true"
        ) from error
    trainer.restore(*found)
    trainer.progress.lr_scale = _RESCUE_LR
    log.cut_back(trainer.position)
    _save(trainer, checkpoints)
    log.write(trainer.position, "event", rescued=str(error), lr_scale=_RESCUE_LR)
    logger.warning(
        "%s: training diverged (%s); back to epoch %.2f with %.1f times the rate",
        where,
        error,
        trainer.position,
        _RESCUE_LR,
    )


def _peak_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def _say(
    trainer: Trainer, loss: float, score: float | None, lr: float, pace: float, remaining: Remaining
) -> None:
    scored = "" if score is None else f", score {score:.4f}"
    logger.info(
        "fold %d, epoch %d/%d: loss %.4f%s, lr %.2e, %.0f images/s, peak %.1f GiB, %s left",
        trainer.data.fold, trainer.progress.epoch, len(trainer.plan), loss, scored, lr, pace, _peak_gib(),
        clock(remaining.seconds),
    )  # fmt: skip


def _finish(trainer: Trainer, folder: Path) -> None:
    """Write the chosen average as ``final.safetensors``, with the last and the best score beside it."""
    from masksmith.training.checkpoint import load_tensors

    progress = trainer.progress
    facts: dict[str, Any] = {
        "epoch": progress.epoch,
        "select": trainer.config.select,
        "best_epoch": progress.best_epoch,
        "best_score": progress.best_score,
        "rescued": progress.lr_scale < 1,
        "divisor": trainer.raw.divisor,
        "key": trainer.data.key,
    }
    if trainer.config.select == "best":
        tensors, _ = load_tensors(folder / "best.safetensors")
        copy_weights(trainer.average.model, tensors, where=str(folder / "best.safetensors"))
        facts["epoch"] = progress.best_epoch
    save_tensors(folder / "final.safetensors", trainer.average.model.state_dict(), facts)


def _tidy(folder: Path) -> None:
    """Remove what only an unfinished training needs; the best weights go last, the last checkpoint needs them."""
    Checkpoints(folder).clear()
    for scrap in sorted(folder.glob("best.*")):
        remove(scrap)
