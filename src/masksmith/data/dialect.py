"""Which run-length dialect is a table in? It is inferred from the rows, the images' sizes and the mask files.

The name of a column says little: ``EncodedPixels`` heads absolute starts in some competitions and relative gaps in
others. Six readings are tried, and the evidence counts in this order: equality with mask files; runs that
leave the image or overlap; starts that ascend (absolute) or do not (gaps); what only hints: how empty masks are
written, and the column's name. Where two readings fit, a doubt is reported. Starts count from 1; mask files, or a
start of 0, prove that they count from 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from masksmith.core.arrays import IGNORE, Mask
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.data.findings import some
from masksmith.data.rle import DIALECTS, Runs, check_runs, decode_rows, is_empty, object_runs

MAX_IMAGES = 256
"""Most images whose rows are looked at: sizes come from headers, but of whole files."""
MAX_MASKS = 32
"""Most mask files among them that are decoded."""
_MOST_NAMED = 100
_FEW = 3
"""Rows in an unlikely order, or runs over a line's end, that are no accident."""
_ZERO = "_zero_based"
_ROWS = "_row_major"
_READINGS = (  # of equals the first
    "tgs",
    "siim",
    "tgs_row_major",
    "siim_row_major",
    f"tgs{_ZERO}",
    f"tgs{_ZERO}_row_major",
)


@dataclass(frozen=True)
class RleRows:
    """The run-length rows of one image, without the empty ones."""

    texts: list[str]
    shape: tuple[int, int]
    mask: Mask | None = None
    """0, 1 and IGNORE (not judged), from its mask file."""
    where: str = "run-length text"


@dataclass(frozen=True)
class Hints:
    """What a table says about its dialect besides the numbers in it."""

    column: str = "rle_mask"
    minus_one: bool = False
    """Whether empty masks are written as -1."""
    repeats: bool = False
    """Whether an image has several rows."""
    by_class: bool = False
    """Whether a row is of an image and class."""
    by_rows: str = ""
    """Contest of these columns and ids whose run-lengths go row by row, by its published solutions."""


@dataclass(frozen=True)
class Inferred:
    """A dialect, and what speaks for it."""

    dialect: str
    reason: str
    doubt: str = ""
    """What else fits, or is unusual; empty where nothing is."""
    equal: int = 0
    """Images whose rows give exactly their mask file."""
    either_order: bool = False
    """Whether column and row order fit equally, as in square images without mask files."""


@dataclass(frozen=True)
class _Evidence:
    """What speaks for a reading, and how often something speaks against it."""

    equal: int
    """Images whose rows give exactly their mask file."""
    unequal: int
    broken: int
    """Rows that leave the image or overlap."""
    unlikely: int
    """Rows whose starts do not ascend, or whose gaps do."""
    crossing: int
    """Runs that go on in the next column or row."""


def differing_pixels(told: Mask, drawn: Mask) -> int:
    """Return how many of the pixels that a mask file judges are others in the run-lengths."""
    return int(((told != drawn) & (drawn != IGNORE)).sum())


def non_empty(texts: Sequence[str]) -> list[str]:
    """Return the rows of an image that hold runs; a row that is repeated word for word counts once."""
    stripped = dict.fromkeys(text.strip() for text in texts)
    return [text for text in stripped if not is_empty(text)]


def group_rows(ids: Sequence[str], texts: Sequence[str]) -> dict[str, list[str]]:
    """Return id -> its texts, in the order in which the ids first come."""
    rows: dict[str, list[str]] = {}
    for name, text in zip(ids, texts, strict=True):
        rows.setdefault(name, []).append(text)
    return rows


def has_repeats(rows: Mapping[str, Sequence[str]]) -> bool:
    """Whether an image has several rows that hold different runs."""
    return any(len(non_empty(texts)) > 1 for texts in rows.values() if len(texts) > 1)


def need_rows(rows: Mapping[str, Sequence[str]], dialect: str, *, where: str) -> None:
    """Refuse ids with more rows than the dialect has, or with an empty row beside runs.

    Raises:
        InputError: There are such ids; they are named.
    """
    how = look_up(DIALECTS, dialect, where="dialect")
    twice = [name for name, texts in rows.items() if len(texts) > 1]
    if twice and not how.repeats:
        raise InputError(
            f"{where}: the id {_named(twice)} appears twice; expected one row an image (dialect {dialect})"
        )
    torn = [name for name in twice if non_empty(rows[name]) and any(map(is_empty, rows[name]))]
    if torn:
        raise InputError(
            f"{where}: the id {_named(torn)} has an empty row beside run-lengths; take one of them out"
        )


