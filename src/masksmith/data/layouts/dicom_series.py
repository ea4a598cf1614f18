"""DICOM images with DICOM segmentations (SEG): a frame is the mask of the slice whose instance it refers to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from masksmith.core.errors import InputError
from masksmith.data.catalog import AskedTarget, Catalog, Sample, SubmissionFormat
from masksmith.data.decode.dicom import SEGMENTATIONS, SUFFIXES, is_dicom, read_header
from masksmith.data.decode.silence import silence
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.findings import Finding, refuse_all, some
from masksmith.data.ids import check_id, check_name
from masksmith.data.tree import Tree

_LABEL_MAP = SEGMENTATIONS[1]
_APART_MM, _TURNED = 0.1, 1e-3
"""By how much a frame may lie beside its slice (mm), and be turned against it (of a direction)."""

Key = tuple[str, int]
"""Instance UID and frame, from 1 on, of a slice; the frame is 0 where the file is a single image."""


@dataclass(frozen=True)
class _Slice:
    """A slice of a series: one file, or one frame of a file."""

    path: str
    key: Key
    series: str
    patient: str
    place: tuple[float, ...]
    """Position of its first pixel in mm, () where the file does not say."""
    directions: tuple[float, ...]
    """Directions of its rows and columns, six numbers; () where the file does not say."""
    number: int

    @property
    def height(self) -> float:
        """Position along the normal; without one the number within the series."""
        if len(self.place) != 3 or len(self.directions) != 6:
            return float(self.number)
        return float(np.dot(np.cross(self.directions[:3], self.directions[3:]), self.place))


@dataclass(frozen=True)
class _Frame:
    """A frame of a segmentation."""

    path: str
    key: Key | None
    """The slice that it refers to."""
    label: str
    """Of its segment; empty in a label map."""
    place: tuple[float, ...]
    directions: tuple[float, ...]
    series: tuple[str, ...]
    """Series that the segmentation refers to."""


@dataclass
class _Found:
    """What the DICOM files of a folder are."""

    slices: list[_Slice] = field(default_factory=list)
    frames: list[_Frame] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """Of the segments, in the order of the files and their numbers."""
    names: dict[int, str] = field(default_factory=dict)
    """Value -> label, of label maps."""
    files: list[str] = field(default_factory=list)
    """Segmentations."""
    others: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def dicom_series(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """DICOM files in any folders, and DICOM SEG files that refer to their instances (or lie in their places).

    Slices of a series are in the order of their positions along the normal; those without a frame have an empty
    mask. A series without any segmentation is to be segmented. Images of a patient, else of a series, are a group.
    Segments of one label make a binary set, several make labels that may overlap; label maps (LABELMAP) are class maps.

    Raises:
        InputError: A SEG file lies elsewhere than its slices, or label maps and other segments are mixed.
    """
    paths = dicom_files(tree)
    found = _read(tree, paths) if paths else _Found()
    if not found.frames or not found.slices:
        return None
    refuse_all(found.problems, what="DICOM files")
    masks, lost = _by_slice(found)
    if not masks:
        return None
    segmented = {one.series for one in found.slices if one.key in masks}
    ordered = sorted(found.slices, key=lambda one: (one.patient, one.series, one.height, one.path))
    train = [one for one in ordered if one.series in segmented]
    test = [one for one in ordered if one.series not in segmented]
    labels = [check_name(one, where=f"{tree.root} (segments)") for one in found.labels]
    several = len(labels) > 1 and not found.names
    ids = _ids(ordered)
    samples = [_sample(one, ids[one.key], masks.get(one.key, []), several=several) for one in train]
    submission = SubmissionFormat.assumed([ids[one.key] for one in test], asked.dialect)
    return Catalog(
        root=str(tree.root.resolve()),
        layout="dicom_series",
        content_hash=tree.content_hash,
        train=samples,
        test=[Sample(ids[one.key], _path(one), group=one.patient or one.series) for one in test],
        submission=submission.with_labels(labels) if several else submission,
        notes=[],
        asked=AskedTarget(names=found.names if len(found.names) > 2 else {}),
        labels=labels if several else [],
        classes=labels if len(labels) == 1 and not found.names else [],
        why=[
            f"{len(found.files)} DICOM segmentations ({some(found.files)}) refer to {len(masks)} of "
            f"{len(found.slices)} slices in {len({one.series for one in found.slices})} series",
            f"segments: {some(found.labels, most=20)}",
        ],
        left_out=[f"{len(found.others)} files are neither images nor segmentations: {some(found.others)}"]
        if found.others
        else [],
        findings=_findings(lost, masks, several=several),
    )


def dicom_files(tree: Tree) -> list[str]:
    """Return the files that are DICOM by their beginning, or by their ending where they have none such."""
    found = []
    for folder in tree.folders:
        for path in tree.files(folder):
            suffix = PurePosixPath(path).suffix.lower()
            unnamed = suffix in ("", ".seg") or suffix[1:].isdecimal()
            if suffix in SUFFIXES or (unnamed and is_dicom(tree.read(path))):
                found.append(path)
    return found


@silence("pydicom")  # values are parsed, and complained of, when they are asked for
def _read(tree: Tree, paths: Iterable[str]) -> _Found:
    found = _Found()
    for path in paths:
        try:
            header = read_header(tree.read(path), path)
            if str(header.get("SOPClassUID", "")) in SEGMENTATIONS:
                _add_segmentation(found, header, path)
            elif "Rows" in header and "SOPInstanceUID" in header:
                found.slices += _slices(header, path)
                if len({one.key for one in found.slices}) < len(found.slices):
                    found.problems.append(
                        f"{path}: another file holds the same instance; keep one of the two"
                    )
            else:
                found.others.append(path)
        except InputError as error:
            found.problems.append(str(error))
        except Exception as error:  # whatever a damaged file makes of the library
            found.problems.append(
                f"{path}: its header cannot be read ({type(error).__name__}: {error}); replace the file or take it out"
            )
    return found


def _numbers(values: Any) -> tuple[float, ...]:  # noqa: ANN401
    return tuple(float(value) for value in values or ())


def _geometry(data: Any, name: str, value: str, *others: Any) -> tuple[float, ...]:  # noqa: ANN401
    """Return a position or directions from the functional groups of a frame, else from the file itself."""
    for group in others:
        sequence = group.get(name) if group is not None else None
        if sequence and value in sequence[0]:
            return _numbers(sequence[0].get(value))
    return _numbers(data.get(value))


def _groups(data: Any) -> tuple[Any, list[Any]]:  # noqa: ANN401
    shared = data.get("SharedFunctionalGroupsSequence")
    return (shared[0] if shared else None), list(data.get("PerFrameFunctionalGroupsSequence") or [])


def _slices(data: Any, path: str) -> list[_Slice]:  # noqa: ANN401
    count = int(data.get("NumberOfFrames") or 1)
    shared, own = _groups(data)
    own = own if len(own) == count else [None] * count
    return [
        _Slice(
            path,
            (str(data.SOPInstanceUID), at + 1 if count > 1 else 0),
            str(data.get("SeriesInstanceUID", "")),
            str(data.get("PatientID", "") or "").strip(),
            _geometry(data, "PlanePositionSequence", "ImagePositionPatient", group, shared),
            _geometry(data, "PlaneOrientationSequence", "ImageOrientationPatient", group, shared),
            at if count > 1 else int(data.get("InstanceNumber") or 0),
        )
        for at, group in enumerate(own)
    ]


def _add_segmentation(found: _Found, data: Any, path: str) -> None:  # noqa: ANN401
    segments = {
        int(one.SegmentNumber): str(one.get("SegmentLabel", one.SegmentNumber))
        for one in data.SegmentSequence
    }
    is_map = str(data.SOPClassUID) == _LABEL_MAP
    shared, own = _groups(data)
    series = tuple(str(one.SeriesInstanceUID) for one in data.get("ReferencedSeriesSequence") or [])
    found.files.append(path)
    if is_map:
        found.names |= segments
    found.labels += [label for number, label in segments.items() if number and label not in found.labels]
    for at, group in enumerate(own):
        identity = group.get("SegmentIdentificationSequence") or (shared or {}).get(
            "SegmentIdentificationSequence"
        )
        label = "" if is_map or not identity else segments[int(identity[0].ReferencedSegmentNumber)]
        found.frames.append(
            _Frame(
                f"{path}#{at}",
                _source(group) or _source(shared),
                label,
                _geometry(data, "PlanePositionSequence", "ImagePositionPatient", group, shared),
                _geometry(data, "PlaneOrientationSequence", "ImageOrientationPatient", group, shared),
                series,
            )
        )


def _source(group: Any) -> Key | None:  # noqa: ANN401
    """Return the slice that a frame's functional group refers to."""
    derived = group.get("DerivationImageSequence") if group is not None else None
    sources = derived[0].get("SourceImageSequence") if derived else None
    if not sources:
        return None
    frame = np.ravel(sources[0].get("ReferencedFrameNumber") or 0)
    return str(sources[0].ReferencedSOPInstanceUID), int(frame[0])


