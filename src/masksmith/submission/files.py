"""Submissions: written, read, validated and scored."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from masksmith.core.arrays import Mask
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.core.files import atomic_folder, write_member, write_text
from masksmith.data.catalog import (
    CLASS_COLUMNS,
    ID_COLUMNS,
    RLE_COLUMNS,
    SubmissionFormat,
    Table,
    need_column,
    parse_table,
)
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
from masksmith.data.ids import check_id
from masksmith.data.rle import DIALECTS, Dialect, decode_rows, encode_rows, mask_to_runs, runs_to_mask
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
    """Write the submission with the ids, columns and rows that the judge expects."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((form.id_column, form.rle_column, *form.more))
    for name in form.ids:
        for runs in encode_rows(masks[name], dialect=form.dialect):
            writer.writerow((form.spelled.get(name, name), runs, *form.more.values()))
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

    Every id once and in order (in dialects of objects in adjacent rows); runs sorted, inside the image, neither
    overlapping nor touching; decoded back to exactly the saved masks.

    Args:
        path: The CSV file.
        form: What the judge expects.
        shapes: Id -> (height, width).
        masks: Folder of saved masks, or None to leave that comparison out.

    Raises:
        InputError: The first thing that is wrong, with its id.
    """
    table = _read_table(path)
    for column in (form.id_column, form.rle_column, *form.more):
        need_column(table, column)
    ids = [row[form.id_column] for row in table.rows]
    how = look_up(DIALECTS, form.dialect, where="dialect")
    _check_ids(_merge_adjacent(ids) if how.by_object else ids, form, path)
    names = {form.spelled.get(name, name): name for name in form.ids}
    rows = group_rows([names[cell] for cell in ids], [row[form.rle_column] for row in table.rows])
    empty = 0
    for name, texts in rows.items():
        where = f"{path}: id {name!r}"
        mask = _strict_mask(texts, how, shape=shapes[name], where=where)
        empty += not mask.any()
        saved = masks and masks / f"{check_id(name, where=where)}.png"
        if saved is not None and not np.array_equal(mask, read_mask(saved)):
            raise InputError(
                f"{where}: the runs do not decode to the saved mask in {masks}; run `masksmith submit` again"
            )
    return Verdict(str(path), len(rows), empty, len(rows) if masks else 0)


def _merge_adjacent(ids: list[str]) -> list[str]:
    return [name for at, name in enumerate(ids) if not at or name != ids[at - 1]]


def _strict_mask(texts: list[str], how: Dialect, *, shape: tuple[int, int], where: str) -> Mask:
    """Return the mask of an image's rows.

    Raises:
        InputError: Runs that are not sorted, touch or overlap, or an empty row beside others.
    """
    mask = np.zeros(shape, np.uint8)
    for text in texts:
        runs = how.read(text, where=where)
        if not len(runs) and len(texts) > 1:
            raise InputError(f"{where}: an empty row beside {len(texts) - 1} others; expected runs in each")
        painted = runs_to_mask(runs, shape=shape, where=where, order=how.order)
        canonical = mask_to_runs(painted, order=how.order)
        if not np.array_equal(runs, canonical):
            raise InputError(
                f"{where}: the runs are not sorted or two of them touch; expected {len(canonical)} runs in order"
            )
        if (mask & painted).any():
            raise InputError(
                f"{where}: {int((mask & painted).sum())} pixels are in two rows; expected in one"
            )
        mask |= painted
    return mask


def _read_table(path: Path) -> Table:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a submission in CSV")
    return parse_table(path.read_bytes(), where=str(path))


def _check_ids(ids: list[str], form: SubmissionFormat, path: Path) -> None:
    expected = [form.spelled.get(name, name) for name in form.ids]
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
