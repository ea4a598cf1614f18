"""What to do after a training: a few lines in the order of what they promise, each with the command or key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MOST = 4
_MUCH = 0.25  # of what the score lacks; a cause with more is worth a line
_OFF = 0.05  # calibration error that is worth a line
_RISING = 0.9  # of the training, after which the best epoch says that it was too short

FOR_CAUSE = {
    "empty predicted": ("sample images with foreground more often", "training.sampler.name=non_empty"),
    "false alarm": ("give the net a head that says whether there is anything", "model.image_head=gem"),
    "missed": ("train a loss that weighs missed pixels more", "training.stages.0.loss=[{name: lovasz_elu}]"),
    "small object": ("train and predict at a larger size", "size.resize_hw=[384,384]"),
    "too much": ("look for images whose masks lack what is there: the labels may be at fault", ""),
    "border": ("train and predict at a larger size, or average views", "prediction.tta=[identity, hflip]"),
    "class confusion": ("sample images of rare classes more often, and look at the labels of both", ""),
    "joined or split": ("train longer, or search seeds and areas again", "tuning.search_objects=true"),
}
"""Cause -> what may help against it, and the key of the recipe."""


@dataclass(frozen=True)
class NextStep:
    """What to do, and how it is typed; ``how`` is empty where a person has to look."""

    text: str
    how: str = ""


def next_steps(
    tuning: Mapping[str, Any],
    *,
    interim: bool,
    folds: Sequence[tuple[int, bool]],
    causes: Sequence[tuple[str, float]],
    late: bool,
    calibration_error: float,
) -> list[NextStep]:
    """Return what to do next, the most promising first.

    Args:
        tuning: What tuning.json holds.
        interim: Whether the training was stopped early.
        folds: Each fold and whether it was predicted.
        causes: (cause, cost), the costliest first.
        late: Whether the best epochs were among the last (see best_is_late).
        calibration_error: Of the held-out pixels, 0…1.
    """
    sign, scores = 1 if tuning["higher_is_better"] else -1, tuning["scores"]
    found = []
    if interim:
        found.append(
            NextStep("Training was stopped early: run the same command again and it goes on from there.")
        )
    if any(sign * scores["chosen"] <= sign * scores[name] for name in tuning["baselines"]):
        found.append(
            NextStep(
                "A prediction without any model scores as well. Look at the data first, then train longer.",
                "masksmith explore DATA --out P",
            )
        )
    elif late:
        found.append(
            NextStep(
                "The score was still rising when training ended: train longer.", "compete … --budget +20m"
            )
        )
    total = sum(max(0.0, cost) for _, cost in causes)
    for cause, cost in causes[:2]:
        if cause in FOR_CAUSE and total and cost >= _MUCH * total:
            text, key = FOR_CAUSE[cause]
            found.append(
                NextStep(
                    f"{cost / total:.0%} of what the score lacks is “{cause}”: {text}.",
                    f"--set {key}" if key else "",
                )
            )
    missing = [fold for fold, done in folds if not done]
    if missing:
        found.append(
            NextStep(
                f"{len(missing)} of {len(folds)} folds are not trained: with them score and mean are surer.",
                f"--set folds.train={len(folds)}",
            )
        )
    if calibration_error > _OFF:
        found.append(
            NextStep(
                f"Probabilities are off by {calibration_error:.0%} on average: trust masks, not percentages."
            )
        )
    found.append(
        NextStep(
            "If the score will do, take the model along as one file.", "masksmith bundle P --out model.msk"
        )
    )
    return [*found[: _MOST - 1], found[-1]] if len(found) > _MOST else found


def best_is_late(best: Sequence[tuple[float, float]]) -> bool:
    """Whether most trainings had their best score in their last tenth: (epoch of the best, epochs) of each."""
    late = [epoch >= _RISING * epochs for epoch, epochs in best if epochs > 1]
    return bool(late) and sum(late) > len(late) / 2
