"""From probabilities to a submission: tuning, masks, the file for the judge, the report; and the baseline before them.

All of it is about a list of members, be it the folds of one run or the ensemble of a whole project.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksmith.core.arrays import Mask
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.core.progress import clock, logger
from masksmith.folds.table import ALL, fold_name
from masksmith.metrics import get_metric
from masksmith.postprocess.operators import Rule, apply_rule
from masksmith.postprocess.scoring import RuleMasks, constant, score_of, score_rows
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.project.members import Member
from masksmith.recipes.ensemble import Ensemble, Judge
from masksmith.steps.choices import choices_of, plan_of
from masksmith.steps.predict import codes_digest, oof_of, test_of
from masksmith.steps.pseudo_labels import labelling_of
from masksmith.steps.seed_noise import noise_text, read_noise
from masksmith.steps.tune import compare_recipes, optimism_of, predictions_of, tune_oof
from masksmith.submission.files import Verdict, validate_submission, write_masks, write_submission

if TYPE_CHECKING:
    from masksmith.reporting import ReportFacts

_VERSIONS = {"tune": "6", "submit": "1"}


def write_baseline(project: Project, recipe: Judge) -> Verdict:
    """Write a submission before anything is trained: nothing or everything, what scores better on the training masks.

    ``submission.json`` calls it a baseline. The images without content are left out of its score.
    """
    scores = baseline_scores(project, recipe)
    metric = get_metric(recipe.metric)
    best = max(scores, key=lambda name: metric.utility(scores[name]))
    value = int(best == "everything")
    planes = {name: np.full(shape, value, np.uint8) for name, shape in test_shapes(project).items()}
    for name in planes:
        if name in project.blank_test:
            planes[name][:] = 0
    project.ledger.forget("submit")
    verdict = _write(
        project, planes, {"kind": "baseline", "masks": best, "score": scores[best], "members": []}
    )
    logger.info(
        "baseline submission: every mask %s; %s %.4f on the training masks",
        {"nothing": "empty", "everything": "full"}[best], recipe.metric, scores[best],
    )  # fmt: skip
    return verdict


def baseline_scores(project: Project, recipe: Judge, *, fold: int | None = None) -> dict[str, float]:
    """Return the scores of "nothing" and "everything" on the training images with content, or on a fold's."""
    metric, masks = get_metric(recipe.metric), project.cache.train_masks
    names = list(masks) if fold is None else project.folds.inside(fold)
    names = [name for name in names if name not in project.blank_train] or names
    scores = {}
    groups = project.metric_groups(recipe, names) if metric.by_group else None
    for label in ("nothing", "everything"):
        predictions = constant(((name, masks.shape(name)) for name in names), full=label == "everything")
        scores[label] = score_of(metric, score_rows(metric, predictions, masks), groups)
    return scores


def standing_submission(project: Project) -> Verdict | None:
    """Return the verdict on the submission that is there, None if there is none or it is not whole."""
    try:
        return validate_submission(
            project.submission_csv, project.catalog.submission, test_shapes(project), masks=project.masks_dir
        )
    except InputError:
        return None


def tune_members(project: Project, members: Sequence[Member]) -> dict[str, Any]:
    """Search the rule on the members' out-of-fold probabilities; return what tuning.json holds.

    Raises:
        InputError: Probabilities are missing or stale.
    """
    key = _tune_key(project, members)
    if project.ledger.is_done("tune", key) and project.tuning_json.exists():
        stored: dict[str, Any] = read_json(project.tuning_json)
        return stored
    recipe, oof = members[0].judge, oof_of(project, members)
    optimism: dict[str, float] = {}
    for member in members:
        found = {} if member.interim or member.fold == ALL else optimism_of(member.run, member.fold)
        of_run = "" if member.ensemble is None else f"{member.run.path.name} "
        optimism |= {f"{of_run}{fold}": value for fold, value in found.items()}
    names = {
        "members": [member.name for member in members],
        "run": members[0].run.path.name,
        "began_from_best": [
            member.name
            for member in members
            if any(stage.start == "best" for stage in member.run.recipe.training.stages)
        ],
    }
    value = names | tune_oof(project, recipe, oof, optimism=optimism)
    rule = ["thresholds (nested)"] if value["kept"] else []
    value["chosen_on_fold"] = [*choices_of(project, members), *rule]
    if isinstance(recipe, Ensemble):
        value["ensemble"] = _compared(project, recipe, members, oof)
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


def _compared(
    project: Project, ensemble: Ensemble, members: Sequence[Member], oof: Mapping[int, MeanCodes]
) -> dict[str, Any]:
    """Return how the ensemble does beside its recipes."""
    of_run: dict[str, list[Member]] = {}
    for member in members:
        if member.fold != ALL:
            of_run.setdefault(member.run.path.name, []).append(member)
    each = {name: oof_of(project, own) for name, own in of_run.items()}
    weights = {name: own[0].weight for name, own in of_run.items()}
    found = compare_recipes(project, ensemble, oof, each, weights)
    text = _ensemble_text(found)
    logger.info("%s", text)
    return found | {"text": text}


def _ensemble_text(found: Mapping[str, Any]) -> str:
    """Return the sentence on an ensemble beside the best of its recipes."""
    row = next(row for row in found["table"] if row["run"] == found["best"])
    if len(found["table"]) == 1:
        return f"ensemble {found['name']}: so far {row['run']} alone ({row['score']:.4f})"
    return (
        f"ensemble {found['name']}: {row['ensemble']:.4f} beside {row['score']:.4f} of {row['run']}, the best of "
        f"{len(found['table'])} recipes (plain, on the same images); gain {found['gain_mean']:+.4f}, 80% bounds "
        f"{found['gain_low']:+.4f} … {found['gain_high']:+.4f}: {found['verdict']}"
    )


