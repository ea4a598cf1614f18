"""Tables with a column of run-lengths: which column holds them, which holds ids, and how its cells name an image."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.dialect import non_empty
from masksmith.data.rle import NO_RUNS
from masksmith.data.table import Table

ID_COLUMNS = ("id", "imageid", "image_id", "img", "image", "filename")
RLE_COLUMNS = ("rle_mask", "encodedpixels", "rle", "mask_rle", "annotation", "segmentation", "predicted")
CLASS_COLUMNS = ("classid", "class_id")
LOOSE_CLASS_COLUMNS = ("class", "label", "category")
"""Names of a column of classes only where images have several rows: otherwise it says something of the image."""
_PAIRS = re.compile(r"\s*\d+\s+\d+(\s+\d+\s+\d+)*\s*", re.ASCII)


@dataclass(frozen=True)
class RunTable:
    """A table with a column of run-lengths: a row an image, an object, or an image and class."""

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

    @property
    def has_minus_one(self) -> bool:
        """Whether an empty mask is written as -1."""
        return any(text.strip() == "-1" for text in self.texts)

    @property
    def labels(self) -> list[str]:
        """The classes in their natural order, if there are several."""
        found = sorted(set(self.classes), key=natural)
        return found if len(found) > 1 else []


def is_rle_name(column: str) -> bool:
    """Whether a column is named as columns of run-lengths are."""
    return column.lower() in RLE_COLUMNS


def reads_as_runs(table: Table, column: str) -> bool:
    """Whether a column holds run-lengths; one that is named so may have bad cells, which are refused one by one."""
    cells = [cell for row in table.rows if (cell := row[column].strip()) not in NO_RUNS]
    fitting = sum(_PAIRS.fullmatch(cell) is not None for cell in cells)
    return 2 * fitting >= max(1, len(cells)) if is_rle_name(column) else 0 < fitting == len(cells)


def reads_as_answers(table: Table, column: str) -> bool:
    """Whether all cells of a column are run-lengths or empty."""
    cells = (row[column].strip() for row in table.rows)
    return all(cell in NO_RUNS or _PAIRS.fullmatch(cell) for cell in cells)


def find_rle_column(table: Table, *, bare: bool) -> str | None:
    """Return the column with run-lengths; ``bare`` also takes one by its name alone where all its cells are empty."""
    ordered = sorted(table.columns, key=is_rle_name, reverse=True)
    found = next((column for column in ordered if reads_as_runs(table, column)), None)
    if found is None and bare:
        found = next((one for one in ordered if is_rle_name(one) and _all_empty(table, one)), None)
    return found


def _all_empty(table: Table, column: str) -> bool:
    return all(row[column].strip() in NO_RUNS for row in table.rows)


def _stem(cell: str) -> str:
    path = PurePosixPath(cell)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else cell


def _before_class(cell: str) -> str:
    return cell.rpartition("_")[0]


_ID_FORMS: tuple[Callable[[str], str], ...] = (
    str,
    _stem,
    _before_class,
    lambda cell: _stem(_before_class(cell)),
)
"""How a cell names an image: as it is, by its file, and either with the class behind it."""


def read_run_table(table: Table, rle_column: str, ids: Collection[str]) -> RunTable | None:
    """Read a table with the run-lengths of images; None where no column holds ids.

    The id column is the one that names most of the images; where none of them is named, one with an id's name.
    """
    known = set(ids)
    choices = [(column, form) for form in _ID_FORMS for column in table.columns if column != rle_column]
    hits = [len(known & {form(row[column]) for row in table.rows}) for column, form in choices]
    if not choices:
        return None
    id_column, form = choices[hits.index(max(hits))]
    if not any(hits):
        named = _column(table, ID_COLUMNS)
        if named is None:
            return None
        id_column, form = named, str
    cells = [row[id_column] for row in table.rows]
    class_column = _column(table, CLASS_COLUMNS)
    if class_column is None and len(set(cells)) < len(cells):
        class_column = _column(table, LOOSE_CLASS_COLUMNS)
    classes = [row[class_column] for row in table.rows] if class_column else []
    if not classes and form in _ID_FORMS[2:]:
        classes = [cell.rpartition("_")[2] for cell in cells]
    texts = [row[rle_column] for row in table.rows]
    columns = [one for one in table.columns if one in (id_column, class_column, rle_column)]
    ids = [form(cell) for cell in cells]
    return RunTable(table.path, id_column, rle_column, class_column, cells, ids, classes, texts, columns)


def _column(table: Table, names: Sequence[str]) -> str | None:
    return next((column for column in table.columns if column.lower() in names), None)


def natural(text: str) -> list[tuple[int, str]]:
    """Return a key by which "2" comes before "10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text) if part]


def rows_by_label(table: RunTable) -> dict[str, dict[str, list[str]]]:
    """Return id -> label -> its texts without the empty ones.

    Raises:
        InputError: An image has two rows of a label.
    """
    rows: dict[str, dict[str, list[str]]] = {}
    for name, label, text in zip(table.ids, table.classes, table.texts, strict=True):
        own = rows.setdefault(name, {})
        if label in own:
            raise InputError(
                f"{table.path}: the image {name!r} has two rows of the class {label!r}; expected one row an image and "
                "class, with all its runs"
            )
        own[label] = non_empty([text])
    return rows
