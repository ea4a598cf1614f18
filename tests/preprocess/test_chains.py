"""Chains of values and of sizes in a recipe: alike in training, prediction and a bundle, undone where they move."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from masksmith.augment import AugmentConfig, GeometryConfig, IntensityConfig, build_task, make_batch
from masksmith.augment.batch import add_seen
from masksmith.augment.mixing import MixingConfig
from masksmith.core.errors import InputError
from masksmith.data.array_store import ArrayStore
from masksmith.data.store import Store, StoreWriter
from masksmith.deploy.segmenter import ScaledView
from masksmith.preprocess import Chain, Crop, Frame, Refract, Scale, SizeConfig, canvas_of
from masksmith.preprocess.chains import apply_values, refracted
from masksmith.preprocess.inputs import InputConfig, Scaler, make_inputs
from masksmith.recipes.recipe import load_recipe

KERNEL = [
    {"name": "crop", "ratio": 0.9, "count": 2},
    {"name": "refract", "ratio": 0.9},
    {"name": "scale", "hw": [128, 128]},
]


def size(*chain, **fields):
    return SizeConfig.model_validate_json(json.dumps({"chain": list(chain), **fields}))


def values(*chain, **fields):
    return InputConfig(scaling="type_max", chain=list(chain), **fields)


# --- sizes --------------------------------------------------------------------------------------------------


def test_the_kernels_chain_is_that_of_the_library_in_training_and_in_prediction():
    rule, image = size(*KERNEL), np.random.default_rng(0).integers(0, 256, (1, 100, 100, 1), np.uint8)
    assert rule.window_hw((100, 100)) == (90, 90)
    trained = Chain([Crop(0.9), Refract(0.9), Scale((128, 128))]).fit(image)
    assert rule.inner_hw((90, 90)) == trained.transform(image).shape[1:3] == (128, 128)
    assert rule.zoom_yx((90, 90)) == (1.28, 1.28)
    frame = Frame.of((100, 100), rule, divisor=32)
    whole = Chain([Refract(0.9), Scale((128, 128))]).fit(image)
    np.testing.assert_array_equal(frame.apply(image[0]), whole.transform(image)[0])
    assert frame.undo(np.zeros((128, 128, 2), np.float32)).shape == (100, 100, 2)


@pytest.mark.parametrize("hw", [(101, 101), (64, 91)])
@pytest.mark.parametrize(
    ("chain", "inner"),
    [
        ([{"name": "refract", "ratio": 0.8}], None),
        ([{"name": "pad", "hw": [120, 110]}], (120, 110)),
        ([{"name": "pad", "hw": [112, 112]}, {"name": "refract", "ratio": 0.5}], (224, 224)),
    ],
)
def test_what_pads_is_undone_bit_for_bit(chain, inner, hw):
    rule = size(*chain)
    assert rule.inner_hw(hw) == (inner or tuple(refracted(side, 0.8) for side in hw))
    image = np.random.default_rng(0).random((*hw, 2)).astype(np.float32)
    frame = Frame.of(hw, rule, divisor=32)
    assert all(side % 32 == 0 for side in frame.canvas_hw)
    np.testing.assert_array_equal(frame.undo(frame.apply(image)), image)


def test_scaling_is_undone_by_scaling_back():
    rule = size(
        {"name": "refract", "ratio": 0.9},
        {"name": "scale", "hw": [96, 160]},
        {"name": "pad", "hw": [128, 192]},
    )
    ramp = np.add.outer(np.arange(50.0), 2 * np.arange(70.0)).astype(np.float32)[..., None]
    frame = Frame.of((50, 70), rule, divisor=32)
    assert frame.canvas_hw == (128, 192)
    assert np.abs(frame.undo(frame.apply(ramp)) - ramp)[2:-2, 2:-2].max() < 0.1
    assert rule.turned().inner_hw((70, 50)) == (192, 128)


def test_resize_and_pad_are_a_chain_of_their_own():
    """The chain {scale, pad} is the old rule, number for number."""
    old, new = (
        SizeConfig(resize_hw=(96, 96), pad_hw=(128, 128)),
        size({"name": "scale", "hw": [96, 96]}, {"name": "pad", "hw": [128, 128]}),
    )
    image = np.random.default_rng(0).integers(0, 256, (101, 77, 3), np.uint8)
    np.testing.assert_array_equal(*(Frame.of((101, 77), one, divisor=32).apply(image) for one in (old, new)))
    assert old.zoom_yx((101, 77), 0.5) == new.zoom_yx((101, 77), 0.5)


def test_chains_that_cannot_be_undone_or_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match=r"chain\[1\]: a crop has no inverse.*put it first"):
        size({"name": "scale", "hw": [64, 64]}, {"name": "crop"})
    with pytest.raises(ValidationError, match="in place of resize_hw and pad_hw"):
        size({"name": "refract"}, resize_hw=[64, 64])
    with pytest.raises(InputError, match=r"pad to 64x64: smaller than an image, 112x112 there"):
        canvas_of(size({"name": "refract"}, {"name": "pad", "hw": [64, 64]}), [(101, 101)], divisor=32)
    with pytest.raises(
        InputError, match=r"size\.chain\[0\]: .*expected tag.*'crop', 'refract', 'scale', 'pad'|size.chain"
    ):
        load_recipe("smoke", ("size.chain=[{name: crope}]",))
    for override, why in (
        ("prediction.tile_hw=[64, 64]", "tiles are cut of the image as it is"),
        ("prediction.tta_scales=[0.5, 1.0]", "it says itself how large"),
        ("prediction.tta_shifts=[[0, 0], [2, 2]]", "it says itself where"),
        ("training.crop_hw=[64, 64]", "its windows are its step"),
        ("training.augment.positive_windows=0.5", "a crop draws its windows anywhere"),
        ("model.derived_channels=depth_ramp", "in a window of size.chain a row lies elsewhere"),
    ):
        key = override.partition("=")[0]
        with pytest.raises(InputError, match=rf"{key}: .* with size\.chain: {why}"):
            load_recipe("smoke", ("size.chain=[{name: crop}, {name: refract}]", override))


def _store(path, arrays):
    writer = StoreWriter(path, [(name, one.shape) for name, one in arrays.items()], dtype=np.uint8)
    for name, one in arrays.items():
        writer.write(name, one)
    writer.close()
    return Store(path)


def _task(tmp_path, rule, *, side=40, canvas=None):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (side, side, 1)).astype(np.uint8)
    mask = rng.integers(0, 2, (side, side, 1)).astype(np.uint8)
    stores = _store(tmp_path / "i.npy", {"a": image}), _store(tmp_path / "m.npy", {"a": mask})

    class Plain:
        geometry, intensity, mixing, augment = (
            GeometryConfig(),
            IntensityConfig(),
            MixingConfig(),
            AugmentConfig(),
        )
        batch_size = 4

    canvas = canvas or canvas_of(rule, [rule.window_hw((side, side))], divisor=4)
    return (
        image,
        mask,
        build_task(Plain(), images=stores[0], masks=stores[1], ids=["a"], canvas_hw=canvas, size=rule),
    )


def test_training_sees_windows_with_their_own_mirrored_border(tmp_path):
    rule = size({"name": "crop", "ratio": 0.5, "count": 4}, {"name": "refract", "ratio": 0.5})
    image, mask, task = _task(tmp_path, rule)
    batch = make_batch(task, ["a"] * 4, [0] * 4, counters=(1, 2, 3, 4), seen=range(4))
    assert batch.image.shape == (4, 1, 40, 40)
    windows = set()
    for shown, marked in zip(batch.image[:, 0], batch.mask, strict=True):
        inner = np.rint(shown[10:30, 10:30] * 255).astype(np.uint8)
        places = [
            (y, x)
            for y in range(21)
            for x in range(21)
            if (image[y : y + 20, x : x + 20, 0] == inner).all()
            and (mask[y : y + 20, x : x + 20, 0] == marked[10:30, 10:30]).all()
        ]
        assert len(places) == 1
        windows.add(places[0])
        np.testing.assert_array_equal(shown, np.pad(shown[10:30, 10:30], 10, mode="reflect"))
        np.testing.assert_array_equal(marked, np.pad(marked[10:30, 10:30], 10, mode="reflect"))
    assert len(windows) > 1
    coverage = np.zeros((40, 40), np.int64)
    add_seen(coverage, task, "a", 0, counters=(1, 2, 3, 4))
    assert coverage.sum() == 400


# --- values -------------------------------------------------------------------------------------------------


def test_values_by_hand():
    codes = np.array([0, 100, 200, 300, 400], np.uint16).reshape(1, 5, 1) * 100
    none = np.zeros(codes.shape, bool)

    def after(*chain, missing=none):
        return apply_values(codes.copy(), values(*chain).chain, missing).ravel().tolist()

    assert after({"name": "equalize"}) == [0, 16384, 32768, 49151, 65535]
    assert after({"name": "percentile", "low": 25.0, "high": 75.0}) == [0, 0, 32768, 65535, 65535]
    assert after({"name": "gamma", "gamma": 2.0})[4] == round((40000 / 65535) ** 2 * 65535)
    gone = none.copy()
    gone[0, 4] = True  # what was not measured does not count, and stays 0
    assert after({"name": "percentile", "low": 0.0, "high": 100.0}, missing=gone) == [
        0,
        21845,
        43690,
        65535,
        0,
    ]
    flat = np.full((4, 4, 1), 7, np.uint16)
    for one in ({"name": "equalize"}, {"name": "percentile"}):
        np.testing.assert_array_equal(apply_values(flat, values(one).chain, flat > 9), flat)
    nearly = np.full((20, 20, 1), 7, np.uint16)
    nearly[0, 0] = 9
    np.testing.assert_array_equal(
        apply_values(nearly, values({"name": "percentile"}).chain, nearly > 99), nearly
    )


def test_clahe_raises_the_contrast_of_a_dark_corner():
    ramp = np.tile(np.arange(1000, 1064, dtype=np.uint16), (64, 1))[..., None]
    found = apply_values(ramp, values({"name": "clahe", "tile_px": 16, "clip": 40.0}).chain, ramp > 9999)
    assert np.ptp(found.astype(int)) > 5 * np.ptp(ramp.astype(int))


def test_prepared_images_and_those_of_a_bundle_are_the_same(tmp_path):
    config = values({"name": "percentile"}, {"name": "clahe"}, {"name": "gamma", "gamma": 0.7})
    images = {f"i{at}": np.random.default_rng(at).integers(0, 200, (60, 50, 3), np.uint8) for at in range(3)}
    store = _store(tmp_path / "t.npy", images)
    made = make_inputs(config, store, store, tmp_path / "inputs", blank=(), decoded="c")
    assert not config.is_raw
    assert made.limits is not None
    view = ScaledView(ArrayStore(images), Scaler(config, [0, 1, 2], made.limits))
    for name in images:
        np.testing.assert_array_equal(made.test[name], view[name])
        part = view.window(name, slice(10, 31), slice(5, 40))
        np.testing.assert_array_equal(part, made.test[name][10:31, 5:40])


def test_a_recipe_without_a_chain_keeps_its_hash_and_its_prepared_images():
    assert '"chain"' not in InputConfig().identity
    plain, changed = load_recipe("smoke"), load_recipe("smoke", ("input.chain=[{name: equalize}]",))
    assert plain.hash != changed.hash != load_recipe("smoke", ("size.chain=[{name: refract}]",)).hash
    with pytest.raises(ValidationError, match="low: 60 is not below high, 40"):
        values({"name": "percentile", "low": 60.0, "high": 40.0})
    with pytest.raises(ValidationError, match=r"chain: there are no bands that are amounts"):
        values({"name": "equalize"}, bands=[], one_hot={"0": [1]})
