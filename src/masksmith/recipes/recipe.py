"""A recipe: every value of training, prediction and tuning as one YAML file. Read and checked without torch.

A bundled recipe names every field and inherits nothing. Its header (the comment lines at the top) gives its source, the
published score, our score, the cost, and how it differs from the source.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from masksmith.core.config import Config, apply_overrides, look_up, validate, write_yaml
from masksmith.core.errors import InputError
from masksmith.core.files import digest, file_digest
from masksmith.folds.config import FoldsConfig
from masksmith.losses.options import IMAGE_PARAMETERS, check_losses
from masksmith.metrics import get_metric
from masksmith.models.config import ModelConfig
from masksmith.postprocess.config import TuningConfig
from masksmith.prediction.config import PredictionConfig, check_combine, check_tiles
from masksmith.prediction.tta import TTA
from masksmith.preprocess import SizeConfig
from masksmith.preprocess.inputs import InputConfig
from masksmith.recipes.pseudo import PseudoConfig
from masksmith.recipes.sources import NAME, parse_table_of, recipe_source
from masksmith.training.config import VAL_LOSS, TrainingConfig
from masksmith.training.corrections import corrections_hash
from masksmith.training.origin import origin_hash

if TYPE_CHECKING:
    from masksmith.recipes.ensemble import Ensemble

_AUX_WEIGHT = TrainingConfig.model_fields["aux_weight"].default
_ROWS_STAY = ("identity", "hflip")
_SHARED_WITH_TEACHER = (
    "folds",
    "metric",
    *(f"training.{key}" for key in ("device", "devices", "precision", "threads")),
)
"""Overrides of a recipe that also apply to its teacher: they belong to the project or to the machine."""


class Recipe(Config):
    """All values of a run."""

    name: str = Field(pattern=NAME)
    """Name of the recipe; the run's folder is NAME-HASH."""
    seed: int = Field(default=0, ge=0)
    """Seed of all random draws."""
    metric: str = "tgs_map"
    """A key of METRICS, or one with numbers as in f_beta_objects(beta=1); all choices are made by it."""
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
    def asked_text(self) -> str:
        """The recipe as YAML without the number of devices, which changes no result: what a plan or choice is for."""
        plain = self.model_dump(mode="json")
        del plain["training"]["devices"]
        return write_yaml(plain)

    @property
    def hash(self) -> str:
        """A hash of the values that determine the weights.

        It ignores ``folds.train``, ``folds.refit``, ``input.view``, ``training.devices``, prediction and tuning. For
        weights from a file, and for corrections, it uses the content, not the path; for a teacher, the content of its
        recipe.

        Raises:
            InputError: The file of the weights, the corrections or the teacher's recipe do not exist.
        """
        plain = self.model_dump(mode="json", exclude={"prediction", "tuning"})
        del (
            plain["folds"]["train"],
            plain["folds"]["refit"],
            plain["input"]["view"],
            plain["training"]["devices"],
        )
        plain["model"]["encoder_weights"] = self.model.weights_identity()
        del plain["model"]["encoder_weights_hash"]
        if self.training.start_from is not None:
            content = self.training.start_from_hash or origin_hash(self.training.start_from)
            plain["training"]["start_from"] = content
        del plain["training"]["start_from_hash"]
        if self.training.corrections is not None:
            content = self.training.corrections_hash or corrections_hash(self.training.corrections)
            plain["training"]["corrections"] = content
        del plain["training"]["corrections_hash"]
        if self.pseudo is not None:
            if self.pseudo.table is not None:
                plain["pseudo"]["table"] = self.pseudo.table_hash or table_hash(self.pseudo.table)
            elif self.pseudo.teacher_runs:
                plain["pseudo"]["teacher"] = None  # they say it all
            else:
                plain["pseudo"]["teacher"] = self.pseudo.teacher_run or _teachers_hash(self)
            del plain["pseudo"]["set"], plain["pseudo"]["teacher_run"], plain["pseudo"]["table_hash"]
        _without_newer_keys(plain)
        return _digest_of(json.dumps(plain))


