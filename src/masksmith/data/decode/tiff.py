"""TIFF files of any number of bands: satellite scenes, radar, elevation.

OpenCV reads what is a picture: 8 or 16 bits without sign, grey or in colours, with or without alpha. Everything else
goes through tifffile (https://github.com/cgohlke/tifffile, BSD): more bands, signed and floating numbers, bands that
lie plane by plane (GeoTIFF), bands that are pages, and the few forms of pictures that OpenCV reads wrongly.
"""

import io
import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from masksmith.core.arrays import Image, Mask, Shaped, UInt8
from masksmith.core.errors import InputError
from masksmith.data.decode.headers import MAX_BYTES, TIFF, check_pages, check_size
from masksmith.data.decode.silence import silence
from masksmith.data.decode.types import known_type

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

TYPES = ("uint8", "uint16", "int16", "float32")
_ALPHA = {1, 2}  # ExtraSamples: associated and unassociated
_CONTIGUOUS = 1  # PlanarConfiguration: the samples of a pixel lie side by side
_WHITE_IS_ZERO = 0
_GREY = {0, 1}  # PhotometricInterpretation: white is zero, black is zero
_SEPARATED, _PALETTE = 5, 3
_BILEVEL = "bool"
_OPENCVS = {1, 2, 3, 4, 5, 6, 7, 8, 32946, 32773}
"""Compressions that OpenCV reads: none, CCITT, LZW, JPEG, deflate, PackBits. Of some others it makes black pictures."""


def decode_bands(raw: bytes, *, where: str, keep_alpha: bool = False) -> Image | None:
    """Decode a TIFF into (h, w, bands) of a known type, or return None where it is a picture that OpenCV reads.

    The types are those of known_type. A picture that OpenCV would misread is decoded here; its alpha is dropped, or
    kept as the last band. Numbers that are not finite, and the value that the file itself declares to mean "no data"
    (GDAL's tag), are NaN in images of float32; whole numbers stay as they are.

    Raises:
        InputError: The file is damaged or of a form that is not read, its pixels are no real numbers, they would
            take more than MAX_BYTES, or its compression needs a package that is not there.
    """
    import tifffile

    check_pages(raw, where=where)  # tifffile would follow a circle of pages until memory ends
    try:
        with silence("tifffile"), tifffile.TiffFile(io.BytesIO(raw)) as file:
            pages = _band_pages(file)
            picture = len(pages) == 1 and _is_picture(pages[0])
            if picture and int(pages[0].compression) in _OPENCVS and not _opencv_misreads(pages[0]):
                return None
            _refuse_form(pages, len(raw), where=where)
            image = _stacked(pages)
            if picture:
                image = np.ascontiguousarray(
                    image[..., : _num_colours(pages[0]) + keep_alpha]
                )  # alpha comes last
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes of the library
        raise InputError(f"{where}: {_reason(error)}") from error
    if image.dtype.kind == "f":
        return _without_no_data(image, pages[0])
    if int(pages[0].photometric) == _SEPARATED and image.dtype == np.uint8 and image.shape[2] == 4:
        return _rgb_of_inks(image)
    if picture and (colours := tiff_palette(raw)):
        return np.array(colours, np.uint8)[image[..., 0]]
    if picture and int(pages[0].photometric) == _WHITE_IS_ZERO:
        image = ~image
    return np.ascontiguousarray(known_type(image, where=where))


def decode_pages(raw: bytes, where: str) -> Shaped[np.ndarray, "n h w c"]:
    """Decode the pages of a TIFF into images (n, h, w, c), without smaller copies and masks that lie in the file.

    Raises:
        InputError: As decode_bands; pages of different sizes or types.
    """
    import tifffile

    check_pages(raw, where=where)
    try:
        with silence("tifffile"), tifffile.TiffFile(io.BytesIO(raw)) as file:
            pages = _whole_pages(file)
            for page in pages:
                if (page.shape, page.dtype) != (pages[0].shape, pages[0].dtype):
                    raise InputError(
                        f"{where}: pages of different sizes or types; expected a stack of equal ones"
                    )
            _refuse_form(pages, len(raw), where=where, stack=True)
            planes = [_bands_last(page.asarray(), page.axes) for page in pages]
            colours = _num_colours(pages[0]) if _is_picture(pages[0]) else pages[0].samplesperpixel
            return np.ascontiguousarray(known_type(np.stack(planes)[..., :colours], where=where))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes of the library
        raise InputError(f"{where}: {_reason(error)}") from error


