"""The folds of a project: made once, then read."""

from collections.abc import Mapping, Sequence

import numpy as np

from masksmith.core.arrays import Bool, Shaped, foreground_pixels, judged_pixels
from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.data.catalog import Sample
from masksmith.data.checks import shift_of
from masksmith.data.findings import some
from masksmith.data.groups import Likeness, bound_groups, neighbour_groups
from masksmith.data.shift import LEAST_IMAGES
from masksmith.data.similarity import similar_groups
from masksmith.data.store import Store
from masksmith.folds.config import EVERY_GROUP, NEIGHBOURS, FoldsConfig
from masksmith.folds.files import write_folds
from masksmith.folds.table import (
    Folds,
    deal_values,
    given_folds,
    group_values,
    make_folds,
    merge_groups,
    need_groups,
    rarest_classes,
    rarest_labels,
)
from masksmith.project.folder import Project
from masksmith.recipes.ensemble import AnyRecipe
from masksmith.steps.recipes import form_of

MOST_SOURCES = 20
"""Folders or sizes; of more, none is spread over the folds."""


def folds_of(project: Project, recipe: AnyRecipe, *, given: Mapping[str, int] | None = None) -> Folds:
    """Read the folds, or make them if there are none.

    Args:
        project: Checked.
        recipe: How they are made.
        given: Id -> fold, 0…count - 1, where they are known already; of no effect where there are folds.

    Raises:
        InputError: There are folds, and another rule was asked for; or as make_folds.
    """
    with form_of(recipe.name):
        return _folds_of(project, recipe, given)


def _folds_of(project: Project, recipe: AnyRecipe, given: Mapping[str, int] | None) -> Folds:
    asked = recipe.folds
    column, similar = asked.group_by, asked.similar_count
    values = group_values(project.catalog.train, column) if column is not None and asked.has_column else None
    if project.folds_csv.exists():
        _refuse_other_folds(project, asked)
        if column is not None and values is not None:
            need_groups(project.folds, values, project.folds_csv, column=column)
        return project.folds
    cache, samples = project.cache, project.catalog.train
    masks, images = cache.train_masks, cache.train_images
    alike = project.likeness
    told = given is not None or asked.fold_by is not None
    split = told or (_is_plain(asked) and any(sample.held_out for sample in samples))
    groups = bound_groups(project.catalog, alike, split_is_given=split)
    if similar is not None:
        values = similar_groups(images, similar, seed=asked.seed)
    elif asked.group_by == NEIGHBOURS:
        values = neighbour_groups(alike)
    if values is not None:
        groups = merge_groups(groups, values, blank=project.blank_train)
    kinds = None
    if project.target.exclusive:
        kinds = rarest_classes(masks, project.target.outputs)
    elif project.target.task == "multilabel":
        kinds = rarest_labels(masks, project.target.outputs)
    made = make_folds(
        {name: _counts(masks[name]) for name in masks},
        groups,
        asked,
        values=_numbers(project, asked, alike),
        kinds=kinds,
        sources=_sources(samples, images),
        given=given or (_given(samples, groups, asked) if split else None),
    )
    project.ledger.mark_done("folds.seed", str(asked.seed))
    project.ledger.mark_done("folds.group_by", repr(column))
    project.ledger.mark_done("folds.kind", asked.kind)
    write_folds(made, project.folds_csv)
    for line in unseen_classes(project, made):
        logger.warning("%s", line)
    return project.folds


def _numbers(project: Project, asked: FoldsConfig, alike: Likeness) -> dict[str, float] | None:
    """Return id -> number that the rule looks at, if it looks at one.

    Raises:
        InputError: No column of such numbers, or too few test images for likeness to them.
    """
    if asked.deal_by is not None:
        return deal_values(project.catalog.train, asked.deal_by)
    if asked.stratify != "like_test":
        return None
    shift = shift_of(alike, project.cache.channels)
    if shift is None:
        raise InputError(
            f"folds.stratify: like_test compares {alike.num_train} training images with "
            f"{len(alike.seen) - alike.num_train} test images; expected {LEAST_IMAGES} of each that are not constant"
        )
    names = [alike.id(at) for at in range(alike.num_train) if not alike.seen.constant[at]]
    found = dict(zip(names, shift.likeness.tolist(), strict=True))
    return {sample.id: found.get(sample.id, 0.0) for sample in project.catalog.train}


