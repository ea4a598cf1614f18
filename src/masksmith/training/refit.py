"""Training on all images, with nothing held out: as long as the folds' trainings were in the end."""

import statistics
from collections.abc import Sequence

from masksmith.core.errors import InputError
from masksmith.training.config import CHOSEN_ON_HELD_OUT, Stage, SwaConfig, TrainingConfig, chosen_on_held_out


def refuse_scores(config: TrainingConfig) -> None:
    """Refuse a training without held-out images that needs their score or their loss.

    Raises:
        InputError: ``select``, ``keep``, ``top_k``, a plateau, an early stop or a stage's start needs it.
    """
    asks = {"training.select": repr(config.select)} if config.select in CHOSEN_ON_HELD_OUT else {}
    if config.metrics:
        asks["training.metrics"] = repr(config.metrics[0])
    chosen = [name for name in config.keep if chosen_on_held_out(name)]
    if chosen:
        asks["training.keep"] = repr(chosen[0])
    if config.top_k:
        asks["training.top_k"] = str(config.top_k)
    if config.early_stop is not None and config.early_stop.watch != "loss":
        asks["training.early_stop.watch"] = repr(config.early_stop.watch)
    for i, stage in enumerate(config.stages):
        if stage.start == "best":
            asks[f"training.stages[{i}].start"] = "'best'"
        if stage.until_plateau is not None and stage.until_plateau.watch != "loss":
            asks[f"training.stages[{i}].until_plateau.watch"] = repr(stage.until_plateau.watch)
        if watched := _watches_held_out(stage):
            asks[f"training.stages[{i}].schedule.watch"] = repr(watched)
    if asks:
        key, value = next(iter(asks.items()))
        raise InputError(
            f"{key}: {value} needs a score, but no image is held out; expected what the training loss can tell, or a "
            "fixed length"
        )


def refuse_refit(config: TrainingConfig) -> None:
    """Refuse a training that cannot be repeated with no image held out; to be called before the folds are trained.

    Raises:
        InputError: A plateau schedule watches the score, or the loss of held-out images.
    """
    for i, stage in enumerate(config.stages):
        if watched := _watches_held_out(stage):
            raise InputError(
                f"training.stages[{i}].schedule.watch: {watched!r} needs a score, but the refit on all images holds "
                "none out; expected watch: loss or another schedule, or folds.refit: false"
            )


def _watches_held_out(stage: Stage) -> str | None:
    """Return what a stage's schedule watches on held-out images; None where it needs none."""
    schedule = stage.schedule
    if schedule is None or schedule.name != "plateau" or schedule.watch == "loss":
        return None
    return schedule.watch


def refit_config(config: TrainingConfig, lengths: Sequence[Sequence[int]]) -> TrainingConfig:
    """Return the training of all images, with the median length of the folds' trainings.

    What needs a score is left out: nothing is stopped, chosen or begun by it, and the last epoch's weights are kept. A
    schedule of cycles keeps its whole length. A stage that most folds did not reach is left out. Where weight averaging
    would begin after the end, it begins with the last epoch.

    Args:
        config: What the folds were trained with.
        lengths: Epochs of each stage, a row for each fold ("lengths" in final.json).

    Raises:
        InputError: No fold, a row of another number of stages, or as refuse_refit.
    """
    refuse_refit(config)
    if not lengths or any(len(row) != len(config.stages) for row in lengths):
        raise InputError(
            f"refit: lengths {[list(row) for row in lengths]}; expected a row for each trained fold with "
            f"{len(config.stages)} numbers of epochs, one a stage"
        )
    epochs = [statistics.median_high([row[i] for row in lengths]) for i in range(len(config.stages))]
    for span in config.spans():
        schedule = config.stages[span[0]].schedule
        if schedule is not None and schedule.cuts:
            epochs = [config.stages[i].epochs if i in span else n for i, n in enumerate(epochs)]
    changes = {
        "stages": _stages(config.stages, epochs),
        "early_stop": None,
        "select": "last" if config.select in CHOSEN_ON_HELD_OUT else config.select,
        "keep": [name for name in config.keep if not chosen_on_held_out(name)],
        "metrics": [],
        "top_k": 0,
        "swa": _swa(config.swa, sum(epochs)),
    }
    return TrainingConfig(**{**dict(config), **changes})


def _swa(swa: SwaConfig | None, epochs: int) -> SwaConfig | None:
    late = swa is not None and isinstance(swa.start, int) and swa.start > epochs
    return swa.model_copy(update={"start": epochs}) if swa is not None and late else swa


def _stages(stages: Sequence[Stage], epochs: Sequence[int]) -> list[Stage]:
    """Return the stages with their epochs; one without any hands its optimizer and its schedule on."""
    made: list[Stage] = []
    optimizer, schedule = None, None
    for stage, count in zip(stages, epochs, strict=True):
        optimizer, schedule = stage.optimizer or optimizer, stage.schedule or schedule
        if not count:
            continue
        changes = {
            "epochs": count,
            "start": "previous",
            "until_plateau": None,
            "optimizer": optimizer,
            "schedule": schedule,
        }
        made.append(stage.model_copy(update=changes))
        optimizer, schedule = None, None
    return made