def _by_slice(found: _Found) -> tuple[dict[Key, list[_Frame]], list[_Frame]]:
    """Return slice -> its frames, and the frames without a slice.

    Raises:
        InputError: A frame lies elsewhere than its slice, or a set has segments of both kinds.
    """
    if found.names and any(frame.label for frame in found.frames):
        raise InputError(
            f"{some(found.files)}: label maps and segments of one label a frame mixed; expected one kind, take the "
            "others out"
        )
    by_key = {one.key: one for one in found.slices}
    masks: dict[Key, list[_Frame]] = {}
    lost, problems = [], []
    for frame in found.frames:
        place = by_key.get(frame.key) if frame.key else _placed(frame, found.slices)
        if place is None:
            lost.append(frame)
            continue
        if apart := _apart(place, frame):
            problems.append(f"{frame.path}: {apart} {place.path}; resample the segmentation onto its images")
        masks.setdefault(place.key, []).append(frame)
    refuse_all(problems, what="frames")
    return masks, lost


def _placed(frame: _Frame, slices: Sequence[_Slice]) -> _Slice | None:
    """Return the slice that lies where a frame without reference does, in a series that its file refers to."""
    near = [
        one
        for one in slices
        if frame.place and len(one.place) == 3 and one.series in frame.series and not _apart(one, frame)
    ]
    return near[0] if len(near) == 1 else None


