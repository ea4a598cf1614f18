"""The moving parts of one fold's training: net, average, optimizer, plan; its steps and its epochs."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from masksmith.augment import Batch, build_task
from masksmith.losses import LossOf, build_loss
from masksmith.models import SegmentationModel, slice_strided_depthwise, to_channels_last
from masksmith.progress import Remaining, track
from masksmith.randomness import stream
from masksmith.training.averaging import MovingAverage
from masksmith.training.checkpoint import pack_state, unpack_state
from masksmith.training.config import TrainingConfig
from masksmith.training.deadline import Deadline
from masksmith.training.optim import build_optimizer, lr_factor, set_lr
from masksmith.training.plan import Epoch, plan_epochs, shorten
from masksmith.training.stages import FoldData, batches_of, canvas_hw

_EXPLODED = 3.0  # a mean loss above this multiple of the stage's best, and above its first, is a divergence
_LOOK_EVERY = 20  # steps between looks at the loss: a look makes a GPU wait
_LATE_EVERY_S = 5.0  # seconds between looks at the time left


class DivergenceError(Exception):
    """The loss is not finite, or exploded."""


class LateError(Exception):
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


def check_epoch(mean_loss: float, epoch: Epoch, progress: Progress) -> None:
    """Remember an epoch's mean loss, or raise DivergenceError where it is not finite or exploded."""
    first, best = progress.stage_losses.get(str(epoch.stage), [math.inf, math.inf])
    if not math.isfinite(mean_loss) or (mean_loss > _EXPLODED * best and mean_loss > first):
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
        self.average = MovingAverage(model, decay=config.ema_decay)
        self.progress = Progress()
        self.plan = plan_epochs(config, len(data.ids))
        self.replanned = False
        self.evaluate_s = 0.0
        self.next_look = time.monotonic() + _LATE_EVERY_S
        self.tasks = [
            build_task(
                config,
                images=data.images,
                masks=data.masks,
                ids=data.ids,
                canvas_hw=canvas_hw(config, stage, data, model.divisor),
                scale=stage.scale,
                size=data.size,
                scalars=data.scalars,
            )
            for stage in config.stages
        ]
        self.losses = [
            build_loss(stage.loss, where=f"training.stages[{i}].loss")
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

    def work_by_stage(self) -> dict[int, int]:
        """Return the pixels of the steps that are not made yet, by stage."""
        ahead: dict[int, int] = {}
        for number, epoch in enumerate(self.plan[self.progress.epoch :]):
            steps = epoch.steps - (self.progress.step if number == 0 else 0)
            ahead[epoch.stage] = ahead.get(epoch.stage, 0) + self.work(epoch) * steps
        return ahead

    def work_ahead(self) -> int:
        """Return the pixels of all steps that are not made yet."""
        return sum(self.work_by_stage().values())

    def run_epoch(self, remaining: Remaining, deadline: Deadline | None) -> tuple[float, float]:
        """Train the epoch under way to its end; return its mean loss and its last learning rate."""
        progress, epoch = self.progress, self.plan[self.progress.epoch]
        if epoch.starts_optimizer and progress.step == 0:
            self.start_optimizer(epoch.stage)
        task, loss_of, work = self.tasks[epoch.stage], self.losses[epoch.stage], self.work(epoch)
        total = torch.tensor(progress.loss_sum, device=self.fabric.device)
        self.model.train()
        batches = batches_of(task, self.data, epoch, first=progress.step, device=self.fabric.device.type)
        remaining.forget() if epoch.number == 0 and progress.step == 0 else remaining.restart()
        try:
            for batch in track(batches, total=epoch.steps - progress.step, what=f"fold {self.data.fold}"):
                self.set_rate(epoch, progress.step)
                total += self.step(batch, loss_of, epoch)
                progress.step += 1
                remaining.advance(work)
                if progress.step % _LOOK_EVERY == 0 and not math.isfinite(total.item()):
                    raise DivergenceError(f"the loss is no longer a number by step {progress.step}")
                if deadline is not None and time.monotonic() >= self.next_look:
                    self.next_look = time.monotonic() + _LATE_EVERY_S
                    self.look_at_the_time(remaining, deadline)
        finally:
            progress.loss_sum = total.item()
        mean_loss = progress.loss_sum / epoch.steps
        check_epoch(mean_loss, epoch, progress)
        return mean_loss, self.set_rate(epoch, epoch.steps - 1)

    def set_rate(self, epoch: Epoch, step: int) -> float:
        """Set the learning rate of a step; return the largest of the groups."""
        factor = lr_factor(epoch.schedule, epoch.at(step)) * self.progress.lr_scale
        return set_lr(self.optimizer.optimizer, factor)

    def step(self, batch: Batch, loss_of: LossOf, epoch: Epoch) -> Tensor:
        """Make one step of the optimizer and of the average; return the loss."""
        # dropout and the like draw numbers that belong to the step, wherever the training was begun
        counters = (self.data.seed, self.data.fold, epoch.stage, epoch.number, self.progress.step, 1)
        torch.manual_seed(int(stream(*counters).integers(2**62)))
        image, target = _to_device(batch, self.fabric.device)
        with self.fabric.autocast():  # the image itself stays float32, as in prediction
            output = self.raw(image)
        loss = loss_of(output, target)
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
        """Raise LateError where the steps ahead take longer than the time left."""
        if not remaining.pace:
            return
        slower = deadline.slower(remaining.pace, stage=self.plan[self.progress.epoch].stage)
        ahead = range(self.progress.epoch + 1, len(self.plan) + 1)
        evaluations = sum(self.is_evaluated(done) for done in ahead)
        steps_s = sum(
            work * deadline.pace_of(stage, remaining.pace, slower)
            for stage, work in self.work_by_stage().items()
        )
        share = deadline.share(steps_s, evaluations * self.evaluate_s, slower)
        if share is not None:
            raise LateError(share)

    def is_evaluated(self, done: int) -> bool:
        """Whether the fold is scored after ``done`` epochs."""
        return done % self.config.evaluate_every == 0 or done == len(self.plan)

    def shorten(self, share: float) -> None:
        """Leave only a share of the steps ahead in the plan."""
        self.plan = shorten(self.plan, self.progress.epoch, self.progress.step, share)
        self.replanned = True
