import csv
import zipfile

import cv2
import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.data.cache import build_cache
from masksmith.data.catalog import Catalog
from masksmith.data.checks import check_data, constant_ids, coverage, duplicate_groups
from masksmith.data.layouts import read_catalog
from masksmith.data.table import parse_table
from masksmith.data.tree import Tree


def png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def paired(root, *, masks="masks", names=("a", "b", "c")):
    rng = np.random.default_rng(0)
    for name in names:
        png(root / "images" / f"{name}.png", rng.integers(0, 255, (12, 10), dtype=np.uint8))
        png(root / masks / f"{name}.png", (rng.random((12, 10)) < 0.5).astype(np.uint8) * 255)
    return root


def test_kaggle_layout_from_closed_zips_or_unpacked(example, download, tmp_path):
    catalog, unpacked = read_catalog(example / "data"), read_catalog(download)
    assert (catalog.layout, len(catalog.train), len(catalog.test)) == ("kaggle_rle", 40, 8)
    assert all(sample.mask and sample.rle is not None and "z" in sample.values for sample in catalog.train)
    assert not list((example / "data").glob("*/"))  # nothing was unpacked
    assert [sample.id for sample in catalog.train] == [sample.id for sample in unpacked.train]
    assert catalog.submission == unpacked.submission
    assert catalog.submission.dialect == "tgs"
    value = catalog.to_json()
    write_json(tmp_path / "data.json", value)
    assert Catalog.from_json(read_json(tmp_path / "data.json")) == catalog
    for sample in (*value["train"], *value["test"]):
        del sample["texts"]  # as an older masksmith wrote it
    assert Catalog.from_json(value).train[0].texts == {}


def test_paired_folders(tmp_path):
    for masks in ("masks", "labels", "annotations", "images_masks"):
        catalog = read_catalog(paired(tmp_path / masks, masks=masks))
        assert (catalog.layout, catalog.test) == ("paired_folders", [])
        assert [sample.id for sample in catalog.train] == ["a", "b", "c"]
        cache = build_cache(catalog, tmp_path / "cache" / masks)
        assert cache.channels == 1
        assert set(np.unique(cache.train_masks["a"])) == {0, 1}


def test_stray_masks_are_left_out_and_told(tmp_path):
    paired(tmp_path)
    png(tmp_path / "masks" / "stray_1.png", np.zeros((3, 3), np.uint8))
    catalog = read_catalog(tmp_path)
    assert len(catalog.train) == 3
    assert catalog.notes == ["1 mask files have no image and are left out: 'stray_1'"]


def test_an_outer_folder_in_an_archive_is_one_level(tmp_path):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("train/images/a.png", b"x")
        archive.writestr("__MACOSX/train/._a.png", b"x")
    assert Tree(tmp_path).files("train/images") == ["train/images/a.png"]


def test_tables():
    table = parse_table(b"id,z\n0012,1\n76e1428103,2\n123,3\n", where="depths.csv")
    assert [row["id"] for row in table.rows] == ["0012", "76e1428103", "123"]  # ids stay text
    for raw, message in (
        (b"", "the file is empty"),
        (b"\n", "its first line is blank; expected a header line"),
        (b"id,z\n1\n", "line 2 has 1 cells, expected 2"),
        (b"\xff\xfe\x00", "not a UTF-8 text file"),
    ):
        with pytest.raises(InputError, match=message):
            parse_table(raw, where="depths.csv")
    before = csv.field_size_limit()
    assert len(parse_table(b"id,rle\na," + b"1" * 200_000, where="train.csv").rows[0]["rle"]) == 200_000
    assert csv.field_size_limit() == before < 200_000


def test_colour_and_grey_images_mix_as_colour(tmp_path):
    paired(tmp_path)
    png(tmp_path / "images" / "a.png", np.random.default_rng(1).integers(0, 255, (12, 10, 3), dtype=np.uint8))
    cache = build_cache(read_catalog(tmp_path), tmp_path / "cache")
    assert cache.channels == 3
    assert (cache.train_images["b"][..., 0] == cache.train_images["b"][..., 2]).all()


