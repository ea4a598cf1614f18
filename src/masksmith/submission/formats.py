"""What is written for the judge: masks as PNG and the submission as CSV, one image in memory at a time."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from masksmith.core.arrays import AnyMask, Shaped, UInt8, row_bands
from masksmith.core.errors import InputError
from masksmith.core.files import atomic_folder, atomic_path, write_member
from masksmith.data.catalog import SubmissionFormat
from masksmith.data.decode.palette import decode_indices, encode_indices, has_palette
from masksmith.data.ids import check_id, check_name
from masksmith.data.instances import coco_annotations, label_png, object_rows
from masksmith.data.rle import DIALECTS, encode, encode_rows
from masksmith.data.target import BINARY, Target

CLASS_COLUMN = "class"
"""Of the CSV of class maps: a row an image and class, the background left out."""


def mask_values(target: Target) -> Shaped[np.ndarray, " k"]:
    """Return the value of each code of a mask in its PNG: 0 and 255, or the values that the mask files have."""
    if not target.exclusive:
        return np.array([0, 255], np.uint8)
    return np.array(target.values, np.uint8 if max(target.values) < 256 else np.uint16)


def object_dialect(form: SubmissionFormat) -> str:
    """Return the dialect of a row an object: the judge's, or that of the Data Science Bowl 2018 where none is known."""
    return form.dialect if DIALECTS[form.dialect].by_object else "dsb"


def write_masks(
    folder: Path, masks: Iterable[tuple[str, AnyMask]], target: Target = BINARY, *, where: Path
) -> Iterator[tuple[str, AnyMask]]:
    """Write masks as PNG named by id into a folder that is there, and yield each again; messages call it ``where``.

    Those of several labels lie in a folder each: ``LABEL/ID.png``.
    """
    if target.task == "multilabel":
        for label in target.classes:
            check_name(label, where=f"{where} (labels)")
    for name, mask in masks:
        place = folder / f"{check_id(name, where=str(where))}.png"
        if target.task == "multilabel":
            for at, label in enumerate(target.classes):
                write_member(folder / label / f"{name}.png", _png(mask_values(target)[mask[..., at]]))
        else:
            write_member(place, mask_png(mask, target, where=f"image {name!r}"))
        yield name, mask
        del mask  # before the next is made


def mask_png(mask: AnyMask, target: Target, *, where: str) -> bytes:
    """Return a mask (h, w) as a PNG file: 0 and 255, the classes' values or colours, or object numbers of 16 bits.

    Raises:
        InputError: More objects than 16 bits can number.
    """
    if target.task == "instances":
        return label_png(mask, where=where)
    values = mask_values(target)[mask]
    if target.palette:
        return encode_indices(values, dict(zip(target.values, target.palette, strict=True)))
    return _png(values)


def with_coco(
    path: Path, masks: Iterable[tuple[str, AnyMask]], *, category: str
) -> Iterator[tuple[str, AnyMask]]:
    """Write the objects of label masks (h, w) as a COCO JSON file, and yield each mask again.

    Source: https://cocodataset.org/#format-data
    """
    images: list[dict[str, int | str]] = []
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"categories": [{"id": 1, "name": category}]})[:-1] + ', "annotations": [')
        total = 0
        for at, (name, mask) in enumerate(masks, start=1):
            height, width = mask.shape
            images.append({"id": at, "file_name": f"{name}.png", "height": height, "width": width})
            for annotation in coco_annotations(mask, image_id=at, first_id=total + 1):
                file.write(f"{',' if total else ''}\n{json.dumps(annotation)}")
                total += 1
            yield name, mask
        file.write(f'\n], "images": {json.dumps(images)}}}\n')


def _png(image: Shaped[np.ndarray, "h w"]) -> bytes:
    done, raw = cv2.imencode(".png", image)
    assert done
    return bytes(raw.tobytes())


