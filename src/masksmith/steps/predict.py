"""Prediction on a project's files: the probabilities of a member, and the means of several.

Probabilities are skipped where the ledger holds them with the same key; those that were made from other inputs than the
present ones are refused.
"""

import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from lightning_fabric import Fabric

from masksmith.core.arrays import Codes
from masksmith.core.errors import InputError
from masksmith.core.files import digest, read_json, remove_matching
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
from masksmith.prediction.tiles import Part, Tiling
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
    ledger, work = member.run.ledger, _Work(project, member)
    for stage in stages:
        if is_predicted(project, member, stage):
            continue
        names, path, key = (
            names_of(project, member, stage),
            member.codes(stage),
            predict_key(project, member, stage),
        )
        ledger.forget(member.entry(stage))
        logger.info("predicting %d %s images with %s", len(names), stage, member.name)
        seconds = work.write(stage, names, path, key)
        if not member.interim:
            member.run.note_time(member.timed(stage), seconds)
        ledger.mark_done(member.entry(stage), key)


def is_predicted(project: Project, member: Member, stage: str) -> bool:
    """Whether a trained member's images of a stage are predicted, or there are none."""
    done = member.run.ledger.is_done(member.entry(stage), predict_key(project, member, stage))
    return (done and is_whole(member.codes(stage))) or not names_of(project, member, stage)


def names_of(project: Project, member: Member, stage: str) -> list[str]:
    """Return the ids of the images that a member predicts: those that it holds out ("oof"), or the test images."""
    if stage == "oof":
        return list(project.folds.inside(member.fold))
    return [sample.id for sample in project.catalog.test]


def predict_shard(project: Project, member: Member, stage: str, names: Sequence[str], path: Path) -> None:
    """Predict some of a member's images into a file of their own, unless that is done.

    Batches are made of all images, so that their probabilities are those that the member predicts of them alone.
    """
    key, entry = digest(predict_key(project, member, stage), *names), f"{member.entry(stage)}/{path.stem}"
    if member.run.ledger.is_done(entry, key) and is_whole(path):
        return
    member.run.ledger.forget(entry)
    logger.info("predicting %d %s images with %s", len(names), stage, member.name)
    _Work(project, member).write(stage, names, path, key)
    member.run.ledger.mark_done(entry, key)


def join_shards(project: Project, member: Member, stage: str, paths: Sequence[Path], seconds: float) -> None:
    """Make the probabilities of a member of files that hold them in parts, and remove these.

    Args:
        project: The project.
        member: Whose they are.
        stage: "oof" or "test".
        paths: The files, which hold each image once.
        seconds: That they took together, to be noted.
    """
    stores, ledger = [MeanCodes([open_codes(path)]) for path in paths], member.run.ledger

    def parts(finished: Collection[str]) -> Iterator[list[tuple[str, Part]]]:
        assert not finished
        for store in stores:
            for name in store.ids:
                row = 0
                for band in store.bands(name):
                    yield [(name, Part(row, band))]
                    row += len(band)

    ledger.forget(member.entry(stage))
    inputs = project.inputs(member.run.recipe.input)
    images, names = inputs.train if stage == "oof" else inputs.test, names_of(project, member, stage)
    write_codes(member.codes(stage), images, names, parts, blank=(), channels=stores[0].channels)
    member.run.note_time(member.timed(stage), seconds)
    ledger.mark_done(member.entry(stage), predict_key(project, member, stage))
    for path in paths:
        ledger.forget(f"{member.entry(stage)}/{path.stem}")
    remove_matching(member.codes(stage).parent, _shards_of(member.codes(stage)))


def _shards_of(codes: Path) -> re.Pattern[str]:
    """Match the shards of a file, and their locks: those that were cut for another number of workers, too."""
    part = rf"{re.escape(codes.stem)}\.part-\d+-of-\d+"
    return re.compile(rf"{part}\.(npy|csv)|\.{part}\.(lock|npy\.masksmith-part(\.csv)?)")


class _Work:
    """A member's models and runtimes, opened when the first images are predicted."""

    def __init__(self, project: Project, member: Member) -> None:
        self.project, self.member = project, member

    @cached_property
    def _fabric(self) -> Fabric:
        return make_fabric(self.member.run.recipe.training)

    @cached_property
    def _models(self) -> dict[Path, SegmentationModel]:
        return _trained_models(self.project, self.member, self._fabric)

    @cached_property
    def _runtimes(self) -> list[Runtime]:
        return [_runtime(self.project, self.member, self._fabric, *one) for one in self._models.items()]

    def write(self, stage: str, names: Sequence[str], path: Path, key: str) -> float:
        """Predict images of a stage into a store; return the seconds that it took without opening the models."""
        project, member = self.project, self.member
        recipe, inputs = member.run.recipe, project.inputs(member.run.recipe.input)
        images = inputs.train if stage == "oof" else inputs.test
        blank = project.blank_train if stage == "oof" else project.blank_test
        options = recipe.prediction
        everything = [name for name in names_of(project, member, stage) if name not in blank]
        others = set(everything).difference(names)
        model, runtimes = next(iter(self._models.values())), self._runtimes
        batches = partial(
            predict_parts,
            self._fabric,
            model,
            images,
            everything,
            tta=options.tta,
            scales=options.tta_scales,
            shifts=options.tta_shifts,
            mirror=project.target.mirrored(recipe.training.augment.mirror_pairs),
            batch_size=options.batch_size,
            size=recipe.size,
            tiling=Tiling.of(options),
            runtime=runtimes,
            shares=options.shares(len(runtimes)),
            scalars=scalars_of(project, recipe, stage),
        )

        def wanted(finished: Collection[str], **rows: Any) -> Iterator[list[tuple[str, Part]]]:  # noqa: ANN401
            for batch in batches(finished=others.union(finished), **rows):
                yield [(name, part) for name, part in batch if name not in others]

        began = time.perf_counter()
        write_codes(
            path,
            images,
            names,
            wanted if others else batches,
            blank=set(names).intersection(blank),
            channels=options.planes(project.target.outputs),
            key=key,
        )
        return time.perf_counter() - began


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


def predict_key(project: Project, member: Member, stage: str) -> str:
    """Return the key of a member's probabilities: weights, options, and all that these come of."""
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
    if not whole or not member.run.ledger.is_done(member.entry(stage), predict_key(project, member, stage)):
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
        key=predict_key(project, member, "oof"),
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
