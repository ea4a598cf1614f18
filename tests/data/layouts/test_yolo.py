import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.layouts import read_catalog
from tests.data.layouts.drawn_sets import pictures, said

SQUARE = "0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75"  # x 15..30, y 10..30 of 60x40


def texts(root, **lines):
    for name, text in lines.items():
        path = root / (name.replace("__", "/") + ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def roboflow(root, **more):
    pictures(root, "train/images/a.png", "train/images/b.png", "valid/images/c.png", "test/images/d.png")
    texts(root, train__labels__a=f"1 {SQUARE}\n", train__labels__b="", valid__labels__c=f"0 {SQUARE}\n")
    lines = {"train": "../train/images", "val": "../valid/images", "test": "../test/images", "nc": 3}
    lines |= {"names": "['cat', 'dog', 'cow']"} | more
    (root / "data.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return root


def refused(root, *parts):
    with pytest.raises(InputError) as caught:
        read_catalog(root)
    for text in parts:
        assert text in str(caught.value)


def test_a_download_of_roboflow(tmp_path):
    data = ms.read(roboflow(tmp_path))
    assert (data.layout, data.task) == ("yolo", "instances")
    assert [one.id for one in data.train] == ["a", "b", "c"]
    assert [one.id for one in data.test] == ["d"]
    target = data.train[0].target
    assert target.sum() == target[10:30, 15:30].sum() == 300
    assert not data.train[1].target.any()
    catalog = read_catalog(tmp_path)
    assert [one.held_out for one in catalog.train] == [False, False, True]
    assert catalog.classes == ["cat", "dog", "cow"]
    assert "occur in no image: cow" in said(catalog)


def test_paths_of_another_computer_and_names_as_a_table(tmp_path):
    pictures(tmp_path, "images/train/a.png", "images/val/b.png")
    texts(tmp_path, labels__train__a=f"0 {SQUARE}", labels__val__b=f"1 {SQUARE}")
    text = "path: /content/x\ntrain: images/train\nval: /content/x/images/val\nnames:\n  0: cat\n  1: dog\n"
    (tmp_path / "dataset.yaml").write_text(text)  # as our own description is called
    catalog = read_catalog(tmp_path)
    assert catalog.layout == "yolo"
    assert [(one.id, one.held_out) for one in catalog.train] == [("a", False), ("b", True)]


def test_lists_of_images(tmp_path):
    pictures(tmp_path, "images/a.png", "images/b.png", "images/c.png")
    texts(tmp_path, labels__a=f"0 {SQUARE}", train="./images/a.png\n./images/c.png\n", val="images/b.png")
    (tmp_path / "d.yaml").write_text("train: train.txt\nval: [val.txt]\nnames: [cat]\n")
    catalog = read_catalog(tmp_path)
    assert [(one.id, one.held_out) for one in catalog.train] == [("a", False), ("b", True), ("c", False)]
    assert "2 images have no text file" in said(catalog)


def test_without_a_yaml_file(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    texts(tmp_path, a=f"0 {SQUARE}", b="")
    assert read_catalog(tmp_path).classes == ["0"]
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert read_catalog(tmp_path).classes == ["cat", "dog"]


def test_texts_that_are_no_polygons_are_another_layout(tmp_path):
    pictures(tmp_path, "a.png")
    texts(tmp_path, a="a picture of a cat\n")
    with pytest.raises(InputError, match="no masks"):
        read_catalog(tmp_path)


def test_wrong_lines_are_refused_with_file_and_line(tmp_path):
    roboflow(tmp_path)
    texts(
        tmp_path,
        train__labels__a=f"0 0.5 0.5 0.1 0.1\n\n0 0.1 0.2 0.3 0.4 0.5 0.6 0.7\n9 {SQUARE}\n0.5 {SQUARE}\nx {SQUARE}\n",
        train__labels__b=f"0 1.2 {SQUARE[5:]}\n0 nan {SQUARE[5:]}\n0 x {SQUARE[5:]}",
    )
    (tmp_path / "valid/labels/c.txt").write_bytes(b"\xff\xfe\x80")
    refused(
        tmp_path,
        "a.txt, line 1: 5 numbers are a box",
        "a.txt, line 3: 7 coordinates, an odd number",
        "a.txt, line 4: the class 9; expected at most 2",
        "a.txt, line 5: the class '0.5'",
        "a.txt, line 6: the class 'x'",
        "b.txt, line 1: the coordinate '1.2'",
        "b.txt, line 2: the coordinate 'nan'",
        "b.txt, line 3: the coordinate 'x'",
        "c.txt: no text (byte 0)",
    )


def test_wrong_yaml_files_are_refused(tmp_path):
    refused(
        roboflow(tmp_path / "a", names="[cat, cat]"), "names: ['cat', 'cat']; expected a name for each number"
    )
    refused(roboflow(tmp_path / "b", val="nowhere"), "data.yaml: no images at val: nowhere")
    root = roboflow(tmp_path / "c")
    (root / "other.yaml").write_bytes((root / "data.yaml").read_bytes())
    refused(root, "data.yaml, other.yaml all name classes and splits")


def test_short_lines_and_the_background(tmp_path):
    root = roboflow(tmp_path, names="[cat, background]")
    texts(root, train__labels__a=f"1 {SQUARE}\n0 {SQUARE}\n", train__labels__b="0 0.1 0.2\n")
    catalog = read_catalog(root)
    assert catalog.classes == ["cat"]
    assert len(catalog.train[0].shapes) == 1
    assert "1 have fewer than 3 points" in said(catalog)
