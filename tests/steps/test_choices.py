"""What was chosen on the fold that is scored is named beside the score, as it happened."""

from dataclasses import replace

import pytest

import masksmith as ms
from masksmith.core.errors import InputError, StoppedError
from masksmith.core.files import read_json, write_json
from masksmith.folds.table import ALL
from masksmith.pipeline import Result
from masksmith.planning.budget import Budget
from masksmith.planning.units import Unit
from masksmith.project.folder import Project
from masksmith.project.members import Member, members_of_run
from masksmith.recipes.recipe import parse_recipe
from masksmith.steps import compete as steps_compete
from masksmith.steps.choices import choices_of
from masksmith.steps.plan import Plan, Planner
from masksmith.steps.tune import need_tuning
from tests.conftest import TINY
from tests.planning.machine import Machine


def changed(member, changes):
    """The member with another recipe."""
    pairs = tuple(f"{key}={value}" for key, value in changes.items())
    recipe = parse_recipe(member.run.recipe.to_yaml(), where="recipe.yaml", overrides=pairs)
    return replace(member, run=replace(member.run, recipe=recipe))


def test_choices_of_a_training(trained):
    project = Project.open(trained)
    (member,) = members_of_run(project.run())
    stall, from_best = "{patience: 2}", "{name: adam, lr: 0.001}"
    plateau = {
        "training.stages.0.schedule.name": "plateau",
        "training.stages.0.schedule.warmup_frac": 0,
    }
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
        assert choices_of(project, [one]) == expected, changes
        assert choices_of(project, [member, one]) == expected, changes
        assert choices_of(project, [member, replace(one, fold=ALL)]) == [], changes  # nothing is scored on it
    unfinished = replace(changed(member, {"training.select": "best"}), interim=True)
    assert choices_of(project, [unfinished]) == []  # it has selected nothing yet


def test_the_choice_of_the_weights_that_a_cycle_started_from_is_named(project):
    opened = Project.open(project)
    (member,) = members_of_run(opened.run())
    cycle = changed(member, {"training.start_run": member.run.path.name})
    assert choices_of(opened, [cycle]) == []
    opened.add_run(member.run.recipe, changed(member, {"training.select": "best"}).run.recipe)
    other = next(path.name for path in (project / "runs").glob("auto-*") if path != member.run.path)
    assert choices_of(opened, [changed(member, {"training.start_run": other})]) == ["epoch"]


def unit(run, fold, joined, before=None, after=None):
    return Unit("fold", fold, 0, 0.0, "", "", run=run, joined=joined, score_before=before, score_after=after)


def test_members_of_a_plan_that_joined_by_the_score_of_their_fold(project):
    opened = Project.open(project)
    (first,) = members_of_run(opened.run())

    def member(name, fold=0):
        return Member(replace(first.run, path=first.run.path.with_name(name)), fold)

    better, worse = unit("b", 0, True, 0.5, 0.6), unit("c", 0, False, 0.6, 0.5)
    a, b, second_fold = member("a"), member("b"), member("a", 1)
    baseline = unit("a", 1, True, 0.4, 0.7)  # the first of its fold had to beat predicting nothing
    for units, members, expected in (
        ([unit("a", 0, True)], [a], []),
        ([unit("a", 0, True), baseline], [a, second_fold], []),
        ([unit("a", 0, True), better], [a, b], ["1 of 2 members"]),
        ([unit("a", 0, True), better, baseline], [a, b, second_fold], ["1 of 3 members"]),
        (
            [unit("a", 0, True), better, worse, baseline],
            [a, b, second_fold],
            ["1 of 3 members (1 more left out)"],
        ),
        ([unit("a", 0, True), worse], [a], ["1 member left out"]),
        ([unit("a", 0, True), worse, replace(worse, run="d")], [a], ["2 members left out"]),
        ([unit("a", 0, True), unit("c", 0, False)], [a], []),  # it failed, and had no score
        (
            [unit("a", 0, True), unit("b", 0, None)],
            [a, b],
            ["1 of 2 members"],
        ),  # stopped before the plan was written
        ([unit("a", 0, True), better, worse], [b], []),  # a person named the run
        ([unit("a", 0, True), better], [a, member("e")], []),  # not of this plan
    ):
        write_json(opened.plan_json, {"units": [one.to_json() for one in units]})
        assert choices_of(opened, members) == expected, (units, members)


def test_the_headline_names_what_was_chosen(trained):
    tuning = read_json(trained / "tuning.json") | {"standard_error": 0.0125}
    for chosen, words in (
        ([], ""),
        (["epoch"], "; chosen on the same fold: epoch"),
        (["epoch", "2 of 3 members"], "; chosen on the same fold: epoch, 2 of 3 members"),
    ):
        headline = str(
            Result(trained, "r", tuning | {"chosen_on_fold": chosen}, None, None, ["r/fold 0"])
        ).splitlines()[0]
        assert headline.startswith(f"tgs_map out of fold: {tuning['scores']['chosen']:.4f} ± 0.0125 (plain ")
        assert headline.endswith(f"; {tuning['covers']}{words})")
    assert tuning["chosen_on_fold"] == (["thresholds (nested)"] if tuning["kept"] else [])


@pytest.fixture
def planned(project, monkeypatch):
    """A project, the run of its one member, and a planner whose one unit under way is another trained run."""
    opened = Project.open(project)
    first = opened.run()
    second = ms.train(project, overrides=TINY | {"training.clip_norm": 1.0})
    plan = Plan("x", first.recipe, [], [unit(first.path.name, 0, True), unit(second.path.name, 0, None)])
    planner = Planner(opened, first.recipe, [], Machine().tools())
    monkeypatch.setattr(planner, "make", lambda left: planner.save(plan))
    monkeypatch.setattr(planner, "next", lambda *any_: None)
    return opened, first, planner


def test_a_unit_that_is_left_out_is_counted_at_once(planned, project, monkeypatch):
    opened, first, planner = planned
    scores = iter([0.4, 0.5])  # with it, without it
    monkeypatch.setattr(steps_compete, "plain_score", lambda *any_: next(scores))
    done = steps_compete.compete_units(opened, first.recipe, planner, Budget(project / "b.json", None))
    assert [member.run.path.name for member in done.members] == [first.path.name]
    assert done.tuning["chosen_on_fold"][0] == "1 member left out"
    assert done.tuning == need_tuning(opened, done.members) == read_json(project / "tuning.json")
    page = done.report.read_text()
    assert "<b>Chosen on the same fold:</b> 1 member left out" in page
    assert f"± {done.tuning['standard_error_plain']:.4f}" in page
    assert "are as a rule a little higher" in page


def test_a_stop_after_a_unit_that_failed(planned, project, monkeypatch):
    """What failed is not predicted once more: the submission of the others stands."""
    opened, first, planner = planned
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
    done = steps_compete.compete_units(opened, first.recipe, planner, Budget(project / "b.json", None))
    assert (done.stopped, len(calls), [member.run.path for member in done.members]) == (143, 3, [first.path])
    assert done.submission.ids == 8
