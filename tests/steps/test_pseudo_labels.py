"""Pseudo-labels: what is kept, who made them for which fold, and trainings on them, stopped and gone on with."""

import json
import shutil
import weakref

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.arrays import IGNORE
from masksmith.core.errors import InputError
from masksmith.core.ledger import Ledger
from masksmith.data.store import Store, StoreWriter
from masksmith.folds.config import ALL
from masksmith.project.folder import Project
from masksmith.project.members import Member, read_members
from masksmith.recipes.ensemble import load_ensemble
from masksmith.recipes.pseudo import PseudoConfig, QuotaConfig
from masksmith.recipes.recipe import load_recipe, load_teacher
from masksmith.steps import pseudo_labels
from masksmith.steps.pseudo_labels import fill_quotas, label, make_labels, teachers_of, with_teachers
from masksmith.steps.runs import open_members, open_run
from masksmith.steps.seed_noise import noise_text
from masksmith.steps.train import is_trained, train_key
from masksmith.training.events import read_events
from tests.blends import write_ensemble, write_pupil, write_recipe
from tests.stops import content, stop

TWO = {"folds.train": 2}

# --- the rule ---------------------------------------------------------------------------------------------


def test_pixels_by_the_threshold_and_confident_ones_by_the_band():
    probs = np.array([0.0, 0.1999, 0.2001, 0.45, 0.55, 0.7999, 0.8001, 1.0])
    codes = np.rint(probs * 65535).astype(np.uint16)[None]
    edges = np.array([[13106, 13107, 52428, 52429]], np.uint16)  # 0.2 and 0.8 are 13107 and 52428
    outside = np.array([[0, 30000, 40000, 65535]], np.uint16)
    for given, options, mask, confident in (
        (codes, {}, [0, 0, 0, 0, 1, 1, 1, 1], 0.5),
        (codes, {"ignore_unsure": True}, [0, 0, *[IGNORE] * 4, 1, 1], 0.5),
        (edges, {"ignore_unsure": True}, [0, IGNORE, IGNORE, 1], 0.5),
        (outside, {"threshold": 0.5, "unsure": (0.5, 0.5)}, [0, 0, 1, 1], 1.0),
    ):
        found = label(given, PseudoConfig(teacher="x", **options))
        assert (found[0].ravel().tolist(), found[1]) == (mask, confident), options
    for unsure in ((0.6, 0.8), (0.2, 0.4), (0.8, 0.2), (-0.1, 0.8)):
        with pytest.raises(ValueError, match="expected 0 <= low <= threshold <= high <= 1"):
            PseudoConfig(teacher="x", unsure=unsure)


def test_quotas_balance_coverage():
    rng = np.random.default_rng(0)
    coverage = np.concatenate([np.zeros(50), rng.uniform(0.001, 1, 150)])
    labels = {f"{i:03d}": (float(c), 0.9 + 0.1 * (i % 2)) for i, c in enumerate(coverage)}
    quotas = [
        QuotaConfig(images=10),
        QuotaConfig(above=0.0, up_to=0.5, images=20, min_confident_frac=0.99),
        QuotaConfig(above=0.5, up_to=0.9, images=1000),
    ]
    kept = fill_quotas(labels, quotas, np.random.default_rng(1))
    assert kept == sorted(kept)
    found = [[labels[name] for name in kept if quota.holds(labels[name][0])] for quota in quotas]
    assert [len(one) for one in found[:2]] == [10, 20]
    assert {confident for _, confident in found[1]} == {1.0}
    assert len(found[2]) == sum(0.5 < c <= 0.9 for c in coverage)
    assert sum(map(len, found)) == len(kept)  # none above 0.9
    assert fill_quotas(labels, quotas, np.random.default_rng(1)) == kept
    assert fill_quotas(labels, quotas, np.random.default_rng(2)) != kept
    for wrong in ({"above": 0.5, "up_to": 0.5}, {"above": 0.2}, {"up_to": 0.2}):
        with pytest.raises(ValueError, match="no coverage is in this range"):
            QuotaConfig(images=1, **wrong)


# --- the recipe -------------------------------------------------------------------------------------------


