"""The stages of the way on a project's files: what each reads, what it is keyed by, and when it is skipped.

The verbs in ``pipeline`` call these under the project's lock. A stage that is recorded in a ledger with the same key
is not run again; probabilities and rules that were made from other inputs than the present ones are refused.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksmith.arrays import IGNORE, Codes
from masksmith.config import look_up
from masksmith.data.checks import coverage, duplicate_groups
from masksmith.data.store import Store, is_whole
from masksmith.errors import InputError
from masksmith.files import digest, read_json, write_json
from masksmith.metrics import get_metric
from masksmith.postprocess import (
    PLAIN,
    Rule,
    apply_rule,
)
from masksmith.prediction.codes import mean_codes, open_codes, to_codes
from masksmith.progress import Remaining, logger
from masksmith.project import Project, Run
from masksmith.recipe import Recipe
from masksmith.splits import Folds, make_folds, write_folds
from masksmith.submission import (
    Verdict,
    validate_submission,
    write_masks,
    write_submission,
)
from masksmith.tuning import tune_oof

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from masksmith.models import SegmentationModel
    from masksmith.prediction.runtime import Runtime
    from masksmith.reporting import ReportFacts

_FORWARD_WORK = 0.35  # a forward pass costs about this share of a training step on the same pixels
_VERSIONS = {"train": "2", "oof": "1", "test": "1", "tune": "2", "submit": "1"}


def folds_of(project: Project, recipe: Recipe) -> Folds:
    """Read the folds, or make them if there are none."""
    if project.folds_csv.exists():
        made = project.folds
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
        return made
    masks, images = project.cache.train_masks, project.cache.train_images
    counts = {name: (int((masks[name] == 1).sum()), int((masks[name] != IGNORE).sum())) for name in masks}
    groups = {name: key for key, names in duplicate_groups(images).items() for name in names}
    project.ledger.mark_done("folds.seed", str(recipe.folds.seed))
    write_folds(make_folds(counts, groups, recipe.folds), project.folds_csv)
    return project.folds


def _resolve(recipe: Recipe) -> Recipe:
    """Settle every "auto": what is written into the run's recipe.yaml is fixed."""
    from masksmith.losses import build_loss
    from masksmith.models import MODELS
    from masksmith.models.encoders import settle_encoder
    from masksmith.prediction.runtime import check_runtime
    from masksmith.training.machine import settle_machine

    look_up(MODELS, recipe.model.architecture, where="model.architecture")
    for i, stage in enumerate(recipe.training.stages):
        build_loss([(term.name, term.weight) for term in stage.loss], where=f"training.stages[{i}].loss")
    settled = settle_encoder(recipe.model.encoder, recipe.model.encoder_weights)
    logger.info("encoder: %s (%s)", settled.encoder, settled.reason)
    model = recipe.model.model_copy(update={"encoder": settled.encoder, "encoder_weights": settled.weights})
    if settled.weights not in ("none", "imagenet"):
        model = model.model_copy(update={"encoder_weights_hash": model.weights_identity()})
    training = settle_machine(recipe.training)
    check_runtime(recipe.prediction.runtime, device=training.device, precision=training.precision)
    return recipe.model_copy(update={"model": model, "training": training})


def train_run(project: Project, asked: Recipe) -> Run:
    """Resolve the recipe and train the folds that are not trained."""
    from masksmith.training.events import EventLog
    from masksmith.training.loop import train_fold
    from masksmith.training.machine import make_fabric

    made = folds_of(project, asked)
    run = project.run_of(asked) or project.add_run(asked, _resolve(asked))
    project.make_current(run)
    run.ledger.mark_done("folds", made.hash)
    missing = [fold for fold in _trained_folds(run) if not _is_trained(project, run, fold)]
    if not missing:
        logger.info("run %s: all folds are trained", run.path.name)
        return run
    logger.info("run %s: training fold %s of %d", run.path.name, ", ".join(map(str, missing)), made.count)
    fabric = make_fabric(run.recipe.training)
    remaining = Remaining(_work(project, run, missing))
    for fold in missing:
        train_fold(
            fabric,
            _fresh_model(project, run, fold),
            run.recipe.training,
            _fold_data(project, run, fold),
            folder=run.checkpoints(fold),
            log=EventLog(run.events, fold=fold),
            evaluate=_evaluator(project, run, fold, fabric, remaining),
            remaining=remaining,
        )
        run.ledger.mark_done(f"fold_{fold}/train", _train_key(project, run))
    return run


