"""What the search of a rule tries. Imports no torch."""

from typing import Annotated, Any, Literal

from pydantic import Field

from masksmith.core.config import Config
from masksmith.core.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[list[Share], Field(min_length=1)]
Part = Annotated[float, Field(ge=0, lt=1)]
Parts = Annotated[list[Part], Field(min_length=1)]


class CrfOperator(Config):
    """A conditional random field sharpens the probabilities by the colours of the image (see crf)."""

    op: Literal["crf"]
    weight: list[Annotated[float, Field(ge=0, le=100)]] = Field(default=[0.0, 1.0, 3.0], min_length=1)
    """Of what the neighbours say, beside the net's own logit; 0 leaves the probabilities as they are."""
    reach: list[Annotated[float, Field(gt=0, le=0.5)]] = Field(default=[0.05], min_length=1)
    """How far the window reaches, as a share of the image's longer side."""
    colour: list[Annotated[float, Field(gt=0, le=1)]] = Field(default=[0.1], min_length=1)
    """Standard deviation of the difference of colours, as a share of the range of the image's values."""


class ThresholdOperator(Config):
    """A pixel belongs to the mask if its probability is above the threshold."""

    op: Literal["threshold"]
    at: Shares | None = None
    """None: ``tuning.bottom_thresholds``."""


class TripletOperator(Config):
    """A threshold, for images that have enough pixels above a higher one; the others have no mask (see operators)."""

    op: Literal["triplet"]
    top: Shares | None = None
    """None: ``tuning.top_thresholds``; those below the other threshold count as that."""
    area: Shares | None = None
    """Pixels above the top threshold, as a share of the image. None: ``tuning.min_area_fracs``."""
    at: Shares | None = None
    """None: ``tuning.bottom_thresholds``."""


class SplitOperator(Config):
    """Another threshold for images whose coverage, or whose number in a side table, is above a cut."""

    op: Literal["threshold_by"]
    of: str = Field(default="coverage", min_length=1)
    """``coverage``, the share of the pixels above 0.5 before any operator, or a column of numbers of the data."""
    cut: list[float] = Field(min_length=1)
    """Of that number: a share 0…1 of the coverage, else in the column's own unit."""
    at: Shares | None = None
    """In images up to the cut. None: ``tuning.bottom_thresholds``."""
    above: Shares | None = None
    """In the others. None: the same."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse a coverage that no image can have."""
        if self.of == "coverage" and not 0 <= min(self.cut) <= max(self.cut) <= 1:
            raise ValueError(f"cut: {self.cut} of the coverage; expected shares of the image, 0 to 1")


class ArgmaxOperator(Config):
    """The class of the largest probability, times a weight: the class's share of the pixels, to the minus ``power``."""

    op: Literal["argmax"]
    power: Shares = Field(default=[0.0, 0.1, 0.2, 0.3, 0.45, 0.6])
    """0: the most probable class."""


class WatershedOperator(Config):
    """Objects grow from seeds over the foreground (see objects)."""

    op: Literal["watershed"]
    foreground: Shares = Field(default=[0.4, 0.5, 0.6])
    """Pixels above this probability are foreground."""
    seed: Shares = Field(default=[0.2, 0.35, 0.5, 1.0])
    """Of the distance less half the border; 1: there are no seeds, each region of the foreground is an object."""


class AreaOperator(Config):
    """Connected regions (8 neighbours) up to a share of the image are removed: objects, in masks of objects.

    In a class map they take the classes of the nearest other pixels.
    """

    op: Literal["component_area"]
    frac: Parts = Field(default=[0.0, 0.0005, 0.001, 0.002, 0.005, 0.01])
    """0 keeps all."""


class HolesOperator(Config):
    """Holes (4 neighbours, away from the border of the image) up to a share of the image are filled."""

    op: Literal["holes"]
    frac: Parts = Field(default=[0.0, 0.0005, 0.001, 0.002, 0.005, 0.01])
    """0 fills none."""


class LargestOperator(Config):
    """The largest connected regions, or objects, are kept alone."""

    op: Literal["largest"]
    count: list[Annotated[int, Field(ge=0)]] = Field(default=[0, 1, 2], min_length=1)
    """How many; 0 keeps all."""


