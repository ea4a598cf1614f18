"""Ensemble members: the trained folds whose probabilities are averaged.

Held-out images of a fold are predicted by the mean of the members trained without that fold, test images by the mean of
all members. Weights are equal except in an ensemble of recipes, where each recipe has its own. A member trained on all
images (a refit) has no held-out images and predicts test images only.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.folds.config import ALL, fold_name
from masksmith.prediction.means import Blend
from masksmith.project.folder import Project
from masksmith.project.runs import Run
from masksmith.recipes.ensemble import AnyRecipe, Ensemble


@dataclass(frozen=True)
class Member:
    """One fold of one run; ``interim`` if its training was stopped."""

    run: Run
    fold: int
    interim: bool = False
    weight: float = 1.0
    """Weight of its recipe in an ensemble."""
    ensemble: Ensemble | None = None
    """The ensemble of recipes that it belongs to."""
    variant: str = ""
    """What it is tried with, such as a kind of weights; empty: it predicts as its recipe says."""
    view: str = ""
    """The view alone that it is tried with (see steps/ablate)."""
    blend: Blend | None = None
    """The mean of a blend that it is part of (see steps/blend)."""

    @property
    def scored_by(self) -> AnyRecipe:
        """Its ensemble, or its own recipe: the metric and tuning that the members are scored with."""
        return self.ensemble or self.run.recipe

    @property
    def part(self) -> str:
        """Name of what it is a fold of: its run, with the weights that it is tried with."""
        return self.run.path.name + (f" by {self.variant}" if self.variant else "")

    @property
    def name(self) -> str:
        """Its name in messages and files."""
        what = fold_name(self.fold).replace("_", " ")
        by = f" by {self.variant}" if self.variant else ""
        by += f" seen as {self.view}" if self.view else ""
        return f"{self.run.path.name}/{'interim ' if self.interim else ''}{what}{by}"

    @property
    def weights(self) -> Path:
        """File of its weights."""
        if self.interim:
            return self.run.interim / f"{fold_name(self.fold)}.safetensors"
        return self.run.final(self.fold)

    def codes(self, stage: str) -> Path:
        """File of its probabilities: ``stage`` is "oof" or "test"."""
        if self.variant or self.view:
            folder = self.run.path / "weights" / self.variant if self.variant else self.run.path
            folder = folder / "views" / self.view if self.view else folder
            return folder / stage / f"{fold_name(self.fold)}.npy"
        if self.interim:
            return self.run.interim / stage / f"{fold_name(self.fold)}.npy"
        return self.run.oof(self.fold) if stage == "oof" else self.run.test(self.fold)

    def entry(self, stage: str) -> str:
        """Its entry in the run's ledger."""
        if (self.variant or self.view) and stage != "train":
            view = f"/view-{self.view}" if self.view else ""
            return f"{fold_name(self.fold)}/{stage}{f'/{self.variant}' if self.variant else ''}{view}"
        return f"{'interim_' if self.interim else ''}{fold_name(self.fold)}/{stage}"

    def timed(self, stage: str) -> str:
        """Under which name the seconds of its predictions are noted in its run's times."""
        return " ".join(filter(None, (stage, str(self.fold), self.variant, self.view)))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        value = {"run": self.run.path.name, "fold": self.fold, "interim": self.interim}
        value |= {} if self.ensemble is None and self.blend is None else {"weight": self.weight}
        return value | ({"variant": self.variant} if self.variant else {})


def members_of_run(run: Run) -> list[Member]:
    """Return a member for each fold that the run's recipe asks for, the one of all images last."""
    if run.is_external:
        facts = run.external
        return [Member(run, fold, weight=float(facts["weight"])) for fold in facts["folds"]]
    folds = run.recipe.folds
    held_out = [Member(run, fold) for fold in folds.trained]
    return [*held_out, Member(run, ALL)] if folds.refit else held_out


def weights_of_test(members: Sequence[Member]) -> list[float]:
    """Return the weight of each member in the prediction of test images.

    In an ensemble, and beside probabilities of another program, the members of a run share the weight of their recipe,
    so that a recipe of five folds does not count more than one of two. Held-out images need no such sharing: each
    recipe predicts them with one member.
    """
    of_part = Counter(member.part for member in members)
    external = any(member.run.is_external for member in members)
    return [
        member.weight / of_part[member.part] if member.ensemble or member.blend or external else member.weight
        for member in members
    ]


