"""Probabilities of other programs as members: added, listed, removed.

They are kept like those of a run of this project, in ``runs/NAME/``, with ``external.json`` in the place of weights,
and take part in tuning, submission and report from then on.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masksmith.core.errors import InputError
from masksmith.core.files import read_json, remove, remove_tree, write_json, write_text
from masksmith.core.progress import logger, track
from masksmith.data.store import Store, StoreWriter
from masksmith.data.table import need_column, parse_table
from masksmith.folds.table import Folds
from masksmith.prediction.external import ExternalCodes
from masksmith.project.folder import Project
from masksmith.project.members import external_runs, members_of_run, read_members
from masksmith.project.runs import Run, environment
from masksmith.recipes.recipe import Recipe
from masksmith.recipes.sources import NAME
from masksmith.steps.folds import folds_of
from masksmith.steps.out_of_fold import plain_score
from masksmith.steps.predict import oof_of
from masksmith.steps.train import external_key


@dataclass(frozen=True)
class MemberLine:
    """A run among the members, for people."""

    name: str
    external: bool
    folds: list[int]
    weight: float
    score: float | None
    """Of the plain rule on its held-out images; None where no score is known yet."""
    metric: str

    def __str__(self) -> str:
        score = "not scored yet" if self.score is None else f"{self.metric} {self.score:.4f} (plain)"
        kind = "another program's" if self.external else "trained here"
        return f"{self.name}: {kind}, folds {' '.join(map(str, self.folds))}, weight {self.weight:g}, {score}"


# --- add ---


def add_member(  # noqa: C901  (refusals, one after the other)
    project: Project,
    recipe: Recipe,
    name: str,
    oof: Path,
    test: Path | None,
    *,
    folds: Path | None = None,
    weight: float = 1.0,
) -> MemberLine:
    """Take the probabilities of another program in as a member; see pipeline.add_member.

    Args:
        project: Checked.
        recipe: Its metric, folds and tuning are what the member is scored with where nothing is trained here.
        name: Of the member.
        oof: Of the training images, each predicted by a model that has not seen its fold.
        test: Of the test images.
        folds: CSV with the columns ``id`` and ``fold`` that they were made with; None: ``folds.csv`` in ``oof``.
        weight: Beside the 1 of each run of this project.

    Raises:
        InputError: A name that is taken; images of other ids, sizes or numbers of planes; values that are no
            probabilities; other folds. All images that are wrong are in the message.
    """
    run = _new_run(project, recipe, name)
    if not (weight > 0 and np.isfinite(weight)):
        raise InputError(f"--weight {weight:g}: expected a number above 0")
    names = [sample.id for sample in project.catalog.test]
    if names and test is None:
        raise InputError(f"--test: expected its probabilities of the {len(names)} test images, too")
    if test is not None and not names:
        raise InputError(f"--test {test}: the data have no test images; leave it out")
    path = folds or (oof / "folds.csv" if (oof / "folds.csv").is_file() else None)
    given = None if path is None else _read_folds(path, [sample.id for sample in project.catalog.train])
    if given is not None and not project.folds_csv.exists():
        counted = recipe.folds.model_copy(update={"count": len(set(given.values()))})
        recipe = recipe.model_copy(update={"folds": counted})
    made = folds_of(project, recipe, given=given)
    if path is not None and given is not None:
        _refuse_other_folds(made, given, path, project.folds_csv)
    else:
        logger.warning(
            "%s: no table says its folds; it is taken to be made with those of %s (--folds FILE has them compared)",
            oof, project.folds_csv,
        )  # fmt: skip
    probs = _find(oof, project, [row.id for row in made.rows], whose="training")
    covered = _covered(made, probs, project)
    tested = None
    if test is not None:
        tested = _find(test, project, names, whose="test")
        missing = {name for name in names if name not in tested.files} - set(project.blank_test)
        _refuse_ids(test, unknown=set(), missing=missing, whose="test")
    problems: list[str] = []
    try:
        for fold in covered:
            _store(project, probs, made.inside(fold), run.oof(fold), problems, stage="oof")
        if tested is not None:
            _store(project, tested, names, run.path / "test" / "all_folds.npy", problems, stage="test")
        if problems:
            raise InputError(f"{len(problems)} images cannot be used:\n  " + "\n  ".join(problems))
        for one in filter(None, (probs, tested)):
            one.check_range()
        _finish(project, run, recipe, covered, weight, origin=[str(oof), str(test or "")])
    except BaseException:
        remove_tree(run.path)
        raise
    line = _line_of(project, Run(run.path, recipe))
    logger.info("%s", line)
    return line


def _new_run(project: Project, recipe: Recipe, name: str) -> Run:
    if not re.fullmatch(NAME, name):
        raise InputError(
            f"{name!r}: no name for a member; expected letters, digits, - and _, such as notebook-1"
        )
    run = Run(project.runs_dir / name, recipe)
    if run.path.exists():
        what = (
            "`masksmith member remove` it first" if run.is_external else "a run of this project is called so"
        )
        raise InputError(f"{name}: there already, {what}; or choose another name")
    return run


def _finish(
    project: Project,
    run: Run,
    recipe: Recipe,
    covered: Sequence[int],
    weight: float,
    *,
    origin: Sequence[str],
) -> None:
    """Write what makes the folder a run; external.json, by which it is found, comes last."""
    facts = {"folds": list(covered), "weight": weight, "from": list(origin), "score": None}
    write_text(run.path / "environment.txt", environment())
    project.import_run(run.path.name, recipe)
    write_json(run.external_json, facts)
    key = external_key(project, run)
    for member in members_of_run(run):
        for stage in ("oof", "test"):
            run.ledger.mark_done(member.entry(stage), key)
    score = plain_score(project, recipe, oof_of(project, members_of_run(run)))
    write_json(run.external_json, facts | {"score": score})


def _read_folds(path: Path, ids: Sequence[str]) -> dict[str, int]:
    """Return id -> fold of a table.

    Raises:
        InputError: No such columns, no whole numbers, an id twice, or other ids than the training images'.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a CSV with the columns id and fold")
    table = parse_table(path.read_bytes(), where=str(path))
    for column in ("id", "fold"):
        need_column(table, column)
    found: dict[str, int] = {}
    wrong = [row["id"] for row in table.rows if not row["fold"].strip().isdecimal()]
    if wrong:
        raise InputError(f"{path}: the fold of {', '.join(wrong)} is no whole number from 0 on")
    for row in table.rows:
        if found.setdefault(row["id"], int(row["fold"])) != int(row["fold"]):
            raise InputError(f"{path}: the id {row['id']!r} is in two folds; expected each id once")
    _refuse_ids(path, unknown=set(found) - set(ids), missing=set(ids) - set(found), whose="training")
    order = {fold: at for at, fold in enumerate(sorted(set(found.values())))}
    return {name: order[fold] for name, fold in found.items()}


