"""What the report shows of a project."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from masksmith.core.arrays import AnyMask, judged_pixels
from masksmith.core.files import read_json
from masksmith.core.progress import clock
from masksmith.folds.config import fold_name
from masksmith.metrics import confusion, get_metric
from masksmith.metrics.classes import plane_stats
from masksmith.postprocess.rules import mask_of, read_rule
from masksmith.postprocess.scoring import RuleMasks, score_rows
from masksmith.project.folder import Project
from masksmith.project.members import Member
from masksmith.reporting import ReportFacts, write_report
from masksmith.reporting.pictures import class_colours, covered
from masksmith.reporting.tables import (
    ClassLine,
    ScoredImage,
    class_lines,
    fold_lines,
    group_lines,
    label_lines,
)
from masksmith.steps.ablate import ablation_of
from masksmith.steps.choices import plan_of
from masksmith.steps.out_of_fold import predictions_of
from masksmith.steps.predict import oof_of, test_of
from masksmith.steps.pseudo_labels import labelling_of
from masksmith.steps.result import HIDDEN
from masksmith.steps.seed_noise import noise_text, read_noise
from masksmith.steps.tune import need_tuning
from masksmith.training.config import VAL_LOSS
from masksmith.training.events import read_events


def report_members(project: Project, members: Sequence[Member]) -> Path:
    """Write the report."""
    return write_report(project.report_html, report_facts(project, members))


def report_facts(project: Project, members: Sequence[Member]) -> ReportFacts:
    """Collect what the report shows."""
    oof, tuning = oof_of(project, members), need_tuning(project, members)
    rows = [row for row in project.folds.rows if row.id in oof and row.id not in project.blank_train]
    run, recipe, masks = members[0].run, members[0].scored_by, project.cache.train_masks
    rule, metric = read_rule(tuning["rule"]), project.metric(recipe)
    stats = score_rows(metric, predictions_of(oof, rows), masks, rule)
    scores = {name: float(metric.value(row[None])[0]) for name, row in stats.items()}
    labels = project.metric_groups(run.recipe, list(stats))
    scored = {
        name: ScoredImage(row, str(group)) for (name, row), group in zip(stats.items(), labels, strict=True)
    }
    all_rows, preds = project.folds.rows, RuleMasks({row.id: oof[row.id] for row in rows}, rule)
    test_shares: list[float] = []
    if project.catalog.test:
        codes = test_of(project, members)
        masks_of = (mask_of(rule, codes, name) for name in project.catalog.submission.ids)
        test_shares = [float(covered(mask).mean()) for mask in masks_of]
    return ReportFacts(
        title=Path(project.catalog.root).name,
        run=recipe.name if members[0].ensemble else run.path.name,
        members=[member.name for member in members],
        check=read_json(project.check_json) if project.check_json.exists() else None,
        recipe_yaml=_recipes_text(members),
        environment=(run.path / "environment.txt").read_text(),
        folds=fold_lines(all_rows, scored, metric),
        groups=[] if run.recipe.folds.group_by is None else group_lines(all_rows, scored, metric),
        rows=all_rows,
        columns=_columns(project),
        values={sample.id: sample.values for sample in project.catalog.train},
        tuning=tuning,
        interim=any(member.interim for member in members),
        hidden=HIDDEN,
        noise=noise_text(read_noise(project.noise_json)),
        plan=plan_of(project, members),
        budget=_budget_text(project),
        events=_events(members),
        coverage_test=test_shares,
        scores=scores,
        images=project.cache.train_images,
        view=run.recipe.input.view,
        masks=masks,
        target=project.target,
        classes=_class_lines(project, preds),
        preds=preds,
        labels=[f"{name}: {made}" for name, made in labelling_of(members).items()],
        predicted=_predicted(members),
        lower=_lower(members),
        ablation=ablation_of(project, members),
    )


def _lower(members: Sequence[Member]) -> frozenset[str]:
    """Return the metrics beside the score that are better where they are lower."""
    names = {name for member in members for name in member.run.recipe.training.metrics} - {VAL_LOSS}
    return frozenset(name for name in names if not get_metric(name).higher_is_better)


def _class_lines(project: Project, preds: Mapping[str, AnyMask]) -> list[ClassLine]:
    """Return the lines of the classes of a class map, or of the labels; none for other tasks."""
    target, masks = project.target, project.cache.train_masks
    if target.task == "multilabel":
        stats = [plane_stats(preds[name], np.asarray(masks[name])) for name in preds]
        judged = sum(judged_pixels(masks[name]).sum(axis=(0, 1)) for name in preds)
        return label_lines(np.sum(stats, axis=0), judged, target.classes, class_colours(target))
    if not target.exclusive:
        return []
    pairs = ((preds[name], masks[name][..., 0]) for name in preds)
    table = confusion(pairs, num_classes=len(target.classes))
    return class_lines(table, target.classes, class_colours(target))


def _columns(project: Project) -> dict[str, tuple[list[float], list[float]]]:
    """Return each column of numbers in the side tables -> its values of the training and of the test images."""
    catalog = project.catalog
    names = sorted({name for sample in catalog.train for name in sample.values})
    return {
        name: (
            [sample.values[name] for sample in catalog.train if name in sample.values],
            [sample.values[name] for sample in catalog.test if name in sample.values],
        )
        for name in names
    }


def _recipes_text(members: Sequence[Member]) -> str:
    """Return the recipe as YAML, or the ensemble and the recipes of its members."""
    run, ensemble = members[0].run, members[0].ensemble
    if ensemble is None:
        return "# of its metric, folds and tuning alone\n" * run.is_external + run.recipe.to_yaml()
    recipes = {member.run.path.name: member.run.recipe for member in members if not member.run.is_external}
    texts = [f"# {name}\n{recipe.to_yaml()}" for name, recipe in recipes.items()]
    return "---\n".join([ensemble.to_yaml(), *texts])


def _budget_text(project: Project) -> str:
    """Return what was spent of the budget until now, for people."""
    if not project.budget_json.exists():
        return ""
    value = read_json(project.budget_json)
    return f"{clock(value['spent_s'])} of {clock(value['total_s'])} before this page was written"


def _labels(members: Sequence[Member]) -> list[str]:
    """Return the name of each member's curve."""
    several = len({member.run.path.name for member in members}) > 1
    return [member.name if several else fold_name(member.fold).replace("_", " ") for member in members]


def _predicted(members: Sequence[Member]) -> dict[str, dict[str, float]]:
    """Return the seconds that the predictions of each curve's member took, where they were noted."""
    found = {}
    for member, label in zip(members, _labels(members), strict=True):
        times = {} if member.interim else member.run.read_times()
        sets = {"held-out": f"oof {member.fold}", "test": f"test {member.fold}"}
        found[label] = {name: times[what] for name, what in sets.items() if what in times}
    return found


def _events(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return the events of the members' folds, each with the name of its curve."""
    events = []
    for member, label in zip(members, _labels(members), strict=True):
        events += [{**e, "curve": label} for e in read_events(member.run.events) if e["fold"] == member.fold]
    return events
