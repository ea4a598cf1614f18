"""The images of a project by which an exported model is calibrated and judged."""

from collections.abc import Iterable
from pathlib import Path

from masksmith.core.arrays import Codes
from masksmith.core.errors import InputError
from masksmith.deploy.bundle import Bundle
from masksmith.deploy.export import Judge
from masksmith.postprocess.rules import columns_of, read_rule
from masksmith.postprocess.scoring import score_of, score_rows
from masksmith.project.folder import Project
from masksmith.steps.out_of_fold import beside_of


def judge_of(project: Project, model: Path) -> Judge:
    """Return the training images of a project, and which of them each member of a bundle has not seen.

    Raises:
        InputError: The bundle was made of other data, or all its members have seen all images.
    """
    bundle = Bundle(model)
    if bundle.facts.data.get("content_hash") != project.catalog.content_hash:
        raise InputError(
            f"--project {project.root}: {model} was made of other data; name the project that it was made of"
        )
    of_fold: dict[int, list[int]] = {}
    for at, member in enumerate(bundle.facts.members):
        number = member.name.rpartition(" ")[2]  # RUN/fold 2, or RUN/all for one that has seen everything
        if number.isdigit():
            of_fold.setdefault(int(number), []).append(at)
    names = [row.id for row in project.folds.rows if row.id not in project.blank_train]
    inside = {fold: [row.id for row in project.folds.rows if row.fold == fold] for fold in of_fold}
    held_out = [(of_fold[fold], [one for one in inside[fold] if one in set(names)]) for fold in of_fold]
    held_out = [(members, own) for members, own in held_out if own]
    if not held_out:
        raise InputError(
            f"--project {project.root}: the members of {model} were trained on all its images, none is left to judge "
            "by; choose another precision than int8"
        )
    recipe, rule = bundle.recipes[0], read_rule(dict(bundle.facts.rule))
    metric, masks = project.metric(recipe), project.cache.train_masks

    def score(predictions: Iterable[tuple[str, Codes]]) -> float:
        rows = score_rows(metric, predictions, masks, rule, beside_of(project))
        return metric.utility(score_of(metric, rows, project.metric_groups(recipe, list(rows))))

    own = {name for one in bundle.recipes for name in one.model.scalars}
    columns = sorted(own | set(columns_of(rule)))
    numbers = {
        one.id: {name: one.values[name] for name in columns} for one in project.catalog.train if columns
    }
    return Judge(project.cache.train_images, names, held_out, recipe.metric, score, numbers)
