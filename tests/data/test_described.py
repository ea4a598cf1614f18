"""Images and masks by the patterns of dataset.yaml; Pascal VOC; Cityscapes."""

import cv2
import numpy as np
import pytest
from PIL import Image

from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.layouts import read_catalog

HW = (12, 10)


def put(root, *paths, image=None):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(sum(map(ord, path))).integers(0, 255, HW, np.uint8)
        cv2.imwrite(str(root / path), noise if image is None else image)


def say(root, text):
    root.mkdir(exist_ok=True)
    (root / "dataset.yaml").write_text(text)


def mask(value=255):
    return np.eye(*HW, dtype=np.uint8) * value


# --- patterns ---------------------------------------------------------------------------------------------


def test_images_masks_test_and_splits(tmp_path):
    say(
        tmp_path,
        "images: photos/{id}.tif\nmasks: drawn/{id}-truth*.png\ntest: new/{id}.tif\n"
        "splits: {val: /siteB/, train: /siteA/}\n",
    )
    put(tmp_path, *(f"photos/{site}/1.tif" for site in ("siteA", "siteB")), "new/n.tif", "photos/readme.bmp")
    put(tmp_path, *(f"drawn/{site}/1-truth-v2.png" for site in ("siteA", "siteB")), image=mask())
    put(tmp_path, "drawn/siteC/1-truth.png", image=mask())
    catalog = read_catalog(tmp_path)
    assert catalog.layout == "described"
    assert [(one.id, one.mask, one.held_out) for one in catalog.train] == [
        ("siteA/1", "drawn/siteA/1-truth-v2.png", False),
        ("siteB/1", "drawn/siteB/1-truth-v2.png", True),
    ]
    assert [one.id for one in catalog.test] == ["n"]
    assert catalog.left_out == [
        "1 files that masks: matches, of no image, for example drawn/siteC/1-truth.png"
    ]
    assert "1 images are in val" in catalog.findings[0].detail
    say(tmp_path, "images: photos/{id}.tif\nmasks: drawn/{id}-truth*.png\nsplits: {test: siteB}\n")
    assert [one.id for one in read_catalog(tmp_path).test] == ["siteB/1"]


def test_labels_objects_and_bands(tmp_path):
    root = tmp_path / "labels"
    say(root, "images: i/{id}.png\nmasks: m/{id}_{label}.png\n")
    put(root, "i/1.png", "i/2_a.png")
    put(root, "m/1_car.png", "m/2_a_car.png", "m/2_a_man.png", image=mask())
    catalog = read_catalog(root)
    assert catalog.labels == ["car", "man"]
    assert catalog.train[1].label_masks == {"car": "m/2_a_car.png", "man": "m/2_a_man.png"}
    assert build_cache(catalog, tmp_path / "c").target.task == "multilabel"
    root = tmp_path / "objects"
    say(root, "images: i/{id}.png\nmasks: m/{id}_*.png\n")
    put(root, "i/1.png", "i/2.png", "i/3.png")
    put(root, "m/1_1.png", "m/1_2_x.png", "m/2_1.png", image=mask())
    catalog = read_catalog(root)
    assert [one.objects for one in catalog.train] == [["m/1_1.png", "m/1_2_x.png"], ["m/2_1.png"], []]
    assert catalog.findings[0].ids == ["3"]
    root = tmp_path / "bands"
    say(root, "images: '{id}/{band}.tif'\nmasks: m/{id}.png\nbands: [B3, B2]\n")
    put(root, "a/B2.tif", "a/B3.tif", "a/B4.tif")
    put(root, "m/a.png", image=mask())
    (sample,) = read_catalog(root).train
    assert (sample.image, sample.bands) == ("a/B3.tif", ["a/B3.tif", "a/B2.tif"])
    assert build_cache(read_catalog(root), tmp_path / "c2").channels == 2


def test_what_is_said_and_not_there_is_refused(tmp_path):
    put(tmp_path, "i/1.png", "i/1.jpg", "i/2.png")
    put(tmp_path, "m/1.png", "k/2_1.png", "a/1/car.png", "b/1/car.png", image=mask())
    for text, message in (
        ("images: i/{id}.png", "images without masks; say their pattern too"),
        (
            "images: x/{id}.png\nmasks: m/{id}.png",
            "'x/{id}.png' matches none of the 7 files, for example 'a/1/car.png'",
        ),
        (
            "images: i/{id}.png\nmasks: m/{id}.png",
            "masks: 'm/{id}.png' matches no file for 1 of 2 images: 2; correct",
        ),
        ("images: i/{id}.*\nmasks: m/{id}.png", r"'i/1.jpg' and 'i/1.png' both have the id '1'; narrow"),
        (
            "images: i/{id}.png\nmasks: '*/{id}/{label}.png'",
            r"'a/1/car.png' and 'b/1/car.png' are both of '1', label 'car'",
        ),
        (
            "images: i/{id}.png\nmasks: m/{id}.png\nsplits: {train: '1', val: '1'}",
            "'i/1.png' is in train and val; expected",
        ),
        (
            "images: i/{id}.png\nmasks: m/{id}.png\nsplits: {train: '1'}",
            "'i/2.png' is in none; expected one split",
        ),
        ("images: i/{id}.png\nmasks: m/{id}.png\nsplits: {train: '('}", r"'\(' is no regular expression"),
        (
            "images: '{band}/{id}.png'\nmasks: m/{id}.png\nbands: [i, k]",
            "the image '1' has no file of the band k; add",
        ),
    ):
        say(tmp_path, text)
        with pytest.raises(InputError, match=message):
            read_catalog(tmp_path)


