"""Geometric augmentation: flips, rotation, scale, shear, shift and crop, composed into *one* warp.

Each image is interpolated once. Flips are exact, and where nothing but a flip was drawn the pixels are
copied, not resampled. The mask goes through the same warp; it comes back with its own values only.
"""

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field, field_validator

from masksmith.arrays import IGNORE, Float, Image, Mask, Shaped, UInt8
from masksmith.config import Config
from masksmith.preprocess import CV2_BORDERS, Border, Pad

Matrix = Float[np.ndarray, "3 3"]


class GeometryConfig(Config):
    """Ranges that geometry is drawn from; all zero (and scale 1) leaves the image as it is."""

    hflip: float = Field(default=0.0, ge=0, le=1)
    """Probability of mirroring left and right."""
    vflip: float = Field(default=0.0, ge=0, le=1)
    """Probability of mirroring top and bottom."""
    probability: float = Field(default=1.0, ge=0, le=1)
    """Probability of drawing rotation, scale, shear and shift at all."""
    rotate_deg: float = Field(default=0.0, ge=0, le=180)
    """Rotation is uniform in ± this many degrees."""
    scale_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)
    """Zoom, drawn uniformly on the logarithm; above 1 enlarges."""
    shear_deg: float = Field(default=0.0, ge=0, le=45)
    """Horizontal shear is uniform in ± this many degrees."""
    shift_frac: float = Field(default=0.0, ge=0, le=0.5)
    """Shift is uniform in ± this share of the image's height and width."""

    @field_validator("scale_range")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"{list(value)}; expected the smaller number first")
        return value


@dataclass(frozen=True)
class Motion:
    """One drawn geometry, in units that do not depend on the image's size."""

    hflip: bool = False
    vflip: bool = False
    angle_rad: float = 0.0
    zoom: float = 1.0
    shear: float = 0.0
    shift_frac: tuple[float, float] = (0.0, 0.0)
    crop_frac: tuple[float, float] = (0.5, 0.5)


def draw_motion(config: GeometryConfig, rng: np.random.Generator) -> Motion:
    """Draw one geometry."""
    hflip, vflip = rng.random() < config.hflip, rng.random() < config.vflip
    crop = (float(rng.random()), float(rng.random()))
    if rng.random() >= config.probability:
        return Motion(bool(hflip), bool(vflip), crop_frac=crop)
    low, high = config.scale_range
    return Motion(
        bool(hflip),
        bool(vflip),
        angle_rad=float(np.deg2rad(rng.uniform(-config.rotate_deg, config.rotate_deg))),
        zoom=float(np.exp(rng.uniform(np.log(low), np.log(high)))),
        shear=float(np.tan(np.deg2rad(rng.uniform(-config.shear_deg, config.shear_deg)))),
        shift_frac=(
            float(rng.uniform(-config.shift_frac, config.shift_frac)),
            float(rng.uniform(-config.shift_frac, config.shift_frac)),
        ),
        crop_frac=crop,
    )


