"""A recipe: every value of a training and of what follows it, as one YAML file. Read and checked without torch.

A bundled recipe names every field and inherits from nothing. Its header, the comment lines at the top, says
where it comes from, what was claimed, what we measured, what it costs and how it differs.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from masksmith.core.config import Config, apply_overrides, look_up, read_yaml, suggest, validate, write_yaml
from masksmith.core.errors import InputError
from masksmith.core.files import digest
from masksmith.folds.table import FoldsConfig
from masksmith.losses.options import IMAGE_PARAMETERS, check_losses
from masksmith.metrics import get_metric
from masksmith.models.config import ModelConfig
from masksmith.postprocess.config import TuningConfig
from masksmith.prediction.config import PredictionConfig, check_combine
from masksmith.prediction.tta import TTA
from masksmith.preprocess import SizeConfig
from masksmith.preprocess.inputs import InputConfig
from masksmith.training.config import TrainingConfig

_AUX_WEIGHT = TrainingConfig.model_fields["aux_weight"].default
_ROWS_STAY = ("identity", "hflip")
HEADER_KEYS = ("source", "published", "ours", "cost", "differences")
NAME = r"^[a-z0-9][a-z0-9-]*$"
_TAUGHT_TOO = ("folds", "metric", "training.device", "training.precision", "training.threads")
"""Overrides of a recipe that its teacher gets too: they belong to the project or to the machine."""


class PseudoConfig(Config):
    """Pseudo-labels: which predictions on the test images are trusted as their masks.

    Honest by construction: the training that is validated on fold k gets the labels of the teacher's fold k alone, a
    model that has not seen fold k either; a training on all images gets the mean of the teacher's folds.
    """

    teacher: str
    """Recipe whose predictions become labels: a bundled one or a YAML file. It is trained first, in this project."""
    set: list[str] = Field(default_factory=list)
    """Changes of the teacher's recipe, as texts of the form KEY=VALUE; ``--set`` of folds, metric, device, precision
    and threads are added to them."""
    teacher_run: str | None = Field(default=None, pattern=NAME)
    """The teacher's run in the project; settled when the recipe is resolved, null before."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Pixels above this probability are foreground."""
    unsure: tuple[float, float] = (0.2, 0.8)
    """Pixels with a probability within are unsure, the others confident."""
    min_confident_frac: float = Field(default=0.9, ge=0, le=1)
    """Least share of confident pixels of an image that is used."""
    ignore_unsure: bool = False
    """Whether unsure pixels are left out of the loss; False: the threshold decides them too."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse a band of unsure probabilities that the threshold does not lie in."""
        low, high = self.unsure
        if not 0 <= low <= self.threshold <= high <= 1:
            raise ValueError(
                f"unsure: [{low:g}, {high:g}] with threshold {self.threshold:g}; expected 0 <= low <= threshold <= "
                "high <= 1, or a confident pixel would get the other label"
            )


class Recipe(Config):
    """The configurations of all stages."""

    name: str = Field(pattern=NAME)
    """Name of the recipe; the run's folder is called NAME-HASH."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything that is drawn."""
    metric: str = "tgs_map"
    """A key of METRICS, or one with numbers as in f_beta_objects(beta=1): what every choice is judged by."""
    folds: FoldsConfig = FoldsConfig()
    input: InputConfig = InputConfig()
    size: SizeConfig = SizeConfig()
    model: ModelConfig = ModelConfig()
    pseudo: PseudoConfig | None = None
    training: TrainingConfig
    prediction: PredictionConfig = PredictionConfig()
    tuning: TuningConfig = TuningConfig()

    def to_yaml(self) -> str:
        """Return the recipe as YAML, every field named."""
        return write_yaml(self.model_dump(mode="json"))

    @property
    def hash(self) -> str:
        """A hash over what decides the weights.

        Not over ``folds.train``, ``folds.refit``, ``input.view``, prediction and tuning. Where weights come from a
        file, its content counts and not its path; so does the content of a teacher's recipe.

        Raises:
            InputError: The file of the weights, or the teacher's recipe, is not there.
        """
        plain = self.model_dump(mode="json", exclude={"prediction", "tuning"})
        del plain["folds"]["train"], plain["folds"]["refit"], plain["input"]["view"]
        plain["model"]["encoder_weights"] = self.model.weights_identity()
        del plain["model"]["encoder_weights_hash"]
        if self.pseudo is not None:
            plain["pseudo"]["teacher"] = self.pseudo.teacher_run or load_teacher(self).hash
            del plain["pseudo"]["set"], plain["pseudo"]["teacher_run"]
        return _digest_of(json.dumps(plain))


@lru_cache(maxsize=256)
def _digest_of(plain: str) -> str:
    """Return the hash of a recipe's YAML, given as JSON: to write YAML takes 30 ms, and a hash is asked for often."""
    return digest(write_yaml(json.loads(plain)))


Kind = Literal["recipe", "ensemble"]


@dataclass(frozen=True)
class Listing:
    """A bundled recipe or ensemble as `masksmith recipes` shows it."""

    name: str
    header: dict[str, str]
    text: str
    kind: Kind = "recipe"
    """An ensemble names recipes as its ``members``."""