_NEWER_KEYS: dict[str, tuple[tuple[str, Any], ...]] = {
    "folds": (("fold_by", None), ("repeats", 1)),
    "input": (("chain", []),),
    "size": (("chain", []),),
    "training": (("metrics", []), ("start_from", None), ("corrections", None)),
    "pseudo": (("table", None), ("quotas", None), ("teacher_runs", []), ("labels", "hard")),
}
"""Keys that older masksmiths did not have, with their defaults: left out of the hash, so that their runs are found."""


def _without_newer_keys(plain: dict[str, Any]) -> None:
    """Take out keys of a recipe's plain values that older masksmiths did not have, where they change nothing."""
    for part, keys in _NEWER_KEYS.items():
        for key, default in keys if plain[part] is not None else ():
            if plain[part][key] == default:
                del plain[part][key]
    stages = plain["training"]["stages"]
    for stage in stages:
        if stage["subset"] is None:
            del stage["subset"]
    for one in (plain["training"], *stages):
        if one["geometry"] and one["geometry"]["scale_distribution"] == "log_uniform":
            del one["geometry"]["scale_distribution"]


def table_hash(table: str) -> str:
    """Return the hash of the file that ``pseudo.table`` names.

    Raises:
        InputError: There is no such file.
    """
    path = Path(table)
    if not path.is_file():
        raise InputError(f"pseudo.table: {table!r}: no such file; expected a CSV of test images' run-lengths")
    return file_digest(path)


@lru_cache(maxsize=256)
def _digest_of(plain: str) -> str:
    """Return the hash of a recipe's YAML, given as JSON; cached because writing YAML takes 30 ms."""
    return digest(write_yaml(json.loads(plain)))


def parse_recipe(
    text: str, *, where: str, overrides: tuple[str, ...] = (), students: tuple[str, ...] = ()
) -> Recipe:
    """Parse and check a recipe, then apply dotted overrides.

    Args:
        text: YAML.
        where: The file, for messages.
        overrides: Texts of the form KEY=VALUE. Those of folds, metric, device, devices, precision and threads also
            apply to the recipe's teacher.
        students: The recipes that have this one as their teacher, as ``where`` names them.

    Raises:
        InputError: Unknown or missing key, wrong type, unknown metric; one line for each. An ensemble, or a teacher
            that cannot be one.
    """
    value = parse_table_of(text, where=where)
    if "members" in value:
        raise InputError(f"{where}: it has members, so it is an ensemble; a single recipe is expected here")
    recipe = validate(Recipe, value, where=where)
    return change_recipe(recipe, overrides, where=where, students=students)


def change_recipe(
    recipe: Recipe, overrides: tuple[str, ...], *, where: str, students: tuple[str, ...] = ()
) -> Recipe:
    """Return a recipe with dotted overrides, checked as parse_recipe does.

    Raises:
        InputError: As parse_recipe.
    """
    if overrides:
        complete: dict[str, Any] = recipe.model_dump(mode="json")
        changed = apply_overrides(complete, overrides)
        recipe = validate(Recipe, changed, where=f"{where} with --set {' --set '.join(overrides)}")
        recipe = _with_teacher_set(recipe, overrides)
    metric = get_metric(recipe.metric, where=f"{where}: metric")
    if metric.by_group and recipe.folds.group_by is None:
        raise InputError(
            f"{where}: metric: {metric.name!r} is a mean over groups, and folds.group_by is null; set it to the column "
            "of a side table (a location, a patient)"
        )
    _check_metrics(recipe, where=where)
    _check_heads(recipe, where=where)
    _check_derived(recipe, where=where)
    pad_hw, derived = recipe.size.pad_hw, recipe.model.derived_channels
    check_tiles(recipe.prediction, pad_hw=pad_hw, derived_channels=derived, where=where)
    _check_chain(recipe, where=where)
    _check_pseudo(recipe, where=where, students=students)
    for name in recipe.prediction.tta:
        look_up(TTA, name, where=f"{where}: prediction.tta")
    if recipe.folds.train is not None and not 1 <= recipe.folds.train <= recipe.folds.total:
        raise InputError(
            f"{where}: folds.train: {recipe.folds.train} of {recipe.folds.total} folds; expected 1 up to that"
        )
    return recipe


