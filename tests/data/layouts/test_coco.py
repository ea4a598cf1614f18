import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.instances import coco_text
from masksmith.data.layouts import read_catalog
from masksmith.data.layouts.coco import decode_counts
from masksmith.data.rle import mask_to_runs
from masksmith.data.shapes import draw_objects, runs_of
from tests.data.layouts.drawn_sets import HW, box, picture, pictures, said, titles, write_json

CATS = [{"id": 0, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 7, "name": "cow"}]


def image(at, name=None, **more):
    return {"id": at, "file_name": name or f"k{at}.png", "height": HW[0], "width": HW[1]} | more


def row(at, on=0, **more):
    plain = {"id": at, "image_id": on, "category_id": 0, "iscrowd": 0, "segmentation": [box(5, 5, 15, 15)]}
    return plain | more


def coco_file(path, images, annotations, categories=CATS, **more):
    value = {"images": images, "annotations": annotations, "categories": categories} | more
    return write_json(path, value)


def one_set(root, *annotations, categories=CATS, images=2):
    pictures(root, *(f"images/k{at}.png" for at in range(images)))
    coco_file(root / "a.json", list(map(image, range(images))), list(annotations), categories)
    return root


def refused(root, *texts):
    with pytest.raises(InputError) as caught:
        ms.read(root)
    for text in texts:
        assert text in str(caught.value)


def test_objects_classes_and_layers(tmp_path):
    root = one_set(
        tmp_path,
        row(0, segmentation=[box(5, 5, 15, 15), box(20, 5, 25, 15)]),
        row(1, category_id=7, segmentation=[box(10, 10, 30, 30)]),
        row(2, on=1),
    )
    catalog = read_catalog(root)
    assert catalog.layout == "coco"
    assert catalog.classes == ["cat", "dog", "cow"]
    assert "classes that never occur: 1 of 3 classes occur in no image: dog" in said(catalog)
    assert "--task multiclass" in said(catalog)
    data = ms.read(root)
    assert (data.task, len(data.train)) == ("instances", 2)
    labels = data.train[0].target
    assert set(np.unique(labels)) == {0, 1, 2}
    assert labels[6, 6] == labels[6, 22] == labels[12, 12]  # two parts of one, which is the smaller one
    classes = ms.read(root, task="multiclass")
    assert classes.classes == ("background", "cat", "dog", "cow")
    assert classes.train[0].target[12, [6, 12, 28, 40]].tolist() == [1, 3, 3, 0]
    layers = ms.read(root, task="multilabel")
    assert layers.classes == ("cat", "dog", "cow")
    assert layers.train[0].target[12, 12].tolist() == [1, 0, 1]
    assert ms.read(root, task="binary").train[0].target.sum() == 100 + 50 + 400 - 25 - 25


def test_classes_can_be_chosen(tmp_path):
    root = one_set(tmp_path, row(0), row(1, category_id=7))
    (tmp_path / "dataset.yaml").write_text("task: multiclass\nclasses: [cow, cat]\n")
    assert ms.read(root).classes == ("background", "cow", "cat")
    (tmp_path / "dataset.yaml").write_text("classes: [cow]\n")
    refused(root, "classes: cow, but shapes are labelled cat")
    (tmp_path / "dataset.yaml").write_text("ignore: [3]\n")
    refused(root, "ignore: [3], but the classes are drawn")


def test_what_layout_writes_is_read_again(tmp_path):
    root = one_set(tmp_path, row(0), row(1, category_id=7))
    first = ms.read(root, task="multiclass")
    ms.layout(root, task="multiclass", write=tmp_path / "dataset.yaml")
    assert ms.read(root).classes == first.classes


