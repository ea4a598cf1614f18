"""Arrays of NumPy (.npy, .npz) and MATLAB (.mat) as images."""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from masksmith.core.errors import InputError
from masksmith.data.decode.headers import MAX_BYTES
from masksmith.data.decode.silence import silence
from masksmith.data.decode.types import MOST_BANDS, Slices, as_slices, known_type

_MATRIX, _COMPRESSED = 14, 15
_ELEMENTS = {*range(1, 8), 9, *range(12, 19)}
"""Types of elements of a MATLAB 5 file."""
_NUMERIC = range(6, 16)
"""Classes of arrays of numbers."""
_DEEPEST = 20
_HDF5 = (b"\x89HDF", b"MATLAB 7.3")


def decode_npy(raw: bytes, where: str, key: str = "") -> Slices:
    """Decode a ``.npy`` file into images (n, h, w, c); see as_slices for its axes.

    Raises:
        InputError: It is damaged, holds no numbers, or would take more than MAX_BYTES.
    """
    assert not key
    return _as_images(_npy(raw, where), where)


def decode_npz(raw: bytes, where: str, key: str = "") -> Slices:
    """Decode an array of a ``.npz`` file; without a key the one that it holds.

    Raises:
        InputError: As decode_npy; there is no such array, or several and no key.
    """
    members = _members(raw, where)
    name = _one(sorted(members), key, where)
    return _as_images(_npy(_unzipped(raw, members[name], where), where), where)


def decode_mat(raw: bytes, where: str, key: str = "") -> Slices:
    """Decode a variable of a ``.mat`` file; without a key the one of two to four axes that it holds.

    The last of three axes, where it is no band, counts the images: MATLAB stacks so. Files of version 7.3 (HDF5) need
    h5py.

    Raises:
        InputError: It is damaged, holds no such variable, or several and no key.
    """
    variables = _variables(raw, where)
    array = variables[_one(sorted(variables), key, where)]
    if array.ndim == 3 and array.shape[2] > MOST_BANDS:
        array = np.moveaxis(array, 2, 0)
    return _as_images(array, where)


def keys_of(raw: bytes, where: str) -> list[str]:
    """Return the names of the arrays in a ``.npz`` or ``.mat`` file that may be images or masks.

    Raises:
        InputError: It is damaged.
    """
    return sorted(_members(raw, where) if raw.startswith(b"PK") else _variables(raw, where))


def are_images(raw: bytes) -> bool:
    """Whether a ``.npy`` file has two to four axes, as images have; so has a damaged one, which is refused later."""
    try:
        return len(_header(io.BytesIO(raw))[0]) in (2, 3, 4)
    except Exception:
        return True


def _header(file: io.BytesIO) -> tuple[tuple[int, ...], np.dtype]:
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _as_images(array: np.ndarray, where: str) -> Slices:
    return np.ascontiguousarray(known_type(as_slices(array, where=where), where=where))


def _one(names: list[str], key: str, where: str) -> str:
    if key:
        if key not in names:
            raise InputError(f"{where}: no array {key!r} in it; it has changed, run the check again")
        return key
    if len(names) != 1:
        held = f"{len(names)} arrays ({', '.join(names)})" if names else "no array of two to four axes"
        raise InputError(f"{where}: it holds {held}; expected one, an image or a mask")
    return names[0]


def _damaged(where: str, error: object) -> InputError:
    return InputError(f"{where}: the file is damaged ({error}); replace it or take it out")


def _npy(raw: bytes, where: str) -> np.ndarray:
    try:
        shape, dtype = _header(io.BytesIO(raw))
        if math.prod(shape) * dtype.itemsize > min(MAX_BYTES, len(raw)):
            raise ValueError(f"shape {shape} of {dtype} in {len(raw):,} bytes")
        if dtype.hasobject or dtype.names:
            raise InputError(f"{where}: values of type {dtype}; expected numbers, convert the file")
        return np.load(io.BytesIO(raw), allow_pickle=False)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged header makes of numpy
        raise _damaged(where, error) from error


