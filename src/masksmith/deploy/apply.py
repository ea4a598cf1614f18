"""Segment files with a bundle: masks as PNG, a table of what was found, and more where asked.

Images are decoded and segmented in chunks, so that memory does not grow with their number; each finished chunk is on
the disk, and the same call goes on after the last one. A file that cannot be used is said in the table, and the rest
goes on.
"""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from masksmith.core import interrupt
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.core.files import write_text
from masksmith.core.locks import LOCK, folder_lock
from masksmith.core.progress import logger
from masksmith.data.rle import DIALECTS
from masksmith.data.table import need_column, parse_table
from masksmith.deploy.listing import Item, list_items
from masksmith.deploy.outputs import check_kinds
from masksmith.deploy.segmenter import Segmenter
from masksmith.deploy.work import STATE, Row, Work, is_done

_NAP_S = 0.1
_LAST = ("unlike", "error")


@dataclass(frozen=True)
class Applied:
    """What was segmented."""

    out: Path
    done: int
    refused: list[str] = field(default_factory=list)
    """A message for each file that could not be used, or not be written as asked."""
    unlike: int = 0
    """Images unlike the training set."""

    def __str__(self) -> str:
        lines = [f"{self.out}: {self.done} images segmented, see apply.csv and masks/"]
        if self.unlike:
            lines.append(f"{self.unlike} images are unlike the training set: see the column `unlike`")
        if self.refused:
            lines += [
                f"{len(self.refused)} were not used, or not written as asked:",
                *(f"  {one}" for one in self.refused),
            ]
        return "\n".join(lines)


def apply_model(
    model: Segmenter,
    inputs: Sequence[str | Path],
    out: Path,
    *,
    write: Sequence[str] = (),
    dialect: str = "tgs",
    table: Mapping[str, Mapping[str, float]] | None = None,
    watch_s: float | None = None,
) -> Applied:
    """Segment images and write ``masks/ID.png``, ``apply.csv``, and what else is asked for.

    Args:
        model: The model.
        inputs: Files, folders (with sub-folders), archives and patterns. An image's id is its path without the ending,
            and for a file of several images ``_0000``, ``_0001`` … behind it.
        out: Folder of the results: absent, empty or one of an earlier call.
        write: Keys of KINDS: what is written beside masks.
        dialect: Of run-lengths, a key of DIALECTS.
        table: Id -> name -> number, for a model that takes numbers beside each image; an id may be the name
            alone, without folders.
        watch_s: Seconds between two looks for new and changed files, until a stop is asked for; None: one look.

    Raises:
        InputError: An input is not there, there is no image, ``out`` holds something else, or a kind or dialect is
            unknown.
        StoppedError: A stop was asked for; what is finished stays.
    """
    kinds = check_kinds(write)
    look_up(DIALECTS, dialect, where="--dialect")
    if watch_s is not None and not watch_s > 0:
        raise InputError(f"--every {watch_s:g}: expected seconds above 0")
    items = _items(inputs, out, may_be_empty=watch_s is not None)
    _refuse_foreign(out)
    with folder_lock(out):
        work = Work(model, out, kinds, table or {}, dialect)
        if watch_s is not None:
            _watch(work, inputs, out, watch_s)
        work.remember(items)
        if known := sum(map(work.is_known, items)):
            logger.info("%d of %d files are done already", known, len(items))
        return _look(work, items, out)


def _items(inputs: Sequence[str | Path], out: Path, *, may_be_empty: bool) -> list[Item]:
    """Return the files of images, without those that are in ``out``."""
    own = out.resolve()

    def is_own(item: Item) -> bool:
        place = item.reader.tree.on_disk(item.path) if not item.error else None
        return place is not None and place.resolve().is_relative_to(own)

    return [item for item in list_items(inputs, may_be_empty=may_be_empty) if not is_own(item)]


def _look(work: Work, items: Sequence[Item], out: Path, gone: Sequence[Item] = ()) -> Applied:
    """Segment what is not done, and write the table of everything; ``gone`` are done, and no longer there."""
    work.segment([item for item in items if not work.is_known(item)])
    rows = work.finish(items, gone)
    write_text(out / "apply.csv", _csv_text(rows))
    return Applied(
        out,
        sum(map(is_done, rows)),
        [row["error"] for row in rows if row["error"]],
        sum(bool(row["unlike"]) for row in rows),
    )


def _watch(work: Work, inputs: Sequence[str | Path], out: Path, every_s: float) -> None:
    """Look again and again; a file is taken once two looks found it the same."""
    before: dict[str, str] | None = None
    done: dict[str, Item] = {}
    logger.info("watching %s; Ctrl-C ends it", ", ".join(map(str, inputs)))
    while True:
        with suppress(FileNotFoundError):  # a file went while it was looked at
            items = _items(inputs, out, may_be_empty=True)
            if before is None:
                work.remember(items)
            ready = [item for item in items if before and before.get(item.id) == item.version]
            if not all(map(work.is_known, ready)):
                there = {item.id for item in ready}
                found = _look(work, ready, out, [item for name, item in done.items() if name not in there])
                done |= {item.id: item for item in ready}
                logger.info("%s", found)
            before = {item.id: item.version for item in items}
        until = time.monotonic() + every_s
        while (left := until - time.monotonic()) > 0:
            interrupt.check_stop()
            time.sleep(min(left, _NAP_S))


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: it is a file; expected a folder")
    if out.is_dir() and {path.name for path in out.iterdir()} - {LOCK} and not (out / STATE).is_dir():
        raise InputError(f"{out}: the folder is not empty and not one of `masksmith apply`; name another one")


def read_scalars(path: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return id -> name -> number of a CSV table; its column of ids is called ``id``, or is the first.

    Raises:
        InputError: A column is missing, or a cell is no finite number.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a table with the columns id, {', '.join(names)}")
    table = parse_table(path.read_bytes(), where=str(path))
    key = next((column for column in table.columns if column.lower() == "id"), table.columns[0])
    for name in names:
        need_column(table, name)
    found: dict[str, dict[str, float]] = {}
    for row in table.rows:
        try:
            found[row[key]] = {name: float(row[name]) for name in names}
        except ValueError as error:
            raise InputError(f"{path}: id {row[key]!r}: {error}; expected numbers") from error
        if not np.isfinite(list(found[row[key]].values())).all():
            raise InputError(f"{path}: id {row[key]!r}: {row}; expected finite numbers")
    return found


def _csv_text(rows: Sequence[Row]) -> str:
    found = dict.fromkeys(key for row in rows for key in row)
    columns = [*(key for key in found if key not in _LAST), *_LAST]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
