import numpy as np
import pandas as pd
import pytest

from masksmith.data.store import Store, StoreWriter, is_whole
from masksmith.errors import InputError

SHAPES = [("a", (2, 3, 1)), ("0012", (4, 4, 2)), ("76e1428103", (1, 1, 1))]


def arrays():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 60000, shape).astype(np.uint16) for name, shape in SHAPES}


def filled(path, names=("76e1428103", "a", "0012")):
    writer = StoreWriter(path, SHAPES, dtype=np.uint16)
    for name in names:
        writer.write(name, arrays()[name])
    writer.close()
    return writer


def test_round_trip_of_many_sizes(tmp_path):
    filled(tmp_path / "x.npy")
    store = Store(tmp_path / "x.npy")
    for name, array in arrays().items():
        np.testing.assert_array_equal(store[name], array)
    assert len(store) == 3
    assert store.shape("0012") == (4, 4)
    assert store.damaged() == []


def test_two_lines_in_a_notebook(tmp_path):
    filled(tmp_path / "x.npy")
    flat, index = (
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        pd.read_csv(tmp_path / "x.csv", dtype={"id": str}),
    )
    row = index[index["id"] == "0012"].iloc[0]
    found = flat[row.offset : row.offset + row.h * row.w * row.channels].reshape(row.h, row.w, row.channels)
    np.testing.assert_array_equal(found, arrays()["0012"])


def test_a_cut_off_writer_leaves_no_store(tmp_path):
    filled(tmp_path / "x.npy")
    writer = StoreWriter(tmp_path / "x.npy", SHAPES, dtype=np.uint16)
    writer.write("a", arrays()["a"])
    assert not is_whole(tmp_path / "x.npy")
    with pytest.raises(AssertionError, match="2 entries were not written, for example '0012'"):
        writer.close()
    filled(tmp_path / "x.npy")
    assert is_whole(tmp_path / "x.npy")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "x.csv",
        "x.npy",
    ]


def test_damage_is_found(tmp_path):
    filled(tmp_path / "x.npy")
    flat = np.load(tmp_path / "x.npy", mmap_mode="r+")
    flat[0] ^= 1
    flat.flush()
    assert Store(tmp_path / "x.npy").damaged() == ["a"]


def test_absent(tmp_path):
    with pytest.raises(InputError, match=r"x\.npy: not there"):
        Store(tmp_path / "x.npy")


def test_empty_store(tmp_path):
    StoreWriter(tmp_path / "x.npy", [], dtype=np.uint8).close()
    assert len(Store(tmp_path / "x.npy")) == 0