def test_stages_and_labels_need_each_other(tmp_path):
    with pytest.raises(
        InputError, match=r"training\.stages\[1\]\.data: 'both', but pseudo is null; name a teacher"
    ):
        load_recipe(overrides=("training.stages.1.data=both",))
    idle = write_pupil(tmp_path, "idle", "auto", data=("labelled",) * 3, changes={"folds.count": 5})
    with pytest.raises(
        InputError, match=r"idle\.yaml: pseudo: its labels are used by no stage; set training"
    ):
        load_recipe(idle)


def test_a_teacher_has_the_folds_of_its_pupil(tmp_path):
    teacher = write_recipe(tmp_path, "t", **{"folds.seed": 2})
    message = r"t\.yaml' has folds\.seed 2, but p has 0; .* add \"folds\.seed=0\" to pseudo\.set"
    with pytest.raises(InputError, match=message):
        load_recipe(write_pupil(tmp_path, "p", teacher))
    fitting = load_recipe(write_pupil(tmp_path, "p", teacher, set=["folds.seed=0"]))
    assert load_teacher(fitting).folds.seed == 0


def test_what_belongs_to_the_project_and_the_machine_reaches_the_teacher(tmp_path):
    pupil = write_pupil(tmp_path, "p", write_recipe(tmp_path, "t"))
    shared = ("folds.seed=7", "folds.train=1", "metric=dice_per_image", "training.threads=2")
    own = ("seed=4", "training.batch_size=4", "training.stages.0.epochs=9")
    teacher = load_teacher(load_recipe(pupil, (*shared, *own)))
    assert (teacher.folds.seed, teacher.folds.train, teacher.metric) == (7, 1, "dice_per_image")
    assert teacher.training.threads == 2
    assert (teacher.seed, teacher.training.batch_size, teacher.training.stages[0].epochs) == (0, 8, 3)
    assert not load_teacher(load_recipe(pupil, ("folds.refit=true",))).folds.refit


def test_teachers_that_cannot_be(tmp_path):
    write_recipe(tmp_path, "a")
    write_pupil(tmp_path, "b", str(tmp_path / "a.yaml"))
    write_pupil(tmp_path, "a", str(tmp_path / "b.yaml"))
    circle = r"would be its own teacher \(.*a\.yaml ← .*\); a teacher is trained before"
    for path, message in (
        (tmp_path / "a.yaml", circle),
        (tmp_path / "b.yaml", circle),
        (write_pupil(tmp_path, "own", str(tmp_path / "own.yaml")), r"own\.yaml' would be its own teacher"),
        (write_pupil(tmp_path, "p", "defoult"), "'defoult' is neither a file nor a bundled recipe"),
    ):
        with pytest.raises(InputError, match=message):
            load_recipe(str(path))


def test_the_content_of_the_teachers_recipe_is_in_the_hash(tmp_path):
    teacher = write_recipe(tmp_path, "t")
    pupil = write_pupil(tmp_path, "p", teacher)
    first = load_recipe(pupil).hash
    assert load_recipe(pupil, ("folds.train=1",)).hash == first
    moved = write_pupil(tmp_path, "p", str(shutil.copy(teacher, tmp_path / "moved.yaml")))
    assert load_recipe(moved).hash == first
    write_recipe(tmp_path, "moved", **{"training.stages.0.epochs": 2})
    assert load_recipe(moved).hash != first
    for change in ("pseudo.min_confident_frac=0.5", "pseudo.quotas=[{images: 3}]"):
        assert load_recipe(pupil, (change,)).hash != first


# --- all the way ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pupil(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    return write_pupil(folder, "pupil", write_recipe(folder, "teacher"))


@pytest.fixture(scope="module")
def taught(example, pupil, tmp_path_factory):
    """A project whose recipe learns from a teacher, two folds of it (read only)."""
    out = tmp_path_factory.mktemp("taught") / "p"
    return out, ms.compete(example / "data", out=out, recipe=pupil, overrides=TWO)


def run_of(project, name):
    (path,) = project.runs_dir.glob(f"{name}-*")
    return project.run(path.name)


