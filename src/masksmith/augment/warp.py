"""An image and its mask, moved onto the canvas in one interpolation by OpenCV.

Where the map is whole pixels (flips, transposes, windows, padding) they are copied. Otherwise ``warpAffine`` serves an
affine map, ``warpPerspective`` a projective one, and ``remap`` the rest. The image's channels and the mask's go through
it four at a time: OpenCV moves four channels in the time of one (or two), and three in twice that time.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from masksmith.arrays import IGNORE, Image, Shaped, UInt8
from masksmith.augment.geometry import Lattice, Matrix, Motion, lattice_of, motion_matrix, turned_hw, unturn
from masksmith.preprocess import CV2_BORDERS, Border, Pad

AnyMask = UInt8[np.ndarray, "h w *k"]
Plane = Shaped[np.ndarray, "_ _"]

_LARGEST_PAD = 4.0  # a source of more than so many canvases is not padded beforehand
_NO_MAP = np.empty((0, 0), np.float32)  # x and y stand together in the first map
_MARGIN = 2  # pixels around what is looked at: bilinear interpolation needs one


@dataclass(frozen=True)
class Source:
    """The part of the image that a warp looks at, and the map from the canvas to its pixels."""

    rows: slice
    columns: slice
    pad: Pad
    mode: int
    """OpenCV's border mode for what lies outside the padded part."""
    matrix: Matrix | None
    lattice: Lattice | None

    def part(self, plane: np.ndarray) -> np.ndarray:
        """Cut the part out of an image or mask, and pad it."""
        part = plane[self.rows, self.columns]
        pad = self.pad
        if not (pad.top or pad.bottom or pad.left or pad.right):
            return np.ascontiguousarray(part)
        return pad.apply(part if part.ndim == 3 else part[..., None]).reshape(
            part.shape[0] + pad.top + pad.bottom, part.shape[1] + pad.left + pad.right, *plane.shape[2:]
        )

    def look(self, plane: np.ndarray, hw: tuple[int, int], interpolation: int) -> np.ndarray:
        """Warp one to four channels of the part."""
        if self.lattice is not None:
            step = self.lattice.step
            gy, gx = self.lattice.xy.shape[:2]
            field = cv2.resize(self.lattice.xy, (gx * step, gy * step), interpolation=cv2.INTER_LINEAR)
            field = field[step : step + hw[0], step : step + hw[1]]
            return cv2.remap(plane, field, _NO_MAP, interpolation, borderMode=self.mode)
        assert self.matrix is not None
        flags = interpolation | cv2.WARP_INVERSE_MAP
        if np.array_equal(self.matrix[2], (0, 0, 1)):
            return cv2.warpAffine(plane, self.matrix[:2], hw[::-1], flags=flags, borderMode=self.mode)
        return cv2.warpPerspective(plane, self.matrix, hw[::-1], flags=flags, borderMode=self.mode)


def _reach(low: float, high: float, size: int, limit: float) -> tuple[slice, int, int, bool]:
    """Return which pixels of an axis are needed, how many beyond each end, and whether the ends are covered.

    With a reflecting border, as many pixels inside an end are needed as beyond it.
    """
    if not (np.isfinite(low) and np.isfinite(high)) or high - low > limit:
        return slice(0, size), 0, 0, False
    first, last = int(np.floor(low)) - _MARGIN, int(np.ceil(high)) + _MARGIN + 1
    before, after = max(0, -first), max(0, last - size)
    start = min(max(0, first), max(0, size - after - 1))
    stop = max(min(size, last), min(size, before + 1))
    return slice(start, stop), before if start == 0 else 0, after if stop == size else 0, True


