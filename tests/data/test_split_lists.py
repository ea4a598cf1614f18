import json

import cv2
import numpy as np
import pytest

from masksmith.data.layouts import read_catalog


def write_png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


@pytest.fixture
def pairs(tmp_path):
    for at in range(6):
        write_png(tmp_path / f"images/a{at}.png", np.full((4, 5), 40 * at, np.uint8))
        write_png(tmp_path / f"masks/a{at}.png", np.full((4, 5), 255 * (at % 2), np.uint8))
    return tmp_path


def held(catalog):
    return "".join(one.id[-1] for one in catalog.train if one.held_out)


SPLITS = {"train": ["a0", "a1", "a2"], "val": ["a3", "a4"], "test": ["a5"]}
FORMS = {
    "ids": {f"{split}.txt": "\n".join(own) for split, own in SPLITS.items()},
    "paths of another computer": {
        f"lists/{split}_list.txt": "".join(
            f"C:\\data\\images\\{one}.png C:\\data\\masks\\{one}.png\r\n" for one in own
        )
        for split, own in SPLITS.items()
    },
    "VOC": {
        f"ImageSets/{kind}/{split}.txt": "\n".join(own if kind == "Segmentation" else own[::-1][:1])
        for split, own in SPLITS.items()
        for kind in ("Segmentation", "Main")
    },
    "json": {"splits.json": json.dumps(SPLITS)},
    "json by id": {
        "split.json": json.dumps({f"{one}.png": split for split in SPLITS for one in SPLITS[split]})
    },
    "json datalist": {
        "dataset.json": json.dumps(
            {
                name: [{"image": f"./images/{one}.png", "label": "x"} for one in SPLITS[split]]
                for name, split in (("training", "train"), ("validation", "val"), ("test", "test"))
            }
        )
    },
    "table": {
        "meta.csv": "who,file,subset\n"
        + "".join(f"x,{one}.png,{s.upper()}\n" for s in SPLITS for one in SPLITS[s])
    },
}


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, newline="")


@pytest.mark.parametrize("form", FORMS)
def test_lists_are_followed(pairs, form):
    write(pairs, FORMS[form])
    catalog = read_catalog(pairs)
    assert (held(catalog), [one.id for one in catalog.train]) == ("34", ["a0", "a1", "a2", "a3", "a4"])
    assert [(one.id, one.mask) for one in catalog.test] == [("a5", None)]
    assert catalog.submission.ids == ["a5"]
    assert "2 in val" in catalog.why[-1]
    assert [one.title for one in catalog.findings] == ["the split of the data set"]


def test_what_lists_contradict_is_said(pairs):
    write(pairs, {"train.txt": "a0\na1\na2\na3", "val.txt": "a3\na4\nb7\n"})
    catalog = read_catalog(pairs)
    said = {one.title: one.detail for one in catalog.findings}
    assert (held(catalog), len(catalog.train)) == ("34", 5)
    assert "1 images" in said["lists that overlap"]
    assert "a3" in said["lists that overlap"]
    assert "b7" in said["lists of images that are not there"]
    assert "a5" in said["images on no list"]
    assert "a5" in catalog.left_out[0]


def test_lists_of_few_images_leave_none_out(pairs):
    write(pairs, {"train.txt": "a0", "val.txt": "a1"})
    catalog = read_catalog(pairs)
    assert (held(catalog), len(catalog.train)) == ("1", 6)
    assert "less than half" in next(
        one.detail for one in catalog.findings if one.title == "images on no list"
    )


def test_lists_of_other_things_are_no_splits(pairs):
    write(
        pairs, {"train.txt": "epoch 1 loss 0.3\nepoch 2 loss 0.2", "val.json": "{", "split.json": "[1, {}]"}
    )
    write(pairs, {"test.txt": "\n".join(f"a{at}" for at in range(6)), "folds.json": '{"a0": 3}'})
    catalog = read_catalog(pairs)
    assert (held(catalog), len(catalog.train), catalog.findings) == ("", 6, [])


def test_several_splits_are_folds_that_can_be_asked_for(pairs):
    parts = [["a0", "a3"], ["a1", "a4"], ["a2", "a5"]]
    splits = [{"train": [f"a{at}" for at in range(6) if f"a{at}" not in own], "val": own} for own in parts]
    write(pairs, {"splits_final.json": json.dumps(splits)})
    catalog = read_catalog(pairs)
    assert "".join(one.texts["fold"] for one in catalog.train) == "012012"
    assert "folds.fold_by=fold --set folds.count=3" in catalog.findings[0].detail
    (pairs / "splits_final.json").write_text(json.dumps(splits[:2]))  # no partition: the first is followed
    catalog = read_catalog(pairs)
    assert held(catalog) == "03"


def test_a_column_of_folds_is_named(pairs):
    write(pairs, {"meta.csv": "id,fold\n" + "".join(f"a{at},{at % 3}\n" for at in range(6))})
    assert "folds.fold_by=fold" in read_catalog(pairs).findings[0].detail


def test_splits_of_a_description_come_first(pairs):
    write(
        pairs,
        FORMS["ids"]
        | {"dataset.yaml": "images: images/{id}.png\nmasks: masks/{id}.png\nsplits: {val: a0}\n"},
    )
    assert held(read_catalog(pairs)) == "0"


def test_patients_and_folders_are_entries(tmp_path):
    for at, name in enumerate(("p1/s0", "p1/s1", "p2/s0", "p3/s0")):
        write_png(tmp_path / f"images/{name}.png", np.full((4, 5), 40 * at, np.uint8))
        write_png(tmp_path / f"masks/{name}.png", np.full((4, 5), 255 * (at % 2), np.uint8))
    write(tmp_path, {"val.txt": "p1\n"})
    assert [one.id for one in read_catalog(tmp_path).train if one.held_out] == ["p1/s0", "p1/s1"]
