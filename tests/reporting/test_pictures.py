import itertools

import numpy as np

from masksmith.data.target import Target
from masksmith.reporting.pictures import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    binary_of,
    class_colours,
    class_difference,
    class_error,
    covered,
    difference,
    error_cause,
    fit,
    four_panels,
    joined,
    label_difference,
    label_error,
    object_error,
    overlay,
    painted,
    painted_objects,
    tinted_labels,
    to_rgb,
)


def four_rows(*args):
    return joined(four_panels(*args))


IMAGE = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)


def mask(*spots):
    found = np.zeros((4, 4), np.uint8)
    for spot in spots:
        found[spot] = 1
    return found


def test_difference_is_green_for_false_positives_and_red_for_false_negatives():
    target = mask((0, 0), (0, 1))
    target[3, 3] = 255
    shown = difference(IMAGE, target, mask((0, 1), (2, 2), (3, 3)))
    assert tuple(shown[2, 2]) == FALSE_POSITIVE
    assert tuple(shown[0, 0]) == FALSE_NEGATIVE
    assert tuple(shown[3, 3]) == (128, 128, 128)
    assert shown[0, 1, 0] == shown[0, 1, 1] == shown[0, 1, 2]
    assert FALSE_POSITIVE[1] > FALSE_POSITIVE[0]
    assert FALSE_NEGATIVE[0] > FALSE_NEGATIVE[1]


def test_four_rows_of_one_size_whatever_the_image():
    target = mask((0, 0))
    assert four_rows(IMAGE, target, mask()).shape == (4 * 4 + 3 * 2, 4, 3)
    wide = np.zeros((300, 1000, 1), np.uint8)
    sheet = four_rows(wide, np.zeros((300, 1000), np.uint8), np.ones((300, 1000), np.uint8))
    assert sheet.shape == (4 * 58 + 3 * 2, 192, 3)  # in the form of the image
    assert tuple(sheet[3 * (58 + 2) + 29, 96]) == FALSE_POSITIVE
    assert joined(four_panels(IMAGE, target, mask()), across=True).shape == (4, 4 * 4 + 3 * 2, 3)


def test_a_picture_is_fitted_into_the_middle_of_a_white_square():
    shown = fit(np.zeros((2, 6, 3), np.uint8), 6)
    assert shown.shape == (6, 6, 3)
    assert (shown[2:4] == 0).all()
    assert (np.delete(shown, [2, 3], axis=0) == 255).all()
    assert fit(np.zeros((1, 1000, 3), np.uint8), 10).shape == (10, 10, 3)
    assert (fit(np.zeros((2, 2, 3), np.uint8), 6) == 0).sum() == 2 * 2 * 3  # never enlarged


def test_a_true_mask_is_green_over_its_image():
    shown = overlay(IMAGE, mask((1, 1)))
    assert shown[1, 1, 1] > shown[1, 1, 0]
    assert len(set(shown[2, 2])) == 1


def test_any_image_becomes_rgb():
    for channels, dtype in itertools.product((1, 3, 5), (np.uint8, np.uint16)):
        image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (6, 5, channels)).astype(dtype)
        assert to_rgb(image).shape == (6, 5, 3)
        assert to_rgb(np.zeros_like(image)).max() == 0


def test_causes():
    for target, pred, cause in (
        ((), (), "empty, right"),
        ((), ((0, 0),), "false alarm"),
        (((0, 0),), (), "missed"),
        (((0, 0),), ((3, 3),), "beside"),
        (((0, 0),), ((0, 0),), "border"),
        (((0, 0),), ((0, 0), (0, 1)), "too much"),
        (((0, 0), (0, 1)), ((0, 0),), "too little"),
    ):
        assert error_cause(mask(*target), mask(*pred)) == cause


def test_bands_are_stretched_one_by_one_and_no_data_is_black():
    rng = np.random.default_rng(0)
    image = (rng.random((40, 40, 4)) * (10, 1000, 0.1, 5) + (-500, 3000, 0, 0)).astype(np.float32)
    image[:5, :5] = np.nan
    image[0, 0, 1] = -np.inf
    shown = to_rgb(image)
    assert shown.shape == (40, 40, 3)
    assert not shown[:5, :5].any()
    seen = shown[5:].reshape(-1, 3).astype(float)
    assert (np.abs(seen.mean(axis=0) - 127) < 12).all()  # whatever the scale of a band
    assert not to_rgb(np.full((4, 4, 2), np.nan, np.float32)).any()


