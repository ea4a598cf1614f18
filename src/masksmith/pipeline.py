"""READ FIRST: the whole way, each verb a function.

``compete`` = check → folds → train → predict → tune → submit → report. Every verb can be run alone on a project
folder; what is done and whose inputs have not changed is not done again.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksmith.augment import CallableAugment
from masksmith.core import interrupt
from masksmith.core.errors import InputError
from masksmith.core.files import folder_lock, write_json, write_text
from masksmith.core.progress import logger
from masksmith.data.checks import CheckReport, check_data
from masksmith.data.layouts import read_catalog
from masksmith.data.synthetic import make_example
from masksmith.folds.table import Folds
from masksmith.metrics import get_metric
from masksmith.planning.budget import Budget, parse_duration
from masksmith.preprocess.inputs import InputConfig, scaling_text
from masksmith.project.folder import Project, Run, refuse_foreign, refuse_inside
from masksmith.project.members import read_members
from masksmith.recipes.describe import EnsembleCard, RecipeCard, describe_ensemble, describe_recipe
from masksmith.recipes.ensemble import is_ensemble, load_ensemble, load_judge
from masksmith.recipes.recipe import Listing, Recipe, list_recipes, load_recipe
from masksmith.steps.compete import compete_units
from masksmith.steps.folds import folds_of
from masksmith.steps.lr_test import sweep_lr
from masksmith.steps.plan import Planner, machine_tools
from masksmith.steps.predict import predict_member
from masksmith.steps.pseudo_labels import train_asked
from masksmith.steps.report import report_members
from masksmith.steps.seed_noise import measure_noise, noise_text, read_noise
from masksmith.steps.submit import submit_members, test_shapes
from masksmith.steps.tune import tune_members
from masksmith.submission.score import Scored, score_files
from masksmith.submission.validate import Verdict, validate_submission

if TYPE_CHECKING:
    from masksmith.models.convert import Converted
    from masksmith.recipes.verify import Verdicts
    from masksmith.recipes.vocabulary import Vocabulary
    from masksmith.training.lr_finder import LrCurve

Overrides = Sequence[str] | dict[str, Any]

# --- verbs ------------------------------------------------------------------------------------------------


def check(data: str | Path, out: str | Path | None = None, *, dialect: str | None = None) -> CheckReport:
    """Recognise the layout, decode everything once, and say what is wrong with the data.

    Args:
        data: Folder with the data; zip files stay closed.
        out: Project folder to begin or go on with: absent, empty, or made by masksmith; None uses a temporary one.
        dialect: Of the run-lengths: tgs, siim, airbus, dsb, severstal, or one of them with ``_row_major``. None infers
            it, or takes the one that the project was begun with.

    Returns:
        Facts and findings; ``print`` shows them.

    Raises:
        InputError: The data cannot be used, or the folder holds somebody else's files; nothing in it is touched then.
    """
    if out is None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            return check(data, Path(folder) / "project", dialect=dialect)
    root = Path(out)
    refuse_foreign(root)  # before the data are read, which can take minutes
    catalog = read_catalog(Path(data), dialect=dialect or Project.asked_dialect(root))
    refuse_inside(root, catalog)
    refuse_foreign(root)
    with folder_lock(root):
        project = Project.create(root, catalog)
        scaling = project.settled_input(InputConfig())
        report = check_data(
            catalog, project.cache, scaling=scaling_text(scaling, project.cache.train_images.dtype)
        )
        write_json(project.check_json, report.to_json())
    return report


def folds(out: str | Path, *, recipe: str = "auto", overrides: Overrides = ()) -> Folds:
    """Make the folds of a project, once; later calls read them."""
    project, asked = Project.open(Path(out)), load_judge(recipe, _dotted(overrides))
    with folder_lock(project.root):
        return folds_of(project, asked)


def train(
    out: str | Path,
    *,
    recipe: str = "auto",
    overrides: Overrides = (),
    augment: CallableAugment | None = None,
) -> Run:
    """Train the folds of a recipe, or of all recipes of an ensemble, that are not trained yet.

    Args:
        out: Project folder.
        recipe: A bundled recipe or ensemble, or a YAML file.
        overrides: Dotted changes, as for ``compete``.
        augment: As for ``compete``.

    Returns:
        The run of the recipe, or of the first recipe of the ensemble.
    """
    project, asked = Project.open(Path(out)), load_judge(recipe, _dotted(overrides))
    project.custom = augment
    with folder_lock(project.root), interrupt.graceful(), _threads_put_back():
        return train_asked(project, asked)


def predict(out: str | Path, *, run: str | None = None) -> Run:
    """Predict every trained fold's held-out images and the test images."""
    project = Project.open(Path(out))
    with folder_lock(project.root), interrupt.graceful(), _threads_put_back():
        members = read_members(project, run)
        for member in members:
            predict_member(project, member)
        return members[0].run


