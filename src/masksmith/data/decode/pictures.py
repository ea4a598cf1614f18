"""Decoding of image files: what is damaged is refused, no bit depth is guessed.

OpenCV decodes; Pillow where OpenCV reads wrongly or not at all: GIF, and JPEG in CMYK.
"""

import contextlib
import io
import tempfile
import zlib

import cv2
import numpy as np

from masksmith.core.arrays import Image, Shaped
from masksmith.core.errors import InputError
from masksmith.data.decode.dicom import SUFFIXES as DICOM_SUFFIXES
from masksmith.data.decode.headers import GIF, JPEG, PNG, SIGNATURES, TIFF, jpeg_bands, need_sane_size
from masksmith.data.decode.muttering import listen
from masksmith.data.decode.orientation import as_stored, read_orientation, set_upright
from masksmith.data.decode.silence import silence
from masksmith.data.decode.tiff import decode_bands

IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".webp",
    ".ppm",
    ".pgm",
    ".pbm",
    *DICOM_SUFFIXES,
)
_ROWS = 1024  # looked at at once
_LARGE = 2**26  # pixels
_HARMLESS = "extraneous bytes"  # libjpeg skips them; whatever else it says, pixels are missing or made up


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
        if zlib.crc32(memoryview(raw)[at + 4 : end]) != int.from_bytes(raw[end : end + 4]):
            return f"has a damaged {kind.decode('latin1')} block at byte {at} (wrong checksum)"
        if kind == b"IEND":
            return None
        at = end + 4
    return f"is cut off after {len(raw)} bytes"


def decode_image(raw: bytes, *, where: str, upright: bool = True, keep_alpha: bool = False) -> Image:
    """Decode a file into (h, w, c).

    A picture is uint8 or uint16, c is 1 or 3 in RGB order, and an alpha channel is dropped. Any other TIFF has as many
    bands as it has, in the order and the type of the file (see decode_bands).

    Args:
        raw: The file.
        where: Its name, for messages.
        upright: Whether a picture is turned as its EXIF orientation says; else its pixels are as the file stores them.
        keep_alpha: Whether the alpha of a picture is kept as the last of 2 or 4 channels.

    Raises:
        InputError: The bytes are empty, no image, cut off or damaged, or claim more pixels than are read (before
            memory for them is asked for); it is an animation.
    """
    if (damage := _damage(raw)) is not None:
        raise InputError(f"{where}: the file {damage}; replace it or take it out")
    size = need_sane_size(raw, where=where)
    if raw.startswith(TIFF) and (bands := decode_bands(raw, where=where, keep_alpha=keep_alpha)) is not None:
        return bands
    by_pillow = raw.startswith(GIF) or (raw.startswith(JPEG) and jpeg_bands(raw) == 4)
    decode = _decode_by_pillow if by_pillow else _decode_picture
    image = decode(raw, size, where=where)
    if not keep_alpha:
        image = image[..., : 1 if image.shape[2] < 3 else 3]
    if (orientation := read_orientation(raw)) != 1 and upright != raw.startswith(
        TIFF
    ):  # OpenCV turns TIFF alone
        image = set_upright(image, orientation) if upright else as_stored(image, orientation)
    return np.ascontiguousarray(image)


def _decode_picture(raw: bytes, size: tuple[int, int], *, where: str) -> Image:
    """Decode a picture as it is stored, 1 to 4 channels; a TIFF is turned."""
    try:
        image, muttered = listen(lambda: _pixels(raw, size))
    except cv2.error as error:  # OpenCV has limits of its own, for example 2**20 pixels a side
        raise InputError(f"{where}: {size[0]}x{size[1]} pixels, refused by OpenCV ({error.err})") from error
    if image is None:
        raise InputError(f"{where}: the file cannot be decoded as an image; replace it or take it out")
    if raw.startswith(JPEG) and (said := [line for line in muttered if _HARMLESS not in line]):
        raise InputError(f"{where}: the file is damaged ({said[0]}); replace it or take it out")
    if sorted(image.shape[:2]) != sorted(size):  # a TIFF may be stored turned
        raise InputError(
            f"{where}: the header claims {size[0]}x{size[1]}, the pixels are {image.shape[0]}x{image.shape[1]}; "
            "replace the file or take it out"
        )
    if image.ndim == 2:
        return image[..., None]
    if image.shape[2] < 3:
        return image
    for first in range(0, len(image), _ROWS):  # in place: a large picture is in memory once
        rows = image[first : first + _ROWS]
        rows[..., :3] = rows[..., 2::-1].copy()
    return image


def _pixels(raw: bytes, size: tuple[int, int]) -> Shaped[np.ndarray, "h w *c"] | None:
    """Return what OpenCV makes of a file's bytes, None where it makes nothing of them.

    ``imdecode`` holds a picture twice, ``imread`` into an array of NumPy once: so a large PNG in 8-bit colours, whose
    blocks have been checked, is read from a temporary file.
    """
    colours = raw.startswith(PNG) and raw[24:26] == b"\x08\x02"
    if size[0] * size[1] >= _LARGE and colours:
        with tempfile.NamedTemporaryFile(prefix="masksmith-") as file, contextlib.suppress(cv2.error):
            file.write(raw)
            file.flush()
            return cv2.imread(file.name, np.empty((*size, 3), np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.imdecode(
        np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED
    )  # also where a colour is transparent


def _decode_by_pillow(raw: bytes, size: tuple[int, int], *, where: str) -> Image:
    """Decode a GIF of one picture, or a JPEG in CMYK; transparent pixels of a GIF have an alpha of 0."""
    from PIL import Image as Pillow

    try:
        with silence(), Pillow.open(io.BytesIO(raw), formats=("GIF", "JPEG")) as picture:
            clear = "transparency" in picture.info
            image = np.asarray(picture.convert("RGBA" if clear else "RGB"))
            if getattr(picture, "is_animated", False):
                raise InputError(f"{where}: an animation; expected one, save each as a file")
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file makes of the library
        raise InputError(
            f"{where}: the file cannot be decoded ({error}); replace it or take it out"
        ) from error
    if image.shape[:2] != size:
        raise InputError(
            f"{where}: the header claims {size[0]}x{size[1]}, the pixels are {image.shape[0]}x{image.shape[1]}; "
            "replace the file or take it out"
        )
    return image


def is_grey(image: Image) -> bool:
    """Whether all channels are equal."""
    parts = (image[first : first + _ROWS] for first in range(0, len(image), _ROWS))
    return all(bool((part == part[..., :1]).all()) for part in parts)
