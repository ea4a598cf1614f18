"""Prediction on a project's files: the probabilities of a member, and the means of several.

Probabilities are skipped where the ledger holds them with the same key; those that were made from other inputs than the
present ones are refused.
"""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

from lightning_fabric import Fabric

from masksmith.core.arrays import Codes
from masksmith.core.errors import InputError
from masksmith.core.files import digest, read_json
from masksmith.core.progress import logger
from masksmith.data.store import Store, is_whole
from masksmith.folds.config import ALL
from masksmith.models.segmentation import SegmentationModel, to_channels_last
from masksmith.postprocess.rules import plain_of
from masksmith.postprocess.scoring import score_of, score_rows
from masksmith.prediction.combine import build_combine
from masksmith.prediction.gate import choose_runtime
from masksmith.prediction.means import MEAN
from masksmith.prediction.predict import predict_parts, write_codes
from masksmith.prediction.runtimes import Runtime
from masksmith.prediction.store import MeanCodes, open_codes
from masksmith.prediction.tiles import Tiling
from masksmith.project.folder import Project
from masksmith.project.members import Member, weights_of_test
from masksmith.steps.train import (
    build,
    checksum_of,
    external_key,
    is_trained,
    listed_weights,
    load,
    not_trained,
    scalars_of,
    train_key,
)
from masksmith.training.config import chosen_on_held_out
from masksmith.training.machine import make_fabric

_VERSIONS = {"oof": "2", "test": "2"}


def predict_member(project: Project, member: Member, *, stages: Sequence[str] = ("oof", "test")) -> None:
    """Predict a member's held-out images ("oof") and the test images ("test") where that is not done.

    Raises:
        InputError: The member is not trained.
    """
    if member.run.is_external:
        for stage in stages:
            if member.codes(stage).exists():
                _need_codes(project, member, stage)
        return
    if not member.interim and not is_trained(project, member):
        raise not_trained(project, member)
    ledger, options = member.run.ledger, member.run.recipe.prediction
    inputs = project.inputs(member.run.recipe.input)
    held_out = project.folds.inside(member.fold)
    names_of = {"oof": held_out, "test": [sample.id for sample in project.catalog.test]}
    images_of = {"oof": inputs.train, "test": inputs.test}
    blank_of = {"oof": project.blank_train, "test": project.blank_test}
    fabric, runtimes = None, None
    models: dict[Path, SegmentationModel] = {}
    for stage in stages:
        names, path, key = names_of[stage], member.codes(stage), _predict_key(project, member, stage)
        if not names or (ledger.is_done(member.entry(stage), key) and is_whole(path)):
            continue
        ledger.forget(member.entry(stage))
        logger.info("predicting %d %s images with %s", len(names), stage, member.name)
        fabric = fabric or make_fabric(member.run.recipe.training)
        models = models or _trained_models(project, member, fabric)
        seen = [name for name in names if name not in blank_of[stage]]
        runtimes = runtimes or [_runtime(project, member, fabric, *one) for one in models.items()]
        batches = partial(
            predict_parts,
            fabric,
            next(iter(models.values())),
            images_of[stage],
            seen,
            tta=options.tta,
            scales=options.tta_scales,
            shifts=options.tta_shifts,
            mirror=project.target.mirrored(member.run.recipe.training.augment.mirror_pairs),
            batch_size=options.batch_size,
            size=member.run.recipe.size,
            tiling=Tiling.of(options),
            runtime=runtimes,
            shares=options.shares(len(runtimes)),
            scalars=scalars_of(project, member.run.recipe, stage),
        )
        begun = time.perf_counter()
        write_codes(
            path,
            images_of[stage],
            names,
            batches,
            blank=set(names) - set(seen),
            channels=options.planes(project.target.outputs),
            key=key,
        )
        if not member.interim:
            member.run.note_time(member.timed(stage), time.perf_counter() - begun)
        ledger.mark_done(member.entry(stage), key)


