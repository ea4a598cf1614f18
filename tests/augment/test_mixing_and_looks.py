"""Intensity, mixing, windows, copies, and the callable."""

import itertools

import numpy as np
import pytest

from masksmith.augment import (
    AugmentConfig,
    CallableAugment,
    GeometryConfig,
    IntensityConfig,
    MixingConfig,
    build_task,
    check_augmentation,
    make_batch,
    strengths_by_frequency,
    with_copies,
)
from masksmith.augment.appearance import LOOKS, apply_looks, clahe, cutout, draw_looks
from masksmith.augment.intensity import CutoutConfig, apply_table, draw_table, scale_intensity
from masksmith.augment.mixing import (
    Batch,
    CopyPasteConfig,
    CutmixConfig,
    MixupConfig,
    copy_paste,
    cutmix,
    mix,
    mixup,
)
from masksmith.augment.sampling import class_of, draw_focus
from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.data.store import Store, StoreWriter
from masksmith.training.config import TrainingConfig
from tests.augment.test_geometry import blobs, smooth

STAGE = {
    "epochs": 1,
    "loss": [{"name": "bce"}],
    "optimizer": {"name": "adamw"},
    "schedule": {"name": "constant"},
}


def config_of(**parts):
    return validate(TrainingConfig, {"stages": [STAGE], **parts}, where="training")


@pytest.fixture
def stores(tmp_path):
    names = [f"s{i}" for i in range(6)]
    images = StoreWriter(tmp_path / "i.npy", [(n, (20, 20, 1)) for n in names], dtype=np.uint8)
    masks = StoreWriter(tmp_path / "m.npy", [(n, (20, 20, 1)) for n in names], dtype=np.uint8)
    for at, name in enumerate(names):
        rng = np.random.default_rng(at)
        images.write(name, rng.integers(0, 255, (20, 20, 1)).astype(np.uint8))
        masks.write(name, (rng.random((20, 20, 1)) < 0.1 * at).astype(np.uint8))
    images.close()
    masks.close()
    return {"images": Store(tmp_path / "i.npy"), "masks": Store(tmp_path / "m.npy"), "ids": names}


def test_the_table_is_looked_up_for_every_value(subtests):
    for dtype in [np.uint8, np.uint16]:
        with subtests.test(dtype=dtype):
            top = int(np.iinfo(dtype).max)
            table = draw_table(
                IntensityConfig(gamma=0.3, contrast=0.2), np.random.default_rng(1), max_value=top
            )
            image = np.random.default_rng(0).integers(0, top, (9, 11, 5), endpoint=True).astype(dtype)
            target = np.empty(image.shape, np.float32)
            apply_table(table, image, target)
            np.testing.assert_array_equal(target, table[image])


def test_each_look_changes_values_keeps_the_form_and_is_drawn_by_counter(subtests):
    for name, channels in itertools.product(LOOKS, [1, 3, 12]):
        if name == "hsv" and channels != 3:
            continue
        config = IntensityConfig(**{name: 1.0 if name == "channel_shuffle" else {"probability": 1.0}})
        image = np.random.default_rng(5).random((24, 20, channels), np.float32)
        mask = np.ones((24, 20), np.uint8)
        found = []
        for seed in (0, 1, 2, 3, 3):
            found.append(image.copy())
            apply_looks(found[-1], mask, config, draw_looks(config, np.random.default_rng(seed)))
        with subtests.test(name=name, channels=channels):
            assert np.isfinite(found).all()
            np.testing.assert_array_equal(found[3], found[4])
            changes = not (name == "channel_shuffle" and channels == 1)
            assert any((one != image).any() for one in found) == changes
            assert (mask == 1).all()


def test_clahe_widens_a_narrow_histogram(subtests):
    for channels, dtype in itertools.product([1, 3, 12], [np.uint8, np.uint16]):
        with subtests.test(channels=channels, dtype=dtype):
            config = IntensityConfig(clahe={"probability": 1.0, "clip_range": (4.0, 4.0)}).clahe
            image = smooth((64, 64), channels, dtype=dtype) // 4
            found = clahe(image, config, np.random.default_rng(0))
            assert (found.shape, found.dtype) == (image.shape, image.dtype)
            assert found.std() > image.std()