def _translation(y: float, x: float) -> Matrix:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def motion_matrix(
    motion: Motion, hw: tuple[int, int], canvas_hw: tuple[int, int], *, zoom_yx: tuple[float, float]
) -> Matrix:
    """Return the matrix from image pixels (x, y, 1) to canvas pixels, flips left out.

    The centre of the (scaled) image lies on the centre of the canvas, with an odd pixel of room below and to
    the right; where the image is larger than the canvas, ``crop_frac`` says which part is seen.

    Args:
        motion: What was drawn.
        hw: Height and width of the image.
        canvas_hw: Height and width of the result.
        zoom_yx: Zoom of rows and columns by the size rule and the training stage, (1, 1) for the true size.
    """
    middle = [(size - 1) / 2 for size in hw]
    corner = []
    for size, canvas, part, zoom in zip(hw, canvas_hw, motion.crop_frac, zoom_yx, strict=True):
        room = canvas - round(size * zoom)
        corner.append(float(room // 2) if room >= 0 else float(round(room * part)))
    cos, sin = np.cos(motion.angle_rad) * motion.zoom, np.sin(motion.angle_rad) * motion.zoom
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float64)
    lean = np.array([[1, motion.shear, 0], [0, 1, 0], [0, 0, 1]], np.float64)
    fit = np.array([[zoom_yx[1], 0, 0], [0, zoom_yx[0], 0], [0, 0, 1]], np.float64)
    target = [
        at + (size * zoom - 1) / 2 + part * size * zoom
        for at, size, part, zoom in zip(corner, hw, motion.shift_frac, zoom_yx, strict=True)
    ]
    return _translation(*target) @ turn @ lean @ fit @ _translation(-middle[0], -middle[1])


def _warp_plane(
    plane: np.ndarray, matrix: Matrix, hw: tuple[int, int], interpolation: int, border: Border
) -> np.ndarray:
    mode = CV2_BORDERS[border]
    return cv2.warpAffine(plane, matrix[:2], hw[::-1], flags=interpolation, borderMode=mode)


def _is_copy(matrix: Matrix) -> bool:
    return bool(
        np.array_equal(matrix[:2, :2], np.eye(2)) and np.array_equal(matrix[:2, 2], np.rint(matrix[:2, 2]))
    )


def _copy(image: np.ndarray, matrix: Matrix, hw: tuple[int, int], border: Border) -> np.ndarray:
    x, y = (int(value) for value in matrix[:2, 2])
    seen = image[max(0, -y) : hw[0] - y, max(0, -x) : hw[1] - x]
    top, left = max(0, y), max(0, x)
    pad = Pad(top, hw[0] - top - seen.shape[0], left, hw[1] - left - seen.shape[1], border)
    return pad.apply(seen)


def warp(
    image: Image,
    mask: Mask,
    motion: Motion,
    *,
    canvas_hw: tuple[int, int],
    zoom_yx: tuple[float, float] = (1.0, 1.0),
    border: Border = "reflect",
) -> tuple[Shaped[np.ndarray, "H W c"], UInt8[np.ndarray, "H W"]]:
    """Move an image and its mask onto the canvas.

    Args:
        image: (h, w, c), uint8 or uint16.
        mask: (h, w) of 0, 1 and IGNORE.
        motion: What was drawn.
        canvas_hw: Height and width of the result.
        zoom_yx: Zoom of rows and columns by the size rule and the training stage.
        border: What is seen outside the image.

    Returns:
        Image (H, W, c) and mask (H, W). A mask pixel is foreground where the interpolated foreground is at
        least one half, and ignored where the nearest pixel is.
    """
    if motion.hflip:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if motion.vflip:
        image, mask = image[::-1], mask[::-1]
    image, mask = np.ascontiguousarray(image), np.ascontiguousarray(mask)
    matrix = motion_matrix(motion, (image.shape[0], image.shape[1]), canvas_hw, zoom_yx=zoom_yx)
    if _is_copy(matrix):
        return (
            _copy(image, matrix, canvas_hw, border),
            _copy(mask[..., None], matrix, canvas_hw, border)[..., 0],
        )
    planes = [
        _warp_plane(image[..., at : at + 4], matrix, canvas_hw, cv2.INTER_LINEAR, border).reshape(
            *canvas_hw, -1
        )
        for at in range(0, image.shape[2], 4)  # OpenCV warps at most four channels at once
    ]
    moved = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
    foreground = _warp_plane((mask == 1) * np.uint8(255), matrix, canvas_hw, cv2.INTER_LINEAR, border)
    target = (foreground > 127).astype(np.uint8)
    if (mask == IGNORE).any():
        ignored = _warp_plane((mask == IGNORE).astype(np.uint8), matrix, canvas_hw, cv2.INTER_NEAREST, border)
        target[ignored == 1] = IGNORE
    return moved, target
