"""NIfTI volumes as slices, and label volumes written over the same grid.

Slice k is the plane ``volume[:, :, k]`` with x along the columns and y along the rows, as SimpleITK has it. A fourth
axis (time, modalities) is the bands. Values are scaled as the header says.

Source: https://nifti.nimh.nih.gov/nifti-1, https://nifti.nimh.nih.gov/nifti-2. Read and written with nibabel.
"""

import gzip
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from masksmith.core.arrays import Shaped
from masksmith.core.errors import InputError
from masksmith.data.decode.headers import MAX_BYTES
from masksmith.data.decode.silence import silence

if TYPE_CHECKING:
    from nibabel import Nifti1Image

SUFFIXES = (".nii", ".nii.gz")
_GZIP = b"\x1f\x8b"
_HEADER = 2**16  # bytes that hold the header and small extensions
_MOST_BEFORE = 2**24  # bytes before the voxels: larger extensions are none that a person has

Slices = Shaped[np.ndarray, "n h w c"]


def decode_nifti(raw: bytes, where: str) -> Slices:
    """Decode a volume into (n, h, w, c): uint8, uint16 or int16 where its values fit, else float32.

    Raises:
        InputError: It is no NIfTI file or a damaged one, of other than 3 or 4 axes, would take more than MAX_BYTES, or
            nibabel is not installed.
    """
    image = open_nifti(raw, where=where)
    try:
        with silence("nibabel.global"):
            volume = _values(image)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes of the library
        raise InputError(
            f"{where}: its voxels cannot be read ({error}); replace the file or take it out"
        ) from error
    planes = volume if volume.ndim == 4 else volume[..., None]
    return np.ascontiguousarray(planes.transpose(2, 1, 0, 3), _type_of(volume))


def _values(image: "Nifti1Image") -> Shaped[np.ndarray, "..."]:
    """Return the voxels as the header scales them: whole numbers stay whole, others are float32."""
    proxy: Any = image.dataobj
    slope, inter = float(proxy.slope), float(proxy.inter)
    whole = slope.is_integer() and inter.is_integer() and image.get_data_dtype().kind in "iu"
    if (slope, inter) == (1, 0):
        return np.asarray(proxy.get_unscaled())
    scaled = np.asarray(proxy, np.float32)
    return scaled.astype(np.int64) if whole and np.abs(scaled).max() < 2**15 else scaled


def _type_of(volume: Shaped[np.ndarray, "..."]) -> type[np.generic]:
    if volume.dtype.kind in "iub":
        low, high = (int(volume.min()), int(volume.max())) if volume.size else (0, 0)
        signed = volume.dtype.kind == "i" and volume.dtype.itemsize > 1
        kinds = (
            (np.int16,) if signed else (np.uint8, np.uint16) if volume.dtype.itemsize == 1 else (np.uint16,)
        )
        for kind in kinds:
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return kind
    return np.float32


def open_nifti(raw: bytes, *, where: str) -> "Nifti1Image":
    """Open a volume without reading its voxels.

    Raises:
        InputError: As decode_nifti.
    """
    try:
        import nibabel
    except ImportError as error:
        raise InputError(f'{where}: NIfTI needs nibabel; pip install "masksmith[readers]"') from error
    try:
        with silence("nibabel.global"):
            head = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(_HEADER) if raw.startswith(_GZIP) else raw
            kind = (
                nibabel.Nifti2Image if head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Image
            )
            header = kind.header_class.from_fileobj(io.BytesIO(head))
            shape = header.get_data_shape()
            claimed = math.prod(shape) * header.get_data_dtype().itemsize
            _refuse_shape(shape, claimed, where=where)
            if raw.startswith(_GZIP):
                end = min(int(header.get_data_offset()), _MOST_BEFORE) + claimed
                raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(end)
            return kind.from_bytes(raw)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{where}: not a whole NIfTI file ({type(error).__name__}: {error}); replace it or take it out"
        ) from error


def _refuse_shape(shape: tuple[int, ...], claimed: int, *, where: str) -> None:
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise InputError(f"{where}: a volume of shape {shape}; expected three axes, or a fourth of bands")
    if claimed > MAX_BYTES:
        raise InputError(
            f"{where}: its {shape} voxels take {claimed:,} bytes; at most {MAX_BYTES:,} are read"
        )


def label_volume(slices: Shaped[np.ndarray, "n h w"], like: "Nifti1Image") -> Any:  # noqa: ANN401
    """Return label slices as a volume on the grid of another: the same shape in space, affine and header of space."""
    volume = np.ascontiguousarray(slices.transpose(2, 1, 0))  # (n, h, w) -> (x, y, z)
    made = type(like)(volume, like.affine)
    made.header.set_xyzt_units(*like.header.get_xyzt_units())
    for name in ("qform", "sform"):
        code = int(like.header[f"{name}_code"])
        getattr(made, f"set_{name}")(like.affine if code else None, code)
    return made