def test_cutout_hides_the_image_and_the_mask_as_asked(subtests):
    for mode, wanted in [("keep", {1}), ("zero", {0, 1}), ("ignore", {1, 255})]:
        with subtests.test(mode=mode, wanted=wanted):
            config = CutoutConfig(probability=1.0, count_range=(2, 2), fill="zero", mask=mode)
            image, mask = np.ones((40, 40, 3), np.float32), np.ones((40, 40), np.uint8)
            cutout(image, mask, config, np.random.default_rng(0))
            assert (image == 0).any()
            assert set(np.unique(mask)) == wanted
            if mode != "keep":
                np.testing.assert_array_equal(mask != 1, image[..., 0] == 0)


def test_cutout_leaves_ignored_pixels_ignored():
    config = CutoutConfig(
        probability=1.0, count_range=(1, 1), side_frac_range=(0.9, 0.9), fill="zero", mask="zero"
    )
    image, mask = np.ones((40, 40, 3), np.float32), np.ones((40, 40), np.uint8)
    mask[::2] = 255
    cutout(image, mask, config, np.random.default_rng(0))
    assert (image[::2] == 0).any()
    assert (mask[::2] == 255).all()
    np.testing.assert_array_equal(mask[1::2] == 0, image[1::2, :, 0] == 0)


def test_strength_zero_of_intensity_changes_nothing():
    config = scale_intensity(IntensityConfig.model_validate("heavy"), 0.0)
    image = np.random.default_rng(0).random((16, 16, 1), np.float32)
    for seed in range(20):
        rng, found = np.random.default_rng(seed), image.copy()
        np.testing.assert_allclose(draw_table(config, rng, max_value=255), np.arange(256) / 255, atol=1e-6)
        apply_looks(found, np.ones((16, 16), np.uint8), config, draw_looks(config, rng))
        np.testing.assert_allclose(found, image, atol=1e-6)


def batch_of(num=4, hw=(32, 32)):
    rng = np.random.default_rng(0)
    image = rng.random((num, *hw, 2), np.float32).transpose(0, 3, 1, 2)
    masks = np.stack([blobs(hw, seed=i) for i in range(num)])
    return Batch(image, masks, scalars=np.arange(num, dtype=np.float32)[:, None])


def test_mixup_weighs_images_scalars_and_losses_alike():
    batch, partner = batch_of(), np.array([1, 2, 3, 0])
    mixed = mixup(batch, MixupConfig(probability=1.0), np.random.default_rng(0), partner=partner)
    assert 0 < mixed.share < 1
    wanted = mixed.share * batch.image + (1 - mixed.share) * batch.image[partner]
    np.testing.assert_allclose(mixed.image, wanted, atol=1e-6)
    np.testing.assert_array_equal(mixed.mask, batch.mask)
    np.testing.assert_array_equal(mixed.other_mask, batch.mask[partner])
    np.testing.assert_allclose(mixed.scalars[0, 0], 1 - mixed.share, atol=1e-6)