def test_a_picture_keeps_its_colours():
    image = np.zeros((10, 10, 3), np.uint8)
    image[..., 0], image[:5, :, 1] = 200, 100
    shown = to_rgb(image)
    assert shown[0, 0].tolist() == [255, 128, 0]


def test_labels_tint_and_differ_each_alone():
    colours = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    image = np.full((2, 3, 1), 100, np.uint8)
    target, pred = (np.zeros((2, 3, 2), np.uint8) for _ in range(2))
    target[0, 0] = 1
    target[0, 1, 0] = pred[0, 1, 1] = pred[1, 0, 0] = 1
    target[1, 2] = 255
    tinted = tinted_labels(image, target, colours).astype(int)
    assert tinted[0, 1, 0] > tinted[0, 0, 0] > tinted[1, 0, 0]  # alone, with another, none
    assert tinted[0, 0, 0] == tinted[0, 0, 2]
    shown = label_difference(image, target, pred)
    assert tuple(shown[0, 1]) == FALSE_NEGATIVE  # one label is missing, another too much
    assert tuple(shown[1, 0]) == FALSE_POSITIVE
    assert tuple(shown[1, 2]) == (128, 128, 128)
    assert four_rows(image, target, pred, colours).shape == (4 * 2 + 3 * 2, 3, 3)
    assert overlay(image, target, colours).shape == (3, 3, 3)
    assert covered(target).sum() == 2
    assert label_error(target, pred, ["car", "person"]) == "car: beside"
    assert label_error(target, target % 255, ["car", "person"]) == "all right"


def test_classes_and_objects_have_colours_of_their_own():
    many = Target("multiclass", tuple(map(str, range(12))), tuple(range(12)))
    assert len({tuple(one) for one in class_colours(many)}) == 12
    given = Target("multiclass", ("a", "b"), (0, 1), palette=((1, 2, 3), (4, 5, 6)))
    colours = class_colours(given)
    assert colours.tolist() == [[1, 2, 3], [4, 5, 6]]
    grey, truth, pred = np.zeros((4, 4, 1), np.uint8), mask((0, 0), (1, 1)), mask((0, 0), (2, 2))
    truth[3, 3] = 255
    shown = painted(grey, truth, colours)
    assert [shown[spot].tolist() for spot in ((0, 1), (0, 0), (3, 3))] == [[1, 1, 2], [2, 3, 4], [77, 77, 77]]
    wrong = class_difference(IMAGE, truth, pred)
    red = [spot for spot in np.ndindex(4, 4) if tuple(wrong[spot]) == FALSE_NEGATIVE]
    assert red == [(1, 1), (2, 2)]
    assert tuple(wrong[3, 3]) == (128, 128, 128)
    assert class_error(truth, pred, ["a", "b"]) in ("a taken for b", "b taken for a")
    assert class_error(truth, truth, ["a", "b"]) == "all right"
    labels = np.zeros((4, 4), np.int32)
    labels[0, 0], labels[0, 1], labels[3, 3] = 1, 2, -1
    coloured = painted_objects(grey, labels)
    assert len({tuple(coloured[spot]) for spot in ((0, 0), (0, 1), (1, 0), (3, 3))}) == 4
    assert not painted_objects(grey, np.zeros_like(labels)).any()
    np.testing.assert_array_equal(binary_of(labels), np.where(labels < 0, 255, labels > 0))
    merged = np.where(labels > 0, 7, 0).astype(np.int32)
    assert object_error(labels, merged) == "too few objects"
    assert object_error(merged, labels) == "too many objects"
    assert object_error(labels, labels) == "border"
    assert object_error(labels, np.zeros_like(labels)) == "missed"
    for panels in (four_rows(grey, labels, merged), four_rows(grey, truth, pred, colours)):
        assert panels.shape == (4 * 4 + 3 * 2, 4, 3)
    for one in (overlay(grey, labels), overlay(grey, truth, colours)):
        assert one.shape == (4, 4, 3)
