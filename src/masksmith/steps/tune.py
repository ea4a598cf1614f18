"""Tuning of a run: the out-of-fold probabilities of its folds judged together, and every score of tuning.json."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from masksmith.core.arrays import Codes
from masksmith.core.errors import InputError
from masksmith.core.randomness import stream
from masksmith.folds.assignment import assign_folds
from masksmith.folds.table import FoldRow
from masksmith.metrics import Metric, get_metric
from masksmith.metrics.protocol import Groups, Row
from masksmith.postprocess.bootstrap import BOUND_QUANTILE, paired_bootstrap
from masksmith.postprocess.operators import Rule, plain_rule
from masksmith.postprocess.scoring import score_of, score_rows
from masksmith.postprocess.search import PARTS, Sweep, Tuning, make_sweep, search_rule
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project, Run
from masksmith.recipes.ensemble import Ensemble, Judge
from masksmith.training.config import CHOSEN_ON_HELD_OUT
from masksmith.training.events import read_events


def tune_oof(
    project: Project, recipe: Judge, oof: Mapping[int, MeanCodes], *, optimism: dict[str, float]
) -> dict[str, Any]:
    """Search the rule on the out-of-fold probabilities and return all scores as plain values.

    Args:
        project: Its folds and masks.
        recipe: The metric, candidates and seed of a recipe or an ensemble.
        oof: Fold -> probabilities of its held-out images.
        optimism: What choosing epochs on the folds may have added to the score (see optimism_of).
    """
    metric, config, trained = get_metric(recipe.metric), recipe.tuning, sorted(oof)
    masks, made = project.cache.train_masks, project.folds
    rows = [row for row in made.rows if row.fold in trained]
    content = [row for row in rows if row.id not in project.blank_train]
    if not content:
        raise InputError(
            f"{project.root}: the held-out images of fold {trained} have no content, so nothing can be judged"
        )
    pairs = ((codes, masks[name][..., 0]) for name, codes in predictions_of(oof, content))
    rules, sweep = make_sweep(pairs, metric, config)
    groups = [row.group for row in content]
    labels = project.metric_groups(recipe, [row.id for row in content])
    parts = np.array([row.fold for row in content]) if len(trained) > 1 else _parts(content, seed=recipe.seed)
    found = search_rule(
        sweep,
        metric,
        rules,
        parts=parts,
        groups=groups,
        labels=labels.tolist(),
        resamples=config.resamples,
        seed=recipe.seed,
    )
    blank = [row for row in rows if row.id in project.blank_train]

    def blank_rows(rule: Rule) -> dict[str, Row]:
        return score_rows(metric, predictions_of(oof, blank), masks, rule)

    all_groups = project.metric_groups(recipe, [row.id for row in [*content, *blank]])
    many_sizes = len(_areas(project)) > 1
    return {
        "metric": metric.name,
        "metric_describes": metric.describes,
        "higher_is_better": metric.higher_is_better,
        "covers": f"{len(rows)} of {len(made.rows)} training images, {len(blank)} without content left out",
        "scores": _scores(sweep, found, metric, blank_rows, all_groups, plain=rules[0]),
        "num_rules": len(rules),
        "searched": _searched(metric, rules),
        "rule_text": found.rule.describe(many_sizes=many_sizes),
        "found_text": found.found.describe(many_sizes=many_sizes),
        "optimism": optimism or None,
        **found.to_json(),
    }


def _areas(project: Project) -> set[int]:
    """Return the areas that the images have, training and test together."""
    stores = (project.cache.train_images, project.cache.test_images)
    return {height * width for images in stores for height, width in map(images.shape, images)}


def _searched(metric: Metric, rules: Sequence[Rule]) -> str:
    if len(rules) == 1:
        return "nothing: the recipe gives one rule"
    return "top and bottom threshold, pixels" if metric.needs == "counts" else "bottom threshold"


def _scores(
    sweep: Sweep,
    found: Tuning,
    metric: Metric,
    blank_rows: Callable[[Rule], dict[str, Row]],
    groups: Groups,
    *,
    plain: Rule,
) -> dict[str, float]:
    """Return every score by name; ``groups`` are those of the sweep's images, then of the images without content."""
    content = groups[: len(sweep.rows)]

    def with_blank(rule: Rule) -> float:
        extra = list(blank_rows(rule).values())
        return metric.score(np.stack([*sweep.rows_of(rule), *extra]), groups)

    return {
        "chosen": found.nested if found.kept else found.plain,
        "plain": found.plain,
        "tuned": found.tuned,
        "nested": found.nested,
        "nothing": metric.score(sweep.empty, content),
        "everything": metric.score(sweep.full, content),
        "plain_with_blank": with_blank(plain),
        "tuned_with_blank": with_blank(found.found),
    }


