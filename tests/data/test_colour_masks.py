"""Masks in colours, with and without a table of them, on the way from a folder to the cache."""

import json
import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.colour_tables import check_colours, find_colour_table, read_colour_table
from masksmith.data.colours import count_values, look_up, look_up_nearest, pack, pack_colours, unpack
from masksmith.data.layouts import read_catalog
from masksmith.data.tree import Tree
from masksmith.submission.formats import write_masks

HW = (40, 60)
BLACK, RED, GREEN = (0, 0, 0), (200, 30, 30), (30, 200, 30)
TABLE = "name,r,g,b\nground,0,0,0\ncrop,200,30,30\nweed,30,200,30\n"


def painted(*colours, ground=BLACK, hw=HW):
    """A ground with a square of each colour; classes by place, the ground 0."""
    image, classes = np.zeros((*hw, 3), np.uint8), np.zeros(hw, np.uint8)
    image[:] = ground
    for at, colour in enumerate(colours):
        place = (slice(10, 24), slice(4 + 18 * at, 18 + 18 * at))
        image[place], classes[place] = colour, at + 1
    return image, classes


def folder(root, masks, *, table="", suffix=".png", name="class_dict.csv", **options):
    """A data set with a noise image for each mask, written by Pillow."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for at, mask in enumerate(masks):
        noise = np.random.default_rng(at).integers(0, 255, (*HW, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "images" / f"{at}.png"), noise)
        picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        picture.save(root / "labels" / f"{at}{suffix}", **options)
    if table:
        (root / name).write_text(table)
    return root


def read(data, **asked):
    return build_cache(read_catalog(data, **asked), data.parent / f"cache {data.name} {asked}")


def said(cache, title):
    return next(one.detail for one in cache.mask_findings if one.title == title)


def test_with_a_table(tmp_path):
    image, classes = painted(RED, GREEN)
    alpha = np.dstack([image, np.full(HW, 255, np.uint8)])
    cache = read(
        folder(tmp_path / "data", [image, image[:, ::-1], alpha, np.zeros(HW, np.uint8)], table=TABLE)
    )
    target = cache.target
    assert (target.task, target.classes) == ("multiclass", ("ground", "crop", "weed"))
    assert (target.values, target.palette) == ((0, 1, 2), (BLACK, RED, GREEN))
    for name, truth in (("0", classes), ("1", classes[:, ::-1]), ("2", classes), ("3", 0 * classes)):
        np.testing.assert_array_equal(cache.train_masks[name][..., 0], truth)
    masks = tmp_path / "out"
    masks.mkdir()
    list(write_masks(masks, [("a", classes)], target, where=masks))
    np.testing.assert_array_equal(np.asarray(Image.open(masks / "a.png").convert("RGB")), image)


def test_a_class_that_never_occurs_keeps_its_number_and_one_is_not_judged(tmp_path):
    image, classes = painted(GREEN, (255, 255, 255))
    data = folder(tmp_path / "data", [image] * 2, table=TABLE + "void,255,255,255\n")
    cache = read(data, ignore=[3])
    assert cache.target.classes == ("ground", "crop", "weed")
    assert np.unique(cache.train_masks["0"]).tolist() == [0, 2, 255]
    assert (cache.train_masks["0"][..., 0] == 255).sum() == (classes == 2).sum()
    assert said(cache, "classes that never occur").startswith(
        "1 of 4 classes occur in no mask: crop; they keep"
    )
    assert said(cache, "masks with pixels not judged").startswith("void is not judged (8.17% of all pixels)")


def test_a_colour_of_no_class_is_refused_with_its_files(tmp_path):
    image, _ = painted(RED, (1, 2, 3))
    good, _ = painted(RED)
    data = folder(tmp_path / "data", [good, image, image], table=TABLE)
    with pytest.raises(
        InputError, match=r"no class has: #010203 \[1, 2, 3\] \(392 pixels\), in 2 of 3"
    ) as caught:
        read(data)
    assert "labels/1.png, labels/2.png" in str(caught.value)


def test_two_classes_of_a_table_are_a_foreground(tmp_path):
    image, classes = painted((255, 255, 255))
    data = folder(tmp_path / "data", [image] * 2, table="name,r,g,b\nroad,255,255,255\nother,0,0,0\n")
    cache = read(data)
    assert (cache.target.task, cache.target.classes) == ("binary", ("road",))
    np.testing.assert_array_equal(cache.train_masks["0"][..., 0], classes)
    assert read(data, task="multiclass").target.classes == ("road", "other")


def test_colours_in_a_description(tmp_path):
    image, classes = painted(RED, GREEN)
    data = folder(tmp_path / "data", [image] * 2)
    (data / "dataset.yaml").write_text("colours: {a: [0, 0, 0], b: [30, 200, 30], c: [200, 30, 30]}\n")
    cache = read(data)
    assert cache.target.classes == ("a", "b", "c")
    np.testing.assert_array_equal(cache.train_masks["0"][..., 0], np.array([0, 2, 1])[classes])
    (data / "dataset.yaml").write_text("colours: {a: [0, 0, 0], b: [30, 300, 30]}\n")
    with pytest.raises(
        InputError, match=r"the colour \[30, 300, 30\] of 'b'; expected red, green and blue from 0"
    ):
        read(data)


def test_palettes_and_numbers_beside_a_table(tmp_path):
    _, classes = painted(RED, GREEN)
    picture = Image.fromarray(classes, mode="P")
    picture.putpalette([*BLACK, *GREEN, *RED] + [0] * 759)
    cache = read(folder(tmp_path / "palette", [picture] * 2, table=TABLE))
    np.testing.assert_array_equal(cache.train_masks["0"][..., 0], np.array([0, 2, 1])[classes])
    cache = read(folder(tmp_path / "numbers", [classes] * 2, table=TABLE))
    assert cache.target.classes == ("ground", "crop", "weed")
    np.testing.assert_array_equal(cache.train_masks["0"][..., 0], classes)


def test_without_a_table_each_colour_is_a_class(tmp_path):
    white = (255, 255, 255)
    image, classes = painted(GREEN, BLACK, ground=white)
    cache = read(folder(tmp_path / "data", [image] * 2))
    assert cache.target.classes == ("#ffffff", "#000000", "#1ec81e")
    np.testing.assert_array_equal(cache.train_masks["0"][..., 0], np.array([0, 2, 1])[classes])
    assert '"#1ec81e": [30, 200, 30]}' in said(cache, "masks in colours")
    two, classes = painted(RED)
    cache = read(folder(tmp_path / "two", [two] * 2))
    assert cache.target.task == "binary"
    np.testing.assert_array_equal(cache.train_masks["0"][..., 0], classes)


def test_no_classes_without_a_table(tmp_path):
    image, _ = painted(RED, GREEN)
    noise = np.random.default_rng(0).integers(0, 255, (*HW, 3), dtype=np.uint8)
    smooth = cv2.circle(np.zeros((*HW, 3), np.uint8), (30, 20), 9, RED, -1, cv2.LINE_AA)
    for name, masks, options, message in (
        (
            "jpeg",
            [image],
            {"suffix": ".jpg"},
            "1 masks in colours are JPEG, which makes new colours: labels/0.jpg",
        ),
        (
            "many",
            [image, noise],
            {},
            r"expected at most 255, one for each class; 1 masks hold more each: labels/1.png",
        ),
        (
            "smooth",
            [painted(RED)[0], smooth],
            {},
            r"no equal neighbour: smoothed edges, not classes, in labels/1.png",
        ),
        ("one", [np.full((*HW, 3), RED, np.uint8)], {}, "one colour only"),
    ):
        with pytest.raises(InputError, match=message):
            read(folder(tmp_path / name, masks, **options))
    with pytest.raises(
        InputError, match=r"--task binary, but there are 3 colours \(#000000, #1ec81e, #c81e1e\)"
    ):
        read(folder(tmp_path / "binary", [image]), task="binary")
    deep = np.dstack([painted(RED)[0][..., 0].astype(np.uint16) * 3, np.zeros((*HW, 2), np.uint16)])
    data = folder(tmp_path / "deep", [image])
    cv2.imwrite(str(data / "labels" / "0.png"), deep)
    with pytest.raises(
        InputError, match=r"labels/0.png: a mask of 3 bands of uint16; expected one channel, or colours"
    ):
        read(data)


def test_jpeg_with_a_table_has_the_nearest_colour(tmp_path):
    image, classes = painted(RED, GREEN)
    cache = read(folder(tmp_path / "data", [image] * 2, table=TABLE, suffix=".jpg", quality=75))
    assert (cache.train_masks["0"][..., 0] != classes).mean() < 0.03
    assert re.match(
        r"2 masks in colours are JPEG: lossy, each pixel has the class of the nearest",
        said(cache, "lossy masks"),
    )
    other = folder(
        tmp_path / "other",
        [painted((0, 255, 255), (255, 0, 255), ground=(255, 255, 255))[0]],
        table=TABLE,
        suffix=".jpg",
    )
    with pytest.raises(
        InputError, match=r"labels/0.jpg: a JPEG mask, \d+% of whose pixels are like no colour of the"
    ):
        read(other)


def test_objects_in_colours(tmp_path):
    image, classes = painted(RED, GREEN)
    cache = read(folder(tmp_path / "data", [image] * 2), task="instances")
    labels = cache.train_masks["0"][..., 0]
    assert len(np.unique(labels)) == 3
    np.testing.assert_array_equal(labels > 0, classes > 0)


def test_what_is_transparent_is_background(tmp_path):
    _, classes = painted(RED)
    drawn = np.full((*HW, 4), 255, np.uint8)
    drawn[..., 3] = classes * 255  # white in alpha alone
    black = np.zeros((*HW, 4), np.uint8)
    black[..., 3] = classes * 255
    grey = np.dstack([np.full(HW, 255, np.uint8), classes * 255])
    picture = Image.fromarray(grey, mode="LA")
    cache = read(folder(tmp_path / "data", [drawn, black, picture]))
    for name in "012":
        np.testing.assert_array_equal(cache.train_masks[name][..., 0], classes)


def test_labels_in_colours(tmp_path):
    for name, colour in (("car", RED), ("man", GREEN)):
        image, classes = painted(colour)
        data = folder(tmp_path / name, [image])
        (tmp_path / "data" / "masks" / name).mkdir(parents=True)
        (data / "labels" / "0.png").rename(tmp_path / "data" / "masks" / name / "0.png")
    (data / "images").rename(tmp_path / "data" / "images")
    cache = read(tmp_path / "data")
    assert cache.target.classes == ("car", "man")
    for at in (0, 1):
        np.testing.assert_array_equal(cache.train_masks["0"][..., at], classes)


# --- tables -----------------------------------------------------------------------------------------------

FOUND = {"sky": [1, 2, 3], "big tree": [255, 0, 10]}


def test_forms_of_tables(tmp_path):
    cases = {
        "class_dict.csv": "name,r,g,b\nsky,1,2,3\nbig tree,255,0,10\n",
        "colors.csv": "Red,Green,Blue,Label\n1,2,3,sky\n255,0,10,big tree\n",
        "classes.csv": 'id,class,color\n0,sky,"(1, 2, 3)"\n1,big tree,#ff000a\n',
        "labelmap.txt": "# label:color_rgb:parts:actions\nsky:1,2,3::\nbig tree:255,0,10::\n",
        "label_colors.txt": "1 2 3\tsky\n255 0 10\tbig tree\n",
        "classes.txt": "sky 1 2 3\nbig tree 255 0 10\n",
        "classes.json": json.dumps(FOUND),
        "palette.json": json.dumps({"classes": [{"name": one, "color": rgb} for one, rgb in FOUND.items()]}),
        "legend.json": json.dumps({"sky": "#010203", "big tree": "ff000a"}),
    }
    for name, text in cases.items():
        assert read_colour_table(text.encode(), where=name) == FOUND, name
        (tmp_path / name).write_text(text)
        assert find_colour_table(Tree(tmp_path)) == (FOUND, name)
        (tmp_path / name).unlink()
    for name, text in (
        ("classes.txt", "sky\ntree\n"),
        ("classes.json", "[1, 2"),
        ("classes.json", '{"sky": [1, 2]}'),
        ("classes.json", '[{"name": "sky"}]'),
        ("class.csv", "r,g,b\n1,2,3\n"),
        ("class.csv", "name,r,g,b\nsky,x,2,3\n"),
        ("class.csv", "name,color\nsky,blue\n"),
        ("class.csv", "name,r,g,b\nsky,1\n"),
        ("class.csv", "name,weight\nsky,1\n"),
    ):
        assert read_colour_table(text.encode(), where=name) == {}, text


def test_tables_that_cannot_be():
    for colours, message in (
        ({"a": [0, 0, 256]}, "expected red, green and blue from 0 to 255"),
        ({"a": [0, 0]}, "expected red, green and blue"),
        ({"a": [1, 2, 3], "b": [1, 2, 3]}, "'a' and 'b' both have the colour"),
        ({str(at): [at % 250, at // 250, 0] for at in range(256)}, "256 classes; at most 255"),
    ):
        with pytest.raises(InputError, match=message):
            check_colours(colours, where="classes.csv")


@given(st.binary(max_size=200), st.sampled_from(["class.csv", "class.txt", "class.json"]))
def test_any_bytes_are_a_table_or_none(raw, name):
    assert isinstance(read_colour_table(raw, where=name), dict)


@given(st.data(), st.sampled_from([TABLE, json.dumps(FOUND), "sky:1,2,3::\ntree:3,4,5::\n"]))
def test_mutated_tables(data, text):
    raw = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    for name in ("class.csv", "class.txt", "class.json"):
        assert isinstance(read_colour_table(bytes(raw), where=name), dict)


# --- numbers ----------------------------------------------------------------------------------------------


def test_colours_as_numbers():
    image = np.random.default_rng(0).integers(0, 4, (9, 7, 3), dtype=np.uint8)
    packed = pack_colours(image)
    for y, x in np.ndindex(9, 7):
        assert unpack(int(packed[y, x])) == tuple(image[y, x].tolist())
        assert pack(image[y, x].tolist()) == packed[y, x]
    values, counts = np.unique(packed, return_counts=True)
    assert count_values(packed.reshape(-1)) == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert count_values(np.zeros(0, np.int32)) == {}
    meaning = {colour: at for at, colour in enumerate(values.tolist()[:5])}
    found = look_up(packed, meaning)
    nearest = look_up_nearest(packed, meaning)
    for y, x in np.ndindex(9, 7):
        assert found[y, x] == meaning.get(int(packed[y, x]), 255)
        apart = [
            sum((a - b) ** 2 for a, b in zip(unpack(int(packed[y, x])), unpack(one), strict=True))
            for one in meaning
        ]
        assert apart[nearest[y, x]] == min(apart)
