"""What a recipe can say about each loss: its parameters with their ranges and defaults. Imports no torch.

A test compares the tables with the functions of ``build.MASK_LOSSES`` and ``build.IMAGE_LOSSES``.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import Field, create_model

from masksmith.core.config import Config, look_up, suggest, validate
from masksmith.core.errors import InputError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]
Radius = Annotated[int, Field(ge=1)]
ClassWeights = Literal["none", "inverse_frequency", "effective_number"]

Parameters = Mapping[str, tuple[Any, Any]]
"""The type, with its range, and the default of each keyword argument of a loss."""

_BCE: Parameters = {"pos_weight": (Positive, 1.0), "label_smoothing": (Smoothing, 0.0)}
_FOCAL: Parameters = {"gamma": (NonNegative, 2.0), "alpha": (Share | None, None)}
_PLANES: Parameters = {"per_image": (bool, True), "skip_empty": (bool, False)}
_DICE: Parameters = {"smooth": (Positive, 1.0), **_PLANES}
_TVERSKY: Parameters = {"alpha": (NonNegative, 0.3), "beta": (NonNegative, 0.7), **_DICE}

MASK_PARAMETERS: dict[str, Parameters] = {
    "bce": _BCE,
    "balanced_bce": {},
    "focal": _FOCAL,
    "cross_entropy": {"class_weights": (ClassWeights, "none"), "label_smoothing": (Smoothing, 0.0)},
    "mse": {},
    "smooth_l1": {"beta": (Positive, 1.0)},
    "dice": _DICE,
    "log_dice": _DICE,
    "jaccard": {"smooth": (Positive, 1e-5), **_PLANES},
    "tversky": _TVERSKY,
    "focal_tversky": {**_TVERSKY, "gamma": (Positive, 4 / 3)},
    "lovasz": _PLANES,
    "lovasz_elu": _PLANES,
    "lovasz_softmax": {"per_image": (bool, True), "skip_empty": (bool, True)},
    "boundary_bce": {"w0": (NonNegative, 10.0), "sigma": (Positive, 5.0)},
    "band_bce": {"radius": (Radius, 10), "extra": (NonNegative, 2.0)},
    "boundary": {},
    "hausdorff": {"alpha": (Positive, 2.0)},
    "active_contour": {"region_weight": (NonNegative, 1.0)},
    "objects": {"border_weight": (NonNegative, 1.0), "distance_weight": (NonNegative, 1.0)},
}
"""Losses of the mask's logits."""

IMAGE_PARAMETERS: dict[str, Parameters] = {"image_bce": _BCE, "image_focal": _FOCAL}
"""Losses of the image head's logits."""

EACH_CLASS_ALONE = {"bce", "balanced_bce", "lovasz", "lovasz_elu", "boundary_bce", "band_bce"}
"""Losses that maps of classes cannot have."""

CLASS_MAPS_ALONE = {"cross_entropy", "lovasz_softmax"}
"""Losses that need maps of classes."""

PARAMETERS = MASK_PARAMETERS | IMAGE_PARAMETERS


@runtime_checkable
class Term(Protocol):
    """One summand: the name of a loss, its factor, and its keyword arguments (see LossTerm)."""

    @property
    def name(self) -> str:
        """A key of PARAMETERS."""

    @property
    def weight(self) -> float:
        """Factor."""

    @property
    def params(self) -> Mapping[str, float | bool | str]:
        """Keyword arguments of the loss; those left out have its defaults."""


class CheckedTerm(NamedTuple):
    """A term whose parameters have the types of the loss's keyword arguments."""

    name: str
    weight: float
    params: dict[str, Any]


def check_losses(
    terms: Sequence[Term],
    *,
    where: str,
    image_head: bool = True,
    classes: int | None = 1,
    exclusive: bool = False,
) -> list[CheckedTerm]:
    """Return the terms of a loss, checked.

    Args:
        terms: Summands.
        where: Path of the list in the recipe, for messages.
        image_head: Whether the model has an image head.
        classes: Channels of the mask's logits; None: not known yet, and every loss goes.
        exclusive: Whether the classes exclude each other.

    Raises:
        InputError: A name or a parameter is unknown, a parameter has the wrong type or range, or a loss does not go
            with the model or the task.
    """
    return [
        _checked(term, where=f"{where}[{i}]", image_head=image_head, classes=classes, exclusive=exclusive)
        for i, term in enumerate(terms)
    ]


def _checked(
    term: Term, *, where: str, image_head: bool, classes: int | None, exclusive: bool
) -> CheckedTerm:
    known = look_up(PARAMETERS, term.name, where=f"{where}.name")
    if term.name in IMAGE_PARAMETERS and not image_head:
        raise InputError(
            f"{where}.name: {term.name!r} needs an image head; set model.image_head to avg, max or gem"
        )
    if term.name == "cross_entropy" and classes == 1:
        raise InputError(
            f"{where}.name: 'cross_entropy' needs 2 classes or more, the model has 1; use 'bce' for a single class"
        )
    if exclusive and term.name in EACH_CLASS_ALONE:
        raise InputError(
            f"{where}.name: {term.name!r} judges each class alone, and the masks are maps of {classes} classes that "
            "exclude each other; use cross_entropy, focal, dice, jaccard, tversky, mse or lovasz_softmax"
        )
    if term.name == "objects" and classes is not None and classes < 3:
        raise InputError(
            f"{where}.name: 'objects' needs 3 planes or more (foreground, border, distance), the model has {classes}; "
            "it is for data whose target is objects"
        )
    params = _checked_params(term, known, where=f"{where}.params")
    if term.name in ("tversky", "focal_tversky") and params.get("alpha") == params.get("beta") == 0:
        raise InputError(
            f"{where}.params: alpha 0 and beta 0: errors would cost nothing; expected one of them above 0"
        )
    return CheckedTerm(term.name, term.weight, params)


def _checked_params(term: Term, known: Parameters, *, where: str) -> dict[str, Any]:
    """Return the given parameters with the types of the loss: a recipe holds whole numbers as floats."""
    for key in term.params:
        if key not in known:
            hint = suggest(key, known) if known else "it has none"
            raise InputError(f"{where}: {term.name!r} has no {key!r}; {hint}")
    fields: dict[str, Any] = dict(known)
    model = create_model(term.name, __base__=Config, **fields)
    plain = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in term.params.items()
    }
    return validate(model, plain, where=where).model_dump(include=set(plain))
