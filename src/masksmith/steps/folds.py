"""The folds of a project: made once, then read."""

import numpy as np

from masksmith.core.arrays import Shaped, foreground_pixels, judged_pixels
from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.data.checks import duplicate_groups
from masksmith.data.findings import some
from masksmith.data.similarity import similar_groups
from masksmith.folds.table import (
    Folds,
    FoldsConfig,
    deal_values,
    group_values,
    make_folds,
    merge_groups,
    need_groups,
    rarest_classes,
    rarest_labels,
    write_folds,
)
from masksmith.project.folder import Project
from masksmith.recipes.ensemble import AnyRecipe


def folds_of(project: Project, recipe: AnyRecipe) -> Folds:
    """Read the folds, or make them if there are none.

    Raises:
        InputError: There are folds, and another rule was asked for; or as make_folds.
    """
    asked = recipe.folds
    column, similar = asked.group_by, asked.similar_count
    values = None if column is None or similar else group_values(project.catalog.train, column)
    if project.folds_csv.exists():
        _refuse_other_folds(project, asked)
        if column is not None and values is not None:
            need_groups(project.folds, values, project.folds_csv, column=column)
        return project.folds
    numbers = None if asked.deal_by is None else deal_values(project.catalog.train, asked.deal_by)
    masks, images = project.cache.train_masks, project.cache.train_images
    counts = {name: _counts(masks[name]) for name in masks}
    kinds = None
    if project.target.exclusive:
        kinds = rarest_classes(masks, project.target.outputs)
    elif project.target.task == "multilabel":
        kinds = rarest_labels(masks, project.target.outputs)
    held_out = (
        {sample.id for sample in project.catalog.train if sample.held_out} if _is_plain(asked) else set()
    )
    groups = {name: key for key, names in duplicate_groups(images).items() for name in names}
    if similar is not None:
        values = similar_groups(images, similar, seed=asked.seed)
    if values is not None:
        groups = merge_groups(groups, values, blank=project.blank_train)
    made = make_folds(counts, groups, asked, values=numbers, kinds=kinds, held_out=held_out)
    project.ledger.mark_done("folds.seed", str(asked.seed))
    project.ledger.mark_done("folds.group_by", repr(column))
    project.ledger.mark_done("folds.kind", asked.kind)
    write_folds(made, project.folds_csv)
    for line in unseen_classes(project, made):
        logger.warning("%s", line)
    return project.folds


def unseen_classes(project: Project, folds: Folds) -> list[str]:
    """Return a line for each fold in which alone a class or label occurs: its training never sees that."""
    target, masks = project.target, project.cache.train_masks
    if target.task not in ("multiclass", "multilabel"):
        return []
    there = np.zeros((folds.count, target.outputs), bool)
    for row in folds.rows:
        mask = masks[row.id]
        if target.exclusive:
            there[row.fold, [value for value in np.unique(mask) if value < target.outputs]] = True
        else:
            there[row.fold] |= (mask == 1).any(axis=(0, 1))
    return [
        f"fold {fold}: {some([target.classes[at] for at in np.flatnonzero(alone)])} in no other fold: a training that "
        "holds it out never sees such pixels"
        for fold, alone in enumerate(there & (there.sum(axis=0) == 1))
        if alone.any()
    ]


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

    count = project.folds.count
    # an older masksmith wrote no rule: it had only one
    unsaid = ledger.knows("folds.seed") and not ledger.knows("folds.kind")
    other_kind = asked.kind != FoldsConfig().kind if unsaid else is_other("folds.kind", asked.kind)
    if is_other("folds.group_by", repr(asked.group_by)):
        what, made = f"folds.group_by: {asked.group_by!r}", "was made with another column or with none"
    elif asked.count != count:
        what, made = f"folds.count: {asked.count}", f"holds {count}"
    elif is_other("folds.seed", str(asked.seed)):
        what, made = f"folds.seed: {asked.seed}", "was made with another"
    elif other_kind:
        what, made = f"folds: {asked.kind}", "was made by another rule"
    else:
        return
    raise InputError(
        f"{what} was asked for, but {path} {made}, and folds are made once; choose another --out"
    )
