import tracemalloc
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest

from masksmith.core.errors import InputError
from masksmith.data.catalog import SubmissionFormat
from masksmith.data.rle import encode
from masksmith.data.target import BINARY, Target
from masksmith.metrics import get_metric
from masksmith.submission.formats import read_mask, write_outputs
from masksmith.submission.score import score_files
from masksmith.submission.validate import validate_files, validate_submission

SHAPE = (6, 5)
FORM = SubmissionFormat("id", "rle_mask", "tgs", ["0003", "a", "7e10"], "sample_submission.csv")


@pytest.fixture
def masks():
    rng = np.random.default_rng(0)
    found = {name: (rng.random(SHAPE) < 0.5).astype(np.uint8) for name in FORM.ids}
    found["a"][:] = 0
    return found


@pytest.fixture
def written(masks, tmp_path):
    write_outputs(tmp_path / "masks", tmp_path / "submission.csv", FORM, [masks[name] for name in FORM.ids])
    return tmp_path


def validate(folder, *, form=FORM, masks="masks"):
    shapes = dict.fromkeys(form.ids, SHAPE)
    return validate_submission(
        folder / "submission.csv", form, shapes, masks=folder / masks if masks else None
    )


def test_valid(written, masks):
    verdict = validate(written)
    assert (verdict.ids, verdict.empty, verdict.compared) == (3, 1, 3)
    assert "valid: 3 ids in the right order, 1 empty, all equal to the 3 saved masks" in str(verdict)
    np.testing.assert_array_equal(read_mask(written / "masks" / "0003.png"), masks["0003"])
    assert (written / "submission.csv").read_text().splitlines()[2] == "a,"


def test_invalid(written):
    head, *rows = (written / "submission.csv").read_text().splitlines()
    for changed, message in (
        (rows[:-1], "3 ids expected .sample_submission.csv., 2 given; missing: '7e10'"),
        ([rows[1], rows[0], rows[2]], "line 2: id 'a', expected '0003'"),
        ([*rows, rows[0]], "the id '0003' appears twice"),
        ([*rows, "new,"], "the id 'new' is not among the 3 ids"),
        (["0003,5 1 1 2", *rows[1:]], "id '0003': the runs are not sorted or two of them touch"),
        (["0003,1 2 3 2", *rows[1:]], "two of them touch; expected 1 runs in order"),
        (["0003,9 1 1 2 3 1 5 1", *rows[1:]], "two of them touch; expected 3 runs in order"),
        (["0003,1 3 2 2", *rows[1:]], "overlaps the run 1..3"),
        (["0003,30 2", *rows[1:]], "leaves the image of 6x5"),
        (["0003,1 1", *rows[1:]], "the runs do not decode to the saved mask"),
        (["0003,1", *rows[1:]], "an odd number"),
        (
            ["0003,30 2", "new,", "7e10,1", "a,", "a,"],
            r"(?s)csv: 4 problems:\n  line 2: id '0003'.*leaves.*\n  line 4: id '7e10'.*an odd number"
            r".*\n  line 3: the id 'new' is not.*\n  line 6: the id 'a' appears twice \(first in line 5\)",
        ),
    ):
        (written / "submission.csv").write_text("\n".join([head, *changed]) + "\n")
        with pytest.raises(InputError, match=message):
            validate(written)


def test_a_large_mask_takes_twice_its_bytes(tmp_path):
    side, form = 6000, replace(FORM, ids=["a"])
    mask = np.zeros((side, side), np.uint8)
    mask[100:-50, 300:-200] = 1
    peaks = []
    tracemalloc.start()
    try:
        write_outputs(tmp_path / "masks", tmp_path / "submission.csv", form, [mask])
        peaks.append(tracemalloc.get_traced_memory()[1] / mask.size + 1)  # the mask itself was there before
        tracemalloc.reset_peak()
        shapes, saved = {"a": mask.shape}, tmp_path / "masks"
        validate_submission(tmp_path / "submission.csv", form, shapes, masks=saved)
        peaks.append(tracemalloc.get_traced_memory()[1] / mask.size)
    finally:
        tracemalloc.stop()
    assert max(peaks) < 2.6, peaks


