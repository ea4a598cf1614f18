"""Pseudo-labels in rounds: who teaches, when it ends, what is used, and what a stop leaves."""

import json
from dataclasses import replace

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError, StoppedError
from masksmith.core.files import read_json
from masksmith.folds.config import ALL
from masksmith.planning.budget import Duration
from masksmith.project.folder import Project
from masksmith.project.members import Member, read_members
from masksmith.recipes.pseudo import PseudoConfig, TeacherConfig
from masksmith.recipes.recipe import load_recipe, load_teachers
from masksmith.steps import compete, pseudo_rounds
from masksmith.steps.clean import _idle_runs
from masksmith.steps.pseudo_labels import make_labels, teachers_of
from masksmith.steps.runs import open_run
from masksmith.steps.tasks import at_hand
from tests.blends import add, write_ensemble, write_pupil, write_recipe
from tests.planning.machine import Machine
from tests.stops import stop

STEP = pseudo_rounds.Judge.step
SURE = ["pseudo.min_confident_frac=0", "pseudo.quotas=null"]


def gains(monkeypatch, lows):
    """Let the rounds have these lower bounds in turn; what is judged and its score are as they are."""
    given = iter(lows)

    def judged(self, what, rows, before, seconds, *, kept):
        found = STEP(self, what, rows, before, seconds, kept=kept)
        if kept:
            return found  # round 0
        low = next(given)
        return replace(found, low=low, high=low + 0.02)

    monkeypatch.setattr(pseudo_rounds.Judge, "step", judged)


def finals(project):
    return {path: path.stat().st_mtime_ns for path in project.glob("runs/*/checkpoints/*/final.safetensors")}


@pytest.mark.slow
def test_rounds_end_where_nothing_is_gained_and_a_stop_changes_nothing(project, monkeypatch):
    opened = Project.open(project)
    before, rows = ms.tune(project)["members"], read_members(opened, None)
    gains(monkeypatch, [0.01])
    with stop("*/smoke-round-2-*/checkpoints/fold_0/epoch_0001.json"), pytest.raises(StoppedError):
        ms.pseudo(project, overrides=SURE)
    assert not opened.rounds_json.exists()
    assert read_members(opened, None) == rows
    stamps = finals(project)
    assert len(stamps) == 2
    gains(monkeypatch, [0.01, -0.01])
    found = ms.pseudo(project, overrides=SURE)
    assert {path: finals(project)[path] for path in stamps} == stamps  # round 1 is not trained again
    assert [(row.round, row.kept) for row in found.rounds] == [(0, True), (1, True), (2, False)]
    assert found.rounds[0].score == pytest.approx(
        ms.tune(project, run=rows[0].run.path.name)["scores"]["plain"]
    )
    assert [row.taken for row in found.rounds[1:]] == [[6], [6]]  # two of eight have no content
    assert sum(found.rounds[1].shares) == pytest.approx(1, abs=1e-3)
    assert all(row.seconds > 0 for row in found.rounds[1:])
    assert "round 1 is used: predict, tune and submit again" in str(found)
    (used,) = read_members(opened, None)
    assert (used.run.path.name, used.fold) == (found.rounds[1].run, 0)
    # round 2 was taught by round 1, round 1 by the members; each student by the member of its own fold
    second = opened.run(found.rounds[2].run)
    assert [one.name for one in teachers_of(opened, Member(second, 0))] == [f"{found.rounds[1].run}/fold 0"]
    assert [one.name for one in teachers_of(opened, used)] == before
    assert [path.name for path in _idle_runs(opened)] == [found.rounds[2].run]  # teachers are needed
    # the same again does nothing; the table of steps has them; it can be left
    gains(monkeypatch, [0.01, -0.01])
    after = finals(project)
    assert ms.pseudo(project, overrides=SURE) == found
    assert finals(project) == after
    steps = {row["step"]: row for row in ms.ablate(project).to_json()}
    assert [steps[f"pseudo-labels, round {n}"]["kept"] for n in (1, 2)] == [True, False]
    ms.tune(project)
    page = ms.report(project).read_text()
    assert "round 2" in page
    # another way begins from the students, and leaves them where they are
    gains(monkeypatch, [-0.01])
    other = ms.pseudo(project, rounds=1, overrides=[*SURE, "pseudo.labels=soft"])
    assert (other.start, other.members, len(other.earlier)) == (found.members, [], 1)
    assert read_members(opened, None) == [used]
    assert "used again" in ms.pseudo(project, off=True)
    assert read_members(opened, None) == rows
    with pytest.raises(
        InputError, match="no round of pseudo-labels is used; there is nothing to go back from"
    ):
        ms.pseudo(project, off=True)


