"""Where on the earth the pixels of a GeoTIFF lie: enough of it to tell whether a mask lies on its image.

Sources:
    OGC GeoTIFF 1.1 (OGC 19-008r4): tags 33550, 33922, 34264 and 34735 to 34737.
"""

import io
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from masksmith.core.arrays import Shaped
from masksmith.data.decode.tiff import DAMAGED_TAGS, opened_tiff

_SCALE, _TIEPOINT, _TRANSFORMATION, _KEYS, _DOUBLES = 33550, 33922, 34264, 34735, 34736
_RASTER_TYPE, _POINT = 1025, 2
_REFERENCE = {1024, 2048, 3072}  # the model's type, the geographic and the projected system
_USER_DEFINED = 32767
_TOLERANCE_PX = 0.01  # of a corner; software writes the size of a pixel with 14 digits or so


@dataclass(frozen=True)
class Georeference:
    """The reference system and the affine grid of a GeoTIFF."""

    system: tuple[tuple[int, object], ...]
    """Keys that name the coordinate reference system, with their values; () where the file names none."""
    affine: tuple[float, ...]
    """a, b, c, d, e, f: the outer corner of pixel (column, row) lies at (a col + b row + c, d col + e row + f)."""

    @property
    def system_text(self) -> str:
        """The reference system as EPSG code where it has one."""
        keys = dict(self.system)
        code = keys.get(3072, keys.get(2048))
        if code is None:
            return "no reference system"
        return "a system of its own" if code == _USER_DEFINED else f"EPSG:{code}"

    @property
    def grid_text(self) -> str:
        """Origin and pixel size."""
        a, b, c, d, e, f = self.affine
        turned = f", turned ({b:.6g}, {d:.6g})" if b or d else ""
        return f"origin ({c:.10g}, {f:.10g}), pixels of {abs(a):.6g}x{abs(e):.6g}{turned}"


def read_georeference(raw: bytes | io.BytesIO | io.BufferedReader) -> Georeference | None:
    """Return where a TIFF lies, None for a file without georeference. The file has been decoded before."""
    with suppress(*DAMAGED_TAGS), opened_tiff(raw) as file:
        if file is None:
            return None
        page = file.pages.first
        tags = {
            code: page.tags[code].value
            for code in (_SCALE, _TIEPOINT, _TRANSFORMATION, _KEYS, _DOUBLES)
            if code in page.tags
        }
        keys = _keys(tags)
        affine = _affine(tags, is_point=keys.get(_RASTER_TYPE) == _POINT)
        return None if affine is None else Georeference(_system(keys, tags), affine)
    return None


def _keys(tags: dict[int, Any]) -> dict[int, int]:
    """Return the keys whose value is in the directory itself."""
    directory = np.ravel(tags.get(_KEYS, ()))[4:]
    entries = directory[: len(directory) // 4 * 4].reshape(-1, 4).tolist()
    return {key: value for key, place, _, value in entries if place == 0}


def _system(keys: dict[int, int], tags: dict[int, Any]) -> tuple[tuple[int, object], ...]:
    named = {key: value for key, value in keys.items() if key in _REFERENCE}
    if _USER_DEFINED not in named.values():
        return tuple(sorted(named.items()))
    whole = {key: value for key, value in keys.items() if key != _RASTER_TYPE}
    return (*sorted(whole.items()), (_DOUBLES, tuple(np.ravel(tags.get(_DOUBLES, ())).tolist())))


def _affine(tags: dict[int, Any], *, is_point: bool) -> tuple[float, ...] | None:
    if _TRANSFORMATION in tags and np.size(tags[_TRANSFORMATION]) == 16:
        a, b, _, c, d, e, _, f, *_ = np.ravel(tags[_TRANSFORMATION]).tolist()
    elif np.size(tags.get(_SCALE, ())) >= 2 and np.size(tags.get(_TIEPOINT, ())) == 6:
        (sx, sy, *_), (col, row, _, x, y, _) = (np.ravel(tags[code]).tolist() for code in (_SCALE, _TIEPOINT))
        a, b, c, d, e, f = sx, 0.0, x - col * sx, 0.0, -sy, y + row * sy
    else:
        return None
    if is_point:  # the coordinates are those of the pixel's centre
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return a, b, c, d, e, f


def differing_grids(image: Georeference, mask: Georeference, hw: tuple[int, int]) -> str | None:
    """Return in words how the mask of an image of this size lies elsewhere, None where both lie on each other.

    A file that names no reference system is taken to have the other's.
    """
    if image.system and mask.system and image.system != mask.system:
        one, other = image.system_text, mask.system_text
        if one == other:
            other = "another with the same name"
        return f"the mask is in {other}, its image in {one}"
    corners = np.array([[0, 0, 1], [hw[1], 0, 1], [0, hw[0], 1], [hw[1], hw[0], 1]], float)  # (col, row, 1)
    apart = _placed(mask, corners) - _placed(image, corners)  # (4, 2)
    (a, b, _), (d, e, _) = np.reshape(image.affine, (2, 3))
    pixel = max(np.hypot(a, d), np.hypot(b, e))
    if np.abs(apart).max() <= _TOLERANCE_PX * pixel:
        return None
    return f"the mask lies on another grid ({mask.grid_text}) than its image ({image.grid_text})"


def _placed(where: Georeference, corners: Shaped[np.ndarray, "n 3"]) -> Shaped[np.ndarray, "n 2"]:
    return corners @ np.reshape(where.affine, (2, 3)).T
