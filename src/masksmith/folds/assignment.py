"""Groups of images assigned to folds: by class, as one held-out part, or in turn by a number. No group is divided."""

from collections.abc import Sequence

import numpy as np

from masksmith.core.arrays import Int
from masksmith.core.errors import InputError
from masksmith.core.randomness import stream


def assign_folds(
    classes: Sequence[int],
    groups: Sequence[str],
    *,
    count: int,
    seed: int,
    further: Sequence[Sequence[int]] = (),
) -> Int[np.ndarray, " n"]:
    """Deal groups of images to folds so that every class is spread evenly.

    Groups of several images go first, largest first, each to the fold that then has the smallest sum of squared
    class counts, weighted by how rare a class is; single images follow class by class, each to the fold
    with the fewest of its class (then the fewest images, then at random). Where all groups are single, the
    counts of a class differ by at most one between folds.

    With further classes each image counts in one class of each division, and all of them weigh in: single images follow
    from those of the rarest class on (Sechidis et al. 2011, On the stratification of multi-label data, ECML PKDD).

    Args:
        classes: Class of each image, 0 or above.
        groups: Group of each image; a group is never divided.
        count: Number of folds.
        seed: Seed of the random order.
        further: Other divisions into classes that are spread evenly too.

    Raises:
        InputError: Fewer groups than folds.
    """
    rng = stream(seed)
    large, alone = _shuffled(groups, rng, count=count)
    codes = _codes([classes, *further])
    totals = np.bincount(codes.ravel())
    rarest = totals[codes].min(axis=1) if len(codes.T) > 1 else codes[:, 0]
    single = sorted(alone, key=lambda group: (rarest[group[0]], *codes[group[0]]))
    table = np.zeros((count, len(totals)))
    rarity = 1 / np.maximum(totals, 1)
    folds = np.full(len(classes), -1, np.int64)
    for indices in [*large, *single]:
        extra = np.bincount(codes[indices].ravel(), minlength=table.shape[1])
        cost = (((table + extra) ** 2 - table**2) * rarity).sum(axis=1)
        keys = np.lexsort((rng.random(count), table.sum(axis=1), cost))
        fold = keys[0]
        table[fold] += extra
        folds[indices] = fold
    return folds


def _codes(divisions: Sequence[Sequence[int]]) -> Int[np.ndarray, "n d"]:
    """Return the classes of each image, numbered through; a further division with one class alone is left out."""
    columns, start = [], 0
    for at, classes in enumerate(divisions):
        if at == 0 or len(set(classes)) > 1:
            columns.append(np.asarray(classes) + start)
            start += max(classes) + 1
    return np.stack(columns, axis=1)


def _shuffled(
    groups: Sequence[str], rng: np.random.Generator, *, count: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the images of each group in a random order: the groups of several, largest first, and single images.

    Raises:
        InputError: Fewer groups than folds.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if count < 2 or len(members) < count:
        raise InputError(
            f"folds.count: {count} folds of {len(members)} groups of images; expected 2 up to the number of groups"
        )
    every = list(members.values())
    order = [every[i] for i in rng.permutation(len(every))]
    large = sorted((group for group in order if len(group) > 1), key=len, reverse=True)
    return large, [group for group in order if len(group) == 1]


def hold_out(
    classes: Sequence[int], groups: Sequence[str], *, share: float, seed: int
) -> Int[np.ndarray, " n"]:
    """Return 0 for each image that is held out and 1 for each other: a share of every class, and of all.

    Groups of several images go first, largest first: one is held out where that brings the classes and the whole
    nearer to their shares, unless it takes more than is left to hold out while single images could fill that. Single
    images follow, each of the class that lacks most. Where all groups are single, the held-out images of a class, and
    all of them, differ from their share by less than one; only at the ends one image at least is in each part.

    Args:
        classes: Class of each image, 0 or above.
        groups: Group of each image; a group is never divided.
        share: Share of the images that is held out, between 0 and 1.
        seed: Seed of the random order.

    Raises:
        InputError: Fewer than two groups, or groups so large that nothing would be held out, or all.
    """
    large, single = _shuffled(groups, stream(seed), count=2)
    num, kinds = len(classes), max(classes) + 1
    whole = min(max(round(share * num), 1), num - 1)
    sizes = np.append(np.bincount(classes, minlength=kinds), num)  # the whole counts as one class more
    rarity = 1 / np.maximum(sizes, 1)
    lacking = share * sizes
    lacking[-1] = whole
    folds = np.ones(num, np.int64)
    for indices in large:
        extra = np.append(np.bincount([classes[i] for i in indices], minlength=kinds), len(indices))
        fits = extra[-1] <= lacking[-1] or len(single) < lacking[-1]
        if fits and (((lacking - extra) ** 2 - lacking**2) * rarity).sum() < 0:
            lacking -= extra
            folds[indices] = 0
    waiting: list[list[int]] = [[] for _ in range(kinds)]
    for (index,) in single:
        waiting[classes[index]].append(index)
    for _ in range(min(int(lacking[-1]), len(single))):
        kind = max((kind for kind in range(kinds) if waiting[kind]), key=lambda kind: lacking[kind])
        lacking[kind] -= 1
        folds[waiting[kind].pop()] = 0
    _refuse_empty_part(folds, share, [*large, *single])
    return folds


def hold_out_highest(
    values: Sequence[float], groups: Sequence[str], *, share: float
) -> Int[np.ndarray, " n"]:
    """Return 0 for each image that is held out and 1 for each other: the groups of the highest mean number.

    A group that would take more than is left to hold out is passed over.

    Args:
        values: Number of each image.
        groups: Group of each image; a group is never divided.
        share: Share of the images that is held out, between 0 and 1.

    Raises:
        InputError: Fewer than two groups, or groups so large that nothing would be held out.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    left = min(max(round(share * len(values)), 1), len(values) - 1)
    folds = np.ones(len(values), np.int64)
    for indices in sorted(members.values(), key=lambda one: -np.mean([values[at] for at in one])):
        if len(indices) <= left:
            folds[indices] = 0
            left -= len(indices)
    _refuse_empty_part(folds, share, list(members.values()))
    return folds


def _refuse_empty_part(folds: Int[np.ndarray, " n"], share: float, groups: Sequence[Sequence[int]]) -> None:
    if folds.min() != folds.max():
        return
    smallest = min(map(len, groups)) / len(folds)
    what, possible = ("nothing", smallest) if folds.all() else ("all", 1 - smallest)
    raise InputError(
        f"folds.holdout_frac: {share:g} of {len(folds)} images would hold {what} out: they are {len(groups)} groups, "
        f"and a group is never divided; expected a share near {possible:.2g}"
    )


def deal_folds(values: Sequence[float], groups: Sequence[str], *, count: int) -> Int[np.ndarray, " n"]:
    """Sort groups of images by the mean of their numbers, and deal them out in turn, one to each fold.

    Every fold then has the same distribution of the number. Groups of equal means follow in the order of their names.

    Args:
        values: Number of each image.
        groups: Group of each image; a group is never divided.
        count: Number of folds.

    Raises:
        InputError: Fewer groups than folds.
    """
    names, home = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < count:
        raise InputError(
            f"folds.count: {count} folds of {len(names)} groups of images; expected 2 up to the number of groups"
        )
    means = np.bincount(home, weights=np.asarray(values, np.float64)) / np.bincount(home)
    turn = np.empty(len(names), np.int64)
    turn[np.argsort(means, kind="stable")] = np.arange(len(names))
    return (turn % count)[home]
