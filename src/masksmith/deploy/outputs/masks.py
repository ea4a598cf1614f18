"""The masks that are on the disk already, for what is written of several images together."""

from dataclasses import dataclass
from pathlib import Path

from masksmith.core.arrays import AnyMask
from masksmith.data.target import Target
from masksmith.submission.formats import read_labels, read_mask


@dataclass(frozen=True)
class Masks:
    """Masks by id, read when asked for."""

    folder: Path
    target: Target
    dialect: str = "tgs"
    """Of run-lengths."""

    def __getitem__(self, name: str) -> AnyMask:
        if self.target.task == "multilabel":
            return read_labels(self.folder, name, self.target)
        return read_mask(self.folder / f"{name}.png", self.target)
