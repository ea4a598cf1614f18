"""One pass over decoded images: what is compared of each of them, kept beside the store.

A row an image, half a kilobyte each: a hash of its pixels, whether it is constant, a perceptual hash, its four edges,
and a few numbers. What looks for near-duplicates, neighbouring tiles and shift reads these rows, not the images.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from masksmith.core.arrays import Float, Image, Shaped, UInt8
from masksmith.core.files import atomic_path, digest_of
from masksmith.core.progress import track
from masksmith.data.store import Store

VERSION = "look 2"
SIDE = 32
"""Of a thumbnail, in pixels."""
BITS = 63
"""Of a perceptual hash."""
EDGE = 64
"""Samples of an edge."""
MOST_PIXELS = 2**26
"""Of a larger image every few rows and columns are compared."""
MOST_EDGES = 30_000
"""Of more images no edges are kept: comparing all of them takes the square of their number."""
MOST_BANDS = 12
"""The numbers of an image are those of its first bands."""
_SAMPLED = 64  # rows and columns that an image's numbers are taken from
_NUMBERS = (
    "darkest (p5)",
    "brightness (p50)",
    "brightest (p95)",
    "contrast (standard deviation)",
    "gradient",
)

Thumbnail = Float[np.ndarray, "32 32"]


@dataclass(frozen=True)
class Look:
    """What was seen of each image of a store, in its order; n images."""

    names: Shaped[np.ndarray, " n"]
    pixels: Shaped[np.ndarray, " n"]
    """Hash of size, type and pixels, 32 hex digits: equal for identical images."""
    constant: Shaped[np.ndarray, " n"]
    """Whether every band has one value only."""
    hashes: UInt8[np.ndarray, "n 8"]
    """Perceptual hash, BITS packed bits (see perceptual_hash)."""
    sizes: Shaped[np.ndarray, "n 2"]
    """Height and width."""
    edges: Float[np.ndarray, "m 4 64"]
    """Left, right, top and bottom edge (see outer_edges); m is n, or 0 of more than MOST_EDGES images."""
    numbers: Float[np.ndarray, "n k"]
    """See describe_numbers."""

    def __len__(self) -> int:
        return len(self.names)


def hash_of_parts(parts: Iterable[Image], shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Return a hash of an image's size, type and pixels (not of its file), of which some rows come after others."""
    state = hashlib.blake2b(f"{shape}{dtype}".encode(), digest_size=16)
    for part in parts:
        state.update(np.ascontiguousarray(part).data)
    return state.hexdigest()


def pixel_hash(image: Image) -> str:
    """Return hash_of_parts of a whole image."""
    return hash_of_parts([image], image.shape, image.dtype)


def band_range(image: Image) -> tuple[Shaped[np.ndarray, " c"], Shaped[np.ndarray, " c"]]:
    """Return the least and the largest value of each band; NaN (no data) does not count, and is there where all is."""
    height, width, channels = image.shape
    lines = image.reshape(height, width * channels)  # many times faster than both axes at once
    low, high = (one.reduce(lines).reshape(width, channels) for one in (np.fmin, np.fmax))
    return np.fmin.reduce(low), np.fmax.reduce(high)


def are_constant(parts: Iterable[Image]) -> bool:
    """Whether every band of an image has one value only, or no data: there is nothing in it."""
    lows, highs = zip(*map(band_range, parts), strict=True)
    low, high = np.fmin.reduce(lows), np.fmax.reduce(highs)
    return bool(((low == high) | (low != low)).all())


def is_constant(image: Image) -> bool:
    """Return are_constant of a whole image."""
    return are_constant([image])


def thumbnail(image: Image) -> Thumbnail:
    """Return the mean of an image's bands, each of mean 0 and deviation 1, as SIDE x SIDE pixels of mean 0 and norm 1.

    A constant band counts nothing, a constant image is 0 everywhere. No data has its band's mean.
    """
    small = np.concatenate([_shrunk(image[..., at : at + 4]) for at in range(0, image.shape[2], 4)], axis=2)
    return _unit(_unit(small).mean(axis=2)[..., None])[..., 0]


