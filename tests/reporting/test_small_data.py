"""The report of data that is barely there: no side table, no test set, images of many sizes, one judged image."""

import dataclasses

import cv2
import numpy as np

import masksmith as ms
from masksmith.project.folder import Project
from masksmith.project.members import members_of_run
from masksmith.reporting import write_report
from masksmith.steps.report import report_facts
from tests.conftest import TINY


def many_sizes(folder, *, count=9):
    """Write images of many sizes with masks, one of them blank; no table and no test images."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        h, w = (24 + 4 * i, 300) if i == 2 else (24 + 4 * i, 40)
        mask = np.zeros((h, w), np.uint8)
        mask[: h // 2, : 6 * (i % 4)] = 255
        image = np.where(mask > 0, 180, 60) + rng.integers(0, 40, (h, w))
        cv2.imwrite(str(folder / "images" / f"{i}.png"), image.astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / f"{i}.png"), mask)
    return folder


def test_many_sizes_no_table_no_test_set(tmp_path):
    result = ms.compete(many_sizes(tmp_path / "data"), out=tmp_path / "project", overrides=TINY)
    page = result.report.read_text()
    assert page.count("<figure>") >= 3
    assert "largest gap" not in page
    assert "not predicted" in page
    assert "<h3>Groups</h3>" not in page
    project = Project.open(tmp_path / "project")
    facts = report_facts(project, members_of_run(project.run()))
    assert facts.columns == {}
    assert len(facts.rows) == 9


def test_one_judged_image(trained, tmp_path):
    project = Project.open(trained)
    facts = report_facts(project, members_of_run(project.run()))
    name = min(facts.scores)
    one = dataclasses.replace(
        facts,
        scores={name: facts.scores[name]},
        preds={name: facts.preds[name]},
        rows=[row for row in facts.rows if row.id == name],
    )
    assert name in write_report(tmp_path / "one.html", one).read_text()
