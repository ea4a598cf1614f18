import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksmith.augment.batch import Task, build_task, make_batch
from masksmith.augment.geometry import GeometryConfig, Motion, draw_affine, motion_matrix
from masksmith.augment.intensity import IntensityConfig, draw_table
from masksmith.augment.warp import warp
from masksmith.data.store import Store, StoreWriter
from masksmith.preprocess import Pad
from tests.training.tiny import config


def image_and_mask(seed=0, hw=(21, 30), channels=1):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (*hw, channels)).astype(np.uint8)
    return image, (rng.random(hw) < 0.4).astype(np.uint8)


def test_nothing_drawn_is_padding():
    image, mask = image_and_mask()
    moved, target = warp(image, mask, Motion(), canvas_hw=(32, 32))
    pad = Pad.to_size((21, 30), (32, 32))
    np.testing.assert_array_equal(moved, pad.apply(image))
    np.testing.assert_array_equal(target, pad.apply(mask[..., None])[..., 0])


def test_crop_shows_a_window():
    image, mask = image_and_mask(hw=(40, 50))
    moved, target = warp(image, mask, Motion(crop_frac=(1.0, 0.0)), canvas_hw=(16, 16))
    np.testing.assert_array_equal(moved, image[-16:, :16])
    np.testing.assert_array_equal(target, mask[-16:, :16])


def test_ignored_pixels_stay_ignored():
    image, mask = image_and_mask()
    mask[5:15, 5:15] = 255
    _, target = warp(image, mask, Motion(angle_rad=0.3), canvas_hw=(32, 32))
    assert set(np.unique(target)) == {0, 1, 255}
    assert 80 < int((target == 255).sum()) < 160  # the block of 100, and a part of it mirrored at the border


def test_matrix_turns_about_the_centre():
    matrix = motion_matrix(Motion(angle_rad=np.pi / 2), (11, 21), (11, 21), zoom_yx=(1.0, 1.0))
    np.testing.assert_allclose(matrix @ [10, 5, 1], [10, 5, 1], atol=1e-9)


def test_probability_zero_draws_flips_only():
    config = GeometryConfig(hflip=1.0, rotate_deg=90, probability=0.0)
    motion = draw_affine(config, np.random.default_rng(0))
    assert motion.hflip
    assert (motion.angle_rad, motion.zoom, motion.shift_frac) == (0.0, 1.0, (0.0, 0.0))


def test_table_without_changes_is_the_identity(subtests):
    for max_value in [255, 65535]:
        with subtests.test(max_value=max_value):
            table = draw_table(IntensityConfig(), np.random.default_rng(0), max_value=max_value)
            np.testing.assert_allclose(table, np.arange(max_value + 1) / max_value, atol=1e-6)


@given(seed=st.integers(0, 200))
def test_table_is_the_composition(seed):
    config = IntensityConfig(brightness=0.2, contrast=0.3, gamma=0.2)
    table = draw_table(config, np.random.default_rng(seed), max_value=255)
    assert (np.diff(table) > 0).all()
    assert -0.2 <= table[0] <= 0.2
    assert 0.7 - 0.2 <= table[-1] <= 1.3 + 0.2


@pytest.fixture
def task(tmp_path):
    names = [f"s{i}" for i in range(6)]
    images = StoreWriter(tmp_path / "i.npy", [(n, (20, 20, 1)) for n in names], dtype=np.uint8)
    masks = StoreWriter(tmp_path / "m.npy", [(n, (20, 20, 1)) for n in names], dtype=np.uint8)
    for at, name in enumerate(names):
        image, mask = image_and_mask(at, hw=(20, 20))
        images.write(name, image)
        masks.write(name, mask[..., None])
    images.close()
    masks.close()
    return Task(
        Store(tmp_path / "i.npy"),
        Store(tmp_path / "m.npy"),
        GeometryConfig(hflip=0.5, rotate_deg=10),
        IntensityConfig(contrast=0.2),
        (24, 24),
        1.0,
    )


def test_a_sample_does_not_depend_on_its_batch(task):
    together = make_batch(task, ["s0", "s1", "s2"], [0, 1, 2], counters=(0, 0, 3))
    alone = make_batch(task, ["s2"], [2], counters=(0, 0, 3))
    np.testing.assert_array_equal(together.image[2], alone.image[0])
    np.testing.assert_array_equal(together.mask[2], alone.mask[0])
    other_epoch = make_batch(task, ["s2"], [2], counters=(0, 0, 4))
    assert (alone.image != other_epoch.image).any()
    assert together.image.shape == (3, 1, 24, 24)
    assert together.image.dtype == np.float32


@pytest.mark.parametrize("layers", [False, True])
def test_classes_of_the_two_sides_stay_on_their_side_in_a_mirror_image(tmp_path, layers):
    """Left of the middle is class 1, right of it class 2; a flip moves the pixels and swaps the names."""
    labels = np.zeros((8, 12), np.uint8)
    labels[:, :6], labels[:, 6:], labels[0, 0] = 1, 2, 255
    mask = np.stack([labels == 1, labels == 2], axis=-1).astype(np.uint8) if layers else labels[..., None]
    writers = [
        StoreWriter(tmp_path / f"{at}.npy", [("a", (8, 12, one.shape[2]))], dtype=np.uint8)
        for at, one in enumerate((mask, mask))
    ]
    for writer in writers:
        writer.write("a", mask)
        writer.close()
    images, masks = (Store(tmp_path / f"{at}.npy") for at in (0, 1))
    mirrored = config(geometry=GeometryConfig(hflip=1.0, probability=0.0))
    seen = {}
    for mirror in ((), (1, 0) if layers else (0, 2, 1)):
        task = build_task(mirrored, images=images, masks=masks, ids=["a"], canvas_hw=(8, 12), mirror=mirror)
        seen[bool(mirror)] = make_batch(task, ["a"], [0], counters=(0, 0, 0, 0)).mask[0]
    if layers:
        np.testing.assert_array_equal(seen[False][:, ::-1], mask)
        np.testing.assert_array_equal(seen[True][..., ::-1], seen[False])
        np.testing.assert_array_equal(seen[True][:, 1:-1], mask[:, 1:-1])
    else:
        assert seen[False][0, -1] == seen[True][0, -1] == 255
        np.testing.assert_array_equal(seen[True][1:], labels[1:])
        np.testing.assert_array_equal(seen[False][1:], labels[1:, ::-1])
