"""Scores of a submission against a file of true run-lengths."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masksmith.core.errors import InputError
from masksmith.data.dialect import (
    Hints,
    Inferred,
    RleRows,
    check_dialect,
    group_rows,
    has_repeats,
    infer_dialect,
    need_rows,
    non_empty,
)
from masksmith.data.rle import decode_rows
from masksmith.data.run_tables import CLASS_COLUMNS, ID_COLUMNS, RLE_COLUMNS
from masksmith.data.table import Table, need_column, parse_table
from masksmith.metrics import Metric


def _read_table(path: Path) -> Table:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a submission in CSV")
    return parse_table(path.read_bytes(), where=str(path))


def _columns(table: Table) -> tuple[str, str]:
    def find(names: tuple[str, ...]) -> str:
        column = next((column for column in table.columns if column.lower() in names), None)
        if column is None:
            need_column(table, names[0])
        assert column is not None
        return column

    return find(ID_COLUMNS), find(RLE_COLUMNS)


def _rows(path: Path) -> tuple[dict[str, list[str]], str]:
    """Return id -> its run-length texts, and the name of their column."""
    table = _read_table(path)
    id_column, rle_column = _columns(table)
    class_column = next((column for column in table.columns if column.lower() in CLASS_COLUMNS), None)
    classes = sorted({row[class_column] for row in table.rows}) if class_column else []
    if len(classes) > 1:
        raise InputError(
            f"{path}: run-lengths of {len(classes)} classes ({', '.join(map(repr, classes))}) in the column "
            f"{class_column!r}; masks of one class are scored, keep the rows of one"
        )
    ids, texts = [row[id_column] for row in table.rows], [row[rle_column] for row in table.rows]
    return group_rows(ids, texts), rle_column


def _dialect_of(
    rows: dict[str, list[str]], column: str, *, shape: tuple[int, int], asked: str | None, path: Path
) -> Inferred:
    texts = [text.strip() for found in rows.values() for text in found]
    hints = Hints(column, "-1" in texts, has_repeats(rows))
    images = [
        RleRows(told, shape, where=f"{path}: id {name!r}")
        for name, found in rows.items()
        if (told := non_empty(found))
    ]
    return infer_dialect(images, hints) if asked is None else check_dialect(images, asked, hints)


@dataclass(frozen=True)
class Scored:
    """Score of a submission against a solution, and of predicting nothing."""

    metric: str
    score: float
    nothing: float
    images: int
    dialect: str
    """Of the run-lengths, and why."""
    doubt: str = ""
    """What else fits."""

    def __str__(self) -> str:
        said = f"{self.metric}: {self.score:.4f} on {self.images} images (predicting nothing: {self.nothing:.4f})"
        doubt = f"\nrun-length dialect: {self.doubt}" if self.doubt else ""
        return f"{said}\nrun-lengths: {self.dialect}{doubt}"


def score_files(
    submission: Path,
    solution: Path,
    *,
    metric: Metric,
    shape: tuple[int, int],
    dialect: str | None = None,
) -> Scored:
    """Score a submission against a file of true run-lengths.

    Args:
        submission: CSV with an id and a run-length column; it may hold more ids than the solution.
        solution: CSV of the same form.
        metric: A metric of binary masks, not of groups.
        shape: (height, width) of every image.
        dialect: Of the run-lengths in both files; None infers it from the solution.

    Raises:
        InputError: A missing column, several classes, a dialect that the solution contradicts, an id of the solution
            that was not submitted, wrong run-lengths, or a metric that needs more than two files of run-lengths say.
    """
    if metric.by_group or metric.needs == "classes":
        raise InputError(
            f"--metric {metric.name}: it needs {'groups' if metric.by_group else 'class maps'}, which a file of "
            "run-lengths does not hold; name another metric"
        )
    given, (truth, column) = _rows(submission)[0], _rows(solution)
    if not truth:
        raise InputError(f"{solution}: no rows; expected one row an image")
    absent = [name for name in truth if name not in given]
    if absent:
        raise InputError(
            f"{submission}: {len(absent)} ids of {solution} are missing, for example {absent[0]!r}"
        )
    how = _dialect_of(truth, column, shape=shape, asked=dialect, path=solution)
    need_rows(truth, how.dialect, where=str(solution))
    need_rows(given, how.dialect, where=str(submission))
    rows, nothing = [], []
    for name in truth:
        pred, target = (
            decode_rows(
                non_empty(table[name]), shape=shape, dialect=how.dialect, where=f"{path}: id {name!r}"
            )
            for table, path in ((given, submission), (truth, solution))
        )
        rows.append(metric.stats(pred, target))
        nothing.append(metric.stats(np.zeros_like(pred), target))
    return Scored(
        metric.name,
        metric.score(np.stack(rows)),
        metric.score(np.stack(nothing)),
        len(rows),
        f"{how.dialect}: {how.reason}",
        how.doubt,
    )