def count_pages(raw: bytes, where: str) -> int:
    """Return how many pages a TIFF has, without smaller copies and masks; 1 for a file of another kind.

    Raises:
        InputError: It is damaged.
    """
    if not raw.startswith(TIFF):
        return 1
    import tifffile

    check_pages(raw, where=where)
    try:
        with silence("tifffile"), tifffile.TiffFile(io.BytesIO(raw)) as file:
            return len(_whole_pages(file))
    except Exception as error:
        raise InputError(f"{where}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if "imagecodecs" in str(error):
        return (
            f"its compression cannot be read without the package imagecodecs ({error}); "
            'pip install "masksmith[readers]", or save the file uncompressed or with deflate'
        )
    return f"the file is damaged ({type(error).__name__}: {error}); replace it or take it out"


def _band_pages(file: "TiffFile") -> list["TiffPage"]:
    """Return the pages whose samples are the bands: the first, or all where each is one band of the same size.

    Smaller copies and masks that lie in the file are no bands.
    """
    first, whole = file.pages.first, _whole_pages(file)
    return whole if all((page.shape, page.dtype) == (first.shape, first.dtype) for page in whole) else [first]


def _whole_pages(file: "TiffFile") -> list["TiffPage"]:
    pages = [page.aspage() for page in file.pages]
    return [page for page in pages if not page.is_reduced and not page.is_mask] or pages[:1]


def _is_picture(page: "TiffPage") -> bool:
    if str(page.dtype) not in ("uint8", "uint16", _BILEVEL):
        return False
    colours = _num_colours(page)
    return colours == 1 or (int(page.photometric) not in _GREY and colours == 3)


def _num_colours(page: "TiffPage") -> int:
    return page.samplesperpixel - sum(int(one) in _ALPHA for one in page.extrasamples)


def _opencv_misreads(page: "TiffPage") -> bool:
    """Whether OpenCV 5.0 makes other values of a picture, without a word.

    It multiplies colours by their alpha; and it takes planes for pixels or 16 bits for 8 where two of these meet:
    planes, 16 bits, and grey with alpha.
    """
    planes, wide = int(page.planarconfig) != _CONTIGUOUS, str(page.dtype) == "uint16"
    has_alpha = page.samplesperpixel > _num_colours(page)
    if _num_colours(page) == 1:
        return has_alpha and (planes or wide)
    return has_alpha or (planes and wide)


def _refuse_form(pages: list["TiffPage"], num_bytes: int, *, where: str, stack: bool = False) -> None:
    first = pages[0]
    if first.dtype is None or first.dtype.kind not in "buif":
        raise InputError(f"{where}: pixels of type {first.dtype}; expected numbers, convert the file")
    if not stack and len(pages) > 1 and first.samplesperpixel > 1:
        raise InputError(
            f"{where}: {len(pages)} pages of {first.samplesperpixel} bands each; expected one page, or one band a page"
        )
    if first.axes not in ("YX", "YXS", "SYX"):
        raise InputError(f"{where}: pixels in the order {first.axes}; expected rows, columns and bands")
    if (tag := first.tags.get("Orientation")) is not None and int(tag.value) != 1:
        raise InputError(
            f"{where}: its pixels are stored turned or mirrored (orientation {int(tag.value)}); save it upright"
        )
    claimed = sum(math.prod(page.shape) for page in pages) * np.dtype(first.dtype).itemsize
    if claimed > MAX_BYTES:
        raise InputError(
            f"{where}: {len(pages) * first.samplesperpixel} bands of {first.imagelength}x{first.imagewidth} take "
            f"{claimed:,} bytes; at most {MAX_BYTES:,} an image are read, cut it into tiles"
        )
    if (block := max(math.prod(page.chunks) for page in pages) * np.dtype(first.dtype).itemsize) > MAX_BYTES:
        raise InputError(
            f"{where}: a tile of {block:,} bytes; at most {MAX_BYTES:,} are read, save smaller tiles"
        )
    _refuse_blocks(pages, num_bytes, where=where)


def _refuse_blocks(pages: list["TiffPage"], num_bytes: int, *, where: str) -> None:
    if (
        blocks := max(math.prod(page.chunked) for page in pages)
    ) > num_bytes:  # each has its place in the header
        raise InputError(
            f"{where}: {blocks:,} blocks of pixels in {num_bytes:,} bytes; the file is damaged, replace it or take it "
            "out"
        )
    for page in pages:
        for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            if length == 0 or start + length > num_bytes:
                raise InputError(
                    f"{where}: a block of pixels is missing (bytes {start} to {start + length} of {num_bytes}); "
                    "replace the file or take it out"
                )


def _stacked(pages: list["TiffPage"]) -> Image:
    """Return the bands of all pages as (h, w, bands), in the machine's byte order."""
    planes = [_bands_last(page.asarray(), page.axes) for page in pages]
    image = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
    return np.ascontiguousarray(image, image.dtype.newbyteorder("="))


def _rgb_of_inks(image: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return the colours of cyan, magenta, yellow and black, as Pillow makes them."""
    from PIL import Image as Pillow

    return np.array(Pillow.fromarray(image, "CMYK").convert("RGB"))


def tiff_palette(raw: bytes) -> tuple[tuple[int, int, int], ...]:
    """Return the colours of a TIFF with a palette, () for any other file or a damaged one."""
    if not raw.startswith(TIFF):
        return ()
    import tifffile

    try:
        check_pages(raw, where="")
        with silence("tifffile"), tifffile.TiffFile(io.BytesIO(raw)) as file:
            page = file.pages.first.aspage()
            colours = page.colormap if int(page.photometric) == _PALETTE else None
            if colours is None or page.samplesperpixel != 1:
                return ()
            return tuple((red, green, blue) for red, green, blue in (colours.T >> 8).tolist())
    except MemoryError:
        raise
    except Exception:  # it is decoded later, and refused then
        return ()


def decode_tiff_indices(raw: bytes, *, where: str) -> Mask:
    """Return the numbers (h, w) of a TIFF with a palette, 0 to 255.

    Raises:
        InputError: As decode_bands.
    """
    import tifffile

    check_pages(raw, where=where)
    try:
        with silence("tifffile"), tifffile.TiffFile(io.BytesIO(raw)) as file:
            page = file.pages.first.aspage()
            check_size((page.imagelength, page.imagewidth), where=where)
            _refuse_form([page], len(raw), where=where)
            if page.dtype != np.uint8:
                raise InputError(
                    f"{where}: a palette of {page.dtype} numbers; expected 8 bits, convert the file"
                )
            return np.ascontiguousarray(page.asarray())
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes of the library
        raise InputError(f"{where}: {_reason(error)}") from error


def _bands_last(array: np.ndarray, axes: str) -> Image:
    if axes == "YX":
        return array[..., None]
    return np.moveaxis(array, 0, 2) if axes == "SYX" else array  # (c, h, w) -> (h, w, c)


def _without_no_data(image: Image, page: "TiffPage") -> Image:
    declared = _declared(page)
    missing = ~np.isfinite(image)
    if declared is not None:
        missing |= image == image.dtype.type(declared)
    with np.errstate(over="ignore"):
        return np.where(missing, np.float32(np.nan), image.astype(np.float32, copy=False))


def _declared(page: "TiffPage") -> float | None:
    tag = page.tags.get("GDAL_NODATA")
    if tag is None:
        return None
    try:
        return float(str(tag.value).strip("\0 "))
    except ValueError:
        return None


def read_no_data(raw: bytes | io.BytesIO | io.BufferedReader) -> float | None:
    """Return the value that a TIFF declares to mean "no data" (GDAL's tag), None where it declares none."""
    with suppress(*DAMAGED_TAGS), opened_tiff(raw) as file:
        return None if file is None else _declared(file.pages.first)
    return None


DAMAGED_TAGS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error)
"""What damaged tags make of the library; those of pixels have been read before."""


@contextmanager
def opened_tiff(raw: bytes | io.BytesIO | io.BufferedReader) -> Iterator["TiffFile | None"]:
    """Open a file that has been decoded before, for what its tags say; None where it is no TIFF."""
    opened = io.BytesIO(raw) if isinstance(raw, bytes) else raw
    begins = opened.read(4)
    opened.seek(0)
    if begins not in TIFF:
        yield None
        return
    import tifffile

    with silence("tifffile"), tifffile.TiffFile(opened) as file:
        yield file


# --- large files, a band of rows at a time ----------------------------------------------------------------

LARGE = 2**27
"""Bytes of a decoded image from which on it is read by bands of rows."""
_AT_ONCE = 2**24  # bytes of a band of rows, or one row of tiles where that is more
_MOST_RATIO = 2**12  # of a packed file: smaller ones cannot be large
_PLAIN = {1, 2}  # PhotometricInterpretation: black is zero, RGB


def large_rows(path: Path, *, where: str) -> Iterator[Image] | None:
    """Return the rows of a large TIFF on the disk, from the top, some at a time; None where it is read as a whole.

    What decode_image makes of the file, without holding it in memory. Read as a whole are files of less than LARGE
    bytes of pixels, of one block, and forms that tifffile does not read like other libraries do (turned, subsampled,
    white is zero).

    Raises:
        InputError: As decode_bands; also while the rows are read.
    """
    try:
        if path.stat().st_size < LARGE // _MOST_RATIO:
            return None
        with path.open("rb") as file:
            if file.read(4) not in TIFF:
                return None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
                check_pages(raw, where=where)
        return _large_rows(path, where=where)
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error})") from error


