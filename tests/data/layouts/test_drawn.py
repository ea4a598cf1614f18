"""What all layouts of drawn annotations share, and damaged files of each."""

import base64
import json
import os
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.documents import parse_json, parse_xml
from masksmith.data.image_finder import ImageFinder, split_of, split_of_folders
from masksmith.data.instances import coco_text
from masksmith.data.layouts import DRAWN, LAYOUTS, read_catalog
from masksmith.data.shapes import check_drawings, draw_classes, draw_layers, draw_objects
from masksmith.data.tree import Tree
from tests.data.layouts.drawn_sets import HW, box, brush_code, pictures, points, said, write_json

EXAMPLES = int(os.environ.get("MASKSMITH_FUZZ", "250"))
SQUARE = [[1, 1], [9, 1], [9, 9], [1, 9]]
COCO = {
    "images": [{"id": 0, "file_name": "a.png", "height": HW[0], "width": HW[1]}],
    "annotations": [
        {"id": 0, "image_id": 0, "category_id": 0, "iscrowd": 0, "segmentation": [box(1, 1, 9, 9)]}
    ],
    "categories": [{"id": 0, "name": "cat"}],
}
RUNS = COCO | {
    "annotations": [
        COCO["annotations"][0]
        | {"segmentation": {"size": list(HW), "counts": coco_text(np.array([[43, 100]]), num_pixels=2400)}}
    ]
}
LABELME = {
    "shapes": [{"label": "a", "points": SQUARE, "group_id": 1}],
    "imagePath": "a.png",
    "imageHeight": HW[0],
}
STUDIO = [
    {
        "data": {"image": "a.png"},
        "annotations": [
            {
                "result": [
                    {"type": "polygonlabels", "value": {"points": SQUARE, "polygonlabels": ["a"]}},
                    {
                        "type": "brushlabels",
                        "original_width": 1,
                        "original_height": 1,
                        "value": {"rle": brush_code(np.ones((1, 1))), "brushlabels": ["a"]},
                    },
                ]
            }
        ],
    }
]
VIA = {
    "a": {
        "filename": "a.png",
        "regions": [
            {
                "shape_attributes": {"name": "polygon", "all_points_x": [1, 9, 9], "all_points_y": [1, 1, 9]},
                "region_attributes": {"type": "x"},
            }
        ],
    }
}
CVAT = (
    '<annotations><image name="a.png" width="60" height="40"><polygon label="a" points="1,1;9,1;9,9" z_order="0"/>'
    '<mask label="a" rle="1, 3" left="0" top="0" width="2" height="2" group_id="2"/></image></annotations>'
)
PACKED = base64.b64encode(zlib.compress(cv2.imencode(".png", np.full((2, 3), 255, np.uint8))[1])).decode()
SUPERVISELY = {
    "size": {"height": HW[0], "width": HW[1]},
    "tags": [{"name": "val"}],
    "objects": [
        {"classTitle": "a", "geometryType": "polygon", "points": {"exterior": SQUARE, "interior": [SQUARE]}},
        {"classTitle": "b", "bitmap": {"data": PACKED, "origin": [3, 4]}},
    ],
}
FILES = {
    "a.png.json": json.dumps(SUPERVISELY),
    "coco.json": json.dumps(COCO),
    "runs.json": json.dumps(RUNS),
    "labelme.json": json.dumps(LABELME),
    "studio.json": json.dumps(STUDIO),
    "via.json": json.dumps(VIA),
    "cvat.xml": CVAT,
    "a.txt": "0 0.1 0.1 0.9 0.1 0.9 0.9\n",
    "data.yaml": "train: .\nval: .\nnames: [a, b]\n",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name in FILES:
        found[name] = tmp_path_factory.mktemp("fuzz")
        pictures(found[name], "a.png")
    (found["data.yaml"] / "a.txt").write_text(FILES["a.txt"])
    return found


def read_and_draw(layout, root):
    with suppress(InputError):
        catalog = LAYOUTS[layout](Tree(root), NOTHING_SAID)
        if catalog is not None:
            check_drawings(catalog.train, {one.image: HW for one in catalog.train})
            for one in catalog.train:
                draw_objects(one.shapes, HW)
                draw_classes(one.shapes, dict.fromkeys(catalog.classes, 1), HW)
                draw_layers(one.shapes, catalog.classes, HW)
            assert Catalog.from_json(json.loads(json.dumps(catalog.to_json()))) == catalog


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused(folders, data):
    name = data.draw(st.sampled_from(sorted(FILES)))
    raw = bytearray(FILES[name].encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["byte", "cut", "insert", "copy"]))
        if kind == "byte":
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del raw[at : at + data.draw(st.integers(1, 30))]
            raw = raw or bytearray(b" ")
        elif kind == "insert":
            given = st.sampled_from(
                [b"null", b"-1", b"1e999", b"[", b"{}", b'"', b"NaN", b"9" * 30, b"true", b"0."]
            )
            raw[at:at] = data.draw(given)
        else:
            raw[at:at] = raw[max(0, at - 20) : at]
    (folders[name] / name).write_bytes(bytes(raw))
    for layout in DRAWN:
        read_and_draw(layout, folders[name])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_values_of_other_types_are_read_or_refused(folders, data):
    name = data.draw(st.sampled_from([one for one in sorted(FILES) if one.endswith(".json")]))
    value = json.loads(FILES[name])
    place = value
    while True:  # walk to somewhere inside, and change it
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 5)):
            place = place[key]
        else:
            place[key] = data.draw(VALUES)
            break
    write_json(folders[name] / name, value)
    for layout in DRAWN:
        read_and_draw(layout, folders[name])


