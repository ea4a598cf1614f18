"""Prediction on a project's files: the probabilities of a member, and the means of several.

Probabilities are skipped where the ledger holds them with the same key; those that were made from other inputs than the
present ones are refused.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from masksmith.arrays import Codes
from masksmith.data.store import Store, is_whole
from masksmith.errors import InputError
from masksmith.files import digest
from masksmith.members import Member
from masksmith.metrics import get_metric
from masksmith.postprocess import PLAIN, apply_rule
from masksmith.prediction.codes import MeanCodes, open_codes
from masksmith.progress import logger
from masksmith.project import Project
from masksmith.stages import build, checksum_of, is_trained, load, train_key

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from masksmith.models import SegmentationModel
    from masksmith.prediction.runtime import Runtime

_VERSIONS = {"oof": "1", "test": "1"}


def predict_member(project: Project, member: Member, *, stages: Sequence[str] = ("oof", "test")) -> None:
    """Predict a member's held-out images ("oof") and the test images ("test") where that is not done.

    Raises:
        InputError: The member is not trained.
    """
    from masksmith.prediction.predict import predict_batches, write_codes
    from masksmith.training.machine import make_fabric

    if not member.interim and not is_trained(project, member):
        raise InputError(
            f"{member.run.path}: fold {member.fold} is not trained; run `masksmith train {project.root}` first, or the "
            "`masksmith compete` command that began it"
        )
    cache, ledger, options = project.cache, member.run.ledger, member.run.recipe.prediction
    held_out = project.folds.inside(member.fold)
    names_of = {"oof": held_out, "test": [sample.id for sample in project.catalog.test]}
    images_of = {"oof": cache.train_images, "test": cache.test_images}
    fabric, model, runtime = None, None, None
    for stage in stages:
        names, path, key = names_of[stage], member.codes(stage), _predict_key(project, member, stage)
        if not names or (ledger.is_done(member.entry(stage), key) and is_whole(path)):
            continue
        ledger.forget(member.entry(stage))
        logger.info("predicting %d %s images with %s", len(names), stage, member.name)
        fabric = fabric or make_fabric(member.run.recipe.training)
        model = model or _trained_model(project, member, fabric)
        seen = [name for name in names if name not in project.blank]
        runtime = runtime or _runtime(project, member, fabric, model)
        batches = partial(
            predict_batches,
            fabric,
            model,
            images_of[stage],
            seen,
            tta=options.tta,
            batch_size=options.batch_size,
            size=member.run.recipe.size,
            runtime=runtime,
        )
        write_codes(path, images_of[stage], names, batches, blank=set(names) - set(seen), key=key)
        ledger.mark_done(member.entry(stage), key)


def oof_of(project: Project, members: Sequence[Member]) -> dict[int, MeanCodes]:
    """Return, for each fold that a member covers, the mean probabilities of its held-out images.

    Raises:
        InputError: Probabilities are missing, damaged, of other images, or of other weights than the present ones.
    """
    folds = sorted({member.fold for member in members})
    return {
        fold: MeanCodes([_need_oof(project, member) for member in members if member.fold == fold])
        for fold in folds
    }


def test_of(project: Project, members: Sequence[Member]) -> MeanCodes:
    """Return the mean of all members' probabilities of the test images.

    Raises:
        InputError: As oof_of.
    """
    return MeanCodes([_need_codes(project, member, "test") for member in members])


def codes_digest(codes: MeanCodes) -> str:
    """Return a hash of what the probabilities are."""
    return digest(
        *(f"{name} {entry.crc32}" for store in codes.stores for name, entry in store.entries.items())
    )


def _predict_key(project: Project, member: Member, stage: str) -> str:
    run = member.run
    trained = train_key(project, run, member.fold)
    return project.key(_VERSIONS[stage], checksum_of(member.weights), str(run.recipe.prediction), trained)


def _need_codes(project: Project, member: Member, stage: str) -> Store:
    """Open the probabilities of a member; those of other weights than the present ones are refused."""
    path = member.codes(stage)
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


def _trained_model(project: Project, member: Member, fabric: "Fabric") -> "SegmentationModel":
    from masksmith.models import to_channels_last

    model = build(project, member.run, member.fold, load_weights=False)
    load(model, member.weights)
    if member.run.recipe.training.channels_last:
        to_channels_last(model)
    fabric.to_device(model)  # in place
    return model


def _runtime(project: Project, member: Member, fabric: "Fabric", model: "SegmentationModel") -> "Runtime":
    """Return what the recipe asks to predict with, or torch where the fold's held-out images speak against it."""
    from masksmith.prediction.gate import choose_runtime

    recipe, cache = member.run.recipe, project.cache
    metric, options = get_metric(recipe.metric), recipe.prediction

    def score(codes: Iterable[tuple[str, Codes]]) -> float:
        rows = {
            name: metric.stats(apply_rule(one, PLAIN), cache.train_masks[name][..., 0]) for name, one in codes
        }
        return metric.utility(metric.score(np.stack(list(rows.values())), project.folds.groups(list(rows))))

    names = [name for name in project.folds.inside(member.fold) if name not in project.blank]
    views = (len(names) + len(cache.test_images)) * len(options.tta)
    return choose_runtime(
        options.runtime,
        fabric,
        model,
        cache.train_images,
        names,
        score,
        batch_size=options.batch_size,
        size=recipe.size,
        batches=-(-views // options.batch_size),
        record=member.codes("oof").with_suffix(".runtime.json"),
        key=_predict_key(project, member, "oof"),
    )