def _apart(place: _Slice, frame: _Frame) -> str:
    """Return in words how a frame lies elsewhere than a slice; empty where it does not, or where nobody says."""
    if len(place.place) == len(frame.place) == 3:
        distance = float(np.linalg.norm(np.subtract(place.place, frame.place)))
        if distance > _APART_MM:
            return f"the frame lies {distance:.3g} mm beside"
    both = len(place.directions) == len(frame.directions) == 6
    turned = both and np.abs(np.subtract(place.directions, frame.directions)).max() > _TURNED
    return "the frame is turned against" if turned else ""


def _path(one: _Slice) -> str:
    return f"{one.path}#{one.key[1] - 1}" if one.key[1] else one.path


def _ids(slices: Sequence[_Slice]) -> dict[Key, str]:
    """Return the ids of slices: names of files where all differ, else their paths; frames by number."""
    paths = {one.path for one in slices}
    bare = {
        one: PurePosixPath(one.removesuffix(PurePosixPath(one).suffix) if _named(one) else one)
        for one in paths
    }
    differ = len({path.name for path in bare.values()}) == len(paths)
    named = {}
    for one in slices:
        name = bare[one.path].name if differ else str(bare[one.path])
        named[one.key] = check_id(
            f"{name}_{one.key[1] - 1:03d}" if one.key[1] else name, where=repr(one.path)
        )
    return named


def _named(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def _sample(one: _Slice, name: str, frames: Sequence[_Frame], *, several: bool) -> Sample:
    plain = Sample(name, _path(one), group=one.patient or one.series)
    if several:
        return replace(plain, label_masks={frame.label: frame.path for frame in frames})
    return replace(plain, mask=frames[-1].path) if frames else replace(plain, rle=[])


def _findings(
    lost: Sequence[_Frame], masks: Mapping[Key, Sequence[_Frame]], *, several: bool
) -> list[Finding]:
    found = []
    if lost:
        paths = some([one.path for one in lost])
        detail = f"{len(lost)} frames refer to images that are not here, and are left out: {paths}"
        found.append(Finding("warning", "segmentations without their images", detail))
    twice = []
    for frames in masks.values():
        labels = [frame.label if several else "" for frame in frames]
        twice += [frame.path for at, frame in enumerate(frames) if labels[at] in labels[at + 1 :]]
    if twice:
        detail = f"{len(twice)} frames are of a slice that another file segments too; that file is taken: {some(twice)}"
        found.append(Finding("warning", "slices segmented twice", detail))
    return found


@silence("pydicom")
def group_by_patient(tree: Tree, catalog: Catalog) -> Catalog:
    """Return the catalogue with the patients of DICOM images as groups, where several images have one.

    Nothing changes where a group is known, images are of other formats, all are of one patient, or each is of another.
    A file that cannot be read is left for those who decode it.
    """
    patients: dict[str, str] = {}
    for sample in catalog.train:
        path = sample.image.partition("#")[0]
        if sample.group is not None or PurePosixPath(path).suffix.lower() not in SUFFIXES:
            return catalog
        try:
            header = read_header(tree.read(path), path)
            patients[sample.id] = str(header.get("PatientID", "") or "").strip()
        except InputError:
            continue
    known = {name: patient for name, patient in patients.items() if patient}
    if not 1 < len(set(known.values())) < len(known):
        return catalog
    train = [replace(one, group=known.get(one.id)) for one in catalog.train]
    why = f"{len(set(known.values()))} patients by PatientID: images of one are a group"
    return replace(catalog, train=train, why=[*catalog.why, why])