def oof_of(project: Project, members: Sequence[Member]) -> dict[str, MeanCodes]:
    """Return, for each training image that members hold out, the mean of their probabilities of it.

    In repeated folds it is held out once in each repeat. The members of a run share the weight of their recipe (see
    weights_of_test).

    Raises:
        InputError: Probabilities are missing, damaged, of other images, or of other weights than the present ones.
    """
    stores = [None if member.fold == ALL else _need_oof(project, member) for member in members]
    means: dict[tuple[int, ...], MeanCodes] = {}  # of the images that the same folds hold out
    found = {}
    for row in project.folds.rows:
        if row.folds not in means:
            holding = [at for at, member in enumerate(members) if member.fold in row.folds]
            weights = weights_of_test([members[at] for at in holding])
            held = [store for at in holding if (store := stores[at])]
            means[row.folds] = mean_codes(held, weights, [members[at] for at in holding])
        if means[row.folds].stores:
            found[row.id] = means[row.folds]
    return found


def oof_digests(project: Project, members: Sequence[Member]) -> list[str]:
    """Return what the held-out probabilities of each fold are, as text (see codes_digest).

    Raises:
        InputError: As oof_of.
    """
    found = []
    for fold in sorted({member.fold for member in members} - {ALL}):
        inside = [member for member in members if member.fold == fold]
        stores = [_need_oof(project, member) for member in inside]
        found.append(f"{fold} {codes_digest(mean_codes(stores, [one.weight for one in inside], inside))}")
    return found


def test_of(project: Project, members: Sequence[Member]) -> MeanCodes:
    """Return the mean of all members' probabilities of the test images.

    Raises:
        InputError: As oof_of.
    """
    weights: dict[Path, float] = {}
    stores: dict[Path, Store] = {}
    first: dict[Path, Member] = {}
    for member, weight in zip(members, weights_of_test(members), strict=True):
        path = member.codes("test")  # the folds of an external run share one
        weights[path] = weights.get(path, 0.0) + weight
        stores.setdefault(path, _need_codes(project, member, "test"))
        first.setdefault(path, member)
    return mean_codes(list(stores.values()), [weights[path] for path in stores], list(first.values()))


def mean_codes(stores: Sequence[Store], weights: Sequence[float], members: Sequence[Member]) -> MeanCodes:
    """Return the mean of the members' probabilities, each with its store and weight, by the blend that they are of."""
    blend = members[0].blend if members else None
    if blend is None or blend.kind == MEAN:
        return MeanCodes(stores, weights)
    names = list(dict.fromkeys(member.part for member in members))
    groups = [names.index(member.part) for member in members]
    return MeanCodes(stores, weights, blend=blend.of(names), groups=groups)


def codes_digest(codes: MeanCodes) -> str:
    """Return a hash of what the probabilities are."""
    weights = [] if codes.weights is None else [str(codes.weights)]
    return digest(
        *(
            f"{name} {entry.crc32}"
            for store in codes.stores
            for name, entry in cast(Store, store).entries.items()
        ),
        *weights,
        *([] if codes.blend is None else [str(codes.blend), str(codes.groups)]),
    )


def _predict_key(project: Project, member: Member, stage: str) -> str:
    run = member.run
    if run.is_external:
        return external_key(project, run)
    trained = train_key(project, run, member.fold)
    checksums = [checksum_of(path) for path in weights_of(member)]
    return project.key(_VERSIONS[stage], *checksums, str(run.recipe.prediction), trained)


def _need_codes(project: Project, member: Member, stage: str) -> Store:
    """Open the probabilities of a member; those of other weights than the present ones are refused."""
    path = member.codes(stage)
    if member.run.is_external and not is_trained(project, member):
        if "stacked_on" in member.run.external:
            raise InputError(
                f"{member.run.path.name}: the predictions that its trees were trained on have changed; run "
                f"`masksmith stack {project.root} --off`, and `masksmith stack` again"
            )
        raise InputError(
            f"{member.run.path.name}: its probabilities are those of other folds or data than the present ones; run "
            f"`masksmith member remove {project.root} {member.run.path.name}`, and `masksmith member add` again"
        )
    store = open_codes(path)
    whole = member.interim or is_trained(project, member)
    if not whole or not member.run.ledger.is_done(member.entry(stage), _predict_key(project, member, stage)):
        raise InputError(
            f"{path}: made with other weights, folds or settings than the present ones; run "
            f"`masksmith predict {project.root}` again, or the `masksmith compete` command that made it"
        )
    return store