def _source(
    hw: tuple[int, int], canvas_hw: tuple[int, int], border: Border, inverse: Matrix, lattice: Lattice | None
) -> Source:
    """Return which part of the image is looked at; what lies outside the image is padded beforehand.

    A source with room around it lets OpenCV take its fast way (450 µs in place of 600 for 512x512), and only the part
    of a large image that is needed is touched.
    """
    if lattice is not None:
        seen = lattice.xy.reshape(-1, 2)
    else:
        height, width = canvas_hw
        edges = np.array([(0, 0, 1), (width - 1, 0, 1), (0, height - 1, 1), (width - 1, height - 1, 1)])
        corners = edges @ inverse.T
        beyond_horizon = bool((corners[:, 2] <= 0).any())
        seen = np.full((1, 2), np.nan) if beyond_horizon else corners[:, :2] / corners[:, 2:]
    limit = _LARGEST_PAD * max(canvas_hw)
    low, high = seen.min(0), seen.max(0)
    rows, top, bottom, rows_covered = _reach(float(low[1]), float(high[1]), hw[0], limit)
    columns, left, right, columns_covered = _reach(float(low[0]), float(high[0]), hw[1], limit)
    if not (rows_covered and columns_covered):
        rows, columns, top, bottom, left, right = slice(0, hw[0]), slice(0, hw[1]), 0, 0, 0, 0
    pad = Pad(top, bottom, left, right, border)
    offset = (left - columns.start, top - rows.start)
    covered = rows_covered and columns_covered
    mode = cv2.BORDER_CONSTANT if covered else CV2_BORDERS[border]
    if lattice is not None:
        moved = Lattice(lattice.xy + np.array(offset, np.float32), lattice.step)
        return Source(rows, columns, pad, mode, None, moved)
    shift = np.array([[1, 0, offset[0]], [0, 1, offset[1]], [0, 0, 1]], np.float64)
    return Source(rows, columns, pad, mode, shift @ inverse, None)


def _warp_planes(planes: list[Plane], source: Source, hw: tuple[int, int]) -> list[Plane]:
    """Warp planes four at a time (two and three are filled up: OpenCV is slowest with them)."""
    moved: list[Plane] = []
    for at in range(0, len(planes), 4):
        group = planes[at : at + 4]
        if len(group) == 1:
            moved.append(source.look(group[0], hw, cv2.INTER_LINEAR))
            continue
        filled = group + [group[-1]] * (4 - len(group))
        warped = source.look(cv2.merge(filled), hw, cv2.INTER_LINEAR)
        moved += [cv2.extractChannel(warped, channel) for channel in range(len(group))]
    return moved


@dataclass(frozen=True)
class Layer:
    """One layer of a mask, ready to be interpolated."""

    values: list[int]
    """Classes that it may hold, ascending, 0 always among them."""
    planes: list[Plane]
    """0 and full for each class; of two classes the plane of the second only, of one none."""
    ignored: Plane | None
    """1 where it is ignored; None if it is nowhere."""


def _one_hot(mask: UInt8[np.ndarray, "h w"], dtype: np.dtype) -> Layer:
    full = np.array(np.iinfo(dtype).max, dtype)
    if mask.max(initial=0) <= 1:
        return Layer([0, 1], [mask.astype(dtype, copy=False) * full], None)
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
    values = [0, *(int(value) for value in np.flatnonzero(counts[1:IGNORE]) + 1)]
    wanted = values if len(values) > 2 else values[1:]
    ignored = (mask == IGNORE).view(np.uint8) if counts[IGNORE] else None
    return Layer(values, [(mask == value).astype(dtype) * full for value in wanted], ignored)


