"""DICOM series with DICOM SEG: by reference, in the order of positions, and patients as groups."""

import gzip
import shutil

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset

from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.layouts import read_catalog
from masksmith.data.layouts.dicom_series import dicom_series
from masksmith.data.tree import Tree
from tests.data.dicoms import dicom, segmentation, uid

HW = (12, 16)
PLANE = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}


def series(folder, *, patient="p", heights=(0, 3, 6), prefix="", suffix=".dcm"):
    """Slices whose names are in the reversed order of their positions."""
    folder.mkdir(parents=True, exist_ok=True)
    for at, z in enumerate(heights):
        name = f"{prefix}{len(heights) - at}"
        place = {"ImagePositionPatient": [0, 0, z], **PLANE}
        fields = {"PatientID": patient, "SeriesInstanceUID": uid(patient + prefix), "InstanceNumber": at}
        raw = dicom(np.full(HW, at, np.int16), name=name, **fields, **place)
        (folder / f"{name}{suffix}").write_bytes(raw)


def masks(count):
    return [np.pad(np.ones((2 + at, 3)), ((1, HW[0] - 3 - at), (2, HW[1] - 5))) for at in range(count)]


@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_frames_go_to_the_slices_that_they_refer_to(suffix, tmp_path):
    series(tmp_path / "data/ct", suffix=suffix)
    (tmp_path / "data/seg.dcm").write_bytes(segmentation(masks(2), sources=["1", "3"]))
    series(tmp_path / "data/other", patient="q", prefix="t", suffix=suffix)
    catalog = read_catalog(tmp_path / "data")
    assert (catalog.layout, catalog.labels, len(catalog.test)) == ("dicom_series", [], 3)
    assert [(one.id, one.mask, one.group) for one in catalog.train] == [
        ("3", "seg.dcm#1", "p"),
        ("2", None, "p"),
        ("1", "seg.dcm#0", "p"),
    ]
    cache = build_cache(catalog, tmp_path / "cache")
    assert (cache.target.task, cache.target.classes) == ("binary", ("Liver",))
    assert {name: int(cache.train_masks[name].sum()) for name in "123"} == {"1": 6, "2": 0, "3": 9}
    np.testing.assert_array_equal(cache.train_masks["3"][..., 0], masks(2)[1])


def test_several_segments_are_labels(tmp_path):
    series(tmp_path / "data")
    raw = segmentation(masks(3), sources=["1", "1", "2"], labels=("Liver", "Spleen"), segments=[1, 2, 2])
    (tmp_path / "data/z.dcm").write_bytes(raw)
    catalog = read_catalog(tmp_path / "data")
    assert catalog.labels == ["Liver", "Spleen"]
    cache = build_cache(catalog, tmp_path / "cache")
    assert cache.target.task == "multilabel"
    assert cache.train_masks["1"].sum(axis=(0, 1)).tolist() == [6, 9]
    assert cache.train_masks["2"].sum(axis=(0, 1)).tolist() == [0, 12]


def test_label_maps_are_class_maps(tmp_path):
    series(tmp_path / "data")
    classes = np.stack([one * (at + 1) for at, one in enumerate(masks(3))])
    classes[0, 10] = 2
    options = {"SegmentationType": "LABELMAP", "sop_class": "1.2.840.10008.5.1.4.1.1.66.7"}
    raw = segmentation(
        masks(3),
        sources=["1", "2", "3"],
        labels=("Liver", "Spleen", "Kidney"),
        PixelData=classes.astype(np.uint8).tobytes(),
        **options,
    )
    (tmp_path / "data/z.dcm").write_bytes(raw)
    cache = build_cache(read_catalog(tmp_path / "data"), tmp_path / "cache")
    assert cache.target.task == "multiclass"
    assert cache.target.classes[1:] == ("Liver", "Spleen", "Kidney")
    np.testing.assert_array_equal(cache.train_masks["1"][..., 0], classes[0])
    (tmp_path / "data/y.dcm").write_bytes(segmentation(masks(1), sources=["1"], name="y"))
    with pytest.raises(InputError, match="label maps and segments of one label a frame mixed"):
        read_catalog(tmp_path / "data")


def with_places(raw_frames, heights, directions):
    """Functional groups of frames that refer to nothing, but lie somewhere."""
    groups = []
    for z in heights[: len(raw_frames)]:
        frame, position, orientation, identity = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient, orientation.ImageOrientationPatient = [0, 0, z], directions
        identity.ReferencedSegmentNumber = 1
        frame.PlanePositionSequence, frame.PlaneOrientationSequence = [position], [orientation]
        frame.SegmentIdentificationSequence = [identity]
        groups.append(frame)
    referenced = Dataset()
    referenced.SeriesInstanceUID = uid("p")
    return {"PerFrameFunctionalGroupsSequence": groups, "ReferencedSeriesSequence": [referenced]}