def _need_oof(project: Project, member: Member) -> Store:
    store = _need_codes(project, member, "oof")
    if set(store.ids) != set(project.folds.inside(member.fold)):
        raise InputError(
            f"{member.codes('oof')}: it holds other images than fold {member.fold}; run `masksmith predict` again"
        )
    return store


def weights_of(member: Member) -> list[Path]:
    """Return the files whose predictions are averaged: the final weights, or what ``prediction.weights`` names.

    Raises:
        InputError: The training kept no such weights, or they are no longer there.
    """
    kind = member.run.recipe.prediction.weights
    chosen = kind == "top_k" or chosen_on_held_out(kind)
    unscored = member.fold == ALL and chosen  # nothing was held out that could rank its epochs
    if kind == "final" or member.interim or unscored:
        return [member.weights]
    listed = listed_weights(member, kind)
    if not listed:
        raise InputError(
            f"prediction.weights: {kind!r} was asked for, but the training of {member.name} kept none; "
            f"{_KEEPS.get(kind, f'add {kind!r} to training.keep')}, or set prediction.weights to final"
        )
    return listed


_KEEPS = {
    "snapshots": "train with a schedule of cosine_restarts",
    "top_k": "set training.top_k",
}


def _trained_models(project: Project, member: Member, fabric: Fabric) -> dict[Path, SegmentationModel]:
    """Return a model for each of the member's weights, on the device."""
    models = {}
    for path in weights_of(member):
        model = build(project, member.run, member.fold, load_weights=False)
        load(model, path)
        if member.run.recipe.training.channels_last:
            to_channels_last(model)
        fabric.to_device(model)  # in place
        models[path] = model.eval()
    return models


def _runtime(
    project: Project, member: Member, fabric: Fabric, weights: Path, model: SegmentationModel
) -> Runtime:
    """Return what the recipe asks to predict with, or torch where the fold's held-out images speak against it."""
    recipe, cache = member.run.recipe, project.cache
    metric, options = project.metric(recipe), recipe.prediction
    rule = plain_of(project.target, recipe.tuning)

    def score(codes: Iterable[tuple[str, Codes]]) -> float:
        rows = score_rows(metric, codes, cache.train_masks, rule)
        return metric.utility(score_of(metric, rows, project.metric_groups(recipe, list(rows))))

    names = [name for name in project.folds.inside(member.fold) if name not in project.blank_train]
    return choose_runtime(
        options.runtime,
        fabric,
        model,
        project.inputs(recipe.input).train,
        names,
        score,
        batch_size=options.batch_size,
        size=recipe.size,
        tiling=Tiling.of(options),
        combine=build_combine(options),
        record=_runtime_record(member, weights),
        key=_predict_key(project, member, "oof"),
    )


def chose_runtime(member: Member) -> bool:
    """Whether held-out images decided on the runtime that a member predicts with (see gate)."""
    if member.run.recipe.prediction.runtime == "torch" or member.run.is_external:
        return False
    records = [_runtime_record(member, weights) for weights in weights_of(member)]
    return any("finding" in read_json(record) for record in records if record.exists())


def recorded_runtime(member: Member, weights: Path) -> str:
    """Return the runtime that a weights file of a member predicts with."""
    record = _runtime_record(member, weights)
    if member.run.recipe.prediction.runtime == "torch" or not record.exists():
        return "torch"
    return str(read_json(record)["runtime"])


def _runtime_record(member: Member, weights: Path) -> Path:
    codes = member.codes("oof")
    extra = "" if weights == member.weights else f".{weights.stem}"
    return codes.with_name(f"{codes.stem}{extra}.runtime.json")
