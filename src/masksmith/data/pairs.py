"""Images that let a score look better than it is, two by two, so that a person can look at them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from masksmith.data.groups import Likeness
from masksmith.data.store import Store

Place = tuple[str, str]
"""Split ("train" or "test") and id of an image."""


@dataclass(frozen=True)
class Pair:
    """Two images and how they lie: "beside" each other, or the second "below" the first; "" where they are alike."""

    first: Place
    second: Place
    lies: str = ""


@dataclass(frozen=True)
class Leak:
    """One kind of likeness: some of its pairs, and how many there are (of each group of alike images one)."""

    title: str
    meaning: str
    count: int
    pairs: list[Pair]


def find_leaks(alike: Likeness, masks: Store, *, most: int = 12) -> list[Leak]:
    """Return the kinds of likeness that occur, the worst first, each with ``most`` pairs in even steps.

    Images of one value are left out: they are alike because nothing is on them.
    """
    found = [
        _leak("identical images, different masks", _TORN, _torn(alike, masks), alike, most),
        _leak("test images that are training images", _SHARED, _identical(alike, "across"), alike, most),
        _leak("identical training images", _DOUBLE, _identical(alike, "train"), alike, most),
        _leak("test images nearly equal to training images", _CROSSING, _near(alike, "across"), alike, most),
        _leak("nearly equal training images", _NEAR, _near(alike, "train"), alike, most),
    ]
    if alike.neighbours.sure:
        found.append(_leak("neighbouring tiles", _TILES, alike.neighbours.pairs, alike, most, _lies))
    return [one for one in found if one.count]


_TORN = "At most one of the two masks can be right: correct or remove the other."
_SHARED = "Their masks are known already, so a score of the test set is not one of new images."
_DOUBLE = "They stay in one fold, so that no model is scored on an image that it learned."
_CROSSING = "A score of such test images is not one of new ones."
_NEAR = "They stay in one fold. Look whether their masks agree."
_TILES = (
    "The edge of one continues the other: they are cut from one larger picture. Neighbours in different folds make a "
    "score too good where the test images have no such neighbours (folds.group_by)."
)


def _leak(
    title: str,
    meaning: str,
    numbers: Iterable[tuple[int, int]],
    alike: Likeness,
    most: int,
    lies: Callable[[Likeness, int, int], str] = lambda *_: "",
) -> Leak:
    pairs = list(numbers)
    shown = (
        [pairs[at] for at in np.unique(np.linspace(0, len(pairs) - 1, most).round().astype(int))]
        if pairs
        else []
    )
    return Leak(
        title,
        meaning,
        len(pairs),
        [Pair(_place(alike, a), _place(alike, b), lies(alike, a, b)) for a, b in shown],
    )


def _place(alike: Likeness, at: int) -> Place:
    return "train" if at < alike.num_train else "test", alike.id(at)


def _members(labels: Iterable[object], alike: Likeness) -> list[list[int]]:
    """Return the numbers of the images of each group of several, without those of one value."""
    groups: dict[str, list[int]] = {}
    for at, label in enumerate(labels):
        if not alike.seen.constant[at]:
            groups.setdefault(str(label), []).append(at)
    return [one for one in groups.values() if len(one) > 1]


def _torn(alike: Likeness, masks: Store) -> list[tuple[int, int]]:
    found = []
    for one in _members(alike.seen.pixels, alike):
        ours = [at for at in one if at < alike.num_train]
        crcs = [masks.entries[alike.id(at)].crc32 for at in ours]
        other = next((at for at, crc in zip(ours, crcs, strict=True) if crc != crcs[0]), None)
        found += [] if other is None else [(ours[0], other)]
    return found


def _identical(alike: Likeness, which: str) -> list[tuple[int, int]]:
    found = []
    for one in _members(alike.seen.pixels, alike):
        ours = [at for at in one if at < alike.num_train]
        theirs = one[len(ours) :]
        if which == "train" and len(ours) > 1:
            found.append((ours[0], ours[1]))
        if which == "across" and ours and theirs:
            found.append((ours[0], theirs[0]))
    return found


def _near(alike: Likeness, which: str) -> list[tuple[int, int]]:
    """Return of each group of nearly equal images two that are not identical."""
    found, pixels = [], alike.seen.pixels
    for one in _members(alike.groups, alike):
        ours = [at for at in one if at < alike.num_train]
        rest = ours if which == "train" else one[len(ours) :]
        other = next((at for at in rest if ours and pixels[at] != pixels[ours[0]]), None)
        found += [] if other is None else [(ours[0], other)]
    return found


def _lies(alike: Likeness, first: int, second: int) -> str:
    """Say how two neighbours lie, by the edges that fit better (left, right, top, bottom: see Look)."""
    one, other = (alike.seen.edges[at].astype(np.float32) for at in (first, second))
    return "beside" if float(one[1] @ other[0]) >= float(one[3] @ other[2]) else "below"
