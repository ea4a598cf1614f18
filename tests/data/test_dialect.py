"""The dialect of run-lengths is found in the data, said, and can be set."""

import csv

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.data.cache import build_cache
from masksmith.data.catalog import Catalog
from masksmith.data.dialect import Hints, RleRows, infer_dialect
from masksmith.data.layouts import read_catalog
from masksmith.data.rle import DIALECTS, encode, encode_rows
from masksmith.project.folder import Project
from masksmith.submission.formats import write_outputs
from masksmith.submission.validate import validate_submission

SHAPE = (30, 44)
KAGGLE = ("ImageId", "EncodedPixels")


def truth(count=8):
    """Masks of two or three rectangles; the last is empty."""
    masks = {}
    for at in range(count):
        mask = np.zeros(SHAPE, np.uint8)
        for corner in ((2, 3), (15, 20), (4, 30))[: 2 + at % 2]:
            top, left = corner[0] + at % 3, corner[1] + at % 4
            mask[top : top + 8, left : left + 9] = 1
        masks[f"a{at}"] = mask * (at < count - 1)
    return masks


def download(root, *, rows, columns=("id", "rle_mask"), sample=None, png=None, name="train.csv", shape=SHAPE):
    """Write a download: images of the rows' ids, a table of the rows, two test images, mask files of ``png``."""
    rng = np.random.default_rng(0)
    ids = dict.fromkeys(row[0].split(".")[0] for row in rows) | dict.fromkeys(png or {})
    for folder, names in (("train", ids), ("test", ("t0", "t1"))):
        (root / folder / "images").mkdir(parents=True)
        for one in names:
            image = rng.integers(0, 255, shape, dtype=np.uint8)
            cv2.imwrite(str(root / folder / "images" / f"{one}.png"), image)
    if png:
        (root / "train" / "masks").mkdir()
        for one, mask in png.items():
            cv2.imwrite(str(root / "train" / "masks" / f"{one}.png"), mask * 255)
    write_table(root / name, columns, rows)
    if sample is not None:
        write_table(root / "sample_submission.csv", columns, sample)
    return root