def _sources(samples: Sequence[Sample], images: Store) -> dict[str, str]:
    """Return id -> folder and size, each where there are several and not too many to be spread."""
    folders = {one.id: one.image.rpartition("/")[0] for one in samples}
    sizes = {name: "x".join(map(str, images.shape(name))) for name in images}
    kept = [labels for labels in (folders, sizes) if len(set(labels.values())) <= MOST_SOURCES]
    return {name: " ".join(labels[name] for labels in kept) for name in images}


def _given(samples: Sequence[Sample], groups: dict[str, str], asked: FoldsConfig) -> dict[str, int]:
    """Return id -> fold by the data's own validation set, which is fold 0, or by ``folds.fold_by``.

    Raises:
        InputError: No such column, or not as many values as folds.
    """
    if asked.fold_by is None:
        return {sample.id: int(not sample.held_out) for sample in samples}
    if asked.fold_by == EVERY_GROUP:
        return given_folds(groups, asked)
    return given_folds(group_values(samples, asked.fold_by, key="fold_by"), asked)


def unseen_classes(project: Project, folds: Folds) -> list[str]:
    """Return a line for each fold in which alone a class or label occurs: its training never sees that."""
    target, masks = project.target, project.cache.train_masks
    if target.task not in ("multiclass", "multilabel"):
        return []
    there = np.zeros((folds.total, target.outputs), bool)
    for row in folds.rows:
        mask = masks[row.id]
        if target.exclusive:
            held = [value for value in np.unique(mask) if value < target.outputs]
            there[np.ix_(row.folds, held)] = True
        else:
            there[row.folds, :] |= (mask == 1).any(axis=(0, 1))
    return [
        f"fold {fold}: {some([target.classes[at] for at in np.flatnonzero(alone)])} in no other fold: a training that "
        "holds it out never sees such pixels"
        for fold, alone in enumerate(_alone(there, folds.repeats))
        if alone.any()
    ]


def _alone(there: Bool[np.ndarray, "folds k"], repeats: int) -> Bool[np.ndarray, "folds k"]:
    """Return where a class is in one fold only of its repeat."""
    parts = there.reshape(repeats, -1, there.shape[1])
    return (parts & (parts.sum(axis=1, keepdims=True) == 1)).reshape(there.shape)


def _is_plain(asked: FoldsConfig) -> bool:
    """Whether the data set's own split is taken, where it has one: a single split, and no rule asked for."""
    return (
        (asked.count, asked.train) == (2, 1) and asked.kind == FoldsConfig().kind and asked.group_by is None
    )


def _counts(mask: Shaped[np.ndarray, "h w k"]) -> tuple[int, int]:
    """Return the pixels of any foreground, and the judged ones."""
    return int(foreground_pixels(mask).any(axis=-1).sum()), int(judged_pixels(mask).any(axis=-1).sum())


def _refuse_other_folds(project: Project, asked: FoldsConfig) -> None:
    """Refuse a rule that is not the one the project's folds were made by; older folds may not say theirs."""
    ledger, path = project.ledger, project.folds_csv

    def is_other(entry: str, key: str) -> bool:
        return ledger.knows(entry) and not ledger.is_done(entry, key)

    count, repeats = project.folds.count, project.folds.repeats
    # an older masksmith wrote no rule: it had only one
    unsaid = ledger.knows("folds.seed") and not ledger.knows("folds.kind")
    other_kind = asked.kind != FoldsConfig().kind if unsaid else is_other("folds.kind", asked.kind)
    if is_other("folds.group_by", repr(asked.group_by)):
        what, made = f"folds.group_by: {asked.group_by!r}", "was made with another column or with none"
    elif asked.count != count:
        what, made = f"folds.count: {asked.count}", f"holds {count}"
    elif asked.repeats != repeats:
        what, made = f"folds.repeats: {asked.repeats}", f"holds {repeats}"
    elif is_other("folds.seed", str(asked.seed)):
        what, made = f"folds.seed: {asked.seed}", "was made with another"
    elif other_kind:
        what, made = f"folds: {asked.kind}", "was made by another rule"
    else:
        return
    raise InputError(
        f"{what} was asked for, but {path} {made}, and folds are made once; choose another --out"
    )
