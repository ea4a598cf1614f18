from dataclasses import replace
from pathlib import Path

import pytest

import masksmith as ms
from masksmith.data.heads import table_heads
from masksmith.data.layouts import read_catalog


def test_heads_are_in_the_order_of_the_files_with_the_numbers_of_the_others(download):
    catalog = read_catalog(download)
    heads = table_heads(catalog)
    lines = (download / "train.csv").read_text().splitlines()
    depth = dict(line.split(",") for line in (download / "depths.csv").read_text().splitlines()[1:])
    names = [line.partition(",")[0] for line in lines[1:6]]
    columns, _, rows = heads["head of train.csv"].partition(": ")
    assert columns == "id, rle_mask, z"
    assert [row.split(", ")[0] for row in rows.split("; ")] == names
    assert [float(row.split(", ")[-1]) for row in rows.split("; ")] == [float(depth[name]) for name in names]
    assert all(len(cell) <= 24 for row in rows.split("; ") for cell in row.split(", "))
    (download / "broken.csv").write_bytes(b"\xff\xfe\x00")
    assert "head of broken.csv" not in table_heads(catalog)
    assert table_heads(replace(catalog, root=str(download / "gone"))) == {}


def test_check_says_shapes_and_heads(example):
    text = str(ms.check(example / "data"))
    assert "shape: training (40, 101, 101, 1), test (8, 101, 101, 1)" in text
    assert "head of train.csv: id, rle_mask, z: " in text


@pytest.mark.real
def test_the_heads_of_tgs_salt(shared: Path):
    heads = table_heads(read_catalog(shared / "data" / "tgs-salt"))
    assert "575d24d81d, , 843" in heads["head of train.csv"]
    assert "a266a2a9df, 5051 5151, 794" in heads["head of train.csv"]