def _decide(layer: Layer, planes: list[Plane], hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Return the class with the largest share of each pixel; of two as large the higher one."""
    if not planes:
        return np.zeros(hw, np.uint8)
    if len(planes) == 1:
        half = int(np.iinfo(planes[0].dtype).max) // 2
        return (planes[0] > half).view(np.uint8) * np.uint8(layer.values[1])
    best, target = planes[0], np.zeros(hw, np.uint8)
    for value, plane in zip(layer.values[1:], planes[1:], strict=True):
        target[(plane >= best) & (plane > 0)] = value
        best = np.maximum(best, plane)
    return target


def _resample(
    image: Image, mask: AnyMask, source: Source, hw: tuple[int, int]
) -> tuple[Shaped[np.ndarray, "H W c"], UInt8[np.ndarray, "H W *k"]]:
    """Interpolate an image and the layers of its mask."""
    drawn = source.part(mask)
    layers = [
        _one_hot(layer, image.dtype) for layer in ([drawn] if drawn.ndim == 2 else list(cv2.split(drawn)))
    ]
    channels = image.shape[2]
    planes = list(cv2.split(source.part(image))) + [plane for layer in layers for plane in layer.planes]
    moved = _warp_planes(planes, source, hw)
    targets, at = [], channels
    for layer in layers:
        targets.append(_decide(layer, moved[at : at + len(layer.planes)], hw))
        at += len(layer.planes)
        if layer.ignored is not None:
            targets[-1][source.look(layer.ignored, hw, cv2.INTER_NEAREST) == 1] = IGNORE
    pixels = moved[0][..., None] if channels == 1 else cv2.merge(moved[:channels])
    return pixels, targets[0] if mask.ndim == 2 else np.stack(targets, axis=-1)


def _is_copy(matrix: Matrix) -> bool:
    return bool(
        np.array_equal(matrix[:2, :2], np.eye(2))
        and np.array_equal(matrix[2], (0, 0, 1))
        and np.array_equal(matrix[:2, 2], np.rint(matrix[:2, 2]))
    )


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
    array: np.ndarray, motion: Motion, matrix: Matrix, hw: tuple[int, int], border: Border
) -> np.ndarray:
    """Copy the window that is seen, turned, with its padding."""
    x, y = (int(value) for value in matrix[:2, 2])
    height, width = turned_hw(motion, (array.shape[0], array.shape[1]))
    rows, columns = (max(0, -y), min(height, hw[0] - y)), (max(0, -x), min(width, hw[1] - x))
    ends = np.array([(columns[0], rows[0], 1), (columns[1] - 1, rows[1] - 1, 1)], np.float64)
    seen = np.sort((ends @ unturn(motion, (array.shape[0], array.shape[1])).T)[:, :2].astype(int), axis=0)
    window = _turned(
        np.ascontiguousarray(array[seen[0, 1] : seen[1, 1] + 1, seen[0, 0] : seen[1, 0] + 1]), motion
    )
    top, left = max(0, y), max(0, x)
    pad = Pad(top, hw[0] - top - window.shape[0], left, hw[1] - left - window.shape[1], border)
    layered = window if window.ndim == 3 else window[..., None]
    return pad.apply(layered).reshape(*hw, *array.shape[2:])


def warp(
    image: Image,
    mask: AnyMask,
    motion: Motion,
    *,
    canvas_hw: tuple[int, int],
    zoom_yx: tuple[float, float] = (1.0, 1.0),
    border: Border = "reflect",
) -> tuple[Shaped[np.ndarray, "H W c"], UInt8[np.ndarray, "H W *k"]]:
    """Move an image and its mask onto the canvas.

    Args:
        image: (h, w, c), uint8 or uint16, any number of channels.
        mask: (h, w) of classes and IGNORE, or (h, w, k) of layers, each of 0, 1 and IGNORE.
        motion: What was drawn.
        canvas_hw: Height and width of the result.
        zoom_yx: Zoom of rows and columns by the size rule and the training stage.
        border: What is seen outside the image.

    Returns:
        Image (H, W, c) and mask (H, W) or (H, W, k). A mask pixel has the class whose interpolated share is the largest
        (of two as large the higher class; so foreground is where at least one half is), and is ignored where the
        nearest pixel is. No value arises that the mask did not have.
    """
    hw = (image.shape[0], image.shape[1])
    matrix = motion_matrix(motion, hw, canvas_hw, zoom_yx=zoom_yx)
    if motion.is_affine and _is_copy(matrix):
        return (
            _copy(image, motion, matrix, canvas_hw, border),
            _copy(mask, motion, matrix, canvas_hw, border),
        )
    inverse = np.linalg.inv(matrix)
    if motion.distortions:
        lattice = lattice_of(motion, inverse, hw, canvas_hw)
        source = _source(hw, canvas_hw, border, inverse, lattice)
    else:
        if motion.is_affine:
            inverse[2] = (0, 0, 1)  # without the rounding of the inversion
        source = _source(hw, canvas_hw, border, unturn(motion, hw) @ inverse, None)
    return _resample(image, mask, source, canvas_hw)
