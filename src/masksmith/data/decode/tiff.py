"""TIFF files of any number of bands: satellite scenes, radar, elevation.

OpenCV reads what is a picture: 8 or 16 bits without sign, grey or in colours, with or without alpha. Everything else
goes through tifffile (https://github.com/cgohlke/tifffile, BSD): more bands, signed and floating numbers, bands that
lie plane by plane (GeoTIFF), bands that are pages, and the few forms of pictures that OpenCV reads wrongly.
"""

import io
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from masksmith.core.arrays import Image
from masksmith.core.errors import InputError
from masksmith.data.decode.headers import MAX_BYTES, TIFF, check_pages, check_size

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

TYPES = ("uint8", "uint16", "int16", "float32")
_ALPHA = {1, 2}  # ExtraSamples: associated and unassociated
_CONTIGUOUS = 1  # PlanarConfiguration: the samples of a pixel lie side by side
_GREY = {0, 1}  # PhotometricInterpretation: white is zero, black is zero
_BILEVEL = "bool"


def decode_bands(raw: bytes, *, where: str) -> Image | None:
    """Decode a TIFF into (h, w, bands) of its own type, or return None where it is a picture that OpenCV reads.

    A picture that OpenCV would misread is decoded here, without its alpha, as OpenCV's are.
    Numbers that are not finite, and the value that the file itself declares to mean "no data" (GDAL's tag), are NaN
    in images of float32; whole numbers stay as they are.

    Raises:
        InputError: The file is damaged or of a form that is not read, its pixels are of another type than TYPES, they
            would take more than MAX_BYTES, or its compression needs a package that is not there.
    """
    import tifffile

    check_pages(raw, where=where)  # tifffile would follow a circle of pages until memory ends
    try:
        with tifffile.TiffFile(io.BytesIO(raw)) as file:
            pages = _band_pages(file)
            picture = len(pages) == 1 and _is_picture(pages[0])
            if picture and not _opencv_misreads(pages[0]):
                return None
            _refuse_form(pages, len(raw), where=where)
            image = _stacked(pages)
            if picture:
                image = np.ascontiguousarray(image[..., : _num_colours(pages[0])])  # alpha comes last
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes of the library
        raise InputError(f"{where}: {_reason(error)}") from error
    return _without_no_data(image, pages[0]) if image.dtype == np.float32 else image


def _reason(error: Exception) -> str:
    if "imagecodecs" in str(error):
        return (
            f"its compression cannot be read without the package imagecodecs ({error}); install masksmith[tiff], or "
            "save the file uncompressed or with deflate"
        )
    return f"the file is damaged ({type(error).__name__}: {error}); replace it or take it out"


def _band_pages(file: "TiffFile") -> list["TiffPage"]:
    """Return the pages whose samples are the bands: the first, or all where each is one band of the same size.

    Smaller copies and masks that lie in the file are no bands.
    """
    first = file.pages.first
    pages = [page.aspage() for page in file.pages]
    whole = [page for page in pages if not page.is_reduced and not page.is_mask]
    if all((page.shape, page.dtype) == (first.shape, first.dtype) for page in whole):
        return whole or [first]
    return [first]


def _is_picture(page: "TiffPage") -> bool:
    if str(page.dtype) not in ("uint8", "uint16", _BILEVEL):
        return False
    colours = _num_colours(page)
    return colours == 1 or (int(page.photometric) not in _GREY and colours == 3)


def _num_colours(page: "TiffPage") -> int:
    return page.samplesperpixel - sum(int(one) in _ALPHA for one in page.extrasamples)


def _opencv_misreads(page: "TiffPage") -> bool:
    """Whether OpenCV 5.0 makes other values of a picture, without a word: it takes planes for pixels, or 16 bits for 8.

    Each of the three is read rightly alone: planes, 16 bits, and grey with alpha.
    """
    planes, wide = int(page.planarconfig) != _CONTIGUOUS, str(page.dtype) == "uint16"
    if _num_colours(page) == 1:
        return page.samplesperpixel > 1 and (planes or wide)
    return planes and wide


def _refuse_form(pages: list["TiffPage"], num_bytes: int, *, where: str) -> None:
    first = pages[0]
    if str(first.dtype) not in TYPES:
        raise InputError(
            f"{where}: pixels of type {first.dtype}, expected {', '.join(TYPES)}; convert the file"
        )
    if len(pages) > 1 and first.samplesperpixel > 1:
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


def _bands_last(array: np.ndarray, axes: str) -> Image:
    if axes == "YX":
        return array[..., None]
    return np.moveaxis(array, 0, 2) if axes == "SYX" else array  # (c, h, w) -> (h, w, c)


def _without_no_data(image: Image, page: "TiffPage") -> Image:
    declared = _declared(page)
    missing = ~np.isfinite(image)
    if declared is not None:
        missing |= image == np.float32(declared)
    return np.where(missing, np.float32(np.nan), image)


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
    opened = io.BytesIO(raw) if isinstance(raw, bytes) else raw
    begins = opened.read(4)
    opened.seek(0)
    if begins not in TIFF:
        return None
    import tifffile

    with tifffile.TiffFile(opened) as file:
        return _declared(file.pages.first)


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
        with tifffile.TiffFile(path) as file:
            pages = _band_pages(file)
            page = pages[0]
            num_bytes = math.prod(page.shape) * np.dtype(page.dtype).itemsize
            turned = int(page.tags["Orientation"].value) != 1 if "Orientation" in page.tags else False
            blocks = len(page.dataoffsets)
            plain = int(page.photometric) in _PLAIN and not page.is_subsampled and page.imagedepth == 1
            whole = len(pages) > 1 or turned or not plain or (blocks == 1 and not page.is_contiguous)
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
        with tifffile.TiffFile(path) as file:
            page = file.pages.first.aspage()
            picture = _is_picture(page)
            colours = _num_colours(page) if picture else page.samplesperpixel
            for rows in _stored_rows(page) if page.is_contiguous else _block_rows(page):
                image = np.ascontiguousarray(rows[..., :colours], rows.dtype.newbyteorder("="))
                yield _without_no_data(image, page) if image.dtype == np.float32 else image
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
