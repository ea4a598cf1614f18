"""Tables as they come from contests and spreadsheets: separators, encodings, ids, forms of run-lengths."""

import csv
import gzip
import io
import zipfile

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.data import side_tables, table
from masksmith.data.catalog import Catalog
from masksmith.data.dialect import Hints, RleRows, infer_dialect
from masksmith.data.layouts import read_catalog
from masksmith.data.rle import DIALECTS, decode, encode
from masksmith.data.table import SEPARATORS, parse_table
from masksmith.data.target import Target
from masksmith.submission.formats import write_outputs
from masksmith.submission.validate import validate_submission
from tests.data.test_dialect import KAGGLE, SHAPE, download, need_masks, read_rows, told, truth, write_table
from tests.data.test_labels import layers, need_layers


def image(path, value=90, shape=SHAPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    cv2.imwrite(str(path), rng.integers(0, 255, shape, dtype=np.uint8))


def test_separators_encodings_and_index_columns(tmp_path):
    masks = truth()
    rows = told(masks, "tgs")
    for at, (separator, encoding, index) in enumerate(
        ((";", "utf-8-sig", False), ("\t", "utf-16", True), ("|", "utf-8", False), (",", "utf-16-be", True))
    ):
        root = download(tmp_path / str(at), rows=rows)
        head = ["", " id ", " EncodedPixels"] if index else ["id", "EncodedPixels"]
        lines = [head] + [
            [*([str(n)] if index else []), f'"{one}"', text] for n, (one, text) in enumerate(rows)
        ]
        text = "".join(f"{separator.join(line)}\r\n" for line in lines)
        raw = text.encode(encoding)
        (root / "train.csv").write_bytes(b"\xfe\xff" + raw if encoding == "utf-16-be" else raw)
        catalog = read_catalog(root, dialect="tgs")
        need_masks(catalog, tmp_path / f"cache {at}", masks)
        assert catalog.train[0].texts == {}


def test_encodings_that_are_refused():
    for raw in ("id,größe\n".encode("latin-1"), "id,z\n".encode("utf-16-le"), b"\xff\xfe\x00"):
        with pytest.raises(InputError, match=r"t\.csv: not a UTF-8 text file .*save it as CSV in UTF-8"):
            parse_table(raw, where="t.csv")
    with pytest.raises(InputError, match=r"t\.csv: 1 column names stand twice, such as 'z'; rename them"):
        parse_table(b"id,z,z\n1,2,3\n", where="t.csv")


@given(
    st.sampled_from(SEPARATORS),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
    st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8), max_size=6),
)
@settings(deadline=None, max_examples=100, database=None)
def test_cells_come_back_whatever_the_separator(separator, encoding, ending, cells):
    file = io.StringIO()
    rows = [["id", "rle_mask"], *([f"{at:05}", cell] for at, cell in enumerate(cells))]
    csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL, lineterminator=ending).writerows(rows)
    found = parse_table(file.getvalue().encode(encoding), where="t.csv")
    assert found.columns == rows[0]
    assert [list(row.values()) for row in found.rows] == rows[1:]


def parquet_bytes(columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns) if isinstance(columns, dict) else columns, file)
    return file.getvalue()


