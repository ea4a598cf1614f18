"""Ensembles of recipes: the file, the average, the report; end to end, stopped and continued."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError, StoppedError
from masksmith.data.store import Store, StoreWriter
from masksmith.folds.config import ALL
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.project.members import Member, read_members, weights_of_test
from masksmith.recipes.ensemble import Ensemble, is_ensemble, load_any, load_ensemble, member_recipes
from masksmith.recipes.recipe import Recipe, load_recipe, load_teacher
from masksmith.recipes.sources import list_recipes
from masksmith.steps.out_of_fold import plain_score
from masksmith.steps.predict import codes_digest, oof_of
from masksmith.steps.predict import test_of as mean_of_test
from masksmith.steps.resolve import resolve
from masksmith.steps.train import is_trained
from masksmith.training import loop
from tests.blends import write_ensemble, write_pupil

ONE = {"folds.train": 1}
TWO_FOLDS = ["members.0.set=[folds.train=2]", "members.2.set=[folds.train=2]"]
TINY = {
    "folds.train": None, "training.threads": 1, "training.precision": "32-true", "training.stages.0.epochs": 2,
    "size.resize_hw": [48, 48],
}  # fmt: skip
STEPS = 2 * (26 // 8)  # of a fold


def write_recipe(folder, name, **changes):
    """Write a recipe of the smallest net and two epochs; return its path."""
    path = folder / f"{name}.yaml"
    path.write_text(
        load_recipe(
            "smoke",
            tuple(f"{key}={json.dumps(value)}" for key, value in ({"name": name} | TINY | changes).items()),
        ).to_yaml()
    )
    return str(path)


# --- the file ---------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """Two recipes and their ensemble."""
    first, second = write_recipe(tmp_path, "a"), write_recipe(tmp_path, "b", seed=1)
    return write_ensemble(tmp_path, "two", first, {"recipe": second, "weight": 3})


def test_a_file_with_members_is_an_ensemble(two, tmp_path):
    assert is_ensemble(two)
    assert not is_ensemble("auto")
    assert isinstance(load_any(two), Ensemble)
    assert isinstance(load_any("auto"), Recipe)
    ensemble = load_ensemble(two)
    assert [(one.weight, one.set) for one in ensemble.members] == [(1.0, []), (3.0, [])]
    assert [recipe.name for recipe in member_recipes(ensemble)] == ["a", "b"]
    (tmp_path / "again.yaml").write_text(ensemble.to_yaml())
    assert load_ensemble(str(tmp_path / "again.yaml")) == ensemble
    with pytest.raises(InputError, match="it has members, so it is an ensemble; a single recipe is expected"):
        load_recipe(two)
    for listing in list_recipes():
        assert is_ensemble(listing.name) == (listing.kind == "ensemble")
    assert {listing.kind for listing in list_recipes("ensemble")} == {"ensemble"}


def test_overrides_go_where_they_belong(two, tmp_path):
    changes = ("members.0.weight=2", "tuning.resamples=300", "folds.train=1", "training.batch_size=4")
    ensemble = load_ensemble(two, changes)
    assert [one.weight for one in ensemble.members] == [2.0, 3.0]
    assert (ensemble.tuning.resamples, ensemble.folds.train) == (300, 1)
    recipes = member_recipes(ensemble)
    assert [(one.folds.train, one.training.batch_size) for one in recipes] == [(1, 4), (1, 4)]
    assert {one.tuning.resamples for one in recipes} == {200}
    # the set of a member is its own, and members may train other numbers of folds
    variant = {
        "recipe": f"{tmp_path}/a.yaml",
        "set": ["name=c", "prediction.batch_size=4", "seed=2", "folds.train=2"],
    }
    path = write_ensemble(tmp_path, "e", f"{tmp_path}/a.yaml", variant)
    first, second = member_recipes(load_ensemble(path))
    assert (first.name, first.prediction.batch_size, first.folds.train) == ("a", 32, None)
    assert (second.name, second.prediction.batch_size, second.folds.train) == ("c", 4, 2)
    assert [one.folds.train for one in member_recipes(load_ensemble(path, ("folds.train=1",)))] == [1, 1]


def test_members_that_do_not_fit_are_refused(two, tmp_path):
    first, second = f"{tmp_path}/a.yaml", f"{tmp_path}/b.yaml"
    for change, message in (
        ({"set": ["folds.seed=4"]}, r'members\[1\] \(b\): folds\.seed: 4, but the ensemble has 0.*add "folds\.seed=0"'),
        ({"set": ["metric=dice_per_image"]}, r"members\[1\] \(b\): metric: 'dice_per_image', but the ensemble has"),
        ({"set": ["folds.refit=true"]}, r"folds\.refit: True, but the ensemble has False"),
        ({"set": ["seed=0", "name=a"]}, r"members\[1\] \(a\) is the training of members\[0\] once more"),
        ({"set": ["seeed=0"]}, r"members\[1\]: --set seeed=0: no key 'seeed'; did you mean 'seed'"),
        ({"recipe": "auot"}, r"members\[1\]: recipe: 'auot' is neither .*did you mean 'auto'"),
        ({"weight": 0}, r"members\[1\]\.weight: 0"),
        ({"weights": 1}, r"members\[1\]\.weights: unknown key; did you mean 'weight'"),
        ({"recipe": two}, r"members\[1\]: .*two\.yaml: it has members, so it is an ensemble"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            load_ensemble(write_ensemble(tmp_path, "e", first, {"recipe": second} | change))
    with pytest.raises(InputError, match=r"members: .*at least 2"):
        load_ensemble(write_ensemble(tmp_path, "alone", first))
    path = write_ensemble(tmp_path, "e", first, second, folds={"count": 3, "train": 2})
    with pytest.raises(InputError, match=r'folds\.train: None, but the ensemble has 2.*add "folds\.train=2"'):
        load_ensemble(path)
    other = {"recipe": first, "set": ["prediction.batch_size=4"]}
    with pytest.raises(InputError, match=r"a is a member and a teacher, .* in two ways"):
        load_ensemble(write_ensemble(tmp_path, "e", write_pupil(tmp_path, "p", first), other))


@pytest.mark.slow
def test_a_teacher_that_is_a_member_gets_the_overrides_of_the_member():
    for key, value in (
        ("prediction.tta", "[identity]"),
        ("training.batch_size", "8"),
        ("model.encoder_weights", "none"),
        ("training.stages.0.epochs", "3"),
        ("folds.train", "1"),
    ):
        teacher, pupil = member_recipes(load_ensemble("tgs-best", (f"{key}={value}",)))
        assert load_teacher(pupil).hash == teacher.hash
        assert load_teacher(pupil).prediction == teacher.prediction
        for recipe in (teacher, pupil):
            found = recipe.model_dump()
            for part in key.split("."):
                found = found[int(part)] if part.isdigit() else found[part]
            assert str(found).replace("'", "") == value


@pytest.mark.slow
def test_overrides_reach_teachers_of_teachers_and_no_strangers(tmp_path):
    first = write_recipe(tmp_path, "a")
    second = write_pupil(tmp_path, "b", first, set=["training.threads=2"])
    third = write_pupil(tmp_path, "c", second)
    variant = {"recipe": first, "set": ["training.threads=2"]}
    override = ("training.batch_size=4", "training.threads=1")
    chain = member_recipes(load_ensemble(write_ensemble(tmp_path, "e", variant, second, third), override))
    assert [one.training.batch_size for one in chain] == [4, 4, 4]
    assert load_teacher(chain[2]).hash == chain[1].hash
    assert load_teacher(chain[1]).hash == load_teacher(load_teacher(chain[2])).hash == chain[0].hash
    # the teacher of these two is no member: it stays as it is, as for a pupil alone
    path = write_ensemble(tmp_path, "f", second, {"recipe": second, "set": ["name=b2", "seed=1"]})
    strangers = member_recipes(load_ensemble(path, override))
    assert [load_teacher(one).training.batch_size for one in strangers] == [8, 8]


# --- the average ------------------------------------------------------------------------------------------


def store_of(path, array):
    writer = StoreWriter(path, [("a", array.shape)], dtype=np.uint16)
    writer.write("a", array)
    writer.close()
    return Store(path)


def test_weights_are_exact_and_equal_ones_change_no_bit(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 65536, (40, 40, 1), dtype=np.uint16) for _ in range(3)]
    stores = [store_of(tmp_path / f"{at}.npy", array) for at, array in enumerate(arrays)]
    plain = MeanCodes(stores)["a"]
    for weight in (1.0, 0.1, 7 / 3):
        np.testing.assert_array_equal(MeanCodes(stores, [weight] * 3)["a"], plain)
    codes = np.stack([store["a"] for store in stores]).astype(int)
    weighted = (2 * codes[0] + codes[1] + 5 * codes[2]) / 8
    np.testing.assert_array_equal(
        MeanCodes(stores, [2.0, 1.0, 5.0])["a"], np.rint(weighted).astype(np.uint16)
    )
    np.testing.assert_array_equal(MeanCodes(stores[:1], [2.0])["a"], stores[0]["a"])


def test_the_folds_of_a_recipe_share_its_weight(trained, two):
    run, ensemble = Project.open(trained).run(), load_ensemble(two)
    other = type(run)(run.path.with_name("other"), run.recipe)
    members = [Member(run, fold, weight=3.0, ensemble=ensemble) for fold in (0, 1, ALL)]
    assert weights_of_test([*members, Member(other, 0, weight=2.0, ensemble=ensemble)]) == [
        1.0,
        1.0,
        1.0,
        2.0,
    ]
    assert weights_of_test([Member(run, 0), Member(run, 1), Member(other, 0)]) == [1.0] * 3


# --- all the way ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three recipes of other seeds, sizes and weights, and their ensemble."""
    folder = tmp_path_factory.mktemp("recipes")
    first = write_recipe(folder, "first")
    small = {"recipe": first, "weight": 2, "set": ["name=small", "size.resize_hw=[32, 32]", "folds.train=1"]}
    return write_ensemble(folder, "trio", first, small, write_recipe(folder, "third", seed=3)), folder


