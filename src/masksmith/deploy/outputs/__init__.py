"""What ``masksmith apply`` writes beside masks where it is asked to: a table of kinds, a function each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.deploy.drawing import overlay, png
from masksmith.deploy.features import thinned
from masksmith.deploy.outputs.dicom_seg import series_of, write_dicom_seg
from masksmith.deploy.outputs.masks import Masks
from masksmith.deploy.outputs.nifti import volumes_of, write_nifti
from masksmith.deploy.outputs.polygons import write_geojson
from masksmith.deploy.outputs.rasters import write_geotiff, write_prob_geotiff, write_probs, write_tiff
from masksmith.deploy.outputs.tables import write_coco, write_rle
from masksmith.deploy.picture import Picture, Segmented

_MOST_SHOWN, _SIDE_SHOWN = 2**26, 4096  # pixels, and the longer side of a picture of more
Groups = Callable[[Sequence[Picture]], dict[str, list[Picture]]]


@dataclass(frozen=True)
class OfImage:
    """A file for each image, ``FOLDER/ID.ending``, written while its probabilities are in memory."""

    write: Callable[[Path, Segmented], None]
    ending: str
    packages: tuple[str, ...] = ()
    """Of the extra ``readers``."""
    folder: str | None = None
    """None: the name of the kind."""


@dataclass(frozen=True)
class OfSeveral:
    """A file for several images, written from their masks when all are there."""

    write: Callable[[Path, Sequence[Picture], Masks], None]
    groups: Groups
    """Images -> file -> those that belong in it; images that belong in none are said."""
    expects: str = ""
    """What files it is for."""
    packages: tuple[str, ...] = ()


def _all_in(name: str) -> Groups:
    return lambda pictures: {name: list(pictures)}


def _write_overlay(path: Path, one: Segmented) -> None:
    """Write the image with its mask over it; of a large one every few pixels."""
    (height, width), name = one.hw, one.picture.id
    step = 1 if height * width <= _MOST_SHOWN else -(-max(height, width) // _SIDE_SHOWN)
    image = one.images[name] if step == 1 else thinned(one.images, name, step)
    path.write_bytes(png(overlay(image, one.mask[::step, ::step], one.target)))


KINDS: dict[str, OfImage | OfSeveral] = {
    "overlay": OfImage(_write_overlay, ".png", folder="overlays"),
    "tiff": OfImage(write_tiff, ".tif"),
    "geotiff": OfImage(write_geotiff, ".tif", ("rasterio",)),
    "geojson": OfImage(write_geojson, ".geojson", ("rasterio",)),
    "probs": OfImage(write_probs, ".npy"),
    "probs-geotiff": OfImage(write_prob_geotiff, ".tif", ("rasterio",)),
    "nifti": OfSeveral(write_nifti, volumes_of, "a NIfTI volume", ("nibabel",)),
    "dicom-seg": OfSeveral(write_dicom_seg, series_of, "a DICOM file", ("highdicom",)),
    "coco": OfSeveral(write_coco, _all_in("coco.json")),
    "rle": OfSeveral(write_rle, _all_in("rle.csv")),
}


def check_kinds(kinds: Sequence[str]) -> list[str]:
    """Return the kinds that are asked for, each once and sorted.

    Raises:
        InputError: There is no such kind, or its package is not installed.
    """
    for name in kinds:
        for package in look_up(KINDS, name, where="--write").packages:
            if find_spec(package) is None:
                raise InputError(
                    f'--write {name}: the package {package} is not installed; pip install "masksmith[readers]"'
                )
    return sorted(set(kinds))
