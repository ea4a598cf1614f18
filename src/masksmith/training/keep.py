"""Weights that outlast the training of a fold, beside ``final.safetensors``: the best, the top k, snapshots.

While a training runs, the weights of an epoch that may be kept lie in ``weights_NNNN.safetensors``; the checkpoint says
which of them are needed, and what only an older one needs is dropped once that is gone. At the end they get their
names. Snapshots have theirs from the start: the same step always writes the same one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from masksmith.core.files import remove
from masksmith.metrics import METRICS, get_metric
from masksmith.training.checkpoint import load_tensors, save_tensors
from masksmith.training.config import TrainingConfig, best_of

if TYPE_CHECKING:
    from masksmith.training.state import TrainingState

_NAMELESS = re.compile(r"weights_\d{4,}\.(json|safetensors)")
_BEST_OF = "|".join(["score", "loss", "val_loss", *METRICS])  # what keep may name, and no file of a person's
_EXTRA = re.compile(
    rf"(weights_\d{{4,}}|snapshot_\d+|top_\d+|best_({_BEST_OF})|last|swa|raw)\.(json|safetensors)"
)


@dataclass
class Best:
    """The epochs whose weights are worth keeping; a part of the checkpoint. An epoch of 0 is none."""

    score: float = -1e300  # below every score, also those of distances; JSON has no infinity
    epoch: int = 0
    loss: float | None = None  # lowest mean training loss of the stage under way
    loss_epoch: int = 0
    val_loss: float | None = None  # lowest loss of held-out images in the stage under way
    val_loss_epoch: int = 0
    top: list[tuple[float, int]] = field(default_factory=list)  # (score, epoch), the best first
    named: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Name of kept weights -> the best value of their metric, with its sign such that higher is better, and its
    epoch."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Best":
        """Return what ``dataclasses.asdict`` made."""
        lists = {"top": [(score, epoch) for score, epoch in value["top"]]}
        named = {name: (best, epoch) for name, (best, epoch) in value.get("named", {}).items()}
        return cls(**{**value, **lists, "named": named})

    def note(
        self,
        epoch: int,
        *,
        score: float | None,
        loss: float,
        top_k: int,
        new_stage: bool,
        val_loss: float | None = None,
        named: Mapping[str, float] | None = None,
    ) -> None:
        """Take an epoch into account; losses of two stages cannot be compared, so a new stage starts over."""
        if new_stage or self.loss is None or loss < self.loss:
            self.loss, self.loss_epoch = loss, epoch
        if new_stage:
            self.val_loss, self.val_loss_epoch = None, 0
        if val_loss is not None and (self.val_loss is None or val_loss < self.val_loss):
            self.val_loss, self.val_loss_epoch = val_loss, epoch
        for name, value in (named or {}).items():
            if name not in self.named or value > self.named[name][0]:
                self.named[name] = (value, epoch)
        if score is None:
            return
        if score > self.score:
            self.score, self.epoch = score, epoch
        self.top = sorted([*self.top, (score, epoch)], key=lambda one: (-one[0], one[1]))[:top_k]

    def epochs(self, config: TrainingConfig) -> dict[str, int]:
        """Return the name of each file to keep -> its epoch."""
        wanted = {f"top_{place}": epoch for place, (_, epoch) in enumerate(self.top, start=1)}
        if self.epoch and needs_best(config):
            wanted["best_score"] = self.epoch
        if self.val_loss_epoch and (config.select == "best_val_loss" or "best_val_loss" in config.keep):
            wanted["best_val_loss"] = self.val_loss_epoch
        wanted |= {name: epoch for name, (_, epoch) in self.named.items()}
        if self.loss_epoch and "best_loss" in config.keep:
            wanted["best_loss"] = self.loss_epoch
        return wanted


def needs_best(config: TrainingConfig) -> bool:
    """Whether the weights of the best scored epoch are asked for: at the end, or by a stage that starts from them."""
    starts = any(stage.start == "best" for stage in config.stages)
    return config.select == "best" or "best_score" in config.keep or starts


class Keeper:
    """Writes, drops and names the weights of one fold."""

    def __init__(self, folder: Path, config: TrainingConfig, key: str) -> None:
        self.folder, self.config, self.key = folder, config, key
        self._before: set[int] = set()  # epochs that the checkpoint before the newest needs
        kept = {name: metric for name, metric in best_of(config).items() if name in config.keep}
        self._metrics = {name: (metric, get_metric(metric)) for name, metric in kept.items()}

    def clear(self) -> None:
        """Remove what a training of another key has left."""
        _remove_all(self.folder, _EXTRA)

    def note(self, state: "TrainingState", values: Mapping[str, float]) -> None:
        """Take the epoch under way into account; write its weights if they are among those to keep.

        Args:
            state: Before the epoch is counted as finished.
            values: "loss" of the epoch, and "score", "val_loss" and the metrics beside it where they were measured.
        """
        best, epoch = state.progress.best, state.progress.epoch + 1
        named = {
            name: made.utility(values[metric])
            for name, (metric, made) in self._metrics.items()
            if metric in values
        }
        best.note(
            epoch,
            score=values.get("score"),
            loss=values["loss"],
            val_loss=values.get("val_loss"),
            top_k=self.config.top_k,
            new_stage=state.epoch.number == 0,
            named=named,
        )
        if epoch in best.epochs(self.config).values():
            self._save(f"weights_{epoch:04d}", state.kept, {"epoch": epoch})

    def drop(self, best: Best) -> None:
        """Remove the weights that neither the newest checkpoint needs nor the one before it."""
        now = set(best.epochs(self.config).values())
        needed = {f"weights_{epoch:04d}" for epoch in now | self._before}
        for path in _matching(self.folder, _NAMELESS):
            if path.stem not in needed:
                remove(path)
        self._before = now

    def snapshot(self, state: "TrainingState") -> None:
        """Write a snapshot of the weights as they are now."""
        progress = state.progress
        progress.snapshots += 1
        finished = progress.epoch + progress.step / state.epoch.steps
        self._save(f"snapshot_{progress.snapshots}", state.kept, {"epoch": finished})

    def load(self, epoch: int) -> dict[str, Any]:
        """Return the tensors of an epoch that was kept."""
        return load_tensors(self.folder / f"weights_{epoch:04d}.safetensors")[0]

    def publish(
        self, best: Best, snapshots: int, *, last: nn.Module, swa: nn.Module | None, raw: nn.Module
    ) -> dict[str, Any]:
        """Give the kept weights their names; return what final.json says of them."""
        scores = {epoch: score for score, epoch in best.top} | {best.epoch: best.score}
        asked = {
            name for name in best.epochs(self.config) if name.startswith("top_") or name in self.config.keep
        }
        for name, epoch in best.epochs(self.config).items():
            if name in asked:
                facts = {"epoch": epoch, "score": scores.get(epoch), "key": self.key}
                save_tensors(self.folder / f"{name}.safetensors", self.load(epoch), facts)
        for name, model in (("last", last), ("swa", swa), ("raw", raw)):
            if name in self.config.keep and model is not None:
                self._save(name, model, {})
                asked.add(name)
        return {
            "snapshots": [f"snapshot_{number}.safetensors" for number in range(1, snapshots + 1)],
            "top_k": [f"{name}.safetensors" for name in best.epochs(self.config) if name.startswith("top_")],
            "kept": {name: f"{name}.safetensors" for name in sorted(asked) if not name.startswith("top_")},
        }

    def _save(self, name: str, model: nn.Module, facts: dict[str, Any]) -> None:
        save_tensors(self.folder / f"{name}.safetensors", model.state_dict(), {"key": self.key, **facts})


def remove_unnamed(folder: Path) -> None:
    """Remove the weights without a name; what was published stays."""
    _remove_all(folder, _NAMELESS)


def _remove_all(folder: Path, names: re.Pattern[str]) -> None:
    for path in _matching(folder, names):
        remove(path)


def _matching(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """Return the files of these names, .json first: without it the other of a pair is none."""
    return sorted(path for path in folder.glob("*") if names.fullmatch(path.name))
