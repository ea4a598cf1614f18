"""Runs of one or several projects beside each other: recipes, paired scores, curves and the pictures that changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masksmith.core.arrays import Rows
from masksmith.core.errors import InputError
from masksmith.core.randomness import stream
from masksmith.folds.config import ALL
from masksmith.metrics import Metric, metric_for
from masksmith.metrics.bootstrap import INTERVAL, resampled_scores
from masksmith.metrics.protocol import Groups
from masksmith.postprocess.bootstrap import paired_bootstrap
from masksmith.postprocess.rules import plain_of
from masksmith.postprocess.scoring import RuleMasks, score_rows
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.project.members import Member, read_members
from masksmith.reporting.compare import ComparedRun, CompareFacts, compare_json, sentence, write_compare
from masksmith.steps.out_of_fold import predictions_of
from masksmith.steps.predict import oof_of
from masksmith.training.events import read_events

_RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found and wrote."""

    page: Path
    """``compare.html``."""
    numbers: dict[str, Any]
    """What ``--json`` prints: scores, gains and intervals, differences of the recipes."""
    sentences: list[str]
    """How each run compares with the first."""

    def __str__(self) -> str:
        head = f"{self.numbers['metric']} on {self.numbers['images']} images that every run holds out"
        lines = [f"{run['score']:.4f}  {run['name']}" for run in self.numbers["runs"]]
        left = [f"left out: {line}" for line in self.numbers["left_out"]]
        return "\n".join([head, *lines, *self.sentences, *left, str(self.page)])


@dataclass(frozen=True)
class _Side:
    name: str
    project: Project
    members: list[Member]
    oof: dict[str, MeanCodes]

    @property
    def ids(self) -> list[str]:
        """Ids of the held-out images with content."""
        blank = self.project.blank_train
        return [row.id for row in self.project.folds.rows if row.id in self.oof and row.id not in blank]


def compare_projects(
    roots: Sequence[Path], *, runs: Sequence[str] = (), metric: str | None = None, out: Path | None = None
) -> Comparison:
    """Compare the runs of projects and write the page; see pipeline.compare.

    Raises:
        InputError: Other data or another metric, a run that is not there, fewer than two runs with held-out
            predictions, or fewer than two images that all of them hold out.
    """
    repeated = sorted(
        {str(root) for root in roots if [one.resolve() for one in roots].count(root.resolve()) > 1}
    )
    if repeated:
        raise InputError(f"{', '.join(repeated)}: named twice; expected each project once")
    projects = [Project.open(root) for root in roots]
    _same_data(projects)
    sides, left_out = _sides(projects, runs)
    if len(sides) < 2:
        have = f"{sides[0].name} alone has" if sides else "no run has"
        why = "".join(f"\n  {line}" for line in left_out)
        raise InputError(
            f"{', '.join(map(str, roots))}: {have} held-out predictions; expected two runs or more: "
            f"train another recipe, wait for the training that is under way, or name another project{why}"
        )
    scored_by = _metric(sides, metric)
    names = _shared(sides)
    facts = _facts(sides, scored_by, names, left_out)
    page = out or projects[0].compare_html
    write_compare(page, facts)
    return Comparison(page, compare_json(facts), [sentence(facts, run) for run in facts.runs[1:]])


def _same_data(projects: Sequence[Project]) -> None:
    """Refuse projects of other data or another task than the first."""
    first, wrong = projects[0], list[str]()
    for project in projects[1:]:
        where, what = project.root, Path(project.catalog.root).name
        if project.catalog.content_hash != first.catalog.content_hash:
            wrong.append(
                f"{where}: other data ({what}, {len(project.catalog.train)} training images) than {first.root} "
                f"({Path(first.catalog.root).name}, {len(first.catalog.train)}); expected projects of the same data; "
                "compare those of each data set apart"
            )
        elif project.target != first.target:
            wrong.append(
                f"{where}: task {project.target.task} of {len(project.target.classes)} classes, and {first.root} has "
                f"{first.target.task} of {len(first.target.classes)}; expected the same task; "
                "begin one again with the same --task"
            )
    if wrong:
        raise InputError("\n".join(wrong))


