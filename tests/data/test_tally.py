"""The numbers of images and masks against the same on whole arrays, and what the columns and pairs of a set say."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from masksmith.data import tally
from masksmith.data.catalog import Catalog, Sample, SubmissionFormat
from masksmith.data.columns import MOST_VALUES, compare_columns
from masksmith.data.store import Store, StoreWriter
from masksmith.data.tally import area_quantiles, tally_bands, tally_masks
from masksmith.data.target import OBJECTS, Target


def stored(path, arrays):
    names = [f"i{at}" for at in range(len(arrays))]
    writer = StoreWriter(
        path, list(zip(names, (one.shape for one in arrays), strict=True)), dtype=arrays[0].dtype.type
    )
    for name, array in zip(names, arrays, strict=True):
        writer.write(name, array)
    writer.close()
    return Store(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_bands_are_measured_whole_and_without_what_is_no_data(tmp_path, dtype):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 200, (h, 9, 2)).astype(dtype) for h in (5, 8)]
    if dtype == np.float32:
        images[0][1, 2, 1] = np.nan
    found = tally_bands(stored(tmp_path / "a.npy", images))
    for at, band in enumerate(found):
        every = np.concatenate([one[..., at].ravel() for one in images]).astype(np.float64)
        known = every[np.isfinite(every)]
        assert (band.low, band.high) == (known.min(), known.max())
        assert (band.mean, band.std) == pytest.approx((known.mean(), known.std()))
        assert band.no_data == pytest.approx(1 - len(known) / len(every))
        assert sorted(band.sample) == sorted(known)
        assert band.percentiles()[50] == pytest.approx(np.median(known))


def test_of_many_pixels_a_sample_of_all_columns_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tally, "_SAMPLED", 400)
    image = np.tile(np.arange(64, dtype=np.uint8), (64, 1))[..., None]  # the value is the column
    (band,) = tally_bands(stored(tmp_path / "a.npy", [image]))
    assert 300 < len(band.sample) <= 400
    assert len(np.unique(band.sample)) == 64
    (none,) = tally_bands(stored(tmp_path / "b.npy", [np.full((3, 3, 1), np.nan, np.float32)]))
    assert none.no_data == 1
    assert np.isnan([*none.percentiles().values(), none.mean, none.std]).all()


def test_masks_of_every_kind_are_measured(tmp_path):
    rng = np.random.default_rng(1)
    classes = [rng.choice([0, 1, 2, 255], (12, 12, 1)).astype(np.uint8) for _ in range(3)]
    target = Target("multiclass", ("background", "a", "b"), (0, 1, 2))
    found = tally_masks(stored(tmp_path / "classes.npy", classes), target)
    for at, mask in enumerate(classes):
        assert found.pixels[at].tolist() == [int((mask == kind).sum()) for kind in range(3)]
        assert found.coverage[at] == pytest.approx(np.isin(mask, (1, 2)).sum() / (mask != 255).sum())
        assert found.unjudged[at] == pytest.approx((mask == 255).mean())
        regions = [ndimage.label(mask[..., 0] == kind, np.ones((3, 3)))[1] for kind in (1, 2)]
        assert found.objects[at].tolist() == [0, *regions]
    assert sum(area * count for area, count in found.areas[2].items()) == found.pixels[:, 2].sum()
    labels = np.zeros((8, 8, 1), np.int32)
    labels[0, :3], labels[4, :5], labels[7] = 4, 9, -1
    found = tally_masks(stored(tmp_path / "objects.npy", [labels]), OBJECTS)
    assert (found.objects.tolist(), found.areas) == ([[2]], [Counter({3: 1, 5: 1})])
    assert found.coverage[0] == pytest.approx(8 / 56)
    layers = np.zeros((8, 8, 2), np.uint8)
    layers[:4, :, 0] = layers[2:6, :, 1] = 1
    found = tally_masks(stored(tmp_path / "layers.npy", [layers]), Target("multilabel", ("a", "b")))
    assert found.coverage[0] == 6 / 8
    assert found.pixels.tolist() == [[32, 32]]
    assert found.together.tolist() == [[1, 1], [1, 1]]
    assert found.mean_masks.shape == (2, 64, 64)
    assert found.mean_masks[0, :31].min() == 1


@given(st.lists(st.integers(1, 50), min_size=1), st.floats(0, 1))
def test_quantiles_of_areas_are_those_of_the_list(values, share):
    assert area_quantiles(Counter(values), [share]) == [
        int(np.quantile(values, share, method="inverted_cdf"))
    ]


def test_columns_of_too_many_texts_are_named_and_columns_without_test_values_not_compared():
    texts = [{"who": str(at), "z": "1"} for at in range(MOST_VALUES + 1)]
    train = [Sample(f"{at}", "a.png", values={"z": 1.0}, texts=one) for at, one in enumerate(texts)]
    catalog = Catalog("data", "flat", "hash", train, [], SubmissionFormat.assumed([], None), [])
    columns, many = compare_columns(catalog)
    assert (many, [one.name for one in columns]) == (["who"], ["z"])
    assert (columns[0].gap, columns[0].shifted) == (None, False)
