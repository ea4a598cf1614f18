"""CSV tables, read as text: an id like 0012 or 76e1428103 stays what it is."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from masksmith.core.config import suggest
from masksmith.core.errors import InputError

MAX_CELL = 2**26
"""Most characters of a CSV cell: the run-lengths of some 4 million runs."""


@dataclass(frozen=True)
class Table:
    """A CSV file read as text: an id like 0012 or 76e1428103 stays what it is."""

    path: str
    columns: list[str]
    rows: list[dict[str, str]]


@dataclass(frozen=True)
class RowStream:
    """A table whose rows come one by one."""

    path: str
    columns: list[str]
    rows: Iterator[dict[str, str]]


def iterate_table(lines: Iterable[str], *, where: str) -> RowStream:
    """Read the header line of a CSV file, and its rows when they are asked for; all cells are text.

    Args:
        lines: The text, such as an open file in UTF-8 (``utf-8-sig``, ``newline=""``).
        where: The file, for messages.

    Raises:
        InputError: No header, a cell of more than MAX_CELL characters, or a row with another number of cells.
    """
    reader = csv.reader(lines)
    lines_read = _lines(reader, where)
    first = next(lines_read, None)
    if first is None:
        raise InputError(f"{where}: the file is empty; expected a header line with column names")
    columns = [column.strip() for column in first]
    if not any(columns):
        raise InputError(f"{where}: its first line is blank; expected a header line with column names")

    def rows() -> Iterator[dict[str, str]]:
        for number, cells in enumerate(lines_read, start=2):
            if cells and len(cells) != len(columns):
                raise InputError(
                    f"{where}: line {number} has {len(cells)} cells, expected {len(columns)}: {columns}"
                )
            if cells:
                yield dict(zip(columns, cells, strict=True))

    return RowStream(where, columns, rows())


def _lines(reader: "csv.Reader", where: str) -> Iterator[list[str]]:
    try:
        while (cells := _next(reader)) is not None:
            yield cells
    except csv.Error as error:
        raise InputError(f"{where}: line {reader.line_num}: {error}; is it a CSV file?") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not a UTF-8 text file; save it as CSV in UTF-8") from error


def _next(reader: "csv.Reader") -> list[str] | None:
    """Return the next row; Python's own limit of a cell, less than a large mask's runs, stays what it was."""
    before = csv.field_size_limit(MAX_CELL)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def parse_table(raw: bytes, *, where: str) -> Table:
    """Parse a CSV file with a header line; all cells are text.

    Raises:
        InputError: Not UTF-8, or as iterate_table.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not a UTF-8 text file (byte {error.start}); save it as CSV in UTF-8"
        ) from error
    table = iterate_table(io.StringIO(text, newline=""), where=where)
    return Table(where, table.columns, list(table.rows))


def need_column(table: Table | RowStream, column: str) -> None:
    """Refuse a table without the column.

    Raises:
        InputError: The column is missing; the message lists those that are there.
    """
    if column not in table.columns:
        raise InputError(f"{table.path}: the column {column!r} is missing; {suggest(column, table.columns)}")
