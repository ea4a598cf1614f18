"""One pass over the decoded images and one over the masks: the numbers of a data set that a person looks at.

Of a set of any size little is kept: a row of numbers an image, how often each object area occurs, sums over a grid for
the mean mask, and a sample of the pixels for percentiles.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from masksmith.core.arrays import Bool, Float, Int, Shaped, foreground_pixels, judged_pixels
from masksmith.core.progress import track
from masksmith.data.catalog import BACKGROUND
from masksmith.data.look import band_range, thinned, thinning
from masksmith.data.store import Store
from masksmith.data.target import Target

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
GRID = 64
"""Rows and columns of a mean mask."""
_SAMPLED = 400_000  # pixels of all images together that percentiles are taken from


@dataclass(frozen=True)
class BandTally:
    """What one band holds over a set of images; NaN where it holds nothing."""

    low: float
    high: float
    mean: float
    std: float
    no_data: float
    """Share of pixels without data (NaN)."""
    sample: Float[np.ndarray, " p"]
    """Values of pixels in even steps, without NaN: all of them in a small set."""

    def percentiles(self) -> dict[int, float]:
        """Return each of PERCENTILES -> value."""
        if not len(self.sample):
            return dict.fromkeys(PERCENTILES, math.nan)
        return dict(zip(PERCENTILES, np.percentile(self.sample, PERCENTILES).tolist(), strict=True))


def tally_bands(images: Store) -> list[BandTally]:
    """Look at every pixel of a store once; percentiles are of about 400,000 pixels in even steps.

    Raises:
        InputError: An image was damaged since it was decoded.
    """
    count = images.channels
    low, high = np.full(count, np.nan), np.full(count, np.nan)
    known, total, squares = np.zeros(count), np.zeros(count), np.zeros(count)
    pixels, samples = 0, []
    each = max(16, _SAMPLED // max(1, len(images)))
    for name in track(images, total=len(images), what=f"measuring {images.path.stem}"):
        step = _even_step(images.shape(name), each)
        first = 0
        for part in images.parts(name):
            least, most = band_range(part)
            low, high = np.fmin(low, least), np.fmax(high, most)
            lines = part.reshape(-1, count)
            samples.append(lines[first::step].astype(np.float32))
            first = (first - len(lines)) % step
            pixels += len(lines)
            there, sums, powers = _sums(lines)
            known, total, squares = known + there, total + sums, squares + powers
    sample = np.concatenate(samples) if samples else np.zeros((0, count), np.float32)
    mean = np.divide(total, known, out=np.full(count, np.nan), where=known > 0)
    square = np.divide(squares, known, out=np.full(count, np.nan), where=known > 0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return [
        BandTally(
            float(low[at]),
            float(high[at]),
            float(mean[at]),
            float(std[at]),
            float(1 - known[at] / pixels) if pixels else 0.0,
            sample[np.isfinite(sample[:, at]), at],
        )
        for at in range(count)
    ]


def _even_step(hw: tuple[int, int], most: int) -> int:
    """Return the step by which about ``most`` pixels of an image are taken, in no columns of their own."""
    height, width = hw
    step = max(1, -(-height * width // most))
    while step > 1 and math.gcd(step, width) > 1:
        step += 1
    return step


def _sums(lines: Shaped[np.ndarray, "p c"]) -> tuple[Shaped[np.ndarray, " c"], ...]:
    """Return of each band the pixels with data, their sum and the sum of their squares."""
    if lines.dtype == np.uint8:  # a table of 256 counts is exact and fast
        counts = np.stack([np.bincount(lines[:, at], minlength=256) for at in range(lines.shape[1])])
        values = np.arange(256, dtype=np.float64)
        return counts.sum(axis=1), counts @ values, counts @ values**2
    wide = lines.astype(np.float64)
    there = np.isfinite(wide)
    wide[~there] = 0
    return there.sum(axis=0), wide.sum(axis=0), (wide**2).sum(axis=0)


@dataclass(frozen=True)
class MaskTally:
    """What the masks hold: n images, k classes (of one foreground or of objects 1)."""

    names: tuple[str, ...]
    """Of the classes."""
    ids: list[str]
    coverage: Float[np.ndarray, " n"]
    """Share of foreground among the judged pixels, 0 where none is judged."""
    unjudged: Float[np.ndarray, " n"]
    """Share of pixels that are not judged."""
    pixels: Int[np.ndarray, "n k"]
    """Pixels of each class."""
    judged: Int[np.ndarray, " n"]
    """Pixels that are judged."""
    objects: Int[np.ndarray, "n k"]
    """Number of objects: those of the label map, or connected regions (8 neighbours); none of a background."""
    areas: list[Counter[int]]
    """Of each class, area in pixels -> objects of that area."""
    mean_masks: Float[np.ndarray, "k 64 64"]
    """Share of the images with the class at each place, every image stretched to a square."""
    thinned: bool
    """Whether some masks are so large that every few rows and columns were counted."""

    @property
    def together(self) -> Int[np.ndarray, "k k"]:
        """In how many images two classes are both there; on the diagonal: one."""
        there = (self.pixels > 0).astype(np.int64)
        return there.T @ there

    @property
    def shares(self) -> Float[np.ndarray, " k"]:
        """Share of each class among the judged pixels of all images."""
        return np.asarray(self.pixels.sum(axis=0) / max(1, int(self.judged.sum())))


def tally_masks(masks: Store, target: Target) -> MaskTally:
    """Look at every mask once.

    Raises:
        InputError: A mask was damaged since it was decoded.
    """
    names = target.classes
    num, kinds = len(masks), len(names)
    coverage, unjudged = np.zeros(num), np.zeros(num)
    judged = np.zeros(num, np.int64)
    pixels, objects = np.zeros((num, kinds), np.int64), np.zeros((num, kinds), np.int64)
    areas: list[Counter[int]] = [Counter() for _ in names]
    there, counted = np.zeros((kinds, GRID, GRID)), np.zeros((GRID, GRID))
    coarse = False
    for at, name in enumerate(track(masks, total=num, what="measuring masks")):
        scale = thinning(masks.shape(name)) ** 2  # pixels that one stands for
        coarse = coarse or scale > 1
        mask = thinned(masks, name)
        is_judged = np.asarray(judged_pixels(mask).any(axis=-1))
        known = int(is_judged.sum())
        judged[at] = known * scale
        coverage[at] = foreground_pixels(mask).any(axis=-1).sum() / known if known else 0
        unjudged[at] = 1 - known / is_judged.size
        counted += _on_grid(is_judged)
        for kind, plane in _planes(mask, target):
            pixels[at, kind] = int(plane.sum()) * scale
            there[kind] += _on_grid(plane)
            if not (target.exclusive and kind == 0 and names[0] == BACKGROUND):
                found = _object_areas(mask[..., 0] if target.task == "instances" else plane)
                objects[at, kind] = len(found)
                areas[kind].update((found * scale).tolist())
    mean = np.divide(there, counted, out=np.zeros_like(there), where=counted > 0)
    return MaskTally(names, list(masks), coverage, unjudged, pixels, judged, objects, areas, mean, coarse)


def _planes(
    mask: Shaped[np.ndarray, "h w c"], target: Target
) -> Iterator[tuple[int, Bool[np.ndarray, "h w"]]]:
    """Yield (class, where it is) of the classes that a mask holds."""
    if target.exclusive:
        counts = np.bincount(mask.ravel(), minlength=len(target.classes))[: len(target.classes)]
        for kind in np.flatnonzero(counts).tolist():
            yield kind, mask[..., 0] == kind
        return
    for kind in range(mask.shape[2]):
        plane = np.asarray(foreground_pixels(mask[..., kind]))
        if plane.any():
            yield kind, plane


def _object_areas(plane: Shaped[np.ndarray, "h w"]) -> Int[np.ndarray, " objects"]:
    """Return the areas of the objects of a label map, or of the connected regions of a plane."""
    if plane.dtype != bool:
        return np.unique(plane[plane > 0], return_counts=True)[1]
    stats = cv2.connectedComponentsWithStats(plane.astype(np.uint8), connectivity=8)[2]
    return np.asarray(stats[1:, cv2.CC_STAT_AREA])


def _on_grid(plane: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "64 64"]:
    return np.asarray(cv2.resize(plane.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA))


def area_quantiles(areas: Counter[int], shares: Sequence[float]) -> list[int]:
    """Return the area that so large a share of the objects does not exceed; empty without objects."""
    if not areas:
        return []
    values = np.array(sorted(areas))
    reached = np.cumsum([areas[int(value)] for value in values])
    at = np.searchsorted(reached, np.array(shares) * reached[-1], side="left")
    return [int(values[min(one, len(values) - 1)]) for one in at]
