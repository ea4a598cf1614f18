"""Geometric augmentation: what is drawn, and the one map that it makes.

Flips, transposes, rotation, scale, shear, shift, crop, perspective and distortions are composed into a single map from
the pixels of the canvas to those of the image ;
``warp`` (OpenCV) and ``warp_torch`` look each pixel up once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar

import cv2
import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from masksmith.augment.distortions import (
    Displace,
    ElasticConfig,
    GridConfig,
    LensConfig,
    PiecewiseConfig,
    Points,
    Probability,
    draw_elastic,
    draw_grid,
    draw_optical,
    draw_piecewise,
    draw_pincushion,
)
from masksmith.augment.presets import GEOMETRY_PRESETS, spell_out
from masksmith.core.arrays import Float
from masksmith.core.config import Config
from masksmith.core.errors import InputError

Model = TypeVar("Model", bound=Config)
Matrix = Float[np.ndarray, "3 3"]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]

_NODES = 32  # of the map's lattice along the canvas's longer side: finer features are not represented


class CropZoomConfig(Config):
    """A random window of the image, enlarged to the image's size."""

    probability: Probability = 0.0
    """How often it is drawn."""
    side_frac_range: tuple[Share, Share] = (0.8, 1.0)
    """Side of the window as a share of the image's, drawn uniformly."""

    @field_validator("side_frac_range")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        return ascending(value)


class PerspectiveConfig(Config):
    """Each corner of the image moves by itself."""

    probability: Probability = 0.0
    """How often it is drawn."""
    corner_frac: float = Field(default=0.08, ge=0, le=0.25)
    """A corner's shift is uniform in ± this share of the image's height and width."""


