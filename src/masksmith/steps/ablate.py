"""What each step of the last mile is worth: a row a step, on the same held-out images, paired, with its interval.

Steps that were searched (ensembles, rules) have their nested gain; those that choose nothing (views, removal of small
regions) the plain difference. A refit on all images has no held-out images, so it has no numbers.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.core.progress import clock, gain_text
from masksmith.core.randomness import stream
from masksmith.folds.config import ALL
from masksmith.metrics.protocol import Row
from masksmith.postprocess.bootstrap import BOUND_QUANTILE, paired_bootstrap
from masksmith.postprocess.config import DECIDING, Operator, halfway
from masksmith.postprocess.labels import LabelRules, best_of_labels
from masksmith.postprocess.operator_rule import as_operators
from masksmith.postprocess.operators import Rule
from masksmith.postprocess.rules import read_rule
from masksmith.postprocess.search import nested_rows
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.project.members import Member
from masksmith.recipes.ensemble import AnyRecipe
from masksmith.steps.labels import trials_of
from masksmith.steps.out_of_fold import plain_rows, predictions_of
from masksmith.steps.predict import oof_of, predict_member
from masksmith.steps.stack import is_stack, stack_of
from masksmith.steps.tune import parts_of, sweep_of, tune_key, tune_members

Rows = Float[np.ndarray, "n k"]


@dataclass(frozen=True)
class Step:
    """One step: its score out of fold, and its gain over what was before it."""

    step: str
    score: float | None
    gain: float | None
    low: float | None
    high: float | None
    """80% bounds of the gain; None where nothing can be measured out of fold."""
    seconds: float
    """What it took here: prediction, search."""
    kept: bool
    """Whether the submission is made with it."""


@dataclass(frozen=True)
class Ablation:
    """The rows of a project, in the order of the last mile."""

    metric: str
    images: int
    members: list[str]
    steps: list[Step]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the rows as plain values."""
        return [asdict(step) for step in self.steps]

    def __str__(self) -> str:
        width = max(len(step.step) for step in self.steps)
        lines = [
            f"{self.metric} out of fold, {self.images} images; gain over the line before with its 80% bounds"
        ]
        for step in self.steps:
            numbers = "not measurable out of fold".ljust(44)
            if step.score is not None:
                assert step.gain is not None
                assert step.low is not None
                assert step.high is not None
                numbers = f"{step.score:.4f}  {gain_text(step.gain, step.low, step.high)}".ljust(44)
            kept = "kept" if step.kept else "not kept"
            lines.append(f"{step.step:<{width}}  {numbers}  {clock(step.seconds):>7}  {kept}")
        return "\n".join(lines)


class Judge:
    """Scores and paired gains on held-out images.

    Args:
        project: With folds.
        recipe: Whose metric and plain rule they are.
        names: The images.
    """

    def __init__(self, project: Project, recipe: AnyRecipe, names: Sequence[str]) -> None:
        self.metric, self.recipe, self.names = project.metric(recipe), recipe, list(names)
        self.groups = project.folds.groups(names).tolist()
        self.labels = project.metric_groups(recipe, names).tolist()
        self.inside = np.unique(self.labels, return_inverse=True)[1]

    def table(self, rows: Mapping[str, Row]) -> Rows:
        """Return the images' rows in the judge's order."""
        return np.stack([rows[name] for name in self.names])

    def step(self, what: str, rows: Rows, before: Rows, seconds: float, *, kept: bool) -> Step:
        """Return the score of rows, and their paired gain over those before with its 80% bounds."""
        metric, recipe = self.metric, self.recipe
        gains, _, _ = paired_bootstrap(
            metric, rows, before, self.groups, labels=self.labels, resamples=recipe.tuning.resamples,
            rng=stream(recipe.seed),
        )  # fmt: skip
        low, high = np.quantile(gains, [BOUND_QUANTILE, 1 - BOUND_QUANTILE])
        score = metric.score(rows, self.inside)
        gain = metric.utility(score) - metric.utility(metric.score(before, self.inside))
        return Step(what, score, gain, float(low), float(high), round(seconds, 2), kept)


