"""Tables with paths of images and masks, as they were written on another machine."""

import csv

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.layouts import read_catalog
from tests.data.test_table_forms import parquet_bytes

NAMES = ("a", "b", "c", "d")


def files(root, places, names=NAMES, shape=(12, 10)):
    """Write a picture at each place, such as "images/{}.png"; those with "mask" or "label" in them are masks."""
    rng = np.random.default_rng(0)
    for place in places:
        for name in names:
            path = root / place.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, shape, dtype=np.uint8)
            is_mask = any(word in place.lower() for word in ("mask", "label"))
            cv2.imwrite(str(path), (pixels > 128) * np.uint8(255) if is_mask else pixels)
    return root


def write(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def pairs(catalog):
    return {one.id: (one.image, one.mask) for one in catalog.train}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.png", "masks/{}.png"),
        ("{}.png", "{}.png"),
        ("/home/somebody/data/images/{}.png", "/home/somebody/data/masks/{}.png"),
        (r"C:\data\images\{}.png", r"C:\data\masks\{}.png"),
        ("./images/{}", "./masks/{}"),
        ("{}", "{}"),
        ("s3://bucket/pictures/{}.PNG", "s3://bucket/truth/{}.PNG"),
    ],
)
def test_paths_of_another_machine(tmp_path, image, mask):
    files(tmp_path, ("images/{}.png", "masks/{}.png"))
    rows = [(at, image.format(name), mask.format(name), f"p{at // 2}") for at, name in enumerate(NAMES)]
    write(tmp_path / "data.csv", ("", "image", "mask_path", "patient"), rows)
    (tmp_path / "dataset.yaml").write_text("groups:\n  column: patient\n")
    catalog = read_catalog(tmp_path)
    assert catalog.layout == "path_table"
    assert pairs(catalog) == {name: (f"images/{name}.png", f"masks/{name}.png") for name in NAMES}
    assert [one.group for one in catalog.train] == ["p0", "p0", "p1", "p1"]
    assert catalog.train[0].texts == {"patient": "p0"}
    assert (catalog.notes, catalog.findings) == ([], [])
    assert catalog.why == ["data.csv: 4 rows, paths of images in 'image', of masks in 'mask_path'"]


def test_parquet_in_a_folder_whose_masks_have_other_names(tmp_path):
    files(tmp_path, ("scans/{}.png", "scans/{}_seg.png"))
    columns = {
        "input": [f"../scans/{name}.png" for name in NAMES],
        "truth": [f"{name}_seg.png" for name in NAMES],
    }
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "all.parquet").write_bytes(parquet_bytes(columns))
    assert pairs(read_catalog(tmp_path)) == {
        name: (f"scans/{name}.png", f"scans/{name}_seg.png") for name in NAMES
    }


def test_splits_by_a_column(tmp_path):
    files(tmp_path, ("images/{}.png", "masks/{}.png"))
    for at, (column, words) in enumerate(
        (
            ("split", ("train", "Train", "validation", "TEST")),
            ("fold", ("training", "", "val", "test")),
            ("is_valid", ("False", "0", "True", "")),
        )
    ):
        last = "" if column == "is_valid" else "masks/d.png"
        rows = [
            (f"images/{name}.png", f"masks/{name}.png" if name != "d" else last, word)
            for name, word in zip(NAMES, words, strict=True)
        ]
        write(tmp_path / "data.csv", ("img", "label", column), rows)
        catalog = read_catalog(tmp_path)
        assert {one.id: one.held_out for one in catalog.train} == {"a": False, "b": False, "c": True}, at
        assert [one.id for one in catalog.test] == ["d"]
        assert bool(catalog.left_out) == bool(last)
        assert [one.title for one in catalog.findings] == (["images without a mask"] if not last else [])
    write(
        tmp_path / "data.csv",
        ("img", "label", "split"),
        [(f"images/{name}.png", f"masks/{name}.png", name) for name in NAMES],
    )
    assert len(read_catalog(tmp_path).train) == 4  # a, b, c and d are no names of splits
    write(
        tmp_path / "data.csv",
        ("img", "label", "split"),
        [
            (f"images/{name}.png", f"masks/{name}.png", word)
            for name, word in zip(NAMES, ("train", "val", "x", "train"), strict=True)
        ],
    )
    with pytest.raises(InputError, match="the column 'split' has 'x'; expected train, val or test"):
        read_catalog(tmp_path)