def _sides(projects: Sequence[Project], runs: Sequence[str]) -> tuple[list[_Side], list[str]]:
    """Return what can be compared, in the order of ``runs`` or the current one of each project first; and what not.

    Raises:
        InputError: A run that is in no project.
    """
    found, left_out = list[_Side](), list[str]()
    asked, known, label = list[tuple[int, Project, str]](), set[str](), _labels(projects)
    for project in projects:
        there = sorted(path.parent.name for path in project.runs_dir.glob("*/recipe.yaml"))
        known |= set(there)
        current = project.run().path.name if project.has_current and not project.members_json.exists() else ""
        ordered = sorted(there, key=lambda name: (name != current, name))
        asked += [
            (runs.index(name) if runs else 0, project, name) for name in ordered if not runs or name in runs
        ]
        if not there:
            left_out.append(f"{project.root}: no run yet; run `masksmith train {project.root}` first")
    if missing := [name for name in runs if name not in known]:
        raise InputError(
            f"--run {', '.join(missing)}: no such run; there are {', '.join(sorted(known)) or 'none'}"
        )
    for _, project, name in sorted(asked, key=lambda one: one[0]):
        side = _side(label[project.root] + name, project, _predicted(read_members(project, name)), left_out)
        found += [side] if side else []
    for project in projects:
        if project.members_json.exists() and not runs:
            side = _side(label[project.root] + "ensemble", project, read_members(project, None), left_out)
            found += [side] if side else []
    return found, left_out


def _labels(projects: Sequence[Project]) -> dict[Path, str]:
    """Return what stands before the name of a project's runs: nothing for one project."""
    names = [project.root.resolve().name for project in projects]
    if len(projects) == 1:
        return {projects[0].root: ""}
    return {
        project.root: f"{name if names.count(name) == 1 else project.root}/"
        for project, name in zip(projects, names, strict=True)
    }


def _predicted(members: list[Member]) -> list[Member]:
    """Return the members whose held-out images are predicted by now, or all where none is (the message names them)."""
    return [member for member in members if member.fold != ALL and member.codes("oof").exists()] or members


def _side(label: str, project: Project, members: list[Member], left_out: list[str]) -> _Side | None:
    try:
        return _Side(label, project, members, oof_of(project, members))
    except InputError as error:
        left_out.append(f"{label}: {error}")
        return None


def _metric(sides: Sequence[_Side], asked: str | None) -> Metric:
    """Return the metric of all runs, or the one that is asked for.

    Raises:
        InputError: The runs have several and none is asked for; it cannot drive the task.
    """
    target = sides[0].project.target
    if asked is not None:
        return metric_for(asked, task=target.task, classes=len(target.classes), where="--metric")
    by = {side.name: side.project.metric(side.members[0].scored_by) for side in sides}
    if len({metric.name for metric in by.values()}) > 1:
        each = "; ".join(f"{name} {metric.name}" for name, metric in by.items())
        raise InputError(
            f"compare: the runs are scored by different metrics ({each}); expected one: choose it with "
            "--metric, or runs of one metric with --run"
        )
    return next(iter(by.values()))


def _shared(sides: Sequence[_Side]) -> list[str]:
    """Return the images that all runs hold out, in the order of the first.

    Raises:
        InputError: Fewer than two.
    """
    sets = [set(side.ids) for side in sides]
    names = [name for name in sides[0].ids if all(name in one for one in sets)]
    if len(names) < 2:
        each = ", ".join(f"{side.name} {len(one)}" for side, one in zip(sides, sets, strict=True))
        raise InputError(
            f"compare: {len(names)} images are held out by all runs ({each}); expected two or more: train the same "
            "folds in each, or choose runs with --run"
        )
    return names


