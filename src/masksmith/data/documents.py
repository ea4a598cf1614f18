"""JSON and XML files that others wrote: read or refused, with the place where they break."""

import base64
import binascii
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from xml.etree import ElementTree

from masksmith.core.errors import InputError
from masksmith.data.decode.headers import MAX_PIXELS

MAX_COORDINATE = 1e7
"""Largest number of a coordinate, in pixels: no image is as wide."""


def parse_json(raw: bytes, *, where: str) -> Any:  # noqa: ANN401
    """Parse a JSON file in UTF-8, -16 or -32.

    Raises:
        InputError: It is none, with line and column.
    """
    try:
        return json.loads(raw)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: no valid text (byte {error.start}); save it in UTF-8") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: no valid JSON in line {error.lineno}, column {error.colno} ({error.msg}); the file is damaged "
            "or cut off, export it again"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{where}: JSON that cannot be read ({error}); export it again") from error


def parse_xml(raw: bytes, *, where: str) -> ElementTree.Element:
    """Parse an XML file in UTF-8 without entities of its own (https://en.wikipedia.org/wiki/Billion_laughs_attack).

    Raises:
        InputError: It is none, with line and column, or it declares a document type or entities.
    """
    for sign in (b"<!DOCTYPE", b"<!ENTITY", b"\0"):
        if sign in raw:
            what = f"{sign.decode()} in it" if sign.strip(b"\0") else "XML that is not in UTF-8"
            raise InputError(
                f"{where}: {what}; expected plain XML as annotation tools write it, do not trust this file"
            )
    try:
        return ElementTree.fromstring(raw)
    except ElementTree.ParseError as error:
        raise InputError(f"{where}: no valid XML ({error}); the file is damaged, export it again") from error
    except (ValueError, LookupError) as error:  # an encoding that there is not
        raise InputError(f"{where}: XML that cannot be read ({error}); save it in UTF-8") from error


def holds(raw: bytes, *keys: str) -> bool:
    """Whether the bytes of a JSON or XML file can hold all of these texts: a quick look before it is parsed."""
    if b"\0" in raw[:4] or raw[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16 or UTF-32
        raw = raw.replace(b"\0", b"")
    return all(key.encode() in raw for key in keys)


def records(value: object) -> list[dict[str, Any]] | None:
    """Return a list of JSON objects, or None where it is anything else."""
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return value
    return None


def as_number(value: object) -> float | None:
    """Return a finite number of a possible size, or None where it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -MAX_COORDINATE <= value <= MAX_COORDINATE else None  # NaN is neither


def as_size(height: object, width: object) -> list[int] | None:
    """Return [height, width] in pixels, or None where the file does not say it."""
    found = [as_number(height), as_number(width)]
    sizes = [round(one) for one in found if one is not None and one >= 1]
    return sizes if len(sizes) == 2 and math.prod(sizes) <= MAX_PIXELS else None


def as_key(value: object) -> str | None:
    """Return an id as text, the same for 3, 3.0 and "3", or None where it is no id."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return str(value) if abs(value) < 10**100 else None


def as_ring(points: object) -> list[float]:
    """Return the outline of points, [[x, y], …] or [x, y, x, y, …], as a flat list.

    Raises:
        ValueError: It is none; the text says why.
    """
    if not isinstance(points, list):
        raise ValueError("no list of points")
    if points and all(isinstance(one, list) for one in points):
        if any(len(one) != 2 for one in points):
            raise ValueError("a point that is no pair of x and y")
        points = [one for point in points for one in point]
    if len(points) % 2:
        raise ValueError(f"{len(points)} coordinates, an odd number")
    with suppress(OverflowError):  # a whole number of hundreds of digits
        if set(map(type, points)) <= {int, float} and sum(map(abs, points)) <= MAX_COORDINATE:
            return [*map(float, points)]  # the usual outline, looked at at once
    ring = [as_number(one) for one in points]
    if None in ring:
        bad = points[ring.index(None)]
        raise ValueError(f"the coordinate {bad!r:.40}, which is no number of a pixel")
    return [one for one in ring if one is not None]


def unpack_base64(text: object) -> bytes:
    """Return the bytes of a text in base64.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(text, str):
        raise ValueError("no text of base64")
    try:
        return base64.b64decode(text.encode("ascii"))
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(f"a text that is no base64 ({error})") from error


def as_counts(counts: object, pixels: int | None = None) -> list[int]:
    """Return the lengths of runs, which are of so many pixels.

    Raises:
        ValueError: They are not; the text says why.
    """
    if not isinstance(counts, Sequence) or isinstance(counts, str | bytes):
        raise ValueError("no list of run-lengths")
    found = [as_number(one) for one in counts]
    if any(one is None or one < 0 or not one.is_integer() for one in found):
        raise ValueError("run-lengths that are no whole numbers from 0 on")
    total = sum(int(one) for one in found if one is not None)
    if total > MAX_PIXELS or (pixels is not None and total != pixels):
        raise ValueError(f"run-lengths of {total} pixels, not of {MAX_PIXELS if pixels is None else pixels}")
    return [int(one) for one in found if one is not None]
