"""From a recipe to runs and members: folds are made or read, "auto" is settled, what cannot be done is refused.

All of it happens before anything is trained, under the project's lock that the verbs in ``pipeline`` hold.
"""

from dataclasses import replace

from masksmith.augment import CallableAugment
from masksmith.core.arrays import IGNORE
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.data.checks import duplicate_groups
from masksmith.data.similarity import similar_groups
from masksmith.folds.table import (
    Folds,
    FoldsConfig,
    deal_values,
    group_values,
    make_folds,
    merge_groups,
    need_groups,
    write_folds,
)
from masksmith.preprocess import Frame
from masksmith.project.folder import Project, Run, with_free_parts
from masksmith.project.members import Member, members_of_run
from masksmith.recipes.ensemble import Judge, member_recipes
from masksmith.recipes.recipe import Recipe, load_teacher
from masksmith.steps.train import scalars_of
from masksmith.training.config import TrainingConfig

# --- folds ---


def folds_of(project: Project, recipe: Judge) -> Folds:
    """Read the folds, or make them if there are none.

    Raises:
        InputError: There are folds, and another rule was asked for; or as make_folds.
    """
    asked = recipe.folds
    column, similar = asked.group_by, asked.similar_count
    values = None if column is None or similar else group_values(project.catalog.train, column)
    if project.folds_csv.exists():
        _refuse_other_folds(project, asked)
        if column is not None and values is not None:
            need_groups(project.folds, values, project.folds_csv, column=column)
        return project.folds
    numbers = None if asked.deal_by is None else deal_values(project.catalog.train, asked.deal_by)
    masks, images = project.cache.train_masks, project.cache.train_images
    counts = {name: (int((masks[name] == 1).sum()), int((masks[name] != IGNORE).sum())) for name in masks}
    groups = {name: key for key, names in duplicate_groups(images).items() for name in names}
    if similar is not None:
        values = similar_groups(images, similar, seed=asked.seed)
    if values is not None:
        groups = merge_groups(groups, values, blank=project.blank_train)
    made = make_folds(counts, groups, asked, values=numbers)
    project.ledger.mark_done("folds.seed", str(asked.seed))
    project.ledger.mark_done("folds.group_by", repr(column))
    project.ledger.mark_done("folds.kind", asked.kind)
    write_folds(made, project.folds_csv)
    return project.folds


def _refuse_other_folds(project: Project, asked: FoldsConfig) -> None:
    """Refuse a rule that is not the one the project's folds were made by; older folds may not say theirs."""
    ledger, path = project.ledger, project.folds_csv

    def is_other(entry: str, key: str) -> bool:
        return ledger.knows(entry) and not ledger.is_done(entry, key)

    count = project.folds.count
    # an older masksmith wrote no rule: it had only one
    unsaid = ledger.knows("folds.seed") and not ledger.knows("folds.kind")
    other_kind = asked.kind != FoldsConfig().kind if unsaid else is_other("folds.kind", asked.kind)
    if is_other("folds.group_by", repr(asked.group_by)):
        what, made = f"folds.group_by: {asked.group_by!r}", "was made with another column or with none"
    elif asked.count != count:
        what, made = f"folds.count: {asked.count}", f"holds {count}"
    elif is_other("folds.seed", str(asked.seed)):
        what, made = f"folds.seed: {asked.seed}", "was made with another"
    elif other_kind:
        what, made = f"folds: {asked.kind}", "was made by another rule"
    else:
        return
    raise InputError(
        f"{what} was asked for, but {path} {made}, and folds are never made anew; choose another --out"
    )


# --- one recipe ---


def resolve(project: Project, recipe: Recipe) -> Recipe:
    """Settle every "auto" for the project's data: what is written into the run's recipe.yaml is fixed."""
    from masksmith.losses.options import check_losses
    from masksmith.models.encoders import settle_encoder
    from masksmith.models.segmentation import MODELS
    from masksmith.training.machine import settle_machine

    look_up(MODELS, recipe.model.architecture, where="model.architecture")
    for i, stage in enumerate(recipe.training.stages):
        check_losses(
            stage.loss,
            where=f"training.stages[{i}].loss",
            image_head=recipe.model.image_head != "none",
        )
    settled = settle_encoder(recipe.model.encoder, recipe.model.encoder_weights)
    logger.info("encoder: %s (%s)", settled.encoder, settled.reason)
    model = recipe.model.model_copy(update={"encoder": settled.encoder, "encoder_weights": settled.weights})
    if settled.weights not in ("none", "imagenet"):
        model = model.model_copy(update={"encoder_weights_hash": model.weights_identity()})
    training = settle_machine(recipe.training)
    seen = project.settled_input(recipe.input)
    resolved = recipe.model_copy(update={"model": model, "training": training, "input": seen})
    check_prediction(resolved)
    return resolved


