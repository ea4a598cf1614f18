"""Folds and training on a project's files: what a training reads, what it is keyed by, and when it is skipped.

The verbs in ``pipeline`` call these under the project's lock. A stage that is recorded in a ledger with the same key
is not run again.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from masksmith.arrays import IGNORE
from masksmith.augment import CallableAugment
from masksmith.config import look_up, suggest
from masksmith.data.checks import duplicate_groups
from masksmith.data.likeness import similar_groups
from masksmith.data.store import Store, is_whole
from masksmith.ensemble import Judge, member_recipes
from masksmith.errors import InputError
from masksmith.files import digest, remove
from masksmith.members import Member, members_of_run, read_members
from masksmith.metrics import get_metric
from masksmith.postprocess import PLAIN, apply_rule
from masksmith.prediction.codes import to_codes
from masksmith.preprocess import Frame
from masksmith.progress import Remaining, logger
from masksmith.project import Project, Run, with_free_parts
from masksmith.recipe import Recipe, load_teacher
from masksmith.splits import (
    ALL,
    Folds,
    FoldsConfig,
    deal_values,
    group_values,
    make_folds,
    merge_groups,
    need_groups,
    write_folds,
)
from masksmith.training.config import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from masksmith.models import SegmentationModel
    from masksmith.training.deadline import Deadline
    from masksmith.training.lr_finder import LrCurve
    from masksmith.training.stages import FoldData

_FORWARD_WORK = 0.35  # a forward pass costs about this share of a training step on the same pixels
_VERSION = "3"


def folds_of(project: Project, recipe: Judge) -> Folds:
    """Read the folds, or make them if there are none."""
    column, similar = recipe.folds.group_by, recipe.folds.similar_count
    values = None if column is None or similar else group_values(project.catalog.train, column)
    if project.folds_csv.exists():
        made = project.folds
        if project.ledger.knows("folds.group_by") and not project.ledger.is_done(
            "folds.group_by", repr(column)
        ):
            raise InputError(
                f"folds.group_by: {column!r} was asked for, but {project.folds_csv} was made with another column or "
                "with none, and folds are never made anew; choose another --out"
            )
        if column is not None and values is not None:
            need_groups(made, values, project.folds_csv, column=column)
        if made.count != recipe.folds.count:
            raise InputError(
                f"folds.count: {recipe.folds.count} was asked for, but {project.folds_csv} holds {made.count}, and "
                "folds are never made anew; choose another --out"
            )
        if not project.ledger.is_done("folds.seed", str(recipe.folds.seed)) and project.ledger.knows(
            "folds.seed"
        ):
            raise InputError(
                f"folds.seed: {recipe.folds.seed} was asked for, but {project.folds_csv} was made with another, "
                "and folds are never made anew; choose another --out"
            )
        if not _are_of_kind(project, recipe.folds.kind):
            raise InputError(
                f"folds: {recipe.folds.kind} was asked for, but {project.folds_csv} was made by another rule, and "
                "folds are never made anew; choose another --out"
            )
        return made
    dealt = recipe.folds.deal_by
    numbers = None if dealt is None else deal_values(project.catalog.train, dealt)
    masks, images = project.cache.train_masks, project.cache.train_images
    counts = {name: (int((masks[name] == 1).sum()), int((masks[name] != IGNORE).sum())) for name in masks}
    groups = {name: key for key, names in duplicate_groups(images).items() for name in names}
    if similar is not None:
        values = similar_groups(images, similar, seed=recipe.folds.seed)
    if values is not None:
        groups = merge_groups(groups, values, blank=project.blank)
    made = make_folds(counts, groups, recipe.folds, values=numbers)
    project.ledger.mark_done("folds.seed", str(recipe.folds.seed))
    project.ledger.mark_done("folds.group_by", repr(column))
    project.ledger.mark_done("folds.kind", recipe.folds.kind)
    write_folds(made, project.folds_csv)
    return project.folds


def _are_of_kind(project: Project, kind: str) -> bool:
    """Whether the folds may have been made by this rule; those of an older masksmith were by the only one it had."""
    ledger = project.ledger
    if not ledger.knows("folds.kind") and ledger.knows("folds.seed"):
        return kind == FoldsConfig().kind
    return not ledger.knows("folds.kind") or ledger.is_done("folds.kind", kind)


def resolve(recipe: Recipe) -> Recipe:
    """Settle every "auto": what is written into the run's recipe.yaml is fixed."""
    from masksmith.losses import build_loss
    from masksmith.models import MODELS
    from masksmith.models.encoders import settle_encoder
    from masksmith.training.machine import settle_machine

    look_up(MODELS, recipe.model.architecture, where="model.architecture")
    for i, stage in enumerate(recipe.training.stages):
        build_loss(
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
    resolved = recipe.model_copy(update={"model": model, "training": training})
    check_prediction(resolved)
    return resolved


def check_prediction(recipe: Recipe) -> None:
    """Refuse a prediction that the model or the machine cannot do: it can be asked of a run that is trained, too.

    Raises:
        InputError: As check_runtime and check_combine.
    """
    from masksmith.prediction.combine import check_combine
    from masksmith.prediction.runtime import check_runtime

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
    run = project.run_of(asked) or project.add_run(asked, resolve(taught))
    check_prediction(run.recipe)
    run.ledger.mark_done("folds", made.hash)
    return run


def _open_teacher(project: Project, asked: Recipe) -> Recipe:
    """Return the recipe with the run of its teacher, which is made now if there is none.

    A run that is there predicts as it is asked to here, for that makes the labels; the folds that it trains, its refit
    and its tuning are not its pupil's to change.

    Raises:
        InputError: There are no test images to label, or one has the id of a training image; the teacher's run that
            the recipe names is not in this project; or as open_run.
    """
    assert asked.pseudo is not None, asked.name
    if asked.pseudo.teacher_run is not None:  # a resolved recipe
        _need_teacher(project, asked.pseudo.teacher_run)
        return asked
    cache = project.cache
    if not len(cache.test_images):
        raise InputError(
            f"{project.catalog.root}: there are no test images to make pseudo-labels of; set pseudo=null and "
            "training.stages[…].data=labelled, or add test images"
        )
    if both := set(cache.train_images) & set(cache.test_images):
        raise InputError(
            f"{project.catalog.root}: {len(both)} ids are in the training set and in the test set, for example "
            f"{min(both)!r}; with pseudo-labels an image's id must be its own: rename the files of one set"
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


def train_member(
    project: Project,
    member: Member,
    *,
    remaining: Remaining | None = None,
    deadline: "Deadline | None" = None,
) -> None:
    """Train one fold of a run unless it is trained.

    Args:
        project: The project.
        member: Run and fold.
        remaining: Told of every step; None counts this fold alone.
        deadline: When the training has to end; None: no hurry.

    Raises:
        InputError: It would not fit into memory, or what it starts from is not there.
        StoppedError: A stop was asked for; the checkpoint is of that very step.
    """
    from masksmith.training.checkpoint import damage_of
    from masksmith.training.events import EventLog
    from masksmith.training.loop import train_fold
    from masksmith.training.machine import make_fabric

    run, fold = member.run, member.fold
    if is_trained(project, member):
        _drop_interim(project, run)
        return
    if any(damage_of(path) is not None for path in needed_weights(member)):
        remove(
            member.weights.with_suffix(".json")
        )  # whole final weights alone would count as a finished training
    what = "all images" if fold == ALL else f"fold {fold} of {project.folds.count}"
    logger.info("run %s: training %s", run.path.name, what)
    training = training_of(project, run, fold)
    fabric = make_fabric(run.recipe.training)
    data = _data_of(
        project,
        run.recipe,
        fold,
        key=train_key(project, run, fold),
        pseudo=_pseudo_data(project, run, fold),
    )
    model = _fresh_model(project, run, fold)
    _learn_scalars(model, data)
    _refuse_too_large(run.recipe, training, model, data)
    remaining = remaining or Remaining(work_of(project, run, [fold]))
    train_fold(
        fabric,
        model,
        training,
        data,
        folder=run.checkpoints(fold),
        log=EventLog(run.events, fold=fold),
        evaluate=None if fold == ALL else _evaluator(project, run, fold, fabric, remaining),
        remaining=remaining,
        deadline=deadline,
    )
    run.ledger.mark_done(member.entry("train"), train_key(project, run, fold))
    _drop_interim(project, run)


def _drop_interim(project: Project, run: Run) -> None:
    """Remove what was predicted by an unfinished training of the run, and members.json if it names that."""
    if run.interim.exists():
        if project.members_json.exists() and any(one.interim for one in read_members(project, None)):
            remove(project.members_json)
        remove(run.interim)


def _refuse_too_large(
    recipe: Recipe, training: TrainingConfig, model: "SegmentationModel", data: "FoldData"
) -> None:
    """Refuse a training that would be killed for its memory."""
    from masksmith.training.memory import refuse_too_large
    from masksmith.training.stages import canvas_hw

    canvases = [canvas_hw(training, stage, data, model.divisor) for stage in training.stages]
    sizes = [data.images.shape(name) for name in data.images]
    frames = [Frame.of(hw, recipe.size, divisor=model.divisor).canvas_hw for hw in set(sizes)]
    height, width = (max(hw[axis] for hw in frames) for axis in (0, 1))
    estimate = refuse_too_large(
        model,
        training,
        canvases,
        prediction_hw=(height, width),
        prediction_batch_size=recipe.prediction.batch_size,
    )
    logger.info("%s", estimate)


def keep_interim(project: Project, member: Member) -> Member | None:
    """Keep the averaged weights of a training under way as an interim member; None where it has no step yet."""
    from masksmith.training.checkpoint import Checkpoints, averaged, save_tensors

    found = Checkpoints(member.run.checkpoints(member.fold)).newest()
    if (
        found is None
        or found[1]["position"] == 0
        or found[1]["key"] != train_key(project, member.run, member.fold)
    ):
        return None
    tensors, facts = found
    interim = replace(member, interim=True)
    save_tensors(interim.weights, averaged(tensors), {"epoch": facts["position"]})
    return interim


def needed_weights(member: Member) -> list[Path]:
    """Return the files that predict: the final weights, and those that ``prediction.weights`` averages.

    What the training did not keep is not listed; ``weights_of`` refuses that.
    """
    from masksmith.training.checkpoint import damage_of, facts_of

    kind = member.run.recipe.prediction.weights
    if kind == "final" or member.interim or damage_of(member.weights) is not None:
        return [member.weights]
    listed = facts_of(member.weights).get(kind) or []
    return [member.weights, *(member.weights.with_name(name) for name in listed)]


def is_trained(project: Project, member: Member) -> bool:
    """Whether a fold of a run is trained to its end, on the present data and folds; damaged weights are named."""
    from masksmith.training.checkpoint import damage_of

    if member.fold == ALL and not all(is_trained(project, one) for one in _held_out(member.run)):
        return False  # its length comes from theirs
    if not member.run.ledger.is_done(member.entry("train"), train_key(project, member.run, member.fold)):
        return False
    if (damage := next(filter(None, map(damage_of, needed_weights(member))), None)) is not None:
        logger.warning("%s; %s has to be trained again", damage, member.name)
        return False
    return True


def train_key(project: Project, run: Run, fold: int) -> str:
    """Return the key of a fold's training: data, folds, recipe, its pseudo-labels, and the weights it starts from."""
    start = run.recipe.training.start_run
    begun = "" if start is None else checksum_of(_start_weights(project, start, fold))
    training = str(training_of(project, run, fold)) if fold == ALL else ""
    labels = [] if run.recipe.pseudo is None else [_labels_digest(run, fold)]
    return project.key(_VERSION, run.recipe.hash, project.folds.hash, begun, training, *labels)


def _labels_digest(run: Run, fold: int) -> str:
    """Return a hash of the pseudo-labels of a fold; empty where there are none yet."""
    labels = labels_of(run, fold)
    return "" if labels is None else digest(*(f"{name} {one.crc32}" for name, one in labels.entries.items()))


def labels_of(run: Run, fold: int) -> Store | None:
    """Return the pseudo-labels of a fold; None where there are none yet, or they can no longer be read."""
    if not is_whole(run.pseudo(fold)):
        return None
    try:
        return Store(run.pseudo(fold))
    except InputError as error:
        logger.warning("%s", error)
        return None


def _held_out(run: Run) -> list[Member]:
    """Return the members of a run that hold a fold out."""
    return [member for member in members_of_run(run) if member.fold != ALL]


def training_of(project: Project, run: Run, fold: int) -> TrainingConfig:
    """Return how a fold is trained: as the recipe says, and all images as long as the folds were in the median.

    Raises:
        InputError: All images are meant, and not all folds that the recipe asks for are trained.
    """
    from masksmith.training.checkpoint import facts_of
    from masksmith.training.refit import refit_config

    if fold != ALL:
        return run.recipe.training

    held_out = _held_out(run)
    missing = [member.fold for member in held_out if not is_trained(project, member)]
    if missing:
        raise InputError(
            f"folds.refit: its length comes from the folds, and fold {missing[0]} of {run.path.name} is not trained; "
            f"run `masksmith train {project.root}`"
        )
    return refit_config(run.recipe.training, [facts_of(member.weights)["lengths"] for member in held_out])


def scalars_of(project: Project, recipe: Recipe, stage: str = "oof") -> dict[str, tuple[float, ...]]:
    """Return the numbers that a model takes beside each image, by id; empty where it takes none.

    Args:
        project: Its side tables.
        recipe: Its ``model.scalars``.
        stage: "oof" for the training images, "test" for the test images.

    Raises:
        InputError: No side table has such a column of numbers, or an image has no number in it.
    """
    samples = project.catalog.test if stage == "test" else project.catalog.train
    known = sorted({column for sample in project.catalog.train for column in sample.values})
    for column in recipe.model.scalars:
        if column not in known:
            for sample in samples:
                if column in sample.texts:
                    raise InputError(
                        f"model.scalars: the column {column!r} holds texts (image {sample.id!r}: "
                        f"{sample.texts[column]!r}) or empty cells; a model takes finite numbers only"
                    )
            hint = suggest(column, known) if known else "the data has no table with a column of numbers"
            raise InputError(f"model.scalars: no column {column!r}; {hint}")
        for sample in samples:
            if column not in sample.values:
                raise InputError(
                    f"model.scalars: the image {sample.id!r} has no {column!r} in the side tables; add it, or take "
                    "the column out"
                )
    if not recipe.model.scalars:
        return {}
    return {sample.id: tuple(sample.values[column] for column in recipe.model.scalars) for sample in samples}


def _start_weights(project: Project, start_run: str, fold: int) -> Path:
    path = project.run(start_run).final(fold)
    if not path.with_suffix(".json").exists():
        raise InputError(
            f"training.start_run: {start_run} has no trained fold {fold} ({path} is missing); train that run first"
        )
    return path


def checksum_of(weights: Path) -> str:
    """Return the checksum that was written beside a checkpoint."""
    from masksmith.training.checkpoint import facts_of

    return str(facts_of(weights)["checksum"])


def _data_of(
    project: Project, recipe: Recipe, fold: int, *, key: str, pseudo: "FoldData | None" = None
) -> "FoldData":
    from masksmith.training.stages import FoldData

    ids = [name for name in project.folds.outside(fold) if name not in project.blank]
    held_out = [name for name in project.folds.inside(fold) if name not in project.blank]
    scalars = scalars_of(project, recipe)
    return FoldData(
        fold,
        ids,
        project.inputs(recipe.input).train,
        project.cache.train_masks,
        recipe.seed,
        key,
        size=recipe.size,
        scalars={name: scalars[name] for name in [*ids, *held_out]} if scalars else {},
        custom=project.custom,
        pseudo=pseudo,
        held_out=held_out,
    )


def _pseudo_data(project: Project, run: Run, fold: int) -> "FoldData | None":
    """Return the test images of a fold's pseudo-labels; None where the recipe has none.

    Before they are made it is all test images, with masks that nothing may read: enough to count the work ahead.
    """
    from masksmith.training.stages import FoldData

    if run.recipe.pseudo is None:
        return None
    images, labels = project.inputs(run.recipe.input).test, labels_of(run, fold)
    masks = images if labels is None else labels
    scalars = scalars_of(project, run.recipe, "test")
    return FoldData(
        fold,
        masks.ids,
        images,
        masks,
        run.recipe.seed,
        size=run.recipe.size,
        scalars={name: scalars[name] for name in masks} if scalars else {},
        custom=project.custom,
    )


def _learn_scalars(model: "SegmentationModel", data: "FoldData") -> None:
    """Let a model that takes scalars standardise them as the labelled images of a training have them."""
    if data.scalars:
        model.set_scalar_statistics(np.array([data.scalars[name] for name in data.ids], np.float32))


def sweep_lr(project: Project, asked: Recipe, *, fold: int = 0) -> "LrCurve":
    """Return the loss of a recipe's first stage at growing learning rates; no run is made.

    Raises:
        InputError: The recipe goes on from trained weights, or it would not fit into memory.
    """
    from masksmith.models import build_model
    from masksmith.training.lr_finder import find_lr
    from masksmith.training.machine import make_fabric

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
    recipe = resolve(asked)
    training = recipe.training.model_copy(update={"stages": recipe.training.stages[:1]})
    fabric = make_fabric(training)
    seed = recipe.seed * 1000 + fold
    seen = project.inputs(recipe.input)
    model = build_model(recipe.model, in_channels=seen.channels, seed=seed, statistics=seen.statistics)
    data = _data_of(project, recipe, fold, key="")
    _learn_scalars(model, data)
    _refuse_too_large(recipe, training, model, data)
    return find_lr(fabric, model, training, data)


def _fresh_model(project: Project, run: Run, fold: int) -> "SegmentationModel":
    """Return the model that a training begins with."""
    start = run.recipe.training.start_run
    model = build(project, run, fold, load_weights=start is None)
    if start is not None:
        load(model, _start_weights(project, start, fold))
    return model


def build(project: Project, run: Run, fold: int, *, load_weights: bool) -> "SegmentationModel":
    """Build a run's model; its random weights depend on the recipe's seed and the fold."""
    from masksmith.models import build_model

    seed = run.recipe.seed * 1000 + fold
    seen = project.inputs(run.recipe.input)
    return build_model(
        run.recipe.model,
        in_channels=seen.channels,
        seed=seed,
        load_weights=load_weights,
        statistics=seen.statistics,
    )


def load(model: "SegmentationModel", weights: Path) -> None:
    """Load a checkpoint's weights into a model.

    Raises:
        InputError: The file is damaged, or of another model.
    """
    from masksmith.training.checkpoint import copy_weights, load_tensors

    tensors, _ = load_tensors(weights)
    copy_weights(model, tensors, where=f"checkpoint {weights}")


def _pixels(images: Store, names: Iterable[str]) -> int:
    return sum(h * w for h, w in map(images.shape, names))


def _evaluator(
    project: Project, run: Run, fold: int, fabric: "Fabric", remaining: Remaining
) -> Callable[["SegmentationModel"], float]:
    """Return a function that scores a model on the fold's held-out images with content: no TTA, threshold 0.5.

    The score has its sign such that higher is better. It is of the mask's head alone: what the image head does is a
    part of prediction, which may change after the training.
    """
    from masksmith.prediction.predict import predict_probs

    metric, masks = get_metric(run.recipe.metric), project.cache.train_masks
    images, scalars = project.inputs(run.recipe.input).train, scalars_of(project, run.recipe)
    names = [name for name in project.folds.inside(fold) if name not in project.blank]
    groups = project.metric_groups(run.recipe, names)
    if not names:
        raise InputError(f"fold {fold}: none of its held-out images has any content, so it cannot be scored")

    def evaluate(model: "SegmentationModel") -> float:
        rows = [
            metric.stats(apply_rule(to_codes(probs[..., 0]), PLAIN), masks[name][..., 0])
            for name, probs in predict_probs(
                fabric,
                model,
                images,
                names,
                tta=["identity"],
                size=run.recipe.size,
                batch_size=run.recipe.prediction.batch_size,
                what="scoring",
                scalars=scalars,
            )
        ]
        remaining.skip(_FORWARD_WORK * _pixels(images, names))
        return metric.utility(metric.score(np.stack(rows), groups))

    return evaluate


def work_of(project: Project, run: Run, missing: list[int]) -> float:
    """Return the pixels ahead, for the time left: training, scoring, and prediction after it."""
    from masksmith.training.stages import training_work

    cache, recipe = project.cache, run.recipe
    divisor = recipe.model.divisor
    epochs = sum(stage.epochs for stage in recipe.training.stages)
    scorings = len(
        {*range(recipe.training.evaluate_every, epochs + 1, recipe.training.evaluate_every), epochs}
    )
    views = len(recipe.prediction.tta)
    total = 0.0
    for fold in missing:
        held_out = _pixels(cache.train_images, project.folds.inside(fold))
        test = _pixels(cache.test_images, cache.test_images.ids)
        forward = held_out * (scorings + views) + test * views
        data = _data_of(project, recipe, fold, key="", pseudo=_pseudo_data(project, run, fold))
        total += training_work(recipe.training, data, divisor) + _FORWARD_WORK * forward
    return total
