"""The loss of a model of objects: foreground, border and distance, each by what it is.

The target is that of ``augment.object_planes``: its last plane holds no classes but shares of a distance.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from masksmith.core.arrays import DISTANCE_TOP, IGNORE
from masksmith.losses.options import NonNegative
from masksmith.losses.pixelwise import bce
from masksmith.losses.planes import Logits, Scalar, Target, mean_of_pixels
from masksmith.losses.regions import dice


def objects(
    logits: Logits, target: Target, *, border_weight: NonNegative = 1.0, distance_weight: NonNegative = 1.0
) -> Scalar:
    """BCE and soft Dice of the foreground, the same of the border, and soft BCE of the distance to the boundary.

    Border and foreground are few pixels and many: Dice weighs both alike, as in the first place of the Data Science
    Bowl 2018 (https://github.com/selimsef/dsb2018_topcoders). All are means over the judged pixels of the batch (Dice:
    over the planes of its images).

    Args:
        logits: (b, k + 2, h, w): k classes of foreground, the border, the distance; before any sigmoid.
        target: (b, k + 2, h, w): 0, 1 and IGNORE, and in the last plane 0 … DISTANCE_TOP and IGNORE.
        border_weight: Factor of the border's part, that of the foreground being 1.
        distance_weight: Factor of the distance's part.

    Raises:
        ValueError: The target has no such planes, or as split_target.
    """
    if target.ndim != 4 or target.shape[1] != logits.shape[1] or logits.shape[1] < 3:
        raise ValueError(
            f"objects: target of shape {tuple(target.shape)} for {logits.shape[1]} channels of logits; expected "
            "(b, k, h, w) for k = 3 channels or more: foreground (one or several), border, distance"
        )
    foreground = logits[:, :-2], target[:, :-2]
    border = logits[:, -2:-1], target[:, -2:-1]
    parts = [bce(*planes) + dice(*planes) for planes in (foreground, border)]
    return parts[0] + border_weight * parts[1] + distance_weight * _soft_bce(logits[:, -1:], target[:, -1:])


def _soft_bce(logits: Float[Tensor, "b 1 h w"], target: UInt8[Tensor, "b 1 h w"]) -> Scalar:
    """Return the divergence of probabilities from shares: cross-entropy less its least value, so that right costs 0."""
    judged = target != IGNORE
    scores = torch.where(judged, logits.float(), 0.0)
    share = torch.where(judged, target.float() / DISTANCE_TOP, 0.0)
    least = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))
    each = F.binary_cross_entropy_with_logits(scores, share, reduction="none") - least
    return mean_of_pixels(each, judged)
