"""Tables of all images: COCO JSON and run-lengths as CSV."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from masksmith.core.arrays import AnyMask, Labels
from masksmith.core.errors import InputError
from masksmith.data.instances import coco_annotations, object_rows
from masksmith.data.rle import DIALECTS, encode_rows
from masksmith.data.target import Target
from masksmith.deploy.outputs.masks import Masks
from masksmith.deploy.picture import Picture, class_layers
from masksmith.metrics.objects import label_components

_MOST_LABELLED = 2**28  # pixels of an image whose regions are numbered: their numbers take four bytes each


def write_coco(path: Path, pictures: Sequence[Picture], masks: Masks) -> None:
    """Write one COCO JSON file: an annotation for each object, or each connected region (8 neighbours) of a class.

    ``segmentation`` is COCO's compressed run-length text. Source: https://cocodataset.org/#format-data

    Raises:
        InputError: An image of more than 2**28 pixels.
    """
    images = []
    names = [
        name for name, _ in class_layers(np.zeros((1, 1, len(masks.target.classes)), np.uint8), masks.target)
    ]
    with path.open("w", encoding="utf-8") as file:
        head = {"categories": [{"id": at, "name": name} for at, name in enumerate(names, start=1)]}
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "annotations": [')
        total = 0
        for at, picture in enumerate(pictures, start=1):
            mask = masks[picture.id]
            height, width = mask.shape[:2]
            images.append({"id": at, "file_name": picture.path, "height": height, "width": width})
            for category, labels in enumerate(_labels(mask, masks.target, where=picture.path), start=1):
                for one in coco_annotations(labels, image_id=at, category_id=category, first_id=total + 1):
                    file.write(f"{',' if total else ''}\n{json.dumps(one)}")
                    total += 1
        file.write(f'\n], "images": {json.dumps(images, ensure_ascii=False)}}}\n')


def _labels(mask: AnyMask, target: Target, *, where: str) -> Iterator[Labels]:
    """Yield a label map for each category."""
    if target.task == "instances":
        yield mask
        return
    if mask.shape[0] * mask.shape[1] > _MOST_LABELLED:
        raise InputError(
            f"{where}: coco numbers the regions of images of up to {_MOST_LABELLED:,} pixels, this one has "
            f"{mask.shape[0]}x{mask.shape[1]}; write geojson or rle"
        )
    for _, layer in class_layers(mask, target):
        yield label_components(layer.view(bool))[0].astype(np.int32)


def write_rle(path: Path, pictures: Sequence[Picture], masks: Masks) -> None:
    """Write id, class and run-lengths as CSV: a row an image and class, or a row an object where the dialect has it."""
    dialect = masks.dialect
    if masks.target.task == "instances" and not DIALECTS[dialect].by_object:
        dialect = "dsb_row_major" if DIALECTS[dialect].order == "C" else "dsb"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "class", "rle"))
        for picture in pictures:
            mask = masks[picture.id]
            if masks.target.task == "instances":
                label = masks.target.classes[0]
                writer.writerows((picture.id, label, runs) for runs in object_rows(mask, dialect=dialect))
                continue
            for label, layer in class_layers(mask, masks.target):
                writer.writerows((picture.id, label, runs) for runs in encode_rows(layer, dialect=dialect))
