"""Training on a project's files: what a training reads, what it is keyed by, and when it is skipped.

The verbs in ``pipeline`` call these under the project's lock. A stage that is recorded in a ledger with the same key
is not run again.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric

from masksmith.core.config import suggest
from masksmith.core.errors import InputError
from masksmith.core.files import digest, read_json, remove, remove_matching
from masksmith.core.locks import folder_lock
from masksmith.core.progress import logger
from masksmith.data.store import Store, is_whole
from masksmith.folds.config import ALL, fold_name
from masksmith.metrics import Metric
from masksmith.models.segmentation import SegmentationModel, build_model
from masksmith.postprocess.rules import plain_of
from masksmith.postprocess.scoring import rows_of_metrics
from masksmith.prediction.predict import predict_probs
from masksmith.prediction.store import to_codes
from masksmith.prediction.tiles import Tiling, passes_of
from masksmith.project.folder import Project
from masksmith.project.members import Member, members_of_run, read_members
from masksmith.project.runs import Run
from masksmith.recipes.recipe import Recipe
from masksmith.steps.corrections import corrected
from masksmith.training.checkpoint import (
    Checkpoints,
    averaged,
    copy_weights,
    damage_of,
    facts_of,
    load_tensors,
    save_tensors,
)
from masksmith.training.config import TrainingConfig
from masksmith.training.data import FoldData, canvas_hw
from masksmith.training.devices import following, leading, refuse_devices
from masksmith.training.events import EventLog
from masksmith.training.follow import follow_fold
from masksmith.training.loggers import Follower, Place
from masksmith.training.loop import train_fold
from masksmith.training.machine import make_fabric
from masksmith.training.memory import Estimate, refuse_too_large
from masksmith.training.pace import Pace
from masksmith.training.refit import refit_config
from masksmith.training.windows import too_large_window

_VERSION = "3"
_INTERIM = re.compile(
    r"fold_(\d+|all)(\.(safetensors|json|npy|csv)|(\.\w+)?\.runtime\.json)"
    r"|\.fold_(\d+|all)\.npy\.masksmith-part(\.csv)?"
)


def train_member(project: Project, member: Member, pace: Pace | None = None) -> None:
    """Train one fold of a run unless it is trained.

    Args:
        project: The project.
        member: Run and fold.
        pace: Measures the time, and may have a deadline; None: no hurry.

    Raises:
        InputError: It would not fit into memory, or what it starts from is not there, or as refuse_devices.
        LostProcessError: One of several processes ended.
        StoppedError: A stop was asked for; the checkpoint is of that very step.
    """
    run, fold = member.run, member.fold
    if run.is_external:
        raise InputError(
            f"{run.path.name}: another program made it (`masksmith member add`); nothing is to be trained"
        )
    if is_trained(project, member):
        _drop_interim(project, run)
        return
    with folder_lock(run.checkpoints(fold), wait=True):
        _train_locked(project, member, pace or Pace())
    _drop_interim(project, run)


def _train_locked(project: Project, member: Member, pace: Pace) -> None:
    """Train a fold while no other process of any machine does; one that has ended meanwhile has trained it."""
    run, fold = member.run, member.fold
    damaged = any(damage_of(path) is not None for path in needed_weights(member))
    if not damaged and run.ledger.is_done(member.entry("train"), train_key(project, run, fold)):
        return
    if damaged:
        remove(
            member.weights.with_suffix(".json")
        )  # whole final weights alone would count as a finished training
    what = "all images" if fold == ALL else f"fold {fold} of {project.folds.total}"
    logger.info("run %s: training %s", run.path.name, what)
    alone = make_fabric(run.recipe.training)
    training, model, data = _what_to_train(project, run, fold)
    logger.info("%s", check_memory(run.recipe, training, model, data))
    refuse_devices(training, model, custom=data.custom)
    several = training.devices > 1
    followers = [sys.executable, "-m", "masksmith.steps.follow", str(project.root), run.path.name, str(fold)]
    processes = leading(training, [*followers, str(training.devices)]) if several else nullcontext(alone)
    with processes as fabric, closing(_event_log(project, run, fold)) as log:
        train_fold(
            fabric,
            model,
            training,
            data,
            folder=run.checkpoints(fold),
            log=log,
            evaluate=None if fold == ALL else _evaluator(project, run, fold, fabric),
            pace=pace,
            metrics=_of_batches(project, run.recipe),
        )
    run.ledger.mark_done(member.entry("train"), train_key(project, run, fold))


def follow_member(project: Project, run: Run, fold: int, folder: Path, rank: int, devices: int) -> None:
    """Do the part of follower ``rank`` in the training of a fold that another process leads (see devices.py)."""
    training, model, data = _what_to_train(project, run, fold)
    training = training.model_copy(update={"devices": devices})
    with following(training, folder, rank) as fabric:
        follow_fold(fabric, model, training, data, folder=run.checkpoints(fold))


def _what_to_train(
    project: Project, run: Run, fold: int
) -> tuple[TrainingConfig, SegmentationModel, FoldData]:
    """Return how a fold is trained, the model that it begins with, and on what."""
    training = training_of(project, run, fold)
    key, pseudo = train_key(project, run, fold), _pseudo_data(project, run, fold)
    data = data_of(project, run.recipe, fold, key=key, pseudo=pseudo)
    model = _fresh_model(project, run, fold)
    learn_scalars(model, data)
    return training, model, data


def _event_log(project: Project, run: Run, fold: int) -> EventLog:
    """Return the log of a fold, with the experiment trackers that follow it."""
    name, part = project.root.resolve().name, fold_name(fold)
    place = Place(project.loggers_dir, name, f"{run.path.name}/{part}", run.recipe.model_dump(mode="json"))
    events = run.own_events(fold)
    followers = [
        Follower(one, events, fold=fold, place=place, sent=run.path / "loggers" / f"{one}.{part}.json")
        for one in project.loggers
    ]
    return EventLog(events, fold=fold, followers=followers)


def _drop_interim(project: Project, run: Run) -> None:
    """Remove what was predicted by an unfinished training of the run, and members.json if it names that."""
    if run.interim.exists():
        if project.members_json.exists() and any(one.interim for one in read_members(project, None)):
            remove(project.members_json)
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            remove_matching(run.interim, _INTERIM)


def check_memory(
    recipe: Recipe,
    training: TrainingConfig,
    model: SegmentationModel,
    data: FoldData,
    *,
    available: int | None = None,
) -> Estimate:
    """Return what a training needs; refuse one that would be killed for its memory.

    Args:
        recipe: Its sizes and prediction.
        training: How it is trained.
        model: The model.
        data: Its images.
        available: Bytes that may be taken; None asks this machine.
    """
    canvases = [canvas_hw(training, stage, data, model.divisor) for stage in training.stages]
    sizes = {data.images.shape(name) for name in data.images}
    if (note := too_large_window(training, recipe.size, list(sizes))) is not None:
        logger.warning("%s", note)
    tiling = Tiling.of(recipe.prediction)
    frames = [passes_of(tiling, recipe.size, hw, divisor=model.divisor)[1] for hw in sizes]
    height, width = (max(hw[axis] for hw in frames) for axis in (0, 1))
    return refuse_too_large(
        model,
        training,
        canvases,
        prediction_hw=(height, width),
        prediction_batch_size=recipe.prediction.batch_size,
        available=available,
    )


def keep_interim(project: Project, member: Member) -> Member | None:
    """Keep the averaged weights of a training under way as an interim member; None where it has no step yet."""
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
    kind = member.run.recipe.prediction.weights
    if kind == "final" or member.interim or damage_of(member.weights) is not None:
        return [member.weights]
    return [member.weights, *listed_weights(member, kind)]


def listed_weights(member: Member, kind: str) -> list[Path]:
    """Return the files of a kind (snapshots, top_k, or a name in ``training.keep``) that a training has kept."""
    listed = kept_weights(facts_of(member.weights), member.weights.name).get(kind, [])
    return [member.weights.with_name(name) for name in listed]


def kept_weights(facts: Mapping[str, Any], final: str) -> dict[str, list[str]]:
    """Return the kinds of weights that a training kept -> their files, of what its final.json says."""
    kept = {kind: [name] for kind, name in facts.get("kept", {}).items()}
    listed = {kind: list(facts.get(kind) or []) for kind in ("snapshots", "top_k")}
    return {"final": [final]} | kept | {kind: names for kind, names in listed.items() if names}


def is_trained(project: Project, member: Member) -> bool:
    """Whether a fold of a run is trained to its end, on the present data and folds; damaged weights are named."""
    if member.run.is_external:
        return member.run.ledger.is_done(member.entry("oof"), external_key(project, member.run))
    asked = member.fold == ALL and member.run.recipe.folds.refit  # otherwise a budget planned it
    if asked and not all(is_trained(project, one) for one in _held_out(member.run)):
        return False  # its length comes from theirs
    if not member.run.ledger.is_done(member.entry("train"), train_key(project, member.run, member.fold)):
        return False
    if (damage := next(filter(None, map(damage_of, needed_weights(member))), None)) is not None:
        logger.warning("%s; %s has to be trained again", damage, member.name)
        return False
    return True


def not_trained(project: Project, member: Member) -> InputError:
    """Return the refusal of a member that is not trained; weights that were trained otherwise are named."""
    words = (
        f"{member.name} is not trained; run `masksmith train {project.root}` first, or the `masksmith compete` command "
        "that began it"
    )
    if member.weights.exists() and damage_of(member.weights) is None:
        words += (
            f". {member.weights} is there, but of other data, folds or settings, or of an older masksmith: "
            "a training begins with it by --set training.start_from=FILE"
        )
    return InputError(words)


def external_key(project: Project, run: Run) -> str:
    """Return the key of an external run's probabilities: the data, the folds, and the folds that it covers.

    Of a stack also what its first level's probabilities were made with.
    """
    facts = run.external
    below = [
        str(project.run(name).ledger.key_of(stage) if (project.runs_dir / name).is_dir() else None)
        for name, stage in facts.get("stacked_on", ())
    ]
    return project.key(_VERSION, project.folds.hash, str(facts["folds"]), *below)


def train_key(project: Project, run: Run, fold: int) -> str:
    """Return the key of a fold's training: data, folds, recipe, its pseudo-labels, and the weights it starts from."""
    start = run.recipe.training.start_run
    begun = "" if start is None else checksum_of(_start_weights(project, start, fold))
    training = str(training_of(project, run, fold)) if fold == ALL else ""
    labels = [] if run.recipe.pseudo is None else [_labels_digest(run, fold)]
    return project.key(_VERSION, run.recipe.hash, project.folds.hash, begun, training, *labels)