def test_packed_tables_and_parquet(tmp_path, monkeypatch):
    masks = truth()
    rows = told(masks, "tgs")
    root = download(tmp_path / "data", rows=rows)
    raw = (root / "train.csv").read_bytes()
    (root / "train.csv").unlink()
    ids, texts = map(list, zip(*rows, strict=True))
    parquet = parquet_bytes(
        {"id": ids, "rle_mask": [text or None for text in texts], "n": [1.5] * 8, "l": [[1]] * 8}
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("train.csv", raw)
    for name, content in (
        ("train.parquet", parquet),
        ("train.csv.gz", gzip.compress(raw)),
        ("train.csv.zip", packed.getvalue()),
        ("tables/train.csv", raw),
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
        need_masks(read_catalog(root), tmp_path / f"cache {name.replace('/', ' ')}", masks)
        (root / name).unlink()
    (root / "train.csv.gz").write_bytes(gzip.compress(raw)[:-9])
    with pytest.raises(InputError, match=r"train\.csv\.gz: cannot be unpacked \(.*\); download it again"):
        parse_table(gzip.compress(raw)[:-9], where="train.csv.gz")
    import pyarrow

    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["id", "id"])
    with pytest.raises(InputError, match=r"t\.parquet: "):
        parse_table(parquet_bytes(twice), where="t.parquet")
    with pytest.raises(InputError, match=r"no columns of texts or numbers"):
        parse_table(parquet_bytes({"l": [[1]]}), where="t.parquet")
    monkeypatch.setattr(table, "MAX_BYTES", 10)
    with pytest.raises(InputError, match=r"unpacks to more than 10 bytes"):
        parse_table(gzip.compress(raw), where="train.csv.gz")
    with pytest.raises(InputError, match=r"claims [\d,]+ bytes; at most 10 are read"):
        parse_table(parquet, where="t.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r't\.parquet: Parquet needs pyarrow; .* "masksmith\[readers\]"'):
        parse_table(parquet, where="t.parquet")


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_mutated_tables_are_read_or_refused(ending):
    text = b'id;rle_mask\n"00012";1 2 5 3\n12;\n1e5;-1\n' * 3
    raw = {".csv": text, ".csv.gz": gzip.compress(text)}.get(ending)
    raw = raw or parquet_bytes({"id": ["a", "b", "c"] * 9, "rle_mask": ["1 2", None, "3 4"] * 9})

    @settings(deadline=None, max_examples=200, database=None)
    @given(
        st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=5),
        st.integers(0, len(raw)),
    )
    def check(changes, kept):
        mutated = bytearray(raw)
        for at, value in changes:
            mutated[at] = value
        try:
            found = parse_table(bytes(mutated[:kept] if kept % 3 == 0 else mutated), where=f"t{ending}")
        except InputError:
            return
        assert all(row.keys() == set(found.columns) for row in found.rows)

    check()


def test_what_stands_for_an_empty_mask(tmp_path):
    masks = truth()
    rows = [(name, text) for name, text in told(masks, "tgs") if text]
    words = ["", "-1", "nan", "NaN", "None", " ", "NULL"]
    for at, word in enumerate(words):
        masks[f"e{at}"] = np.zeros(SHAPE, np.uint8)
        rows.append((f"e{at}", word))
    rows.append(("a7", ""))
    need_masks(read_catalog(download(tmp_path / "data", rows=rows), dialect="tgs"), tmp_path / "cache", masks)


def test_images_without_a_row(tmp_path):
    """They are empty where no row is: the table lists objects alone. Else nobody knows."""
    masks = truth()
    rows = [(name, text) for name, text in told(masks, "airbus") if text]
    root = download(tmp_path / "objects", rows=rows, columns=KAGGLE)
    image(root / "train" / "images" / "a7.png")
    catalog = read_catalog(root)
    need_masks(catalog, tmp_path / "cache", masks)
    assert catalog.notes == ["1 images have no row in train.csv: read as without objects: 'a7'"]
    root = download(tmp_path / "whole", rows=told(masks, "tgs"))
    for name in ("b1", "b2"):
        image(root / "train" / "images" / f"{name}.png")
    with pytest.raises(InputError, match="no mask for the training image 'b1', 'b2'; add masks"):
        read_catalog(root)


def test_rows_of_unknown_images_and_rows_that_stand_twice_are_all_named(tmp_path):
    masks = truth()
    rows = told(masks, "tgs")
    root = download(tmp_path / "data", rows=rows)
    write_table(root / "train.csv", ("id", "rle_mask"), [*rows, *((f"x{at}", "") for at in range(7))])
    with pytest.raises(InputError, match="unknown id 'x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6': no training"):
        read_catalog(root)
    write_table(root / "train.csv", ("id", "rle_mask"), [*rows, *rows[:2]])
    with pytest.raises(InputError, match="the id 'a0', 'a1' appears twice; expected one row an image"):
        read_catalog(root, dialect="tgs")


def test_ids_in_other_spellings(tmp_path):
    masks = truth()
    for at, spell in enumerate(
        (str.upper, " {} ".format, "train/images/{}.png".format, r"C:\data\{}.PNG".format, "x/{}".format)
    ):
        root = download(tmp_path / str(at), rows=told(masks, "tgs"))
        write_table(
            root / "train.csv", ("id", "rle_mask"), [(spell(one), text) for one, text in told(masks, "tgs")]
        )
        catalog = read_catalog(root)
        need_masks(catalog, tmp_path / f"cache {at}", masks)
        assert [one.title for one in catalog.findings] == ["ids that are spelled otherwise"] * (at < 2)
    both = {"A": masks["a0"], "a": masks["a1"]}
    root = download(tmp_path / "both", rows=told(both, "tgs"))
    need_masks(read_catalog(root), tmp_path / "cache both", both)


def test_ids_that_look_like_numbers_and_an_index_beside_them(tmp_path):
    masks = dict(zip(["0", "00", "1", "1e5", "100000", "007", "3", "7"], truth().values(), strict=True))
    rows = [(str(at), name, text) for at, (name, text) in enumerate(reversed(told(masks, "tgs")))]
    for at, columns in enumerate((("", "id", "rle_mask"), ("Unnamed: 0", "picture", "rle_mask"))):
        root = download(tmp_path / str(at), rows=told(masks, "tgs"))
        write_table(root / "train.csv", columns, rows)
        need_masks(read_catalog(root), tmp_path / f"cache {at}", masks)


def test_starts_from_0(tmp_path):
    masks = truth()
    rows = [(name, encode(mask, dialect="tgs_zero_based")) for name, mask in masks.items()]
    form = read_catalog(download(tmp_path / "unknown", rows=rows)).submission
    assert form.dialect == "tgs"  # nothing tells
    catalog = read_catalog(download(tmp_path / "files", rows=rows, png=masks))
    assert catalog.submission.dialect == "tgs_zero_based"
    need_masks(catalog, tmp_path / "cache", masks)
    masks["a0"][0, 0] = 1
    rows = [(name, encode(mask, dialect="tgs_zero_based")) for name, mask in masks.items()]
    catalog = read_catalog(download(tmp_path / "proof", rows=rows))
    assert catalog.submission.doubt.startswith(
        "starts are counted from 0, not from 1: read as tgs_zero_based"
    )
    need_masks(catalog, tmp_path / "cache 2", masks)
    one = infer_dialect([RleRows(["0 3"], SHAPE)], Hints("rle_mask"))
    assert one.dialect == "tgs_zero_based"


@given(st.integers(1, 12), st.integers(1, 12), st.data(), st.sampled_from(sorted(DIALECTS)))
@settings(deadline=None, max_examples=200, database=None)
def test_every_dialect_round_trips(height, width, data, dialect):
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits, np.uint8).reshape(height, width)
    np.testing.assert_array_equal(
        decode(encode(mask, dialect=dialect), shape=mask.shape, dialect=dialect), mask
    )