def predict_run(project: Project, run: Run) -> Run:
    """Predict held-out and test images with every trained fold."""
    from masksmith.prediction.predict import predict_probs, write_codes
    from masksmith.training.machine import make_fabric

    cache, fabric = project.cache, None
    inside = {fold: project.folds.inside(fold) for fold in _trained_folds(run)}
    test = [sample.id for sample in project.catalog.test]
    for fold in _trained_folds(run):
        if not _is_trained(project, run, fold):
            raise InputError(
                f"{run.path}: fold {fold} is not trained; run `masksmith train {project.root}` first"
            )
        for stage, path, images, names in (
            ("oof", run.oof(fold), cache.train_images, inside[fold]),
            ("test", run.test(fold), cache.test_images, test),
        ):
            key = _predict_key(project, run, fold, stage)
            if not names or (run.ledger.is_done(f"fold_{fold}/{stage}", key) and is_whole(path)):
                continue
            run.ledger.forget(f"fold_{fold}/{stage}")
            logger.info("predicting %d %s images with fold %d", len(names), stage, fold)
            fabric = fabric or make_fabric(run.recipe.training)
            model = _trained_model(project, run, fold, fabric)
            seen = [name for name in names if name not in project.blank]
            options = run.recipe.prediction
            probs = predict_probs(
                fabric,
                model,
                images,
                seen,
                tta=options.tta,
                batch_size=options.batch_size,
                runtime=_runtime(project, run, fold, fabric, model),
            )
            write_codes(path, images, names, probs, blank=set(names) - set(seen))
            run.ledger.mark_done(f"fold_{fold}/{stage}", key)
    return run


def tune_run(project: Project, run: Run) -> dict[str, Any]:
    """Search the rule on the out-of-fold probabilities; return what tuning.json holds."""
    trained = _trained_folds(run)
    oof = {fold: _need_oof(project, run, fold) for fold in trained}
    key = _tune_key(project, run)
    if run.ledger.is_done("tune", key) and project.tuning_json.exists():
        value: dict[str, Any] = read_json(project.tuning_json)
        if value["run"] == run.path.name:
            return value
    value = tune_oof(project, run, trained, oof)
    write_json(project.tuning_json, value)
    value = read_json(project.tuning_json)  # what a notebook gets now is what it will read later
    run.ledger.mark_done("tune", key)
    verdict = "kept" if value["kept"] else "not kept: no certain gain"
    logger.info("tuning: found '%s' (%s)", value["found_text"], verdict)
    return value


def submit_run(project: Project, run: Run) -> Verdict:
    """Write masks and submission, and validate both."""
    tuning = _need_tuning(project, run)
    rule = Rule(**tuning["rule"])
    form, shapes = project.catalog.submission, test_shapes(project)
    if not form.ids:
        raise InputError(f"{project.catalog.root}: there are no test images, so there is nothing to submit")
    stores = [_need_codes(project, run, fold, "test") for fold in _trained_folds(run)]
    key = project.key(_VERSIONS["submit"], str(rule), *(_store_digest(store) for store in stores))
    if not _submission_stands(project, key):
        project.ledger.forget("submit")
        masks = {name: apply_rule(codes[..., 0], rule) for name, codes in mean_codes(stores, form.ids)}
        write_masks(project.masks_dir, masks.items())
        write_submission(project.submission_csv, form, masks)
        project.ledger.mark_done("submit", key)
    return validate_submission(project.submission_csv, form, shapes, masks=project.masks_dir)


def _submission_stands(project: Project, key: str) -> bool:
    """Whether the submission and the masks there are whole and were made from the same inputs."""
    if not project.ledger.is_done("submit", key):
        return False
    form, shapes = project.catalog.submission, test_shapes(project)
    try:
        validate_submission(project.submission_csv, form, shapes, masks=project.masks_dir)
    except InputError as error:
        logger.warning("%s; writing it again", error)
        return False
    return True


def report_run(project: Project, run: Run) -> Path:
    """Write the report."""
    from masksmith.reporting import write_report

    return write_report(project.report_html, report_facts(project, run))


def _trained_folds(run: Run) -> list[int]:
    """Folds that the recipe asks for."""
    return list(range(run.recipe.folds.train or run.recipe.folds.count))


