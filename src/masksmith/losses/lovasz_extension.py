"""Lovász losses: convex surrogates of 1 - IoU.

Sort the errors of a plane from the worst down; as pixels are added in that order to the set of wrong ones, the
Jaccard loss of the set grows; the loss is the sum of error times growth. Sources: Berman et al. 2018,
https://arxiv.org/abs/1705.08790 (Algorithm 1), our own code, for all planes at once.

With max(0, error) only positive errors count, so only they are sorted: late in training these are few.
Dropping the others changes neither value nor gradient.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from masksmith.losses.planes import (
    Logits,
    Planes,
    Scalar,
    Target,
    counted_planes,
    mean_of_planes,
    probability_planes,
    separate_planes,
)

Rows = Float[Tensor, "r k p"]


def _rows(plane: Tensor, *, per_image: bool) -> Tensor:
    """(b, k, h, w) -> (b, k, h*w), or (1, k, b*h*w) for the whole batch."""
    return plane.flatten(2) if per_image else plane.transpose(0, 1).flatten(1)[None]


def _worst(errors: Rows, *, only_positive: bool) -> tuple[Tensor, Tensor]:
    """Return the errors from the worst down, and their places."""
    if only_positive and errors.device.type == "cpu":  # elsewhere the count would make the step wait
        count = int((errors.detach() > 0).sum(2).max())
        return errors.topk(max(count, 1), dim=2)
    return errors.sort(dim=2, descending=True, stable=True)


def _growth(truth: Bool[Tensor, "r k p"], places: Int[Tensor, "r k n"]) -> Float[Tensor, "r k n"]:
    """Return by how much the Jaccard loss grows with each pixel, in the order of ``places``."""
    chosen = truth.gather(2, places).float()
    total = truth.sum(2, keepdim=True)
    missed = chosen.cumsum(2)
    false_alarms = torch.arange(1, places.shape[2] + 1, device=truth.device) - missed
    loss = 1 - (total - missed) / (total + false_alarms)  # the union is never 0: one pixel is in the set
    return loss.diff(dim=2, prepend=torch.zeros_like(loss[..., :1]))


def _extension(
    errors: Tensor,
    planes: Planes,
    clip: Callable[[Tensor], Tensor],
    *,
    per_image: bool,
    skip_empty: bool,
    only_positive: bool,
) -> Scalar:
    """Return the mean over planes of the sum of clip(error) times growth; ``clip`` makes minus infinity 0."""
    errors = torch.where(planes.judged, errors, -torch.inf)  # sorted last, clipped to nothing
    worst, places = _worst(_rows(errors, per_image=per_image), only_positive=only_positive)
    each = (clip(worst) * _growth(_rows(planes.truth, per_image=per_image), places)).sum(2)
    return mean_of_planes(each, counted_planes(planes, per_image=per_image, skip_empty=skip_empty))


def _hinge_errors(planes: Planes) -> Float[Tensor, "b k h w"]:
    return 1 - torch.where(planes.truth, planes.scores, -planes.scores)


def lovasz(logits: Logits, target: Target, *, per_image: bool = True, skip_empty: bool = False) -> Scalar:
    """Lovász hinge with max(0, error), error = 1 ∓ logit; binary or multi-label.

    Args:
        logits: Before any sigmoid.
        target: 0, 1 and IGNORE.
        per_image: Mean over the planes of each image; False takes each class of the batch as one plane.
        skip_empty: Whether planes on which nothing is true are left out; otherwise one costs its largest error.

    Raises:
        ValueError: The target is a class map.
    """
    planes = separate_planes(logits, target, loss="lovasz", instead="lovasz_softmax")
    return _extension(
        _hinge_errors(planes), planes, F.relu, per_image=per_image, skip_empty=skip_empty, only_positive=True
    )


def lovasz_elu(logits: Logits, target: Target, *, per_image: bool = True, skip_empty: bool = False) -> Scalar:
    """Lovász hinge with ELU(error) + 1 in the place of max(0, error); see ``lovasz`` for the parameters.

    It keeps a gradient on pixels that are already right, so all errors are sorted. Used by the first place of TGS Salt
    (https://arxiv.org/abs/1904.04445).

    Raises:
        ValueError: The target is a class map.
    """
    planes = separate_planes(logits, target, loss="lovasz_elu", instead="lovasz_softmax")
    return _extension(
        _hinge_errors(planes),
        planes,
        lambda errors: F.elu(errors) + 1,
        per_image=per_image,
        skip_empty=skip_empty,
        only_positive=False,
    )


def lovasz_softmax(
    logits: Logits, target: Target, *, per_image: bool = True, skip_empty: bool = True
) -> Scalar:
    """Lovász extension on probabilities, error = |truth - probability|; mean over the classes.

    Args:
        logits: Before any sigmoid or softmax.
        target: A class map; binary and multi-label too, then with the sigmoid.
        per_image: Each class of each image is a plane; False (the paper's choice): each class of the batch.
        skip_empty: Whether classes that are absent from a plane are left out of the mean (the paper's choice);
            otherwise such a class costs the largest probability predicted for it.
    """
    planes = probability_planes(logits, target)
    errors = (planes.truth.float() - planes.scores).abs()
    return _extension(errors, planes, F.relu, per_image=per_image, skip_empty=skip_empty, only_positive=False)