def test_cells_that_are_no_run_lengths(tmp_path):
    for at, cell in enumerate(
        ("[[1, 3]]", '{"size": [3, 4], "counts": "abc"}', "eNoLCAgIsAQABJkBdQ==", "1,3,7,2")
    ):
        root = download(tmp_path / str(at), rows=[("a0", cell), ("a1", cell)], columns=KAGGLE)
        with pytest.raises(
            InputError, match=r"train\.csv: the column 'EncodedPixels' holds .* expected run-lengths"
        ):
            read_catalog(root)
        write_table(root / "sample_submission.csv", KAGGLE, [("t0", ""), ("t1", "")])
        with pytest.raises(InputError, match=r"train\.csv: the column 'EncodedPixels' holds"):
            read_catalog(root)


def test_what_keeps_masks_and_images_from_being_found_is_named(tmp_path):
    root = download(tmp_path / "data", rows=told(truth(), "tgs"))
    raw = (root / "train.csv").read_bytes()
    (root / "train.csv").write_bytes(raw + "größe,1 1\n".encode("latin-1"))
    with pytest.raises(
        InputError, match=r"tables cannot be read: train\.csv: not a UTF-8 text file \(byte \d+\)"
    ):
        read_catalog(root)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:  # a contest's download as a whole
        archive.writestr("train.csv", raw)
        archive.writestr("train.zip", b"x")
    (tmp_path / "whole").mkdir()
    (tmp_path / "all.zip").rename(tmp_path / "whole" / "all.zip")
    with pytest.raises(
        InputError, match=r"all/train\.csv has run-lengths of 8: .*; unpack all/train\.zip first"
    ):
        read_catalog(tmp_path / "whole")


