import doctest
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksmith.augment.geometry import Motion
from masksmith.augment.warp import warp
from masksmith.core.errors import InputError
from masksmith.preprocess import (
    Chain,
    Crop,
    Frame,
    Pad,
    PadTo,
    Refract,
    Scale,
    SizeConfig,
    Standardize,
    canvas_of,
    names_by_canvas,
    resize,
    round_up,
)

SIDES = st.tuples(st.integers(1, 60), st.integers(1, 60))
BORDERS = st.sampled_from(["reflect", "edge", "zero"])


def picture(hw, channels=1, seed=0, dtype=np.uint8):
    high = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, high, (*hw, channels), endpoint=True).astype(dtype)


def test_winners_padding():
    """The first place of TGS Salt: 101 to 128 by 13 above and left, 14 below and right."""
    assert Pad.to_size((101, 101), (128, 128)) == Pad(13, 14, 13, 14)
    assert [round_up(side, 16) for side in (96, 101)] == [96, 112]


@given(hw=SIDES, channels=st.integers(1, 6), divisor=st.sampled_from([1, 8, 16]), border=BORDERS)
def test_padding_is_numpys_and_undone_exactly(hw, channels, divisor, border):
    images, canvas = stack(hw, channels=channels), tuple(round_up(side, divisor) for side in hw)
    step = PadTo(canvas, border).fit(images)
    padded, pad = step.transform(images), step.pad_
    np.testing.assert_array_equal(step.inverse_transform(padded), images)
    if min(hw) > divisor:  # numpy mirrors a mirror image otherwise than OpenCV
        mode = {"reflect": "reflect", "edge": "edge", "zero": "constant"}[border]
        borders = ((0, 0), (pad.top, pad.bottom), (pad.left, pad.right), (0, 0))
        np.testing.assert_array_equal(padded, np.pad(images, borders, mode=mode))


def test_what_the_border_shows():
    for channels in (1, 6):  # OpenCV's and numpy's form of the same border
        image = np.repeat(np.array([[[1], [2]], [[4], [5]]], np.uint8), channels, axis=2)
        for border, corner in (("reflect", 5), ("edge", 1), ("zero", 0)):
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


def test_a_resize_and_its_undoing_do_not_shift():
    """A ramp stays a ramp: no half pixel is lost on the way to 192, 224 and back (TGS Salt's ResNeXt50)."""
    frame = Frame.of((101, 101), SizeConfig(resize_hw=(192, 192), pad_hw=(224, 224)), divisor=32)
    ramp = np.linspace(0, 1, 101, dtype=np.float32)[None, :, None].repeat(101, axis=0)
    back = frame.undo(frame.apply(ramp))
    np.testing.assert_allclose(back[:, 2:-2], ramp[:, 2:-2], atol=1e-5)
    assert frame.chain.steps[1].pad_ == Pad(16, 16, 16, 16)


def test_resize_of_many_channels_is_that_of_each():
    for channels in (1, 3, 7):
        for dtype in (np.uint8, np.uint16):
            image = picture((20, 30), channels, dtype=dtype)
            found = resize(image, (13, 41))
            assert found.dtype == dtype
            for channel in range(channels):
                alone = cv2.resize(image[..., channel], (41, 13), interpolation=cv2.INTER_LINEAR)
                np.testing.assert_allclose(found[..., channel].astype(int), alone.astype(int), atol=1)
            assert resize(image, (20, 30)) is image


def test_training_lays_an_image_where_prediction_does():
    """The warp of training, with nothing drawn, is the frame of prediction (to the rounding of OpenCV's weights)."""
    hw, divisor = (40, 33), 8
    smooth = cv2.GaussianBlur(picture(hw, 1), (0, 0), 3)[..., None]
    mask = np.zeros(hw, np.uint8)
    for size in (
        SizeConfig(),
        SizeConfig(pad_hw=(64, 48)),
        SizeConfig(resize_hw=(80, 60)),
        SizeConfig(resize_hw=(50, 30), pad_hw=(64, 48), border="edge"),
        SizeConfig(pad_hw=(64, 48), border="zero"),
    ):
        framed = Frame.of(hw, size, divisor=divisor).apply(smooth)
        canvas = canvas_of(size, [hw], divisor=divisor)
        zoom = size.zoom_yx(hw)
        moved, _ = warp(smooth, mask, Motion(), canvas_hw=canvas, zoom_yx=zoom, border=size.border)
        assert framed.shape == moved.shape
        apart = np.abs(framed.astype(int) - moved.astype(int))[3:-3, 3:-3]
        # a resized image ends in half pixels, which the warp takes from the border and the frame from the edge
        assert (apart > 3).mean() < (0.001 if size.resize_hw is None else 0.06)