def _refuse_other_folds(made: Folds, given: Mapping[str, int], path: Path, ours: Path) -> None:
    """Refuse folds that hold other images together; their numbers may differ."""
    pairs = {(row.fold, given[row.id]) for row in made.rows}
    if len(pairs) == made.count == len(set(given.values())):
        return
    of_ours: dict[int, int] = {}
    for row in made.rows:
        of_ours.setdefault(row.fold, given[row.id])
    moved = [row.id for row in made.rows if of_ours[row.fold] != given[row.id]]
    raise InputError(
        f"{path}: other folds than those of {ours} ({len(set(given.values()))} beside {made.count}; {len(moved)} "
        f"images are held out with others, such as {', '.join(map(repr, moved[:3]))}); predict again with a model "
        f"that has not seen the folds of {ours}, or begin a project with these folds"
    )


def _find(place: Path, project: Project, names: Sequence[str], *, whose: str) -> ExternalCodes:
    found = ExternalCodes.find(place, project.target)
    _refuse_ids(place, unknown=set(found.files) - set(names), missing=set(), whose=whose)
    return found


def _refuse_ids(place: Path, *, unknown: set[str], missing: set[str], whose: str) -> None:
    what = [f"{len(missing)} {whose} images are missing: {', '.join(sorted(missing))}"] if missing else []
    what += [f"{len(unknown)} are no {whose} images: {', '.join(sorted(unknown))}"] if unknown else []
    if what:
        raise InputError(f"{place}: {'; '.join(what)}; expected the ids of the {whose} images")


