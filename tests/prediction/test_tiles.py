"""Prediction on tiles: every pixel is covered, the identity comes back, in bands, whatever the batch."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric

from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.data.store import Store, StoreWriter
from masksmith.models.segmentation import Output, SegmentationModel
from masksmith.prediction.config import PredictionConfig, check_tiles, check_whole
from masksmith.prediction.predict import predict_batches, predict_parts, predict_probs, write_codes
from masksmith.prediction.runtimes import torch_runtime
from masksmith.prediction.store import open_codes
from masksmith.prediction.tiles import TILE_WEIGHTS, Tiling, axis_of
from masksmith.prediction.tta import TTA
from masksmith.preprocess import SizeConfig, resize
from tests.prediction.nets import image_store, tiny

SIZES = [("a", (300, 1000)), ("b", (257, 257)), ("c", (100, 700)), ("d", (37, 53)), ("e", (1, 200))]
NAMES = [name for name, _ in SIZES]


class Pixel(SegmentationModel):
    """The identity: each output's probability is a channel of the image, at half its contrast around 0.5."""

    def __init__(self, divisor=32):
        torch.nn.Module.__init__(self)
        self.divisor, self.shapes = divisor, []

    def forward(self, image, scalars=None):
        self.shapes.append(tuple(image.shape))
        return Output(torch.logit(image / 2 + 0.25))


def expected(image):
    return image.astype(np.float64) / 255 / 2 + 0.25


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_store(tmp_path_factory.mktemp("tiles") / "i.npy", 2, sizes=SIZES)


sides = st.integers(1, 200)


