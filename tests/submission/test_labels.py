"""Submissions with a row an image and label, and a PNG for each."""

from dataclasses import replace

import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.data.catalog import LabelRow, SubmissionFormat
from masksmith.data.target import Target
from masksmith.submission.formats import read_labels, write_outputs
from masksmith.submission.score import score_files
from masksmith.submission.validate import validate_submission

SHAPE = (6, 5)
TARGET = Target("multilabel", ("car", "person"))
PLAIN = SubmissionFormat.assumed(["a", "b"], None).with_labels(TARGET.classes)
JUDGE = replace(
    PLAIN,
    label_rows=[LabelRow(name, kind, f"{name}.jpg") for kind in ("person", "car") for name in ("b", "a")],
    class_column="ClassId",
    columns=["ClassId", "id", "rle_mask"],
)
TOGETHER = replace(
    PLAIN,
    class_column="",
    label_rows=[LabelRow(name, kind, f"{name}_{kind}") for name in ("a", "b") for kind in TARGET.classes],
)


def masks():
    drawn = (np.random.default_rng(0).random((2, *SHAPE, 2)) < 0.5).astype(np.uint8)
    drawn[1] = 0
    return dict(zip(PLAIN.ids, drawn, strict=True))


def write(folder, form):
    write_outputs(folder / "masks", folder / "submission.csv", form, masks().values(), TARGET)
    return (folder / "submission.csv").read_text().splitlines()


def validate(folder, form):
    shapes = dict.fromkeys(form.ids, SHAPE)
    return validate_submission(folder / "submission.csv", form, shapes, masks=folder / "masks", target=TARGET)


def test_valid_in_the_judges_order(tmp_path):
    for at, (form, head, second) in enumerate(
        ((PLAIN, "id,class,rle_mask", "a,person,"), (JUDGE, "ClassId,id,rle_mask", "person,a.jpg,"),
         (TOGETHER, "id,rle_mask", "a_person,"))
    ):  # fmt: skip
        folder = tmp_path / str(at)
        folder.mkdir()
        lines = write(folder, form)
        assert (lines[0], len(lines)) == (head, 5)
        assert lines[2].startswith(second)
        verdict = validate(folder, form)
        assert (verdict.ids, verdict.empty, verdict.compared) == (2, 1, 2)
        for name, mask in masks().items():
            np.testing.assert_array_equal(read_labels(folder / "masks", name, TARGET), mask)
    scored = score_files(tmp_path / "0" / "masks", tmp_path / "1" / "masks")
    assert (scored.task, scored.score, list(scored.per_class)) == ("multilabel", 1.0, ["car", "person"])


def test_invalid(tmp_path):
    head, *rows = write(tmp_path, PLAIN)
    for changed, message in (
        (rows[:-1], r"4 rows expected .*, 3 given; missing: 'b, person'"),
        (
            [rows[1], rows[0], *rows[2:]],
            r"(?s)2 problems:.*line 2: row 'a, person', expected 'a, car' as in no sample",
        ),
        ([*rows, rows[0]], r"line 6: the row 'a, car' appears twice \(first in line 2\)"),
        ([*rows, "c,car,"], "line 6: the row 'c, car' is not among the 4 rows of no sample"),
        (["a,car,5 1 1 2", *rows[1:]], "id 'a', class 'car': the runs are not sorted"),
        (["a,car,1 1", *rows[1:]], "id 'a', class 'car': the runs do not decode to the saved mask"),
    ):
        (tmp_path / "submission.csv").write_text("\n".join([head, *changed]) + "\n")
        with pytest.raises(InputError, match=message):
            validate(tmp_path, PLAIN)
    (tmp_path / "submission.csv").write_text("id,rle_mask\n")
    with pytest.raises(InputError, match="the column 'class' is missing"):
        validate(tmp_path, PLAIN)
    odd = Target("multilabel", ("../x", "person"))
    with pytest.raises(InputError, match=r"masks \(labels\): the name '../x' cannot be that of a folder"):
        write_outputs(tmp_path / "other" / "masks", tmp_path / "other.csv", PLAIN, masks().values(), odd)
