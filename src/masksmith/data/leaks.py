"""Findings about images that are alike: in the training set, between training and test, and by columns and names."""

from collections.abc import Sequence

import numpy as np

from masksmith.data.cache import Cache
from masksmith.data.catalog import Catalog
from masksmith.data.findings import Finding, some
from masksmith.data.groups import LEAST_GROUPS, Likeness, Suggestion, suggestions

_NEIGHBOURS = "neighbours()"


def leak_findings(catalog: Catalog, cache: Cache, alike: Likeness) -> list[Finding]:
    """Return what lets a score look better than it is, the worst first."""
    groups = _groups_of(alike.groups)
    findings = _identical_findings(cache, alike)
    findings += _near_findings(alike, groups)
    findings += _split_findings(catalog, alike, groups)
    findings += [_suggestion_finding(one) for one in suggestions(catalog, alike)]
    return findings + _neighbour_findings(alike)


def _groups_of(labels: np.ndarray) -> list[list[int]]:
    """Return the numbers of the images of each group of several."""
    _, home, counts = np.unique(labels, return_inverse=True, return_counts=True)
    found: dict[int, list[int]] = {}
    for at in np.flatnonzero(counts[home.ravel()] > 1).tolist():
        found.setdefault(int(home.ravel()[at]), []).append(at)
    return list(found.values())


def _identical_findings(cache: Cache, alike: Likeness) -> list[Finding]:
    findings = []
    groups = _groups_of(alike.seen.pixels)
    doubles = [[alike.id(at) for at in one if at < alike.num_train] for one in groups]
    shared = [
        alike.id(at) for one in groups for at in one if at >= alike.num_train and one[0] < alike.num_train
    ]
    doubles = [ids for ids in doubles if len(ids) > 1]
    torn = [ids for ids in doubles if len({cache.train_masks[name].tobytes() for name in ids}) > 1]
    if torn:
        detail = (
            f"{len(torn)} groups ({some(torn[0])}); at most one mask of each can be right: correct the others, or "
            "take them out"
        )
        ids = [name for ids in torn for name in ids]
        findings.append(Finding("warning", "identical images, different masks", detail, ids))
    if shared:
        detail = (
            f"{len(shared)} images ({some(shared)}); what is known of them is known already, so a score of the test "
            "set is not one of new images"
        )
        findings.append(Finding("warning", "test images that are also training images", detail, shared))
    if doubles:
        detail = (
            f"{sum(map(len, doubles))} images in {len(doubles)} groups (largest {max(map(len, doubles))}; "
            f"{some(doubles[0])}); a group stays in one fold"
        )
        ids = [name for ids in doubles for name in ids]
        findings.append(Finding("warning", "identical training images", detail, ids))
    return findings


def _near_findings(alike: Likeness, groups: Sequence[Sequence[int]]) -> list[Finding]:
    """Return what is said of groups whose images are not all identical."""
    pixels, num = alike.seen.pixels, alike.num_train
    findings = []
    mixed = [one for one in groups if len({str(pixels[at]) for at in one}) > 1]
    crossing = [one for one in mixed if one[0] < num <= one[-1]]
    near = [
        at
        for one in crossing
        for at in one
        if at >= num and pixels[at] not in pixels[[b for b in one if b < num]]
    ]
    if near:
        first = next(one for one in crossing if set(one) & set(near))
        pair = f"{alike.id(next(at for at in first if at in near))!r} and the training image {alike.id(first[0])!r}"
        detail = (
            f"{len(near)} of {len(pixels) - num} test images (for example {pair}); look at a few: a score of such "
            "images is not one of new ones"
        )
        findings.append(
            Finding(
                "warning",
                "test images nearly equal to training images",
                detail,
                [alike.id(at) for at in near],
            )
        )
    ours = [[at for at in one if at < num] for one in mixed]
    ours = [one for one in ours if len({str(pixels[at]) for at in one}) > 1]
    if ours:
        detail = (
            f"{sum(map(len, ours))} near-duplicates in {len(ours)} groups (largest {max(map(len, ours))}; for example "
            f"{some([alike.id(at) for at in ours[0]])}); a group stays in one fold"
        )
        ids = [alike.id(at) for one in ours for at in one]
        findings.append(Finding("warning", "nearly equal training images", detail, ids))
    return findings


def _split_findings(catalog: Catalog, alike: Likeness, groups: Sequence[Sequence[int]]) -> list[Finding]:
    """Return what is said of a validation set of the data's own that is like its training set."""
    held_out = {sample.id for sample in catalog.train if sample.held_out}
    if not held_out:
        return []
    found = []
    for one in groups:
        ids = [alike.id(at) for at in one if at < alike.num_train]
        inside = [name for name in ids if name in held_out]
        found += inside if len(inside) < len(ids) else []
    if not found:
        return []
    detail = (
        f"{len(found)} of {len(held_out)} validation images ({some(found)}) are equal or nearly equal to training "
        "images; a score of them is too good: make folds of your own with --set folds.count=5"
    )
    return [Finding("warning", "validation images nearly equal to training images", detail, found)]


def _suggestion_finding(one: Suggestion) -> Finding:
    sizes: dict[str, list[str]] = {}
    for name, value in one.values.items():
        sizes.setdefault(value, []).append(name)
    shown = some([f"{value!r}: {len(ids)}" for value, ids in sizes.items()], most=3)
    seen = f"{one.own:.0%} of the images look most like another of their group (by chance {one.chance:.0%})"
    what = "a column" if "column" in one.line else "the ids"
    title = f"groups that {what} suggest{'s' if what == 'a column' else ''}"
    if one.binds:
        detail = f"{one.count} groups ({shown}); {seen}; a group stays in one fold, as {one.line} in dataset.yaml says"
        return Finding("note", title, detail)
    few = f"; with fewer than {LEAST_GROUPS} set folds.count too" if one.count < LEAST_GROUPS else ""
    detail = (
        f"{one.count} groups ({shown}); {seen}; if they are patients, places or videos, bind each to one fold by this "
        f"line in dataset.yaml: {one.line}{few}"
    )
    return Finding("warning" if one.own > 0.5 + one.chance / 2 else "note", title, detail)


def _neighbour_findings(alike: Likeness) -> list[Finding]:
    pairs, num = alike.neighbours.pairs, alike.num_train
    if not alike.neighbours.sure:
        return []
    inside = sum(a < num and b < num for a, b in pairs)
    across = sum((a < num) != (b < num) for a, b in pairs)
    a, b = pairs[0]
    detail = (
        f"{len(pairs)} pairs have edges that continue each other ({alike.neighbours.chance} by chance; for example "
        f"{alike.id(a)!r} and {alike.id(b)!r}), {inside} of them within the training set, {across} of a training and a "
        "test image: they are cut from larger pictures. They do not bind folds, since test images may have such "
        f'neighbours too; to keep them in one fold: --set folds.group_by="{_NEIGHBOURS}"'
    )
    ids = list(dict.fromkeys(alike.id(at) for pair in pairs for at in pair))
    return [Finding("warning" if not across else "note", "neighbouring tiles", detail, ids)]
