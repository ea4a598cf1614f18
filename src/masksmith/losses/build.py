"""The tables of losses, and a recipe's weighted sum of them as one function of a model's output."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from masksmith.losses.contours import active_contour, band_bce, boundary, boundary_bce, hausdorff
from masksmith.losses.image_head import image_bce, image_focal
from masksmith.losses.lovasz_extension import lovasz, lovasz_elu, lovasz_softmax
from masksmith.losses.object_planes import objects
from masksmith.losses.options import Term, check_losses
from masksmith.losses.pixelwise import balanced_bce, bce, cross_entropy, focal, mse, smooth_l1
from masksmith.losses.planes import Logits, Scalar, Target
from masksmith.losses.regions import dice, focal_tversky, jaccard, log_dice, tversky
from masksmith.models.segmentation import Output

MASK_LOSSES: dict[str, Callable[..., Scalar]] = {
    "bce": bce,
    "balanced_bce": balanced_bce,
    "focal": focal,
    "cross_entropy": cross_entropy,
    "mse": mse,
    "smooth_l1": smooth_l1,
    "dice": dice,
    "log_dice": log_dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "lovasz": lovasz,
    "lovasz_elu": lovasz_elu,
    "lovasz_softmax": lovasz_softmax,
    "boundary_bce": boundary_bce,
    "band_bce": band_bce,
    "boundary": boundary,
    "hausdorff": hausdorff,
    "active_contour": active_contour,
    "objects": objects,
}
"""Losses of the mask's logits."""

IMAGE_LOSSES: dict[str, Callable[..., Scalar]] = {
    "image_bce": image_bce,
    "image_focal": image_focal,
}
"""Losses of the image head's logits."""

LOSSES = MASK_LOSSES | IMAGE_LOSSES


LossOf = Callable[[Output, Target], Scalar]
"""What a training step minimises: from a model's output and the target."""


def build_loss(
    terms: Sequence[Term],
    *,
    where: str,
    image_head: bool = True,
    classes: int = 1,
    exclusive: bool = False,
    aux_weight: float = 0.4,
    pixels: Sequence[int] = (),
) -> LossOf:
    """Return the weighted sum of terms as one function of a model's output, computed in float32.

    Args:
        terms: Summands.
        where: Path of the list in the recipe, for messages.
        image_head: Whether the model has an image head.
        classes: Channels of the mask's logits.
        exclusive: Whether the classes exclude each other.
        aux_weight: What the outputs of deep supervision weigh together, 1 being the mask itself: the mask's losses
            are computed on each, resized bilinearly to the target's size, and averaged. Image losses are not. (0.4:
            the auxiliary loss of PSPNet, https://arxiv.org/abs/1612.01105)
        pixels: Judged pixels of each class in the training masks, for ``class_weights``; without them all weigh the
            same, as where only time or memory is measured.

    Raises:
        InputError: As check_losses.
    """
    checked = check_losses(terms, where=where, image_head=image_head, classes=classes, exclusive=exclusive)

    def values(output: Output, target: Target) -> Iterator[Scalar]:
        maps = list(_maps(output, target, aux_weight=aux_weight))
        for name, weight, params in checked:
            if name in MASK_LOSSES:
                counts = (tuple(pixels),) if "class_weights" in params else ()
                for share, logits in maps:
                    yield weight * share * MASK_LOSSES[name](logits, target, *counts, **params)
            elif output.image_logits is None:
                raise ValueError(f"{where}: {name!r} needs image logits, the model's output has none")
            else:
                yield weight * IMAGE_LOSSES[name](output.image_logits, target, **params)

    def total(output: Output, target: Target) -> Scalar:
        with torch.autocast(output.mask_logits.device.type, enabled=False):
            return torch.stack(list(values(output, target))).sum()

    return total


def _maps(output: Output, target: Target, *, aux_weight: float) -> Iterator[tuple[float, Logits]]:
    """Yield the logits that mask losses are computed on, each with its share."""
    yield 1.0, output.mask_logits
    for logits in output.aux:
        resized = F.interpolate(logits.float(), size=target.shape[-2:], mode="bilinear", align_corners=False)
        yield aux_weight / len(output.aux), resized
