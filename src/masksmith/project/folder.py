"""The project folder: one data set, one ``folds.csv``, many runs. Names of files live here and nowhere else."""

import json
import os
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from masksmith.augment import CallableAugment
from masksmith.core.arrays import Shaped
from masksmith.core.errors import InputError
from masksmith.core.files import digest, no_room, read_json, remove, write_json, write_text
from masksmith.core.ledger import Ledger
from masksmith.core.locks import is_leftover
from masksmith.data.cache import VERSION as CACHE_VERSION
from masksmith.data.cache import Cache, build_cache
from masksmith.data.catalog import Catalog
from masksmith.data.checks import constant_ids
from masksmith.folds.table import Folds, fold_name, group_values, read_folds
from masksmith.preprocess.inputs import InputConfig, Inputs, make_inputs, settle_scaling
from masksmith.recipes.ensemble import AnyRecipe
from masksmith.recipes.recipe import Recipe, parse_recipe

FORMAT_VERSION = 1
_CATALOG_KEYS = {"format", "root", "layout", "content_hash", "train", "test", "submission"}  # since format 1


@dataclass(frozen=True)
class Run:
    """One recipe trained on the project's folds: ``runs/NAME-HASH/``."""

    path: Path
    recipe: Recipe

    @property
    def ledger(self) -> Ledger:
        """What has been done."""
        return Ledger(self.path)

    @property
    def events(self) -> Path:
        """The log of record."""
        return self.path / "metrics.jsonl"

    def checkpoints(self, fold: int) -> Path:
        """Folder of a fold's checkpoints."""
        return self.path / "checkpoints" / fold_name(fold)

    def final(self, fold: int) -> Path:
        """Weights of a trained fold."""
        return self.checkpoints(fold) / "final.safetensors"

    @property
    def interim(self) -> Path:
        """Folder of what was predicted by a training that is not finished."""
        return self.path / "interim"

    def oof(self, fold: int) -> Path:
        """Out-of-fold probabilities of a fold."""
        return self.path / "oof" / f"{fold_name(fold)}.npy"

    def test(self, fold: int) -> Path:
        """Test probabilities of a fold."""
        return self.path / "test" / f"{fold_name(fold)}.npy"

    def pseudo(self, fold: int) -> Path:
        """Pseudo-labels that a fold is trained on: masks of those test images that its teacher is sure of."""
        return self.path / "pseudo" / f"{fold_name(fold)}.npy"