def _labels_digest(run: Run, fold: int) -> str:
    """Return a hash of the pseudo-labels of a fold; empty where there are none yet."""
    found = [labels_of(run, fold)]
    if run.recipe.pseudo is not None and run.recipe.pseudo.labels == "soft":
        found.append(soft_labels_of(run, fold))
    if any(labels is None for labels in found):
        return ""
    entries = [entry for labels in found if labels is not None for entry in labels.entries.items()]
    weights = [f"{name} weighs {weight!r}" for name, weight in label_weights(run, fold).items()]
    return digest(*(f"{name} {one.crc32}" for name, one in entries), *weights)


def labels_of(run: Run, fold: int) -> Store | None:
    """Return the pseudo-labels of a fold; None where there are none yet, or they can no longer be read."""
    return _whole_store(run.pseudo(fold))


def soft_labels_of(run: Run, fold: int) -> Store | None:
    """Return the probabilities of a fold's soft pseudo-labels, 0…255; None as for labels_of."""
    return _whole_store(run.soft_labels(fold))


def _whole_store(path: Path) -> Store | None:
    if not is_whole(path):
        return None
    try:
        return Store(path)
    except InputError as error:
        logger.warning("%s", error)
        return None


def label_weights(run: Run, fold: int) -> dict[str, float]:
    """Return what the loss of each pseudo-labelled image weighs; empty where no table said so."""
    path = run.pseudo(fold).with_suffix(".weights.json")
    found: dict[str, float] = read_json(path) if path.exists() else {}
    return found


