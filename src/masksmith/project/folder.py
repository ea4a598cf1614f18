"""The project folder: one data set, one ``folds.csv``, many runs. File names are defined here and in ``runs`` only."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
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
from masksmith.data.cache import Cache, build_cache, forget_cache
from masksmith.data.catalog import AskedTarget, Catalog
from masksmith.data.checks import constant_ids
from masksmith.data.groups import Likeness, find_likeness
from masksmith.data.target import Target
from masksmith.folds.files import read_folds
from masksmith.folds.table import Folds, group_values
from masksmith.metrics import Metric, metric_for
from masksmith.preprocess.inputs import InputConfig, Inputs, make_inputs, settle_scaling, with_declared
from masksmith.project.runs import Run, environment, with_free_parts
from masksmith.recipes.ensemble import AnyRecipe
from masksmith.recipes.recipe import Recipe, parse_recipe
from masksmith.training.config import VAL_LOSS

FORMAT_VERSION = 1
_CATALOG_KEYS = {"format", "root", "layout", "content_hash", "train", "test", "submission"}  # since format 1


class Project:
    """An open project folder.

    Args:
        root: The folder.
        augment: A callable of the user that trainings augment with.
        loggers: Experiment trackers that trainings log to (see training/loggers.py).
    """

    def __init__(  # noqa: PLR0915 (a line a file)
        self, root: Path, *, augment: CallableAugment | None = None, loggers: Sequence[str] = ()
    ) -> None:
        self.root, self.augment, self.loggers = root, augment, tuple(loggers)
        self._inputs: dict[str, Inputs] = {}
        self._folds: tuple[tuple[int, ...], Folds] | None = None
        self.data_json = root / "data.json"
        self.check_json = root / "check.json"
        self.duplicates_csv = root / "duplicates.csv"
        self.folds_csv = root / "folds.csv"
        self.cache_dir = root / "cache"
        self.inputs_dir = root / "cache" / "inputs"
        self.runs_dir = root / "runs"
        self.tuning_json = root / "tuning.json"
        self.masks_dir = root / "masks"
        self.predictions_dir = root / "predictions"
        """Of the mask files that the judge takes, where it takes files."""
        self.submission_csv = root / "submission.csv"
        self.submission_json = root / "submission.json"
        self.objects_json = root / "objects.json"
        self.submissions_dir = root / "submissions"
        self.outputs_dir = root / "outputs"
        """The submission's masks in other forms."""
        self.board_dir = root / "board"
        """Scores of the public board, and the rows that they are compared by."""
        self.earlier_json = root / "board" / "submissions.json"
        """What is known of earlier submissions, by the hash of the file."""
        self.members_json = root / "ensemble" / "members.json"
        self.blend_json = root / "ensemble" / "blend.json"
        """What the search of an ensemble found."""
        self.chosen_json = root / "ensemble" / "chosen.json"
        """The members that a budget chose at its end, and the trainings that they were chosen from."""
        self.rounds_json = root / "ensemble" / "rounds.json"
        """What the rounds of pseudo-labels found."""
        self.ablation_json = root / "ablation.json"
        self.corrections_dir = root / "corrections"
        """What people said of training images, and masks that they mended (see corrections)."""
        self.annotations_dir = root / "annotations"
        """The same of test images: masks that they drew."""
        self.labels_csv = root / "labels.csv"
        """Training images ranked by how surely the members contradict their masks."""
        self.labels_dir = root / "labels"
        """Corrections that follow from it, as proposals."""
        self.labels_json = root / "labels.json"
        """What corrections were worth."""
        self.annotate_csv = root / "annotate.csv"
        """Unlabelled images to label next."""
        self.stack_json = root / "ensemble" / "stack.json"
        """What trees on the members' predictions are worth."""
        self.plan_yaml = root / "plan.yaml"
        self.plan_json = root / "plan.json"
        self.budget_json = root / "budget.json"
        self.noise_json = root / "noise.json"
        self.report_html = root / "report.html"
        self.compare_html = root / "compare.html"
        self.lr_html = root / "lr.html"
        self.search_dir = root / "search"
        """What a search goes on with."""
        self.search_json, self.search_html = root / "search.json", root / "search.html"
        self.sweep_json, self.sweep_html = root / "sweep.json", root / "sweep.html"
        self.best_yaml, self.sweep_yaml = root / "best.yaml", root / "sweep.yaml"
        """The best recipe of a search, and of a sweep."""
        self.trials_dir = root / "trials"
        """What the folds of their trials scored."""
        self.explore_html = root / "explore.html"
        self.explore_json = root / "explore.json"
        self.loggers_dir = root / "loggers"
        """What experiment trackers without a server write."""

    @classmethod
    def create(cls, root: Path, catalog: Catalog) -> "Project":
        """Create or reuse the folder for this data set.

        Raises:
            InputError: The folder belongs to another data set and already has folds or runs.
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
            if old.asked != catalog.asked and begun:
                raise InputError(
                    f"{root}: it was begun with --task {old.asked.task} and values {old.asked.ignore} not judged, now "
                    f"{catalog.asked.task} and {catalog.asked.ignore}; choose another --out, or the same"
                )
            if begun and [one.id for one in old.train] != [one.id for one in catalog.train]:
                raise InputError(
                    f"{root}: it was begun with the layout {old.layout} ({len(old.train)} training images), now "
                    f"{catalog.layout} ({len(catalog.train)}); choose another --out, or the same --layout"
                )
            if old == catalog:  # an older masksmith may have kept less of the same data
                project.catalog = catalog
                return project
        write_json(project.data_json, {"format": FORMAT_VERSION, **catalog.to_json()})
        project.catalog = catalog  # not a second one from the file
        return project

    @classmethod
    def asked_dialect(cls, root: Path) -> str | None:
        """Return the run-length dialect that was asked for when the folder was created, or None."""
        project = cls(root)
        form = project.catalog.submission if project.data_json.exists() else None
        return form.dialect if form and form.asked else None

    @classmethod
    def asked_target(cls, root: Path) -> AskedTarget:
        """Return the task and the values without judgement that the folder was created with; none for a new one."""
        project = cls(root)
        return project.catalog.asked if project.data_json.exists() else AskedTarget()

    @classmethod
    def open(
        cls, root: Path, *, augment: CallableAugment | None = None, loggers: Sequence[str] = ()
    ) -> "Project":
        """Open an existing project.

        Raises:
            InputError: There is none, or a newer masksmith made it.
        """
        project = cls(root, augment=augment, loggers=loggers)
        project.catalog  # noqa: B018  (reads and checks it)
        return project

    @cached_property
    def catalog(self) -> Catalog:
        """The images, masks and tables of the data set.

        Raises:
            InputError: This is not a project, or a newer masksmith made it.
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
        """The decoded data, created at the first access."""
        return build_cache(self.catalog, self.cache_dir)

    @property
    def target(self) -> Target:
        """The task and its classes."""
        return self.cache.target

    def metric(self, recipe: AnyRecipe) -> Metric:
        """Return the recipe's metric for the project's task.

        Raises:
            InputError: It cannot drive the task.
        """
        return metric_for(recipe.metric, task=self.target.task, classes=len(self.target.classes))

    def metrics_beside(self, recipe: Recipe) -> list[Metric]:
        """Return the metrics that ``training.metrics`` names, for the project's task; "val_loss" is none of them.

        Raises:
            InputError: Some cannot drive the task; one line for each.
        """
        found, wrong = list[Metric](), list[str]()
        for name in recipe.training.metrics:
            if name == VAL_LOSS:
                continue
            try:
                metric = metric_for(
                    name, task=self.target.task, classes=len(self.target.classes), where="training.metrics"
                )
                found.append(replace(metric, name=name))  # as the recipe writes it
            except InputError as error:
                wrong.append(str(error))
        if wrong:
            raise InputError("\n".join(wrong))
        return found

    @cached_property
    def blank_train(self) -> Collection[str]:
        """Ids of the training images without content, which are left out of training and scores."""
        return frozenset(constant_ids(self.cache.train_images))

    @cached_property
    def blank_test(self) -> Collection[str]:
        """Ids of the test images without content, which are predicted empty. A training image may have the same id."""
        return frozenset(constant_ids(self.cache.test_images))

    def inputs(self, config: InputConfig) -> Inputs:
        """Return the images as a model with this configuration sees them, created if needed.

        Raises:
            InputError: The images do not allow it (see make_inputs).
        """
        if config.identity not in self._inputs:
            cache, decoded = self.cache, self.key(CACHE_VERSION)
            asked = self._with_declared(config) if config.scaling == "auto" else config
            self._inputs[config.identity] = make_inputs(
                asked,
                cache.train_images,
                cache.test_images,
                self.inputs_dir,
                blank=self.blank_train,
                decoded=decoded,
            )
        return self._inputs[config.identity]

    def settled_input(self, config: InputConfig) -> InputConfig:
        """Return the configuration with no data and scaling "auto" settled for the project's images.

        Raises:
            InputError: A band that the images do not have.
        """
        return settle_scaling(
            self._with_declared(config),
            self.cache.train_images,
            self.inputs_dir,
            blank=self.blank_train,
            decoded=self.key(CACHE_VERSION),
        )

    def _with_declared(self, config: InputConfig) -> InputConfig:
        return with_declared(config, self.cache.no_data, self.cache.train_images.dtype)

    def cache_files(self, *, clear: bool = False) -> dict[str, int]:
        """Return path within the project -> bytes of the decoded and prepared files; ``clear`` removes them."""
        paths = sorted(path for path in self.cache_dir.rglob("*") if path.is_file())
        found = {str(path.relative_to(self.root)): path.stat().st_size for path in paths}
        if clear:
            forget_cache(self.cache_dir)
            for path in paths:
                remove(path)
            self._inputs.clear()
            self.__dict__.pop("cache", None)
            self.__dict__.pop("likeness", None)
        return found

    @cached_property
    def likeness(self) -> Likeness:
        """Which images are alike; looked for once and kept in the cache."""
        return find_likeness(self.cache.train_images, self.cache.test_images)

    @property
    def ledger(self) -> Ledger:
        """The finished stages outside the runs."""
        return Ledger(self.root)

    @property
    def folds(self) -> Folds:
        """The folds; ``folds.csv`` is read again only after it has changed.

        Raises:
            InputError: There are none yet, or the file was edited and is inconsistent.
        """
        try:
            stat = self.folds_csv.stat()
        except FileNotFoundError:
            raise InputError(
                f"{self.folds_csv}: not there yet; run `masksmith folds {self.root}` first"
            ) from None
        version = stat.st_ino, stat.st_mtime_ns, stat.st_size
        if self._folds is None or self._folds[0] != version:
            self._folds = version, read_folds(self.folds_csv, ids=[one.id for one in self.catalog.train])
        return self._folds[1]

    def metric_groups(self, recipe: AnyRecipe, names: Sequence[str]) -> Shaped[np.ndarray, " n"]:
        """Return the group of each image for a metric that averages over groups: its value of ``folds.group_by``.

        Without a column, and for groups of similar or neighbouring images, it is the group of ``folds.csv``. That one
        may join several values of a column, because identical images are in one group.
        """
        column = recipe.folds.group_by
        if column is None or not recipe.folds.has_column:
            return self.folds.groups(names)
        values = group_values(self.catalog.train, column)
        return np.array([values[name] for name in names])

    def run_of(self, asked: Recipe) -> Run | None:
        """Return the run of this recipe, or None if there is none.

        Values that do not determine the weights (``folds.train``, prediction, tuning) are taken from ``asked``.
        """
        run = self.find_run(asked)
        return None if run is None else self.set_free_parts(run, asked)

    def find_run(self, asked: Recipe) -> Run | None:
        """Return the run of this recipe unchanged, or None if there is none."""
        name = self.name_of_run(asked)
        return None if name is None else self.run(name)

    def name_of_run(self, asked: Recipe) -> str | None:
        """Return the name of the run of this recipe, or None if there is none."""
        requests = self.runs_dir / "requests.json"
        name = read_json(requests).get(asked.hash) if requests.exists() else None
        there = isinstance(name, str) and (self.runs_dir / name / "recipe.yaml").exists()
        return name if there else None

    def set_free_parts(self, run: Run, recipe: Recipe) -> Run:
        """Return the run with the parts of ``recipe`` that do not determine the weights."""
        free = with_free_parts(run.recipe, recipe)
        return self._write_run(run.path, free)

    def add_run(self, asked: Recipe, resolved: Recipe) -> Run:
        """Create the run's folder with its resolved recipe, or return the existing run."""
        path = self.runs_dir / f"{resolved.name}-{resolved.hash[:8]}"
        if not (path / "recipe.yaml").exists():
            write_text(path / "environment.txt", environment())
        run = self._write_run(path, resolved)
        requests = self.runs_dir / "requests.json"
        known = read_json(requests) if requests.exists() else {}
        write_json(requests, known | {asked.hash: path.name})
        return run

    def import_run(self, name: str, recipe: Recipe) -> Run:
        """Return a run whose weights come from elsewhere; it is named by no request, so nothing trains it."""
        return self._write_run(self.runs_dir / name, recipe)

    def _write_run(self, path: Path, recipe: Recipe) -> Run:
        file, text = path / "recipe.yaml", recipe.to_yaml()
        if not file.exists() or file.read_text() != text:
            write_text(file, text)
        return Run(path, recipe)

    def run(self, name: str | None = None) -> Run:
        """Return a run by name, or the current one.

        Raises:
            InputError: No such run, or none yet.
        """
        runs = {path.parent.name: path.parent for path in sorted(self.runs_dir.glob("*/recipe.yaml"))}
        current = self._current_json
        chosen = name or (read_json(current) if current.exists() else None)
        if not isinstance(chosen, str) or chosen not in runs:
            have = f"there are {', '.join(runs)}" if runs else f"run `masksmith train {self.root}` first"
            raise InputError(
                f"{self.root}: no run {chosen!r}; {have}" if chosen else f"{self.root}: no run yet; {have}"
            )
        path = runs[chosen]
        return Run(path, parse_recipe((path / "recipe.yaml").read_text(), where=str(path / "recipe.yaml")))

    @property
    def _current_json(self) -> Path:
        return self.runs_dir / "current.json"

    @property
    def has_current(self) -> bool:
        """Whether a run or an ensemble of this project's own is what the next verbs use."""
        return self._current_json.exists() or self.members_json.exists()

    def make_current(self, run: Run) -> None:
        """Make the run the one that the next verbs use, instead of an ensemble."""
        write_json(self._current_json, run.path.name)
        remove(self.members_json)

    def forget_current(self) -> None:
        """Make no run of this project's own the one that the next verbs use."""
        remove(self._current_json)
        remove(self.members_json)

    def key(self, *parts: str) -> str:
        """Return the key of a stage: a hash of the data and its other inputs."""
        return digest(self.catalog.content_hash, *parts)


def _read_catalog_json(path: Path) -> dict[str, Any] | None:
    """Return the content of a project's ``data.json``, None if it is absent or not ours."""
    try:
        value = None if path.is_symlink() else json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # not there, not text, not JSON
        return None
    ours = isinstance(value, dict) and value.keys() >= _CATALOG_KEYS and isinstance(value["format"], int)
    return value if ours else None


def refuse_foreign(root: Path) -> None:
    """Refuse an output folder that is neither absent, nor empty, nor a project; nothing in it is touched.

    Leftovers of a masksmith that was killed before it wrote ``data.json`` are ignored.

    Raises:
        InputError: It contains foreign files, or is not a folder.
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
