"""Tiles that lie side by side: the right edge of one goes on as the left edge of another.

Tiles cut from one large picture (a seismic section, a scene, a slide) share their edges. For each image the edge is
looked for that continues its own best. A pair is taken where each is the other's best, and the best is far better than
the second best: its distance 1 - correlation is at most 0.4 of the second's (Lowe's ratio, as in jigsaw solvers).
What chance gives is told by the same search among edges that are turned round, which continue nothing.

Sources:
    Gallagher 2012, Jigsaw puzzles with pieces of unknown orientation, CVPR.
    Lowe 2004, Distinctive image features from scale-invariant keypoints, IJCV 60.
"""

from dataclasses import dataclass

import numpy as np

from masksmith.core.arrays import Float, Int
from masksmith.core.interrupt import check_stop
from masksmith.data.look import Look

MOST_RATIO = 0.4
LEAST_PAIRS = 10
"""Fewer pairs say nothing."""
_TIMES_CHANCE = 10
_ROWS, _COLUMNS = 256, 4096  # edges that are compared at once
_SIDES = ((1, 0), (3, 2))  # the right edge of one is the left edge of the other; bottom and top


@dataclass(frozen=True)
class Neighbours:
    """Pairs of tiles side by side, and how many pairs the turned edges gave."""

    pairs: list[tuple[int, int]]
    """Numbers of images: the left and the right one, or the upper and the lower one."""
    chance: int

    @property
    def sure(self) -> bool:
        """Whether there are more of them than chance gives, by far."""
        return len(self.pairs) >= max(LEAST_PAIRS, _TIMES_CHANCE * self.chance)


def find_neighbours(seen: Look, groups: Int[np.ndarray, " n"]) -> Neighbours:
    """Return the pairs of neighbouring tiles among images of equal size.

    Args:
        seen: What is known of the images; without edges (more than MOST_EDGES images) there are no pairs.
        groups: Group of near-duplicates of each image: the first image of each is compared.
    """
    if not len(seen.edges):
        return Neighbours([], 0)
    kept = np.flatnonzero((groups == np.arange(len(groups))) & ~seen.constant)
    pairs, chance = [], 0
    for size in np.unique(seen.sizes[kept], axis=0):
        ours = kept[(seen.sizes[kept] == size).all(axis=1)]
        if len(ours) < 3:  # no second best
            continue
        for end, begin in _SIDES:
            ends, begins = seen.edges[ours, end], seen.edges[ours, begin]
            found = _best_pairs(ends, begins)
            pairs += [(int(ours[a]), int(ours[b])) for a, b in found]
            chance += len(_best_pairs(ends, begins[:, ::-1]))
    return Neighbours(pairs, chance)


def _best_pairs(ends: Float[np.ndarray, "n 64"], begins: Float[np.ndarray, "n 64"]) -> list[tuple[int, int]]:
    """Return (a, b) where b's begin is the best for a's end by far, and a's end for b's begin."""
    num = len(ends)
    best, second = np.full((2, num), -1, np.float32), np.full((2, num), -1, np.float32)
    at = np.zeros((2, num), np.int64)
    for rows in range(0, num, _ROWS):
        check_stop()
        own = np.arange(rows, min(rows + _ROWS, num))
        block = ends[own].astype(np.float32)
        for columns in range(0, num, _COLUMNS):
            others = np.arange(columns, min(columns + _COLUMNS, num))
            alike = block @ begins[others].astype(np.float32).T
            alike[own[:, None] == others] = -1  # a tile is not its own neighbour
            _take_best(alike, own, columns, best[0], second[0], at[0])
            _take_best(alike.T, others, rows, best[1], second[1], at[1])
    sure = (1 - best) <= MOST_RATIO * (1 - second)
    return [(a, int(b)) for a, b in enumerate(at[0]) if at[1, b] == a and sure[0, a] and sure[1, b]]


def _take_best(
    alike: Float[np.ndarray, "k m"],
    rows: Int[np.ndarray, " k"],
    offset: int,
    best: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " n"],
    at: Int[np.ndarray, " n"],
) -> None:
    """Bring the best and the second best of some rows up to date with a block, whose first column is ``offset``."""
    own = np.arange(len(rows))
    place = alike.argmax(axis=1)
    top = alike[own, place]
    alike[own, place] = -1
    two = alike.max(axis=1)
    alike[own, place] = top
    better = top > best[rows]
    second[rows] = np.maximum(np.where(better, best[rows], second[rows]), np.where(better, two, top))
    at[rows] = np.where(better, place + offset, at[rows])
    best[rows] = np.maximum(best[rows], top)
