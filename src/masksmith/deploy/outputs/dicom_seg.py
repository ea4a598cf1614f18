"""DICOM SEG: the masks of a series, or of an image alone, as segments that name the images they were made of.

Source: DICOM PS3.3, A.51 (Segmentation IOD); written with highdicom, https://highdicom.readthedocs.io.
"""

import warnings
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from masksmith.core.arrays import Shaped
from masksmith.core.errors import InputError
from masksmith.data.decode.dicom import is_dicom, read_header
from masksmith.data.decode.silence import silence
from masksmith.data.target import Target
from masksmith.deploy.outputs.masks import Masks
from masksmith.deploy.picture import Picture, shown_classes

if TYPE_CHECKING:
    from pydicom import Dataset

_TEXT = 64  # characters of a label
_SCHEME = "99MASKSMITH"
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
"""What each image must have, if only empty, and anonymised ones often lack."""


def series_of(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Return file -> the images whose masks go into it.

    The slices of a series that lie in space (and in one folder, of one size and orientation) are one file,
    ``dicom-seg/FOLDER/SERIES-UID.dcm``; any other image, and the frames of a file, are one of their
    own, ``dicom-seg/ID.dcm``.
    """
    groups: dict[tuple[Any, ...], list[Picture]] = {}
    for picture in pictures:
        data = _header(picture)
        if data is None:
            continue
        key: tuple[Any, ...] = (picture.item.id,)
        if data.get("ImagePositionPatient") is not None and picture.path == picture.item.path:
            turned = tuple(round(float(one), 3) for one in data.get("ImageOrientationPatient") or ())
            folder = str(PurePosixPath(picture.id).parent)
            key = (folder, str(data.SeriesInstanceUID), data.Rows, data.Columns, turned)
        groups.setdefault(key, []).append(picture)
    found: dict[str, list[Picture]] = {}
    for key, own in groups.items():
        name = str(PurePosixPath(key[0]) / key[1]) if len(key) > 1 else key[0]
        copy = name
        number = 2
        while f"dicom-seg/{copy}.dcm" in found:
            copy, number = f"{name}-{number}", number + 1
        found[f"dicom-seg/{copy}.dcm"] = own
    return found


def _header(picture: Picture) -> "Dataset | None":
    reader = picture.item.reader
    raw = reader.raw(picture.item.path)
    return read_header(raw, picture.path) if is_dicom(raw) else None


def _complete(data: "Dataset | None") -> "Dataset":
    assert data is not None
    for keyword in _MAY_BE_EMPTY:
        if keyword not in data:
            setattr(data, keyword, None)
    return data


def write_dicom_seg(path: Path, pictures: Sequence[Picture], masks: Masks) -> None:
    """Write a DICOM SEG of binary segments: one for each class, or for each object of each image.

    Raises:
        InputError: The source lacks what a SEG must repeat (patient, study, position).
    """
    pixels, labels = _segments([masks[picture.id] for picture in pictures], masks.target)
    each = pictures[:1] if pictures[0].path != pictures[0].item.path else pictures
    sources = [_complete(_header(one)) for one in each]
    try:
        with warnings.catch_warnings(), silence("pydicom", "highdicom"):
            warnings.simplefilter("ignore")
            _segmentation(sources, pixels, labels).save_as(path)
    except MemoryError:
        raise
    except Exception as error:  # whatever the library finds missing in the source
        raise InputError(
            f"{pictures[0].path}: no DICOM SEG can be made of it ({type(error).__name__}: {error}); "
            f"{len(pictures)} images are concerned"
        ) from error


def _segments(
    masks: Sequence[Shaped[np.ndarray, "h w *k"]], target: Target
) -> tuple[Shaped[np.ndarray, "n h w *k"], list[str]]:
    """Return the numbers of segments, 0 where there is none (of several labels 0 and 1), and the segments' names."""
    stack = np.stack(masks)
    if target.task == "instances":
        counts = [int(mask.max(initial=0)) for mask in masks]
        for layer, before in zip(stack, np.cumsum([0, *counts]), strict=False):
            layer[layer > 0] += before
        total = sum(counts)
        kind = np.uint8 if total < 2**8 else np.uint16
        return stack.astype(kind), [f"{target.classes[0]} {at}" for at in range(1, total + 1)] or [
            target.classes[0]
        ]
    if not target.exclusive:
        return stack.astype(np.uint8), list(target.classes)
    names = dict(shown_classes(target))
    table = np.zeros(len(target.classes), np.uint8)
    table[list(names)] = np.arange(1, len(names) + 1)
    return table[stack], list(names.values())


def _segmentation(
    sources: Sequence[Any], pixels: Shaped[np.ndarray, "n h w *k"], labels: Sequence[str]
) -> Any:  # noqa: ANN401
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    own = version("masksmith")
    algorithm = hd.AlgorithmIdentificationSequence(
        name="masksmith", family=codes.DCM.ArtificialIntelligence, version=own
    )
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label[:_TEXT],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=CodedConcept(f"SEGMENT{number}", _SCHEME, label[:_TEXT]),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, label in enumerate(labels, start=1)
    ]
    facts = [own, *labels, f"{zlib.crc32(pixels.tobytes())}", *(str(one.SOPInstanceUID) for one in sources)]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=generate_uid(entropy_srcs=["series", *facts]),
        series_number=1000,
        sop_instance_uid=generate_uid(entropy_srcs=["instance", *facts]),
        instance_number=1,
        manufacturer="masksmith",
        manufacturer_model_name="masksmith",
        software_versions=own,
        device_serial_number="0",
        omit_empty_frames=bool(pixels.any()),
    )
