"""``training.start_from``: weights of another project, a bundle or a file become a run that the folds start from.

What fits by name and shape is taken; the rest keeps the weights that it has anew. Images may have other sizes (nothing
depends on them), other bands (the first convolution is spread over them) and other classes (the head is new). The
encoder has to fit as a whole: less would be a training from random weights under another name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from masksmith.core.errors import InputError
from masksmith.core.files import digest, write_json
from masksmith.core.progress import logger
from masksmith.deploy.bundle import Bundle
from masksmith.folds.config import ALL
from masksmith.models.encoders import stem_weight
from masksmith.models.segmentation import SegmentationModel
from masksmith.project.folder import Project
from masksmith.recipes.recipe import Recipe
from masksmith.steps.train import build
from masksmith.training.checkpoint import copy_weights, damage_of, load_tensors, save_tensors
from masksmith.training.origin import BUNDLE, origin_files, origin_hash

_DATA_OF = (
    "mean",
    "std",
)  # of normalisation: they belong to weights, where they are not measured on the data
_NUMBERS = ("scalar_mean", "scalar_std")  # of side tables: always of the data


@dataclass(frozen=True)
class Taken:
    """What a model took of other weights, as names of its tensors."""

    taken: list[str] = field(default_factory=list)
    spread: list[str] = field(default_factory=list)
    """Taken from another number of bands."""
    other_shape: list[str] = field(default_factory=list)
    """Not taken: of another shape there."""
    missing: list[str] = field(default_factory=list)
    """Not taken: not there."""
    unused: list[str] = field(default_factory=list)
    """There, and not in this model."""

    def __str__(self) -> str:
        total = sum(map(len, (self.taken, self.spread, self.other_shape, self.missing)))
        parts = [f"{len(self.taken) + len(self.spread)} of {total} tensors taken"]
        if self.spread:
            parts.append(f"of these {_some(self.spread)} spread over another number of bands")
        if self.other_shape:
            parts.append(f"{len(self.other_shape)} new, of another shape there ({_some(self.other_shape)})")
        if self.missing:
            parts.append(f"{len(self.missing)} new, not there ({_some(self.missing)})")
        if self.unused:
            parts.append(f"{len(self.unused)} there that this net does not have ({_some(self.unused)})")
        return "; ".join(parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def with_start(project: Project, recipe: Recipe) -> Recipe:
    """Return a resolved recipe whose folds start from the weights that ``training.start_from`` names.

    They are copied into the project, adapted to the recipe's net, as a run that ``training.start_run`` then names: the
    source may go. Fold k starts from the k-th of its trained folds, in turn.

    Args:
        project: With its folds made.
        recipe: Resolved, but for this.

    Raises:
        InputError: The source is not there, is damaged, has changed, or its encoder is another one.
    """
    training = recipe.training
    if training.start_from is None or training.start_run is not None:
        return recipe
    content = origin_hash(training.start_from)
    if training.start_from_hash not in (None, content):
        raise InputError(
            f"training.start_from_hash: {training.start_from_hash}, but {training.start_from!r} has {content}; give "
            "the same weights, or set training.start_from_hash=null"
        )
    plain = training.model_copy(update={"start_from": None, "start_from_hash": None})
    alone = recipe.model_copy(update={"training": plain})
    name = f"start-{digest(content, alone.hash)[:8]}"
    run = project.import_run(name, alone)
    _warn_of_same_data(project, training.start_from)
    said: Taken | None = None
    folds = [*range(project.folds.count), ALL]
    for fold, source in zip(folds, _in_turn(training.start_from), strict=False):
        if damage_of(run.final(fold)) is None:
            continue
        model = build(project, run, fold, load_weights=False)
        measured = project.inputs(recipe.input).statistics is not None
        said = take(model, source, where=f"training.start_from: {training.start_from}", measured=measured)
        save_tensors(run.final(fold), model.state_dict(), {"epoch": 0, "from": training.start_from})
        write_json(run.path / "taken.json", {"from": training.start_from, "hash": content, **asdict(said)})
    if said is not None:
        logger.info("training.start_from: %s: %s", training.start_from, said)
    begun = {"start_run": name, "start_from_hash": content}
    return recipe.model_copy(update={"training": training.model_copy(update=begun)})


def take(model: SegmentationModel, source: dict[str, Tensor], *, where: str, measured: bool = False) -> Taken:
    """Copy what fits of other weights into a model, and return what that was.

    Args:
        model: Changed in place.
        source: Name -> tensor, as a masksmith model has them.
        where: What to call them in messages.
        measured: Whether the model normalises by what was measured on its own images.

    Raises:
        InputError: A weight of the encoder is not there or has another shape; the message counts them.
    """
    own = model.state_dict()
    kept = {*_DATA_OF} if measured else set()
    kept |= {name for name in own if name.endswith(_NUMBERS)}
    said, found = Taken(unused=sorted(set(source) - set(own))), dict(own)
    stem = f"encoder.{stem_weight(model.encoder)}"
    for name in (name for name in own if name not in kept):
        value = source.get(name)
        if value is None:
            said.missing.append(name)
        elif value.shape == own[name].shape:
            said.taken.append(name)
            found[name] = value
        elif name == stem and value.ndim == 4 and _but_bands(value) == _but_bands(own[name]):
            said.spread.append(name)
            found[name] = _spread(value, own[name].shape[1])
        else:
            said.other_shape.append(name)
    lost = [name for name in (*said.missing, *said.other_shape) if name.startswith("encoder.")]
    if lost:
        total = sum(name.startswith("encoder.") for name in own)
        raise InputError(
            f"{where}: {len(lost)} of the {total} tensors of the encoder do not fit: "
            f"{len(said.missing)} tensors of the net are not there, {len(said.other_shape)} have another shape (first "
            f"{lost[0]!r}), {len(said.unused)} there belong to no part of it; set model.encoder (and "
            "model.encoder_depth) to what those weights were trained with"
        )
    copy_weights(model, found, where=where)
    return said


def _but_bands(weight: Tensor) -> tuple[int, ...]:
    return weight.shape[0], *weight.shape[2:]


def _spread(weight: Tensor, bands: int) -> Tensor:
    """Return a first convolution for another number of bands: the mean over its own, with the same sum over all."""
    total = weight.sum(1, keepdim=True)
    return total.expand(-1, bands, -1, -1) / bands


def _in_turn(origin: str) -> Iterator[dict[str, Tensor]]:
    """Yield the weights of the trained folds of a source, again and again."""
    files = origin_files(origin)
    bundle = Bundle(files[0]) if files[0].suffix == BUNDLE else None
    at = 0
    while True:
        if bundle is None:
            yield _tensors_of(files[at % len(files)], origin)
        else:
            member = bundle.facts.members[at % len(bundle.facts.members)]
            yield bundle.tensors(*list(member.weights.items())[-1])  # of snapshots the last
        at += 1


def _tensors_of(path: Path, origin: str) -> dict[str, Tensor]:
    if path.with_suffix(".json").exists():
        return load_tensors(path)[0]
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"training.start_from: {origin}: not a whole safetensors file ({error})") from error


def _warn_of_same_data(project: Project, origin: str) -> None:
    path = Path(origin)
    if path.suffix == BUNDLE:
        known = Bundle(path).facts.data.get("content_hash")
    else:
        root = path if (path / "data.json").is_file() else path.parent.parent
        known = Project.open(root).catalog.content_hash if (root / "data.json").is_file() else None
    if known == project.catalog.content_hash:
        logger.warning(
            "training.start_from: %s was trained on these very images, some of which are held out now: the score out "
            "of fold will be too good",
            origin,
        )
