"""Tuning: the out-of-fold probabilities of all members judged together, and every score of tuning.json."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from masksmith.core.arrays import Codes
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.core.progress import logger
from masksmith.folds.assignment import assign_folds
from masksmith.folds.config import ALL
from masksmith.folds.table import FoldRow
from masksmith.metrics import Metric
from masksmith.metrics.planes import metric_of_plane
from masksmith.metrics.protocol import Groups, Row
from masksmith.postprocess.classes import ClassRule, class_rules
from masksmith.postprocess.config import TuningConfig
from masksmith.postprocess.labels import LabelRules, best_of_labels, make_label_sweep
from masksmith.postprocess.objects import PLAIN_OBJECTS, ObjectRule, apply_rules, candidate_rules
from masksmith.postprocess.operator_search import num_rules, searched
from masksmith.postprocess.rule_sweep import AnySweep, sweep_rules
from masksmith.postprocess.rules import AnyRule, plain_of
from masksmith.postprocess.scoring import one_layer, score_rows
from masksmith.postprocess.search import PARTS, Pairs, Tuning, make_sweep, search_rule
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.project.members import Member
from masksmith.project.runs import Run
from masksmith.recipes.ensemble import AnyRecipe, Ensemble
from masksmith.steps.choices import choices_of
from masksmith.steps.ensemble import compare_members
from masksmith.steps.operators import check_tuning, operator_sweep
from masksmith.steps.out_of_fold import baseline_scores, beside_of, class_shares, predictions_of
from masksmith.steps.predict import oof_digests, oof_of
from masksmith.training.checkpoint import facts_of
from masksmith.training.config import CHOSEN_ON_HELD_OUT
from masksmith.training.events import read_events

_VERSION = "7"


def tune_members(project: Project, members: Sequence[Member]) -> dict[str, Any]:
    """Search the rule on the members' out-of-fold probabilities; return what tuning.json holds.

    Raises:
        InputError: Probabilities are missing or stale.
    """
    key = tune_key(project, members)
    if project.ledger.is_done("tune", key) and project.tuning_json.exists():
        stored: dict[str, Any] = read_json(project.tuning_json)
        return stored
    recipe, oof = members[0].scored_by, oof_of(project, members)
    optimism: dict[str, float] = {}
    for member in members:
        unknown = member.interim or member.fold == ALL or member.run.is_external
        found = {} if unknown else optimism_of(member.run, member.fold)
        of_run = f"{member.part} " if member.ensemble or member.blend else ""
        optimism |= {f"{of_run}{fold}": value for fold, value in found.items()}
    names = {
        "members": [member.name for member in members],
        "run": members[0].run.path.name,
        "began_from_best": [
            member.name
            for member in members
            if not member.run.is_external
            and any(stage.start == "best" for stage in member.run.recipe.training.stages)
        ],
    }
    value = names | tune_oof(project, recipe, oof, optimism=optimism)
    rule = ["thresholds (nested)"] if value["kept"] else []
    value["chosen_on_fold"] = [*choices_of(project, members), *rule]
    if isinstance(recipe, Ensemble) or members[0].blend or any(member.run.is_external for member in members):
        value["ensemble"] = compare_members(project, recipe, members, oof)
    project.ledger.forget("tune")
    write_json(project.tuning_json, value)
    value = read_json(project.tuning_json)  # what a notebook gets now is what it will read later
    project.ledger.mark_done("tune", key)
    logger.info("tuning: %s", verdict_on(value))
    return value


def verdict_on(tuning: dict[str, Any]) -> str:
    """Say in a few words what the search of tuning.json came to."""
    if tuning["num_rules"] == 1:
        return f"not searched, the recipe gives one rule: '{tuning['found_text']}'"
    verdict = "kept" if tuning["kept"] else "not kept: no certain gain"
    return f"found '{tuning['found_text']}' ({verdict})"


def need_tuning(project: Project, members: Sequence[Member]) -> dict[str, Any]:
    """Return tuning.json.

    Raises:
        InputError: It is missing, or was made from other members, probabilities or settings.
    """
    if not project.tuning_json.exists():
        raise InputError(f"{project.tuning_json}: not there yet; run `masksmith tune {project.root}` first")
    tuning: dict[str, Any] = read_json(project.tuning_json)
    names = [member.name for member in members]
    if tuning["members"] != names:
        raise InputError(
            f"{project.tuning_json}: it was made for {', '.join(tuning['members'])}, not {', '.join(names)}; "
            f"run `masksmith tune {project.root}` for these first (with the same --run, if you gave one)"
        )
    if not project.ledger.is_done("tune", tune_key(project, members)):
        raise InputError(
            f"{project.tuning_json}: made from other probabilities or settings than the present ones; run "
            f"`masksmith tune {project.root}` again"
        )
    return tuning


def tune_key(project: Project, members: Sequence[Member]) -> str:
    """Return what the tuning depends on: members and their weights, probabilities, folds, metric, rules.

    Raises:
        InputError: As oof_of.
    """
    recipe = members[0].scored_by
    oof = oof_digests(project, members)
    names = [
        f"{member.name} weighs {member.weight}" if member.ensemble or member.weight != 1 else member.name
        for member in members
    ]
    names += [str(members[0].blend)] if members[0].blend else []
    parts = (str(recipe.folds.group_by), project.folds.hash, *choices_of(project, members))
    return project.key(_VERSION, *parts, recipe.metric, str(recipe.tuning), str(recipe.seed), *names, *oof)


def tune_oof(
    project: Project, recipe: AnyRecipe, oof: Mapping[str, MeanCodes], *, optimism: dict[str, float]
) -> dict[str, Any]:
    """Search the rule on the out-of-fold probabilities and return all scores as plain values.

    Args:
        project: Its folds and masks.
        recipe: The metric, candidates and seed of a recipe or an ensemble.
        oof: Id -> averaged probabilities, of the images that are held out.
        optimism: What choosing epochs on the folds may have added to the score (see optimism_of).
    """
    metric, config = project.metric(recipe), recipe.tuning
    masks, made = project.cache.train_masks, project.folds
    rows = [row for row in made.rows if row.id in oof]
    content = [row for row in rows if row.id not in project.blank_train]
    if not content:
        raise InputError(
            f"{project.root}: the held-out images of fold {_folds_of(rows)} have no content, so nothing can be judged"
        )
    check_tuning(project, config, recipe, min(oof[row.id].channels for row in content))
    rules, sweep = sweep_of(project, metric, config, lambda: predictions_of(oof, content))
    groups = [row.group for row in content]
    labels = project.metric_groups(recipe, [row.id for row in content])
    several = len(_folds_of(rows)) > 1
    parts = np.array([row.fold for row in content]) if several else _parts(content, seed=recipe.seed)
    found = search_rule(
        sweep,
        metric,
        rules,
        parts=parts,
        groups=groups,
        labels=labels.tolist(),
        resamples=config.resamples,
        seed=recipe.seed,
        choose=best_of_labels if project.target.task == "multilabel" else None,
    )
    blank = [row for row in rows if row.id in project.blank_train]
    trivial = baseline_scores(project, recipe, names=[row.id for row in content])

    def blank_rows(rule: AnyRule) -> dict[str, Row]:
        return score_rows(metric, predictions_of(oof, blank), masks, rule, beside_of(project))

    all_groups = project.metric_groups(recipe, [row.id for row in [*content, *blank]])
    many_sizes = len(_areas(project)) > 1
    return {
        "metric": metric.name,
        "metric_describes": metric.describes,
        "higher_is_better": metric.higher_is_better,
        "images": len(content),
        "covers": f"{len(rows)} of {len(made.rows)} training images, {len(blank)} without content left out",
        "scores": _scores(sweep, found, metric, blank_rows, all_groups, plain=rules[0]) | trivial,
        "baselines": list(trivial),
        "num_rules": num_rules(sweep, rules),
        "searched": _searched(metric, rules, sweep),
        "rule_text": found.rule.describe(many_sizes=many_sizes),
        "found_text": found.found.describe(many_sizes=many_sizes),
        "optimism": optimism or None,
        **found.to_json(),
    }


def sweep_of(
    project: Project,
    metric: Metric,
    config: TuningConfig,
    predictions: Callable[[], Iterable[tuple[str, Codes]]],
) -> tuple[Sequence[AnyRule], AnySweep]:
    """Return the rules to try and their rows, by the task; the predictions of several labels are read once for each.

    Raises:
        InputError: Optuna is needed for so many combinations of operators, and is not installed.
        StoppedError: Stopped.
    """
    masks = project.cache.train_masks
    if config.operators is not None:
        return operator_sweep(project, metric, config, predictions)
    rules: Sequence[Any]
    pairs = ((codes, one_layer(masks[name])) for name, codes in predictions())

    def plane(at: int) -> Pairs:
        return ((codes[..., at], np.asarray(masks[name][..., at])) for name, codes in predictions())

    if project.target.exclusive:
        rules = (
            class_rules(class_shares(project))
            if config.search_classes
            else [plain_of(project.target, config)]
        )
        return rules, sweep_rules(pairs, rules, metric)
    if project.target.task == "instances":
        rules = (
            candidate_rules(min_areas=config.min_object_areas) if config.search_objects else [PLAIN_OBJECTS]
        )
        return rules, sweep_rules(pairs, rules, metric, apply_all=apply_rules)
    if project.target.task == "multilabel":
        return make_label_sweep(
            lambda at, alone: make_sweep(plane(at), alone, config), project.target.classes, metric
        )
    return make_sweep(plane(0), metric, config)


def _areas(project: Project) -> set[int]:
    """Return the areas that the images have, training and test together."""
    stores = (project.cache.train_images, project.cache.test_images)
    return {height * width for images in stores for height, width in map(images.shape, images)}


def _searched(metric: Metric, rules: Sequence[AnyRule], sweep: AnySweep) -> str:
    if len(rules) == 1:
        return "nothing: the recipe gives one rule"
    if text := searched(sweep, rules):
        return text
    if isinstance(rules[0], ClassRule):
        return "a weight of each class"
    if isinstance(rules[0], ObjectRule):
        return "thresholds of foreground and seeds, least areas"
    if isinstance(rules[0], LabelRules):
        by_counts = metric_of_plane(metric).needs == "counts"
        return f"{'top and bottom threshold, pixels' if by_counts else 'bottom threshold'} of each label"
    return "top and bottom threshold, pixels" if metric.needs == "counts" else "bottom threshold"


def _scores(
    sweep: AnySweep,
    found: Tuning,
    metric: Metric,
    blank_rows: Callable[[AnyRule], dict[str, Row]],
    groups: Groups,
    *,
    plain: AnyRule,
) -> dict[str, float]:
    """Return every score by name; ``groups`` are those of the sweep's images, then of the images without content."""

    def with_blank(rule: AnyRule) -> float:
        extra = list(blank_rows(rule).values())
        return metric.score(np.stack([*sweep.rows_of(rule), *extra]), groups)

    return {
        "chosen": found.nested if found.kept else found.plain,
        "plain": found.plain,
        "tuned": found.tuned,
        "nested": found.nested,
        "plain_with_blank": with_blank(plain),
        "tuned_with_blank": with_blank(found.found),
    }


