"""Scores of stored out-of-fold predictions: of the plain rule, and of predicting nothing or everything."""

from collections.abc import Iterable, Iterator, Mapping

from masksmith.core.arrays import Codes
from masksmith.folds.table import FoldRow
from masksmith.metrics import get_metric
from masksmith.metrics.protocol import Row
from masksmith.postprocess.operators import plain_rule
from masksmith.postprocess.scoring import constant, score_of, score_rows
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.recipes.ensemble import AnyRecipe


def predictions_of(oof: Mapping[int, MeanCodes], rows: Iterable[FoldRow]) -> Iterator[tuple[str, Codes]]:
    """Yield id and out-of-fold codes (h, w) of training images, one by one."""
    for row in rows:
        yield row.id, oof[row.fold][row.id][..., 0]


def plain_score(project: Project, recipe: AnyRecipe, oof: Mapping[int, MeanCodes]) -> float:
    """Return the score of the plain rule (threshold 0.5) on the held-out images with content of these folds."""
    rows = plain_rows(project, recipe, oof)
    return score_of(get_metric(recipe.metric), rows, project.metric_groups(recipe, list(rows)))


def plain_rows(project: Project, recipe: AnyRecipe, oof: Mapping[int, MeanCodes]) -> dict[str, Row]:
    """Return the metric's row of each held-out image with content under the plain rule, by id."""
    rows = [row for row in project.folds.rows if row.fold in oof and row.id not in project.blank_train]
    rule, masks = plain_rule(recipe.tuning), project.cache.train_masks
    return score_rows(get_metric(recipe.metric), predictions_of(oof, rows), masks, rule)


def baseline_scores(project: Project, recipe: AnyRecipe, *, fold: int | None = None) -> dict[str, float]:
    """Return the scores of "nothing" and "everything" on the training images with content, or on a fold's."""
    metric, masks = get_metric(recipe.metric), project.cache.train_masks
    names = list(masks) if fold is None else project.folds.inside(fold)
    names = [name for name in names if name not in project.blank_train] or names
    scores = {}
    groups = project.metric_groups(recipe, names) if metric.by_group else None
    for label in ("nothing", "everything"):
        predictions = constant(((name, masks.shape(name)) for name in names), full=label == "everything")
        scores[label] = score_of(metric, score_rows(metric, predictions, masks), groups)
    return scores
