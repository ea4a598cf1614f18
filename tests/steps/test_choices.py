"""What was chosen on the fold that is scored is named beside the score, as it happened."""

from dataclasses import replace

import pytest

import masksmith as ms
from masksmith.core.errors import InputError, StoppedError
from masksmith.core.files import read_json, write_json
from masksmith.folds.config import ALL
from masksmith.pipeline import Result
from masksmith.planning.budget import Budget
from masksmith.planning.units import Unit
from masksmith.project.folder import Project
from masksmith.project.members import Member, members_of_run
from masksmith.recipes.recipe import load_recipe
from masksmith.steps import compete as steps_compete
from masksmith.steps.choices import choices_of
from masksmith.steps.plan import Plan, Planner
from masksmith.steps.tune import need_tuning
from tests.planning.machine import Machine


def changed(member, changes):
    """The member with another recipe, of three stages."""
    recipe = load_recipe("auto", tuple(f"{key}={value}" for key, value in changes.items()))
    return replace(member, run=replace(member.run, recipe=recipe))


def test_choices_of_a_training(project):
    opened = Project.open(project)
    (member,) = members_of_run(opened.run())
    stall, from_best = "{patience: 2}", "{name: adam, lr: 0.001}"
    plateau = {"training.stages.0.schedule.name": "plateau", "training.stages.0.schedule.warmup_frac": 0}
    for changes, expected in (
        ({}, []),
        ({"training.select": "best"}, ["epoch"]),
        ({"training.select": "best_val_loss"}, ["epoch"]),
        ({"training.stages.2.start": "best", "training.stages.2.optimizer": from_best}, ["epoch"]),
        ({"training.early_stop": stall}, ["epoch"]),
        ({"training.early_stop": "{watch: loss}"}, []),
        ({"training.stages.1.until_plateau": stall}, ["epoch"]),
        ({"training.top_k": 2}, []),
        ({"training.top_k": 2, "prediction.weights": "top_k"}, ["epoch"]),
        (plateau, ["learning rate"]),
        (plateau | {"training.stages.0.schedule.watch": "loss"}, []),
        (plateau | {"training.select": "best"}, ["epoch", "learning rate"]),
    ):
        one = changed(member, changes)
        assert choices_of(opened, [one]) == expected, changes
        assert choices_of(opened, [member, one]) == expected, changes
        assert choices_of(opened, [member, replace(one, fold=ALL)]) == [], changes  # nothing is scored on it
    unfinished = replace(changed(member, {"training.select": "best"}), interim=True)
    assert choices_of(opened, [unfinished]) == []  # it has selected nothing yet
    # what a cycle started from
    assert choices_of(opened, [changed(member, {"training.start_run": member.run.path.name})]) == []
    best = changed(member, {"training.select": "best"}).run.recipe
    other = opened.add_run(best, best).path.name
    assert choices_of(opened, [changed(member, {"training.start_run": other})]) == ["epoch"]


def unit(run, fold, joined, before=None, after=None):
    return Unit("fold", fold, 0, 0.0, "", "", run=run, joined=joined, score_before=before, score_after=after)


def test_members_of_a_plan_that_joined_by_the_score_of_their_fold(project):
    opened = Project.open(project)
    (first,) = members_of_run(opened.run())

    def member(name, fold=0):
        return Member(replace(first.run, path=first.run.path.with_name(name)), fold)

    first_unit, better, worse = (
        unit("a", 0, True),
        unit("b", 0, True, 0.5, 0.6),
        unit("c", 0, False, 0.6, 0.5),
    )
    a, b, second_fold = member("a"), member("b"), member("a", 1)
    baseline = unit("a", 1, True, 0.4, 0.7)  # the first of its fold had to beat predicting nothing
    for others, members, expected in (
        ([], [a], []),
        ([baseline], [a, second_fold], []),
        ([better], [a, b], ["1 of 2 members"]),
        ([better, baseline], [a, b, second_fold], ["1 of 3 members"]),
        ([better, worse, baseline], [a, b, second_fold], ["1 of 3 members (1 more left out)"]),
        ([worse], [a], ["1 member left out"]),
        ([worse, replace(worse, run="d")], [a], ["2 members left out"]),
        ([unit("c", 0, False)], [a], []),  # it failed, and had no score
        ([unit("b", 0, None)], [a, b], ["1 of 2 members"]),  # stopped before the plan was written
        ([better, worse], [b], []),  # a person named the run
        ([better], [a, member("e")], []),  # not of this plan
    ):
        write_json(opened.plan_json, {"units": [one.to_json() for one in (first_unit, *others)]})
        assert choices_of(opened, members) == expected, (others, members)


