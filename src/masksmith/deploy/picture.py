"""One image that is segmented: where it comes from, and what was found."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from masksmith.core.arrays import AnyMask, Shaped, UInt8
from masksmith.data.array_store import Images, bands_of
from masksmith.data.target import Target
from masksmith.deploy.listing import Item
from masksmith.prediction.store import MeanCodes
from masksmith.submission.formats import mask_values


@dataclass(frozen=True)
class Picture:
    """One image of a file."""

    id: str
    item: Item
    path: str
    """As the reader takes it, with the number of a slice."""


@dataclass(frozen=True)
class Segmented:
    """An image with its mask and probabilities."""

    picture: Picture
    images: Images
    codes: MeanCodes
    mask: AnyMask
    target: Target

    @property
    def hw(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.mask.shape[0], self.mask.shape[1]

    @cached_property
    def numbers(self) -> "Numbers":
        """The mask as numbers."""
        return Numbers(self.mask, self.target)


class Numbers:
    """A mask as a label image: 0 and 1, the values that classes have in the mask files, or the numbers of objects."""

    def __init__(self, mask: AnyMask, target: Target) -> None:
        self.mask, self.target = mask, target
        self.values = mask_values(target) if target.exclusive else None
        highest = int(mask.max(initial=0)) if self.values is None else int(self.values.max())
        kinds = ("uint16", "uint32") if target.task == "instances" else ("uint8", "uint16")
        self.dtype = np.dtype(next(kind for kind in kinds if highest < np.iinfo(kind).max))
        self.no_data = int(np.iinfo(self.dtype).max)
        """What no pixel has: 255, or the largest number of the type."""
        self.layers = mask.shape[2] if mask.ndim == 3 else 1

    def bands(self) -> Iterator[tuple[slice, Shaped[np.ndarray, "n w k"]]]:
        """Yield rows of the image and their numbers, top to bottom."""
        for rows in bands_of(*self.mask.shape[:2]):
            part = self.mask[rows]
            numbers = (part if self.values is None else self.values[part]).astype(self.dtype)
            yield rows, numbers if numbers.ndim == 3 else numbers[..., None]

    def whole(self) -> Shaped[np.ndarray, "h w *k"]:
        """Return all of it; several layers last."""
        parts = np.concatenate([part for _, part in self.bands()])
        return parts if self.mask.ndim == 3 else parts[..., 0]


def shown_classes(target: Target) -> list[tuple[int, str]]:
    """Return code and name of the classes of a class map that are something: all but a background of value 0."""
    first = int(target.values[:1] == (0,))
    return list(enumerate(target.classes))[first:]


def class_layers(mask: AnyMask, target: Target) -> Iterator[tuple[str, UInt8[np.ndarray, "h w"]]]:
    """Yield the name of each class and its mask of 0 and 1; of objects that of all together."""
    if target.exclusive:
        for code, name in shown_classes(target):
            yield name, (mask == code).view(np.uint8)
    elif mask.ndim == 3:
        for at, name in enumerate(target.classes):
            yield name, mask[..., at]
    else:
        yield target.classes[0], (mask > 0).view(np.uint8)
