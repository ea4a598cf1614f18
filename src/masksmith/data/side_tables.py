"""What tables beside the images say of them: numbers (a depth) and texts (a location, a patient)."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.run_tables import is_rle_name, reads_as_runs
from masksmith.data.table import TABLE_SUFFIXES, Table, is_unnamed, parse_table
from masksmith.data.tree import Tree

MAX_TEXT = 200
"""Most characters of a text that is kept of an image: a column with longer ones names no group."""

MOST_INNER = 32
"""Most tables in inner folders that are read: more are taken for a file an image."""

_KEPT = "tables"

Key = tuple[str, str]
"""Split ("train" or "test") and id of an image: an id can be in both splits, and is two images then."""


@dataclass(frozen=True)
class Facts:
    """Image -> column -> number or text, and notes on what was left out."""

    values: dict[Key, dict[str, float]] = field(default_factory=dict)
    texts: dict[Key, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    torn: set[str] = field(default_factory=set)
    """Columns in which two tables contradict each other."""


def name_has(path: str, *words: str) -> bool:
    """Whether one of the words of a file's name (labels_train.csv, trainLabels.csv) begins with one of these."""
    found = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", PurePosixPath(path).stem)
    return any(one.lower().startswith(words) for one in found)


def read_tables(tree: Tree) -> tuple[dict[str, Table], dict[str, InputError]]:
    """Read the tables of a data folder; return them, and the errors of those that are none.

    Those in its root count, and those in other folders as far as these are at most MOST_INNER. They are read once.
    """
    if _KEPT not in tree.kept:
        tree.kept[_KEPT] = _read_tables(tree)
    found: tuple[dict[str, Table], dict[str, InputError]] = tree.kept[_KEPT]
    return dict(found[0]), dict(found[1])


def _read_tables(tree: Tree) -> tuple[dict[str, Table], dict[str, InputError]]:
    tables: dict[str, Table] = {}
    errors: dict[str, InputError] = {}
    inner = [path for folder in tree.folders if folder for path in table_files(tree, folder)]
    for path in table_files(tree, "") + (inner if len(inner) <= MOST_INNER else []):
        try:
            tables[path] = parse_table(tree.read(path), where=path)
        except InputError as error:
            errors[path] = error
    return tables, errors


def table_files(tree: Tree, folder: str) -> list[str]:
    """Return the paths of the tables in a folder."""
    return [path for path in tree.files(folder) if path.lower().endswith(TABLE_SUFFIXES)]


def collect_facts(tables: Iterable[Table], ids: Mapping[str, Collection[str]]) -> Facts:
    """Collect the columns of tables beside the images; run-lengths and long texts are no facts.

    A column in which two tables contradict each other about an image is left out.

    Args:
        tables: The tables.
        ids: "train" and "test" -> the ids of the images.
    """
    facts = Facts()
    for given in tables:
        table, id_column = _with_ids(given, set().union(*ids.values()))
        if id_column is None:
            facts.notes.append(f"{table.path}: none of its columns holds ids of images, so it is left out")
            continue
        for column in table.columns:
            if (
                column != id_column
                and not is_unnamed(column)
                and not (is_rle_name(column) and reads_as_runs(table, column))
            ):
                _add_column(facts, table, id_column, column, ids)
    for column in facts.torn:
        for key in facts.texts:
            facts.texts[key].pop(column, None)
            facts.values.get(key, {}).pop(column, None)
    return facts


def _with_ids(table: Table, ids: set[str]) -> tuple[Table, str | None]:
    """Return the table with ids in its id column, and that column: the one with the most ids, or names of files."""
    for id_of in (str, lambda cell: PurePosixPath(cell).stem):
        known = {column: len(ids & {id_of(row[column]) for row in table.rows}) for column in table.columns}
        column = max(known, key=lambda one: known[one])
        if known[column]:
            rows = [row | {column: id_of(row[column])} for row in table.rows]
            return Table(table.path, table.columns, rows), column
    return table, None


def _add_column(
    facts: Facts, table: Table, id_column: str, column: str, ids: Mapping[str, Collection[str]]
) -> None:
    cells: dict[str, str] = {}
    for row in table.rows:
        if cells.setdefault(row[id_column], row[column]) != row[column]:
            facts.notes.append(f"{table.path}: the column {column!r}: an id has two values in it")
            return
    numbers = _numbers(cells)
    are_short = all(len(cell) <= MAX_TEXT for cell in cells.values())
    keys = [key for name in cells for key in _keys_of(table, name, ids)]
    for key in keys:
        told, number = (known.get(key, {}).get(column) for known in (facts.texts, facts.values))
        is_equal = told == cells[key[1]] or (numbers is not None and number == numbers[key[1]])
        if told is not None and not is_equal:
            facts.torn.add(column)
            facts.notes.append(
                f"{table.path}: the column {column!r}: {cells[key[1]]!r} for the {key[0]} image {key[1]!r}, "
                f"{told!r} in another table; the column is left out"
            )
            return
    for key in keys:
        if numbers is not None:
            facts.values.setdefault(key, {})[column] = numbers[key[1]]
        if are_short:  # numbers too: 007 and 7 are two groups
            facts.texts.setdefault(key, {})[column] = cells[key[1]]


def _numbers(cells: Mapping[str, str]) -> dict[str, float] | None:
    """Return the cells as numbers, None where one is none."""
    try:
        numbers = {name: float(cell) for name, cell in cells.items()}
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers.values())) else None  # "nan" is a number to Python


def _keys_of(table: Table, name: str, ids: Mapping[str, Collection[str]]) -> list[Key]:
    """Return the images that a table's row is about.

    Where the id is in both splits: the one that the table is named after (name_has); both where it names none.
    """
    found = [split for split in ids if name in ids[split]]
    named = [split for split in found if name_has(table.path, split)]
    return [(split, name) for split in named or found]
