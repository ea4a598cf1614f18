"""Losses of the image head: does the image contain any foreground?

The target of an image and a class is 1 where a judged pixel of it is foreground (on a class map: is of that class), 0
where none of its judged pixels is. An image without a judged pixel is left out. Mean over images and classes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from masksmith.losses.options import NonNegative, Positive, Share, Smoothing
from masksmith.losses.pixelwise import bce_of_each, focal_of_each
from masksmith.losses.planes import Planes, Scalar, Target, mean_of_pixels, split_target

ImageLogits = Float[Tensor, "b k"]


def _presence(image_logits: ImageLogits, target: Target) -> Planes:
    """Return planes of a single pixel."""
    truth, judged = (
        one.any(3).any(2)[..., None, None] for one in split_target(target, image_logits.shape[1])
    )
    scores = image_logits.float()[..., None, None]  # (b, k) -> (b, k, 1, 1)
    return Planes(torch.where(judged, scores, 0.0), truth, judged)


def image_bce(
    image_logits: ImageLogits,
    target: Target,
    *,
    pos_weight: Positive = 1.0,
    label_smoothing: Smoothing = 0.0,
) -> Scalar:
    """Binary cross-entropy of the image head.

    Args:
        image_logits: Before any sigmoid.
        target: Masks: binary, multi-label or a class map.
        pos_weight: Factor of the part of images with foreground.
        label_smoothing: The targets become ``s/2`` and ``1 - s/2``.
    """
    planes = _presence(image_logits, target)
    each = bce_of_each(planes, pos_weight=pos_weight, label_smoothing=label_smoothing)
    return mean_of_pixels(each, planes.judged)


def image_focal(
    image_logits: ImageLogits, target: Target, *, gamma: NonNegative = 2.0, alpha: Share | None = None
) -> Scalar:
    """Focal loss of the image head; see ``focal``, with images in the place of pixels."""
    planes = _presence(image_logits, target)
    return mean_of_pixels(focal_of_each(*planes[:2], gamma=gamma, alpha=alpha), planes.judged)
