"""Tables with columns of run-lengths: which columns hold them, which holds ids, and how its cells name an image."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from masksmith.core.errors import InputError
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.dialect import non_empty
from masksmith.data.rle import is_empty
from masksmith.data.table import Table, is_unnamed

ID_COLUMNS = ("id", "imageid", "image_id", "img", "image", "filename", "fname")
RLE_COLUMNS = ("rle_mask", "encodedpixels", "rle", "mask_rle", "annotation", "segmentation", "predicted")
CLASS_COLUMNS = ("classid", "class_id")
LOOSE_CLASS_COLUMNS = ("class", "label", "category")
"""Names of a column of classes only where images have several rows: otherwise it says something of the image."""
_MOST_LOOKED_AT = 2**16
_LONG = 6
"""Numbers of three runs: no box has so many."""
_WIDE_WORDS = {"rle", "mask", "masks", "encodedpixels", "encoded", "pixels", "runs", "segmentation"}
"""Words by which a column for one class is named besides the class."""
_WIDE_CLASS, _WIDE_RUNS = "class", "rle_mask"


@dataclass(frozen=True)
class RunTable:
    """A table with run-lengths: a row an image, an object, or an image and class; or a column a class."""

    path: str
    id_column: str
    rle_column: str
    class_column: str | None
    cells: list[str]
    """The ids as the table spells them."""
    ids: list[str]
    """Ids of images."""
    classes: list[str]
    """The class of each row; none where rows have no class."""
    texts: list[str]
    columns: list[str]
    """Those of ids, classes and run-lengths, in the table's order."""
    respelled: dict[str, str] = field(default_factory=dict)
    """Cell -> id of the images that are found only where capitals and spaces do not count."""
    wide: dict[str, str] = field(default_factory=dict)
    """Class -> its column, where each has one: then a row of the table is as many rows here."""

    @property
    def has_minus_one(self) -> bool:
        """Whether an empty mask is written as -1."""
        return any(text.strip() == "-1" for text in self.texts)

    @property
    def has_empty(self) -> bool:
        """Whether a row says that an image, or a class of it, is empty."""
        return any(map(is_empty, self.texts))

    @property
    def labels(self) -> list[str]:
        """The classes in their natural order, or that of their columns, if there are several."""
        found = list(self.wide) or sorted(set(self.classes), key=natural)
        return found if len(found) > 1 else []


def is_rle_name(column: str) -> bool:
    """Whether a column is named as columns of run-lengths are."""
    return column.lower() in RLE_COLUMNS


class _Cells(NamedTuple):
    """How many cells of a column are what."""

    told: int
    """Not empty."""
    pairs: int
    """Pairs of whole numbers."""
    long: int
    """Such pairs of three runs or more."""


def _count_numbers(cell: str) -> int:
    """Return how many whole numbers a cell holds, 0 where it holds anything else; of a long one the first."""
    if len(cell) > _MOST_LOOKED_AT:  # the parts of a huge text take much memory
        count = _count_numbers(cell[:_MOST_LOOKED_AT].rpartition(" ")[0])
        return count - count % 2
    parts = cell.split()
    digits = "".join(parts)
    return len(parts) if digits.isascii() and digits.isdigit() else 0


def _cells(table: Table, column: str) -> _Cells:
    if column not in table.known:
        counts = [_count_numbers(cell) for row in table.rows if not is_empty(cell := row[column])]
        pairs = [count for count in counts if count and count % 2 == 0]
        table.known[column] = _Cells(len(counts), len(pairs), sum(count >= _LONG for count in pairs))
    found: _Cells = table.known[column]
    return found


def reads_as_runs(table: Table, column: str) -> bool:
    """Whether a column holds run-lengths; one that is named so may have bad cells, which are refused one by one."""
    cells = _cells(table, column)
    return 2 * cells.pairs >= max(1, cells.told) if is_rle_name(column) else 0 < cells.pairs == cells.told