def _held_out(run: Run) -> list[Member]:
    """Return the members of a run that hold a fold out."""
    return [member for member in members_of_run(run) if member.fold != ALL]


def training_of(project: Project, run: Run, fold: int) -> TrainingConfig:
    """Return how a fold is trained: as the recipe says, and all images as long as the folds were in the median.

    Where a budget trains all images, the recipe itself has the length that it planned.

    Raises:
        InputError: All images are meant, and not all folds that the recipe asks for are trained.
    """
    if fold != ALL:
        return run.recipe.training
    if not run.recipe.folds.refit:
        return refit_config(run.recipe.training, [[stage.epochs for stage in run.recipe.training.stages]])

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
                    f"model.scalars: the {'test' if stage == 'test' else 'training'} image {sample.id!r} has no "
                    f"{column!r} in the side tables; add it, or take the column out"
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
    return str(facts_of(weights)["checksum"])


def data_of(
    project: Project, recipe: Recipe, fold: int, *, key: str, pseudo: FoldData | None = None
) -> FoldData:
    """Return what a training reads: the images outside its fold that have content, and those held out to be watched."""
    ids = [name for name in project.folds.outside(fold) if name not in project.blank_train]
    held_out = [name for name in project.folds.inside(fold) if name not in project.blank_train]
    scalars = scalars_of(project, recipe)
    whole = FoldData(
        fold,
        ids,
        project.inputs(recipe.input).train,
        project.cache.train_masks,
        recipe.seed,
        key,
        size=recipe.size,
        scalars={name: scalars[name] for name in [*ids, *held_out]} if scalars else {},
        custom=project.augment,
        mirror=project.target.mirrored(recipe.training.augment.mirror_pairs),
        pseudo=pseudo,
        held_out=held_out,
    )
    return corrected(project, recipe, whole)