def test_splits_by_tables_without_a_header(tmp_path):
    """Sen1Floods11: flood_train_data.csv and its like."""
    files(tmp_path, ("S1Hand/{}_S1Hand.png", "LabelHand/{}_LabelHand.png"))
    for split, names in (("train", "ab"), ("valid", "c"), ("test", "d")):
        rows = [(f"{name}_S1Hand.png", f"{name}_LabelHand.png") for name in names]
        write(tmp_path / f"flood_{split}_data.csv", *rows[:1], rows[1:])
    catalog = read_catalog(tmp_path)
    assert {one.id: one.held_out for one in catalog.train} == {
        "a_S1Hand": False,
        "b_S1Hand": False,
        "c_S1Hand": True,
    }
    assert [one.id for one in catalog.test] == ["d_S1Hand"]
    assert catalog.train[0].mask == "LabelHand/a_LabelHand.png"


def test_a_table_of_test_images_and_a_sample_submission(tmp_path):
    files(tmp_path, ("images/{}.png", "masks/{}.png"))
    write(
        tmp_path / "train.csv",
        ("image", "mask"),
        [(f"images/{name}.png", f"masks/{name}.png") for name in "abc"],
    )
    write(tmp_path / "test.csv", ("image", "site"), [("images/d.png", "lake")])
    write(tmp_path / "sample_submission.csv", ("id", "rle_mask"), [("d", "1 1")])
    catalog = read_catalog(tmp_path)
    assert [(one.id, one.texts) for one in catalog.test] == [("d", {"site": "lake"})]
    assert (catalog.submission.source, catalog.submission.ids) == ("sample_submission.csv", ["d"])


def test_same_names_in_several_folders(tmp_path):
    files(tmp_path, ("train/images/{}.png", "val/images/{}.png", "train/masks/{}.png", "val/masks/{}.png"))
    rows = [
        (f"/x/{split}/images/{name}.png", f"/x/{split}/masks/{name}.png", split)
        for split in ("train", "val")
        for name in NAMES
    ]
    write(tmp_path / "data.csv", ("image", "mask", "split"), rows)
    catalog = read_catalog(tmp_path)
    assert pairs(catalog)["val/images/a"] == ("val/images/a.png", "val/masks/a.png")
    assert sum(one.held_out for one in catalog.train) == 4
    assert len(build_cache(catalog, tmp_path.parent / "cache").train_images) == 8
    (tmp_path / "val" / "images" / "a.png").unlink()
    with pytest.raises(
        InputError, match=r"row 5: image '/x/val/images/a\.png' is not there \(train/images/a\.png is another"
    ):
        read_catalog(tmp_path)
    write(
        tmp_path / "data.csv",
        ("image", "mask"),
        [(f"{name}.png", f"/x/train/masks/{name}.png") for name in "bcd"],
    )
    with pytest.raises(
        InputError, match=r"row 1: image 'b\.png' may be train/images/b\.png or val/images/b\.png; write more"
    ):
        read_catalog(tmp_path)


def test_several_columns_of_masks_and_of_images(tmp_path):
    files(tmp_path, ("vv/{}.png", "vh/{}.png", "mask_water/{}.png", "mask_ice/{}.png"))
    rows = [
        (f"vv/{n}.png", f"vh/{n}.png", f"mask_water/{n}.png", f"mask_ice/{n}.png" if n != "a" else "")
        for n in NAMES
    ]
    write(tmp_path / "data.csv", ("vv_path", "vh_path", "water_mask", "ice_mask"), rows)
    catalog = read_catalog(tmp_path)
    assert catalog.labels == ["water", "ice"]
    assert catalog.train[0].label_masks == {"water": "mask_water/a.png"}
    assert catalog.train[1].bands == ["vv/b.png", "vh/b.png"]
    cache = build_cache(catalog, tmp_path.parent / "cache")
    assert (cache.channels, cache.train_masks["b"].shape) == (2, (12, 10, 2))


