import cv2
import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.data.decode.pictures import decode_image, is_grey


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