def _named(names: Sequence[str]) -> str:
    return some([repr(name) for name in names], most=_MOST_NAMED)


def infer_dialect(images: Sequence[RleRows], hints: Hints) -> Inferred:
    """Find the dialect that fits.

    Args:
        images: Rows of images with objects; at best some hundred. None at all leaves the hints.
        hints: What else the table says.
    """
    found = {reading: _evidence(images, reading) for reading in _READINGS}
    fitting, reason, doubt = _starts(found, hints, has_rows=bool(images))
    row_major, order_reason, either = _row_major(fitting, found, hints.by_rows, has_rows=bool(images))
    relative = _is_relative(fitting[0])
    base = "siim" if relative else "severstal" if hints.by_class else "airbus" if hints.repeats else "tgs"
    zero = _ZERO in fitting[0]
    dialect = f"{base}{_ZERO if zero else ''}{'_row_major' if row_major else ''}"
    if doubt:
        other = "tgs" if relative else "siim"
        doubt = f"{doubt}; read as {dialect} because {reason}; set --dialect {other} if that is wrong"
    elif row_major or zero:
        doubt = f"{_unusual(row_major, zero, order_reason)}: read as {dialect}, and the submission is written so too"
    starts = "relative gaps" if relative else f"absolute starts{' from 0' if zero else ''}"
    order = f"{'row by row' if row_major else 'column by column'} ({order_reason})"
    return Inferred(dialect, f"{starts} ({reason}), {order}", doubt, found[fitting[0]].equal, either)


def _unusual(row_major: bool, zero: bool, order_reason: str) -> str:
    said = [f"the runs go row by row ({order_reason})"] if row_major else []
    return " and ".join(said + (["starts are counted from 0, not from 1"] if zero else []))


def check_dialect(images: Sequence[RleRows], dialect: str, hints: Hints) -> Inferred:
    """Return a dialect that was asked for, if nothing speaks against it.

    Raises:
        InputError: An unknown name, or the first contradiction: rows that it cannot have, or a mask file that differs.
    """
    how = look_up(DIALECTS, dialect, where="--dialect")
    says = f"--dialect {dialect}"
    if hints.by_class and how.repeats:
        raise InputError(f"{says}: the table has a row an image and class; take severstal")
    if hints.repeats and not how.repeats:
        raise InputError(
            f"{says}: it has one row an image, and the table has images with several; take airbus or siim"
        )
    fits = infer_dialect(images, hints).dialect
    equal = 0
    for image in images:
        try:
            for text in image.texts:
                check_runs(how.read(text, where=image.where), shape=image.shape, where=image.where)
        except InputError as error:
            raise InputError(f"{says}: {error}; {_advice(fits, dialect)}") from error
        if image.mask is None:
            continue
        mask = decode_rows(image.texts, shape=image.shape, dialect=dialect, where=image.where)
        if differing := differing_pixels(mask, image.mask):
            raise InputError(
                f"{says}: {image.where}: the runs and the mask file differ in {differing} pixels; "
                f"{_advice(fits, dialect)}"
            )
        equal += 1
    return Inferred(dialect, "asked for", "", equal)


def further_doubts(images: Sequence[RleRows], found: Inferred) -> list[str]:
    """Return doubts about order and rows of objects: a score of two tables has no use for them, masks have."""
    doubts = []
    if found.either_order:
        by_rows = found.dialect.endswith(_ROWS)
        how = (
            "row by row, as in the contest's published solutions" if by_rows else "column by column, as usual"
        )
        other = found.dialect.removesuffix(_ROWS) if by_rows else f"{found.dialect}{_ROWS}"
        doubts.append(
            f"column and row order fit equally; read {how}; look at some masks, and set --dialect {other} if they are "
            "wrong"
        )
    if (
        found.dialect.startswith("tgs")
        and images
        and all(_is_one_object(one, found.dialect) for one in images)
    ):
        doubts.append(
            "each row holds one object; written as one row an image; set --dialect "
            f"{found.dialect.replace('tgs', 'airbus')} if a submission has one row an object"
        )
    return doubts


def _is_one_object(image: RleRows, dialect: str) -> bool:
    try:
        mask = decode_rows(image.texts, shape=image.shape, dialect=dialect, where=image.where)
    except InputError:
        return False  # refused where masks are made
    return len(object_runs(mask)) == 1


