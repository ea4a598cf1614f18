import struct
import zlib

import cv2
import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.data.decode import pictures
from masksmith.data.decode.headers import MAX_PIXELS, image_size
from masksmith.data.decode.pictures import decode_image


def chunk(kind, content):
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(width, height, *, rows=None, extra=b"", depth=8):
    """A grey PNG that claims width x height and holds ``rows`` black rows."""
    pixels = zlib.compress((b"\0" + b"\0" * -(-width * depth // 8)) * (height if rows is None else rows), 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg(claim=None, shape=(30, 50), **options):
    flags = [value for pair in options.items() for value in pair]
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    raw = cv2.imencode(
        ".jpg", image, [getattr(cv2, name) if isinstance(name, str) else name for name in flags]
    )[1]
    raw = raw.tobytes()
    if claim is None:
        return raw
    at = raw.index(b"\xff\xc0") + 5
    return raw[:at] + struct.pack(">HH", *claim) + raw[at + 4 :]


def tiff(height, width, *, order="<", kind=4):
    """A TIFF of nothing but a header."""
    form = {1: "Bxxx", 3: "Hxx", 4: "I"}[kind]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    tags = [(256, width), (257, height)]
    body = b"".join(struct.pack(f"{order}HHI{form}", tag, kind, 1, value) for tag, value in tags)
    return mark + struct.pack(f"{order}IH", 8, 2) + body + bytes(4)


@pytest.fixture
def no_decoder(monkeypatch):
    """Nothing may reach the decoder."""

    def refuse(*_arguments):
        raise AssertionError("the decoder was called")

    monkeypatch.setattr(pictures.cv2, "imdecode", refuse)


def test_sizes_of_real_files():
    for suffix in (".png", ".jpg", ".bmp", ".tiff"):
        for shape in ((30, 50), (1, 7), (300, 200, 3)):
            image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
            raw = cv2.imencode(suffix, image)[1].tobytes()
            assert image_size(raw) == decode_image(raw, where="a").shape[:2] == shape[:2]


def test_sizes_of_other_headers():
    progressive, plain = jpeg(IMWRITE_JPEG_PROGRESSIVE=1, IMWRITE_JPEG_RST_INTERVAL=2), jpeg()
    assert b"\xff\xc2" in progressive
    metadata = b"\xff\xe1" + struct.pack(">H", 65_002) + b"Exif\0\0" + bytes(64_994)
    for raw in (
        progressive,
        plain[:2] + b"\xff" * 3 + plain[2:],  # fill bytes before a marker
        plain[:3] + b"\x01\xff" + plain[3:],  # a marker without a length
        plain[:2] + metadata * 1000 + plain[2:],  # in no time
        b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 50, 30, 1, 24),
        b"BM" + bytes(12) + struct.pack("<Iii", 40, 50, -30),  # from top to bottom
        *(tiff(30, 50, order=order, kind=kind) for order in "<>" for kind in (1, 3, 4)),
    ):
        assert image_size(raw) == (30, 50)


def test_headers_without_a_size():
    for raw in (
        b"",
        b"GIF89a" + bytes(40),
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        png(5, 5)[:20],
        png(0, 5),
        jpeg()[:30],
        jpeg()[:2] + b"\xff\xda" + bytes(2),
        jpeg((0, 50)),
        b"BM" + bytes(10),
        b"BM" + bytes(12) + struct.pack("<Iii", 40, -5, 5),
        tiff(30, 50)[:15],
        b"II*\0" + struct.pack("<IH", 8, 0),
    ):
        assert image_size(raw) is None


def test_more_pixels_than_are_read_or_than_the_bytes_hold(no_decoder):
    assert MAX_PIXELS == 2**29
    for raw in (
        png(24_000, 24_000, rows=1),
        jpeg((60_000, 60_000)),
        tiff(2**17, 2**17),
        b"BM" + bytes(12) + struct.pack("<Iii", 40, 2**20, -(2**20)),
    ):
        with pytest.raises(
            InputError, match=rf"a\.png: the header claims .* pixels; at most {MAX_PIXELS:,} an image"
        ):
            decode_image(raw, where="a.png")
    for raw in (png(16_000, 16_000, rows=1), jpeg((16_000, 16_000))):
        with pytest.raises(
            InputError, match=r"a: the header claims 16000x16000 = 256,000,000 pixels, which [\d,]+ bytes"
        ):
            decode_image(raw, where="a")


def test_honest_images_near_the_limits_pass():
    assert decode_image(png(16384, 1, depth=1), where="a.png").shape == (1, 16384, 1)
    for depth, most in ((1, 7500), (8, 1000)):
        raw = png(6000, 6000, depth=depth)
        assert 6000 * 6000 / len(raw) > most  # close to the bound
        assert decode_image(raw, where="a").max() == 0
    flags = [cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    raw = cv2.imencode(".jpg", np.zeros((4000, 4000), np.uint8), flags)[1].tobytes()
    assert decode_image(raw, where="a").shape == (4000, 4000, 1)


def test_opencvs_own_limits():
    row = -(-(2**20 + 1) // 32) * 4
    head = struct.pack("<iiHHIIIIII", 2**20 + 1, 1, 1, 1, 0, row, 0, 0, 2, 0)
    bmp = b"BM" + struct.pack("<IHHII", 62 + row, 0, 0, 62, 40) + head + bytes(8) + bytes(row)
    with pytest.raises(InputError, match=r"a: 1x1048577 pixels, refused by OpenCV \(.*CV_IO_MAX_IMAGE_WIDTH"):
        decode_image(bmp, where="a")


def test_fewer_rows_than_the_header_says():
    with pytest.raises(InputError, match="cannot be decoded as an image"):
        decode_image(png(100, 100, rows=50), where="a")


def test_a_decoder_that_sees_another_size(monkeypatch):
    monkeypatch.setattr(pictures, "need_sane_size", lambda _raw, *, where: (20, 10))
    with pytest.raises(InputError, match="a: the header claims 20x10, the pixels are 10x10"):
        decode_image(png(10, 10), where="a")


@pytest.mark.slow
def test_compressed_texts_are_not_unpacked():
    import resource

    bomb = zlib.compress(bytes(400_000_000), 9)
    for kind in (b"zTXt", b"iCCP", b"iTXt"):
        content = b"k\0\0" + bomb if kind != b"iTXt" else b"k\0\1\0\0\0" + bomb
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert decode_image(png(40, 30, extra=chunk(kind, content)), where="a").shape == (30, 40, 1)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