def test_names_by_canvas():
    sizes = {"a": (101, 97), "b": (40, 200), "c": (112, 112), "d": (112, 98)}
    found = names_by_canvas(sizes, SizeConfig(), divisor=16)
    assert found == {(112, 112): ["a", "c", "d"], (48, 208): ["b"]}
    assert list(names_by_canvas(sizes, SizeConfig(resize_hw=(50, 60)), divisor=16)) == [(64, 64)]
    assert all(
        Frame.of(sizes[name], SizeConfig(), divisor=16).canvas_hw == hw for hw in found for name in found[hw]
    )
    with pytest.raises(InputError, match=r"size\.pad_hw: 128x128 is smaller than an image of 40x200"):
        names_by_canvas(sizes, SizeConfig(pad_hw=(128, 128)), divisor=16)


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


def test_sizes_that_do_not_fit():
    for size, hw, divisor, message in (
        (
            SizeConfig(pad_hw=(100, 128)),
            (90, 90),
            32,
            "100x128 is no multiple of the model's divisor 32; .*128x128",
        ),
        (SizeConfig(pad_hw=(64, 64)), (101, 101), 32, "64x64 is smaller than an image of 101x101"),
    ):
        with pytest.raises(InputError, match=rf"size\.pad_hw: {message}"):
            Frame.of(hw, size, divisor=divisor)
    with pytest.raises(InputError, match=r"size\.pad_hw: 108x112 is no multiple .* divisor 16; .*112x112"):
        canvas_of(SizeConfig(pad_hw=(108, 112)), [(101, 101)], divisor=16, scale=0.5)


def stack(hw, *, num=3, channels=1):
    return np.stack([picture(hw, channels, seed) for seed in range(num)])


def test_a_frame_is_resize_and_pad_bit_for_bit():
    """The chain makes what its two parts make alone, forwards and backwards."""
    image, hw = picture((101, 90), 3), (101, 90)
    frame = Frame.of(hw, SizeConfig(resize_hw=(60, 50), pad_hw=(64, 64)), divisor=32)
    pad = Pad.to_size((60, 50), (64, 64))
    np.testing.assert_array_equal(frame.apply(image), pad.apply(resize(image, (60, 50))))
    probs = np.random.default_rng(1).random((64, 64, 2), np.float32)
    inner = probs[pad.top : 64 - pad.bottom, pad.left : 64 - pad.right]
    np.testing.assert_array_equal(frame.undo(probs), resize(np.ascontiguousarray(inner), hw))


def test_the_example_of_the_module_holds_and_is_imported_late():
    import masksmith.preprocess

    found = doctest.testmod(masksmith.preprocess)
    assert found.attempted > 5
    assert found.failed == 0
    code = """
import sys, masksmith
assert "numpy" not in sys.modules
masksmith.preprocess.Chain
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@given(hw=SIDES, ratio=st.floats(0.3, 1), channels=st.integers(1, 6), border=BORDERS)
def test_a_chain_that_only_pads_is_undone_bit_for_bit(hw, ratio, channels, border):
    images = stack(hw, channels=channels)
    chain = Chain([Refract(ratio, border), PadTo((256, 256), border)])
    changed = chain.fit_transform(images)
    assert changed.shape == (3, 256, 256, channels)
    np.testing.assert_array_equal(chain.inverse_transform(changed), images)
    np.testing.assert_array_equal(chain.transform(images), changed)


@given(hw=SIDES, target=SIDES, channels=st.integers(1, 6))
def test_a_scaled_stack_comes_back_at_its_size(hw, target, channels):
    """A level stays a level, and the type stays."""
    chain = Chain([Scale(target), PadTo((64, 64), "zero")]).fit(stack(hw))
    back = chain.inverse_transform(np.full((2, 64, 64, channels), 0.75, np.float32))
    assert (back.shape, back.dtype) == ((2, *hw, channels), np.float32)
    np.testing.assert_allclose(back, 0.75, atol=1e-6)


@given(hw=SIDES, ratio=st.floats(0.1, 1), cardinality=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_windows_are_of_their_image_and_masks_follow(hw, ratio, cardinality, seed):
    """Pixel values are the pixels' places, so a window says where it was cut."""
    places = np.arange(hw[0] * hw[1], dtype=np.int32).reshape(*hw)
    images = np.stack([places, places + 10_000])[..., None]
    crop = Crop(ratio, cardinality, seed).fit(images)
    windows = crop.transform(images)
    height, width = crop.hw_out_
    assert windows.shape == (2 * cardinality, height, width, 1)
    for at, window in enumerate(windows[..., 0] - 10_000 * (np.arange(2).repeat(cardinality))[:, None, None]):
        top, left = divmod(int(window[0, 0]), hw[1])
        np.testing.assert_array_equal(
            window, places[top : top + height, left : left + width], err_msg=str(at)
        )
    np.testing.assert_array_equal(crop.transform(images % 2), windows % 2)  # masks, say
    np.testing.assert_array_equal(crop.transform(images[:1]), windows[:cardinality])


