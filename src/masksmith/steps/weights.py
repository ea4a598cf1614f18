"""Which weights of a training predict best: all that it kept, side by side on held-out images.

The choice is made by the score, and judged on images it was not made on: the kind is chosen on the other folds, and
replaces the present one only if the lower 80% bound of its gain is above zero.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masksmith.core.errors import InputError
from masksmith.core.files import write_json
from masksmith.core.progress import gain_text, logger
from masksmith.core.randomness import stream
from masksmith.folds.config import ALL
from masksmith.postprocess.bootstrap import BOUND_QUANTILE, paired_bootstrap
from masksmith.postprocess.rule_sweep import RuleSweep
from masksmith.postprocess.search import search_rule
from masksmith.project.folder import Project
from masksmith.project.members import Member, with_weights
from masksmith.project.runs import Run
from masksmith.recipes.recipe import Recipe
from masksmith.steps.out_of_fold import plain_rows
from masksmith.steps.predict import oof_of, predict_member
from masksmith.steps.train import is_trained, kept_weights, not_trained
from masksmith.steps.tune import parts_of
from masksmith.training.checkpoint import facts_of
from masksmith.training.config import chosen_on_held_out


@dataclass(frozen=True)
class Compared:
    """The weights of a run beside each other."""

    run: str
    metric: str
    present: str
    table: list[dict[str, Any]]
    """A row each kind: weights, files, score, gain over the present ones with its 80% bounds."""
    chosen: str
    nested: float
    """Score of the kinds that were chosen on other images."""
    optimism: float
    """What the score of the best kind promises beyond that."""
    gain_low: float
    gain_high: float

    @property
    def kept(self) -> bool:
        """Whether other weights than the present ones are taken."""
        return self.chosen != self.present

    def __str__(self) -> str:
        rows = [
            f"{row['weights']:<14} {row['files']:>2} files  {row['score']:.4f}  "
            f"{gain_text(row['gain'], row['low'], row['high'])}"
            f"{'  epoch chosen on the fold' if row['chosen_on_fold'] else ''}"
            for row in self.table
        ]
        verdict = (
            f"{self.chosen} is taken: predict, tune and submit again"
            if self.kept
            else f"{self.present} stays: no certain gain"
        )
        return "\n".join(
            [
                f"{self.run}: {self.metric} by weights (plain, the gain over {self.present} with its 80% bounds)",
                *rows,
                f"nested {self.nested:.4f} ({self.gain_low:+.4f} … {self.gain_high:+.4f}); the best row promises "
                f"{self.optimism:+.4f} beyond it; {verdict}",
            ]
        )


def compare_weights(project: Project, members: Sequence[Member]) -> Compared:
    """Predict held-out images with each kind of weights that all folds kept, choose, and set ``prediction.weights``.

    The table is kept as ``runs/NAME/weights.json``.

    Raises:
        InputError: Members of several runs or of other programs, a fold that is not trained, or nothing to compare.
    """
    folds = [member for member in members if member.fold != ALL]
    run = folds[0].run if folds else members[0].run
    if run.is_external or any(member.run.path != run.path or member.interim for member in folds):
        given = ", ".join(dict.fromkeys(member.name for member in members))
        raise InputError(
            f"{given}: expected the trained folds of one run of this project; name it with --run"
        )
    for member in folds:
        if not is_trained(project, member):
            raise not_trained(project, member)
    recipe, present = run.recipe, run.recipe.prediction.weights
    kinds = kinds_of(run, folds)
    if len(kinds) < 2:
        raise InputError(
            f"{run.path.name}: its training kept the weights {', '.join(kinds)} alone; train with training.keep: "
            "[last, best_score, raw], top_k, swa or a schedule of cosine_restarts to have something to compare"
        )
    metric, rows, took = project.metric(recipe), {}, {}
    for kind in kinds:
        begun = time.perf_counter()
        own = folds if kind == present else [with_weights(member, kind) for member in folds]
        for member in own:
            predict_member(project, member, stages=("oof",))
        rows[kind] = plain_rows(project, recipe, oof_of(project, own))
        took[kind] = round(time.perf_counter() - begun, 2)
        logger.info("weights %s: scored on %d held-out images", kind, len(rows[kind]))
    names = list(rows[present])
    stacked = np.stack([[rows[kind][name] for kind in kinds] for name in names])
    groups = project.folds.groups(names).tolist()
    labels = project.metric_groups(recipe, names).tolist()
    sweep = RuleSweep(tuple(kinds), stacked, np.zeros_like(stacked[:, 0]))
    found = search_rule(
        sweep, metric, kinds, parts=parts_of(project, names, seed=recipe.seed), groups=groups, labels=labels,
        resamples=recipe.tuning.resamples, seed=recipe.seed,
    )  # fmt: skip
    members_of = np.unique(np.asarray(labels), return_inverse=True)[1]
    table = []
    for at, kind in enumerate(kinds):
        gains, _, _ = paired_bootstrap(
            metric, stacked[:, at], stacked[:, 0], groups, labels=labels,
            resamples=recipe.tuning.resamples, rng=stream(recipe.seed),
        )  # fmt: skip
        low, high = np.quantile(gains, [BOUND_QUANTILE, 1 - BOUND_QUANTILE])
        score = metric.score(stacked[:, at], members_of)
        table.append(
            {
                "weights": kind,
                "files": len(kept_weights(facts_of(folds[0].weights), folds[0].weights.name)[kind]),
                "score": score,
                "gain": metric.utility(score) - metric.utility(found.plain),
                "low": float(low),
                "high": float(high),
                "seconds": took[kind],
                "chosen_on_fold": kind == "top_k" or chosen_on_held_out(kind),
            }
        )
    done = Compared(
        run.path.name, metric.name, present, table, found.rule, found.nested,
        metric.utility(found.tuned) - metric.utility(found.nested), found.gain_low, found.gain_high,
    )  # fmt: skip
    write_json(run.weights_json, vars(done))
    if done.kept:
        project.set_free_parts(run, _weights(recipe, done.chosen))
    return done


def kinds_of(run: Run, folds: Sequence[Member]) -> list[str]:
    """Return the kinds of weights that all folds kept, the present one first."""
    each = [kept_weights(facts_of(member.weights), member.weights.name) for member in folds]
    present = run.recipe.prediction.weights
    shared = [kind for kind in each[0] if all(one.get(kind) for one in each)]
    return [present, *(kind for kind in shared if kind != present)]


def _weights(recipe: Recipe, kind: str) -> Recipe:
    prediction = recipe.prediction.model_copy(update={"weights": kind})
    return recipe.model_copy(update={"prediction": prediction})
