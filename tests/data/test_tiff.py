"""TIFF files of many bands: every layout and type comes out as it went in, and damage is named."""

import contextlib
import io
import struct

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from masksmith.core.errors import InputError
from masksmith.data.decode import tiff as decode_tiff
from masksmith.data.decode.palette import decode_indices, read_palette
from masksmith.data.decode.pictures import decode_image
from masksmith.data.masks import mask_levels

SHAPE = (24, 32, 5)


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack"} | options)
    return file.getvalue()


def numbers(dtype, shape=SHAPE):
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 50, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def same(raw, image):
    """Whether the file is decoded into these values, of this type, in the machine's order."""
    found = decode_image(raw, where="a.tif")
    assert (found.dtype, found.dtype.isnative, found.flags.c_contiguous) == (image.dtype, True, True)
    np.testing.assert_array_equal(found, image)


def test_every_layout_and_type():
    for dtype in decode_tiff.TYPES:
        image = numbers(dtype)
        for options in (
            {"planarconfig": "contig"},
            {"planarconfig": "contig", "compression": "zlib"},
            {"planarconfig": "contig", "tile": (16, 16)},
            {"planarconfig": "contig", "byteorder": ">"},
            {"planarconfig": "separate"},
            {"planarconfig": "separate", "compression": "zlib", "tile": (16, 16)},
            {},  # a page a band
        ):
            planes = image if options.get("planarconfig") == "contig" else np.moveaxis(image, 2, 0)
            same(tiff(planes, **options), image)
    image = numbers(np.int16)
    same(tiff(image, planarconfig="contig", compression="zlib", predictor=True), image)
    same(tiff(numbers(np.uint16, (9, 7, 3)), planarconfig="contig"), numbers(np.uint16, (9, 7, 3)))
    for channels in (1, 2, 4, 13):
        image = numbers(np.int16, (9, 7, channels))
        same(tiff(image, planarconfig="contig") if channels > 1 else tiff(image[..., 0]), image)