def _facts(sides: Sequence[_Side], metric: Metric, names: list[str], left_out: list[str]) -> CompareFacts:
    first = sides[0].project
    target, masks, recipe = first.target, first.cache.train_masks, sides[0].members[0].scored_by
    kept = set(names)
    tables, preds = list[Rows](), dict[str, Mapping[str, Any]]()
    for side in sides:
        rule = plain_of(target, side.members[0].scored_by.tuning)
        rows = [row for row in side.project.folds.rows if row.id in kept]
        by_id = score_rows(metric, predictions_of(side.oof, rows), masks, rule)
        tables.append(np.stack([by_id[name] for name in names]))
        preds[side.name] = RuleMasks(side.oof, rule)
    groups = first.folds.groups(names)
    labels = first.metric_groups(recipe, names)
    runs = [
        _compared(side.name, metric, tables[at], tables[0], names, groups, labels)
        for at, side in enumerate(sides)
    ]
    return CompareFacts(
        title=Path(first.catalog.root).name,
        metric=metric.name,
        describes=metric.describes,
        higher_is_better=metric.higher_is_better,
        images=len(names),
        groups=len(np.unique(groups)),
        held_out={side.name: len(side.ids) for side in sides},
        runs=runs,
        differences=_differences([_values(side.members) for side in sides]),
        left_out=left_out,
        events=[_events(side.members) for side in sides],
        masks=preds,
        pixels=first.cache.train_images,
        view=sides[0].members[0].run.recipe.input.view,
        truths=masks,
        target=target,
    )


def _compared(
    name: str, metric: Metric, rows: Rows, other: Rows, names: Sequence[str], groups: Groups, labels: Groups
) -> ComparedRun:
    """Compare the rows of a run with those of the first one."""
    own, drawn = labels.tolist(), groups.tolist()
    member = np.unique(labels, return_inverse=True)[1]
    score, before = metric.score(rows, member), metric.score(other, member)
    gains, _, _ = paired_bootstrap(
        metric, rows, other, drawn, labels=own, resamples=_RESAMPLES, rng=stream(0)
    )
    draws = resampled_scores(metric, [rows], drawn, labels=own, resamples=_RESAMPLES, rng=stream(0))[0]
    low, high = np.quantile(draws, INTERVAL)
    gain_low, gain_high = np.quantile(gains, INTERVAL)
    sign = 1 if metric.higher_is_better else -1
    values = metric.value(rows)
    changed = sign * (values - metric.value(other))
    return ComparedRun(
        name, score, float(low), float(high), sign * (score - before), float(gain_low), float(gain_high),
        int((changed > 0).sum()), int((changed < 0).sum()),
        dict(zip(names, values.tolist(), strict=True)),
    )  # fmt: skip


def _values(members: Sequence[Member]) -> dict[str, str]:
    """Return key -> value of the recipe, or of the ensemble and its weights."""
    if members[0].run.is_external:
        return {"made by": "another program"}
    if len({member.run.path for member in members}) > 1:
        return {f"members.{at}": f"{member.name} x {member.weight:g}" for at, member in enumerate(members)}
    return flat_values(members[0].run.recipe.model_dump(mode="json"))


def flat_values(value: Any, key: str = "") -> dict[str, str]:  # noqa: ANN401
    """Return dotted key -> value as text of nested dicts and lists; lists of plain values are one value."""
    if isinstance(value, dict) and value:
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        parts = {str(at): one for at, one in enumerate(value)}.items()
    else:
        return {key: "null" if value is None else str(value)}
    found = dict[str, str]()
    for name, one in parts:
        found |= flat_values(one, f"{key}.{name}" if key else str(name))
    return found


def _differences(recipes: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Return the keys whose values differ, in the order of the recipes, with the value of each ("–" for none)."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = [(key, [recipe.get(key, "–") for recipe in recipes]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _events(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return the log of the folds, each event with its curve; none of an ensemble of several runs."""
    if len({member.run.path for member in members}) > 1 or members[0].run.is_external:
        return []
    logs = {one.fold: read_events(one.run.events(one.fold)) for one in members}
    return [{**e, "curve": f"fold {fold}"} for fold, log in logs.items() for e in log if e["fold"] == fold]