def _train_key(project: Project, run: Run) -> str:
    return project.key(_VERSIONS["train"], run.recipe.hash, project.folds.hash)


def _is_trained(project: Project, run: Run, fold: int) -> bool:
    files = (run.final(fold), run.final(fold).with_suffix(".json"))
    return run.ledger.is_done(f"fold_{fold}/train", _train_key(project, run)) and all(map(Path.exists, files))


def _predict_key(project: Project, run: Run, fold: int, stage: str) -> str:
    from masksmith.training.checkpoint import facts_of

    weights = str(facts_of(run.final(fold))["checksum"])
    return project.key(_VERSIONS[stage], weights, str(run.recipe.prediction), _train_key(project, run))


def _store_digest(store: Store) -> str:
    return digest(*(f"{name} {entry.crc32}" for name, entry in store.entries.items()))


def _need_codes(project: Project, run: Run, fold: int, stage: str) -> Store:
    """Open the probabilities of a fold; those of other weights than the present ones are refused."""
    path = run.oof(fold) if stage == "oof" else run.test(fold)
    store = open_codes(path)
    made_now = _is_trained(project, run, fold) and run.ledger.is_done(
        f"fold_{fold}/{stage}", _predict_key(project, run, fold, stage)
    )
    if not made_now:
        raise InputError(
            f"{path}: made with other weights, folds or settings than the present ones; run "
            f"`masksmith train {project.root}` and `masksmith predict {project.root}` again"
        )
    return store


def _tune_key(project: Project, run: Run) -> str:
    oof = [_store_digest(_need_oof(project, run, fold)) for fold in _trained_folds(run)]
    return project.key(_VERSIONS["tune"], run.recipe.metric, str(run.recipe.tuning), *oof)


def _need_oof(project: Project, run: Run, fold: int) -> Store:
    store = _need_codes(project, run, fold, "oof")
    if set(store.ids) != set(project.folds.inside(fold)):
        raise InputError(
            f"{run.oof(fold)}: it holds other images than fold {fold}; run `masksmith predict` again"
        )
    return store


def _need_tuning(project: Project, run: Run) -> dict[str, Any]:
    if not project.tuning_json.exists():
        raise InputError(f"{project.tuning_json}: not there yet; run `masksmith tune {project.root}` first")
    tuning: dict[str, Any] = read_json(project.tuning_json)
    if tuning["run"] != run.path.name:
        raise InputError(
            f"{project.tuning_json}: it was made for the run {tuning['run']}, not {run.path.name}; "
            f"run `masksmith tune {project.root} --run {run.path.name}` first"
        )
    if not run.ledger.is_done("tune", _tune_key(project, run)):
        raise InputError(
            f"{project.tuning_json}: made from other probabilities or settings than the present ones; run "
            f"`masksmith tune {project.root}` again"
        )
    return tuning


def _test_ids(project: Project) -> list[str]:
    return project.catalog.submission.ids


def test_shapes(project: Project) -> dict[str, tuple[int, int]]:
    """Return the size of every test image."""
    images = project.cache.test_images
    return {name: images.shape(name) for name in images}


def _fold_data(project: Project, run: Run, fold: int) -> Any:  # noqa: ANN401
    from masksmith.training.stages import FoldData

    ids = [name for name in project.folds.outside(fold) if name not in project.blank]
    cache, key = project.cache, _train_key(project, run)
    return FoldData(fold, ids, cache.train_images, cache.train_masks, run.recipe.seed, key)


def _fresh_model(project: Project, run: Run, fold: int, *, load_weights: bool = True) -> "SegmentationModel":
    from masksmith.models import build_model

    seed = run.recipe.seed * 1000 + fold
    channels = project.cache.channels
    return build_model(run.recipe.model, in_channels=channels, seed=seed, load_weights=load_weights)


def _trained_model(project: Project, run: Run, fold: int, fabric: "Fabric") -> "SegmentationModel":
    from masksmith.models import to_channels_last
    from masksmith.training.checkpoint import copy_weights, load_tensors

    model = _fresh_model(project, run, fold, load_weights=False)
    tensors, _ = load_tensors(run.final(fold))
    copy_weights(model, tensors, where=f"checkpoint {run.final(fold)}")
    if run.recipe.training.channels_last:
        to_channels_last(model)
    fabric.to_device(model)  # in place
    return model


