"""Run-length encoding of masks, in the dialects of the competitions.

``tgs``        "start length start length …", starts are 1-based and absolute; one row an image, an empty mask is the
               empty text. https://www.kaggle.com/c/tgs-salt-identification-challenge/overview/evaluation
``siim``       "gap length gap length …", each gap counts from the end of the run before (from pixel 0 at first); an
               empty mask is "-1". https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation/data
``airbus``     As tgs with one row an object; an image without objects has one row with an empty text.
``dsb``        The same. https://www.kaggle.com/c/airbus-ship-detection, https://www.kaggle.com/c/data-science-bowl-2018
``severstal``  As tgs with one row an image and class. https://www.kaggle.com/c/severstal-steel-defect-detection

All of them read the mask column by column (top to bottom, then left to right). Each has a twin that reads it row by
row: ``tgs_row_major`` and so on. Those with absolute starts have twins that count from 0: ``tgs_zero_based``,
``tgs_zero_based_row_major``.

In this package a mask's runs are an int array of shape (n, 2): 0-based start and length.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from masksmith.core.arrays import Int, Labels, Mask, UInt8, row_bands
from masksmith.core.config import look_up
from masksmith.core.errors import InputError

_WHOLE = re.compile(r"-?[0-9]+")
_AT_ONCE = 2**18
_PLAIN = re.compile(r"\s*(-?\d{1,12}(\s+-?\d{1,12})*\s*)?", re.ASCII)
_PART = re.compile(r"\S+")
_MAX_DIGITS = 12  # 10^12 pixels are more than any image has; sums of such numbers stay exact

Runs = Int[np.ndarray, "n 2"]
Order = Literal["F", "C"]
"""In which order pixels are counted: column by column, or row by row (numpy's names)."""
NO_RUNS = ("", "-1", "nan", "none", "null", "na", "<na>")
"""How tables write an empty mask, in lower case: whichever a dialect writes, all are read in a table of masks."""


def is_empty(text: str) -> bool:
    """Whether a cell of run-lengths says that there are none."""
    return text.strip().lower() in NO_RUNS


def mask_to_runs(mask: Mask, *, order: Order = "F") -> Runs:
    """Return the runs of the non-zero pixels, in column-major ("F") or row-major ("C") order; (0, 2) where empty."""
    if not mask.size:
        return np.empty((0, 2), np.int64)
    edges: list[Int[np.ndarray, " edges"]] = []
    before, at = 0, 0
    for rows in row_bands(mask.shape if order == "C" else mask.shape[::-1]):
        # OpenCV turns an image in blocks; numpy's copy of a transposed view takes three times as long
        part = (
            mask[rows] if order == "C" else cv2.transpose(np.ascontiguousarray(mask[:, rows] != 0, np.uint8))
        ) != 0
        flat = np.empty(part.size + 1, bool)
        flat[0], flat[1:] = before, part.ravel()
        edges.append(np.flatnonzero(flat[1:] != flat[:-1]) + at)
        before, at = flat[-1], at + part.size
    if before:
        edges.append(np.array([at]))
    runs = np.concatenate(edges or [np.empty(0, np.int64)]).astype(np.int64, copy=False).reshape(-1, 2)
    runs[:, 1] -= runs[:, 0]
    return runs


def object_runs(mask: Mask, *, order: Order = "F") -> list[Runs]:
    """Return the runs of each 8-connected component of the non-zero pixels, sorted by their first pixels."""
    _, labels = cv2.connectedComponents((mask != 0).astype(np.uint8), connectivity=8)
    return label_runs(labels, order=order)


def label_runs(labels: Labels, *, order: Order = "F") -> list[Runs]:
    """Return the runs of each number above 0 of a label map, sorted by their first pixels."""
    flat = labels.ravel(order=order)
    starts = np.flatnonzero(np.diff(flat, prepend=0))
    runs = np.stack([starts, np.diff(starts, append=flat.size)], axis=1)
    runs, numbers = runs[flat[starts] > 0], flat[starts][flat[starts] > 0]
    grouped = np.argsort(numbers, kind="stable")  # the runs of an object together, each in its place
    ends = np.flatnonzero(np.diff(numbers[grouped])) + 1
    objects = np.split(runs[grouped], ends) if len(runs) else []
    return sorted(objects, key=lambda one: int(one[0, 0]))


def check_runs(runs: Runs, *, shape: tuple[int, int], where: str) -> None:
    """Refuse runs that cannot be painted.

    Args:
        runs: 0-based starts and lengths, in any order of rows.
        shape: (height, width) in pixels.
        where: What to call the place in an error ("train.csv, id 'a'").

    Raises:
        InputError: A run is empty, lies outside the image, or overlaps another.
    """
    height, width = shape
    starts, lengths = runs[:, 0], runs[:, 1]
    outside = (starts < 0) | (starts + lengths > height * width)
    for start, length in runs[(lengths < 1) | outside]:
        if length < 1:
            raise InputError(f"{where}: a run of length {length} at pixel {start + 1}; expected 1 or more")
        raise InputError(
            f"{where}: the run at pixel {start + 1} with length {length} leaves the image of {height}x{width} "
            f"({height * width} pixels); is the shape right?"
        )
    ordered = runs[np.argsort(starts, kind="stable")]
    ends = ordered[:, 0] + ordered[:, 1]
    clash = np.flatnonzero(ordered[1:, 0] < ends[:-1])
    if len(clash):
        first, second = ordered[clash[0]], ordered[clash[0] + 1]
        raise InputError(
            f"{where}: the run at pixel {second[0] + 1} overlaps the run {first[0] + 1}..{first[0] + first[1]}; "
            "expected runs that do not overlap"
        )


def runs_to_mask(runs: Runs, *, shape: tuple[int, int], where: str, order: Order = "F") -> Mask:
    """Paint runs into a mask of 0 and 1; the arguments and errors are those of check_runs."""
    check_runs(runs, shape=shape, where=where)
    flat = np.zeros(shape[0] * shape[1], np.uint8)
    _paint(flat, runs)
    return flat.reshape(shape, order=order)


def _paint(flat: UInt8[np.ndarray, " pixels"], runs: Runs) -> None:
    """Set the pixels of checked runs to 1."""
    for first in range(0, len(runs), _AT_ONCE):  # a list takes 140 bytes a run
        starts, lengths = runs[first : first + _AT_ONCE].T.tolist()
        for start, length in zip(starts, lengths, strict=True):
            flat[start : start + length] = 1


def paint_runs(flat: UInt8[np.ndarray, " pixels"], runs: Runs, number: int = 1) -> int:
    """Set the pixels of runs to a number, and return how many of them were not 0 before; see check_runs."""
    before = 0
    starts, lengths = runs.T
    for start, length in zip(starts.data, lengths.data, strict=True):  # a list takes 140 bytes a run
        run = flat[start : start + length]
        before += int(np.count_nonzero(run))
        run[:] = number
    return before


def _numbers(text: str, *, where: str) -> Runs:
    if len(text) <= _AT_ONCE and _PLAIN.fullmatch(text):
        values = np.array(list(map(int, text.split())), np.int64)
    else:
        values = np.fromiter(_whole_numbers(text, where=where), np.int64)
    if len(values) % 2:
        raise InputError(
            f"{where}: {len(values)} run values, an odd number; expected pairs of start and length"
        )
    return values.reshape(-1, 2)


def _whole_numbers(text: str, *, where: str) -> Iterator[int]:
    """Yield the numbers of a text, which may be many."""
    for found in _PART.finditer(text):
        part = found.group()
        if not _WHOLE.fullmatch(part):
            raise InputError(
                f"{where}: {part!r} is not a whole number; expected 'start length start length …'"
            )
        if len(part.lstrip("-")) > _MAX_DIGITS:
            raise InputError(
                f"{where}: the number {part[:20]}… has {len(part)} digits; no image has that many pixels"
            )
        yield int(part)


def _text(pairs: Runs) -> str:
    return str(pairs.ravel().tolist())[1:-1].replace(
        ",", ""
    )  # a list is written faster than its numbers one by one


def _read_tgs(text: str, *, where: str) -> Runs:
    return _numbers(text, where=where) - np.array([1, 0])


def _write_tgs(runs: Runs) -> str:
    return _text(runs + np.array([1, 0]))


def _read_zero_based(text: str, *, where: str) -> Runs:
    return _numbers(text, where=where)


def _write_zero_based(runs: Runs) -> str:
    return _text(runs)


def _read_siim(text: str, *, where: str) -> Runs:
    if text.split() == ["-1"]:
        return np.zeros((0, 2), np.int64)
    pairs = _numbers(text, where=where)
    ends = pairs.sum(axis=1).cumsum()
    return np.stack([ends - pairs[:, 1], pairs[:, 1]], axis=1)


def _write_siim(runs: Runs) -> str:
    if not len(runs):
        return "-1"
    previous_ends = np.concatenate([[0], runs[:-1].sum(axis=1)])
    gaps = runs[:, 0] - previous_ends
    return _text(np.stack([gaps, runs[:, 1]], axis=1))


@dataclass(frozen=True)
class Dialect:
    """How one competition writes runs as text."""

    read: Callable[..., Runs]
    write: Callable[[Runs], str]
    repeats: bool = False
    """Whether an image may have several rows; the mask is their union."""
    by_object: bool = False
    """Whether each object has its own row in a submission."""
    order: Order = "F"


_COLUMN_MAJOR = {
    "tgs": Dialect(_read_tgs, _write_tgs),
    "siim": Dialect(_read_siim, _write_siim, repeats=True),
    "airbus": Dialect(_read_tgs, _write_tgs, repeats=True, by_object=True),
    "dsb": Dialect(_read_tgs, _write_tgs, repeats=True, by_object=True),
    "severstal": Dialect(_read_tgs, _write_tgs),
}
_FROM_ONE = _COLUMN_MAJOR | {
    f"{name}_row_major": replace(dialect, order="C") for name, dialect in _COLUMN_MAJOR.items()
}
DIALECTS: dict[str, Dialect] = _FROM_ONE | {
    name.replace(base, f"{base}_zero_based"): replace(dialect, read=_read_zero_based, write=_write_zero_based)
    for name, dialect in _FROM_ONE.items()
    if (base := name.partition("_")[0]) != "siim"
}


def encode(mask: Mask, *, dialect: str = "tgs") -> str:
    """Return one run-length text of a whole mask (any non-zero pixel is foreground)."""
    how = look_up(DIALECTS, dialect, where="dialect")
    return how.write(mask_to_runs(mask, order=how.order))


def encode_rows(mask: Mask, *, dialect: str) -> list[str]:
    """Return the run-length texts of a mask's rows in a submission: one, or one an object.

    A mask without objects has one row, the dialect's empty text.
    """
    how = look_up(DIALECTS, dialect, where="dialect")
    objects = object_runs(mask, order=how.order) if how.by_object else []
    return [how.write(runs) for runs in objects] or [encode(mask, dialect=dialect)]


def decode(
    text: str, *, shape: tuple[int, int], dialect: str = "tgs", where: str = "run-length text"
) -> Mask:
    """Return the mask of 0 and 1 that a run-length text describes.

    Args:
        text: Runs in the given dialect; the dialect's empty text gives an empty mask.
        shape: (height, width) in pixels.
        dialect: A key of DIALECTS.
        where: What to call the place in an error.

    Raises:
        InputError: An odd number of values, text that is no number, or runs that are empty, overlap or leave
            the image.
    """
    how = look_up(DIALECTS, dialect, where="dialect")
    return runs_to_mask(how.read(text, where=where), shape=shape, where=where, order=how.order)


def decode_rows(texts: Sequence[str], *, shape: tuple[int, int], dialect: str, where: str) -> Mask:
    """Return the union of the masks of several run-length texts; without a text it is empty. See decode."""
    how = look_up(DIALECTS, dialect, where="dialect")
    flat = np.zeros(shape[0] * shape[1], np.uint8)
    for text in texts:
        runs = how.read(text, where=where)
        check_runs(runs, shape=shape, where=where)
        _paint(flat, runs)
    return flat.reshape(shape, order=how.order)
