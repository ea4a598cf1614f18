"""Data of several labels that may overlap: rows of an image and class, or a folder of masks for each label."""

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.data.cache import build_cache
from masksmith.data.catalog import Catalog
from masksmith.data.layouts import read_catalog
from masksmith.data.rle import encode
from masksmith.data.target import Target
from tests.data.test_dialect import SHAPE, download, truth

TOGETHER = ("ImageId_ClassId", "EncodedPixels")
APART = ("ImageId", "ClassId", "EncodedPixels")
UW = ("id", "class", "segmentation")


def layers(kinds=("2", "10")):
    """Id -> class -> mask; those of the classes overlap."""
    return {
        name: {kind: np.roll(mask, 3 * at, axis=0) for at, kind in enumerate(kinds)}
        for name, mask in truth().items()
    }


def rows_of(masks, *, joined, empty=True, dialect="tgs"):
    rows = [
        (name, kind, encode(mask, dialect=dialect))
        for name, own in masks.items()
        for kind, mask in own.items()
    ]
    kept = [row for row in rows if empty or row[2]]
    return [(f"{name}.jpg_{kind}", text) if joined else (name, kind, text) for name, kind, text in kept]


def need_layers(catalog, folder, masks):
    cache = build_cache(catalog, folder)
    labels = list(next(iter(masks.values())))
    assert cache.target == Target("multilabel", tuple(labels))
    for name, own in masks.items():
        np.testing.assert_array_equal(
            cache.train_masks[name], np.stack([own[one] for one in labels], axis=-1)
        )
    return cache


def test_rows_of_an_image_and_class(tmp_path):
    masks = layers()
    for at, (joined, columns, empty, dialect) in enumerate(
        (
            (True, TOGETHER, True, "tgs"),
            (False, APART, False, "tgs"),  # classes and images without a row are empty
            (False, UW, True, "tgs_row_major"),
        )
    ):
        rows = rows_of(masks, joined=joined, empty=empty, dialect=dialect)
        root = download(tmp_path / str(at), rows=rows, columns=columns)
        if not empty:
            image = cv2.imread(str(root / "train" / "images" / "a0.png"))
            cv2.imwrite(str(root / "train" / "images" / "a7.png"), image)
        catalog = read_catalog(root)
        assert catalog.labels == ["2", "10"]  # in their natural order
        assert catalog.submission.dialect == dialect.replace("tgs", "severstal")
        cells = ["t0.png_2", "t0.png_10", "t1.png_2", "t1.png_10"] if joined else ["t0", "t0", "t1", "t1"]
        assert [row.cell for row in catalog.submission.label_rows] == cells
        assert catalog.submission.label_header == list(columns)
        write_json(tmp_path / "data.json", catalog.to_json())
        assert Catalog.from_json(read_json(tmp_path / "data.json")) == catalog
        cache = need_layers(catalog, tmp_path / f"cache {at}", masks)
        both = sum(int((own["2"] & own["10"]).sum()) for own in masks.values())
        assert (
            f"of 8 images 2 in 7, 10 in 7; {both} pixels have two labels or more"
            in cache.mask_findings[-1].detail
        )


def test_the_rows_of_a_sample_submission_are_kept_as_they_come(tmp_path):
    sample = [(name, kind, "") for kind in ("10", "2") for name in ("t1", "t0")]
    rows = rows_of(layers(), joined=False)
    form = read_catalog(download(tmp_path, rows=rows, columns=UW, sample=sample)).submission
    assert [tuple(row) for row in form.label_rows] == [(name, kind, name) for name, kind, _ in sample]
    assert (form.ids, form.class_column, form.label_header) == (["t1", "t0"], "class", list(UW))


def test_a_class_for_each_image_is_no_label(tmp_path):
    rows = [(name, str(at % 3), encode(mask)) for at, (name, mask) in enumerate(truth().items())]
    catalog = read_catalog(download(tmp_path, rows=rows, columns=("id", "class", "rle_mask")))
    assert catalog.labels == []
    assert catalog.train[1].texts == {"class": "1"}
    one = [(f"{name}_1", encode(mask)) for name, mask in truth().items()]
    assert read_catalog(download(tmp_path / "one", rows=one, columns=TOGETHER)).labels == []


