"""Counter-based randomness: a draw depends on (seed, stage, epoch, index), never on the draws before it.

So an epoch can be replayed after a crash, and a batch is the same in whatever thread it is made.
"""

import numpy as np


def stream(*counters: int) -> np.random.Generator:
    """Return the generator of these counters, each 0 or above.

    The number of counters is part of the key, because numpy's seed sequence pads with zeros: (1, 2) and (1, 2, 0)
    would give the same numbers.
    """
    return np.random.default_rng([*counters, len(counters) + 1])
