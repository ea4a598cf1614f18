"""A run: one recipe trained on the project's folds, and the paths of its files.

An external run holds probabilities that another program made (``masksmith member add``) in the place of weights.
"""

import json
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_text
from masksmith.core.ledger import Ledger
from masksmith.core.locks import update_json
from masksmith.folds.config import fold_name
from masksmith.recipes.recipe import Recipe
from masksmith.training.config import unshared_batches
from masksmith.training.events import read_events

_LIBRARIES = (
    *(
        "masksmith",
        "torch",
        "torchvision",
        "timm",
        "segmentation-models-pytorch",
        "lightning-fabric",
        "numpy",
    ),
    *("opencv-python-headless", "openvino"),
)


@dataclass(frozen=True)
class Run:
    """One recipe trained on the project's folds: ``runs/NAME-HASH/``."""

    path: Path
    recipe: Recipe

    @property
    def ledger(self) -> Ledger:
        """The finished stages of the run."""
        return Ledger(self.path)

    def events(self, fold: int) -> Path:
        """Log of a fold's events; where an older masksmith trained it, that of all folds together."""
        own, all_folds = self.path / f"metrics.{fold_name(fold)}.jsonl", self.path / "metrics.jsonl"
        return own if own.exists() or not all_folds.exists() else all_folds

    def own_events(self, fold: int) -> Path:
        """Return the log that a training of a fold writes; events of an older masksmith's are taken over.

        Each fold has one, so that several can be trained at once.
        """
        own, known = self.path / f"metrics.{fold_name(fold)}.jsonl", self.events(fold)
        if known != own:
            kept = [event for event in read_events(known) if event.get("fold") == fold]
            write_text(own, "".join(json.dumps(event) + "\n" for event in kept))
        return own

    @property
    def external_json(self) -> Path:
        """What is known of probabilities that another program made."""
        return self.path / "external.json"

    @property
    def is_external(self) -> bool:
        """Whether another program made its probabilities."""
        return self.external_json.exists()

    @property
    def external(self) -> dict[str, Any]:
        """What is known of an external run: ``folds``, ``weight``, ``score``, where it came from."""
        value: dict[str, Any] = read_json(self.external_json)
        return value

    @property
    def weights_json(self) -> Path:
        """The weights that were compared."""
        return self.path / "weights.json"

    @property
    def times(self) -> Path:
        """How long predictions took, in seconds, in the process that finished them."""
        return self.path / "times.json"

    def note_time(self, what: str, seconds: float) -> None:
        """Write how long something took, in place of what was there of it before."""
        update_json(self.times, lambda known: known | {what: round(seconds, 3)})

    def read_times(self) -> dict[str, float]:
        """Return what was noted: "oof 0" -> seconds."""
        return read_json(self.times) if self.times.exists() else {}

    def checkpoints(self, fold: int) -> Path:
        """Folder of a fold's checkpoints."""
        return self.path / "checkpoints" / fold_name(fold)

    def final(self, fold: int) -> Path:
        """Weights of a trained fold."""
        return self.checkpoints(fold) / "final.safetensors"

    @property
    def interim(self) -> Path:
        """Folder of weights and predictions of a training that was stopped."""
        return self.path / "interim"

    def oof(self, fold: int) -> Path:
        """Out-of-fold probabilities of a fold."""
        return self.path / "oof" / f"{fold_name(fold)}.npy"

    def test(self, fold: int) -> Path:
        """Test probabilities of a fold; an external run has one file for all."""
        if self.is_external:
            return self.path / "test" / "all_folds.npy"
        return self.path / "test" / f"{fold_name(fold)}.npy"

    def pseudo(self, fold: int) -> Path:
        """Pseudo-labels that a fold is trained on: masks of the test images on which its teacher is confident."""
        return self.path / "pseudo" / f"{fold_name(fold)}.npy"

    def soft_labels(self, fold: int) -> Path:
        """Probabilities of the images in ``pseudo``, 0…255, where the labels are soft."""
        return self.path / "pseudo" / f"{fold_name(fold)}.soft.npy"


def with_free_parts(resolved: Recipe, asked: Recipe) -> Recipe:
    """Return ``resolved`` with the parts of ``asked`` that do not determine the weights.

    Raises:
        InputError: So many devices cannot share the batches of ``resolved``.
    """
    folds = resolved.folds.model_copy(update={"train": asked.folds.train, "refit": asked.folds.refit})
    seen = resolved.input.model_copy(update={"view": asked.input.view})
    training = resolved.training.model_copy(update={"devices": asked.training.devices})
    if (problem := unshared_batches(training)) is not None:
        raise InputError(f"training.{problem}")
    parts = {"folds": folds, "input": seen, "training": training}
    parts |= {"prediction": asked.prediction, "tuning": asked.tuning}
    return resolved.model_copy(update=parts)


def environment() -> str:
    """Return the machine, and the installed versions of Python and the libraries, one a line."""
    from masksmith.training.machine import describe_machine  # imports torch

    lines = [f"python {platform.python_version()}", f"platform {platform.platform()}"]
    lines.append(f"machine {describe_machine()}")
    for name in _LIBRARIES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} not installed")
    return "\n".join(lines) + "\n"
