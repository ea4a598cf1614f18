"""PNG files with a palette, read as the numbers that they hold: in a mask these are the classes, the colours are paint.

OpenCV decodes such a file to colours. Its pixels are the same bytes as those of a grey PNG of as many bits, so the
header is changed to say so, and the blocks about colours are left out. Source: https://www.w3.org/TR/png/, 11.2.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from masksmith.core.arrays import Mask
from masksmith.data.decode.headers import PNG
from masksmith.data.decode.pictures import decode_image

_GREY, _PALETTE = 0, 3  # colour types
_KEPT = {b"IDAT", b"IEND"}
_IHDR = slice(len(PNG), len(PNG) + 25)  # length, name, 13 bytes, checksum


def has_palette(raw: bytes) -> bool:
    """Whether a file is a PNG with a palette."""
    return raw.startswith(PNG) and raw[12:16] == b"IHDR" and raw[25:26] == bytes([_PALETTE])


def decode_indices(raw: bytes, *, where: str) -> Mask:
    """Return the numbers (h, w) of a PNG with a palette (see has_palette), 0 to 255.

    Raises:
        InputError: The file is damaged or claims too many pixels; ``where`` names it.
    """
    header = raw[_IHDR]
    if zlib.crc32(header[4:21]) == int.from_bytes(header[21:]):  # a damaged one is refused as it is
        raw = PNG + _block(b"IHDR", header[8:17] + bytes([_GREY]) + header[18:21]) + b"".join(_pixels(raw))
    grey = decode_image(raw, where=where)[..., 0]
    step = 255 // (2 ** header[16] - 1)  # OpenCV spreads 1, 2 and 4 bits over 0 to 255
    return grey // np.uint8(step)


def _block(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _pixels(raw: bytes) -> Iterator[bytes]:
    """Yield the blocks of pixels and the end, as they are; what is cut off stays cut off."""
    at = _IHDR.stop
    while at < len(raw):
        end = at + 12 + int.from_bytes(raw[at : at + 4])
        if raw[at + 4 : at + 8] in _KEPT or end > len(raw):
            yield raw[at:end]
        at = end
