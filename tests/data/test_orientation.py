"""Photographs stored turned or mirrored, and what decoding libraries say of damage."""

import io
import os

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.decode.muttering import listen
from masksmith.data.decode.orientation import as_stored, is_sideways, read_orientation, set_upright
from masksmith.data.decode.pictures import decode_image
from masksmith.data.layouts import read_catalog

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")


def saved(picture, form, orientation=None, **options):
    if orientation is not None:
        exif = Image.Exif()
        exif[274] = orientation
        options |= {"tiffinfo": {274: orientation}} if form == "TIFF" else {"exif": exif}
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def photograph(hw=(40, 60)):
    small = np.random.default_rng(0).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(small, hw[::-1]))


@pytest.mark.parametrize("form", FORMATS)
def test_upright_as_pillow_turns_it_and_as_stored(form):
    picture = photograph()
    for orientation in range(1, 9):
        raw = saved(picture, form, orientation)
        assert (read_orientation(raw), is_sideways(raw)) == (orientation, orientation > 4)
        stored = np.asarray(Image.open(io.BytesIO(saved(picture, form))).convert("RGB"))
        turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB"))
        for found, truth in (
            (decode_image(raw, where="a"), turned),
            (decode_image(raw, where="a", upright=False), stored),
        ):
            assert found.shape == truth.shape
            assert np.abs(found.astype(int) - truth).max() <= 3  # of two JPEG and WebP decoders
        np.testing.assert_array_equal(as_stored(set_upright(stored, orientation), orientation), stored)


def test_without_an_orientation():
    for form in FORMATS:
        assert read_orientation(saved(photograph(), form)) == 1
    assert read_orientation(b"") == read_orientation(b"RIFF") == 1


@given(st.sampled_from(FORMATS), st.data())
def test_mutated_headers_have_some_orientation(form, data):
    raw = bytearray(saved(Image.new("RGB", (5, 4)), form, 6))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, min(len(raw), 300) - 1))] = data.draw(st.integers(0, 255))
    assert 1 <= read_orientation(bytes(raw[: data.draw(st.integers(0, len(raw)))])) <= 8


def test_the_masks_tell_whether_images_are_turned(tmp_path):
    for name, mask_hw in (("upright", (60, 40)), ("stored", (40, 60))):
        root = tmp_path / name
        for kind in ("images", "masks", "test"):
            (root / kind).mkdir(parents=True)
        for at, orientation in enumerate((6, 8, 1, 3)):  # 3: the sizes tell nothing
            hw = mask_hw if orientation in (6, 8) else (40, 60)
            (root / "images" / f"{at}.jpg").write_bytes(saved(photograph(), "JPEG", orientation))
            cv2.imwrite(str(root / "masks" / f"{at}.png"), np.eye(*hw, dtype=np.uint8))
        (root / "test" / "t.jpg").write_bytes(saved(photograph(), "JPEG", 6))
        cache = build_cache(read_catalog(root), tmp_path / f"cache {name}")
        upright = name == "upright"
        assert cache.train_images["0"].shape[:2] == cache.test_images["t"].shape[:2] == mask_hw
        for at in range(4):
            raw = (root / "images" / f"{at}.jpg").read_bytes()
            truth = decode_image(raw, where="a", upright=upright)
            np.testing.assert_array_equal(cache.train_images[str(at)], truth)
        (said,) = cache.mask_findings
        assert said.ids == ["0", "1", "3", "t"] or sorted(said.ids) == ["0", "1", "3", "t"]
        assert said.detail.startswith(
            "4 images are stored turned" if upright else "4 images have an EXIF orientation"
        )


def test_a_mask_turned_as_its_image(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(saved(photograph(), "JPEG", 6))
    mask = Image.fromarray(np.eye(40, 60, dtype=np.uint8) * 255)
    (tmp_path / "masks" / "a.png").write_bytes(saved(mask, "PNG", 6))
    cache = build_cache(read_catalog(tmp_path), tmp_path / "cache")
    np.testing.assert_array_equal(cache.train_masks["a"][..., 0], np.rot90(np.eye(40, 60), -1))


# --- forms that OpenCV misreads, and damage ---------------------------------------------------------------


def test_forms_of_pictures_as_pillow_reads_them():
    picture = photograph()
    for form, mode, options in (
        ("GIF", "RGB", {}),
        ("GIF", "L", {}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("WEBP", "RGB", {"lossless": True}),
        ("PNG", "LA", {}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "1", {}),
        ("BMP", "P", {}),
    ):
        raw = saved(picture.convert(mode), form, **options)
        truth = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
        found = decode_image(raw, where="a")
        assert np.abs(np.broadcast_to(found, truth.shape).astype(int) - truth).max() == 0, (form, mode)
    kept = decode_image(saved(picture.convert("LA"), "PNG"), where="a", keep_alpha=True)
    assert kept.shape[2] in (2, 4)


def test_animations_and_damaged_gifs_are_refused():
    picture = photograph()
    raw = saved(picture, "GIF", save_all=True, append_images=[picture.rotate(90)])
    with pytest.raises(InputError, match=r"^a.gif: an animation; expected one, save each as a file"):
        decode_image(raw, where="a.gif")
    for raw in (saved(picture, "GIF")[:300], b"GIF89a" + bytes(20), b"GIF89a\x05\x00\x05\x00" + b"\xff" * 30):
        with pytest.raises(InputError, match=r"^a.gif: "):
            decode_image(raw, where="a.gif")
    with pytest.raises(InputError, match=r"^a.webp: "):
        decode_image(saved(picture, "WEBP")[:200], where="a.webp")


@given(st.sampled_from(["GIF", "WEBP", "JPEG", "CMYK"]), st.data())
def test_mutated_pictures_are_read_or_refused(form, data):
    picture = photograph((9, 7)).convert("CMYK" if form == "CMYK" else "RGB")
    raw = bytearray(saved(picture, "JPEG" if form == "CMYK" else form))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode_image(bytes(raw), where="a").ndim == 3
    except InputError:
        return


def test_what_libraries_print_is_an_error_or_nothing(capfd):
    raw = saved(photograph((80, 100)), "JPEG", quality=90)
    with pytest.raises(
        InputError, match=r"^a.jpg: the file is damaged \(Corrupt JPEG data: premature end of data"
    ):
        decode_image(raw[: len(raw) * 3 // 4] + b"\xff\xd9", where="a.jpg")
    extraneous = raw[:-2] + b"\0\0\0" + raw[-2:]
    np.testing.assert_array_equal(decode_image(extraneous, where="a.jpg"), decode_image(raw, where="a.jpg"))
    assert listen(lambda: os.write(2, b"libpng warning: iCCP\nsomebody else\n")) == (
        35,
        ["libpng warning: iCCP"],
    )
    assert capfd.readouterr().err == "somebody else\n"
    with pytest.raises(ValueError, match="x"):
        listen(lambda: (_ for _ in ()).throw(ValueError("x")).__next__())
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"