@pytest.mark.slow
def test_each_fold_learns_from_the_teachers_fold_alone(taught):
    out, result = taught
    project = Project.open(out)
    teacher, pupil = run_of(project, "teacher"), run_of(project, "pupil")
    for fold in (0, 1):
        labels, codes = Store(pupil.pseudo(fold)), Store(teacher.test(fold))
        assert labels.ids == [name for name in codes if name not in project.blank_test]
        for name in labels:
            np.testing.assert_array_equal(labels[name], (codes[name] > 32767).astype(np.uint8))
        (alone,) = teachers_of(project, Member(pupil, fold))
        assert (alone.run.path, alone.fold) == (teacher.path, fold)
        # that member has not seen the held-out images either
        assert not set(project.folds.inside(fold)) & set(project.folds.outside(alone.fold))
        assert Ledger(pupil.path).knows(f"fold_{fold}/pseudo")
    assert any((Store(pupil.pseudo(0))[name] != Store(pupil.pseudo(1))[name]).any() for name in labels)
    assert [(one.run.path, one.fold) for one in teachers_of(project, Member(pupil, ALL))] == [
        (teacher.path, 0),
        (teacher.path, 1),
    ]
    assert [name.split("/")[0].rpartition("-")[0] for name in result.members] == ["pupil", "pupil"]
    facts = json.loads(pupil.pseudo(0).with_suffix(".json").read_text())
    assert (facts["images"], facts["blank"], sum(facts["classes"])) == (8, 2, 6)
    assert facts["teacher"] == [f"{teacher.path.name}/fold 0"]
    assert result.tuning["covers"].startswith("26 of 40 training images")
    page = " ".join((out / "report.html").read_text().split())
    assert "<h2>Pseudo-labels</h2>" in page
    assert "a training on all images (fold all) learns from the mean of the teacher's folds" in page
    assert "fold 0: 6 of 8 test images kept (2 without content, 0 unsure or over a quota)" in page
    assert (
        len([one for one in read_events(pupil.events(0)) if one["name"] == "loss" and one["fold"] == 0]) == 3
    )


@pytest.mark.slow
def test_few_masks_are_in_memory_at_once(taught, tmp_path, monkeypatch):
    project, made, most = Project.open(shutil.copytree(taught[0], tmp_path / "p")), [], 0
    pupil = run_of(project, "pupil")
    before = pupil.pseudo(0).read_bytes()

    def counted(codes, config):
        nonlocal most
        mask, confident = label(codes, config)
        made.append(weakref.ref(mask))
        most = max(most, sum(one() is not None for one in made))
        return mask, confident

    monkeypatch.setattr(pseudo_labels, "label", counted)
    pupil.pseudo(0).unlink()
    make_labels(project, Member(pupil, 0))
    assert pupil.pseudo(0).read_bytes() == before
    assert len(made) > 6 > 2 >= most  # of the six that are kept


@pytest.mark.slow
def test_another_fold_of_the_teacher_changes_nothing_for_a_fold(taught, tmp_path):
    project = Project.open(shutil.copytree(taught[0], tmp_path / "p"))
    teacher, pupil = run_of(project, "teacher"), run_of(project, "pupil")
    before = pupil.pseudo(0).read_bytes(), train_key(project, pupil, 0)

    def labels_after_a_change_of(fold):
        names = Store(teacher.test(fold)).ids
        writer = StoreWriter(teacher.test(fold), [(name, (101, 101, 1)) for name in names], dtype=np.uint16)
        for name in names:
            writer.write(name, np.full((101, 101, 1), 60000, np.uint16))
        writer.close()
        make_labels(project, Member(pupil, 0))
        return pupil.pseudo(0).read_bytes(), train_key(project, pupil, 0)

    assert labels_after_a_change_of(1) == before
    assert is_trained(project, Member(pupil, 0))
    after = labels_after_a_change_of(0)
    assert after[0] != before[0]
    assert after[1] != before[1]
    assert not is_trained(project, Member(pupil, 0))


