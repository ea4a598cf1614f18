"""Training on windows: how many an image has, where they lie, and what of a large image is read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from masksmith.augment.batch import make_batch
from masksmith.augment.sampling import draw_focus, draw_place, places_by_class
from masksmith.core.config import validate
from masksmith.core.randomness import stream
from masksmith.data.store import Store, StoreWriter
from masksmith.preprocess import SizeConfig
from masksmith.training.config import TrainingConfig
from masksmith.training.data import EpochBatches, FoldData, task_of
from masksmith.training.epochs import build_epochs
from masksmith.training.machine import make_fabric
from masksmith.training.sampling import Sampling
from masksmith.training.state import TrainingState
from masksmith.training.windows import too_large_window, windows_of
from tests.training.tiny import TinyNet, config

WINDOWS = {"crop_hw": (64, 64), "geometry": "none", "intensity": "none"}
SIZES = {"large": (600, 500), "wide": (64, 260), "small": (40, 30)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A large image with one small rare object and one common one."""
    folder = tmp_path_factory.mktemp("windows")
    shapes = [(name, (*hw, 1)) for name, hw in SIZES.items()]
    images = StoreWriter(folder / "i.npy", shapes, dtype=np.uint8)
    masks = StoreWriter(folder / "m.npy", shapes, dtype=np.uint8)
    rng = np.random.default_rng(0)
    for name, hw in SIZES.items():
        images.write(name, rng.integers(0, 256, (*hw, 1)).astype(np.uint8))
        mask = np.zeros((*hw, 1), np.uint8)
        if name == "large":
            mask[100:500, 300:450], mask[550:556, 20:26], mask[:5] = 1, 2, 255
        masks.write(name, mask)
    images.close()
    masks.close()
    return FoldData(0, list(SIZES), Store(folder / "i.npy"), Store(folder / "m.npy"), seed=3)


def settings(**changes):
    return validate(TrainingConfig, {**config().model_dump(), **WINDOWS, **changes}, where="training")


def epoch_of(data, training, number=0, index=0):
    epoch = replace(build_epochs(training, data.counts(training))[index], number=number)
    order = Sampling(training, data, torch.device("cpu")).order(epoch)
    return EpochBatches(task_of(training, training.stages[0], data, 4), data, epoch, order)


def test_an_epoch_looks_at_about_as_many_pixels_as_the_images_have(data):
    sizes = list(SIZES.values())
    assert windows_of(settings(), SizeConfig(), sizes) == [16, 4, 1]
    assert windows_of(settings(crop_hw=(200, 200)), SizeConfig(), sizes) == [8, 1, 1]
    assert windows_of(settings(), SizeConfig(resize_hw=(128, 128)), sizes) == [4, 4, 4]
    assert windows_of(settings(windows_per_image=3), SizeConfig(), sizes) == [3, 3, 3]
    assert windows_of(settings(crop_hw=None), SizeConfig(), sizes) == [1, 1, 1]
    assert data.counts(settings()) == [21]
    for sampler in ("plain", "class_aware"):
        for flips in (False, True):
            training = settings(sampler={"name": sampler}, augment={"append_flips": flips})
            batches = epoch_of(data, training)
            assert len(batches.order) == 21 * (1 + flips)
            assert batches.epoch.steps == len(batches.order) // 2
            if sampler == "plain":
                assert np.bincount(batches.order).tolist() == [16, 4, 1] * (1 + flips)


def test_a_training_steps_through_every_window(data):
    """Of 21 windows in batches of 2; to count the three images would leave most of them out."""
    training = settings(sampler={"name": "plain"})
    state = TrainingState(make_fabric(training), TinyNet(), training, data)
    state.begin_epoch()
    seen = [at for batches in state.steps_ahead() for part in batches.indices for at in part]
    assert len(seen) == 20 == 2 * state.epoch.steps
    counts = np.bincount(seen, minlength=3)
    assert (counts <= [16, 4, 1]).all()  # one of them is left over


def test_windows_lie_everywhere_and_no_two_epochs_have_the_same(data):
    training = settings(windows_per_image=16)
    total, before = np.zeros(SIZES["large"], int), None
    for number in range(12):
        coverage = epoch_of(data, training, number).coverage("large")
        assert coverage.sum() == 16 * 64 * 64
        assert not np.array_equal(coverage, before)
        total, before = total + coverage, coverage
    assert (total > 0).mean() > 0.75
    assert (epoch_of(data, training).coverage("small") == 16).all()


