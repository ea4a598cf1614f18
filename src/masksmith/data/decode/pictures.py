"""Decoding of image files: what is damaged is refused, no bit depth is guessed."""

import zlib

import cv2
import numpy as np

from masksmith.core.arrays import Image
from masksmith.core.errors import InputError
from masksmith.data.decode.dicom import SUFFIXES as DICOM_SUFFIXES
from masksmith.data.decode.headers import PNG, SIGNATURES, TIFF, need_sane_size
from masksmith.data.decode.tiff import decode_bands

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", *DICOM_SUFFIXES)


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
    if sorted(image.shape[:2]) != sorted(size):  # a TIFF may be stored turned
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