def test_cache_is_made_once(tmp_path):
    catalog = read_catalog(paired(tmp_path))
    build_cache(catalog, tmp_path / "cache")
    before = (tmp_path / "cache" / "train_images.npy").stat().st_mtime_ns
    build_cache(catalog, tmp_path / "cache")
    assert (tmp_path / "cache" / "train_images.npy").stat().st_mtime_ns == before


def test_findings(tmp_path):
    paired(tmp_path, names="abcdef")
    for name in "ab":
        png(tmp_path / "images" / f"{name}.png", np.full((12, 10), 7, np.uint8))
    png(tmp_path / "masks" / "a.png", np.full((12, 10), 255, np.uint8))
    png(tmp_path / "test" / "t.png", cv2.imread(str(tmp_path / "images" / "c.png"), cv2.IMREAD_GRAYSCALE))
    catalog = read_catalog(tmp_path)
    cache = build_cache(catalog, tmp_path / "cache")
    report = check_data(catalog, cache, scaling="as it is")
    found = {finding.title: finding.ids for finding in report.findings}
    assert found["training images without content"] == ["a", "b"]
    assert found["masks on images without content"] == ["a", "b"]
    assert found["identical training images"] == ["a", "b"]
    assert found["identical images, different masks"] == ["a", "b"]
    assert found["test images that are also training images"] == ["t"]
    assert found["masks that cover the whole image"] == ["a"]
    assert (
        "warning: training images without content: 2 training images have one value only; they are kept"
        in str(report)
    )
    assert constant_ids(cache.train_images) == ["a", "b"]
    assert coverage(cache.train_masks)["a"] == 1.0
    assert sorted(map(len, duplicate_groups(cache.train_images).values())) == [1, 1, 1, 1, 2]


def side_table(folder, text, name="sites.csv"):
    (folder / name).write_text(text)
    return {sample.id: sample for sample in read_catalog(folder).train}


def test_texts_of_side_tables_are_kept(download):
    ids = [sample.id for sample in read_catalog(download).train]
    rows = "\n".join(f"{name},site {at % 3},{at / 2},{'x' * 500}" for at, name in enumerate(ids))
    found = side_table(download, f"id,site,angle,essay\n{rows}\n")
    assert found[ids[4]].texts.keys() == {
        "site",
        "angle",
        "z",
    }  # neither run-lengths nor texts of 500 characters
    assert found[ids[4]].texts["site"] == "site 1"
    assert found[ids[4]].values["angle"] == 2.0
    assert "z" in found[ids[4]].values


def test_a_column_with_two_values_of_an_id_is_left_out_and_told(download):
    first, second, *_ = (sample.id for sample in read_catalog(download).train)
    text = f"id,site,kind\n{first},lake,a\n{first},sea,a\n{second},sea,b\n"
    found = side_table(download, text)
    assert found[first].texts.keys() == {"kind", "z"}
    assert found[first].texts["kind"] == "a"
    assert read_catalog(download).notes == ["sites.csv: the column 'site': an id has two values in it"]


def test_tables_beside_a_folder_of_pairs(tmp_path):
    paired(tmp_path)
    (tmp_path / "broken.csv").write_text("a,b\n1\n")
    found = side_table(tmp_path, "row,chip_id,location\n7,a,lake\n8,b,sea\n9,zz,sea\n")
    assert found["a"].texts == {"row": "7", "location": "lake"}
    assert found["a"].values == {"row": 7.0}
    assert found["c"].texts == {}
    assert any("broken.csv: line 2 has 1 cells" in note for note in read_catalog(tmp_path).notes)


