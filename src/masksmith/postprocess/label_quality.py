"""How far a training mask is from what members predict that have not seen it, and which image to label next.

Sources:
    Confident learning: Northcutt et al. 2021, https://doi.org/10.1613/jair.1.12125. The soft minimum of pixels: Lad &
    Mueller 2023, https://arxiv.org/abs/2307.05080.
    Mutual information of members: Houlsby et al. 2011, https://arxiv.org/abs/1112.5745.
    Farthest-first: Sener & Savarese 2018, https://arxiv.org/abs/1708.00489.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int, Int8

from masksmith.core.arrays import Codes
from masksmith.core.errors import InputError
from masksmith.prediction.store import MAX_CODE

Truth = Int8[np.ndarray, "h w k"]
"""Planes of 0 and 1, -1 where nothing is judged."""
Probs = Float[np.ndarray, "h w k"]

_TEMPERATURE = 0.1
_FLOOR = 0.01  # of the image
_SHIFT_FRAC = 0.25  # of each side: the farthest that a mask is moved to look for its place
_LEAST_SHIFT_FRAC, _LEAST_SHIFT_PX = 0.03, 2
_CLEARLY_BETTER = 0.6  # what is left of the disagreement, at most, where a mask is called shifted
_LEAST_SIDE = 8
_SIDE = 256  # pixels that a shift is looked for in
_BUCKETS = 8  # times as many uncertain images as are asked for are looked at for their diversity


def noise_score(truth: Truth, probs: Probs, *, exclusive: bool) -> float:
    """Return how surely the members contradict the surest of a mask's wrong pixels, 0 (nowhere) … 1.

    One less the soft minimum, of temperature 0.1, of the probabilities that the judged pixels' own labels have (Lad &
    Mueller 2023): a region that is surely wrong counts, whatever the size of the mask and the quality of its outline.

    Args:
        truth: Planes.
        probs: Of the same planes.
        exclusive: Whether planes are classes that exclude each other.
    """
    own = probs[truth > 0] if exclusive else np.where(truth > 0, probs, 1 - probs)[truth >= 0]
    if not own.size:
        return 0.0
    weights = np.exp(-own.astype(np.float64) / _TEMPERATURE)
    return 1 - float((weights * own).sum() / weights.sum())


def disagreement(truth: Truth, probs: Probs) -> float:
    """Return how much of a mask the members contradict, 0 (nothing) … 1 (all of it, and quite sure).

    Of the judged pixels that are foreground of the mask or of the members (p > 0.5), the share of those that are of one
    alone, each counted by how sure the members are there, |2p - 1|. 1% of the image is added to what it is divided by:
    a few pixels of an empty mask are no full disagreement.
    """
    judged = truth >= 0
    drawn, seen, sure = (truth > 0)[judged], (probs > 0.5)[judged], np.abs(2 * probs - 1)[judged]
    size = np.count_nonzero(drawn | seen) + _FLOOR * truth[..., 0].size
    return float(sure[drawn != seen].sum(dtype=np.float64)) / size


def confident_frac(probs: Probs) -> float:
    """Return the share of pixels whose probability is below 0.2 or above 0.8, as of pseudo-labels."""
    return float(((probs < 0.2) | (probs > 0.8)).mean())


def shift_of(truth: Truth, probs: Probs) -> tuple[int, int] | None:
    """Return (rows, columns) by which a mask has to be moved to fit clearly better, or None.

    The overlap with 2p - 1 of all displacements up to a quarter of each side, by FFT. Clearly: three tenths of the
    disagreement go, and the displacement is 3% of the side or more.
    """
    from scipy.signal import fftconvolve  # type: ignore[import-untyped]

    if min(truth.shape[:2]) < _LEAST_SIDE:
        return None
    step = max(1, -(-max(truth.shape[:2]) // _SIDE))
    y, p = (truth[::step, ::step] > 0).astype(np.float32), probs[::step, ::step].astype(np.float32)
    height, width = y.shape[:2]
    if not y.any():
        return None
    reach = [max(1, int(_SHIFT_FRAC * side)) for side in (height, width)]
    gains = np.zeros((2 * height - 1, 2 * width - 1))
    for plane in range(y.shape[2]):
        gains += fftconvolve(2 * p[..., plane] - 1, y[::-1, ::-1, plane], mode="full")
    part = gains[height - 1 - reach[0] : height + reach[0], width - 1 - reach[1] : width + reach[1]]
    row, column = (int(at) for at in np.unravel_index(int(part.argmax()), part.shape))
    down, right = row - reach[0], column - reach[1]
    far = max(abs(down) / height, abs(right) / width)
    if far < _LEAST_SHIFT_FRAC or max(abs(down), abs(right)) * step < _LEAST_SHIFT_PX:
        return None
    # only where the moved mask has pixels of the old one is it known
    rows, own_rows = _overlap(height, down)
    columns, own_columns = _overlap(width, right)
    here = np.ix_(rows, columns)
    moved, old = y[np.ix_(own_rows, own_columns)], y[here]
    fits, before = (disagreement(one.astype(np.int8), p[here]) for one in (moved, old))
    return (down * step, right * step) if fits < _CLEARLY_BETTER * before else None


def _overlap(size: int, shift: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return places of an axis that a moved mask covers, and where it had them before."""
    places = np.arange(max(0, shift), min(size, size + shift))
    return places, places - shift


