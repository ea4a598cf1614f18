"""Transforms of image stacks in scikit-learn's form: ``fit``, ``transform``, ``inverse_transform``, and chains of them.

Stacks are (n, h, w, c). ``fit`` learns the size of the images (a name with a trailing underscore is learnt); a stack of
another size is refused later. Padding is undone bit for bit, scaling by interpolation; random windows cannot be undone.

Prediction uses ``Scale`` and ``PadTo``: ``Frame`` in ``sizes`` is a chain of both. ``Refract`` and ``Crop`` are for
notebooks that follow the TGS Salt kernel which they come from; a recipe says the same with ``size.chain``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import cv2
import numpy as np

from masksmith.core.arrays import Float, Shaped
from masksmith.core.errors import InputError
from masksmith.core.randomness import stream

Border = Literal["reflect", "edge", "zero"]
HW = tuple[int, int]

CV2_BORDERS: dict[str, int] = {
    "reflect": cv2.BORDER_REFLECT_101,
    "edge": cv2.BORDER_REPLICATE,
    "zero": cv2.BORDER_CONSTANT,
}
_INTERPOLATED = ("uint8", "uint16", "int16", "float32", "float64")  # by OpenCV
_NUMPY_MODES: dict[str, Literal["reflect", "edge", "constant"]] = {
    "reflect": "reflect",
    "edge": "edge",
    "zero": "constant",
}


# --- one image ---


def round_up(size: int, divisor: int) -> int:
    """Return the smallest multiple of ``divisor`` that is not below ``size``."""
    return -(-size // divisor) * divisor


@dataclass(frozen=True)
class Pad:
    """Pad an image outwards."""

    top: int
    bottom: int
    left: int
    right: int
    border: Border = "reflect"

    @classmethod
    def to_size(cls, hw: HW, target_hw: HW, border: Border = "reflect") -> "Pad":
        """Return the padding from ``hw`` to ``target_hw``; an odd pixel goes below and to the right (13/14)."""
        extra_h, extra_w = target_hw[0] - hw[0], target_hw[1] - hw[1]
        assert min(extra_h, extra_w) >= 0, (hw, target_hw)
        return cls(extra_h // 2, extra_h - extra_h // 2, extra_w // 2, extra_w - extra_w // 2, border)

    def apply(self, image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "H W c"]:
        """Pad (h, w, c) to (h + top + bottom, w + left + right, c)."""
        if image.shape[2] <= 4:
            padded = cv2.copyMakeBorder(
                image, self.top, self.bottom, self.left, self.right, CV2_BORDERS[self.border]
            )
            return padded.reshape(*padded.shape[:2], image.shape[2])
        widths = ((self.top, self.bottom), (self.left, self.right), (0, 0))
        return np.pad(image, widths, mode=_NUMPY_MODES[self.border])


def resize(image: Shaped[np.ndarray, "h w c"], hw: HW) -> Shaped[np.ndarray, "H W c"]:
    """Resize by bilinear interpolation with pixel centres at half (as the training warp does); a copy of equal size.

    Any number of channels; the type of the values stays.
    """
    if image.shape[:2] == hw:
        return image
    planes = [
        cv2.resize(image[..., at : at + 4], hw[::-1], interpolation=cv2.INTER_LINEAR).reshape(*hw, -1)
        for at in range(0, image.shape[2], 4)
    ]
    return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


# --- stacks ---

Stack = Shaped[np.ndarray, "n h w c"]


@runtime_checkable
class Transform(Protocol):
    """A step of a chain."""

    def fit(self, images: Stack) -> "Transform":
        """Learn from images (n, h, w, c), of which n may be 0; return the transform itself."""
        ...

    def transform(self, images: Stack) -> Shaped[np.ndarray, "m H W c"]:
        """Return the changed images."""
        ...

    def inverse_transform(self, images: Shaped[np.ndarray, "n H W k"]) -> Shaped[np.ndarray, "n h w k"]:
        """Return what lies on changed images (probabilities, say) at the size that the images had before."""
        ...


def _need(who: str, hw: HW | None) -> HW:
    """Return what a transform has learnt."""
    if hw is None:
        raise InputError(f"{who}: it is not fitted, so it knows no size; call fit(images) first")
    return hw


def _size_of(who: str, images: Stack) -> HW:
    """Return the size of the images of a stack."""
    if images.ndim != 4:
        raise InputError(
            f"{who}: an array of shape {images.shape}; expected images (n, h, w, c), or masks as images of one channel"
        )
    return images.shape[1], images.shape[2]


def _check(who: str, images: Stack, hw: HW) -> None:
    """Refuse images of another size than ``hw``."""
    height, width = _size_of(who, images)
    if (height, width) != hw:
        raise InputError(
            f"{who}: images of {height}x{width}, expected {hw[0]}x{hw[1]} as it was fitted; fit another one for this "
            "size"
        )


def _each(
    images: Stack, change: Callable[[Shaped[np.ndarray, "h w c"]], Shaped[np.ndarray, "H W c"]], hw: HW
) -> Shaped[np.ndarray, "n H W c"]:
    """Return the stack of every image changed to size ``hw``."""
    changed = np.empty((len(images), *hw, images.shape[3]), images.dtype)
    for target, image in zip(changed, images, strict=True):
        target[...] = change(np.ascontiguousarray(image))
    return changed


def _scaled(who: str, images: Stack, hw: HW) -> Shaped[np.ndarray, "n H W c"]:
    """Return the stack at size ``hw``; one that has it already as it is."""
    if images.shape[1:3] == hw:
        return images
    if images.dtype.name not in _INTERPOLATED:
        raise InputError(
            f"{who}: images of {images.dtype}, which cannot be interpolated; expected {', '.join(_INTERPOLATED)}: "
            "convert them with astype"
        )
    return _each(images, partial(resize, hw=hw), hw)


@dataclass
class Scale:
    """Scale images to ``hw``, and what lies on them back: bilinear, pixel centres at half.

    Raises:
        InputError: In use: it is not fitted, or the images have another size or a type that is not interpolated.
    """

    hw: HW
    hw_in_: HW | None = field(default=None, init=False, repr=False)

    def fit(self, images: Stack) -> "Scale":
        """Learn the size to go back to."""
        self.hw_in_ = _size_of("Scale", images)
        return self

    def transform(self, images: Stack) -> Shaped[np.ndarray, "n H W c"]:
        """Return the images at ``hw``; those that have it already as they are."""
        _check("Scale", images, _need("Scale", self.hw_in_))
        return _scaled("Scale", images, self.hw)

    def inverse_transform(self, images: Shaped[np.ndarray, "n H W k"]) -> Shaped[np.ndarray, "n h w k"]:
        """Return planes at ``hw`` at the size that the images had."""
        hw = _need("Scale", self.hw_in_)
        _check("Scale, backwards", images, self.hw)
        return _scaled("Scale, backwards", images, hw)


@dataclass
class PadTo:
    """Pad images outwards to ``hw``, an odd pixel below and to the right; undone bit for bit.

    Raises:
        InputError: In use: it is not fitted, or the images are larger than ``hw`` or of another size.
    """

    hw: HW
    border: Border = "reflect"
    hw_in_: HW | None = field(default=None, init=False, repr=False)

    @property
    def pad_(self) -> Pad:
        """The padding of each side."""
        return Pad.to_size(_need("PadTo", self.hw_in_), self.hw, self.border)

    def fit(self, images: Stack) -> "PadTo":
        """Learn the size to cut back to."""
        height, width = _size_of("PadTo", images)
        if height > self.hw[0] or width > self.hw[1]:
            raise InputError(
                f"PadTo: images of {height}x{width} are larger than {self.hw[0]}x{self.hw[1]}; give a larger size, or "
                "scale them first"
            )
        self.hw_in_ = (height, width)
        return self

    def transform(self, images: Stack) -> Shaped[np.ndarray, "n H W c"]:
        """Return the padded images."""
        pad = self.pad_
        _check("PadTo", images, _need("PadTo", self.hw_in_))
        return _each(images, pad.apply, self.hw)

    def inverse_transform(self, images: Shaped[np.ndarray, "n H W k"]) -> Shaped[np.ndarray, "n h w k"]:
        """Return the planes without the border."""
        pad = self.pad_
        _check("PadTo, backwards", images, self.hw)
        return images[:, pad.top : self.hw[0] - pad.bottom, pad.left : self.hw[1] - pad.right]


@dataclass
class Refract:
    """Mirror the edges outwards until an image is ``ratio`` of its new sides (90x90 at 0.9: 100x100); undone exactly.

    So convolutions see no hard edge. From a TGS Salt kernel that used 0.9 after a crop of 0.9.

    Raises:
        InputError: ``ratio`` is not in (0, 1], or in use as PadTo.
    """

    ratio: float = 0.9
    border: Border = "reflect"
    inner_: PadTo | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_ratio("Refract", self.ratio)

    def fit(self, images: Stack) -> "Refract":
        """Learn the size, and with it the border."""
        height, width = _size_of("Refract", images)
        self.inner_ = PadTo((round(height / self.ratio), round(width / self.ratio)), self.border).fit(images)
        return self

    @property
    def _padding(self) -> PadTo:
        if self.inner_ is None:
            raise InputError("Refract: it is not fitted, so it knows no size; call fit(images) first")
        return self.inner_

    def transform(self, images: Stack) -> Shaped[np.ndarray, "n H W c"]:
        """Return the images with their mirrored border."""
        return self._padding.transform(images)

    def inverse_transform(self, images: Shaped[np.ndarray, "n H W k"]) -> Shaped[np.ndarray, "n h w k"]:
        """Return the planes without the border."""
        return self._padding.inverse_transform(images)


@dataclass
class Crop:
    """Cut ``cardinality`` windows at random from every image, of ``ratio`` of its sides: for training only.

    The windows of an image follow each other. They are drawn from (seed, index of the image, number of the window), so
    a stack of masks gets the same windows.

    Raises:
        InputError: ``ratio`` is not in (0, 1] or ``cardinality`` below 1; in use: it is not fitted, or the images have
            another size; always, where it is to be undone.
    """

    ratio: float = 0.9
    cardinality: int = 1
    seed: int = 0
    hw_in_: HW | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_ratio("Crop", self.ratio)
        if self.cardinality < 1:
            raise InputError(f"Crop: cardinality {self.cardinality}; expected 1 or more windows an image")

    @property
    def hw_out_(self) -> HW:
        """Size of the windows."""
        height, width = _need("Crop", self.hw_in_)
        return max(1, round(height * self.ratio)), max(1, round(width * self.ratio))

    def fit(self, images: Stack) -> "Crop":
        """Learn the size that the windows are a share of."""
        self.hw_in_ = _size_of("Crop", images)
        return self

    def transform(self, images: Stack) -> Shaped[np.ndarray, "m H W c"]:
        """Return the windows: ``cardinality`` times as many as there are images."""
        height, width = self.hw_out_
        _check("Crop", images, _need("Crop", self.hw_in_))
        windows = np.empty((len(images) * self.cardinality, height, width, images.shape[3]), images.dtype)
        for at in range(len(windows)):
            index, number = divmod(at, self.cardinality)
            rng = stream(self.seed, index, number)
            top = int(rng.integers(images.shape[1] - height, endpoint=True))
            left = int(rng.integers(images.shape[2] - width, endpoint=True))
            windows[at] = images[index, top : top + height, left : left + width]
        return windows

    def inverse_transform(self, images: Shaped[np.ndarray, "n H W k"]) -> Shaped[np.ndarray, "n h w k"]:
        """Refuse: what lay outside a window is lost."""
        raise InputError("Crop: random windows cannot be undone; predict with a chain without Crop")


def _check_ratio(who: str, ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise InputError(f"{who}: ratio {ratio:g}; expected a share of the sides, above 0 and at most 1")


@dataclass
class Chain:
    """Transforms one after another; backwards they are undone in reverse order.

    Raises:
        InputError: As its steps; those after a step are fitted to what it makes.
    """

    steps: Sequence[Transform]

    def fit(self, images: Stack) -> "Chain":
        """Fit every step to what the steps before it make of the images."""
        self.fit_transform(images)
        return self

    def fit_transform(self, images: Stack) -> Shaped[np.ndarray, "m H W c"]:
        """Fit, and return the changed images."""
        for step in self.steps:
            images = step.fit(images).transform(images)
        return images

    def transform(self, images: Stack) -> Shaped[np.ndarray, "m H W c"]:
        """Return the changed images."""
        for step in self.steps:
            images = step.transform(images)
        return images

    def inverse_transform(self, images: Shaped[np.ndarray, "n H W k"]) -> Shaped[np.ndarray, "n h w k"]:
        """Return what lies on changed images at the size that the images had before the first step."""
        for step in reversed(self.steps):
            images = step.inverse_transform(images)
        return images


@dataclass
class Standardize:
    """Bring columns of numbers (n, s), such as depths, to mean 0 and standard deviation 1 *of those it is fitted to*.

    Fit it to the training images alone: other images are measured by the same mean and deviation. The numbers of
    ``model.scalars`` go through it.

    Raises:
        InputError: No rows, another number of columns, a number that is not finite, a column that is the same
            everywhere; in use: it is not fitted.
    """

    names: Sequence[str]
    """Names of the columns, for messages."""
    where: str = field(default="Standardize", repr=False)
    """What messages begin with."""
    mean_: Float[np.ndarray, " s"] | None = field(default=None, init=False, repr=False)
    std_: Float[np.ndarray, " s"] | None = field(default=None, init=False, repr=False)

    def fit(self, values: Float[np.ndarray, "n s"]) -> "Standardize":
        """Learn mean and standard deviation (of the population) of each column, in double precision."""
        self._check_columns(values)
        if not len(values):
            raise InputError(f"{self.where}: no rows; expected the numbers of at least two images")
        for name, column in zip(self.names, values.T, strict=True):
            if not np.isfinite(column).all():
                row = int(np.flatnonzero(~np.isfinite(column))[0])
                raise InputError(
                    f"{self.where}: {name!r} is {column[row]} in row {row}; expected a finite number"
                )
            if column.min() == column.max():
                raise InputError(f"{self.where}: {name!r} is {column[0]} everywhere; leave this column out")
        self.mean_, self.std_ = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
        return self

    def transform(self, values: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n s"]:
        """Return (value - mean) / std."""
        mean, std = self._learnt()
        self._check_columns(values)
        return (values - mean) / std

    def inverse_transform(self, values: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n s"]:
        """Return value · std + mean."""
        mean, std = self._learnt()
        self._check_columns(values)
        return values * std + mean

    def _learnt(self) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
        if self.mean_ is None or self.std_ is None:
            raise InputError(
                f"{self.where}: it is not fitted; call fit(values) with the training images' numbers first"
            )
        return self.mean_, self.std_

    def _check_columns(self, values: Float[np.ndarray, "n s"]) -> None:
        if values.ndim != 2 or values.shape[1] != len(self.names):
            raise InputError(
                f"{self.where}: numbers of shape {values.shape}; expected (images, {len(self.names)}) for the columns "
                f"{', '.join(self.names)}"
            )