def _runtime(
    project: Project, run: Run, fold: int, fabric: "Fabric", model: "SegmentationModel"
) -> "Runtime":
    """Return what the recipe asks to predict with, or torch where the fold's held-out images speak against it."""
    from masksmith.prediction.gate import choose_runtime

    metric, cache, options = get_metric(run.recipe.metric), project.cache, run.recipe.prediction

    def score(codes: Iterable[tuple[str, Codes]]) -> float:
        rows = [metric.stats(apply_rule(one, PLAIN), cache.train_masks[name][..., 0]) for name, one in codes]
        return metric.score(np.stack(rows))

    names = [name for name in project.folds.inside(fold) if name not in project.blank]
    views = (len(names) + len(cache.test_images)) * len(options.tta)
    return choose_runtime(
        options.runtime,
        fabric,
        model,
        cache.train_images,
        names,
        score,
        batch_size=options.batch_size,
        batches=-(-views // options.batch_size),
        record=run.oof(fold).with_suffix(".runtime.json"),
        key=_predict_key(project, run, fold, "oof"),
    )


def _pixels(images: Any, names: Iterable[str]) -> int:  # noqa: ANN401
    return sum(h * w for h, w in map(images.shape, names))


def _evaluator(
    project: Project, run: Run, fold: int, fabric: "Fabric", remaining: Remaining
) -> Callable[["SegmentationModel"], float]:
    """Return a function that scores a model on the fold's held-out images with content: no TTA, threshold 0.5."""
    from masksmith.prediction.predict import predict_probs

    metric, cache = get_metric(run.recipe.metric), project.cache
    names = [name for name in project.folds.inside(fold) if name not in project.blank]
    if not names:
        raise InputError(f"fold {fold}: none of its held-out images has any content, so it cannot be scored")

    def evaluate(model: "SegmentationModel") -> float:
        rows = [
            metric.stats(apply_rule(to_codes(probs[..., 0]), PLAIN), cache.train_masks[name][..., 0])
            for name, probs in predict_probs(
                fabric,
                model,
                cache.train_images,
                names,
                tta=["identity"],
                batch_size=run.recipe.prediction.batch_size,
                what="scoring",
            )
        ]
        remaining.advance(_FORWARD_WORK * _pixels(cache.train_images, names))
        return metric.score(np.stack(rows))

    return evaluate


def _work(project: Project, run: Run, missing: list[int]) -> float:
    """Return the pixels ahead, for the time left: training, scoring, and prediction after it."""
    from masksmith.training.stages import training_work

    cache, recipe = project.cache, run.recipe
    divisor = 2**recipe.model.encoder_depth
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
        total += (
            training_work(recipe.training, _fold_data(project, run, fold), divisor) + _FORWARD_WORK * forward
        )
    return total


def report_facts(project: Project, run: Run) -> "ReportFacts":
    """Collect what the report shows."""
    from masksmith.reporting import ReportFacts
    from masksmith.training.events import read_events

    trained = _trained_folds(run)
    rows = [row for row in project.folds.rows if row.fold in trained and row.id not in project.blank]
    stores = {fold: _need_oof(project, run, fold) for fold in trained}
    tuning = _need_tuning(project, run)
    rule, metric, masks = Rule(**tuning["rule"]), get_metric(run.recipe.metric), project.cache.train_masks
    preds = {row.id: apply_rule(stores[row.fold][row.id][..., 0], rule) for row in rows}
    scores = {row.id: metric.score(metric.stats(preds[row.id], masks[row.id][..., 0])[None]) for row in rows}
    tests = [_need_codes(project, run, fold, "test") for fold in trained] if project.catalog.test else []
    test_masks = (
        (name, apply_rule(codes[..., 0], rule)) for name, codes in mean_codes(tests, _test_ids(project))
    )
    test_shares = {name: float(mask.mean()) for name, mask in test_masks}
    return ReportFacts(
        title=Path(project.catalog.root).name,
        run=run.path.name,
        check=read_json(project.check_json) if project.check_json.exists() else None,
        recipe_yaml=run.recipe.to_yaml(),
        environment=(run.path / "environment.txt").read_text(),
        folds_text=str(project.folds),
        tuning=tuning,
        events=read_events(run.events),
        coverage_train=list(coverage(masks).values()),
        coverage_test=list(test_shares.values()),
        scores=scores,
        images=project.cache.train_images,
        masks=masks,
        preds=preds,
    )