@pytest.mark.slow
def test_again_does_nothing_and_a_changed_teacher_teaches_anew(example, taught, pupil, tmp_path):
    out = shutil.copytree(taught[0], tmp_path / "p")
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/*/final.safetensors")}
    assert len(stamps) == 4
    # labels that are gone or damaged are made again, from the same probabilities, and nothing is trained
    for path in out.glob("runs/pupil-*/pseudo/fold_0.*"):
        path.unlink()
    project = Project.open(out)
    learner = run_of(project, "pupil")
    other = learner.pseudo(1)
    other.write_bytes(other.read_bytes()[:-1000])
    assert not any(is_trained(project, Member(learner, fold)) for fold in (0, 1))
    for _ in range(2):
        ms.compete(example / "data", out=out, recipe=pupil, overrides=TWO)
        assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert content(out) == content(taught[0])
    # the teacher predicts otherwise: its pupil is trained anew
    teacher = run_of(project, "teacher")
    other_views = teacher.recipe.prediction.model_copy(update={"tta": ["hflip"]})
    project.set_free_parts(teacher, teacher.recipe.model_copy(update={"prediction": other_views}))
    make_labels(project, Member(run_of(project, "pupil"), 0))
    assert [is_trained(project, Member(run_of(project, "pupil"), fold)) for fold in (0, 1)] == [False, True]


@pytest.mark.slow
def test_a_stop_anywhere_leaves_a_submission_and_it_goes_on_exactly(example, taught, pupil, tmp_path):
    out = tmp_path / "p"
    for place, kind, members in (
        ("teacher-*/fold_0/epoch_0001", "interim", ["teacher"]),
        ("pupil-*/fold_0/epoch_0002", "trained", ["teacher"]),  # its teacher stands in
        ("teacher-*/fold_1/epoch_0002", "trained", ["pupil"]),
        ("pupil-*/fold_1/epoch_0001", "trained", ["pupil"]),
    ):
        with stop(f"*/{place}.json", items=1):
            result = ms.compete(example / "data", out=out, recipe=pupil, overrides=TWO)
        assert result.stopped == 143
        assert ms.submit(out, check=out / "submission.csv").ids == 8
        assert json.loads((out / "submission.json").read_text())["kind"] == kind
        assert [name.rpartition("-")[0] for name in result.members] == members
    assert ms.compete(example / "data", out=out, recipe=pupil, overrides=TWO).stopped is None
    assert content(out) == content(taught[0])


@pytest.mark.slow
def test_a_teacher_that_is_a_member_is_trained_once(example, pupil, tmp_path):
    teacher = load_recipe(pupil).pseudo.teacher
    path = write_ensemble(tmp_path, "e", {"recipe": pupil, "weight": 2}, teacher)
    result = ms.compete(example / "data", out=tmp_path / "p", recipe=path, overrides={"folds.train": 1})
    assert [name.rpartition("-")[0] for name in result.members] == ["pupil", "teacher"]
    project = Project.open(tmp_path / "p")
    units = with_teachers(project, read_members(project, None))
    assert [(unit.run.recipe.name, unit.weight) for unit in units] == [("teacher", 1.0), ("pupil", 2.0)]
    assert len(list(project.runs_dir.glob("*/recipe.yaml"))) == 2


@pytest.mark.slow
def test_teachers_of_teachers_a_refit_and_seed_noise(example, pupil, tmp_path):
    second = write_pupil(tmp_path, "second", pupil, data=("labelled", "both", "pseudo"), ignore_unsure=True)
    ms.check(example / "data", tmp_path / "p")
    run = ms.train(tmp_path / "p", recipe=second, overrides={"folds.train": 1, "folds.refit": True})
    project = Project.open(tmp_path / "p")
    names = sorted(path.parent.name.rpartition("-")[0] for path in project.runs_dir.glob("*/recipe.yaml"))
    assert names == ["pupil", "second", "teacher"]
    assert [run.final(fold).exists() for fold in (0, 1, ALL)] == [True, False, True]
    assert not run_of(project, "pupil").final(ALL).exists()
    assert run.pseudo(ALL).exists()
    ms.predict(tmp_path / "p")
    assert ms.tune(tmp_path / "p")["members"] == [f"{run.path.name}/fold 0", f"{run.path.name}/fold all"]
    found = ms.noise(tmp_path / "p", recipe=pupil)
    assert len(found["scores"]) == 3
    assert len(list((tmp_path / "p").glob("runs/teacher-*/checkpoints/*/final.safetensors"))) == 1
    assert f"over 3 seeds of {found['recipe']} with the same pseudo-labels; differences" in noise_text(found)


