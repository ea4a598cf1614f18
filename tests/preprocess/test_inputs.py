"""From an image's bands to what a model sees: scaling, no data, names, and the prepared stores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from masksmith.core.errors import InputError
from masksmith.data.store import Store, StoreWriter
from masksmith.preprocess.inputs import (
    InputConfig,
    image_limits,
    make_inputs,
    scaling_text,
    select,
    settle_scaling,
    to_unit_codes,
)
from masksmith.recipes.recipe import load_recipe

HW = (6, 5)


def store(path, images):
    shapes = [(name, image.shape) for name, image in images.items()]
    writer = StoreWriter(path, shapes, dtype=next(iter(images.values())).dtype.type)
    for name, image in images.items():
        writer.write(name, image)
    writer.close()
    return Store(path)


@pytest.fixture
def images():
    """Four images of three amounts, the last with gaps, and a band of names."""
    rng = np.random.default_rng(0)
    amounts = rng.integers(-500, 9000, (4, *HW, 3))
    amounts[2, 0, 0, 2] = -9999
    names = rng.choice([10, 20, 80], (4, *HW, 1))
    stack = np.concatenate([amounts, names], axis=3).astype(np.int16)
    return {f"i{at}": image for at, image in enumerate(stack)}


@pytest.fixture
def prepare(images, tmp_path):
    train = store(tmp_path / "train.npy", images)
    test = store(tmp_path / "test.npy", {"t": images["i0"][:4]})

    def make(blank=(), decoded="c", **options):
        return make_inputs(
            InputConfig(**options), train, test, tmp_path / "inputs", blank=blank, decoded=decoded
        )

    return make


# --- the configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": [1, 2, 1]}, "bands: 1 is named twice"),
        ({"bands": []}, "leaves a model nothing to see"),
        ({"low": [0.0]}, "low: .0.0., but scaling 'auto' has no use for it"),
        ({"scaling": "min_max", "high": [1.0]}, "high: .1.0., but scaling 'min_max' has no use for it"),
        ({"scaling": "fixed", "low": [0.0]}, "high: None; with scaling 'fixed' expected a number"),
        ({"scaling": "fixed", "low": [], "high": [1.0]}, "low: ..; with scaling 'fixed' expected a number"),
        (
            {"scaling": "fixed", "bands": [0, 1, 2], "low": [0.0, 1.0], "high": [5.0]},
            "low: 2 numbers for 3 bands; expected 1 or as many",
        ),
        (
            {"scaling": "fixed", "low": [0.0, 1.0], "high": [5.0, 6.0, 7.0]},
            "low and high: 2 and 3 numbers",
        ),
        ({"scaling": "fixed", "low": [0.0], "high": [5.0, 0.0]}, "low: 0 is not below high, 0"),
        ({"one_hot": {"x": [1]}}, "one_hot: 'x' is no band"),
        ({"one_hot": {"03": [1]}}, "one_hot: '03' is no band"),
        ({"one_hot": {"3": []}}, r"one_hot.3: \[\] makes no channel"),
        ({"one_hot": {"3": [1, 2, 1]}}, "one_hot.3: 1 is named twice"),
        ({"bands": [0, 3], "one_hot": {"3": [1]}}, "band 3 is in bands too"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(ValidationError, match=message):
        InputConfig(**options)


def test_the_view_decides_no_weights():
    recipe = load_recipe("cloud-unet")
    assert load_recipe("cloud-unet", ("input.view=null",)).hash == recipe.hash
    assert load_recipe("cloud-unet", ("input.no_data=-1",)).hash != recipe.hash
    assert InputConfig(scaling="type_max", view=(2, 1, 0)).is_raw
    assert not InputConfig(scaling="type_max", bands=[0]).is_raw


# --- scaling ----------------------------------------------------------------------------------------------


FLOATS = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None)
@given(
    arrays(np.float32, (4, 3, 2), elements=FLOATS | st.just(float("nan"))),
    st.floats(-100, 100),
    st.floats(1, 200),
)
def test_scaling_is_clipped_rising_and_within_half_a_code(values, low, span):
    limits = np.full(2, low), np.full(2, low + span)
    codes = to_unit_codes(values, limits)
    assert codes.dtype == np.uint16
    assert (codes[np.isnan(values) | (values <= low)] == 0).all()
    assert (codes[values >= low + span] == 65535).all()
    known = ~np.isnan(values)
    wanted = np.clip((values[known].astype(np.float64) - low) / span, 0, 1)
    assert np.abs(codes[known] / 65535 - wanted).max(initial=0) <= 0.5 / 65535 + 1e-9
    order = np.argsort(values[known])
    assert (np.diff(codes[known][order].astype(int)) >= 0).all()


@settings(deadline=None)
@given(arrays(np.float32, (4, 3, 2), elements=FLOATS), st.floats(0.5, 4), FLOATS)
def test_the_extremes_of_an_image_do_not_see_gain_and_offset(values, gain, offset):
    """The idea of image_min_max: brighter light makes the same picture."""
    scaled = (values.astype(np.float64) * gain + offset).astype(np.float64)
    first, second = (to_unit_codes(one, image_limits(one)) for one in (values.astype(np.float64), scaled))
    flat = np.ptp(values, axis=(0, 1)) < 1
    assert np.abs(first.astype(int) - second)[..., ~flat].max(initial=0) <= 1
    assert {0, 65535} >= {int(first[..., ~flat].min(initial=0)), int(first[..., ~flat].max(initial=0))}


def test_a_band_of_one_value_becomes_0():
    values = np.full((2, 2, 1), 7.0, np.float32)
    assert not to_unit_codes(values, image_limits(values)).any()


def test_what_was_not_measured():
    image = np.array([[[1.0], [np.nan]], [[np.inf], [-9999]]], np.float32)
    assert np.isnan(select(image, [0], no_data=-9999)[..., 0]).tolist() == [[False, True], [True, True]]
    assert np.isnan(select(image, [0], no_data=None)).sum() == 2


def by_hand(images, low, high, bands=(0, 1, 2)):
    """The prepared images, pixel by pixel."""
    made = {}
    for name, image in images.items():
        made[name] = np.zeros((*image.shape[:2], len(bands)), np.uint16)
        for at, band in enumerate(bands):
            for y, x in np.ndindex(*image.shape[:2]):
                value = float(image[y, x, band])
                share = (value - low[at]) / (high[at] - low[at]) if value != -9999 else 0
                made[name][y, x, at] = np.rint(min(max(share, 0), 1) * 65535)
    return made


def measured(images, band, seen=("i0", "i1", "i2", "i3")):
    values = np.concatenate([images[name][..., band].ravel() for name in seen]).astype(float)
    return values[values != -9999]


@pytest.mark.parametrize("scaling", ["fixed", "min_max", "standard"])
def test_scalings_by_hand(prepare, images, scaling):
    options = {"scaling": scaling, "bands": [2, 0], "no_data": -9999}
    low, high = [0, -100], [8000, 9000]
    if scaling == "fixed":
        options |= {"low": [float(one) for one in low], "high": [float(one) for one in high]}
    if scaling == "min_max":
        low, high = zip(
            *((one.min(), one.max()) for one in (measured(images, 2), measured(images, 0))), strict=True
        )
    if scaling == "standard":
        moments = [(one.mean(), 3 * one.std()) for one in (measured(images, 2), measured(images, 0))]
        low, high = zip(*((mean - three, mean + three) for mean, three in moments), strict=True)
    found = prepare(**options)
    wanted = by_hand(images, low, high, bands=(2, 0))
    for name in images:
        assert np.abs(found.train[name].astype(int) - wanted[name]).max() <= 1
    np.testing.assert_array_equal(
        found.test["t"], found.train["i0"][:4]
    )  # fitted on the training images alone
    planes = np.stack([found.train[name] for name in images]) / 65535
    np.testing.assert_allclose(found.statistics.mean, planes.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(found.statistics.std, planes.std((0, 1, 2)), atol=1e-6)


def test_each_image_by_its_own_extremes(prepare):
    found = prepare(scaling="image_min_max", bands=[0, 1])
    for name in found.train:
        assert found.train[name].min((0, 1)).tolist() == [0, 0]
        assert found.train[name].max((0, 1)).tolist() == [65535, 65535]


def test_names_become_channels(prepare, images):
    found = prepare(scaling="min_max", no_data=-9999, one_hot={"3": [80, 10]})
    assert found.channels == 5
    for name, image in images.items():
        np.testing.assert_array_equal(found.train[name][..., 3] == 65535, image[..., 3] == 80)
        np.testing.assert_array_equal(found.train[name][..., 4] == 65535, image[..., 3] == 10)
    assert set(np.unique(found.train["i0"][..., 3:])) == {0, 65535}
    assert (found.statistics.mean[3:], found.statistics.std[3:]) == ((0, 0), (1, 1))
    only = prepare(bands=[], one_hot={"3": [80]})
    assert only.channels == 1


def test_blank_images_do_not_count(prepare, images):
    found = prepare(scaling="min_max", bands=[0], blank=["i1", "i3"])
    seen = measured(images, 0, ("i0", "i2"))
    assert (found.train["i0"] == 65535).any() or (found.train["i2"] == 65535).any()
    brightest = np.argwhere(images["i1"][..., 0] > seen.max())
    assert all(found.train["i1"][y, x, 0] == 65535 for y, x in brightest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scaling": "type_max"},
            "'type_max' needs images of 8 or 16 bits without sign, these are int16.*choose auto, standard",
        ),
        (
            {"bands": [0, 4], "scaling": "standard"},
            "band 4 was asked for, but the images have 4; expected 0 to 3",
        ),
        ({"scaling": "standard", "view": (0, 1, 9)}, "band 9 was asked for"),
        ({"scaling": "fixed", "low": [0.0], "high": [1.0, 2.0]}, "input.high: 2 numbers for 4 bands"),
        ({"scaling": "standard", "one_hot": {"3": [70]}}, r"none of the values \[70\] occurs in band 3"),
        (
            {"bands": None, "one_hot": {"0": [1], "1": [1], "2": [1], "3": [1], "4": [1]}},
            "band 4 was asked for",
        ),
    ],
)
def test_images_that_do_not_allow_it(prepare, options, message):
    with pytest.raises(InputError, match=message):
        prepare(**options)


@pytest.mark.parametrize("scaling", ["min_max", "standard"])
@pytest.mark.parametrize(("value", "message"), [(7, r"one value only \(7\)"), (-9999, "no measured value")])
def test_a_band_without_contrast_is_refused(images, tmp_path, scaling, value, message):
    for image in images.values():
        image[..., 1] = value
    train = store(tmp_path / "train.npy", images)
    config = InputConfig(scaling=scaling, no_data=-9999)
    with pytest.raises(InputError, match=f"input.bands: band 1 has {message} in the training images"):
        make_inputs(config, train, train, tmp_path / "inputs", blank=(), decoded="c")


# --- "auto" -----------------------------------------------------------------------------------------------


def settled(folder, images, *, blank=(), **options):
    folder.mkdir()
    train = store(folder / "train.npy", {str(at): image for at, image in enumerate(images)})
    config = InputConfig(**options)
    return settle_scaling(config, train, folder / "inputs", blank=blank, decoded="c")


def test_auto_is_what_occurs(tmp_path):
    rng = np.random.default_rng(0)
    bits = {8: (np.uint8, 256), 12: (np.uint16, 4096), 16: (np.uint16, 65536)}
    grey = {of: rng.integers(0, most, (3, 40, 30, 1)).astype(kind) for of, (kind, most) in bits.items()}
    assert settled(tmp_path / "8", grey[8]).is_raw
    assert settled(tmp_path / "16", grey[16]).is_raw
    found = settled(tmp_path / "12", grey[12])
    assert (found.scaling, found.low, found.high) == ("fixed", [grey[12].min()], [grey[12].max()])
    assert settled(tmp_path / "asked", grey[12], scaling="type_max").is_raw
    colours = np.concatenate([grey[12], grey[12] // 4, grey[12] // 16], axis=3)
    assert settled(tmp_path / "colours", colours).high == [grey[12].max()]  # one pair: colours stay
    many = np.concatenate([grey[16], colours], axis=3)
    assert settled(tmp_path / "many", many).high == many.max(axis=(0, 1, 2)).tolist()
    narrow = rng.integers(40000, 41000, (3, 40, 30, 1)).astype(np.uint16)
    found = settled(tmp_path / "narrow", narrow)
    assert (found.scaling, found.low, found.high) == ("fixed", [narrow.min()], [narrow.max()])
    saturated = grey[12].copy()
    saturated[:, :2] = 65535  # a border, 5% of the pixels
    assert settled(tmp_path / "saturated", saturated).high == [saturated[:, 2:].max()]
    floats = rng.normal(size=(3, 8, 8, 2)).astype(np.float32)
    floats[0, 0, 0] = np.nan, np.inf
    found = settled(tmp_path / "floats", floats)
    known = np.where(np.isfinite(floats), floats, np.nan)
    np.testing.assert_array_equal(found.low, np.nanmin(known, axis=(0, 1, 2)))
    np.testing.assert_array_equal(found.high, np.nanmax(known, axis=(0, 1, 2)))
    signed = rng.integers(-500, 500, (3, 8, 8, 2)).astype(np.int16)
    signed[1] = 3000
    found = settled(tmp_path / "signed", signed, blank=["1"], bands=[1])
    assert (found.bands, found.high) == ([1], [signed[[0, 2]][..., 1].max()])
    with pytest.raises(InputError, match="input: band 2 was asked for, but the images have 2"):
        settled(tmp_path / "none", signed, bands=[2])


def test_auto_leaves_out_hot_pixels_and_knows_bands_without_contrast(tmp_path):
    images = np.random.default_rng(0).integers(100, 4096, (4, 64, 64, 1)).astype(np.uint16)
    images[:, 3, 3] = 65535
    found = settled(tmp_path / "hot", images)
    assert 4000 < found.high[0] < 4096
    assert found.low == [images.min()]
    gaps = np.random.default_rng(0).normal(100, 9, (2, 32, 32, 1)).astype(np.float32)
    gaps[:, :9] = -9999
    assert settled(tmp_path / "gaps", gaps).low[0] > 50
    for at, value, limits in ((0, -7, (-7, 0)), (1, 0, (0, 1)), (2, np.nan, (0, 1))):
        flat = np.full((2, 4, 4, 1), value, np.float32)
        found = settled(tmp_path / f"flat {at}", flat)
        assert (found.low, found.high) == ([limits[0]], [limits[1]])


def test_auto_is_measured_once_for_the_same_data(tmp_path):
    image = np.arange(16, dtype=np.int16).reshape(4, 4, 1)
    found = settled(tmp_path / "a", [image])
    other = store(tmp_path / "other.npy", {"0": 2 * image})
    for decoded, high in (("c", 15), ("d", 30)):
        again = settle_scaling(InputConfig(), other, tmp_path / "a" / "inputs", blank=(), decoded=decoded)
        assert again.high == [high]
    assert scaling_text(found, image.dtype) == "fixed: 0…15 become 0…1"
    assert (
        scaling_text(InputConfig(scaling="type_max"), np.dtype(np.uint16)) == "type_max: 0…65535 become 0…1"
    )
    assert scaling_text(InputConfig(scaling="standard"), image.dtype) == "standard"


# --- the stores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_as_they_are_are_not_copied(tmp_path, dtype):
    images = store(tmp_path / "a.npy", {"a": np.arange(60).reshape(4, 5, 3).astype(dtype)})
    asked = InputConfig(scaling="type_max")
    found = make_inputs(asked, images, images, tmp_path / "inputs", blank=(), decoded="c")
    assert found.train is images
    assert found.statistics is None
    assert not (tmp_path / "inputs").exists()
    some = make_inputs(
        InputConfig(scaling="type_max", bands=[2]), images, images, tmp_path / "inputs", blank=(), decoded="c"
    )
    full = np.iinfo(dtype).max
    np.testing.assert_allclose(some.train["a"] / 65535, images["a"][..., 2:] / full, atol=1e-7)


def test_made_once_and_again_for_other_data_or_after_damage(prepare, tmp_path):
    options = {"scaling": "min_max", "bands": [0]}
    path = prepare(**options).train.path
    before = path.stat().st_mtime_ns
    assert prepare(**options).train.path.stat().st_mtime_ns == before
    assert prepare(**options, view=(0, 1, 2)).train.path == path
    assert prepare(**(options | {"bands": [1]})).train.path != path
    prepare(**options, decoded="other")
    assert path.stat().st_mtime_ns != before
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + bytes(20))
    damaged = prepare(**options, decoded="other").train
    with pytest.raises(InputError, match=r"train_images.npy: 'i3' in it was damaged .* repeat the command"):
        damaged.checked("i3")
    assert prepare(**options, decoded="other").train.damaged() == []
    assert path.read_bytes() == whole


def test_an_interrupted_preparation_is_made_again(prepare, monkeypatch):
    from masksmith.preprocess import inputs

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(inputs, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(scaling="min_max")
    monkeypatch.undo()
    assert prepare(scaling="min_max").train.damaged() == []