def write_outputs(
    folder: Path,
    path: Path,
    form: SubmissionFormat,
    masks: Iterable[AnyMask],
    target: Target = BINARY,
    *,
    coco: Path | None = None,
) -> None:
    """Write masks as PNG named by id, and the submission with the judge's ids, columns and rows.

    PNG files hold 0 and 255, the values of the classes (with the palette that the mask files have), or (16 bits) the
    number of each object. The CSV of class maps
    has a row for each image and class but the first, the background; that of several labels a row for each image and
    label, in the judge's order, which may go label by label: the texts of all rows are held until then.

    Args:
        folder: Of the PNG files; it is replaced as a whole.
        path: The CSV file.
        form: What the judge expects.
        masks: The mask of each id of ``form.ids``, in their order; each is used once.
        target: The task and its classes.
        coco: Of a COCO JSON file of the objects; None: none is written.
    """
    named: Iterable[tuple[str, AnyMask]] = zip(form.ids, masks, strict=True)
    if coco is not None:
        named = with_coco(coco, named, category=target.classes[0])
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
        atomic_folder(folder) as pngs,
    ):
        writer = csv.writer(file, lineterminator="\n")
        if target.task == "multilabel":
            writer.writerows(_label_table(form, write_masks(pngs, named, target, where=folder), target))
            return
        columns = [CLASS_COLUMN] if target.exclusive else []
        writer.writerow((form.id_column, *columns, form.rle_column, *form.more))
        for name, mask in write_masks(pngs, named, target, where=folder):
            rows = _row_cells(mask, form, target)
            del mask  # before the next is made
            writer.writerows((form.spelled.get(name, name), *row, *form.more.values()) for row in rows)


def _row_cells(mask: AnyMask, form: SubmissionFormat, target: Target) -> Iterator[tuple[str, ...]]:
    """Yield what the rows of an image have beside its id: the class, where there are several, and the runs."""
    if target.exclusive:
        for at, label in enumerate(target.classes[1:], start=1):
            yield label, *encode_rows((mask == at).view(np.uint8), dialect=form.dialect)
    elif target.task == "instances":
        yield from ((runs,) for runs in object_rows(mask, dialect=object_dialect(form)))
    else:
        yield from ((runs,) for runs in encode_rows(mask, dialect=form.dialect))


def _label_table(
    form: SubmissionFormat, masks: Iterable[tuple[str, AnyMask]], target: Target
) -> Iterator[list[str]]:
    """Yield the header and the rows of an image and label."""
    texts = {
        (name, label): encode(mask[..., at], dialect=form.dialect)
        for name, mask in masks
        for at, label in enumerate(target.classes)
    }
    yield form.label_header
    if form.wide:
        for name, cell in {row.id: row.cell for row in form.label_rows}.items():
            runs = {column: texts[name, label] for label, column in form.wide.items()}
            yield [({form.id_column: cell} | runs)[column] for column in form.columns]
        return
    for row in form.label_rows:
        cells = {form.id_column: row.cell, form.class_column: row.label, form.rle_column: texts[row[:2]]}
        yield [cells[column] for column in form.label_header]


def read_labels(folder: Path, name: str, target: Target) -> UInt8[np.ndarray, "h w k"]:
    """Read the masks of all labels of an image, as write_masks has written them; errors are those of read_mask."""
    return np.stack([read_mask(folder / label / f"{name}.png") for label in target.classes], axis=-1)


def _decoded(raw: bytes, how: int) -> Shaped[np.ndarray, "..."] | None:
    return cv2.imdecode(np.frombuffer(raw, np.uint8), how) if raw else None


def read_mask(path: Path, target: Target = BINARY) -> AnyMask:
    """Read a mask that write_outputs has written, as 0 and 1 or as classes.

    Raises:
        InputError: The file is missing, no image, or holds a value of no class.
    """
    raw = path.read_bytes() if path.is_file() else b""
    how = cv2.IMREAD_UNCHANGED if target.exclusive or target.task == "instances" else cv2.IMREAD_GRAYSCALE
    mask = decode_indices(raw, where=str(path)) if has_palette(raw) else _decoded(raw, how)
    if mask is None:
        raise InputError(f"{path}: no mask there, or not an image; run `masksmith submit` again")
    if target.task == "instances":
        return mask.astype(np.int32)
    if not target.exclusive:
        return np.minimum(mask, 1, out=mask)
    classes = _classes_of(mask, mask_values(target))
    if classes is None:
        raise InputError(f"{path}: it holds a value of no class; run `masksmith submit` again")
    return classes


def _classes_of(
    found: Shaped[np.ndarray, "h w *c"], values: Shaped[np.ndarray, " k"]
) -> UInt8[np.ndarray, "h w *c"] | None:
    """Return the class of each pixel, in the place of its value where that takes as many bytes; None: it has none."""
    classes = found if found.dtype == np.uint8 else np.empty(found.shape, np.uint8)
    order = np.argsort(values)
    for rows in row_bands(found.shape, at_once=1 << 20):
        at = np.searchsorted(values, found[rows], sorter=order).clip(max=len(values) - 1)
        numbers = order[at].astype(np.uint8)
        if not np.array_equal(values[numbers], found[rows]):
            return None
        classes[rows] = numbers
    return classes