def tune(out: str | Path, *, run: str | None = None) -> dict[str, Any]:
    """Search the triplet rule on out-of-fold probabilities; return what ``tuning.json`` holds."""
    project = Project.open(Path(out))
    with folder_lock(project.root):
        return tune_members(project, read_members(project, run))


def submit(out: str | Path, *, run: str | None = None, check: str | Path | None = None) -> Verdict:
    """Write masks and a validated submission; with ``check``, only validate that file for this project."""
    project = Project.open(Path(out))
    if check is not None:
        shapes = test_shapes(project)
        return validate_submission(Path(check), project.catalog.submission, shapes, masks=None)
    with folder_lock(project.root):
        return submit_members(project, read_members(project, run))


def report(out: str | Path, *, run: str | None = None) -> Path:
    """Write ``report.html`` and return its path."""
    project = Project.open(Path(out))
    with folder_lock(project.root):
        return report_members(project, read_members(project, run))


def noise(out: str | Path, *, recipe: str | None = None, overrides: Overrides = ()) -> dict[str, Any]:
    """Train fold 0 with three seeds and store the spread of their scores in ``noise.json``.

    Args:
        out: Project folder, with folds.
        recipe: A bundled recipe or a YAML file; None takes the recipe of the last run, or the default.
        overrides: Dotted changes of the recipe.
    """
    project = Project.open(Path(out))
    named = recipe or _last_recipe(project)
    asked = _load_one(named, _dotted(overrides), what="seed noise is that of")
    with folder_lock(project.root), interrupt.graceful(), _threads_put_back():
        folds_of(project, asked)
        return measure_noise(project, asked)


def lr(out: str | Path, *, recipe: str = "auto", overrides: Overrides = ()) -> "LrFound":
    """Sweep the learning rate over a short training of fold 0, and write ``lr.html``; no run is made.

    Args:
        out: Project folder.
        recipe: A bundled recipe's name, or a YAML file; its first stage is trained.
        overrides: Dotted changes of the recipe.

    Raises:
        InputError: No such project, or the recipe cannot be trained.
    """
    from masksmith.reporting.figures import lr_curve

    project = Project.open(Path(out))
    asked = _load_one(recipe, _dotted(overrides), what="a range test is made with")
    first = asked.training.stages[0].optimizer
    assert first is not None
    with folder_lock(project.root), interrupt.graceful(), _threads_put_back():
        folds_of(project, asked)
        curve = sweep_lr(project, asked)
        write_text(
            project.lr_html, lr_curve(curve.rates, curve.losses, suggestion=curve.suggestion, peak=first.lr)
        )
    return LrFound(curve, first.lr, project.lr_html)


@dataclass(frozen=True)
class LrFound:
    """What ``lr`` ends with."""

    curve: "LrCurve"
    peak: float
    """Learning rate of the recipe."""
    page: Path

    def __str__(self) -> str:
        found = self.curve.suggestion
        said = (
            f"suggested learning rate: {found:.2g}"
            if found is not None
            else "no suggestion: the loss does not fall at any rate of the sweep"
        )
        swept = f"{self.curve.rates[0]:.0e} to {self.curve.rates[-1]:.2g}" if self.curve.rates else "nothing"
        return f"{said} (the recipe has {self.peak:.2g}; swept {swept})\n{self.page}"


def plan(
    data: str | Path,
    *,
    budget: str,
    out: str | Path | None = None,
    recipe: str = "auto",
    overrides: Overrides = (),
    device: str | None = None,
    dialect: str | None = None,
) -> str:
    """Choose a recipe for a budget, with a reason beside each choice; train nothing.

    Args:
        data: Folder with the data.
        budget: Such as "2h".
        out: Project folder, where ``plan.yaml`` is written too; None leaves nothing behind.
        recipe: What to start from.
        overrides: Values that are obeyed.
        device: "cpu", "cuda", "mps" or "auto".
        dialect: Of the run-lengths, as for ``check``.

    Returns:
        The resolved recipe as YAML.

    Raises:
        InputError: The budget is too short for one epoch, or the device is not there.
    """
    if out is None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            inside = Path(folder) / "project"
            return plan(
                data,
                budget=budget,
                out=inside,
                recipe=recipe,
                overrides=overrides,
                device=device,
                dialect=dialect,
            )
    began, duration = time.monotonic(), parse_duration(budget)
    pinned = _pinned(overrides, device)
    asked = _load_one(recipe, pinned, what="a budget plans")
    _refuse_pseudo_in_budget(asked)
    check(data, out, dialect=dialect)
    project = Project.open(Path(out))
    with folder_lock(project.root), interrupt.graceful(), _threads_put_back():
        folds_of(project, asked)
        planner = Planner(project, asked, _keys(pinned), machine_tools(project, asked))
        return planner.propose(duration.seconds - (time.monotonic() - began))


