"""The loss of a fold's held-out images: what "val_loss" watches.

They come as a stage's training images come (its size, its scale, its windows where there are any), but without
augmentation, and always the same: with their own masks, also in a stage on pseudo-labels. As in Keras, the loss is the
mean over batches, each weighed by its images, of the net as it predicts: without dropout, with batch norm's statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from lightning_fabric import Fabric

from masksmith.augment import AugmentConfig, GeometryConfig, IntensityConfig, MixingConfig, Task
from masksmith.core.errors import InputError
from masksmith.losses.build import LossOf
from masksmith.models.segmentation import SegmentationModel
from masksmith.training.config import VAL_LOSS, TrainingConfig
from masksmith.training.data import EpochBatches, FoldData, task_of
from masksmith.training.epochs import Epoch
from masksmith.training.step import batch_loss, forward, to_device
from masksmith.training.watch import watchers_of


@dataclass(frozen=True)
class HeldOut:
    """The held-out images of a fold, as each stage sees them."""

    data: FoldData
    """Its ids are the held-out ones."""
    tasks: Sequence[Task]

    @classmethod
    def of(cls, config: TrainingConfig, data: FoldData, divisor: int) -> "HeldOut":
        """Return what ``data`` holds out; there are no tasks where it holds nothing out."""
        held_out = replace(data, ids=data.held_out, held_out=[], custom=None, size=data.size.whole)
        plain = config.model_copy(
            update={
                "geometry": GeometryConfig(),
                "intensity": IntensityConfig(),
                "mixing": MixingConfig(),
                "augment": AugmentConfig(),
            }
        )
        own = {"geometry": None, "intensity": None, "data": "labelled", "subset": None}
        stages = [stage.model_copy(update=own) for stage in config.stages] if held_out.ids else []
        return cls(held_out, [task_of(plain, stage, held_out, divisor) for stage in stages])

    @torch.no_grad()
    def loss(self, fabric: Fabric, model: SegmentationModel, epoch: Epoch, loss_of: LossOf) -> float:
        """Return the mean loss of a model, which is left in evaluation.

        Args:
            fabric: Device and precision.
            model: The weights.
            epoch: Of which stage, and with what batch size.
            loss_of: The loss of that stage.

        Raises:
            InputError: No image is held out.
        """
        if not self.tasks:
            raise InputError(
                f"{self.data.name}: 'val_loss' is watched, but no image is held out; expected 'score' or 'loss'"
            )
        model.eval()
        same = replace(epoch, number=0, accumulate=1)
        order = np.arange(len(self.data.ids))
        batches = EpochBatches(self.tasks[epoch.stage], self.data, same, order)
        total, count = torch.zeros((), device=fabric.device), -(-len(order) // epoch.batch_size)
        for drawn in batches.new(range(count), device=fabric.device.type):
            batch = to_device(drawn.batches[0], fabric.device)
            total += batch_loss(loss_of, forward(fabric, model, batch), batch) * drawn.images
        return total.item() / len(order)


def needs_val_loss(config: TrainingConfig, epoch: Epoch) -> bool:
    """Whether anything depends on the held-out loss after an epoch."""
    watched = any(rule.watch == "val_loss" for rule in watchers_of(config, epoch).values())
    asked = VAL_LOSS in config.metrics or "best_val_loss" in (config.select, *config.keep)
    return watched or asked
