"""Probabilities as 16-bit codes ``q = rint(p * 65535)``: half of float32, exact to compare.

A threshold is a code too, and the decision is ``q > t`` everywhere: in the search, the submission and the
pictures, so that they agree on every pixel.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from masksmith.arrays import Shaped, UInt16
from masksmith.data.store import Store
from masksmith.errors import InputError

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


def mean_codes(
    stores: Sequence[Store], names: Iterable[str]
) -> Iterator[tuple[str, UInt16[np.ndarray, "h w c"]]]:
    """Yield the mean of several stores' probabilities, image by image."""
    for name in names:
        total = np.zeros(stores[0][name].shape, np.float64)
        for store in stores:
            total += store[name]
        yield name, np.rint(total / len(stores)).astype(np.uint16)
