"""How doubtful a prediction is: the order in which unlabelled images are worth a person's time."""

from functools import cache

import numpy as np

from masksmith.core.arrays import Codes, Float
from masksmith.data.target import Target
from masksmith.prediction.store import MAX_CODE

_PIXELS = 2**20  # of larger images every few rows and columns are looked at


@cache
def _surprise() -> Float[np.ndarray, " codes"]:
    """Return -p log2 p of each code."""
    probs = np.arange(MAX_CODE + 1) / MAX_CODE
    return np.asarray(-probs * np.log2(np.maximum(probs, 1e-12)), np.float32)


def doubt_of(codes: Codes, target: Target) -> float:
    """Return the mean entropy of an image's pixels, 0 (sure everywhere) to 1 (as doubtful as can be).

    Of a class map it is that of the classes over that of equal ones, of several labels the mean of theirs, of objects
    that of their foreground. Settles 2009, Active Learning Literature Survey, section 3.1.

    Args:
        codes: (h, w, k).
        target: Their task.
    """
    step = max(1, int(np.ceil(np.sqrt(codes.shape[0] * codes.shape[1] / _PIXELS))))
    seen = codes[::step, ::step]
    if target.exclusive:
        return float(_surprise()[seen].sum(axis=-1).mean() / np.log2(seen.shape[-1]))
    seen = seen[
        ..., : 1 if target.task == "instances" else target.outputs
    ]  # an image head's plane is no mask
    return float((_surprise()[seen] + _surprise()[MAX_CODE - seen]).mean())