def _pseudo_data(project: Project, run: Run, fold: int) -> FoldData | None:
    """Return the test images of a fold's pseudo-labels; None where the recipe has none.

    Before they are made it is all test images, with masks that nothing may read: enough to count the work ahead.
    """
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
        soft=soft_labels_of(run, fold) if run.recipe.pseudo.labels == "soft" else None,
        scalars={name: scalars[name] for name in masks} if scalars else {},
        custom=project.augment,
        mirror=project.target.mirrored(run.recipe.training.augment.mirror_pairs),
        weights=label_weights(run, fold),
    )


def learn_scalars(model: SegmentationModel, data: FoldData) -> None:
    """Let a model that takes scalars standardise them as the labelled images of a training have them."""
    if data.scalars:
        model.set_scalar_statistics(np.array([data.scalars[name] for name in data.ids], np.float32))


def _fresh_model(project: Project, run: Run, fold: int) -> SegmentationModel:
    """Return the model that a training begins with."""
    start = run.recipe.training.start_run
    model = build(project, run, fold, load_weights=start is None)
    if start is not None:
        load(model, _start_weights(project, start, fold))
    return model


def build(project: Project, run: Run, fold: int, *, load_weights: bool) -> SegmentationModel:
    """Build a run's model; its random weights depend on the recipe's seed and the fold."""
    seed = run.recipe.seed * 1000 + fold
    seen = project.inputs(run.recipe.input)
    return build_model(
        run.recipe.model,
        in_channels=seen.channels,
        seed=seed,
        classes=project.target.outputs,
        exclusive=project.target.exclusive,
        load_weights=load_weights,
        statistics=seen.statistics,
    )


def load(model: SegmentationModel, weights: Path) -> None:
    """Load a checkpoint's weights into a model.

    Raises:
        InputError: The file is damaged, or of another model.
    """
    tensors, _ = load_tensors(weights)
    copy_weights(model, tensors, where=f"checkpoint {weights}")


_OF_PIXELS = ("counts", "classes", "planes")  # what a metric of batches may need


def _of_batches(project: Project, recipe: Recipe) -> list[Metric]:
    """Return the metrics that are measured on training batches: of pixels, without groups, and not of objects."""
    if project.target.task == "instances":
        return []
    found = project.metrics_beside(recipe)
    return [metric for metric in found if metric.needs in _OF_PIXELS and not metric.by_group]


def _evaluator(
    project: Project, run: Run, fold: int, fabric: Fabric
) -> Callable[[SegmentationModel], dict[str, float]]:
    """Return a function that scores a model on the fold's held-out images with content: no TTA, threshold 0.5.

    It returns the "score", with its sign such that higher is better, and what ``training.metrics`` names, as it is,
    all of the same masks. They are of the mask's head alone: what the image head does is a part of prediction, which
    may change after the training.
    """
    metric, masks = project.metric(run.recipe), project.cache.train_masks
    beside = project.metrics_beside(run.recipe)
    rule = plain_of(project.target, run.recipe.tuning)
    images, scalars = project.inputs(run.recipe.input).train, scalars_of(project, run.recipe)
    names = [name for name in project.folds.inside(fold) if name not in project.blank_train]
    groups = project.metric_groups(run.recipe, names)
    if not names:
        raise InputError(f"fold {fold}: none of its held-out images has any content, so it cannot be scored")

    def evaluate(model: SegmentationModel) -> dict[str, float]:
        predictions = (
            (name, to_codes(probs))
            for name, probs in predict_probs(
                fabric,
                model,
                images,
                names,
                tta=["identity"],
                size=run.recipe.size,
                tiling=Tiling.of(run.recipe.prediction),
                batch_size=run.recipe.prediction.batch_size,
                what="scoring",
                scalars=scalars,
            )
        )
        rows = rows_of_metrics([metric, *beside], predictions, masks, rule)
        score, *others = (
            one.score(np.stack([found[name] for name in names]), groups)
            for one, found in zip([metric, *beside], rows, strict=True)
        )
        return {"score": metric.utility(score)} | dict(zip((one.name for one in beside), others, strict=True))

    return evaluate