def test_files_that_are_not_there_are_all_named(tmp_path):
    files(tmp_path, ("images/{}.png", "masks/{}.png"))
    rows = [(f"images/{name}.png", f"masks/{name}.png") for name in (*NAMES, "x", "y")]
    write(tmp_path / "data.csv", ("image", "mask"), [*rows, ("", "masks/a.png")])
    with pytest.raises(InputError) as error:
        ms.read(tmp_path)
    said = str(error.value)
    assert said.startswith("5 rows of tables cannot be used:")
    for part in (
        "row 5: image 'images/x.png' is not there",
        "row 6: mask 'masks/y.png'",
        "row 7: image is empty; expected",
    ):
        assert part in said
    write(
        tmp_path / "data.csv", ("image", "mask"), [(f"photos/{name}.png", f"gt/{name}.png") for name in "xyz"]
    )
    with pytest.raises(InputError, match="6 rows of tables cannot be used"):
        read_catalog(tmp_path)
    write(
        tmp_path / "data.csv",
        ("image", "mask", "split"),
        [(*rows[0], "train"), ("images/b.png", "", "train")],
    )
    with pytest.raises(InputError, match="row 2: an image of the split train without a mask"):
        read_catalog(tmp_path)
    write(tmp_path / "data.csv", ("image", "mask", "split"), [(*rows[0], "test"), (*rows[1], "test")])
    with pytest.raises(
        InputError, match=r"no row of data\.csv is a training image with a mask; expected some"
    ):
        read_catalog(tmp_path)


def test_rows_that_stand_twice(tmp_path):
    files(tmp_path, ("images/{}.png", "masks/{}.png"))
    rows = [(f"images/{name}.png", f"masks/{name}.png") for name in NAMES]
    write(tmp_path / "data.csv", ("image", "mask"), [*rows, rows[0]])
    catalog = read_catalog(tmp_path)
    assert (len(catalog.train), catalog.findings[0].title) == (4, "rows that stand twice")
    write(tmp_path / "data.csv", ("image", "mask"), [*rows, ("images/a.png", "masks/b.png")])
    with pytest.raises(
        InputError, match=r"row 1 and data\.csv: row 5: 'images/a\.png' has other files or another split"
    ):
        read_catalog(tmp_path)
    write(tmp_path / "data.csv", ("image", "mask"), [*rows[1:], ("images/a.png", "masks/b.png")])
    assert read_catalog(tmp_path).findings[0].ids == ["b", "a"]
    write(tmp_path / "more.csv", ("image", "mask", "old_mask"), [(*rows[0], "masks/b.png")])
    with pytest.raises(
        InputError,
        match=r"more\.csv: paths in the columns image, mask, old_mask, in data\.csv in image, mask; exp",
    ):
        read_catalog(tmp_path)
    (tmp_path / "more.csv").unlink()
    files(tmp_path, ("images/{}.jpg",))
    write(tmp_path / "data.csv", ("image", "mask"), [*rows, ("images/a.jpg", "masks/a.png")])
    with pytest.raises(InputError, match="images/a: two images differ in their endings alone; rename one"):
        read_catalog(tmp_path)


def test_tables_that_are_no_tables_of_paths(tmp_path):
    files(tmp_path, ("images/{}.png", "masks/{}.png"))
    for columns, rows in (
        (("filename", "label"), [(f"{name}.png", "lake") for name in NAMES]),
        (("id", "mask"), [(name, "1 2") for name in NAMES]),
        (("image", "annotation"), [(f"{name}.png", f"{name}.xml") for name in NAMES]),
    ):
        write(tmp_path / "data.csv", columns, rows)
        assert read_catalog(tmp_path).layout != "path_table"
