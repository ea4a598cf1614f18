"""The tables of losses, and a recipe's weighted sum of them as one function of a model's output."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import create_model

from masksmith.config import Config, look_up, suggest, validate
from masksmith.errors import InputError
from masksmith.losses.contours import active_contour, band_bce, boundary, boundary_bce, hausdorff
from masksmith.losses.image_head import image_bce, image_focal
from masksmith.losses.lovasz_extension import lovasz, lovasz_elu, lovasz_softmax
from masksmith.losses.pixelwise import balanced_bce, bce, cross_entropy, focal, mse, smooth_l1
from masksmith.losses.planes import Logits, Scalar, Target
from masksmith.losses.regions import dice, focal_tversky, jaccard, log_dice, tversky
from masksmith.models import Output

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
}
"""Losses of the mask's logits."""

IMAGE_LOSSES: dict[str, Callable[..., Scalar]] = {
    "image_bce": image_bce,
    "image_focal": image_focal,
}
"""Losses of the image head's logits."""

LOSSES = MASK_LOSSES | IMAGE_LOSSES


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


class _Part(NamedTuple):
    """A term that was checked."""

    name: str
    weight: float
    params: dict[str, Any]

    def on_maps(self, maps: Sequence[tuple[float, Logits]], target: Target) -> Iterator[Scalar]:
        for share, logits in maps:
            yield self.weight * share * MASK_LOSSES[self.name](logits, target, **self.params)


def _checked_params(term: Term, function: Callable[..., Scalar], *, where: str) -> dict[str, Any]:
    """Return a term's parameters as its function takes them: a whole number comes as a float from a recipe."""
    takes = [one for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY]
    known = [one.name for one in takes]
    for key in term.params:
        if key not in known:
            hint = suggest(key, known) if known else "it has none"
            raise InputError(f"{where}: {term.name!r} has no {key!r}; {hint}")
    fields: dict[str, Any] = {one.name: (one.annotation, one.default) for one in takes}
    model = create_model(term.name, __base__=Config, **fields)
    plain = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in term.params.items()
    }
    return validate(model, plain, where=where).model_dump(include=set(plain))


def _checked(term: Term, *, where: str, image_head: bool, classes: int) -> _Part:
    function = look_up(LOSSES, term.name, where=f"{where}.name")
    if term.name in IMAGE_LOSSES and not image_head:
        raise InputError(
            f"{where}.name: {term.name!r} needs an image head; set model.image_head to avg, max or gem"
        )
    if term.name == "cross_entropy" and classes == 1:
        raise InputError(
            f"{where}.name: 'cross_entropy' needs 2 classes or more, the model has 1; use 'bce' for a single class"
        )
    params = _checked_params(term, function, where=f"{where}.params")
    if term.name in ("tversky", "focal_tversky") and params.get("alpha") == params.get("beta") == 0:
        raise InputError(
            f"{where}.params: alpha 0 and beta 0: errors would cost nothing; expected one of them above 0"
        )
    return _Part(term.name, term.weight, params)


def build_loss(
    terms: Sequence[Term], *, where: str, image_head: bool = True, classes: int = 1, aux_weight: float = 0.4
) -> LossOf:
    """Return the weighted sum of terms as one function of a model's output, computed in float32.

    Args:
        terms: Summands.
        where: Path of the list in the recipe, for messages.
        image_head: Whether the model has an image head.
        classes: Channels of the mask's logits.
        aux_weight: What the outputs of deep supervision weigh together, 1 being the mask itself: the mask's losses
            are computed on each, resized bilinearly to the target's size, and averaged. Image losses are not. (0.4:
            the auxiliary loss of PSPNet, https://arxiv.org/abs/1612.01105)

    Raises:
        InputError: A name or a parameter is unknown, a parameter has the wrong type or range, or a loss does not go
            with the model.
    """
    parts = [
        _checked(term, where=f"{where}[{i}]", image_head=image_head, classes=classes)
        for i, term in enumerate(terms)
    ]

    def values(output: Output, target: Target) -> Iterator[Scalar]:
        maps = list(_maps(output, target, aux_weight=aux_weight))
        for part in parts:
            if part.name in MASK_LOSSES:
                yield from part.on_maps(maps, target)
            elif output.image_logits is None:
                raise ValueError(f"{where}: {part.name!r} needs image logits, the model's output has none")
            else:
                yield part.weight * IMAGE_LOSSES[part.name](output.image_logits, target, **part.params)

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
