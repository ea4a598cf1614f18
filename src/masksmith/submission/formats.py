"""What is written for the judge: masks as PNG and the submission as CSV, one image in memory at a time."""

import csv
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from masksmith.core.arrays import Mask
from masksmith.core.errors import InputError
from masksmith.core.files import atomic_folder, atomic_path, write_member
from masksmith.data.catalog import SubmissionFormat
from masksmith.data.ids import check_id
from masksmith.data.rle import encode_rows


def write_outputs(folder: Path, path: Path, form: SubmissionFormat, masks: Iterable[Mask]) -> None:
    """Write masks as 8-bit PNG of 0 and 255 named by id, and the submission with the judge's ids, columns and rows.

    Args:
        folder: Of the PNG files; it is replaced as a whole.
        path: The CSV file.
        form: What the judge expects.
        masks: The mask of each id of ``form.ids``, in their order; each is used once.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
        atomic_folder(folder) as pngs,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((form.id_column, form.rle_column, *form.more))
        for name, mask in zip(form.ids, masks, strict=True):
            done, raw = cv2.imencode(".png", mask * np.uint8(255))
            assert done
            write_member(pngs / f"{check_id(name, where=str(folder))}.png", raw.tobytes())
            for runs in encode_rows(mask, dialect=form.dialect):
                writer.writerow((form.spelled.get(name, name), runs, *form.more.values()))


def read_mask(path: Path) -> Mask:
    """Read a mask that write_outputs has written, as 0 and 1.

    Raises:
        InputError: The file is missing or no image.
    """
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise InputError(f"{path}: no mask there, or not an image; run `masksmith submit` again")
    return (mask > 0).astype(np.uint8)
