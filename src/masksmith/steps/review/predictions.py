"""What is predicted of a project by now: of all that is asked for, or of the folds that are done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from masksmith.core.errors import InputError
from masksmith.metrics import Metric
from masksmith.postprocess.rules import AnyRule, plain_of, read_rule
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.project.members import Member, read_members


@dataclass(frozen=True)
class Predicted:
    """The predictions of a project, and how a mask is made of them."""

    members: Sequence[Member] = ()
    rule: AnyRule | None = None
    metric: Metric | None = None
    oof: Mapping[str, MeanCodes] = field(default_factory=dict)
    """Of each training image that is held out and predicted."""
    test: MeanCodes | None = None
    said: str = ""
    """Why there is less than there might be, for people."""
    number: int = 0
    """Of the look at the project that found it."""


def version_of(root: Path, run: str | None) -> tuple[object, ...]:
    """Return what changes when there are other predictions or another rule: files and their times."""
    project = Project(root)  # not opened: that reads the catalogue, half a second for 100,000 images
    try:
        members = read_members(project, run)
    except InputError as error:
        return (str(error),)
    paths = [member.codes(stage) for member in members for stage in ("oof", "test")]
    paths += [project.tuning_json, project.members_json, *{member.run.ledger.path for member in members}]
    found = []
    for path in paths:
        try:
            found.append((str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return tuple(found)


def find_predictions(project: Project, run: str | None) -> Predicted:
    """Return what is predicted; where nothing is, or it is of other weights, it says so and is empty."""
    from masksmith.steps.predict import oof_of, test_of  # torch: not before it is needed

    try:
        members = read_members(project, run)
    except InputError as error:
        return Predicted(said=str(error))
    held = [member for member in members if member.codes("oof").exists()]
    tested = [member for member in members if member.codes("test").exists()]
    said = []
    if not held:
        said.append(
            f"no image is predicted yet: wait for the training, or run `masksmith train {project.root}` and "
            f"`masksmith predict {project.root}`"
        )
    try:
        oof = oof_of(project, held) if held else {}
        test = test_of(project, tested) if tested and project.catalog.test else None
    except InputError as error:
        return Predicted(said=str(error))
    rule, metric = _rule(project, members), project.metric(members[0].scored_by)
    return Predicted(members, rule, metric, oof, test, "\n".join(said))


def _rule(project: Project, members: Sequence[Member]) -> AnyRule:
    """Return the tuned rule of these members, or the plain one where there is none yet."""
    from masksmith.steps.tune import need_tuning

    try:
        return read_rule(need_tuning(project, members)["rule"])
    except InputError:
        return plain_of(project.target, members[0].scored_by.tuning)