def test_the_headline_names_what_was_chosen(trained):
    tuning = read_json(trained / "tuning.json") | {"standard_error": 0.0125}
    for chosen, words in (
        ([], ""),
        (["epoch", "2 of 3 members"], "; chosen on the same fold: epoch, 2 of 3 members"),
    ):
        result = Result(trained, "r", tuning | {"chosen_on_fold": chosen}, None, None, ["r/fold 0"])
        headline = str(result).splitlines()[0]
        assert headline.startswith(f"tgs_map out of fold: {tuning['scores']['chosen']:.4f} ± 0.0125 (plain ")
        assert headline.endswith(f"; {tuning['covers']}{words})")
        assert "new images like these expect" in str(result).splitlines()[1]
    assert tuning["chosen_on_fold"] == (["thresholds (nested)"] if tuning["kept"] else [])


@pytest.mark.slow
def test_units_that_are_left_out_are_counted_at_once(project, monkeypatch):
    """A plan whose one unit under way is another trained run, which is worse, or cannot be predicted."""
    opened = Project.open(project)
    first = opened.run()
    second = ms.train(project, recipe="smoke", overrides={"training.clip_norm": 1.0})
    plan = Plan("x", first.recipe, [], [unit(first.path.name, 0, True), unit(second.path.name, 0, None)])
    planner = Planner(opened, first.recipe, [], Machine().tools())
    monkeypatch.setattr(planner, "make", lambda left: planner.save(plan))
    monkeypatch.setattr(planner, "next", lambda *any_: None)

    def compete_units():
        return steps_compete.compete_units(opened, first.recipe, planner, Budget(project / "b.json", None))

    with monkeypatch.context() as patch:
        scores = iter([0.4, 0.5])  # with it, without it
        patch.setattr(steps_compete, "plain_score", lambda *any_: next(scores))
        done = compete_units()
    assert [member.run.path.name for member in done.members] == [first.path.name]
    assert done.tuning["chosen_on_fold"][0] == "1 member left out"
    assert done.tuning == need_tuning(opened, done.members) == read_json(project / "tuning.json")
    page = done.report.read_text()
    assert "<b>Chosen on the same fold:</b> 1 member left out" in page
    assert f"± {done.tuning['standard_error_plain']:.4f}" in page
    assert "makes their score a little too high" in page

    predict, tune, calls = steps_compete.predict_member, steps_compete.tune_members, []

    def predict_member(project, member, **more):
        if member.run.path != first.path:
            raise InputError("oof/fold_0.npy: it cannot be made")
        predict(project, member, **more)

    def tune_members(project, members):
        calls.append(members)
        if len(calls) == 2:
            raise StoppedError("stopped by SIGTERM", exit_code=143)
        return tune(project, members)

    monkeypatch.setattr(steps_compete, "predict_member", predict_member)
    monkeypatch.setattr(steps_compete, "tune_members", tune_members)
    done = compete_units()  # what failed is not predicted once more: the submission of the others stands
    assert (done.stopped, len(calls), [member.run.path for member in done.members]) == (143, 3, [first.path])
    assert done.submission.ids == 8
