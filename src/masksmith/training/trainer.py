"""The moving parts of one fold's training: net, averages, optimizer, plan; its steps and its epochs."""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from masksmith.arrays import Int
from masksmith.losses.build import LossOf
from masksmith.models.cpu import slice_strided_depthwise
from masksmith.models.segmentation import SegmentationModel, to_channels_last
from masksmith.progress import Remaining, clock, logger, track
from masksmith.randomness import stream
from masksmith.training.averaging import EqualMean, MovingAverage, batch_norms, measure_norms
from masksmith.training.checkpoint import copy_weights, pack_state, part_of, unpack_state
from masksmith.training.config import TrainingConfig
from masksmith.training.freeze import encoder_norms, refuse_missing_parts, set_frozen, small_batch_warning
from masksmith.training.held_out import HeldOut
from masksmith.training.keep import Best
from masksmith.training.machine import settle_threads
from masksmith.training.optim import build_optimizer, fill_momentum, finished_cycles, lr_factor, set_lr
from masksmith.training.plan import Epoch, end_stage, plan_epochs
from masksmith.training.sampling import Sampling
from masksmith.training.stages import EpochBatches, FoldData, StepBatches, task_of
from masksmith.training.step import batch_loss, forward, image_losses, losses_of, to_device
from masksmith.training.watch import Stalls, Watcher, watchers_of

_EXPLODED = 3.0  # a mean loss above this multiple of the stage's best, and above its first, is a divergence
_LOOK_EVERY = 20  # steps between looks at the loss: a look makes a GPU wait
_LOOK_EVERY_S = 5.0  # seconds between looks at the time left and at the cores


class DivergenceError(Exception):
    """The loss is not finite, or exploded."""


@dataclass
class Progress:
    """What a checkpoint holds besides tensors."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way
    loss_sum: float = 0.0  # of those steps
    lr_scale: float = 1.0  # below 1 after a divergence
    rate_scale: float = 1.0  # of a plateau schedule
    threads: int | None = None  # the settled ones; None: those of the recipe
    average_steps: int = 0
    swa_count: int = 0  # weights in the mean
    snapshots: int = 0
    best: Best = field(default_factory=Best)
    stalls: Stalls = field(default_factory=dict)
    stage_losses: dict[str, list[float]] = field(default_factory=dict)  # first and best of each stage

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Progress":
        """Return the progress that ``asdict`` made."""
        return cls(**{**value, "best": Best.from_json(value["best"])})


def _first_and_best(progress: Progress, epoch: Epoch) -> list[float]:
    return progress.stage_losses.get(str(epoch.stage), [math.inf, math.inf])


def _has_exploded(mean_loss: float, first: float, best: float) -> bool:
    return not math.isfinite(mean_loss) or (mean_loss > _EXPLODED * best and mean_loss > first)


def check_epoch(mean_loss: float, epoch: Epoch, progress: Progress) -> None:
    """Remember an epoch's mean loss, or raise DivergenceError where it is not finite or exploded."""
    first, best = _first_and_best(progress, epoch)
    if _has_exploded(mean_loss, first, best):
        raise DivergenceError(f"mean loss {mean_loss:.4g}, first of this stage {first:.4g}, best {best:.4g}")
    first = mean_loss if math.isinf(first) else first
    progress.stage_losses[str(epoch.stage)] = [first, min(best, mean_loss)]


