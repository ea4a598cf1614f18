"""An image and its mask, moved onto the canvas in one interpolation by OpenCV.

Where the map is whole pixels (flips, transposes, windows, padding) they are copied. Otherwise ``warpAffine`` serves an
affine map, ``warpPerspective`` a projective one, and ``remap`` the rest.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from masksmith.augment.geometry import (
    Lattice,
    Matrix,
    Motion,
    inverse_of,
    is_turned,
    lattice_of,
    motion_matrix,
    turned_hw,
    unturn,
)
from masksmith.core.arrays import IGNORE, AnyMask, Float, Image, Int32, Shaped, UInt8
from masksmith.data.store import Stored
from masksmith.preprocess import CV2_BORDERS, Border, Pad

MovedMask = UInt8[np.ndarray, "H W *k"] | Int32[np.ndarray, "H W"]
Plane = Shaped[np.ndarray, "_ _"]

_LARGEST_PAD = 4.0  # a source of more than so many canvases is not padded beforehand
_MARGIN = 2  # pixels around what is looked at: bilinear interpolation needs one


@dataclass(frozen=True)
class Source:
    """The part of the image that a warp reads, and the map from the canvas to its pixels."""

    rows: slice
    columns: slice
    pad: Pad
    mode: int
    """OpenCV's border mode outside the padded part."""
    matrix: Matrix
    """The map, if there is no lattice."""
    lattice: Lattice | None

    @property
    def is_affine(self) -> bool:
        """Whether ``matrix`` is the whole map and affine."""
        return self.lattice is None and self.matrix[2].tolist() == [0, 0, 1]

    def part(self, array: np.ndarray | Stored) -> np.ndarray:
        """Cut the part out of an image or mask, and pad it."""
        part, pad = np.asarray(array[self.rows, self.columns]), self.pad
        if not (pad.top or pad.bottom or pad.left or pad.right):
            return np.ascontiguousarray(part)
        if array.ndim == 3:
            return pad.apply(part)
        return pad.apply(part[..., None])[..., 0]

    @cached_property
    def field(self) -> Float[np.ndarray, "H W 2"]:
        """The lattice, enlarged: where each pixel of the canvas looks (x, y), and a margin of one step before it."""
        assert self.lattice is not None
        size = [side * self.lattice.step for side in self.lattice.xy.shape[1::-1]]
        return cv2.resize(self.lattice.xy, size, interpolation=cv2.INTER_LINEAR)

    def from_corner(self, y: int, x: int) -> "Source":
        """Return the same (affine) map from a part of the canvas whose first pixel is (y, x)."""
        (a, b, c), (d, e, f), last = self.matrix.tolist()
        return replace(self, matrix=np.array([(a, b, a * x + b * y + c), (d, e, d * x + e * y + f), last]))

    def look(self, plane: np.ndarray, hw: tuple[int, int], interpolation: int) -> np.ndarray:
        """Warp one to four channels of the part."""
        if self.lattice is not None:
            step = self.lattice.step
            field = self.field[step : step + hw[0], step : step + hw[1]]
            no_map: Any = None  # x and y stand together in the first map; OpenCV's stubs do not know that
            return cv2.remap(plane, field, no_map, interpolation, borderMode=self.mode)
        flags = interpolation | cv2.WARP_INVERSE_MAP
        if self.is_affine:
            return cv2.warpAffine(plane, self.matrix[:2], hw[::-1], flags=flags, borderMode=self.mode)
        return cv2.warpPerspective(plane, self.matrix, hw[::-1], flags=flags, borderMode=self.mode)


def _reach(low: float, high: float, size: int) -> tuple[slice, int, int]:
    """Return which pixels of an axis are needed, and how many beyond each end.

    With a reflecting border, as many pixels inside an end are needed as beyond it.
    """
    first, last = math.floor(low) - _MARGIN, math.ceil(high) + _MARGIN + 1
    before, after = max(0, -first), max(0, last - size)
    start = min(max(0, first), max(0, size - after - 1))
    stop = max(min(size, last), min(size, before + 1))
    return slice(start, stop), before, after