def _large_rows(path: Path, *, where: str) -> Iterator[Image] | None:
    import tifffile

    try:
        with silence("tifffile"), tifffile.TiffFile(path) as file:
            pages = _band_pages(file)
            page = pages[0]
            num_bytes = math.prod(page.shape) * np.dtype(page.dtype).itemsize
            turned = int(page.tags["Orientation"].value) != 1 if "Orientation" in page.tags else False
            blocks = len(page.dataoffsets)
            plain = int(page.photometric) in _PLAIN and not page.is_subsampled and page.imagedepth == 1
            whole = (
                str(page.dtype) not in TYPES
                or len(pages) > 1
                or turned
                or not plain
                or (blocks == 1 and not page.is_contiguous)
            )
            if num_bytes < LARGE or whole or not _has_codec(page):
                return None
            check_size((page.imagelength, page.imagewidth), where=where)
            _refuse_form(pages, path.stat().st_size, where=where)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes of the library
        raise InputError(f"{where}: {_reason(error)}") from error
    return _rows(path, where=where)


def _has_codec(page: "TiffPage") -> bool:
    """Whether a block can be decoded with the packages that are there; OpenCV knows some packings by itself."""
    with page.parent.filehandle.lock:
        page.parent.filehandle.seek(page.dataoffsets[0])
        raw = page.parent.filehandle.read(page.databytecounts[0]) if not page.is_contiguous else b""
    try:
        return page.is_contiguous or _block(page, raw, 0)[0] is not None
    except ValueError as error:
        if "imagecodecs" in str(error):
            return False
        raise


