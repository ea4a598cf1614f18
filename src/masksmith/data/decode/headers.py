"""The size that an image file claims, from its header alone: what would not fit is refused before a pixel is decoded.

A file of a hundred bytes can claim a billion pixels, and a decoder allocates memory for them first. Opening the file
with Pillow is no way round this: a JPEG of 60 MiB of metadata keeps it busy for 30 seconds (this module: a
millisecond), it unpacks the compressed texts of a PNG and refuses large ones, and it knows no TIFF of many bands.

Sources:
    PNG: https://www.w3.org/TR/png/. JPEG: ITU-T T.81, annex B. BMP: BITMAPCOREHEADER and BITMAPINFOHEADER.
    TIFF: revision 6.0. GIF: 89a. WebP: RFC 9649.
    PPM, PGM, PBM: https://netpbm.sourceforge.net/doc/ppm.html.
"""

import mmap
import re
import struct
from collections.abc import Iterator

from masksmith.core.errors import InputError

MAX_PIXELS = 2**29
"""Most pixels of an image: 23170x23170. As 8-bit RGB that is 1.6 GB. Larger scenes are cut into tiles first."""
MAX_BYTES = 2**31
"""Most bytes of a decoded image: those of MAX_PIXELS with four bands of 8 bits."""

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
BMP = b"BM"
TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
"""The last two: BigTIFF, whose offsets have 64 bits."""
GIF = (b"GIF87a", b"GIF89a")
WEBP = b"RIFF"
PNM = tuple(f"P{kind}{space}".encode() for kind in range(1, 7) for space in " \t\r\n#")
"""Netpbm: bits, greys and colours as text (1 to 3) or bytes."""
SIGNATURES = (PNG, JPEG, BMP, *TIFF, *GIF, WEBP, *PNM)

# Deflate gives at most 1032 bytes for one, and a byte of a PNG holds at most 8 pixels. A Huffman-coded JPEG spends
# at least one bit on a block of 64 pixels. BMP and TIFF know packings without such a bound.
_MOST_PIXELS_A_BYTE = {PNG: 8 * 1032, JPEG: 8 * 64}

_PNM_HEADER = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})")
_JPEG_SIZES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # frame headers; the three are tables and a reserve
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257


def image_size(raw: bytes) -> tuple[int, int] | None:
    """Return (height, width) in pixels as the header has it, or None where there is no such header.

    Args:
        raw: A whole PNG, JPEG, BMP, GIF, WebP or TIFF file (of several pages the first counts).
    """
    try:
        size = _claimed(raw)
    except (struct.error, IndexError, OverflowError):
        return None  # the header is cut off
    return size if size and min(size) > 0 else None


def _claimed(raw: bytes) -> tuple[int, int] | None:
    if raw.startswith(PNG):
        width, height = struct.unpack_from(">II", raw, 16)
        return (height, width) if raw[12:16] == b"IHDR" else None
    if raw.startswith(JPEG):
        return _jpeg_size(raw)
    if raw.startswith(BMP):
        core = struct.unpack_from("<I", raw, 14)[0] == 12
        width, height = struct.unpack_from("<HH" if core else "<ii", raw, 18)
        return abs(height), width  # a negative height: rows from top to bottom
    if raw.startswith(GIF):
        width, height = struct.unpack_from("<HH", raw, 6)
        return height, width
    if raw.startswith(WEBP):
        return _webp_size(raw)
    if raw.startswith(PNM):
        return _pnm_size(raw)
    return _tiff_size(raw) if raw.startswith(TIFF) else None


def _pnm_size(raw: bytes) -> tuple[int, int] | None:
    match = _PNM_HEADER.match(raw)
    return (int(match[2]), int(match[1])) if match else None


