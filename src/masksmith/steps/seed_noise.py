"""Seed noise: the same recipe with three seeds on one fold; what differs less than this is no difference."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.core.progress import logger
from masksmith.project.folder import Project
from masksmith.project.members import Member
from masksmith.recipes.recipe import Recipe
from masksmith.steps.out_of_fold import plain_score
from masksmith.steps.predict import oof_of, predict_member
from masksmith.steps.pseudo_labels import train_student
from masksmith.steps.runs import open_run
from masksmith.training.events import read_events

SEEDS = 3


def measure_noise(project: Project, recipe: Recipe) -> dict[str, Any]:
    """Train fold 0 with three seeds where that is not done, score each, and write ``noise.json``.

    Every seed draws its own random weights, order of images and augmentation; folds stay the same. The scores are
    plain ones (threshold 0.5) on the same held-out images.

    Args:
        project: With its folds made.
        recipe: The first seed is the recipe's own; the next two count on from it. A seed whose training was shortened
            for time is passed over: it had another length.

    Returns:
        What ``noise.json`` holds: ``scores`` by seed, ``sd`` (standard deviation of one training, n - 1),
        ``difference`` (1.96 * sqrt(2) * sd: two trainings differ by less than this in 19 of 20 cases if only
        the seed differs; three seeds estimate it coarsely), the recipe, the fold and the metric.

    Raises:
        InputError: The recipe goes on from trained weights.
        StoppedError: A stop was asked for; the same command goes on.
    """
    if recipe.training.start_run is not None:
        raise InputError(
            f"training.start_run: {recipe.training.start_run}: a cycle of trained weights says nothing about seeds; "
            "name a whole recipe with --recipe"
        )
    members: list[Member] = []
    for seed in count(recipe.seed):
        member = Member(open_run(project, recipe.model_copy(update={"seed": seed})), 0)
        if not _was_shortened(member):
            members.append(member)
        if len(members) == SEEDS:
            break
    scores: dict[str, float] = {}
    for member in members:
        train_student(project, member)
        predict_member(project, member, stages=("oof",))
        name = str(member.run.recipe.seed)
        scores[name] = plain_score(project, recipe, oof_of(project, [member]))
        logger.info("seed %s: %s %.4f", name, recipe.metric, scores[name])
    value = noise_of(
        project.metric(recipe).name,
        [member.run.path.name for member in members],
        scores,
        fold=0,
        same_labels=recipe.pseudo is not None,
    )
    write_json(project.noise_json, value)
    return value


def noise_of(
    metric: str, runs: Sequence[str], scores: dict[str, float], *, fold: int, same_labels: bool
) -> dict[str, Any]:
    """Return what ``noise.json`` holds (see measure_noise).

    Args:
        metric: Of the scores.
        runs: Of the seeds, the recipe's own first.
        scores: Seed -> score, two or more.
        fold: The fold that they are of.
        same_labels: Whether all seeds learnt from the same pseudo-labels.
    """
    sd = float(np.std(list(scores.values()), ddof=1))
    return {
        "metric": metric,
        "recipe": runs[0],
        "runs": list(runs),
        "fold": fold,
        "same_labels": same_labels,
        "scores": scores,
        "sd": sd,
        "difference": 1.96 * 2**0.5 * sd,
    }


def _was_shortened(member: Member) -> bool:
    return any(
        event["fold"] == member.fold and event["name"] == "replanned"
        for event in read_events(member.run.events(member.fold))
    )


def read_noise(path: Path) -> dict[str, Any] | None:
    """Return what ``noise.json`` holds, None if it was never measured.

    Raises:
        InputError: The file was edited into something else.
    """
    if not path.exists():
        return None
    value = read_json(path)
    if not isinstance(value, dict) or not {"sd", "difference", "scores", "metric"} <= set(value):
        raise InputError(f"{path}: not what `masksmith noise` writes; remove it and run that again")
    return value


def noise_text(noise: dict[str, Any] | None) -> str:
    """Return the sentence that is shown beside every comparison."""
    if noise is None:
        return "seed noise: not measured (`masksmith noise`)"
    seeds = len(noise["scores"])
    labels = " with the same pseudo-labels" if noise.get("same_labels") else ""
    return (
        f"seed noise: {noise['metric']} sd {noise['sd']:.4f} over {seeds} seeds of {noise['recipe']}{labels}; "
        f"differences below {noise['difference']:.4f} may be the seed alone"
    )
