"""Masks and tables of class maps and of objects: what is written is read back, and what is wrong is refused."""

import cv2
import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.data.catalog import SubmissionFormat
from masksmith.data.target import OBJECTS, Target
from masksmith.submission.formats import mask_values, object_dialect, read_mask, write_outputs
from masksmith.submission.validate import validate_submission

SHAPE = (6, 8)
FORM = SubmissionFormat("id", "rle_mask", "tgs", ["0003", "a", "7e10"], "sample_submission.csv")
CLASSES = Target("multiclass", ("ground", "tree", "roof"), (1, 7, 300))


def drawn(kind):
    found = {name: np.zeros(SHAPE, kind) for name in FORM.ids}
    found["0003"][1:3, 1:4], found["0003"][4, 5:], found["a"][0, 0] = 1, 2, 2
    return found


@pytest.fixture
def maps(tmp_path):
    found = drawn(np.uint8)
    write_outputs(tmp_path / "masks", tmp_path / "s.csv", FORM, [found[one] for one in FORM.ids], CLASSES)
    return tmp_path, found


@pytest.fixture
def objects(tmp_path):
    found = drawn(np.int32)
    write_outputs(tmp_path / "masks", tmp_path / "s.csv", FORM, [found[one] for one in FORM.ids], OBJECTS)
    return tmp_path, found


def refused(folder, target, lines, message, *, masks="masks"):
    (folder / "s.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=message):
        check(folder, target, masks=masks)


def check(folder, target, *, masks="masks"):
    saved = folder / masks if masks else None
    return validate_submission(
        folder / "s.csv", FORM, dict.fromkeys(FORM.ids, SHAPE), masks=saved, target=target
    )


def test_class_maps_keep_the_values_of_their_files(maps):
    folder, found = maps
    verdict = check(folder, CLASSES)
    assert (verdict.ids, verdict.empty, verdict.compared) == (3, 1, 3)
    for name, mask in found.items():
        saved = cv2.imread(str(folder / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert saved.dtype == np.uint16
        np.testing.assert_array_equal(saved, np.array([1, 7, 300])[mask])
        np.testing.assert_array_equal(read_mask(folder / "masks" / f"{name}.png", CLASSES), mask)
    small = Target("multiclass", ("a", "b"), (4, 2))
    assert (mask_values(small).tolist(), mask_values(small).dtype) == ([4, 2], np.uint8)
    cv2.imwrite(str(folder / "order.png"), np.array([[4, 2]], np.uint8))
    assert read_mask(folder / "order.png", small).tolist() == [[0, 1]]
    cv2.imwrite(str(folder / "order.png"), np.array([[4, 3]], np.uint8))
    with pytest.raises(InputError, match=r"order\.png: it holds a value of no class"):
        read_mask(folder / "order.png", small)
    assert (folder / "s.csv").read_text().splitlines()[:4] == [
        "id,class,rle_mask",
        "0003,tree,8 2 14 2 20 2",
        "0003,roof,35 1 41 1 47 1",
        "a,tree,",
    ]


def test_tables_of_class_maps_that_are_wrong(maps):
    folder, _ = maps
    lines = (folder / "s.csv").read_text().splitlines()
    head, first, second, *rest = lines
    for changed, message in (
        ([head, second, first, *rest], "id '0003': rows of the classes roof, tree; expected tree, roof"),
        ([head, first, *rest], "id '0003': rows of the classes tree; expected tree, roof"),
        ([head, first, first.replace("tree", "roof"), *rest], "pixels of 'roof' are in another class too"),
        ([head, first, "0003,roof,", *rest], "id '0003': the runs do not decode to the saved mask"),
        ([head, "0003,tree,9 1 8 1", second, *rest], "id '0003', tree: .*not sorted|overlap"),
        ([head, "0003,tree,50 2", second, *rest], "id '0003', tree: .*leaves the image"),
        (lines[:-2], "3 ids expected .*, 2 given; missing: '7e10'"),
        ([*lines, first, second], "the id '0003' appears twice"),
        ([*lines, "new,tree,", "new,roof,"], "the id 'new' is not among the 3 ids"),
        ([head, *rest[:2], first, second, *rest[2:]], "line 2: id 'a', expected '0003'"),
        ([head.replace("class", "kind"), *lines[1:]], "the column 'class' is missing"),
    ):
        refused(folder, CLASSES, changed, message)
    refused(folder, CLASSES, [head, first, first.replace("tree", "roof"), *rest], "another class", masks=None)


def test_objects_are_labels_of_16_bits_and_a_row_each(objects):
    folder, found = objects
    verdict = check(folder, OBJECTS)
    assert (verdict.ids, verdict.empty, verdict.compared) == (3, 1, 3)
    for name, mask in found.items():
        saved = cv2.imread(str(folder / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert saved.dtype == np.uint16
        np.testing.assert_array_equal(saved, mask)
        back = read_mask(folder / "masks" / f"{name}.png", OBJECTS)
        assert back.dtype == np.int32
    assert object_dialect(FORM) == "dsb"  # tgs has one row an image
    assert (folder / "s.csv").read_text().splitlines() == [
        "id,rle_mask",
        "0003,8 2 14 2 20 2",
        "0003,35 1 41 1 47 1",
        "a,1 1",
        "7e10,",
    ]


def test_rows_that_are_not_the_saved_objects(objects):
    folder, _ = objects
    head, first, second, dot, empty = (folder / "s.csv").read_text().splitlines()
    for changed, message in (
        (
            [head, first, dot, empty],
            "id '0003': 1 objects, the saved label map has 2; run `masksmith submit`",
        ),
        (
            [head, "0003,8 2 14 2 20 2 35 1 41 1 47 1", dot, empty],
            "row 1 is no object of the saved label map",
        ),
        ([head, "0003,8 2 14 2", "0003,20 2", second, dot, empty], "row 1 is no object"),
        ([head, first, second, "a,2 1", empty], "id 'a': row 1 is no object"),
        ([head, first, second, "a,", empty], "id 'a': 0 objects, the saved label map has 1"),
        ([head, first, second, dot, "7e10,1 1"], "id '7e10': row 1 is no object"),
        ([head, first, second, first, dot, empty], "pixels are in two rows; expected in one"),
        ([head, first, second, "0003,", dot, empty], "an empty row beside 2 others"),
        ([head, first, dot, second, empty], "the id '0003' appears twice"),
    ):
        refused(folder, OBJECTS, changed, message)


def test_too_many_objects(tmp_path):
    many = np.arange(1, 70001, dtype=np.int32).reshape(200, 350)
    form = SubmissionFormat("id", "rle", "dsb", ["a"], "s")
    with pytest.raises(
        InputError, match="image 'a': object number 70,000; a PNG of 16 bits holds at most 65,534"
    ):
        write_outputs(tmp_path / "masks", tmp_path / "s.csv", form, [many], OBJECTS)
    assert not list(tmp_path.iterdir())  # neither masks nor table
