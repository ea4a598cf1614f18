"""The target of a model of objects: from a label map, after the warp, to planes of foreground, border and distance.

Objects that touch cannot be told apart by their foreground. The border is where they meet, as the first place of the
Data Science Bowl 2018 drew it (https://github.com/selimsef/dsb2018_topcoders): a pixel that sees two objects within a
reach that grows with the size of its own; and the edge of every object that is large enough to have more than that.
The distance to the boundary, as a share of each object's greatest, has one hill an object whatever its size; the hills
are the seeds of the watershed (Bai & Urtasun 2017, https://arxiv.org/abs/1611.08303, learn the distance in steps).
"""

import cv2
import numpy as np

from masksmith.core.arrays import (
    DISTANCE_TOP,
    IGNORE,
    UNJUDGED,
    Float,
    Int,
    Labels,
    Shaped,
    UInt8,
    dense_labels,
)

FOREGROUND, BORDER, DISTANCE = range(3)
"""The planes, in this order."""
REACHES = ((0, 1), (300, 2), (2000, 3))
"""Area of an object in pixels, from which on -> how far its pixels look for another, in rows and columns: theirs."""
GAP_REACH = 3
"""How far a pixel of the background looks for two objects."""
_EDGE_FROM = 3.0
"""Greatest distance in an object from which on its edge is border: a smaller one would be little else."""


def object_planes(labels: Labels) -> UInt8[np.ndarray, "h w 3"]:
    """Return the planes of a label map.

    An object's edge is its pixels with an 8-neighbour outside it; the edge of the image is none, as what is cut off
    goes on. A number may have several parts; no number matters.

    Args:
        labels: (h, w) int32: 0 background, a number for each object, UNJUDGED.

    Returns:
        uint8 (h, w, 3), IGNORE in all planes where it is not judged. Foreground: 0 and 1. Border: 0 and 1, on objects
        and in the gaps between them. Distance: 0 outside objects, else one more than the distance to the object's edge
        in pixels, as a share of the greatest in the object, as 0 … DISTANCE_TOP.
    """
    dense, count = dense_labels(labels)
    unjudged = labels == UNJUDGED
    inside = dense > 0
    spots = np.flatnonzero(inside)
    own = dense.ravel()[spots]
    seen = dense.astype(np.float32)  # what OpenCV looks for neighbours in; exact below 2**24 objects
    seen[unjudged] = -1
    edge = inside & ((cv2.dilate(seen, _square(1)) != seen) | (cv2.erode(seen, _square(1)) != seen))
    apart = _distances(inside, edge).ravel()[spots]
    tops = np.ones(count + 1, np.float32)
    np.maximum.at(tops, own, apart)
    distance, border = np.zeros(labels.shape, np.uint8), _contact(seen, spots, own, count)
    distance.ravel()[spots] = np.rint(apart * (DISTANCE_TOP / tops)[own])
    border.ravel()[spots] |= edge.ravel()[spots] & (tops >= _EDGE_FROM)[own]
    planes = cv2.merge([inside.view(np.uint8), border.view(np.uint8), distance])  # in the order of the names
    planes[unjudged] = IGNORE
    return planes


def _square(reach: int) -> UInt8[np.ndarray, "side side"]:
    return np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)


def _distances(
    inside: Shaped[np.ndarray, "h w"], edge: Shaped[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """Return the distance of each object's pixels to its edge, plus 1.

    One transform serves all objects: who leaves an object crosses its own edge before another's.
    """
    if not edge.any():  # no object, or one that fills the image
        return np.ones(inside.shape, np.float32)
    within = (inside & ~edge).view(np.uint8)
    return (
        cv2.distanceTransform(within, cv2.DIST_L2, cv2.DIST_MASK_5) + 1
    )  # within 2%; the exact one takes 6 times as long


def _contact(
    seen: Float[np.ndarray, "h w"],
    spots: Int[np.ndarray, " pixels"],
    own: Int[np.ndarray, " pixels"],
    count: int,
) -> Shaped[np.ndarray, "h w"]:
    """Return which pixels see two objects within the reach of their own size.

    Args:
        seen: Numbers of the objects; others are 0 or below.
        spots: The pixels of objects, and in ``own`` the number of each.
        own: 1 … count.
        count: Of the objects.
    """
    least, reaches = (np.array(one) for one in zip(*REACHES, strict=True))
    areas = np.bincount(own, minlength=count + 1)
    reach_of = reaches[np.searchsorted(least, areas, side="right") - 1].astype(np.uint8)
    reach = np.full(seen.shape, GAP_REACH, np.uint8)
    reach.ravel()[spots] = reach_of[own]
    others = np.where(seen > 0, seen, np.float32(np.inf))
    found = np.zeros(seen.shape, bool)
    for far in {GAP_REACH, *reach_of[1:].tolist()}:
        lowest, highest = cv2.erode(others, _square(far)), cv2.dilate(seen, _square(far))
        found |= (reach == far) & (lowest < highest)
    return found
