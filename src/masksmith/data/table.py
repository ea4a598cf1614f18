"""Tables in CSV or Parquet, read as text: an id like 0012 or 76e1428103 stays what it is."""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from masksmith.core.config import suggest
from masksmith.core.errors import InputError

if TYPE_CHECKING:
    import pyarrow

MAX_CELL = 2**26
"""Most characters of a CSV cell: the run-lengths of some 4 million runs."""
MAX_BYTES = 2**32
"""Most bytes of a table that is packed (``.csv.gz``, Parquet)."""
SEPARATORS = (",", ";", "\t", "|")
TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".parquet")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UNNAMED = re.compile(r"(Unnamed: \d+|__index_level_\d+__)?")


@dataclass(frozen=True)
class Table:
    """A CSV file read as text: an id like 0012 or 76e1428103 stays what it is."""

    path: str
    columns: list[str]
    rows: list[dict[str, str]]
    known: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What was found out about columns, which are long: it is found out once."""


@dataclass(frozen=True)
class RowStream:
    """A table whose rows come one by one."""

    path: str
    columns: list[str]
    rows: Iterator[dict[str, str]]


def is_unnamed(column: str) -> bool:
    """Whether a column has no name, or one that pandas gives to its index."""
    return _UNNAMED.fullmatch(column) is not None


def iterate_table(lines: Iterable[str], *, where: str, separator: str = ",") -> RowStream:
    """Read the header line of a CSV file, and its rows when they are asked for; all cells are text.

    Args:
        lines: The text, such as an open file in UTF-8 (``utf-8-sig``, ``newline=""``).
        where: The file, for messages.
        separator: Between cells.

    Raises:
        InputError: No header or one with a name twice, a cell of more than MAX_CELL characters, or a row with another
            number of cells.
    """
    reader = csv.reader(lines, delimiter=separator)
    lines_read = _lines(reader, where)
    first = next(lines_read, None)
    if first is None:
        raise InputError(f"{where}: the file is empty; expected a header line with column names")
    columns = [column.strip() for column in first]
    if not any(columns):
        raise InputError(f"{where}: its first line is blank; expected a header line with column names")
    twice = [name for name, count in Counter(columns).items() if count > 1 and name]
    if twice:
        raise InputError(f"{where}: {len(twice)} column names stand twice, such as {twice[0]!r}; rename them")

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
    """Parse a table with column names; all cells are text.

    CSV is in UTF-8 or, with a byte-order mark, in UTF-16; the header tells which of SEPARATORS stands between cells.
    ``where`` ends in ``.parquet`` for Parquet, in ``.gz`` for packed CSV.

    Raises:
        InputError: Not such text, or as iterate_table and parse_parquet.
    """
    if where.lower().endswith(".parquet"):
        return parse_parquet(raw, where=where)
    text = _decode(_unpack(raw, where) if where.lower().endswith(".gz") else raw, where)
    table = iterate_table(io.StringIO(text, newline=""), where=where, separator=_separator(text))
    return Table(where, table.columns, list(table.rows))


def _unpack(raw: bytes, where: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            unpacked = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{where}: cannot be unpacked ({error}); download it again") from error
    if len(unpacked) > MAX_BYTES:
        raise InputError(f"{where}: unpacks to more than {MAX_BYTES:,} bytes; unpack it if you trust it")
    return unpacked


def _decode(raw: bytes, where: str) -> str:
    try:
        text = raw.decode("utf-16" if raw.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not a UTF-8 text file (byte {error.start}); save it as CSV in UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(f"{where}: not a UTF-8 text file (it holds zero bytes); save it as CSV in UTF-8")
    return text


def _separator(text: str) -> str:
    """Return what stands between the cells of the first line: that with most cells, and as many in the next line."""
    lines = list(zip(range(2), io.StringIO(text[: 2 * MAX_CELL], newline=""), strict=False))

    def cells(separator: str) -> list[int]:
        try:
            return [len(cells) for cells in csv.reader((line for _, line in lines), delimiter=separator)]
        except csv.Error:  # a cell over the limit, or a line break in one: not told by this line
            return []

    counts = {separator: cells(separator) for separator in SEPARATORS}
    alike = {
        one: found[0] for one, found in counts.items() if found and len(set(found)) == 1 and found[0] > 1
    }
    first = alike or {separator: max(found[:1], default=0) for separator, found in counts.items()}
    return max(first, key=lambda one: first[one])


def parse_parquet(raw: bytes, *, where: str) -> Table:
    """Read the columns of texts and numbers of a Parquet file as text; an absent value is an empty text.

    Raises:
        InputError: pyarrow is not installed, the file is damaged, or it has no such columns.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f'{where}: Parquet needs pyarrow; install it: pip install "masksmith[readers]", or save the table as CSV'
        ) from error
    try:
        file = parquet.ParquetFile(io.BytesIO(raw))
        groups = (file.metadata.row_group(at) for at in range(file.metadata.num_row_groups))
        size = sum(group.total_byte_size for group in groups)
        if size > MAX_BYTES:
            raise InputError(
                f"{where}: claims {size:,} bytes; at most {MAX_BYTES:,} are read, save it as CSV"
            )
        columns = [field.name for field in file.schema_arrow if _is_plain(field.type)]
        cells = [_texts(file.read(columns=[name]).column(0).to_pylist()) for name in columns]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]
    # what pyarrow raises for damaged files: its own errors are of these kinds
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: not a whole Parquet file ({error}); download it again") from error
    if not columns:
        raise InputError(f"{where}: no columns of texts or numbers; expected ids, paths or run-lengths")
    if len(set(columns)) < len(columns):
        raise InputError(f"{where}: column names stand twice: {columns}; rename them")
    return Table(where, columns, rows)


def _is_plain(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return any(test(kind) for test in tests)


def _texts(values: list[str | int | float | bool | None]) -> list[str]:
    return ["" if value is None or value != value else str(value) for value in values]


def need_column(table: Table | RowStream, column: str) -> None:
    """Refuse a table without the column.

    Raises:
        InputError: The column is missing; the message lists those that are there.
    """
    if column not in table.columns:
        raise InputError(f"{table.path}: the column {column!r} is missing; {suggest(column, table.columns)}")