def _bundled() -> dict[str, str]:
    folder = resources.files("masksmith") / "recipes"
    return {
        entry.name.removesuffix(".yaml"): entry.read_text()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name.removesuffix(".yaml"))
        if entry.name.endswith(".yaml")
    }


def parse_header(text: str) -> dict[str, str]:
    """Return the comment lines at the top of a recipe as key -> text; a line without a key continues the one above."""
    header: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        content = line.removeprefix("#").strip()
        key, colon, rest = content.partition(":")
        if colon and key in HEADER_KEYS:
            last = key
            header[key] = rest.strip()
        elif last:
            header[last] += " " + content
    return header


def list_recipes(kind: Kind | None = None) -> list[Listing]:
    """Return the bundled recipes and ensembles by name, or those of one kind."""
    listed = [Listing(name, parse_header(text), text, _kind_of(text)) for name, text in _bundled().items()]
    return [one for one in listed if kind in (None, one.kind)]


def _kind_of(text: str) -> Kind:
    """Return what a bundled file holds; its tables begin at the margin (see tools/format_recipes.py)."""
    return "ensemble" if re.search(r"^members:", text, re.MULTILINE) else "recipe"


def recipe_source(name: str) -> tuple[str, str]:
    """Return (text, where) of a bundled recipe's name or a YAML file's path.

    Raises:
        InputError: Neither, or no text file; the message suggests the nearest bundled recipe.
    """
    bundled = _bundled()
    if name in bundled:
        return bundled[name], f"recipe {name}"
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"recipe {name}: no such file")
        try:
            return path.read_text(encoding="utf-8"), name
        except UnicodeDecodeError as error:
            raise InputError(f"recipe {name}: not a UTF-8 text file (byte {error.start})") from error
    raise InputError(f"recipe: {name!r} is neither a file nor a bundled recipe; {suggest(name, bundled)}")


