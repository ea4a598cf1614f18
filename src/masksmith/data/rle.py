"""Run-length encoding of masks, in the dialects of the competitions.

All dialects here read the mask column by column (top to bottom, then left to right):

``tgs``   "start length start length …", starts are 1-based and absolute; an empty mask is the empty text.
          https://www.kaggle.com/c/tgs-salt-identification-challenge/overview/evaluation
``siim``  "gap length gap length …", each gap counts from the end of the run before (from pixel 0 at
          first); an empty mask is "-1". https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation/data

Inside the house a mask's runs are an int array of shape (n, 2): 0-based start and length.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from masksmith.arrays import Int, Mask
from masksmith.config import look_up
from masksmith.errors import InputError

_WHOLE = re.compile(r"-?[0-9]+")
_MAX_DIGITS = 12  # 10^12 pixels are more than any image has; sums of such numbers stay exact

Runs = Int[np.ndarray, "n 2"]


def mask_to_runs(mask: Mask) -> Runs:
    """Return the runs of the non-zero pixels in column-major order; (0, 2) for an empty mask."""
    flat = np.ravel(mask != 0, order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    return np.stack([starts, ends - starts], axis=1)


def runs_to_mask(runs: Runs, *, shape: tuple[int, int], where: str) -> Mask:
    """Paint runs into a mask of 0 and 1.

    Args:
        runs: 0-based starts and lengths in column-major order, in any order of rows.
        shape: (height, width) in pixels.
        where: What to call the place in an error ("train.csv, id 'a'").

    Raises:
        InputError: A run is empty, lies outside the image, or overlaps another.
    """
    height, width = shape
    for start, length in runs:
        if length < 1:
            raise InputError(f"{where}: a run of length {length} at pixel {start + 1}; expected 1 or more")
        if start < 0 or start + length > height * width:
            raise InputError(
                f"{where}: the run at pixel {start + 1} with length {length} leaves the image of {height}x{width} "
                f"({height * width} pixels); is the shape right?"
            )
    ordered = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = ordered[:, 0] + ordered[:, 1]
    clash = np.flatnonzero(ordered[1:, 0] < ends[:-1])
    if len(clash):
        first, second = ordered[clash[0]], ordered[clash[0] + 1]
        raise InputError(
            f"{where}: the run at pixel {second[0] + 1} overlaps the run {first[0] + 1}..{first[0] + first[1]}; "
            "expected runs that do not overlap"
        )
    flat = np.zeros(height * width, np.uint8)
    for start, length in ordered:
        flat[start : start + length] = 1
    return flat.reshape((height, width), order="F")


def _numbers(text: str, *, where: str) -> Runs:
    parts = text.split()
    for part in parts:
        if not _WHOLE.fullmatch(part):
            raise InputError(
                f"{where}: {part!r} is not a whole number; expected 'start length start length …'"
            )
        if len(part.lstrip("-")) > _MAX_DIGITS:
            raise InputError(
                f"{where}: the number {part[:20]}… has {len(part)} digits; no image has that many pixels"
            )
    values = np.array([int(part) for part in parts], np.int64)
    if len(values) % 2:
        raise InputError(
            f"{where}: {len(values)} run values, an odd number; expected pairs of start and length"
        )
    return values.reshape(-1, 2)


def _read_tgs(text: str, *, where: str) -> Runs:
    return _numbers(text, where=where) - np.array([1, 0])


def _write_tgs(runs: Runs) -> str:
    return " ".join(map(str, (runs + np.array([1, 0])).ravel().tolist()))


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
    return " ".join(map(str, np.stack([gaps, runs[:, 1]], axis=1).ravel().tolist()))


@dataclass(frozen=True)
class Dialect:
    """How one competition writes runs as text."""

    read: Callable[..., Runs]
    write: Callable[[Runs], str]


DIALECTS: dict[str, Dialect] = {
    "tgs": Dialect(_read_tgs, _write_tgs),
    "siim": Dialect(_read_siim, _write_siim),
}


def encode(mask: Mask, *, dialect: str = "tgs") -> str:
    """Return the run-length text of a mask (any non-zero pixel is foreground)."""
    return look_up(DIALECTS, dialect, where="dialect").write(mask_to_runs(mask))


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
    runs = look_up(DIALECTS, dialect, where="dialect").read(text, where=where)
    return runs_to_mask(runs, shape=shape, where=where)
