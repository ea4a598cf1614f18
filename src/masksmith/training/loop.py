"""The training of one fold, top to bottom. Read ``train_fold``; everything else here serves it.

Each epoch: draw batches by counter, step, average; score the fold now and then; keep what is worth keeping; look
whether what is watched has stalled; write a checkpoint. If the loss leaves the finite numbers or explodes, the last
checkpoint is restored once with a lower rate. If other processes hold up the threads, fewer are taken. If the time
will not do, the plan is shortened, and lengthened again where time is won back. If a stop is asked for, a checkpoint
is written where it stands.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric

from masksmith.errors import DivergedError, InputError, StoppedError
from masksmith.models.segmentation import SegmentationModel
from masksmith.progress import Remaining, logger
from masksmith.training.checkpoint import Checkpoints, is_finished
from masksmith.training.config import TrainingConfig
from masksmith.training.deadline import Deadline
from masksmith.training.events import EventLog, threads_of
from masksmith.training.final import write_final
from masksmith.training.keep import Keeper, tidy
from masksmith.training.looks import ReplanError, look_at_the_cores, look_at_the_time
from masksmith.training.machine import settle_threads
from masksmith.training.plan import Epoch
from masksmith.training.refit import refuse_scores
from masksmith.training.sharing import Sharing
from masksmith.training.stages import FoldData
from masksmith.training.trainer import DivergenceError, Trainer, say_epoch
from masksmith.training.watch import Watcher, look, watchers_of

Evaluate = Callable[[SegmentationModel], float]

_RESCUE_LR = 0.3  # after a divergence the rate is multiplied by this, once


def train_fold(
    fabric: Fabric,
    model: SegmentationModel,
    config: TrainingConfig,
    data: FoldData,
    *,
    folder: Path,
    log: EventLog,
    evaluate: Evaluate | None,
    remaining: Remaining,
    deadline: Deadline | None = None,
) -> None:
    """Train one fold, from its newest checkpoint if there is one, and write ``final.safetensors``.

    Args:
        fabric: Device and precision.
        model: A freshly built model.
        config: Settled (no "auto" left).
        data: Ids to train on, their images and masks, and the seed.
        folder: Where the fold's checkpoints lie.
        log: The log of record.
        evaluate: Returns the score of a model on the fold's held-out images; None where none are held out.
        remaining: Knows the time left; told of every step.
        deadline: When the training has to end; the plan is shortened where it would not. None: no hurry.

    Raises:
        InputError: Nothing to train on, or something that needs a score where nothing is held out.
        DivergedError: The loss exploded a second time; the last good checkpoint is kept.
        StoppedError: A stop was asked for; the checkpoint written is of this very step.
    """
    if not data.ids:
        raise InputError(f"{data.name}: no images to train on")
    if evaluate is None:
        refuse_scores(config)
    if is_finished(folder / "final.safetensors", data.key):
        _tidy(folder)  # the process died between the last checkpoint and the ledger
        return
    trainer, keeper = Trainer(fabric, model, config, data), Keeper(folder, config, data.key)
    run = _Run(trainer, Checkpoints(folder), keeper, log, evaluate, remaining, deadline)
    planned = trainer.work_ahead()
    _begin(run)
    remaining.done += planned - trainer.work_ahead()
    with torch.random.fork_rng():
        _train(run)
        _end_trial(run)
        write_final(trainer, run.keeper, evaluate)
    _tidy(folder)


@dataclass(frozen=True)
class _Run:
    """What the functions below work on."""

    trainer: Trainer
    checkpoints: Checkpoints
    keeper: Keeper
    log: EventLog
    evaluate: Evaluate | None
    remaining: Remaining
    deadline: Deadline | None

    @property
    def sharing(self) -> Sharing | None:
        return None if self.deadline is None else self.deadline.sharing


def _begin(run: _Run) -> None:
    """Go on from the newest whole checkpoint, or write the first one."""
    trainer, found = run.trainer, run.checkpoints.newest()
    name = trainer.data.name
    if found is not None and found[1].get("key") != trainer.data.key:
        logger.warning("%s: the checkpoint was trained on other data or folds; beginning anew", name)
        run.checkpoints.clear()
        found = None
    if found is not None:
        trainer.restore(*found)
        run.keeper.drop(trainer.progress.best)
        logger.info("%s: going on after epoch %.2f", name, trainer.position)
    run.log.cut_back(trainer.position if found else -1.0)
    if found is None:
        run.keeper.begin_anew()
        if run.sharing is not None:
            trainer.use_threads(run.sharing.settle())
    elif run.sharing is not None:
        run.sharing.take(trainer.threads)
    _say_threads(run)
    if found is None:
        _save(run)


def _save(run: _Run) -> None:
    trainer, progress = run.trainer, run.trainer.progress
    run.checkpoints.save(progress.epoch, trainer.tensors(), trainer.facts(), step=progress.step)
    run.keeper.drop(progress.best)


def _train(run: _Run) -> None:
    """Train epoch after epoch until the plan is done."""
    trainer, remaining = run.trainer, run.remaining
    seconds, steps = 0.0, 0  # of the epoch under way, in this process
    while (progress := trainer.progress).epoch < len(trainer.plan):
        epoch, first = trainer.plan[progress.epoch], progress.step
        started, before = time.monotonic(), remaining.done
        try:
            if trainer.starts_from_best:
                trainer.start_from(run.keeper.load(progress.best.epoch))
            mean_loss, rate = trainer.run_epoch(
                remaining, on_cycle=lambda: _end_cycle(run), on_look=lambda: _look(run)
            )
            seconds, steps = seconds + time.monotonic() - started, steps + epoch.steps - first
            rules = watchers_of(trainer.config, epoch)
            stalls, stalled = look(progress.stalls, rules, "loss", mean_loss)
            scored = _score(run) if trainer.is_evaluated(stalled) else _Scored()
        except DivergenceError as error:
            _rescue(run, error)
            remaining.done = before
            seconds, steps = 0.0, 0
            continue
        except ReplanError as other:
            seconds, steps = seconds + time.monotonic() - started, steps + progress.step - first
            is_sound = trainer.is_sound
            _replan(run, other.plan)
            if is_sound:  # else a rescue would come back to a loss that has exploded
                _save(run)
            continue
        except StoppedError:
            _end_trial(run)
            _save(run)
            raise
        for watch, value in (("score", scored.score), ("val_loss", scored.val_loss)):
            if value is not None:
                stalls, more = look(stalls, rules, watch, value)
                stalled |= more
        _keep(run, mean_loss, scored)
        trainer.end_epoch()
        pace = steps * epoch.images / seconds if seconds else 0.0
        _log_epoch(run, mean_loss, rate, scored, seconds, pace)
        progress.stalls = stalls
        _settle(run, stalled)
        _save(run)
        say_epoch(trainer, mean_loss, scored.score, rate, pace, remaining)
        seconds, steps = 0.0, 0


@dataclass(frozen=True)
class _Scored:
    """What the held-out images say of an epoch; None: they were not asked."""

    score: float | None = None
    val_loss: float | None = None


def _score(run: _Run) -> _Scored:
    """Score the weights after the epoch under way."""
    trainer = run.trainer
    if run.evaluate is None:
        return _Scored()
    started = time.monotonic()
    scored = _Scored(run.evaluate(trainer.kept), trainer.val_loss())
    trainer.evaluate_s = time.monotonic() - started
    return scored


def _keep(run: _Run, mean_loss: float, scored: _Scored) -> None:
    """Note the epoch under way, and write its weights where they are worth keeping."""
    trainer, done = run.trainer, run.trainer.progress.epoch + 1
    best, new_stage = trainer.progress.best, trainer.plan[done - 1].number == 0
    best.note(
        done,
        score=scored.score,
        loss=mean_loss,
        top_k=trainer.config.top_k,
        new_stage=new_stage,
        val_loss=scored.val_loss,
    )
    run.keeper.write(best, done, trainer.kept)


def _end_cycle(run: _Run) -> None:
    """Keep the weights at the end of a cycle."""
    trainer, swa, progress = run.trainer, run.trainer.config.swa, run.trainer.progress
    progress.snapshots += 1
    finished = progress.epoch + progress.step / trainer.plan[progress.epoch].steps
    run.keeper.snapshot(progress.snapshots, trainer.kept, finished)
    if swa is not None and swa.every == "cycle":
        trainer.add_to_swa()


def _log_epoch(
    run: _Run, mean_loss: float, rate: float, scored: _Scored, seconds: float, pace: float
) -> None:
    done = run.trainer.progress.epoch
    run.log.write(done, "train", loss=mean_loss, lr=rate, stage=run.trainer.plan[done - 1].stage)
    run.log.write(done, "timing", seconds=seconds, images_per_s=pace)
    values = {"score": scored.score, "val_loss": scored.val_loss}
    if known := {name: value for name, value in values.items() if value is not None}:
        run.log.write(done, "fold", **known)


def _settle(run: _Run, stalled: set[Watcher]) -> None:
    """Lower the rate, or end the stage or the training, where what they watch has stalled."""
    trainer, before = run.trainer, run.trainer.work_ahead()
    shorter = trainer.settle(stalled)
    run.remaining.total -= before - trainer.work_ahead()
    if "rate" in stalled:
        run.log.write(trainer.progress.epoch, "event", rate_scale=trainer.progress.rate_scale)
    if shorter:
        ended = "training" if "training" in stalled else "stage"
        run.log.write(trainer.progress.epoch, "event", ended=ended)
        logger.info(
            "%s, epoch %d: no gain; the %s ends here", trainer.data.name, trainer.progress.epoch, ended
        )


def _look(run: _Run) -> None:
    """Look at the cores and at the time left, where there is a deadline."""
    if run.deadline is None:
        return
    if look_at_the_cores(run.trainer, run.remaining, run.deadline):
        _say_threads(run)
    look_at_the_time(run.trainer, run.remaining, run.deadline)


def _replan(run: _Run, plan: list[Epoch]) -> None:
    """Follow another plan and say so in the log of record."""
    trainer = run.trainer
    position, before = trainer.position, trainer.work_ahead()
    trainer.follow(plan)
    after = trainer.work_ahead()
    run.remaining.total -= before - after
    share = after / max(1, before)
    run.log.write(position, "event", replanned=share)
    if share > 1:
        logger.info(
            "%s, epoch %.2f: there is time again; %.1f times the work ahead is planned",
            trainer.data.name, position, share,
        )  # fmt: skip
        return
    logger.warning(
        "%s, epoch %.2f: the time left is not enough; %.0f%% of the work ahead is kept",
        trainer.data.name, position, 100 * share,
    )  # fmt: skip


def _end_trial(run: _Run) -> None:
    """Take the threads that are known to be good, where others are on trial."""
    if run.sharing is not None and run.sharing.is_on_trial:
        run.trainer.use_threads(run.sharing.settle())
        run.remaining.end_trial(believe=False)
        _say_threads(run)


def _say_threads(run: _Run) -> None:
    """Write into the log of record how many threads are taken from here on, where it does not say so yet."""
    trainer = run.trainer
    own = settle_threads(trainer.config.threads)
    if trainer.threads == (threads_of(run.log.path, fold=run.log.fold) or own):
        return
    run.log.write(trainer.position, "event", threads=trainer.threads)
    logger.info(
        "%s, epoch %.2f: going on with %d thread%s",
        trainer.data.name, trainer.position, trainer.threads, "s" if trainer.threads > 1 else "",
    )  # fmt: skip


def _rescue(run: _Run, error: Exception) -> None:
    """Go back to the last checkpoint with a lower rate; the second time, stop."""
    trainer, found = run.trainer, run.checkpoints.newest()
    where = f"{trainer.data.name}, epoch {trainer.progress.epoch + 1}"
    if found is None or trainer.progress.lr_scale < 1:
        raise DivergedError(
            f"{where}: training diverged again ({error}) after the learning rate had been multiplied by {_RESCUE_LR}; "
            "the last good checkpoint is kept. Lower training.stages.0.optimizer.lr, or train with "
            "training.precision=32-true"
        ) from error
    trainer.restore(*found)
    if run.sharing is not None:
        run.sharing.take(trainer.threads)
    run.remaining.end_trial(believe=False)
    trainer.progress.lr_scale = _RESCUE_LR
    run.log.cut_back(trainer.position)
    _say_threads(run)
    _save(run)
    run.log.write(trainer.position, "event", rescued=str(error), lr_scale=_RESCUE_LR)
    logger.warning(
        "%s: training diverged (%s); back to epoch %.2f with %.1f times the rate",
        where, error, trainer.position, _RESCUE_LR,
    )  # fmt: skip


def _tidy(folder: Path) -> None:
    """Remove what only an unfinished training needs; the best weights go last, the last checkpoint needs them."""
    Checkpoints(folder).clear()
    tidy(folder)