def _seen(inverse: Matrix, canvas_hw: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Return the smallest and largest x and y that the canvas reads; None where it reaches beyond the horizon."""
    (a, b, c), (d, e, f), (g, h, i) = inverse.tolist()
    xs, ys = [], []
    for y in (0, canvas_hw[0] - 1):
        for x in (0, canvas_hw[1] - 1):
            depth = g * x + h * y + i
            if depth <= 0:
                return None
            xs.append((a * x + b * y + c) / depth)
            ys.append((d * x + e * y + f) / depth)
    return min(xs), max(xs), min(ys), max(ys)


def _source(
    hw: tuple[int, int], canvas_hw: tuple[int, int], border: Border, inverse: Matrix, lattice: Lattice | None
) -> Source:
    """Return which part of the image is read; what is outside the image is padded beforehand.

    With room around the source OpenCV goes a faster way (38 µs in place of 78 for 101 -> 128, 500 for 600 at 512),
    and only the part of a large image that is needed is touched.
    """
    if lattice is None:
        seen = _seen(inverse, canvas_hw)
    else:
        low, high = lattice.xy.min((0, 1)).tolist(), lattice.xy.max((0, 1)).tolist()
        seen = low[0], high[0], low[1], high[1]
    limit = _LARGEST_PAD * max(canvas_hw)
    if seen is None or seen[1] - seen[0] > limit or seen[3] - seen[2] > limit:
        whole = slice(0, hw[0]), slice(0, hw[1])
        return Source(*whole, Pad(0, 0, 0, 0, border), CV2_BORDERS[border], inverse, lattice)
    columns, left, right = _reach(seen[0], seen[1], hw[1])
    rows, top, bottom = _reach(seen[2], seen[3], hw[0])
    pad = Pad(top, bottom, left, right, border)
    x, y = left - columns.start, top - rows.start
    if lattice is not None:
        lattice = Lattice(lattice.xy + np.array((x, y), np.float32), lattice.step)
    moved = inverse.copy()
    moved[0] += x * inverse[2]
    moved[1] += y * inverse[2]
    return Source(rows, columns, pad, cv2.BORDER_CONSTANT, moved, lattice)


def _warp_image(
    image: Image, source: Source, hw: tuple[int, int], extra: Plane | None
) -> tuple[Shaped[np.ndarray, "H W c"], Plane | None]:
    """Interpolate the channels of an image's part; a plane that is taken along fills up a group of three.

    OpenCV moves four channels in the time of one (small images) to two, and three in more than twice that time: three
    are filled up to four, one and two are moved one by one.
    """
    channels = image.shape[2]
    if channels == 1:
        return source.look(image[..., 0], hw, cv2.INTER_LINEAR)[..., None], None
    if channels == 3:
        fourth = np.zeros(image.shape[:2], image.dtype) if extra is None else extra
        if fourth.dtype != image.dtype:
            fourth = fourth * np.uint16(257)  # 255 -> 65535
        warped = source.look(cv2.merge([image, fourth]), hw, cv2.INTER_LINEAR)
        taken = None if extra is None else cv2.extractChannel(warped, 3)
        if taken is not None and taken.dtype == np.uint16:
            taken = ((taken.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB), taken
    planes, moved = list(cv2.split(image)), []
    for at in range(0, channels, 4):
        group = planes[at : at + 4]
        if len(group) < 3:
            moved += [source.look(plane, hw, cv2.INTER_LINEAR) for plane in group]
        else:
            filled = group + [group[-1]] * (4 - len(group))
            moved += list(cv2.split(source.look(cv2.merge(filled), hw, cv2.INTER_LINEAR)))[: len(group)]
    return cv2.merge(moved), None


def _warp_plane(plane: Plane, source: Source, hw: tuple[int, int]) -> Plane:
    """Interpolate a plane that is 0 but for a part; only that part of the canvas where it can land is computed."""
    left, top, width, height = cv2.boundingRect(plane)
    if not width:
        return np.zeros(hw, plane.dtype)
    if not source.is_affine or source.mode != cv2.BORDER_CONSTANT:  # it may land anywhere
        return source.look(plane, hw, cv2.INTER_LINEAR)
    ends = [(x, y) for x in (left - 1, left + width) for y in (top - 1, top + height)]
    (a, b, c), (d, e, f), _ = inverse_of(source.matrix).tolist()
    xs, ys = [a * x + b * y + c for x, y in ends], [d * x + e * y + f for x, y in ends]
    x0, x1 = max(0, math.floor(min(xs)) - 1), min(hw[1], math.ceil(max(xs)) + 2)
    y0, y1 = max(0, math.floor(min(ys)) - 1), min(hw[0], math.ceil(max(ys)) + 2)
    moved = np.zeros(hw, plane.dtype)
    if x1 > x0 and y1 > y0:
        moved[y0:y1, x0:x1] = source.from_corner(y0, x0).look(plane, (y1 - y0, x1 - x0), cv2.INTER_LINEAR)
    return moved


@dataclass(frozen=True)
class Layer:
    """One layer of a mask, ready to be interpolated."""

    values: list[int]
    """Classes that it may hold, ascending, 0 always among them."""
    planes: list[Plane]
    """0 and full for each class; of two without ignored pixels the second only, of one none."""
    ignored: Plane | None
    """1 where it is ignored; None if it is nowhere."""


def _one_hot(mask: UInt8[np.ndarray, "h w"]) -> Layer:
    full = np.uint8(255)
    top = mask.max(initial=0)
    if top == 0:
        return Layer([0], [], None)
    if top == 1:
        return Layer([0, 1], [mask * full], None)
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
    values = [0, *(int(value) for value in np.flatnonzero(counts[1:IGNORE]) + 1)]
    wanted = values if len(values) > 2 or counts[IGNORE] else values[1:]
    if len(values) == 1:
        wanted = []
    ignored = (mask == IGNORE).view(np.uint8) if counts[IGNORE] else None
    return Layer(values, [(mask == value) * full for value in wanted], ignored)


def _decide(layer: Layer, planes: list[Plane], hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Return the class with the largest share of each pixel; of two as large the higher one."""
    if not planes:
        return np.zeros(hw, np.uint8)
    if len(planes) == 1:
        more = (planes[0] > 127).view(np.uint8)
        return more if layer.values[1] == 1 else more * np.uint8(layer.values[1])
    best, target = planes[0], np.zeros(hw, np.uint8)
    for value, plane in zip(layer.values[1:], planes[1:], strict=True):
        target[(plane >= best) & (plane > 0)] = value
        best = np.maximum(best, plane)
    return target


def _warp_labels(labels: AnyMask | Stored, source: Source, hw: tuple[int, int]) -> Int32[np.ndarray, "H W"]:
    """Return the number of the nearest pixel; OpenCV moves no int32, but four bytes as four channels."""
    drawn = source.part(labels)
    planes = drawn.view(np.uint8).reshape(*drawn.shape, 4)
    moved = source.look(planes, hw, cv2.INTER_NEAREST)
    return np.ascontiguousarray(moved).view(np.int32)[..., 0]


def _resample(
    image: Image | Stored, mask: AnyMask | Stored, source: Source, hw: tuple[int, int]
) -> tuple[Shaped[np.ndarray, "H W c"], MovedMask]:
    """Interpolate an image and the layers of its mask."""
    if mask.dtype == np.int32:
        moved, _ = _warp_image(source.part(image), source, hw, None)
        return moved, _warp_labels(mask, source, hw)
    drawn = source.part(mask)
    layers = [_one_hot(one) for one in ([drawn] if drawn.ndim == 2 else list(cv2.split(drawn)))]
    planes = [plane for layer in layers for plane in layer.planes]
    moved, taken = _warp_image(source.part(image), source, hw, planes[0] if planes else None)
    warped = [] if taken is None else [taken]
    warped += [_warp_plane(plane, source, hw) for plane in planes[len(warped) :]]
    targets, at = [], 0
    for layer in layers:
        targets.append(_decide(layer, warped[at : at + len(layer.planes)], hw))
        at += len(layer.planes)
        if layer.ignored is not None:
            targets[-1][source.look(layer.ignored, hw, cv2.INTER_NEAREST) == 1] = IGNORE
    return moved, targets[0] if mask.ndim == 2 else np.stack(targets, axis=-1)


def _is_copy(matrix: Matrix) -> bool:
    (a, b, x), (c, d, y), _ = matrix.tolist()
    return (a, b, c, d) == (1, 0, 0, 1) and x == round(x) and y == round(y)


def _turned(array: np.ndarray, motion: Motion) -> np.ndarray:
    """Return the turned image: transposed, then mirrored; OpenCV does it faster than a copy of numpy's view."""
    if motion.transpose:
        small = array.ndim == 2 or array.shape[2] in (
            1,
            3,
            4,
        )  # cv2.transpose knows only some sizes of a pixel
        axes = (1, 0, *range(2, array.ndim))
        array = (
            cv2.transpose(array).reshape(array.shape[1], array.shape[0], *array.shape[2:])
            if small
            else (np.ascontiguousarray(array.transpose(axes)))
        )
    if motion.hflip or motion.vflip:
        code = -1 if motion.hflip and motion.vflip else int(motion.hflip)
        array = cv2.flip(array, code).reshape(array.shape)
    return array


def _copy(
    array: np.ndarray | Stored, motion: Motion, matrix: Matrix, hw: tuple[int, int], border: Border
) -> np.ndarray:
    """Copy the window that is seen, turned, with its padding."""
    x, y = (int(value) for value in matrix[:2, 2])
    height, width = turned_hw(motion, (array.shape[0], array.shape[1]))
    rows, columns = (max(0, -y), min(height, hw[0] - y)), (max(0, -x), min(width, hw[1] - x))
    ends = np.array([(columns[0], rows[0], 1), (columns[1] - 1, rows[1] - 1, 1)], np.float64)
    seen = np.sort((ends @ unturn(motion, (array.shape[0], array.shape[1])).T)[:, :2].astype(int), axis=0)
    (x0, y0), (x1, y1) = seen.tolist()
    window = _turned(np.ascontiguousarray(array[y0 : y1 + 1, x0 : x1 + 1]), motion)
    top, left = max(0, y), max(0, x)
    pad = Pad(top, hw[0] - top - window.shape[0], left, hw[1] - left - window.shape[1], border)
    layered = window if window.ndim == 3 else window[..., None]
    return pad.apply(layered).reshape(*hw, *array.shape[2:])


def warp(
    image: Image | Stored,
    mask: AnyMask | Stored,
    motion: Motion,
    *,
    canvas_hw: tuple[int, int],
    zoom_yx: tuple[float, float] = (1.0, 1.0),
    border: Border = "reflect",
) -> tuple[Shaped[np.ndarray, "H W c"], MovedMask]:
    """Move an image and its mask onto the canvas.

    Args:
        image: (h, w, c), uint8 or uint16, any number of channels. Of one that is stored only the part that is seen is
            read.
        mask: (h, w) of classes and IGNORE, or (h, w, k) of layers, each of 0, 1 and IGNORE; or the labels of objects,
            int32 (h, w): 0, a number for each, and UNJUDGED. Stored ones alike.
        motion: What was drawn.
        canvas_hw: Height and width of the result.
        zoom_yx: Zoom of rows and columns by the size rule and the training stage.
        border: What is seen outside the image.

    Returns:
        Image (H, W, c) and mask (H, W) or (H, W, k). A mask pixel has the class whose interpolated share is the largest
        (of two as large the higher class; so foreground is where at least one half is), and is ignored where the
        nearest pixel is. Of labels it has the number of the nearest pixel (there may be too many for a share each). No
        value arises that the mask did not have; outside the image, a mask shows what ``border`` says, as the image.
    """
    hw = (image.shape[0], image.shape[1])
    matrix = motion_matrix(motion, hw, canvas_hw, zoom_yx=zoom_yx)
    if motion.is_affine and _is_copy(matrix):
        return (
            _copy(image, motion, matrix, canvas_hw, border),
            _copy(mask, motion, matrix, canvas_hw, border),
        )
    inverse = inverse_of(matrix)
    lattice = lattice_of(motion, inverse, hw, canvas_hw) if motion.distortions else None
    if is_turned(motion):
        inverse = unturn(motion, hw) @ inverse
    source = _source(hw, canvas_hw, border, inverse, lattice)
    return _resample(image, mask, source, canvas_hw)
