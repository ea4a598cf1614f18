"""Stacking: boosted trees on the members' out-of-fold predictions, judged under the same folds, and used if that helps.

The trees that give the held-out images of a fold their probabilities were trained on the predictions of the other folds
alone (of parts of it, where one fold is held out). Which kind is taken is chosen on the other folds too. Those of the
test images are trained on all. What is used is a run of probabilities, as of another program (see steps/external).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from masksmith.core.arrays import Codes
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, remove, remove_tree, write_json, write_text
from masksmith.core.interrupt import check_stop
from masksmith.core.progress import gain_text, track
from masksmith.core.randomness import stream
from masksmith.data.store import StoreWriter
from masksmith.folds.config import ALL
from masksmith.metrics.protocol import Metric, Row
from masksmith.postprocess.bootstrap import BOUND_QUANTILE, paired_bootstrap
from masksmith.postprocess.rule_sweep import RuleSweep
from masksmith.postprocess.rules import AnyRule, plain_of
from masksmith.postprocess.scoring import one_layer
from masksmith.postprocess.search import Tuning, search_rule
from masksmith.postprocess.stacking import (
    Applied,
    BothTrees,
    ImageTrees,
    PixelTrees,
    RegionTrees,
    Stacker,
    View,
    need_trees,
)
from masksmith.prediction.means import Blend
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.project.members import (
    Member,
    members_of_run,
    remember_members,
    use_members_before,
    write_members,
)
from masksmith.project.runs import environment
from masksmith.recipes.ensemble import AnyRecipe
from masksmith.steps.out_of_fold import truth_planes
from masksmith.steps.predict import oof_of, predict_member, test_of
from masksmith.steps.train import external_key
from masksmith.steps.tune import parts_of

NAME = "stack"
PRESENT = "present"
_PIXELS = 200_000  # that trees are trained on, of all images together
_DRAW = 7411
"""Of the random numbers that draw pixels."""


@dataclass(frozen=True)
class Stacked:
    """What the trees are worth."""

    metric: str
    images: int
    members: list[str]
    table: list[dict[str, Any]]
    """A row each kind of trees: way, nested score, gain over the present probabilities with its 80% bounds, seconds."""
    left_out: dict[str, str]
    chosen: str
    present: float
    """Score of what the project predicted with before (plain rule)."""
    nested: float
    """Score of the kinds that were chosen on the other folds."""
    gain: float
    gain_low: float
    gain_high: float
    kept: bool
    took: float
    """Seconds."""
    before: dict[str, Any]
    """Members that were used before, for `stack --off`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))

    def __str__(self) -> str:
        lines = [
            f"{self.metric} of {self.images} held-out images (plain rule); the present members {self.present:.4f}"
        ]
        lines += [
            f"{row['way']:<8} {row['nested']:.4f}  {gain_text(row['gain'], row['low'], row['high'])}"
            for row in self.table
        ]
        lines += [f"{name}: left out, {why}" for name, why in self.left_out.items()]
        verdict = "taken: tune and submit again" if self.kept else "not taken: no certain gain"
        lines.append(
            f"found: {self.chosen}; nested {self.nested:.4f}, gain "
            f"{gain_text(self.gain, self.gain_low, self.gain_high)}; {verdict}"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class _Level:
    """The predictions of the first level, of training or test images."""

    images: Any
    parts: Sequence[Mapping[str, MeanCodes] | MeanCodes]
    """Of each run, where there are several."""
    present: Mapping[str, MeanCodes] | MeanCodes

    def view(self, name: str) -> View:
        """Return what is known of an image."""
        return View(self.images[name], [_codes(one, name) for one in self.parts], _codes(self.present, name))


def _codes(of: Mapping[str, MeanCodes] | MeanCodes, name: str) -> Codes:
    return of[name] if isinstance(of, MeanCodes) else of[name][name]


def stack_members(project: Project, members: Sequence[Member]) -> Stacked:
    """Train and judge trees of pixels, regions and images; the best are what the next verbs use, if that is certain.

    ``ensemble/stack.json`` keeps the numbers.

    Args:
        project: With folds.
        members: The first level, trained and predicted.

    Raises:
        InputError: scikit-learn is missing; a stack is used already; too few images are held out; probabilities are
            missing or stale.
        StoppedError: Stopped; nothing has changed then.
    """
    need_trees()
    if _is_used(project):
        raise InputError(
            f"{project.root}: a stack is used already; run `masksmith stack {project.root} --off` first"
        )
    recipe, begun = members[0].scored_by, time.perf_counter()
    oof = oof_of(project, members)
    names = [row.id for row in project.folds.rows if row.id in oof and row.id not in project.blank_train]
    parts = parts_of(project, names, seed=recipe.seed) if names else np.zeros(0, np.int64)
    if len(np.unique(parts)) < 2:
        raise InputError(
            f"{project.root}: {len(names)} held-out images in {len(np.unique(parts))} parts; trees are trained on some "
            "and judged on others: expected two groups of images or more"
        )
    bench = _Bench(
        project,
        project.metric(recipe),
        plain_of(project.target, recipe.tuning),
        names,
        parts,
        recipe.seed,
        _first_level(project, members, oof, names),
    )
    bench.run()
    found, table = _judge(bench, recipe)
    done = Stacked(
        metric=bench.metric.name,
        images=len(names),
        members=[member.name for member in members],
        table=table,
        left_out=bench.left_out,
        chosen=found.found,
        present=found.plain,
        nested=found.nested,
        gain=bench.metric.utility(found.nested) - bench.metric.utility(found.plain),
        gain_low=found.gain_low,
        gain_high=found.gain_high,
        kept=found.kept and found.found != PRESENT,
        took=round(time.perf_counter() - begun, 2),
        before=remember_members(project),
    )
    used = _predicted(project, members, bench, done.chosen, oof) if done.kept else []
    write_json(project.stack_json, done.to_json())
    if used:
        write_members(project, used)
    return done


@dataclass
class _Bench:
    """The kinds of trees, trained without each part of the images and with all, and the metric's rows of both."""

    project: Project
    metric: Metric
    rule: AnyRule
    names: Sequence[str]
    parts: Int[np.ndarray, " n"]
    seed: int
    level: _Level
    ways: dict[str, Applied] = field(default_factory=dict)
    models: dict[str, dict[int, Any]] = field(default_factory=dict)
    """Way -> part -> the model that has not seen it; ALL: of all."""
    rows: dict[str, list[Row]] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Train and apply all ways."""
        outputs = 1 if self.project.target.task == "instances" else self.project.target.outputs
        ways, self.left_out = _ways(self.project, len(self.names), outputs)
        self.rows[PRESENT] = [self._row(name, self.level.view(name).present) for name in self.names]
        for way, stacker in ways.items():
            begun = time.perf_counter()
            try:
                models = self._train(stacker)
            except InputError as error:
                self.left_out[way] = f"without one of the folds {error}"
                continue
            self._add(way, stacker, models, begun)
        if {"regions", "gate"} <= self.models.keys():
            pairs = {
                part: (model, self.models["gate"][part]) for part, model in self.models["regions"].items()
            }
            begun = time.perf_counter() - self.took["regions"] - self.took["gate"]
            self._add("both", BothTrees(RegionTrees(outputs), ImageTrees(outputs)), pairs, begun)

    def _train(self, stacker: Stacker) -> dict[int, Any]:
        features, answers, home = _gather(self, stacker)
        models = {
            int(part): stacker.fit(features[home != part], answers[home != part], seed=self.seed)
            for part in np.unique(self.parts)
        }
        return models | {ALL: stacker.fit(features, answers, seed=self.seed)}

    def _add(self, way: str, stacker: Applied, models: dict[int, Any], begun: float) -> None:
        self.ways[way], self.models[way], self.rows[way] = stacker, models, []
        pairs = zip(track(self.names, total=len(self.names), what=f"stacking {way}"), self.parts, strict=True)
        for name, part in pairs:
            check_stop()
            self.rows[way].append(self._row(name, stacker.apply(models[int(part)], self.level.view(name))))
        self.took[way] = round(time.perf_counter() - begun, 2)

    def _row(self, name: str, codes: Codes) -> Row:
        return self.metric.stats(self.rule.apply(codes), one_layer(self.project.cache.train_masks[name]))


def _judge(bench: _Bench, recipe: AnyRecipe) -> tuple[Tuning[str], list[dict[str, Any]]]:
    """Return what the choice among the ways comes to, and a row of the table for each."""
    metric, project = bench.metric, bench.project
    groups = project.folds.groups(bench.names).tolist()
    labels = project.metric_groups(recipe, bench.names).tolist()
    inside = np.unique(labels, return_inverse=True)[1]
    tables = np.stack([np.stack(own) for own in bench.rows.values()], axis=1)
    sweep = RuleSweep(tuple(bench.rows), tables, np.zeros_like(tables[:, 0]))
    found = search_rule(
        sweep, metric, list(bench.rows), parts=bench.parts, groups=groups, labels=labels,
        resamples=recipe.tuning.resamples, seed=bench.seed,
    )  # fmt: skip
    table = []
    for at, way in enumerate(bench.rows):
        if way == PRESENT:
            continue
        gains, _, _ = paired_bootstrap(
            metric, tables[:, at], tables[:, 0], groups, labels=labels, resamples=recipe.tuning.resamples,
            rng=stream(bench.seed),
        )  # fmt: skip
        low, high = (float(one) for one in np.quantile(gains, [BOUND_QUANTILE, 1 - BOUND_QUANTILE]))
        score = metric.score(tables[:, at], inside)
        gain = metric.utility(score) - metric.utility(found.plain)
        numbers = {"nested": score, "gain": gain, "low": low, "high": high, "seconds": bench.took[way]}
        table.append({"way": way} | numbers)
    return found, table


def stop_stack(project: Project) -> str:
    """Go back to the members that were used before the stack; return a line that says so.

    Raises:
        InputError: No stack is used.
    """
    if not _is_used(project) or not project.stack_json.exists():
        raise InputError(f"{project.root}: no stack is used; there is nothing to go back from")
    use_members_before(project, read_json(project.stack_json)["before"])
    return "the members from before the stack are used again: tune and submit"


def is_stack(member: Member) -> bool:
    """Whether a member is trees on others' predictions."""
    return member.run.is_external and "stacked_on" in member.run.external


def _is_used(project: Project) -> bool:
    facts = read_json(project.members_json) if project.members_json.exists() else {}
    return any(entry["run"] == NAME for entry in facts.get("members", ()))


def _ways(project: Project, images: int, outputs: int) -> tuple[dict[str, Stacker], dict[str, str]]:
    target = project.target
    drawn = max(1, -(-_PIXELS // images))
    ways: dict[str, Stacker] = {"pixels": PixelTrees(drawn, target.exclusive, outputs)}
    if target.exclusive:
        why = "classes that exclude each other have no region or image to be emptied"
        return ways, {"regions": why, "gate": why}
    return ways | {"regions": RegionTrees(outputs), "gate": ImageTrees(outputs)}, {}


def _first_level(
    project: Project, members: Sequence[Member], oof: Mapping[str, MeanCodes], names: Sequence[str]
) -> _Level:
    own = [
        oof_of(project, [one for one in members if one.part == part and one.fold != ALL])
        for part in _shared_parts(project, members, names)
    ]
    return _Level(project.cache.train_images, own, oof)


def _shared_parts(project: Project, members: Sequence[Member], names: Sequence[str]) -> list[str]:
    """Return the parts of an ensemble that have predicted all these images; none where it has no parts."""
    found = []
    for part in dict.fromkeys(member.part for member in members):
        held_out = [one for one in members if one.part == part and one.fold != ALL]
        there = oof_of(project, held_out) if held_out else {}
        if all(name in there for name in names):
            found.append(part)
    return found if len(found) > 1 else []


def _gather(bench: _Bench, stacker: Stacker) -> tuple[Float[np.ndarray, "m f"], Any, Int[np.ndarray, " m"]]:
    """Return features, answers and the part of each row, of all images."""
    features, answers, home = [], [], []
    named = zip(track(bench.names, total=len(bench.names), what="gathering"), bench.parts, strict=True)
    for at, (name, part) in enumerate(named):
        check_stop()
        truth = truth_planes(bench.project.target, bench.project.cache.train_masks[name])
        rows, own = stacker.gather(bench.level.view(name), truth, stream(bench.seed, _DRAW, at))
        if len(rows):
            features.append(rows)
            answers.append(own)
            home.append(np.full(len(rows), part))
    if not features:
        return np.zeros((0, 1), np.float32), np.zeros(0, np.int8), np.zeros(0, np.int64)
    return np.concatenate(features), np.concatenate(answers), np.concatenate(home)


# --- what is used ---


def _predicted(
    project: Project, members: Sequence[Member], bench: _Bench, way: str, oof: Mapping[str, MeanCodes]
) -> list[Member]:
    """Write the trees' probabilities as a run, and return its members."""
    stacker, models, level = bench.ways[way], bench.models[way], bench.level
    homes = dict(zip(bench.names, bench.parts.tolist(), strict=True))
    for member in members:
        predict_member(project, member, stages=("test",))
    run = replace(members[0].run, path=project.runs_dir / NAME)
    remove(run.external_json)
    remove_tree(run.path)
    folds = [fold for fold in range(project.folds.total) if project.folds.inside(fold)]
    folds = [fold for fold in folds if all(name in oof for name in project.folds.inside(fold))]

    def codes(name: str) -> Codes:
        return stacker.apply(models[homes[name]], level.view(name)) if name in homes else oof[name][name]

    for fold in folds:
        own = project.folds.inside(fold)
        _write(run.oof(fold), [(name, oof[name].shape(name)) for name in own], map(codes, own))
    if project.catalog.test:
        mean = test_of(project, members)
        each = [
            test_of(project, [one for one in members if one.part == part])
            for part in _shared_parts(project, members, list(homes))
        ]
        test = _Level(project.cache.test_images, each, mean)
        blank, ids = project.blank_test, [sample.id for sample in project.catalog.test]
        found = (mean[name] if name in blank else stacker.apply(models[ALL], test.view(name)) for name in ids)
        path = run.path / "test" / "all_folds.npy"
        _write(path, [(name, mean.shape(name)) for name in ids], found)
    recipe = members[0].run.recipe
    write_text(run.path / "environment.txt", environment())
    run = project.import_run(NAME, recipe)
    stages = [[one.run.path.name, one.entry(stage)] for one in members for stage in ("oof", "test")]
    stages = [[name, entry] for name, entry in stages if project.run(name).ledger.knows(entry)]
    facts = {"folds": folds, "weight": 1.0, "from": [one.name for one in members], "score": None}
    write_json(run.external_json, facts | {"stacked_on": stages})
    key = external_key(project, run)
    used = [replace(member, blend=Blend()) for member in members_of_run(run)]
    for member in used:
        for stage in ("oof", "test"):
            run.ledger.mark_done(member.entry(stage), key)
    return used


def _write(path: Path, shapes: Sequence[Any], codes: Iterator[Codes]) -> None:
    writer = StoreWriter(path, shapes, dtype=np.uint16)
    try:
        for (name, _), one in zip(shapes, track(codes, total=len(shapes), what="stacking"), strict=True):
            check_stop()
            writer.write(name, one)
        writer.close()
    finally:
        remove(writer.temporary)  # not there any more where it was closed


def stack_of(project: Project) -> dict[str, Any] | None:
    """Return what the last stack found, as Stacked.to_json; None where there was none."""
    found: dict[str, Any] | None = read_json(project.stack_json) if project.stack_json.exists() else None
    return found
