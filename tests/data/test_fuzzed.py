"""Damage that tools/fuzz.py found: answers are results or InputErrors, and nothing reaches the screen."""

import io
import struct

import cv2
import numpy as np
import pytest
import tifffile
from scipy.io import savemat

from masksmith.core.errors import InputError
from masksmith.data.decode.arrays import decode_mat
from masksmith.data.decode.pictures import decode_image
from masksmith.data.decode.tiff import decode_pages, read_no_data
from masksmith.data.georeference import read_georeference

GREY = np.arange(99, dtype=np.uint16).reshape(9, 11)


def tiff(**options):
    file = io.BytesIO()
    tifffile.imwrite(file, GREY, **options)
    return file.getvalue()


def matlab(*, packed=False, **arrays):
    file = io.BytesIO()
    savemat(file, arrays or {"image": GREY.astype(np.uint8)}, do_compression=packed)
    return file.getvalue()


def test_tags_that_cannot_be_read_say_nothing():
    whole = tiff(metadata=None)
    assert whole[:8] == b"II*\0\x08\0\0\0"
    for damaged in (
        whole[:8] + b"\x88\xe2" + whole[10:],  # 57992 tags
        whole[:10] + b"\0\0" + whole[12:],  # another tag in place of the width
        whole[:40],
    ):
        assert read_georeference(damaged) is None
        assert read_no_data(damaged) is None


def test_a_tile_larger_than_memory_is_refused():
    raw = tiff(tile=(16, 16), compression="zlib", metadata=None)
    at = raw.index(struct.pack("<H", 323), 8)  # TileLength
    raw = raw[:at] + struct.pack("<HHII", 323, 4, 1, 2**30) + raw[at + 12 :]
    with pytest.raises(InputError, match=r"x\.tif: a tile of 34,359,738,368 bytes; at most"):
        decode_pages(raw, "x.tif")


def test_elements_of_matlab_that_c_code_would_trust_are_refused():
    raw = matlab()
    assert decode_mat(raw, "x.mat").shape == (1, 9, 11, 1)
    assert decode_mat(matlab(packed=True), "x.mat").shape == (1, 9, 11, 1)
    nested = {
        "image": GREY.astype(np.uint8),
        "s": {"a": [1, 2], "c": np.array(["x", 3], object)},
        "text": "abc",
    }
    assert decode_mat(matlab(**nested), "x.mat").shape == (1, 9, 11, 1)
    at = raw.index(struct.pack("<II", 2, 99))  # 99 numbers of 8 bits
    for kind, size in ((14, 99), (15, 99), (77, 99), (2, 999)):
        damaged = raw[:at] + struct.pack("<II", kind, size) + raw[at + 8 :]
        with pytest.raises(InputError, match=r"x\.mat: .*element of the type"):
            decode_mat(damaged, "x.mat")
    with pytest.raises(InputError, match="in place of an array"):
        decode_mat(raw[:128] + struct.pack("<II", 2, len(raw) - 136) + raw[136:], "x.mat")


def test_what_opencv_says_of_short_files_is_not_printed(capfd):
    raw = cv2.imencode(".webp", np.zeros((9, 11, 3), np.uint8))[1].tobytes()
    with pytest.raises(InputError, match=r"x\.webp"):
        decode_image(raw[:30], where="x.webp")
    assert capfd.readouterr().err == ""