def test_missing_parts(written):
    with pytest.raises(InputError, match=r"absent\.csv: no such file"):
        validate_submission(written / "absent.csv", FORM, {}, masks=None)
    (written / "masks" / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png: no mask there"):
        validate(written)
    text = (written / "submission.csv").read_text()
    (written / "submission.csv").write_text(text.replace("rle_mask", "rle"))
    with pytest.raises(InputError, match="the column 'rle_mask' is missing"):
        validate(written)


def test_ids_that_would_leave_their_folder(tmp_path):
    for name in ("../evil", "a/../b", "/evil"):
        with pytest.raises(InputError, match=rf"masks: the id '{name}' cannot be a file name"):
            write_outputs(
                tmp_path / "masks", tmp_path / "s.csv", replace(FORM, ids=[name]), [np.ones(SHAPE, np.uint8)]
            )
        assert not list(tmp_path.iterdir())
    (tmp_path / "submission.csv").write_text("id,rle_mask\n../masks/a,\n")
    with pytest.raises(InputError, match=r"the id '\.\./masks/a' cannot be a file name"):
        validate(tmp_path, form=replace(FORM, ids=["../masks/a"]))


def test_score(written, masks, tmp_path):
    truth = {name: np.roll(mask, 1, axis=0) for name, mask in masks.items()}
    lines = ["id,rle_mask,Usage", *(f"{name},{encode(mask)},Public" for name, mask in truth.items())]
    (tmp_path / "solution.csv").write_text("\n".join(lines[:3]) + "\n")  # only two of the three are judged
    metric = get_metric("tgs_map")
    scored = score_files(written / "submission.csv", tmp_path / "solution.csv", metric="tgs_map", shape=SHAPE)
    rows = np.stack([metric.stats(masks[name], truth[name]) for name in FORM.ids[:2]])
    assert scored.score == pytest.approx(metric.score(rows))
    assert scored.images == 2
    assert scored.nothing == 0.5


def test_score_refuses(written, tmp_path):
    path = written / "submission.csv"
    for text, message in (
        ("id,rle_mask\n", "no rows; expected one row an image"),
        ("id,rle_mask\nother,\n", "1 ids of .* are missing: 'other'; it has 3 ids"),
        ("id,mask\na,\n", "the column 'rle_mask' is missing"),
        ("name,rle_mask\na,\n", "the column 'id' is missing"),
        ("id,rle_mask\na,\na,\n", "the id 'a' appears twice"),
    ):
        (tmp_path / "solution.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            score_files(path, tmp_path / "solution.csv", metric="tgs_map", shape=SHAPE)
    for name, message in (
        ("iou_by_group", "--metric iou_by_group: it needs groups"),
        ("miou(num_classes=3)", "num_classes=3, but the masks are of a background and a foreground"),
    ):
        with pytest.raises(InputError, match=message):
            score_files(path, path, metric=name, shape=SHAPE)


def test_files_for_the_judge(tmp_path):
    form = SubmissionFormat("id", "rle_mask", "tgs", ["a", "b"], "the test images", files="tif")
    for target, values in ((BINARY, (0, 1)), (Target("multiclass", ("x", "y"), (10, 70)), (10, 70))):
        root = tmp_path / target.task
        masks = [np.eye(5, 6, dtype=np.uint8), np.zeros((4, 5), np.uint8)]
        shapes = {"a": (5, 6), "b": (4, 5)}
        write_outputs(root / "masks", root / "s.csv", form, iter(masks), target, files=root / "files")
        check = partial(validate_files, root / "files", form, shapes, masks=root / "masks", target=target)
        check()
        found = cv2.imread(str(root / "files" / "a.tif"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(found, np.where(masks[0], values[1], values[0]))
        assert found.dtype == np.uint8
        raw = (root / "files/a.tif").read_bytes()
        for damaged in (b"", b"no image", (root / "files/b.tif").read_bytes()):
            (root / "files/a.tif").write_bytes(damaged)
            with pytest.raises(InputError, match=r"a\.tif: not the saved mask"):
                check()
        (root / "files/a.tif").unlink()
        with pytest.raises(InputError, match=r"a\.tif: missing"):
            check()
        (root / "files/a.tif").write_bytes(raw)
        check = partial(validate_files, root / "files", form, shapes, masks=None, target=target)
        check()
        (root / "files/b.tif").write_bytes(b"")
        cv2.imwrite(str(root / "files/a.tif"), np.full((5, 6), 9, np.uint8))
        with pytest.raises(
            InputError, match=r"(?s)2 problems:.*a\.tif: values 9; expected \[.*b\.tif: no image"
        ):
            check()
        (root / "files/c.tif").write_bytes(raw)
        with pytest.raises(InputError, match=r"c\.tif: not among the 2 ids"):
            check()
