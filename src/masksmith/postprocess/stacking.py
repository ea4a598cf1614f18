"""Second-level models on members' predictions: gradient-boosted trees of pixels, of regions and of whole images.

Each is trained on out-of-fold predictions and gives new probabilities:

    pixels   bands, probabilities of each member, their means around a pixel and its place -> probabilities
    regions  shape, probabilities and bands of a connected region, its surroundings -> is most of it right? A region
             that is not goes below the threshold
    gate     probabilities and bands of an image as a whole -> is there anything? If not, all goes below the threshold

Sources:
    Stacked generalisation: Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1.
    Histogram-based boosting: Ke et al. 2017 (LightGBM); scikit-learn's HistGradientBoostingClassifier.
    Pixels: the first place of DrivenData's STAC Overflow. Regions: the first place of the Data Science Bowl 2018.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int8

from masksmith.core.arrays import Codes, Shaped
from masksmith.core.errors import InputError
from masksmith.prediction.store import MAX_CODE, to_codes

Table = Float32[np.ndarray, "n f"]
Answers = Int8[np.ndarray, " n"]
Probs = Float32[np.ndarray, "h w *k"]

_WINDOWS = (3, 9, 25)  # pixels, of the means around a pixel
_BAND_WINDOW = 5
_HALO = max(_WINDOWS) // 2 + 1
_AT_ONCE = 1 << 19  # pixels of an image that are looked at together
_TREES = 100
_RING = 3  # pixels around a region
_LEAST_EACH = 12  # regions or images of either answer that trees are trained on
_SHARES = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class View:
    """What is known of an image."""

    image: Shaped[np.ndarray, "h w c"]
    members: Sequence[Codes]
    """Of each member, (h, w, k)."""
    present: Codes
    """Of the ensemble that is used now."""

    @property
    def probs(self) -> Probs:
        """The present probabilities."""
        return probs_of(self.present)


def probs_of(codes: Codes) -> Probs:
    """Return codes as probabilities."""
    return codes.astype(np.float32) / np.float32(MAX_CODE)


@runtime_checkable
class Applied(Protocol):
    """What makes new probabilities with a trained model."""

    def apply(self, model: Any, view: View) -> Codes:  # noqa: ANN401
        """Return the new probabilities of an image, of as many planes as the present ones."""


@runtime_checkable
class Stacker(Applied, Protocol):
    """A kind of second-level model."""

    def gather(
        self, view: View, truth: Int8[np.ndarray, "h w k"], rng: np.random.Generator
    ) -> tuple[Table, Any]:
        """Return features and answers of an image: a row each pixel that is drawn, region, or image."""

    def fit(self, features: Table, answers: Any, *, seed: int) -> Any:  # noqa: ANN401
        """Return the trained model."""


def need_trees() -> Any:  # noqa: ANN401
    """Return scikit-learn's HistGradientBoostingClassifier.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            "masksmith stack: scikit-learn is not installed; run `pip install masksmith[trees]`"
        ) from error
    return HistGradientBoostingClassifier


@dataclass(frozen=True)
class Trees:
    """A classifier; where all answers were the same, it gives that one."""

    model: Any
    classes: tuple[int, ...]

    @classmethod
    def fit(cls, features: Table, answers: Answers, *, seed: int, leaves: int, rate: float) -> "Trees":
        """Train, without an early stop (it would hold out rows of the same images)."""
        found = np.unique(answers)
        if len(found) < 2:
            return cls(None, tuple(int(one) for one in found))
        model = need_trees()(
            max_iter=_TREES, learning_rate=rate, max_leaf_nodes=leaves, l2_regularization=1.0, early_stopping=False,
            random_state=seed,
        )  # fmt: skip
        model.fit(features, answers)
        return cls(model, tuple(int(one) for one in found))

    def probs(self, features: Table, classes: int = 2) -> Float32[np.ndarray, "n k"]:
        """Return the probability of each answer 0 … classes - 1."""
        found = np.zeros((len(features), classes), np.float32)
        found[:, list(self.classes)] = 1.0 if self.model is None else self.model.predict_proba(features)
        return found


# --- pixels ---


