"""Why an image loses score: one cause of a few, by what most of its wrong pixels are."""

from dataclasses import dataclass

import cv2
import numpy as np

from masksmith.core.arrays import AnyMask, Bool, dense_labels, foreground_pixels, judged_pixels
from masksmith.data.target import Target

CAUSES = {
    "empty predicted": "there is something, and nothing was predicted",
    "false alarm": "there is nothing, and something was predicted",
    "missed": "most wrong pixels are foreground that was not found",
    "small object": "most wrong pixels are of objects that were not found, below 1% of the image and 32 x 32 pixels",
    "too much": "most wrong pixels are foreground where there is none",
    "border": "most wrong pixels lie along the true outline, within 1% of the side, two pixels at least",
    "class confusion": "most wrong pixels have another class or label than the true one",
    "joined or split": "the pixels are about right, and the number of objects is not",
    "all right": "no wrong pixel",
}
"""Cause -> what it means."""
_PIXELS = 2**20  # of larger images every few rows and columns are looked at
_SMALL_FRAC, _SMALL_PX = 0.01, 32**2  # 32 x 32 is COCO's "small"
_BORDER_FRAC, _BORDER_PX = 0.01, 2
_SURE_IOU = 0.7  # of the foreground, above which a wrong number of objects is the error


@dataclass(frozen=True)
class _Planes:
    """Foreground of an image as planes (h, w, k): a class, a label, or all objects each."""

    truth: Bool[np.ndarray, "h w k"]
    found: Bool[np.ndarray, "h w k"]
    judged: Bool[np.ndarray, "h w k"]


def cause_of(target: AnyMask, pred: AnyMask, what: Target, *, background: bool = True) -> str:
    """Return the key of CAUSES that says why an image loses score.

    Args:
        target: True mask: 0, 1 and IGNORE (a layer each label), classes, or labels of objects.
        pred: Alike.
        what: The task and its classes.
        background: Whether class 0 of a class map is background.
    """
    step = max(1, int(np.ceil(np.sqrt(target.shape[0] * target.shape[1] / _PIXELS))))
    target, pred = target[::step, ::step], pred[::step, ::step]
    planes = _planes(target, pred, what, background=background)
    truth, found = planes.truth, planes.found
    if not truth.any():
        return "false alarm" if found.any() else "all right"
    if not found.any():
        return "empty predicted"
    missed, extra = truth & ~found, found & ~truth
    if what.task == "instances" and _wrong_number(target, pred, truth, found):
        return "joined or split"
    wrong = missed.any(axis=-1) | extra.any(axis=-1)
    if not wrong.any():
        return "all right"
    small = wrong & _small_missed(truth, found, step)
    border = wrong & ~small & _outline(truth, step)
    rest = wrong & ~small & ~border
    confused = rest & missed.any(axis=-1) & extra.any(axis=-1)
    rest &= ~confused
    counts = {
        "missed": rest & missed.any(axis=-1),
        "too much": rest & extra.any(axis=-1),
        "small object": small,
        "class confusion": confused,
        "border": border,
    }
    return max(counts, key=lambda name: int(counts[name].sum()))


def _planes(target: AnyMask, pred: AnyMask, what: Target, *, background: bool) -> _Planes:
    judged = np.asarray(judged_pixels(target))
    if what.task == "multiclass":
        classes = np.arange(int(background), len(what.classes))
        truth, found = target[..., None] == classes, pred[..., None] == classes
        judged = np.broadcast_to(judged[..., None], truth.shape)
    else:
        truth, found = np.asarray(foreground_pixels(target)), np.asarray(pred > 0)
        if truth.ndim == 2:
            truth, found, judged = truth[..., None], found[..., None], judged[..., None]
    return _Planes(truth & judged, found & judged, judged)


def _wrong_number(
    target: AnyMask, pred: AnyMask, truth: Bool[np.ndarray, "h w k"], found: Bool[np.ndarray, "h w k"]
) -> bool:
    """Whether the foreground is about right and the number of objects is off by more than a tenth."""
    there, made = dense_labels(target)[1], dense_labels(pred)[1]
    iou_is_high = bool((truth & found).sum() > _SURE_IOU * (truth | found).sum())
    return iou_is_high and abs(made - there) > 0.1 * there


def _small_missed(
    truth: Bool[np.ndarray, "h w k"], found: Bool[np.ndarray, "h w k"], step: int
) -> Bool[np.ndarray, "h w"]:
    """Return the pixels of small true regions of which less than half was found."""
    most = min(_SMALL_FRAC * truth[..., 0].size, _SMALL_PX / step**2)
    there = np.zeros(truth.shape[:2], bool)
    for at in np.flatnonzero(truth.any(axis=(0, 1))):
        num, labels, stats, _ = cv2.connectedComponentsWithStats(truth[..., at].astype(np.uint8))
        hits = np.bincount(labels[found[..., at]], minlength=num)
        area = stats[:, cv2.CC_STAT_AREA]
        lost = (area < most) & (2 * hits < area)
        lost[0] = False
        there |= lost[labels]
    return there


def _outline(truth: Bool[np.ndarray, "h w k"], step: int) -> Bool[np.ndarray, "h w"]:
    """Return the pixels near a true outline."""
    side = float(np.sqrt(truth.shape[0] * truth.shape[1]))
    reach = max(1, round(max(_BORDER_FRAC * side, _BORDER_PX / step)))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    near = np.zeros(truth.shape[:2], bool)
    for at in np.flatnonzero(truth.any(axis=(0, 1))):
        plane = truth[..., at].astype(np.uint8)
        near |= cv2.dilate(plane, kernel) != cv2.erode(plane, kernel)
    return near
