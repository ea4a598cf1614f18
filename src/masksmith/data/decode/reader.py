"""Images of a data folder by path, whatever their format: ``a.png``, ``scan.nii.gz#12``, or a file for each band.

``PATH#N`` is slice N, from 0 on, of a file of several images: a volume, a stack of pages, an array. ``PATH#KEY`` is the
array KEY of a file of several arrays, and ``PATH#KEY/N`` slice N of it.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import numpy as np

from masksmith.core.arrays import Bool, Image, Shaped
from masksmith.core.errors import InputError
from masksmith.data.catalog import Sample
from masksmith.data.decode.arrays import decode_mat, decode_npy, decode_npz
from masksmith.data.decode.dicom import SUFFIXES as DICOM_SUFFIXES
from masksmith.data.decode.dicom import decode_dicom, is_dicom
from masksmith.data.decode.embedded import decode_embedded
from masksmith.data.decode.nifti import SUFFIXES as NIFTI_SUFFIXES
from masksmith.data.decode.nifti import decode_nifti
from masksmith.data.decode.pictures import decode_image
from masksmith.data.decode.tiff import decode_pages, large_rows, read_no_data
from masksmith.data.tree import Tree

Slices = Shaped[np.ndarray, "n h w c"]

STACKS: dict[str, Callable[[bytes, str], Slices]] = {
    ".json": decode_embedded,
    **dict.fromkeys(DICOM_SUFFIXES, decode_dicom),
    **dict.fromkeys(NIFTI_SUFFIXES, decode_nifti),
    ".npy": decode_npy,
}
"""Ending of a file of several images, in lower case -> what decodes it; the second argument names it in messages."""
CONTAINERS: dict[str, Callable[[bytes, str, str], Slices]] = {".npz": decode_npz, ".mat": decode_mat}
"""The same of files of several arrays; the third argument is the name of one, or empty."""
_TIFFS = (".tif", ".tiff")
_KEPT_BYTES = 2**30
"""Of decoded files of several images that are kept: the channels of a slice may lie in as many volumes."""


def ending(path: str) -> str:
    """Return the ending of a file's name in lower case, ``.nii.gz`` as a whole."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes[-2:]]
    both = "".join(suffixes)
    return both if both in STACKS else "".join(suffixes[-1:])


def parse_slice(at: str) -> tuple[str, int | None]:
    """Return the name of an array and the number of a slice, of what stands behind ``#``."""
    key, _, number = at.rpartition("/")
    if number.isdecimal():
        return key, int(number)
    return at, None


