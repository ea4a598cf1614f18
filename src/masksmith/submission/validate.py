"""Validation of a submission, as the judge would and more strictly, one image in memory at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np

from masksmith.core.arrays import Int, Labels, Mask, row_bands
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.data.catalog import SubmissionFormat
from masksmith.data.ids import check_id
from masksmith.data.rle import DIALECTS, Dialect, Order, Runs, check_runs, paint_runs
from masksmith.data.table import iterate_table, need_column
from masksmith.data.target import BINARY, Target
from masksmith.submission.formats import CLASS_COLUMN, judged_values, object_dialect, read_mask

_Rows = list[Int[np.ndarray, "_ 2"]]
"""Runs of each row of an image; each row has another number of them."""


@dataclass(frozen=True)
class Verdict:
    """Result of a validation that found nothing wrong."""

    path: str
    ids: int
    empty: int
    compared: int
    files: str = ""
    """Folder of the mask files that the judge takes, equal to the saved masks too; empty: it takes the table."""

    def __str__(self) -> str:
        masks = f", all equal to the {self.compared} saved masks" if self.compared else ""
        files = f"; as files for the judge: {self.files}" if self.files else ""
        return f"{self.path}: valid: {self.ids} ids in the right order, {self.empty} empty{masks}{files}"


def validate_submission(
    path: Path,
    form: SubmissionFormat,
    shapes: Mapping[str, tuple[int, int]],
    *,
    masks: Path | None,
    target: Target = BINARY,
) -> Verdict:
    """Check a submission as the judge would, and more strictly.

    Every id once and in order (in dialects of objects in adjacent rows); runs sorted, inside the image, neither
    overlapping nor touching; decoded back to exactly the saved masks.

    Args:
        path: The CSV file.
        form: What the judge expects.
        shapes: Id -> (height, width).
        masks: Folder of saved masks, or None to leave that comparison out.
        target: The task and its classes.

    Raises:
        InputError: The first thing that is wrong, with its id.
    """
    if target.task == "multilabel":
        return _validate_labels(path, form, shapes, masks=masks, target=target)
    if target.exclusive:
        return _validate_class_maps(path, form, shapes, masks=masks, target=target)
    ids = [row[form.id_column] for row in _rows(path, form)]
    objects = target.task == "instances"
    how = look_up(DIALECTS, object_dialect(form) if objects else form.dialect, where="dialect")
    _check_ids([name for name, _ in groupby(ids)] if how.by_object else ids, form, path)
    names = {form.spelled.get(name, name): name for name in form.ids}
    empty = 0
    for cell, rows in groupby(_rows(path, form), key=lambda row: row[form.id_column]):
        name, texts = names[cell], [row[form.rle_column] for row in rows]
        where = f"{path}: id {name!r}"
        empty += _check_image(texts, how, shapes[name], name, masks=masks, target=target, where=where)
    return Verdict(str(path), len(names), empty, len(names) if masks else 0)


def validate_files(
    folder: Path,
    form: SubmissionFormat,
    shapes: Mapping[str, tuple[int, int]],
    *,
    masks: Path,
    target: Target,
) -> None:
    """Check the mask files that the judge takes: one an id and no other, each with the values of the saved mask.

    Raises:
        InputError: The first thing that is wrong, with its id.
    """
    wanted = {f"{name}.{form.files}": name for name in form.ids}
    there = {path.name for path in folder.glob(f"*.{form.files}")}
    if there != set(wanted):
        odd = min(there ^ set(wanted))
        if odd in wanted:
            raise InputError(f"{folder / odd}: missing; run `masksmith submit` again")
        raise InputError(
            f"{folder / odd}: not among the {len(wanted)} ids of {form.source}; take it out of the folder"
        )
    for file, name in wanted.items():
        raw = np.fromfile(folder / file, np.uint8)
        found = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED) if raw.size else None
        mask = judged_values(read_mask(masks / f"{name}.png", target), target)
        if found is None or found.shape != shapes[name] or not np.array_equal(found, mask):
            raise InputError(f"{folder / file}: not the saved mask in {masks}; run `masksmith submit` again")


def _check_image(
    texts: list[str],
    how: Dialect,
    shape: tuple[int, int],
    name: str,
    *,
    masks: Path | None,
    target: Target,
    label: str = "",
    where: str,
) -> bool:
    """Check the rows of an image: of its objects, of its classes but the background, or of one label.

    The saved mask is read before the runs are painted, since decoding takes twice the room of a mask.

    Returns:
        Whether it is empty.

    Raises:
        InputError: Runs that are not sorted, touch or overlap, an empty row beside others, or another mask than the
            saved one.
    """
    labels = target.classes[1:] if target.exclusive else ()
    places = [f"{where}, {one}" for one in labels] or [where] * len(texts)
    each = [_strict_runs(*row, how, shape=shape) for row in zip(texts, places, strict=True)]
    if len(each) > 1 and not labels and not all(map(len, each)):
        raise InputError(f"{where}: an empty row beside {len(each) - 1} others; expected runs in each")
    file = f"{check_id(name, where=where)}.png" if masks else ""
    saved = read_mask(masks / label / file, target) if masks else None
    mask = _painted(each, shape, labels, order=how.order, where=where)
    if saved is not None and target.task == "instances":
        _compare_objects(each, how, saved, where=where)
    elif saved is not None and not _equal(mask, saved):
        raise InputError(
            f"{where}: the runs do not decode to the saved mask in {masks}; run `masksmith submit` again"
        )
    return not any(map(len, each))


def _equal(one: Mask, two: Mask) -> bool:
    """Whether two masks are equal, without an array of their size; one may be stored column by column."""
    return one.shape == two.shape and all(
        np.array_equal(one[rows], two[rows]) for rows in row_bands(one.shape)
    )


def _compare_objects(each: _Rows, how: Dialect, labels: Labels, *, where: str) -> None:
    """Refuse rows that are not the objects of a saved label map, one a row.

    Raises:
        InputError: They are not.
    """
    areas = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    for rows in row_bands(labels.shape):
        areas += np.bincount(labels[rows].ravel(), minlength=len(areas))
    areas[0] = 0
    seen = set()
    for number, runs in enumerate(each, start=1):
        if not len(runs):
            continue
        pixels = np.concatenate([np.arange(start, start + length) for start, length in runs.tolist()])
        inside = labels[np.unravel_index(pixels, labels.shape, order=how.order)]
        if (inside != inside[0]).any() or not inside[0] or areas[inside[0]] != len(inside):
            raise InputError(
                f"{where}: row {number} is no object of the saved label map; run `masksmith submit` again"
            )
        seen.add(int(inside[0]))
    if len(seen) != np.count_nonzero(areas):
        raise InputError(
            f"{where}: {len(seen)} objects, the saved label map has {np.count_nonzero(areas)}; run "
            "`masksmith submit` again"
        )


def _validate_class_maps(
    path: Path,
    form: SubmissionFormat,
    shapes: Mapping[str, tuple[int, int]],
    *,
    masks: Path | None,
    target: Target,
) -> Verdict:
    """Check a submission with a row for each image and class but the background.

    Raises:
        InputError: As validate_submission; a class is missing or in another place, or two overlap.
    """
    how, labels = look_up(DIALECTS, form.dialect, where="dialect"), list(target.classes[1:])
    rows = groupby(_rows(path, form, CLASS_COLUMN), key=lambda row: row[form.id_column])
    names, ids, empty = {form.spelled.get(name, name): name for name in form.ids}, [], 0
    for cell, inside in rows:
        found = list(inside)
        ids.append(cell)
        name, where = names.get(cell, cell), f"{path}: id {cell!r}"
        given = [row[CLASS_COLUMN] for row in found]
        if given != labels:
            raise InputError(f"{where}: rows of the classes {', '.join(given)}; expected {', '.join(labels)}")
        if name not in shapes:
            continue  # refused below, with what was expected
        texts = [row[form.rle_column] for row in found]
        empty += _check_image(texts, how, shapes[name], name, masks=masks, target=target, where=where)
    _check_ids(ids, form, path)
    return Verdict(str(path), len(names), empty, len(names) if masks else 0)


def _validate_labels(
    path: Path,
    form: SubmissionFormat,
    shapes: Mapping[str, tuple[int, int]],
    *,
    masks: Path | None,
    target: Target,
) -> Verdict:
    """Check a submission with a row for each image and label.

    Raises:
        InputError: As validate_submission; a row is missing, comes twice or in another place.
    """
    how, found = look_up(DIALECTS, form.dialect, where="dialect"), set()
    extra = [form.class_column] if form.class_column else []
    count = 0
    for row in _rows(path, form, *extra):
        given = [row[form.id_column], *(row[column] for column in extra)]
        if count == len(form.label_rows):
            raise InputError(
                f"{path}: line {count + 2}: {given} after the last of {count} rows; expected the end"
            )
        wanted = form.label_rows[count]
        expected = [wanted.cell, *([wanted.label] if extra else [])]
        count += 1
        if given != expected:
            raise InputError(
                f"{path}: line {count + 1}: row {given}; expected {expected} as in {form.source}"
            )
        where = f"{path}: id {wanted.id!r}, class {wanted.label!r}"
        is_empty = _check_image(
            [row[form.rle_column]],
            how,
            shapes[wanted.id],
            wanted.id,
            masks=masks,
            target=target,
            label=wanted.label,
            where=where,
        )
        found |= set() if is_empty else {wanted.id}
    if count < len(form.label_rows):
        missing = form.label_rows[count]
        raise InputError(
            f"{path}: {count} rows; expected {len(form.label_rows)} ({form.source}): {missing.cell!r} of class "
            f"{missing.label!r} is missing"
        )
    return Verdict(str(path), len(form.ids), len(form.ids) - len(found), len(form.ids) if masks else 0)


def _rows(path: Path, form: SubmissionFormat, *more: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a submission, one in memory at a time."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a submission in CSV")
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = iterate_table(file, where=str(path))
        for column in form.columns if form.wide else (form.id_column, *more, form.rle_column, *form.more):
            need_column(table, column)
        for row in table.rows:
            for label, column in form.wide.items():
                yield row | {form.class_column: label, form.rle_column: row[column]}
            if not form.wide:
                yield row


def _strict_runs(text: str, where: str, how: Dialect, *, shape: tuple[int, int]) -> Runs:
    """Return the runs of a row, the only ones that encode their mask.

    Raises:
        InputError: They leave the image, are not sorted, overlap or touch.
    """
    runs = how.read(text, where=where)
    check_runs(runs, shape=shape, where=where)
    ordered = runs[np.argsort(runs[:, 0])]
    joined = np.count_nonzero(ordered[1:, 0] == ordered[:-1].sum(axis=1))
    if joined or not np.array_equal(ordered, runs):
        raise InputError(
            f"{where}: the runs are not sorted or two of them touch; expected {len(runs) - joined} runs in order"
        )
    return runs


def _painted(
    each: _Rows, shape: tuple[int, int], classes: Sequence[str], *, order: Order, where: str
) -> Mask:
    """Return the mask of an image's rows: the numbers of their classes from 1, or 1 where they have none.

    Raises:
        InputError: A pixel is in two rows.
    """
    mask = np.zeros(shape, np.uint8, order=order)
    for at, runs in enumerate(each):
        twice = paint_runs(mask.reshape(-1, order=order), runs, at + 1 if classes else 1)
        if twice and classes:
            raise InputError(f"{where}: pixels of {classes[at]!r} are in another class too; expected in one")
        if twice:
            raise InputError(f"{where}: {twice} pixels are in two rows; expected in one")
    return mask


def _check_ids(ids: list[str], form: SubmissionFormat, path: Path) -> None:
    expected = [form.spelled.get(name, name) for name in form.ids]
    if len(set(ids)) != len(ids):
        twice = next(name for at, name in enumerate(ids) if name in ids[:at])
        raise InputError(f"{path}: the id {twice!r} appears twice; expected each id once")
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
