"""The project folder: one data set, one ``folds.csv``, many runs. Names of files live here and nowhere else."""

import platform
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

from masksmith.data.cache import Cache, build_cache, open_cache
from masksmith.data.catalog import Catalog
from masksmith.data.checks import constant_ids
from masksmith.errors import InputError
from masksmith.files import Ledger, digest, read_json, write_json, write_text
from masksmith.recipe import Recipe, parse_recipe
from masksmith.splits import Folds, read_folds

FORMAT_VERSION = 1


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
        return self.path / "checkpoints" / f"fold_{fold}"

    def final(self, fold: int) -> Path:
        """Weights of a trained fold."""
        return self.checkpoints(fold) / "final.safetensors"

    def oof(self, fold: int) -> Path:
        """Out-of-fold probabilities of a fold."""
        return self.path / "oof" / f"fold_{fold}.npy"

    def test(self, fold: int | str) -> Path:
        """Test probabilities of a fold, or of the "mean" of all."""
        name = f"fold_{fold}" if isinstance(fold, int) else fold
        return self.path / "test" / f"{name}.npy"


class Project:
    """A project folder, opened."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data_json = root / "data.json"
        self.check_json = root / "check.json"
        self.folds_csv = root / "folds.csv"
        self.cache_dir = root / "cache"
        self.runs_dir = root / "runs"
        self.tuning_json = root / "tuning.json"
        self.masks_dir = root / "masks"
        self.submission_csv = root / "submission.csv"
        self.report_html = root / "report.html"

    @classmethod
    def create(cls, root: Path, catalog: Catalog) -> "Project":
        """Make or reuse the folder for this data set.

        Raises:
            InputError: The folder holds something else, belongs to another data set, or lies inside the data.
        """
        project = cls(root)
        if root.resolve().is_relative_to(Path(catalog.root)):
            raise InputError(
                f"{root}: the output folder lies inside the data; choose one outside {catalog.root}"
            )
        if project.data_json.exists():
            old = project.catalog
            if old.content_hash != catalog.content_hash:
                raise InputError(
                    f"{root}: this folder belongs to another data set ({old.root}, {len(old.train)} training images; "
                    f"now {catalog.root}, {len(catalog.train)}); choose another --out, or remove the folder"
                )
            if old.root == catalog.root:
                return project
        write_json(project.data_json, {"format": FORMAT_VERSION, **catalog.to_json()})
        return project

    @classmethod
    def open(cls, root: Path) -> "Project":
        """Open an existing project.

        Raises:
            InputError: There is none, or a newer masksmith made it.
        """
        project = cls(root)
        if not project.data_json.exists():
            raise InputError(
                f"{root}: not a masksmith project (no data.json); begin with `masksmith check DATA --out {root}`"
            )
        project.catalog  # noqa: B018  (reads and checks the format)
        return project

    @cached_property
    def catalog(self) -> Catalog:
        """What the data set holds."""
        value = read_json(self.data_json)
        if value.pop("format", 0) > FORMAT_VERSION:
            raise InputError(
                f"{self.root}: made by a newer masksmith; update masksmith, or choose another --out"
            )
        return Catalog.from_json(value)

    @cached_property
    def cache(self) -> Cache:
        """The decoded data, made now if it is not there."""
        return build_cache(self.catalog, self.cache_dir)

    @cached_property
    def blank(self) -> Collection[str]:
        """Ids of images without content, of training and test together: kept out of training, predicted empty."""
        cache = open_cache(self.cache_dir)
        return frozenset([*constant_ids(cache.train_images), *constant_ids(cache.test_images)])

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

    def run_of(self, recipe: Recipe) -> Run | None:
        """Return the run that this recipe, as asked for, was resolved into before; None if there is none."""
        found = self.root / "runs" / "requests.json"
        name = read_json(found).get(recipe.hash) if found.exists() else None
        return self.run(name) if name and (self.runs_dir / name / "recipe.yaml").exists() else None

    def add_run(self, asked: Recipe, resolved: Recipe) -> Run:
        """Create the run's folder with its resolved recipe, or return it if it is there."""
        name = f"{resolved.name}-{resolved.hash[:8]}"
        path = self.runs_dir / name
        if not (path / "recipe.yaml").exists():
            write_text(path / "environment.txt", environment())
            write_text(path / "recipe.yaml", resolved.to_yaml())
        requests = self.runs_dir / "requests.json"
        known = read_json(requests) if requests.exists() else {}
        write_json(requests, known | {asked.hash: name})
        return self.run(name)

    def run(self, name: str | None = None) -> Run:
        """Return a run by name, or the one that was worked on last.

        Raises:
            InputError: No such run, or none yet.
        """
        runs = {path.parent.name: path.parent for path in sorted(self.runs_dir.glob("*/recipe.yaml"))}
        current = self.runs_dir / "current.json"
        chosen = name or (read_json(current) if current.exists() else None)
        if chosen is None or chosen not in runs:
            have = f"there are {', '.join(runs)}" if runs else f"run `masksmith train {self.root}` first"
            raise InputError(
                f"{self.root}: no run {chosen!r}; {have}" if chosen else f"{self.root}: no run yet; {have}"
            )
        path = runs[chosen]
        return Run(path, parse_recipe((path / "recipe.yaml").read_text(), where=str(path / "recipe.yaml")))

    def make_current(self, run: Run) -> None:
        """Remember the run as the one that the next verbs mean."""
        write_json(self.runs_dir / "current.json", run.path.name)

    def key(self, *parts: str) -> str:
        """Return a stage's key: the data and whatever else went into it."""
        return digest(self.catalog.content_hash, *parts)


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
    for name in (*names, "opencv-python-headless"):
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} not installed")
    return "\n".join(lines) + "\n"
