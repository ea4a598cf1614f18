"""What a score means and what to do next, in a few sentences: the first screen of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MOST = 4
_MUCH = 0.25  # of what the score lacks; a cause with more is worth a line
_OFF = 0.05  # calibration error that is worth a line
_NORMAL_80 = 1.2816  # standard errors on each side of an 80% interval
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


def is_no_better(tuning: Mapping[str, Any]) -> bool:
    """Whether some prediction without any model scores as well as the one in use."""
    sign, scores = 1 if tuning["higher_is_better"] else -1, tuning["scores"]
    return any(sign * scores["chosen"] <= sign * scores[name] for name in tuning["baselines"])


def headline(tuning: Mapping[str, Any], count: int) -> list[str]:
    """Return what the score of so many images means, a sentence a line."""
    scores = tuning["scores"]
    half = _NORMAL_80 * tuning["standard_error"]
    low, high = scores["chosen"] - half, scores["chosen"] + half
    if tuning["higher_is_better"]:
        high = min(1.0, high)
    low = max(0.0, low)
    lines = [f"Measured on {count:,} image{'s' if count != 1 else ''} that the models were not trained on."]
    if half > 0:
        lines.append(
            f"Other images of the same kind, as many, would score {low:.3f} to {high:.3f} in four of five cases."
        )
    else:
        lines.append("They are too few, or too alike, to say how sure that is.")
    sign = 1 if tuning["higher_is_better"] else -1
    trivial = max(tuning["baselines"], key=lambda name: sign * scores[name], default=None)
    if trivial is None:
        return lines
    base, chosen = scores[trivial], scores["chosen"]
    if sign * chosen <= sign * base:
        lines.append(
            f"That is no better than predicting {trivial} ({base:.3f}): this model has learned nothing yet."
        )
    elif tuning["higher_is_better"] and base < 1:
        lines.append(
            f"Predicting {trivial} scores {base:.3f} and a perfect prediction 1: the model goes "
            f"{(chosen - base) / (1 - base):.0%} of that way."
        )
    else:
        lines.append(f"Predicting {trivial} scores {base:.3f}, a perfect prediction 0; lower is better.")
    return lines


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
    found, useless = [], is_no_better(tuning)
    if interim:
        found.append(
            NextStep("Training was stopped early: run the same command again and it goes on from there.")
        )
    if useless:
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
    if useless:
        return found[:_MOST]
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
