"""Which part of an image is seen, how strongly an image is changed, and mirrored copies of the training set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from masksmith.augment.distortions import Probability
from masksmith.core.arrays import IGNORE, AnyMask, Int, Shaped, UInt8, foreground_pixels
from masksmith.core.config import Config
from masksmith.core.errors import InputError
from masksmith.folds.table import coverage_class

_TRIES = 64  # pixels looked at before the whole mask is
_PLACES = 256  # pixels of a class that are remembered of a large mask


class AugmentConfig(Config):
    """How strongly training images are changed, and which of them and which windows are seen."""

    strength: float = Field(default=1.0, ge=0, le=4)
    """Factor on all ranges of geometry and intensity; 0 switches both off (too much hurts: 003.train.4)."""
    rare_power: float = Field(default=0.0, ge=0, le=1)
    """By class frequency: an image's strength is multiplied by (frequency of the rarest coverage class over that of its
    own) to this power; 0 treats all alike, 1 is inversely proportional."""
    positive_windows: Probability = 0.0
    """Probability that a window is centred on a foreground pixel, if there is one; for images above the canvas. Where a
    mask has several classes, one of them is drawn first, each as likely, then a pixel of it."""
    append_flips: bool = False
    """The training set has a mirrored copy of every image: an epoch sees each image and its mirror image."""
    mirror_pairs: Literal["auto"] | list[tuple[str, str]] = "auto"
    """Classes that change places in a mirror image, in training and in the views of a prediction: "auto" takes those
    whose names differ by left and right alone; [] none."""
    custom: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Name of a callable that is given from Python as well; the name stands for it in the recipe's hash."""


def class_of(mask: UInt8[np.ndarray, "h w k"]) -> int:
    """Return the coverage class 0…10 of a mask's foreground (any class, any layer) among its judged pixels."""
    judged = (mask != IGNORE).any(-1)
    return coverage_class(int(_is_foreground(mask).sum()), int(judged.sum()))


def strengths_by_frequency(classes: Mapping[str, int], power: float) -> dict[str, float]:
    """Return a factor in (0, 1] for each image: the rarer its coverage class, the stronger it is augmented.

    Args:
        classes: Id -> coverage class, of the training images of the fold.
        power: (frequency of the rarest class / frequency of the image's class) is raised to this.
    """
    counts = np.bincount(list(classes.values()), minlength=11) if classes else np.zeros(11, int)
    rarest = min((int(count) for count in counts if count), default=1)
    return {name: float((rarest / counts[number]) ** power) for name, number in classes.items()}


def with_copies(num: int, append_flips: bool) -> int:
    """Return the number of samples of an epoch over ``num`` images: twice as many with mirrored copies.

    Sample i from ``num`` on is the mirror image of image i - num: give ``Task.mirrored_from = num``.
    """
    return 2 * num if append_flips else num


def draw_focus(mask: AnyMask, probability: float, rng: np.random.Generator) -> tuple[float, float] | None:
    """Draw a foreground pixel, or None (with 1 - probability, or if there is none).

    Of one class each pixel is as likely as another; of several classes one is drawn first, so that a rare one is seen
    as often as the others.

    Returns:
        Row and column of its centre as shares of height and width.
    """
    if rng.random() >= probability:
        return None
    height, width = mask.shape[:2]
    if mask.ndim == 3 or _has_classes(mask):
        places = places_by_class(mask, most=mask.size)
        return _draw_place(places, (height, width), rng)
    rows, columns = (rng.random((2, _TRIES)) * [[height], [width]]).astype(int)
    hits = np.flatnonzero(_is_foreground(mask[rows, columns][:, None]))
    if len(hits):
        row, column = int(rows[hits[0]]), int(columns[hits[0]])
    else:
        found = np.flatnonzero(_is_foreground(mask))
        if not len(found):
            return None
        row, column = divmod(int(found[rng.integers(len(found))]), width)
    return (row + 0.5) / height, (column + 0.5) / width


def _has_classes(mask: AnyMask) -> bool:
    """Whether there is a class above 1."""
    return bool(mask.dtype == np.uint8 and mask.max(initial=0) > 1 and ((mask > 1) & (mask != IGNORE)).any())


