"""Metrics of the batches that a model is trained on, beside their loss: what Keras prints during an epoch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from masksmith.core.arrays import UInt8
from masksmith.metrics import Metric
from masksmith.models.segmentation import Output
from masksmith.training.step import Truth


@torch.no_grad()
def batch_scores(
    metrics: Sequence[Metric], output: Output, batch: Truth, *, exclusive: bool
) -> dict[str, float]:
    """Return the score of each metric on a batch, as it was augmented; of mixed images against their own masks.

    Args:
        metrics: Of pixels, for the task.
        output: What the model made of the batch in training, with its dropout. A pixel is foreground above 0.5.
        batch: Its masks.
        exclusive: Whether the most probable class is taken.
    """
    logits = output.mask_logits.detach()
    preds = _last(logits.argmax(1).byte() if exclusive else (logits > 0).byte())
    targets = _last(batch.mask)
    pairs = list(zip(preds, targets, strict=True))
    return {
        metric.name: metric.score(np.stack([metric.stats(pred, target) for pred, target in pairs]))
        for metric in metrics
    }


def _last(masks: Tensor) -> UInt8[np.ndarray, "b h w *k"]:
    """Return masks (b, h, w) or (b, 1, h, w) as (b, h, w), those of several layers with the layers last."""
    if masks.ndim == 4:
        masks = masks[:, 0] if masks.shape[1] == 1 else masks.movedim(1, -1)
    return np.ascontiguousarray(masks.cpu().numpy())