def test_run_lengths_of_both_kinds(tmp_path):
    mask = np.zeros(HW, np.uint8)
    mask[3:30, 5:8] = mask[27:30, 5:20] = 1
    text = coco_text(mask_to_runs(mask), num_pixels=mask.size)
    size = list(HW)
    root = one_set(
        tmp_path,
        row(0, segmentation={"size": size, "counts": text}),
        row(1, on=1, segmentation={"size": size, "counts": runs_of(mask)}),
    )
    first, second = ms.read(root).train
    assert (first.target == mask).all()
    assert (second.target == mask).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=200), st.integers(1, 4000))
def test_compressed_counts_are_decoded(bits, stretch):
    mask = np.repeat(np.array(bits, np.uint8), stretch)[:, None]
    runs = mask_to_runs(mask)
    assert decode_counts(coco_text(runs, num_pixels=mask.size)) == runs_of(mask)


@pytest.mark.parity
def test_compressed_counts_are_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    for seed in range(20):
        mask = (np.random.default_rng(seed).random((33, 47)) < 0.3).astype(np.uint8)
        text = coco.encode(np.asfortranarray(mask))["counts"].decode()
        assert decode_counts(text) == runs_of(mask)


def test_counts_that_are_none_are_refused():
    assert decode_counts("") == []
    for text in ("~~", " ", "ooooooooooooo", "P" * 3):
        with pytest.raises(ValueError, match="counts text"):
            decode_counts(text)


def test_crowds_are_not_judged_unless_all_are(tmp_path):
    some = one_set(tmp_path / "some", row(0), row(1, iscrowd=1, segmentation=[box(0, 0, 30, 20)]))
    labels = ms.read(some).train[0].target
    assert labels[[6, 1], [6, 1]].tolist() == [1, -1]
    every = one_set(tmp_path / "all", row(0, iscrowd=1), row(1, on=1, iscrowd=1))
    catalog = read_catalog(every)
    assert "all annotations are crowds" in titles(catalog)
    assert not any(shape.unjudged for sample in catalog.train for shape in sample.shapes)


def test_boxes_are_no_masks(tmp_path):
    mixed = one_set(tmp_path / "m", row(0), row(1, segmentation=[], bbox=[20, 20, 10, 10]))
    assert ms.read(mixed).train[0].target[[6, 25], [6, 25]].tolist() == [1, -1]
    assert "1 annotations have a box and no outline" in said(read_catalog(mixed))
    only = one_set(tmp_path / "o", row(0, segmentation=None, bbox=[1, 1, 5, 5]))
    refused(only, "boxes and no outlines; expected polygons or run-lengths")


def test_splits_of_files(tmp_path):
    pictures(tmp_path, *(f"{split}2017/{at}.png" for split in ("train", "val", "test") for at in range(2)))
    for split in ("train", "val"):
        images = [image(at, f"{at}.png") for at in range(2)]
        coco_file(tmp_path / f"annotations/instances_{split}2017.json", images, [row(0), row(1, on=1)])
    write_json(
        tmp_path / "annotations/image_info_test2017.json",
        {"images": [image(at, f"{at}.png") for at in range(2)], "categories": CATS},
    )
    captions = [{"id": 1, "image_id": 0, "caption": "a cat"}]
    coco_file(tmp_path / "annotations/captions_train2017.json", [image(0, "0.png")], captions)
    points = [row(0, keypoints=[1, 2, 3])]
    coco_file(tmp_path / "annotations/person_keypoints_train2017.json", [image(0, "0.png")], points)
    catalog = read_catalog(tmp_path)
    assert [one.id for one in catalog.train] == [f"{s}2017/{at}" for s in ("train", "val") for at in range(2)]
    assert [one.held_out for one in catalog.train] == [False, False, True, True]
    assert [one.image for one in catalog.test] == ["test2017/0.png", "test2017/1.png"]
    assert sum("captions, keypoints" in text for text in catalog.left_out) == 2


