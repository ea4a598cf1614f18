import os

import numpy as np
import pandas as pd
import pytest

from masksmith.core.errors import InputError
from masksmith.data.store import JoinedStore, Store, StoreWriter, is_whole

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


def test_absent_and_empty_stores(tmp_path):
    with pytest.raises(InputError, match=r"x\.npy: not there"):
        Store(tmp_path / "x.npy")
    StoreWriter(tmp_path / "x.npy", [], dtype=np.uint8).close()
    assert len(Store(tmp_path / "x.npy")) == 0


def flip_first_bit(path):
    flat = np.load(path, mmap_mode="r+")
    flat[0] ^= 1
    flat.flush()


def begin(path, key="k", shapes=SHAPES, dtype=np.uint16):
    return StoreWriter(path, shapes, dtype=dtype, key=key)


def half(path):
    """A writer with a key that died after it had committed two of three entries."""
    writer = begin(path)
    for name in ("a", "0012"):
        writer.write(name, arrays()[name])
    writer.commit()
    writer.commit()  # nothing new: nothing is written
    writer.write("76e1428103", arrays()["76e1428103"])
    return path.with_name(".x.npy.masksmith-part"), path.with_name(".x.npy.masksmith-part.csv")


def test_a_writer_with_a_key_goes_on(tmp_path):
    filled(tmp_path / "clean.npy")
    part, journal = half(tmp_path / "x.npy")
    assert len(journal.read_text().splitlines()) == 3
    writer = begin(tmp_path / "x.npy")
    assert writer.written == {"a", "0012"}
    writer.write("76e1428103", arrays()["76e1428103"])
    writer.close()
    assert not part.exists()
    assert not journal.exists()
    for ending in (".npy", ".csv"):
        assert (tmp_path / f"x{ending}").read_bytes() == (tmp_path / f"clean{ending}").read_bytes()


def test_a_writer_of_something_else_begins_again(tmp_path):
    for at, change in enumerate(
        ({"key": "other"}, {"key": None}, {"dtype": np.int16}, {"shapes": [*SHAPES, ("b", (1, 1, 1))]})
    ):
        folder = tmp_path / str(at)
        folder.mkdir()
        part, journal = half(folder / "x.npy")
        assert begin(folder / "x.npy", **change).written == set()
        assert part.exists() == journal.exists() == (change.get("key", "k") is not None)


def test_what_is_damaged_of_a_part_is_written_again(tmp_path):
    def torn(part, journal):
        journal.write_text(journal.read_text()[:-4] + "\n\nunknown,1\n0012")

    for at, (damage, kept) in enumerate(
        (
            (lambda part, _: flip_first_bit(part), {"0012"}),
            (torn, {"a"}),
            (lambda part, _: os.truncate(part, part.stat().st_size - 2), set()),
            (lambda part, _: part.unlink(), set()),
            (lambda part, _: part.write_text("text"), set()),
            # death between the last rename and the index
            (lambda part, _: part.rename(part.with_name("x.npy")), {"a", "0012"}),
        )
    ):
        folder = tmp_path / str(at)
        folder.mkdir()
        damage(*half(folder / "x.npy"))
        assert begin(folder / "x.npy").written == kept


def test_damage_is_found_by_a_checked_read(tmp_path):
    filled(tmp_path / "x.npy")
    told = []
    store = Store(tmp_path / "x.npy", on_damage=lambda: told.append(1))
    np.testing.assert_array_equal(store.checked("0012"), arrays()["0012"])
    flip_first_bit(tmp_path / "x.npy")
    assert store.damaged() == ["a"]
    with pytest.raises(
        InputError, match=r"x\.npy: 'a' in it was damaged since it was written .* repeat the command"
    ):
        store.checked("a")
    assert told == [1]
    store.checked("0012")
    with pytest.raises(InputError, match=r"remove x\.npy and run the stage that makes it again"):
        Store(tmp_path / "x.npy").checked("a")


