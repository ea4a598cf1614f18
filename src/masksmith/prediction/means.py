"""Means of several members' probabilities, on 16-bit codes.

Each kind is a function of a probability, a table of 65,536 entries: the members' values are averaged and taken back.
The arithmetic mean is none of them, it needs no table.

    logit       the mean of log(p / (1 - p))
    geometric   that of log p; harmonic that of 1 / p; power A that of p**A (generalised means)
    rank        the mean of the shares of a member's out-of-fold pixels that lie below p, taken back by those of all
                members; members whose probabilities are differently sharp count the same
    max         the largest
    vote        the share of members that say yes (p > 0.5, of classes the likeliest); a tie is a yes

Of classes that exclude each other the result is scaled to sum to 1.

Sources:
    Kittler et al. 1998, On combining classifiers, https://doi.org/10.1109/34.667881 (sum, product, max, vote).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt16

from masksmith.core.errors import InputError

MEAN = "mean"
POWERS = {"power 0.5": 0.5, "power 2": 2.0, "power 3": 3.0, "harmonic": -1.0}
KINDS = (MEAN, "logit", "geometric", *POWERS, "rank", "max", "vote")
"""The kinds of means, by name."""
_MAX_CODE = 65535
_KNOTS = np.linspace(0, _MAX_CODE, 257)
"""The codes at which a table of ranks is kept."""
_SLOPE = 1e-3  # of a table of ranks where no pixel lies: it must rise, to be taken back

Codes = UInt16[np.ndarray, "h w k"]
Ranks = tuple[float, ...]


@dataclass(frozen=True)
class Blend:
    """A kind of mean.

    Attributes:
        kind: One of KINDS.
        exclusive: Whether the planes are classes that exclude each other.
        ranks: With "rank": name of a member -> its table of 257 numbers, 0…1, that rise.
    """

    kind: str = MEAN
    exclusive: bool = False
    ranks: tuple[tuple[str, Ranks], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kind": self.kind, "exclusive": self.exclusive, "ranks": {k: list(v) for k, v in self.ranks}}

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str) -> "Blend":
        """Read what to_json made.

        Raises:
            InputError: Another form, an unknown kind, or tables of another length.
        """
        try:
            kind, exclusive = value["kind"], bool(value["exclusive"])
            ranks = tuple((str(name), tuple(map(float, table))) for name, table in value["ranks"].items())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: a mean that masksmith did not write ({type(error).__name__}: {error}); make it again"
            ) from error
        if kind not in KINDS or any(len(table) != len(_KNOTS) for _, table in ranks):
            raise InputError(
                f"{where}: a mean of the kind {kind!r}, expected one of {', '.join(KINDS)} with tables of "
                f"{len(_KNOTS)} numbers; make it again"
            )
        return cls(kind, exclusive, ranks)

    def of(self, names: Sequence[str]) -> "Blend":
        """Return the same with the tables of these members, in their order."""
        tables = dict(self.ranks)
        return replace(self, ranks=tuple((name, tables[name]) for name in names) if tables else ())

    def __call__(self, each: Iterable[Codes], weights: Sequence[float]) -> Codes:
        """Return the mean of members' codes (h, w, k), rounded to codes.

        Args:
            each: Codes of the members, in the order of ``ranks``.
            weights: Of the members, above 0; ``max`` does not use them.
        """
        total, tables = None, [table for _, table in self.ranks]
        for at, (codes, weight) in enumerate(zip(each, weights, strict=True)):
            if self.kind == "max":
                total = codes if total is None else np.maximum(total, codes)
                continue
            values = np.float32(weight) * self._values(codes, tables[at] if tables else None)
            total = values if total is None else total + values
        assert total is not None
        probs = total / np.float32(_MAX_CODE if self.kind == "max" else sum(weights))
        probs = self._taken_back(probs, tables, weights)
        if self.exclusive:
            probs = probs / np.maximum(probs.sum(axis=-1, keepdims=True), 1e-12)
        return np.rint(probs.clip(0, 1) * _MAX_CODE).astype(np.uint16)

    def _values(self, codes: Codes, table: Ranks | None) -> Float[np.ndarray, "h w k"]:
        if self.kind == "vote" and self.exclusive:
            return (codes.argmax(axis=-1)[..., None] == np.arange(codes.shape[-1])).astype(np.float32)
        return _forward(self.kind, table)[codes]

    def _taken_back(
        self, mean: Float[np.ndarray, "h w k"], tables: Sequence[Ranks], weights: Sequence[float]
    ) -> Float[np.ndarray, "h w k"]:
        if self.kind == "logit":
            return 1 / (1 + np.exp(-mean))
        if self.kind == "geometric":
            return np.exp(mean)
        if self.kind in POWERS:
            return mean ** np.float32(1 / POWERS[self.kind])
        if self.kind == "rank":
            pooled = np.average(np.asarray(tables), axis=0, weights=np.asarray(weights))
            return np.interp(mean, pooled, _KNOTS / _MAX_CODE)
        return mean


@lru_cache(maxsize=64)
def _forward(kind: str, table: Ranks | None) -> Float[np.ndarray, " codes"]:
    """Return the table of a kind: code -> the number that is averaged. 0 and 1 count as half a code off."""
    codes = np.arange(_MAX_CODE + 1)
    probs = codes / _MAX_CODE
    inside = probs.clip(0.5 / _MAX_CODE, 1 - 0.5 / _MAX_CODE)
    if kind == "logit":
        values = np.log(inside / (1 - inside))
    elif kind == "geometric":
        values = np.log(inside)
    elif kind == "harmonic":
        values = 1 / inside
    elif kind in POWERS:
        values = probs ** POWERS[kind]
    elif kind == "vote":
        values = codes > _MAX_CODE // 2
    elif kind == "rank":
        assert table is not None
        values = np.interp(codes, _KNOTS, table)
    else:
        values = probs
    return np.asarray(values, np.float32)


def ranks_of(each: Iterable[Codes]) -> Ranks:
    """Return the table of ranks of a member: the share of its pixels, of all images and planes, below each knot."""
    counts = np.zeros(_MAX_CODE + 1, np.int64)
    for codes in each:
        counts += np.bincount(codes.ravel(), minlength=_MAX_CODE + 1)
    below = np.concatenate([[0], counts.cumsum()]) / max(1, counts.sum())
    shares = (below[:-1] + below[1:]) / 2  # those of the same code count half
    rising = (1 - _SLOPE) * shares[_KNOTS.astype(np.int64)] + _SLOPE * _KNOTS / _MAX_CODE
    return tuple(np.round(rising, 9).tolist())
