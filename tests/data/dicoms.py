"""Small DICOM files for tests."""

import io

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

IMAGE_CLASS = "1.2.840.10008.5.1.4.1.1.2"


def uid(name):
    return generate_uid(entropy_srcs=[name])


def dicom(pixels, *, name="a", syntax=ExplicitVRLittleEndian, sop_class=IMAGE_CLASS, **fields):
    """A file of one image (h, w[, 3]) or frames (n, h, w), with further elements by keyword."""
    little = syntax != ExplicitVRBigEndian
    data = FileDataset(
        None,
        {},
        file_meta=FileMetaDataset(),
        preamble=b"\0" * 128,
        is_implicit_VR=False,
        is_little_endian=little,
    )
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid(name)
    pixels = np.asarray(pixels)
    colours = pixels.ndim == 3 and pixels.shape[2] == 3
    data.Rows, data.Columns = pixels.shape[:2] if colours else pixels.shape[-2:]
    if pixels.ndim == 3 and not colours:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel = 3 if colours else 1
    if colours:
        data.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    data.Modality = "CT"
    data.PixelData = pixels.tobytes()
    for key, value in fields.items():
        setattr(data, key, value)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def segmentation(masks, *, sources, labels=("Liver",), segments=None, **fields):
    """A SEG file: frames (n, h, w), the names of the slices that they refer to, and their segments' numbers."""
    frames = []
    for at in range(len(masks)):
        source, derivation, identity, frame = Dataset(), Dataset(), Dataset(), Dataset()
        source.ReferencedSOPInstanceUID = uid(sources[at])
        derivation.SourceImageSequence = [source]
        identity.ReferencedSegmentNumber = 1 if segments is None else segments[at]
        frame.DerivationImageSequence = [derivation]
        frame.SegmentIdentificationSequence = [identity]
        frames.append(frame)
    names = []
    for number, label in enumerate(labels, start=1):
        one = Dataset()
        one.SegmentNumber, one.SegmentLabel = number, label
        names.append(one)
    given = {
        "sop_class": "1.2.840.10008.5.1.4.1.1.66.4",
        "name": "seg",
        "Modality": "SEG",
        "SegmentationType": "FRACTIONAL",
        "MaximumFractionalValue": 255,
        "SegmentSequence": names,
        "PerFrameFunctionalGroupsSequence": frames,
    }
    return dicom(np.asarray(masks, np.uint8) * np.uint8(255), **given | fields)