def test_a_store_whose_owner_cannot_be_told_is_refused_all_the_same(tmp_path):
    filled(tmp_path / "x.npy")

    def fail():
        raise OSError

    store = Store(tmp_path / "x.npy", on_damage=fail)
    os.truncate(tmp_path / "x.npy", 0)
    with pytest.raises(InputError, match="the file is cut off within 'a'"):
        store["a"]


def test_a_file_that_is_cut_off(tmp_path):
    filled(tmp_path / "x.npy")
    store = Store(tmp_path / "x.npy")
    os.truncate(tmp_path / "x.npy", (tmp_path / "x.npy").stat().st_size - 1)
    assert store[store.ids[0]].shape == arrays()[store.ids[0]].shape
    with pytest.raises(InputError, match=r"x\.npy: the file is cut off within "):
        store[store.ids[-1]]
    with pytest.raises(InputError, match=r"x\.npy: it or its index was cut off"):
        Store(tmp_path / "x.npy")


def test_an_index_that_makes_no_sense(tmp_path):
    filled(tmp_path / "x.npy")
    index = tmp_path / "x.csv"
    text = index.read_text()
    for old, new in (("a,0,", "a,many,"), ("0012,6,", "0012,600,")):
        index.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=r"x\.npy: it or its index was cut off or changed"):
            Store(tmp_path / "x.npy")


def test_a_part_of_an_array_is_read_alone_and_checked_once_as_a_whole(tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path / "x.npy", [("a", (50, 60, 3)), ("b", (9, 4, 3))], dtype=np.uint16)
    rng = np.random.default_rng(0)
    array = rng.integers(0, 60000, (50, 60, 3)).astype(np.uint16)
    writer.write("a", array)
    writer.write("b", array[:9, :4])
    writer.close()
    store = JoinedStore({"s": Store(tmp_path / "x.npy")})
    for at_once in (2**22, 1):  # whole rows, then row by row
        monkeypatch.setattr("masksmith.data.store._AT_ONCE", at_once)
        found = store.window("s/a", slice(7, 40), slice(11, 22))
        np.testing.assert_array_equal(found, array[7:40, 11:22])
    np.testing.assert_array_equal(store.window("s/a", slice(0, 50), slice(0, 60)), array)
    flat = np.load(tmp_path / "x.npy", mmap_mode="r+")
    flat[-1] ^= 1
    flat.flush()
    with pytest.raises(InputError, match=r"'b' in it was damaged since it was written"):
        store.window("s/b", slice(0, 1), slice(0, 1))


def test_an_array_written_by_rows_is_that_array_and_goes_on_after_the_rows_that_were_kept(tmp_path):
    shapes, array = [("a", (7, 5, 2))], np.arange(70, dtype=np.uint16).reshape(7, 5, 2)
    whole = StoreWriter(tmp_path / "whole.npy", shapes, dtype=np.uint16)
    whole.write("a", array)
    whole.close()
    for stop in (2, 5):
        writer = StoreWriter(tmp_path / "x.npy", shapes, dtype=np.uint16, key="k")
        begun = writer.rows.get("a", 0)
        writer.write_rows("a", begun, array[begun:stop])
        writer.commit()
        del writer
    writer = StoreWriter(tmp_path / "x.npy", shapes, dtype=np.uint16, key="k")
    assert writer.rows == {"a": 5}
    with pytest.raises(AssertionError, match="1 entries were not written"):
        writer.close()
    writer.write_rows("a", 5, array[5:])
    assert writer.written == {"a"}
    writer.close()
    for ending in (".npy", ".csv"):
        assert (tmp_path / f"x{ending}").read_bytes() == (tmp_path / f"whole{ending}").read_bytes()


def test_rows_that_are_no_longer_what_was_written_are_written_again(tmp_path):
    shapes, array = [("a", (7, 5, 2))], np.arange(70, dtype=np.uint16).reshape(7, 5, 2)
    writer = StoreWriter(tmp_path / "x.npy", shapes, dtype=np.uint16, key="k")
    writer.write_rows("a", 0, array[:4])
    writer.commit()
    part = np.load(writer.temporary, mmap_mode="r+")
    part[3] ^= 1
    part.flush()
    assert StoreWriter(tmp_path / "x.npy", shapes, dtype=np.uint16, key="k").rows == {}