class Project:
    """A project folder, opened."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._inputs: dict[str, Inputs] = {}
        self.custom: CallableAugment | None = None
        """A callable of the user's, given from Python, that trainings augment with."""
        self.data_json = root / "data.json"
        self.check_json = root / "check.json"
        self.folds_csv = root / "folds.csv"
        self.cache_dir = root / "cache"
        self.inputs_dir = root / "cache" / "inputs"
        self.runs_dir = root / "runs"
        self.tuning_json = root / "tuning.json"
        self.masks_dir = root / "masks"
        self.submission_csv = root / "submission.csv"
        self.submission_json = root / "submission.json"
        self.members_json = root / "ensemble" / "members.json"
        self.plan_yaml = root / "plan.yaml"
        self.plan_json = root / "plan.json"
        self.budget_json = root / "budget.json"
        self.noise_json = root / "noise.json"
        self.report_html = root / "report.html"
        self.lr_html = root / "lr.html"

    @classmethod
    def create(cls, root: Path, catalog: Catalog) -> "Project":
        """Make or reuse the folder for this data set.

        Raises:
            InputError: The folder belongs to another data set whose folds are made.
        """
        project = cls(root)
        if project.data_json.exists():
            old = project.catalog
            begun = project.folds_csv.exists() or project.runs_dir.exists()
            if old.content_hash != catalog.content_hash and begun:
                raise InputError(
                    f"{root}: this folder belongs to another data set ({old.root}, {len(old.train)} training images; "
                    f"now {catalog.root}, {len(catalog.train)}); choose another --out, or remove the folder"
                )
            if old.submission.dialect != catalog.submission.dialect and begun:
                raise InputError(
                    f"{root}: it was begun with run-lengths read as {old.submission.dialect}, now as "
                    f"{catalog.submission.dialect}; choose another --out, or --dialect {old.submission.dialect}"
                )
            if old == catalog:  # an older masksmith may have kept less of the same data
                return project
            del project.catalog
        write_json(project.data_json, {"format": FORMAT_VERSION, **catalog.to_json()})
        return project

    @classmethod
    def asked_dialect(cls, root: Path) -> str | None:
        """Return the run-length dialect that was asked for when the folder was made, None where there was none."""
        project = cls(root)
        form = project.catalog.submission if project.data_json.exists() else None
        return form.dialect if form and form.asked else None

    @classmethod
    def open(cls, root: Path) -> "Project":
        """Open an existing project.

        Raises:
            InputError: There is none, or a newer masksmith made it.
        """
        project = cls(root)
        project.catalog  # noqa: B018  (reads and checks it)
        return project

    @cached_property
    def catalog(self) -> Catalog:
        """What the data set holds.

        Raises:
            InputError: This is no project, or a newer masksmith made it.
        """
        value = _read_catalog_json(self.data_json)
        if value is None:
            there = os.path.lexists(self.data_json)
            raise InputError(
                f"{self.root}: not a masksmith project ({'its data.json is not ours' if there else 'no data.json'}); "
                f"begin with `masksmith check DATA --out {'ELSEWHERE' if there else self.root}`"
            )
        if value.pop("format") > FORMAT_VERSION:
            raise InputError(
                f"{self.root}: made by a newer masksmith; update masksmith, or choose another --out"
            )
        return Catalog.from_json(value)

    @cached_property
    def cache(self) -> Cache:
        """The decoded data, made now if it is not there."""
        return build_cache(self.catalog, self.cache_dir)

    @cached_property
    def blank_train(self) -> Collection[str]:
        """Ids of the training images without content: kept out of training and of scores."""
        return frozenset(constant_ids(self.cache.train_images))

    @cached_property
    def blank_test(self) -> Collection[str]:
        """Ids of the test images without content: predicted empty. A training image may have the same id."""
        return frozenset(constant_ids(self.cache.test_images))

    def inputs(self, config: InputConfig) -> Inputs:
        """Return the images as a model with this configuration sees them, made now if they are not there.

        Raises:
            InputError: The images do not allow it (see make_inputs).
        """
        if config.identity not in self._inputs:
            cache, decoded = self.cache, self.key(CACHE_VERSION)
            self._inputs[config.identity] = make_inputs(
                config,
                cache.train_images,
                cache.test_images,
                self.inputs_dir,
                blank=self.blank_train,
                decoded=decoded,
            )
        return self._inputs[config.identity]

    def settled_input(self, config: InputConfig) -> InputConfig:
        """Return the configuration with scaling "auto" settled for the project's images.

        Raises:
            InputError: A band that the images do not have.
        """
        return settle_scaling(
            config,
            self.cache.train_images,
            self.inputs_dir,
            blank=self.blank_train,
            decoded=self.key(CACHE_VERSION),
        )

    @property
    def ledger(self) -> Ledger:
        """What has been done outside the runs."""
        return Ledger(self.root)

    @property
    def folds(self) -> Folds:
        """The folds.

        Raises:
            InputError: They have not been made yet, or the file was edited into something inconsistent.
        """
        if not self.folds_csv.exists():
            raise InputError(f"{self.folds_csv}: not there yet; run `masksmith folds {self.root}` first")
        return read_folds(self.folds_csv, ids=[sample.id for sample in self.catalog.train])

    def metric_groups(self, recipe: AnyRecipe, names: Sequence[str]) -> Shaped[np.ndarray, " n"]:
        """Return the group of each image that a metric of groups means: its value of ``folds.group_by``.

        Without a column (and for similar images) it is the group of ``folds.csv``, which may hold more: values that
        share an identical image.
        """
        column = recipe.folds.group_by
        if column is None or recipe.folds.similar_count is not None:
            return self.folds.groups(names)
        values = group_values(self.catalog.train, column)
        return np.array([values[name] for name in names])

    def run_of(self, asked: Recipe) -> Run | None:
        """Return the run that this recipe was resolved into before, None if there is none.

        What does not decide the weights (``folds.train``, prediction, tuning) is taken over from ``asked``.
        """
        run = self.find_run(asked)
        return None if run is None else self.set_free_parts(run, asked)

    def find_run(self, asked: Recipe) -> Run | None:
        """Return the run that this recipe was resolved into before, as it is, None if there is none."""
        requests = self.runs_dir / "requests.json"
        name = read_json(requests).get(asked.hash) if requests.exists() else None
        if not isinstance(name, str) or not (self.runs_dir / name / "recipe.yaml").exists():
            return None
        return self.run(name)

    def set_free_parts(self, run: Run, recipe: Recipe) -> Run:
        """Return the run with the parts of ``recipe`` that do not decide the weights: prediction and tuning."""
        free = with_free_parts(run.recipe, recipe)
        return self._write_run(run.path, free)

    def add_run(self, asked: Recipe, resolved: Recipe) -> Run:
        """Create the run's folder with its resolved recipe, or return it if it is there."""
        path = self.runs_dir / f"{resolved.name}-{resolved.hash[:8]}"
        if not (path / "recipe.yaml").exists():
            write_text(path / "environment.txt", environment())
        run = self._write_run(path, resolved)
        requests = self.runs_dir / "requests.json"
        known = read_json(requests) if requests.exists() else {}
        write_json(requests, known | {asked.hash: path.name})
        return run

    def _write_run(self, path: Path, recipe: Recipe) -> Run:
        file, text = path / "recipe.yaml", recipe.to_yaml()
        if not file.exists() or file.read_text() != text:
            write_text(file, text)
        return Run(path, recipe)

    def run(self, name: str | None = None) -> Run:
        """Return a run by name, or the one that was worked on last.

        Raises:
            InputError: No such run, or none yet.
        """
        runs = {path.parent.name: path.parent for path in sorted(self.runs_dir.glob("*/recipe.yaml"))}
        current = self.runs_dir / "current.json"
        chosen = name or (read_json(current) if current.exists() else None)
        if not isinstance(chosen, str) or chosen not in runs:
            have = f"there are {', '.join(runs)}" if runs else f"run `masksmith train {self.root}` first"
            raise InputError(
                f"{self.root}: no run {chosen!r}; {have}" if chosen else f"{self.root}: no run yet; {have}"
            )
        path = runs[chosen]
        return Run(path, parse_recipe((path / "recipe.yaml").read_text(), where=str(path / "recipe.yaml")))

    def make_current(self, run: Run) -> None:
        """Remember the run as the one that the next verbs mean, in the place of an ensemble."""
        write_json(self.runs_dir / "current.json", run.path.name)
        remove(self.members_json)

    def key(self, *parts: str) -> str:
        """Return a stage's key: the data and whatever else went into it."""
        return digest(self.catalog.content_hash, *parts)


