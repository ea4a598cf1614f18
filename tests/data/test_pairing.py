"""Images and masks paired by their names alone, whatever folders and files are called."""

import unicodedata
from itertools import product

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.layouts import read_catalog
from masksmith.data.layouts.file_names import file_of, find_affixes, mask_rank
from masksmith.data.layouts.pairing import pair


def paired(paths, *, bands=lambda _file: 1):
    return pair(
        [file_of(path) for path in paths],
        are_masks=lambda images, masks: (
            "drawn" in masks[0].path or masks[0].ending == ".png" != images[0].ending
        ),
        bands_of=bands,
    )


def files(*patterns, ids=range(1, 12), **more):
    """Paths of patterns with ``{}`` for each id, and of fields for each of their values."""
    fields = [dict(zip(more, values, strict=True)) for values in product(*more.values())]
    return [pattern.format(one, **own) for pattern in patterns for one in ids for own in fields]


PAIRS = {
    "a suffix": (files("imgs/{}.jpg", "masks/{}_mask.png"), "1", "imgs/1.jpg", "masks/1_mask.png"),
    "with a dash": (files("imgs/{}.jpg", "masks/{}-mask.png"), "1", "imgs/1.jpg", "masks/1-mask.png"),
    "a second ending": (files("imgs/{}.jpg", "masks/{}.mask.png"), "1", "imgs/1.jpg", "masks/1.mask.png"),
    "a prefix": (files("images/{}.png", "gt/mask_{}.png"), "1", "images/1.png", "gt/mask_1.png"),
    "both": (files("d/img_{}.jpg", "d/label_{}.png"), "img_1", "d/img_1.jpg", "d/label_1.png"),
    "sides": (files("x/{}.tif", "y/{}.tif"), "1", "x/1.tif", "y/1.tif"),
    "capitals": (files("Images/T{}.TIF", "Masks/T{}.PNG"), "T1", "Images/T1.TIF", "Masks/T1.PNG"),
    "side by side": (files("s_{}.png", "s_{}_mask.png"), "s_1", "s_1.png", "s_1_mask.png"),
    "two affixes": (files("t/{}_sat.jpg", "t/{}_mask.png"), "1_sat", "t/1_sat.jpg", "t/1_mask.png"),
    "endings": (files("a/{}.jpg", "a/{}.png"), "1", "a/1.jpg", "a/1.png"),
    "unknown words": (files("foo/{}.jpg", "drawn/{}.png"), "1", "foo/1.jpg", "drawn/1.png"),
    "inside": (files("im/{}.jpg", "im/masks/{}.png"), "1", "im/1.jpg", "im/masks/1.png"),
    "sites": (
        files("{kind}/{site}/{}.png", kind=["images", "labels"], site="AB"),
        "A/1",
        "images/A/1.png",
        "labels/A/1.png",
    ),
    "sites first": (
        files("{site}/{kind}/{}.png", kind=["images", "labels"], site="AB"),
        "B/1",
        "B/images/1.png",
        "B/labels/1.png",
    ),
    "Carvana": (
        files("train/{}.jpg", "train_masks/{}_mask.gif", ids=["a_01", "a_02"]),
        "a_01",
        "train/a_01.jpg",
        "train_masks/a_01_mask.gif",
    ),
    "ISIC": (
        files("Task1_Training_Input/I_{}.jpg", "Task1_Training_GroundTruth/I_{}_segmentation.png"),
        "I_1",
        "Task1_Training_Input/I_1.jpg",
        "Task1_Training_GroundTruth/I_1_segmentation.png",
    ),
    "DRIVE": (
        files("training/images/{}_training.tif", "training/mask/{}_training_mask.gif", ids=range(21, 30))
        + files("training/1st_manual/{}_manual1.gif", ids=range(21, 30))
        + files("test/images/0{}_test.tif", "test/mask/0{}_test_mask.gif"),
        "21_training",
        "training/images/21_training.tif",
        "training/1st_manual/21_manual1.gif",
    ),
    "CHASE": (
        files("{}.jpg", "{}_1stHO.png", "{}_2ndHO.png", ids=["Image_01L", "Image_01R"]),
        "Image_01L",
        "Image_01L.jpg",
        "Image_01L_1stHO.png",
    ),
    "BUSI": (
        [
            *files("B/{kind}/{kind} ({}).png", "B/{kind}/{kind} ({})_mask.png", kind=["benign", "normal"]),
            "B/benign/benign (2)_mask_1.png",
        ],
        "benign/benign (1)",
        "B/benign/benign (1).png",
        "B/benign/benign (1)_mask.png",
    ),
    "a folder each": (files("{}/image.png", "{}/mask.png"), "1", "1/image.png", "1/mask.png"),
    "folders in a folder each": (
        files("{}/images/i.png", "{}/masks/m.png"),
        "1",
        "1/images/i.png",
        "1/masks/m.png",
    ),
}


