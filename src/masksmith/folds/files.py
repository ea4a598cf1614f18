"""``folds.csv``: which folds hold an image out; written once, and read again as a person may have edited it."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from masksmith.core.errors import InputError
from masksmith.core.files import write_text
from masksmith.data.table import need_column, parse_table
from masksmith.folds.table import NUM_CLASSES, FoldRow, Folds

_COLUMNS = ("id", "group", "coverage", "coverage_class", "fold")


def _column_of(repeat: int) -> str:
    return f"fold_{repeat + 1}" if repeat else "fold"


def write_folds(folds: Folds, path: Path) -> None:
    """Write ``folds.csv``: id, group, coverage, its class and fold; ``fold_2`` and so on of repeats."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_COLUMNS, *map(_column_of, range(1, folds.repeats))))
    for row in folds.rows:
        writer.writerow((row.id, row.group, f"{row.coverage:.6f}", row.coverage_class, *row.folds))
    write_text(path, text.getvalue())


def read_folds(path: Path, *, ids: Iterable[str]) -> Folds:
    """Read ``folds.csv``, which a person may have written.

    Args:
        path: The file.
        ids: The training ids of the data set.

    Raises:
        InputError: A missing column, an unknown, repeated or missing id, a fold that is no number, or a group in
            two folds of a repeat.
    """
    table = parse_table(path.read_bytes(), where=str(path))
    for column in _COLUMNS:
        need_column(table, column)
    further = [name for name in map(_column_of, range(1, 20)) if name in table.columns]
    rows = []
    for number, cells in enumerate(table.rows, start=2):
        try:
            row = FoldRow(
                cells["id"],
                cells["group"],
                float(cells["coverage"]),
                int(cells["coverage_class"]),
                int(cells["fold"]),
                tuple(int(cells[name]) for name in further),
            )
        except ValueError as error:
            raise InputError(f"{path}: line {number}: {error}; expected a number") from error
        if not 0 <= row.coverage_class < NUM_CLASSES:
            raise InputError(
                f"{path}: line {number}: coverage_class {row.coverage_class}; expected 0 to {NUM_CLASSES - 1}"
            )
        rows.append(row)
    _check_folds(rows, set(ids), path)
    return Folds(rows)


def _check_folds(rows: list[FoldRow], ids: set[str], path: Path) -> None:
    names = [row.id for row in rows]
    for name in names:
        if name not in ids:
            raise InputError(f"{path}: the id {name!r} is not in the data set")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: the id {twice!r} appears twice")
    if len(names) < len(ids):
        raise InputError(
            f"{path}: {len(ids) - len(names)} training images have no fold, for example {min(ids - set(names))!r}"
        )
    count = len({row.fold for row in rows})
    for repeat in range(len(rows[0].folds)):
        home: dict[str, int] = {}
        for row in rows:
            first, fold = home.setdefault(row.group, row.folds[repeat]), row.folds[repeat]
            if first != fold:
                raise InputError(
                    f"{path}: images of group {row.group!r} are in folds {first} and {fold}; "
                    "a group must stay in one fold"
                )
        present, start = sorted(set(home.values())), repeat * count
        if present != list(range(start, start + count)):
            raise InputError(
                f"{path}: {_column_of(repeat)}: the folds are {present}; expected {start}, {start + 1} … without a gap"
            )