def _parts(rows: Sequence[FoldRow], *, seed: int) -> Any:  # noqa: ANN401
    """Divide the images of one fold into group-wise, stratified parts for the nested score."""
    groups = [row.group for row in rows]
    count = min(PARTS, len(set(groups)))
    if count < 2:
        return np.zeros(len(rows), np.int64)
    return assign_folds([row.coverage_class for row in rows], groups, count=count, seed=seed)


def optimism_of(run: Run, fold: int) -> dict[str, float]:
    """Where the epoch was chosen on the fold, by its score or its loss: its score less that of the last epoch.

    Higher is better in both. By the loss it may be below 0; chosen on the fold it is all the same.
    """
    from masksmith.training.checkpoint import facts_of

    if run.recipe.training.select not in CHOSEN_ON_HELD_OUT:
        return {}
    found = [event for event in read_events(run.events) if event["fold"] == fold]
    scores = {e["epoch"]: e["value"] for e in found if (e["split"], e["name"]) == ("fold", "score")}
    return {f"fold_{fold}": scores[facts_of(run.final(fold))["epoch"]] - scores[max(scores)]}


def predictions_of(oof: Mapping[int, MeanCodes], rows: Iterable[FoldRow]) -> Iterator[tuple[str, Codes]]:
    """Yield id and out-of-fold codes (h, w) of training images, one by one."""
    for row in rows:
        yield row.id, oof[row.fold][row.id][..., 0]


def plain_score(project: Project, recipe: Judge, oof: Mapping[int, MeanCodes]) -> float:
    """Return the score of the plain rule (threshold 0.5) on the held-out images with content of these folds."""
    rows = _plain_rows(project, recipe, oof)
    return score_of(get_metric(recipe.metric), rows, project.metric_groups(recipe, list(rows)))


def _plain_rows(project: Project, recipe: Judge, oof: Mapping[int, MeanCodes]) -> dict[str, Row]:
    """Return the metric's row of each held-out image with content under the plain rule, by id."""
    rows = [row for row in project.folds.rows if row.fold in oof and row.id not in project.blank_train]
    rule, masks = plain_rule(recipe.tuning), project.cache.train_masks
    return score_rows(get_metric(recipe.metric), predictions_of(oof, rows), masks, rule)


def compare_recipes(
    project: Project,
    ensemble: Ensemble,
    oof: Mapping[int, MeanCodes],
    each: Mapping[str, Mapping[int, MeanCodes]],
    weights: Mapping[str, float],
) -> dict[str, Any]:
    """Compare an ensemble with each of its recipes, all under the plain rule on held-out images; return plain values.

    The gain is that over the best recipe among those that cover the most images: a paired bootstrap over groups of the
    images that it covers. That recipe was chosen on these very images, which flatters it, not the ensemble.

    Args:
        project: Its folds and masks.
        ensemble: Its metric, resamples and seed.
        oof: Fold -> averaged probabilities.
        each: Name of a recipe's run -> fold -> its own probabilities.
        weights: Name -> weight.
    """
    metric = get_metric(ensemble.metric)
    blend = _plain_rows(project, ensemble, oof)
    own = {name: _plain_rows(project, ensemble, codes) for name, codes in each.items()}

    def score(rows: Mapping[str, Row], names: Sequence[str]) -> float:
        groups = project.metric_groups(ensemble, names)
        return metric.score(np.stack([rows[name] for name in names]), groups)

    table: list[dict[str, Any]] = [
        {
            "run": name,
            "weight": weights[name],
            "folds": sorted(each[name]),
            "images": len(rows),
            "score": score(rows, list(rows)),
            "ensemble": score(blend, list(rows)),
        }
        for name, rows in own.items()
    ]
    best = max(table, key=lambda row: (row["images"], metric.utility(row["score"])))
    names = list(own[best["run"]])
    gains, _, _ = paired_bootstrap(
        metric,
        np.stack([blend[name] for name in names]),
        np.stack([own[best["run"]][name] for name in names]),
        project.folds.groups(names).tolist(),
        labels=project.metric_groups(ensemble, names).tolist(),
        resamples=ensemble.tuning.resamples,
        rng=stream(ensemble.seed),
    )
    low, high = np.quantile(gains, [BOUND_QUANTILE, 1 - BOUND_QUANTILE])
    return {
        "name": ensemble.name,
        "table": table,
        "best": best["run"],
        "gain_mean": float(gains.mean()),
        "gain_low": float(low),
        "gain_high": float(high),
        "verdict": "better" if low > 0 else "worse" if high < 0 else "no certain difference",
    }
