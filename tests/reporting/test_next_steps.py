import pytest

from masksmith.recipes.recipe import load_recipe
from masksmith.reporting.next_steps import FOR_CAUSE, best_is_late, headline, next_steps

TUNING = {"higher_is_better": True, "scores": {"chosen": 0.8, "nothing": 0.4}, "baselines": ["nothing"]}
QUIET = {"interim": False, "folds": [(0, True)], "causes": [], "late": False, "calibration_error": 0.0}


def texts(tuning=TUNING, **given):
    return [step.text for step in next_steps(tuning, **(QUIET | given))]


def test_what_is_said_follows_from_the_numbers():
    (last,) = texts()
    assert "one file" in last
    assert "same command" in texts(interim=True)[0]
    worse = TUNING | {"scores": {"chosen": 0.3, "nothing": 0.4}}
    assert "without any model" in texts(worse, late=True)[0]
    for equal in (worse, TUNING | {"scores": {"chosen": 0.4, "nothing": 0.4}}):
        assert "one file" not in " ".join(texts(equal, late=True))  # such a model is of no use to anybody
    assert "still rising" in texts(late=True)[0]
    assert "75% of what the score lacks is “border”" in texts(causes=[("border", 0.3), ("missed", 0.1)])[0]
    assert "1 of 2 folds" in texts(folds=[(0, True), (1, False)])[0]
    assert "off by 20%" in texts(calibration_error=0.2)[0]
    many = texts(interim=True, late=True, causes=[("border", 1.0)], folds=[(0, False)], calibration_error=0.3)
    assert len(many) == 4
    assert "one file" in many[-1]


@pytest.mark.parametrize("cause", [cause for cause, (_, key) in FOR_CAUSE.items() if key])
def test_every_key_is_one_of_a_recipe(cause):
    load_recipe("auto", (FOR_CAUSE[cause][1],))


def test_late():
    assert best_is_late([(20, 20), (19, 20), (3, 20)])
    assert not best_is_late([(3, 20), (20, 20)])
    assert not best_is_late([])


def test_what_the_score_means():
    tuning = {"standard_error": 0.1, "baselines": ["nothing"], "higher_is_better": True}

    def said(count=50, **given):
        return headline(tuning | given, count)

    count, measured, way = said(scores={"chosen": 0.7, "nothing": 0.4})
    assert "50 images" in count
    assert "0.572 to 0.828 in four of five cases" in measured
    assert "50% of that way" in way
    assert "1 image that" in said(1, scores={"chosen": 0.7, "nothing": 0.4})[0]
    assert "too few" in said(standard_error=0.0, scores={"chosen": 0.7, "nothing": 0.4})[1]
    assert "learned nothing" in said(scores={"chosen": 0.4, "nothing": 0.4})[2]
    assert "lower is better" in said(scores={"chosen": 3.0, "nothing": 9.0}, higher_is_better=False)[2]
    assert len(said(scores={"chosen": 0.7}, baselines=[])) == 2