def places_by_class(mask: AnyMask, *, most: int = _PLACES) -> list[Int[np.ndarray, " _"]]:
    """Return pixels of each class above 0 (or of each layer) that occurs, as positions ``row * width + column``.

    Args:
        mask: Classes, or layers of 0 and 1; IGNORE is neither. Objects count as one class.
        most: So many pixels of a class at most, evenly spread over all of them.
    """
    if mask.dtype == np.int32:
        layers = [np.flatnonzero(mask > 0)]
    elif mask.ndim == 3:
        layers = [
            np.flatnonzero((mask[..., at] != 0) & (mask[..., at] != IGNORE)) for at in range(mask.shape[2])
        ]
    else:
        classes = np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1)[:IGNORE])
        layers = [np.flatnonzero(mask == value) for value in classes if value]
    found = [layer for layer in layers if len(layer)]
    return [layer[np.arange(num) * len(layer) // num] for layer in found for num in [min(most, len(layer))]]


def draw_place(
    places: Sequence[Int[np.ndarray, " _"]],
    hw: tuple[int, int],
    probability: float,
    rng: np.random.Generator,
) -> tuple[float, float] | None:
    """Draw as draw_focus does, from the remembered pixels of a large mask of (height, width)."""
    return _draw_place(places, hw, rng) if rng.random() < probability else None


def _draw_place(
    places: Sequence[Int[np.ndarray, " _"]], hw: tuple[int, int], rng: np.random.Generator
) -> tuple[float, float] | None:
    if not places:
        return None
    chosen = places[int(rng.integers(len(places)))]
    row, column = divmod(int(chosen[rng.integers(len(chosen))]), hw[1])
    return (row + 0.5) / hw[0], (column + 0.5) / hw[1]


def _is_foreground(mask: AnyMask) -> np.ndarray:
    """Return (h, w) of bool: any layer is a class above 0, or there is an object."""
    found = foreground_pixels(mask)
    return np.asarray(found.any(-1) if mask.ndim == 3 else found)


@dataclass(frozen=True)
class CallableAugment:
    """An albumentations-style callable: ``fn(image=…, mask=…)`` returns a mapping with "image" and "mask".

    It gets the canvas as integers, (h, w, c) and (h, w), after geometry and before the intensity table, and gives back
    the same shapes and types. Where it has a method ``set_random_seed`` (albumentations 2) it is seeded from the
    counters before each image, so that it too draws the same for the same sample; one without the method must
    not draw, or a training that is continued differs from one that was not stopped.
    """

    name: str
    """Stands for it in the recipe (``training.augment.custom``): give another name where it does other things."""
    fn: Callable[..., Mapping[str, Any]]
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def __call__(
        self,
        image: Shaped[np.ndarray, "h w c"],
        mask: UInt8[np.ndarray, "h w *k"],
        rng: np.random.Generator,
    ) -> tuple[Shaped[np.ndarray, "h w c"], UInt8[np.ndarray, "h w *k"]]:
        """Change an image and its mask.

        Raises:
            InputError: What comes back has another shape or type, or classes that were not there.
        """
        seed = int(rng.integers(2**32))
        with self._lock:  # the seed and the call belong together, whatever thread makes the batch
            if (seeded := getattr(self.fn, "set_random_seed", None)) is not None:
                seeded(seed)
            changed = self.fn(image=image, mask=mask)
        return self._checked(changed, image, "image"), self._checked(changed, mask, "mask")

    def _checked(self, changed: Mapping[str, Any], given: np.ndarray, key: str) -> np.ndarray:
        where = f"augmentation {self.name!r}"
        if key not in changed:
            raise InputError(f"{where}: no {key!r} in what it returned ({', '.join(changed)})")
        found = np.asarray(changed[key])
        if found.shape != given.shape or found.dtype != given.dtype:
            raise InputError(
                f"{where}: its {key} is {found.shape} of {found.dtype}, expected {given.shape} of {given.dtype}; "
                "it may change values and places, not the form"
            )
        if key == "mask" and (new := set(np.unique(found)) - set(np.unique(given)) - {0, IGNORE}):
            raise InputError(
                f"{where}: its mask has the new value {min(new)}; masks must not be interpolated into new classes"
            )
        return found


def names_of(ids: Sequence[str], indices: Sequence[int]) -> list[str]:
    """Return the id of each sample; those of mirrored copies come again from the first image on."""
    return [ids[index % len(ids)] for index in indices]
