"""Scores of stored out-of-fold predictions: of the plain rule, and of predicting nothing or everything."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int8, Shaped

from masksmith.core.arrays import IGNORE, Codes, Float
from masksmith.data.target import Target
from masksmith.folds.table import FoldRow
from masksmith.metrics.protocol import Row
from masksmith.postprocess.rules import Beside, plain_of
from masksmith.postprocess.scoring import constant, score_of, score_rows
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.recipes.ensemble import AnyRecipe


def predictions_of(oof: Mapping[str, MeanCodes], rows: Iterable[FoldRow]) -> Iterator[tuple[str, Codes]]:
    """Yield id and out-of-fold codes (h, w, k) of training images, one by one."""
    for row in rows:
        yield row.id, oof[row.id][row.id]


def beside_of(project: Project, stage: str = "oof") -> Beside:
    """Return what rules may look at beside the probabilities of the training ("oof") or the test images ("test")."""
    test = stage == "test"
    samples = project.catalog.test if test else project.catalog.train
    images = project.cache.test_images if test else project.cache.train_images
    return Beside(images, {sample.id: sample.values for sample in samples})


def plain_score(project: Project, recipe: AnyRecipe, oof: Mapping[str, MeanCodes]) -> float:
    """Return the score of the plain rule (threshold 0.5) on the held-out images with content."""
    rows = plain_rows(project, recipe, oof)
    return score_of(project.metric(recipe), rows, project.metric_groups(recipe, list(rows)))


def plain_rows(project: Project, recipe: AnyRecipe, oof: Mapping[str, MeanCodes]) -> dict[str, Row]:
    """Return the metric's row of each held-out image with content under the plain rule, by id."""
    rows = [row for row in project.folds.rows if row.id in oof and row.id not in project.blank_train]
    rule, masks = plain_of(project.target, recipe.tuning), project.cache.train_masks
    return score_rows(project.metric(recipe), predictions_of(oof, rows), masks, rule)


def trivial_predictions(project: Project) -> dict[str, int | slice | None]:
    """Return a name for each trivial prediction -> the channels that it predicts everywhere; None predicts nothing."""
    if not project.target.exclusive:
        return {"nothing": None, "everything": slice(None) if project.target.task == "multilabel" else 0}
    most = int(class_shares(project).argmax())
    return {f"{project.target.classes[most]} everywhere": most}


def class_shares(project: Project) -> Float[np.ndarray, " k"]:
    """Return the share of each class among the judged pixels of all training masks."""
    masks, counts = project.cache.train_masks, np.zeros(IGNORE + 1, np.int64)
    for name in masks:
        counts += np.bincount(masks[name].ravel(), minlength=IGNORE + 1)
    judged = counts[: project.target.outputs]
    return judged / max(1, judged.sum())


def baseline_scores(
    project: Project, recipe: AnyRecipe, *, fold: int | None = None, names: Sequence[str] | None = None
) -> dict[str, float]:
    """Return the score of each trivial prediction on the training images with content, on a fold's, or on these.

    Nothing and everything (every label); of a class map its most frequent class everywhere.
    """
    metric, masks = project.metric(recipe), project.cache.train_masks
    plain = plain_of(project.target, recipe.tuning)
    if names is None:
        names = list(masks) if fold is None else project.folds.inside(fold)
        names = [name for name in names if name not in project.blank_train] or names
    scores = {}
    groups = project.metric_groups(recipe, names) if metric.by_group else None
    for label, channel in trivial_predictions(project).items():
        shapes = ((name, masks.shape(name)) for name in names)
        predictions = constant(shapes, channels=project.target.outputs, on=channel)
        scores[label] = score_of(metric, score_rows(metric, predictions, masks, plain), groups)
    return scores


def truth_planes(target: Target, mask: Shaped[np.ndarray, "h w c"]) -> Int8[np.ndarray, "h w k"]:
    """Return planes of 0 and 1, -1 where nothing is judged: a class or label each; of objects the foreground alone."""
    if target.task == "instances":
        return np.where(mask < 0, -1, mask > 0).astype(np.int8)
    if target.exclusive:
        planes = (mask == np.arange(target.outputs)).astype(np.int8)
        return np.where(mask == IGNORE, np.int8(-1), planes)
    return np.where(mask == IGNORE, -1, mask).astype(np.int8)
