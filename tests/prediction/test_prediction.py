from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masksmith.core.errors import InputError
from masksmith.data.store import Store, StoreWriter
from masksmith.models.config import ModelConfig
from masksmith.models.segmentation import Output, SegmentationModel, build_model
from masksmith.prediction.predict import predict_batches, predict_probs, write_codes
from masksmith.prediction.store import MeanCodes, code_of, open_codes, prob_of, to_codes
from masksmith.prediction.tta import TTA
from masksmith.preprocess import SizeConfig


@given(st.floats(0, 1))
def test_codes_are_as_close_as_they_can_be(p):
    assert abs(prob_of(int(to_codes(np.array([p]))[0])) - p) <= 0.5 / 65535 + 1e-6


@given(st.floats(0.01, 0.99), st.floats(0, 1))
def test_a_threshold_as_a_code_decides_like_the_probability(threshold, p):
    if abs(p - threshold) > 1 / 65535:
        assert (int(to_codes(np.array([p]))[0]) > code_of(threshold)) == (p > threshold)


@pytest.mark.parametrize("name", sorted(TTA))
@given(seed=st.integers(0, 50))
def test_tta_inverses(name, seed):
    planes = np.random.default_rng(seed).random((2, 5, 7, 3))
    np.testing.assert_array_equal(TTA[name].undo(TTA[name].apply(planes)), planes)


def test_the_views_are_the_eight_symmetries_of_the_square():
    square = np.arange(9).reshape(1, 3, 3, 1)
    assert len({TTA[name].apply(square).tobytes() for name in TTA}) == len(TTA) == 8


@pytest.fixture
def images(tmp_path):
    shapes = [("a", (21, 30, 1)), ("b", (16, 16, 1)), ("c", (21, 30, 1)), ("blank", (16, 16, 1))]
    writer = StoreWriter(tmp_path / "i.npy", shapes, dtype=np.uint8)
    rng = np.random.default_rng(0)
    for name, shape in shapes:
        writer.write(name, rng.integers(0, 255, shape).astype(np.uint8))
    writer.close()
    return Store(tmp_path / "i.npy")


class Brightness(SegmentationModel):
    """A model whose logit is the pixel: symmetric under every flip."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.divisor = 8

    def forward(self, image, scalars=None):
        return Output((image - 0.5) * 10)


@pytest.fixture
def fabric():
    from lightning_fabric import Fabric

    return Fabric(accelerator="cpu", devices=1)


def predict(fabric, model, images, tta, names=("a", "b", "c")):
    return dict(predict_probs(fabric, model, images, list(names), tta=tta, batch_size=2))


@pytest.mark.parametrize(
    "tta", [["identity"], ["identity", "hflip"], ["hflip", "vflip", "transpose"], sorted(TTA)]
)
def test_tta_of_a_symmetric_model_is_the_identity(fabric, images, tta):
    found = predict(fabric, Brightness(), images, tta)
    for name in "abc":
        expected = 1 / (1 + np.exp(-(images[name] / 255 - 0.5) * 10))
        assert found[name].shape == images[name].shape
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_flip_goes_before_the_asymmetric_padding(fabric, images):
    """For any model, hflip alone equals: flip the stored image, predict, flip back."""
    config = ModelConfig(
        encoder="resnet18", encoder_weights="none", encoder_depth=3, decoder_channels=[8, 8, 8]
    )
    model = build_model(config, in_channels=1, seed=0)
    from masksmith.prediction.predict import _forward
    from masksmith.prediction.runtimes import torch_runtime
    from masksmith.preprocess import TRUE_SIZE, Frame

    model.eval()
    frame_of = partial(Frame.of, size=TRUE_SIZE, divisor=model.divisor)
    with torch.inference_mode():
        flipped = np.ascontiguousarray(images["a"][None, :, ::-1])
        by_hand = _forward([torch_runtime(fabric, model)], frame_of, list(flipped), 255)[0][:, ::-1]
    np.testing.assert_allclose(predict(fabric, model, images, ["hflip"], ["a"])["a"], by_hand, atol=1e-6)


@pytest.mark.parametrize("view", ["rot90", "rot270", "transpose", "antitranspose"])
@pytest.mark.parametrize(
    "size", [SizeConfig(pad_hw=(32, 40)), SizeConfig(resize_hw=(24, 32), pad_hw=(24, 40))]
)
def test_turned_views_have_the_turned_size_rule(fabric, images, view, size):
    """A model whose logit is the pixel cannot tell the views apart, if each is framed as its own form asks."""
    model = Brightness()
    upright, turned = (
        dict(predict_probs(fabric, model, images, ["a"], tta=[one], batch_size=2, size=size))["a"]
        for one in ("identity", view)
    )
    np.testing.assert_allclose(upright, turned, atol=0.02)


def test_mode_is_put_back(fabric, images):
    model = Brightness()
    predict(fabric, model, images, ["identity"])
    assert model.training


def test_images_of_many_sizes_on_one_canvas_share_batches(fabric, tmp_path):
    """Each is flipped before its own padding, and cut back to its own size; runtimes see two shapes, not six."""
    sizes = {"a": (17, 30), "b": (24, 32), "c": (40, 9), "d": (21, 25), "e": (18, 32), "f": (33, 16)}
    writer = StoreWriter(tmp_path / "i.npy", [(n, (*hw, 1)) for n, hw in sizes.items()], dtype=np.uint8)
    for name, hw in sizes.items():
        writer.write(name, np.random.default_rng(hw).integers(0, 255, (*hw, 1)).astype(np.uint8))
    writer.close()
    images, seen = Store(tmp_path / "i.npy"), []

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


def test_unknown_tta(fabric, images):
    with pytest.raises(InputError, match=r"prediction\.tta: 'hflop' is unknown; did you mean 'hflip'"):
        predict(fabric, Brightness(), images, ["hflop"])


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


def test_checksums_are_compared_once_and_damaged_probabilities_are_refused(images, tmp_path, monkeypatch):
    write_codes(tmp_path / "p.npy", images, ["b"], one(np.ones((16, 16, 1))), blank=set())
    compared, damaged = [], Store.damaged
    monkeypatch.setattr(Store, "damaged", lambda store: compared.append(store.path) or damaged(store))
    open_codes(tmp_path / "p.npy")
    open_codes(tmp_path / "p.npy")
    assert len(compared) == 1
    flat = np.load(tmp_path / "p.npy", mmap_mode="r+")
    flat[3] = 0
    flat.flush()
    with pytest.raises(InputError, match="the probabilities of 'b' are damaged"):
        open_codes(tmp_path / "p.npy")


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


def test_a_batch_is_left_out_only_as_a_whole(fabric, images):
    found = predict_batches(
        fabric, Brightness(), images, ["a", "b", "c"], tta=["identity"], batch_size=2, finished={"a", "b"}
    )
    assert [[name for name, _ in batch] for batch in found] == [["a", "c"]]


def test_a_damaged_image_is_not_predicted(fabric, images):
    flat = np.load(images.path, mmap_mode="r+")
    flat[0] ^= 1
    flat.flush()
    with pytest.raises(InputError, match=r"i\.npy: 'a' in it was damaged since it was written"):
        predict(fabric, Brightness(), images, ["identity"])
