"""Label maps of objects move with their image: the number of the nearest pixel, whatever the motion."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.augment.geometry import GeometryConfig, Motion
from masksmith.augment.sampling import draw_focus
from masksmith.augment.warp import warp
from masksmith.preprocess import CV2_BORDERS, Pad
from tests.augment.test_geometry import ALL, EVERY, blobs, draw, smooth

BORDERS = sorted(CV2_BORDERS)
NUMBERS = [-1, 0, 1, 2, 255, 70_000, 2**24 + 1, 2**31 - 1]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    values=st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=5),
    border=st.sampled_from(BORDERS),
)
def test_no_number_arises_that_was_not_there(seed, height, width, values, border):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array(values, np.int32), (height, width))
    image = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
    moved, target = warp(image, labels, draw(ALL, seed), canvas_hw=(32, 48), border=border)
    assert (moved.shape, target.shape, target.dtype) == ((32, 48, 3), (32, 48), np.int32)
    assert set(np.unique(target)) <= set(values) | ({0} if border == "zero" else set())
    other, _ = warp(image, (labels > 0).astype(np.uint8), draw(ALL, seed), canvas_hw=(32, 48), border=border)
    assert np.abs(moved.astype(int) - other).max() <= 1  # the image moves as with any mask


@pytest.mark.parametrize("name", EVERY)
def test_labels_lie_where_their_image_lies(name):
    """Each pixel of the image and of the labels knows where it comes from."""
    hw = (60, 72)
    y, x = np.mgrid[: hw[0], : hw[1]]
    image = np.stack([x, y], -1).astype(np.uint16) * 500
    labels = (y * hw[1] + x).astype(np.int32)
    for seed in range(2):
        moved, target = warp(
            image, labels, draw(GeometryConfig(**EVERY[name]), seed), canvas_hw=(64, 80), border="edge"
        )
        rows, columns = np.divmod(target, hw[1])
        apart = np.abs(moved / 500 - np.stack([columns, rows], -1))
        assert apart.max() < 0.55


def test_copies_are_exact_and_borders_are_those_of_the_image():
    labels = np.random.default_rng(0).choice(np.array(NUMBERS, np.int32), (20, 16))
    image = smooth((20, 16), 3)
    for transpose, vflip, hflip in itertools.product((False, True), repeat=3):
        hw = (16, 20) if transpose else (20, 16)
        _, target = warp(image, labels, Motion(hflip, vflip, transpose), canvas_hw=hw)
        wanted = labels.T if transpose else labels
        np.testing.assert_array_equal(
            target,
            wanted[:: -1 if vflip else 1, :: -1 if hflip else 1],
            err_msg=f"{transpose} {vflip} {hflip}",
        )
    for border in BORDERS:
        wanted = Pad.to_size((20, 16), (32, 32), border).apply(labels[..., None])[..., 0]
        _, copied = warp(image, labels, Motion(), canvas_hw=(32, 32), border=border)
        _, warped = warp(image, labels, Motion(zoom=1 + 1e-9), canvas_hw=(32, 32), border=border)
        np.testing.assert_array_equal(copied, wanted)
        np.testing.assert_array_equal(warped, wanted)


def test_an_object_moves_as_its_mask_does_but_for_its_edge():
    mask = blobs()
    for seed in range(6):
        _, drawn = warp(mask[..., None], mask, draw(ALL, seed), canvas_hw=(64, 80))
        _, labels = warp(mask[..., None], mask * np.int32(70_000), draw(ALL, seed), canvas_hw=(64, 80))
        near = np.zeros_like(drawn, bool)
        for rows, columns in itertools.product((-1, 0, 1), repeat=2):
            near |= np.roll(drawn, (rows, columns), (0, 1)) != drawn
        assert not ((labels == 70_000) != (drawn == 1))[~near].any()


def test_an_object_of_one_pixel_and_what_is_not_judged_stay():
    labels = np.zeros((40, 40), np.int32)
    labels[20, 20], labels[:, :10] = 9, -1
    for angle in (0.0, 0.3, 0.7):
        _, target = warp(smooth((40, 40)), labels, Motion(angle_rad=angle, zoom=1.5), canvas_hw=(40, 40))
        assert 1 <= (target == 9).sum() <= 6
        assert (target[:, :3] == -1).mean() > 0.3
    _, target = warp(smooth((9, 9)), np.full((9, 9), -1, np.int32), draw(ALL), canvas_hw=(32, 32))
    assert (target == -1).all()


def test_a_focus_is_a_pixel_of_an_object():
    labels = np.full((20, 30), -1, np.int32)
    labels[:, :20] = 0
    rng = np.random.default_rng(0)
    assert draw_focus(labels, 1.0, rng) is None
    labels[7, 3] = 255  # the 255th object
    assert draw_focus(labels, 1.0, rng) == (7.5 / 20, 3.5 / 30)