def test_windows_differ_and_reach_every_corner():
    images = np.arange(100).reshape(1, 10, 10, 1)
    windows = Crop(0.8, cardinality=200).fit(images).transform(images)
    assert set(windows[:, 0, 0, 0].tolist()) == {10 * top + left for top in range(3) for left in range(3)}


def test_the_kernels_order_of_steps():
    """Crop 0.9, refract 0.9, scale to 128: 100 to 90, 100 and 128, twice as many images."""
    chain = Chain([Crop(0.9, cardinality=2), Refract(0.9), Scale((128, 128))])
    assert chain.fit_transform(stack((100, 100))).shape == (6, 128, 128, 1)
    assert (chain.steps[0].hw_out_, chain.steps[1].inner_.hw) == ((90, 90), (100, 100))
    with pytest.raises(
        InputError, match=r"Crop: random windows cannot be undone; predict with a chain without"
    ):
        chain.inverse_transform(np.zeros((6, 128, 128, 1)))


def test_steps_refuse_what_they_are_not_fitted_to():
    images, other = stack((8, 8)), stack((7, 8))
    for make in (lambda: Scale((9, 9)), lambda: PadTo((9, 9)), Refract, Crop):
        for way in ("transform", "inverse_transform"):
            if way == "inverse_transform" and make is Crop:
                continue
            with pytest.raises(InputError, match=r"it is not fitted.*call fit"):
                getattr(make(), way)(images)
            with pytest.raises(
                InputError, match=r"images of 7x8, expected [89]x[89] as it was fitted; fit another"
            ):
                getattr(make().fit(images), way)(other)


def test_types_that_can_and_cannot_be_interpolated():
    step = Scale((9, 9)).fit(stack((8, 8)))
    for dtype in ("bool", "int8", "int64", "float16"):
        message = rf"images of {dtype}, which cannot be interpolated; expected uint8, .*: convert them"
        with pytest.raises(InputError, match=f"Scale: {message}"):
            step.transform(np.ones((2, 8, 8, 1), dtype))
        with pytest.raises(InputError, match=f"Scale, backwards: {message}"):
            step.inverse_transform(np.ones((2, 9, 9, 1), dtype))
    for dtype in ("uint8", "uint16", "int16", "float32", "float64"):
        assert step.transform(np.ones((2, 8, 8, 5), dtype)).dtype == dtype


def test_a_stack_without_channels_is_refused():
    """In a process of its own: here, array types are checked before the transform sees the array."""
    code = """
import numpy as np
from masksmith.preprocess import *
images = np.zeros((2, 8, 8, 1), np.uint8)
steps = (Scale((9, 9)), PadTo((9, 9)), Refract(), Crop())
for call in (*(step.fit for step in steps), Scale((9, 9)).fit(images).transform):
    try:
        call(images[0])
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.count("an array of shape (8, 8, 1); expected images (n, h, w, c), or masks as") == 5


def test_a_transform_refuses_what_it_cannot_do():
    for make, message in (
        (lambda: Refract(0), r"Refract: ratio 0; expected a share of the sides, above 0 and at most 1"),
        (lambda: Crop(1.5), r"Crop: ratio 1\.5; expected a share"),
        (lambda: Crop(cardinality=0), r"Crop: cardinality 0; expected 1 or more windows an image"),
        (
            lambda: PadTo((7, 9)).fit(stack((8, 8))),
            r"images of 8x8 are larger than 7x9; give a larger size, or",
        ),
        (lambda: Standardize(["z"]).transform(np.ones((2, 1))), r"Standardize: it is not fitted"),
        (lambda: Standardize(["z"]).inverse_transform(np.ones((2, 1))), r"Standardize: it is not fitted"),
        (lambda: Standardize(["z"]).fit(np.ones((0, 1))), r"Standardize: no rows; expected the numbers"),
        (
            lambda: Standardize(["z"]).fit(np.ones((3, 2))),
            r"shape \(3, 2\); expected \(images, 1\) for the .* z",
        ),
        (
            lambda: Standardize(["z"]).fit(np.array([[1.0], [np.nan]])),
            r"'z' is nan in row 1; expected a finite",
        ),
        (lambda: Standardize(["z"]).fit(np.ones((3, 1))), r"'z' is 1\.0 everywhere; leave this column out"),
    ):
        with pytest.raises(InputError, match=message):
            make()


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20).filter(lambda v: max(v) - min(v) > 1e-2))
def test_numbers_are_standardised_by_those_of_the_fit(values):
    """Other numbers are measured by the mean and deviation of the training, not by their own."""
    column = np.array(values)[:, None]
    standard = Standardize(["z"]).fit(column)
    changed = standard.transform(column)
    np.testing.assert_allclose([changed.mean(), changed.std()], [0, 1], atol=1e-6)
    np.testing.assert_allclose(standard.inverse_transform(changed), column, atol=1e-6)
    other = standard.transform(column + 5)
    np.testing.assert_allclose(other - changed, 5 / column.std(), rtol=1e-6)