@pytest.mark.slow
def test_soft_labels_are_what_the_teacher_says(project):
    opened = Project.open(project)
    (teacher,) = read_members(opened, None)
    base = teacher.run.recipe
    stages = [stage.model_copy(update={"data": "both"}) for stage in base.training.stages]
    pseudo = PseudoConfig(
        teacher_runs=[TeacherConfig(run=teacher.run.path.name)], labels="soft", min_confident_frac=0.0
    )
    training = base.training.model_copy(update={"stages": stages})
    run = open_run(opened, base.model_copy(update={"name": "soft", "pseudo": pseudo, "training": training}))
    make_labels(opened, Member(run, 0))
    from masksmith.data.store import Store
    from masksmith.steps.train import train_key

    soft, codes = Store(run.soft_labels(0)), Store(teacher.run.test(0))
    assert soft.ids == Store(run.pseudo(0)).ids
    for name in soft:
        np.testing.assert_allclose(soft[name], codes[name] / 257, atol=0.51)
    key = train_key(opened, run, 0)
    run.soft_labels(0).unlink()
    assert train_key(opened, run, 0) != key
    make_labels(opened, Member(run, 0))
    assert train_key(opened, run, 0) == key


# --- several teachers ---


@pytest.fixture
def unread(example, tmp_path):
    """A project whose images are read, with nothing trained."""
    ms.check(example / "data", tmp_path / "p")
    return Project.open(tmp_path / "p")


