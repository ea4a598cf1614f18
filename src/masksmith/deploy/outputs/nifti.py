"""The masks of a volume's slices as one NIfTI label volume on its grid."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from masksmith.core.errors import InputError
from masksmith.data.decode.nifti import SUFFIXES, label_volume
from masksmith.data.decode.reader import ending
from masksmith.deploy.outputs.masks import Masks
from masksmith.deploy.picture import Numbers, Picture


def volumes_of(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Return ``nifti/ID.nii.gz`` -> the slices of that volume."""
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        if ending(picture.item.path) in SUFFIXES:
            groups.setdefault(f"nifti/{picture.item.id}.nii.gz", []).append(picture)
    return groups


def write_nifti(path: Path, pictures: Sequence[Picture], masks: Masks) -> None:
    """Write the labels of a volume (whole numbers, 0 is the background) with the affine and shape of the input.

    Objects are numbered through: one of another slice is another object.

    Raises:
        InputError: Labels that overlap have no one number.
    """
    item, target = pictures[0].item, masks.target
    if target.task == "multilabel":
        raise InputError(f"{item.path}: labels that overlap are no one label volume; write tiff or dicom-seg")
    slices, before = [], 0
    for picture in pictures:
        numbers = Numbers(masks[picture.id], target).whole()
        if target.task == "instances":
            numbers = numbers.astype(np.int32)
            numbers[numbers > 0] += before
            before = max(before, int(numbers.max(initial=0)))
        slices.append(numbers)
    stack = np.stack(slices)
    kind = next(one for one in (np.uint8, np.int16, np.int32) if int(stack.max()) <= np.iinfo(one).max)
    volume = label_volume(stack.astype(kind), item.reader.raw(item.path), where=item.path)
    path.write_bytes(gzip.compress(volume, compresslevel=6, mtime=0))
