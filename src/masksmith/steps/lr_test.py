"""The learning-rate range test on a project's first fold."""

from dataclasses import dataclass
from pathlib import Path

from masksmith.core.errors import InputError
from masksmith.core.files import write_text
from masksmith.core.progress import logger
from masksmith.models.segmentation import build_model
from masksmith.project.folder import Project
from masksmith.recipes.recipe import Recipe
from masksmith.reporting.figures import lr_curve
from masksmith.steps.folds import folds_of
from masksmith.steps.resolve import resolve
from masksmith.steps.train import check_memory, data_of, learn_scalars
from masksmith.training.lr_finder import LrCurve, find_lr
from masksmith.training.machine import make_fabric


@dataclass(frozen=True)
class LrFound:
    """What ``lr`` ends with."""

    curve: LrCurve
    peak: float
    """Learning rate of the recipe."""
    page: Path

    def __str__(self) -> str:
        found = self.curve.suggestion
        said = (
            f"suggested learning rate: {found:.2g}"
            if found is not None
            else "no suggestion: the loss does not fall at any rate of the sweep"
        )
        swept = f"{self.curve.rates[0]:.0e} to {self.curve.rates[-1]:.2g}" if self.curve.rates else "nothing"
        return f"{said} (the recipe has {self.peak:.2g}; swept {swept})\n{self.page}"


def range_test(project: Project, asked: Recipe) -> LrFound:
    """Train fold 0 shortly at growing learning rates, and write ``lr.html``; no run is made.

    Raises:
        InputError: As sweep_lr.
    """
    first = asked.training.stages[0].optimizer
    assert first is not None  # a recipe without it is refused
    folds_of(project, asked)
    curve = sweep_lr(project, asked)
    page = lr_curve(curve.rates, curve.losses, suggestion=curve.suggestion, peak=first.lr)
    write_text(project.lr_html, page)
    return LrFound(curve, first.lr, project.lr_html)


def sweep_lr(project: Project, asked: Recipe, *, fold: int = 0) -> LrCurve:
    """Return the loss of a recipe's first stage at growing learning rates; no run is made.

    Raises:
        InputError: The recipe goes on from trained weights, or it would not fit into memory.
    """
    if (start := asked.training.start_run or asked.training.start_from) is not None:
        key = "start_run" if asked.training.start_run else "start_from"
        raise InputError(
            f"training.{key}: {start}: a range test begins with the model's own weights; expected null"
        )
    if asked.training.stages[0].data != "labelled":
        raise InputError(
            f"training.stages[0].data: {asked.training.stages[0].data!r}: a range test has no pseudo-labels; try "
            "--set training.stages.0.data=labelled (and --set pseudo=null where no other stage uses any)"
        )
    recipe = resolve(project, asked)
    training = recipe.training.model_copy(update={"stages": recipe.training.stages[:1]})
    fabric = make_fabric(training)
    seed = recipe.seed * 1000 + fold
    seen = project.inputs(recipe.input)
    model = build_model(
        recipe.model,
        in_channels=seen.channels,
        seed=seed,
        classes=project.target.outputs,
        exclusive=project.target.exclusive,
        statistics=seen.statistics,
    )
    data = data_of(project, recipe, fold, key="")
    learn_scalars(model, data)
    logger.info("%s", check_memory(recipe, training, model, data))
    return find_lr(fabric, model, training, data)
