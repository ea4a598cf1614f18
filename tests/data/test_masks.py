"""What mask files mean: by file and by set, on the way from a folder to the cache."""

import re

import cv2
import numpy as np
import pytest
import tifffile

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.georeference import Georeference, differing_grids
from masksmith.data.layouts import read_catalog
from masksmith.data.masks import find_convention, is_lossy, look_at_mask, mask_levels

HW = (24, 20)


def disc(*values, hw=HW, seed=0):
    """A ground of the first value, and a disc of each other."""
    rng, mask = np.random.default_rng(seed), np.full(hw, values[0], np.int32)
    drawn = mask.copy()
    for at, value in enumerate(values[1:]):
        centre = (int(hw[1] * (at + 1) / len(values)), int(rng.integers(hw[0] // 3, hw[0] // 2)))
        cv2.circle(drawn, centre, min(hw) // (2 * len(values)), int(value), -1)
    return drawn


def look(*masks):
    """The convention of masks, given as lists of values, (dtype, values) or arrays; JPEG where it is uint8 bytes."""
    files = []
    for at, mask in enumerate(masks):
        dtype, values = mask if isinstance(mask, tuple) else (np.int16, mask)
        levels = mask_levels(np.array([values], dtype)[..., None], where=f"{at}.png")
        files.append(look_at_mask(levels, name=str(at), path=f"{at}.png", lossy=False))
    return find_convention(files, where="masks")


def meaning(convention, values, dtype=np.int16):
    levels = mask_levels(np.array([values], dtype)[..., None], where="m")
    return convention.apply(levels, lossy=False)[0].tolist()


def folder(root, masks, *, suffixes=(".png",)):
    """A data set with a noise image for each mask; masks take turns with the suffixes."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(1)
    for at, mask in enumerate(masks):
        cv2.imwrite(str(root / "images" / f"{at}.png"), rng.integers(0, 255, mask.shape, dtype=np.uint8))
        file = root / "masks" / f"{at}{suffixes[at % len(suffixes)]}"
        cv2.imwrite(str(file), mask.astype(np.uint16 if mask.max() > 255 else np.uint8))
    return root


def masks_of(data, cache):
    found = build_cache(read_catalog(data), cache)
    return {name: found.train_masks[name][..., 0] for name in found.train_masks}, found.mask_findings


# --- conventions ------------------------------------------------------------------------------------------


def test_two_values_are_background_and_foreground():
    for values, expected in (
        ([0, 255], [0, 1]),
        ([0, 1], [0, 1]),
        ([0, 38], [0, 1]),
        ([1, 2], [0, 1]),
        ([-1, 1], [255, 1]),
        ([255], [1]),
    ):
        found = look(values)
        assert meaning(found, values) == expected
        assert found.findings == []


def test_each_file_by_its_own_convention():
    found = look([0, 1], [0, 0], [0, 255], [255, 255], [1, 1], [0, 1], (np.uint16, [0, 65535]))
    assert [meaning(found, one) for one in ([0, 1], [0, 255], [255], [1])] == [[0, 1], [0, 1], [1], [1]]
    (said,) = found.findings
    assert said.detail == "3 masks hold 0 and 1, 3 hold 0 and 255; read as one binary set"
    assert (said.level, said.ids) == ("note", ["0", "4", "5"])


def test_a_file_with_1_and_255_proves_that_255_is_not_judged():
    found = look([0, 1, 255], [0, 1], [-1, 0])
    assert meaning(found, [-1, 0, 1, 255]) == [255, 0, 1, 255]
    (said,) = found.findings
    assert said.detail == "255 occurs beside 1 in 1 masks, so it is not judged (14.29% of all pixels)"
    found = look([0, 1, 255], [0, 1], [0, 255], [0, 255])
    assert meaning(found, [0, 255]) == [0, 255]
    doubt = found.findings[1]
    assert (doubt.level, doubt.ids) == ("warning", ["2", "3"])
    assert doubt.detail.startswith("2 masks hold 255 and no 1; it is read as not judged in them too")


def test_values_that_can_be_read_in_two_ways_are_refused():
    for masks, message in (
        (([0, 1], [255, 255]), r"1 masks hold 1, and 1 hold 255 alone: either .*; write 1 in them.*: 1.png"),
        (
            ([0, 1, 255], [0, 255], [0, 255]),
            r"255 occurs beside 1 in 1 masks \(0.png\), .* without 1 in 2 \(1.png, 2.png\)",
        ),
        (
            ([0, 1, 255], [0, 1], *[[0, 255]] * 11),
            r"255 occurs beside 1 in 1 masks \(0.png\), .* without 1 in 11 \(2.png",
        ),
        (([1, 255], [1, 255]), r"1 and 255 and no 0: .*: 0.png, 1.png"),
        (([1, 1], [255, 255]), r"1 and 255 and no 0"),
        (
            ([0, 1, 2], [0, 1]),
            r"3 different values \(0, 1, 2\); .* 100% have no equal neighbour .*: smoothed edges",
        ),
        (([0, 1], [0, 1], [0, 38]), r"3 different values \(0, 1, 38\); .*1 of 3 masks: 2.png: 0, 38"),
        (([-2, 0, 1],), r"3 different values \(-2, 0, 1\)"),
        (((np.uint16, [0, 255, 65535]),), r"3 different values \(0, 255, 65535\)"),
    ):
        with pytest.raises(InputError, match=message):
            look(*masks)


def test_no_masks():
    for mask, message in (
        (np.array([[[0, 1, 2]]], np.uint8), "m.png: a mask in colours"),
        (
            np.full((2, 2, 1), 0.5, np.float32),
            "m.png: a mask of float32 with the value 0.5; expected whole numbers",
        ),
    ):
        with pytest.raises(InputError, match=message):
            mask_levels(mask, where="m.png")


def test_half_the_masks_0_and_1_half_0_and_255(tmp_path):
    truth = [disc(0, 1, seed=at) for at in range(6)]
    data = folder(
        tmp_path / "data", [one * factor for one, factor in zip(truth, (1, 255, 65535) * 2, strict=True)]
    )
    masks, findings = masks_of(data, tmp_path / "cache")
    for at, one in enumerate(truth):
        np.testing.assert_array_equal(masks[str(at)], one)
    assert findings[0].detail.startswith("2 masks hold 0 and 1, 4 hold 0 and 255")
    _, again = masks_of(data, tmp_path / "cache")  # said of a cache that is there, too
    assert again == findings
    (tmp_path / "cache" / "masks.json").unlink()
    assert masks_of(data, tmp_path / "cache")[1] == findings
    report = ms.check(data)
    assert "note: two conventions of masks: 2 masks hold 0 and 1" in str(report)


def test_masks_that_are_all_empty(tmp_path):
    for name, value in (("a", 0), ("b", 0)):
        data = folder(tmp_path / name, [np.full(HW, value)] * 2)
        with pytest.raises(InputError, match="every mask is empty"):
            masks_of(data, tmp_path / f"cache {name}")


# --- JPEG -------------------------------------------------------------------------------------------------


def test_jpeg_is_known_by_its_bytes():
    mask = np.zeros(HW, np.uint8)
    assert [is_lossy(cv2.imencode(suffix, mask)[1].tobytes()) for suffix in (".jpg", ".png")] == [True, False]


def test_binary_jpeg_masks_beside_png(tmp_path):
    truth = [disc(0, 1, hw=(64, 60), seed=at) for at in range(4)]
    masks = [one * top for one, top in zip(truth, (255, 1) * 2, strict=True)]
    data = folder(tmp_path / "data", masks, suffixes=(".jpg", ".png"))
    found, (said,) = masks_of(data, tmp_path / "cache")
    for at, one in enumerate(truth):
        assert set(np.unique(found[str(at)])) == {0, 1}
        assert (found[str(at)] != one).mean() < 0.002
    assert re.match(
        r"2 masks are JPEG: lossy, thresholded at 128; \d+ of 7680 pixels \(\d\.\d\d%\) lie between 32 and 223",
        said.detail,
    )


def test_jpeg_masks_of_any_quality_and_of_soft_edges_stay_binary():
    for quality in (10, 50, 95):
        for soften in (lambda one: one, lambda one: cv2.GaussianBlur(one, (0, 0), 2)):
            mask = soften((disc(0, 255, hw=(96, 96))).astype(np.uint8))
            raw = cv2.imencode(".jpg", mask, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            levels = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE)
            file = look_at_mask(levels, name="a", path="a.jpg", lossy=True)
            np.testing.assert_array_equal(
                find_convention([file], where="m").apply(levels, lossy=True), levels >= 128
            )


def test_jpeg_masks_of_several_classes_are_refused(tmp_path):
    classes = [disc(0, 85, 170, 255, hw=(80, 80), seed=at) for at in range(7)]
    with pytest.raises(InputError, match="7 masks cannot be used:") as caught:
        masks_of(folder(tmp_path / "a", classes, suffixes=(".jpg",)), tmp_path / "cache a")
    assert str(caught.value).count("a JPEG mask with values near") == 7
    near = re.search(
        r"0.jpg: a JPEG mask with values near ([\d, ]+);.* export it as PNG again", str(caught.value)
    )
    np.testing.assert_allclose(list(map(int, near[1].split(", "))), [0, 85, 170, 255], atol=9)
    one = [disc(0, 255, hw=(80, 80)), disc(0, 128, 255, hw=(80, 80))]
    with pytest.raises(InputError, match=r"^masks/1.jpg: a JPEG mask with values near"):
        masks_of(folder(tmp_path / "b", one, suffixes=(".jpg",)), tmp_path / "cache b")


def test_faint_jpeg_masks(tmp_path):
    faint = [disc(0, 1, hw=(64, 60))] * 2
    with pytest.raises(InputError, match="2 JPEG masks hold values above 0 and none from 128 on"):
        masks_of(folder(tmp_path / "a", faint, suffixes=(".jpg",)), tmp_path / "cache a")
    mixed = [*faint, disc(0, 255, hw=(64, 60))]
    _, findings = masks_of(folder(tmp_path / "b", mixed, suffixes=(".jpg",)), tmp_path / "cache b")
    assert [(one.level, one.ids) for one in findings] == [("note", []), ("warning", ["0", "1"])]


# --- where masks lie --------------------------------------------------------------------------------------


def tags(code=32630, origin=(500000.0, 4200000.0), pixel=10.0, *, point=False):
    """GeoTIFF's tags of a north-up grid."""
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 2 if point else 1, 3072, 0, 1, code)
    corner = (pixel / 2, -pixel / 2) if point else (0.0, 0.0)
    place = (0.0, 0.0, 0.0, origin[0] + corner[0], origin[1] + corner[1], 0.0)
    return [
        (33550, "d", 3, (pixel, pixel, 0.0), True),
        (33922, "d", 6, place, True),
        (34735, "H", len(keys), keys, True),
    ]


def scenes(root, masks):
    """A data set of GeoTIFFs; each mask has the tags that are given, None: none."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(1)
    for at, extra in enumerate(masks):
        image = rng.integers(0, 4095, (*HW, 4)).astype(np.uint16)
        tifffile.imwrite(
            root / "images" / f"{at}.tif",
            image,
            photometric="minisblack",
            planarconfig="contig",
            extratags=tags(),
        )
        mask = disc(0, 1, seed=at).astype(np.uint8)
        tifffile.imwrite(root / "masks" / f"{at}.tif", mask, extratags=extra or [])
    return root


def test_masks_on_the_grid_of_their_image(tmp_path):
    turned = (10.0, 0, 0, 500000.0, 0, -10.0, 0, 4200000.0, 0, 0, 1, 0, 0, 0, 0, 1)
    matrix = [(34264, "d", 16, turned, True), tags()[2]]
    nearly = tags(pixel=10 + 1e-9)
    data = scenes(tmp_path / "data", [tags(), None, tags(point=True), matrix, nearly, tags()[:2]])
    masks, _ = masks_of(data, tmp_path / "cache")
    assert len(masks) == 6


def test_masks_that_lie_elsewhere_are_refused_all_at_once(tmp_path):
    others = [tags(32631), tags(origin=(500005.0, 4200000.0)), tags(pixel=20.0), tags()]
    with pytest.raises(InputError, match="3 masks cannot be used") as caught:
        masks_of(scenes(tmp_path / "data", others), tmp_path / "cache")
    for line in (
        "masks/0.tif: the mask is in EPSG:32631, its image in EPSG:32630; reproject or resample the mask onto the grid "
        "of images/0.tif",
        "masks/1.tif: the mask lies on another grid (origin (500005, 4200000), pixels of 10x10) than its image "
        "(origin (500000, 4200000), pixels of 10x10)",
        "masks/2.tif: the mask lies on another grid (origin (500000, 4200000), pixels of 20x20)",
    ):
        assert line in str(caught.value)


def test_reference_systems_without_a_code():
    affine = (10.0, 0.0, 0.0, 0.0, -10.0, 0.0)
    own, other = (Georeference(((3072, 32767), (34736, (value,))), affine) for value in (1.0, 2.0))
    assert differing_grids(own, own, HW) is None
    assert "in another with the same name, its image in a system of its own" in differing_grids(
        own, other, HW
    )


def test_masks_of_other_sizes_are_refused_all_at_once(tmp_path):
    data = folder(tmp_path / "data", [disc(0, 1, seed=at) for at in range(8)])
    for at in range(7):
        cv2.imwrite(str(data / "masks" / f"{at}.png"), np.ones((3, 3), np.uint8))
    with pytest.raises(
        InputError, match=r"7 masks cannot be used:\n  masks/0.png: the mask is 3x3 but its image"
    ) as caught:
        masks_of(data, tmp_path / "cache")
    assert all(f"masks/{at}.png" in str(caught.value) for at in range(7))
    assert "masks/7.png" not in str(caught.value)


def test_damaged_images_are_refused_all_at_once(tmp_path):
    data = folder(tmp_path / "data", [disc(0, 1, seed=at) for at in range(4)])
    for at in (1, 2):
        (data / "images" / f"{at}.png").write_bytes(b"nothing")
    with pytest.raises(
        InputError, match=r"2 images cannot be used:\n  images/1.png: (?s:.*)images/2.png: the file is not"
    ):
        masks_of(data, tmp_path / "cache")


# --- real sets --------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_jpeg_masks(shared, tmp_path):
    masks, (said,) = masks_of(shared / "data" / "kvasir-seg-sample", tmp_path)
    assert all(0.01 < mask.mean() < 0.8 for mask in masks.values())
    assert said.detail.startswith("5 masks are JPEG: lossy, thresholded at 128; 0 of 2753041 pixels (0.00%)")
