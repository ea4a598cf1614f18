"""Label maps: from files, rows and images, and back; one-pixel objects, overlaps, and 70,000 objects."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.core.errors import InputError
from masksmith.data.decode.pictures import decode_image
from masksmith.data.instances import (
    coco_annotations,
    coco_text,
    label_png,
    object_findings,
    object_rows,
    objects_of_files,
    objects_of_image,
    objects_of_mask,
    objects_of_rows,
)
from masksmith.data.rle import encode, label_runs, mask_to_runs

MANY = np.arange(1, 70_001, dtype=np.int32).reshape(250, 280)
"""70,000 objects of one pixel."""


def png(mask, ending=".png"):
    return cv2.imencode(ending, mask)[1].tobytes()


def box(rows, columns, hw=(8, 10), value=255):
    mask = np.zeros(hw, np.uint8)
    mask[slice(*rows), slice(*columns)] = value
    return mask


def same_partition(one, other):
    """Whether two label maps differ in nothing but the numbers of their objects."""
    pairs = {*zip(one.ravel().tolist(), other.ravel().tolist(), strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) and all(
        (a > 0) == (b > 0) for a, b in pairs
    )


def random_labels(seed, hw=(9, 12), most=6):
    return np.random.default_rng(seed).integers(0, most + 1, hw).astype(np.int32)


def test_a_file_an_object():
    two_parts = box((0, 2), (0, 2)) | box((6, 8), (6, 8))
    files = [
        ("a", two_parts),
        ("b", box((0, 2), (2, 5))),
        ("c", box((0, 0), (0, 0))),
        ("d", box((4, 5), (9, 10), value=1)),
    ]
    found = objects_of_files([(name, png(mask)) for name, mask in files], shape=(8, 10))
    expected = 1 * (two_parts > 0) + 2 * (files[1][1] > 0) + 3 * (files[3][1] > 0)
    np.testing.assert_array_equal(
        found.labels, expected
    )  # of several parts and of one pixel; touching ones apart
    assert (found.count, found.shared, found.empty, found.hidden) == (3, 0, ["c"], [])
    jpeg = png(box((2, 6), (2, 8), hw=(32, 32)), ".jpg")
    np.testing.assert_array_equal(
        objects_of_files([("a.jpg", jpeg)], shape=(32, 32)).labels, box((2, 6), (2, 8), hw=(32, 32), value=1)
    )


def test_the_smaller_of_two_objects_has_what_both_claim():
    large, small = box((0, 6), (0, 6)), box((2, 4), (4, 9))
    for files in ([large, small, large], [small, large, large]):
        found = objects_of_files([(str(at), png(mask)) for at, mask in enumerate(files)], shape=(8, 10))
        assert np.count_nonzero(found.labels) == np.count_nonzero(large | small)
        number = found.labels[2, 8]
        np.testing.assert_array_equal(found.labels == number, small > 0)  # whole, though it may come first
        assert found.count == 2
        assert found.shared == 4 + 36
        assert found.hidden == ["2"]  # the second of two that are equal
    said = {finding.title: finding for finding in object_findings({"x": found})}
    assert said["objects that overlap"].detail.startswith("40 pixels are claimed by several objects")
    assert "1 lie wholly within others" in said["objects that are hidden"].detail
    empty = objects_of_files([("e.png", png(box((0, 0), (0, 0))))], shape=(8, 10))
    (finding,) = object_findings({"y": empty, "z": objects_of_mask(np.ones((2, 2), np.uint8))})
    assert (finding.title, finding.ids) == ("empty objects", ["y"])
    assert finding.detail == "1 have no pixel and are left out: e.png"


def test_object_files_that_cannot_be_used_are_named_together():
    colours = np.zeros((8, 10, 3), np.uint8)
    colours[..., 0] = 9
    files = {
        "half.png": (
            box((0, 1), (0, 1), hw=(4, 5)),
            "half.png: the object file is 4x5 but its image is 8x10",
        ),
        "two.png": (
            box((0, 1), (0, 1)) + box((3, 4), (0, 1), value=7),
            "two.png: an object file with the values 0, 7, 255",
        ),
        "red.png": (colours, "red.png: labels in colours; expected one channel"),
    }
    for name, (mask, message) in files.items():
        with pytest.raises(InputError, match=message):
            objects_of_files([(name, png(mask))], shape=(8, 10))
    with pytest.raises(InputError, match="4 object files cannot be used") as caught:
        objects_of_files(
            [("none.png", b""), *((name, png(mask)) for name, (mask, _) in files.items())], shape=(8, 10)
        )
    assert all(name in str(caught.value) for name in ["none.png", *files])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), dialect=st.sampled_from(["dsb", "airbus", "dsb_row_major"]))
def test_rows_go_round(seed, dialect):
    labels = random_labels(seed)
    rows = object_rows(labels, dialect=dialect)
    assert len(rows) == len(set(labels[labels > 0].tolist()))
    back = objects_of_rows(rows, shape=labels.shape, dialect=dialect, where="t.csv, id 'a'")
    assert same_partition(labels, back.labels)
    assert rows[0] == encode((labels == back_number(labels, rows, dialect)).astype(np.uint8), dialect=dialect)


def back_number(labels, rows, dialect):
    """The number of the object whose first pixel comes first."""
    flat = labels.ravel(order="C" if dialect.endswith("row_major") else "F")
    return int(flat[np.flatnonzero(flat > 0)[0]])


def test_rows_by_hand_and_refused():
    found = objects_of_rows(["1 2", "4 1 6 1", "", "-1"], shape=(3, 2), dialect="dsb", where="t.csv, id 'a'")
    assert found.labels.tolist() == [[1, 2], [1, 0], [0, 2]]
    assert (found.count, found.empty) == (2, [])
    assert objects_of_rows([], shape=(3, 2), dialect="dsb", where="t").count == 0
    assert object_rows(np.zeros((3, 2), np.int32), dialect="dsb") == [""]
    with pytest.raises(
        InputError, match=r"t.csv, id 'a', row 2: the run at pixel 7 with length 1 leaves the image"
    ):
        objects_of_rows(["1 1", "7 1"], shape=(3, 2), dialect="dsb", where="t.csv, id 'a'")
    with pytest.raises(
        InputError, match=r"dialect: 'tgs' has one row an image, objects need a row each; .* airbus, dsb"
    ):
        object_rows(found.labels, dialect="tgs")


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_a_label_image_goes_round(seed):
    rng = np.random.default_rng(seed)
    labels = random_labels(seed) * 3000
    labels[rng.random(labels.shape) < 0.1] = -1
    image = decode_image(label_png(labels), where="a.png")
    found = objects_of_image(image, where="a.png", unjudged=[65535])
    np.testing.assert_array_equal(found.labels == -1, labels == -1)
    assert same_partition(np.maximum(labels, 0), np.maximum(found.labels, 0))
    assert set(np.unique(found.labels)) - {-1, 0} == set(range(1, found.count + 1))
    again = objects_of_image(labels[..., None], where="a.tif")
    np.testing.assert_array_equal(again.labels, found.labels)


def test_label_images_of_every_type():
    values = np.array([[0, 0, 7], [255, 7, 0]], np.uint8)
    for image in (values[..., None], values.astype(np.uint16)[..., None], np.repeat(values[..., None], 3, 2)):
        found = objects_of_image(image, where="a.png")
        assert found.labels.tolist() == [[0, 0, 1], [2, 1, 0]]
        assert found.count == 2
    full = objects_of_image(np.full((2, 2, 1), 9, np.uint8), where="a.png")
    assert (full.labels.tolist(), full.count) == ([[1, 1], [1, 1]], 1)
    with pytest.raises(InputError, match=r"a.tif: labels of float32; expected whole numbers"):
        objects_of_image(values[..., None].astype(np.float32), where="a.tif")
    with pytest.raises(InputError, match=r"a.tif: labels from -7 on; expected 0"):
        objects_of_image(values[..., None].astype(np.int16) - 7, where="a.tif")


def test_a_mask_is_its_regions():
    mask = np.array([[1, 0, 1], [0, 1, 255], [0, 0, 0], [1, 0, 0]], np.uint8)
    found = objects_of_mask(mask)
    assert found.labels.tolist() == [[1, 0, 1], [0, 1, -1], [0, 0, 0], [2, 0, 0]]
    assert found.count == 2


def test_seventy_thousand_objects():
    assert len(label_runs(MANY)) == 70_000
    found = objects_of_image(MANY[..., None], where="a.tif")
    assert found.count == 70_000
    np.testing.assert_array_equal(found.labels, MANY)
    with pytest.raises(
        InputError, match="x: object number 70,000; a PNG of 16 bits holds at most 65,534 objects"
    ):
        label_png(MANY, where="x")


def test_coco_by_hand_and_as_its_own_library_writes():
    labels = np.zeros((9, 70), np.int32)
    spots = [3, 11, 13, 20, 92, 111, 113, 150, 196, 269, 333, 340, 365, 403, 504, 523, 569, 600, 608]
    labels.ravel()[spots] = 5
    (one,) = coco_annotations(labels, image_id="a", category_id=3, first_id=8)
    assert one["segmentation"] == {
        "size": [9, 70],
        "counts": r"k01m10UN040;0N0G0Q10[O0f20gN0RN0`00R10E1_OO40^O0\2",  # pycocotools 2.0.11
    }
    assert (one["id"], one["image_id"], one["category_id"], one["area"]) == (8, "a", 3, len(spots))
    for mask, text in (
        (np.ones((3, 4), np.uint8), "0<"),
        (np.zeros((3, 4), np.uint8), "<"),
        (np.pad(np.ones((4, 5), np.uint8), ((2, 3), (10, 40))), "l2450000000V;"),
    ):
        assert coco_text(mask_to_runs(mask), num_pixels=mask.size) == text
    labels = np.zeros((6, 8), np.int32)
    labels[1:3, 2:7] = 4
    labels[3:, 5:7] = 2  # its columns end where the image does
    labels[0, 6] = 2
    assert [one["bbox"] for one in coco_annotations(labels, image_id=1)] == [[2, 1, 5, 2], [5, 0, 2, 6]]
    assert coco_annotations(np.zeros((6, 8), np.int32), image_id=1) == []