def test_names_of_another_computer(tmp_path):
    pictures(tmp_path, "images/a/1.png", "images/b/1.png", "images/2.jpg", "images/T.PNG", "masks/2.png")
    names = ["C:\\data\\a\\1.png", "./b/1.png", "/home/x/2.jpeg", "t.png"]
    images = [image(str(at), name) for at, name in enumerate(names)]
    annotations = [row(at, on=float(at)) for at in range(4)]
    coco_file(tmp_path / "x.json", images, annotations)
    catalog = read_catalog(tmp_path)
    assert sorted(one.image for one in catalog.train) == [
        "images/2.jpg",
        "images/T.PNG",
        "images/a/1.png",
        "images/b/1.png",
    ]
    assert {one.id for one in catalog.train} == {"2", "T", "a/1", "b/1"}


def test_images_that_are_not_listed_are_left_out(tmp_path):
    root = one_set(tmp_path, row(0))
    pictures(root, "images/extra.png", "test/t.png")
    catalog = read_catalog(root)
    assert "1 images are named in no annotation file" in said(catalog)
    assert [one.id for one in catalog.test] == ["t"]


def test_wrong_files_are_refused_with_all_that_is_wrong(tmp_path):
    pictures(tmp_path, "k0.png", "k1.png", "sub/d.png", "other/d.png")
    images = [
        image(0),
        image(1),
        image(2, "gone.png"),
        image(3, "k1.png"),
        image(None, "k1.png"),
        image(4, "d.png"),
    ]
    bad = [
        row(0, on=99),
        row(1, category_id=55),
        row(2, segmentation=[[1, 2, 3, 4, 5]]),
        row(3, segmentation=[[1, 2, 3, float("nan"), 5, 6]]),
        row(4, segmentation={"size": [3, 3], "counts": [9]}),
        row(5, segmentation={"size": list(HW), "counts": [9]}),
        row(6, segmentation={"size": list(HW), "counts": "~"}),
        row(7, segmentation="text"),
        row(8, segmentation=[], bbox=[1, 2]),
        row(9, segmentation={"size": "x", "counts": [9]}),
        row(10, segmentation=[[1, 2, 3, 10**400, 5, 6.5]]),
    ]
    coco_file(tmp_path / "a.json", images, bad, [*CATS, {"id": 0, "name": "horse"}, {"id": 9}])
    (tmp_path / "b.json").write_text('{"images": [{"file_name": "k0.png"}], "annotations": [')
    coco_file(tmp_path / "c.json", [image(0)], "none")
    refused(
        tmp_path,
        "1 images are not in the folder: gone.png",
        "1 images without an id",
        "1 images are listed twice",
        "1 images fit several files: d.png (other/d.png or sub/d.png)",
        "annotations of images that are not listed: annotation 0 (image_id 99)",
        "annotations of unknown categories: annotation 1 (category_id 55)",
        "5 coordinates, an odd number",
        "the coordinate nan",
        "run-lengths of 3x3 in an image of 40x60",
        "run-lengths of 9 pixels, not of 2400",
        "counts text that is no compressed",
        "a segmentation of 'text'",
        "a bbox of 2 numbers",
        "run-lengths of size 'x'",
        "2 categories without an id or a name, or of one id",
        "b.json: no valid JSON in line 1",
        "c.json: annotations that are no list",
    )


def test_two_files_of_the_same_images(tmp_path):
    root = one_set(tmp_path, row(0))
    (root / "copy.json").write_bytes((root / "a.json").read_bytes())
    assert any("a copy of a.json" in text for text in read_catalog(root).left_out)
    coco_file(root / "z.json", [image(0)], [row(0)])
    refused(root, "z.json: 1 images are listed in")


def test_sizes_and_places_are_checked_against_the_images(tmp_path):
    root = one_set(tmp_path, row(0), row(1, on=1, segmentation=[box(70, 5, 80, 15)]))
    picture(root / "images/k0.png", hw=(30, 30))
    refused(root, "k0.png: it is 30x30, but the file with its shapes says 40x60", "lies outside of the image")


