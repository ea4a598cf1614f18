"""READ FIRST: the whole way, each verb a function.

``compete`` = check → folds → train → predict → tune → submit → report. Every verb can be run alone on a project
folder; what is done and whose inputs have not changed is not done again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksmith.data.catalog import read_catalog
from masksmith.data.checks import CheckReport, check_data
from masksmith.data.synthetic import make_example
from masksmith.files import folder_lock, write_json
from masksmith.metrics import get_metric
from masksmith.models.config import ModelConfig
from masksmith.progress import logger
from masksmith.project import Project, Run, refuse_inside
from masksmith.recipe import Listing, Recipe, list_recipes, load_recipe, parse_recipe, recipe_source
from masksmith.splits import Folds
from masksmith.stages import folds_of, predict_run, report_run, submit_run, test_shapes, train_run, tune_run
from masksmith.submission import (
    Scored,
    Verdict,
    score_files,
    validate_submission,
)

if TYPE_CHECKING:
    from masksmith.models.convert import Converted

Overrides = Sequence[str] | dict[str, Any]

# --- verbs ------------------------------------------------------------------------------------------------


def check(data: str | Path, out: str | Path | None = None) -> CheckReport:
    """Recognise the layout, decode everything once, and say what is wrong with the data.

    Args:
        data: Folder with the data; zip files stay closed.
        out: Project folder to begin or go on with; None uses a temporary one.

    Returns:
        Facts and findings; ``print`` shows them.

    Raises:
        InputError: The data cannot be used.
    """
    if out is None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            return check(data, Path(folder) / "project")
    catalog = read_catalog(Path(data))
    refuse_inside(Path(out), catalog)
    with folder_lock(Path(out)):
        project = Project.create(Path(out), catalog)
        report = check_data(catalog, project.cache)
        write_json(project.check_json, report.to_json())
    return report


def folds(out: str | Path, *, recipe: str = "default", overrides: Overrides = ()) -> Folds:
    """Make the folds of a project, once; later calls read them."""
    project, asked = Project.open(Path(out)), load_recipe(recipe, _dotted(overrides))
    with folder_lock(project.root):
        return folds_of(project, asked)


def train(out: str | Path, *, recipe: str = "default", overrides: Overrides = ()) -> Run:
    """Train the folds of a recipe that are not trained yet."""
    project, asked = Project.open(Path(out)), load_recipe(recipe, _dotted(overrides))
    with folder_lock(project.root):
        return train_run(project, asked)


def predict(out: str | Path, *, run: str | None = None) -> Run:
    """Predict every trained fold's held-out images and the test images."""
    project = Project.open(Path(out))
    with folder_lock(project.root):
        return predict_run(project, project.run(run))


def tune(out: str | Path, *, run: str | None = None) -> dict[str, Any]:
    """Search the triplet rule on out-of-fold probabilities; return what ``tuning.json`` holds."""
    project = Project.open(Path(out))
    with folder_lock(project.root):
        return tune_run(project, project.run(run))


def submit(out: str | Path, *, run: str | None = None, check: str | Path | None = None) -> Verdict:
    """Write masks and a validated submission; with ``check``, only validate that file for this project."""
    project = Project.open(Path(out))
    if check is not None:
        shapes = test_shapes(project)
        return validate_submission(Path(check), project.catalog.submission, shapes, masks=None)
    with folder_lock(project.root):
        return submit_run(project, project.run(run))


def report(out: str | Path, *, run: str | None = None) -> Path:
    """Write ``report.html`` and return its path."""
    project = Project.open(Path(out))
    with folder_lock(project.root):
        return report_run(project, project.run(run))


@dataclass(frozen=True)
class Result:
    """What ``compete`` ends with."""

    project: Path
    run: str
    tuning: dict[str, Any]
    submission: Verdict | None
    report: Path

    def __str__(self) -> str:
        scores = self.tuning["scores"]
        lines = [
            f"{self.tuning['metric']} out of fold: {scores['chosen']:.4f} ± {self.tuning['standard_error']:.4f} "
            f"(plain {scores['plain']:.4f}, nested {scores['nested']:.4f}, nothing {scores['nothing']:.4f}, "
            f"everything {scores['everything']:.4f}; {self.tuning['covers']})",
            f"rule: {self.tuning['rule_text']}",
            f"submission: {self.submission}"
            if self.submission
            else "submission: none, there are no test images",
            f"report: {self.report}",
        ]
        return "\n".join(lines)


