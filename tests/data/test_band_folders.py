"""A file for each band: chips as DrivenData gives them."""

import numpy as np
import pytest
import tifffile

from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache
from masksmith.data.description import Description
from masksmith.data.layouts import read_catalog
from masksmith.data.layouts.band_folders import band_folders
from masksmith.data.tree import Tree

BANDS = ("B08", "B02", "B11", "B03")


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, photometric="minisblack")


def chips(root, form):
    """Five chips, two of them without a mask; band k of a chip has the value k."""
    for at, chip in enumerate(("adwp", "adwu", "adwz", "adxp", "aeaj")):
        split = "test" if at > 2 else "train"
        for band in BANDS:
            name = form.format(chip=chip, band=band)
            write(root / f"{split}_features" / name, np.full((8, 9), int(band[1:]), np.uint16))
        if split == "train":
            mask = np.zeros((8, 9), np.uint8)
            mask[2:4] = 1
            write(root / "train_labels" / f"{chip}.tif", mask)
    rows = ["chip_id,location", "adwp,Chifunfu", "adwu,Chifunfu", "adwz,Lusaka"]
    (root / "train_metadata.csv").write_text("\n".join(rows))
    return root


@pytest.mark.parametrize("form", ["{chip}/{band}.tif", "{chip}/{chip}_{band}.tif", "{chip}_{band}.tif"])
def test_chips_of_one_file_a_band(form, tmp_path):
    catalog = read_catalog(chips(tmp_path / "data", form))
    assert (catalog.layout, [one.id for one in catalog.test]) == ("band_folders", ["adxp", "aeaj"])
    first = catalog.train[0]
    assert (first.id, first.mask, first.texts) == ("adwp", "train_labels/adwp.tif", {"location": "Chifunfu"})
    assert [path[-7:-4] for path in first.bands] == ["B02", "B03", "B08", "B11"]
    assert "its bands B02, B03, B08, B11" in catalog.why[0]
    cache = build_cache(catalog, tmp_path / "cache")
    for store in (cache.train_images, cache.test_images):
        assert all(store[name][0, 0].tolist() == [2, 3, 8, 11] for name in store)
    assert cache.train_masks["adwz"].sum() == 18
    assert catalog.submission.files == "tif"  # the judge takes masks as the training masks are


def test_bands_as_described_and_bands_that_are_not_there(tmp_path):
    tree = Tree(chips(tmp_path / "data", "{chip}/{band}.tif"))
    catalog = band_folders(tree, Description(bands=["B11", "B02"]))
    assert [path[-7:-4] for path in catalog.test[0].bands] == ["B11", "B02"]
    with pytest.raises(InputError, match="bands: B05 not in train_features/, which has B02, B03, B08, B11"):
        band_folders(tree, Description(bands=["B05", "B02"]))
    (tmp_path / "data/train_features/adwu/B03.tif").unlink()
    with pytest.raises(InputError, match="the image 'adwu' lacks the bands B03"):
        band_folders(Tree(tmp_path / "data"))
    (tmp_path / "data/train_labels/adwz.tif").unlink()
    (tmp_path / "data/train_features/adwu/B03.tif").write_bytes(b"")
    with pytest.raises(InputError, match="no mask for 1 images of train_features/: adwz"):
        band_folders(Tree(tmp_path / "data"))


def test_other_folders_are_no_bands(tmp_path):
    for name in (
        "images/a_1.png",
        "images/a_2.png",
        "images/b_1.png",
        "images/b_2.png",
        "masks/a_1.png",
        "x.png",
    ):
        write(tmp_path / name, np.zeros((4, 4), np.uint8))
    (tmp_path / "images/a_1.jpg").write_bytes(b"")
    assert band_folders(Tree(tmp_path)) is None
