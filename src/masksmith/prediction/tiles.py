"""Tiles: how a large image is cut into overlapping parts, and how their probabilities become one map, band by band.

A plan is the product of two axes, and covers every pixel. Its starts are symmetric: a mirrored or turned image has the
mirrored or turned tiles, so that a view of test-time augmentation can be applied to a tile as well as to the image.
Along each axis the shares of the tiles that cover a pixel add up to 1: nothing has to be divided at the end, and rows
that no later tile touches are ready.

Sources:
    Gaussian weights: nnU-Net, Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z
    Pyramid weights: the linear blending of image mosaics, Szeliski 2006, https://doi.org/10.1561/0600000009
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from masksmith.core.arrays import Float, Int, Shaped
from masksmith.core.config import look_up
from masksmith.data.array_store import Images
from masksmith.prediction.config import PredictionConfig
from masksmith.preprocess import CV2_BORDERS, Border, SizeConfig, canvas_of, resize

HW = tuple[int, int]


# --- weights ------------------------------------------------------------------------------------------------


def _constant(side: int) -> Float[np.ndarray, " side"]:
    """All pixels alike."""
    return np.ones(side)


def _gaussian(side: int) -> Float[np.ndarray, " side"]:
    """A bell around the middle; sigma is an eighth of the side."""
    return np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 8)) ** 2)


def _pyramid(side: int) -> Float[np.ndarray, " side"]:
    """Falling in a line from the middle to the ends."""
    places = np.arange(side)
    return np.minimum(places + 1, side - places).astype(np.float64)


TILE_WEIGHTS: dict[str, Callable[[int], Float[np.ndarray, " side"]]] = {
    "constant": _constant,
    "gaussian": _gaussian,
    "pyramid": _pyramid,
}
"""Side of a tile -> the weight of its pixels along one axis, all above 0 and symmetric; a tile's is the product."""


# --- the plan -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """The tiles along the rows or the columns of an image."""

    length: int
    """Pixels of the image."""
    side: int
    """Pixels of a tile."""
    starts: tuple[int, ...]
    """First pixel of each tile, ascending and symmetric; a tile may reach beyond the image."""

    def __post_init__(self) -> None:
        mirrored = tuple(self.length - self.side - start for start in reversed(self.starts))
        assert self.starts == mirrored, self
        assert self.counts.min() > 0, self

    @cached_property
    def counts(self) -> Int[np.ndarray, " length"]:
        """How many tiles cover each pixel, at least 1."""
        return self._summed(np.ones(self.side, np.int64))

    def _summed(self, values: Shaped[np.ndarray, " side"]) -> Shaped[np.ndarray, " length"]:
        """Return the sum over all tiles, of which each has these values."""
        found = np.zeros(self.length, values.dtype)
        for start in self.starts:
            part = self.on_image(start)
            found[part] += values[part.start - start : part.stop - start]
        return found

    def on_image(self, start: int) -> slice:
        """Return the pixels of the image that a tile covers."""
        return slice(max(0, start), min(self.length, start + self.side))

    def shares(self, weights: str) -> Float[np.ndarray, "tiles side"]:
        """Return each tile's share of its pixels: the shares of a pixel add up to 1; 0 beyond the image."""
        own = look_up(TILE_WEIGHTS, weights, where="prediction.tile_weights")(self.side)
        total = self._summed(own)
        found = np.zeros((len(self.starts), self.side), np.float32)
        for share, start in zip(found, self.starts, strict=True):
            part = self.on_image(start)
            inside = slice(part.start - start, part.stop - start)
            share[inside] = own[inside] / total[part]
        return found