class GateOperator(Config):
    """An image has a mask only if the image head says so; needs ``prediction.image_head: plane``."""

    op: Literal["gate"]
    at: Shares = Field(default=[0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    """Probability that the image head must exceed; in an image of tiles one of them must. 0 lets all pass."""


Operator = Annotated[
    CrfOperator
    | ThresholdOperator
    | TripletOperator
    | SplitOperator
    | ArgmaxOperator
    | WatershedOperator
    | AreaOperator
    | HolesOperator
    | LargestOperator
    | GateOperator,
    Field(discriminator="op"),
]
_MASKS = ("binary", "multilabel")
_TASKS: dict[str, tuple[str, ...]] = {
    "crf": (*_MASKS, "multiclass"),
    "threshold": _MASKS,
    "triplet": _MASKS,
    "threshold_by": _MASKS,
    "argmax": ("multiclass",),
    "watershed": ("instances",),
    "component_area": (*_MASKS, "multiclass", "instances"),
    "holes": (*_MASKS, "instances"),
    "largest": (*_MASKS, "instances"),
    "gate": _MASKS,
}
"""Operator -> the tasks that have it."""
DECIDING = ("threshold", "triplet", "threshold_by", "argmax", "watershed")
REGIONS = ("component_area", "holes", "largest")


def halfway(task: str) -> Operator:
    """Return the operator that makes a mask without a search: threshold 0.5, or the most probable class."""
    if task == "multiclass":
        return ArgmaxOperator(op="argmax", power=[0.0])
    return ThresholdOperator(op="threshold", at=[0.5])


class TuningConfig(Config):
    """Candidates of the search."""

    bottom_thresholds: list[Share] = Field(default=[round(0.2 + 0.02 * i, 2) for i in range(31)])
    """Probabilities above which a pixel belongs to the mask."""
    top_thresholds: list[Share] = Field(default=[0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    """Probabilities that min_pixels pixels must exceed; only those not below the bottom are tried, and only for a
    metric of counts: one of objects or boundaries gets a bottom threshold alone."""
    min_area_fracs: list[Share] = Field(
        default=[0.0, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03]
    )
    """min_pixels as a share of the median image's area; in an image of another size it is the same share. For a metric
    of counts."""
    component_area_frac: float = Field(default=0.0, ge=0, lt=1)
    """Connected regions of a mask (8 neighbours) that are not larger than this share of the image's area are removed,
    after the thresholds and whatever the search finds; 0 keeps all."""
    search_objects: bool = True
    """Whether thresholds of seeds and foreground of objects are searched; False takes the usual ones."""
    min_object_areas: list[int] = Field(default=[0, 15, 40])
    """Least pixels of an object that are tried."""
    search_classes: bool = True
    """Whether weights of the classes of a class map are searched; False takes the most probable class."""
    operators: list[Operator] | None = Field(default=None, min_length=1)
    """Operators in the order in which they are applied, each ``{op: NAME, …}`` with lists of candidates: one that makes
    a mask (threshold, triplet, threshold_by, argmax, watershed), crf before it, component_area, holes and largest after
    it, and gate. All are searched together, in place of the rule that the fields above describe. None: that rule."""
    most_masks: int = Field(default=256, ge=1)
    """Masks that the search of operators makes of an image: all combinations, or so many that Optuna draws."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse operators that are there twice or in an order that means nothing."""
        if self.operators is None:
            return
        names = [one.op for one in self.operators]
        found = [f"{name!r} is there twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        deciding = [at for at, name in enumerate(names) if name in DECIDING]
        if len(deciding) != 1:
            found.append(f"{len(deciding)} of them make a mask; expected one of {', '.join(DECIDING)}")
        else:
            at = deciding[0]
            found += [
                f"{name!r} needs a mask; put it behind {names[at]!r}"
                for name in names[:at]
                if name in REGIONS
            ]
            found += [
                "'crf' needs probabilities; put it before " + repr(names[at])
                for name in names[at:]
                if name == "crf"
            ]
        if self.component_area_frac:
            found.append(
                f"component_area_frac {self.component_area_frac:g} has no effect beside them; set it to 0 and add "
                "{op: component_area}"
            )
        if found:
            raise ValueError(f"operators: {'; '.join(found)}")


def check_operators(config: TuningConfig, *, task: str, image_head: str | None, columns: list[str]) -> None:
    """Refuse operators that the data or the model cannot have.

    Args:
        config: Its ``operators``.
        task: Of the Target.
        image_head: ``prediction.image_head``; None where no recipe says it.
        columns: Columns of numbers that every training image has.

    Raises:
        InputError: An operator of another task, a gate without the plane of an image head, or a column that is not
            there.
    """
    problems = []
    for at, one in enumerate(config.operators or ()):
        where = f"tuning.operators[{at}]"
        if task not in _TASKS[one.op]:
            have = ", ".join(name for name, tasks in _TASKS.items() if task in tasks)
            problems.append(
                f"{where}: {one.op!r} is not for {task}, but for {', '.join(_TASKS[one.op])}; expected {have}"
            )
        if one.op == "gate" and image_head not in (None, "plane"):
            problems.append(
                f"{where}: 'gate' with prediction.image_head {image_head!r}; set model.image_head to avg, max or gem, "
                "train it with a loss, and set prediction.image_head to plane"
            )
        if isinstance(one, SplitOperator) and one.of not in ("coverage", *columns):
            problems.append(
                f"{where}.of: no column {one.of!r} of numbers that every image has; expected coverage"
                + "".join(f", {name}" for name in columns)
            )
    if problems:
        raise InputError("\n".join(problems))
