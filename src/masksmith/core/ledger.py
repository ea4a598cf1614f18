"""``stage.json``: which stages of a folder are done."""

from pathlib import Path

from masksmith.core.files import read_json
from masksmith.core.locks import update_json


class Ledger:
    """The finished stages of a folder, each with the key of its inputs.

    A stage is skipped when it is recorded with the same key. The key hashes everything that the stage reads and the
    version of its code. Several processes may write it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "stage.json"

    def _read(self) -> dict[str, str]:
        return read_json(self.path) if self.path.exists() else {}

    def is_done(self, stage: str, key: str) -> bool:
        """Whether ``stage`` ran to its end with this key."""
        return self._read().get(stage) == key

    def knows(self, stage: str) -> bool:
        """Whether anything is recorded for ``stage``."""
        return stage in self._read()

    def key_of(self, stage: str) -> str | None:
        """Return the key that ``stage`` ran with, None where nothing is recorded."""
        return self._read().get(stage)

    def forget(self, stage: str) -> None:
        """Record that ``stage`` is not done: its outputs are about to be replaced."""
        if self.knows(stage):
            update_json(self.path, lambda entries: {name: entries[name] for name in entries if name != stage})

    def mark_done(self, stage: str, key: str) -> None:
        """Record that ``stage`` ran to its end with this key."""
        if not self.is_done(stage, key):
            update_json(self.path, lambda entries: entries | {stage: key})