def _check_metrics(recipe: Recipe, *, where: str) -> None:
    """Refuse metrics beside the recipe's that are unknown, or a mean over groups where there are none.

    Raises:
        InputError: One line for each.
    """
    wrong = []
    for name in recipe.training.metrics:
        if name == VAL_LOSS:
            continue
        try:
            metric = get_metric(name, where=f"{where}: training.metrics")
        except InputError as error:
            wrong.append(str(error))
            continue
        if metric.by_group and recipe.folds.group_by is None:
            wrong.append(
                f"{where}: training.metrics: {name!r} is a mean over groups, and folds.group_by is null; set it to "
                "the column of a side table, or leave the metric out"
            )
    if wrong:
        raise InputError("\n".join(wrong))


def _check_heads(recipe: Recipe, *, where: str) -> None:
    """Refuse unknown losses, losses that need a head the model lacks, and heads that no loss trains.

    Raises:
        InputError: With the path of the value.
    """
    has_head, stages = recipe.model.image_head != "none", recipe.training.stages
    for i, stage in enumerate(stages):
        check_losses(
            stage.loss, where=f"{where}: training.stages[{i}].loss", image_head=has_head, classes=None
        )
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


def _check_chain(recipe: Recipe, *, where: str) -> None:
    """Refuse what a chain of sizes cannot be combined with.

    Raises:
        InputError: With the path of the value.
    """
    size, training, prediction = recipe.size, recipe.training, recipe.prediction
    if not size.chain:
        return
    unfit: dict[str, tuple[object, object, str]] = {
        "prediction.tile_hw": (prediction.tile_hw, None, "tiles are cut of the image as it is"),
        "prediction.tta_scales": (prediction.tta_scales, [1.0], "it says itself how large an image is seen"),
        "prediction.tta_shifts": (prediction.tta_shifts, [(0, 0)], "it says itself where an image lies"),
        "training.crop_hw": (training.crop_hw, None, "its windows are its step {name: crop, ratio, count}"),
    }
    if size.crop is not None:
        why = "a crop draws its windows anywhere"
        unfit["training.augment.positive_windows"] = (training.augment.positive_windows, 0.0, why)
        why = "in a window of size.chain a row lies elsewhere than in the image"
        unfit["model.derived_channels"] = (recipe.model.derived_channels, "none", why)
    for key, (value, expected, why) in unfit.items():
        if value != expected:
            raise InputError(
                f"{where}: {key}: {value} with size.chain: {why}; expected {expected}, or no chain"
            )


def _check_derived(recipe: Recipe, *, where: str) -> None:
    """Refuse test-time views and crops that move rows if the model is told the depth of each row.

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
    shifted = [shift for shift in recipe.prediction.tta_shifts if shift[0]]
    if shifted:
        raise InputError(
            f"{where}: prediction.tta_shifts: {list(shifted[0])} moves rows, and model.derived_channels {derived!r} "
            "tells the model how deep a row lies; expected 0 rows, or derived_channels 'none'"
        )
    if recipe.training.crop_hw is not None:
        height, width = recipe.training.crop_hw
        raise InputError(
            f"{where}: training.crop_hw: in windows of {height}x{width} a row lies elsewhere than in the image, and "
            f"model.derived_channels {derived!r} tells the model how deep it lies; expected null, or derived_channels "
            "'none'"
        )


def reaches_teacher(override: str) -> bool:
    """Whether an override of a student also applies to its teacher: it belongs to the project or to the machine."""
    return override.startswith(_SHARED_WITH_TEACHER)


def _with_teacher_set(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Return the recipe with the shared overrides added to those of its teacher."""
    if recipe.pseudo is None or recipe.pseudo.teacher is None:
        return recipe
    shared = [override for override in overrides if reaches_teacher(override)]
    pseudo = recipe.pseudo.model_copy(update={"set": [*recipe.pseudo.set, *shared]})
    return recipe.model_copy(update={"pseudo": pseudo})


