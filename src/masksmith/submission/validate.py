"""Validation of a submission, as the judge would and more strictly, one image in memory at a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from masksmith.submission.formats import CLASS_COLUMN, judged_values, mask_values, object_dialect, read_mask

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
    written: tuple[str, ...] = ()
    """Folders of the masks in other forms that were asked for."""
    refused: tuple[str, ...] = ()
    """What could not be written in these."""

    def __str__(self) -> str:
        masks = f", all equal to the {self.compared} saved masks" if self.compared else ""
        files = f"; as files for the judge: {self.files}" if self.files else ""
        lines = [f"{self.path}: valid: {self.ids} ids in the right order, {self.empty} empty{masks}{files}"]
        return "\n".join([*lines, *(f"also written: {folder}" for folder in self.written), *self.refused])


class Problems:
    """What is wrong with a submission: all of it is said at once.

    Args:
        path: The file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, list[str]()

    def add(self, text: str) -> None:
        """Add a problem."""
        self.found.append(text)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Take what the block refuses as a problem, and go on behind it."""
        try:
            yield
        except InputError as error:
            self.add(str(error))

    def refuse(self) -> None:
        """Refuse the file if anything is wrong with it.

        Raises:
            InputError: With every problem, a line each.
        """
        if len(self.found) == 1:
            raise InputError(f"{self.path}: {self.found[0]}")
        if self.found:
            raise InputError(f"{self.path}: {len(self.found)} problems:\n  " + "\n  ".join(self.found))


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
        InputError: Everything that is wrong, with its line and id.
    """
    check = _validate_labels if target.task == "multilabel" else _validate_images
    problems = Problems(path)
    empty = check(path, form, shapes, problems, masks=masks, target=target)
    problems.refuse()
    return Verdict(str(path), len(form.ids), empty, len(form.ids) if masks else 0)


def validate_files(
    folder: Path,
    form: SubmissionFormat,
    shapes: Mapping[str, tuple[int, int]],
    *,
    masks: Path | None,
    target: Target,
) -> None:
    """Check the mask files that the judge takes: one an id and no other, each with the values of the saved mask.

    Args:
        folder: Of the files.
        form: What the judge expects.
        shapes: Id -> (height, width).
        masks: Folder of saved masks; None: sizes and values alone are looked at.
        target: The task and its classes.

    Raises:
        InputError: Everything that is wrong, with its file.
    """
    wanted = {f"{name}.{form.files}": name for name in form.ids}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob(f"*.{form.files}")}
    again, problems = "run `masksmith submit` again" if masks else "add it", Problems(folder)
    for file in sorted(set(wanted) - there):
        problems.add(f"{file}: missing; {again}")
    for file in sorted(there - set(wanted)):
        problems.add(f"{file}: not among the {len(wanted)} ids of {form.source}; take it out of the folder")
    for file in sorted(there & set(wanted)):
        name = wanted[file]
        raw = np.fromfile(folder / file, np.uint8)
        found = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED) if raw.size else None
        if masks is not None:
            mask = judged_values(read_mask(masks / f"{name}.png", target), target)
            if found is None or found.shape != shapes[name] or not np.array_equal(found, mask):
                problems.add(f"{file}: not the saved mask in {masks}; run `masksmith submit` again")
        elif found is None or found.shape != shapes[name]:
            got = "no image" if found is None else "x".join(map(str, found.shape))
            problems.add(f"{file}: {got}; expected a mask of {shapes[name][0]}x{shapes[name][1]}")
        elif odd := sorted(set(np.unique(found).tolist()) - _allowed(target)) if _allowed(target) else []:
            problems.add(f"{file}: values {', '.join(map(str, odd))}; expected {sorted(_allowed(target))}")
    problems.refuse()


def _allowed(target: Target) -> set[int]:
    """Return the values of the judge's mask files; none for objects, which have any number."""
    if target.task == "instances":
        return set()
    return set(mask_values(target).tolist()) if target.exclusive else {0, 1}


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