def _block(
    page: "TiffPage", raw: bytes, at: int
) -> tuple[np.ndarray | None, tuple[int, ...], tuple[int, ...]]:
    """Return a decoded block, its place (plane, depth, row, column, sample) and its shape (depth, rows, columns, …)."""
    more = (
        {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        if int(page.compression) in (6, 7)
        else {}
    )
    return page.decode(raw, at, _fullsize=page.is_tiled, **more)


def _rows(path: Path, *, where: str) -> Iterator[Image]:
    import tifffile

    try:
        with silence("tifffile"):
            opened = tifffile.TiffFile(path)
        with opened as file:
            page = file.pages.first.aspage()
            picture = _is_picture(page)
            colours = _num_colours(page) if picture else page.samplesperpixel
            for rows in _stored_rows(page) if page.is_contiguous else _block_rows(page):
                image = np.ascontiguousarray(rows[..., :colours], rows.dtype.newbyteorder("="))
                yield _without_no_data(image, page) if image.dtype.kind == "f" else image
    except (InputError, MemoryError, GeneratorExit):
        raise
    except Exception as error:
        raise InputError(f"{where}: {_reason(error)}") from error


def _stored_rows(page: "TiffPage") -> Iterator[Image]:
    """Yield rows that lie in the file as they are."""
    file = page.parent.filehandle
    dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    planes = 1 if int(page.planarconfig) == _CONTIGUOUS else page.samplesperpixel
    samples = page.samplesperpixel // planes
    step = max(1, _AT_ONCE // (page.imagewidth * page.samplesperpixel * dtype.itemsize))
    for first in range(0, page.imagelength, step):
        count = min(step, page.imagelength - first)
        parts = []
        for plane in range(planes):
            row = plane * page.imagelength + first
            file.seek(page.dataoffsets[0] + row * page.imagewidth * samples * dtype.itemsize)
            part = file.read_array(dtype, count * page.imagewidth * samples)
            parts.append(part.reshape(count, page.imagewidth, samples))
        yield parts[0] if planes == 1 else np.concatenate(parts, axis=2)


def _block_rows(page: "TiffPage") -> Iterator[Image]:
    """Yield the rows of tiles, or of several strips."""
    file = page.parent.filehandle
    height, width = page.imagelength, page.imagewidth
    block_height = min(height, page.tilelength if page.is_tiled else page.rowsperstrip)
    across = -(-width // page.tilewidth) if page.is_tiled else 1
    down = -(-height // block_height)
    planes = 1 if int(page.planarconfig) == _CONTIGUOUS else page.samplesperpixel
    dtype = np.dtype(page.dtype)
    at_once = max(1, _AT_ONCE // (block_height * width * page.samplesperpixel * dtype.itemsize))
    for top in range(0, down, at_once):
        first, last = top * block_height, min(height, (top + at_once) * block_height)
        rows = np.zeros((last - first, width, page.samplesperpixel), dtype)
        for plane in range(planes):
            for at in range(top * across, min(down, top + at_once) * across):
                number = plane * down * across + at
                file.seek(page.dataoffsets[number])
                block, (_, _, y, x, _), shape = _block(page, file.read(page.databytecounts[number]), number)
                if block is None:
                    raise ValueError(f"block {number} of pixels is empty")
                part = block.reshape(block.shape[-3:])[
                    : min(shape[1], height - y), : min(shape[2], width - x)
                ]
                channels = slice(plane, plane + 1) if planes > 1 else slice(None)
                rows[y - first : y - first + part.shape[0], x : x + part.shape[1], channels] = part
        yield rows