@pytest.fixture(scope="module")
def blended(example, files, tmp_path_factory):
    """A project that an ensemble went the whole way in: two folds of two members, one of the other (read only)."""
    out = tmp_path_factory.mktemp("blended") / "p"
    return out, ms.compete(example / "data", out=out, recipe=files[0], overrides=TWO_FOLDS)


@pytest.mark.slow
def test_it_goes_the_whole_way(blended):
    out, result = blended
    project = Project.open(out)
    assert [name.rpartition("-")[0] for name in result.members] == [
        "first",
        "small",
        "third",
        "first",
        "third",
    ]
    assert [name.split("/")[1] for name in result.members] == ["fold 0"] * 3 + ["fold 1"] * 2
    assert result.submission.ids == 8
    members = read_members(project, None)
    assert [member.weight for member in members] == [1.0, 2.0, 1.0, 1.0, 1.0]
    runs = {member.run.recipe.name: member.run for member in members}
    name = project.folds.inside(0)[0]
    first, small, third = (Store(runs[key].oof(0))[name].astype(int) for key in ("first", "small", "third"))
    oof = oof_of(project, members)
    assert np.array_equal(oof[name][name], np.rint((first + 2 * small + third) / 4).astype(np.uint16))
    name = project.folds.inside(1)[0]  # there the weights are those of the two that cover it
    first, third = (Store(runs[key].oof(1))[name].astype(int) for key in ("first", "third"))
    assert np.array_equal(oof[name][name], np.rint((first + third) / 2).astype(np.uint16))
    name = project.catalog.test[0].id
    test = {
        key: [Store(run.test(fold))[name] for fold in (0, 1) if run.test(fold).exists()]
        for key, run in runs.items()
    }
    assert {key: len(found) for key, found in test.items()} == {"first": 2, "small": 1, "third": 2}
    means = {key: np.mean([one.astype(float) for one in found], axis=0) for key, found in test.items()}
    np.testing.assert_allclose(
        mean_of_test(project, members)[name],
        (means["first"] + 2 * means["small"] + means["third"]) / 4,
        atol=0.51,
    )