def _validate_images(
    path: Path,
    form: SubmissionFormat,
    shapes: Mapping[str, tuple[int, int]],
    problems: Problems,
    *,
    masks: Path | None,
    target: Target,
) -> int:
    """Check rows of images: one each, one an object, or one a class but the background; return how many are empty."""
    objects, labels = target.task == "instances", list(target.classes[1:]) if target.exclusive else []
    how = look_up(DIALECTS, object_dialect(form) if objects else form.dialect, where="dialect")
    names = {form.spelled.get(name, name): name for name in form.ids}
    extra = [CLASS_COLUMN] if labels else []
    lines: list[tuple[int, str]] = []
    empty = 0
    for cell, group in groupby(_rows(path, form, *extra), key=lambda numbered: numbered[1][form.id_column]):
        rows = list(group)
        several = how.by_object or bool(labels)
        lines += [(line, cell) for line, _ in (rows[:1] if several else rows)]
        name, where = names.get(cell, cell), f"line {rows[0][0]}: id {names.get(cell, cell)!r}"
        given = [row[CLASS_COLUMN] for _, row in rows] if labels else []
        if given != labels:
            expected = f"expected {', '.join(labels)}"
            problems.add(f"{where}: rows of the classes {', '.join(given)}; {expected}")
            continue
        if cell not in names:
            continue  # said below, with what was expected
        texts = [row[form.rle_column] for _, row in (rows if several else rows[:1])]
        with problems.collected():
            empty += _check_image(texts, how, shapes[name], name, masks=masks, target=target, where=where)
    _check_order(lines, list(names), form, problems, what="id")
    return empty


def _validate_labels(
    path: Path,
    form: SubmissionFormat,
    shapes: Mapping[str, tuple[int, int]],
    problems: Problems,
    *,
    masks: Path | None,
    target: Target,
) -> int:
    """Check rows of an image and a label; return how many images are empty."""
    how, found = look_up(DIALECTS, form.dialect, where="dialect"), set()
    extra = [form.class_column] if form.class_column else []
    wanted = {", ".join([row.cell, *([row.label] if extra else [])]): row for row in form.label_rows}
    lines: list[tuple[int, str]] = []
    for line, row in _rows(path, form, *extra):
        key = ", ".join([row[form.id_column], *(row[column] for column in extra)])
        lines.append((line, key))
        if (place := wanted.get(key)) is None:
            continue  # said below
        texts, shape = [row[form.rle_column]], shapes[place.id]
        where = f"line {line}: id {place.id!r}, class {place.label!r}"
        with problems.collected():
            if not _check_image(
                texts, how, shape, place.id, masks=masks, target=target, label=place.label, where=where
            ):
                found.add(place.id)
    _check_order(lines, list(wanted), form, problems, what="row")
    return len(form.ids) - len(found)


def _rows(path: Path, form: SubmissionFormat, *more: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line and row of a submission, one in memory at a time."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a submission in CSV")
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = iterate_table(file, where=str(path))
        for column in form.columns if form.wide else (form.id_column, *more, form.rle_column, *form.more):
            need_column(table, column)
        for line, row in enumerate(table.rows, start=2):
            for label, column in form.wide.items():
                yield line, row | {form.class_column: label, form.rle_column: row[column]}
            if not form.wide:
                yield line, row


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


def _check_order(
    lines: Sequence[tuple[int, str]],
    expected: Sequence[str],
    form: SubmissionFormat,
    problems: Problems,
    *,
    what: str,
) -> None:
    """Look for ids (or rows) that come twice, are missing or unknown; where there are none of these, at their order."""
    first: dict[str, int] = {}
    known, before = set(expected), len(problems.found)
    for line, key in lines:
        if first.setdefault(key, line) != line:
            problems.add(
                f"line {line}: the {what} {key!r} appears twice (first in line {first[key]}); expected once"
            )
        elif key not in known:
            problems.add(
                f"line {line}: the {what} {key!r} is not among the {len(known)} {what}s of {form.source}"
            )
    missing = [key for key in expected if key not in first]
    if missing:
        problems.add(
            f"{len(known)} {what}s expected ({form.source}), {len(first)} given; missing: "
            f"{', '.join(map(repr, missing))}"
        )
    if len(problems.found) > before:
        return
    for (line, given), wanted in zip(lines, expected, strict=True):
        if given != wanted:
            problems.add(f"line {line}: {what} {given!r}, expected {wanted!r} as in {form.source}")
