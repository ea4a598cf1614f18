"""Pictures of samples and predictions, embedded in the page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool

from masksmith.core.arrays import (
    IGNORE,
    AnyMask,
    Float,
    Image,
    Labels,
    Mask,
    UInt8,
    dense_labels,
    foreground_pixels,
    judged_pixels,
)
from masksmith.data.target import Target

FALSE_POSITIVE = (31, 160, 70)  # green
FALSE_NEGATIVE = (214, 39, 40)  # red
TRUTH_GREEN = (60, 200, 90)  # a true mask over its image
_GAP = 2  # pixels between panels; the page enlarges the whole picture
_GOLDEN = 0.618034  # of the circle of hues from one class to the next
_LARGEST = 192  # side of a panel in pixels, so that a page of hundreds of panels stays small

RGB = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Picture:
    """A sample of the check plot; ``src`` is a data URI."""

    id: str
    score: float
    src: str
    kind: str
    """Of its error."""
    cost: float = 0.0
    """What the score would gain if it were predicted right."""


@dataclass(frozen=True)
class Thumbnail:
    """A training image with its mask; ``numbers`` come from side tables, ``src`` is a data URI."""

    id: str
    coverage_class: int
    coverage: float
    numbers: str
    src: str


def to_rgb(image: Image) -> RGB:
    """Return an image of any bands and type as 8-bit RGB: its first three bands, or its first band in grey.

    Values are stretched between the 1% and 99% quantiles: those of all bands for a picture (unsigned, at most three
    bands), which keeps its colours; those of each band otherwise, as bands may have different units. NaN is black.
    """
    shown = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if image.shape[2] <= 3 and image.dtype.kind == "u":
        low, high = np.percentile(shown, [1, 99])
        scaled = (shown.astype(np.float32) - low) / max(high - low, 1)
    else:
        scaled = np.stack([_stretched(shown[..., at].astype(np.float32)) for at in range(3)], axis=2)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _stretched(band: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    known = band[np.isfinite(band)]
    if not known.size:
        return np.zeros_like(band)
    low, high = np.percentile(known, [1, 99])
    return np.nan_to_num((band - low) / (high - low if high > low else 1), nan=0.0, posinf=0.0, neginf=0.0)


def difference(image: Image, target: Mask, pred: Mask) -> RGB:
    """Return the faded image with false positives in green, false negatives in red and ignored pixels in grey."""
    faded = (to_rgb(image) // 2 + 96).astype(np.uint8)
    faded[(pred == 1) & (target == 0)] = FALSE_POSITIVE
    faded[(pred == 0) & (target == 1)] = FALSE_NEGATIVE
    faded[target == IGNORE] = (128, 128, 128)
    return faded


def _tinted(image: Image, mask: Mask, colour: tuple[int, int, int]) -> RGB:
    rgb = to_rgb(image)
    tint = np.array(colour, np.float32)
    inside = mask == 1
    rgb[inside] = np.rint(0.55 * rgb[inside] + 0.45 * tint).astype(np.uint8)
    return rgb


def class_colours(target: Target) -> UInt8[np.ndarray, "k 3"]:
    """Return a colour for each class: those of the mask files' palette, else hues that lie far apart."""
    if target.palette:
        return np.array(target.palette, np.uint8)
    at = np.arange(len(target.classes))
    hsv = np.stack([at * 180 * _GOLDEN % 180, 150 + 100 * (at % 2), 230 - 45 * (at // 2 % 3)], axis=1)
    return cv2.cvtColor(hsv.astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0]


def painted(image: Image, classes: Mask, colours: UInt8[np.ndarray, "k 3"]) -> RGB:
    """Return the image with each pixel tinted by its class; ignored pixels are grey."""
    lut = np.full((IGNORE + 1, 3), 128, np.float32)
    lut[: len(colours)] = colours
    return np.rint(0.4 * to_rgb(image) + 0.6 * lut[classes]).astype(np.uint8)


def binary_of(labels: Labels) -> Mask:
    """Return a label map as a mask of 0, 1 and IGNORE."""
    return np.where(judged_pixels(labels), labels > 0, IGNORE).astype(np.uint8)


def painted_objects(image: Image, labels: Labels) -> RGB:
    """Return the image with each object in a colour of its own, neighbours in the order of numbers far apart."""
    rgb, inside = to_rgb(image), labels > 0
    hue = labels[inside].astype(np.float64) * 180 * _GOLDEN % 180
    hsv = np.stack([hue, np.full(len(hue), 220), np.full(len(hue), 230)], axis=1).astype(np.uint8)
    colours = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] if len(hsv) else hsv
    rgb[inside] = np.rint(0.45 * rgb[inside] + 0.55 * colours).astype(np.uint8)
    rgb[~judged_pixels(labels)] = (128, 128, 128)
    return rgb


def object_error(target: Labels, pred: Labels) -> str:
    """Name the kind of error of an image's objects: of their pixels, or of their number."""
    there, found = dense_labels(target)[1], dense_labels(pred)[1]
    cause = error_cause(binary_of(target), binary_of(pred))
    if cause not in ("border", "too much", "too little") or abs(found - there) <= 0.1 * there:
        return cause
    return "too few objects" if found < there else "too many objects"


def class_difference(image: Image, target: Mask, pred: Mask) -> RGB:
    """Return the faded image with wrong classes in red and ignored pixels in grey."""
    faded = (to_rgb(image) // 2 + 96).astype(np.uint8)
    faded[(pred != target) & (target != IGNORE)] = FALSE_NEGATIVE
    faded[target == IGNORE] = (128, 128, 128)
    return faded


def covered(mask: AnyMask) -> Bool[np.ndarray, "h w"]:
    """Return where a mask has anything: a class above 0, an object, or any label."""
    there = np.asarray(foreground_pixels(mask))
    return np.asarray(there.any(axis=-1)) if there.ndim == 3 else there


def tinted_labels(image: Image, labels: UInt8[np.ndarray, "h w k"], colours: UInt8[np.ndarray, "k 3"]) -> RGB:
    """Return the image tinted by each of its labels; where they overlap the tint is their mean."""
    there = labels == 1
    count = there.sum(axis=-1, keepdims=True)
    tint = (there[..., None] * colours.astype(np.float32)).sum(axis=2) / np.maximum(count, 1)
    return np.rint(np.where(count, 0.45 * to_rgb(image) + 0.55 * tint, to_rgb(image))).astype(np.uint8)


def label_difference(
    image: Image, target: UInt8[np.ndarray, "h w k"], pred: UInt8[np.ndarray, "h w k"]
) -> RGB:
    """Return the faded image: green where a label is predicted wrongly, red where one is missing (it covers green)."""
    faded = (to_rgb(image) // 2 + 96).astype(np.uint8)
    faded[(target == IGNORE).all(axis=-1)] = (128, 128, 128)
    faded[((pred == 1) & (target == 0)).any(axis=-1)] = FALSE_POSITIVE
    faded[((pred == 0) & (target == 1)).any(axis=-1)] = FALSE_NEGATIVE
    return faded


def label_error(
    target: UInt8[np.ndarray, "h w k"], pred: UInt8[np.ndarray, "h w k"], names: Sequence[str]
) -> str:
    """Name the label with the most wrong pixels and its kind of error; "all right" where there is none."""
    wrong = ((pred != target) & (target != IGNORE)).sum(axis=(0, 1))
    if not wrong.any():
        return "all right"
    worst = int(wrong.argmax())
    return f"{names[worst]}: {error_cause(target[..., worst], pred[..., worst])}"


def four_panels(
    image: Image, target: AnyMask, pred: AnyMask, colours: UInt8[np.ndarray, "k 3"] | None = None
) -> list[RGB]:
    """Return image, truth, prediction and difference.

    Args:
        image: Any bands and type.
        target: Of 0, 1 and IGNORE (a layer each label), of classes, or the labels of objects.
        pred: Alike.
        colours: Of each class of a class map or each label; None for masks of 0 and 1.
    """
    if target.dtype == np.int32:
        return [
            to_rgb(image),
            painted_objects(image, target),
            painted_objects(image, pred),
            difference(image, binary_of(target), binary_of(pred)),
        ]
    if target.ndim == 3:
        assert colours is not None
        return [
            to_rgb(image),
            tinted_labels(image, target, colours),
            tinted_labels(image, pred, colours),
            label_difference(image, target, pred),
        ]
    if colours is None:
        return [
            to_rgb(image),
            _tinted(image, target, (255, 190, 30)),
            _tinted(image, pred, (60, 140, 255)),
            difference(image, target, pred),
        ]
    return [
        to_rgb(image),
        painted(image, target, colours),
        painted(image, pred, colours),
        class_difference(image, target, pred),
    ]


def joined(panels: Sequence[RGB], *, across: bool = False) -> UInt8[np.ndarray, "_ _ 3"]:
    """Return panels of one size below each other, or beside each other, shrunk to _LARGEST pixels a side."""
    small = [shrunk(panel, _LARGEST) for panel in panels]
    height, width = small[0].shape[:2]
    gap = np.full((height, _GAP, 3) if across else (_GAP, width, 3), 255, np.uint8)
    parts = [part for panel in small for part in (panel, gap)][:-1]
    return np.concatenate(parts, axis=int(across))


def overlay(
    image: Image, mask: AnyMask, colours: UInt8[np.ndarray, "k 3"] | None = None
) -> UInt8[np.ndarray, "side side 3"]:
    """Return the image with its true mask in green, or its classes in their colours, in a square."""
    if mask.dtype == np.int32:
        shown = painted_objects(image, mask)
    elif mask.ndim == 3:
        assert colours is not None
        shown = tinted_labels(image, mask, colours)
    else:
        shown = _tinted(image, mask, TRUTH_GREEN) if colours is None else painted(image, mask, colours)
    return fit(shown, min(max(image.shape[:2]), _LARGEST))


def shrunk(rgb: UInt8[np.ndarray, "_ _ 3"], side: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Return a picture of at most so many pixels a side; it is never enlarged."""
    scale = side / max(rgb.shape[:2])
    if scale >= 1:
        return rgb
    height, width = (max(1, round(scale * length)) for length in rgb.shape[:2])
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


def fit(rgb: UInt8[np.ndarray, "_ _ 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Return a picture centred in a white square; it is shrunk to fit, never enlarged."""
    rgb = shrunk(rgb, side)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = ((side - length) // 2 for length in rgb.shape[:2])
    square[top : top + rgb.shape[0], left : left + rgb.shape[1]] = rgb
    return square


def jpeg_uri(rgb: UInt8[np.ndarray, "_ _ 3"]) -> str:
    """Return a picture as a JPEG data URI, with its colours at full resolution: about a fifth of a PNG."""
    full = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    encoded, raw = cv2.imencode(
        ".jpg", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 82, *full]
    )
    assert encoded
    return "data:image/jpeg;base64," + base64.b64encode(raw.tobytes()).decode()


def data_uri(rgb: RGB) -> str:
    """Return a picture as a PNG data URI."""
    encoded, raw = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))
    assert encoded
    return "data:image/png;base64," + base64.b64encode(raw.tobytes()).decode()


def class_error(target: Mask, pred: Mask, names: Sequence[str]) -> str:
    """Name the commonest confusion of a class map."""
    wrong = (pred != target) & (target != IGNORE)
    if not wrong.any():
        return "all right"
    pairs = target[wrong].astype(np.int64) * len(names) + pred[wrong]
    true, found = divmod(int(np.bincount(pairs).argmax()), len(names))
    return f"{names[true]} taken for {names[found]}"


def error_cause(target: Mask, pred: Mask) -> str:
    """Name the kind of error: missed, false alarm, beside, too much, too little, border; or "empty, right"."""
    truth, found = target == 1, (pred == 1) & (target != IGNORE)
    if not truth.any():
        return "false alarm" if found.any() else "empty, right"
    if not found.any():
        return "missed"
    too_much, too_little = int((found & ~truth).sum()), int((truth & ~found).sum())
    overlap = int((truth & found).sum())
    if not overlap:
        return "beside"
    if too_much + too_little < 0.15 * int(truth.sum()):
        return "border"
    return "too much" if too_much > too_little else "too little"