def with_weights(member: Member, kind: str) -> Member:
    """Return a member that predicts with weights of a kind, beside its own predictions."""
    prediction = member.run.recipe.prediction.model_copy(update={"weights": kind})
    recipe = member.run.recipe.model_copy(update={"prediction": prediction})
    return replace(member, run=replace(member.run, recipe=recipe), variant=kind)


def external_runs(project: Project) -> list[Run]:
    """Return the runs whose probabilities another program made, by name; a stack of this project's own is none."""
    runs = [project.run(path.parent.name) for path in sorted(project.runs_dir.glob("*/external.json"))]
    return [run for run in runs if "stacked_on" not in run.external]


def with_external(project: Project, members: Sequence[Member]) -> list[Member]:
    """Return members of our own and, behind them, those whose probabilities another program made."""
    own = [member for member in members if not member.run.is_external]
    return [*own, *(member for run in external_runs(project) for member in members_of_run(run))]


def write_members(project: Project, members: Sequence[Member]) -> None:
    """Make these (one or more) the members that the next verbs use."""
    first = next((member.run for member in members if not member.run.is_external), members[0].run)
    if list(members) == members_of_run(first):
        project.make_current(first)
        return
    value: dict[str, Any] = {"members": [member.to_json() for member in members]}
    if (ensemble := members[0].ensemble) is not None:
        value["ensemble"] = ensemble.model_dump(mode="json")
    if (blend := members[0].blend) is not None:
        value["blend"] = blend.to_json()
    if not project.members_json.exists() or read_json(project.members_json) != value:
        project.make_current(first)
        write_json(project.members_json, value)


def read_members(project: Project, run: str | None) -> list[Member]:
    """Return the trained folds of a run by name, or the current members with those of other programs.

    Raises:
        InputError: No such run, or members.json was edited.
    """
    if run is not None:
        return _members_of_run(project, run)
    if not project.has_current and (found := with_external(project, [])):
        return found  # nothing is trained here
    listed = read_json(project.members_json) if project.members_json.exists() else None
    own = _members_of_run(project, None) if listed is None else _members_of_list(project, listed)
    return own if own[0].blend else with_external(project, own)  # a blend says which of them it takes


def remember_members(project: Project) -> dict[str, Any]:
    """Return what the present members are, as plain values for ``members_before`` and ``use_members_before``."""
    listed = read_json(project.members_json) if project.members_json.exists() else None
    run = None if listed is not None or not project.has_current else project.run().path.name
    return {"members_json": listed, "run": run}


def members_before(project: Project, before: dict[str, Any]) -> list[Member]:
    """Return the members that remember_members has noted, with those of other programs.

    Raises:
        InputError: A run is no longer there.
    """
    if before["members_json"] is None and before["run"] is None:
        return with_external(project, [])
    listed = before["members_json"]
    own = _members_of_run(project, before["run"]) if listed is None else _members_of_list(project, listed)
    return own if own[0].blend else with_external(project, own)


def use_members_before(project: Project, before: dict[str, Any]) -> None:
    """Make the members that remember_members has noted those that the next verbs use."""
    if before.get("members_json") is not None:
        write_json(project.members_json, before["members_json"])
    elif before.get("run") is not None:
        project.make_current(project.run(before["run"]))
    else:  # other programs' alone
        project.forget_current()


def _members_of_run(project: Project, run: str | None) -> list[Member]:
    asked = members_of_run(project.run(run))
    trained = [member for member in asked if member.weights.exists()]
    return trained if run is not None and trained else asked


def _members_of_list(project: Project, value: Any) -> list[Member]:  # noqa: ANN401
    where = project.members_json
    try:
        plain = value.get("ensemble")
        ensemble = None if plain is None else validate(Ensemble, plain, where=str(where))
        blend = Blend.from_json(value["blend"], str(where)) if "blend" in value else None
        found = []
        for entry in value["members"]:
            weight = float(entry.get("weight", 1.0))
            run = project.run(entry["run"])
            one = Member(run, entry["fold"], entry["interim"], weight, ensemble, blend=blend)
            found.append(with_weights(one, entry["variant"]) if "variant" in entry else one)
        return found
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: not what masksmith writes; remove it") from error