def test_masks_of_the_first_pixel_are_said(tmp_path):
    rows = [*told(truth(), "tgs"), ("b0", "1 1"), ("b1", "1 1")]
    (found,) = read_catalog(download(tmp_path, rows=rows)).findings
    assert (found.title, found.ids) == ("masks of the first pixel", ["b0", "b1"])


def test_a_column_a_class(tmp_path):
    masks = layers(("fish", "a_gravel"))
    named, bare = ("fish_rle", "a_gravel_rle"), ("fish", "a_gravel")
    for at, (columns, sample) in enumerate(((named, True), (named, False), (bare, True))):
        rows = [(f"{one}.jpg", *(encode(mask) for mask in own.values()), "5") for one, own in masks.items()]
        answers = [(f"{one}.jpg", "", "", "5") for one in ("t1", "t0")]
        root = download(
            tmp_path / str(at),
            rows=rows,
            columns=("image", *columns, "z"),
            sample=answers if sample else None,
        )
        catalog = read_catalog(root)
        assert catalog.labels == ["fish", "a_gravel"]
        need_layers(catalog, tmp_path / f"cache {at}", masks)
        assert catalog.train[0].values == {"z": 5.0}
        write_json(tmp_path / "data.json", catalog.to_json())
        form = Catalog.from_json(read_json(tmp_path / "data.json")).submission
        assert form == catalog.submission
        target, shapes = Target("multilabel", ("fish", "a_gravel")), dict.fromkeys(("t0", "t1"), SHAPE)
        given = [np.stack([*masks[name].values()], axis=-1) for name in ("a0", "a7")]
        out = tmp_path / f"out {at}"
        out.mkdir()
        write_outputs(out / "masks", out / "out.csv", form, given, target)
        assert read_rows(out / "out.csv")[0] == ["image", *columns]
        first = "t1.jpg" if sample else "t0.png"
        assert read_rows(out / "out.csv")[1] == [first, *(encode(mask) for mask in masks["a0"].values())]
        assert (
            validate_submission(out / "out.csv", form, shapes, masks=out / "masks", target=target).empty == 1
        )


def test_boxes_beside_masks_are_no_classes(tmp_path):
    masks = truth()
    rows = [(name, encode(mask), "1 2 30 40") for name, mask in masks.items()]
    for at, columns in enumerate((("id", "rle_mask", "box"), ("id", "runs", "box"))):
        catalog = read_catalog(download(tmp_path / str(at), rows=rows, columns=columns))
        assert catalog.labels == []
        need_masks(catalog, tmp_path / f"cache {at}", masks)


def nested(root, masks, place, *, test=("t0", "t1"), rows=None, columns=KAGGLE):
    """Images at ``place(set, id)`` and a table of run-lengths."""
    for at, name in enumerate([*masks, *test]):
        image(root / place("test" if name in test else "train", name), at)
    write_table(root / "train-rle.csv", columns, rows or told(masks, "siim"))
    return root


