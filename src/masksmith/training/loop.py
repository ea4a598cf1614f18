"""The training of one fold, top to bottom. Read ``train_fold``; everything else here serves it.

Each epoch: draw batches by counter, step, average; score the fold now and then; write a checkpoint. If
the loss leaves the finite numbers or explodes, the last checkpoint is restored once with a lower rate. If
the time will not do, the plan is shortened; if a stop is asked for, a checkpoint is written where it stands.
"""

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from masksmith.augment import Batch, Task
from masksmith.errors import DivergedError, InputError, StoppedError
from masksmith.files import remove
from masksmith.losses import build_loss
from masksmith.models import SegmentationModel, slice_strided_depthwise, to_channels_last
from masksmith.progress import Remaining, clock, logger, track
from masksmith.randomness import stream
from masksmith.training.averaging import MovingAverage
from masksmith.training.checkpoint import (
    Checkpoints,
    copy_weights,
    is_finished,
    pack_state,
    save_tensors,
    unpack_state,
)
from masksmith.training.config import TrainingConfig
from masksmith.training.deadline import Deadline
from masksmith.training.events import EventLog
from masksmith.training.optim import build_optimizer, lr_factor, set_lr
from masksmith.training.plan import Epoch, plan_epochs, shorten
from masksmith.training.stages import FoldData, batches_of, canvas_hw

_RESCUE_LR = 0.3  # after a divergence the rate is multiplied by this, once
_EXPLODED = 3.0  # a mean loss above this multiple of the stage's best, and above its first, is a divergence
_LOOK_EVERY = 20  # steps between looks at the loss: a look makes a GPU wait
_LATE_EVERY_S = 5.0  # seconds between looks at the time left


class _DivergenceError(Exception):
    """The loss is not finite, or exploded."""


class _LateError(Exception):
    """Only ``share`` of the steps ahead fits the time left."""

    def __init__(self, share: float) -> None:
        super().__init__(share)
        self.share = share