def _read_catalog_json(path: Path) -> dict[str, Any] | None:
    """Return what a project's ``data.json`` holds, None if it is absent or anything else."""
    try:
        value = None if path.is_symlink() else json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # not there, not text, not JSON
        return None
    ours = isinstance(value, dict) and value.keys() >= _CATALOG_KEYS and isinstance(value["format"], int)
    return value if ours else None


def refuse_foreign(root: Path) -> None:
    """Refuse an output folder that is neither absent, nor empty, nor a project; nothing is touched.

    What a killed masksmith leaves before ``data.json`` is there counts as nothing.

    Raises:
        InputError: It holds somebody else's files, or is no folder.
    """
    if not os.path.lexists(root):
        return
    if not root.is_dir():
        what = "a link that leads nowhere" if root.is_symlink() and not root.exists() else "a file"
        raise InputError(f"{root}: cannot be written as a folder, it is {what}; choose another --out")
    with no_room(root), os.scandir(root) as entries:
        foreign = sorted(entry.name for entry in entries if not is_leftover(entry))
    if foreign and _read_catalog_json(root / "data.json") is None:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InputError(
            f"{root}: it is no masksmith project, and it holds {foreign[0]!r}{more}; choose another --out"
        )


def refuse_inside(root: Path, catalog: Catalog) -> None:
    """Refuse an output folder that lies inside the data.

    Raises:
        InputError: It does.
    """
    if Path(os.path.realpath(root)).is_relative_to(catalog.root):
        raise InputError(f"{root}: the output folder lies inside the data; choose one outside {catalog.root}")


def with_free_parts(resolved: Recipe, asked: Recipe) -> Recipe:
    """Return ``resolved`` with those parts of ``asked`` that do not decide the weights."""
    folds = resolved.folds.model_copy(update={"train": asked.folds.train, "refit": asked.folds.refit})
    seen = resolved.input.model_copy(update={"view": asked.input.view})
    parts = {"folds": folds, "input": seen, "prediction": asked.prediction, "tuning": asked.tuning}
    return resolved.model_copy(update=parts)


def environment() -> str:
    """Return the versions that a run was made with, a line each."""
    names = (
        "masksmith",
        "torch",
        "torchvision",
        "timm",
        "segmentation-models-pytorch",
        "lightning-fabric",
        "numpy",
    )
    lines = [f"python {platform.python_version()}", f"platform {platform.platform()}"]
    for name in (*names, "opencv-python-headless", "openvino"):
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} not installed")
    return "\n".join(lines) + "\n"