def parse_table_of(text: str, *, where: str) -> dict[str, Any]:
    """Return the table of keys that a recipe or an ensemble is.

    Raises:
        InputError: No YAML, or no table.
    """
    value = read_yaml(text, where=where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: a recipe is a table of keys, this is {type(value).__name__}")
    return value


def parse_recipe(
    text: str, *, where: str, overrides: tuple[str, ...] = (), taught: tuple[str, ...] = ()
) -> Recipe:
    """Parse and check a recipe, then apply dotted overrides.

    Args:
        text: YAML.
        where: The file, for messages.
        overrides: Texts of the form KEY=VALUE. Those of folds, metric, device, precision and threads go to the
            recipe's teacher too.
        taught: The recipes that wait for this one as their teacher, as ``where`` names them.

    Raises:
        InputError: Unknown or missing key, wrong type, unknown metric; one line for each. An ensemble, or a teacher
            that cannot be one.
    """
    value = parse_table_of(text, where=where)
    if "members" in value:
        raise InputError(f"{where}: it has members, so it is an ensemble; a single recipe is expected here")
    recipe = validate(Recipe, value, where=where)
    if overrides:
        complete: dict[str, Any] = recipe.model_dump(mode="json")
        changed = apply_overrides(complete, overrides)
        recipe = validate(Recipe, changed, where=f"{where} with --set {' --set '.join(overrides)}")
        recipe = _with_teacher_set(recipe, overrides)
    metric = get_metric(recipe.metric, where=f"{where}: metric")
    if metric.needs == "classes":
        raise InputError(
            f"{where}: metric: {metric.name!r} needs class maps; a recipe makes masks of 0 and 1"
        )
    if metric.by_group and recipe.folds.group_by is None:
        raise InputError(
            f"{where}: metric: {metric.name!r} is a mean over groups, and folds.group_by is null; set it to the column "
            "of a side table (a location, a patient)"
        )
    _check_heads(recipe, where=where)
    _check_derived(recipe, where=where)
    _check_pseudo(recipe, where=where, taught=taught)
    for name in recipe.prediction.tta:
        look_up(TTA, name, where=f"{where}: prediction.tta")
    if recipe.folds.train is not None and not 1 <= recipe.folds.train <= recipe.folds.count:
        raise InputError(
            f"{where}: folds.train: {recipe.folds.train} of {recipe.folds.count} folds; expected 1 up to that"
        )
    return recipe


def _check_heads(recipe: Recipe, *, where: str) -> None:
    """Refuse losses that are unknown or need a head that the model lacks, and heads that nothing trains.

    Raises:
        InputError: With the path of the value.
    """
    has_head, stages = recipe.model.image_head != "none", recipe.training.stages
    for i, stage in enumerate(stages):
        check_losses(stage.loss, where=f"{where}: training.stages[{i}].loss", image_head=has_head)
    check_combine(recipe.prediction, image_head=recipe.model.image_head)
    trained = any(term.name in IMAGE_PARAMETERS for stage in stages for term in stage.loss)
    if recipe.prediction.image_head != "ignore" and not trained:
        raise InputError(
            f"{where}: prediction.image_head: {recipe.prediction.image_head!r}, but no stage's loss trains the image "
            f"head; add one of {', '.join(IMAGE_PARAMETERS)} to training.stages"
        )
    if recipe.training.aux_weight != _AUX_WEIGHT and not recipe.model.deep_supervision:
        raise InputError(
            f"{where}: training.aux_weight: {recipe.training.aux_weight:g} weighs nothing without "
            f"model.deep_supervision; set that to true, or this to {_AUX_WEIGHT:g}"
        )


def _check_derived(recipe: Recipe, *, where: str) -> None:
    """Refuse what would give a row another depth than it has, where the model is told the depth of rows.

    Raises:
        InputError: With the path of the value.
    """
    derived = recipe.model.derived_channels
    if derived == "none":
        return
    moved = [name for name in recipe.prediction.tta if name not in _ROWS_STAY]
    if moved:
        raise InputError(
            f"{where}: prediction.tta: {moved[0]!r} moves rows, and model.derived_channels {derived!r} tells the model "
            f"how deep a row lies; expected {' and '.join(_ROWS_STAY)} alone, or derived_channels 'none'"
        )
    if recipe.training.crop_hw is not None:
        height, width = recipe.training.crop_hw
        raise InputError(
            f"{where}: training.crop_hw: in windows of {height}x{width} a row lies elsewhere than in the image, and "
            f"model.derived_channels {derived!r} tells the model how deep it lies; expected null, or derived_channels "
            "'none'"
        )


def reaches_teacher(override: str) -> bool:
    """Whether a teacher gets an override of its pupil too: it belongs to the project or to the machine."""
    return override.startswith(_TAUGHT_TOO)


def _with_teacher_set(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Return the recipe whose teacher gets those overrides that belong to the project or to the machine."""
    if recipe.pseudo is None:
        return recipe
    shared = [override for override in overrides if reaches_teacher(override)]
    pseudo = recipe.pseudo.model_copy(update={"set": [*recipe.pseudo.set, *shared]})
    return recipe.model_copy(update={"pseudo": pseudo})


def _check_pseudo(recipe: Recipe, *, where: str, taught: tuple[str, ...]) -> None:
    """Refuse stages on pseudo-labels that nobody makes, labels that no stage uses, and a teacher that cannot be one.

    Raises:
        InputError: With the path of the value.
    """
    uses = [i for i, stage in enumerate(recipe.training.stages) if stage.data != "labelled"]
    if recipe.pseudo is None:
        if uses:
            raise InputError(
                f"{where}: training.stages[{uses[0]}].data: {recipe.training.stages[uses[0]].data!r}, but pseudo is "
                "null; name a teacher there (pseudo: {teacher: …}), or train on 'labelled'"
            )
        return
    if not uses:
        raise InputError(
            f"{where}: pseudo: its labels are used by no stage; set training.stages[…].data to 'pseudo' or 'both', or "
            "pseudo to null"
        )
    if recipe.pseudo.teacher_run is None:
        _check_teacher(recipe, recipe.pseudo, where=where, taught=taught)


def _check_teacher(recipe: Recipe, pseudo: PseudoConfig, *, where: str, taught: tuple[str, ...]) -> None:
    at, chain = f"{where}: pseudo.teacher: {pseudo.teacher!r}", (*taught, where)
    _, source = recipe_source(pseudo.teacher)
    if source in chain:
        raise InputError(
            f"{at} would be taught by itself ({' ← '.join((*chain, source))}); a teacher is trained before its pupil"
        )
    teacher = load_recipe(pseudo.teacher, tuple(pseudo.set), taught=chain)
    if found := first_difference(teacher.folds, recipe.folds):
        key, its, own = found
        raise InputError(
            f'{at} has folds.{key} {its!r}, but {recipe.name} has {own!r}; they share one folds.csv: add "folds.{key}='
            f'{"null" if own is None else own}" to pseudo.set'
        )


def first_difference(folds: FoldsConfig, other: FoldsConfig) -> tuple[str, Any, Any] | None:
    """Return (field, value, other value) of the first field that would make other folds; None where they are one."""
    for key in FoldsConfig.model_fields:
        if key not in ("train", "refit") and getattr(folds, key) != getattr(other, key):
            return key, getattr(folds, key), getattr(other, key)
    return None


def load_teacher(recipe: Recipe) -> Recipe:
    """Return the recipe of the teacher; it trains the folds that its pupil trains, and never on all images.

    Raises:
        InputError: It cannot be read.
    """
    assert recipe.pseudo is not None, recipe.name
    teacher = load_recipe(recipe.pseudo.teacher, tuple(recipe.pseudo.set))
    folds = teacher.folds.model_copy(update={"train": recipe.folds.train, "refit": False})
    return teacher.model_copy(update={"folds": folds})


def load_recipe(
    name: str = "auto", overrides: tuple[str, ...] = (), *, taught: tuple[str, ...] = ()
) -> Recipe:
    """Load a bundled recipe by name, or one from a file, and apply dotted overrides; see parse_recipe."""
    text, where = recipe_source(name)
    return parse_recipe(text, where=where, overrides=overrides, taught=taught)