def parts_of(project: Project, names: Sequence[str], *, seed: int) -> Any:  # noqa: ANN401
    """Return the part of each held-out image for a nested score: its fold, or a group-wise part of a single fold."""
    homes = {row.id: row for row in project.folds.rows}
    rows = [homes[name] for name in names]
    folds = np.array([row.fold for row in rows])
    return folds if len(np.unique(folds)) > 1 else _parts(rows, seed=seed)


def _folds_of(rows: Sequence[FoldRow]) -> list[int]:
    """Return the folds, of the first repeat, that these images are in."""
    return sorted({row.fold for row in rows})


def _parts(rows: Sequence[FoldRow], *, seed: int) -> Any:  # noqa: ANN401
    """Divide the images of one fold into group-wise, stratified parts for the nested score."""
    groups = [row.group for row in rows]
    count = min(PARTS, len(set(groups)))
    if count < 2:
        return np.zeros(len(rows), np.int64)
    return assign_folds([row.coverage_class for row in rows], groups, count=count, seed=seed)


def optimism_of(run: Run, fold: int) -> dict[str, float]:
    """Where the epoch was chosen on the fold, by its score or its loss: its score less that of the last epoch.

    Higher is better in both. By the loss it may be below 0; chosen on the fold it is all the same.
    """
    if run.recipe.training.select not in CHOSEN_ON_HELD_OUT:
        return {}
    found = [event for event in read_events(run.events(fold)) if event["fold"] == fold]
    scores = {e["epoch"]: e["value"] for e in found if (e["split"], e["name"]) == ("fold", "score")}
    return {f"fold_{fold}": scores[facts_of(run.final(fold))["epoch"]] - scores[max(scores)]}
