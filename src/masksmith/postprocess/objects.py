"""The rule that makes objects of an image's planes: seeds, and a watershed that never loses foreground.

The planes are those that ``augment.object_planes`` makes the target of: foreground, border and distance. A seed is a
region where the distance, less half the border, is high. (Half: on true planes of the Data Science Bowl 2018, blurred
and with noise, dsb_map is 0.01 to 0.02 better than with all of it, or none.) From the seeds objects grow over the
foreground, always where that surface is highest first, until they meet: watershed by flooding (Beucher & Meyer 1993).
A region of the foreground without a seed is an object of its own.

OpenCV's watershed floods by the difference of two pixels, not by their height, and gives the pixels where objects meet
to none; so the flooding here is our own (on those planes, blurred: dsb_map 0.89, where OpenCV's, filled up, has 0.76;
see docs/decisions/0016-objects.md). It is needed only where a region has several seeds, a small part of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import cv2
import numpy as np

from masksmith.core.arrays import Int, Labels, Shaped, UInt8, UInt16
from masksmith.metrics.objects import label_components
from masksmith.prediction.store import MAX_CODE, code_of, prob_of

ObjectCodes = UInt16[np.ndarray, "h w 3"]
"""Codes of foreground, border and distance."""
_STEPS = 16
"""Heights that the flooding tells apart; with 32 the scores of the images of nuclei are the same."""


@dataclass(frozen=True)
class ObjectRule:
    """How objects are made; thresholds are codes, a pixel exceeds one if ``code > threshold``."""

    foreground: int
    seed: int
    """Threshold of the distance less half the border. MAX_CODE: there are no seeds, so that regions of the foreground
    are the objects."""
    min_area: int = 0
    """Pixels that an object has at least; smaller ones are removed."""
    min_seed_area: int = 0
    """Pixels that a seed has at least; a smaller one is none."""

    def apply(self, codes: ObjectCodes) -> Labels:
        """Return the objects of an image, (h, w): 0 background, 1, 2 … n in the order of their first pixels."""
        return _in_order(self.grow(codes), self.min_area)

    def grow(self, codes: ObjectCodes) -> Labels:
        """Return the objects before small ones are removed."""
        inside = codes[..., 0] > self.foreground
        regions, _ = label_components(inside)
        height = cv2.subtract(codes[..., 2], codes[..., 1] // 2)  # not below 0
        seeds = _seeds(inside & (height > self.seed), self.min_seed_area)
        return flood(regions.astype(np.int32), seeds, (height // (2**16 // _STEPS)).astype(np.uint8))

    def describe(self, *, many_sizes: bool = False) -> str:
        """Return the rule as a sentence."""
        del many_sizes
        text = f"foreground = p > {prob_of(self.foreground):.3f}"
        if self.seed >= MAX_CODE:
            text += ", an object each region"
        else:
            text += f", an object each seed: distance - border / 2 > {prob_of(self.seed):.3f}"
            if self.min_seed_area > 1:
                text += f" over at least {self.min_seed_area} pixels"
        if self.min_area > 1:
            text += f", without objects below {self.min_area} pixels"
        return text


PLAIN_OBJECTS = ObjectRule(foreground=code_of(0.5), seed=code_of(0.35))


def candidate_rules(
    *,
    foregrounds: Sequence[float] = (0.4, 0.5, 0.6),
    seeds: Sequence[float] = (0.2, 0.35, 0.5),
    min_areas: Sequence[int] = (0, 15, 40),
) -> list[ObjectRule]:
    """Return the rules to try, the plain one first.

    All thresholds and areas; at the middle threshold of the foreground with larger seeds and without seeds, too.

    Args:
        foregrounds: Thresholds of the foreground, probabilities.
        seeds: Thresholds of the seeds.
        min_areas: Least pixels of an object.
    """
    middle = foregrounds[len(foregrounds) // 2]
    tried = [(f, s, area, 0) for f, s, area in product(foregrounds, seeds, min_areas)]
    tried += [(middle, s, area, 5) for s, area in product(seeds, min_areas)]
    tried += [(middle, 1.0, area, 0) for area in min_areas]
    rules = [ObjectRule(code_of(f), code_of(s), area, least) for f, s, area, least in tried]
    return list(dict.fromkeys([PLAIN_OBJECTS, *rules]))


def apply_rules(codes: ObjectCodes, rules: Sequence[ObjectRule]) -> Iterator[Labels]:
    """Yield the objects that each rule makes; rules that differ in ``min_area`` alone share the watershed.

    For ``sweep_rules``: neighbours in the list are compared.
    """
    before, grown = None, np.zeros((0, 0), np.int32)
    for rule in rules:
        same = replace(rule, min_area=0)
        if same != before:
            before, grown = same, rule.grow(codes)
        yield _in_order(grown, rule.min_area)


def _seeds(high: Shaped[np.ndarray, "h w"], min_area: int) -> Int[np.ndarray, "h w"]:
    """Number the regions of at least ``min_area`` pixels; the numbers may have gaps."""
    seeds, count = label_components(high)
    if min_area > 1 and count:
        small = np.bincount(seeds.ravel(), minlength=count + 1) < min_area
        seeds = np.where(small[seeds], 0, seeds)
    return seeds.astype(np.int32)


def _in_order(labels: Labels, min_area: int) -> Labels:
    """Remove small objects and number the others 1, 2 … by their first pixels."""
    spots = np.flatnonzero(labels > 0)
    values, first, areas = np.unique(labels.ravel()[spots], return_index=True, return_counts=True)
    table = np.zeros(int(labels.max(initial=0)) + 1, np.int32)
    kept = np.argsort(first)
    kept = kept[areas[kept] >= min_area]
    table[values[kept]] = np.arange(1, len(kept) + 1)
    return table[labels]


# --- the watershed ---


def flood(regions: Labels, seeds: Labels, height: UInt8[np.ndarray, "h w"]) -> Labels:
    """Grow the seeds over the regions that they lie in, the highest pixels first; a region without one is an object.

    Every pixel of a region has an object in the end, and no other pixel has. Of two objects that reach a pixel in the
    same round, the one with the lower number has it.

    Args:
        regions: Connected regions (8 neighbours) of the foreground, 0 elsewhere.
        seeds: Numbers of the seeds, 0 elsewhere; within regions.
        height: Surface that is flooded from its top.
    """
    first, last = _ends(regions, seeds)
    alone = int(seeds.max(initial=0))
    names = np.where(last > 0, first, alone + np.arange(len(last)))  # of a region with one seed or none
    names[0] = 0
    labels = names.astype(np.int32)[regions]
    shared = (first < last)[regions]  # lies in a region with several seeds
    if shared.any():
        labels[shared] = seeds[shared]
        _flood_shared(labels, shared, height)
    return labels


def _ends(regions: Labels, seeds: Labels) -> tuple[Int[np.ndarray, " regions"], Int[np.ndarray, " regions"]]:
    """Return the lowest and the highest number of a seed in each region; 0 and 0 where it has none."""
    spots = np.flatnonzero(seeds)
    homes, numbers = regions.ravel()[spots], seeds.ravel()[spots]
    count = int(regions.max(initial=0)) + 1
    none = np.iinfo(np.int32).max
    first, last = np.full(count, none, np.int32), np.zeros(count, np.int32)
    np.minimum.at(first, homes, numbers)
    np.maximum.at(last, homes, numbers)
    return np.where(first == none, 0, first), last


def _flood_shared(
    labels: Labels, shared: Shaped[np.ndarray, "h w"], height: UInt8[np.ndarray, "h w"]
) -> None:
    """Fill the pixels of ``shared`` that have no number yet, in place."""
    flat = _rimmed(labels)
    level = _rimmed(np.where(shared & (labels == 0), height.astype(np.int16) + 1, 0))  # 0: nothing to fill
    wide = labels.shape[1] + 2
    around = np.array([-wide - 1, -wide, -wide + 1, -1, 1, wide - 1, wide, wide + 1])
    place = np.empty(flat.shape, np.int32)
    front = np.flatnonzero((flat > 0) & _rimmed(shared))
    for least in range(int(level.max()), 0, -1):
        front = front[(level[front[:, None] + around] > 0).any(axis=1)]  # those with something left to reach
        reached = front
        while len(reached):
            near = reached[:, None] + around
            fills = level[near] >= least
            at, numbers = near[fills], np.broadcast_to(flat[reached][:, None], near.shape)[fills]
            flat[at] = np.iinfo(np.int32).max
            np.minimum.at(flat, at, numbers)
            level[at] = 0
            place[at] = np.arange(len(at))
            reached = at[place[at] == np.arange(len(at))]  # each once
            front = np.concatenate([front, reached])
    labels[:] = flat.reshape(-1, wide)[1:-1, 1:-1]


def _rimmed(plane: Shaped[np.ndarray, "h w"]) -> Shaped[np.ndarray, " pixels"]:
    """Return a plane within a rim of 0, row by row: a neighbour is an index away."""
    rimmed = np.zeros((plane.shape[0] + 2, plane.shape[1] + 2), plane.dtype)
    rimmed[1:-1, 1:-1] = plane
    return rimmed.ravel()