def axis_of(length: int, tile: int, *, overlap: float, ring: int = 1) -> Axis:
    """Return the tiles along an axis.

    They lie as evenly as whole pixels allow, no further apart than the overlap says. An image that is no longer than a
    tile has one tile of its own length.

    Args:
        length: Pixels of the image, at least 1.
        tile: Pixels of a tile, at least ``ring``.
        overlap: The least share of a tile that it has in common with the next, 0 up to below 1.
        ring: How often at least the first and the last pixel are covered; above 1 further tiles reach beyond both ends.
    """
    if length < ring:
        return Axis(length, length + ring - 1, tuple(range(1 - ring, 1)))
    side = min(length, tile)
    room, step = length - side, max(1, math.floor(side * (1 - overlap)))
    num = -(-room // step) + 1
    num += room % 2 and num % 2  # an odd number has one in the middle, which must be a whole pixel
    left = [-(-at * room // (num - 1)) for at in range(num // 2)]
    middle = [room // 2] if num % 2 else []
    even = [*left, *middle, *(room - start for start in reversed(left))]
    beyond = [side // ring * at for at in range(ring - 1, 0, -1)]
    return Axis(length, side, (*(-far for far in beyond), *even, *(room + far for far in reversed(beyond))))


@dataclass(frozen=True)
class TilePlan:
    """The tiles of an image."""

    rows: Axis
    columns: Axis

    @property
    def hw(self) -> HW:
        """Height and width of a tile."""
        return self.rows.side, self.columns.side

    @property
    def image_hw(self) -> HW:
        """Height and width of the image, resized."""
        return self.rows.length, self.columns.length

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def is_last(self, row: int, column: int) -> bool:
        """Whether no tile comes after this one."""
        return (row, column) == (len(self.rows.starts) - 1, len(self.columns.starts) - 1)

    def coverage(self) -> Int[np.ndarray, "h w"]:
        """Return how many tiles cover each pixel."""
        return np.outer(self.rows.counts, self.columns.counts)

    @property
    def edge_cover(self) -> int:
        """How many tiles at least cover a pixel of the image's edges."""
        rows, columns = self.rows.counts, self.columns.counts
        across = min(rows[0], rows[-1]) * columns.min()
        down = min(columns[0], columns[-1]) * rows.min()
        return int(min(across, down))


@dataclass(frozen=True)
class Tiling:
    """The rule that makes plans."""

    hw: HW
    """Height and width of a tile, in pixels of the resized image."""
    overlap: float = 0.25
    """The least share of a tile's side that it has in common with the next."""
    weights: str = "gaussian"
    """A key of TILE_WEIGHTS."""
    edge_cover: int = 1
    """How many tiles at least cover each pixel of the image's edges."""

    @classmethod
    def of(cls, config: PredictionConfig) -> "Tiling | None":
        """Return the rule of a configuration; None where images are predicted whole."""
        if config.tile_hw is None:
            return None
        return cls(config.tile_hw, config.overlap, config.tile_weights, config.edge_cover)

    def plan(self, hw: HW) -> TilePlan | None:
        """Return the tiles of an image of (height, width); None where it is no larger than a tile: it stays whole."""
        return _plan(self, hw)


def passes_of(tiling: Tiling | None, size: SizeConfig, hw: HW, *, divisor: int) -> tuple[int, HW]:
    """Return how often an image of (height, width) goes through the model for one view, and on which canvas.

    Raises:
        InputError: As canvas_of.
    """
    plan = None if tiling is None else tiling.plan(size.inner_hw(hw))
    if plan is None:
        return 1, canvas_of(size, [hw], divisor=divisor)
    return len(plan), canvas_of(SizeConfig(border=size.border), [plan.hw], divisor=divisor)


@lru_cache(maxsize=1024)
def _plan(tiling: Tiling, hw: HW) -> TilePlan | None:
    if hw[0] <= tiling.hw[0] and hw[1] <= tiling.hw[1]:
        return None
    for ring in range(1, tiling.edge_cover + 1):
        rows, columns = (
            axis_of(length, tile, overlap=tiling.overlap, ring=ring)
            for length, tile in zip(hw, tiling.hw, strict=True)
        )
        plan = TilePlan(rows, columns)
        if plan.edge_cover >= tiling.edge_cover:
            return plan
    raise AssertionError(
        (tiling, hw)
    )  # with as large a ring each of the two axes alone covers the edges often enough


# --- cutting ------------------------------------------------------------------------------------------------


def _places(start: int, side: int, length: int, border: Border) -> Int[np.ndarray, " side"]:
    """Return which pixel of an axis each pixel of a tile shows: beyond the ends, what the border shows."""
    kind = cv2.BORDER_REPLICATE if border == "zero" else CV2_BORDERS[border]
    return np.array([cv2.borderInterpolate(at, length, kind) for at in range(start, start + side)])


def cut(
    read: Callable[[slice, slice], Shaped[np.ndarray, "_ _ c"]],
    plan: TilePlan,
    row: int,
    column: int,
    border: Border,
) -> Shaped[np.ndarray, "th tw c"]:
    """Return a tile of an image; only the part of the image that it shows is read.

    Args:
        read: Returns the given rows and columns of the image.
        plan: The tiles of the image.
        row: Which tile along the rows.
        column: Which tile along the columns.
        border: What is seen beyond the image.
    """
    axes = ((plan.rows, plan.rows.starts[row]), (plan.columns, plan.columns.starts[column]))
    if all(start >= 0 and start + axis.side <= axis.length for axis, start in axes):
        rows, columns = (slice(start, start + axis.side) for axis, start in axes)
        return read(rows, columns)
    seen = [_places(start, axis.side, axis.length, border) for axis, start in axes]
    first = [int(places.min()) for places in seen]
    rows, columns = (slice(low, int(places.max()) + 1) for low, places in zip(first, seen, strict=True))
    tile = read(rows, columns)[np.ix_(seen[0] - first[0], seen[1] - first[1])]
    if border == "zero":
        for at, (axis, start) in enumerate(axes):
            places = np.arange(start, start + axis.side)
            outside = (places < 0) | (places >= axis.length)
            tile[(outside, slice(None)) if at == 0 else (slice(None), outside)] = 0
    return tile


class Cutter:
    """Cuts tiles out of the images of a store; of images that are resized the last one is kept, resized."""

    def __init__(self, images: Images, size: SizeConfig) -> None:
        self.images, self.size = images, size
        self._resized: tuple[str, np.ndarray] | None = None

    def tile(self, name: str, plan: TilePlan, row: int, column: int) -> Shaped[np.ndarray, "th tw c"]:
        """Return a tile of an image.

        Raises:
            InputError: The image was damaged since it was written.
        """

        def read(rows: slice, columns: slice) -> np.ndarray:
            if self.size.resize_hw is None:
                return self.images.window(name, rows, columns)
            if self._resized is None or self._resized[0] != name:
                self._resized = (name, resize(self.images.checked(name), self.size.resize_hw))
            return self._resized[1][rows, columns]

        return cut(read, plan, row, column, self.size.border)


# --- putting together ---------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Rows of the probabilities of an image."""

    first: int
    """Row of the image that is the first one here."""
    probs: Float[np.ndarray, "n w k"]


class _Rows:
    """Rows that come one after another, at another height and width: bilinear, pixel centres at half, as ``resize``."""

    def __init__(self, hw: HW, target_hw: HW) -> None:
        self.low, part = _lookup(hw[0], target_hw[0])
        self.high, self.part = np.minimum(self.low + 1, hw[0] - 1), part[:, None, None]
        self.width = target_hw[1]
        self._kept: np.ndarray | None = None
        self._first = 0  # row of the first one kept

    def take(self, given: Part, done: int) -> Part:
        """Take the next rows, and return those from target row ``done`` on that are known now."""
        own = resize(np.ascontiguousarray(given.probs), (given.probs.shape[0], self.width))
        if self._kept is None or not len(self._kept):
            self._first, self._kept = given.first, own
        else:
            self._kept = np.concatenate([self._kept, own])
        known = int(np.searchsorted(self.high, self._first + len(self._kept)))
        low, high = self.low[done:known] - self._first, self.high[done:known] - self._first
        part = self.part[done:known]
        probs = self._kept[low] * (1 - part) + self._kept[high] * part
        if known < len(self.low):
            needed = min(int(self.low[known]) - self._first, len(self._kept))
            self._kept, self._first = self._kept[needed:].copy(), self._first + needed
        return Part(done, probs)


def first_needed(plan: TilePlan, true_hw: HW, done: int) -> int:
    """Return the first row of the resized image that the rows from ``done`` on of the true size depend on."""
    if true_hw[0] == plan.rows.length:
        return done
    return int(_lookup(plan.rows.length, true_hw[0])[0][done])


def _lookup(length: int, target: int) -> tuple[Int[np.ndarray, " target"], Float[np.ndarray, " target"]]:
    """Return where each pixel of an axis of another length looks: the pixel before, and the share of the next."""
    place = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, length - 1)
    low = np.floor(place).astype(np.int64)
    return low, (place - low).astype(np.float32)


class Assembly:
    """The probabilities of one image, from its tiles in the order of the plan: rows are given away as they are ready.

    It holds as many rows as a tile is high, at the width of the image.
    """

    def __init__(self, plan: TilePlan, weights: str, true_hw: HW, *, done: int = 0) -> None:
        """Begin at row ``done`` of the image: what tiles say of the rows before it is left out.

        Args:
            plan: The tiles, of the resized image.
            weights: A key of TILE_WEIGHTS.
            true_hw: Height and width of the image before it was resized.
            done: Its first rows that are not wanted.
        """
        self.plan, self.done = plan, done
        self.rows, self.columns = plan.rows.shares(weights), plan.columns.shares(weights)
        self._scaled = None if true_hw == plan.image_hw else _Rows(plan.image_hw, true_hw)
        self._first = first_needed(plan, true_hw, done)
        self._sum: np.ndarray | None = None  # rows of the resized image from _first on

    def add(self, row: int, column: int, probs: Float[np.ndarray, "th tw k"]) -> Part | None:
        """Add a tile; after the last one of its row of the plan, return the rows that are ready, if there are any."""
        plan = self.plan
        if self._sum is None:
            self._sum = np.zeros((plan.rows.side, plan.columns.length, probs.shape[2]), np.float32)
        y, x = plan.rows.starts[row], plan.columns.starts[column]
        rows, columns = plan.rows.on_image(y), plan.columns.on_image(x)
        rows = slice(max(rows.start, self._first), rows.stop)
        if rows.start < rows.stop:
            inside = slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x)
            shares = np.outer(self.rows[row][inside[0]], self.columns[column][inside[1]])
            self._sum[rows.start - self._first : rows.stop - self._first, columns] += (
                probs[inside] * shares[..., None]
            )
        is_last = column == len(plan.columns.starts) - 1
        return self._ready(row) if is_last else None

    def _ready(self, row: int) -> Part | None:
        assert self._sum is not None
        starts, height = self.plan.rows.starts, self.plan.rows.length
        until = height if row == len(starts) - 1 else min(max(starts[row + 1], 0), height)
        count = until - self._first
        if count <= 0:
            return None
        ready = Part(self._first, np.minimum(self._sum[:count], 1))
        self._sum[:-count] = self._sum[count:]
        self._sum[-count:] = 0
        self._first = until
        if self._scaled is not None:
            ready = self._scaled.take(ready, self.done)
        self.done = ready.first + len(ready.probs)
        return ready if len(ready.probs) else None


def tiles_of(plan: TilePlan) -> Iterator[tuple[int, int]]:
    """Yield (row, column) of each tile, row by row."""
    for row in range(len(plan.rows.starts)):
        for column in range(len(plan.columns.starts)):
            yield row, column