def _check_pseudo(recipe: Recipe, *, where: str, students: tuple[str, ...]) -> None:
    """Refuse stages on pseudo-labels without a teacher, labels that no stage uses, and a teacher that does not fit.

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
    if recipe.pseudo.teacher is not None and not (recipe.pseudo.teacher_run or recipe.pseudo.teacher_runs):
        _check_teacher(recipe, recipe.pseudo, where=where, students=students)


def _check_teacher(recipe: Recipe, pseudo: PseudoConfig, *, where: str, students: tuple[str, ...]) -> None:
    assert pseudo.teacher is not None, where
    at, chain = f"{where}: pseudo.teacher: {pseudo.teacher!r}", (*students, where)
    _, source = recipe_source(pseudo.teacher)
    if source in chain:
        raise InputError(
            f"{at} would be its own teacher ({' ← '.join((*chain, source))}); a teacher is trained before its student"
        )
    teacher = _load_any(pseudo.teacher, tuple(pseudo.set), students=(*chain, source))
    if teacher.metric != recipe.metric:
        raise InputError(
            f"{at} has the metric {teacher.metric!r}, but {recipe.name} has {recipe.metric!r}; add "
            f'"metric={recipe.metric}" to pseudo.set'
        )
    if found := first_difference(teacher.folds, recipe.folds):
        key, its, own = found
        raise InputError(
            f'{at} has folds.{key} {its!r}, but {recipe.name} has {own!r}; they share one folds.csv: add "folds.{key}='
            f'{"null" if own is None else own}" to pseudo.set'
        )


def first_difference(folds: FoldsConfig, other: FoldsConfig) -> tuple[str, Any, Any] | None:
    """Return (field, value, other value) of the first field that would make other folds; None if they are equal."""
    for key in FoldsConfig.model_fields:
        if key not in ("train", "refit") and getattr(folds, key) != getattr(other, key):
            return key, getattr(folds, key), getattr(other, key)
    return None


def load_teacher(recipe: Recipe) -> Recipe:
    """Return the recipe of a teacher that is a single one; see load_teachers.

    Raises:
        InputError: It cannot be read, or is an ensemble.
    """
    ((teacher, _),) = load_teachers(recipe)
    return teacher


def load_teachers(recipe: Recipe) -> list[tuple["Recipe", float]]:
    """Return the recipes of a student's teacher, each with its weight: of an ensemble those of its members.

    They train the folds that their student trains, and never on all images.

    Raises:
        InputError: One cannot be read.
    """
    from masksmith.recipes.ensemble import Ensemble, member_recipes  # not before: it imports this module

    assert recipe.pseudo is not None, recipe.name
    assert recipe.pseudo.teacher is not None, recipe.name
    asked = _load_any(recipe.pseudo.teacher, tuple(recipe.pseudo.set))
    found = [(asked, 1.0)] if isinstance(asked, Recipe) else []
    if isinstance(asked, Ensemble):
        found = list(zip(member_recipes(asked), (one.weight for one in asked.members), strict=True))

    def fitted(teacher: Recipe) -> Recipe:
        folds = teacher.folds.model_copy(update={"train": recipe.folds.train, "refit": False})
        return teacher.model_copy(update={"folds": folds})

    return [(fitted(teacher), weight) for teacher, weight in found]


def _load_any(
    name: str, overrides: tuple[str, ...], *, students: tuple[str, ...] = ()
) -> "Recipe | Ensemble":
    from masksmith.recipes.ensemble import is_ensemble, load_ensemble  # not before: it imports this module

    if is_ensemble(name):
        return load_ensemble(name, overrides, students=students)
    return load_recipe(name, overrides, students=students[:-1])  # it adds its own name


def _teachers_hash(recipe: Recipe) -> str:
    teachers = load_teachers(recipe)
    if len(teachers) == 1:
        return teachers[0][0].hash
    return digest(*(f"{teacher.hash} {weight:g}" for teacher, weight in teachers))


def load_recipe(
    name: str = "auto", overrides: tuple[str, ...] = (), *, students: tuple[str, ...] = ()
) -> Recipe:
    """Load a bundled recipe by name, or one from a file, and apply dotted overrides; see parse_recipe."""
    text, where = recipe_source(name)
    return parse_recipe(text, where=where, overrides=overrides, students=students)