@dataclass
class Progress:
    """What a checkpoint holds besides tensors."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way
    loss_sum: float = 0.0  # of those steps
    lr_scale: float = 1.0
    average_steps: int = 0
    best_score: float = -1.0  # below every score
    best_epoch: int = 0
    stage_losses: dict[str, list[float]] = field(default_factory=dict)  # first and best of each stage


def _to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    image, mask = torch.from_numpy(batch.image), torch.from_numpy(batch.mask)
    if device.type == "cuda":
        image, mask = image.pin_memory(), mask.pin_memory()
    return image.to(device, non_blocking=True), mask.to(device, non_blocking=True)


def _check_epoch(mean_loss: float, epoch: Epoch, progress: Progress) -> None:
    first, best = progress.stage_losses.get(str(epoch.stage), [math.inf, math.inf])
    if not math.isfinite(mean_loss) or (mean_loss > _EXPLODED * best and mean_loss > first):
        raise _DivergenceError(f"mean loss {mean_loss:.4g}, first of this stage {first:.4g}, best {best:.4g}")
    first = mean_loss if math.isinf(first) else first
    progress.stage_losses[str(epoch.stage)] = [first, min(best, mean_loss)]


def _peak_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


class _Trainer:
    """The moving parts of one fold's training, so that they can be saved and restored together."""

    def __init__(
        self, fabric: Fabric, model: SegmentationModel, config: TrainingConfig, data: FoldData
    ) -> None:
        fabric.to_device(model)  # in place
        if config.channels_last:
            to_channels_last(model)
        if fabric.device.type == "cpu" and config.precision == "bf16-mixed":
            slice_strided_depthwise(model)
        self.fabric, self.config, self.data, self.raw = fabric, config, data, model
        self.average = MovingAverage(model, decay=config.ema_decay)
        self.progress = Progress()
        self.plan = plan_epochs(config, len(data.ids))
        self.replanned = False
        self.evaluate_s = 0.0
        self.tasks = [
            Task(
                data.images,
                data.masks,
                config.geometry,
                config.intensity,
                canvas_hw(config, stage, data, model.divisor),
                stage.scale,
            )
            for stage in config.stages
        ]
        self.losses = [
            build_loss([(term.name, term.weight) for term in stage.loss], where=f"training.stages[{i}].loss")
            for i, stage in enumerate(config.stages)
        ]
        self.start_optimizer(0)

    def start_optimizer(self, stage: int) -> None:
        """Begin the optimizer that is in force at ``stage``."""
        chosen = [one.optimizer for one in self.config.stages[: stage + 1] if one.optimizer][-1]
        fused = self.config.precision != "16-mixed"
        self.model, self.optimizer = self.fabric.setup(
            self.raw, build_optimizer(self.raw, chosen, fused=fused)
        )

    @property
    def position(self) -> float:
        """Finished epochs, with the share of the one under way."""
        done, step = self.progress.epoch, self.progress.step
        return done + min(0.999, step / self.plan[done].steps) if step else float(done)

    def facts(self) -> dict[str, Any]:
        """Return the part of the state that is not tensors."""
        return {
            "key": self.data.key,
            "position": self.position,
            "progress": {**vars(self.progress), "average_steps": self.average.steps},
            "plan": [epoch.to_json() for epoch in self.plan] if self.replanned else None,
            "scaler": self.fabric.strategy.precision.state_dict(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the part of the state that is tensors."""
        return pack_state(self.raw, self.average.model, self.optimizer.optimizer)

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.progress = Progress(**facts["progress"])
        self.replanned = facts["plan"] is not None
        if self.replanned:
            self.plan = [Epoch.from_json(epoch) for epoch in facts["plan"]]
        under_way = self.progress.epoch if self.progress.step else max(self.progress.epoch - 1, 0)
        self.start_optimizer(self.plan[under_way].stage)
        where = f"checkpoint of fold {self.data.fold}"
        unpack_state(tensors, self.raw, self.average.model, self.optimizer.optimizer, where=where)
        self.fabric.strategy.precision.load_state_dict(facts["scaler"])
        self.average.steps = self.progress.average_steps

    def work(self, epoch: Epoch) -> int:
        """Return the pixels of one step."""
        height, width = self.tasks[epoch.stage].canvas_hw
        return height * width * epoch.batch_size

    def work_ahead(self) -> int:
        """Return the pixels of all steps that are not made yet."""
        ahead = self.plan[self.progress.epoch :]
        under_way = self.progress.step * self.work(ahead[0]) if ahead else 0
        return sum(self.work(epoch) * epoch.steps for epoch in ahead) - under_way

    def run_epoch(self, remaining: Remaining, deadline: Deadline | None) -> tuple[float, float]:
        """Train the epoch under way to its end; return its mean loss and its last learning rate."""
        progress, epoch = self.progress, self.plan[self.progress.epoch]
        if epoch.starts_optimizer and progress.step == 0:
            self.start_optimizer(epoch.stage)
        task, loss_of, work = self.tasks[epoch.stage], self.losses[epoch.stage], self.work(epoch)
        total = torch.tensor(progress.loss_sum, device=self.fabric.device)
        next_look = time.monotonic() + _LATE_EVERY_S
        self.model.train()
        batches = batches_of(task, self.data, epoch, first=progress.step, device=self.fabric.device.type)
        remaining.restart()
        try:
            for batch in track(batches, total=epoch.steps - progress.step, what=f"fold {self.data.fold}"):
                self.set_rate(epoch, progress.step)
                total += self.step(batch, loss_of, epoch)
                progress.step += 1
                remaining.advance(work)
                if progress.step % _LOOK_EVERY == 0 and not math.isfinite(total.item()):
                    raise _DivergenceError(f"the loss is no longer a number by step {progress.step}")
                if deadline is not None and time.monotonic() >= next_look:
                    next_look = time.monotonic() + _LATE_EVERY_S
                    self.look_at_the_time(remaining, deadline)
        finally:
            progress.loss_sum = total.item()
        mean_loss = progress.loss_sum / epoch.steps
        _check_epoch(mean_loss, epoch, progress)
        return mean_loss, self.set_rate(epoch, epoch.steps - 1)

    def set_rate(self, epoch: Epoch, step: int) -> float:
        """Set the learning rate of a step; return the largest of the groups."""
        factor = lr_factor(epoch.schedule, epoch.at(step)) * self.progress.lr_scale
        return set_lr(self.optimizer.optimizer, factor)

    def step(self, batch: Batch, loss_of: Callable[[Tensor, Tensor], Tensor], epoch: Epoch) -> Tensor:
        """Make one step of the optimizer and of the average; return the loss."""
        # dropout and the like draw numbers that belong to the step, wherever the training was begun
        counters = (self.data.seed, self.data.fold, epoch.stage, epoch.number, self.progress.step, 1)
        torch.manual_seed(int(stream(*counters).integers(2**62)))
        image, target = _to_device(batch, self.fabric.device)
        with self.fabric.autocast():  # the image itself stays float32, as in prediction
            logits = self.raw(image).mask_logits
        loss = loss_of(logits, target)
        self.fabric.backward(loss)
        if self.config.clip_norm is not None:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.raw)
        return loss.detach()

    def look_at_the_time(self, remaining: Remaining, deadline: Deadline) -> None:
        """Raise _LateError where the steps ahead take longer than the time left."""
        pace = remaining.pace
        ahead = range(self.progress.epoch + 1, len(self.plan) + 1)
        evaluations = sum(self.is_evaluated(done) for done in ahead)
        share = deadline.share(pace * self.work_ahead(), evaluations * self.evaluate_s, pace)
        if pace and share is not None:
            raise _LateError(share)

    def is_evaluated(self, done: int) -> bool:
        """Whether the fold is scored after ``done`` epochs."""
        return done % self.config.evaluate_every == 0 or done == len(self.plan)

    def shorten(self, share: float) -> None:
        """Leave only a share of the steps ahead in the plan."""
        self.plan = shorten(self.plan, self.progress.epoch, self.progress.step, share)
        self.replanned = True


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
    trainer = _Trainer(fabric, model, config, data)
    checkpoints = Checkpoints(folder)
    planned = trainer.work_ahead()
    _begin(trainer, checkpoints, log)
    remaining.done += planned - trainer.work_ahead()
    with torch.random.fork_rng():
        _run(trainer, checkpoints, log, evaluate, remaining, deadline)
    _finish(trainer, folder)
    _tidy(folder)


def _begin(trainer: _Trainer, checkpoints: Checkpoints, log: EventLog) -> None:
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


def _save(trainer: _Trainer, checkpoints: Checkpoints) -> None:
    progress = trainer.progress
    checkpoints.save(progress.epoch, trainer.tensors(), trainer.facts(), step=progress.step)


def _run(
    trainer: _Trainer,
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
        except _DivergenceError as error:
            _rescue(trainer, checkpoints, log, error)
            remaining.done = before
            seconds, steps = 0.0, 0
            continue
        except _LateError as late:
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


def _score(trainer: _Trainer, folder: Path, evaluate: Callable[[SegmentationModel], float]) -> float | None:
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


def _replan(trainer: _Trainer, log: EventLog, share: float, remaining: Remaining) -> None:
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


def _rescue(trainer: _Trainer, checkpoints: Checkpoints, log: EventLog, error: Exception) -> None:
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


def _say(
    trainer: _Trainer, loss: float, score: float | None, lr: float, pace: float, remaining: Remaining
) -> None:
    scored = "" if score is None else f", score {score:.4f}"
    logger.info(
        "fold %d, epoch %d/%d: loss %.4f%s, lr %.2e, %.0f images/s, peak %.1f GiB, %s left",
        trainer.data.fold, trainer.progress.epoch, len(trainer.plan), loss, scored, lr, pace, _peak_gib(),
        clock(remaining.seconds),
    )  # fmt: skip


def _finish(trainer: _Trainer, folder: Path) -> None:
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