class GeometryConfig(Config):
    """Ranges that geometry is drawn from; as they stand here they leave the image as it is.

    A preset's name ("none", "lossless", "light", "heavy") in the place of the table means the preset's table.
    """

    hflip: Probability = 0.0
    """Probability of mirroring left and right."""
    vflip: Probability = 0.0
    """Probability of mirroring top and bottom."""
    rot90: Probability = 0.0
    """Probability of drawing a multiple of 90°, all as likely; with hflip 0.5 the eight symmetries of a square."""
    transpose: Probability = 0.0
    """Probability of exchanging rows and columns."""
    probability: Probability = 1.0
    """Probability of drawing rotation, scale, aspect, shear and shift at all."""
    rotate_deg: float = Field(default=0.0, ge=0, le=180)
    """Rotation is uniform in ± this many degrees."""
    scale_range: tuple[Positive, Positive] = (1.0, 1.0)
    """Zoom; above 1 enlarges."""
    scale_distribution: Literal["log_uniform", "uniform"] = "log_uniform"
    """How zoom is drawn from ``scale_range``: uniformly on its logarithm, or uniformly (1 ± 0.6 is [0.4, 1.6])."""
    aspect_range: tuple[Positive, Positive] = (1.0, 1.0)
    """Zoom of the width over zoom of the height, drawn uniformly on the logarithm; the area stays."""
    shear_deg: float = Field(default=0.0, ge=0, le=45)
    """Horizontal shear is uniform in ± this many degrees."""
    shift_frac: float = Field(default=0.0, ge=0, le=0.5)
    """Shift is uniform in ± this share of the image's height and width."""
    crop_zoom: CropZoomConfig = CropZoomConfig()
    """A window enlarged to the whole."""
    perspective: PerspectiveConfig = PerspectiveConfig()
    """Corners that move."""
    piecewise_affine: PiecewiseConfig = PiecewiseConfig()
    """Jittered triangles."""
    elastic: ElasticConfig = ElasticConfig()
    """Smoothed noise."""
    grid: GridConfig = GridConfig()
    """Columns and rows of uneven width."""
    optical: LensConfig = LensConfig()
    """A lens: barrel or pincushion."""
    pincushion: LensConfig = LensConfig()
    """A lens: pincushion only."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:  # noqa: ANN401
        return spell_out(GEOMETRY_PRESETS, value)

    @field_validator("scale_range", "aspect_range")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        return ascending(value)


DISTORTIONS: dict[str, Callable[[Any, np.random.Generator], Displace]] = {
    "piecewise_affine": draw_piecewise,
    "elastic": draw_elastic,
    "grid": draw_grid,
    "optical": draw_optical,
    "pincushion": draw_pincushion,
}
"""Field of GeometryConfig -> how it is drawn; those that are drawn act in this order (the last one looks first)."""


@dataclass(frozen=True)
class Motion:
    """One drawn geometry, in units that do not depend on the image's size.

    The image is transposed, then mirrored; what follows acts on the image that has been turned so.
    """

    hflip: bool = False
    vflip: bool = False
    transpose: bool = False
    angle_rad: float = 0.0
    zoom: float = 1.0
    aspect: float = 1.0
    """Zoom of the width over zoom of the height."""
    shear: float = 0.0
    shift_frac: tuple[float, float] = (0.0, 0.0)
    """Shift of rows and columns as a share of the image's sides."""
    crop_frac: tuple[float, float] = (0.5, 0.5)
    """Which part is seen where the image is larger than the canvas: 0 the first rows and columns, 1 the last."""
    focus: tuple[float, float] | None = None
    """In place of ``crop_frac``: row and column (shares of the sides of the *unturned* image) that the canvas is
    centred on, as far as the image's edges allow."""
    window: tuple[float, float, float] = (0.5, 0.5, 1.0)
    """The window that is enlarged to the whole image: its centre (rows, columns) and its side, as shares."""
    corners: tuple[tuple[float, float], ...] | None = None
    """Shifts (x, y) of the corners upper left, upper right, lower right, lower left, as shares of the sides."""
    distortions: tuple[Displace, ...] = ()
    """Drawn distortions; the last acts on the pixels of the canvas first."""

    is_free: bool = True
    """Whether rotation, zoom, aspect, shear and shift were drawn at all."""

    @property
    def is_mirrored(self) -> bool:
        """Whether left becomes right: a flip or a transposition is left over, which is no turn."""
        return self.hflip ^ self.vflip ^ self.transpose

    @property
    def is_affine(self) -> bool:
        """Whether it is an affine map."""
        return self.corners is None and not self.distortions


def ascending(value: tuple[float, float]) -> tuple[float, float]:
    """Return a range whose smaller number stands first."""
    if value[0] > value[1]:
        raise ValueError(f"{list(value)}; expected the smaller number first")
    return value


def draw_affine(config: GeometryConfig, rng: np.random.Generator) -> Motion:
    """Draw mirrors, rotation, zoom, shear, shift, and the part that is seen of a large image."""
    hflip, vflip = bool(rng.random() < config.hflip), bool(rng.random() < config.vflip)
    crop = (float(rng.random()), float(rng.random()))
    if rng.random() >= config.probability:
        return Motion(hflip, vflip, crop_frac=crop, is_free=False)
    return Motion(
        hflip,
        vflip,
        angle_rad=math.radians(rng.uniform(-config.rotate_deg, config.rotate_deg)),
        zoom=_draw_zoom(config, rng),
        shear=math.tan(math.radians(rng.uniform(-config.shear_deg, config.shear_deg))),
        shift_frac=(
            rng.uniform(-config.shift_frac, config.shift_frac),
            rng.uniform(-config.shift_frac, config.shift_frac),
        ),
        crop_frac=crop,
    )


def _draws_more(config: GeometryConfig) -> bool:
    odds = [config.rot90, config.transpose, config.crop_zoom.probability, config.perspective.probability]
    odds += [getattr(config, name).probability for name in DISTORTIONS]
    return any(odds) or config.aspect_range != (1.0, 1.0)


