"""Decoding of image and mask files: what is damaged is refused, no bit depth is guessed."""

import zlib
from collections.abc import Iterable
from pathlib import PurePosixPath

import cv2
import numpy as np

from masksmith.arrays import IGNORE, Image, Mask, Shaped
from masksmith.data.bands import decode_bands
from masksmith.data.headers import PNG, SIGNATURES, TIFF, need_sane_size
from masksmith.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LOSSY_SUFFIXES = (".jpg", ".jpeg")


def _damage(raw: bytes) -> str | None:
    """Return what is wrong with an image file, or None. OpenCV decodes half a PNG without a word."""
    if not raw:
        return "is empty"
    if not raw.startswith(SIGNATURES):
        return f"is not an image (it begins with {raw[:12]!r})"
    if raw.startswith(PNG):
        return _png_damage(raw)
    if raw.startswith(b"\xff\xd8") and b"\xff\xd9" not in raw[-64:]:
        return f"is cut off after {len(raw)} bytes"
    return None


def _png_damage(raw: bytes) -> str | None:
    at = len(PNG)
    while at + 12 <= len(raw):
        length = int.from_bytes(raw[at : at + 4])
        kind = raw[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(raw):
            break
        if zlib.crc32(raw[at + 4 : end]) != int.from_bytes(raw[end : end + 4]):
            return f"has a damaged {kind.decode('latin1')} block at byte {at} (wrong checksum)"
        if kind == b"IEND":
            return None
        at = end + 4
    return f"is cut off after {len(raw)} bytes"


def decode_image(raw: bytes, *, where: str) -> Image:
    """Decode a file into (h, w, c).

    A picture is uint8 or uint16, c is 1 or 3 in RGB order, and an alpha channel is dropped. Any other TIFF has as many
    bands as it has, in the order and the type of the file (see decode_bands).

    Raises:
        InputError: The bytes are empty, no image, cut off or damaged, or claim more pixels than are read (before
            memory for them is asked for); ``where`` names the file.
    """
    if (damage := _damage(raw)) is not None:
        raise InputError(f"{where}: the file {damage}; replace it or take it out")
    size = need_sane_size(raw, where=where)
    if raw.startswith(TIFF) and (bands := decode_bands(raw, where=where)) is not None:
        return bands
    return _decode_picture(raw, size, where=where)


def _decode_picture(raw: bytes, size: tuple[int, int], *, where: str) -> Image:
    try:
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # OpenCV has limits of its own, for example 2**20 pixels a side
        raise InputError(f"{where}: {size[0]}x{size[1]} pixels, refused by OpenCV ({error.err})") from error
    if image is None:
        raise InputError(f"{where}: the file cannot be decoded as an image; replace it or take it out")
    if sorted(image.shape[:2]) != sorted(size):  # a TIFF may say that it is to be turned
        raise InputError(
            f"{where}: the header claims {size[0]}x{size[1]}, the pixels are {image.shape[0]}x{image.shape[1]}; "
            "replace the file or take it out"
        )
    if image.ndim == 2:
        return image[..., None]
    if image.shape[2] == 2:
        return image[..., :1]
    return np.ascontiguousarray(image[..., 2::-1])


def is_grey(image: Image) -> bool:
    """Whether all channels are equal."""
    return bool((image == image[..., :1]).all())


def mask_levels(mask: Shaped[np.ndarray, "h w c"], *, where: str) -> Shaped[np.ndarray, "h w"]:
    """Return a decoded mask file as one channel, with the largest 16-bit value brought to 255.

    Raises:
        InputError: The channels differ (a colour-coded mask), or the values are no whole numbers.
    """
    if mask.dtype.kind == "f":
        raise InputError(f"{where}: a mask of {mask.dtype}; expected whole numbers, convert it to 8 bits")
    if not is_grey(mask):
        raise InputError(f"{where}: a mask in colours; expected one channel with two values")
    levels = mask[..., 0]
    if levels.dtype == np.uint16:
        levels = np.where(levels == 65535, 255, levels)
    return levels


def mask_table(values: Iterable[int], *, lossy: bool, where: str) -> dict[int, int]:
    """Decide, from the values of *all* masks of a set, what each means.

    Args:
        values: Every value that occurs (after mask_levels).
        lossy: The masks are JPEG, so values near 0 and near 255 occur.
        where: What to call the masks in an error.

    Returns:
        A map from value to 0 (background), 1 (foreground) or IGNORE; -1 always means IGNORE.

    Raises:
        InputError: No foreground at all, or more than two values that are not 0, 1 and 255.
    """
    found = sorted({int(value) for value in values})
    if lossy:
        return {value: int(value >= 128) for value in found}
    unjudged = {-1: IGNORE} if -1 in found else {}
    found = [value for value in found if value != -1]
    if found in ([], [0]):
        raise InputError(f"{where}: every mask is empty; there is nothing to learn")
    if len(found) <= 2:
        return unjudged | {value: int(value == found[-1]) for value in found}
    if found == [0, 1, IGNORE]:
        return unjudged | {0: 0, 1: 1, IGNORE: IGNORE}
    shown = ", ".join(map(str, found[:8])) + (", …" if len(found) > 8 else "")
    raise InputError(
        f"{where}: {len(found)} different values ({shown}); expected two (background and foreground), "
        "or 0, 1 and 255 (not judged); -1 is not judged either"
    )


def apply_table(levels: Shaped[np.ndarray, "h w"], table: dict[int, int]) -> Mask:
    """Map a mask's values by a table from mask_table."""
    lowest = min(0, *table)
    lut = np.zeros(max(table) - lowest + 1, np.uint8)
    for value, meaning in table.items():
        lut[value - lowest] = meaning
    return lut[levels.astype(np.int32) - lowest] if lowest else lut[levels]


def is_lossy(path: str) -> bool:
    """Whether a mask file's format changes values (JPEG)."""
    return PurePosixPath(path).suffix.lower() in LOSSY_SUFFIXES