def reads_as_answers(table: Table, column: str) -> bool:
    """Whether all cells of a column are run-lengths or empty."""
    cells = _cells(table, column)
    return cells.pairs == cells.told


def find_rle_columns(table: Table, *, bare: bool) -> list[str]:
    """Return the column with run-lengths, or those where each class has its own; none where there is none.

    ``bare`` also takes one by its name alone where all its cells are empty.
    """
    if wide := _wide_columns(table, bare=bare):
        return wide
    ordered = sorted(table.columns, key=is_rle_name, reverse=True)
    found = next((column for column in ordered if reads_as_runs(table, column)), None)
    if found is None and bare:
        found = next((one for one in ordered if is_rle_name(one) and _all_empty(table, one)), None)
    return [found] if found else []


def unreadable_runs(table: Table) -> tuple[str, str] | None:
    """Return a column that is named as run-lengths and a cell of it that is none; None where there is none."""
    for column in table.columns:
        if is_rle_name(column) and _cells(table, column).told and not reads_as_runs(table, column):
            told = (cell for row in table.rows if not is_empty(cell := row[column]))
            return column, next(cell for cell in told if not _count_numbers(cell) or _count_numbers(cell) % 2)
    return None


def _all_empty(table: Table, column: str) -> bool:
    return not _cells(table, column).told


def _wide_columns(table: Table, *, bare: bool) -> list[str]:
    """Return the columns of run-lengths of one class each: two or more, by their names or by cells of many runs."""
    fitting = [one for one in table.columns if not is_unnamed(one) and reads_as_answers(table, one)]
    if any(map(is_rle_name, fitting)):
        return []
    named = [one for one in fitting if _WIDE_WORDS & set(_words(one))]
    if len(named) > 1 and (bare or any(not _all_empty(table, one) for one in named)):
        return named
    long = [one for one in fitting if _cells(table, one).long]
    return long if len(long) > 1 else []


def _words(column: str) -> list[str]:
    return re.split(r"[\W_]+", column.lower())


def wide_labels(columns: Sequence[str]) -> dict[str, str]:
    """Return class -> column: a column's name without the words that all such names have."""
    parts = {
        one: [part for part in re.split(r"[\W_]+", one) if part.lower() not in _WIDE_WORDS] for one in columns
    }
    labels = {"_".join(words): one for one, words in parts.items()}
    return labels if len(labels) == len(columns) and all(labels) else {one: one for one in columns}


def _melted(table: Table, labels: Mapping[str, str]) -> Table:
    """Return a table of a column a class as one of a row an image and class."""
    kept = [one for one in table.columns if one not in {*labels.values(), _WIDE_CLASS, _WIDE_RUNS}]
    rows = [
        {one: row[one] for one in kept} | {_WIDE_CLASS: label, _WIDE_RUNS: row[column]}
        for row in table.rows
        for label, column in labels.items()
    ]
    return Table(table.path, [*kept, _WIDE_CLASS, _WIDE_RUNS], rows)


def without_ending(cell: str) -> str:
    """Return the name of an image without the ending of its file; folders stay."""
    base, _, suffix = cell.rpartition(".")
    return base if f".{suffix.lower()}" in IMAGE_SUFFIXES and base[-1:] not in ("", "/") else cell


def _stem(cell: str) -> str:
    base = without_ending(cell)
    return base.rpartition("/")[2] if base != cell else cell


def _name(cell: str) -> str:
    return _stem(cell.replace("\\", "/").rpartition("/")[2])


def before_class(cell: str) -> str:
    """Return the id in a cell of an id, _ and a class."""
    return cell.rpartition("_")[0]


ID_FORMS: tuple[Callable[[str], str], ...] = (
    str,
    _stem,
    _name,
    before_class,
    lambda cell: _stem(before_class(cell)),
    lambda cell: _name(before_class(cell)),
)
"""How a cell names an image: as it is, by its file, by its path, and each with the class behind it."""
WITH_CLASS = ID_FORMS[3:]