def test_cutmix_takes_image_and_mask_of_one_rectangle():
    batch, partner = batch_of(), np.array([1, 2, 3, 0])
    mixed = cutmix(batch, CutmixConfig(probability=1.0), np.random.default_rng(1), partner=partner)
    taken = (mixed.image[0] != batch.image[0]).all(0)
    assert 0 < taken.mean() < 1
    rows, columns = np.flatnonzero(taken.any(1)), np.flatnonzero(taken.any(0))
    assert taken[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    np.testing.assert_array_equal(mixed.mask[0], np.where(taken, batch.mask[1], batch.mask[0]))
    assert (mixed.share, mixed.other_mask) == (1.0, None)


def test_copy_paste_brings_whole_objects_with_their_pixels():
    batch, partner = batch_of(), np.array([1, 2, 3, 0])
    chosen = np.array([True, False, True, False])
    config = CopyPasteConfig(probability=1.0, max_objects=1)
    mixed = copy_paste(batch, config, np.random.default_rng(0), partner=partner, chosen=chosen)
    for at in (0, 2):
        pasted = (mixed.image[at] != batch.image[at]).all(0)
        np.testing.assert_array_equal(pasted, batch.mask[partner[at]] == 1)  # one disk a mask
        np.testing.assert_array_equal(mixed.mask[at], batch.mask[at] | batch.mask[partner[at]])
    np.testing.assert_array_equal(mixed.image[1], batch.image[1])


def test_mixing_off_and_a_batch_of_one():
    batch = batch_of()
    assert mix(batch, MixingConfig(), np.random.default_rng(0)) is batch
    with pytest.raises(InputError, match="a batch of 1 image has no partner"):
        mix(batch_of(1), MixingConfig(mixup=MixupConfig(probability=1.0)), np.random.default_rng(0))


def test_a_mixed_batch_is_the_same_twice(stores):
    config = config_of(
        mixing={"cutmix": {"probability": 0.5}, "mixup": {"probability": 0.5}}, geometry="heavy"
    )
    task = build_task(config, canvas_hw=(32, 32), **stores)
    one, two = (make_batch(task, ["s1", "s4"], [1, 4], counters=(0, 0, 0, 2)) for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.mask, two.mask)


def test_an_image_that_comes_again_is_augmented_anew_in_every_part(stores):
    """Geometry, windows, looks and the callable; the first time it has the draws that it always had."""
    custom = CallableAugment("noisy", Seeded())
    parts = {
        "geometry": "heavy",
        "intensity": "heavy",
        "augment": {"custom": "noisy", "positive_windows": 0.5},
    }
    task = build_task(config_of(**parts), canvas_hw=(32, 32), custom=custom, **stores)
    names, indices, counters = ["s4"] * 4, [4] * 4, (0, 0, 0, 2)
    batch = make_batch(task, names, indices, counters=counters, seen=[0, 1, 2, 1])
    plain = make_batch(task, names[:1], indices[:1], counters=counters)
    np.testing.assert_array_equal(batch.image[0], plain.image[0])
    np.testing.assert_array_equal(batch.image[1], batch.image[3])
    assert (batch.image[0] != batch.image[1]).any()
    assert (batch.image[1] != batch.image[2]).any()


def test_mixing_draws_do_not_come_again_with_an_image(stores):
    task = build_task(config_of(mixing={"mixup": {"probability": 1.0}}), canvas_hw=(20, 20), **stores)
    shares = {
        make_batch(task, ["s1", "s4"], [1, 4], counters=(0, 0, 0, 2), seen=[turn, 0]).share
        for turn in range(3)
    }
    assert len(shares) == 3


def test_one_image_is_left_unmixed(stores):
    task = build_task(config_of(mixing={"mixup": {"probability": 1.0}}), canvas_hw=(20, 20), **stores)
    batch = make_batch(task, ["s1"], [1], counters=(0, 0, 0, 2))
    assert (batch.other_mask, batch.share) == (None, 1.0)


def test_appended_copies_are_mirror_images(stores):
    task = build_task(config_of(augment={"append_flips": True}), canvas_hw=(20, 20), **stores)
    assert with_copies(6, True) == 12
    batch = make_batch(task, ["s2", "s2"], [2, 8], counters=(0, 0, 0, 0))
    np.testing.assert_array_equal(batch.image[1], batch.image[0][..., ::-1])
    np.testing.assert_array_equal(batch.mask[1], batch.mask[0][:, ::-1])


def test_rare_coverage_classes_are_changed_more(stores):
    found = strengths_by_frequency({"a": 0, "b": 0, "c": 0, "d": 1, "e": 10}, 1.0)
    assert (found["a"], found["d"], found["e"]) == (pytest.approx(1 / 3), 1.0, 1.0)
    masks = np.full((4, 10, 10, 1), 255, np.uint8)
    masks[1:] = 0
    masks[2, 0], masks[2, 1] = 1, 2  # two classes on a fifth of it
    masks[3, 0, 0] = 1
    assert [class_of(mask) for mask in masks] == [0, 0, 2, 1]
    task = build_task(config_of(augment={"rare_power": 0.5}), canvas_hw=(20, 20), **stores)
    assert set(task.strengths) == set(stores["ids"])


def test_windows_are_centred_on_foreground():
    mask = np.zeros((100, 120), np.uint8)
    mask[80, 100], mask[10, 10] = 1, 255
    focus = draw_focus(mask, 1.0, np.random.default_rng(0))
    assert focus == ((80.5) / 100, (100.5) / 120)
    assert draw_focus(mask, 0.0, np.random.default_rng(0)) is None
    assert draw_focus(mask * 0, 1.0, np.random.default_rng(0)) is None


class Seeded:
    def set_random_seed(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, image, mask):
        return {"image": image + self.rng.integers(0, 3, image.shape).astype(np.uint8), "mask": mask}


def test_a_callable_is_seeded_by_counter(stores):
    custom = CallableAugment("noisy", Seeded())
    task = build_task(config_of(augment={"custom": "noisy"}), canvas_hw=(32, 32), custom=custom, **stores)
    alone = make_batch(task, ["s2"], [2], counters=(0, 0, 0, 0))
    together = make_batch(task, ["s1", "s2"], [1, 2], counters=(0, 0, 0, 0))
    np.testing.assert_array_equal(alone.image[0], together.image[1])


def test_a_callable_that_returns_something_else_is_refused(stores, subtests):
    for fn, message in [
        (lambda image, mask: {"image": image}, "no 'mask' in what it returned"),
        (lambda image, mask: {"image": image[1:], "mask": mask}, r"its image is \(31, 32, 1\)"),
        (lambda image, mask: {"image": image, "mask": mask + np.uint8(7)}, "its mask has the new value"),
    ]:
        with subtests.test(fn=fn, message=message):
            custom = CallableAugment("mine", fn)
            task = build_task(
                config_of(augment={"custom": "mine"}), canvas_hw=(32, 32), custom=custom, **stores
            )
            with pytest.raises(InputError, match=message):
                make_batch(task, ["s2"], [2], counters=(0, 0, 0, 0))


def test_what_these_images_cannot_have_is_refused(subtests):
    for parts, message in [
        ({"intensity": {"hsv": {"probability": 0.5}}}, "hsv.probability: 0.5 needs images of 3 channels"),
        ({"intensity": {"channel_shuffle": 0.5}}, "channel_shuffle: 0.5 has nothing to shuffle"),
        ({"mixing": {"mixup": {"probability": 0.5}}, "batch_size": 1}, "a batch of 1 image has no partner"),
        ({"geometry": {"shear_deg": 30.0}, "augment": {"strength": 2.0}}, "strength: 2 makes shear_deg 60"),
        ({"intensity": {"contrast": 0.6}, "augment": {"strength": 2.0}}, "strength: 2 makes contrast 1.2"),
        ({"augment": {"custom": "mine"}}, "the recipe names 'mine', the callable .* is None"),
    ]:
        with subtests.test(parts=parts, message=message), pytest.raises(InputError, match=message):
            check_augmentation(config_of(**parts), channels=1)


def test_what_a_stage_cannot_have_is_refused_by_keys_that_there_are():
    where = "training.stages[1]"
    mixed = config_of(mixing={"mixup": {"probability": 0.5}}, batch_size=4)
    check_augmentation(mixed, channels=1, where=where)
    with pytest.raises(InputError, match=r"^training\.mixing: a batch of 1 image has no partner"):
        check_augmentation(mixed, channels=1, where=where, batch_size=1)
    check_augmentation(mixed.model_copy(update={"batch_size": 1}), channels=1, batch_size=4)
    strong = config_of(geometry={"shear_deg": 30.0}, augment={"strength": 2.0})
    wanted = r"^training\.augment\.strength, with the ranges of training\.stages\[1\]: 2 makes shear_deg 60"
    with pytest.raises(InputError, match=wanted):
        check_augmentation(strong, channels=1, where=where)
    with pytest.raises(InputError, match=r"^training\.augment\.custom: the recipe names 'mine'"):
        check_augmentation(config_of(augment={"custom": "mine"}), channels=1, where=where)
    with pytest.raises(InputError, match=r"^training\.stages\[1\]\.intensity\.channel_shuffle: 0\.5"):
        check_augmentation(config_of(intensity={"channel_shuffle": 0.5}), channels=1, where=where)


def test_bad_configurations_are_refused(subtests):
    for parts, message in [
        ({"geometry": "heaavy"}, "'heaavy' is unknown; did you mean 'heavy'"),
        ({"intensity": "lossles"}, "did you mean 'lossless'"),
        ({"geometry": {"crop_zoom": {"side_frac_range": [0.9, 0.8]}}}, "the smaller number first"),
        ({"mixing": {"mixup": {"probability": 0.7}, "cutmix": {"probability": 0.6}}}, "make 1.3"),
    ]:
        with subtests.test(parts=parts, message=message), pytest.raises(InputError, match=message):
            config_of(**parts)


def test_a_preset_is_spelt_out():
    config = config_of(geometry="heavy", intensity="heavy")
    check_augmentation(config, channels=1)
    plain = config.model_dump(mode="json")
    assert plain["geometry"]["rotate_deg"] == 30.0
    assert validate(TrainingConfig, plain, where="x") == config
    assert config_of(geometry="none", intensity="none").geometry == GeometryConfig()
    assert AugmentConfig().strength == 1.0