def _webp_size(raw: bytes) -> tuple[int, int] | None:
    if raw[8:12] != b"WEBP":
        return None
    if raw[12:16] == b"VP8X":
        width, height = (int.from_bytes(raw[at : at + 3], "little") + 1 for at in (24, 27))
        return height, width
    if raw[12:16] == b"VP8L":
        bits = int.from_bytes(raw[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", raw, 26)
    return height & 0x3FFF, width & 0x3FFF


def jpeg_bands(raw: bytes) -> int | None:
    """Return the number of bands of a JPEG, None where its header is damaged: four are CMYK."""
    try:
        at = _jpeg_frame(raw)
        return None if at is None else raw[at + 9]
    except (struct.error, IndexError):
        return None


def _jpeg_size(raw: bytes) -> tuple[int, int] | None:
    at = _jpeg_frame(raw)
    if at is None:
        return None
    height, width = struct.unpack_from(">HH", raw, at + 5)
    return height, width


def _jpeg_frame(raw: bytes) -> int | None:
    """Return where the frame's header begins."""
    at = 2
    while raw[at] == 0xFF:
        kind = raw[at + 1]
        if kind == 0xFF:  # a fill byte
            at += 1
        elif kind in _JPEG_ALONE:
            at += 2
        elif kind in _JPEG_SIZES:
            return at
        else:
            at += 2 + struct.unpack_from(">H", raw, at + 2)[0]
    return None


def _byte_order(raw: bytes | mmap.mmap) -> str:
    return "<" if raw[:2] == b"II" else ">"


def _is_big(raw: bytes | mmap.mmap) -> bool:
    return raw[:4] in TIFF[2:]


def _directories(raw: bytes | mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield where the tags of each page of a TIFF begin, and how many they are; a circle of pages has no end."""
    order = _byte_order(raw)
    at, offset, number, entry = (8, "Q", "Q", 20) if _is_big(raw) else (4, "I", "H", 12)
    (start,) = struct.unpack_from(f"{order}{offset}", raw, at)
    while start:
        (count,) = struct.unpack_from(f"{order}{number}", raw, start)
        first = start + struct.calcsize(number)
        yield first, count
        (start,) = struct.unpack_from(f"{order}{offset}", raw, first + entry * count)


def _tiff_size(raw: bytes) -> tuple[int, int] | None:
    order = _byte_order(raw)
    first, count = next(_directories(raw), (0, 0))
    found: dict[int, int] = {}
    entry, value = (20, 12) if _is_big(raw) else (12, 8)
    for at in range(first, first + entry * count, entry):
        tag, kind = struct.unpack_from(f"{order}HH", raw, at)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT):
            form = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind, "I")
            (found[tag],) = struct.unpack_from(f"{order}{form}", raw, at + value)
    return (found[_TIFF_HEIGHT], found[_TIFF_WIDTH]) if len(found) == 2 else None


def check_pages(raw: bytes | mmap.mmap, *, where: str) -> None:
    """Refuse a TIFF that a reader would follow without end.

    Raises:
        InputError: The chain of pages leads back into itself, or out of the file.
    """
    seen: set[int] = set()
    try:
        for start, _ in _directories(raw):
            if start in seen:
                raise InputError(
                    f"{where}: its pages follow each other in a circle; replace the file or take it out"
                )
            seen.add(start)
    except (struct.error, OverflowError) as error:
        raise InputError(
            f"{where}: the file is cut off within its pages; replace it or take it out"
        ) from error


def check_size(size: tuple[int, int], *, where: str) -> None:
    """Refuse an image of this height and width that is too large.

    Raises:
        InputError: It has more than MAX_PIXELS.
    """
    height, width = size
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{where}: the header claims {height}x{width} = {height * width:,} pixels; at most {MAX_PIXELS:,} an "
            "image are read, cut it into tiles"
        )


def need_sane_size(raw: bytes, *, where: str) -> tuple[int, int]:
    """Return (height, width) of an image file whose decoding is safe to begin.

    Raises:
        InputError: No size in the header, more than MAX_PIXELS, or more pixels than the file's bytes can stand for.
    """
    size = image_size(raw)
    if size is None:
        raise InputError(f"{where}: the file cannot be decoded as an image; replace it or take it out")
    height, width = size
    check_size(size, where=where)
    claim = f"{where}: the header claims {height}x{width} = {height * width:,} pixels"
    if raw.startswith(PNM) and height * (width // 8 if raw[1:2] == b"4" else width) > len(raw):
        raise InputError(f"{claim}, which {len(raw):,} bytes cannot hold; the file is cut off or damaged")
    for signature, most in _MOST_PIXELS_A_BYTE.items():
        if raw.startswith(signature) and height * width > most * len(raw):
            raise InputError(f"{claim}, which {len(raw):,} bytes cannot hold; the file is damaged or forged")
    return size