def test_each_fold_has_the_teachers_that_did_not_see_it(unread, tmp_path):
    ensemble = write_ensemble(
        tmp_path,
        "e",
        write_recipe(tmp_path, "a"),
        {"recipe": write_recipe(tmp_path, "b", seed=3), "weight": 2},
    )
    asked = load_recipe(write_pupil(tmp_path, "p", ensemble))
    content = asked.hash  # of the files as they are now
    assert [(one.name, weight, one.folds.refit) for one, weight in load_teachers(asked)] == [
        ("a", 1.0, False),
        ("b", 2.0, False),
    ]
    run = open_run(unread, asked)
    assert [(one.run[:2], one.weight, one.folds) for one in run.recipe.pseudo.teacher_runs] == [
        ("a-", 1.0, None),
        ("b-", 2.0, None),
    ]
    assert unread.run(run.path.name).recipe == run.recipe  # it can be read again
    places = [(one.run.recipe.name, one.fold, one.weight) for one in teachers_of(unread, Member(run, 1))]
    assert places == [("a", 1, 1.0), ("b", 1, 2.0)]
    of_all = [(one.run.recipe.name, one.fold, one.weight) for one in teachers_of(unread, Member(run, ALL))]
    assert of_all == [*(("a", k, 1 / 3) for k in range(3)), *(("b", k, 2 / 3) for k in range(3))]
    # of listed folds only those; where none is left, nobody can teach
    one, other = run.recipe.pseudo.teacher_runs
    only = [
        one.model_copy(update={"folds": [0]}),
        other.model_copy(update={"folds": [0, 1], "weights": "raw"}),
    ]
    some = run.recipe.model_copy(
        update={"pseudo": run.recipe.pseudo.model_copy(update={"teacher_runs": only})}
    )
    students = [Member(replace(run, recipe=some), fold) for fold in range(3)]
    assert [[one.name[:1] for one in teachers_of(unread, student)] for student in students] == [
        ["a", "b"],
        ["b"],
        [],
    ]
    assert teachers_of(unread, students[1])[0].variant == "raw"
    with pytest.raises(
        InputError, match=r"pseudo\.teacher_runs: none of them has a fold that the student is"
    ):
        make_labels(unread, students[2])
    # the ensemble's content is in the hash; one that its own student is a member of is a circle
    weights = write_ensemble(tmp_path, "e", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"))
    assert load_recipe(write_pupil(tmp_path, "p", weights)).hash != content
    write_ensemble(tmp_path, "e", str(tmp_path / "a.yaml"), str(tmp_path / "p.yaml"))
    with pytest.raises(InputError, match="would be its own teacher"):
        load_recipe(str(tmp_path / "p.yaml"))


def test_teachers_that_cannot_teach(project, tmp_path):
    add(project, tmp_path, "foreign")
    opened = Project.open(project)
    recipe = opened.run().recipe
    other = open_run(opened, recipe.model_copy(update={"name": "other"}))
    folds = other.recipe.folds.model_copy(update={"seed": 5})
    opened._write_run(other.path, other.recipe.model_copy(update={"folds": folds}))
    names = ("gone-1", "foreign", other.path.name)
    pseudo = PseudoConfig(teacher_runs=[TeacherConfig(run=name) for name in names])
    with pytest.raises(InputError) as error:
        open_run(opened, recipe.model_copy(update={"name": "s", "pseudo": pseudo}))
    assert [line.partition(";")[0] for line in str(error.value).splitlines()] == [
        f"pseudo.teacher_runs: gone-1: {project} has no such run",
        "pseudo.teacher_runs: foreign: its probabilities of the test images are one mean of all folds, so those of "
        "fold k have seen the masks of fold k",
        f"pseudo.teacher_runs: {other.path.name}: folds.seed 5, but s has {recipe.folds.seed}",
    ]


def test_what_excludes_each_other():
    runs = [{"run": "a-1"}]
    for values, message in (
        ({"teacher": "auto", "labels": "soft", "ignore_unsure": True}, "'soft' with ignore_unsure: true"),
        ({"table": "t.csv", "labels": "soft"}, r"'soft' with table: 't\.csv'"),
        ({"table": "t.csv", "teacher_runs": runs}, r"teacher: None and table: 't\.csv'; expected one"),
        (
            {"teacher": "auto", "teacher_run": "a-1", "teacher_runs": runs},
            "teacher_run: 'a-1' and teacher_runs of 1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            PseudoConfig(**values)


# --- refusals ---


def test_what_rounds_refuse(project, tmp_path):
    opened = Project.open(project)
    rows, metric = read_members(opened, None), write_recipe(tmp_path, "m", metric="dice_per_image")
    for options, message in (
        ({"rounds": 0}, "--rounds 0: expected 1 or more"),
        ({"images": 0}, "--images 0: expected 1 or more"),
        ({"off": True, "images": 3}, "--off trains nothing"),
        ({"off": True}, "no round of pseudo-labels is used"),
        (
            {"overrides": {"folds.count": 4}},
            r"--set folds\.count=4: folds, metric and teachers of the students",
        ),
        (
            {"recipe": metric},
            "its metric is dice_per_image, that of the members tgs_map; add --set metric=tgs_map",
        ),
        ({"overrides": ["pseudo.unsure=[0.0, 1.0]"]}, "pseudo: no test image is sure enough for a label"),
    ):
        with pytest.raises(InputError, match=message):
            ms.pseudo(project, **options)
    assert not opened.rounds_json.exists()
    assert read_members(opened, None) == rows
    gap = [Member(rows[0].run, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pseudo_rounds, "is_trained", lambda *any_: True)
        with pytest.raises(InputError, match=r"hold out the folds 1; expected the first ones without a gap"):
            pseudo_rounds.run_rounds(opened, gap, rounds=1)


def test_who_cannot_be_a_project_of_rounds(project, example, tmp_path):
    add(project, tmp_path, "foreign")
    opened = Project.open(project)
    foreign = [one for one in read_members(opened, None) if one.run.is_external]
    with pytest.raises(InputError, match="no trained fold of its own can teach"):
        pseudo_rounds.run_rounds(opened, foreign, rounds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Project, "target", replace(opened.target, task="multilabel"))
        with pytest.raises(InputError, match="made of binary masks, and the masks are multilabel"):
            pseudo_rounds.check_rounds(opened, 1)
    opened.__dict__["blank_test"] = frozenset(opened.cache.test_images)
    with pytest.raises(InputError, match="no test images with content to make pseudo-labels of"):
        pseudo_rounds.check_rounds(opened, 1)
    message = r"--pseudo-rounds 2 without --budget; run `masksmith pseudo .* --rounds 2` after it"
    with pytest.raises(InputError, match=message):
        ms.compete(example / "data", out=tmp_path / "q", pseudo_rounds=2)


# --- within a budget ---


@pytest.mark.slow
def test_a_student_is_a_unit_of_a_budget(project, monkeypatch):
    """It is begun with the labels of its fold's members, and joins as any other; one without labels is left out."""
    opened = Project.open(project)
    (member,) = read_members(opened, None)
    planner = compete.Planner(opened, member.run.recipe, [], Machine().tools(), rounds=1)
    plan = planner.make(lambda: 1e6)
    units = [*plan.units, replace(plan.units[0], kind="refit", fold=ALL)]
    planner.asked = planner.asked.model_copy(
        update={"folds": planner.asked.folds.model_copy(update={"train": 1})}
    )
    wish = planner.next(replace(plan, units=units), 1e6)
    assert (wish.unit.kind, wish.unit.fold) == ("pseudo", 0)
    assert wish.recipe.pseudo.teacher_runs == [TeacherConfig(run=member.run.path.name, folds=[0])]
    session = compete.Session(opened)
    session.members = [member]
    budget = compete.Budget(opened.budget_json, Duration(3600, more=False))
    for sure, kept in ((False, False), (True, True)):
        pseudo = wish.recipe.pseudo
        if sure:
            pseudo = pseudo.model_copy(update={"min_confident_frac": 0.0, "quotas": None})
        recipe = wish.recipe.model_copy(update={"pseudo": pseudo})
        unit = replace(wish.unit, run=open_run(opened, recipe).path.name)
        monkeypatch.setattr(compete, "accept_unit", lambda _project, unit, *_: replace(unit, joined=True))
        longer, at = plan.with_unit(unit), len(plan.units)
        with at_hand(opened, budget):
            task = compete.begin_unit(session, planner, longer, at, budget)
            (ended,) = session.engine.run([task])
        done = compete.end_unit(session, planner, longer, at, ended)
        assert done.joined == kept, done.reason
    assert [one.run.recipe.name for one in session.members] == ["smoke", "smoke-round-1"]
    assert (
        json.dumps(read_json(opened.run(unit.run).pseudo(0).with_suffix(".json"))).count(member.run.path.name)
        == 1
    )
