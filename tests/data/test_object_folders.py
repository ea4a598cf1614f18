"""A folder an image with a mask file an object: recognised, refused, and as the real set lies."""

import zipfile

import cv2
import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog
from masksmith.data.decode.pictures import decode_image
from masksmith.data.instances import objects_of_files
from masksmith.data.layouts import read_catalog
from masksmith.data.tree import Tree


def png(path, channels=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((6, 7, channels)[: 2 + (channels > 1)], 255, np.uint8))


def dsb(root, *, train=("a", "b"), test=("t",), objects=2):
    for name in train:
        png(root / "stage1_train" / name / "images" / f"{name}.png")
        for at in range(objects):
            png(root / "stage1_train" / name / "masks" / f"{name}_{at}.png", 1)
    for name in test:
        png(root / "stage1_test" / name / "images" / f"{name}.png")
    return root


def test_recognised_unpacked_and_zipped(tmp_path):
    catalog = read_catalog(dsb(tmp_path / "plain"))
    assert (catalog.layout, [one.id for one in catalog.train], [one.id for one in catalog.test]) == (
        "object_folders",
        ["a", "b"],
        ["t"],
    )
    assert catalog.train[0].objects == ["stage1_train/a/masks/a_0.png", "stage1_train/a/masks/a_1.png"]
    assert catalog.test[0].objects is None
    assert (catalog.submission.dialect, catalog.submission.ids) == ("dsb", ["t"])
    assert Catalog.from_json(catalog.to_json()) == catalog
    old = catalog.to_json()
    for one in (*old["train"], *old["test"]):
        one.pop("objects", None)  # as an older masksmith wrote it
    assert Catalog.from_json(old).train[0].objects is None
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in ("stage1_train", "stage1_test"):
        with zipfile.ZipFile(packed / f"{name}.zip", "w") as archive:
            for path in sorted((tmp_path / "plain" / name).rglob("*.png")):
                archive.write(path, path.relative_to(tmp_path / "plain" / name))
    again = read_catalog(packed)
    assert (again.train, again.test) == (catalog.train, catalog.test)


def test_tables_and_a_test_folder_of_its_own(tmp_path):
    dsb(tmp_path, test=())
    png(tmp_path / "test" / "u.png")
    (tmp_path / "stage1_train_labels.csv").write_text("ImageId,EncodedPixels\na,1 2\na,5 2\nb,1 1\nb,3 1\n")
    (tmp_path / "stage1_sample_submission.csv").write_text("ImageId,EncodedPixels\nu,\n")
    (tmp_path / "classes.csv").write_text("filename,kind\na.png,grey\nb.png,pink\n")
    (tmp_path / "broken.csv").write_text("a,b\n1\n")
    catalog = read_catalog(tmp_path)
    assert [one.texts for one in catalog.train] == [{"kind": "grey"}, {"kind": "pink"}]
    assert catalog.notes == ["broken.csv: line 2 has 1 cells, expected 2: ['a', 'b']"]
    form = catalog.submission
    assert (form.ids, form.id_column, form.source) == (["u"], "ImageId", "stage1_sample_submission.csv")
    assert read_catalog(tmp_path, dialect="airbus").submission.asked
    (tmp_path / "stage1_sample_submission.csv").write_text("ImageId,EncodedPixels\nv,\n")
    with pytest.raises(
        InputError, match=r"stage1_sample_submission.csv: no test image for the id 'v'; 1 test images"
    ):
        read_catalog(tmp_path)


def test_an_image_without_objects_is_said(tmp_path):
    dsb(tmp_path)
    png(tmp_path / "stage1_train" / "c" / "images" / "c.png")
    with pytest.raises(InputError, match="no folder 'masks' beside the image 'c'; add one"):
        read_catalog(tmp_path)
    (tmp_path / "stage1_train" / "c" / "masks").mkdir()
    catalog = read_catalog(tmp_path)
    assert catalog.train[2].objects == []
    assert catalog.notes == ["1 images have no object file: 'c'"]


def test_folders_of_another_form_are_refused(tmp_path):
    dsb(tmp_path)
    png(tmp_path / "stage1_train" / "c" / "images" / "d.png")
    with pytest.raises(
        InputError, match=r"stage1_train/c/images holds 1 images \('stage1_train/c/images/d.png'\); exp"
    ):
        read_catalog(tmp_path)
    (tmp_path / "stage1_train" / "c" / "images" / "d.png").rename(tmp_path / "c.png")
    dsb(tmp_path / "more", train=("b",), test=())
    with pytest.raises(InputError, match="both have the id 'b'; keep one of them"):
        read_catalog(tmp_path)


def test_pairs_stay_pairs(tmp_path):
    for name in ("a", "b"):
        png(tmp_path / "train" / "images" / f"{name}.png")
        png(tmp_path / "train" / "masks" / f"{name}.png", 1)
    assert read_catalog(tmp_path).layout == "paired_folders"
    png(tmp_path / "one" / "images" / "one.png")  # called as its folder, and nothing beside it
    assert read_catalog(tmp_path).layout == "paired_folders"


@pytest.mark.real
def test_real_nuclei(shared):
    catalog = read_catalog(shared / "data" / "dsb2018")
    assert (catalog.layout, len(catalog.train)) == ("object_folders", 120)
    assert sum(len(one.objects) for one in catalog.train) == 5881
    sample, tree = min(catalog.train, key=lambda one: len(one.objects)), Tree(shared / "data" / "dsb2018")
    image = decode_image(tree.read(sample.image), where=sample.image)
    assert image.shape[2] == 3  # of RGBA
    found = objects_of_files(((path, tree.read(path)) for path in sample.objects), shape=image.shape[:2])
    assert found.count == len(sample.objects) == 1
