"""The report of a metric that is better where it is lower: its worst images are those with the highest score."""

import dataclasses

import pytest

from masksmith.project.folder import Project
from masksmith.project.members import members_of_run
from masksmith.reporting import figures, page
from masksmith.steps.report import report_facts


def facts_of(trained, *, higher):
    project = Project.open(trained)
    facts = report_facts(project, members_of_run(project.run()))
    scores = {name: float(at) for at, name in enumerate(sorted(facts.scores))}
    if higher:
        scores = {name: score / len(scores) for name, score in scores.items()}
    return dataclasses.replace(facts, tuning=facts.tuning | {"higher_is_better": higher}, scores=scores)


@pytest.mark.parametrize("higher", [True, False])
def test_worst_and_best(trained, higher):
    facts = facts_of(trained, higher=higher)
    parts = page.gallery(facts, page.summaries(facts))
    worst, best = ([picture.score for picture in parts[part]] for part in ("worst", "best"))
    assert len(worst) > 2
    assert worst == sorted(worst, reverse=not higher)
    assert best == sorted(best, reverse=higher)
    assert (best[0] > worst[0]) == higher


@pytest.mark.parametrize("higher", [True, False])
def test_what_is_lost_is_never_negative(trained, higher):
    facts = facts_of(trained, higher=higher)
    causes = page.causes(facts, page.summaries(facts))
    perfect = 1 if higher else 0
    expected = sum(abs(perfect - score) for score in facts.scores.values()) / len(facts.scores)
    assert min(lost for *_, lost in causes) >= 0
    assert sum(lost for *_, lost in causes) == pytest.approx(expected)


def test_distances_are_not_cut_from_the_histogram():
    shares, distances = (figures.score_histogram(scores, metric="m") for scores in ([0.0, 1.0], [0.0, 40.0]))
    assert '"xbins"' in shares
    assert '"xbins"' not in distances
