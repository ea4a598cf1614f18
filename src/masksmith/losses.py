"""Losses on logits, in float32, with ignored pixels taken out of value and gradient.

Every loss has the form ``loss(logits, target)`` with logits (b, 1, h, w) before any sigmoid and target
(b, h, w) of 0, 1 and IGNORE, and returns a scalar. A batch in which nothing is judged gives 0. To add one,
write the function and a line in LOSSES.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from masksmith.arrays import IGNORE
from masksmith.config import look_up, suggest
from masksmith.errors import InputError
from masksmith.models import Output

Logits = Float[Tensor, "b 1 h w"]
Target = UInt8[Tensor, "b h w"]
Scalar = Float[Tensor, ""]


def _flat(
    logits: Logits, target: Target
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b p"], Float[Tensor, "b p"]]:
    """Return logits, target and judged (0 or 1), each (b, h*w) of float32; ignored places hold zeros."""
    judged = (target != IGNORE).flatten(1).float()  # (b, h, w) -> (b, h*w)
    flat_logits = logits.float().flatten(1) * judged  # (b, 1, h, w) -> (b, h*w)
    return flat_logits, (target == 1).flatten(1).float(), judged


def bce(logits: Logits, target: Target) -> Scalar:
    """Binary cross-entropy, mean over the judged pixels of the batch."""
    flat_logits, truth, judged = _flat(logits, target)
    each = F.binary_cross_entropy_with_logits(flat_logits, truth, reduction="none")
    return (each * judged).sum() / judged.sum().clamp(min=1)


def dice(logits: Logits, target: Target, *, smooth: float = 1.0) -> Scalar:
    """1 - soft Dice of each image, mean over the images with a judged pixel.

    ``smooth`` is added above and below, so an empty image that is predicted empty costs nothing.
    Milletari et al. 2016, https://arxiv.org/abs/1606.04797
    """
    flat_logits, truth, judged = _flat(logits, target)
    probs = torch.sigmoid(flat_logits) * judged
    overlap = (probs * truth).sum(1)
    score = (2 * overlap + smooth) / (probs.sum(1) + truth.sum(1) + smooth)
    return _mean_of_judged(1 - score, judged)


def _mean_of_judged(each: Float[Tensor, " b"], judged: Float[Tensor, "b p"]) -> Scalar:
    counts = (judged.sum(1) > 0).float()
    return (each * counts).sum() / counts.sum().clamp(min=1)


def _lovasz(logits: Logits, target: Target, clip: Callable[[Tensor], Tensor]) -> Scalar:
    flat_logits, truth, judged = _flat(logits, target)
    errors = 1 - flat_logits * (2 * truth - 1)
    errors = torch.where(judged > 0, errors, torch.full_like(errors, -1e4))  # sorted last, clipped to nothing
    errors, order = errors.sort(dim=1, descending=True, stable=True)
    truth_sorted = truth.gather(1, order)
    total = truth_sorted.sum(1, keepdim=True)
    intersection = total - truth_sorted.cumsum(1)
    union = total + (judged.gather(1, order) - truth_sorted).cumsum(1)
    jaccard = 1 - intersection / union.clamp(min=1)  # a union of 0: nothing judged yet, weight 0
    slope = torch.diff(jaccard, dim=1, prepend=torch.zeros_like(jaccard[:, :1]))
    return _mean_of_judged((clip(errors) * slope).sum(1), judged)


def lovasz(logits: Logits, target: Target) -> Scalar:
    """Lovász hinge of each image: the convex surrogate of 1 - IoU, with max(0, error).

    Berman et al. 2018, https://arxiv.org/abs/1705.08790. On an empty image it is the largest hinge error.
    """
    return _lovasz(logits, target, F.relu)


def lovasz_elu(logits: Logits, target: Target) -> Scalar:
    """Lovász hinge of each image with ELU(error) + 1 in the place of max(0, error).

    It keeps a gradient on pixels that are already right; the choice of the first place of TGS Salt
    (https://arxiv.org/abs/1904.04445).
    """
    return _lovasz(logits, target, lambda errors: F.elu(errors) + 1)


LOSSES: dict[str, Callable[..., Scalar]] = {
    "bce": bce,
    "dice": dice,
    "lovasz": lovasz,
    "lovasz_elu": lovasz_elu,
}


@runtime_checkable
class Term(Protocol):
    """One summand: a key of LOSSES, its factor, and its keyword arguments (see LossTerm)."""

    @property
    def name(self) -> str:
        """A key of LOSSES."""

    @property
    def weight(self) -> float:
        """Factor."""

    @property
    def params(self) -> Mapping[str, float | bool | str]:
        """Keyword arguments of the loss; those left out have its defaults."""


LossOf = Callable[[Output, Target], Scalar]
"""What a training step minimises: from a model's output and the target."""


def build_loss(terms: Sequence[Term], *, where: str) -> LossOf:
    """Return the weighted sum of terms as one function of a model's output.

    Raises:
        InputError: A name or a parameter is unknown; ``where`` is the path of the list in the recipe.
    """
    parts = []
    for i, term in enumerate(terms):
        function = look_up(LOSSES, term.name, where=f"{where}[{i}].name")
        known = [
            key for key, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY
        ]
        for key in term.params:
            if key not in known:
                hint = suggest(key, known) if known else "it has none"
                raise InputError(f"{where}[{i}].params: {term.name!r} has no {key!r}; {hint}")
        parts.append((function, term.weight, dict(term.params)))

    def total(output: Output, target: Target) -> Scalar:
        return torch.stack(
            [weight * part(output.mask_logits, target, **params) for part, weight, params in parts]
        ).sum()

    return total
