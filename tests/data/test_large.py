"""Large TIFFs are read some rows at a time, with the values that they have when they are read as a whole."""

import io
import tracemalloc

import numpy as np
import pytest
import tifffile

from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.catalog import Sample
from masksmith.data.decode import tiff as decode_tiff
from masksmith.data.decode.pictures import decode_image
from masksmith.data.decode.reader import ImageReader
from masksmith.data.layouts import read_catalog
from masksmith.data.tree import Tree

SHAPE = (300, 200)


@pytest.fixture
def small_is_large(monkeypatch):
    monkeypatch.setattr(decode_tiff, "LARGE", 2**14)
    monkeypatch.setattr(decode_tiff, "_AT_ONCE", 2**12)


def parts(folder, array, **options):
    """The file as the reader gives it, part by part, and as it is decoded at once."""
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack"} | options)
    (folder / "a.tif").write_bytes(file.getvalue())
    found = list(ImageReader(Tree(folder)).rows(Sample("a", "a.tif")))
    return found, decode_image(file.getvalue(), where="a.tif")


def test_rows_are_those_of_the_whole(small_is_large, tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, SHAPE, dtype=np.uint8)
    rgb = rng.integers(0, 255, (*SHAPE, 3), dtype=np.uint8)
    floats = rng.normal(size=(*SHAPE, 4)).astype(np.float32)
    floats[3] = np.nan
    floats[4] = -9999
    no_data = {"planarconfig": "contig", "extratags": [(42113, "s", 0, "-9999", True)]}
    alpha = np.concatenate([rgb, grey[..., None]], axis=2)
    for array, options in (
        (grey, {}),
        (grey, {"rowsperstrip": 7}),
        (grey, {"tile": (32, 48), "compression": "zlib"}),
        (grey.astype(np.uint16) * 250, {"tile": (16, 16), "compression": "zlib", "predictor": True}),
        (grey.astype(np.int16) - 99, {"byteorder": ">", "rowsperstrip": 9}),
        (rgb, {"photometric": "rgb", "tile": (32, 32), "compression": "lzw"}),
        (rgb, {"photometric": "rgb", "bigtiff": True}),
        (
            alpha,
            {"photometric": "rgb", "extrasamples": ["unassalpha"], "rowsperstrip": 5, "compression": "zlib"},
        ),
        (np.moveaxis(rgb, 2, 0), {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 8}),
        (
            np.moveaxis(rgb, 2, 0),
            {"photometric": "rgb", "planarconfig": "separate", "tile": (64, 32), "compression": "zlib"},
        ),
        (floats, no_data),
        (floats, no_data | {"tile": (16, 32), "compression": "zlib"}),
    ):
        found, whole = parts(tmp_path, array, **options)
        assert len(found) > 4, options
        assert {(part.dtype, part.dtype.isnative) for part in found} == {(whole.dtype, True)}
        np.testing.assert_array_equal(np.concatenate(found), whole, str(options))


def test_what_is_read_at_once(small_is_large, tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    for array, options in (
        (grey[:50, :50], {}),
        (grey, {"extratags": [(274, "H", 1, 3, True)]}),
        (grey, {"photometric": "miniswhite"}),
        (grey, {"compression": "zlib", "rowsperstrip": 300}),
        (np.stack([grey] * 3).astype(np.int16), {}),  # a page a band
    ):
        found, whole = parts(tmp_path, array, **options)
        assert len(found) == 1
        np.testing.assert_array_equal(found[0], whole)


def test_damage_within(small_is_large, tmp_path, monkeypatch):
    grey = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    parts(tmp_path, grey, tile=(32, 32), compression="zlib")
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    reader = ImageReader(Tree(tmp_path))
    raw[-2000:-1900] = bytes(100)
    (tmp_path / "a.tif").write_bytes(bytes(raw))
    with pytest.raises(InputError, match=r"a\.tif: the file is damaged"):
        list(reader.rows(Sample("a", "a.tif")))
    (tmp_path / "a.tif").write_bytes(bytes(raw[:-500]))
    with pytest.raises(InputError, match=r"a\.tif: a block of pixels is missing"):
        list(reader.rows(Sample("a", "a.tif")))
    monkeypatch.setattr("masksmith.data.decode.headers.MAX_PIXELS", 100)
    with pytest.raises(InputError, match=r"a\.tif: the header claims 300x200 = 60,000 pixels"):
        list(reader.rows(Sample("a", "a.tif")))


def test_the_cache_holds_no_large_image(monkeypatch, tmp_path):
    monkeypatch.setattr(decode_tiff, "LARGE", 2**20)
    monkeypatch.setattr(decode_tiff, "_AT_ONCE", 2**18)
    for name, folder in (("a", "images"), ("b", "images"), ("large", "test")):
        (tmp_path / "data" / folder).mkdir(exist_ok=True, parents=True)
        side = 4000 if name == "large" else 32
        image = np.random.default_rng(0).integers(0, 255, (side, side), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"data/{folder}/{name}.tif", image, tile=(256, 256))
    (tmp_path / "data/masks").mkdir()
    for name in "ab":
        tifffile.imwrite(tmp_path / f"data/masks/{name}.tif", np.eye(32, dtype=np.uint8))
    catalog = read_catalog(tmp_path / "data")
    tracemalloc.start()
    cache = build_cache(catalog, tmp_path / "cache")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23  # the image: 2**24
    whole = decode_image((tmp_path / "data/test/large.tif").read_bytes(), where="large")
    np.testing.assert_array_equal(cache.test_images["large"], whole)
    np.testing.assert_array_equal(np.concatenate(list(cache.test_images.parts("large"))), whole)