def read_run_table(table: Table, rle_columns: Sequence[str], ids: Collection[str]) -> RunTable | None:
    """Read a table with the run-lengths of images; None where no column holds ids.

    The id column is the one that names most of the images; where none of them is named, one with an id's name.

    Args:
        table: The table.
        rle_columns: Its column of run-lengths, or several of a class each.
        ids: The images.
    """
    if len(rle_columns) > 1:
        labels = wide_labels(rle_columns)
        runs = read_run_table(_melted(table, labels), [_WIDE_RUNS], ids)
        kept = runs and [one for one in table.columns if one in (runs.id_column, *rle_columns)]
        return runs and replace(runs, columns=kept or [], wide=labels)
    (rle_column,) = rle_columns
    id_column, form = _ids_of(table, rle_column, set(ids))
    if id_column is None:
        return None
    cells = [row[id_column] for row in table.rows]
    class_column = _column(table, CLASS_COLUMNS)
    if class_column is None and (len(set(cells)) < len(cells) or not cells):
        class_column = _column(table, LOOSE_CLASS_COLUMNS)
    classes = [row[class_column].strip() for row in table.rows] if class_column else []
    if not classes and form in WITH_CLASS:
        classes = [cell.rpartition("_")[2] for cell in cells]
    texts = [row[rle_column] for row in table.rows]
    columns = [one for one in table.columns if one in (id_column, class_column, rle_column)]
    found = [form(cell) for cell in cells]
    respelled = _respelled(found, ids)
    found = [respelled.get(name, name) for name in found]
    return RunTable(
        table.path, id_column, rle_column, class_column, cells, found, classes, texts, columns, respelled
    )


def _ids_of(table: Table, rle_column: str, known: set[str]) -> tuple[str | None, Callable[[str], str]]:
    """Return the column that names most of the images, and how; (None, str) where there is none."""
    columns = [column for column in table.columns if column != rle_column]
    columns.sort(key=lambda one: (is_unnamed(one), one.lower() not in ID_COLUMNS))  # an index counts last
    texts = {column: {row[column] for row in table.rows} for column in columns}
    for spell, names in ((str, known), (_loosely, {_loosely(name) for name in known})):
        choices = [(column, form) for form in ID_FORMS for column in columns]
        hits = [len(names & {spell(form(text)) for text in texts[column]}) for column, form in choices]
        named = [hit * (not is_unnamed(column)) for hit, (column, _) in zip(hits, choices, strict=True)]
        hits = named if any(named) else hits
        if any(hits):
            return choices[hits.index(max(hits))]
    return _column(table, ID_COLUMNS), str


def _loosely(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()


def _respelled(names: Sequence[str], ids: Collection[str]) -> dict[str, str]:
    """Return name in a table -> id, of those that are the same but for capitals, spaces and the form of accents."""
    known, told = set(ids), set(names)
    alike = Counter(map(_loosely, known | told))  # of two that are alike none is meant
    loose = {_loosely(name): name for name in known - told}
    found = {name: loose.get(_loosely(name)) for name in told - known if alike[_loosely(name)] == 2}
    return {name: one for name, one in found.items() if one is not None}


def _column(table: Table, names: Sequence[str]) -> str | None:
    return next((column for column in table.columns if column.lower() in names), None)


def natural(text: str) -> list[tuple[int, str]]:
    """Return a key by which "2" comes before "10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text) if part]


def rows_by_label(table: RunTable) -> dict[str, dict[str, list[str]]]:
    """Return id -> label -> its texts without the empty ones.

    Raises:
        InputError: Images have two rows of a label; all are named.
    """
    rows: dict[str, dict[str, list[str]]] = {}
    twice: list[str] = []
    for name, label, text in zip(table.ids, table.classes, table.texts, strict=True):
        own = rows.setdefault(name, {})
        if label in own:
            twice.append(f"the image {name!r} has two rows of the class {label!r}")
        own[label] = non_empty([text])
    if twice:
        raise InputError(
            f"{table.path}: {'; '.join(twice)}; expected one row an image and class, with all its runs"
        )
    return rows
