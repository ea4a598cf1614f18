"""Probabilities as 16-bit codes ``q = rint(p * 65535)``: half of float32, exact to compare.

A threshold is a code too, and the decision is ``q > t`` everywhere: in the search, the submission and the
pictures, so that they agree on every pixel.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from masksmith.core.arrays import Shaped, UInt16
from masksmith.core.errors import InputError
from masksmith.data.store import Store

MAX_CODE = 65535


def to_codes(probs: Shaped[np.ndarray, "..."]) -> UInt16[np.ndarray, "..."]:
    """Return probabilities (0…1) as codes."""
    return np.rint(np.asarray(probs, np.float32) * MAX_CODE).astype(np.uint16)


def code_of(threshold: float) -> int:
    """Return the code t for which ``q > t`` means ``p > threshold`` (to within half a code)."""
    return int(threshold * MAX_CODE)


def prob_of(code: int) -> float:
    """Return the probability of a code."""
    return code / MAX_CODE


def open_codes(path: Path) -> Store:
    """Open a store of probabilities.

    Raises:
        InputError: It is not there, or an array's checksum is wrong.
    """
    store = Store(path)
    if damaged := store.damaged():
        raise InputError(
            f"{path}: the probabilities of {damaged[0]!r} are damaged; remove the file and predict again"
        )
    return store


class MeanCodes:
    """The mean of several stores' probabilities, image by image, as codes; of one store: that store's.

    Args:
        stores: The probabilities, of the same images.
        weights: What each store weighs (above 0, of any sum); None: all the same.
    """

    def __init__(self, stores: Sequence[Store], weights: Sequence[float] | None = None) -> None:
        self.stores = stores
        self.weights = None if weights is None or len(set(weights)) == 1 else list(weights)
        """None where all weigh the same, whatever that was."""
        assert self.weights is None or len(self.weights) == len(stores), (weights, len(stores))

    @property
    def ids(self) -> list[str]:
        """Ids in the order of the first store."""
        return self.stores[0].ids

    def __getitem__(self, name: str) -> UInt16[np.ndarray, "h w c"]:
        if len(self.stores) == 1:
            return self.stores[0][name]
        total = np.zeros(self.stores[0][name].shape, np.float64)
        if self.weights is None:
            for store in self.stores:
                total += store[name]
            return np.rint(total / len(self.stores)).astype(np.uint16)
        for store, weight in zip(self.stores, self.weights, strict=True):
            total += weight * store[name].astype(np.float64)
        return np.rint(total / sum(self.weights)).astype(np.uint16)