def entropy(probs: Probs, *, exclusive: bool) -> Float[np.ndarray, "h w"]:
    """Return the entropy of each pixel in bits: of its classes, or the mean of its labels."""
    inside = probs.clip(1e-6, 1)
    bits = -inside * np.log2(inside)
    if exclusive:
        return bits.sum(axis=-1)
    other = (1 - probs).clip(1e-6, 1)
    return (bits - other * np.log2(other)).mean(axis=-1)


def uncertainty(each: Sequence[Codes], *, exclusive: bool) -> tuple[float, float]:
    """Return the mean entropy of an image's mean probabilities, in bits, and the part of it that is disagreement.

    The second is the mutual information of prediction and member: the entropy of the mean less the mean entropy of the
    members. It is 0 where they agree, and for one member.

    Args:
        each: Codes (h, w, k) of each member.
        exclusive: Whether planes are classes that exclude each other.
    """
    probs = [one.astype(np.float32) / MAX_CODE for one in each]
    total = entropy(np.mean(probs, axis=0), exclusive=exclusive)
    own = np.mean([entropy(one, exclusive=exclusive) for one in probs], axis=0)
    return float(total.mean()), float(np.maximum(total - own, 0).mean())


def pick_diverse(scores: Float[np.ndarray, " n"], looks: Float[np.ndarray, "n d"], count: int) -> list[int]:
    """Return images of high scores that look unlike each other, the first one of the highest score.

    Of the eight times as many with the highest scores, each next one is the farthest from those that are taken.

    Raises:
        InputError: More are asked for than there are.
    """
    if not 1 <= count <= len(scores):
        raise InputError(
            f"--next {count}: expected 1 up to the number of unlabelled images with content, {len(scores)}"
        )
    pool = np.argsort(-scores, kind="stable")[: _BUCKETS * count]
    picked, nearest = [0], np.linalg.norm(looks[pool] - looks[pool[0]], axis=1)
    while len(picked) < count:
        nearest[picked] = -1
        at = int(nearest.argmax())
        picked.append(at)
        nearest = np.minimum(nearest, np.linalg.norm(looks[pool] - looks[pool[at]], axis=1))
    return [int(pool[at]) for at in picked]


def standardised(columns: Iterable[Float[np.ndarray, "n _"]]) -> Float[np.ndarray, "n d"]:
    """Return tables of numbers side by side, each of mean 0, deviation 1 and the same weight; unknown ones are 0."""
    found = []
    for table in columns:
        known = np.ma.masked_invalid(table.astype(np.float64))
        scaled = (known - known.mean(axis=0)) / np.ma.maximum(known.std(axis=0), 1e-9)
        found.append(scaled.filled(0.0) / np.sqrt(table.shape[1]))
    return np.concatenate(found, axis=1)