def test_the_coverage_is_that_of_the_pixels_in_the_batches(data, tmp_path):
    """Each pixel of a small image is told by its value; turned and mirrored windows show it once each."""
    values = np.arange(15 * 17, dtype=np.uint8).reshape(15, 17, 1)
    training = settings(
        crop_hw=(8, 5),
        windows_per_image=7,
        geometry={"hflip": 0.5, "transpose": 0.5, "vflip": 0.5},
        batch_size=1,
    )
    for name, array in (("i", values), ("m", np.zeros_like(values))):
        writer = StoreWriter(tmp_path / f"{name}.npy", [("x", values.shape)], dtype=np.uint8)
        writer.write("x", array)
        writer.close()
    one = replace(data, ids=["x"], images=Store(tmp_path / "i.npy"), masks=Store(tmp_path / "m.npy"))
    batches = epoch_of(one, training)
    canvas = batches.task.canvas_hw
    assert canvas == (8, 8)
    counts = np.zeros(256, int)
    for number in range(batches.epoch.steps):
        (batch,) = batches.make(number).batches
        counts += np.bincount(np.rint(batch.image * 255).astype(int).ravel(), minlength=256)
    np.testing.assert_array_equal(batches.coverage("x"), counts[:255].reshape(15, 17))


@pytest.mark.parametrize("geometry", ["none", "heavy"])
def test_of_a_large_image_only_what_is_seen_is_read(data, monkeypatch, geometry):
    training, parts, window = settings(geometry=geometry), [], Store.window
    task = task_of(training, training.stages[0], data, 4)

    def made():
        return make_batch(task, ["large"] * 4, range(4), counters=(3, 0, 0, 0))

    with monkeypatch.context() as patch:
        patch.setattr("masksmith.augment.batch._LARGE_PX", 2**40)
        whole = made()
    monkeypatch.setattr(Store, "checked", lambda *_: pytest.fail("read as a whole"))
    monkeypatch.setattr(Store, "window", lambda store, *part: parts.append(part) or window(store, *part))
    found = made()
    np.testing.assert_array_equal(found.image, whole.image)
    np.testing.assert_array_equal(found.mask, whole.mask)
    assert len(parts) == 8
    if geometry == "none":
        assert {rows.stop - rows.start for _, rows, _ in parts} == {64}


def test_a_rare_class_is_looked_at_as_often_as_a_common_one(data):
    training = settings(augment={"positive_windows": 1.0})
    task = task_of(training, training.stages[0], data, 4)
    batch = make_batch(task, ["large"] * 60, range(60), counters=(3, 0, 0, 0))
    rare = (batch.mask == 2).any((1, 2))
    assert 15 < rare.sum() < 45
    assert (rare | (batch.mask == 1).any((1, 2))).all()
    small = data.masks["large"][90:570, :, 0]
    drawn = [draw_focus(small, 1.0, stream(at)) for at in range(60)]
    classes = [small[int(y * small.shape[0]), int(x * small.shape[1])] for y, x in drawn]
    assert set(classes) == {1, 2}
    assert 15 < classes.count(2) < 45


def test_remembered_pixels_are_of_their_classes():
    mask = np.zeros((30, 40), np.uint8)
    mask[3:20, 5:30], mask[25, 7], mask[0, 0] = 1, 4, 255
    one, other = places_by_class(mask, most=50)
    assert len(one) == 50
    assert (mask.ravel()[one] == 1).all()
    assert other.tolist() == [25 * 40 + 7]
    layers = np.stack([mask == 1, mask == 9, mask == 4], axis=-1).astype(np.uint8)
    assert [len(part) for part in places_by_class(layers)] == [256, 1]
    assert places_by_class(np.zeros_like(mask)) == []
    assert draw_place([], (30, 40), 1.0, stream(0)) is None
    assert draw_place([other], (30, 40), 0.0, stream(0)) is None
    assert draw_place([other], (30, 40), 1.0, stream(0)) == (25.5 / 30, 7.5 / 40)
    assert draw_focus(layers, 1.0, stream(1)) is not None


def test_a_window_larger_than_every_image_is_said_and_padded(data):
    sizes, large = list(SIZES.values()), settings(crop_hw=(640, 700))
    assert "windows of 640x700 hold every image (the largest is 600x500)" in too_large_window(
        large, SizeConfig(), sizes
    )
    for other in (settings(), settings(crop_hw=None), settings(crop_hw=(640, 100))):
        assert too_large_window(other, SizeConfig(), sizes) is None
    batches = epoch_of(data, large)
    assert batches.make(0).batches[0].image.shape == (2, 1, 600, 500)
    assert (batches.coverage("large") == 1).all()


def test_windows_without_a_size_are_refused():
    with pytest.raises(Exception, match=r"windows_per_image: 4 has no effect without crop_hw"):
        settings(crop_hw=None, windows_per_image=4)
