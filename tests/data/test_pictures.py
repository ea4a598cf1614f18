import cv2
import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.data.decode.pictures import decode_image, is_grey


def encoded(image, suffix=".png"):
    return cv2.imencode(suffix, image)[1].tobytes()


def test_depth_channels_and_alpha():
    for dtype in (np.uint8, np.uint16):
        image = (np.arange(12).reshape(3, 4) * (np.iinfo(dtype).max // 11)).astype(dtype)
        found = decode_image(encoded(image), where="a.png")
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[..., 0], image)
    bgra = np.zeros((2, 2, 4), np.uint8)
    bgra[..., 0], bgra[..., 2], bgra[..., 3] = 10, 200, 255
    found = decode_image(encoded(bgra), where="a.png")
    assert (found.shape, found[0, 0].tolist(), is_grey(found)) == ((2, 2, 3), [200, 0, 10], False)


def test_damaged_files_are_refused():
    zeros = np.zeros((40, 40), np.uint8)
    for raw, message in (
        (b"", "the file is empty"),
        (b"hello, world", "the file is not an image .it begins with b'hello"),
        (encoded(zeros)[:-20], "the file is cut off after"),
        (encoded(zeros, ".jpg")[:-80], "the file is cut off after"),
        (encoded(np.eye(50, dtype=np.uint8)).replace(b"IDAT", b"IDAU"), "damaged IDAU block"),
        (b"BM" + bytes(40), "cannot be decoded"),
    ):
        with pytest.raises(InputError, match=f"^train/images/a.png: .*{message}"):
            decode_image(raw, where="train/images/a.png")


def test_a_large_picture_is_decoded_as_any_other(monkeypatch):
    """Large ones go by way of a file, so that OpenCV holds them once; what comes out is the same."""
    rng = np.random.default_rng(0)
    files = [
        bytes(
            cv2.imencode(ending, rng.integers(0, 2 ** (8 * dtype().itemsize), (40, 30, channels), dtype))[1]
        )
        for ending, dtype, channels in (
            (".png", np.uint8, 3),
            (".png", np.uint16, 1),
            (".png", np.uint16, 4),
            (".jpg", np.uint8, 3),
            (".bmp", np.uint8, 3),
        )
    ]
    expected = [decode_image(raw, where="x", keep_alpha=True) for raw in files]
    monkeypatch.setattr("masksmith.data.decode.pictures._LARGE", 1)
    for raw, image in zip(files, expected, strict=True):
        found = decode_image(raw, where="x", keep_alpha=True)
        assert found.dtype == image.dtype
        np.testing.assert_array_equal(found, image)