def test_photographs_turned_by_exif_are_as_they_were_drawn_on(tmp_path):
    from PIL import Image

    for name, (height, width) in {"upright": HW[::-1], "stored": HW}.items():
        root = tmp_path / name
        root.mkdir()
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*HW, 3), np.uint8)).save(
            root / "a.jpg", exif=exif
        )
        coco_file(root / "a.json", [image(0, "a.jpg", height=height, width=width)], [row(0)])
        assert ms.read(root).train[0].image.shape[:2] == (height, width)


def test_odd_annotations_that_are_said(tmp_path):
    root = one_set(
        tmp_path,
        row(5),
        row(5, category_id=3, segmentation=box(20, 20, 30, 30)),
        row(6, segmentation=[[1, 2, 3, 4]]),
        row(7, on=1, segmentation=[box(50, 30, 99, 99)]),
        row(8, category_id=9),
        categories=[*CATS, {"id": 9, "name": "_background_"}],
    )
    catalog = read_catalog(root)
    text = said(catalog)
    assert "1 ids are those of several annotations; all are read: 5 in a.json" in text
    assert "1 have fewer than 3 points and are left out: a.json: annotation 6" in text
    assert "1 annotations of the background are not drawn" in text
    assert "_background_" not in catalog.classes
    assert "1 shapes leave their image" in "\n".join(one.detail for one in ms.read(root).findings)


def test_a_file_without_categories(tmp_path):
    bare = {key: value for key, value in row(0).items() if key != "category_id"}
    assert read_catalog(one_set(tmp_path, bare, categories=[])).classes == ["object"]


def test_masks_come_first_where_all_images_have_one(tmp_path):
    root = one_set(tmp_path, row(0), row(1, on=1))
    mask = np.zeros(HW, np.uint8)
    mask[5:15, 5:15] = 255
    import cv2

    (root / "masks").mkdir()
    cv2.imwrite(str(root / "masks/k0.png"), mask)
    assert read_catalog(root).layout == "coco"
    cv2.imwrite(str(root / "masks/k1.png"), mask)
    catalog = read_catalog(root)
    assert catalog.layout == "paired_folders"
    assert "masks and annotations" in titles(catalog)
    assert read_catalog(root, layout="coco").layout == "coco"


def test_other_json_files_are_let_be(tmp_path):
    pictures(tmp_path, "images/a.png")
    write_json(tmp_path / "package.json", {"images": ["a"], "annotations": 3, "file_name": 1})
    write_json(tmp_path / "list.json", [1, 2])
    coco_file(tmp_path / "other.json", [image(0, "elsewhere.png")], [row(0)])
    with pytest.raises(InputError, match="no masks"):
        read_catalog(tmp_path)


def test_nothing_drawn_is_refused(tmp_path):
    refused(one_set(tmp_path), "nothing is drawn on the 2 images")


@pytest.mark.slow
def test_one_hundred_thousand_annotations_take_seconds(tmp_path):
    import time

    rows = [row(at, on=at % 2, category_id=at % 2 * 7) for at in range(100_000)]
    root = one_set(tmp_path, *rows)
    began = time.process_time()
    catalog = read_catalog(root)
    assert time.process_time() - began < 15
    assert sum(len(one.shapes) for one in catalog.train) == 100_000
    json.dumps(catalog.to_json())


def test_many_objects_are_drawn_as_they_are(tmp_path):
    rows = [row(at, segmentation=[box(x, y, x + 4, y + 4)]) for at, (x, y) in enumerate(np.ndindex(10, 6))]
    rows = [
        one | {"segmentation": [box(x * 6, y * 6, x * 6 + 4, y * 6 + 4)]}
        for one, (x, y) in zip(rows, np.ndindex(10, 6), strict=True)
    ]
    catalog = read_catalog(one_set(tmp_path, *rows))
    assert draw_objects(catalog.train[0].shapes, HW).count == 60
