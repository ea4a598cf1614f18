import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksmith.augment.geometry import Motion
from masksmith.augment.warp import warp
from masksmith.errors import InputError
from masksmith.preprocess import Frame, Pad, SizeConfig, canvas_of, resize, round_up

SIDES = st.tuples(st.integers(1, 60), st.integers(1, 60))
BORDERS = st.sampled_from(["reflect", "edge", "zero"])


def picture(hw, channels=1, seed=0, dtype=np.uint8):
    high = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, high, (*hw, channels), endpoint=True).astype(dtype)


def test_winners_padding():
    """The first place of TGS Salt: 101 to 128 by 13 above and left, 14 below and right."""
    assert Pad.to_divisor((101, 101), 128) == Pad(13, 14, 13, 14)
    assert Pad.to_divisor((101, 101), 16) == Pad(5, 6, 5, 6)
    assert round_up(96, 16) == 96


@given(hw=SIDES, channels=st.integers(1, 6), divisor=st.sampled_from([1, 8, 16]), border=BORDERS)
def test_padding_is_undone_exactly(hw, channels, divisor, border):
    image = picture(hw, channels)
    pad = Pad.to_divisor(hw, divisor, border)
    padded = pad.apply(image)
    assert padded.shape[0] % divisor == 0
    assert padded.shape[1] % divisor == 0
    np.testing.assert_array_equal(pad.undo(padded), image)
    if min(hw) > divisor:  # numpy mirrors a mirror image otherwise than OpenCV
        mode = {"reflect": "reflect", "edge": "edge", "zero": "constant"}[border]
        borders = ((pad.top, pad.bottom), (pad.left, pad.right), (0, 0))
        np.testing.assert_array_equal(padded, np.pad(image, borders, mode=mode))


@pytest.mark.parametrize("channels", [1, 6])  # OpenCV's and numpy's form of the same border
@pytest.mark.parametrize(("border", "corner"), [("reflect", 5), ("edge", 1), ("zero", 0)])
def test_what_the_border_shows(border, corner, channels):
    image = np.repeat(np.array([[[1], [2]], [[4], [5]]], np.uint8), channels, axis=2)
    padded = Pad(1, 0, 1, 0, border).apply(image)
    assert (padded[0, 0] == corner).all()
    assert padded.shape == (3, 3, channels)


@given(
    hw=SIDES, channels=st.integers(1, 6), inner=SIDES, extra=st.tuples(st.integers(0, 9), st.integers(0, 9))
)
def test_a_frame_of_any_rule_is_undone_to_the_true_size(hw, channels, inner, extra):
    pad_hw = (round_up(inner[0] + extra[0], 4), round_up(inner[1] + extra[1], 4))
    frame = Frame.of(hw, SizeConfig(resize_hw=inner, pad_hw=pad_hw), divisor=4)
    framed = frame.apply(picture(hw, channels))
    assert framed.shape == (*pad_hw, channels)
    assert frame.canvas_hw == pad_hw
    level = np.full((*pad_hw, 2), 0.25, np.float32)
    np.testing.assert_array_equal(frame.undo(level), np.full((*hw, 2), 0.25, np.float32))


def test_without_a_resize_a_frame_is_undone_bit_for_bit():
    frame = Frame.of((101, 101), SizeConfig(pad_hw=(128, 128)), divisor=32)
    image = picture((101, 101), 3)
    np.testing.assert_array_equal(frame.undo(frame.apply(image)), image)


def test_a_resize_and_its_undoing_do_not_shift():
    """A ramp stays a ramp: no half pixel is lost on the way to 192, 224 and back (TGS Salt's ResNeXt50)."""
    frame = Frame.of((101, 101), SizeConfig(resize_hw=(192, 192), pad_hw=(224, 224)), divisor=32)
    ramp = np.linspace(0, 1, 101, dtype=np.float32)[None, :, None].repeat(101, axis=0)
    back = frame.undo(frame.apply(ramp))
    np.testing.assert_allclose(back[:, 2:-2], ramp[:, 2:-2], atol=1e-5)
    assert frame.pad == Pad(16, 16, 16, 16)


