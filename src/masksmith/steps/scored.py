"""What the held-out images of a fold score: a small file a fold, under a key of its whole recipe.

So a fold is trained and scored once, whoever asks for it and however often. Runs that differ in how they predict share
their training; the files do not.
"""

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from masksmith.core.arrays import Rows
from masksmith.core.errors import DiskFullError, DivergedError, InputError
from masksmith.core.files import write_bytes
from masksmith.core.progress import logger
from masksmith.folds.config import fold_name
from masksmith.project.folder import Project
from masksmith.project.members import Member
from masksmith.recipes.recipe import Recipe
from masksmith.steps.out_of_fold import plain_rows
from masksmith.steps.predict import oof_of, predict_member
from masksmith.steps.pseudo_labels import train_student


@dataclass(frozen=True)
class Scored:
    """The held-out images of a fold, scored at threshold 0.5."""

    names: list[str]
    rows: Rows
    """The metric's row of each (n, k)."""
    seconds: float
    """What training and prediction took."""


def scored_path(project: Project, recipe: Recipe, fold: int) -> Path:
    """Return the file of what a fold of a recipe scored; its name is a key of all that decides it."""
    plain = recipe.model_dump_json(
        include={"prediction", "tuning"}
    )  # the hash counts in what named files hold
    key = project.key("2", recipe.hash, plain, str(recipe.input.view), project.folds.hash)
    return project.trials_dir / f"{key[:16]}-{fold_name(fold)}.npz"


def read_scored(path: Path) -> Scored | None:
    """Return what a fold scored; None where it was not scored yet, or the file is damaged."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return Scored(file["names"].tolist(), file["rows"], float(file["seconds"]))
    except FileNotFoundError:
        return None
    except (BadZipFile, EOFError, KeyError, OSError, ValueError) as error:
        logger.warning("%s: damaged (%s); the fold is scored again", path, error)
        return None


def write_scored(path: Path, scored: Scored) -> None:
    """Write what a fold scored."""
    raw = io.BytesIO()
    np.savez(raw, names=np.array(scored.names), rows=scored.rows, seconds=scored.seconds)
    write_bytes(path, raw.getvalue())


def score_member(project: Project, member: Member, path: Path) -> dict[str, Any]:
    """Train a fold of a run, predict the images that it holds out, and write what they score.

    What is done is not done again. A recipe that cannot be trained is an answer, not an error.

    Args:
        project: The project.
        member: Run and fold.
        path: File of the scores.

    Returns:
        ``failed``: why it cannot be trained; empty: it is.

    Raises:
        StoppedError: A stop was asked for.
        DiskFullError: The disk is full.
    """
    began = time.perf_counter()
    try:
        train_student(project, member)
        predict_member(project, member, stages=("oof",))
    except DiskFullError:
        raise
    except (DivergedError, InputError) as error:
        return {"failed": str(error)}
    rows = plain_rows(project, member.run.recipe, oof_of(project, [member]))
    write_scored(path, Scored(list(rows), np.stack(list(rows.values())), time.perf_counter() - began))
    return {"failed": ""}