class Trainer:
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
        self.average = None if config.ema_decay is None else MovingAverage(model, decay=config.ema_decay)
        self.swa = EqualMean(model) if config.swa else None
        self.progress = Progress()
        self.plan = self.whole = plan_epochs(config, data.counts(config))
        self.replanned = False
        self.threads = settle_threads(config.threads)
        self.evaluate_s = 0.0
        self.next_look = time.monotonic() + _LOOK_EVERY_S
        self.tasks = [task_of(config, stage, data, model.divisor) for stage in config.stages]
        self.losses = losses_of(model, config)
        self.held_out = HeldOut.of(config, data, model.divisor)
        self.sampling = Sampling(config, data, fabric.device)
        self._check_parts()
        self.start_optimizer(0)

    def _check_parts(self) -> None:
        for i, stage in enumerate(self.config.stages):
            refuse_missing_parts(self.raw, stage.freeze, where=f"training.stages[{i}].freeze")
        warning = small_batch_warning(self.raw, min(epoch.batch_size for epoch in self.plan))
        if warning:
            logger.warning("%s: %s", self.data.name, warning)

    def start_optimizer(self, stage: int) -> None:
        """Begin the optimizer that is in force at ``stage``."""
        chosen = [one.optimizer for one in self.config.stages[: stage + 1] if one.optimizer][-1]
        fused = self.config.precision != "16-mixed"
        self.model, self.optimizer = self.fabric.setup(
            self.raw, build_optimizer(self.raw, chosen, fused=fused)
        )

    # --- state --------------------------------------------------------------------------------------------

    @property
    def kept(self) -> SegmentationModel:
        """The weights that are scored and kept: the moving average, or the weights themselves where there is none."""
        return self.average.model if self.average else self.raw

    @property
    def averages(self) -> dict[str, nn.Module]:
        """The averages by the names that they have in a checkpoint."""
        found: dict[str, nn.Module] = {"average": self.average.model} if self.average else {}
        return found | ({"swa": self.swa.model} if self.swa else {})

    @property
    def position(self) -> float:
        """Finished epochs, with the share of the one under way."""
        done, step = self.progress.epoch, self.progress.step
        return done + min(0.999, step / self.plan[done].steps) if step else float(done)

    def facts(self) -> dict[str, Any]:
        """Return the part of the state that is not tensors."""
        self.progress.average_steps = self.average.steps if self.average else 0
        self.progress.swa_count = self.swa.count if self.swa else 0
        return {
            "key": self.data.key,
            "position": self.position,
            "progress": asdict(self.progress),
            "plan": [epoch.to_json() for epoch in self.plan] if self.replanned else None,
            "scaler": self.fabric.strategy.precision.state_dict(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the part of the state that is tensors."""
        return pack_state(self.raw, self.averages, self.optimizer.optimizer) | self.sampling.tensors()

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.progress = Progress.from_json(facts["progress"])
        self.use_threads(self.progress.threads or settle_threads(self.config.threads))
        self.replanned = facts["plan"] is not None
        self.plan = [Epoch.from_json(epoch) for epoch in facts["plan"]] if self.replanned else self.whole
        under_way = self.progress.epoch if self.progress.step else max(self.progress.epoch - 1, 0)
        self.start_optimizer(self.plan[under_way].stage)
        where = f"checkpoint of {self.data.name}"
        unpack_state(tensors, self.raw, self.averages, self.optimizer.optimizer, where=where)
        self.sampling.restore(part_of(tensors, "sampling/"))
        self.fabric.strategy.precision.load_state_dict(facts["scaler"])
        if self.average:
            self.average.steps = self.progress.average_steps
        if self.swa:
            self.swa.count = self.progress.swa_count

    # --- an epoch -----------------------------------------------------------------------------------------

    def work(self, epoch: Epoch) -> int:
        """Return the pixels of one step."""
        height, width = self.tasks[epoch.stage].canvas_hw
        return height * width * epoch.images

    def work_by_stage(self, plan: Sequence[Epoch]) -> dict[int, int]:
        """Return the pixels of the steps of a plan that are not made yet, by stage."""
        ahead: dict[int, int] = {}
        for number, epoch in enumerate(plan[self.progress.epoch :]):
            steps = epoch.steps - (self.progress.step if number == 0 else 0)
            ahead[epoch.stage] = ahead.get(epoch.stage, 0) + self.work(epoch) * steps
        return ahead

    @property
    def is_sound(self) -> bool:
        """Whether the losses of the epoch under way are no sign of a divergence."""
        progress, epoch = self.progress, self.plan[self.progress.epoch]
        return not _has_exploded(progress.loss_sum / max(1, progress.step), *_first_and_best(progress, epoch))

    def work_ahead(self) -> int:
        """Return the pixels of all steps that are not made yet."""
        return sum(self.work_by_stage(self.plan).values())

    def begin_epoch(self, epoch: Epoch) -> None:
        """Set up what changes between epochs; a resumed epoch is set up as it was."""
        progress, stage = self.progress, self.config.stages[epoch.stage]
        if progress.step == 0 and epoch.starts_optimizer:
            self.start_optimizer(epoch.stage)
        if progress.step == 0:
            self._begin_watching(epoch)
        self.model.train()
        set_frozen(self.raw, stage.freeze)
        fill_momentum(self.optimizer.optimizer)

    def _begin_watching(self, epoch: Epoch) -> None:
        """Forget what was watched in another stage, and the rate of another schedule."""
        before = self.plan[self.progress.epoch - 1] if self.progress.epoch else None
        if before is None or before.stage != epoch.stage:
            self.progress.stalls = {}
        if before is None or before.span != epoch.span:
            self.progress.rate_scale = 1.0

    @property
    def starts_from_best(self) -> bool:
        """Whether the stage under way begins here and now, with the weights of the best scored epoch."""
        return self.progress.step == 0 and self._best_starts(self.plan, self.progress.epoch)

    def start_from(self, tensors: dict[str, Tensor]) -> None:
        """Take weights over; an average begins anew with them."""
        copy_weights(self.raw, tensors, where=f"the best weights of {self.data.name}")
        if self.average:
            self.average = MovingAverage(self.raw, decay=self.average.decay)

    def _best_starts(self, plan: Sequence[Epoch], done: int) -> bool:
        """Whether a stage that starts from the best epoch begins after ``done`` epochs of a plan."""
        if not 0 < done < len(plan) or plan[done].stage == plan[done - 1].stage:
            return False
        return self.config.stages[plan[done].stage].start == "best"

    def run_epoch(
        self,
        remaining: Remaining,
        *,
        on_cycle: Callable[[], None] = lambda: None,
        on_look: Callable[[], None] = lambda: None,
    ) -> tuple[float, float]:
        """Train the epoch under way to its end; return its mean loss and its last learning rate.

        Args:
            remaining: Told of every step.
            on_cycle: Called after the last step of each cycle of cosine_restarts.
            on_look: Called every few seconds, between two steps.

        Raises:
            DivergenceError: The loss is not finite, or exploded.
            StoppedError: A stop was asked for.
        """
        progress, epoch = self.progress, self.plan[self.progress.epoch]
        self.begin_epoch(epoch)
        loss_of, work = self.losses[epoch.stage], self.work(epoch)
        total = torch.tensor(progress.loss_sum, device=self.fabric.device)
        remaining.forget() if epoch.number == 0 and progress.step == 0 else remaining.restart()
        steps = self.steps(epoch)
        try:
            for drawn in track(steps, total=epoch.steps - progress.step, what=self.data.name):
                self.set_rate(epoch, progress.step)
                total += self.step(drawn, loss_of, epoch)
                progress.step += 1
                remaining.advance(work)
                if self.ends_cycle(epoch, progress.step):
                    on_cycle()
                if progress.step % _LOOK_EVERY == 0 and not math.isfinite(total.item()):
                    raise DivergenceError(f"the loss is no longer a number by step {progress.step}")
                if time.monotonic() >= self.next_look:
                    self.next_look = time.monotonic() + _LOOK_EVERY_S
                    on_look()
        finally:
            progress.loss_sum = total.item()
        mean_loss = progress.loss_sum / epoch.steps
        check_epoch(mean_loss, epoch, progress)
        return mean_loss, self.set_rate(epoch, epoch.steps - 1)

    def steps(self, epoch: Epoch) -> Iterator[StepBatches]:
        """Yield the steps of an epoch that are not made yet."""
        batches = self.batches(epoch, self.sampling.order(epoch))
        return batches.steps(
            first=self.progress.step,
            repeat_worst_of=self.sampling.of(epoch).repeat_worst_of,
            worst=self.sampling.worst,
            device=self.fabric.device.type,
        )

    def batches(self, epoch: Epoch, order: Int[np.ndarray, " drawn"]) -> EpochBatches:
        """Return the batches of an epoch whose images come in ``order``."""
        used = self.data.of(self.config.stages[epoch.stage])
        return EpochBatches(self.tasks[epoch.stage], used, epoch, order)

    def set_rate(self, epoch: Epoch, step: int) -> float:
        """Set the learning rate of a step; return the largest of the groups."""
        factor = lr_factor(epoch.schedule, epoch.at(step)) * self.progress.lr_scale * self.progress.rate_scale
        return set_lr(self.optimizer.optimizer, factor)

    def step(self, drawn: StepBatches, loss_of: LossOf, epoch: Epoch) -> Tensor:
        """Make one step of the optimizer and of the average; return the mean loss of its batches."""
        # dropout and the like draw numbers that belong to the step, wherever the training was begun
        counters = (self.data.seed, self.data.fold, epoch.stage, epoch.number, self.progress.step, 1)
        torch.manual_seed(int(stream(*counters).integers(2**62)))
        total = torch.zeros((), device=self.fabric.device)
        for batch, indices in zip(drawn.batches, drawn.indices, strict=True):
            on_device = to_device(batch, self.fabric.device)
            output = forward(self.fabric, self.model, on_device)
            loss = batch_loss(loss_of, output, on_device) * (len(indices) / drawn.images)
            self.fabric.backward(loss)
            total += loss.detach()
            if self.sampling.by_loss:
                self.sampling.note(epoch, indices, image_losses(loss_of, output, on_device))
        if self.config.clip_norm is not None:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.raw)
        self.sampling.note_step(epoch, self.progress.step, total)
        return total

    def ends_cycle(self, epoch: Epoch, steps: int) -> bool:
        """Whether the last of the ``steps`` steps of an epoch ended a cycle of cosine_restarts."""
        cuts = epoch.schedule.cuts
        return cuts > 0 and finished_cycles(epoch.at(steps), cuts) > finished_cycles(
            epoch.at(steps - 1), cuts
        )

    def end_epoch(self) -> None:
        """Count the epoch under way as finished."""
        if self.config.swa and self.config.swa.every == "epoch":
            self.add_to_swa()
        self.sampling.end_epoch()
        progress = self.progress
        progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0

    def val_loss(self) -> float | None:
        """Return the loss on the held-out images of the weights that are kept; None where nothing looks at it."""
        epoch = self.plan[self.progress.epoch]
        watched = any(rule.watch == "val_loss" for rule in watchers_of(self.config, epoch).values())
        if not watched and self.config.select != "best_val_loss":
            return None
        return self.held_out.loss(self.fabric, self.kept, epoch, self.losses[epoch.stage])

    # --- averages -----------------------------------------------------------------------------------------

    def add_to_swa(self) -> None:
        """Count the weights into the equal mean, if the epoch under way is late enough."""
        if self.swa is None or self.config.swa is None:
            return
        # a plan that is lengthened does not interrupt a mean that has begun
        if self.swa.count or self.progress.epoch + 1 >= self._swa_from(self.config.swa.start):
            self.swa.add(self.raw)

    def _swa_from(self, start: int | float) -> int:
        """Return the first averaged epoch; a share is one of the plan's length as it then stands, shortened or not."""
        return start if isinstance(start, int) else int(start * len(self.plan) + 1e-9) + 1

    def finished_swa(self) -> SegmentationModel | None:
        """Return the equal mean with batch norm's statistics measured anew; None where none was asked for."""
        if self.swa is None or self.config.swa is None:
            return None
        if not self.swa.count:  # the plan was shortened, and what was to be averaged never came
            self.swa.add(self.raw)
        last, model = self.plan[-1], self.swa.model
        still = encoder_norms(model) if "encoder_norm" in self.config.stages[last.stage].freeze else []
        norms = [norm for norm in batch_norms(model) if not any(norm is one for one in still)]
        measure_norms(
            model,
            norms,
            self._norm_batches(last, self.config.swa.norm_batches),
            lambda one: forward(self.fabric, model, to_device(one.batches[0], self.fabric.device)),
        )
        return model

    def _norm_batches(self, last: Epoch, count: int) -> Iterator[StepBatches]:
        """Yield ``count`` training batches as in the last stage, of its sampler, drawn for epochs after the last."""
        rounds = -(-count * last.batch_size // len(self.data.of(self.config.stages[last.stage]).ids))
        after = [replace(last, number=last.number + 1 + i, accumulate=1) for i in range(rounds)]
        order = np.concatenate([self.sampling.order(epoch) for epoch in after])
        return self.batches(after[0], order).new(range(count), device=self.fabric.device.type)

    # --- threads ------------------------------------------------------------------------------------------

    def use_threads(self, threads: int, *, on_trial: bool = False) -> None:
        """Make the steps ahead with so many threads; a checkpoint goes on with them unless they are on trial."""
        self.threads = threads
        torch.set_num_threads(threads)
        if not on_trial:
            self.progress.threads = None if threads == settle_threads(self.config.threads) else threads

    # --- the plan -----------------------------------------------------------------------------------------

    def is_due(self, done: int, plan: Sequence[Epoch]) -> bool:
        """Whether the fold is scored after ``done`` epochs of a plan."""
        last = done == len(plan) or self._best_starts(plan, done)
        return last or done % self.config.evaluate_every == 0

    def follow(self, plan: list[Epoch]) -> None:
        """Take another plan of what lies ahead."""
        self.plan, self.replanned = plan, True

    def is_evaluated(self, stalled: set[Watcher]) -> bool:
        """Whether the fold is scored after the epoch under way, given who has stalled by it."""
        done = self.progress.epoch + 1
        return self.is_due(done, self._plan_after(done, stalled))

    def settle(self, stalled: set[Watcher]) -> bool:
        """Act on what has stalled by the epoch that was just finished; return whether the plan became shorter."""
        schedule = self.plan[self.progress.epoch - 1].schedule
        if "rate" in stalled:
            scale = self.progress.rate_scale * schedule.factor
            self.progress.rate_scale = max(schedule.final_frac, scale)
        plan = self._plan_after(self.progress.epoch, stalled)
        shorter = len(plan) < len(self.plan)
        self.plan, self.replanned = plan, self.replanned or shorter
        return shorter

    def _plan_after(self, done: int, stalled: set[Watcher]) -> list[Epoch]:
        if "training" in stalled:
            return self.plan[:done]
        return end_stage(self.plan, done) if "stage" in stalled else self.plan

    def lengths(self, epochs: int) -> list[int]:
        """Return how many of the first ``epochs`` epochs belong to each stage."""
        done = [epoch.stage for epoch in self.plan[:epochs]]
        return [done.count(stage) for stage in range(len(self.config.stages))]


def _peak_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def say_epoch(
    trainer: Trainer, loss: float, score: float | None, lr: float, pace: float, remaining: Remaining
) -> None:
    """Say in one line how the epoch that was just finished went."""
    scored = "" if score is None else f", score {score:.4f}"
    logger.info(
        "%s, epoch %d/%d: loss %.4f%s, lr %.2e, %.0f images/s, peak %.1f GiB, %s left",
        trainer.data.name, trainer.progress.epoch, len(trainer.plan), loss, scored, lr, pace, _peak_gib(),
        clock(remaining.seconds),
    )  # fmt: skip
