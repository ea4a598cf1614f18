"""Files with a palette, read and written as numbers: in a mask these are the classes, the colours are paint.

OpenCV decodes such a file to colours. The pixels of a PNG are the same bytes as those of a grey PNG of as many bits,
so the header is changed to say so, and the blocks about colours are left out. Those of a TIFF are read by tifffile.
Source: https://www.w3.org/TR/png/, 11.2.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping

import cv2
import numpy as np

from masksmith.core.arrays import Mask
from masksmith.data.decode.headers import PNG
from masksmith.data.decode.pictures import decode_image
from masksmith.data.decode.tiff import decode_tiff_indices, tiff_palette

_GREY, _PALETTE = 0, 3  # colour types
_KEPT = {b"IDAT", b"IEND"}
_IHDR = slice(len(PNG), len(PNG) + 25)  # length, name, 13 bytes, checksum


def has_palette(raw: bytes) -> bool:
    """Whether a file is a PNG or a TIFF with a palette."""
    return _is_png(raw) or bool(tiff_palette(raw))


def _is_png(raw: bytes) -> bool:
    return raw.startswith(PNG) and raw[12:16] == b"IHDR" and raw[25:26] == bytes([_PALETTE])


def read_palette(raw: bytes) -> tuple[tuple[int, int, int], ...]:
    """Return the colours of a PNG or TIFF with a palette in which they mean nothing but numbers; empty for others.

    A palette of greys is none: there a pixel is as bright as its colour, whatever its number.
    """
    if colours_of_tiff := tiff_palette(raw):
        return () if all(len(set(colour)) == 1 for colour in colours_of_tiff) else colours_of_tiff
    at = len(PNG)
    while _is_png(raw) and at + 8 <= len(raw) and raw[at + 4 : at + 8] != b"IDAT":
        end = at + 12 + int.from_bytes(raw[at : at + 4])
        if raw[at + 4 : at + 8] == b"PLTE":
            colours = np.frombuffer(raw[at + 8 : end - 4], np.uint8)
            found = colours[: len(colours) // 3 * 3].reshape(-1, 3)
            return (
                ()
                if (found == found[:, :1]).all()
                else tuple((red, green, blue) for red, green, blue in found.tolist())
            )
        at = end
    return ()


def encode_indices(numbers: Mask, palette: Mapping[int, tuple[int, int, int]]) -> bytes:
    """Return a PNG (8 bits) of the numbers (h, w) with a colour for each; without a colour they are black."""
    done, grey = cv2.imencode(".png", numbers)
    assert done
    raw = grey.tobytes()
    header = raw[_IHDR]
    colours = np.zeros((256, 3), np.uint8)
    colours[list(palette)] = list(palette.values())
    start = _block(b"IHDR", header[8:17] + bytes([_PALETTE]) + header[18:21])
    return PNG + start + _block(b"PLTE", colours.tobytes()) + b"".join(_pixels(raw))


def decode_indices(raw: bytes, *, where: str) -> Mask:
    """Return the numbers (h, w) of a file with a palette (see has_palette), 0 to 255.

    Raises:
        InputError: The file is damaged or claims too many pixels; ``where`` names it.
    """
    if not _is_png(raw):
        return decode_tiff_indices(raw, where=where)
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