def draw_more(config: GeometryConfig, motion: Motion, rng: np.random.Generator) -> Motion:
    """Add what is neither a mirror nor a part of the first affine map; nothing is drawn where all of it is off.

    What is on draws from a generator of its own: to switch a part on does not change what is drawn for another.
    """
    if not _draws_more(config):
        return motion
    turns, transpose, aspect, crops, perspective = rng.random(5).tolist()
    odds = rng.random(len(DISTORTIONS)).tolist()
    quarters, *seeds = rng.integers(2**63, size=len(DISTORTIONS) + 3).tolist()
    turned, vflip, hflip = _compose_turns(
        motion.vflip,
        motion.hflip,
        quarters % 4 if turns < config.rot90 else 0,
        transpose < config.transpose,
    )
    found: dict[str, Any] = {"transpose": turned, "vflip": vflip, "hflip": hflip}
    if motion.is_free:
        low, high = (math.log(side) for side in config.aspect_range)
        found["aspect"] = math.exp(low + (high - low) * aspect)
    if crops < config.crop_zoom.probability:
        found["window"] = _draw_window(config.crop_zoom, np.random.default_rng(seeds[0]))
    if perspective < config.perspective.probability:
        limit = config.perspective.corner_frac
        shifts = np.random.default_rng(seeds[1]).uniform(-limit, limit, (4, 2)).tolist()
        found["corners"] = tuple((x, y) for x, y in shifts)
    found["distortions"] = tuple(
        draw(getattr(config, name), np.random.default_rng(seed))
        for (name, draw), odd, seed in zip(DISTORTIONS.items(), odds, seeds[2:], strict=True)
        if odd < getattr(config, name).probability
    )
    return replace(motion, **found)


def _compose_turns(vflip: bool, hflip: bool, quarters: int, transpose: bool) -> tuple[bool, bool, bool]:
    """Return (transpose, vflip, hflip) of: mirror, then turn by quarters (counter-clockwise), then transpose."""
    turned = False
    for _ in range(quarters):  # a quarter turn transposes, then mirrors top and bottom
        turned, vflip, hflip = not turned, not hflip, vflip
    return (not turned, hflip, vflip) if transpose else (turned, vflip, hflip)


def _draw_window(config: CropZoomConfig, rng: np.random.Generator) -> tuple[float, float, float]:
    side = float(rng.uniform(*config.side_frac_range))
    y, x = (side / 2 + (1 - side) * float(part) for part in rng.random(2))
    return y, x, side


def _draw_zoom(config: GeometryConfig, rng: np.random.Generator) -> float:
    low, high = config.scale_range
    if config.scale_distribution == "uniform":
        return float(rng.uniform(low, high))
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def scale_geometry(config: GeometryConfig, strength: float, *, where: str = "strength") -> GeometryConfig:
    """Return weaker (below 1) or stronger ranges; 0 changes nothing at all, 1 is ``config``.

    Ranges are multiplied (zooms: their logarithm, or their distance to 1 where they are drawn uniformly). What has no
    range (flips, quarter turns, transposes) gets its probability multiplied below 1 and keeps it above.

    Raises:
        InputError: A range leaves what the field allows.
    """
    return config if strength == 1 else _scaled_geometry(config, float(strength), where)


@lru_cache(maxsize=256)
def _scaled_geometry(config: GeometryConfig, strength: float, where: str) -> GeometryConfig:
    values = config.model_dump()
    for name in ("hflip", "vflip", "rot90", "transpose"):
        values[name] *= min(strength, 1.0)
    for name in ("rotate_deg", "shear_deg", "shift_frac"):
        values[name] *= strength
    for name in ("scale_range", "aspect_range"):
        values[name] = tuple(side**strength for side in values[name])
    if config.scale_distribution == "uniform":
        values["scale_range"] = tuple(1 + (side - 1) * strength for side in config.scale_range)
    values["crop_zoom"]["side_frac_range"] = tuple(
        1 - (1 - side) * strength for side in config.crop_zoom.side_frac_range
    )
    parts = {"perspective": "corner_frac", "piecewise_affine": "shift_frac", "elastic": "shift_frac"}
    parts |= {"grid": "limit", "optical": "strength", "pincushion": "strength"}
    for name, key in parts.items():
        values[name][key] *= strength
    return validated(GeometryConfig, values, strength, where)