def ablate_members(project: Project, members: Sequence[Member]) -> Ablation:
    """Measure the steps that the members' submission is made with, or that were tried; ``ablation.json`` keeps them.

    Views are predicted one by one, which takes as long as predicting the held-out images once more; later calls find
    them.

    Raises:
        InputError: Nothing is held out, or probabilities are missing or stale.
        StoppedError: Stopped; the views that were predicted are kept.
    """
    recipe, oof = members[0].scored_by, oof_of(project, members)
    names = [row.id for row in project.folds.rows if row.id in oof and row.id not in project.blank_train]
    if not names:
        raise InputError(f"{project.root}: no image is held out, so nothing can be measured; train a fold")
    judge = Judge(project, recipe, names)
    steps = [
        *_views(project, members, judge),
        *_tried_labels(project, members),
        *_tried_weights(members),
        *_ensemble(project, members, oof, judge),
        *_rounds(project, members),
        *_tried_trees(project, members),
        *_regions(project, members, oof, judge),
        *_rules(project, members, oof, judge),
    ]
    if any(member.fold == ALL for member in members):
        took = sum(one.run.read_times().get(f"test {ALL}", 0.0) for one in members if one.fold == ALL)
        steps.append(Step("refit on all images", None, None, None, None, round(took, 2), kept=True))
    done = Ablation(judge.metric.name, len(names), [member.name for member in members], steps)
    write_json(
        project.ablation_json, {"of": tune_key(project, members), **asdict(done), "steps": done.to_json()}
    )
    return done


