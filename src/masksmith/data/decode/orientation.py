"""How a photograph is stored: turned or mirrored, as its EXIF orientation tells, and the pixels set upright.

Source: Exif 2.32 (CIPA DC-008), tag 274; PNG keeps it in ``eXIf``, WebP in ``EXIF``, TIFF in its own directory.
"""

import struct

import numpy as np

from masksmith.core.arrays import Image, Shaped
from masksmith.data.decode.headers import JPEG, PNG, TIFF

UPRIGHT = 1
_ORIENTATION, _SHORT = 274, 3


def read_orientation(raw: bytes) -> int:
    """Return the orientation of an image file, 1 to 8: 1, as it should be seen; without a tag, or a damaged one, 1."""
    try:
        return _tag(_exif(raw))
    except (struct.error, IndexError):
        return UPRIGHT


def is_sideways(raw: bytes) -> bool:
    """Whether an image file's rows are columns when it is seen upright."""
    return read_orientation(raw) > 4


def set_upright(image: Image, orientation: int) -> Shaped[np.ndarray, "y x c"]:
    """Return the pixels of an image (h, w, c), stored in an orientation, as they should be seen."""
    if orientation > 4:  # rows are columns
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def as_stored(image: Image, orientation: int) -> Shaped[np.ndarray, "y x c"]:
    """Return upright pixels as the file of that orientation stores them."""
    return set_upright(image, {6: 8, 8: 6}.get(orientation, orientation))


def _exif(raw: bytes) -> bytes:
    """Return the block of EXIF, a TIFF without pixels; empty where there is none."""
    if raw.startswith(TIFF):
        return raw
    if raw.startswith(JPEG):
        return _jpeg_exif(raw)
    if raw.startswith(PNG):
        return _block(raw, len(PNG), b"eXIf", b"IDAT", ">I", name_first=False)
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return _block(raw, 12, b"EXIF", b"", "<I", name_first=True).removeprefix(b"Exif\0\0")
    return b""


def _jpeg_exif(raw: bytes) -> bytes:
    at = 2
    while raw[at] == 0xFF and raw[at + 1] != 0xDA:  # the pixels begin
        if raw[at + 1] == 0xFF:
            at += 1
            continue
        (length,) = struct.unpack_from(">H", raw, at + 2)
        if raw[at + 1] == 0xE1 and raw[at + 4 : at + 10] == b"Exif\0\0":
            return raw[at + 10 : at + 2 + length]
        at += 2 + length
    return b""


def _block(raw: bytes, at: int, name: bytes, last: bytes, number: str, *, name_first: bool) -> bytes:
    """Return the content of the first block of a name in a PNG (length, name, content, sum) or WebP (name, length)."""
    while at + 8 <= len(raw):
        found = raw[at : at + 4] if name_first else raw[at + 4 : at + 8]
        (length,) = struct.unpack_from(number, raw, at + 4 if name_first else at)
        if found == name:
            return raw[at + 8 : at + 8 + length]
        if found == last:
            break
        at += 8 + length + (length % 2 if name_first else 4)
    return b""


def _tag(exif: bytes) -> int:
    if not exif.startswith(TIFF[:2]):  # BigTIFF is read by those who know its pixels
        return UPRIGHT
    order = "<" if exif.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, at)
        if tag == _ORIENTATION and kind == _SHORT and 1 <= value <= 8:
            return int(value)
    return UPRIGHT
