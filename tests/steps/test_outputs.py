"""A project's submission in other forms, and files of others that are checked."""

import json

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError


def test_other_forms(project):
    verdict = ms.submit(project, write=["tiff", "coco", "rle", "geotiff"], dialect="siim")
    names = [line.partition(",")[0] for line in (project / "submission.csv").read_text().splitlines()[1:]]
    for name in names:
        mask = cv2.imread(str(project / f"masks/{name}.png"), cv2.IMREAD_GRAYSCALE)
        found = cv2.imread(str(project / f"outputs/tiff/{name}.tif"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(found > 0, mask > 0)
    coco = json.loads((project / "outputs/coco/coco.json").read_text())
    assert len(coco["images"]) == 8
    rows = (project / "outputs/rle/rle.csv").read_text().splitlines()
    assert rows[0] == "id,class,rle"
    assert len(rows) == 9
    assert [line.rpartition("/")[2] for line in verdict.written] == ["coco", "geotiff", "rle", "tiff"]
    assert len(verdict.refused) == 1
    assert "8 of 8 images are not written as geotiff" in str(verdict)
    assert not list((project / "outputs/geotiff").iterdir())


def test_refusals(project, tmp_path):
    for match, options in (
        ("--write: 'jpeg' is unknown", {"write": ["jpeg"]}),
        ("--dialect: 'x' is unknown", {"write": ["rle"], "dialect": "x"}),
        ("--check looks at a file alone", {"check": tmp_path, "write": ["rle"]}),
        (r"a folder; the judge takes a table \(sample_submission\.csv\)", {"check": tmp_path}),
    ):
        with pytest.raises(InputError, match=match):
            ms.submit(project, **options)
