"""Masks and probabilities as images: TIFF, GeoTIFF where the input lies, and arrays."""

import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksmith.core.arrays import Bool, Shaped
from masksmith.core.errors import InputError
from masksmith.deploy.picture import Numbers, Picture, Segmented
from masksmith.prediction.store import MAX_CODE

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_TILE = 512
_CACHE_MB = 64


def write_tiff(path: Path, one: Segmented) -> None:
    """Write a label image, packed by deflate; several labels are a page each."""
    import tifffile

    numbers, (height, width) = one.numbers, one.hw
    with tifffile.TiffWriter(path, bigtiff=numbers.dtype.itemsize * one.mask.size > 2**31) as file:
        for layer in range(numbers.layers):
            file.write(
                _strips(numbers, layer),
                shape=(height, width),
                dtype=numbers.dtype,
                rowsperstrip=_TILE,
                compression="zlib",
                photometric="minisblack",
                metadata=None,
            )


def _strips(numbers: Numbers, layer: int) -> Iterator[bytes]:
    for _, band in numbers.bands():
        for row in range(0, len(band), _TILE):
            yield zlib.compress(np.ascontiguousarray(band[row : row + _TILE, :, layer]).tobytes())


def write_geotiff(path: Path, one: Segmented) -> None:
    """Write a label image in tiles, with the reference system and grid of its input.

    Pixels without data in the input (declared so, or NaN, in all bands) have the mask's own value of no data, the
    largest of its type.

    Raises:
        InputError: The input has no georeference, or another size than the mask.
    """
    numbers = one.numbers
    with georeferenced(one) as source:

        def bands() -> Iterator[tuple[slice, np.ndarray]]:
            for rows, band in numbers.bands():
                band[_missing(source, rows)] = numbers.no_data
                yield rows, band

        labels = one.target.classes if one.target.task == "multilabel" else ()
        _write_tiled(
            path, source, bands(), numbers.dtype, numbers.layers, no_data=numbers.no_data, names=labels
        )


def write_probs(path: Path, one: Segmented) -> None:
    """Write the probabilities as codes, ``.npy`` of uint16 (h, w, k): a probability is ``code / 65535``."""
    shape = one.codes.shape(one.picture.id)
    with path.open("wb") as file:
        head = {"descr": "<u2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        for band in one.codes.bands(one.picture.id):
            file.write(np.ascontiguousarray(band, "<u2").data)


def write_prob_geotiff(path: Path, one: Segmented) -> None:
    """Write the probabilities in tiles of float32, with the reference system and grid of the input; no data is NaN.

    Raises:
        InputError: As write_geotiff.
    """
    channels = one.codes.shape(one.picture.id)[2]
    with georeferenced(one) as source:

        def bands() -> Iterator[tuple[slice, np.ndarray]]:
            row = 0
            for codes in one.codes.bands(one.picture.id, at_once=2**24):
                rows = slice(row, row + len(codes))
                probs = codes.astype(np.float32) / MAX_CODE
                probs[_missing(source, rows)] = np.nan
                yield rows, probs
                row += len(codes)

        names = ("foreground", "border", "distance") if one.target.task == "instances" else one.target.classes
        _write_tiled(path, source, bands(), np.dtype(np.float32), channels, no_data=np.nan, names=names)


# --- where the input lies ---------------------------------------------------------------------------------


@contextmanager
def opened(picture: Picture) -> Iterator["DatasetReader"]:
    """Open the file of an image with rasterio, whether or not it is georeferenced.

    Raises:
        InputError: GDAL cannot read it.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    reader, path = picture.item.reader, picture.item.path
    place = reader.tree.on_disk(path)
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MB, GDAL_PAM_ENABLED="NO"):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            if place is not None:
                with rasterio.open(place) as source:
                    yield source
            else:
                with rasterio.MemoryFile(reader.raw(path)) as memory, memory.open() as source:
                    yield source
        except RasterioError as error:
            raise InputError(f"{picture.path}: GDAL cannot read it ({error}); expected a GeoTIFF") from error


def is_georeferenced(source: "DatasetReader") -> bool:
    """Whether a file says where it lies."""
    return source.crs is not None or not source.transform.is_identity


@contextmanager
def georeferenced(one: Segmented) -> Iterator["DatasetReader"]:
    """Open the input of an image.

    Raises:
        InputError: It has no georeference, or another size than the mask.
    """
    with opened(one.picture) as source:
        if not is_georeferenced(source):
            raise InputError(
                f"{one.picture.path}: it has no georeference; expected a GeoTIFF for geotiff, or write tiff"
            )
        if (source.height, source.width) != one.hw:
            raise InputError(
                f"{one.picture.path}: GDAL sees {source.height}x{source.width} pixels, the mask has "
                f"{one.hw[0]}x{one.hw[1]}; save the input upright"
            )
        yield source


def _missing(source: "DatasetReader", rows: slice) -> Bool[np.ndarray, "n w"]:
    """Return where no band of the input has data."""
    from rasterio.windows import Window

    found = np.ones((rows.stop - rows.start, source.width), bool)
    for band, (declared, kind) in enumerate(zip(source.nodatavals, source.dtypes, strict=True), start=1):
        floating = np.dtype(kind).kind == "f"
        if declared is None and not floating:
            return np.zeros_like(found)
        values = source.read(band, window=Window(0, rows.start, source.width, len(found)))
        missing = np.isnan(values) if floating else np.zeros_like(found)
        if declared is not None and not np.isnan(declared):
            missing |= values == declared
        found &= missing
    return found


def _write_tiled(
    path: Path,
    source: "DatasetReader",
    bands: Iterable[tuple[slice, Shaped[np.ndarray, "n w k"]]],
    dtype: np.dtype,
    count: int,
    *,
    no_data: float,
    names: Iterable[str],
) -> None:
    import rasterio
    from rasterio.windows import Window

    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": source.height,
        "width": source.width,
        "count": count,
        "dtype": dtype.name,
        "crs": source.crs,
        "transform": source.transform,
        "nodata": no_data,
        "tiled": True,
        "blockxsize": _TILE,
        "blockysize": _TILE,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    with rasterio.open(path, "w", **profile) as file:
        for at, name in enumerate(names, start=1):
            file.set_band_description(at, name)
        for rows, band in bands:
            window = Window(0, rows.start, source.width, len(band))
            file.write(np.moveaxis(band, 2, 0), window=window)