def test_images_in_folders_of_folders(tmp_path):
    masks = truth()
    for at, place in enumerate(
        (
            "dicom-images-{0}/1.2.{1}/9.{1}/{1}.png".format,  # SIIM
            "stage1_{0}/{1}/images/{1}.png".format,  # Data Science Bowl 2018 without mask files
            "all/{0}/{1}.png".format,
        )
    ):
        root = nested(tmp_path / str(at), masks, place)
        write_table(root / "sample_submission.csv", KAGGLE, [("t1", "-1"), ("t0", "-1")])
        catalog = read_catalog(root)
        assert (catalog.layout, catalog.submission.ids) == ("kaggle_rle", ["t1", "t0"])
        assert [one.image for one in catalog.test] == [place("test", name) for name in ("t0", "t1")]
        assert {one.group for one in catalog.train} == {None}
        need_masks(catalog, tmp_path / f"cache {at}", masks)


def test_ids_of_a_folder_and_a_slice_are_grouped_by_the_uppermost_folder(tmp_path):
    """UW-Madison: a row an image and class, images by case and day, no test set."""
    kinds = ("large_bowel", "small_bowel", "stomach")
    masks = {
        f"case{at // 4}_day{at % 4 // 2}_slice_000{at % 2}": dict(zip(kinds, [mask] * 3, strict=True))
        for at, mask in enumerate(truth().values())
    }

    def place(_, name):
        case, day, _, number = name.split("_")
        return f"train/{case}/{case}_{day}/scans/slice_{number}_44_30_1.50_1.50.png"

    rows = [(name, kind, encode(mask)) for name, own in masks.items() for kind, mask in own.items()]
    root = nested(
        tmp_path / "data", masks, place, test=(), rows=rows, columns=("id", "class", "segmentation")
    )
    write_table(root / "sample_submission.csv", ("id", "class", "predicted"), [])
    catalog = read_catalog(root)
    assert (catalog.labels, len(catalog.train), catalog.test) == (list(kinds), 8, [])
    assert catalog.submission.label_header == ["id", "class", "predicted"]
    assert [one.group for one in catalog.train] == ["case0"] * 4 + ["case1"] * 4
    assert "2 folders, such as 'case0'" in catalog.findings[0].detail
    need_layers(catalog, tmp_path / "cache", masks)


def test_ids_with_folders_where_files_have_the_same_names(tmp_path):
    masks = {f"{folder}/{at}": mask for at, mask in enumerate(truth().values()) for folder in "ab"}
    root = nested(tmp_path / "data", masks, "{0}/{1}.png".format, test=())
    need_masks(read_catalog(root), tmp_path / "cache", masks)


def test_test_images_in_the_folder_of_the_training_images(tmp_path):
    masks = truth()
    root = download(tmp_path / "data", rows=told(masks, "tgs"), sample=[("t0", ""), ("t1", "")])
    for name in ("t0", "t1"):
        (root / "test" / "images" / f"{name}.png").rename(root / "train" / "images" / f"{name}.png")
    (root / "test" / "images").rmdir()
    (root / "test").rmdir()
    catalog = read_catalog(root)
    assert ([one.id for one in catalog.test], len(catalog.train)) == (["t0", "t1"], 8)
    need_masks(catalog, tmp_path / "cache", masks)


def test_many_inner_tables_are_a_file_an_image(tmp_path, monkeypatch):
    root = download(tmp_path / "data", rows=told(truth(), "tgs"))
    (root / "train" / "points.csv").write_text("id,site\na0,lake\n")
    assert read_catalog(root).train[0].texts == {"site": "lake"}
    monkeypatch.setattr(side_tables, "MOST_INNER", 0)
    assert read_catalog(root).train[0].texts == {}


@pytest.mark.real
def test_real_tables_without_images(shared):
    with pytest.raises(
        InputError, match=r"no training images, but train-rle-sample\.csv has run-lengths of 10: '1\.2"
    ):
        read_catalog(shared / "data" / "siim-acr-tables")
