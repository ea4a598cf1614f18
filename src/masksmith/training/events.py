"""``metrics.jsonl``, the log of record: one JSON object an event; curves and pages are made from it."""

import json
from pathlib import Path
from typing import Any

from masksmith.files import append_text, write_text


class EventLog:
    """Appends events of one fold; a resumed training first drops what came after its checkpoint."""

    def __init__(self, path: Path, *, fold: int) -> None:
        self.path = path
        self.fold = fold

    def write(self, epoch: float, split: str, **values: float | str) -> None:
        """Append one event for each value: {fold, epoch, split, name, value}."""
        lines = [
            json.dumps({"fold": self.fold, "epoch": epoch, "split": split, "name": name, "value": value})
            + "\n"
            for name, value in values.items()
        ]
        append_text(self.path, "".join(lines))

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
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def threads_of(path: Path, *, fold: int) -> int | None:
    """Return the threads that a fold's training took last, None if those of its recipe."""
    taken = [
        event["value"]
        for event in read_events(path)
        if event["fold"] == fold and (event["split"], event["name"]) == ("event", "threads")
    ]
    return taken[-1] if taken else None