def submit_members(project: Project, members: Sequence[Member]) -> Verdict:
    """Write masks and submission, and validate both.

    Raises:
        InputError: There are no test images, or the tuning is missing or stale.
    """
    tuning = need_tuning(project, members)
    rule = Rule(**tuning["rule"])
    form = project.catalog.submission
    if not form.ids:
        raise InputError(f"{project.catalog.root}: there are no test images, so there is nothing to submit")
    codes = test_of(project, members)
    key = project.key(_VERSIONS["submit"], str(rule), codes_digest(codes))
    if project.ledger.is_done("submit", key):
        if (verdict := standing_submission(project)) is not None:
            return verdict
        logger.warning("%s or its masks are no longer whole; writing them again", project.submission_csv)
    project.ledger.forget("submit")
    masks = {name: apply_rule(codes[name][..., 0], rule) for name in form.ids}
    kind = "interim" if any(member.interim for member in members) else "trained"
    facts = {
        "kind": kind,
        "rule": tuning["rule_text"],
        "score": tuning["scores"]["chosen"],
        "members": [member.name for member in members],
    }
    verdict = _write(project, masks, facts)
    project.ledger.mark_done("submit", key)
    return verdict


def _write(project: Project, masks: dict[str, Mask], facts: dict[str, Any]) -> Verdict:
    form = project.catalog.submission
    write_masks(project.masks_dir, masks.items())
    write_submission(project.submission_csv, form, masks)
    write_json(project.submission_json, facts)
    return validate_submission(project.submission_csv, form, test_shapes(project), masks=project.masks_dir)


def report_members(project: Project, members: Sequence[Member]) -> Path:
    """Write the report."""
    from masksmith.reporting import write_report

    return write_report(project.report_html, report_facts(project, members))


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
    if not project.ledger.is_done("tune", _tune_key(project, members)):
        raise InputError(
            f"{project.tuning_json}: made from other probabilities or settings than the present ones; run "
            f"`masksmith tune {project.root}` again"
        )
    return tuning


def _tune_key(project: Project, members: Sequence[Member]) -> str:
    recipe = members[0].judge
    oof = [f"{fold} {codes_digest(codes)}" for fold, codes in oof_of(project, members).items()]
    names = [
        member.name if member.ensemble is None else f"{member.name} weighs {member.weight}"
        for member in members
    ]
    parts = (str(recipe.folds.group_by), project.folds.hash, *choices_of(project, members))
    return project.key(
        _VERSIONS["tune"], *parts, recipe.metric, str(recipe.tuning), str(recipe.seed), *names, *oof
    )


def test_shapes(project: Project) -> dict[str, tuple[int, int]]:
    """Return the size of every test image."""
    images = project.cache.test_images
    return {name: images.shape(name) for name in images}


def report_facts(project: Project, members: Sequence[Member]) -> "ReportFacts":
    """Collect what the report shows."""
    from masksmith.reporting import ReportFacts
    from masksmith.reporting.tables import ScoredImage, fold_lines, group_lines

    oof, tuning = oof_of(project, members), need_tuning(project, members)
    rows = [row for row in project.folds.rows if row.fold in oof and row.id not in project.blank_train]
    run, judge, masks = members[0].run, members[0].judge, project.cache.train_masks
    rule, metric = Rule(**tuning["rule"]), get_metric(judge.metric)
    stats = score_rows(metric, predictions_of(oof, rows), masks, rule)
    scores = {name: float(metric.value(row[None])[0]) for name, row in stats.items()}
    labels = project.metric_groups(run.recipe, list(stats))
    scored = {
        name: ScoredImage(row, str(group)) for (name, row), group in zip(stats.items(), labels, strict=True)
    }
    all_rows = project.folds.rows
    test_shares: list[float] = []
    if project.catalog.test:
        codes = test_of(project, members)
        test_shares = [
            float(apply_rule(codes[name][..., 0], rule).mean()) for name in project.catalog.submission.ids
        ]
    return ReportFacts(
        title=Path(project.catalog.root).name,
        run=judge.name if members[0].ensemble else run.path.name,
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
        noise=noise_text(read_noise(project.noise_json)),
        plan=plan_of(project, members),
        budget=_budget_text(project),
        events=_events(members),
        coverage_test=test_shares,
        scores=scores,
        images=project.cache.train_images,
        view=run.recipe.input.view,
        masks=masks,
        preds=RuleMasks({row.id: oof[row.fold] for row in rows}, rule),
        labels=[f"{name}: {made}" for name, made in labelling_of(members).items()],
    )


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
        return run.recipe.to_yaml()
    recipes = {member.run.path.name: member.run.recipe for member in members}
    texts = [f"# {name}\n{recipe.to_yaml()}" for name, recipe in recipes.items()]
    return "---\n".join([ensemble.to_yaml(), *texts])


def _budget_text(project: Project) -> str:
    """Return what was spent of the budget until now, for people."""
    if not project.budget_json.exists():
        return ""
    value = read_json(project.budget_json)
    return f"{clock(value['spent_s'])} of {clock(value['total_s'])} before this page was written"


def _events(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return the events of the members' folds, each with the name of its curve."""
    from masksmith.training.events import read_events

    several = len({member.run.path.name for member in members}) > 1
    events = []
    for member in members:
        label = member.name if several else fold_name(member.fold).replace("_", " ")
        events += [{**e, "curve": label} for e in read_events(member.run.events) if e["fold"] == member.fold]
    return events