@pytest.mark.parametrize("channels", [1, 3, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_of_many_channels_is_that_of_each(channels, dtype):
    image = picture((20, 30), channels, dtype=dtype)
    found = resize(image, (13, 41))
    assert found.dtype == dtype
    for channel in range(channels):
        alone = cv2.resize(image[..., channel], (41, 13), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(found[..., channel].astype(int), alone.astype(int), atol=1)
    assert resize(image, (20, 30)) is image


@pytest.mark.parametrize(
    "size",
    [
        SizeConfig(),
        SizeConfig(pad_hw=(64, 48)),
        SizeConfig(resize_hw=(80, 60)),
        SizeConfig(resize_hw=(50, 30), pad_hw=(64, 48), border="edge"),
        SizeConfig(pad_hw=(64, 48), border="zero"),
    ],
)
def test_training_lays_an_image_where_prediction_does(size):
    """The warp of training, with nothing drawn, is the frame of prediction (to the rounding of OpenCV's weights)."""
    hw, divisor = (40, 33), 8
    smooth = cv2.GaussianBlur(picture(hw, 1), (0, 0), 3)[..., None]
    framed = Frame.of(hw, size, divisor=divisor).apply(smooth)
    canvas = canvas_of(size, [hw], divisor=divisor)
    mask = np.zeros(hw, np.uint8)
    moved, _ = warp(smooth, mask, Motion(), canvas_hw=canvas, zoom_yx=size.zoom_yx(hw), border=size.border)
    assert framed.shape == moved.shape
    apart = np.abs(framed.astype(int) - moved.astype(int))[3:-3, 3:-3]
    # a resized image ends in half pixels, which the warp takes from the border and the frame from the edge
    assert (apart > 3).mean() < (0.001 if size.resize_hw is None else 0.06)


def test_the_canvas_of_a_stage():
    sizes = [(100, 200), (150, 90)]
    assert canvas_of(SizeConfig(), sizes, divisor=32) == (160, 224)
    assert canvas_of(SizeConfig(), sizes, divisor=32, scale=0.5) == (96, 128)
    assert canvas_of(SizeConfig(), sizes, divisor=32, crop_hw=(64, 96)) == (64, 96)
    ladder = SizeConfig(resize_hw=(768, 768))
    assert [canvas_of(ladder, sizes, divisor=32, scale=s)[0] for s in (1 / 3, 2 / 3, 1.0)] == [256, 512, 768]
    winner = SizeConfig(resize_hw=(192, 192), pad_hw=(224, 224))
    assert canvas_of(winner, [(101, 101)], divisor=32) == (224, 224)
    assert canvas_of(winner, [(101, 101)], divisor=16, scale=0.5) == (112, 112)
    assert canvas_of(winner, [(101, 101)], divisor=32, scale=0.5) == (128, 128)
    assert canvas_of(winner, [(101, 101)], divisor=16, crop_hw=(96, 96)) == (96, 96)


def test_a_size_that_the_divisor_refuses():
    with pytest.raises(
        InputError, match=r"size\.pad_hw: 100x128 is no multiple of the model's divisor 32; .*128x128"
    ):
        Frame.of((90, 90), SizeConfig(pad_hw=(100, 128)), divisor=32)
    with pytest.raises(InputError, match=r"size\.pad_hw: 108x112 is no multiple .* divisor 16; .*112x112"):
        canvas_of(SizeConfig(pad_hw=(108, 112)), [(101, 101)], divisor=16, scale=0.5)


def test_a_canvas_smaller_than_the_image():
    with pytest.raises(InputError, match=r"size\.pad_hw: 64x64 is smaller than an image of 101x101"):
        Frame.of((101, 101), SizeConfig(pad_hw=(64, 64)), divisor=32)
