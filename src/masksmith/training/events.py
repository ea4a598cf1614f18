"""``metrics.fold_k.jsonl``, the log of record: one JSON object an event; curves and pages are made from it."""

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksmith.core.files import append_text, write_text
from masksmith.core.progress import clock, logger
from masksmith.training.epochs import Epoch, is_scored, work_ahead

if TYPE_CHECKING:
    from masksmith.training.loggers import Follower
    from masksmith.training.pace import Pace
    from masksmith.training.state import TrainingState


class EventLog:
    """Appends events of one fold; a resumed training first drops what came after its checkpoint.

    Args:
        path: The log of the fold, ``metrics.fold_k.jsonl``.
        fold: Whose events.
        followers: They are told where the events so far are those of a checkpoint (see loggers.py).
    """

    def __init__(self, path: Path, *, fold: int, followers: Sequence["Follower"] = ()) -> None:
        self.path, self.fold, self.followers = path, fold, followers

    def write(self, epoch: float, split: str, **values: float | str) -> None:
        """Append one event for each value: {fold, epoch, split, name, value}."""
        lines = [
            json.dumps({"fold": self.fold, "epoch": epoch, "split": split, "name": name, "value": value})
            + "\n"
            for name, value in values.items()
        ]
        append_text(self.path, "".join(lines))

    def sync(self) -> None:
        """Tell the followers that all events so far stand: a training that goes on will not write them again."""
        for follower in self.followers:
            follower.sync()

    def close(self) -> None:
        """Let the followers end."""
        for follower in self.followers:
            follower.close()

    def cut_back(self, epoch: float) -> None:
        """Drop this fold's events after ``epoch`` finished epochs (3.5: in the middle of the fourth)."""
        kept = [
            event for event in read_events(self.path) if event["fold"] != self.fold or event["epoch"] <= epoch
        ]
        write_text(self.path, "".join(json.dumps(event) + "\n" for event in kept))


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return all whole events; a torn line is passed over."""
    events = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def log_epoch(
    log: EventLog,
    state: "TrainingState",
    pace: "Pace",
    lr: float,
    values: Mapping[str, float],
    trained: Mapping[str, float],
) -> None:
    """Write the events of the epoch that was just finished, and say in one line how it went.

    Args:
        log: The log of record.
        state: The epoch is counted as finished.
        pace: Knows how long its steps took.
        lr: Its last learning rate.
        values: Its "loss", and "score", "val_loss" and the metrics beside it where they were measured.
        trained: The metrics of its training batches.
    """
    done = state.progress.epoch
    epoch = state.epochs[done - 1]
    images_per_s = epoch.images * pace.epoch_steps / pace.epoch_s if pace.epoch_s else 0.0
    log.write(done, "train", loss=values["loss"], lr=lr, stage=epoch.stage, **trained)
    left_s = state.work_ahead * pace.seconds_per_px + pace.scoring_s * sum(
        is_scored(state.config, state.epochs, at) for at in range(done + 1, len(state.epochs) + 1)
    )
    log.write(
        done, "timing", seconds=pace.epoch_s, images_per_s=images_per_s, epochs=len(state.epochs), left_s=left_s,
        peak_gib=_peak_gib(),
    )  # fmt: skip
    scores = {name: value for name, value in values.items() if name != "loss"}
    if scores:
        log.write(done, "fold", **scores)
    logger.info(
        "%s, epoch %d/%d: loss %.4f%s%s, lr %.2e, %.0f images/s, peak %.1f GiB, %s left of this fold",
        state.data.name, done, len(state.epochs), values["loss"],
        "".join(f", {name} {value:.4f}" for name, value in trained.items()), _scored(state, scores), lr,
        images_per_s, _peak_gib(), clock(left_s),
    )  # fmt: skip


def _scored(state: "TrainingState", scores: Mapping[str, float]) -> str:
    """Say what was measured on the held-out images, beside the best score so far; nothing where nothing was."""
    if not scores:
        return ""
    best = state.progress.best
    others = "".join(f", {name} {value:.4f}" for name, value in scores.items() if name != "score")
    held_out = f"; held out{others.removeprefix(',')}" if others else ""
    return f", score {scores['score']:.4f} (best {best.score:.4f}, epoch {best.epoch}){held_out}"


def log_adjusted(log: EventLog, state: "TrainingState", epochs: Sequence[Epoch]) -> None:
    """Say that a training will follow other epochs from here on, and how much of the work ahead remains."""
    progress = state.progress
    ahead = sum(work_ahead(epochs, state.canvases, progress.epoch, progress.step).values())
    share = ahead / max(1, state.work_ahead)
    log.write(state.position, "event", replanned=share)
    room = "there is time again" if state.is_adjusted else "there is time left"
    what = room if share > 1 else "the time left is not enough"
    logger.warning(
        "%s, epoch %.2f: %s; %.0f%% of the steps ahead will be made", state.data.name, state.position, what, 100 * share
    )  # fmt: skip


def _peak_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
