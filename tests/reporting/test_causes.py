import numpy as np
import pytest

from masksmith.core.arrays import IGNORE
from masksmith.data.target import BINARY, OBJECTS, Target
from masksmith.reporting.causes import CAUSES, cause_of

CLASSES = Target("multiclass", ("background", "a", "b"))
LABELS = Target("multilabel", ("a", "b"))


def square(*places, hw=(100, 100), dtype=np.uint8):
    """Return a mask with a value in each box (value, top, bottom, left, right)."""
    mask = np.zeros(hw, dtype)
    for value, top, bottom, left, right in places:
        mask[top:bottom, left:right] = value
    return mask


BIG = (1, 20, 80, 20, 80)
BINARY_CASES = {
    "all right": (square(BIG), square(BIG)),
    "empty predicted": (square(BIG), square()),
    "false alarm": (square(), square(BIG)),
    "border": (square(BIG), square((1, 21, 80, 20, 80))),
    "missed": (square(BIG), square((1, 20, 40, 20, 80))),
    "too much": (square((1, 20, 40, 20, 80)), square(BIG)),
    "small object": (square(BIG, (1, 3, 9, 3, 9)), square(BIG)),
}


@pytest.mark.parametrize("cause", BINARY_CASES)
def test_of_binary_masks_and_of_labels(cause):
    target, pred = BINARY_CASES[cause]
    assert cause_of(target, pred, BINARY) == cause
    two = [np.stack([mask, np.zeros_like(mask)], axis=-1) for mask in (target, pred)]
    assert cause_of(*two, LABELS) == cause
    assert cause in CAUSES


def test_of_classes_labels_and_objects():
    assert cause_of(square(BIG), square((2, 20, 80, 20, 80)), CLASSES) == "class confusion"
    truth = np.stack([square(BIG), square()], axis=-1)
    assert cause_of(truth, truth[..., ::-1], LABELS) == "class confusion"
    split = square((1, 20, 80, 20, 50), (2, 20, 80, 50, 80), dtype=np.int32)
    assert cause_of(square(BIG, dtype=np.int32), split, OBJECTS) == "joined or split"
    # without a background, class 0 is something like any other
    assert cause_of(square(BIG), square(), CLASSES, background=True) == "empty predicted"
    assert cause_of(square(BIG), square(), CLASSES, background=False) == "class confusion"


def test_what_is_not_judged_and_what_is_large():
    target = square(BIG)
    target[20:80, 50:80] = IGNORE
    assert cause_of(target, square((1, 20, 80, 20, 50)), BINARY) == "all right"
    assert cause_of(target, square((1, 20, 80, 20, 80), (1, 30, 70, 60, 70)), BINARY) == "all right"
    for name in ("missed", "border", "small object", "too much"):
        large = [np.kron(mask, np.ones((15, 15), np.uint8)) for mask in BINARY_CASES[name]]
        if name == "border":
            large[1] = large[0].copy()
            large[1][300:310] = 0
        if name == "small object":
            large = [np.kron(square(BIG), np.ones((15, 15), np.uint8)) for _ in range(2)]
            large[0][50:75, 50:75] = 1
        assert cause_of(*large, BINARY) == name
