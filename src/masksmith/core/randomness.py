"""Randomness by counter: every draw comes from (seed, stage, epoch, index), never from the order of drawing.

So an epoch can be replayed after a crash, and a batch is the same whatever thread made it.
"""

import numpy as np


def stream(*counters: int) -> np.random.Generator:
    """Return the generator that belongs to these counters, each 0 or above.

    The number of counters is a part of the key: numpy's seed sequence pads with zeros, so that (1, 2) and
    (1, 2, 0) would give the same numbers.
    """
    return np.random.default_rng([*counters, len(counters) + 1])