def check_prediction(recipe: Recipe) -> None:
    """Refuse a prediction that the model or the machine cannot do: it can be asked of a run that is trained, too.

    Raises:
        InputError: As check_runtime and check_combine.
    """
    from masksmith.prediction.config import check_combine
    from masksmith.prediction.runtimes import check_runtime

    training, model = recipe.training, recipe.model
    check_runtime(
        recipe.prediction.runtime,
        device=training.device,
        precision=training.precision,
        scalars=model.scalars,
    )
    check_combine(recipe.prediction, image_head=model.image_head)
    cycles = any(stage.schedule is not None and stage.schedule.cuts for stage in training.stages)
    if recipe.prediction.weights == "snapshots" and not cycles:
        raise InputError(
            "prediction.weights: 'snapshots', but no stage of the training has a schedule of cosine_restarts that "
            "would take them; give one that, or set prediction.weights to final"
        )
    if recipe.prediction.weights == "top_k" and not training.top_k:
        raise InputError(
            "prediction.weights: 'top_k', but training.top_k is 0 and none are kept; set it to the number to keep, or "
            "prediction.weights to final"
        )


def check_stages(training: TrainingConfig, *, channels: int, custom: CallableAugment | None) -> None:
    """Refuse augmentation that the images cannot have, in any stage.

    Raises:
        InputError: As check_augmentation.
    """
    from masksmith.augment import check_augmentation

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
    if recipe.size.pad_hw is None:
        return
    stores = (project.cache.train_images, project.cache.test_images)
    for hw in {images.shape(name) for images in stores for name in images}:
        Frame.of(hw, recipe.size, divisor=recipe.model.divisor)


# --- runs and members ---


def open_run(project: Project, asked: Recipe) -> Run:
    """Return the run of a recipe, made and resolved now if there is none."""
    from masksmith.training.refit import refuse_refit

    made = folds_of(project, asked)
    channels = project.inputs(asked.input).channels
    check_stages(asked.training, channels=channels, custom=project.custom)
    asked.model.check_channels(channels)
    check_sizes(project, asked)
    if asked.folds.refit:
        refuse_refit(asked.training)
    for stage in ("oof", "test"):
        scalars_of(project, asked, stage)
    taught = asked if asked.pseudo is None else _open_teacher(project, asked)
    run = project.run_of(asked) or project.add_run(asked, resolve(project, taught))
    check_prediction(run.recipe)
    run.ledger.mark_done("folds", made.hash)
    return run


def _open_teacher(project: Project, asked: Recipe) -> Recipe:
    """Return the recipe with the run of its teacher, which is made now if there is none.

    A run that is there predicts as it is asked to here, for that makes the labels; the folds that it trains, its refit
    and its tuning are not its pupil's to change.

    Raises:
        InputError: There are no test images to label; the teacher's run that the recipe names is not in this project;
            or as open_run.
    """
    assert asked.pseudo is not None, asked.name
    if asked.pseudo.teacher_run is not None:  # a resolved recipe
        _need_teacher(project, asked.pseudo.teacher_run)
        return asked
    if not project.catalog.test:
        raise InputError(
            f"{project.catalog.root}: there are no test images to make pseudo-labels of; set pseudo=null and "
            "training.stages[…].data=labelled, or add test images"
        )
    wanted = load_teacher(asked)
    if (there := project.find_run(wanted)) is not None:
        wanted = with_free_parts(wanted, there.recipe).model_copy(update={"prediction": wanted.prediction})
    pseudo = asked.pseudo.model_copy(update={"teacher_run": open_run(project, wanted).path.name})
    return asked.model_copy(update={"pseudo": pseudo})


def _need_teacher(project: Project, name: str) -> None:
    if not (project.runs_dir / name / "recipe.yaml").exists():
        raise InputError(
            f"pseudo.teacher_run: {project.root} has no run {name!r}; a resolved recipe names its teacher's run in the "
            "project that it comes from: to train the teacher in this one, add --set pseudo.teacher_run=null"
        )
    project.run(name)  # it can be read


def open_members(project: Project, asked: Judge) -> list[Member]:
    """Return the members that a recipe or an ensemble asks for, their runs made if there are none.

    Those of an ensemble come fold by fold, so that its first submission has something of each recipe early.

    Raises:
        InputError: As open_run.
    """
    if isinstance(asked, Recipe):
        return members_of_run(open_run(project, asked))
    members: list[Member] = []
    for entry, recipe in zip(asked.members, member_recipes(asked), strict=True):
        run = open_run(project, recipe)
        if any(run.path == member.run.path for member in members):
            raise InputError(
                f"ensemble {asked.name}: two members are the same training, {run.path.name}, on this machine; change a "
                "value that decides the weights, such as seed, in the set of one"
            )
        members += [replace(one, weight=entry.weight, ensemble=asked) for one in members_of_run(run)]
    return sorted(members, key=lambda member: member.fold)
