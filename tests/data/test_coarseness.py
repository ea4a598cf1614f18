"""How coarse a prediction may be before masks suffer."""

import cv2
import numpy as np
import pytest

from masksmith.core.arrays import IGNORE
from masksmith.data.coarseness import coarsest_stride
from masksmith.data.store import Store, StoreWriter
from masksmith.data.target import Target


def store_of(tmp_path, masks):
    path = tmp_path / "masks.npy"
    writer = StoreWriter(path, [(f"{at:03d}", one.shape) for at, one in enumerate(masks)], dtype=np.uint8)
    for at, one in enumerate(masks):
        writer.write(f"{at:03d}", one)
    writer.close()
    return Store(path)


def disc(radius, hw=(96, 101)):
    return cv2.circle(np.zeros(hw, np.uint8), (50, 48), radius, 1, -1)


def line(hw=(96, 101)):
    return cv2.line(np.zeros(hw, np.uint8), (3, 5), (90, 80), 1, 1)


@pytest.mark.parametrize(("mask", "stride"), [(disc(40), 4), (disc(10), 2), (disc(2), 1), (line(), 1)])
def test_large_shapes_survive_and_thin_ones_do_not(tmp_path, mask, stride):
    empty = np.zeros_like(mask)
    found, kept = coarsest_stride(store_of(tmp_path, [mask[..., None], empty[..., None]]), Target())
    assert found == stride
    assert kept >= 0.95


def test_the_class_that_suffers_most_decides(tmp_path):
    smooth = disc(40)
    both = smooth.copy()
    both[line() == 1] = 2
    target = Target("multiclass", ("ground", "disc", "line"), (0, 1, 2))
    assert coarsest_stride(store_of(tmp_path, [smooth[..., None]]), target)[0] == 4
    assert coarsest_stride(store_of(tmp_path, [smooth[..., None], both[..., None]]), target)[0] == 1
    labels = Target("multilabel", ("disc", "line"))
    assert coarsest_stride(store_of(tmp_path, [np.stack([smooth, 0 * smooth], 2)]), labels)[0] == 4
    assert coarsest_stride(store_of(tmp_path, [np.stack([smooth, line()], 2)]), labels)[0] == 1


def test_what_is_not_judged_does_not_count(tmp_path):
    mask = disc(40)
    mask[line() == 1] = IGNORE
    assert coarsest_stride(store_of(tmp_path, [mask[..., None]]), Target())[0] == 4


def test_objects_and_sets_without_foreground_are_predicted_finely(tmp_path):
    empty = np.zeros((32, 32, 1), np.uint8)
    assert coarsest_stride(store_of(tmp_path, [empty]), Target()) == (1, 1.0)
    assert coarsest_stride(store_of(tmp_path, [disc(40)[..., None]]), Target("instances"))[0] == 1


def test_the_middle_of_a_large_mask_counts(tmp_path):
    large = np.zeros((2100, 2300, 1), np.uint8)
    large[1000:1400, 1000:1500] = 1
    large[::2, :20] = 1  # stripes at the edge, outside the window that is looked at
    assert coarsest_stride(store_of(tmp_path, [large]), Target())[0] == 4