@pytest.mark.parametrize("form", PAIRS)
def test_forms(form):
    paths, name, image, mask = PAIRS[form]
    found = paired(paths)
    assert (found.images[name].path, found.masks[name].path) == (image, mask)
    unpaired = {name for name, file in found.images.items() if file.split != "test"} - found.masks.keys()
    assert not unpaired
    assert len({file.path for file in found.masks.values()}) == len(found.masks)


def test_one_never_takes_the_mask_of_ten():
    found = paired([*files("i/{}.png", ids=(1, 10, 100)), *files("masks/{}.png", ids=(10, 100))])
    assert {name: file.path for name, file in found.masks.items()} == {
        "10": "masks/10.png",
        "100": "masks/100.png",
    }
    places = {("", ()): ["1", "2"]}
    assert find_affixes(places, {("", ()): ["10", "20", "1a", "x1"]}, same=False)[1] == 0


def test_both_forms_of_unicode_are_one_name():
    decomposed = unicodedata.normalize("NFD", "é")
    assert paired([f"images/{decomposed}.png", "masks/é.png"]).masks.keys() == {"é"}


def test_splits_in_either_order():
    kinds = {"kind": ["images", "masks"], "split": ["training", "Val"]}
    for pattern in (
        "{split}/{kind}/{split}{}.png",
        "{kind}/{split}/{split}{}.png",
        "{split}_{kind}/{split}{}.png",
    ):
        found = paired([*files(pattern, **kinds), *files(pattern, kind=["images"], split=["test"])])
        assert {file.split for file in found.images.values()} == {"train", "val", "test"}
        assert len(found.masks) == 22
        assert {"training1", "Val1", "test1"} <= found.images.keys()
    found = paired(files("{split}/{kind}/{}.png", **kinds))
    assert {"train/1", "val/1"} <= found.images.keys()  # an id of two splits


def test_the_image_folder_of_the_most_bands_is_taken():
    paths = files("S1/{}_S1Hand.tif", "S2/{}_S2Hand.tif", "Labels/{}_LabelHand.tif", ids=["Spain_7"])
    for first, other in (("S1", "S2"), ("S2", "S1")):
        found = paired(paths, bands=lambda file, first=first: 13 if first in file.path else 2)
        assert found.images.keys() == {f"Spain_7_{first}Hand"}
        line = f'images: "{other}/{{id}}_{other}Hand.tif"'
        assert found.others == [f"{other}/ holds 1 images of the same names ({line})"]


def test_labels():
    found = paired(files("images/{}.png", "masks/car/{}.png", "masks/man/{}_M.png"))
    assert {label: own["1"] for label, own in found.labels.items()} == {
        "car": "masks/car/1.png",
        "man": "masks/man/1_M.png",
    }
    found = paired(files("images/{}.png", "masks/car/{}.png"))
    assert (found.labels, found.masks["1"].path) == ({}, "masks/car/1.png")


def test_what_is_no_pair():
    assert paired(files("images/{}.png")) is None
    assert paired(files("cats/{}.jpg", "dogs/{}.jpg")) is None
    assert paired([]) is None


def test_words():
    names = ("masks", "SegmentationClass", "Ground Truth", "1st_manual", "y", "labelIds", "leftMask", "GT")
    assert all(mask_rank(name) is not None for name in names)
    assert all(mask_rank(name) is None for name in ("images", "photos", "x", "sat", "trainee"))
    assert mask_rank("labels") < mask_rank("labels_color")
    for folder, split, rest in (
        ("train_images", "train", "_images"),
        ("trainannot", "train", "annot"),
        ("Training Set", "train", ""),
        ("imagesVal", "val", "images"),
        ("trainee", "", "trainee"),
        ("contest", "", "contest"),
    ):
        found = file_of(f"{folder}/a.png")
        assert (found.split, "".join(found.folders)) == (split, rest)