def _shrunk(bands: Image) -> Float[np.ndarray, "32 32 c"]:
    if bands.dtype.kind == "f":
        finite = np.isfinite(bands)
        if not finite.all():
            bands = np.where(finite, bands, bands.mean(where=finite) if finite.any() else 0).astype(
                np.float32
            )
    if bands.dtype not in (np.uint8, np.uint16, np.int16, np.float32):
        bands = bands.astype(np.float32)
    small = cv2.resize(np.ascontiguousarray(bands), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return small.reshape(SIDE, SIDE, -1).astype(np.float32)


def _unit(bands: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    centred = bands - bands.mean(axis=(0, 1))
    norm = np.sqrt((centred**2).sum(axis=(0, 1)))
    return np.divide(
        centred, norm, out=np.zeros_like(centred), where=norm > 1e-6 * np.abs(bands).max(initial=1e-9)
    )


def perceptual_hash(small: Thumbnail) -> UInt8[np.ndarray, " 8"]:
    """Return the signs of a thumbnail's 63 lowest frequencies (pHash), packed.

    Source: Zauner 2010, Implementation and benchmarking of perceptual image hash functions.
    """
    return np.packbits(cv2.dct(small)[:8, :8].ravel()[1:] > 0)


def outer_edges(image: Image) -> Float[np.ndarray, "4 64"]:
    """Return what would lie half a pixel beyond the left, right, top and bottom edge, mean of the bands, norm 1.

    Two tiles of one picture continue each other: half a pixel beyond the right edge of one is where half a pixel
    beyond the left edge of the other is. An edge of one value is 0 everywhere.
    """
    lines = ((image[:, 0], image[:, 1]), (image[:, -1], image[:, -2])) if image.shape[1] > 1 else ()
    columns = [_beyond(*pair) for pair in lines] or [np.zeros(EDGE, np.float32)] * 2
    ends = ((image[0], image[1]), (image[-1], image[-2])) if image.shape[0] > 1 else ()
    rows = [_beyond(*pair) for pair in ends] or [np.zeros(EDGE, np.float32)] * 2
    return np.stack([*columns, *rows]).astype(np.float16)


def _beyond(last: Shaped[np.ndarray, "n c"], before: Shaped[np.ndarray, "n c"]) -> Float[np.ndarray, " 64"]:
    line, inner = (np.nan_to_num(one.astype(np.float32)).mean(axis=1) for one in (last, before))
    line = line + (line - inner) / 2
    line = cv2.resize(line[None], (EDGE, 1), interpolation=cv2.INTER_AREA)[..., None]
    return _unit(line)[0, :, 0]


def number_names(bands: int) -> list[str]:
    """Return what the numbers of an image with so many bands are called."""
    kept = min(bands, MOST_BANDS)
    said = [f"{name}{f' of band {at}' if kept > 1 else ''}" for at in range(kept) for name in _NUMBERS]
    return [*said, "height", "width"]


def describe_numbers(image: Image) -> Float[np.ndarray, " k"]:
    """Return percentiles, deviation and mean gradient of each band, height and width (see number_names).

    They are taken from at most 64 x 64 pixels in even steps; no data (NaN) does not count.
    """
    h, w = image.shape[:2]
    every = image[:: -(-h // _SAMPLED), :: -(-w // _SAMPLED), :MOST_BANDS].astype(np.float32)
    found: list[float] = []
    for at in range(every.shape[2]):
        band = every[..., at]
        known = band[np.isfinite(band)]
        if known.size:
            steps = [np.abs(np.diff(band, axis=axis)) for axis in (0, 1)]
            steps = [one[np.isfinite(one)] for one in steps]
            gradient = np.concatenate(steps)
            p5, p50, p95 = np.percentile(known, (5, 50, 95))
            found += [p5, p50, p95, float(known.std()), float(gradient.mean()) if gradient.size else 0.0]
        else:
            found += [np.nan] * len(_NUMBERS)
    return np.array([*found, h, w], np.float32)


def look(images: Store) -> Look:
    """Look at every image of a store once; what was seen is kept beside it, and read as long as the store is the same.

    Raises:
        InputError: An image was damaged since it was decoded.
    """
    path = images.path.with_suffix(".look.npz")
    entries = (f"{name} {entry}" for name, entry in images.entries.items())
    key = digest_of(chain((VERSION, str(images.dtype)), entries))
    kept = read_arrays(path, key)
    if kept is not None:
        return Look(**kept)
    seen = _look(images)
    write_arrays(path, key, vars(seen))
    return seen


def _look(images: Store) -> Look:
    num, bands = len(images), images.channels
    seen = Look(
        np.array(list(images), dtype=str),
        np.zeros(num, "S32"),
        np.zeros(num, bool),
        np.zeros((num, 8), np.uint8),
        np.array([images.shape(name) for name in images], np.int64).reshape(num, 2),
        np.zeros((num if num <= MOST_EDGES else 0, 4, EDGE), np.float16),
        np.zeros((num, len(number_names(bands))), np.float32),
    )
    for at, name in enumerate(track(images, total=num, what=f"comparing {images.path.stem}")):
        shape = (*images.shape(name), bands)
        seen.pixels[at] = hash_of_parts(images.parts(name), shape, images.dtype)
        seen.constant[at] = are_constant(images.parts(name))
        image = thinned(images, name)
        seen.hashes[at] = perceptual_hash(thumbnail(image))
        seen.numbers[at] = describe_numbers(image)
        if len(seen.edges):
            seen.edges[at] = outer_edges(image)
    return seen


def thinning(hw: tuple[int, int], most: int = MOST_PIXELS) -> int:
    """Return of how many rows, and columns, one is kept of an image: 1 up to 4 times ``most`` pixels."""
    return max(1, math.isqrt(hw[0] * hw[1] // most))


def thinned(images: Store, name: str, most: int = MOST_PIXELS) -> Image:
    """Return an image; of one of many more pixels than ``most`` every few rows and columns (see thinning)."""
    step = thinning(images.shape(name), most)
    if step == 1:
        return images.checked(name)
    rows, first = [], 0
    for part in images.parts(name):
        rows.append(part[-first % step :: step, ::step].copy())
        first += len(part)
    return np.concatenate(rows)


def read_arrays(path: Path, key: str) -> dict[str, Shaped[np.ndarray, "..."]] | None:
    """Return the arrays of a file of write_arrays; None if it is not there, damaged, or of another key."""
    try:
        with path.open("rb") as file, np.load(file) as kept:
            arrays = {name: kept[name] for name in kept}
    except Exception:  # a damaged archive raises what it likes; it is made again
        return None
    return arrays if str(arrays.pop("key", "")) == key else None


def write_arrays(path: Path, key: str, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Write arrays beside a store, with the key of what they were made from."""
    named: dict[str, Any] = {"key": np.array(key), **arrays}
    with atomic_path(path) as temporary, temporary.open("wb") as raw:
        np.savez(raw, **named)


def joined(train: Look, test: Look) -> Look:
    """Return the rows of two stores as one, those of the training images first."""
    parts = {one.name: (getattr(train, one.name), getattr(test, one.name)) for one in fields(Look)}
    if train.edges.shape[0] + test.edges.shape[0] != len(train) + len(test):
        parts["edges"] = (train.edges[:0], test.edges[:0])
    if not len(test):
        return train
    return Look(**{name: np.concatenate(pair) for name, pair in parts.items()})