def test_every_file_of_the_fuzz_is_read_as_it_is(folders):
    for name, text in FILES.items():
        (folders[name] / name).write_text(text)
        assert read_catalog(folders[name]).layout in DRAWN


def test_masks_that_were_named_are_asked_for(folders):
    said_masks = Description(images="i/{id}.png", masks="m/{id}.png")
    tree = Tree(folders["coco.json"])
    for layout in DRAWN:
        assert LAYOUTS[layout](tree, said_masks) is None


def test_json_and_xml_that_break_are_refused_with_their_place():
    with pytest.raises(InputError, match="x: no valid JSON in line 2, column 1"):
        parse_json(b'{"a":\n}', where="x")
    with pytest.raises(InputError, match="x: JSON that cannot be read"):
        parse_json(b"[" * 100_000, where="x")
    with pytest.raises(InputError, match="x: JSON that cannot be read"):
        parse_json(b"9" * 10_000, where="x")
    with pytest.raises(InputError, match=r"x: no valid text \(byte 1\)"):
        parse_json(b'"\xff"', where="x")
    with pytest.raises(InputError, match=r"x: no valid XML .*line 1, column 3"):
        parse_xml(b"<a>", where="x")


def test_words_of_splits():
    for name, split in {
        "instances_train2017": "train",
        "valid": "val",
        "myTestSet": "test",
        "train_val": None,
        "contest": None,
        "latest": None,
    }.items():
        assert split_of(name) == split
    assert split_of_folders("train/x/val_1.png") == "train"
    assert split_of_folders("val_1.png") is None


def test_images_are_found_by_what_others_call_them(tmp_path):
    pictures(
        tmp_path, "s1/images/a.png", "s2/images/a.png", "train/b.png", "val/b.png", "c.v1.png", "masks/a.png"
    )
    finder = ImageFinder(Tree(tmp_path))
    assert finder.find("a.png", near="s1/labels/x.json") == ["s1/images/a.png"]
    assert finder.find("s2\\images\\a.jpg", near="x.json") == ["s2/images/a.png"]
    assert finder.find("b.png", near="x.json", split="val") == ["val/b.png"]
    assert finder.find("b.png", near="x.json") == ["train/b.png", "val/b.png"]
    assert finder.find("c.v1", near="x.json") == ["c.v1.png"]
    assert finder.find("../val/b.png", near="train/x.json") == ["val/b.png"]
    for name in ("", "/", "..", "d.png"):
        assert finder.find(name, near="x.json") == []
    assert "masks/a.png" not in finder.plain()


def test_only_a_split_that_is_held_out_is_trained_on(tmp_path):
    pictures(tmp_path, "val/a.png", "val/b.png")
    for name in "ab":
        write_json(
            tmp_path / f"val/{name}.json",
            {"shapes": [{"label": "x", "points": points(1, 1, 9, 9)}], "imagePath": f"{name}.png"},
        )
    catalog = read_catalog(tmp_path)
    assert [one.held_out for one in catalog.train] == [False, False]
    assert "all images with annotations are of the split 'val'" in said(catalog)


def test_two_files_of_one_id_are_refused(tmp_path):
    pictures(tmp_path, "a.png", "a.jpg")
    for at, name in enumerate(("a.png", "a.jpg")):
        shape = {"label": "x", "points": points(1, 1, 9, 9)}
        write_json(tmp_path / f"{at}.json", {"shapes": [shape], "imagePath": name})
    with pytest.raises(InputError, match="both have the id 'a'"):
        read_catalog(tmp_path)
