"""How coarse a prediction may be before masks suffer: a U-Net may then leave out its last levels.

Masks of smooth, large shapes are the same after they were reduced to a quarter of their size and enlarged again; thin
or small ones are gone. Where nothing is lost, finer levels of a decoder only cost time, and a net that is done sooner
sees more images (docs/studies/0001-training-in-minutes.md).
"""

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Bool

from masksmith.core.arrays import judged_pixels
from masksmith.data.store import Store
from masksmith.data.target import Target

STRIDES = (2, 4)
KEPT_LEAST = 0.95
"""Least mean IoU of the masks of each class with themselves, reduced and enlarged."""
_MOST_IMAGES = 200
_WINDOW_PX = 2048


def coarsest_stride(masks: Store, target: Target) -> tuple[int, float]:
    """Return the largest of the strides 1, 2 and 4 at which the masks survive, and their IoU with themselves there.

    The IoU is that of the class which suffers most, a mean over up to 200 images that hold it, evenly chosen; of a
    large image the middle counts. Objects need their borders: for them the stride is 1.

    Args:
        masks: Of the training images, at their true size.
        target: Their task.
    """
    if target.task == "instances":
        return 1, 1.0
    ious: dict[int, dict[int, list[float]]] = {stride: {} for stride in STRIDES}
    for name in masks.ids[:: -(-len(masks) // _MOST_IMAGES)]:
        for layer, mask, judged in _layers(masks, name, target):
            for stride in STRIDES:
                ious[stride].setdefault(layer, []).append(_iou(mask, judged, stride))
    found = 1, 1.0
    for stride in STRIDES:
        worst = min((float(np.mean(each)) for each in ious[stride].values()), default=0.0)
        if worst < KEPT_LEAST:
            break
        found = stride, worst
    return found


def _layers(
    masks: Store, name: str, target: Target
) -> Iterator[tuple[int, Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]]:
    """Yield each class or label that an image holds: its number, its mask, and where it is judged."""
    rows, columns = (
        slice(max(0, (side - _WINDOW_PX) // 2), max(0, (side - _WINDOW_PX) // 2) + min(side, _WINDOW_PX))
        for side in masks.shape(name)
    )
    mask = masks.window(name, rows, columns)
    for layer in range(target.outputs):
        plane = mask[..., 0] if target.exclusive else mask[..., layer]
        found = plane == (layer if target.exclusive else 1)
        if found.any():
            yield layer, found, judged_pixels(plane)


def _iou(mask: Bool[np.ndarray, "h w"], judged: Bool[np.ndarray, "h w"], stride: int) -> float:
    height, width = mask.shape
    size = (max(1, round(width / stride)), max(1, round(height / stride)))
    small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    again = (cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5) & judged
    return float((again & mask).sum() / (again | mask).sum())
