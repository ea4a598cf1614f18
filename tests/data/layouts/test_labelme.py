import base64

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.layouts import read_catalog
from tests.data.layouts.drawn_sets import HW, picture, points, said, write_json


def shape(label, outline, kind="polygon", **more):
    return {"label": label, "points": outline, "shape_type": kind, "group_id": None} | more


def labelme_file(root, name, *shapes, draw=True, **more):
    if draw:
        picture(root / f"{name}.jpg", seed=len(name))
    value = {"version": "5.4.1", "shapes": list(shapes), "imagePath": f"{name}.jpg", "imageData": None}
    return write_json(root / f"{name}.json", value | {"imageHeight": HW[0], "imageWidth": HW[1]} | more)


def test_holes_are_drawn_in_their_order(tmp_path):
    for name in "ab":
        labelme_file(
            tmp_path,
            name,
            shape("lake", points(10, 5, 50, 35)),
            shape("_background_", points(25, 15, 35, 25)),
            shape("__ignore__", points(0, 0, 5, 5)),
        )
    data = ms.read(tmp_path)
    assert data.task == "binary"
    assert data.train[0].target[[20, 15, 0, 2], [30, 10, 20, 2]].tolist() == [0, 1, 0, 255]
    assert "--task instances" in "\n".join(one.detail for one in data.findings)
    assert ms.read(tmp_path, task="instances").train[0].target[[20, 15, 2], [30, 10, 2]].tolist() == [
        0,
        1,
        -1,
    ]


def test_all_kinds_of_shapes(tmp_path):
    mask = np.zeros((5, 6), np.uint8)
    mask[1:4, 1:5] = 255
    text = base64.b64encode(cv2.imencode(".png", mask)[1].tobytes()).decode()
    labelme_file(
        tmp_path,
        "a",
        shape("a", [[2, 2], [8, 6]], "rectangle"),
        shape("b", [[30, 20], [30, 25]], "circle"),
        shape("b", [[50, 10], [55, 14]], "mask", mask=text),
        shape("a", [[0, 0], [9, 9]], "line"),
        shape("a", [[0, 0]], "point"),
        shape("a", [[0, 0], [1, 1]]),
        shape("c", points(10, 30, 12, 32), group_id=4),
        shape("c", points(20, 30, 22, 32), None, group_id=4),
    )
    labelme_file(tmp_path, "bb", shape("a", points(0, 0, 5, 5)))
    data = ms.read(tmp_path)
    assert (data.task, data.classes) == ("multiclass", ("background", "a", "b", "c"))
    target = data.train[0].target
    assert target[[3, 20, 12, 10, 31], [3, 34, 52, 50, 21]].tolist() == [1, 2, 2, 0, 3]
    assert (target == 2).sum() == 12 + np.count_nonzero(target[:, 20:40] == 2)
    text = said(read_catalog(tmp_path))
    assert "1 line, 1 point: only what has an area" in text
    assert "1 have fewer than 3 points" in text
    objects = ms.read(tmp_path, task="instances").train[0].target
    assert objects[31, 11] == objects[31, 21] > 0


def test_the_image_is_found_or_lies_in_the_file(tmp_path):
    picture(tmp_path / "pics/a.png")
    labelme_file(tmp_path, "a", shape("x", points(1, 1, 9, 9)), draw=False, imagePath="..\\pics\\a.jpg")
    picture(tmp_path / "b.png")
    labelme_file(tmp_path, "b", shape("x", points(1, 1, 9, 9)), draw=False, imagePath="other.jpg")
    inside = picture(tmp_path / "c.png", seed=7)
    text = base64.b64encode(inside.read_bytes()).decode()
    labelme_file(tmp_path, "c", shape("x", points(1, 1, 9, 9)), draw=False, imageData=text)
    expected = cv2.imread(str(inside))[..., ::-1]
    inside.unlink()
    catalog = read_catalog(tmp_path)
    assert [one.image for one in catalog.train] == ["pics/a.png", "b.png", "c.json#0"]
    assert [one.id for one in catalog.train] == ["a", "b", "c"]
    assert (ms.read(tmp_path).train[2].image == expected).all()


def test_images_without_a_file_and_splits(tmp_path):
    for at, folder in enumerate(("train", "train", "val", "test")):
        labelme_file(tmp_path / folder, f"{folder}{at}", shape("x", points(1, 1, 9, 9)))
    picture(tmp_path / "train/bare.jpg")
    catalog = read_catalog(tmp_path)
    assert [(one.id, one.held_out) for one in catalog.train] == [
        ("train0", False),
        ("train1", False),
        ("val2", True),
    ]
    assert [one.id for one in catalog.test] == ["test3"]
    assert "1 images are named in no annotation file" in said(catalog)
    assert any("1 shapes on 1 images of the split 'test'" in text for text in catalog.left_out)


def test_wrong_files_are_refused_with_all_that_is_wrong(tmp_path):
    labelme_file(tmp_path, "a", shape("x", points(1, 1, 9, 9)))
    labelme_file(tmp_path, "gone", draw=False, imagePath="nowhere.jpg")
    labelme_file(tmp_path, "broken", imageData="!", draw=False)
    labelme_file(
        tmp_path,
        "b",
        shape("x", [[1, 2], [3]]),
        shape("x", "none"),
        shape(None, points(1, 1, 9, 9)),
        shape("x", points(1, 1, 9, 9), "star"),
        shape("x", points(1, 1, 9, 9), "mask"),
        shape("x", [[1, 1], [2, 2]], "mask", mask="é"),
        shape("x", [[1, 1], [2, 2]], "mask", mask="AAAA"),
        shape("x", [[1, 1], [2, 2]], "mask"),
    )
    labelme_file(tmp_path, "twice", draw=False, imagePath="a.jpg")
    for folder in ("p", "q"):
        picture(tmp_path / folder / "both.jpg")
    labelme_file(tmp_path, "both", draw=False)
    (tmp_path / "cut.json").write_text('{"shapes": [], "imagePath": "a.jpg", ')
    with pytest.raises(InputError) as caught:
        read_catalog(tmp_path)
    for text in (
        "gone.json: its image 'nowhere.jpg' is not in the folder",
        "shape 1: a point that is no pair",
        "shape 2: no list of points",
        "shape 3: the label None",
        "shape 4: a shape_type 'star' of 4 points",
        "shape 5: a mask with 4 points",
        "shape 6: a text that is no base64",
        "shape 7: b.json: shape 7 (mask): the file is not an image",
        "shape 8: no text of base64",
        "twice.json: 1 images are in another annotation file too: a.jpg",
        "both.json: imagePath 'both.jpg' fits p/both.jpg and q/both.jpg",
        "cut.json: no valid JSON in line 1",
    ):
        assert text in str(caught.value)
    for name in ("gone", "b", "twice", "both", "cut"):
        (tmp_path / f"{name}.json").unlink()
    with pytest.raises(InputError, match="imageData"):
        ms.read(tmp_path)
