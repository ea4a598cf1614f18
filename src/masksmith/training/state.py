"""The state of a fold's training (net, averages, optimizer, progress), saved and restored together."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from masksmith.core.arrays import Int
from masksmith.core.progress import logger
from masksmith.losses.build import LossOf
from masksmith.metrics import Metric
from masksmith.models.cpu import quicken_depthwise
from masksmith.models.segmentation import SegmentationModel, to_channels_last
from masksmith.training.averaging import EqualMean, MovingAverage, first_averaged
from masksmith.training.checkpoint import copy_weights, pack_state, part_of, unpack_state
from masksmith.training.config import TrainingConfig
from masksmith.training.data import EpochBatches, FoldData, StepBatches, task_of
from masksmith.training.devices import share_norms
from masksmith.training.epochs import Epoch, build_epochs, is_scored, starts_from_best, steps_of, work_ahead
from masksmith.training.freeze import refuse_missing_parts, set_frozen, small_batch_warning
from masksmith.training.keep import Best
from masksmith.training.optim import build_optimizer, fill_momentum, finished_cycles, lr_factor, set_lr
from masksmith.training.samplers import class_pixels
from masksmith.training.sampling import Sampling
from masksmith.training.step import losses_of
from masksmith.training.watch import Stalls, Watcher, epochs_after


@dataclass
class Progress:
    """What a checkpoint holds besides tensors."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way
    loss_sum: float = 0.0  # of those steps
    metric_sums: dict[str, float] = field(default_factory=dict)  # of those steps
    lr_scale: float = 1.0  # below 1 after a divergence
    rate_scale: float = 1.0  # of a plateau schedule
    average_steps: int = 0
    swa_count: int = 0  # weights in the mean
    snapshots: int = 0
    best: Best = field(default_factory=Best)
    stalls: Stalls = field(default_factory=dict)
    stage_losses: dict[str, list[float]] = field(default_factory=dict)  # first and best of each stage

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Progress":
        """Return the progress that ``asdict`` made; a field that only one version knows is left as it is."""
        known = {one.name: value[one.name] for one in fields(cls) if one.name in value}
        return cls(**{**known, "best": Best.from_json(value["best"])})


