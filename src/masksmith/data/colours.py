"""Colours of masks as numbers: red, green and blue of a pixel packed into one, so that whole images are looked up."""

from collections.abc import Mapping, Sequence

import numpy as np

from masksmith.core.arrays import IGNORE, Image, Int32, Mask, Shaped

Rgb = tuple[int, int, int]
Packed = Int32[np.ndarray, "h w"]

_CHUNK = 1 << 20  # colours times classes that are compared at once


def pack_colours(image: Image) -> Packed:
    """Return ``red << 16 | green << 8 | blue`` of each pixel of an image of 8 bits; grey (h, w, 1) has equal parts."""
    wide = image.astype(np.int32)
    if image.shape[2] < 3:
        return wide[..., 0] * 0x010101
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def pack(rgb: Sequence[int]) -> int:
    """Return a colour as a number."""
    red, green, blue = rgb
    return red << 16 | green << 8 | blue


def unpack(colour: int) -> Rgb:
    """Return red, green and blue of a number."""
    return colour >> 16, colour >> 8 & 255, colour & 255


def hex_name(colour: int) -> str:
    """Return a colour as ``#c81e1e``."""
    return f"#{colour:06x}"


def count_values(values: Shaped[np.ndarray, " n"]) -> dict[int, int]:
    """Return value -> how often it occurs; fast where neighbours are mostly equal, as in masks."""
    if not len(values):
        return {}
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    found, at = np.unique(values[starts], return_inverse=True)
    lengths = np.bincount(at.reshape(-1), weights=np.diff(np.append(starts, len(values))))
    return dict(zip(found.tolist(), lengths.astype(int).tolist(), strict=True))


def look_up(colours: Packed, meaning: Mapping[int, int]) -> Mask:
    """Return the meaning of each pixel's colour, IGNORE where it has none."""
    keys = np.array(sorted(meaning), np.int32)
    values = np.array([meaning[key] for key in keys.tolist()], np.uint8)
    at = np.searchsorted(keys, colours).clip(max=len(keys) - 1)
    return np.where(keys[at] == colours, values[at], np.uint8(IGNORE))


def look_up_nearest(colours: Packed, meaning: Mapping[int, int]) -> Mask:
    """Return the meaning of the colour that is nearest to each pixel's (Euclidean in RGB)."""
    different, at = np.unique(colours, return_inverse=True)
    nearest, _ = nearest_colours(different, list(meaning))
    values = np.array(list(meaning.values()), np.uint8)
    return values[nearest][at.reshape(colours.shape)]


def nearest_colours(
    colours: Int32[np.ndarray, " n"], known: Sequence[int]
) -> tuple[Shaped[np.ndarray, " n"], Shaped[np.ndarray, " n"]]:
    """Return for each colour the place of the nearest known one, and its distance."""
    anchors = _parts(np.array(known, np.int32))
    step = max(1, _CHUNK // max(1, len(known)))
    places, far = np.zeros(len(colours), np.intp), np.zeros(len(colours))
    for start in range(0, len(colours), step):
        part = slice(start, start + step)
        apart = ((_parts(colours[part])[:, None] - anchors) ** 2).sum(axis=-1)  # (n, known)
        places[part] = apart.argmin(axis=1)
        far[part] = np.sqrt(apart.min(axis=1))
    return places, far


def _parts(colours: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, "n 3"]:
    return np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=-1)


def without_transparent(image: Image) -> Shaped[np.ndarray, "h w k"]:
    """Return a mask picture without its alpha: what is transparent is 0.

    Where one colour is drawn in alpha alone, what is opaque has the largest value.
    """
    if image.shape[2] not in (2, 4) or image.dtype.kind != "u":
        return image
    drawn, top = image[..., :-1], image.dtype.type(np.iinfo(image.dtype).max)
    opaque = image[..., -1:] > top // 2
    if not opaque.all() and (drawn == drawn[:1, :1]).all():
        return np.where(opaque, top, image.dtype.type(0))
    return np.where(opaque, drawn, image.dtype.type(0))