def _members(raw: bytes, where: str) -> dict[str, str]:
    """Return name of an array -> member of the archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    except Exception as error:
        raise _damaged(where, error) from error


def _unzipped(raw: bytes, member: str, where: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive, archive.open(member) as file:
            plain = file.read(MAX_BYTES + 1)
    except Exception as error:
        raise _damaged(where, error) from error
    if len(plain) > MAX_BYTES:
        raise InputError(
            f"{where}: it unpacks to more than {MAX_BYTES:,} bytes; the file is damaged or forged"
        )
    return plain


def _variables(raw: bytes, where: str) -> dict[str, np.ndarray]:
    """Return the numeric arrays of two to four axes in a ``.mat`` file by name."""
    try:
        found = _hdf5(raw, where) if raw.startswith(_HDF5) else _matlab(raw)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes of the library
        raise _damaged(where, error) from error
    return {
        name: array
        for name, array in found.items()
        if isinstance(array, np.ndarray)
        and array.dtype.kind in "buif"
        and array.ndim in (2, 3, 4)
        and array.size > 1
    }


def _matlab(raw: bytes) -> dict[str, Any]:
    from scipy.io import loadmat  # type: ignore[import-untyped]

    _check_elements(raw)
    with silence():
        found = loadmat(io.BytesIO(raw))
    return {name: value for name, value in found.items() if not name.startswith("__")}


def _check_elements(raw: bytes) -> None:
    """Refuse a MATLAB 5 file whose elements have unknown types or leave the file: C code of the library trusts them.

    Source: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf

    Raises:
        ValueError: There is such an element.
    """
    order = {b"IM": "<", b"MI": ">"}.get(raw[126:128])
    if order is None:
        return  # version 4, or none at all: loadmat says so
    for kind, content in _elements(raw[128:], order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(content, MAX_BYTES)
            if unpacker.unconsumed_tail:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            for inner, matrix in _elements(unpacked, order):
                _check_matrix(inner, matrix, order)
        else:
            _check_matrix(kind, content, order)


def _check_matrix(kind: int, content: bytes, order: str, depth: int = 0) -> None:
    if kind != _MATRIX or depth > _DEEPEST:
        raise ValueError(f"an element of the type {kind} in place of an array")
    own = list(_elements(content, order))
    flags = struct.unpack_from(f"{order}I", own[0][1])[0] & 0xFF if own and len(own[0][1]) >= 4 else 0
    for inner, part in own:
        if inner == _MATRIX and flags not in _NUMERIC:
            if part:
                _check_matrix(inner, part, order, depth + 1)
        elif inner in (_MATRIX, _COMPRESSED):
            raise ValueError(f"an element of the type {inner} within an array")


def _elements(raw: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of the elements that follow each other.

    Raises:
        ValueError: One leaves the bytes, or has an unknown type.
    """
    at = 0
    while at + 8 <= len(raw):
        kind, size = struct.unpack_from(f"{order}II", raw, at)
        start, step = at + 8, -(-size // 8) * 8 + 8
        if kind >> 16:  # small: both in one word, four bytes of content
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
        if kind not in _ELEMENTS or start + size > len(raw) or (start == at + 4 and size > 4):
            raise ValueError(f"an element of the type {kind} with {size} bytes")
        yield kind, raw[start : start + size]
        at += step if kind != _COMPRESSED else size + 8


def _hdf5(raw: bytes, where: str) -> dict[str, Any]:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f'{where}: a .mat file of version 7.3 needs h5py: pip install "masksmith[readers]", or save it with '
            "-v7 in MATLAB"
        ) from error
    with h5py.File(io.BytesIO(raw)) as file:
        return {name: value[()].T for name, value in file.items() if isinstance(value, h5py.Dataset)}
