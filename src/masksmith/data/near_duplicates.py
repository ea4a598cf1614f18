"""Nearly equal images: the same picture stored, scaled or brightened anew, or a scene that hardly moved.

Two images are near-duplicates where at most 14 of the 63 bits of their perceptual hashes differ, and then their
thumbnails agree: as a whole (correlation at least 0.9), and in what is left of them without the smooth part (at least
0.85). The whole alone would join all pictures of one layout (a road below a sky, a gradient), the hash alone flat ones.
The limits are measured: benchmarks/check.py.

All pairs of hashes are compared by matrix products of blocks, and thumbnails wait in a temporary file, so that memory
hardly grows with the number of images: 20,000 take seconds. Turned and mirrored images are not looked for.
"""

import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from masksmith.core.arrays import Float, Int, UInt8
from masksmith.core.interrupt import check_stop
from masksmith.data.look import BITS, SIDE, Look, Thumbnail

MOST_BITS = 14
"""Of two hashes that differ."""
LEAST_WHOLE = 0.9
"""Correlation of two thumbnails."""
LEAST_DETAIL = 0.85
"""Correlation of their details."""
_BLOCK = 1024
_AT_ONCE = 4096  # pairs whose thumbnails are compared before the groups are looked at again


def near_groups(
    seen: Look, thumbnail_of: Callable[[int], Thumbnail], *, folder: Path | None = None
) -> Int[np.ndarray, " n"]:
    """Return the group of each image, the smallest number of an image in it: identical and nearly equal ones share it.

    A near-duplicate of a near-duplicate belongs to the group. Constant images are alone, or with their identical ones.

    Args:
        seen: What is known of the images.
        thumbnail_of: Number of an image -> its thumbnail; asked once for each that has a hash like another's.
        folder: Where the temporary file lies; None: where the system has such files.
    """
    _, first, home = np.unique(seen.pixels, return_index=True, return_inverse=True)
    groups = first[home.ravel()].astype(np.int64)
    kept = np.flatnonzero((groups == np.arange(len(groups))) & ~seen.constant)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        small = _kept_in(file.fileno(), thumbnail_of)

        def agree(a: int, b: int) -> bool:
            (whole_a, detail_a), (whole_b, detail_b) = small(a), small(b)
            return _dot(detail_a, detail_b) >= LEAST_DETAIL and _dot(whole_a, whole_b) >= LEAST_WHOLE

        for rows in range(0, len(kept), _BLOCK):
            ours = unpacked(seen.hashes[kept[rows : rows + _BLOCK]])
            for columns in range(rows, len(kept), _BLOCK):
                check_stop()
                alike = ours @ unpacked(seen.hashes[kept[columns : columns + _BLOCK]]).T
                at = np.argwhere(alike >= BITS - 2 * MOST_BITS)
                pairs = kept[at + np.array([rows, columns])]
                pairs = pairs[pairs[:, 0] < pairs[:, 1]]
                while len(pairs := pairs[groups[pairs[:, 0]] != groups[pairs[:, 1]]]):
                    for a, b in pairs[:_AT_ONCE].tolist():
                        if groups[a] != groups[b] and agree(a, b):
                            low, high = sorted((groups[a], groups[b]))
                            groups[groups == high] = low
                    pairs = pairs[_AT_ONCE:]
    return groups


def _kept_in(
    descriptor: int, thumbnail_of: Callable[[int], Thumbnail]
) -> Callable[[int], Float[np.ndarray, "2 p"]]:
    """Return a function from an image's number to its thumbnail and the detail of it; each is made once."""
    made: set[int] = set()
    size = 2 * SIDE * SIDE * np.dtype(np.float16).itemsize

    @lru_cache(maxsize=2 * _BLOCK)
    def small(at: int) -> Float[np.ndarray, "2 p"]:
        if at in made:
            return np.frombuffer(os.pread(descriptor, size, at * size), np.float16).reshape(2, -1)
        whole = thumbnail_of(at)
        both = np.stack([whole.ravel(), detail(whole).ravel()]).astype(np.float16)
        os.pwrite(descriptor, both.data, at * size)
        made.add(at)
        return both

    return small


def unpacked(hashes: UInt8[np.ndarray, "n 8"]) -> Float[np.ndarray, "n 63"]:
    """Return hashes as -1 and 1: the product of two is BITS less twice the number of bits that differ."""
    return np.unpackbits(hashes, axis=1)[:, :BITS].astype(np.float32) * 2 - 1


def _dot(a: Float[np.ndarray, " p"], b: Float[np.ndarray, " p"]) -> float:
    return float(a.astype(np.float32) @ b.astype(np.float32))


def detail(whole: Thumbnail) -> Thumbnail:
    """Return a thumbnail without its smooth part, large values reduced so that one bright spot does not decide."""
    fine = whole - cv2.GaussianBlur(whole, (0, 0), SIDE / 16, borderType=cv2.BORDER_REFLECT)
    fine = fine / (np.abs(fine) + np.sqrt((fine**2).mean()) + 1e-9)
    fine -= fine.mean()
    return np.asarray(fine / (np.sqrt((fine**2).sum()) + 1e-9))


def own_kind(seen: Look, kinds: Int[np.ndarray, " n"]) -> tuple[float, float]:
    """Return the share of images whose most similar other image is of their own kind, and that share by chance."""
    kept = np.flatnonzero(~seen.constant)
    kinds = kinds[kept]
    own = 0
    for rows in range(0, len(kept), _BLOCK):
        check_stop()
        ours = unpacked(seen.hashes[kept[rows : rows + _BLOCK]])
        nearest = np.full(min(_BLOCK, len(kept) - rows), -np.inf, np.float32)
        found = np.zeros(len(nearest), np.int64)
        for columns in range(0, len(kept), _BLOCK):
            alike = ours @ unpacked(seen.hashes[kept[columns : columns + _BLOCK]]).T
            if rows == columns:
                np.fill_diagonal(alike, -np.inf)
            best = alike.argmax(axis=1)
            value = alike[np.arange(len(best)), best]
            better = value > nearest
            nearest[better], found[better] = value[better], best[better] + columns
        own += int((kinds[found] == kinds[rows : rows + _BLOCK]).sum())
    sizes = np.bincount(np.unique(kinds, return_inverse=True)[1].ravel())
    num = max(len(kept), 2)
    return own / num, float((sizes * (sizes - 1)).sum() / (num * (num - 1)))
