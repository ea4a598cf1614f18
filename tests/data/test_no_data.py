"""Where images have no data their masks are not judged; what masks declare to be no data is not judged either."""

import io

import numpy as np
import pytest
import tifffile

from masksmith.core.arrays import IGNORE, UNJUDGED
from masksmith.data.cache import build_cache
from masksmith.data.layouts import read_catalog
from masksmith.preprocess.inputs import InputConfig, with_declared
from masksmith.project.folder import Project
from masksmith.steps.check import check_folder

HW = (20, 24)


def tiff(path, array, no_data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    tags = [] if no_data is None else [(42113, "s", 0, no_data, True)]
    tifffile.imwrite(file, array, photometric="minisblack", planarconfig="contig", extratags=tags)
    path.write_bytes(file.getvalue())


def mask_of(*values):
    mask = np.full(HW, values[0], np.float32)
    for at, value in enumerate(values[1:], start=1):
        mask[8:14, 4 * at : 4 * at + 3] = value
    return mask


@pytest.mark.parametrize(
    ("dtype", "declared"), [(np.float32, "nan"), (np.float32, "-9999"), (np.int16, "-9999")]
)
@pytest.mark.parametrize("task", ["binary", "instances"])
def test_pixels_in_which_no_band_has_data_are_not_judged(dtype, declared, task, tmp_path):
    rng = np.random.default_rng(0)
    for at in range(3):
        image = rng.normal(500, 50, (*HW, 4)).astype(dtype)
        if at == 1:
            image[:3] = float(declared)
            image[5, 5, 0] = float(declared)  # the other bands have data
        tiff(tmp_path / f"data/images/{at}.tif", image, declared)
        tiff(tmp_path / f"data/masks/{at}.tif", mask_of(0, 1).astype(np.uint8))
    cache = build_cache(read_catalog(tmp_path / "data", task=task), tmp_path / "cache")
    mask = cache.train_masks["1"][..., 0]
    assert (mask[:3] == (IGNORE if task == "binary" else UNJUDGED)).all()
    assert (mask[3:] == mask_of(0, 1)[3:]).all()
    assert (cache.train_masks["0"][..., 0] == mask_of(0, 1)).all()
    (found,) = (one for one in cache.mask_findings if one.title == "pixels of no data")
    assert found.ids == ["1"]
    assert "5.00% of all pixels" in found.detail


def test_no_data_of_masks_is_not_judged_but_zero_is_background(tmp_path):
    for name, declared, dtype in (
        ("value", "7", np.uint8),
        ("zero", "0", np.uint8),
        ("nan", "nan", np.float32),
    ):
        for at in range(2):
            tiff(
                tmp_path / name / f"images/{at}.tif",
                np.random.default_rng(at).normal(0, 1, HW).astype(np.float32),
            )
            mask = mask_of(0, 1, float(declared)).astype(dtype)
            tiff(tmp_path / name / f"masks/{at}.tif", mask, declared)
        cache = build_cache(read_catalog(tmp_path / name), tmp_path / f"{name}-cache")
        assert cache.target.task == "binary", name
        expected = mask_of(0, 1, 0 if name == "zero" else IGNORE)
        np.testing.assert_array_equal(cache.train_masks["0"][..., 0], expected, name)


def gapped(folder, declared, *, dtype=np.uint16):
    """Write pairs of images around 500 with a strip of what their files declare to mean no data."""
    rng = np.random.default_rng(0)
    for at, value in enumerate(declared):
        image = rng.integers(400, 600, (*HW, 2)).astype(dtype)
        image[:5, :, 0] = 65535 if value is None else int(value)  # the other band has data there
        tiff(folder / f"images/{at}.tif", image, value)
        tiff(folder / f"masks/{at}.tif", mask_of(0, 1).astype(np.uint8))


def test_what_files_of_whole_numbers_declare_is_left_out_of_the_scaling(tmp_path):
    """It is in the resolved input, counts for no limit, and becomes 0 before the model."""
    for value in ("0", "2000"):
        gapped(tmp_path / value / "data", [value, value, None if value == "0" else value])
        project = Project.create(tmp_path / value / "p", read_catalog(tmp_path / value / "data"))
        assert project.cache.no_data == float(value)
        settled = project.settled_input(InputConfig())
        assert (settled.no_data, settled.scaling) == (float(value), "fixed")
        assert min(settled.low) >= 400
        assert max(settled.high) < 600
        for config in (settled, InputConfig()):
            seen = project.inputs(config).train["0"]
            assert (seen[:5, :, 0] == 0).all()
            assert seen[5:].max() > 60_000
        asked = project.settled_input(InputConfig(scaling="min_max", no_data=7))
        assert (asked.no_data, asked.scaling) == (7, "min_max")
        assert project.settled_input(InputConfig(scaling="min_max")).no_data == float(value)


def test_files_that_declare_nothing_or_several_values(tmp_path):
    for name, declared in (("none", [None, None]), ("two", ["3", "2000"])):
        gapped(tmp_path / name, declared)
        cache = build_cache(read_catalog(tmp_path / name), tmp_path / f"{name}-cache")
        assert cache.no_data is None
        found = [one for one in cache.mask_findings if one.title == "several values of no data"]
        assert len(found) == (name == "two")
    assert "3 in images/0.tif, 2000 in images/1.tif" in found[0].detail
    eight = InputConfig()
    assert with_declared(eight, 0.0, np.dtype(np.uint8)) is eight  # it becomes 0 anyway
    assert with_declared(eight, 255.0, np.dtype(np.uint8)).no_data == 255


def test_a_declared_sentinel_is_no_finding(tmp_path):
    for name, declared in (("said", "-9999"), ("unsaid", None)):
        for at in range(2):
            image = np.random.default_rng(at).integers(0, 500, (*HW, 4)).astype(np.int16)
            image[2, 2, 1] = -9999
            tiff(tmp_path / name / f"images/{at}.tif", image, declared)
            tiff(tmp_path / name / f"masks/{at}.tif", mask_of(0, 1).astype(np.uint8))
        report = check_folder(tmp_path / name, None, dialect=None)
        titles = [one.title for one in report.findings]
        assert ("values that may mean no data" in titles) == (name == "unsaid")
        assert report.facts["scaling"].endswith("; -9999 is no data") == (name == "said")