def _bands(image: Shaped[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w c"]:
    return image.astype(np.float32)


def _mean(plane: Float32[np.ndarray, "h w"], window: int) -> Float32[np.ndarray, "h w"]:
    return cv2.blur(plane, (window, window), borderType=cv2.BORDER_REFLECT)


def pixel_features(view: View, rows: slice) -> Float32[np.ndarray, "h w f"]:
    """Return the numbers of each pixel in some rows of an image.

    Bands and their mean in 5 x 5 pixels; the present probabilities, their means in 3, 9 and 25 pixels and in the
    image, and the largest; each member's; the place in the image.
    """
    height, width = view.present.shape[:2]
    around = slice(max(0, rows.start - _HALO), min(height, rows.stop + _HALO))
    inner = slice(rows.start - around.start, rows.stop - around.start)
    bands, probs = _bands(view.image[around]), probs_of(view.present[around])
    planes = [bands[inner]]
    planes += [_mean(bands[..., at], _BAND_WINDOW)[inner, :, None] for at in range(bands.shape[2])]
    planes.append(probs[inner])
    planes += [_mean(probs[..., at], one)[inner, :, None] for at in range(probs.shape[2]) for one in _WINDOWS]
    planes += [probs_of(one[rows]) for one in view.members]
    whole = view.present.reshape(-1, view.present.shape[2])
    facts = np.concatenate([whole.mean(axis=0), whole.max(axis=0)]).astype(np.float32) / MAX_CODE
    shape = (rows.stop - rows.start, width)
    planes.append(np.broadcast_to(facts, (*shape, len(facts))))
    down, right = np.mgrid[rows, 0:width].astype(np.float32)
    planes.append(np.stack([down / height, right / width], axis=-1))
    return np.concatenate(planes, axis=-1).astype(np.float32, copy=False)


def _parts(view: View) -> Iterator[slice]:
    height, width = view.present.shape[:2]
    step = max(1, _AT_ONCE // width)
    for first in range(0, height, step):
        yield slice(first, min(height, first + step))


@dataclass(frozen=True)
class PixelTrees:
    """Trees of pixels: one classifier of all classes, or one of each label.

    Attributes:
        drawn: Pixels that are drawn of each image.
        exclusive: Whether planes are classes that exclude each other.
        outputs: Planes that are predicted; those beyond stay as they are.
    """

    drawn: int
    exclusive: bool
    outputs: int

    def gather(
        self, view: View, truth: Int8[np.ndarray, "h w k"], rng: np.random.Generator
    ) -> tuple[Table, Int8[np.ndarray, "n k"]]:
        """Draw judged pixels; answers are the planes of the truth."""
        judged = np.flatnonzero((truth >= 0).all(axis=-1))
        chosen = np.sort(rng.permutation(judged)[: self.drawn])
        width, found, answers = truth.shape[1], [], truth.reshape(-1, truth.shape[2])[chosen]
        for rows in _parts(view):
            inside = chosen[(chosen >= rows.start * width) & (chosen < rows.stop * width)]
            if len(inside):
                features = pixel_features(view, rows)
                found.append(features.reshape(-1, features.shape[2])[inside - rows.start * width])
        return (np.concatenate(found) if found else np.zeros((0, 0), np.float32)), answers

    def fit(self, features: Table, answers: Int8[np.ndarray, "n k"], *, seed: int) -> list[Trees]:
        """Train."""
        if self.exclusive:
            answers = answers.argmax(axis=1).astype(np.int8)[:, None]
        return [
            Trees.fit(features, answers[:, at], seed=seed, leaves=31, rate=0.1)
            for at in range(answers.shape[1])
        ]

    def apply(self, model: list[Trees], view: View) -> Codes:
        """Predict each pixel."""
        found = view.present.copy()
        for rows in _parts(view):
            features = pixel_features(view, rows)
            flat = features.reshape(-1, features.shape[2])
            probs = (
                model[0].probs(flat, self.outputs)
                if self.exclusive
                else np.stack([one.probs(flat)[:, 1] for one in model], axis=1)
            )
            found[rows, :, : self.outputs] = to_codes(probs.reshape(*features.shape[:2], -1))
        return found


# --- regions ---


@dataclass(frozen=True)
class _Region:
    plane: int
    where: Bool[np.ndarray, "h w"]
    """Inside the box."""
    box: tuple[slice, slice]
    features: Float32[np.ndarray, " f"]


def _regions(view: View, outputs: int) -> Iterator[_Region]:
    """Yield the connected regions above 0.5 of each plane."""
    height, width = view.present.shape[:2]
    area = height * width
    for plane in range(outputs):
        above = (view.present[..., plane] > MAX_CODE // 2).astype(np.uint8)
        num, labels, stats, centres = cv2.connectedComponentsWithStats(above, connectivity=8)
        largest = stats[1:, cv2.CC_STAT_AREA].max(initial=1)
        mean = float(view.present[..., plane].mean()) / MAX_CODE
        for at in range(1, num):
            left, top, wide, high, size = (int(one) for one in stats[at])
            box = slice(top, top + high), slice(left, left + wide)
            wider = (
                slice(max(0, top - _RING), min(height, top + high + _RING)),
                slice(max(0, left - _RING), min(width, left + wide + _RING)),
            )
            own = labels[wider] == at
            ring = (
                cv2.dilate(own.astype(np.uint8), np.ones((2 * _RING + 1,) * 2, np.uint8)).astype(bool) & ~own
            )
            here = probs_of(view.present[(*wider, plane)])
            each = [float(one[(*wider, plane)][own].mean()) / MAX_CODE for one in view.members]
            bands = _bands(view.image[wider])[own]
            edge = int(top == 0) + int(left == 0) + int(top + high == height) + int(left + wide == width)
            numbers = [
                size / area, size / largest, num - 1, high / height, wide / width, size / (high * wide), edge,
                centres[at][1] / height, centres[at][0] / width, mean, here[own].mean(), here[own].max(),
                here[own].std(), here[ring].mean() if ring.any() else np.nan, *each, *bands.mean(axis=0),
                *bands.std(axis=0), plane,
            ]  # fmt: skip
            yield _Region(plane, labels[box] == at, box, np.array(numbers, np.float32))


@dataclass(frozen=True)
class RegionTrees:
    """Trees of connected regions.

    Attributes:
        outputs: Planes whose regions are judged.
    """

    outputs: int

    def gather(
        self, view: View, truth: Int8[np.ndarray, "h w k"], rng: np.random.Generator
    ) -> tuple[Table, Answers]:
        """Return all regions; right is one of which more than half is foreground, of what is judged of it."""
        del rng
        rows, answers = [], []
        for region in _regions(view, self.outputs):
            own = truth[(*region.box, region.plane)][region.where]
            if (own >= 0).any():
                rows.append(region.features)
                answers.append(int(own[own >= 0].mean() > 0.5))
        return (np.stack(rows) if rows else np.zeros((0, 0), np.float32)), np.array(answers, np.int8)

    def fit(self, features: Table, answers: Answers, *, seed: int) -> Trees:
        """Train."""
        return _few(features, answers, seed=seed)

    def apply(self, model: Trees, view: View) -> Codes:
        """Multiply the probabilities of a region that is rather wrong by the chance that it is right."""
        found, regions = view.present.copy(), list(_regions(view, self.outputs))
        if not regions:
            return found
        right = model.probs(np.stack([one.features for one in regions]))[:, 1]
        for region, chance in zip(regions, right, strict=True):
            if chance < 0.5:
                part = found[(*region.box, region.plane)]
                part[region.where] = np.rint(part[region.where] * float(chance)).astype(np.uint16)
        return found


# --- images ---


def image_features(view: View) -> Float32[np.ndarray, " f"]:
    """Return numbers of an image as a whole: of each member's probabilities, their differences, its bands."""
    numbers: list[float] = []
    for codes in [view.present, *view.members]:
        probs = probs_of(codes)
        for at in range(probs.shape[2]):
            plane = probs[..., at]
            numbers += [plane.mean(), plane.max(), plane.std(), *np.quantile(plane, [0.5, 0.9, 0.99])]
            numbers += [(plane > share).mean() for share in _SHARES]
            num, _, stats, _ = cv2.connectedComponentsWithStats((plane > 0.5).astype(np.uint8))
            numbers += [num - 1, stats[1:, cv2.CC_STAT_AREA].max(initial=0) / plane.size]
            sure = plane[plane > 0.5]
            numbers.append(float(sure.mean()) if sure.size else np.nan)
    if len(view.members) > 1:
        numbers.append(float(np.std([probs_of(one) for one in view.members], axis=0).mean()))
    bands = _bands(view.image)
    numbers += [*np.nanmean(bands, axis=(0, 1)), *np.nanstd(bands, axis=(0, 1))]
    return np.array(numbers, np.float32)


@dataclass(frozen=True)
class ImageTrees:
    """Trees of images: is there any foreground?

    Attributes:
        outputs: Planes that are foreground.
    """

    outputs: int

    def gather(
        self, view: View, truth: Int8[np.ndarray, "h w k"], rng: np.random.Generator
    ) -> tuple[Table, Answers]:
        """Return one row."""
        del rng
        return image_features(view)[None], np.array([int((truth[..., : self.outputs] > 0).any())], np.int8)

    def fit(self, features: Table, answers: Answers, *, seed: int) -> Trees:
        """Train."""
        return _few(features, answers, seed=seed)

    def apply(self, model: Trees, view: View) -> Codes:
        """Multiply all probabilities by the chance that there is something, where that is below a half."""
        chance = float(model.probs(image_features(view)[None])[0, 1])
        found = view.present.copy()
        if chance < 0.5:
            planes = found[..., : self.outputs]
            planes[...] = np.rint(planes * chance).astype(np.uint16)
        return found


@dataclass(frozen=True)
class BothTrees:
    """Regions and gate together: what either takes away is gone. They are trained on their own."""

    regions: RegionTrees
    gate: ImageTrees

    def apply(self, model: tuple[Trees, Trees], view: View) -> Codes:
        """Return the smaller of both probabilities."""
        return np.minimum(self.regions.apply(model[0], view), self.gate.apply(model[1], view))


def _few(features: Table, answers: Answers, *, seed: int) -> Trees:
    """Train small trees: there are few regions and images.

    Raises:
        InputError: Too few of one of the answers.
    """
    counts = np.bincount(answers, minlength=2)
    if counts.min() < _LEAST_EACH:
        raise InputError(f"{counts[0]} are not, {counts[1]} are; trees need {_LEAST_EACH} of both")
    return Trees.fit(features, answers, seed=seed, leaves=8, rate=0.05)