@given(sides, sides, st.integers(9, 80), st.integers(9, 80), st.floats(0, 0.9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_pixel_is_covered_and_its_shares_add_up(height, width, tile_h, tile_w, overlap, edge_cover):
    plan = Tiling((tile_h, tile_w), overlap, edge_cover=edge_cover).plan((height, width))
    if plan is None:
        assert height <= tile_h
        assert width <= tile_w
        return
    counts, mask = np.zeros((height, width), int), np.zeros((height, width), bool)
    for y in plan.rows.starts:
        for x in plan.columns.starts:
            counts[max(0, y) : y + plan.hw[0], max(0, x) : x + plan.hw[1]] += 1
    np.testing.assert_array_equal(plan.coverage(), counts)
    mask[[0, -1]], mask[:, [0, -1]] = True, True
    assert counts.min() >= 1
    assert counts[mask].min() >= edge_cover
    assert len(set(plan.rows.starts)) == len(plan.rows.starts)
    np.testing.assert_array_equal(counts, counts[::-1, ::-1])
    turned = Tiling((tile_w, tile_h), overlap, edge_cover=edge_cover).plan((width, height))
    assert (turned.rows, turned.columns) == (plan.columns, plan.rows)
    for weights in TILE_WEIGHTS:
        total = np.zeros(height)
        for start, share in zip(plan.rows.starts, plan.rows.shares(weights), strict=True):
            inside = plan.rows.on_image(start)
            total[inside] += share[inside.start - start : inside.stop - start]
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_tiles_overlap_as_asked_and_lie_inside_unless_the_edges_ask_for_more():
    axis = axis_of(1000, 256, overlap=0.25)
    assert axis.starts == (0, 186, 372, 558, 744)
    assert max(np.diff(axis.starts)) <= 0.75 * 256
    assert axis_of(257, 256, overlap=0.0).starts == (0, 1)
    assert axis_of(53, 64, overlap=0.5).starts == (0,)
    assert axis_of(100, 64, overlap=0.5, ring=2).starts == (-32, 0, 18, 36, 68)
    assert Tiling((256, 256), edge_cover=3).plan((300, 1000)).coverage().min() >= 1


@pytest.mark.parametrize(
    ("weights", "overlap", "edge_cover", "border", "tta"),
    [
        ("constant", 0.0, 1, "reflect", ["identity"]),
        ("gaussian", 0.25, 3, "zero", ["identity", "hflip"]),
        ("pyramid", 0.5, 3, "reflect", ["vflip"]),
    ],
)
def test_the_identity_comes_back(fabric, images, weights, overlap, edge_cover, border, tta):
    tiling = Tiling((64, 96), overlap, weights, edge_cover)
    options = {"size": SizeConfig(border=border), "tiling": tiling, "batch_size": 5, "tta": tta}
    found = dict(predict_probs(fabric, Pixel(), images, NAMES, **options))
    assert sorted(found) == NAMES
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected(images[name]), atol=2e-6)


def test_all_views_and_several_runtimes_of_the_identity(fabric, images):
    one, other = Pixel(), Pixel()
    runtimes = [torch_runtime(fabric, one), torch_runtime(fabric, other)]
    options = {"tiling": Tiling((64, 96)), "batch_size": 5, "tta": sorted(TTA), "runtime": runtimes}
    found = dict(predict_probs(fabric, one, images, ["b", "c"], **options))
    for name, probs in found.items():
        np.testing.assert_allclose(probs, expected(images[name]), atol=2e-6)
    assert one.shapes == other.shapes
    assert {shape[2:] for shape in one.shapes} == {(64, 96), (96, 64)}


@pytest.mark.parametrize("resize_hw", [(150, 400), (333, 222), (64, 96), (700, 90)])
def test_at_scales(fabric, images, resize_hw):
    """Tiles of the resized image say what the resized image says as a whole."""
    options = {"size": SizeConfig(resize_hw=resize_hw), "batch_size": 4, "tta": ["identity"]}
    whole = dict(predict_probs(fabric, Pixel(), images, NAMES, **options))
    tiled = dict(predict_probs(fabric, Pixel(), images, NAMES, **options, tiling=Tiling((64, 96))))
    for name in NAMES:
        np.testing.assert_allclose(tiled[name], whole[name], atol=2e-5)
        there = resize(images[name].astype(np.float32), resize_hw)
        back = expected(np.rint(resize(there, images.shape(name))))
        assert np.abs(tiled[name] - back).max() < 0.01


def test_a_flip_goes_before_the_tiles(fabric, images, tmp_path):
    """For a net that sees its surroundings: hflip alone is the stored image flipped, predicted, flipped back."""
    writer = StoreWriter(tmp_path / "flipped.npy", [("b", images["b"].shape)], dtype=np.uint8)
    writer.write("b", np.ascontiguousarray(images["b"][:, ::-1]))
    writer.close()
    options = {"tiling": Tiling((96, 80), edge_cover=3), "batch_size": 4}
    model = tiny(2)
    by_hand = dict(
        predict_probs(fabric, model, Store(tmp_path / "flipped.npy"), ["b"], tta=["identity"], **options)
    )
    found = dict(predict_probs(fabric, model, images, ["b"], tta=["hflip"], **options))
    np.testing.assert_allclose(found["b"], by_hand["b"][:, ::-1], atol=1e-6)


def test_tiles_of_several_images_share_batches_whose_size_does_not_matter(fabric, images):
    model, names, found = tiny(2), ["c", "e", "d"], {}
    shapes: list[tuple[int, ...]] = []
    with torch.no_grad():
        model.head.weight.div_(10)

    def runtime(planes):
        shapes.append(planes.shape)
        return torch_runtime(fabric, model)(planes)

    for batch_size in (1, 3, 7):
        shapes.clear()
        options = {"tta": ["identity"], "batch_size": batch_size, "runtime": runtime}
        found[batch_size] = dict(
            predict_probs(fabric, model, images, names, **options, tiling=Tiling((64, 64), 0.5))
        )
    assert [shape[0] for shape in shapes if shape[2:] == (64, 64)] == [7] * 9
    assert {shape[2:] for shape in shapes} == {(64, 64), (40, 56), (8, 64)}
    for name in names:
        for batch_size in (3, 7):
            np.testing.assert_allclose(found[batch_size][name], found[1][name], atol=1e-6)


def test_images_no_larger_than_a_tile_are_predicted_as_without(fabric, images):
    options = {"tta": ["identity", "hflip"], "batch_size": 2}
    own = dict(predict_probs(fabric, tiny(2), images, ["d", "e"], **options))
    tiled = dict(
        predict_probs(fabric, tiny(2), images, ["d", "e"], **options, tiling=Tiling((64, 256), edge_cover=3))
    )
    for name in ("d", "e"):
        np.testing.assert_array_equal(own[name], tiled[name])


@pytest.mark.parametrize("resize_hw", [None, (250, 160)])
def test_a_stopped_image_goes_on_in_its_middle(fabric, images, tmp_path, resize_hw):
    names, seen, model = ["d", "b"], [], tiny(2)
    size = SizeConfig(resize_hw=resize_hw)

    def runtime(planes):
        seen.append(len(planes))
        return torch_runtime(fabric, model)(planes)

    def write(path, stop=10**6, key="k"):
        def batches(**begun):
            found = predict_parts(
                fabric, model, images, names, tta=["identity"], batch_size=4, runtime=runtime, size=size,
                tiling=Tiling((64, 96), edge_cover=3), **begun,
            )  # fmt: skip
            for at, batch in enumerate(found):
                if at == stop:
                    raise KeyboardInterrupt
                yield batch

        write_codes(path, images, names, batches, blank=set(), key=key)

    write(tmp_path / "clean.npy", key=None)
    passes = len(seen)
    for stop in (passes // 4, passes // 2):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "p.npy", stop=stop)
    seen.clear()
    write(tmp_path / "p.npy")
    assert len(seen) < 0.6 * passes
    for ending in (".npy", ".csv"):
        assert (tmp_path / f"p{ending}").read_bytes() == (tmp_path / f"clean{ending}").read_bytes()
    assert open_codes(tmp_path / "p.npy").damaged() == []


def test_memory_does_not_grow_with_the_height_of_an_image(fabric, tmp_path):
    """4000x4000 pixels: 16 MB of bytes, 64 MB of probabilities."""
    writer = StoreWriter(tmp_path / "large.npy", [("x", (4000, 4000, 1))], dtype=np.uint8)
    row = np.arange(4000, dtype=np.int64)
    writer.write("x", ((row[:, None] * 7 + row) % 256).astype(np.uint8)[..., None])
    writer.close()
    large = Store(tmp_path / "large.npy")

    def runtime(planes):
        return (planes - 0.5) * 4

    batches = partial(
        predict_parts, fabric, Pixel(), large, ["x"], tta=["identity"], batch_size=4, runtime=runtime,
        tiling=Tiling((512, 512), 0.1),
    )  # fmt: skip
    tracemalloc.start()
    try:
        write_codes(tmp_path / "p.npy", large, ["x"], batches, blank=set())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 * 2**20
    codes = open_codes(tmp_path / "p.npy").window("x", slice(3990, 4000), slice(0, 4000))
    pixels = large.window("x", slice(3990, 4000), slice(0, 4000)).astype(np.float64)
    np.testing.assert_allclose(codes / 65535, 1 / (1 + np.exp(-(pixels / 255 - 0.5) * 4)), atol=2e-5)


def test_whole_images_come_with_their_last_tile(fabric, images):
    options = {"tta": ["identity"], "batch_size": 6, "tiling": Tiling((64, 96))}
    batches = list(predict_batches(fabric, Pixel(), images, ["a", "b", "d"], **options))
    assert [name for batch in batches for name, _ in batch] == ["a", "b", "d"]
    finished = list(predict_batches(fabric, Pixel(), images, ["a", "b", "d"], **options, finished={"a", "d"}))
    assert [name for batch in finished for name, _ in batch] == ["b"]


def test_what_cannot_go_with_tiles():
    config = PredictionConfig(tile_hw=(256, 128), overlap=0.5, edge_cover=3)
    assert Tiling.of(config) == Tiling((256, 128), 0.5, "gaussian", 3)
    assert Tiling.of(PredictionConfig()) is None
    check_whole(config)
    with pytest.raises(InputError, match=r"edge_cover: 3 with tile_hw \[2, 64\].*at most 2"):
        validate(PredictionConfig, {"tile_hw": [2, 64], "edge_cover": 3}, where="prediction")
    with pytest.raises(InputError, match=r"r\.yaml: prediction\.tile_hw: tiles of 256x128.*pad_hw.*512x512"):
        check_tiles(config, pad_hw=(512, 512), derived_channels="none", where="r.yaml")
    with pytest.raises(InputError, match=r"in tiles of 256x128 a row lies elsewhere.*'coordconv'"):
        check_tiles(config, pad_hw=None, derived_channels="coordconv", where="r.yaml")
    for change in ({"overlap": 0.5}, {"tile_weights": "pyramid"}, {"edge_cover": 3}):
        with pytest.raises(InputError, match=rf"prediction\.{next(iter(change))}: .* has no effect"):
            check_whole(PredictionConfig(**change))