def ablation_of(project: Project, members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return the rows that were measured last, if they are of these members as they are now; else none.

    Raises:
        InputError: Probabilities are missing or stale.
    """
    value = read_json(project.ablation_json) if project.ablation_json.exists() else {}
    rows: list[dict[str, Any]] = value.get("steps", [])
    return rows if rows and value.get("of") == tune_key(project, members) else []


# --- views ---


def _views(project: Project, members: Sequence[Member], judge: Judge) -> Iterator[Step]:
    """Yield a step for each view of test-time augmentation, the first one's score being what the others gain on."""
    held_out = [member for member in members if member.fold != ALL]
    own = [member for member in held_out if not member.run.is_external and not member.interim]
    most = max((len(member.run.recipe.prediction.tta) for member in own), default=1)
    before: Rows | None = None
    for count in range(1, most + 1):
        begun, seen = time.perf_counter(), [one for member in held_out for one in _seen(member, count)]
        if count == most and not any(_more_than_symmetries(member) for member in own):
            seen = held_out  # what is predicted with: nothing is rounded twice
        for member in seen:
            predict_member(project, member, stages=("oof",))
        rows = judge.table(plain_rows(project, judge.recipe, oof_of(project, seen)))
        took = _predicting(own, count) or time.perf_counter() - begun
        named = " and ".join(dict.fromkeys(_view(member, count) for member in own if _view(member, count)))
        what = f"one view ({named or 'as given'})" if before is None else f"view {named}"
        yield judge.step(what, rows, rows if before is None else before, took, kept=True)
        before = rows
    if any(_more_than_symmetries(member) for member in own):
        begun = time.perf_counter()
        rows = judge.table(plain_rows(project, judge.recipe, oof_of(project, held_out)))
        assert before is not None
        yield judge.step("scales and shifts", rows, before, time.perf_counter() - begun, kept=True)


def _more_than_symmetries(member: Member) -> bool:
    options = member.run.recipe.prediction
    return list(options.tta_scales) != [1.0] or [tuple(one) for one in options.tta_shifts] != [(0, 0)]


def _view(member: Member, count: int) -> str:
    tta = member.run.recipe.prediction.tta
    return tta[count - 1] if count <= len(tta) else ""


def _seen(member: Member, count: int) -> list[Member]:
    """Return a member that sees the first views alone: one member for each of them."""
    if member.run.is_external or member.interim:
        return [member]
    options = member.run.recipe.prediction
    if len(options.tta) == 1 and not _more_than_symmetries(member):
        return [member]
    used = options.tta[:count]
    shared = member.ensemble or member.blend  # their members share the weight of what they are a part of
    found = []
    for view in used:
        alone = {"tta": [view], "tta_scales": [1.0], "tta_shifts": [(0, 0)]}
        recipe = member.run.recipe.model_copy(update={"prediction": options.model_copy(update=alone)})
        weight = member.weight if shared else member.weight / len(used)
        found.append(replace(member, run=replace(member.run, recipe=recipe), view=view, weight=weight))
    return found


def _predicting(own: Sequence[Member], count: int) -> float:
    """Return the seconds that this view's predictions took, which earlier calls may have made."""
    views = [one for member in own if _view(member, count) for one in _seen(member, count)[-1:]]
    return sum(one.run.read_times().get(one.timed("oof"), 0.0) for one in views)


# --- labels, weights, ensembles, trees ---


def _tried_labels(project: Project, members: Sequence[Member]) -> Iterator[Step]:
    """Yield the corrections of masks that were tried, each judged on the images that it does not change."""
    used = {member.run.path.name for member in members}
    for row in trials_of(project):
        if not used & {row["before"], row["after"]}:
            continue
        runs = [
            project.run(name) for name in (row["before"], row["after"]) if (project.runs_dir / name).is_dir()
        ]
        took = sum(runs[-1].read_times().values()) if runs else 0.0
        kept = row["after"] in used
        yield Step(
            f"labels: {row['folder']}",
            row["score_after"],
            row["gain"],
            row["low"],
            row["high"],
            round(took, 2),
            kept,
        )


def _tried_trees(project: Project, members: Sequence[Member]) -> Iterator[Step]:
    """Yield the trees on predictions that `masksmith stack` tried."""
    found = stack_of(project)
    if found is None:
        return
    used = any(is_stack(member) for member in members)
    if not used and found["members"] != [member.name for member in members]:
        return  # they were trained on others
    for row in found["table"]:
        kept = used and found["kept"] and row["way"] == found["chosen"]
        yield Step(
            f"stack: {row['way']}", row["nested"], row["gain"], row["low"], row["high"], row["seconds"], kept
        )


def _tried_weights(members: Sequence[Member]) -> Iterator[Step]:
    """Yield the kinds of weights that `masksmith weights` compared."""
    for run in {member.run.path: member.run for member in members}.values():
        if not run.weights_json.exists():
            continue
        found = read_json(run.weights_json)
        for row in found["table"]:
            if row["weights"] == found["present"]:
                continue
            what = f"weights {row['weights']} for {found['present']}, {run.path.name}"
            taken = row["weights"] == found["chosen"] == run.recipe.prediction.weights
            yield Step(
                what, row["score"], row["gain"], row["low"], row["high"], row.get("seconds", 0.0), taken
            )


def _ensemble(
    project: Project, members: Sequence[Member], oof: Mapping[str, MeanCodes], judge: Judge
) -> Iterator[Step]:
    """Yield the present ensemble beside the best of its parts, and what `masksmith blend` tried."""
    of_part: dict[str, list[Member]] = {}
    for member in members:
        if member.fold != ALL:
            of_part.setdefault(member.part, []).append(member)
    if len(of_part) > 1:
        begun = time.perf_counter()
        each = [plain_rows(project, judge.recipe, oof_of(project, own)) for own in of_part.values()]
        whole = [judge.table(rows) for rows in each if set(judge.names) <= set(rows)]
        if whole:
            utility = [judge.metric.utility(judge.metric.score(rows, judge.inside)) for rows in whole]
            best, rows = whole[int(np.argmax(utility))], judge.table(plain_rows(project, judge.recipe, oof))
            kind = members[0].blend.kind if members[0].blend else "mean"
            what = f"ensemble of {len(of_part)} ({kind}) over the best of them"
            yield judge.step(what, rows, best, time.perf_counter() - begun, kept=True)
    if not project.blend_json.exists():
        return
    found = read_json(project.blend_json)
    for row in found["table"]:
        taken = found["kept"] and members[0].blend is not None
        taken = taken and {"kind": row["kind"], "weights": row["weights"]} == found["chosen"]
        seconds = round(found["took"] / len(found["table"]), 2)
        yield Step(
            f"blend: {row['way']}", row["nested"], row["gain"], row["low"], row["high"], seconds, bool(taken)
        )


def rounds_of(project: Project, members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return the rounds of pseudo-labels that began from these members, or that made them; none: there are none."""
    found = read_json(project.rounds_json) if project.rounds_json.exists() else {}
    own = [member.to_json() for member in members if not member.run.is_external]
    rows: list[dict[str, Any]] = found.get("rounds", [])
    return rows if own in (found.get("start"), found.get("members")) else []


def _rounds(project: Project, members: Sequence[Member]) -> Iterator[Step]:
    for row in rounds_of(project, members)[1:]:
        yield Step(
            f"pseudo-labels, round {row['round']}", row["score"], row["gain"], row["low"], row["high"], row["seconds"],
            row["kept"],
        )  # fmt: skip


# --- rules ---


def _regions(
    project: Project, members: Sequence[Member], oof: Mapping[str, MeanCodes], judge: Judge
) -> Iterator[Step]:
    """Yield what the removal of small regions does that the recipe asks for, at threshold 0.5."""
    recipe, frac = judge.recipe, judge.recipe.tuning.component_area_frac
    if not frac:
        return
    begun = time.perf_counter()
    tuning = recipe.tuning.model_copy(update={"component_area_frac": 0.0})
    without = plain_rows(project, recipe.model_copy(update={"tuning": tuning}), oof)
    rows = judge.table(plain_rows(project, recipe, oof))
    took = time.perf_counter() - begun
    yield judge.step(f"regions up to {frac:.3%} removed", rows, judge.table(without), took, kept=True)


def _operators(
    project: Project,
    members: Sequence[Member],
    oof: Mapping[str, MeanCodes],
    judge: Judge,
    listed: Sequence[Operator],
) -> Iterator[Step]:
    """Yield what each operator of the list adds to those before it, all of which are searched again with it."""
    tuning, wanted = tune_members(project, members), set(judge.names)
    rows = [row for row in project.folds.rows if row.id in wanted]
    parts = parts_of(project, judge.names, seed=judge.recipe.seed)
    rule = read_rule(tuning["rule"])
    used = [as_operators(one) for one in (rule.rules if isinstance(rule, LabelRules) else [rule])]
    choose = best_of_labels if project.target.task == "multilabel" else None
    before: Rows | None = None
    for count, last in enumerate(listed, start=1):
        begun, some = time.perf_counter(), list(listed[:count])
        if not any(one.op in DECIDING for one in some):
            some.append(halfway(project.target.task))
        config = judge.recipe.tuning.model_copy(update={"operators": some})
        rules, sweep = sweep_of(project, judge.metric, config, lambda: predictions_of(oof, rows))
        if before is None:
            before = sweep.rows_of(rules[0])
        found = nested_rows(sweep, judge.metric, rules, parts=parts, groups=judge.inside, choose=choose)[0]
        kept = tuning["kept"] and any(one.does(last.op) for one in used)
        yield judge.step(f"operator {last.op}", found, before, time.perf_counter() - begun, kept=kept)
        before = found


def _rules(
    project: Project, members: Sequence[Member], oof: Mapping[str, MeanCodes], judge: Judge
) -> Iterator[Step]:
    """Yield the search of the rule: of one mask a threshold, then the triplet on top of it; else all as one."""
    if judge.recipe.tuning.operators is not None:
        yield from _operators(project, members, oof, judge, judge.recipe.tuning.operators)
        return
    tuning, begun = tune_members(project, members), time.perf_counter()
    wanted = set(judge.names)
    rows = [row for row in project.folds.rows if row.id in wanted]
    config = judge.recipe.tuning
    rules, sweep = sweep_of(project, judge.metric, config, lambda: predictions_of(oof, rows))
    if len(rules) == 1:
        return
    parts = parts_of(project, judge.names, seed=judge.recipe.seed)
    nested: Callable[..., Rows] = lambda some, **how: nested_rows(  # noqa: E731
        sweep, judge.metric, some, parts=parts, groups=judge.inside, **how
    )[0]
    plain, found = sweep.rows_of(rules[0]), tuning["found"]
    if not isinstance(rules[0], Rule):
        took = time.perf_counter() - begun
        step = judge.step(f"rule: {tuning['searched']}", plain, plain, took, kept=tuning["kept"])
        low, high = tuning["gain_low"], tuning["gain_high"]
        gain = judge.metric.utility(tuning["scores"]["nested"]) - judge.metric.utility(
            tuning["scores"]["plain"]
        )
        yield replace(step, score=tuning["scores"]["nested"], gain=gain, low=low, high=high)
        return
    single = [rule for rule in rules if isinstance(rule, Rule) and not rule.min_pixels]
    threshold, took = nested(single), time.perf_counter() - begun
    triplet = tuning["kept"] and bool(found["min_pixels"])
    yield judge.step("threshold", threshold, plain, took, kept=tuning["kept"])
    if len(single) == len(rules):
        return
    begun = time.perf_counter()
    both = nested(rules)
    yield judge.step(
        "top threshold and least area", both, threshold, time.perf_counter() - begun, kept=triplet
    )
