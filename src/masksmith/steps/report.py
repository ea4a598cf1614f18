"""What the report shows of a project."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from masksmith.core.arrays import AnyMask, Shaped, judged_pixels
from masksmith.core.files import read_json
from masksmith.core.progress import clock
from masksmith.core.randomness import stream
from masksmith.folds.config import fold_name
from masksmith.folds.table import FoldRow
from masksmith.metrics import Metric, confusion, get_metric
from masksmith.metrics.classes import plane_stats
from masksmith.metrics.costs import image_costs
from masksmith.metrics.protocol import Groups, Row
from masksmith.postprocess.rules import mask_of, read_rule
from masksmith.postprocess.scoring import RuleMasks, one_layer, score_rows
from masksmith.prediction.calibration import PixelCounts, count_pixels
from masksmith.prediction.store import MeanCodes
from masksmith.prediction.tta import views_of
from masksmith.project.folder import Project
from masksmith.project.members import Member, weights_of_test
from masksmith.reporting import ReportFacts, write_report
from masksmith.reporting.next_steps import is_no_better
from masksmith.reporting.pictures import class_colours, covered
from masksmith.reporting.tables import (
    ClassLine,
    MemberLine,
    ScoredImage,
    class_lines,
    fold_lines,
    group_lines,
    label_lines,
)
from masksmith.steps.ablate import ablation_of
from masksmith.steps.choices import plan_of
from masksmith.steps.out_of_fold import beside_of, predictions_of
from masksmith.steps.predict import oof_of, test_of
from masksmith.steps.pseudo_labels import labelling_of
from masksmith.steps.pseudo_rounds import round_lines
from masksmith.steps.result import expected_on_new
from masksmith.steps.seed_noise import noise_text, read_noise
from masksmith.steps.tune import need_tuning
from masksmith.training.config import VAL_LOSS
from masksmith.training.events import read_events

_AS_NET, _AS_NET_VALUES = 6, 1 << 22  # images shown as the net gets them, and the values of the largest


def report_members(project: Project, members: Sequence[Member]) -> Path:
    """Write the report."""
    return write_report(project.report_html, report_facts(project, members))


def report_facts(project: Project, members: Sequence[Member]) -> ReportFacts:
    """Collect what the report shows."""
    oof, tuning = oof_of(project, members), need_tuning(project, members)
    rows = [row for row in project.folds.rows if row.id in oof and row.id not in project.blank_train]
    run, recipe, masks = members[0].run, members[0].scored_by, project.cache.train_masks
    rule, metric = read_rule(tuning["rule"]), project.metric(recipe)
    stats = score_rows(metric, predictions_of(oof, rows), masks, rule, beside_of(project))
    scores = {name: float(metric.value(row[None])[0]) for name, row in stats.items()}
    labels = project.metric_groups(run.recipe, list(stats))
    scored = {
        name: ScoredImage(row, str(group)) for (name, row), group in zip(stats.items(), labels, strict=True)
    }
    all_rows, preds = (
        project.folds.rows,
        RuleMasks({row.id: oof[row.id] for row in rows}, rule, beside_of(project)),
    )
    test_shares: list[float] = []
    if project.catalog.test:
        codes = test_of(project, members)
        beside = beside_of(project, "test")
        masks_of = (mask_of(rule, codes, name, beside) for name in project.catalog.submission.ids)
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
        as_net=_as_net(project, members, [row.id for row in rows]),
        columns=_columns(project),
        values={sample.id: sample.values for sample in project.catalog.train},
        tuning=tuning,
        interim=any(member.interim for member in members),
        hidden=expected_on_new(tuning, len(project.catalog.test)),
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
        labels=[
            *(f"{name}: {made}" for name, made in labelling_of(members).items()),
            *round_lines(project, members),
        ],
        predicted=_predicted(members),
        lower=_lower(members),
        costs=_costs(project, metric, stats, labels),
        calibration=_calibration(project, oof, rows),
        members_table=_member_lines(members),
        weights=read_json(run.weights_json) if run.weights_json.exists() else None,
        repeat=_repeat(project, members, tuning),
        ablation=ablation_of(project, members),
    )


def _as_net(
    project: Project, members: Sequence[Member], names: Sequence[str]
) -> dict[str, Shaped[np.ndarray, "_ _ _"]]:
    """Return a few images as they are scaled and laid on their canvas for the first net of ours.

    There are none of images that are predicted in tiles or very large, and none where all nets are other programs'.
    """
    recipe = next((one.run.recipe for one in members if not one.run.is_external), None)
    if recipe is None or recipe.prediction.tile_hw is not None:
        return {}
    inputs, scale = project.inputs(recipe.input), recipe.prediction.tta_scales[0]
    images, view, found = inputs.train, views_of(["identity"], [scale])[0], {}
    for at in stream(0, len(names)).permutation(len(names))[:_AS_NET]:
        name = names[at]
        frame = view.frame(images.shape(name), recipe.size, recipe.model.divisor)
        pixels = max(math.prod(images.shape(name)), math.prod(frame.canvas_hw))
        if pixels * inputs.channels <= _AS_NET_VALUES:
            found[name] = frame.apply(np.ascontiguousarray(images[name]))
    return found


def _costs(project: Project, metric: Metric, stats: Mapping[str, Row], labels: Groups) -> dict[str, float]:
    """Return what each held-out image costs the score."""
    masks = project.cache.train_masks
    truths = (one_layer(np.asarray(masks[name])) for name in stats)
    perfect = np.stack([metric.stats(np.where(judged_pixels(one), one, 0), one) for one in truths])
    costs = image_costs(metric, np.stack(list(stats.values())), perfect, labels)
    return dict(zip(stats, costs.tolist(), strict=True))


def _calibration(
    project: Project, oof: Mapping[str, MeanCodes], rows: Sequence[FoldRow]
) -> list[tuple[str, PixelCounts]]:
    """Return the held-out pixels by probability; of objects, those of their foreground."""
    target, masks = project.target, project.cache.train_masks
    names = ["all classes"] if target.exclusive else ["foreground"]
    if target.task == "multilabel":
        names = list(target.classes)
    pairs = ((codes, one_layer(np.asarray(masks[name]))) for name, codes in predictions_of(oof, rows))
    found = count_pixels(pairs, exclusive=target.exclusive, planes=len(names))
    return list(zip(names, found, strict=True))


def _member_lines(members: Sequence[Member]) -> list[MemberLine]:
    weights = weights_of_test(members)
    lines = []
    for member, weight in zip(members, weights, strict=True):
        model = member.run.recipe.model
        what = f"{model.architecture} on {model.encoder or 'its own encoder'}"
        if member.run.is_external:
            what = "of another program"
        lines.append(MemberLine(member.name, weight / sum(weights), what))
    return lines


def _repeat(project: Project, members: Sequence[Member], tuning: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how to make this again; folders are named by their last part, for the page may be sent to others."""
    data, out = Path(project.catalog.root).name, project.root.resolve().name
    own = [member for member in members if not member.run.is_external]
    found = []
    if own and own[0].ensemble is None and len({member.run.path for member in own}) == 1:
        found.append(
            (
                "train it again from the resolved recipe below, saved as recipe.yaml",
                f"masksmith compete {quote(data)} --out AGAIN --recipe recipe.yaml",
            )
        )
    found.append(("make this page again", f"masksmith report {quote(out)}"))
    found.append(("compare it with other runs", f"masksmith compare {quote(out)} OTHER"))
    if not is_no_better(tuning):
        found.append(("take the model along as one file", f"masksmith bundle {quote(out)} --out model.msk"))
    return found


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
        found = read_events(member.run.events(member.fold))
        events += [{**e, "curve": label} for e in found if e["fold"] == member.fold]
    return events
