import base64
import zlib

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.layouts import read_catalog
from tests.data.layouts.drawn_sets import HW, pictures, points, said, write_json


def bitmap(mask, *, origin=(0, 0), form="RGBA"):
    grey = mask.astype(np.uint8) * 255
    image = np.dstack([np.zeros_like(grey)] * 3 + [grey]) if form == "RGBA" else grey
    packed = base64.b64encode(zlib.compress(cv2.imencode(".png", image)[1].tobytes())).decode()
    return {"classTitle": "dog", "geometryType": "bitmap", "bitmap": {"data": packed, "origin": list(origin)}}


def shape(kind, exterior, *, interior=(), label="cat"):
    return {
        "classTitle": label,
        "geometryType": kind,
        "points": {"exterior": exterior, "interior": list(interior)},
    }


def project(root, *objects, names=("a.png", "b.jpg"), tags=(), home="ds"):
    pictures(root, *(f"{home}/img/{name}" for name in names))
    classes = [
        {"title": "dog", "shape": "bitmap"},
        {"title": "cat", "shape": "any"},
        {"title": "way", "shape": "line"},
    ]
    write_json(root / "meta.json", {"classes": classes, "tags": []})
    size = {"height": HW[0], "width": HW[1]}
    for name in names:
        value = {"size": size, "tags": [{"name": tag} for tag in tags], "objects": list(objects)}
        write_json(root / home / "ann" / f"{name}.json", value)


MASK = np.zeros((4, 6), bool)
MASK[1:3, 2:5] = True


def test_areas_of_all_kinds(tmp_path):
    project(
        tmp_path,
        shape("polygon", points(5, 5, 25, 35), interior=[points(10, 10, 20, 20)]),
        bitmap(MASK, origin=(40, 20)),
        bitmap(MASK, origin=(40, 30), form="L"),
        shape("rectangle", [[30, 2], [34, 6]]),
        shape("line", [[1, 1], [5, 5]], label="way"),
        shape("polygon", [[1, 1], [5, 5]]),
    )
    data = ms.read(tmp_path)
    assert (data.task, data.classes, len(data.train)) == ("multiclass", ("background", "dog", "cat"), 2)
    target = data.train[0].target
    assert target[[30, 15, 4], [7, 15, 32]].tolist() == [2, 0, 2]
    assert (target[20:24, 40:46] == MASK).all()
    assert (target[30:34, 40:46] == MASK).all()
    assert "2 line: only what has an area" in said(read_catalog(tmp_path))


def test_tags_and_data_sets_tell_the_split(tmp_path):
    project(tmp_path, shape("polygon", points(1, 1, 9, 9)), home="train", names=["a.png"])
    project(tmp_path, shape("polygon", points(1, 1, 9, 9)), home="other", names=["b.png"], tags=["val"])
    assert [(one.id, one.held_out) for one in read_catalog(tmp_path).train] == [("a", False), ("b", True)]


def test_what_cannot_be_drawn_is_refused_at_once(tmp_path):
    bomb = base64.b64encode(zlib.compress(bytes(2**29 + 9))).decode()
    bad = {
        "the classTitle None": {"geometryType": "polygon"},
        "a polygon without points": {"classTitle": "cat", "geometryType": "polygon"},
        "no list of outlines": {
            "classTitle": "cat",
            "points": {"exterior": points(1, 1, 5, 5), "interior": 3},
        },
        "without its data": {"classTitle": "cat", "geometryType": "bitmap"},
        "no pair of x and y": {"classTitle": "cat", "bitmap": {"data": "", "origin": [1]}},
        "not packed by zlib": {"classTitle": "cat", "bitmap": {"data": "AAAA", "origin": [1, 1]}},
        "more than": {"classTitle": "cat", "bitmap": {"data": bomb, "origin": [1, 1]}},
    }
    project(tmp_path, *bad.values(), names=["a.png"])
    with pytest.raises(InputError) as caught:
        read_catalog(tmp_path)
    for text in bad:
        assert text in str(caught.value)


def test_an_image_that_is_not_there_is_refused(tmp_path):
    project(tmp_path, shape("polygon", points(1, 1, 9, 9)))
    (tmp_path / "ds/img/b.jpg").unlink()
    with pytest.raises(InputError, match=r"b\.jpg' is not in the folder"):
        read_catalog(tmp_path)