def validated(model: type[Model], values: dict[str, Any], strength: float, where: str) -> Model:
    """Return a configuration of scaled ranges.

    Raises:
        InputError: A range leaves what its field allows.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        spot = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{where}: {strength:g} makes {spot} {first['input']!r}, which is out of its range "
            f"({first['msg'].lower()}); give a smaller strength, or a smaller range"
        ) from error


def _translation(y: float, x: float) -> Matrix:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _scaling(y: float, x: float) -> Matrix:
    return np.array([[x, 0, 0], [0, y, 0], [0, 0, 1]], np.float64)


def turned_hw(motion: Motion, hw: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of the turned image."""
    return (hw[1], hw[0]) if motion.transpose else hw


def unturn(motion: Motion, hw: tuple[int, int]) -> Matrix:
    """Return the matrix from pixels (x, y, 1) of the turned image to those of the image of size ``hw``."""
    height, width = turned_hw(motion, hw)
    mirror = np.eye(3)
    if motion.hflip:
        mirror[0] = (-1, 0, width - 1)
    if motion.vflip:
        mirror[1] = (0, -1, height - 1)
    return mirror[[1, 0, 2]] if motion.transpose else mirror


def _perspective(corners: tuple[tuple[float, float], ...], height: float, width: float) -> Matrix:
    """Return the projective map that moves the corners of a centred rectangle."""
    even = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float32) / 2
    moved = even + np.array(corners, np.float32)
    unit = cv2.getPerspectiveTransform(even, moved.astype(np.float32))
    return _scaling(height, width) @ unit @ _scaling(1 / height, 1 / width)


def motion_matrix(
    motion: Motion, hw: tuple[int, int], canvas_hw: tuple[int, int], *, zoom_yx: tuple[float, float]
) -> Matrix:
    """Return the matrix from pixels (x, y, 1) of the *turned* image to canvas pixels, distortions left out.

    The centre of the (scaled) image lies on the centre of the canvas, with an odd pixel of room below and to
    the right; where the image is larger than the canvas, ``crop_frac`` or ``focus`` selects the visible part.

    Args:
        motion: What was drawn.
        hw: Height and width of the image before it is turned.
        canvas_hw: Height and width of the result.
        zoom_yx: Zoom of rows and columns (of the image before it is turned) by the size rule and the training
            stage, (1, 1) for the true size.
    """
    sides = turned_hw(motion, hw)
    zooms = (zoom_yx[1], zoom_yx[0]) if motion.transpose else zoom_yx
    height, width = sides[0] * zooms[0], sides[1] * zooms[1]
    y, x, part = motion.window
    middle_y, middle_x = y * sides[0] - 0.5, x * sides[1] - 0.5
    cos, sin = math.cos(motion.angle_rad) * motion.zoom, math.sin(motion.angle_rad) * motion.zoom
    wide = math.sqrt(motion.aspect)
    zoom_y, zoom_x = zooms[0] / (wide * part), zooms[1] * wide / part
    target_y = (height - 1) / 2 + motion.shift_frac[0] * height
    target_x = (width - 1) / 2 + motion.shift_frac[1] * width
    turn = (cos, cos * motion.shear - sin, sin, sin * motion.shear + cos)  # rotation after shear
    if motion.corners is None:
        a, b, c, d = turn[0] * zoom_x, turn[1] * zoom_y, turn[2] * zoom_x, turn[3] * zoom_y
        rows = (a, b, target_x - a * middle_x - b * middle_y), (c, d, target_y - c * middle_x - d * middle_y)
        centred = np.array([*rows, (0.0, 0.0, 1.0)])
    else:
        fit = _scaling(zoom_y, zoom_x) @ _translation(-middle_y, -middle_x)
        lean = np.array([(*turn[:2], target_x), (*turn[2:], target_y), (0, 0, 1)])
        centred = lean @ _perspective(motion.corners, height, width) @ fit
    down, right = _corner(motion, hw, canvas_hw, (height, width), centred)
    return centred if (down, right) == (0, 0) else _translation(down, right) @ centred