def write_table(path, columns, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def read_rows(path):
    return list(csv.reader(path.read_text().splitlines()))


def told(masks, dialect, *, ending=""):
    return [
        (f"{name}{ending}", text)
        for name, mask in masks.items()
        for text in encode_rows(mask, dialect=dialect)
    ]


def need_masks(catalog, folder, masks):
    cache = build_cache(catalog, folder)
    for name, mask in masks.items():
        np.testing.assert_array_equal(cache.train_masks[name][..., 0], mask)


@pytest.mark.slow
def test_each_dialect_is_found_with_and_without_mask_files(tmp_path):
    masks, twins = truth(), {"dsb": "airbus", "severstal": "tgs"}  # the same rows in a table without classes
    for dialect in DIALECTS:
        base, _, order = dialect.partition("_")
        expected = "_".join(filter(None, (twins.get(base, base), order)))
        if order.startswith("zero_based"):  # only a start of 0 tells without mask files
            masks = truth()
            masks["a0"][0, 0] = 1
        for png in (None, masks):
            root = tmp_path / f"{dialect} {png is not None}"
            # the column's name misleads: all but siim are called as siim's, and siim as tgs's
            columns = ("id", "rle_mask") if base == "siim" else KAGGLE
            catalog = read_catalog(
                download(
                    root,
                    rows=told(masks, dialect),
                    columns=columns,
                    sample=[("t0", "1 1"), ("t1", "1 1")],
                    png=png,
                )
            )
            assert catalog.submission.dialect == expected
            assert ("as in 7 mask files" in catalog.submission.reason) == (png is not None)
            assert ("go row by row" in catalog.submission.doubt) == ("row_major" in order)
            assert ("counted from 0, not from 1" in catalog.submission.doubt) == ("zero_based" in order)
            need_masks(catalog, root / "cache", masks)
            assert Catalog.from_json(catalog.to_json()) == catalog


def test_ids_with_endings_and_objects_go_back_as_they_came(tmp_path):
    """Airbus: EncodedPixels in absolute starts, one row an object, ids with the ending of the file."""
    masks = truth()
    rows = told(masks, "airbus", ending=".jpg")
    assert len(rows) > 2 * len(masks)
    sample = [("t1.jpg", "1 2"), ("t0.jpg", "1 2")]
    catalog = read_catalog(
        download(tmp_path / "data", rows=rows, columns=KAGGLE, sample=sample, name="ships_v2.csv")
    )
    form = catalog.submission
    assert (form.dialect, form.ids, form.spelled) == (
        "airbus",
        ["t1", "t0"],
        {"t0": "t0.jpg", "t1": "t1.jpg"},
    )
    need_masks(catalog, tmp_path / "cache", masks)
    path, shapes = tmp_path / "submission.csv", dict.fromkeys(form.ids, SHAPE)
    answers = {"t0": masks["a7"], "t1": masks["a1"]}
    write_outputs(tmp_path / "masks", path, form, [answers[name] for name in form.ids])
    written = read_rows(path)
    assert [row[0] for row in written] == ["ImageId", "t1.jpg", "t1.jpg", "t1.jpg", "t0.jpg"]
    assert written[-1] == ["t0.jpg", ""]
    verdict = validate_submission(path, form, shapes, masks=tmp_path / "masks")
    assert (verdict.ids, verdict.empty, verdict.compared) == (2, 1, 2)
    for rows, message in (
        ([*written[1:], written[1]], "'t1.jpg' appears twice"),
        ([*written[1:4], ["t1.jpg", ""], written[4]], "id 't1': an empty row beside 3 others"),
        ([*written[1:4], written[3], written[4]], "id 't1': 72 pixels are in two rows; expected in one"),
        ([*written[1:3], written[4]], "id 't1': the runs do not decode to the saved mask"),
    ):
        write_table(path, KAGGLE, rows)
        with pytest.raises(InputError, match=message):
            validate_submission(path, form, shapes, masks=tmp_path / "masks")


def test_severstal_with_one_class(tmp_path):
    masks = truth()
    defects = {name: mask for name, mask in masks.items() if mask.any()}
    in_id = download(
        tmp_path / "in id",
        rows=[(f"{name}.jpg_3", encode(mask)) for name, mask in masks.items()],
        columns=("ImageId_ClassId", "EncodedPixels"),
        sample=[("t0.jpg_3", ""), ("t1.jpg_3", "")],
    )
    own = download(
        tmp_path / "own column",
        rows=[(f"{name}.jpg", "3", encode(mask)) for name, mask in defects.items()],
        columns=("ImageId", "ClassId", "EncodedPixels"),
        sample=[("t0.jpg", "3", ""), ("t1.jpg", "3", "")],
    )
    cv2.imwrite(str(own / "train" / "images" / "a7.png"), np.eye(*SHAPE, dtype=np.uint8))
    for root, first in ((in_id, ["t0.jpg_3", "1 1"]), (own, ["t0.jpg", "1 1", "3"])):
        catalog = read_catalog(root)
        assert catalog.submission.dialect == "severstal"
        need_masks(catalog, tmp_path / f"{root.name} cache", masks)
        corner = np.zeros(SHAPE, np.uint8)
        corner[0, 0] = 1
        write_outputs(tmp_path / "masks", tmp_path / "out.csv", catalog.submission, [corner, corner])
        assert read_rows(tmp_path / "out.csv")[1] == first
        validate_submission(
            tmp_path / "out.csv", catalog.submission, dict.fromkeys(("t0", "t1"), SHAPE), masks=None
        )
    assert read_catalog(own).notes == ["1 images have no row in train.csv: read as without objects: 'a7'"]


def test_where_two_fit_the_doubt_is_said(tmp_path):
    rows = [(f"a{at}", f"{100 + at} 5") for at in range(6)]
    for column, dialect, other in (("EncodedPixels", "siim", "tgs"), ("rle_mask", "tgs", "siim")):
        root = download(tmp_path / column, rows=rows, columns=("id", column))
        said = (
            f"both tgs and siim fit; read as {dialect} because the column is called '{column}'; "
            f"set --dialect {other} if that is wrong"
        )
        report = ms.check(root)
        assert f"warning: run-length dialect: {said}" in str(report)
        assert read_catalog(root, dialect=other).submission.doubt == ""
    with_empty = [*rows, ("a6", "-1")]
    form = read_catalog(download(tmp_path / "minus", rows=with_empty)).submission
    order = "column and row order fit equally; read column by column, as usual; look at some masks, and set --dialect"
    assert (form.dialect, form.doubt) == ("siim", f"{order} siim_row_major if they are wrong")
    for blobs, rows_of in (
        (1, "; each row holds one object; written as one row an image; set --dialect airbus"),
        (2, ""),
    ):
        square = np.zeros((30, 30), np.uint8)
        square[3:9, 4:12] = square[20:24, :5] = 1
        square[20:] *= blobs == 2
        rows = [(f"a{at}", encode(square)) for at in range(4)]
        root = download(tmp_path / str(blobs), rows=rows, shape=(30, 30))
        said = read_catalog(root).submission.doubt
        assert said.startswith(f"{order} tgs_row_major if they are wrong{rows_of}")
        assert ("each row" in said) == bool(rows_of)
        assert not read_catalog(root, dialect="tgs").submission.doubt
    root = download(tmp_path / "masks", rows=rows, shape=(30, 30), png=dict.fromkeys(dict(rows), square))
    assert not read_catalog(root).submission.doubt


def test_the_order_of_starts_tells_and_few_rows_leave_a_doubt():
    for text, dialect in (("3 2 20 4 90 1", "tgs"), ("90 1 3 2", "siim")):
        one = infer_dialect([RleRows([text], SHAPE)], Hints("EncodedPixels"))
        assert one.dialect == dialect
        assert "both tgs and siim fit; read as" in one.doubt
        many = infer_dialect([RleRows([text], SHAPE)] * 3, Hints("rle_mask"))
        assert (many.dialect, many.doubt) == (dialect, "")


def test_a_dialect_that_was_asked_for_is_kept_or_refused(tmp_path):
    masks = truth()
    root = download(tmp_path / "data", rows=told(masks, "siim"), png=masks, sample=[("t0", ""), ("t1", "")])
    for dialect, message in (
        ("tgs", r"--dialect tgs: train\.csv: id 'a0': the run at pixel .*; siim fits better"),
        (
            "siim_row_major",
            r"--dialect siim_row_major: .* id 'a0': the runs and the mask file differ in 222 pixels; siim fits",
        ),
        ("sim", "--dialect: 'sim' is unknown; did you mean 'siim'"),
    ):
        with pytest.raises(InputError, match=message):
            ms.check(root, tmp_path / "out", dialect=dialect)
    for name, most in (("not judged", 1), ("1 and 2", 2)):
        root = download(tmp_path / name, rows=told(masks, "tgs"), png=masks)
        for one, mask in masks.items():
            drawn = np.where(np.eye(*SHAPE) > 0, 255, mask) if most == 1 else mask + 1
            cv2.imwrite(str(root / "train" / "masks" / f"{one}.png"), drawn.astype(np.uint8))
        catalog = read_catalog(root, dialect="tgs")
        assert read_catalog(root).submission.reason.startswith("absolute starts (as in 7 mask files)")
        cache = build_cache(catalog, tmp_path / f"{name} cache")
        assert {255 in cache.train_masks[one] for one in masks} == {most == 1}
        mask = 1 - masks["a1"]
        drawn = np.where(np.eye(*SHAPE) > 0, 255, mask) if most == 1 else mask + 1
        cv2.imwrite(str(root / "train" / "masks" / "a1.png"), drawn.astype(np.uint8))
        said = f"differ in {mask.size - (30 if most == 1 else 0)} pixels"
        with pytest.raises(InputError, match=f"training image 'a1': .* {said}"):
            build_cache(catalog, tmp_path / f"{name} cache 2")
        with pytest.raises(InputError, match=f"id 'a1': .* {said}"):
            read_catalog(root, dialect="tgs")
    several = download(tmp_path / "several", rows=told(masks, "airbus"))
    with pytest.raises(
        InputError, match="--dialect tgs: it has one row an image, and the table has images with"
    ):
        read_catalog(several, dialect="tgs")
    assert read_catalog(several, dialect="dsb").submission.dialect == "dsb"
    classes = download(
        tmp_path / "classes", rows=[(f"{one}.jpg_1", encode(mask)) for one, mask in masks.items()]
    )
    with pytest.raises(
        InputError, match="--dialect siim: the table has a row an image and class; take severstal"
    ):
        read_catalog(classes, dialect="siim")


def test_later_verbs_know_the_dialect_and_a_begun_project_keeps_it(tmp_path):
    rows = [(f"a{at}", f"{100 + 7 * at} 5") for at in range(12)]
    root, out = download(tmp_path / "data", rows=rows), tmp_path / "out"
    ms.check(root, out)
    first = Project.open(out).cache.train_masks["a0"][..., 0].ravel(order="F")
    ms.check(root, out, dialect="siim")  # nothing is begun: the masks are decoded anew
    second = Project.open(out).cache.train_masks["a0"][..., 0].ravel(order="F")
    assert (np.flatnonzero(first)[0], np.flatnonzero(second)[0]) == (99, 100)
    ms.check(root, out)
    assert Project.open(out).catalog.submission.dialect == "siim"
    ms.folds(out, overrides={"folds.count": 3})
    ms.check(root, out)
    with pytest.raises(
        InputError, match=r"it was begun with run-lengths read as siim, now as tgs; choose another"
    ):
        ms.check(root, out, dialect="tgs")


def test_rows_that_stand_twice(tmp_path):
    masks = truth()
    rows = told(masks, "airbus")
    catalog = read_catalog(download(tmp_path / "twice", rows=[*rows, rows[0]]))
    assert catalog.notes == ["train.csv: 1 rows are repeated word for word and count once"]
    with pytest.raises(InputError, match="the id 'a0' has an empty row beside run-lengths"):
        read_catalog(download(tmp_path / "empty", rows=[*rows, ("a0", "")]))
    siim = told(masks, "siim")
    sample = [("t0", "-1"), ("t1", "-1"), ("t0", "-1")]
    catalog = read_catalog(download(tmp_path / "siim", rows=[*siim, ("a0", "3 1")], sample=sample))
    assert (catalog.submission.dialect, catalog.submission.ids) == ("siim", ["t0", "t1"])
    assert catalog.notes == ["sample_submission.csv: 3 rows for 2 ids; repeated ones count once"]
    assert sum(len(sample.rle) for sample in catalog.train) == len(
        siim
    )  # one more, and the empty one has none


def test_pairs_beside_tables_without_run_lengths(tmp_path):
    masks = truth()
    split = [(name, f"{at % 2} {at}", "12 7 30 9") for at, name in enumerate(masks)]
    root = download(tmp_path, rows=split, columns=("id", "fold", "box"), name="train_split.csv", png=masks)
    catalog = read_catalog(root)
    assert (catalog.layout, catalog.notes) == ("paired_folders", [])
    assert catalog.train[3].texts == {"fold": "1 3", "box": "12 7 30 9"}  # both read as run-lengths
    write_table(root / "train_split.csv", ("id", "fold", "rle"), [("zz", "1", "1 1")])
    assert read_catalog(root).layout == "paired_folders"  # run-lengths of none of the images
    (root / "train_split.csv").write_text("id,fold\na0\n")
    assert "train_split.csv: line 2 has 1 cells" in read_catalog(root).notes[0]


def test_a_table_is_known_by_what_it_holds(tmp_path):
    masks = truth()
    rows = told(masks, "tgs")
    root = download(tmp_path, rows=rows, columns=("picture", "runs"), name="labels.csv")
    write_table(root / "answers.csv", ("picture", "runs"), [("t1", "1 1"), ("t0", "1 1")])
    catalog = read_catalog(root)
    assert catalog.layout == "kaggle_rle"
    form = catalog.submission
    assert (form.source, form.ids, form.rle_column) == ("answers.csv", ["t1", "t0"], "runs")
    need_masks(catalog, root / "cache", masks)


def test_which_table_holds_the_masks_where_ids_are_in_both_sets(tmp_path):
    masks = truth()
    for at, name in enumerate(("submission_format.csv", "sample.csv", "a_submission.csv", "ATest.csv")):
        root = download(tmp_path / str(at), rows=told(masks, "tgs"), columns=KAGGLE)
        for one in masks:
            cv2.imwrite(str(root / "test" / "images" / f"{one}.png"), np.zeros(SHAPE, np.uint8))
        write_table(root / name, KAGGLE, [(one, "" if at == 3 else "1 1") for one in masks])
        write_table(root / "boxes.csv", ("id", "bbox"), [(one, "10 20 30 40") for one in [*masks, "t0"]])
        catalog = read_catalog(root)
        assert (catalog.submission.source, catalog.submission.ids) == (name, list(masks))
    need_masks(catalog, tmp_path / "cache", masks)
    write_table(root / "a_copy.csv", KAGGLE, told(masks, "tgs"))  # the same runs
    assert read_catalog(root).train == catalog.train
    write_table(root / "old_train.csv", KAGGLE, [(one, "1 1") for one in masks])
    with pytest.raises(InputError, match=r"old_train\.csv and train\.csv: different .* image 'a0'; keep the"):
        read_catalog(root)
    for one in root.glob("*train.csv"):
        one.unlink()
    (root / "a_copy.csv").rename(root / "sample_masks.csv")
    with pytest.raises(InputError, match="nor a folder of masks; a table with test, sample or submission"):
        read_catalog(root)


def test_what_is_known_of_test_images_is_no_sample_submission(tmp_path):
    masks = truth()
    for at, (name, columns, cell) in enumerate(
        (
            ("test_meta.csv", ("id", "size"), "640 480"),
            ("test_meta.csv", ("id", "annotation"), "cloudy"),
            ("boxes.csv", ("id", "bbox"), "10 20 30 40"),
        )
    ):
        root = download(
            tmp_path / str(at), rows=[(one, cell) for one in ("t0", "t1")], columns=columns, name=name
        )
        for one, mask in masks.items():
            (root / "train" / "masks").mkdir(exist_ok=True)
            cv2.imwrite(str(root / "train" / "images" / f"{one}.png"), mask)
            cv2.imwrite(str(root / "train" / "masks" / f"{one}.png"), mask * 255)
        for one in ("t0", "t1"):
            (root / "train" / "images" / f"{one}.png").unlink()
        catalog = read_catalog(root)
        assert (catalog.layout, catalog.submission.rle_column) == ("paired_folders", "rle_mask")
        assert catalog.test[0].texts == {columns[1]: cell}


def test_score_reads_each_dialect_and_says_it(tmp_path):
    masks = truth()
    for dialect in DIALECTS:
        write_table(tmp_path / "solution.csv", KAGGLE, told(masks, dialect))
        scored = ms.score(tmp_path / "solution.csv", tmp_path / "solution.csv", shape=SHAPE, dialect=dialect)
        assert scored.score == 1
        assert f"run-lengths: {dialect}: asked for" in str(scored)
        scored = ms.score(tmp_path / "solution.csv", tmp_path / "solution.csv", shape=SHAPE)
        assert (scored.score, "fit" in scored.doubt) == (1, False)
    write_table(tmp_path / "solution.csv", KAGGLE, [("a0", "5 2"), ("a1", "5 2")])
    scored = ms.score(tmp_path / "solution.csv", tmp_path / "solution.csv", shape=SHAPE)
    assert "\nrun-length dialect: both tgs and siim fit; read as siim because" in str(scored)
    write_table(tmp_path / "solution.csv", KAGGLE, [("a0", "1320 2")])
    with pytest.raises(
        InputError, match=r"--dialect tgs: .*id 'a0': the run at pixel 1320 with length 2 leaves"
    ):
        ms.score(tmp_path / "solution.csv", tmp_path / "solution.csv", shape=SHAPE, dialect="tgs")


def test_a_catalogue_of_before_rows_opens(example, tmp_path):
    value = read_catalog(example / "data").to_json()
    for sample in value["train"]:
        sample["rle"] = " ".join(sample["rle"])
    for key in ("spelled", "more", "reason", "doubt", "asked"):
        del value["submission"][key]
    write_json(tmp_path / "data.json", value)
    assert Catalog.from_json(read_json(tmp_path / "data.json")).train == read_catalog(example / "data").train


@pytest.mark.real
def test_real_siim_tables(shared):
    folder = shared / "data" / "siim-acr-tables"
    with (folder / "train-rle-sample.csv").open(encoding="utf-8-sig") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file)][1:]
    images = [RleRows([text], (1024, 1024)) for _, text in rows if text != "-1"]
    found = infer_dialect(images, Hints("mask"))
    assert (found.dialect, found.doubt, len(images)) == ("siim", "", 5)
    assert "otherwise 5 rows leave their image or overlap" in found.reason