@given(st.lists(st.text("ab1_/. ", min_size=1, max_size=9), max_size=12))
def test_any_names(names):
    paths = {str(name).strip("/") for name in names}
    found = paired(
        [path + ".png" for path in sorted(paths) if all(part.strip(". ") for part in path.split("/"))]
    )
    if found is not None:
        assert {*found.masks} <= {*found.images}


# --- on disk ----------------------------------------------------------------------------------------------


def png(path, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, str(path)))
    cv2.imwrite(
        str(path),
        np.random.default_rng(seed).integers(0, 255, (12, 10), np.uint8) if image is None else image,
    )


def mask():
    return np.eye(12, 10, dtype=np.uint8) * 255


def test_splits_are_said(tmp_path):
    for split, name in product(("train", "val"), "ab"):
        png(tmp_path / split / "images" / f"{split}{name}.png")
        png(tmp_path / split / "masks" / f"{split}{name}.png", mask())
    png(tmp_path / "test" / "images" / "t.png")
    catalog = read_catalog(tmp_path)
    assert [one.id for one in catalog.train if one.held_out] == ["vala", "valb"]
    assert [one.id for one in catalog.test] == ["t"]
    assert catalog.findings[0].detail.startswith("2 images to train on, 2 in val, which")
    png(tmp_path / "test" / "masks" / "t.png", mask())
    (said,) = (one for one in read_catalog(tmp_path).findings if one.title == "masks of test images")
    assert said.ids == ["t"]
    for path in (tmp_path / "val" / "masks").iterdir():
        path.unlink()
    catalog = read_catalog(tmp_path)
    assert [one.id for one in catalog.test] == ["t", "vala", "valb"]
    assert any(one.title == "a split without masks" for one in catalog.findings)


def test_a_set_of_tests_alone_is_learnt_from(tmp_path):
    png(tmp_path / "test" / "images" / "a.png")
    png(tmp_path / "test" / "masks" / "a.png", mask())
    catalog = read_catalog(tmp_path)
    assert ([one.id for one in catalog.train], catalog.test) == (["a"], [])


def test_masks_are_known_by_their_pixels(tmp_path):
    for name in "abc":
        png(tmp_path / "foo" / f"{name}.png")
        png(tmp_path / "bar" / f"{name}.png", mask())
    assert read_catalog(tmp_path).train[0].mask == "bar/a.png"
    for name in "abc":
        png(tmp_path / "bar" / f"{name}.png")
    with pytest.raises(InputError, match=r"6 images .* but no masks"):
        read_catalog(tmp_path)


def test_masks_beside_images_by_their_ending(tmp_path):
    for name in "abc":
        png(tmp_path / f"{name}.bmp")
        png(tmp_path / f"{name}.png", mask())
    sample = read_catalog(tmp_path).train[0]
    assert (sample.id, sample.image, sample.mask) == ("a", "a.bmp", "a.png")


def test_refused(tmp_path):
    for name in "abc":
        png(tmp_path / "images" / f"{name}.png")
        png(tmp_path / "masks" / f"{name}_mask.png", mask())
    png(tmp_path / "images" / "d.png")
    with pytest.raises(
        InputError, match=r"no mask for the image 'd' of images/ \(paired: .*ID with ID_mask\); add"
    ):
        read_catalog(tmp_path)
    (tmp_path / "images" / "d.png").rename(tmp_path / "images" / "c.bmp")
    with pytest.raises(InputError, match=r"'images/c.bmp' and 'images/c.png' both have the id 'c'; keep one"):
        read_catalog(tmp_path)
    (tmp_path / "images" / "c.bmp").unlink()
    png(tmp_path / "other" / "images" / "z.png")  # no mask lies in any folder beside it
    catalog = read_catalog(tmp_path)
    assert (len(catalog.train), [one.title for one in catalog.findings]) == (3, ["folders without masks"])


@pytest.mark.real
def test_real_sets_are_read_whole(shared, tmp_path):
    for name, train, held, classes in (
        ("camvid", 118, 26, 11),
        ("water", 100, 0, 1),
        ("sen1floods11-sample", 1, 0, 1),
    ):
        catalog = read_catalog(shared / "data" / name)
        assert (len(catalog.train), sum(one.held_out for one in catalog.train)) == (train, held)
        cache = build_cache(catalog, tmp_path / name)
        assert len(cache.target.classes) == classes
    assert cache.channels == 13  # Sentinel-2 rather than Sentinel-1