@dataclass(frozen=True)
class Result:
    """What ``compete`` ends with; ``tuning`` and ``report`` are None where a stop came before anything was trained."""

    project: Path
    run: str
    tuning: dict[str, Any] | None
    submission: Verdict | None
    report: Path | None
    members: list[str] = field(default_factory=list)
    noise: str = ""
    budget: str = ""
    stopped: int | None = None
    """Exit code of the signal that stopped it, None where it came to its end."""

    def __str__(self) -> str:
        lines = []
        if self.tuning is not None:
            scores, chosen = self.tuning["scores"], ", ".join(self.tuning["chosen_on_fold"])
            lines += [
                f"{self.tuning['metric']} out of fold: {scores['chosen']:.4f} ± {self.tuning['standard_error']:.4f} "
                f"(plain {scores['plain']:.4f}, nested {scores['nested']:.4f}, nothing {scores['nothing']:.4f}, "
                f"everything {scores['everything']:.4f}; {self.tuning['covers']}"
                f"{chosen and f'; chosen on the same fold: {chosen}'})",
                self.noise,
                f"members: {', '.join(self.members)}",
                f"rule: {self.tuning['rule_text']}",
            ]
            if "ensemble" in self.tuning:
                lines.append(self.tuning["ensemble"]["text"])
        else:
            lines.append("nothing is trained yet: the submission is the baseline")
        lines.append(f"submission: {self.submission or 'none, there are no test images'}")
        if self.report is not None:
            lines.append(f"report: {self.report}")
        if self.budget:
            lines.append(f"budget: {self.budget}")
        return "\n".join(lines)


def compete(
    data: str | Path,
    *,
    out: str | Path,
    recipe: str = "auto",
    overrides: Overrides = (),
    budget: str | None = None,
    device: str | None = None,
    augment: CallableAugment | None = None,
    dialect: str | None = None,
) -> Result:
    """Go the whole way from a data folder to a validated submission, masks and a report.

    A baseline submission stands at once, a better one after each trained fold. Ctrl-C and SIGTERM leave a complete
    submission of what has been trained until then; a second one ends the process at once.

    Args:
        data: Folder with the data, as it was downloaded.
        out: Project folder; the same call again does only what is missing.
        recipe: The name of a bundled recipe or ensemble, or a YAML file. Of an ensemble all recipes are trained, and
            their probabilities are averaged; a recipe with pseudo-labels trains its teacher first.
        overrides: Dotted changes of the recipe: ``["folds.train=1"]`` or ``{"folds.train": 1}``. Those of an ensemble
            change each of its recipes, but name, members and tuning, which are the ensemble's own.
        budget: Wall-clock time such as "20m" for the project as a whole, or "+20m" on top of what is spent: model,
            length and folds are planned for it, and more time adds to what is trained. None trains the recipe.
        device: "cpu", "cuda", "mps" or "auto".
        augment: A callable of your own in albumentations' form; the recipe must name it in
            ``training.augment.custom``, so that the name stands in its hash.
        dialect: Of the run-lengths, as for ``check``.

    Raises:
        InputError: Data, recipe, budget or folder cannot be used; nothing already written is lost.
        StoppedError: Stopped before the data had been read.
    """
    began = time.monotonic()
    duration = None if budget is None else parse_duration(budget)
    pinned = _pinned(overrides, device)
    planned = None if duration is None else _load_to_plan(recipe, pinned)
    asked = planned or load_judge(recipe, pinned)
    with interrupt.graceful():
        for line in str(check(data, out, dialect=dialect)).splitlines():
            logger.info("%s", line)
        project = Project.open(Path(out))
        project.custom = augment
        with folder_lock(project.root), _threads_put_back():
            clock = Budget(project.budget_json, duration, started=began)
            with interrupt.listen(clock.beat):
                logger.info("folds:\n%s", folds_of(project, asked))
                planner = None
                if planned is not None:
                    planner = Planner(project, planned, _keys(pinned), machine_tools(project, planned))
                done = compete_units(project, asked, planner, clock)
            clock.write()
    return Result(
        project=project.root,
        run=done.members[0].run.path.name if done.members else "",
        tuning=done.tuning,
        submission=done.submission,
        report=done.report,
        members=[member.name for member in done.members],
        noise=noise_text(read_noise(project.noise_json)),
        budget="" if duration is None else str(clock),
        stopped=done.stopped,
    )