def _corner(
    motion: Motion,
    hw: tuple[int, int],
    canvas_hw: tuple[int, int],
    scaled_hw: tuple[float, float],
    centred: Matrix,
) -> tuple[float, float]:
    """Return where the upper left corner of the scaled image lies on the canvas."""
    seen = None
    if motion.focus is not None:
        pixel = (motion.focus[1] * hw[1] - 0.5, motion.focus[0] * hw[0] - 0.5, 1.0)
        x, y, depth = (centred @ np.linalg.inv(unturn(motion, hw)) @ pixel).tolist()
        seen = (y / depth, x / depth)
    corner = []
    for axis, (size, canvas) in enumerate(zip(scaled_hw, canvas_hw, strict=True)):
        room = canvas - round(size)
        if room >= 0:
            corner.append(float(room // 2))
        elif seen is None:
            corner.append(float(round(room * motion.crop_frac[axis])))
        else:
            corner.append(float(min(max(round((canvas - 1) / 2 - seen[axis]), room), 0)))
    return corner[0], corner[1]


def is_turned(motion: Motion) -> bool:
    """Whether the image is transposed or mirrored."""
    return motion.hflip or motion.vflip or motion.transpose


def inverse_of(matrix: Matrix) -> Matrix:
    """Return the inverse of an affine or projective map; that of an affine one is affine to the last bit."""
    (a, b, x), (c, d, y), last = matrix.tolist()
    if last != [0, 0, 1]:
        return np.linalg.inv(matrix)
    scale = 1 / (a * d - b * c)
    a, b, c, d = d * scale, -b * scale, -c * scale, a * scale
    return np.array([(a, b, -a * x - b * y), (c, d, -c * x - d * y), (0.0, 0.0, 1.0)])


@dataclass(frozen=True)
class Lattice:
    """The map from canvas to image on a lattice of nodes, ``step`` pixels apart.

    Enlarged ``step`` times by bilinear interpolation (pixel centres at half), the rows and columns from ``step`` on are
    those of the canvas.
    """

    xy: Float[np.ndarray, "gy gx 2"]
    step: int


def lattice_of(motion: Motion, inverse: Matrix, hw: tuple[int, int], canvas_hw: tuple[int, int]) -> Lattice:
    """Return the whole map, distortions included, on a lattice.

    Args:
        motion: What was drawn.
        inverse: From canvas pixels to pixels of the turned image: the inverse of ``motion_matrix``.
        hw: Height and width of the image.
        canvas_hw: Height and width of the canvas.
    """
    step = max(2, 2 ** int(math.log2(max(max(canvas_hw) / _NODES, 1))))
    y, x = ((np.arange(-(-side // step) + 2) - 0.5) * step - 0.5 for side in canvas_hw)
    (a, b, c), (d, e, f), (g, h, i) = inverse.tolist()
    y = y[:, None]
    points: Points = np.stack([a * x + b * y + c, d * x + e * y + f])
    if (g, h) != (0, 0):
        points /= g * x + h * y + i
    if motion.distortions:
        height, width = turned_hw(motion, hw)
        sides = np.array([width, height], np.float64)[:, None, None]
        points = (points + 0.5) / sides
        for displace in reversed(motion.distortions):
            points = displace(points)
        points = points * sides - 0.5
    if is_turned(motion):
        turn = unturn(motion, hw)
        points = np.tensordot(turn[:2, :2], points, 1) + turn[:2, 2][:, None, None]
    return Lattice(
        np.ascontiguousarray(points.transpose(1, 2, 0), np.float32), step
    )  # (2, gy, gx) -> (gy, gx, 2)