@pytest.mark.slow
def test_the_report_compares_it_with_its_recipes(blended):
    out, result = blended
    found = result.tuning["ensemble"]
    assert found["name"] == "trio"
    assert [(row["weight"], row["folds"]) for row in found["table"]] == [
        (1.0, [0, 1]),
        (2.0, [0]),
        (1.0, [0, 1]),
    ]
    project = Project.open(out)
    best = next(row for row in found["table"] if row["run"] == found["best"])
    assert best["folds"] == [0, 1]  # the one of one fold was judged on fewer images
    own = [member for member in read_members(project, None) if member.run.path.name == best["run"]]
    assert plain_score(project, own[0].scored_by, oof_of(project, own)) == best["score"]
    assert best["ensemble"] == result.tuning["plain"]
    assert found["gain_low"] <= found["gain_mean"] <= found["gain_high"]
    page = (out / "report.html").read_text()
    assert "<h2>Ensemble</h2>" in page
    assert f"<td><code>{best['run']}</code></td><td>1</td><td>0 1</td>" in page
    assert found["text"].split(":")[0] in page
    assert "name: trio" in page
    assert "# small-" in page
    assert found["text"] in str(result)


@pytest.mark.slow
def test_verbs_mean_the_ensemble_and_a_member_alone(blended, tmp_path):
    out = shutil.copytree(blended[0], tmp_path / "p")
    before = json.loads((out / "tuning.json").read_text())
    assert ms.tune(out) == before
    ms.predict(out)
    assert ms.submit(out).ids == 8
    alone = read_members(Project.open(out), None)[0].run.path.name
    assert "ensemble" not in ms.tune(out, run=alone)
    with pytest.raises(InputError, match="it was made for first-"):
        ms.submit(out)
    assert ms.tune(out) == before
    assert ms.report(out).exists()