def score(
    submission: str | Path,
    solution: str | Path,
    *,
    metric: str = "tgs_map",
    shape: tuple[int, int],
    dialect: str | None = None,
) -> Scored:
    """Score a submission against a file of true run-lengths.

    Args:
        submission: CSV with ids and run-lengths.
        solution: CSV of the same form.
        metric: Its name.
        shape: (height, width) of every image.
        dialect: Of both files' run-lengths, as for ``check``; None infers it from the solution.
    """
    return score_files(
        Path(submission), Path(solution), metric=get_metric(metric), shape=shape, dialect=dialect
    )


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


def recipes(name: str | None = None) -> "list[Listing] | RecipeCard | EnsembleCard":
    """Return the bundled recipes, or all about one: header, every value, weights, size trace.

    Of an ensemble: header, every value, and the cards of its recipes.
    """
    if name is None:
        return list_recipes()
    return describe_ensemble(name) if is_ensemble(name) else describe_recipe(name)


def verify(name: str | None = None, *, scale: str = "small") -> "Verdicts":
    """Check a bundled recipe, or all: weights, size trace, four losses, and that its net learns eight images.

    Of an ensemble: that its recipes are there, can be read, and agree on folds and metric.

    Args:
        name: Of the recipe or ensemble; None: all.
        scale: "small" (narrow decoders, at most 64 pixels) or "full".

    Raises:
        InputError: An unknown recipe or scale, or a recipe is not what it was; the message says in what.
    """
    from masksmith.recipes.verify import Verdicts, golden, refuse_failed, verify_ensemble
    from masksmith.recipes.verify import verify as verify_recipe

    names = [listing.name for listing in list_recipes()] if name is None else [name]
    known = golden()
    with _threads_put_back():
        checked = [
            verify_ensemble(one)
            if is_ensemble(one)
            else verify_recipe(load_recipe(one), scale=scale, known=known.get(one))
            for one in names
        ]
    verdicts = Verdicts(checked)
    refuse_failed(verdicts)
    return verdicts


def vocabulary(kind: str | None = None) -> "Vocabulary":
    """Return the words that a recipe can hold, with their parameters: of one kind, such as "losses", or all.

    Raises:
        InputError: An unknown kind.
    """
    from masksmith.recipes.vocabulary import read_vocabulary

    return read_vocabulary(kind)


# --- helpers ---


@contextlib.contextmanager
def _threads_put_back() -> Iterator[None]:
    """Give torch the caller's number of threads back after the block, which sets its own."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _dotted(overrides: Overrides) -> tuple[str, ...]:
    if isinstance(overrides, dict):
        import json

        return tuple(f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items())
    return (overrides,) if isinstance(overrides, str) else tuple(overrides)


def _pinned(overrides: Overrides, device: str | None) -> tuple[str, ...]:
    extra = () if device is None else (f"training.device={device}",)
    return (*_dotted(overrides), *extra)


def _load_one(name: str, overrides: tuple[str, ...], *, what: str) -> Recipe:
    """Load a recipe; an ensemble is refused, and the message says what is done with one recipe alone."""
    if is_ensemble(name):
        members = dict.fromkeys(member.recipe for member in load_ensemble(name).members)
        untaught = [member for member in members if load_recipe(member).pseudo is None]
        named = ", ".join(untaught or members)
        raise InputError(f"recipe {name}: it is an ensemble, and {what} one recipe; take one of {named}")
    return load_recipe(name, overrides)


def _load_to_plan(name: str, pinned: tuple[str, ...]) -> Recipe:
    """Load a recipe that is trained within a budget.

    Raises:
        InputError: It is an ensemble, or asks for a refit or pseudo-labels, whose trainings a budget does not plan.
    """
    asked = _load_one(name, pinned, what="a budget plans")
    if asked.folds.refit:
        raise InputError(
            "folds.refit: true, with a budget that itself decides what is trained; leave it false, or train without "
            "--budget"
        )
    _refuse_pseudo_in_budget(asked)
    return asked


def _refuse_pseudo_in_budget(asked: Recipe) -> None:
    if asked.pseudo is not None:
        raise InputError(
            f"pseudo: {asked.name} learns from {asked.pseudo.teacher}, and a budget does not plan that training; "
            f"train without --budget, or give the budget to the recipe {asked.pseudo.teacher}"
        )


def _keys(pinned: Sequence[str]) -> list[str]:
    return [override.partition("=")[0] for override in pinned]


def _last_recipe(project: Project) -> str:
    """Return the file of the recipe that was worked on last, or the default's name."""
    try:
        return str(project.run().path / "recipe.yaml")
    except InputError:
        return "auto"


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
    "lr",
    "noise",
    "plan",
    "predict",
    "recipes",
    "report",
    "score",
    "submit",
    "train",
    "tune",
    "verify",
    "vocabulary",
]
