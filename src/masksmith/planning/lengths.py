"""Recipes of another length: the whole training scaled to a share, and one more cosine cycle of a trained net."""

from typing import Any

from masksmith.planning.rules import LengthRule, UnitRule
from masksmith.prediction.config import PredictionConfig
from masksmith.recipes.recipe import Recipe
from masksmith.training.config import ScheduleConfig, Stage, TrainingConfig


def whole_epochs(rule: LengthRule, images: int) -> int:
    """Return the epochs of a whole training on a number of images."""
    return min(rule.epochs_most, max(rule.epochs_least, round(rule.images / images)))


def with_epochs(recipe: Recipe, epochs: int, rule: LengthRule) -> Recipe:
    """Return the recipe with ``epochs`` (1 or more) epochs, shared among its stages as they share them now.

    Very few epochs are one stage at the largest size of the recipe, with its first loss: a net that saw small
    images only, or a second loss for one epoch, would be worse. All of it is trained, and on the images of the last
    stage: what was frozen for the first stage only, or easy, would never be learned.
    """
    stages = recipe.training.stages
    if epochs == sum(stage.epochs for stage in stages):
        return recipe
    if epochs < rule.single_stage_below or len(stages) > epochs:
        return _with_stages(recipe, [_single(stages, epochs)])
    shares = _largest_remainders([stage.epochs for stage in stages], epochs)
    return _with_stages(
        recipe,
        [stage.model_copy(update={"epochs": n}) for stage, n in zip(stages, shares, strict=True)],
    )


def _single(stages: list[Stage], epochs: int) -> Stage:
    """Return the first stage as the only one: see with_epochs."""
    last = {name: getattr(stages[-1], name) for name in ("geometry", "intensity", "sampler")}
    scale = max(stage.scale for stage in stages)
    whole = {"epochs": epochs, "scale": scale, "freeze": [], "subset": None, "until_plateau": None}
    return stages[0].model_copy(update={**whole, **last})


def _largest_remainders(weights: list[int], total: int) -> list[int]:
    """Divide ``total`` in proportion to the weights, at least 1 each (``total`` is at least as many as they are)."""
    spare = total - len(weights)
    exact = [spare * weight / sum(weights) for weight in weights]
    shares = [int(value) for value in exact]
    by_rest = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_rest[: spare - sum(shares)]:
        shares[i] += 1
    return [share + 1 for share in shares]


def cycle_of(recipe: Recipe, *, run: str, epochs: int, rule: UnitRule) -> Recipe:
    """Return the recipe of one more cosine cycle of a trained run: its last size and loss, a lower peak rate.

    All of the net is trained, to the end of the cycle.

    Source:
        Snapshot ensembles: Huang et al. 2017, https://arxiv.org/abs/1704.00109
    """
    stages = recipe.training.stages
    optimizer = [stage.optimizer for stage in stages if stage.optimizer][-1]
    assert optimizer is not None
    cycle = stages[-1].model_copy(
        update={
            "epochs": epochs,
            "start": "previous",
            "until_plateau": None,
            "freeze": [],
            "subset": None,
            "optimizer": optimizer.model_copy(update={"lr": optimizer.lr * rule.cycle_lr_frac}),
            "schedule": ScheduleConfig(name="cosine", warmup_frac=0.05, final_frac=0.001),
        }
    )
    return _with_stages(recipe, [cycle], start_run=run)


def _with_stages(recipe: Recipe, stages: list[Stage], **changes: Any) -> Recipe:  # noqa: ANN401
    training = recipe.training.model_copy(update={"stages": stages, **changes})
    training = training.model_copy(update={"stages": _fit_cycles(training)})
    training = training.model_copy(update=_fit_swa(training))
    parts = {
        "training": training,
        "prediction": fit_weights(recipe.prediction, training),
        "pseudo": recipe.pseudo if any(stage.data != "labelled" for stage in stages) else None,
    }
    return recipe.model_copy(update=parts)


def _fit_cycles(training: TrainingConfig) -> list[Stage]:
    """Return the stages with as many cosine cycles as divide their epochs, never more than before."""
    stages = list(training.stages)
    for span in training.spans():
        schedule, epochs = stages[span[0]].schedule, sum(stages[i].epochs for i in span)
        if schedule is not None and schedule.cuts:
            cycles = max(n for n in range(1, schedule.cuts + 1) if epochs % n == 0)
            fitting = schedule.model_copy(update={"cycles": cycles})
            stages[span[0]] = stages[span[0]].model_copy(update={"schedule": fitting})
    return stages


def fit_weights(prediction: PredictionConfig, training: TrainingConfig) -> PredictionConfig:
    """Return the prediction with the final weights where the training keeps none of those that were asked for.

    Snapshots of another number than there are weights of them weigh the same.
    """
    kept = {"final": True, "snapshots": training.snapshots > 0, "top_k": training.top_k > 0}
    kept |= dict.fromkeys(training.keep, True)
    if not kept.get(prediction.weights):
        return prediction.model_copy(update={"weights": "final", "snapshot_weights": None})
    if prediction.snapshot_weights and len(prediction.snapshot_weights) != training.snapshots:
        return prediction.model_copy(update={"snapshot_weights": None})
    return prediction


def _fit_swa(training: TrainingConfig) -> dict[str, Any]:
    """Return what changes where weight averaging would begin after the end, or has no cycles any more."""
    swa, epochs = training.swa, sum(stage.epochs for stage in training.stages)
    if swa is None:
        return {}
    if swa.every == "cycle" and not training.snapshots:
        select = "last" if training.select == "swa" else training.select
        return {"swa": None, "select": select, "keep": [name for name in training.keep if name != "swa"]}
    late = isinstance(swa.start, int) and swa.start > epochs
    return {"swa": swa.model_copy(update={"start": epochs})} if late else {}
