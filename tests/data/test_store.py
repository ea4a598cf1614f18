import os

import numpy as np
import pandas as pd
import pytest

from masksmith.core.errors import InputError
from masksmith.data.store import Store, StoreWriter, is_whole

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


@pytest.mark.parametrize(
    "change", [{"key": "other"}, {"key": None}, {"dtype": np.int16}, {"shapes": [*SHAPES, ("b", (1, 1, 1))]}]
)
def test_a_writer_of_something_else_begins_anew(tmp_path, change):
    part, journal = half(tmp_path / "x.npy")
    writer = begin(tmp_path / "x.npy", **change)
    assert writer.written == set()
    assert part.exists() == journal.exists() == (change.get("key", "k") is not None)


def test_an_entry_whose_checksum_does_not_hold_is_written_again(tmp_path):
    part, _ = half(tmp_path / "x.npy")
    flat = np.load(part, mmap_mode="r+")
    flat[0] ^= 1
    flat.flush()
    assert begin(tmp_path / "x.npy").written == {"0012"}


def test_a_torn_journal(tmp_path):
    _, journal = half(tmp_path / "x.npy")
    journal.write_text(journal.read_text()[:-4] + "\n\nunknown,1\n0012")
    assert begin(tmp_path / "x.npy").written == {"a"}


@pytest.mark.parametrize("damage", ["cut", "gone", "text"])
def test_a_part_that_is_not_as_it_was_claimed(tmp_path, damage):
    part, _ = half(tmp_path / "x.npy")
    if damage == "cut":
        os.truncate(part, part.stat().st_size - 2)
    elif damage == "gone":
        part.unlink()
    else:
        part.write_text("text")
    assert begin(tmp_path / "x.npy").written == set()


def test_death_between_the_last_rename_and_the_index(tmp_path):
    part, _ = half(tmp_path / "x.npy")
    part.rename(tmp_path / "x.npy")
    assert begin(tmp_path / "x.npy").written == {"a", "0012"}


def test_a_checked_read(tmp_path):
    filled(tmp_path / "x.npy")
    told = []
    store = Store(tmp_path / "x.npy", on_damage=lambda: told.append(1))
    np.testing.assert_array_equal(store.checked("0012"), arrays()["0012"])
    flat = np.load(tmp_path / "x.npy", mmap_mode="r+")
    flat[0] ^= 1
    flat.flush()
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


@pytest.mark.parametrize(("old", "new"), [("a,0,", "a,many,"), ("0012,6,", "0012,600,")])
def test_an_index_that_makes_no_sense(tmp_path, old, new):
    filled(tmp_path / "x.npy")
    index = tmp_path / "x.csv"
    index.write_text(index.read_text().replace(old, new))
    with pytest.raises(InputError, match=r"x\.npy: it or its index was cut off or changed"):
        Store(tmp_path / "x.npy")
