"""Masks and the submission: of the members, or of a baseline before anything is trained."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from masksmith.core.arrays import AnyMask
from masksmith.core.errors import InputError
from masksmith.core.files import atomic_folder, copy_file, file_digest, read_json, remove, write_json
from masksmith.core.progress import logger
from masksmith.postprocess.rules import apply_rule, mask_of, read_rule
from masksmith.project.folder import Project
from masksmith.project.members import Member
from masksmith.recipes.ensemble import AnyRecipe
from masksmith.steps.out_of_fold import baseline_scores, beside_of, predictions_of, trivial_predictions
from masksmith.steps.predict import codes_digest, oof_of, test_of
from masksmith.steps.tune import need_tuning
from masksmith.submission.formats import with_coco, write_masks, write_outputs
from masksmith.submission.validate import Verdict, validate_files, validate_submission

_VERSION = "1"


def write_baseline(project: Project, recipe: AnyRecipe) -> Verdict:
    """Write a submission before anything is trained: nothing or everything, what scores better on the training masks.

    ``submission.json`` calls it a baseline. The images without content are left out of its score.
    """
    scores = baseline_scores(project, recipe)
    metric = project.metric(recipe)
    best = max(scores, key=lambda name: metric.utility(scores[name]))
    shapes, value = test_shapes(project), trivial_predictions(project)[best]
    full = value if project.target.exclusive and isinstance(value, int) else int(value is not None)
    layers = (project.target.outputs,) if project.target.task == "multilabel" else ()
    dtype = np.int32 if project.target.task == "instances" else np.uint8
    masks = (
        np.full((*shapes[name], *layers), 0 if name in project.blank_test else full, dtype)
        for name in project.catalog.submission.ids
    )
    project.ledger.forget("submit")
    verdict = _write(
        project, masks, {"kind": "baseline", "masks": best, "score": scores[best], "members": []}
    )
    logger.info(
        "baseline submission: every mask %s; %s %.4f on the training masks",
        {"nothing": "empty", "everything": "full"}.get(best, best), recipe.metric, scores[best],
    )  # fmt: skip
    return verdict


def standing_submission(project: Project) -> Verdict | None:
    """Return the verdict on the submission that is there, None if there is none or it is not whole."""
    try:
        return _validated(project)
    except InputError:
        return None


def _validated(project: Project) -> Verdict:
    """Return the verdict on the submission that is there.

    Raises:
        InputError: It is not whole.
    """
    form, shapes, masks = project.catalog.submission, test_shapes(project), project.masks_dir
    files = _files_dir(project)
    if files is not None:
        validate_files(files, form, shapes, masks=masks, target=project.target)
    verdict = validate_submission(project.submission_csv, form, shapes, masks=masks, target=project.target)
    return replace(verdict, files=str(files or ""))


def _files_dir(project: Project) -> Path | None:
    """Return the folder of the mask files that the judge takes, None where it takes the table."""
    wanted = project.catalog.submission.files and project.target.task != "multilabel"
    return project.predictions_dir if wanted else None


def submit_members(project: Project, members: Sequence[Member]) -> Verdict:
    """Write masks and submission, and validate both.

    Raises:
        InputError: There are no test images, or the tuning is missing or stale.
    """
    tuning = need_tuning(project, members)
    rule = read_rule(tuning["rule"])
    form = project.catalog.submission
    if not form.ids:
        raise InputError(f"{project.catalog.root}: there are no test images, so there is nothing to submit")
    codes = test_of(project, members)
    key = project.key(_VERSION, str(rule), codes_digest(codes))
    if project.ledger.is_done("submit", key):
        if (verdict := standing_submission(project)) is not None:
            return verdict
        logger.warning("%s or its masks are no longer whole; writing them again", project.submission_csv)
    project.ledger.forget("submit")
    beside = beside_of(project, "test")
    masks = (mask_of(rule, codes, name, beside) for name in form.ids)
    kind = "interim" if any(member.interim for member in members) else "trained"
    facts = {
        "kind": kind,
        "rule": tuning["rule_text"],
        "score": tuning["scores"]["chosen"],
        "standard_error": tuning["standard_error"],
        "images": tuning["images"],
        "run": members[0].ensemble.name if members[0].ensemble else members[0].run.path.name,
        "members": [member.name for member in members],
    }
    verdict = _write(project, masks, facts)
    project.ledger.mark_done("submit", key)
    return verdict


def _write(project: Project, masks: Iterable[AnyMask], facts: dict[str, Any]) -> Verdict:
    form = project.catalog.submission
    earlier = keep_earlier(project)
    coco = project.objects_json if project.target.task == "instances" else None
    write_outputs(
        project.masks_dir,
        project.submission_csv,
        form,
        masks,
        project.target,
        coco=coco,
        files=_files_dir(project),
    )
    if earlier is not None and file_digest(earlier) == file_digest(project.submission_csv):
        remove(earlier)  # the same once more
    write_json(project.submission_json, facts)
    return _validated(project)


def keep_earlier(project: Project) -> Path | None:
    """Copy the submission that is about to be replaced to ``submissions/DATE-RUN.csv``; a baseline is not kept.

    Returns:
        The copy, or None if there is nothing to keep that is not kept already.
    """
    if not project.submission_csv.exists():
        return None
    facts = read_json(project.submission_json) if project.submission_json.exists() else {}
    if facts.get("kind") == "baseline":
        return None
    written = datetime.fromtimestamp(project.submission_csv.stat().st_mtime)
    name = f"{written:%Y-%m-%d-%H%M%S}-{facts.get('run', 'unnamed')}"
    content = file_digest(project.submission_csv)
    same_second = sorted(project.submissions_dir.glob(f"{name}*.csv"))
    if any(file_digest(file) == content for file in same_second):
        return None
    copy = project.submissions_dir / f"{name}{f'-{len(same_second) + 1}' if same_second else ''}.csv"
    copy_file(project.submission_csv, copy)
    known = read_json(project.earlier_json) if project.earlier_json.exists() else {}
    write_json(project.earlier_json, known | {content: facts})
    return copy


def check_file(project: Project, path: Path) -> Verdict:
    """Return the verdict on a submission that anybody made, or on a folder of the mask files that the judge takes.

    Raises:
        InputError: It is not valid: with every problem.
    """
    form, shapes = project.catalog.submission, test_shapes(project)
    if not form.ids:
        raise InputError(f"{project.catalog.root}: there are no test images, so there is nothing to submit")
    if path.is_dir():
        if _files_dir(project) is None:
            raise InputError(
                f"{path}: a folder; the judge takes a table ({form.source}): expected a CSV file"
            )
        validate_files(path, form, shapes, masks=None, target=project.target)
        return Verdict(str(path), len(form.ids), 0, 0)
    return validate_submission(path, form, shapes, masks=None, target=project.target)


def write_oof_masks(project: Project, members: Sequence[Member]) -> Path:
    """Write the masks of the held-out images of a project without test images, into ``masks/oof``."""
    rule, oof = read_rule(need_tuning(project, members)["rule"]), oof_of(project, members)
    folder, beside = project.masks_dir / "oof", beside_of(project)
    rows = [row for row in project.folds.rows if row.id in oof]
    masks: Iterator[tuple[str, AnyMask]] = (
        (name, apply_rule(rule, codes, name, beside)) for name, codes in predictions_of(oof, rows)
    )
    if project.target.task == "instances":
        masks = with_coco(project.objects_json, masks, category=project.target.classes[0])
    with atomic_folder(folder) as temporary:
        for _ in write_masks(temporary, masks, project.target, where=folder):
            pass
    return folder


def test_shapes(project: Project) -> dict[str, tuple[int, int]]:
    """Return the size of every test image."""
    images = project.cache.test_images
    return {name: images.shape(name) for name in images}
