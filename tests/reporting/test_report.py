"""The report of one run: the direction of its metric, and data that is barely there."""

import dataclasses

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.preprocess import Frame
from masksmith.project.folder import Project
from masksmith.project.members import members_of_run
from masksmith.reporting import figures, page, write_report
from masksmith.steps import report
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
        costs = {name: abs(higher - score) / len(scores) for name, score in scores.items()}
        tuning = facts.tuning | {"higher_is_better": higher}
        shown = dataclasses.replace(facts, tuning=tuning, scores=scores, costs=costs)
        summaries = page.summaries(shown)
        best = [picture.score for picture in page.gallery(shown, summaries)["best"]]
        lines = page.causes(shown, summaries)
        worst = [picture.score for line in lines for picture in line.pictures]
        for line in lines:
            each = [picture.score for picture in line.pictures]
            assert each == sorted(each, reverse=not higher)
        assert len(worst) > 2
        assert [line.cost for line in lines] == sorted((line.cost for line in lines), reverse=True)
        assert best == sorted(best, reverse=higher)
        assert (best[0] > worst[0]) == higher
        assert min(line.cost for line in lines) >= 0
        assert sum(line.share for line in lines) == pytest.approx(1)
        assert sum(line.cost for line in lines) == pytest.approx(
            np.mean([abs(higher - score) for score in scores.values()])
        )
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
        costs={name: facts.costs[name]},
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


def test_the_first_screen_has_three_pictures_and_steps(trained, tmp_path):
    facts = facts_of(trained)
    assert [what for what, _ in page.three_pictures(facts, page.summaries(facts))] == [
        "good",
        "typical",
        "costliest",
    ]
    text = write_report(tmp_path / "page.html", facts).read_text()
    for needed in ("What to do next", "Worst cases", "calibration", "How to repeat it"):
        assert needed in text, needed
    for chosen, useful in ((0.0, False), (1.0, True)):
        scores = facts.tuning["scores"] | {"chosen": chosen, "nothing": 0.5}
        other = dataclasses.replace(facts, tuning=facts.tuning | {"scores": scores})
        shown = [step.how for step in page._todo(other, [], [])]
        assert ("masksmith bundle P --out model.msk" in shown) == useful


def test_images_are_shown_as_the_net_gets_them(trained, tmp_path, monkeypatch):
    facts, project = facts_of(trained), Project.open(trained)
    recipe = project.run().recipe
    assert 0 < len(facts.as_net) <= 6
    for name, seen in facts.as_net.items():
        raw = np.asarray(project.inputs(recipe.input).train[name])
        frame = Frame.of(raw.shape[:2], recipe.size, divisor=recipe.model.divisor)
        assert seen.shape[0] % recipe.model.divisor == seen.shape[1] % recipe.model.divisor == 0
        assert np.array_equal(frame.undo(seen), raw)  # padded, not resized: every pixel is there
    text = write_report(tmp_path / "page.html", facts).read_text()
    assert f"{seen.shape[0]}x{seen.shape[1]}, {seen.shape[2]} band" in text
    monkeypatch.setattr(report, "_AS_NET_VALUES", 1)  # as if they were huge
    assert not facts_of(trained).as_net


def test_the_file_stays_small(trained, tmp_path):
    """Of a thousand images: pictures are limited in number, and shown when they come into sight."""
    facts = facts_of(trained)
    text = write_report(tmp_path / "page.html", facts).read_text()
    pictures = text.count("data:image/jpeg")
    assert pictures > 10
    of_picture = sum(map(len, text.split("data:image/jpeg")[1:])) / pictures
    most = len(page.CAUSES) * page._OF_CAUSE + 3 * page._SHOWN + 11 * page._PER_CLASS + 3
    assert most < 250
    assert of_picture < 60_000
    assert text.count('loading="lazy"') >= pictures - 3
