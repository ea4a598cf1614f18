"""DICOM images as numbers: one image or the frames of several, whatever the transfer syntax.

Stored values are rescaled (modality LUT, or slope and intercept), then brought through the VOI LUT or window where that
makes the picture, then inverted once if MONOCHROME1, so that bright is more everywhere. The window is a part of the
picture in projection radiographs (CR, DX, MG, …). Elsewhere it is a hint for display that cuts values off: CT stays in
Hounsfield units, and MR, PET and others keep their numbers. Decoders, palettes, YBR and LUTs are pydicom's.

Sources:
    DICOM PS3.3, C.7.6.3 (pixels), C.11.1 (modality LUT), C.11.2 (VOI LUT); PS3.4, N.2 (the order of the three).
"""

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from masksmith.core.arrays import Float, Shaped
from masksmith.core.errors import InputError
from masksmith.data.decode.headers import MAX_BYTES
from masksmith.data.decode.silence import silence

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom", ".ima")
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes: Segmentation Storage, and Label Map Segmentation Storage."""
PROJECTIONS = ("CR", "DX", "MG", "IO", "PX", "RG", "XA", "RF")
"""Modalities in which the VOI LUT or window is a part of the picture."""
DISPLAY_FACTS = ("modality", "photometric", "slope", "intercept", "window", "low", "high", "inverted")
"""Keys of Display.facts."""
_MAGIC, _MAGIC_AT = b"DICM", 128
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_SYNTAXES = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
"""(implicit VR, little endian) -> transfer syntax, of files that do not name theirs."""
_HALF = 0.5

Slices = Shaped[np.ndarray, "n h w c"]


def is_dicom(raw: bytes) -> bool:
    """Whether a file begins as DICOM files do (some old ones have no such beginning)."""
    return raw[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC


def decode_dicom(raw: bytes, where: str) -> Slices:
    """Decode all frames of a DICOM file into (n, h, w, c), n = 1 for a single image; see the module for the values.

    The type is the smallest of uint8, uint16, int16 and float32 that has room for what the file may hold; rescaled CT
    (Hounsfield units) is int16. Colours are RGB, with palettes and YBR brought to it. The frames of a segmentation are
    0 and 1 (fractional ones are cut at a half), or the numbers of segments.

    Raises:
        InputError: It is no DICOM file or a damaged one, has no pixels, would take more than MAX_BYTES, or is
            compressed in a way that no installed package reads.
    """
    return np.ascontiguousarray(_decoded(raw, where, _meaning))


@dataclass(frozen=True)
class Display:
    """A DICOM file as it is to be looked at."""

    unit: Float[np.ndarray, "n h w c"]
    """Values in 0 (black) … 1 (white)."""
    facts: dict[str, str]
    """What was done: modality, photometric, slope, intercept, window ("centre/width", "table", "percentiles" or "full
    range"), low and high (the values that became 0 and 1; empty of a table and of colours), inverted ("yes" or "")."""


def decode_display(raw: bytes, where: str, *, percentiles: tuple[float, float] = (0.5, 99.5)) -> Display:
    """Decode all frames of a DICOM file for the eye: rescaled, through its VOI, inverted if MONOCHROME1.

    Other than in decode_dicom the VOI LUT or the first window is applied in every modality. Without one, values of 8
    bits keep their full range, and others are stretched between two percentiles of the file's values.

    Args:
        raw: The file.
        where: What to call it in messages.
        percentiles: Where there is no window.

    Raises:
        InputError: As decode_dicom; it is a segmentation.
    """
    return _decoded(raw, where, lambda frames, data: _display(frames, data, where, percentiles))


Made = TypeVar("Made")


def _decoded(raw: bytes, where: str, make: Callable[[Slices, "Dataset"], Made]) -> Made:
    data = _dataset(raw, where=where)
    _refuse_form(data, where=where)
    try:
        with silence("pydicom", "pydicom.pixels", everything=_is_compressed(data)):
            array = data.pixel_array
            shape = (-1, int(data.Rows), int(data.Columns), int(data.get("SamplesPerPixel", 1)))
            return make(array.reshape(shape), data)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # whatever a damaged file makes of the libraries
        raise InputError(f"{where}: {_reason(error, data)}") from error


def _display(frames: Slices, data: "Dataset", where: str, percentiles: tuple[float, float]) -> Display:
    form = str(data.get("PhotometricInterpretation", ""))
    if str(data.get("SOPClassUID", "")) in SEGMENTATIONS:
        raise InputError(
            f"{where}: it is a segmentation, not an image; leave it beside the DICOM files it belongs to"
        )
    facts = dict.fromkeys(DISPLAY_FACTS, "") | {
        "modality": str(data.get("Modality", "")),
        "photometric": form,
    }
    if frames.shape[3] > 1 or form == "PALETTE COLOR":
        colours = _meaning(frames, data)
        largest = np.iinfo(colours.dtype if colours.dtype.kind == "u" else frames.dtype).max
        return Display((colours / largest).astype(np.float32), facts | {"window": "full range"})
    if frames.dtype.kind == "f":
        values = _Values(frames.astype(np.float64), float(frames.min()), float(frames.max()), whole=False)
        lines = [(1.0, 0.0)]
    else:
        values, lines = _rescaled(frames, data), _lines(data, len(frames))
    facts |= {"slope": f"{lines[0][0]:g}", "intercept": f"{lines[0][1]:g}"}
    widths, centres = (np.ravel(data.get(key, 0) or 0) for key in ("WindowWidth", "WindowCenter"))
    if data.get("VOILUTSequence") or (widths.size and float(widths[0]) >= 1):
        shown = _shown(values, data)
        low, high, numbers = shown.low, shown.high, shown.numbers
        if data.get("VOILUTSequence"):
            facts["window"] = "table"
        else:
            centre, width = float(centres[0]), float(widths[0])
            facts |= {
                "window": f"{centre:g}/{width:g}",
                "low": f"{centre - width / 2:g}",
                "high": f"{centre + width / 2:g}",
            }
    else:
        numbers = values.numbers
        full = frames.dtype.itemsize == 1 and frames.dtype.kind != "f"
        low, high = (values.low, values.high) if full else map(float, np.percentile(numbers, percentiles))
        facts |= {"window": "full range" if full else "percentiles", "low": f"{low:g}", "high": f"{high:g}"}
    unit = np.clip((numbers - low) / (high - low if high > low else np.inf), 0, 1).astype(np.float32)
    inverted = form == "MONOCHROME1"
    return Display(1 - unit if inverted else unit, facts | {"inverted": "yes" if inverted else ""})


def read_header(raw: bytes, where: str) -> "Dataset":
    """Return everything that a DICOM file says but its pixels.

    Raises:
        InputError: It is no DICOM file, or a damaged one.
    """
    return _dataset(raw, where=where, pixels=False)


def _dataset(raw: bytes, *, where: str, pixels: bool = True) -> "Dataset":
    import pydicom
    from pydicom.uid import UID

    _refuse_bomb(raw, where=where)
    try:
        with silence("pydicom"):
            data = pydicom.dcmread(io.BytesIO(raw), force=not is_dicom(raw), stop_before_pixels=not pixels)
            implicit, little = map(bool, data.original_encoding)
            if "TransferSyntaxUID" not in data.file_meta:
                data.file_meta.TransferSyntaxUID = UID(_SYNTAXES[implicit, little])
            known = "SOPClassUID" in data or "Rows" in data
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(
            f"{where}: not a whole DICOM file ({type(error).__name__}: {error}); replace it or take it out"
        ) from error
    if not known:
        raise InputError(f"{where}: the file is not a DICOM image (it begins with {raw[:12]!r}); take it out")
    return data


def _refuse_bomb(raw: bytes, *, where: str) -> None:
    """Refuse a deflated file that would unpack to more than an image may take: pydicom unpacks it as a whole."""
    head = raw[_MAGIC_AT : _MAGIC_AT + 1024]
    if not is_dicom(raw) or _DEFLATED.encode() not in head:
        return
    start = (
        _MAGIC_AT + 16 + int.from_bytes(head[12:16], "little")
    )  # the group of the file's own data has its length
    try:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        size, rest = 0, raw[start:]
        while rest and not unpacker.eof:
            size += len(unpacker.decompress(rest, 2**24))
            rest = unpacker.unconsumed_tail
            if size > MAX_BYTES:
                raise InputError(
                    f"{where}: it unpacks to more than {MAX_BYTES:,} bytes; the file is damaged or forged"
                )
    except zlib.error as error:
        raise InputError(f"{where}: not a whole DICOM file ({error}); replace it or take it out") from error


def _refuse_form(data: "Dataset", *, where: str) -> None:
    try:
        with silence("pydicom"):
            if not any(name in data for name in _PIXELS):
                raise InputError(
                    f"{where}: it has no pixels ({_kind(data)}); expected an image, take the file out"
                )
            rows, columns = int(data.Rows), int(data.Columns)
            samples, frames = int(data.get("SamplesPerPixel", 1)), int(data.get("NumberOfFrames") or 1)
            claimed = rows * columns * samples * frames * max(1, int(data.get("BitsAllocated", 8)) // 8)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{where}: its size cannot be read ({type(error).__name__}: {error}); replace the file or take it out"
        ) from error
    if not 0 < claimed <= MAX_BYTES:
        raise InputError(
            f"{where}: {frames} frames of {rows}x{columns}x{samples} take {claimed:,} bytes; at most {MAX_BYTES:,} a "
            "file are read"
        )


def _kind(data: "Dataset") -> str:
    from pydicom.uid import UID

    return UID(str(data.get("SOPClassUID", "of unknown kind"))).name


def _is_compressed(data: "Dataset") -> bool:
    return bool(data.file_meta.TransferSyntaxUID.is_compressed)


def _reason(error: Exception, data: "Dataset") -> str:
    text = " ".join(str(error).split())
    syntax = data.file_meta.TransferSyntaxUID
    if isinstance(error, (NotImplementedError, RuntimeError)) and _is_compressed(data):
        return (
            f"its pixels are stored as {syntax.name or syntax}, which cannot be read here ({text}); "
            'pip install "masksmith[readers]", save the file uncompressed, or replace it if it is damaged'
        )
    return f"its pixels cannot be decoded ({type(error).__name__}: {text}); replace the file or take it out"


# --- from stored values to numbers ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Values:
    """Numbers (n, h, w, 1), the least and the largest that the file could hold, and whether all are whole."""

    numbers: Shaped[np.ndarray, "n h w 1"]
    low: float
    high: float
    whole: bool = True


def _meaning(frames: Slices, data: "Dataset") -> Slices:
    """Return what stored values mean."""
    form = str(data.get("PhotometricInterpretation", ""))
    if str(data.get("SOPClassUID", "")) in SEGMENTATIONS:
        return _segments(frames, data)
    if frames.shape[3] > 1:
        return frames[..., :3].astype(_least_type(frames))
    if form == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        return np.asarray(apply_color_lut(frames[..., 0], data))[..., :3]
    if frames.dtype.kind == "f":
        return frames.astype(np.float32)
    values = _voi(_rescaled(frames, data), data)
    if form == "MONOCHROME1":
        values = replace(values, numbers=values.low + values.high - values.numbers)
    return _typed(values, as_signed=data.get("Modality") == "CT")


def _segments(frames: Slices, data: "Dataset") -> Slices:
    if data.get("SegmentationType") == "FRACTIONAL":
        most = int(data.get("MaximumFractionalValue", 255))
        return (frames >= _HALF * most).astype(np.uint8)
    return frames.astype(_least_type(frames))


def _least_type(frames: Slices) -> type[np.generic]:
    size = frames.dtype.itemsize
    return np.uint8 if size == 1 else np.uint16 if size == 2 else np.float32


def _rescaled(frames: Slices, data: "Dataset") -> _Values:
    from pydicom.pixels import apply_modality_lut

    bits, signed = int(data.BitsStored), bool(data.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if "ModalityLUTSequence" in data:
        table = data.ModalityLUTSequence[0]
        return _Values(apply_modality_lut(frames, data), 0, 2 ** int(table.LUTDescriptor[2]) - 1)
    lines = _lines(data, len(frames))
    if set(lines) == {(1.0, 0.0)}:
        return _Values(frames, low, high)
    slope, intercept = (np.array(one)[:, None, None, None] for one in zip(*lines, strict=True))
    ends = [slope * low + intercept, slope * high + intercept]
    whole = all(number.is_integer() for line in lines for number in line)
    return _Values(frames * slope + intercept, float(np.min(ends)), float(np.max(ends)), whole)


def _lines(data: "Dataset", count: int) -> list[tuple[float, float]]:
    """Return slope and intercept of each frame: the file's, or those of its functional groups."""
    shared = _line(next(iter(data.get("SharedFunctionalGroupsSequence") or []), None)) or _line_of(data)
    groups: Sequence[Any] = data.get("PerFrameFunctionalGroupsSequence") or []
    own = [_line(group) for group in groups]
    own += [None] * (count - len(own))
    return [one or shared or (1.0, 0.0) for one in own[:count]]


def _line(group: Any) -> tuple[float, float] | None:  # noqa: ANN401
    sequence = group.get("PixelValueTransformationSequence") if group is not None else None
    return _line_of(sequence[0]) if sequence else None


def _line_of(data: "Dataset") -> tuple[float, float] | None:
    if data.get("RescaleSlope") is None or data.get("RescaleIntercept") is None:
        return None
    return float(data.RescaleSlope), float(data.RescaleIntercept)


def _voi(values: _Values, data: "Dataset") -> _Values:
    """Bring the values of a projection radiograph through its VOI LUT or, without one, its (first) window."""
    if str(data.get("Modality", "")) not in PROJECTIONS:
        return values
    return _shown(values, data)


def _shown(values: _Values, data: "Dataset") -> _Values:
    from pydicom.pixels import apply_voi, apply_windowing

    if data.get("VOILUTSequence"):
        table = data.VOILUTSequence[0]
        numbers = apply_voi(np.rint(values.numbers).astype(np.int64), data)
        return _Values(numbers, 0, 2 ** int(table.LUTDescriptor[2]) - 1)
    widths = np.ravel(data.get("WindowWidth", 0) or 0)
    if widths.size == 0 or float(widths[0]) < 1:
        return values  # no window, or one of no width
    return _Values(np.rint(apply_windowing(values.numbers, data)), values.low, values.high)


def _typed(values: _Values, *, as_signed: bool) -> Slices:
    """Return the numbers in a type of TYPES: whole ones by what the file could hold, signed ones by what it holds."""
    numbers = values.numbers
    if not values.whole:
        return numbers.astype(np.float32)
    low, high = numbers.min(), numbers.max()
    if (as_signed or values.low < 0) and low >= -(2**15) and high < 2**15:
        return numbers.astype(np.int16)
    if values.low >= 0 and low >= 0 and high < 2**16:
        return numbers.astype(np.uint8 if values.high < 2**8 else np.uint16)
    return numbers.astype(np.float32)