# --- Pascal VOC -------------------------------------------------------------------------------------------


def voc_palette():
    colours = [0] * 768
    for at in range(256):
        for bit in range(8):
            for part in range(3):
                colours[3 * at + part] |= (at >> (3 * bit + part) & 1) << (7 - bit)
    return colours


def voc(root, classes=3):
    put(root, *(f"JPEGImages/{at}.jpg" for at in range(9)))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, ids in (("train", (0, 1)), ("val", (2,)), ("test", (7,))):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{one}\n" for one in ids))
    for kind in ("SegmentationClass", "SegmentationObject"):
        (root / kind).mkdir()
        for at in range(3):
            numbers = np.zeros(HW, np.uint8)
            numbers[2:9, 2:9] = 1 + at % (classes - 1)
            numbers[2] = 255
            picture = Image.fromarray(numbers, mode="P")
            picture.putpalette(voc_palette())
            picture.save(root / kind / f"{at}.png")
    return root


def test_voc(tmp_path):
    root = voc(tmp_path / "VOCdevkit" / "VOC2012")
    catalog = read_catalog(tmp_path)
    assert (catalog.layout, [one.held_out for one in catalog.train]) == ("voc", [False, False, True])
    assert [one.id for one in catalog.test] == ["7"]
    assert catalog.left_out[0].startswith("5 images without a mask: 3, 4, 5")
    assert catalog.left_out[1].startswith("3 files in SegmentationObject/")
    assert any("3 images to train on" in one.detail or "1 in val" in one.detail for one in catalog.findings)
    cache = build_cache(catalog, tmp_path.parent / f"{tmp_path.name} cache")
    assert cache.target.classes[:3] == ("background", "aeroplane", "bicycle")
    assert (len(cache.target.classes), cache.target.ignore) == (21, (255,))
    assert cache.target.palette[1] == (128, 0, 0)
    assert np.unique(cache.train_masks["1"]).tolist() == [0, 2, 255]
    (root / "class_names.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    assert read_catalog(tmp_path).asked.names == {0: "_background_", 1: "cat", 2: "dog"}
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n")
    assert read_catalog(tmp_path).asked.colours == {"background": [0, 0, 0], "cat": [128, 0, 0]}


def test_folders_that_only_look_like_voc(tmp_path):
    put(tmp_path, "SegmentationClass/a.png", image=mask())
    with pytest.raises(InputError, match="but no masks"):
        read_catalog(tmp_path)


# --- Cityscapes -------------------------------------------------------------------------------------------


def test_cityscapes(tmp_path):
    for split, city in (("train", "ulm"), ("train", "jena"), ("val", "bonn"), ("test", "kiel")):
        name = f"{city}_000000_000019"
        put(tmp_path, f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
        for kind, values in (("labelIds", (7, 24, 4)), ("color", (9, 9, 9)), ("instanceIds", (7, 24, 4))):
            numbers = np.full(HW, values[0], np.uint8)
            numbers[3:6], numbers[7:9] = values[1:]
            put(tmp_path, f"gtFine/{split}/{city}/{name}_gtFine_{kind}.png", image=numbers)
    catalog = read_catalog(tmp_path)
    assert catalog.layout == "cityscapes"
    assert [(one.id, one.group, one.held_out) for one in catalog.train] == [
        ("bonn/bonn_000000_000019_leftImg8bit", "bonn", True),
        ("jena/jena_000000_000019_leftImg8bit", "jena", False),
        ("ulm/ulm_000000_000019_leftImg8bit", "ulm", False),
    ]
    assert [one.mask for one in catalog.test] == [None]
    cache = build_cache(catalog, tmp_path / "cache")
    assert cache.target.classes[:2] == ("road", "sidewalk")
    assert len(cache.target.classes) == 19
    assert np.unique(cache.train_masks[catalog.train[0].id]).tolist() == [0, 11, 255]
    for path in [*tmp_path.rglob("*_labelIds.png")]:
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    assert read_catalog(tmp_path).asked.names[0] == "road"
