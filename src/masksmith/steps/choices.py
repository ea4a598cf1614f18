"""What was chosen on the very held-out images that are scored: such choices make the score a little too high.

They are named beside it, in ``tuning.json``, in the headline and in the report. The nested score removes the optimism
of the rule alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from masksmith.core.files import read_json
from masksmith.folds.config import ALL
from masksmith.project.folder import Project
from masksmith.project.members import Member
from masksmith.steps.predict import chose_runtime
from masksmith.training.config import CHOSEN_ON_HELD_OUT, TrainingConfig, chosen_on_held_out


def choices_of(project: Project, members: Sequence[Member]) -> list[str]:
    """Return what was chosen on the folds that the members are scored on, each choice in a few words."""
    stacked = any("stacked_on" in member.run.external for member in members if member.run.is_external)
    names = (member.run.path.name for member in members if member.run.is_external)
    external = {} if stacked else dict.fromkeys(names)
    scored = [member for member in members if member.fold != ALL and not member.run.is_external]
    found = [
        "epoch" if any(_chose_epoch(project, member) for member in scored) else "",
        "weights (nested)" if any(_chose_weights(member) for member in scored) else "",
        "learning rate" if any(_chose_rate(project, member) for member in scored) else "",
        _chosen_members(project, scored),
        "ensemble (nested)" if members[0].blend is not None and not stacked else "",
        "trees (nested)" if stacked else "",
        "prediction runtime" if any(chose_runtime(member) for member in scored) else "",
        *(f"whatever {name} was made with" for name in external),
    ]
    return [words for words in found if words]


def plan_of(project: Project, members: Sequence[Member]) -> dict[str, Any] | None:
    """Return plan.json if these members are of its units."""
    members = [member for member in members if not member.run.is_external]
    chosen = bool(members) and (members[0].ensemble is not None or members[0].blend is not None)
    if not members or not project.plan_json.exists() or chosen:
        return None
    plan: dict[str, Any] = read_json(project.plan_json)
    units = {_place(unit) for unit in plan["units"]}
    return plan if {(member.run.path.name, member.fold) for member in members} <= units else None


def _place(unit: dict[str, Any]) -> tuple[str, int]:
    return unit["run"], unit["fold"]


def _chosen_members(project: Project, members: Sequence[Member]) -> str:
    """Say how many members of a plan joined those of their fold by its score, and how many did not; empty for none."""
    plan = plan_of(project, members) if members else None
    if plan is None:
        return ""
    ours = {(member.run.path.name, member.fold) for member in members}
    if any(unit["joined"] and _place(unit) not in ours for unit in plan["units"]):
        return ""  # some of the plan's members, which a person picked
    count = project.folds.count  # further repeats predict images that the first has predicted
    joined = len(ours) - len({fold % count for _, fold in ours})
    left_out = sum(unit["joined"] is False and unit["score_after"] is not None for unit in plan["units"])
    if not joined:
        return f"{left_out} member{'s' if left_out > 1 else ''} left out" if left_out else ""
    return f"{joined} of {len(ours)} members" + (f" ({left_out} more left out)" if left_out else "")


def _chose_epoch(project: Project, member: Member) -> bool:
    """Whether the fold decided at which epoch a training ended, went on from, or has its weights from."""
    recipe = member.run.recipe
    trainings = list(_trainings(project, member))
    selected = (
        trainings[1:] if member.interim else trainings
    )  # an unfinished training has selected nothing yet
    return (
        any(training.select in CHOSEN_ON_HELD_OUT for training in selected)
        or any(_ends_by_fold(training) for training in trainings)
        or (_are_chosen(recipe.prediction.weights) and not member.interim)
    )


def _chose_weights(member: Member) -> bool:
    """Whether the kind of weights was chosen by `masksmith weights`."""
    path = member.run.weights_json
    return path.exists() and read_json(path)["chosen"] == member.run.recipe.prediction.weights


def _are_chosen(weights: str) -> bool:
    """Whether the weights that predict are chosen by the fold."""
    return weights == "top_k" or chosen_on_held_out(weights)


def _ends_by_fold(training: TrainingConfig) -> bool:
    stalls = [training.early_stop, *(stage.until_plateau for stage in training.stages)]
    watches = any(stall is not None and stall.watch != "loss" for stall in stalls)
    return watches or any(stage.start == "best" for stage in training.stages)


def _chose_rate(project: Project, member: Member) -> bool:
    """Whether the learning rate fell when the fold's score or loss stalled."""
    schedules = [stage.schedule for one in _trainings(project, member) for stage in one.stages]
    return any(one is not None and one.name == "plateau" and one.watch != "loss" for one in schedules)


def _trainings(project: Project, member: Member) -> Iterator[TrainingConfig]:
    """Yield how a member was trained, and then how the weights were that it started from, and so on."""
    training = member.run.recipe.training
    yield training
    while training.start_run is not None:
        training = project.run(training.start_run).recipe.training
        yield training
