"""Submissions: written, read, validated and scored."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from masksmith.arrays import Mask
from masksmith.config import look_up
from masksmith.data.catalog import (
    ID_COLUMNS,
    RLE_COLUMNS,
    SubmissionFormat,
    Table,
    dialect_of,
    need_column,
    parse_table,
)
from masksmith.data.ids import check_id
from masksmith.data.rle import DIALECTS, decode, encode, mask_to_runs, runs_to_mask
from masksmith.errors import InputError
from masksmith.files import atomic_folder, write_member, write_text
from masksmith.metrics import Metric


def write_masks(folder: Path, masks: Iterable[tuple[str, Mask]]) -> None:
    """Write masks as 8-bit PNG of 0 and 255, named by id; the folder is replaced as a whole."""
    with atomic_folder(folder) as temporary:
        for name, mask in masks:
            fine, raw = cv2.imencode(".png", mask * np.uint8(255))
            assert fine
            write_member(temporary / f"{check_id(name, where=str(folder))}.png", raw.tobytes())


def read_mask(path: Path) -> Mask:
    """Read a mask that write_masks has written, as 0 and 1.

    Raises:
        InputError: The file is missing or no image.
    """
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise InputError(f"{path}: no mask there, or not an image; run `masksmith submit` again")
    return (mask > 0).astype(np.uint8)


def write_submission(path: Path, form: SubmissionFormat, masks: Mapping[str, Mask]) -> None:
    """Write the submission with the ids and columns that the judge expects."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((form.id_column, form.rle_column))
    for name in form.ids:
        writer.writerow((name, encode(masks[name], dialect=form.dialect)))
    write_text(path, text.getvalue())


@dataclass(frozen=True)
class Verdict:
    """Result of a validation that found nothing wrong."""

    path: str
    ids: int
    empty: int
    compared: int

    def __str__(self) -> str:
        masks = f", all equal to the {self.compared} saved masks" if self.compared else ""
        return f"{self.path}: valid: {self.ids} ids in the right order, {self.empty} empty{masks}"


def validate_submission(
    path: Path, form: SubmissionFormat, shapes: Mapping[str, tuple[int, int]], *, masks: Path | None
) -> Verdict:
    """Check a submission as the judge would, and more strictly.

    Every id once and in order; runs sorted, inside the image, neither overlapping nor touching; decoded
    back to exactly the saved masks.

    Args:
        path: The CSV file.
        form: What the judge expects.
        shapes: Id -> (height, width).
        masks: Folder of saved masks, or None to leave that comparison out.

    Raises:
        InputError: The first thing that is wrong, with its id.
    """
    table = _read_table(path)
    for column in (form.id_column, form.rle_column):
        need_column(table, column)
    _check_ids([row[form.id_column] for row in table.rows], form, path)
    empty = 0
    for row in table.rows:
        name = row[form.id_column]
        where = f"{path}: id {name!r}"
        runs = look_up(DIALECTS, form.dialect, where="dialect").read(row[form.rle_column], where=where)
        mask = runs_to_mask(runs, shape=shapes[name], where=where)
        canonical = mask_to_runs(mask)
        if not np.array_equal(runs, canonical):
            raise InputError(
                f"{where}: the runs are not sorted or two of them touch; expected {len(canonical)} runs in order"
            )
        empty += not len(runs)
        saved = masks and masks / f"{check_id(name, where=where)}.png"
        if saved is not None and not np.array_equal(mask, read_mask(saved)):
            raise InputError(
                f"{where}: the runs do not decode to the saved mask in {masks}; run `masksmith submit` again"
            )
    return Verdict(str(path), len(table.rows), empty, len(table.rows) if masks else 0)


def _read_table(path: Path) -> Table:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a submission in CSV")
    return parse_table(path.read_bytes(), where=str(path))


def _check_ids(ids: list[str], form: SubmissionFormat, path: Path) -> None:
    expected = form.ids
    if len(set(ids)) != len(ids):
        twice = next(name for at, name in enumerate(ids) if name in ids[:at])
        raise InputError(f"{path}: the id {twice!r} stands twice; expected each id once")
    given_ids, expected_ids = set(ids), set(expected)
    missing = [name for name in expected if name not in given_ids]
    if missing:
        raise InputError(
            f"{path}: {len(expected)} ids expected ({form.source}), {len(ids)} given; missing: {missing[0]!r}"
        )
    unknown = [name for name in ids if name not in expected_ids]
    if unknown:
        raise InputError(
            f"{path}: the id {unknown[0]!r} is not among the {len(expected)} ids of {form.source}"
        )
    for line, (given, wanted) in enumerate(zip(ids, expected, strict=True), start=2):
        if given != wanted:
            raise InputError(f"{path}: line {line}: id {given!r}, expected {wanted!r} as in {form.source}")


def _columns(table: Table) -> tuple[str, str]:
    def find(names: tuple[str, ...]) -> str:
        column = next((column for column in table.columns if column.lower() in names), None)
        if column is None:
            need_column(table, names[0])
        assert column is not None
        return column

    return find(ID_COLUMNS), find(RLE_COLUMNS)


def _unique_rows(table: Table, id_column: str, rle_column: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for row in table.rows:
        if row[id_column] in texts:
            raise InputError(f"{table.path}: the id {row[id_column]!r} stands twice; expected each id once")
        texts[row[id_column]] = row[rle_column]
    return texts


@dataclass(frozen=True)
class Scored:
    """Score of a submission against a solution, and of predicting nothing."""

    metric: str
    score: float
    nothing: float
    images: int

    def __str__(self) -> str:
        return f"{self.metric}: {self.score:.4f} on {self.images} images (predicting nothing: {self.nothing:.4f})"


def score_files(submission: Path, solution: Path, *, metric: Metric, shape: tuple[int, int]) -> Scored:
    """Score a submission against a file of true run-lengths.

    Args:
        submission: CSV with an id and a run-length column; it may hold more ids than the solution.
        solution: CSV of the same form.
        metric: A metric of binary masks, not of groups.
        shape: (height, width) of every image.

    Raises:
        InputError: A missing column, an id of the solution that was not submitted, wrong run-lengths, or a metric that
            needs more than two files of run-lengths say.
    """
    if metric.by_group or metric.needs == "classes":
        raise InputError(
            f"--metric {metric.name}: it needs {'groups' if metric.by_group else 'class maps'}, which a file of "
            "run-lengths does not hold; name another metric"
        )
    given, truth = _read_table(submission), _read_table(solution)
    texts: list[dict[str, str]] = []
    dialects = []
    for table in (given, truth):
        id_column, rle_column = _columns(table)
        texts.append(_unique_rows(table, id_column, rle_column))
        dialects.append(dialect_of(rle_column))
    if not texts[1]:
        raise InputError(f"{solution}: no rows; expected one row an image")
    absent = [name for name in texts[1] if name not in texts[0]]
    if absent:
        raise InputError(
            f"{submission}: {len(absent)} ids of {solution} are missing, for example {absent[0]!r}"
        )
    rows, nothing = [], []
    for name, text in texts[1].items():
        target = decode(text, shape=shape, dialect=dialects[1], where=f"{solution}: id {name!r}")
        pred = decode(texts[0][name], shape=shape, dialect=dialects[0], where=f"{submission}: id {name!r}")
        rows.append(metric.stats(pred, target))
        nothing.append(metric.stats(np.zeros_like(pred), target))
    return Scored(metric.name, metric.score(np.stack(rows)), metric.score(np.stack(nothing)), len(rows))