def test_a_table_by_names_of_files_and_one_by_nothing(tmp_path):
    paired(tmp_path)
    (tmp_path / "other.csv").write_text("hospital,beds\nnorth,7\n")
    found = side_table(tmp_path, "filename,location\na.png,lake\nb.png,sea\n")
    assert found["a"].texts == {"location": "lake"}
    assert read_catalog(tmp_path).notes == [
        "other.csv: none of its columns holds ids of images, so it is left out"
    ]


def test_a_row_is_about_the_image_of_its_split(tmp_path):
    """The ids a and b are in both splits, c in one: only where an id names two images does a table's name decide."""
    paired(tmp_path)
    for name in ("a", "b", "t"):
        png(tmp_path / "test" / f"{name}.png", np.zeros((12, 10), np.uint8))
    (tmp_path / "train.csv").write_text("id,rle_mask\na,1 1\nb,1 1\nc,1 1\n")
    (tmp_path / "sites_train.csv").write_text("id,site,z\na,lake,1\nc,sea,3\nt,town,9\n")
    (tmp_path / "SitesTest.csv").write_text("id,site,z\na,hill,5\nb,hill,6\n")
    (tmp_path / "all.csv").write_text("id,row\na,7\nc,8\n")
    catalog = read_catalog(tmp_path)
    values = {
        split: {sample.id: (sample.texts.get("site"), sample.values) for sample in samples}
        for split, samples in (("train", catalog.train), ("test", catalog.test))
    }
    assert values["train"] == {
        "a": ("lake", {"z": 1.0, "row": 7.0}),
        "b": (None, {}),
        "c": ("sea", {"z": 3.0, "row": 8.0}),
    }
    assert values["test"] == {
        "a": ("hill", {"z": 5.0, "row": 7.0}),
        "b": ("hill", {"z": 6.0}),
        "t": ("town", {"z": 9.0}),
    }


def test_a_column_with_two_values_in_two_tables_is_left_out_and_told(tmp_path):
    paired(tmp_path)
    (tmp_path / "one.csv").write_text("id,z,site,kind\na,1,lake,x\nb,2,sea,x\n")
    found = side_table(tmp_path, "id,z,site\nb,2.0,bay\nc,3,sea\n", name="two.csv")
    assert {name: (one.values, one.texts.get("site")) for name, one in found.items()} == {
        "a": ({"z": 1.0}, None),
        "b": ({"z": 2.0}, None),
        "c": ({"z": 3.0}, None),
    }
    said = "the column 'site': 'bay' for the train image 'b', 'sea' in another table; the column is left out"
    assert read_catalog(tmp_path).notes == [f"two.csv: {said}"]


def test_numbers_keep_their_spelling_for_groups(tmp_path):
    from masksmith.folds.table import group_values

    paired(tmp_path)
    side_table(tmp_path, "id,patient\na,007\nb,7\nc,007\n")
    train = read_catalog(tmp_path).train
    assert group_values(train, "patient") == {"a": "007", "b": "7", "c": "007"}
    assert train[0].values == {"patient": 7.0}


@pytest.mark.real
def test_real_tgs(shared):
    """The table heads that the checklist quotes, and what INDEX.md says of the masks."""
    catalog = read_catalog(shared / "data" / "tgs-salt")
    assert (len(catalog.train), len(catalog.test), len(catalog.submission.ids)) == (3222, 4000, 4000)
    depth = {sample.id: sample.values["z"] for sample in catalog.train}
    assert [depth[name] for name in ("575d24d81d", "a266a2a9df", "75efad62c1")] == [843, 794, 468]
    assert any(sample.id.isdigit() for sample in [*catalog.train, *catalog.test])


@pytest.mark.real
def test_real_folders_are_recognised(shared):
    for name, train in (("water", 100), ("kvasir-seg-sample", 5)):
        catalog = read_catalog(shared / "data" / name)
        assert (catalog.layout, len(catalog.train)) == ("paired_folders", train)
