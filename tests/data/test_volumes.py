"""Volumes, stacks and arrays: slices as samples, in groups, whatever the orientation of a file."""

import gzip
import io
import json

import cv2
import nibabel
import numpy as np
import pytest
import scipy.io
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.decode.arrays import decode_mat, decode_npy, decode_npz
from masksmith.data.decode.nifti import decode_nifti, read_grid
from masksmith.data.decode.types import as_slices, known_type
from masksmith.data.layouts import read_catalog

SHAPE = (20, 24, 6)  # rows, columns, slices
SPACING = np.diag([1.0, 1.0, 3.0, 1.0])


def volume(seed=0, dtype=np.int16):
    return np.random.default_rng(seed).integers(-900, 900, SHAPE).astype(dtype)


def label(*values, dtype=np.uint8):
    """A block of each value, one after the other, in slices 1 to 4."""
    mask = np.zeros(SHAPE, dtype)
    for at, value in enumerate(values):
        mask[4:10, 5 * at : 5 * at + 4, 1:5] = value
    return mask


def nifti(path, array, affine=SPACING):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def cached(root):
    catalog = read_catalog(root / "data")
    return catalog, build_cache(catalog, root / "cache")


def test_volumes_are_slices_of_a_group_in_one_orientation(tmp_path):
    data = tmp_path / "data"
    for at in range(3):
        nifti(data / f"images/ct{at}.nii.gz", volume(at))
        nifti(data / f"masks/ct{at}.nii.gz", label(1).astype(np.float64))
    nifti(data / "test/ct9.nii", volume(9))
    flipped = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume(1), SPACING))
    flipped = flipped.as_reoriented([[1, -1], [0, 1], [2, -1]])  # other axes, other directions
    nibabel.save(flipped, data / "images/ct1.nii.gz")
    nifti(data / "masks/ct2.nii.gz", label(1), SPACING + np.diag([1e-5, 0, 0, 0]))
    catalog, cache = cached(tmp_path)
    assert (catalog.layout, len(catalog.train), len(catalog.test)) == ("volumes", 18, 6)
    first = catalog.train[7]
    assert (first.id, first.image, first.mask) == ("ct1_001", "images/ct1.nii.gz#1", "masks/ct1.nii.gz#1")
    assert {one.group for one in catalog.train} == {"ct0", "ct1", "ct2"}
    assert catalog.submission.ids == [f"ct9_00{at}" for at in range(6)]
    assert (cache.target.task, cache.train_images.dtype) == ("binary", np.int16)
    for name, seed, at in (("ct0_001", 0, 1), ("ct1_004", 1, 4)):
        np.testing.assert_array_equal(cache.train_images[name][..., 0], volume(seed)[..., at])
        np.testing.assert_array_equal(cache.train_masks[name][..., 0], label(1)[..., at])
    np.testing.assert_array_equal(cache.test_images["ct9_005"][..., 0], volume(9)[..., 5])


def test_the_axis_of_the_largest_voxels_is_cut(tmp_path):
    nifti(tmp_path / "a.nii", volume(), np.diag([1.0, 5.0, 1.0, 1.0]))
    raw = (tmp_path / "a.nii").read_bytes()
    np.testing.assert_array_equal(decode_nifti(raw, "a.nii")[..., 0], np.moveaxis(volume(), 1, 0))
    assert (read_grid(raw, "a.nii").axis, read_grid(raw, "a.nii").count) == (1, 24)
    scaled = nibabel.Nifti1Image(volume(), np.eye(4))
    scaled.header.set_slope_inter(0.5, 10)
    nibabel.save(scaled, tmp_path / "b.nii")
    found = decode_nifti((tmp_path / "b.nii").read_bytes(), "b.nii")
    assert (found.shape, found.dtype) == ((6, 20, 24, 1), np.float32)
    four = np.stack([volume(), volume() + 1], axis=3)
    nifti(tmp_path / "c.nii.gz", four)
    assert decode_nifti((tmp_path / "c.nii.gz").read_bytes(), "c.nii.gz").shape == (6, 20, 24, 2)