def _covered(made: Folds, probs: ExternalCodes, project: Project) -> list[int]:
    """Return the folds whose images with content are all there.

    Raises:
        InputError: A part of a fold is missing.
    """
    covered, partly = [], set()
    for fold in range(made.count):
        needed = [name for name in made.inside(fold) if name not in project.blank_train]
        there = [name for name in needed if name in probs.files]
        if there and len(there) == len(needed):
            covered.append(fold)
        elif there:
            partly |= set(needed) - set(there)
    if partly or not covered:
        _refuse_ids(probs.place, unknown=set(), missing=partly, whose="training")
        raise InputError(f"{probs.place}: no training image of any fold; expected those of whole folds")
    return covered


def _store(
    project: Project,
    probs: ExternalCodes,
    names: Sequence[str],
    path: Path,
    problems: list[str],
    *,
    stage: str,
) -> None:
    """Write codes, and add every image that is wrong to the problems; images without content may be missing."""
    images: Store = project.cache.test_images if stage == "test" else project.cache.train_images
    planes = project.target.outputs
    writer = StoreWriter(path, [(name, (*images.shape(name), planes)) for name in names], dtype=np.uint16)
    try:
        for name in track(names, total=len(names), what=f"reading {stage} probabilities"):
            hw = images.shape(name)
            try:
                codes = probs.read(name, hw) if name in probs.files else np.zeros((*hw, planes), np.uint16)
            except InputError as error:
                problems.append(str(error))
                continue
            if not problems:
                writer.write(name, codes)
        if not problems:
            writer.close()
    finally:
        remove(writer.temporary)  # not there any more where it was closed


# --- list, remove ---


def list_members(project: Project) -> list[MemberLine]:
    """Return a line for each run among the present members.

    Raises:
        InputError: Nothing is trained or added yet.
    """
    members = read_members(project, None)
    names = dict.fromkeys(member.run.path.name for member in members)
    each = {name: [one for one in members if one.run.path.name == name] for name in names}
    return [
        _line_of(project, own[0].run)
        if own[0].run.is_external
        else MemberLine(
            name, False, sorted({one.fold for one in own}), own[0].weight, _stored_score(project, name),
            own[0].scored_by.metric,
        )
        for name, own in each.items()
    ]  # fmt: skip


def _stored_score(project: Project, name: str) -> float | None:
    """Return the plain score of a run that the tuning holds, if it holds one."""
    tuning = read_json(project.tuning_json) if project.tuning_json.exists() else {}
    for row in (tuning.get("ensemble") or {}).get("table", ()):
        if row["run"] == name:
            return float(row["score"])
    same = {member.partition("/")[0] for member in tuning.get("members", ())} == {name}
    return float(tuning["scores"]["plain"]) if same else None


def _line_of(project: Project, run: Run) -> MemberLine:
    facts, metric = run.external, read_members(project, None)[0].scored_by.metric
    return MemberLine(run.path.name, True, facts["folds"], facts["weight"], facts["score"], metric)


def remove_member(project: Project, name: str) -> None:
    """Remove the probabilities of another program.

    Raises:
        InputError: No such member, or a run of this project.
    """
    runs = {run.path.name: run for run in external_runs(project)}
    if name not in runs:
        have = ", ".join(runs) or "none"
        raise InputError(
            f"{name}: no member of another program; there are: {have}. Own runs go with `masksmith clean`"
        )
    used = read_members(project, None)
    if used[0].blend and any(member.run.path.name == name for member in used):
        raise InputError(
            f"{name}: the blend that is used takes it; run `masksmith blend {project.root} --off` first"
        )
    remove(runs[name].external_json)  # from here on it is no member
    remove_tree(runs[name].path)