@pytest.mark.real
def test_real_siim_tables_beside_images_are_read_as_they_lie(shared, tmp_path):
    """1484 rows of 1372 ids in the sample submission; training rows with a byte order mark and ``fname,mask``."""
    tables = shared / "data" / "siim-acr-tables"
    rows = {}
    for name, folder, side in (
        ("train-rle-sample.csv", "train", 1024),
        ("new_sample_submission.csv", "test", 8),
    ):
        (tmp_path / name).write_bytes((tables / name).read_bytes())
        with (tables / name).open(encoding="utf-8-sig") as file:
            rows[folder] = [[cell.strip() for cell in row] for row in csv.reader(file)][1:]
        (tmp_path / folder).mkdir()
        image = np.add.outer(np.arange(side), np.arange(side)).astype(np.uint8)
        raw = cv2.imencode(".png", image)[1].tobytes()
        for row in rows[folder]:
            (tmp_path / folder / f"{row[0]}.png").write_bytes(raw)
    found = read_catalog(tmp_path)
    assert (len(rows["test"]), len(found.test), found.submission.dialect) == (1484, 1372, "siim")
    assert found.submission.ids == list(dict.fromkeys(row[0] for row in rows["test"]))
    texts = {one.id: dict(rows["train"])[one.id] for one in found.train}
    assert sum(text != "-1" for text in texts.values()) == 5
    assert len(texts) == 10
