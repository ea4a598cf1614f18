"""The rule that makes a mask of an image's probabilities.

The order is that of SIIM-ACR's report: probabilities at the true size of the image, threshold, then small regions.

The triplet rule (SIIM-ACR's first place, https://github.com/sneddy/pneumothorax-segmentation): an image has a mask only
if at least ``min_pixels`` of its pixels are above the top threshold; its mask is then every pixel above
the bottom threshold. Here the number is relative: it is meant for the median image, and in an image of another
size it is the same share of the area.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
from jaxtyping import Int

from masksmith.core.arrays import Codes, Mask, Shaped
from masksmith.postprocess.config import TuningConfig
from masksmith.prediction.store import code_of, prob_of

_BAND_PIXELS = 2**24
Area = TypeVar("Area", int, Int[np.ndarray, " n"])


@dataclass(frozen=True)
class Rule:
    """The triplet rule; thresholds are codes, a pixel exceeds one if ``code > threshold``."""

    top: int
    min_pixels: int
    bottom: int
    component_area_frac: float = 0.0
    """Regions of the mask up to this share of the image's area are removed."""
    of_pixels: int | None = None
    """Area of the image that ``min_pixels`` is meant for; None: it is the same number in an image of any size."""

    def least_of(self, area: Area) -> Area:
        """Return the pixels that must exceed the top threshold in images of these areas.

        It is ``min_pixels`` in an image of ``of_pixels``, and the same share of another, rounded up to a whole pixel.
        """
        if self.of_pixels is None:
            return 0 * area + self.min_pixels
        return -(
            -self.min_pixels * area // self.of_pixels
        )  # integers: exact up to 2**63, images have 2**28 at most

    def apply(self, codes: Codes) -> Mask:
        """Return the mask (h, w) of 0 and 1 that the rule makes of an image's codes, (h, w) or (h, w, 1)."""
        return self.apply_bands([codes], (codes.shape[0], codes.shape[1]))

    def apply_bands(self, bands: Iterable[Shaped[np.ndarray, "..."]], hw: tuple[int, int]) -> Mask:
        """Return the same of an image of (height, width) whose rows come in bands, top to bottom."""
        mask, high, row = np.empty(hw, np.uint8), 0, 0
        for band in bands:
            codes = band[..., 0] if band.ndim == 3 else band
            high += int(np.count_nonzero(codes > self.top))
            mask[row : row + len(codes)] = codes > self.bottom
            row += len(codes)
        if high < self.least_of(mask.size):
            return np.zeros(hw, np.uint8)
        return remove_small(mask, self.component_area_frac)

    def describe(self, *, many_sizes: bool = False) -> str:
        """Return the rule as a sentence; ``many_sizes`` says that the images have more than one area."""
        text = f"mask = p > {prob_of(self.bottom):.3f}"
        if self.min_pixels > 1 or self.top > self.bottom:
            of_area = f" of every {self.of_pixels}" if many_sizes and self.of_pixels is not None else ""
            text += f", where at least {self.min_pixels}{of_area} pixels have p > {prob_of(self.top):.3f}"
        if self.component_area_frac:
            text += f", without regions up to {self.component_area_frac:.3%} of the image"
        return text


PLAIN = Rule(top=code_of(0.5), min_pixels=0, bottom=code_of(0.5))


def plain_rule(config: TuningConfig) -> Rule:
    """Return what is done without a search: threshold 0.5, and the removal of small regions that is asked for."""
    return replace(PLAIN, component_area_frac=config.component_area_frac)


def remove_small(mask: Mask, area_frac: float) -> Mask:
    """Return a mask of 0 and 1 without its connected regions (8 neighbours) of at most ``area_frac`` of its area."""
    if not area_frac or not mask.any():
        return mask
    if mask.size > _BAND_PIXELS:
        return _remove_small_by_bands(mask, area_frac)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] > area_frac * mask.size
    large[0] = False  # the background
    return large.astype(np.uint8)[labels]


def _remove_small_by_bands(mask: Mask, area_frac: float) -> Mask:
    """Do the same in bands of rows: the numbers of all regions would take four times the memory of the mask."""
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    step = max(1, _BAND_PIXELS // mask.shape[1])
    bands = [slice(row, row + step) for row in range(0, len(mask), step)]
    areas, links, last = [np.zeros(1)], [], np.zeros(0, np.int64)  # region 0 of all is the background
    for rows in bands:
        labels, own = _regions(mask[rows], first=sum(map(len, areas)))
        links += [_touching(last, labels[0])] if len(last) else []
        areas.append(own)
        last = labels[-1]
    each, edges = np.concatenate(areas), np.concatenate([np.zeros((0, 2), np.int64), *links])
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(each), len(each)))
    _, region = connected_components(graph, directed=False)
    large = (np.bincount(region, weights=each) > area_frac * mask.size)[region]
    large[0] = False
    first, found = 1, np.empty_like(mask)
    for rows, own in zip(bands, areas[1:], strict=True):
        found[rows] = large[_regions(mask[rows], first=first)[0]]
        first += len(own)
    return found


def _regions(mask: Mask, *, first: int) -> tuple[Shaped[np.ndarray, "h w"], Shaped[np.ndarray, " regions"]]:
    """Number the regions of a mask from ``first`` on, 0 where there is none, and count the pixels of each."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return np.where(labels > 0, labels + (first - 1), 0), stats[1:, cv2.CC_STAT_AREA]


def _touching(above: Shaped[np.ndarray, " w"], below: Shaped[np.ndarray, " w"]) -> Shaped[np.ndarray, "n 2"]:
    """Return the pairs of regions of two rows that touch, straight or at a corner."""
    pairs = np.concatenate(
        [np.stack(one, 1) for one in ((above, below), (above[1:], below[:-1]), (above[:-1], below[1:]))]
    )
    return np.unique(pairs[(pairs > 0).all(axis=1)], axis=0)
