"""The learning-rate range test on a project's first fold."""

from masksmith.core.errors import InputError
from masksmith.models.segmentation import build_model
from masksmith.project.folder import Project
from masksmith.recipes.recipe import Recipe
from masksmith.steps.resolve import resolve
from masksmith.steps.train import check_memory, data_of, learn_scalars
from masksmith.training.lr_finder import LrCurve, find_lr
from masksmith.training.machine import make_fabric


def sweep_lr(project: Project, asked: Recipe, *, fold: int = 0) -> LrCurve:
    """Return the loss of a recipe's first stage at growing learning rates; no run is made.

    Raises:
        InputError: The recipe goes on from trained weights, or it would not fit into memory.
    """
    if asked.training.start_run is not None:
        raise InputError(
            f"training.start_run: {asked.training.start_run}: a range test begins with the model's own weights; "
            "expected null"
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
    model = build_model(recipe.model, in_channels=seen.channels, seed=seed, statistics=seen.statistics)
    data = data_of(project, recipe, fold, key="")
    learn_scalars(model, data)
    check_memory(recipe, training, model, data)
    return find_lr(fabric, model, training, data)
