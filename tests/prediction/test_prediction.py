from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric

from masksmith.core.errors import InputError
from masksmith.data.store import Store, StoreWriter
from masksmith.models.segmentation import Output, SegmentationModel
from masksmith.prediction.predict import predict_batches, predict_probs, write_codes
from masksmith.prediction.store import MeanCodes, code_of, open_codes, prob_of, to_codes
from masksmith.prediction.tta import TTA
from masksmith.preprocess import SizeConfig
from masksmith.preprocess.transforms import resize
from tests.prediction.nets import image_store, tiny


@given(st.floats(0, 1))
def test_codes_are_as_close_as_they_can_be(p):
    assert abs(prob_of(int(to_codes(np.array([p]))[0])) - p) <= 0.5 / 65535 + 1e-6


@given(st.floats(0.01, 0.99), st.floats(0, 1))
def test_a_threshold_as_a_code_decides_like_the_probability(threshold, p):
    if abs(p - threshold) > 1 / 65535:
        assert (int(to_codes(np.array([p]))[0]) > code_of(threshold)) == (p > threshold)


def test_views_are_the_eight_symmetries_of_the_square_and_have_inverses():
    planes, square = np.random.default_rng(0).random((2, 5, 7, 3)), np.arange(9).reshape(1, 3, 3, 1)
    for view in TTA.values():
        np.testing.assert_array_equal(view.undo(view.apply(planes)), planes)
    assert len({view.apply(square).tobytes() for view in TTA.values()}) == len(TTA) == 8


@pytest.fixture
def images(tmp_path):
    sizes = [("a", (21, 30)), ("b", (16, 16)), ("c", (21, 30)), ("blank", (16, 16))]
    return image_store(tmp_path / "i.npy", 1, sizes=sizes)


