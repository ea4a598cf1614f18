"""Repeated folds: out-of-fold predictions are means over the repeats, from training to the report and with a budget."""

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.store import Store
from masksmith.planning.units import Unit
from masksmith.project.folder import Project
from masksmith.project.members import Member, members_of_run
from masksmith.steps.compete import accept_unit
from masksmith.steps.out_of_fold import plain_score
from masksmith.steps.predict import oof_of

REPEATED = {"folds.count": 2, "folds.repeats": 2, "folds.train": None}


@pytest.mark.slow
def test_held_out_predictions_are_means_over_the_repeats(example, tmp_path):
    out = tmp_path / "p"

    def compete(**changes):
        return ms.compete(example / "data", out=out, recipe="smoke", overrides=REPEATED | changes)

    first = compete(**{"folds.train": 3})  # the whole first repeat and a half of the second
    assert [name.split("/")[1] for name in first.members] == ["fold 0", "fold 1", "fold 2"]
    project = Project.open(out)
    stamps = [project.run().final(fold).stat().st_mtime_ns for fold in range(3)]
    result, run = compete(), project.run()
    assert [run.final(fold).stat().st_mtime_ns for fold in range(3)] == stamps
    assert [member.fold for member in members_of_run(project.run())] == [0, 1, 2, 3]
    assert result.tuning["covers"].startswith(f"{len(project.folds.rows)} of {len(project.folds.rows)} ")

    for members, num in ((members_of_run(project.run()), 2), (members_of_run(project.run())[:2], 1)):
        oof = oof_of(project, members)
        assert list(oof) == [row.id for row in project.folds.rows]
        for row in project.folds.rows[:5]:
            each = [Store(run.oof(fold))[row.id].astype(float) for fold in row.folds[:num]]
            assert np.array_equal(oof[row.id][row.id], np.rint(np.mean(each, axis=0)))
    assert set(oof_of(project, members_of_run(project.run())[2:3])) == set(project.folds.inside(2))
    joining = [Member(project.run(), fold) for fold in range(3)]
    unit = Unit("fold", 2, 0, 1.0, "x", "ref", run=project.run().path.name)
    judged = accept_unit(project, unit, joining[2], joining[:2])
    inside = set(project.folds.inside(2))
    scores = [
        plain_score(
            project, run.recipe, {n: codes for n, codes in oof_of(project, some).items() if n in inside}
        )
        for some in (joining[:2], joining)
    ]
    assert [judged.score_before, judged.score_after] == scores
    assert judged.joined == (scores[1] >= scores[0])
    assert (
        accept_unit(project, unit, joining[2], joining[:1]).score_before not in scores
    )  # half was predicted before
    page = (out / "report.html").read_text()
    assert all(f"fold {fold}" in page for fold in range(4))
    with pytest.raises(InputError, match=r"folds\.repeats: 3 was asked for, but .*folds\.csv holds 2"):
        compete(**{"folds.repeats": 3})
