"""A segmentation as the bytes of an answer: PNG, JSON, run-lengths, a picture, probabilities."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from scipy.ndimage import find_objects  # type: ignore[import-untyped]

from masksmith.core.arrays import AnyMask, Image, UInt8
from masksmith.core.errors import InputError
from masksmith.data.array_store import ArrayStore
from masksmith.data.instances import coco_text
from masksmith.data.rle import mask_to_runs
from masksmith.data.target import Target
from masksmith.deploy.drawing import picture_of, png
from masksmith.deploy.features import features, unlike
from masksmith.deploy.picture import shown_classes
from masksmith.deploy.segmenter import Segmentation, Segmenter
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.labels import LabelRules
from masksmith.postprocess.objects import ObjectRule
from masksmith.postprocess.rules import decision_of
from masksmith.submission.formats import mask_png


class Answer(NamedTuple):
    """What is sent."""

    body: bytes
    media_type: str


class Layer(NamedTuple):
    """The pixels of a class, a label or an object."""

    name: str
    object: int | None
    mask: UInt8[np.ndarray, "h w"]
    """Of an object: its box alone."""
    corner: tuple[int, int] = (0, 0)
    """Row and column of the box."""


def layers_of(target: Target, mask: AnyMask) -> Iterator[Layer]:
    """Yield what a mask shows, of a class map all but a background of value 0; nothing that is empty."""
    classes = target.classes
    if target.task == "instances":
        for number, box in enumerate(find_objects(mask), start=1):
            if box is not None:
                own = (mask[box] == number).astype(np.uint8)
                yield Layer(classes[0], number, own, (box[0].start, box[1].start))
        return
    if mask.ndim == 3:
        each = [(classes[at], mask[..., at]) for at in range(mask.shape[2])]
    elif target.exclusive:
        each = [(name, mask == at) for at, name in shown_classes(target)]
    else:
        each = [(classes[0], mask)]
    yield from (Layer(name, None, np.ascontiguousarray(one, np.uint8)) for name, one in each if one.any())


def summary(model: Segmenter, found: Segmentation) -> dict[str, Any]:
    """Return size, area of each class in pixels, number of objects, confidence, and what is unlike the training set."""
    areas: dict[str, int] = {}
    count = 0
    for layer in layers_of(model.target, found.mask):
        areas[layer.name] = areas.get(layer.name, 0) + int(layer.mask.sum())
        count += layer.object is not None
    height, width = found.mask.shape[:2]
    numbers = features(ArrayStore({"0": found.image}), "0")
    return {
        "height": height,
        "width": width,
        "areas": areas,
        **({"objects": count} if model.task == "instances" else {}),
        "confidence": round(found.confidence, 4),
        "unlike": unlike(numbers, model.bundle.facts.ranges),
    }


def polygons(layer: Layer) -> list[dict[str, Any]]:
    """Return the connected regions (8 neighbours) of a layer as polygons through the centres of their outer pixels.

    Each has ``outer`` and ``holes``, rings of (x, y) in pixels, not closed; (0, 0) is the centre of the image's first
    pixel. The ring of a hole runs through the pixels around it.
    """
    offset = layer.corner[::-1]
    contours, tree = cv2.findContours(layer.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=offset)
    found: dict[int, dict[str, Any]] = {}
    for at, contour in enumerate(contours):
        parent = int(tree[0, at, 3])
        region = found.setdefault(at if parent < 0 else parent, {"outer": [], "holes": []})
        ring = contour.reshape(-1, 2).tolist()
        if parent < 0:
            region["outer"] = ring
        else:
            region["holes"].append(ring)
    return list(found.values())


def _png(model: Segmenter, found: Segmentation) -> Answer:
    if model.task == "multilabel":
        raise InputError(
            "answer=png: the masks of several labels may overlap, which one PNG cannot show; take json or rle"
        )
    return Answer(mask_png(found.mask, model.target, where="the image"), "image/png")


def _overlay(model: Segmenter, found: Segmentation) -> Answer:
    del model
    return Answer(png(found.overlay()), "image/png")


def _json(model: Segmenter, found: Segmentation) -> Answer:
    return _segments(model, found, lambda layer: {"polygons": polygons(layer)})


def _rle(model: Segmenter, found: Segmentation) -> Answer:
    height, width = found.mask.shape[:2]

    def runs(layer: Layer) -> dict[str, Any]:
        row, column = layer.corner
        tall = np.zeros((height, layer.mask.shape[1]), np.uint8)  # whole columns
        tall[row : row + len(layer.mask)] = layer.mask
        own = mask_to_runs(tall)
        own[:, 0] += column * height
        return {
            "segmentation": {"size": [height, width], "counts": coco_text(own, num_pixels=height * width)}
        }

    return _segments(model, found, runs)


def _segments(model: Segmenter, found: Segmentation, shape: Callable[[Layer], dict[str, Any]]) -> Answer:
    segments = [
        {"class": one.name}
        | ({} if one.object is None else {"object": one.object})
        | {"area": int(one.mask.sum())}
        | shape(one)
        for one in layers_of(model.target, found.mask)
    ]
    return _text(summary(model, found) | {"segments": segments})


def _text(value: Any) -> Answer:  # noqa: ANN401
    return Answer(json.dumps(value, ensure_ascii=False).encode(), "application/json")


def _probs(model: Segmenter, found: Segmentation) -> Answer:
    del model
    file = io.BytesIO()
    np.save(file, found.codes, allow_pickle=False)
    return Answer(file.getvalue(), "application/x-npy")


ANSWERS: dict[str, Callable[[Segmenter, Segmentation], Answer]] = {
    "png": _png,
    "json": _json,
    "rle": _rle,
    "overlay": _overlay,
    "probs": _probs,
}
"""What may be asked for; ``picture`` is answered without segmenting."""


def picture(image: Image) -> Answer:
    """Return an image as a browser can show it."""
    return Answer(png(picture_of(image)), "image/png")


def thresholds_of(model: Segmenter) -> list[int]:
    """Return the code that each plane's probability must exceed by the rule; of classes, which have none, nothing."""
    rule = decision_of(model.rule)
    if isinstance(rule, ClassRule):
        return []
    if isinstance(rule, ObjectRule):
        return [rule.foreground]
    return [one.bottom for one in (rule.rules if isinstance(rule, LabelRules) else (rule,))]