def compete(
    data: str | Path, *, out: str | Path, recipe: str = "default", overrides: Overrides = ()
) -> Result:
    """Go the whole way from a data folder to a validated submission, masks and a report.

    Args:
        data: Folder with the data, as it was downloaded.
        out: Project folder; the same call again does only what is missing.
        recipe: A bundled recipe's name, or a YAML file.
        overrides: Dotted changes of the recipe: ``["folds.train=1"]`` or ``{"folds.train": 1}``.

    Raises:
        InputError: Data, recipe or folder cannot be used; nothing already written is lost.
    """
    asked = load_recipe(recipe, _dotted(overrides))
    for line in str(check(data, out)).splitlines():
        logger.info("%s", line)
    project = Project.open(Path(out))
    with folder_lock(project.root):
        logger.info("folds:\n%s", folds_of(project, asked))
        run = predict_run(project, train_run(project, asked))
        tuning = tune_run(project, run)
        verdict = submit_run(project, run) if project.catalog.test else None
        page = report_run(project, run)
    return Result(project.root, run.path.name, tuning, verdict, page)


def score(
    submission: str | Path, solution: str | Path, *, metric: str = "tgs_map", shape: tuple[int, int]
) -> Scored:
    """Score a submission against a file of true run-lengths; ``shape`` is (height, width)."""
    return score_files(Path(submission), Path(solution), metric=get_metric(metric), shape=shape)


def example(out: str | Path, *, train: int = 300, test: int = 100, seed: int = 0) -> Path:
    """Generate a small seismic-like data set in Kaggle's layout; ``solution.csv`` beside it holds the answers."""
    return make_example(Path(out), num_train=train, num_test=test, seed=seed)


def convert(
    checkpoint: str | Path, out: str | Path, *, key: str | None = None, only: str = "", force: bool = False
) -> "Converted":
    """Write the weights of a foreign torch checkpoint as safetensors; code in the file is refused, never run.

    Args:
        checkpoint: A .pth, .pt, .bin or .ckpt file.
        out: The .safetensors file to write, for ``model.encoder_weights``.
        key: Dotted path of the weights inside the checkpoint; None looks in the usual places.
        only: Write only the weights whose names begin so, without it.
        force: Replace a file that is there.

    Raises:
        InputError: The file needs code to be read, or holds no weights; the message names what is wrong.
    """
    from masksmith.models.convert import convert_checkpoint

    return convert_checkpoint(Path(checkpoint), Path(out), key=key, only=only, force=force)


def recipes(name: str | None = None) -> "list[Listing] | RecipeCard":
    """Return the bundled recipes, or all about one: header, every value, weights, size trace."""
    return list_recipes() if name is None else describe_recipe(name)


# --- helpers ---


def _dotted(overrides: Overrides) -> tuple[str, ...]:
    if isinstance(overrides, dict):
        import json

        return tuple(f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items())
    return (overrides,) if isinstance(overrides, str) else tuple(overrides)


# --- recipes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecipeCard:
    """All about one recipe."""

    name: str
    header: dict[str, str]
    values: str
    num_weights: int
    trace: list[Any]

    def __str__(self) -> str:
        lines = [f"# {key}: {text}" for key, text in self.header.items()]
        lines += [
            "",
            self.values.rstrip(),
            "",
            f"weights: {self.num_weights:,}",
            "size trace (one channel, 101x101):",
        ]
        lines += [f"  {line.block:12s} {line.channels:5d} x {line.hw[0]}x{line.hw[1]}" for line in self.trace]
        return "\n".join(lines)


def describe_recipe(name: str) -> RecipeCard:
    """Return header, values, number of weights and size trace of a recipe; weights are not loaded."""
    from masksmith.models import build_model, size_trace
    from masksmith.models.encoders import settle_encoder
    from masksmith.preprocess import round_up
    from masksmith.recipe import parse_header

    text, where = recipe_source(name)
    recipe = parse_recipe(text, where=where)
    settled = settle_encoder(recipe.model.encoder, "none") if recipe.model.encoder == "auto" else None
    encoder = settled.encoder if settled else recipe.model.encoder
    model_config: ModelConfig = recipe.model.model_copy(
        update={"encoder": encoder, "encoder_weights": "none"}
    )
    model = build_model(model_config, in_channels=1, seed=0)
    size = round_up(101, model.divisor)
    trace = size_trace(model, in_channels=1, hw=(size, size))
    num_weights = sum(weight.numel() for weight in model.parameters())
    return RecipeCard(recipe.name, parse_header(text), recipe.to_yaml(), num_weights, trace)


__all__ = [
    "CheckReport",
    "Recipe",
    "Result",
    "Run",
    "Scored",
    "Verdict",
    "check",
    "compete",
    "convert",
    "example",
    "folds",
    "predict",
    "recipes",
    "report",
    "score",
    "submit",
    "train",
    "tune",
]
