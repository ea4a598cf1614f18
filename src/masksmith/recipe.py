"""A recipe: every value of a training and of what follows it, as one YAML file.

A bundled recipe names every field and inherits from nothing. Its header, the comment lines at the top, says
where it comes from, what was claimed, what we measured, what it costs and how it differs.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from masksmith.config import Config, apply_overrides, look_up, read_yaml, suggest, validate, write_yaml
from masksmith.errors import InputError
from masksmith.files import digest
from masksmith.inputs import InputConfig
from masksmith.losses import IMAGE_LOSSES, build_loss
from masksmith.metrics import get_metric
from masksmith.models.config import ModelConfig
from masksmith.postprocess import TuningConfig
from masksmith.prediction.combine import check_combine
from masksmith.prediction.config import PredictionConfig
from masksmith.prediction.tta import TTA
from masksmith.preprocess import SizeConfig
from masksmith.splits import FoldsConfig
from masksmith.training.config import TrainingConfig

_AUX_WEIGHT = TrainingConfig.model_fields["aux_weight"].default
_ROWS_STAY = ("identity", "hflip")
HEADER_KEYS = ("source", "published", "ours", "cost", "differences")


class PseudoConfig(Config):
    """Pseudo-labels: which predictions on the test images are trusted as their masks.

    Honest by construction: the training that is validated on fold k gets the labels of the teacher's fold k alone, a
    model that has not seen fold k either; a training on all images gets the mean of the teacher's folds.
    """

    teacher: str
    """Recipe whose predictions become labels: a bundled one or a YAML file. It is trained first, in this project."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Pixels above this probability are foreground."""
    unsure: tuple[float, float] = (0.2, 0.8)
    """Pixels with a probability within are unsure, the others confident."""
    min_confident_frac: float = Field(default=0.9, ge=0, le=1)
    """Least share of confident pixels of an image that is used."""
    ignore_unsure: bool = False
    """Whether unsure pixels are left out of the loss; False: the threshold decides them too."""


class Recipe(Config):
    """The configurations of all stages."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
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
        file, its content counts and not its path.

        Raises:
            InputError: The file of the weights is not there.
        """
        plain = self.model_dump(mode="json", exclude={"prediction", "tuning"})
        del plain["folds"]["train"], plain["folds"]["refit"], plain["input"]["view"]
        plain["model"]["encoder_weights"] = self.model.weights_identity()
        del plain["model"]["encoder_weights_hash"]
        return digest(write_yaml(plain))


@dataclass(frozen=True)
class Listing:
    """A bundled recipe as `masksmith recipes` shows it."""

    name: str
    header: dict[str, str]
    text: str


def _bundled() -> dict[str, str]:
    folder = resources.files("masksmith") / "recipes"
    return {
        entry.name.removesuffix(".yaml"): entry.read_text()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
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


def list_recipes() -> list[Listing]:
    """Return the bundled recipes by name."""
    return [Listing(name, parse_header(text), text) for name, text in _bundled().items()]


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


def parse_recipe(text: str, *, where: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Parse and check a recipe, then apply dotted overrides.

    Raises:
        InputError: Unknown or missing key, wrong type, unknown metric; one line for each.
    """
    value = read_yaml(text, where=where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: a recipe is a table of keys, this is {type(value).__name__}")
    recipe = validate(Recipe, value, where=where)
    if overrides:
        complete: dict[str, Any] = recipe.model_dump(mode="json")
        changed = apply_overrides(complete, overrides)
        recipe = validate(Recipe, changed, where=f"{where} with --set {' --set '.join(overrides)}")
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
        build_loss(stage.loss, where=f"{where}: training.stages[{i}].loss", image_head=has_head)
    check_combine(recipe.prediction, image_head=recipe.model.image_head)
    trained = any(term.name in IMAGE_LOSSES for stage in stages for term in stage.loss)
    if recipe.prediction.image_head != "ignore" and not trained:
        raise InputError(
            f"{where}: prediction.image_head: {recipe.prediction.image_head!r}, but no stage's loss trains the image "
            f"head; add one of {', '.join(IMAGE_LOSSES)} to training.stages"
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


def load_recipe(name: str = "default", overrides: tuple[str, ...] = ()) -> Recipe:
    """Load a bundled recipe by name, or one from a file, and apply dotted overrides."""
    text, where = recipe_source(name)
    return parse_recipe(text, where=where, overrides=overrides)
