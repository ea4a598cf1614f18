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

UInt8Array = UInt8[np.ndarray, "b ..."]


@dataclass(frozen=True)
class DeviceBatch:
    """A batch as tensors on the device; see augment.Batch."""

    image: Float[Tensor, "b c h w"]
    mask: UInt8[Tensor, "b *k h w"]
    scalars: Float[Tensor, "b s"] | None
    other_mask: UInt8[Tensor, "b *k h w"] | None
    share: float


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
    return DeviceBatch(image, mask, scalars, other, batch.share)


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


def batch_loss(
    loss_of: LossOf, output: Output, batch: DeviceBatch, weights: Sequence[float] | None = None
) -> Float[Tensor, ""]:
    """Return the loss of a batch; where other images were mixed in, of both masks by their shares.

    Args:
        loss_of: The loss of a stage.
        output: Of the batch.
        batch: On the device.
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
def image_losses(loss_of: LossOf, output: Output, batch: DeviceBatch) -> Float[Tensor, " b"]:
    """Return the loss of each image alone."""
    return _each_loss(loss_of, output, batch)


def _each_loss(loss_of: LossOf, output: Output, batch: DeviceBatch) -> Float[Tensor, " b"]:
    return torch.stack(
        [batch_loss(loss_of, _image_of(output, i), _alone(batch, i)) for i in range(len(batch.image))]
    )


def _image_of(output: Output, i: int) -> Output:
    image_logits = None if output.image_logits is None else output.image_logits[i : i + 1]
    return Output(output.mask_logits[i : i + 1], image_logits, tuple(one[i : i + 1] for one in output.aux))


def _alone(batch: DeviceBatch, i: int) -> DeviceBatch:
    rest = [None if one is None else one[i : i + 1] for one in (batch.scalars, batch.other_mask)]
    return DeviceBatch(batch.image[i : i + 1], batch.mask[i : i + 1], rest[0], rest[1], batch.share)
