"""The recipe of a student: a recipe that is there, trained on pseudo-labels besides its own images."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from masksmith.recipes.pseudo import PseudoConfig, QuotaConfig, TeacherConfig
from masksmith.recipes.recipe import Recipe

_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the ranges of coverage that have a quota; empty masks have one, too."""


def student_of(
    recipe: Recipe, teachers: Sequence[TeacherConfig], *, number: int, quotas: Sequence[QuotaConfig]
) -> Recipe:
    """Return the recipe of a student in the ``number``-th round.

    Where no stage of the recipe is on pseudo-labels, all are on both then; epochs and rates stay.

    Args:
        recipe: Of the net; what it learned from is replaced.
        teachers: Runs that make the labels.
        number: 1, 2, …
        quotas: How many images of which coverage; none: all confident ones.
    """
    old, stages = recipe.pseudo or PseudoConfig(teacher="none"), recipe.training.stages
    if all(stage.data == "labelled" for stage in stages):
        stages = [stage.model_copy(update={"data": "both"}) for stage in stages]
    kept = old.model_dump(exclude={"teacher", "table", "table_hash", "set", "teacher_run", "teacher_runs"})
    pseudo = PseudoConfig(**kept | {"quotas": list(quotas) or old.quotas, "teacher_runs": list(teachers)})
    name = re.sub(r"-round-\d+$", "", recipe.name)
    return recipe.model_copy(
        update={
            "name": f"{name}-round-{number}",
            "pseudo": pseudo,
            "training": recipe.training.model_copy(update={"stages": stages}),
        }
    )


def quotas_of(coverage: Float[np.ndarray, " n"], images: int) -> list[QuotaConfig]:
    """Share a number of images over ranges of coverage as masks are shared over them.

    Args:
        coverage: Of training masks, 0…1 each; one or more.
        images: To be shared, 1 or more.
    """
    shares: dict[tuple[float | None, float], float] = {(None, 0.0): float((coverage == 0).mean())}
    shares |= {
        (low, high): float(((coverage > low) & (coverage <= high)).mean()) for low, high in pairwise(_EDGES)
    }
    exact = {place: images * share for place, share in shares.items()}
    counts = {place: int(number) for place, number in exact.items()}
    by_rest = sorted(exact, key=lambda place: counts[place] - exact[place])
    for place in by_rest[: images - sum(counts.values())]:
        counts[place] += 1
    return [
        QuotaConfig(above=low, up_to=high, images=count) for (low, high), count in counts.items() if count
    ]
