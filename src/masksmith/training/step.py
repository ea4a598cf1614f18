"""What happens to one batch: onto the device, through the model, and its loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning_fabric import Fabric
from torch import Tensor, nn

from masksmith.augment import Batch
from masksmith.losses.build import LossOf, build_loss
from masksmith.models.segmentation import Output, SegmentationModel
from masksmith.training.config import TrainingConfig
from masksmith.training.devices import Together

UInt8Array = UInt8[np.ndarray, "b ..."]


@dataclass(frozen=True)
class Truth:
    """What the loss of a batch reads beside the model's output; see augment.Batch."""

    mask: UInt8[Tensor, "b *k h w"]
    other_mask: UInt8[Tensor, "b *k h w"] | None
    share: float


@dataclass(frozen=True)
class DeviceBatch(Truth):
    """A batch as tensors on the device; see augment.Batch."""

    image: Float[Tensor, "b c h w"]
    scalars: Float[Tensor, "b s"] | None


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Return the batch as tensors on the device."""
    masks = [_planes_first(mask) for mask in (batch.mask, batch.other_mask)]
    arrays = (batch.image, masks[0], batch.scalars, masks[1])
    tensors = [None if array is None else torch.from_numpy(array) for array in arrays]
    if device.type == "cuda":
        tensors = [None if tensor is None else tensor.pin_memory() for tensor in tensors]
    image, mask, scalars, other = (
        None if tensor is None else tensor.to(device, non_blocking=True) for tensor in tensors
    )
    assert image is not None
    assert mask is not None
    return DeviceBatch(mask, other, batch.share, image, scalars)


def _planes_first(mask: UInt8Array | None) -> UInt8Array | None:
    """Return layers (b, h, w, k) as (b, k, h, w), as losses read them; class maps (b, h, w) as they are."""
    return mask if mask is None or mask.ndim == 3 else np.ascontiguousarray(mask.transpose(0, 3, 1, 2))


def losses_of(
    model: SegmentationModel, config: TrainingConfig, pixels: Callable[[], Sequence[int]] = tuple
) -> list[LossOf]:
    """Return the loss of each stage; ``pixels`` counts the pixels of each class, where a loss weighs by them.

    Raises:
        InputError: An unknown loss, or one that the model has no head for.
    """
    weighted = any("class_weights" in term.params for stage in config.stages for term in stage.loss)
    counts = pixels() if weighted and model.exclusive else ()
    return [
        build_loss(
            stage.loss,
            where=f"training.stages[{i}].loss",
            image_head=model.has_image_head,
            classes=model.classes,
            exclusive=model.exclusive,
            aux_weight=config.aux_weight,
            pixels=counts,
        )
        for i, stage in enumerate(config.stages)
    ]


def forward(fabric: Fabric, model: nn.Module, batch: DeviceBatch) -> Output:
    """Pass a batch through a model in the fabric's precision; the image itself stays float32, as in prediction.

    Args:
        fabric: Its autocast serves the models that it has not wrapped.
        model: In a training step what ``fabric.setup`` returned: through the model inside it, gradients would not be
            reduced over processes. Averages of the weights are not wrapped.
        batch: On the device.
    """
    with fabric.autocast():
        output: Output = model(batch.image) if batch.scalars is None else model(batch.image, batch.scalars)
    return output


def of_all_processes(fabric: Fabric, output: Output, batch: Truth, count: int) -> tuple[Output, Truth]:
    """Return output and masks of a whole batch, where several processes have passed their parts of it through the net.

    Each then computes the loss of the whole batch, which need not be a mean over images. Only what a process made
    itself has a gradient: DDP's mean of all of them, times the number of processes, is the gradient of the loss.

    Args:
        fabric: Where it has one process, everything is whole already.
        output: Of this process's part.
        batch: This process's part.
        count: Images of the whole batch.
    """
    strategy = fabric.strategy
    if not isinstance(strategy, Together):
        return output, batch

    def whole(part: Tensor) -> Tensor:
        return strategy.gather(part, count)

    image_logits = None if output.image_logits is None else whole(output.image_logits)
    gathered = Output(whole(output.mask_logits), image_logits, tuple(map(whole, output.aux)))
    other = None if batch.other_mask is None else whole(batch.other_mask)
    return gathered, Truth(whole(batch.mask), other, batch.share)


def batch_loss(
    loss_of: LossOf, output: Output, batch: Truth, weights: Sequence[float] | None = None
) -> Float[Tensor, ""]:
    """Return the loss of a batch; where other images were mixed in, of both masks by their shares.

    Args:
        loss_of: The loss of a stage.
        output: Of the batch.
        batch: Its masks, on the device.
        weights: What each image weighs: the loss is the mean of weight · loss of the image alone. None: it is that of
            the batch.
    """
    if weights is not None:
        losses = _each_loss(loss_of, output, batch)
        return (losses * losses.new_tensor(weights)).mean()
    loss = loss_of(output, batch.mask)
    if batch.other_mask is None:
        return loss
    return batch.share * loss + (1 - batch.share) * loss_of(output, batch.other_mask)


@torch.no_grad()
def image_losses(loss_of: LossOf, output: Output, batch: Truth) -> Float[Tensor, " b"]:
    """Return the loss of each image alone."""
    return _each_loss(loss_of, output, batch)


def _each_loss(loss_of: LossOf, output: Output, batch: Truth) -> Float[Tensor, " b"]:
    return torch.stack(
        [batch_loss(loss_of, _image_of(output, i), _alone(batch, i)) for i in range(len(batch.mask))]
    )


def _image_of(output: Output, i: int) -> Output:
    image_logits = None if output.image_logits is None else output.image_logits[i : i + 1]
    return Output(output.mask_logits[i : i + 1], image_logits, tuple(one[i : i + 1] for one in output.aux))


def _alone(batch: Truth, i: int) -> Truth:
    other = None if batch.other_mask is None else batch.other_mask[i : i + 1]
    return Truth(batch.mask[i : i + 1], other, batch.share)
