import cv2
import numpy as np
import pytest

from masksmith.data.images import apply_table, decode_image, is_grey, is_lossy, mask_levels, mask_table
from masksmith.errors import InputError


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_keeps_depth(dtype):
    image = (np.arange(12).reshape(3, 4) * (np.iinfo(dtype).max // 11)).astype(dtype)
    found = decode_image(png(image), where="a.png")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[..., 0], image)


def test_colour_comes_in_rgb_and_loses_alpha():
    bgra = np.zeros((2, 2, 4), np.uint8)
    bgra[..., 0], bgra[..., 2], bgra[..., 3] = 10, 200, 255
    found = decode_image(png(bgra), where="a.png")
    assert found.shape == (2, 2, 3)
    assert found[0, 0].tolist() == [200, 0, 10]
    assert not is_grey(found)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the file is empty"),
        (b"hello, world", "is not an image .it begins with b'hello"),
        (png(np.zeros((40, 40), np.uint8))[:-20], "is cut off after"),
        (cv2.imencode(".jpg", np.zeros((40, 40), np.uint8))[1].tobytes()[:-80], "is cut off after"),
        (png(np.eye(50, dtype=np.uint8)).replace(b"IDAT", b"IDAU"), "damaged IDAU block"),
        (b"BM" + bytes(40), "cannot be decoded"),
    ],
)
def test_damaged(raw, message):
    with pytest.raises(InputError, match=message) as caught:
        decode_image(raw, where="train/images/a.png")
    assert str(caught.value).startswith("train/images/a.png: ")


@pytest.mark.parametrize(
    ("values", "lossy", "expected"),
    [
        ([0, 255], False, {0: 0, 255: 1}),
        ([0, 1], False, {0: 0, 1: 1}),
        ([255], False, {255: 1}),
        ([0, 1, 255], False, {0: 0, 1: 1, 255: 255}),
        ([0, 3, 250, 255], True, {0: 0, 3: 0, 250: 1, 255: 1}),
    ],
)
def test_mask_conventions(values, lossy, expected):
    assert mask_table(values, lossy=lossy, where="masks") == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [([0], "every mask is empty"), ([0, 1, 2, 3], r"4 different values \(0, 1, 2, 3\)")],
)
def test_mask_values_refused(values, message):
    with pytest.raises(InputError, match=message):
        mask_table(values, lossy=False, where="masks")


def test_sixteen_bit_and_eight_bit_masks_agree():
    deep = mask_levels(np.array([[[0], [65535]]], np.uint16), where="m")
    flat = mask_levels(np.array([[[0], [255]]], np.uint8), where="m")
    table = mask_table({*deep.ravel().tolist(), *flat.ravel().tolist()}, lossy=False, where="m")
    assert apply_table(deep, table).tolist() == apply_table(flat, table).tolist() == [[0, 1]]


def test_coloured_mask_is_refused():
    with pytest.raises(InputError, match="a mask in colours"):
        mask_levels(np.array([[[0, 1, 2]]], np.uint8), where="m.png")


def test_lossy():
    assert is_lossy("masks/a.JPG")
    assert not is_lossy("masks/a.png")
