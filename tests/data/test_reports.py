"""Small sets in the forms of public bug reports, each read or refused as it should be."""

import zipfile

import cv2
import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.layouts import read_catalog
from tests.data.dicoms import dicom

HW = (12, 16)


def disc(at, *, hw=HW):
    return cv2.circle(np.zeros(hw, np.uint8), (4 + at, 6), 3, 1, -1)


def texture(seed, *, hw=HW):
    return np.random.default_rng(seed).integers(0, 255, (*hw, 3), np.uint8)


def png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1])


def pairs(root, masks, *, image="images/a{}.png", mask="masks/a{}.png"):
    for at, drawn in enumerate(masks):
        png(root / image.format(at), texture(at))
        png(root / mask.format(at), drawn)


def masks_of(root, out):
    catalog = read_catalog(root)
    cache = build_cache(catalog, out)
    return catalog, cache, {name: np.asarray(cache.train_masks[name]) for name in cache.train_masks}


def test_a_list_of_classes_names_values(tmp_path):
    """ADE20K's conversion, labelme2voc: one name a line, for 0 or for 1 on."""
    for names, classes in (
        ("road\ncar\ntree\n", ("road", "car", "tree")),
        ("__ignore__\nroad\ncar\n", ("background", "road", "car")),
        ("road\ncar\ntree\nsky\n", ("road", "car", "tree", "sky")),
        ("road\n", ("0", "1", "2")),
        ("1 road\n2 car\n", ("0", "1", "2")),
    ):
        root = tmp_path / str(len(names))
        pairs(root, [np.maximum(disc(at), 2 * disc(at + 6)) for at in range(3)])
        (root / "classes.txt").write_text(names)
        assert build_cache(read_catalog(root), root / "out").target.classes == classes, names


def test_values_that_no_named_class_has_are_said(tmp_path):
    pairs(tmp_path, [disc(0) * 2, disc(1) * 2, disc(2) * 7])
    (tmp_path / "classes.csv").write_text("name,value\nground,0\ncar,1\nroad,2\n")
    findings = {one.title: one for one in build_cache(read_catalog(tmp_path), tmp_path / "out").mask_findings}
    assert findings["values without a class"].ids == ["a2"]


def test_a_copy_of_the_data_within_it_is_left_out(tmp_path):
    """LGG-MRI of Kaggle: the archive holds everything twice."""
    pairs(tmp_path, [disc(at) for at in range(4)])
    pairs(tmp_path / "lgg", [disc(at) for at in range(4)])
    catalog = read_catalog(tmp_path)
    assert len(catalog.train) == 4
    assert "8 files in lgg/" in catalog.findings[0].detail
    png(tmp_path / "lgg/masks/a1.png", disc(9))  # no copy
    assert len(read_catalog(tmp_path).train) == 8


def test_what_systems_leave_in_archives_is_passed_over(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for at in range(3):
            for folder, image in (("images", texture(at)), ("masks", disc(at))):
                archive.writestr(f"d/{folder}/a{at}.png", cv2.imencode(".png", image)[1].tobytes())
        archive.writestr("__MACOSX/d/._a0.png", b"\0\5\x16\7")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("__MACOSX/d/._a0.png", b"\0\5\x16\7")
    assert len(read_catalog(tmp_path).train) == 3


def test_names_that_do_not_agree_are_named(tmp_path):
    for at in range(3):
        png(tmp_path / f"images/{at:03}.png", texture(at))
        png(tmp_path / f"masks/{at}.png", disc(at))
    with pytest.raises(
        InputError, match=r"3 images .*'images/000\.png'.* 3 files .*'masks/0\.png'.* do not agree"
    ):
        read_catalog(tmp_path)


def test_dicom_needs_no_ending(tmp_path):
    for at in range(3):
        png(tmp_path / f"masks/IM.{at:04}.png", disc(at))
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / f"images/IM.{at:04}").write_bytes(dicom(texture(at)[..., 0], name=str(at)))
    catalog, _, masks = masks_of(tmp_path, tmp_path / "out")
    assert [one.image for one in catalog.train] == [f"images/IM.{at:04}" for at in range(3)]
    assert (masks["IM.0001"][..., 0] == disc(1)).all()


def test_floating_masks_may_be_nearly_whole(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for at in range(3):
        for folder, image in (
            ("images", texture(at)),
            ("labels", np.dstack([disc(at)] * 3) * np.float32(0.9999999)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            volume = nibabel.Nifti1Image(image.astype(np.float32), np.eye(4))
            nibabel.save(volume, tmp_path / folder / f"c{at}.nii")
    _, _, masks = masks_of(tmp_path, tmp_path / "out")
    assert sorted(np.unique(masks["c1_000"])) == [0, 1]


def test_cases_of_several_volumes(tmp_path):
    """BraTS: a volume a modality, and X_seg."""
    nibabel = pytest.importorskip("nibabel")

    def save(name, image):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), np.eye(4)), tmp_path / name)

    for at in range(3):
        for seed, channel in enumerate(("t2", "flair", "t1")):
            save(f"B_{at}/B_{at}_{channel}.nii", texture(3 * at + seed))
        if at < 2:
            save(f"B_{at}/B_{at}_seg.nii", np.dstack([disc(at)] * 3))
    catalog = read_catalog(tmp_path)
    assert (catalog.layout, len(catalog.train), {one.group for one in catalog.train}) == (
        "volumes",
        6,
        {"B_0", "B_1"},
    )
    assert catalog.train[0].bands == [f"B_0/B_0_{channel}.nii#0" for channel in ("flair", "t1", "t2")]
    assert [one.id for one in catalog.test] == ["B_2_000", "B_2_001", "B_2_002"]
    (tmp_path / "B_1/B_1_t1.nii").unlink()
    with pytest.raises(InputError, match="B_1: the case 'B_1' lacks the channels t1"):
        read_catalog(tmp_path)


def test_the_order_of_square_scans_is_that_of_the_contest(tmp_path):
    """UW-Madison: nothing in square images tells the order of the runs; what is asked for counts."""
    rows = []
    for at in range(3):
        png(
            tmp_path / f"train/case{at}/case{at}_day0/scans/slice_0001_12_12_1.5_1.5.png",
            texture(at, hw=(12, 12)),
        )
        rows += [f"case{at}_day0_slice_0001,{label},1 {at + 2} 30 2" for label in ("large_bowel", "stomach")]
    (tmp_path / "train.csv").write_text("id,class,segmentation\n" + "\n".join(rows))
    form = read_catalog(tmp_path).submission
    assert form.dialect == "severstal_row_major"
    assert "read row by row, as in the contest's published solutions" in form.doubt
    assert "set --dialect severstal if they are wrong" in form.doubt
    (tmp_path / "dataset.yaml").write_text("dialect: severstal\n")
    assert (read_catalog(tmp_path).submission.dialect, read_catalog(tmp_path).submission.doubt) == (
        "severstal",
        "",
    )