def folders(root, masks, *, absent=()):
    for name, own in masks.items():
        for kind, mask in own.items():
            for folder, image in ((root / "images", np.full(SHAPE, 90)), (root / "masks" / kind, mask * 255)):
                folder.mkdir(parents=True, exist_ok=True)
                if (name, kind) not in absent or folder.name == "images":
                    cv2.imwrite(str(folder / f"{name}.png"), image.astype(np.uint8))
    return root


def test_a_folder_of_masks_for_each_label(tmp_path):
    masks = layers(("car", "person"))
    masks["a0"]["car"][:] = 0
    root = folders(tmp_path / "data", masks, absent=[("a0", "car")])
    catalog = read_catalog(root)
    assert (catalog.layout, catalog.labels) == ("paired_folders", ["car", "person"])
    need_layers(catalog, tmp_path / "cache", masks)
    assert "task: multilabel: 2 classes (car, person)" in str(ms.check(root))
    mask = masks["a1"]["car"] * 255
    mask[0, :5] = 7
    cv2.imwrite(str(root / "masks" / "car" / "a1.png"), mask)
    with pytest.raises(InputError, match="3 different values"):
        build_cache(read_catalog(root), tmp_path / "cache 2")
    cv2.imwrite(str(root / "masks" / "car" / "a1.png"), mask[:5])
    with pytest.raises(InputError, match=r"masks/car/a1\.png: the mask is 5x44 but its image"):
        build_cache(read_catalog(root), tmp_path / "cache 3")
    for kind in ("car", "person"):
        (root / "masks" / kind / "a1.png").unlink()
    with pytest.raises(
        InputError, match=r"no mask for the image 'a1' in any folder of a label \(car, person\)"
    ):
        read_catalog(root)


def test_a_label_that_never_occurs_keeps_its_place(tmp_path):
    masks = layers(("car", "person"))
    for own in masks.values():
        own["car"][:] = 0
    cache = need_layers(read_catalog(folders(tmp_path / "data", masks)), tmp_path / "cache", masks)
    assert cache.mask_findings[-1].detail == "1 of 2 labels occur in no mask: car; they keep their places"
    for own in masks.values():
        own["person"][:] = 0
    with pytest.raises(InputError, match="every mask is empty"):
        build_cache(read_catalog(folders(tmp_path / "empty", masks)), tmp_path / "cache 2")


def test_refused(tmp_path):
    masks = layers()
    rows = rows_of(masks, joined=False)
    for at, (changed, sample, message) in enumerate(
        (
            (
                [*rows, ("a0", "2", "1 1")],
                None,
                "the image 'a0' has two rows of the class '2'; expected one row",
            ),
            (
                rows,
                [("t0", "3", ""), ("t1", "2", "")],
                "rows of 2, 3, and train.csv has masks of 10, 2; expected",
            ),
            (
                rows,
                [("t0", "2", ""), ("t0", "2", "")],
                "2 rows of the image 't0' and the class '2'; expected one",
            ),
            (
                rows[::2],
                [("t0", "2", ""), ("t0", "10", "")],
                "rows of 10, 2, and one mask an image; expected a row",
            ),
            (
                rows[::2],
                [("t0", "7", "")],
                "rows of the class '7', and train.csv has '2' alone; expected the same",
            ),
            (
                [(a, b.replace("2", "a/b"), c) for a, b, c in rows],
                None,
                "the name 'a/b' cannot be that of a folder",
            ),
        )
    ):
        root = download(tmp_path / str(at), rows=changed, columns=APART, sample=sample)
        with pytest.raises(InputError, match=message):
            read_catalog(root)
    one = download(tmp_path / "one", rows=[(f"{name}_1", encode(mask)) for name, mask in truth().items()])
    with pytest.raises(
        InputError, match="--task multilabel: there is one mask an image; expected run-lengths with a"
    ):
        read_catalog(one, task="multilabel")
    several = download(
        tmp_path / "several", rows=rows, columns=APART, png={name: own["2"] for name, own in masks.items()}
    )
    for task in ("binary", "multiclass", "instances"):
        with pytest.raises(
            InputError, match=rf"--task {task}: the masks are of 2 labels that may overlap \(2, 10\)"
        ):
            read_catalog(several, task=task)
    catalog = read_catalog(several, task="multilabel")
    assert "8 mask files are left out: train.csv has the masks of each class" in catalog.notes
    bad = download(tmp_path / "bad", rows=[("a0", "2", "1 2 3"), *rows[1:]], columns=APART)
    with pytest.raises(InputError, match="run-lengths of training image 'a0', class '2': 3 run values"):
        build_cache(read_catalog(bad), tmp_path / "cache")
