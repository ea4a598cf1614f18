import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from masksmith.core.errors import InputError
from masksmith.data.rle import DIALECTS, decode, decode_rows, encode, encode_rows, mask_to_runs, object_runs

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


def encode_pixel_by_pixel(mask):
    """The loop of the kernels: column by column, 1-based."""
    height, width = mask.shape
    runs, start, length = [], 0, 0
    for position in range(height * width):
        if mask[position % height, position // height]:
            if not length:
                start = position + 1
            length += 1
        elif length:
            runs += [start, length]
            length = 0
    if length:
        runs += [start, length]
    return " ".join(map(str, runs))


def relative_pixel_by_pixel(text):
    """The public SIIM code: walk with a position that every gap and length moves on."""
    values = list(map(int, text.split()))
    position, pixels = 0, set()
    for gap, length in zip(values[::2], values[1::2], strict=True):
        position += gap
        pixels |= set(range(position, position + length))
        position += length
    return pixels


@given(MASKS)
def test_tgs_and_siim_equal_the_public_loops(mask):
    assert encode(mask) == encode_pixel_by_pixel(mask)
    if mask.any():
        pixels = relative_pixel_by_pixel(encode(mask, dialect="siim"))
        assert pixels == set(np.flatnonzero(mask.ravel(order="F")))


@given(mask=MASKS)
def test_round_trip(mask):
    for dialect, how in DIALECTS.items():
        text = encode(mask, dialect=dialect)
        np.testing.assert_array_equal(decode(text, shape=mask.shape, dialect=dialect), mask)
        rows = encode_rows(mask, dialect=dialect)
        decoded = decode_rows(rows, shape=mask.shape, dialect=dialect, where="rows")
        np.testing.assert_array_equal(decoded, mask)
        assert len(rows) == (max(1, count_objects(mask)) if how.by_object else 1)
        twin = f"{dialect}_row_major"
        if twin in DIALECTS:
            assert encode(np.ascontiguousarray(mask.T), dialect=twin) == text


def count_objects(mask):
    """Flood fill over the eight neighbours."""
    todo, count = set(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True)), 0
    while todo:
        count, front = count + 1, [todo.pop()]
        while front:
            y, x = front.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
            todo -= near
            front += near
    return count


def test_objects_that_touch_over_the_end_of_a_column_stay_apart():
    mask = np.zeros((5, 4), np.uint8)
    mask[4, 0] = mask[0, 1] = 1  # pixels 5 and 6, column by column
    mask[2, 2] = mask[3, 3] = 1  # neighbours over a corner: one object
    assert [runs.tolist() for runs in object_runs(mask)] == [[[4, 1]], [[5, 1]], [[12, 1], [18, 1]]]
    assert encode_rows(mask, dialect="airbus") == ["5 1", "6 1", "13 1 19 1"]
    assert encode_rows(mask, dialect="tgs") == ["5 2 13 1 19 1"]
    assert encode_rows(mask * 0, dialect="dsb") == [""]


def test_small_masks_by_hand():
    for dialect, text in (("tgs", ""), ("siim", "-1")):
        assert encode(np.zeros((3, 4), np.uint8), dialect=dialect) == text
        assert not decode(text, shape=(3, 4), dialect=dialect).any()
    assert encode(np.ones((101, 101), np.uint8)) == "1 10201"
    last = np.zeros((101, 101), np.uint8)
    last[-1, -1] = 1
    assert encode(last) == "10201 1"
    assert decode("2 3", shape=(3, 2)).tolist() == [[0, 1], [1, 0], [1, 0]]  # columns come first
    assert mask_to_runs(np.array([[255], [0], [7]], np.uint8)).tolist() == [[0, 1], [2, 1]]


def test_texts_that_are_refused():
    for text, message in (
        ("1 2 3", "3 run values, an odd number"),
        ("1 x", "'x' is not a whole number"),
        ("1 --5", "'--5' is not a whole number"),
        ("1 99999999999999999999", "the number 99999999999999999999… has 20 digits"),
        ("6 2", "run at pixel 6 with length 2 leaves the image of 2x3"),
        ("0 1", "run at pixel 0 with length 1 leaves the image"),
        ("1 3 3 2", "run at pixel 3 overlaps the run 1..3"),
        ("3 2 1 3", "run at pixel 3 overlaps the run 1..3"),
        ("2 0", "a run of length 0 at pixel 2"),
    ):
        with pytest.raises(InputError, match=f"^train.csv: id 'a': .*{message}"):
            decode(text, shape=(2, 3), where="train.csv: id 'a'")
    with pytest.raises(InputError, match="'tsg' is unknown; did you mean 'tgs'"):
        decode("", shape=(2, 2), dialect="tsg")


def test_huge_numbers_are_refused_before_memory_is_asked_for(monkeypatch):
    def refuse(*_arguments):
        raise AssertionError("memory was asked for")

    monkeypatch.setattr("masksmith.data.rle.np.zeros", refuse)
    for text, message in (
        ("1 99999999999999", "the number 99999999999999… has 14 digits; no image has that many pixels"),
        ("1 " + "9" * 100_000, "has 100000 digits"),
        ("1 999999999999", "leaves the image of 101x101"),
        ("999999999999 1", "leaves the image of 101x101"),
        ("-999999999999 1", "leaves the image of 101x101"),
    ):
        for dialect in ("tgs", "siim"):
            with pytest.raises(InputError, match=message):
                decode(text, shape=(101, 101), dialect=dialect)


@pytest.mark.real
def test_real_siim_rows(shared):
    import csv

    with (shared / "data" / "siim-acr-tables" / "train-rle-sample.csv").open() as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file)][1:]
    covered = [int(decode(row[1], shape=(1024, 1024), dialect="siim").sum()) for row in rows]
    assert sum(map(bool, covered)) == 5
    for row in rows:
        mask = decode(row[1], shape=(1024, 1024), dialect="siim")
        assert encode(mask, dialect="siim").split() == row[1].split()


def test_a_mask_that_is_looked_at_in_bands_has_the_runs_of_a_whole_one():
    rng = np.random.default_rng(0)
    mask = np.repeat(rng.integers(0, 2, (2500, 50)).astype(np.uint8), 40, axis=1)  # above 2^22 pixels
    for order in ("F", "C"):
        flat = mask.ravel(order=order)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]).astype(np.int8)))
        runs = mask_to_runs(mask, order=order)
        np.testing.assert_array_equal(runs[:, 0], edges[::2])
        np.testing.assert_array_equal(runs.sum(axis=1), edges[1::2])
    whole = np.ones((2500, 2000), np.uint8)
    assert mask_to_runs(whole).tolist() == mask_to_runs(whole, order="C").tolist() == [[0, 5_000_000]]
