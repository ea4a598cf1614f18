"""NIfTI volumes as slices, in one orientation whatever the file's (nibabel).

A volume is turned and mirrored to the axes nearest to right, anterior, superior, and cut along the axis of the largest
voxels (the last one where none is clearly the largest). Rows and columns of a slice are the two other axes in their
order. An image and its mask on one grid are cut alike.

Sources:
    NIfTI-1: https://nifti.nimh.nih.gov/nifti-1. nnU-Net, Isensee et al. 2021, cuts anisotropic volumes the same way.
"""

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from masksmith.core.arrays import Float, Shaped
from masksmith.core.errors import InputError
from masksmith.data.decode.headers import MAX_BYTES
from masksmith.data.decode.silence import silence
from masksmith.data.decode.types import Slices, known_type

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

SUFFIXES = (".nii", ".nii.gz")
_CLEARLY = 1.1
_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
_TOLERANCE = 1e-3
"""Of the length of a voxel: software rounds affine matrices."""


@dataclass(frozen=True)
class Grid:
    """Shape and place of a volume after it was turned: what an image and its mask have in common."""

    shape: tuple[int, ...]
    affine: Float[np.ndarray, "4 4"]
    axis: int
    """The axis that it is cut along."""

    @property
    def count(self) -> int:
        """Number of slices."""
        return self.shape[self.axis]

    def differs(self, other: "Grid") -> str:
        """Return in words how another volume lies elsewhere, empty where both lie on each other."""
        if self.shape[:3] != other.shape[:3]:
            one, two = ("x".join(map(str, grid.shape[:3])) for grid in (self, other))
            return f"{one} voxels, and the other has {two}"
        voxel = np.linalg.norm(self.affine[:3, :3], axis=0).max()
        corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
        corners[:, :3] *= np.array(self.shape[:3]) - 1
        apart = np.abs((corners @ (self.affine - other.affine).T)[:, :3]).max()
        reach = _TOLERANCE * (voxel + np.abs(self.affine[:3]).max())
        return "" if apart <= reach else f"up to {apart:.3g} mm beside the other"


def decode_nifti(raw: bytes, where: str) -> Slices:
    """Decode a volume, plain or gzipped, into slices (n, h, w, c); a fourth axis holds channels.

    Values are scaled as the header says; see known_type for their type.

    Raises:
        InputError: It is damaged, has other than three or four axes, or would take more than MAX_BYTES; nibabel is not
            there.
    """
    image = _open(raw, where=where)
    axis = _grid(image, where=where).axis
    nibabel = _nibabel(where)
    try:
        with silence("nibabel", "nibabel.global"):
            turned = nibabel.as_closest_canonical(image)
            array = known_type(np.asanyarray(turned.dataobj), where=where)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes of the library
        raise _damaged(where, error) from error
    array = array.reshape(*array.shape[:3], -1)
    return np.ascontiguousarray(np.moveaxis(array, axis, 0))


def read_grid(raw: bytes, where: str) -> Grid:
    """Return where a volume lies, from its header alone.

    Raises:
        InputError: As decode_nifti.
    """
    return _grid(_open(raw, where=where, header=True), where=where)


def label_volume(slices: Shaped[np.ndarray, "n h w"], raw: bytes, where: str) -> bytes:
    """Return label slices of a volume as a NIfTI file with the axes, the shape in space and the affine of the volume.

    Args:
        slices: A label map for each slice that decode_nifti gives, of a type that NIfTI has.
        raw: The volume.
        where: Its name, for messages.

    Raises:
        InputError: As decode_nifti.
    """
    image = _open(raw, where=where, header=True)
    axis = _grid(image, where=where).axis
    found = _nibabel(where).orientations
    to_own = found.ornt_transform(found.axcodes2ornt("RAS"), found.io_orientation(image.affine))
    made = type(image)(found.apply_orientation(np.moveaxis(slices, 0, axis), to_own), image.affine)
    made.header.set_xyzt_units(*image.header.get_xyzt_units())
    for name in ("qform", "sform"):
        code = int(image.header[f"{name}_code"])
        getattr(made, f"set_{name}")(image.affine if code else None, code)
    return bytes(made.to_bytes())


def _nibabel(where: str) -> Any:  # noqa: ANN401
    try:
        import nibabel
    except ImportError as error:
        raise InputError(f'{where}: NIfTI needs nibabel: pip install "masksmith[readers]"') from error
    return nibabel


def _damaged(where: str, error: object) -> InputError:
    return InputError(f"{where}: not a whole NIfTI volume ({error}); replace it or take it out")


def _open(raw: bytes, *, where: str, header: bool = False) -> "Nifti1Image":
    nibabel = _nibabel(where)
    plain = _unpacked(raw, _HEADER_BYTES if header else MAX_BYTES + _HEADER_BYTES, where=where)
    kind = nibabel.Nifti2Image if plain[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Image
    try:
        with silence("nibabel", "nibabel.global"):
            if not header:
                return kind.from_bytes(plain)
            found = kind.header_class.from_fileobj(io.BytesIO(plain))
            voxels = np.broadcast_to(np.zeros((), np.uint8), found.get_data_shape())
            return kind(voxels, found.get_best_affine(), found)
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(where, f"{type(error).__name__}: {error}") from error


def _unpacked(raw: bytes, most: int, *, where: str) -> bytes:
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            plain = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(where, error) from error
    if len(plain) > most > _HEADER_BYTES:
        raise InputError(f"{where}: it unpacks to more than {most:,} bytes; the file is damaged or forged")
    return plain


def _grid(image: "Nifti1Image", *, where: str) -> Grid:
    nibabel = _nibabel(where)
    shape = tuple(map(int, image.shape))
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise InputError(f"{where}: a volume of shape {shape}; expected three axes, or four with channels")
    size = math.prod(shape) * max(1, image.get_data_dtype().itemsize)
    if size > MAX_BYTES:
        raise InputError(f"{where}: {shape} voxels take {size:,} bytes; at most {MAX_BYTES:,} are read")
    try:
        with silence("nibabel", "nibabel.global"):
            turned = nibabel.as_closest_canonical(image)
            affine = np.asarray(turned.affine, np.float64)
    except Exception as error:
        raise _damaged(where, f"{type(error).__name__}: {error}") from error
    if not np.isfinite(affine).all():
        raise _damaged(where, "its place in space is not finite")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    largest = int(spacing.argmax())
    axis = largest if spacing[largest] > _CLEARLY * spacing[2] else 2
    return Grid(tuple(turned.shape), affine, axis)
