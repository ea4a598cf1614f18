"""Stored probabilities: 16-bit codes ``q = rint(p * 65535)``, half the size of float32 and exact to compare.

A threshold is a code too. The decision is ``q > t`` in the search, the submission and the report, so they agree on
every pixel.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path

import numpy as np

from masksmith.core.arrays import Shaped, UInt16
from masksmith.core.errors import InputError
from masksmith.data.array_store import Images
from masksmith.data.store import Store
from masksmith.prediction.means import Blend

MAX_CODE = 65535

_checked: set[tuple[Path, int, int]] = set()
"""(path, modification time in ns, bytes) of the files whose checksums this process has found right."""


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
    """Open a store of probabilities. Its checksums are compared once per process, and again if the file changes.

    Raises:
        InputError: The store does not exist, or a checksum is wrong.
    """
    store, found = Store(path), path.stat()
    version = (path.absolute(), found.st_mtime_ns, found.st_size)
    if version not in _checked:
        if damaged := store.damaged():
            raise InputError(
                f"{path}: the probabilities of {damaged[0]!r} are damaged; remove the file and predict again"
            )
        _checked.add(version)
    return store


class MeanCodes:
    """The weighted mean of several stores, computed image by image and rounded to codes.

    Where some have kept the planes of an image head and others have not, those planes are left out.

    Args:
        stores: Probabilities of the same images.
        weights: Weight of each store, above 0; they need not sum to 1. None: equal weights.
        blend: Another mean than the arithmetic one, of groups of stores; inside a group the mean is arithmetic.
        groups: With ``blend``: number of each store's group, 0, 1, …, in the order of the blend's members.
    """

    def __init__(
        self,
        stores: Sequence[Images],
        weights: Sequence[float] | None = None,
        *,
        blend: Blend | None = None,
        groups: Sequence[int] = (),
    ) -> None:
        self.stores = stores
        self.weights = None if weights is None or len(set(weights)) == 1 else list(weights)
        """None if all weights are equal."""
        assert self.weights is None or len(self.weights) == len(stores), (weights, len(stores))
        self.channels = min((store.channels for store in stores), default=0)
        """Planes of the mean."""
        self.blend, self.groups = blend, list(groups)
        assert blend is None or len(self.groups) == len(stores), (groups, len(stores))

    @property
    def ids(self) -> list[str]:
        """Ids in the order of the first store."""
        return list(self.stores[0])

    def shape(self, name: str) -> tuple[int, int, int]:
        """Return height, width and channels of an image."""
        return (*self.stores[0].shape(name), self.channels)

    def first(self, channels: int) -> "MeanCodes":
        """Return the same without the planes behind the first ones."""
        found = copy(self)
        found.channels = min(channels, self.channels)
        return found

    def __getitem__(self, name: str) -> UInt16[np.ndarray, "h w c"]:
        return self._mean(store[name] for store in self.stores)

    def bands(self, name: str, *, at_once: int = 1 << 22) -> Iterator[UInt16[np.ndarray, "n w c"]]:
        """Yield an image in bands of rows, top to bottom, each of about ``at_once`` codes; a small one is one band."""
        height, width, channels = self.shape(name)
        step = max(1, at_once // (width * channels))
        if step >= height:
            yield self[name]
            return
        for row in range(0, height, step):
            rows = slice(row, min(height, row + step))
            yield self._mean(store.window(name, rows, slice(0, width)) for store in self.stores)

    def _mean(self, each: Iterable[UInt16[np.ndarray, "h w c"]]) -> UInt16[np.ndarray, "h w c"]:
        weights = self.weights or [1.0] * len(self.stores)
        each = (codes[..., : self.channels] for codes in each)
        if self.blend is None or len(set(self.groups)) == 1:
            return _arithmetic(list(zip(each, weights, strict=True)))
        inside: dict[int, list[tuple[UInt16[np.ndarray, "h w c"], float]]] = {}
        for codes, weight, group in zip(each, weights, self.groups, strict=True):
            inside.setdefault(group, []).append((codes, weight))
        ordered = [inside[group] for group in sorted(inside)]
        shares = [sum(weight for _, weight in own) for own in ordered]
        return self.blend((_arithmetic(own) for own in ordered), shares)


def _arithmetic(each: Sequence[tuple[UInt16[np.ndarray, "h w c"], float]]) -> UInt16[np.ndarray, "h w c"]:
    if len(each) == 1:
        return each[0][0]
    total = np.zeros(1, np.float64)
    for codes, weight in each:
        total = total + (codes if weight == 1.0 else weight * codes.astype(np.float64))
    return np.rint(total / sum(weight for _, weight in each)).astype(np.uint16)
