"""An ensemble beside its recipes: is the mean better than the best of them?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from masksmith.core.progress import gain_text, is_interval, logger
from masksmith.core.randomness import stream
from masksmith.folds.config import ALL
from masksmith.metrics.protocol import Row
from masksmith.postprocess.bootstrap import BOUND_QUANTILE, paired_bootstrap
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.project.members import Member
from masksmith.recipes.ensemble import AnyRecipe
from masksmith.steps.out_of_fold import plain_rows
from masksmith.steps.predict import oof_of


def compare_members(
    project: Project, ensemble: AnyRecipe, members: Sequence[Member], oof: Mapping[str, MeanCodes]
) -> dict[str, Any]:
    """Return how the ensemble does beside its recipes."""
    of_run: dict[str, list[Member]] = {}
    for member in members:
        if member.fold != ALL:
            of_run.setdefault(member.part, []).append(member)
    each = {name: oof_of(project, own) for name, own in of_run.items()}
    found = compare_recipes(project, ensemble, oof, each, of_run)
    text = _text(found)
    logger.info("%s", text)
    return found | {"text": text}


def _text(found: Mapping[str, Any]) -> str:
    """Return the sentence on an ensemble beside the best of its recipes."""
    row = next(row for row in found["table"] if row["run"] == found["best"])
    if len(found["table"]) == 1:
        return f"ensemble {found['name']}: so far {row['run']} alone ({row['score']:.4f})"
    return (
        f"ensemble {found['name']}: {row['ensemble']:.4f} beside {row['score']:.4f} of {row['run']}, the best of "
        f"{len(found['table'])} recipes (plain, on the same images); gain "
        f"{gain_text(found['gain_mean'], found['gain_low'], found['gain_high'])}, 80% bounds: {found['verdict']}"
    )


def compare_recipes(
    project: Project,
    ensemble: AnyRecipe,
    oof: Mapping[str, MeanCodes],
    each: Mapping[str, Mapping[str, MeanCodes]],
    members: Mapping[str, Sequence[Member]],
) -> dict[str, Any]:
    """Compare an ensemble with each of its recipes, all under the plain rule on held-out images; return plain values.

    The gain is that over the best recipe among those that cover the most images: a paired bootstrap over groups of the
    images that it covers. That recipe was chosen on these very images, which flatters it, not the ensemble.

    Args:
        project: Its folds and masks.
        ensemble: Its metric, resamples and seed; or those of the recipe that other programs' members stand beside.
        oof: Id -> averaged probabilities.
        each: Name of a recipe's run -> id -> its own probabilities.
        members: Name -> its members.
    """
    metric = project.metric(ensemble)
    blend = plain_rows(project, ensemble, oof)
    own = {name: plain_rows(project, ensemble, codes) for name, codes in each.items()}

    def score(rows: Mapping[str, Row], names: Sequence[str]) -> float:
        groups = project.metric_groups(ensemble, names)
        return metric.score(np.stack([rows[name] for name in names]), groups)

    table: list[dict[str, Any]] = [
        {
            "run": name,
            "weight": members[name][0].weight,
            "folds": sorted({member.fold for member in members[name]}),
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
    low, high = (float(one) for one in np.quantile(gains, [BOUND_QUANTILE, 1 - BOUND_QUANTILE]))
    certain = is_interval(low, high)
    return {
        "name": ensemble.name,
        "table": table,
        "best": best["run"],
        "gain_mean": float(gains.mean()),
        "gain_low": low,
        "gain_high": high,
        "verdict": "better"
        if certain and low > 0
        else "worse"
        if certain and high < 0
        else "no certain difference",
    }
