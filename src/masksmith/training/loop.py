"""The training of one fold, top to bottom. Read ``train_fold``; everything else here serves it.

Each epoch: draw batches by counter, step, average; score the fold now and then; write a checkpoint. If
the loss leaves the finite numbers or explodes, the last checkpoint is restored once with a lower rate.
"""

import contextlib
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from masksmith.augment import Batch, Task
from masksmith.errors import DivergedError, InputError
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
from masksmith.training.events import EventLog
from masksmith.training.optim import build_optimizer, lr_factor, set_lr
from masksmith.training.stages import Epoch, FoldData, batches_of, canvas_hw, plan_epochs

_RESCUE_LR = 0.3  # after a divergence the rate is multiplied by this, once
_EXPLODED = 3.0  # a mean loss above this multiple of the stage's best, and above its first, is a divergence
_LOOK_EVERY = 20  # steps between looks at the loss: a look makes a GPU wait


class _DivergenceError(Exception):
    """The loss is not finite, or exploded."""


@dataclass
class Progress:
    """What a checkpoint holds besides tensors."""

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


@contextlib.contextmanager
def _seeded(*counters: int) -> Iterator[None]:
    """Give dropout and the like numbers that belong to the counters; the global generators are put back."""
    with torch.random.fork_rng():
        torch.manual_seed(int(stream(*counters).integers(2**62)))
        yield


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

    def facts(self) -> dict[str, Any]:
        """Return the part of the state that is not tensors."""
        return {
            "key": self.data.key,
            "progress": {**vars(self.progress), "average_steps": self.average.steps},
            "scaler": self.fabric.strategy.precision.state_dict(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the part of the state that is tensors."""
        return pack_state(self.raw, self.average.model, self.optimizer.optimizer)

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], stage: int) -> None:
        """Go back to a checkpoint; ``stage`` is the stage of its last finished epoch."""
        self.start_optimizer(stage)
        where = f"checkpoint of fold {self.data.fold}"
        unpack_state(tensors, self.raw, self.average.model, self.optimizer.optimizer, where=where)
        self.fabric.strategy.precision.load_state_dict(facts["scaler"])
        self.progress = Progress(**facts["progress"])
        self.average.steps = self.progress.average_steps

    def run_epoch(self, epoch: Epoch, remaining: Remaining) -> tuple[float, float]:
        """Train one epoch; return its mean loss and its last learning rate."""
        if epoch.starts_optimizer and epoch.first_step > 0:
            self.start_optimizer(epoch.stage)
        task, loss_of = self.tasks[epoch.stage], self.losses[epoch.stage]
        work = task.canvas_hw[0] * task.canvas_hw[1] * epoch.batch_size
        total, rate = torch.zeros((), device=self.fabric.device), 0.0
        self.model.train()
        batches = batches_of(task, self.data, epoch, device=self.fabric.device.type)
        what = f"fold {self.data.fold}"
        for step, batch in enumerate(track(batches, total=epoch.steps, what=what)):
            at = (epoch.first_step + step - epoch.span_start) / epoch.span_steps
            rate = set_lr(self.optimizer.optimizer, lr_factor(epoch.schedule, at) * self.progress.lr_scale)
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
            total += loss.detach()
            remaining.advance(work)
            if (step + 1) % _LOOK_EVERY == 0 and not math.isfinite(total.item()):
                raise _DivergenceError(f"the loss is no longer a number by step {step + 1}")
        mean_loss = total.item() / epoch.steps
        _check_epoch(mean_loss, epoch, self.progress)
        return mean_loss, rate


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

    Raises:
        DivergedError: The loss exploded a second time; the last good checkpoint is kept.
    """
    if not data.ids:
        raise InputError(f"fold {data.fold}: no images to train on")
    if is_finished(folder / "final.safetensors", data.key):
        _tidy(folder)  # the process died between the last checkpoint and the ledger
        return
    plan = plan_epochs(config, len(data.ids))
    trainer = _Trainer(fabric, model, config, data)
    checkpoints = Checkpoints(folder)
    done = 0
    found = checkpoints.newest()
    if found is not None and found[1].get("key") != data.key:
        logger.warning(
            "fold %d: the checkpoint was trained on other data or folds; beginning anew", data.fold
        )
        checkpoints.clear()
        found = None
    if found is None:
        checkpoints.save(0, trainer.tensors(), trainer.facts())
    else:
        tensors, facts = found
        done = int(facts["epoch"])
        trainer.restore(tensors, facts, plan[max(done - 1, 0)].stage)
        logger.info("fold %d: going on after epoch %d", data.fold, done)
    log.cut_back(done)
    remaining.done += sum(_work(trainer, epoch) for epoch in plan[:done])

    while done < len(plan):
        epoch = plan[done]
        started = time.monotonic()
        before = remaining.done
        try:
            with _seeded(data.seed, data.fold, epoch.stage, epoch.number):
                mean_loss, rate = trainer.run_epoch(epoch, remaining)
        except _DivergenceError as error:
            done = _rescue(trainer, checkpoints, plan, done, log, error)
            remaining.done = before
            continue
        done += 1
        seconds = time.monotonic() - started
        log.write(done, "train", loss=mean_loss, lr=rate)
        log.write(done, "timing", seconds=seconds, images_per_s=epoch.steps * epoch.batch_size / seconds)
        score = None
        if done % config.evaluate_every == 0 or done == len(plan):
            score = evaluate(trainer.average.model)
            log.write(done, "fold", score=score)
            if score > trainer.progress.best_score:
                trainer.progress.best_score, trainer.progress.best_epoch = score, done
                if config.select == "best":
                    save_tensors(
                        folder / "best.safetensors", trainer.average.model.state_dict(), {"epoch": done}
                    )
        checkpoints.save(done, trainer.tensors(), trainer.facts())
        _say(
            data.fold,
            done,
            len(plan),
            mean_loss,
            score,
            rate,
            epoch.steps * epoch.batch_size / seconds,
            remaining,
        )
    _finish(trainer, folder, done)
    _tidy(folder)


def _work(trainer: _Trainer, epoch: Epoch) -> int:
    height, width = trainer.tasks[epoch.stage].canvas_hw
    return height * width * epoch.batch_size * epoch.steps


def _rescue(
    trainer: _Trainer, checkpoints: Checkpoints, plan: list[Epoch], done: int, log: EventLog, error: Exception
) -> int:
    """Go back to the last checkpoint with a lower rate; the second time, stop. Returns its finished epochs."""
    found = checkpoints.newest()
    where = f"fold {trainer.data.fold}, epoch {done + 1}"
    if found is None or trainer.progress.lr_scale < 1:
        raise DivergedError(
            f"{where}: training diverged again ({error}) after the learning rate had been multiplied by {_RESCUE_LR}; "
            "the last good checkpoint is kept. Lower training.stages.0.optimizer.lr, or train with "
            "training.precision=32-true"
        ) from error
    done = int(found[1]["epoch"])
    trainer.restore(*found, plan[max(done - 1, 0)].stage)
    trainer.progress.lr_scale = _RESCUE_LR
    log.cut_back(done)
    checkpoints.save(done, trainer.tensors(), trainer.facts())
    log.write(done, "event", rescued=str(error), lr_scale=_RESCUE_LR)
    logger.warning(
        "%s: training diverged (%s); back to epoch %d with %.1f times the rate",
        where,
        error,
        done,
        _RESCUE_LR,
    )
    return done


def _say(
    fold: int,
    done: int,
    epochs: int,
    loss: float,
    score: float | None,
    lr: float,
    pace: float,
    remaining: Remaining,
) -> None:
    scored = "" if score is None else f", score {score:.4f}"
    logger.info(
        "fold %d, epoch %d/%d: loss %.4f%s, lr %.2e, %.0f images/s, peak %.1f GiB, %s left",
        fold, done, epochs, loss, scored, lr, pace, _peak_gib(), clock(remaining.seconds),
    )  # fmt: skip


def _finish(trainer: _Trainer, folder: Path, epochs: int) -> None:
    """Write the chosen average as ``final.safetensors``, with the last and the best score beside it."""
    from masksmith.training.checkpoint import load_tensors

    progress = trainer.progress
    facts: dict[str, Any] = {
        "epoch": epochs,
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