def _advice(fits: str, asked: str) -> str:
    return "the rows look right otherwise, correct this one" if fits == asked else f"{fits} fits better"


def _is_relative(reading: str) -> bool:
    return reading.startswith("siim")


def _evidence(images: Sequence[RleRows], reading: str) -> _Evidence:
    how = DIALECTS[reading]
    equal = unequal = broken = unlikely = crossing = 0
    for image in images:
        for text in image.texts:
            try:
                runs = how.read(text, where=image.where)
                check_runs(runs, shape=image.shape, where=image.where)
            except InputError:
                broken += 1
                continue
            unlikely += _could_be_starts(text) if _is_relative(reading) else not _ascend(runs)
            crossing += _crossing(runs, image.shape[0 if how.order == "F" else 1])
        if image.mask is not None:
            is_equal = _equals(image, reading)
            equal, unequal = equal + is_equal, unequal + (not is_equal)
    return _Evidence(equal, unequal, broken, unlikely, crossing)


def _equals(image: RleRows, reading: str) -> bool:
    try:
        mask = decode_rows(image.texts, shape=image.shape, dialect=reading, where=image.where)
    except InputError:
        return False
    return image.mask is not None and not differing_pixels(mask, image.mask)


def _crossing(runs: Runs, line: int) -> int:
    """Return how many runs go on in the next column or row; those of whole ones (a band) do not count."""
    starts, ends = runs[:, 0], runs.sum(axis=1)
    whole = (starts % line == 0) & (ends % line == 0)
    return int(((starts // line != (ends - 1) // line) & ~whole).sum())


def _ascend(runs: Runs) -> bool:
    return bool((np.diff(runs[:, 0]) > 0).all())


def _could_be_starts(text: str) -> bool:
    """Whether three gaps or more ascend like starts of runs that do not overlap: one time in six by chance, or less."""
    runs = DIALECTS["tgs"].read(text, where="")
    return len(runs) >= 3 and bool((runs[1:, 0] >= runs[:-1].sum(axis=1)).all())


def _starts(found: Mapping[str, _Evidence], hints: Hints, *, has_rows: bool) -> tuple[list[str], str, str]:
    """Return the readings that fit best, all with absolute starts or all with gaps, why these, and a doubt."""
    left, reason, doubt = list(_READINGS), "", ""
    for clue in ("unequal", "broken", "unlikely"):  # in the order in which they count
        against = {reading: getattr(found[reading], clue) for reading in left}
        best = [reading for reading in left if against[reading] == min(against.values())]
        others = [reading for reading in left if _is_relative(reading) != _is_relative(best[0])]
        if others and not set(others) & set(best):
            count = against[others[0]]
            reason = {
                "unequal": f"as in {found[best[0]].equal} mask files",
                "broken": f"otherwise {count} rows leave their image or overlap",
                "unlikely": f"the numbers of {count} rows {'do not ascend' if _is_relative(best[0]) else 'ascend'}",
            }[clue]
            if clue == "unlikely" and count - against[best[0]] < _FEW:
                doubt = "both tgs and siim fit"
        left = best
    if any(reading.startswith("tgs") and _ZERO not in reading for reading in left):
        left = [reading for reading in left if _ZERO not in reading]
    if reason:
        return left, reason, doubt
    if hints.minus_one:
        return [reading for reading in left if _is_relative(reading)], "empty masks are written as -1", ""
    relative = hints.column.lower() == "encodedpixels"
    doubt = "both tgs and siim fit" if relative or has_rows else ""
    left = [reading for reading in left if _is_relative(reading) == relative]
    return left, f"the column is called {hints.column!r}", doubt


def _row_major(
    fitting: list[str], found: Mapping[str, _Evidence], by_rows: str, *, has_rows: bool
) -> tuple[bool, str, bool]:
    """Return whether runs go row by row, why, and whether both orders fit equally, as in square images."""
    if len(fitting) == 1:
        return DIALECTS[fitting[0]].order == "C", f"as in {found[fitting[0]].equal} mask files", False
    column, row = (found[reading].crossing for reading in fitting)
    if not row and column >= _FEW:
        return True, f"otherwise {column} runs go on in the next column", False
    if row - column >= _FEW:
        return False, f"otherwise {row - column} more runs go on in the next row", False
    if by_rows:
        return True, f"as in {by_rows}; nothing tells otherwise", has_rows
    return False, "as usual; nothing tells otherwise", has_rows
