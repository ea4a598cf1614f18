"""From what is asked to a recipe without "auto"; what the data or the machine cannot do is refused before training."""

from collections.abc import Sequence

from masksmith.augment import CallableAugment, check_augmentation
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.losses.options import IMAGE_PARAMETERS, check_losses
from masksmith.models.config import ModelConfig
from masksmith.models.encoders import settle_encoder
from masksmith.models.segmentation import MODELS
from masksmith.prediction.config import check_combine, check_plane, check_whole
from masksmith.prediction.runtimes import check_runtime
from masksmith.preprocess import Frame
from masksmith.project.folder import Project
from masksmith.recipes.recipe import Recipe
from masksmith.steps.operators import check_tuning
from masksmith.training.config import TrainingConfig
from masksmith.training.machine import settle_machine


def resolve(project: Project, recipe: Recipe) -> Recipe:
    """Settle every "auto" for the project's data: what is written into the run's recipe.yaml is fixed."""
    look_up(MODELS, recipe.model.architecture, where="model.architecture")
    for i, stage in enumerate(recipe.training.stages):
        check_losses(
            stage.loss,
            where=f"training.stages[{i}].loss",
            image_head=recipe.model.image_head != "none",
            classes=project.target.outputs,
            exclusive=project.target.exclusive,
        )
        _refuse_other_task(
            [term.name for term in stage.loss], project.target.task, where=f"training.stages[{i}].loss"
        )
    settled = settle_encoder(recipe.model.encoder, recipe.model.encoder_weights)
    logger.info("encoder: %s (%s)", settled.encoder, settled.reason)
    model = recipe.model.model_copy(update={"encoder": settled.encoder, "encoder_weights": settled.weights})
    if settled.weights not in ("none", "imagenet"):
        model = _pin_weights(model)
    training = settle_machine(recipe.training)
    pairs = project.target.mirror_pairs(training.augment.mirror_pairs)
    project.target.mirrored(pairs)  # refuses what cannot be
    augment = training.augment.model_copy(update={"mirror_pairs": pairs})
    training = training.model_copy(update={"augment": augment})
    seen = project.settled_input(recipe.input)
    resolved = recipe.model_copy(update={"model": model, "training": training, "input": seen})
    check_prediction(resolved)
    check_plane(resolved.prediction, task=project.target.task)
    check_tuning(project, resolved.tuning, resolved)
    return resolved


def _refuse_other_task(losses: Sequence[str], task: str, *, where: str) -> None:
    """Refuse a loss whose targets are not those of the task.

    Raises:
        InputError: Objects are learnt by another loss than theirs, or that loss is asked of another task.
    """
    for at, name in enumerate(losses):
        if (name == "objects") != (task == "instances") and name not in IMAGE_PARAMETERS:
            expected = (
                "another"
                if name == "objects"
                else "'objects', as in the recipe auto-objects, or --task binary"
            )
            raise InputError(
                f"{where}[{at}].name: {name!r} cannot learn what the masks are ({task}); expected {expected}"
            )


def _pin_weights(model: ModelConfig) -> ModelConfig:
    """Return the model with the hash of its file of weights.

    Raises:
        InputError: The recipe was resolved with other weights than the file has now.
    """
    content = model.content_hash()
    if model.encoder_weights_hash not in (None, content):
        raise InputError(
            f"model.encoder_weights_hash: {model.encoder_weights_hash}, but the weights from {model.encoder_weights!r} "
            f"have {content}; give the same weights, or set model.encoder_weights_hash=null"
        )
    return model.model_copy(update={"encoder_weights_hash": content})


def check_prediction(recipe: Recipe) -> None:
    """Refuse a prediction that the model or the machine cannot do: it can be asked of a run that is trained, too.

    Raises:
        InputError: As check_runtime, check_combine and check_whole.
    """
    training, model = recipe.training, recipe.model
    check_runtime(
        recipe.prediction.runtime,
        device=training.device,
        precision=training.precision,
        scalars=model.scalars,
    )
    check_combine(recipe.prediction, image_head=model.image_head)
    check_whole(recipe.prediction)
    if recipe.prediction.weights == "snapshots" and not training.snapshots:
        raise InputError(
            "prediction.weights: 'snapshots', but no stage of the training has a schedule of cosine_restarts that "
            "would take them; give one that, or set prediction.weights to final"
        )
    shares, taken = recipe.prediction.snapshot_weights, training.snapshots
    if shares is not None and len(shares) != taken:
        raise InputError(
            f"prediction.snapshot_weights: {len(shares)} numbers ({shares}), but the training takes {taken} snapshots "
            "(the cycles of its schedules of cosine_restarts); give one each, or null"
        )
    if recipe.prediction.weights == "top_k" and not training.top_k:
        raise InputError(
            "prediction.weights: 'top_k', but training.top_k is 0 and none are kept; set it to the number to keep, or "
            "prediction.weights to final"
        )
    kinds = ["final", "snapshots", "top_k", *training.keep]
    if recipe.prediction.weights not in kinds:
        raise InputError(
            f"prediction.weights: {recipe.prediction.weights!r}; expected {', '.join(kinds)}, or weights that "
            "training.keep is to name"
        )


def check_stages(training: TrainingConfig, *, channels: int, custom: CallableAugment | None) -> None:
    """Refuse augmentation that the images cannot have, in any stage.

    Raises:
        InputError: As check_augmentation.
    """
    for i, stage in enumerate(training.stages):
        own = {
            "geometry": stage.geometry or training.geometry,
            "intensity": stage.intensity or training.intensity,
        }
        where = f"training.stages[{i}]" if stage.geometry or stage.intensity else "training"
        check_augmentation(
            training.model_copy(update=own),
            channels=channels,
            custom=custom,
            where=where,
            batch_size=training.batches_of(stage)[0],
        )


def check_sizes(project: Project, recipe: Recipe) -> None:
    """Refuse a size rule that the model or an image does not allow.

    Raises:
        InputError: As canvas_of.
    """
    if recipe.size.pad_hw is None and not recipe.size.chain:
        return
    stores = (project.cache.train_images, project.cache.test_images)
    for hw in {images.shape(name) for images in stores for name in images}:
        Frame.of(hw, recipe.size, divisor=recipe.model.divisor)
