"""Members: the trained folds whose probabilities are averaged into one prediction.

A fold's held-out images are predicted by the mean of the members trained without that fold, test images by the
mean of all members. All weigh the same. A member trained on all images (a refit) has no held-out images: it predicts
test images only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masksmith.errors import InputError
from masksmith.files import read_json, write_json
from masksmith.project import Project, Run
from masksmith.splits import ALL, fold_name


@dataclass(frozen=True)
class Member:
    """One fold of one run; ``interim`` where its training is not finished."""

    run: Run
    fold: int
    interim: bool = False

    @property
    def name(self) -> str:
        """Its name for people and files."""
        what = fold_name(self.fold).replace("_", " ")
        return f"{self.run.path.name}/{'interim ' if self.interim else ''}{what}"

    @property
    def weights(self) -> Path:
        """File of its weights."""
        if self.interim:
            return self.run.interim / f"{fold_name(self.fold)}.safetensors"
        return self.run.final(self.fold)

    def codes(self, stage: str) -> Path:
        """File of its probabilities: ``stage`` is "oof" or "test"."""
        if self.interim:
            return self.run.interim / stage / f"{fold_name(self.fold)}.npy"
        return self.run.oof(self.fold) if stage == "oof" else self.run.test(self.fold)

    def entry(self, stage: str) -> str:
        """Its line in the run's ledger."""
        return f"{'interim_' if self.interim else ''}{fold_name(self.fold)}/{stage}"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"run": self.run.path.name, "fold": self.fold, "interim": self.interim}


def members_of_run(run: Run) -> list[Member]:
    """Return a member for each fold that the run's recipe asks for, the one of all images last."""
    folds = run.recipe.folds
    held_out = [Member(run, fold) for fold in range(folds.train or folds.count)]
    return [*held_out, Member(run, ALL)] if folds.refit else held_out


def write_members(project: Project, members: Sequence[Member]) -> None:
    """Make these (one or more) the members that the next verbs mean."""
    first = members[0].run
    if list(members) == members_of_run(first):
        project.make_current(first)
        return
    value = {"members": [member.to_json() for member in members]}
    if not project.members_json.exists() or read_json(project.members_json) != value:
        project.make_current(first)
        write_json(project.members_json, value)


def read_members(project: Project, run: str | None) -> list[Member]:
    """Return the trained folds of a run by name, or the members that were worked on last.

    Raises:
        InputError: No such run, or members.json was edited.
    """
    if run is None and project.members_json.exists():
        try:
            entries = read_json(project.members_json)["members"]
            return [Member(project.run(entry["run"]), entry["fold"], entry["interim"]) for entry in entries]
        except (KeyError, TypeError) as error:
            raise InputError(f"{project.members_json}: not what masksmith writes; remove it") from error
    asked = members_of_run(project.run(run))
    trained = [member for member in asked if member.weights.exists()]
    return trained if run is not None and trained else asked
