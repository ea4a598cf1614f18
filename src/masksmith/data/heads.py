"""The first rows of a data folder's tables, as ``head()`` shows them in a notebook."""

from collections.abc import Mapping
from pathlib import Path

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, Sample
from masksmith.data.side_tables import table_files
from masksmith.data.table import Table, parse_table
from masksmith.data.tree import Tree

_HEAD = 5  # rows, as pandas shows them
_HEAD_BYTES = 1 << 18
_HEAD_CELL = 24  # characters of a cell
_HEAD_COLUMNS = 6


def table_heads(catalog: Catalog) -> dict[str, str]:
    """Return "head of train.csv" -> "id, rle_mask, z: a266a2a9df, 5051 5151, 794; …" for each table of the folder.

    An image's numbers from other tables are shown behind its row.
    """
    root = Path(catalog.root)
    if not root.is_dir():
        return {}
    tree, heads = Tree(root), {}
    known = {one.id: one for one in [*catalog.test, *catalog.train]}
    for path in table_files(tree, ""):
        if path.lower().endswith((".gz", ".parquet")):
            continue  # their beginning alone cannot be read
        start = tree.read(path)[:_HEAD_BYTES]
        if len(start) == _HEAD_BYTES:
            start = start[: start.rfind(b"\n") + 1]
        try:
            table = parse_table(start, where=path)
        except InputError:
            continue  # a finding says so
        heads[f"head of {path}"] = _head(table, known)
    return heads


def _head(table: Table, known: Mapping[str, Sample]) -> str:
    columns, rows = table.columns[:_HEAD_COLUMNS], table.rows[:_HEAD]
    samples = [next((known[cell] for cell in row.values() if cell in known), None) for row in rows]
    more = dict.fromkeys(name for one in samples if one for name in one.values if name not in columns)
    lines = []
    for row, sample in zip(rows, samples, strict=True):
        values = {} if sample is None else sample.values
        cells = [_short(row.get(column) or "") for column in columns]
        lines.append(", ".join([*cells, *(f"{values[name]:g}" if name in values else "" for name in more)]))
    return f"{', '.join([*columns, *more])}: {'; '.join(lines)}"


def _short(text: str) -> str:
    return text if len(text) <= _HEAD_CELL else f"{text[: _HEAD_CELL - 1]}…"
