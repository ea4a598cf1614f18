"""The report of one run: the direction of its metric, and data that is barely there."""

import dataclasses

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.project.folder import Project
from masksmith.project.members import members_of_run
from masksmith.reporting import figures, page, write_report
from masksmith.steps.report import report_facts


def facts_of(out):
    project = Project.open(out)
    return report_facts(project, members_of_run(project.run()))


def test_worst_and_best_follow_the_metric(trained):
    """Of a metric that is better where it is lower the worst images have the highest score; no loss is negative."""
    facts = facts_of(trained)
    for higher in (True, False):
        scores = {name: float(at) for at, name in enumerate(sorted(facts.scores))}
        if higher:
            scores = {name: score / len(scores) for name, score in scores.items()}
        shown = dataclasses.replace(facts, tuning=facts.tuning | {"higher_is_better": higher}, scores=scores)
        summaries = page.summaries(shown)
        parts = page.gallery(shown, summaries)
        worst, best = ([picture.score for picture in parts[part]] for part in ("worst", "best"))
        assert len(worst) > 2
        assert worst == sorted(worst, reverse=not higher)
        assert best == sorted(best, reverse=higher)
        assert (best[0] > worst[0]) == higher
        lost = [share for *_, share in page.causes(shown, summaries)]
        assert min(lost) >= 0
        assert sum(lost) == pytest.approx(np.mean([abs(higher - score) for score in scores.values()]))
    shares, distances = (figures.score_histogram(scores, metric="m") for scores in ([0.0, 1.0], [0.0, 40.0]))
    assert '"xbins"' in shares
    assert '"xbins"' not in distances  # they are not cut


def test_one_judged_image(trained, tmp_path):
    facts = facts_of(trained)
    name = min(facts.scores)
    one = dataclasses.replace(
        facts,
        scores={name: facts.scores[name]},
        preds={name: facts.preds[name]},
        rows=[row for row in facts.rows if row.id == name],
    )
    assert name in write_report(tmp_path / "one.html", one).read_text()


@pytest.mark.slow
def test_many_sizes_no_table_no_test_set(tmp_path):
    data, rng = tmp_path / "data", np.random.default_rng(0)
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True)
    for i in range(9):  # the first of them blank
        h, w = (24 + 4 * i, 300) if i == 2 else (24 + 4 * i, 40)
        mask = np.zeros((h, w), np.uint8)
        mask[: h // 2, : 6 * (i % 4)] = 255
        image = np.where(mask > 0, 180, 60) + rng.integers(0, 40, (h, w))
        cv2.imwrite(str(data / "images" / f"{i}.png"), image.astype(np.uint8))
        cv2.imwrite(str(data / "masks" / f"{i}.png"), mask)
    text = ms.compete(data, out=tmp_path / "project", recipe="smoke").report.read_text()
    assert text.count("<figure>") >= 3
    assert "largest gap" not in text
    assert "not predicted" in text
    assert "<h3>Groups</h3>" not in text
    facts = facts_of(tmp_path / "project")
    assert facts.columns == {}
    assert len(facts.rows) == 9