def test_masks_that_lie_elsewhere_are_refused_in_one_go(tmp_path):
    for at in range(4):
        nifti(tmp_path / f"images/{at}.nii.gz", volume(at))
        nifti(tmp_path / f"masks/{at}.nii.gz", label(1))
    nifti(tmp_path / "masks/1.nii.gz", label(1)[..., :5])
    nifti(tmp_path / "masks/2.nii.gz", label(1), SPACING @ np.diag([1, 1, 1.2, 1]))
    (tmp_path / "masks/3.nii.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(InputError) as caught:
        read_catalog(tmp_path)
    text = str(caught.value)
    assert "3 files cannot be used" in text
    assert "masks/1.nii.gz: 20x24x5 voxels, and the other has 20x24x6" in text
    assert "masks/2.nii.gz: up to 3 mm beside the other" in text
    assert "masks/3.nii.gz: not a whole NIfTI volume" in text


def dataset_json(folder, **told):
    (folder / "dataset.json").write_text(json.dumps(told))


@pytest.mark.parametrize("version", [1, 2])
def test_the_raw_folder_of_nnunet(version, tmp_path):
    data = tmp_path / "data" / "Dataset001_Brain"
    for at in range(3):
        folder = "imagesTr" if at < 2 else "imagesTs"
        for channel in range(2):
            nifti(data / folder / f"case_{at}_{channel:04d}.nii.gz", volume(at) + channel)
        if at < 2:
            nifti(data / f"labelsTr/case_{at}.nii.gz", label(1, 2, 3))
    names = {"background": 0, "oedema": 1, "core": 2, "ignore": 3, "whole": [1, 2]}
    turned = {"0": "background", "1": "oedema", "2": "core", "3": "ignore"}
    dataset_json(data, labels=names if version == 2 else turned)
    catalog, cache = cached(tmp_path)
    assert (catalog.layout, len(catalog.train), len(catalog.test)) == ("nnunet", 12, 6)
    assert catalog.train[1].bands == [f"Dataset001_Brain/imagesTr/case_0_000{at}.nii.gz#1" for at in range(2)]
    assert (catalog.train[1].id, catalog.train[1].group) == ("case_0_001", "case_0")
    assert (cache.target.classes, cache.channels) == (("background", "oedema", "core"), 2)
    np.testing.assert_array_equal(cache.train_images["case_1_002"][..., 1], volume(1)[..., 2] + 1)
    mask = cache.train_masks["case_1_002"][..., 0]
    assert [mask[5, column] for column in (0, 5, 10)] == [1, 2, 255]


def test_nnunet_of_pictures_and_what_it_lacks(tmp_path):
    data = tmp_path / "data"
    for at in range(2):
        for channel in range(3):
            path = data / f"imagesTr/road_{at}_{channel:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((8, 9), 50 * channel + at, np.uint8))
        (data / "labelsTr").mkdir(exist_ok=True)
        cv2.imwrite(str(data / f"labelsTr/road_{at}.png"), np.eye(8, 9, dtype=np.uint8))
    dataset_json(data, labels={"background": 0, "road": 1}, file_ending=".png")
    catalog, cache = cached(tmp_path)
    assert (catalog.layout, [one.id for one in catalog.train]) == ("nnunet", ["road_0", "road_1"])
    assert cache.train_images["road_1"][0, 0].tolist() == [1, 51, 101]
    assert cache.target.task == "binary"
    (data / "imagesTr/road_1_0002.png").unlink()
    (data / "labelsTr/road_0.png").unlink()
    with pytest.raises(
        InputError, match=r"2 cases cannot be used:(?s:.*)'road_0' has no file(?s:.*)lacks the channels 0002"
    ):
        read_catalog(data)
    cv2.imwrite(str(data / "labelsTr/road_0.png"), np.eye(8, 9, dtype=np.uint8))
    cv2.imwrite(str(data / "imagesTr/road_1_0002.png"), np.eye(8, 9, dtype=np.uint8))
    for text, message in (
        ("{", "no valid JSON"),
        ("[]", "expected an object"),
        ('{"labels": {"a": null}}', "'a': None"),
    ):
        (data / "dataset.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_catalog(data)
    dataset_json(data, labels=[])
    with pytest.raises(InputError, match="expected names with their values"):
        read_catalog(data)


def test_stacks_of_pages(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    slices = np.moveaxis(np.abs(volume()) % 256, 2, 0).astype(np.uint8)
    drawn = np.moveaxis(label(1), 2, 0) * np.uint8(255)
    tifffile.imwrite(data / "train-volume.tif", slices, photometric="minisblack")
    tifffile.imwrite(data / "train-labels.tif", drawn, photometric="minisblack")
    tifffile.imwrite(data / "test-volume.tif", slices[:4], photometric="minisblack")
    catalog, cache = cached(tmp_path)
    assert (catalog.layout, len(catalog.train), len(catalog.test)) == ("volumes", 6, 4)
    assert len({one.group for one in catalog.train}) == 1
    name = catalog.train[3].id
    np.testing.assert_array_equal(cache.train_images[name][..., 0], slices[3])
    np.testing.assert_array_equal(cache.train_masks[name][..., 0], drawn[3] // 255)


def test_pages_that_are_bands_are_no_stack(tmp_path):
    for at in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        bands = np.moveaxis(volume(at), 2, 0)
        tifffile.imwrite(tmp_path / f"images/{at}.tif", bands, photometric="minisblack")
        cv2.imwrite(str(tmp_path / f"masks/{at}.png"), label(255)[..., 2])
    assert read_catalog(tmp_path).layout == "paired_folders"


def arrays():
    images = np.moveaxis(np.abs(volume()) % 256, 2, 0).astype(np.uint8)
    masks = np.moveaxis(label(1), 2, 0).astype(bool)
    return images, masks


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("images.npy", "masks.npy", None), "images_003"),
        (("X_train.npy", "y_train.npy", "X_test.npy"), "X_train_003"),
        (("imgs_train.npy", "imgs_mask_train.npy", "imgs_test.npy"), "imgs_train_003"),
        (("images/a.npy", "masks/a.npy", None), "a_003"),
    ],
)
def test_arrays_of_numpy(names, ids, tmp_path):
    images, masks = arrays()
    for name, array in zip(
        names, (np.repeat(images[..., None], 3, axis=3), masks, images[..., None]), strict=True
    ):
        if name:
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
    catalog, cache = cached(tmp_path)
    assert (catalog.layout, len(catalog.train), len(catalog.test)) == ("volumes", 6, 6 if names[2] else 0)
    found = catalog.train[3]
    assert found.image == f"{names[0]}#3"
    np.testing.assert_array_equal(cache.train_images[found.id][..., 0], images[3])
    np.testing.assert_array_equal(cache.train_masks[found.id][..., 0], masks[3])


def test_arrays_in_one_file(tmp_path):
    images, masks = arrays()
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/all.npz", x_train=images, y_train=masks, x_test=images[:2])
    catalog, cache = cached(tmp_path)
    assert (len(catalog.train), len(catalog.test)) == (6, 2)
    assert (catalog.train[5].image, catalog.train[5].mask) == ("all.npz#x_train/5", "all.npz#y_train/5")
    np.testing.assert_array_equal(cache.train_masks[catalog.train[5].id][..., 0], masks[5])
    for at in range(3):
        path = tmp_path / f"mats/case{at}.mat"
        path.parent.mkdir(exist_ok=True)
        scipy.io.savemat(path, {"image": images[at], "label": masks[at].astype(np.uint8), "note": "x"})
    catalog = read_catalog(tmp_path / "mats")
    assert (catalog.train[1].id, catalog.train[1].image) == ("case1", "case1.mat#image")
    cache = build_cache(catalog, tmp_path / "cache of mats")
    np.testing.assert_array_equal(cache.train_images["case1"][..., 0], images[1])


def test_masks_of_matlab_beside_pictures(tmp_path):
    images, masks = arrays()
    for at in range(3):
        for folder in ("images", "labels"):
            (tmp_path / "data" / folder).mkdir(exist_ok=True, parents=True)
        cv2.imwrite(str(tmp_path / f"data/images/p{at}.png"), images[at])
        scipy.io.savemat(tmp_path / f"data/labels/p{at}.mat", {"inst_map": masks[at].astype(float)})
    _, cache = cached(tmp_path)
    np.testing.assert_array_equal(cache.train_masks["p1"][..., 0], masks[1])
    stack = np.zeros((5, 6, 30), np.uint8)
    stack[..., 7] = 9
    file = io.BytesIO()
    scipy.io.savemat(file, {"stack": stack})
    assert (decode_mat(file.getvalue(), "a.mat")[7] == 9).all()


def test_what_is_refused(monkeypatch):
    file, two, several = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    np.savez(two, a=np.eye(4), b=np.eye(4))
    scipy.io.savemat(several, {"text": "a"})
    forged = io.BytesIO()
    np.save(forged, np.zeros((4, 4)))
    for decode, raw, message in (
        (decode_npy, file.getvalue(), "values of type object; expected numbers"),
        (decode_npy, forged.getvalue().replace(b"(4, 4)", b"(9, 9)"), "the file is damaged"),
        (decode_npy, b"", "the file is damaged"),
        (decode_npz, two.getvalue(), r"it holds 2 arrays \(a, b\); expected one"),
        (decode_npz, b"PK", "the file is damaged"),
        (decode_mat, several.getvalue(), "no array of two to four axes"),
        (decode_mat, b"x" * 300, "the file is damaged"),
        (decode_nifti, b"", "not a whole NIfTI volume"),
        (decode_nifti, gzip.compress(b"x" * 999), "not a whole NIfTI volume"),
    ):
        with pytest.raises(InputError, match=f"^a: .*{message}"):
            decode(raw, "a")
    with pytest.raises(InputError, match="no array 'c' in it"):
        decode_npz(two.getvalue(), "a", "c")
    with pytest.raises(InputError, match=r"an array of shape \(3,\)"):
        as_slices(np.zeros(3), where="a")
    with pytest.raises(InputError, match="values of type complex128; expected numbers"):
        known_type(np.zeros(3, complex), where="a")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(InputError, match=r"version 7\.3 needs h5py: pip install"):
        decode_mat(b"MATLAB 7.3 MAT-file", "a")
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(InputError, match="NIfTI needs nibabel: pip install"):
        decode_nifti(b"", "a")


def test_axes_and_types_of_arrays():
    for shape, wanted in (
        ((30, 40), (1, 30, 40, 1)),
        ((30, 40, 3), (1, 30, 40, 3)),
        ((3, 300, 400), (1, 300, 400, 3)),
        ((5, 30, 40), (5, 30, 40, 1)),
        ((30, 40, 50), (30, 40, 50, 1)),
        ((5, 30, 40, 1), (5, 30, 40, 1)),
        ((5, 3, 30, 40), (5, 30, 40, 3)),
    ):
        assert as_slices(np.zeros(shape), where="a").shape == wanted, shape
    for dtype, value, wanted in (
        (np.int64, 300, np.uint16),
        (np.int32, -5, np.int16),
        (np.int64, 70000, np.float32),
        (np.int8, -5, np.int16),
        (np.uint32, 5, np.uint16),
        (np.float64, 0.5, np.float32),
        (np.float16, 0.5, np.float32),
        (bool, 1, np.uint8),
        (np.dtype(">u2"), 5, np.uint16),
    ):
        found = known_type(np.array([[value]], dtype), where="a")
        assert (found.dtype, found.dtype.isnative, found[0, 0]) == (wanted, True, value)


def raws():
    images, masks = arrays()
    files = [io.BytesIO() for _ in range(3)]
    np.save(files[0], images)
    np.savez_compressed(files[1], x=images)
    scipy.io.savemat(files[2], {"x": masks.astype(np.uint8)}, do_compression=True)
    plain = nibabel.Nifti1Image(volume(), SPACING).to_bytes()
    pairs = zip((decode_npy, decode_npz, decode_mat), files, strict=True)
    return [*((decode, file.getvalue()) for decode, file in pairs), (decode_nifti, plain)]


RAWS = raws()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(range(len(RAWS))),
    st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=5),
    st.integers(0, 2**20),
)
def test_damage_anywhere_is_refused_or_harmless(which, changes, end):
    decode, whole = RAWS[which]
    raw = bytearray(whole)
    for at, value in changes:
        raw[at % (min(400, len(raw)) if at % 2 else len(raw))] = value
    raw = raw[: max(1, end % len(raw))] if end % 3 == 0 else raw
    try:
        assert decode(bytes(raw), "a").ndim == 4
    except InputError as error:
        assert str(error).startswith("a: ")  # noqa: PT017


def test_a_few_arrays_beside_pictures_are_no_data(tmp_path):
    images, masks = arrays()
    for at in range(5):
        for folder, array in (("images", images), ("masks", masks * np.uint8(255))):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / f"{folder}/{at}.png"), array[at])
    np.save(tmp_path / "X.npy", images)
    np.save(tmp_path / "y.npy", masks)
    assert read_catalog(tmp_path).layout == "paired_folders"
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features/train_images.npy", np.zeros(100))
    np.save(tmp_path / "features/train_masks.npy", np.zeros(100))
    for name in ("X.npy", "y.npy"):
        (tmp_path / name).unlink()
    assert read_catalog(tmp_path).layout == "paired_folders"