def test_frames_without_reference_go_by_their_places(tmp_path):
    series(tmp_path)
    groups = with_places(masks(2), [6, 0], PLANE["ImageOrientationPatient"])
    (tmp_path / "z.dcm").write_bytes(segmentation(masks(2), sources=["-", "-"], **groups))
    assert {one.id: one.mask for one in read_catalog(tmp_path).train} == {
        "1": "z.dcm#0",
        "2": None,
        "3": "z.dcm#1",
    }


def test_frames_that_lie_elsewhere_and_slices_that_are_not_here(tmp_path):
    series(tmp_path)
    groups = with_places(masks(1), [5], PLANE["ImageOrientationPatient"])
    reference = segmentation(masks(1), sources=["1"])
    (tmp_path / "z.dcm").write_bytes(reference)
    assert dicom_series(Tree(tmp_path)) is not None
    source, derivation = Dataset(), Dataset()
    source.ReferencedSOPInstanceUID = uid("1")
    derivation.SourceImageSequence = [source]
    groups["PerFrameFunctionalGroupsSequence"][0].DerivationImageSequence = [derivation]
    (tmp_path / "z.dcm").write_bytes(segmentation(masks(1), sources=["1"], **groups))
    with pytest.raises(InputError, match=r"z\.dcm#0: the frame lies 1 mm beside 1\.dcm"):
        read_catalog(tmp_path)
    (tmp_path / "z.dcm").write_bytes(segmentation(masks(2), sources=["1", "9"]))
    (found,) = read_catalog(tmp_path).findings
    assert (found.title, found.level) == ("segmentations without their images", "warning")
    (tmp_path / "y.dcm").write_bytes(segmentation(masks(1), sources=["1"], name="y"))
    assert "slices segmented twice" in [one.title for one in read_catalog(tmp_path).findings]
    shutil.copy(tmp_path / "1.dcm", tmp_path / "copy.dcm")
    (tmp_path / "cut.dcm").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"2 DICOM files cannot be used:(?s:.*)copy\.dcm: another file holds the same"
    ):
        read_catalog(tmp_path)


def test_patients_of_paired_files_are_groups(tmp_path):
    for at, patient in enumerate(("p", "p", "q", "")):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        raw = dicom(np.full(HW, at, np.int16), name=str(at), PatientID=patient)
        (tmp_path / f"images/{at}.dcm").write_bytes(raw)
        cv2.imwrite(str(tmp_path / f"masks/{at}.png"), masks(1)[0].astype(np.uint8) * 255)
    catalog = read_catalog(tmp_path)
    assert (catalog.layout, [one.group for one in catalog.train]) == ("paired_folders", ["p", "p", "q", None])
    (tmp_path / "images/1.dcm").write_bytes(dicom(np.full(HW, 1, np.int16), name="1", PatientID="r"))
    assert {one.group for one in read_catalog(tmp_path).train} == {None}


@pytest.mark.real
def test_the_liver_of_the_nrrd(shared, tmp_path):
    folder = shared / "data/dicom-seg-dcmqi/segmentations"
    shutil.copytree(folder / "ct-3slice", tmp_path / "data/ct")
    shutil.copy(folder / "liver.dcm", tmp_path / "data")
    cache = build_cache(read_catalog(tmp_path / "data"), tmp_path / "cache")
    head, _, packed = (folder / "liver_seg.nrrd").read_bytes().partition(b"\n\n")
    assert b"encoding: gzip" in head
    volume = np.frombuffer(gzip.decompress(packed), "<i2").reshape(3, 512, 512)
    for at, name in enumerate(("03", "02", "01")):
        image, mask = cache.train_images[name][..., 0], cache.train_masks[name][..., 0]
        np.testing.assert_array_equal(mask, volume[at])
        assert 32 < image[mask == 1].mean() < 42
        assert image.min() == -2000 - 1024


def test_scanners_that_write_with_and_without_a_sign(tmp_path):
    for at, dtype in enumerate((np.int16, np.uint16, np.uint8)):
        (tmp_path / "data/images").mkdir(exist_ok=True, parents=True)
        (tmp_path / "data/masks").mkdir(exist_ok=True)
        (tmp_path / f"data/images/{at}.dcm").write_bytes(
            dicom(np.full(HW, 7, dtype), name=str(at), Modality="MR")
        )
        cv2.imwrite(str(tmp_path / f"data/masks/{at}.png"), masks(1)[0].astype(np.uint8) * 255)
    cache = build_cache(read_catalog(tmp_path / "data"), tmp_path / "cache")
    assert (cache.train_images.dtype, cache.train_images["1"].max()) == (np.float32, 7)
    (found,) = cache.mask_findings
    assert found.detail == "int16 and uint16 and uint8; all are read as float32"


def test_a_value_that_pydicom_complains_of_reaches_no_screen(tmp_path, recwarn):
    """InstanceNumber is parsed when it is asked for, long after the file was opened."""
    raw = dicom(np.zeros((4, 5), np.uint16), name="a", InstanceNumber="77")
    assert raw.count(b"77") == 1
    (tmp_path / "a.dcm").write_bytes(raw.replace(b"77", b"1A"))
    dicom_series(Tree(tmp_path))
    assert not recwarn.list