class ImageReader:
    """Reads images of a tree; the last files of several images stay decoded, so that slices cost one decoding."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._raw: tuple[str, bytes] = ("", b"")
        self._declared: tuple[str, float | None] = ("", None)
        self._slices: dict[tuple[str, str], Slices] = {}

    def raw(self, path: str) -> bytes:
        """Return the bytes of the file of an image."""
        file = path.partition("#")[0] if path not in self.tree else path
        if self._raw[0] != file:
            self._raw = (file, self.tree.read(file))
        return self._raw[1]

    def slices(self, path: str, key: str = "", *, pages: bool = False) -> Slices | None:
        """Return all images of a file of several, or None where it is of no such kind.

        Args:
            path: The file.
            key: Name of the array in it, where it holds several.
            pages: Whether the pages of a TIFF are images; else they are the bands of one.

        Raises:
            InputError: It is damaged.
        """
        if (path, key) not in self._slices:
            found = self._decoded(path, key, pages=pages)
            if found is None:
                return None
            self._slices[path, key] = found
            while len(self._slices) > 1 and sum(one.nbytes for one in self._slices.values()) > _KEPT_BYTES:
                del self._slices[next(iter(self._slices))]
        return self._slices[path, key]

    def _decoded(self, path: str, key: str, *, pages: bool) -> Slices | None:
        kind = ending(path)
        if kind in CONTAINERS:
            return CONTAINERS[kind](self.raw(path), path, key)
        if kind in _TIFFS:
            return decode_pages(self.raw(path), path) if pages else None
        decode = STACKS.get(kind) or (decode_dicom if is_dicom(self.raw(path)) else None)
        return decode(self.raw(path), path) if decode else None

    def count(self, path: str) -> int:
        """Return how many images a file holds.

        Raises:
            InputError: It is damaged.
        """
        slices = self.slices(path)
        return 1 if slices is None else len(slices)

    def image(self, path: str, *, upright: bool = True, keep_alpha: bool = False) -> Image:
        """Decode the image of a path into (h, w, c); see decode_image for its form and the options.

        Raises:
            InputError: It is damaged, there is no such slice, or there are several and none is named.
        """
        file, _, at = path.rpartition("#") if path not in self.tree else (path, "", "")
        key, number = parse_slice(at)
        slices = self.slices(file, key, pages=bool(at))
        if slices is None:
            return decode_image(self.raw(path), where=path, upright=upright, keep_alpha=keep_alpha)
        if number is None and len(slices) > 1:
            raise InputError(
                f"{path}: it holds {len(slices)} images; expected one, save them as files of one each"
            )
        if (number or 0) >= len(slices):
            raise InputError(
                f"{path}: the file has {len(slices)} slices; it has changed, run the check again"
            )
        return slices[number or 0]

    def sample(self, sample: Sample, *, upright: bool = True) -> Image:
        """Decode the image of a sample, upright or as it is stored; the bands of several files are stacked.

        Raises:
            InputError: A file is damaged, or two bands are of different sizes or types.
        """
        if sample.bands is None:
            return self.image(sample.image, upright=upright)
        bands = [self.image(path, upright=upright) for path in sample.bands]
        for path, band in zip(sample.bands, bands, strict=True):
            if (band.shape[:2], band.dtype) != (bands[0].shape[:2], bands[0].dtype):
                raise InputError(
                    f"{path}: {band.shape[0]}x{band.shape[1]} {band.dtype}, but {sample.bands[0]} is "
                    f"{bands[0].shape[0]}x{bands[0].shape[1]} {bands[0].dtype}; expected bands of one size and type"
                )
        return np.concatenate(bands, axis=2)

    def is_large(self, sample: Sample) -> bool:
        """Whether a sample's image is a large TIFF, which ``rows`` reads some rows at a time."""
        return self._large(sample) is not None

    def rows(self, sample: Sample, *, upright: bool = True) -> Iterator[Image]:
        """Decode the image of a sample, a large TIFF some rows at a time from the top, any other at once.

        Raises:
            InputError: As ``sample``.
        """
        found = self._large(sample)
        if found is None:
            yield self.sample(sample, upright=upright)
        else:
            yield from found

    def _large(self, sample: Sample) -> Iterator[Image] | None:
        plain = sample.bands is None and sample.image in self.tree
        path = self.tree.on_disk(sample.image) if plain else None
        return None if path is None else large_rows(path, where=sample.image)

    @contextmanager
    def opened(self, path: str) -> Iterator[io.BytesIO | io.BufferedReader]:
        """Open the file of an image: on the disk, unless it is in memory or in an archive."""
        file = path if path in self.tree else path.rpartition("#")[0]
        place = self.tree.on_disk(file)
        if self._raw[0] == file or place is None:
            yield io.BytesIO(self.raw(file))
        else:
            with place.open("rb") as there:
                yield there

    def declared(self, sample: Sample) -> float | None:
        """Return the value that the file of a sample's image declares to mean "no data"; None: it declares none."""
        if self._declared[0] != sample.image:
            with self.opened(sample.image) as file:
                self._declared = sample.image, read_no_data(file)
        return self._declared[1]

    def missing(self, sample: Sample, image: Image) -> Bool[np.ndarray, "h w"] | None:
        """Return where no band of a sample's decoded image has data, None where every pixel has some.

        No data is NaN, or in whole numbers the value that the file itself declares to mean so.
        """
        declared = np.nan if image.dtype.kind == "f" else self.declared(sample)
        if declared is None:
            return None
        gaps = np.isnan(image) if np.isnan(declared) else image == declared
        found = gaps.all(axis=2)
        return found if found.any() else None