class TrainingState:
    """All that changes while a fold is trained, and what its steps are made from."""

    def __init__(
        self,
        fabric: Fabric,
        model: SegmentationModel,
        config: TrainingConfig,
        data: FoldData,
        *,
        metrics: Sequence[Metric] = (),
    ) -> None:
        """Take a freshly built model to its first step.

        Args:
            fabric: Device and precision.
            model: Moved to the device and trained in place.
            config: Settled (no "auto" left).
            data: What the fold is trained on.
            metrics: Measured on the training batches.

        Raises:
            InputError: A loss, a frozen part or a sampler asks for what the model or the images do not have.
        """
        fabric.to_device(model)  # in place
        if config.channels_last:
            to_channels_last(model)
        if fabric.device.type == "cpu" and config.precision == "bf16-mixed":
            quicken_depthwise(model)
        self.fabric, self.config, self.data, self.raw = fabric, config, data, model
        self.metrics = metrics
        decay = config.ema_decay if self.leads else None
        self.average = None if decay is None else MovingAverage(model, decay=decay)
        self.swa = EqualMean(model) if config.swa and self.leads else None
        share_norms(model, fabric)  # not those of the averages, which the leader alone passes images through
        self.progress = Progress()
        self.loss_sum = torch.zeros((), device=fabric.device)
        """Of the steps of the epoch under way; on the device, so that no step waits for it."""
        self.epochs = self.whole = build_epochs(config, data.counts(config))
        self.tasks = [task_of(config, stage, data, model.divisor) for stage in config.stages]
        self.losses = losses_of(model, config, partial(class_pixels, data.masks, data.ids, model.classes))
        self.sampling = Sampling(config, data, fabric.device)
        for i, stage in enumerate(config.stages):
            refuse_missing_parts(model, stage.freeze, where=f"training.stages[{i}].freeze")
        warning = small_batch_warning(model, min(epoch.batch_size for epoch in self.epochs))
        if warning:
            logger.warning("%s: %s", data.name, warning)
        self.start_optimizer(0)

    def start_optimizer(self, stage: int) -> None:
        """Begin the optimizer that is in force at ``stage``."""
        chosen = [one.optimizer for one in self.config.stages[: stage + 1] if one.optimizer][-1]
        fused = self.config.precision != "16-mixed"
        optimizer = build_optimizer(self.raw, chosen, fused=fused)
        self.model: Any = self.raw
        self.optimizer: Any
        if self.fabric.world_size > 1:  # begin_epoch wraps the model
            self.optimizer = self.fabric.setup_optimizers(optimizer)
        else:
            self.model, self.optimizer = self.fabric.setup(self.raw, optimizer)

    @property
    def leads(self) -> bool:
        """Whether this process decides and writes; the others follow it (see devices.py)."""
        return bool(self.fabric.global_rank == 0)

    # --- where it is --------------------------------------------------------------------------------------

    @property
    def epoch(self) -> Epoch:
        """The epoch under way."""
        return self.epochs[self.progress.epoch]

    @property
    def position(self) -> float:
        """Finished epochs, with the share of the one under way."""
        done, step = self.progress.epoch, self.progress.step
        return done + min(0.999, step / self.epoch.steps) if step else float(done)

    @property
    def loss_of(self) -> LossOf:
        """The loss of the epoch under way."""
        return self.losses[self.epoch.stage]

    @property
    def mean_loss(self) -> float:
        """The mean loss of the finished steps of the epoch under way; waits for the device."""
        return self.loss_sum.item() / max(1, self.progress.step)

    @property
    def mean_metrics(self) -> dict[str, float]:
        """The mean of each metric of the training batches over the finished steps of the epoch under way."""
        progress = self.progress
        return {name: total / max(1, progress.step) for name, total in progress.metric_sums.items()}

    def add_metrics(self, found: Mapping[str, float], *, share: float) -> None:
        """Count the metrics of a batch, which is this share of its step's images."""
        sums = self.progress.metric_sums
        sums |= {name: sums.get(name, 0.0) + share * value for name, value in found.items()}

    @property
    def is_adjusted(self) -> bool:
        """Whether the epochs are no longer those of the recipe."""
        return self.epochs is not self.whole

    def longest(self, most: float) -> list[Epoch]:
        """Return the recipe's epochs, or at most ``most`` times as many of each stage."""
        if most <= 1:
            return self.whole
        stages = [
            one.model_copy(update={"epochs": int(most * one.epochs + 1e-6)}) for one in self.config.stages
        ]
        longer = self.config.model_copy(update={"stages": stages})
        return build_epochs(longer, self.data.counts(longer))

    @property
    def kept(self) -> SegmentationModel:
        """The weights that are scored and kept: the moving average, or the weights themselves where there is none."""
        return self.average.model if self.average else self.raw

    @property
    def canvases(self) -> list[tuple[int, int]]:
        """Height and width that each stage trains at."""
        return [task.canvas_hw for task in self.tasks]

    @property
    def step_work(self) -> int:
        """Pixels of a step of the epoch under way."""
        height, width = self.tasks[self.epoch.stage].canvas_hw
        return height * width * self.epoch.images

    @property
    def work_ahead(self) -> int:
        """Pixels of all steps that are not made yet."""
        return sum(work_ahead(self.epochs, self.canvases, self.progress.epoch, self.progress.step).values())

    # --- saved and restored -------------------------------------------------------------------------------

    @property
    def averages(self) -> dict[str, nn.Module]:
        """The averages by the names that they have in a checkpoint."""
        found: dict[str, nn.Module] = {"average": self.average.model} if self.average else {}
        return found | ({"swa": self.swa.model} if self.swa else {})

    def facts(self) -> dict[str, Any]:
        """Return the part of the state that is not tensors."""
        self.progress.loss_sum = self.loss_sum.item()
        self.progress.average_steps = self.average.steps if self.average else 0
        self.progress.swa_count = self.swa.count if self.swa else 0
        return {
            "key": self.data.key,
            "position": self.position,
            "progress": asdict(self.progress),
            "plan": [epoch.to_json() for epoch in self.epochs] if self.is_adjusted else None,
            "scaler": self.fabric.strategy.precision.state_dict(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the part of the state that is tensors."""
        return pack_state(self.raw, self.averages, self.optimizer.optimizer) | self.sampling.tensors()

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        progress = self.progress = Progress.from_json(facts["progress"])
        self.loss_sum = torch.tensor(progress.loss_sum, device=self.fabric.device)
        adjusted = facts["plan"]
        self.epochs = self.whole if adjusted is None else [Epoch.from_json(epoch) for epoch in adjusted]
        under_way = progress.epoch if progress.step else max(progress.epoch - 1, 0)
        self.start_optimizer(self.epochs[under_way].stage)
        where = f"checkpoint of {self.data.name}"
        unpack_state(tensors, self.raw, self.averages, self.optimizer.optimizer, where=where)
        self.sampling.restore(part_of(tensors, "sampling/"))
        self.fabric.strategy.precision.load_state_dict(facts["scaler"])
        if self.average:
            self.average.steps = progress.average_steps
        if self.swa:
            self.swa.count = progress.swa_count

    # --- an epoch -----------------------------------------------------------------------------------------

    @property
    def starts_from_best(self) -> bool:
        """Whether a stage begins here and now, with the weights of the best scored epoch."""
        return not self.progress.step and starts_from_best(self.config, self.epochs, self.progress.epoch)

    def start_from(self, tensors: dict[str, Tensor]) -> None:
        """Load weights; the moving average starts again from them."""
        copy_weights(self.raw, tensors, where=f"the best weights of {self.data.name}")
        if self.average:
            self.average.restart(self.raw)

    def is_scored(self, stalled: Collection[Watcher]) -> bool:
        """Whether the fold is scored after the epoch under way, given who has stalled by it."""
        done = self.progress.epoch + 1
        return is_scored(self.config, epochs_after(self.epochs, done, stalled), done)

    def begin_epoch(self) -> None:
        """Set up what changes between epochs; a resumed epoch is set up as it was."""
        progress, epoch = self.progress, self.epoch
        if progress.step == 0:
            before = self.epochs[progress.epoch - 1] if progress.epoch else None
            if epoch.starts_optimizer:
                self.start_optimizer(epoch.stage)
            if before is None or before.stage != epoch.stage:
                progress.stalls = {}
            if before is None or before.span != epoch.span:
                progress.rate_scale = 1.0
        self.raw.train()
        set_frozen(self.raw, self.config.stages[epoch.stage].freeze)
        if self.fabric.world_size > 1:
            self.model = self.fabric.setup_module(self.raw)  # anew: other weights may be trained than before
        fill_momentum(self.optimizer.optimizer)

    def draw_order(self) -> Int[np.ndarray, " drawn"]:
        """Return the positions of the images of the epoch under way, in the order of training."""
        return self.sampling.order(self._whole_epoch)

    @property
    def _whole_epoch(self) -> Epoch:
        """The epoch under way in its whole length: whoever shortens it leaves the rest."""
        stage = self.config.stages[self.epoch.stage]
        whole = steps_of(self.config, stage, sum(self.data.windows(self.config, stage)))
        return replace(self.epoch, steps=whole)

    def batches(self, order: Int[np.ndarray, " drawn"]) -> EpochBatches:
        """Return the batches of the epoch under way, of all its steps; of several processes this one's part."""
        epoch = self._whole_epoch
        used = self.data.of(self.config.stages[epoch.stage])
        place = self.fabric.global_rank, self.fabric.world_size
        return EpochBatches(self.tasks[epoch.stage], used, epoch, order, place)

    def steps_ahead(self, order: Int[np.ndarray, " drawn"] | None = None) -> Iterator[StepBatches]:
        """Yield the batches of the steps of the epoch under way that are not made yet.

        Args:
            order: What ``draw_order`` returned; None: drawn here.
        """
        batches = self.batches(self.draw_order() if order is None else order)
        return batches.steps(
            first=self.progress.step,
            repeat_worst_of=self.sampling.of(batches.epoch).repeat_worst_of,
            worst=self.sampling.worst,
            device=self.fabric.device.type,
        )

    def lr_factor(self, step: int) -> float:
        """Return what multiplies the peak learning rate at a step of the epoch under way."""
        factor = lr_factor(self.epoch.schedule, self.epoch.at(step))
        return factor * self.progress.lr_scale * self.progress.rate_scale

    def set_lr(self, step: int) -> float:
        """Set the learning rates of a step of the epoch under way; return the largest."""
        return set_lr(self.optimizer.optimizer, self.lr_factor(step))

    def ends_cycle(self) -> bool:
        """Whether the last step ended a cycle of cosine_restarts."""
        epoch, step, cuts = self.epoch, self.progress.step, self.epoch.schedule.cuts
        return cuts > 0 and finished_cycles(epoch.at(step), cuts) > finished_cycles(epoch.at(step - 1), cuts)

    def add_to_swa(self, every: str) -> None:
        """Count the weights into the equal mean where it is one of every ``every``, and its first epoch is reached."""
        config = self.config.swa
        if self.swa is None or config is None or config.every != every:
            return
        # a training that is lengthened does not interrupt a mean that has begun
        if self.swa.count or self.progress.epoch + 1 >= first_averaged(config.start, len(self.epochs)):
            self.swa.add(self.raw)

    def end_epoch(self) -> None:
        """Count the epoch under way as finished."""
        self.add_to_swa("epoch")
        self.sampling.end_epoch()
        self.progress.epoch, self.progress.step = self.progress.epoch + 1, 0
        self.loss_sum = torch.zeros_like(self.loss_sum)
        self.progress.metric_sums = {}