@pytest.fixture
def unread(example, tmp_path):
    """A project whose images are read, with nothing trained."""
    ms.check(example / "data", tmp_path / "p")
    return Project.open(tmp_path / "p")


@pytest.mark.slow
def test_a_pupil_leaves_the_folds_and_the_tuning_of_its_teacher(unread, tmp_path):
    teacher = write_recipe(tmp_path, "t", **{"tuning.resamples": 300})
    one_fold = {"folds.train": 1, "seed": 5}
    own_views = ['prediction.tta=["identity", "hflip"]']
    pupil = write_pupil(tmp_path, "p", teacher, changes=one_fold, set=own_views)
    alone = open_run(unread, load_recipe(teacher, ("folds.refit=true",)))
    open_run(unread, load_recipe(pupil))
    after = unread.run(alone.path.name).recipe
    assert (after.folds, after.tuning) == (alone.recipe.folds, alone.recipe.tuning)
    assert (after.folds.train, after.folds.refit, after.tuning.resamples) == (None, True, 300)
    assert after.prediction.tta == ["identity", "hflip"]  # what its labels are made with
    plain = write_recipe(tmp_path, "plain")
    fewer = write_pupil(tmp_path, "fewer", plain, changes=one_fold)
    for members in ((plain, fewer), (fewer, plain)):
        found = open_members(unread, load_ensemble(write_ensemble(tmp_path, "e", *members)))
        for member in found:
            assert unread.run(member.run.path.name).recipe == member.run.recipe
        places = [("fewer", 0), ("plain", 0), ("plain", 1), ("plain", 2)]
        assert sorted((one.run.recipe.name, one.fold) for one in found) == places


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_label_that_is_sure_enough(example, pupil, tmp_path):
    changes = {"folds.train": 1, "pseudo.min_confident_frac": 1.0, "pseudo.unsure": [0.0, 1.0]}
    message = r"pseudo: no test image is sure enough .*\(0 of 8 test images kept.*6 unsure"
    with pytest.raises(InputError, match=message):
        ms.compete(example / "data", out=tmp_path / "p", recipe=pupil, overrides=changes)
    kind = json.loads((tmp_path / "p" / "submission.json").read_text())["kind"]
    assert kind == "trained"  # the teacher's


def test_what_they_cannot_be_had_with(example, download, pupil, trained, tmp_path):
    shutil.rmtree(download / "test")
    (download / "sample_submission.csv").unlink()
    budget = r"pseudo: pupil learns from .*teacher\.yaml, and a budget does not plan that"
    for call, message in (
        (
            lambda: ms.compete(download, out=tmp_path / "q", recipe=pupil),
            "there are no test images to make pseudo-labels of; set pseudo=null",
        ),
        (lambda: ms.compete(example / "data", out=tmp_path / "p", recipe=pupil, budget="5m"), budget),
        (lambda: ms.plan(example / "data", recipe=pupil, budget="5m"), budget),
        (
            lambda: ms.lr(trained, recipe=pupil),
            r"training\.stages\[0\]\.data: 'pseudo': a range test has no pseudo-labels",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_a_resolved_recipe_needs_its_teachers_run(pupil, project, tmp_path):
    recipe = load_recipe(pupil)
    pseudo = recipe.pseudo.model_copy(update={"teacher_run": "gone-12345678"})
    (tmp_path / "settled.yaml").write_text(recipe.model_copy(update={"pseudo": pseudo}).to_yaml())
    message = r"pseudo\.teacher_run: .* has no run 'gone-12345678'; .* add --set pseudo\.teacher_run=null"
    with pytest.raises(InputError, match=message):
        ms.train(project, recipe=str(tmp_path / "settled.yaml"))
    advised = load_recipe(str(tmp_path / "settled.yaml"), ("pseudo.teacher_run=null",))
    opened = open_run(Project.open(project), advised)
    assert opened.recipe.pseudo.teacher_run.startswith("teacher-")
