"""Smooth distortions: each a function from points to points, so that any number of them makes one field.

A point says where a pixel of the result looks in the image, in shares of the image's width and height: the image
is the unit square, and what was drawn does not depend on the number of pixels. Each distortion has a configuration
(its ranges) and a drawn form (an instance without randomness).

Sources: elastic deformation, Simard, Steinkraus and Platt 2003 (Gaussian-smoothed noise); the radial term of the lens
model of Brown 1971; piecewise affine maps on a jittered grid of triangles and stretched grids as in imgaug and
albumentations (facts only, the code is our own).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from masksmith.core.arrays import Float
from masksmith.core.config import Config

Points = Float[np.ndarray, "2 gy gx"]
"""Coordinates (x, y) of a lattice of points; the image is 0…1 in both."""
Displace = Callable[[Points], Points]
Probability = Annotated[float, Field(ge=0, le=1)]

_BLUR = 2.0  # cells of the noise lattice a standard deviation: finer costs more draws and looks the same


class ElasticConfig(Config):
    """Elastic deformation: noise, smoothed by a Gaussian."""

    probability: Probability = 0.0
    """How often it is drawn."""
    shift_frac: float = Field(default=0.02, ge=0, le=0.2)
    """Standard deviation of the shift of a pixel, as a share of the image's side (Simard's alpha)."""
    sigma_frac: float = Field(default=0.08, ge=0.01, le=1)
    """Standard deviation of the smoothing, as a share of the side; small is crumpled, large is wavy."""


class GridConfig(Config):
    """Grid distortion: the columns and rows of a grid are made wider and narrower."""

    probability: Probability = 0.0
    """How often it is drawn."""
    cells: int = Field(default=5, ge=2, le=32)
    """Columns, and rows, of the grid."""
    limit: float = Field(default=0.3, ge=0, lt=1)
    """A column's width is multiplied by 1 ± this; then all are scaled so that the edges stay."""


class LensConfig(Config):
    """A radial distortion about the centre."""

    probability: Probability = 0.0
    """How often it is drawn."""
    strength: float = Field(default=0.15, ge=0, lt=1)
    """Largest relative change of the distance from the centre, reached in the corners."""


class PiecewiseConfig(Config):
    """Piecewise affine map: the nodes of a grid of triangles are jittered."""

    probability: Probability = 0.0
    """How often it is drawn."""
    cells: int = Field(default=4, ge=1, le=32)
    """Columns, and rows, of the grid."""
    shift_frac: float = Field(default=0.03, ge=0, le=0.2)
    """Standard deviation of a node's shift, as a share of the image's side."""


@dataclass(frozen=True)
class Elastic:
    """Smooth noise on a lattice that covers the image and a margin."""

    field: Float[np.ndarray, "n n 2"]
    """Shift (x, y) at each node, in shares of the image."""
    cell: float
    """Distance of two nodes; the first lies on the edge."""

    def __call__(self, points: Points) -> Points:
        """Shift the points; beyond the lattice as at its edge."""
        at = (points / self.cell).astype(np.float32)
        shift = cv2.remap(self.field, at[0], at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return points + shift.transpose(2, 0, 1)  # (gy, gx, 2) -> (2, gy, gx)


@dataclass(frozen=True)
class Stretch:
    """Rows and columns of a grid made wider and narrower."""

    edges_x: Float[np.ndarray, " n"]
    """Where the columns' edges come from: from 0 to 1."""
    edges_y: Float[np.ndarray, " n"]

    def __call__(self, points: Points) -> Points:
        """Stretch each axis by itself; outside the image points stay."""
        even = np.linspace(0, 1, len(self.edges_x))
        inside = np.clip(points, 0, 1)
        moved = [
            np.interp(one, even, edges)
            for one, edges in zip(inside, (self.edges_x, self.edges_y), strict=True)
        ]
        return np.stack(moved) + (points - inside)


@dataclass(frozen=True)
class Lens:
    """Distance r from the centre (1 in the corners) becomes r (1 + strength r²)."""

    strength: float
    """Above 0 the image shrinks towards its corners (barrel), below 0 it grows (pincushion)."""

    def __call__(self, points: Points) -> Points:
        """Move the points towards or away from the centre; beyond the corners as in them."""
        away = points - 0.5
        squared = np.minimum((away**2).sum(0) * 2, 1.0)  # 0.5² + 0.5² in a corner
        return 0.5 + away * (1 + self.strength * squared)


@dataclass(frozen=True)
class Piecewise:
    """Shifts of the nodes of a grid; within each of a cell's two triangles the map is affine."""

    shifts: Float[np.ndarray, "n n 2"]

    def __call__(self, points: Points) -> Points:
        """Interpolate the shifts of the three nodes around each point; outside the image as on its edge."""
        cells = self.shifts.shape[0] - 1
        x, y = np.clip(points, 0, 1) * cells
        column, row = (np.minimum(one.astype(np.intp), cells - 1) for one in (x, y))
        right, down = (x - column)[..., None], (y - row)[..., None]
        first, last = self.shifts[row, column], self.shifts[row + 1, column + 1]
        upper = right >= down  # of the diagonal from the first corner to the last
        third = np.where(upper, self.shifts[row, column + 1], self.shifts[row + 1, column])
        along_third, along_last = np.abs(right - down), np.minimum(right, down)
        shift = first + (third - first) * along_third + (last - first) * along_last
        return points + shift.transpose(2, 0, 1)  # (gy, gx, 2) -> (2, gy, gx)


def draw_elastic(config: ElasticConfig, rng: np.random.Generator) -> Displace:
    """Draw an elastic deformation."""
    cell = config.sigma_frac / _BLUR
    nodes, margin = int(np.ceil(1 / cell)) + 1, int(np.ceil(3 * _BLUR))
    noise = rng.standard_normal((nodes + 2 * margin, nodes + 2 * margin, 2), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), _BLUR)[margin : margin + nodes, margin : margin + nodes]
    spread = 1 / (2 * _BLUR * np.sqrt(np.pi))  # of white noise after a Gaussian in two dimensions
    return Elastic(np.ascontiguousarray(smooth) * np.float32(config.shift_frac / spread), cell)


def draw_grid(config: GridConfig, rng: np.random.Generator) -> Displace:
    """Draw a grid distortion."""
    widths = 1 + rng.uniform(-config.limit, config.limit, (2, config.cells))
    edges = np.concatenate([np.zeros((2, 1)), np.cumsum(widths / widths.sum(1, keepdims=True), 1)], 1)
    return Stretch(edges[0], edges[1])


def draw_optical(config: LensConfig, rng: np.random.Generator) -> Displace:
    """Draw a lens distortion of either sign: barrel or pincushion."""
    return Lens(float(rng.uniform(-config.strength, config.strength)))


def draw_pincushion(config: LensConfig, rng: np.random.Generator) -> Displace:
    """Draw a pincushion distortion: straight lines bend towards the centre."""
    return Lens(-float(rng.uniform(0, config.strength)))


def draw_piecewise(config: PiecewiseConfig, rng: np.random.Generator) -> Displace:
    """Draw a piecewise affine map."""
    nodes = config.cells + 1
    return Piecewise(rng.normal(0, config.shift_frac, (nodes, nodes, 2)))