def test_pictures_are_read_as_before():
    """Grey, colours, and colours with a fourth sample, which is dropped where the file calls it alpha."""
    rgb, grey = numbers(np.uint8, (9, 7, 3)), numbers(np.uint16, (9, 7))
    same(tiff(rgb, photometric="rgb"), rgb)
    same(tiff(grey), grey[..., None])
    alpha = np.concatenate([rgb, grey[..., None].astype(np.uint8)], axis=2)
    raw = tiff(alpha, photometric="rgb", extrasamples=["unassalpha"])
    same(raw, rgb)
    np.testing.assert_array_equal(decode_image(raw, where="a.tif", keep_alpha=True), alpha)
    assert decode_tiff.decode_bands(tiff(rgb, photometric="rgb"), where="a.tif") is None
    same(tiff(alpha, photometric="rgb", extrasamples=["unspecified"]), alpha)
    same(tiff(alpha, planarconfig="contig"), alpha)
    floats = numbers(np.float32, (6, 8))
    same(cv2.imencode(".tiff", floats, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes(), floats[..., None])


def test_pictures_in_planes_and_of_16_bits():
    """OpenCV alone misreads half of these forms."""
    for channels, options in (
        (3, {"photometric": "rgb"}),
        (4, {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
        (2, {"extrasamples": ["unassalpha"]}),
    ):
        for dtype in (np.uint8, np.uint16):
            image = numbers(dtype, (9, 7, channels))
            for planarconfig in ("contig", "separate"):
                laid = image if planarconfig == "contig" else np.moveaxis(image, 2, 0)
                wanted = image[..., : 3 if channels > 2 else 1]
                same(tiff(laid, planarconfig=planarconfig, **options), wanted)


def test_smaller_copies_are_no_bands():
    image, file = numbers(np.int16), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(image, photometric="minisblack", planarconfig="contig")
        writer.write(image[::2, ::2], photometric="minisblack", planarconfig="contig", subfiletype=1)
    same(file.getvalue(), image)


def test_no_data_of_floats_is_nan_and_whole_numbers_stay():
    for declared in ("nan", "-9999", "-3.4028234663852886e+38"):
        image = numbers(np.float32)
        image[0, 0, 0], image[1, 1, 1], image[2, 2, 2] = np.nan, np.inf, np.float32(declared)
        raw = tiff(image, planarconfig="contig", extratags=[(42113, "s", 0, declared, True)])
        found = decode_image(raw, where="a.tif")
        assert np.isnan(found[[0, 1, 2], [0, 1, 2], [0, 1, 2]]).all()
        assert np.isnan(found).sum() == 3
    image = numbers(np.int16)
    image[0, 0, 0] = -9999
    same(tiff(image, planarconfig="contig", extratags=[(42113, "s", 0, "-9999", True)]), image)


def test_forms_that_are_refused():
    for raw, message in (
        *(
            (
                tiff(np.ones(SHAPE, dtype), planarconfig="contig"),
                f"pixels of type {dtype}; expected numbers",
            )
            for dtype in ("complex64", "complex128")
        ),
        (tiff(np.ones((3, *SHAPE), np.int16), planarconfig="contig"), "3 pages of 5 bands each"),
        (
            tiff(numbers(np.int16), planarconfig="contig", extratags=[(274, "H", 1, 6, True)]),
            r"stored turned or mirrored \(orientation 6\)",
        ),
        (
            tiff(np.ones((16, 32, 32), np.int16), tile=(16, 16, 16), volumetric=True),
            "pixels in the order ZYX; expected rows, columns and bands",
        ),
    ):
        with pytest.raises(InputError, match=f"a.tif: .*{message}"):
            decode_image(raw, where="a.tif")
    raw = tiff(np.full((4, 4), 0.5, np.float32))
    with pytest.raises(InputError, match=r"m.tif: a mask of float32 with the value 0.5; expected"):
        mask_levels(decode_image(raw, where="m.tif"), where="m.tif")


def test_what_would_not_fit_is_refused_before_memory_is_asked_for(monkeypatch):
    monkeypatch.setattr(decode_tiff, "MAX_BYTES", 24 * 32 * 5 * 2 - 1)
    message = r"a.tif: 5 bands of 24x32 take 7,680 bytes; at most 7,679"
    for options in ({"planarconfig": "contig"}, {}):
        image = numbers(np.int16) if options else np.moveaxis(numbers(np.int16), 2, 0)
        with pytest.raises(InputError, match=message):
            decode_image(tiff(image, **options), where="a.tif")


def test_more_blocks_than_bytes_are_refused_at_once():
    raw = tiff(numbers(np.int16), planarconfig="contig", rowsperstrip=1)
    with tifffile.TiffFile(io.BytesIO(raw)) as file:
        rows, width = (file.pages.first.tags[name].valueoffset for name in ("ImageLength", "ImageWidth"))
    changed = bytearray(raw)
    for at, number in ((rows, 2**22), (width, 1)):  # 4,194,304 rows, a block each, of which 24 are there
        changed[at : at + 4] = struct.pack("<I", number)
    with pytest.raises(
        InputError, match=r"a.tif: 4,194,304 blocks of pixels in [0-9,]+ bytes; the file is damaged"
    ):
        decode_image(bytes(changed), where="a.tif")


def test_a_compression_without_its_package_names_it(monkeypatch):
    def missing(*_):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", missing)
    with pytest.raises(InputError, match=r"without the package imagecodecs .*masksmith\[readers\]"):
        decode_image(tiff(numbers(np.int16), planarconfig="contig"), where="a.tif")


def test_files_that_are_cut_off_or_damaged():
    for options in ({}, {"compression": "zlib"}, {"tile": (16, 16), "compression": "zlib"}):
        raw = tiff(numbers(np.int16), planarconfig="contig", **options)
        for share in (0.1, 0.5, 0.9):  # tifffile writes the pixels last: what is lost is not in the header
            with pytest.raises(
                InputError, match=r"a.tif: (a block of pixels is missing|the file is damaged|the file c)"
            ):
                decode_image(raw[: int(share * len(raw))], where="a.tif")
    raw = bytearray(tiff(numbers(np.int16), planarconfig="contig", compression="zlib"))
    at = len(raw) // 2
    raw[at : at + 40] = bytes(40)
    with pytest.raises(InputError, match=r"a.tif: the file is damaged \("):
        decode_image(bytes(raw), where="a.tif")


def test_a_block_that_was_never_written():
    raw = tiff(numbers(np.int16), planarconfig="contig")
    with tifffile.TiffFile(io.BytesIO(raw)) as file:
        tag = file.pages.first.tags["StripByteCounts"]
        at, kind = tag.valueoffset, {3: "<H", 4: "<I"}[int(tag.dtype)]
    hollow = bytearray(raw)
    hollow[at : at + struct.calcsize(kind)] = struct.pack(kind, 0)
    with pytest.raises(InputError, match=r"a block of pixels is missing \(bytes \d+ to \d+ of \d+\)"):
        decode_image(bytes(hollow), where="a.tif")


def test_pages_in_a_circle():
    raw = bytearray(tiff(numbers(np.int16), planarconfig="contig"))
    (start,) = struct.unpack_from("<I", raw, 4)
    (count,) = struct.unpack_from("<H", raw, start)
    struct.pack_into("<I", raw, start + 2 + 12 * count, start)
    with pytest.raises(InputError, match=r"a.tif: its pages follow each other in a circle"):
        decode_image(bytes(raw), where="a.tif")
    struct.pack_into("<I", raw, start + 2 + 12 * count, 2**31)
    with pytest.raises(InputError, match=r"a.tif: the file is cut off within its pages"):
        decode_image(bytes(raw), where="a.tif")


@pytest.mark.slow
def test_damage_anywhere_is_refused_or_harmless():
    """Whatever bytes are overwritten, the answer is an image or an InputError."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        raw = bytearray(tiff(numbers(np.int16, (8, 8, 3)), planarconfig="contig", compression="zlib"))
        for at in rng.integers(8, len(raw), 6):
            raw[at] = int(rng.integers(256))
        with contextlib.suppress(InputError):
            assert decode_image(bytes(raw), where="a.tif").ndim == 3


def pillow(image, mode, **options):
    file = io.BytesIO()
    Pillow.fromarray(image).convert(mode).save(file, "TIFF", **options)
    return file.getvalue()


def test_every_compression_that_a_library_reads():
    """OpenCV makes black pictures of some of them, without a word."""
    grey, wide = numbers(np.uint8, (40, 50)), numbers(np.uint16, (40, 50))
    rgb = numbers(np.uint8, (40, 50, 3))
    for compression in (None, "lzw", "packbits", "zlib", "zstd", "lerc", "lzma", "png"):
        same(tiff(grey, compression=compression), grey[..., None])
        same(tiff(wide, compression=compression), wide[..., None])
        same(tiff(rgb, photometric="rgb", compression=compression), rgb)
    lossless = {"compression": "jpeg2000", "compressionargs": {"reversible": True}}
    same(tiff(wide, **lossless), wide[..., None])
    same(tiff(rgb, photometric="rgb", bigtiff=True), rgb)
    same(tiff(numbers(np.int16), planarconfig="contig", bigtiff=True, byteorder=">"), numbers(np.int16))


def test_bits_inks_and_palettes():
    bits, rgb = numbers(np.uint8, (24, 40)) > 99, numbers(np.uint8, (24, 40, 3))
    for options in ({}, {"compression": "group4"}):
        same(pillow(bits.astype(np.uint8) * 255, "1", **options), (bits * np.uint8(255))[..., None])
    same(tiff(bits, photometric="miniswhite"), (~bits * np.uint8(255))[..., None])
    grey = numbers(np.uint8, (24, 40))
    for compression in ("lzw", "zstd"):
        same(tiff(grey, photometric="miniswhite", compression=compression), 255 - grey[..., None])
    inks = Pillow.fromarray(rgb).convert("CMYK")
    file = io.BytesIO()
    inks.save(file, "TIFF")
    same(file.getvalue(), np.asarray(inks.convert("RGB")))
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 1:4] = np.eye(3) * 65535
    classes = grey % 4
    for compression in (None, "zlib", "zstd"):
        raw = tiff(classes, photometric="palette", colormap=colours, compression=compression)
        same(raw, (colours.T >> 8).astype(np.uint8)[classes])
        assert read_palette(raw)[:3] == ((0, 0, 0), (255, 0, 0), (0, 255, 0))
        np.testing.assert_array_equal(decode_indices(raw, where="a.tif"), classes)
    with pytest.raises(InputError, match=r"a\.tif: a block of pixels is missing"):
        decode_indices(raw[:-9], where="a.tif")
    greys = np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))
    assert read_palette(tiff(classes, photometric="palette", colormap=greys)) == ()
    assert read_palette(raw[:50]) == ()


def test_the_tags_of_a_geotiff_are_not_muttered_about(capfd):
    tags = [(33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0.0,) * 6, True)]
    for image in (numbers(np.uint8, (9, 7)), numbers(np.uint16, (9, 7))):
        same(tiff(image, extratags=[*tags, (42113, "s", 0, "nan", True)]), image[..., None])
    said = capfd.readouterr()
    assert said.err + said.out == ""


@pytest.mark.real
def test_chips_have_rasterios_values(shared):
    import rasterio

    for path in sorted((shared / "data/sen1floods11-sample").glob("*/*.tif")):
        with rasterio.open(path) as file:
            wanted, declared = np.moveaxis(file.read(), 0, 2), file.nodata
        found = decode_image(path.read_bytes(), where=path.name)
        np.testing.assert_equal(decode_tiff.read_no_data(path.read_bytes()), declared)
        np.testing.assert_array_equal(found, wanted)