class Brightness(SegmentationModel):
    """A model whose logit is the pixel: symmetric under every flip."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.divisor = 8

    def forward(self, image, scalars=None):
        return Output((image - 0.5) * 10)


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu", devices=1)


def predict(fabric, model, images, tta, names=("a", "b", "c")):
    return dict(predict_probs(fabric, model, images, list(names), tta=tta, batch_size=2))


def test_tta_of_a_symmetric_model_is_the_identity(fabric, images):
    model = Brightness()
    for tta in (["identity"], ["identity", "hflip"], ["hflip", "vflip", "transpose"], sorted(TTA)):
        found = predict(fabric, model, images, tta)
        for name in "abc":
            expected = 1 / (1 + np.exp(-(images[name] / 255 - 0.5) * 10))
            assert found[name].shape == images[name].shape
            np.testing.assert_allclose(found[name], expected, atol=1e-5)
    assert model.training  # the mode is put back
    with pytest.raises(InputError, match=r"prediction\.tta: 'hflop' is unknown; did you mean 'hflip'"):
        predict(fabric, model, images, ["hflop"])


def test_flip_goes_before_the_asymmetric_padding(fabric, images, tmp_path):
    """For any model, hflip alone equals: flip the stored image, predict, flip back."""
    writer = StoreWriter(tmp_path / "flipped.npy", [("a", images["a"].shape)], dtype=np.uint8)
    writer.write("a", np.ascontiguousarray(images["a"][:, ::-1]))
    writer.close()
    model = tiny()
    by_hand = predict(fabric, model, Store(tmp_path / "flipped.npy"), ["identity"], ["a"])["a"][:, ::-1]
    np.testing.assert_allclose(predict(fabric, model, images, ["hflip"], ["a"])["a"], by_hand, atol=1e-6)


def test_turned_views_have_the_turned_size_rule(fabric, images):
    """A model whose logit is the pixel cannot tell the views apart, if each is framed as its own form asks."""
    for size in (SizeConfig(pad_hw=(32, 40)), SizeConfig(resize_hw=(24, 32), pad_hw=(24, 40))):
        options = {"batch_size": 2, "size": size}
        upright, *turned = (
            dict(predict_probs(fabric, Brightness(), images, ["a"], tta=[view], **options))["a"]
            for view in ("identity", "rot90", "rot270", "transpose", "antitranspose")
        )
        for one in turned:
            np.testing.assert_allclose(upright, one, atol=0.02)


def test_shifts_are_exact_and_scales_are_those_of_resized_images(fabric, images):
    """A model whose logit is the pixel gives the image back, wherever it lies on the canvas."""
    sizes = (SizeConfig(), SizeConfig(pad_hw=(40, 48)))
    for size, view in product(sizes, ("identity", "rot90", "antitranspose")):
        options = {"batch_size": 3, "size": size, "tta": [view]}
        plain = dict(predict_probs(fabric, Brightness(), images, ["a", "b", "c"], **options))
        shifts = [(0, 0), (3, 0), (5, 7), (0, 8)]
        moved = dict(predict_probs(fabric, Brightness(), images, ["a", "b", "c"], **options, shifts=shifts))
        for name in plain:
            np.testing.assert_allclose(moved[name], plain[name], atol=1e-5)
        for scale in (0.5, 1.25):
            scaled = dict(predict_probs(fabric, Brightness(), images, ["a", "b"], **options, scales=[scale]))
            for name, probs in scaled.items():
                hw = images[name].shape[:2]
                there = resize(images[name], (round(hw[0] * scale), round(hw[1] * scale)))
                by_hand = resize(1 / (1 + np.exp(-(there.astype(np.float32) / 255 - 0.5) * 10)), hw)
                np.testing.assert_allclose(probs, by_hand, atol=0.05)
    # with a size of its own each view is resized and shifted from there
    options = {"batch_size": 2, "size": SizeConfig(resize_hw=(32, 40)), "tta": ["identity"]}
    plain, moved = (
        dict(predict_probs(fabric, Brightness(), images, ["a"], **options, **more))["a"]
        for more in ({}, {"shifts": [(4, 6)], "scales": [1.5]})
    )
    assert np.abs(plain - moved).mean() < 0.08  # of noise; a pixel beside it would be 0.3


def test_classes_that_a_mirror_image_swaps_are_swapped_back(fabric, images):
    class Sides(Brightness):
        """The second class is the right half of what is seen, the third the left one."""

        exclusive = True

        def forward(self, image, scalars=None):
            right = (
                (torch.arange(image.shape[3]) >= image.shape[3] // 2)
                .float()
                .expand(*image.shape[:1], *image.shape[2:])
            )
            return Output(torch.stack([torch.zeros_like(right), 9 * right, 9 * (1 - right)], dim=1))

    options = {"batch_size": 2, "mirror": (0, 2, 1)}
    upright, flipped = (
        dict(predict_probs(fabric, Sides(), images, ["b"], tta=[view], **options))["b"]
        for view in ("identity", "hflip")
    )
    np.testing.assert_allclose(flipped, upright, atol=1e-6)
    assert upright[:, 8:, 1].min() > 0.99
    turned = dict(predict_probs(fabric, Sides(), images, ["b"], tta=["rot180"], **options))["b"]
    np.testing.assert_allclose(turned[:, 8:, 2], upright[:, 8:, 1])  # turned is not mirrored


def test_images_of_many_sizes_on_one_canvas_share_batches(fabric, tmp_path):
    """Each is flipped before its own padding, and cut back to its own size; runtimes see two shapes, not six."""
    sizes = {"a": (17, 30), "b": (24, 32), "c": (40, 9), "d": (21, 25), "e": (18, 32), "f": (33, 16)}
    images, seen = image_store(tmp_path / "many.npy", 1, sizes=list(sizes.items())), []

    def runtime(planes):
        """A logit that hangs on the place on the canvas, and on all that lies left of it."""
        seen.append(planes.shape)
        return np.cumsum(planes - 0.4, axis=3) + np.linspace(0, 1, planes.shape[2])[:, None].astype(
            np.float32
        )

    options = {"tta": ["identity", "hflip", "vflip"], "batch_size": 4, "runtime": runtime}
    batches = list(predict_batches(fabric, Brightness(), images, list(sizes), **options))
    assert [[name for name, _ in batch] for batch in batches] == [["a", "b", "d", "e"], ["c", "f"]]
    assert seen == [(4, 1, 24, 32)] * 3 + [(2, 1, 40, 16)] * 3
    together = {name: probs for batch in batches for name, probs in batch}
    for name, hw in sizes.items():
        alone = dict(predict_probs(fabric, Brightness(), images, [name], **options))[name]
        assert alone.shape == (*hw, 1)
        np.testing.assert_array_equal(together[name], alone)


def test_stored_in_order_with_blank_ones_empty(fabric, images, tmp_path):
    found = partial(
        predict_batches, fabric, Brightness(), images, ["a", "b", "c"], tta=["identity"], batch_size=4
    )
    write_codes(tmp_path / "p.npy", images, ["c", "blank", "b", "a"], found, blank={"blank"})
    store = open_codes(tmp_path / "p.npy")
    assert store["c"].shape == (21, 30, 1)
    assert not store["blank"].any()
    assert store["b"].any()
    assert store.dtype == np.uint16
    offsets = {name: entry.offset for name, entry in store.entries.items()}
    assert sorted(offsets, key=offsets.get) == ["c", "blank", "b", "a"]


def one(probs):
    """The one batch of the image b."""
    return lambda finished: [[("b", probs)]]


def test_mean_of_folds(images, tmp_path):
    for at, value in enumerate((0.2, 0.6)):
        probs = np.full((16, 16, 1), value)
        write_codes(tmp_path / f"{at}.npy", images, ["b"], one(probs), blank=set())
    stores = [open_codes(tmp_path / f"{at}.npy") for at in (0, 1)]
    both = MeanCodes(stores)
    assert both.ids == ["b"]
    mean = both["b"]
    assert (MeanCodes(stores[:1])["b"] == stores[0]["b"]).all()
    assert np.ptp(mean) == 0
    assert prob_of(int(mean[0, 0, 0])) == pytest.approx(0.4, abs=1e-4)


def test_a_stopped_prediction_goes_on_in_whole_batches(fabric, images, tmp_path):
    """Batches of two: (a, c), (b). Died after the first batch; then only the second goes through the model."""
    names, seen = ["a", "b", "c", "blank"], []

    class Counting(Brightness):
        def forward(self, image, scalars=None):
            seen.append(len(image))
            return super().forward(image)

    def write(path, stop=99, key="k"):
        def batches(finished):
            found = predict_batches(
                fabric, Counting(), images, names[:3], tta=["identity"], batch_size=2, finished=finished
            )
            for at, batch in enumerate(found):
                if at == stop:
                    raise KeyboardInterrupt
                yield batch

        write_codes(path, images, names, batches, blank={"blank"}, key=key)

    found = predict_batches(
        fabric, Brightness(), images, names[:3], tta=["identity"], batch_size=2, finished={"a", "b"}
    )
    assert [[name for name, _ in batch] for batch in found] == [["a", "c"]]  # left out only as a whole
    write(tmp_path / "clean.npy", key=None)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "p.npy", stop=1)
    assert not (tmp_path / "p.npy").exists()
    seen.clear()
    write(tmp_path / "p.npy")
    assert seen == [1]
    for ending in (".npy", ".csv"):
        assert (tmp_path / f"p{ending}").read_bytes() == (tmp_path / f"clean{ending}").read_bytes()
    assert not list(tmp_path.glob(".p*"))


def test_checksums_are_compared_once_and_what_is_damaged_is_refused(fabric, images, tmp_path, monkeypatch):
    write_codes(tmp_path / "p.npy", images, ["b"], one(np.ones((16, 16, 1))), blank=set())
    compared, damaged = [], Store.damaged
    monkeypatch.setattr(Store, "damaged", lambda store: compared.append(store.path) or damaged(store))
    open_codes(tmp_path / "p.npy")
    open_codes(tmp_path / "p.npy")
    assert len(compared) == 1
    for path in (tmp_path / "p.npy", images.path):
        flat = np.load(path, mmap_mode="r+")
        flat[0] ^= 1
        flat.flush()
    with pytest.raises(InputError, match="the probabilities of 'b' are damaged"):
        open_codes(tmp_path / "p.npy")
    with pytest.raises(InputError, match=r"i\.npy: 'a' in it was damaged since it was written"):
        predict(fabric, Brightness(), images, ["identity"])