@pytest.mark.slow
def test_other_weights_make_another_average_of_the_same_trainings(example, blended, files, tmp_path):
    out = shutil.copytree(blended[0], tmp_path / "p")
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/*/final.safetensors")}
    before = codes_digest(mean_of_test(Project.open(out), read_members(Project.open(out), None)))
    result = ms.compete(
        example / "data", out=out, recipe=files[0], overrides=[*TWO_FOLDS, "members.2.weight=9"]
    )
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert codes_digest(mean_of_test(Project.open(out), read_members(Project.open(out), None))) != before
    assert [row["weight"] for row in result.tuning["ensemble"]["table"]] == [1.0, 2.0, 9.0]


@pytest.mark.slow
def test_train_alone_makes_it_what_the_verbs_mean(example, files, tmp_path):
    ms.check(example / "data", tmp_path / "p")
    ms.folds(tmp_path / "p", recipe=files[0])
    run = ms.train(tmp_path / "p", recipe=files[0], overrides=ONE)
    assert run.recipe.name == "first"
    members = read_members(Project.open(tmp_path / "p"), None)
    assert [member.run.recipe.name for member in members] == ["first", "small", "third"]
    ms.predict(tmp_path / "p")
    assert ms.tune(tmp_path / "p")["ensemble"]["name"] == "trio"


def content(project):
    parts = ("runs/*/checkpoints/*/final.safetensors", "runs/*/oof/*", "runs/*/test/*", "runs/*/pseudo/*")
    parts = (*parts, "submission.csv", "masks/*", "tuning.json")
    return {path.relative_to(project): path.read_bytes() for part in parts for path in project.glob(part)}


def stop_after(monkeypatch, number):
    """Stop in the place of a step of this process, as check_stop does after a signal."""
    made, inner = [0], loop.train_step

    def step(*args, **kwargs):
        made[0] += 1
        if made[0] == number:
            raise StoppedError("stopped by SIGTERM", exit_code=143)
        return inner(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", step)


@pytest.mark.slow
def test_a_stop_leaves_what_there_is_and_it_goes_on_exactly(example, files, blended, tmp_path, monkeypatch):
    out, kinds = tmp_path / "p", []
    for number in (2, STEPS, STEPS + 1):  # in the first member, in the second, in the third
        with monkeypatch.context() as patch:
            stop_after(patch, number)
            result = ms.compete(example / "data", out=out, recipe=files[0], overrides=TWO_FOLDS)
        assert result.stopped == 143
        assert ms.submit(out, check=out / "submission.csv").ids == 8
        kinds.append((json.loads((out / "submission.json").read_text())["kind"], len(result.members)))
    assert kinds == [("interim", 1), ("trained", 1), ("trained", 2)]
    assert ms.compete(example / "data", out=out, recipe=files[0], overrides=TWO_FOLDS).stopped is None
    assert content(out) == content(blended[0])


@pytest.mark.slow
def test_with_a_refit_each_recipe_predicts_the_test_images_with_one_more(example, two, tmp_path):
    ms.check(example / "data", tmp_path / "p")
    ms.folds(tmp_path / "p", recipe=two)
    ms.train(tmp_path / "p", recipe=two, overrides=ONE | {"folds.refit": True})
    project = Project.open(tmp_path / "p")
    members = read_members(project, None)
    assert [(member.run.recipe.name, member.fold) for member in members] == [
        ("a", 0), ("b", 0), ("a", ALL), ("b", ALL)
    ]  # fmt: skip
    assert weights_of_test(members) == [0.5, 1.5, 0.5, 1.5]
    assert all(is_trained(project, member) for member in members)


# --- other verbs ----------------------------------------------------------------------------------------


def test_what_is_for_one_recipe_refuses_an_ensemble(example, project, two, tmp_path):
    for call in (
        lambda: ms.compete(example / "data", out=tmp_path / "p", recipe=two, budget="5m"),
        lambda: ms.plan(example / "data", recipe=two, budget="5m"),
        lambda: ms.noise(project, recipe=two),
        lambda: ms.lr(project, recipe=two),
    ):
        with pytest.raises(
            InputError, match=r"it is an ensemble, and .* one recipe; take one of .*a\.yaml, .*b\.yaml"
        ):
            call()
    with pytest.raises(InputError, match=r"recipe tgs-best: it is an ensemble.*; take one of auto$"):
        ms.plan(example / "data", recipe="tgs-best", budget="5m")  # its other member needs a teacher


def test_two_members_that_are_one_training_on_this_machine(project, tmp_path):
    deeper = {"model.encoder": "auto", "model.encoder_depth": 4, "model.decoder_channels": [8, 8, 8, 8]}
    first = write_recipe(tmp_path, "a", **deeper)
    settled = resolve(Project.open(project), load_recipe(first)).model.encoder
    same = {"recipe": first, "set": [f"model.encoder={settled}"]}
    with pytest.raises(
        InputError, match=r"ensemble e: two members are the same training, a-\w{8}, on this machine"
    ):
        ms.train(project, recipe=write_ensemble(tmp_path, "e", first, same), overrides=ONE)


def test_its_summary_and_verify_look_at_its_members(two, tmp_path):
    summary = ms.recipes(two)
    text = str(summary)
    assert "name: two" in text
    assert "member 0: a, weight 1 (" in text
    assert "member 1: b, weight 3 (" in text
    assert text.count("weights: ") == text.count("size trace") == 2
    assert summary.members[0][1].num_weights > 1000
    assert "two.yaml: 2 members that agree on folds and metric: a, b" in str(ms.verify(two))
    Path(tmp_path / "b.yaml").unlink()
    message = r"two\.yaml failed the check:\n.*members\[1\]: recipe .*b\.yaml: no such file"
    with pytest.raises(InputError, match=message):
        ms.verify(two)
