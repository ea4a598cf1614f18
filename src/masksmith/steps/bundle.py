"""The bundle of a project: its members' weights and all that is needed to use them elsewhere."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from masksmith.core.errors import InputError
from masksmith.core.files import digest
from masksmith.core.progress import logger, track
from masksmith.deploy.bundle import SUFFIX, MemberFacts, ModelFacts, write_bundle
from masksmith.deploy.features import features, widen
from masksmith.deploy.pack import form_for_others
from masksmith.folds.config import ALL
from masksmith.postprocess.rules import plain_of
from masksmith.postprocess.scoring import score_of, score_rows
from masksmith.prediction.means import MEAN
from masksmith.project.folder import Project
from masksmith.project.members import Member, weights_of_test
from masksmith.recipes.recipe import Recipe
from masksmith.steps.out_of_fold import predictions_of
from masksmith.steps.predict import oof_of, recorded_runtime, weights_of
from masksmith.steps.train import is_trained, not_trained
from masksmith.steps.tune import need_tuning


@dataclass(frozen=True)
class Bundled:
    """A bundle that was written."""

    path: Path
    members: list[str]
    bytes: int
    score: str

    def __str__(self) -> str:
        names = ", ".join(self.members)
        return (
            f"{self.path}: {self.bytes / 2**20:.1f} MiB, {len(self.members)} members ({names}); {self.score}"
        )


def bundle_members(
    project: Project,
    members: Sequence[Member],
    out: Path,
    *,
    best: int | None = None,
    fold: int | None = None,
    licence: str | None = None,
    intended_use: str | None = None,
) -> Bundled:
    """Write the bundle of members.

    Args:
        project: The project.
        members: What its submission is made of.
        out: The file.
        best: Only so many members, those that score best on the images that they have not seen.
        fold: Only the members that were trained without this fold.
        licence: Of the weights, in words.
        intended_use: In words.

    Raises:
        InputError: Nothing is trained or tuned, no member of the fold, or a name without the right ending.
    """
    if out.suffix != SUFFIX:
        raise InputError(f"--out: {out}; expected a name that ends in {SUFFIX}")
    external = dict.fromkeys(member.run.path.name for member in members if member.run.is_external)
    if any("stacked_on" in member.run.external for member in members if member.run.is_external):
        raise InputError(
            f"the present members are trees on predictions (`masksmith stack`), which a bundle does not carry; run "
            f"`masksmith stack {project.root} --off`, or name a run with --run"
        )
    if external:
        raise InputError(
            f"{', '.join(external)}: probabilities of another program, whose weights are not here; name a run of this "
            "project with --run"
        )
    for member in members:
        if not member.interim and not is_trained(project, member):
            raise not_trained(project, member)
    tuning = need_tuning(project, members)
    kept = _chosen(project, members, best=best, fold=fold)
    weights = [member.weight for member in kept] if fold is not None else weights_of_test(kept)
    files: dict[str, bytes] = {}
    facts = [_member_facts(project, one, weight, files) for one, weight in zip(kept, weights, strict=True)]
    catalog, cache, blend = project.catalog, project.cache, members[0].blend
    scores = tuning["scores"]
    said: dict[str, Any] = {} if licence is None else {"licence": licence}
    said |= {} if intended_use is None else {"intended_use": intended_use}
    model = ModelFacts(
        name=out.stem,
        target=project.target.to_json(),
        channels=cache.channels,
        dtype=str(cache.train_images.dtype),
        members=facts,
        rule=tuning["rule"],
        rule_text=tuning["rule_text"],
        scores={
            "metric": tuning["metric"],
            "score": scores["chosen"],
            "of": "all members of the project, out of fold",
            "covers": tuning["covers"],
            "interval": tuning.get("interval"),
            "nothing": scores.get("nothing"),
        },
        data={
            "train": len(catalog.train),
            "layout": catalog.layout,
            "content_hash": catalog.content_hash,
        },
        ranges=_ranges(project),
        submission=asdict(form_for_others(catalog.submission)),
        masksmith=metadata.version("masksmith"),
        blend=None if blend is None or blend.kind == MEAN else blend.to_json(),
        **said,
    )
    write_bundle(out, model, files)
    score = f"{tuning['metric']} out of fold {scores['chosen']:.4f} (of all {len(members)} members)"
    return Bundled(out, [member.name for member in kept], out.stat().st_size, score)


def _chosen(
    project: Project, members: Sequence[Member], *, best: int | None, fold: int | None
) -> list[Member]:
    kept = [member for member in members if fold is None or member.fold == fold]
    if not kept:
        have = ", ".join(str(member.fold) for member in members)
        raise InputError(f"--fold {fold}: no member was trained without it; expected one of {have}")
    if best is None or best >= len(kept):
        return kept
    if best < 1:
        raise InputError(f"--best {best}: expected 1 or more members")
    scored = [member for member in kept if member.fold != ALL]
    scores = {id(member): _score(project, member) for member in scored}
    ranked = sorted(scored, key=lambda member: -scores[id(member)])[:best]
    for member in ranked:
        logger.info("%s: %.4f on its held-out images", member.name, scores[id(member)])
    return ranked


def _score(project: Project, member: Member) -> float:
    """Return a member's score on its held-out images by the plain rule, higher being better."""
    recipe = member.scored_by
    metric, rule = project.metric(recipe), plain_of(project.target, recipe.tuning)
    rows = [
        row for row in project.folds.rows if member.fold in row.folds and row.id not in project.blank_train
    ]
    found = score_rows(
        metric, predictions_of(oof_of(project, [member]), rows), project.cache.train_masks, rule
    )
    return metric.utility(score_of(metric, found, project.metric_groups(recipe, list(found))))


def _member_facts(project: Project, member: Member, weight: float, files: dict[str, bytes]) -> MemberFacts:
    recipe: Recipe = member.run.recipe
    inputs = project.inputs(recipe.input)
    names, runtimes = {}, []
    for path in weights_of(member):
        raw = path.read_bytes()
        name = f"weights/{len(files)}.safetensors"
        files[name], names[name] = raw, digest(raw)
        runtimes.append(recorded_runtime(member, path))
    return MemberFacts(
        name=member.name,
        recipe=recipe.model_dump(mode="json"),
        weights=names,
        runtimes=runtimes,
        weight=weight,
        mean=None if inputs.statistics is None else list(inputs.statistics.mean),
        std=None if inputs.statistics is None else list(inputs.statistics.std),
        low=None if inputs.limits is None else inputs.limits[0].tolist(),
        high=None if inputs.limits is None else inputs.limits[1].tolist(),
        scaled=not recipe.input.is_raw,
        part=member.part if member.blend else "",
    )


def _ranges(project: Project) -> dict[str, list[float]]:
    images = project.cache.train_images
    names = [name for name in images if name not in project.blank_train]
    ranges: dict[str, list[float]] = {}
    for name in track(names, total=len(names), what="looking at training images"):
        widen(ranges, features(images, name))
    return ranges
