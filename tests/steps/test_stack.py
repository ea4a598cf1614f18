"""Trees on out-of-fold predictions: judged under the folds, used, left again, and refused."""

import json

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError, StoppedError
from masksmith.core.files import read_json
from masksmith.postprocess import stacking
from masksmith.project.folder import Project
from masksmith.project.members import external_runs, read_members
from masksmith.steps import stack as steps_stack
from masksmith.steps.ablate import _tried_trees
from masksmith.steps.predict import oof_of
from masksmith.steps.predict import test_of as mean_of


def add_blurred(project, tmp_path, name="half"):
    """Add a member whose probabilities are right up to a threshold that lies elsewhere: trees can learn that."""
    opened = Project.open(project)
    rng = np.random.default_rng(0)
    for place, images in (("oof", opened.cache.train_images), ("test", opened.cache.test_images)):
        (tmp_path / place).mkdir(exist_ok=True)
        for at in images:
            hw = images.shape(at)
            mask = opened.cache.train_masks[at][..., 0] == 1 if place == "oof" else np.zeros(hw)
            probs = 0.05 + 0.3 * mask + rng.uniform(0, 0.05, hw)
            np.save(tmp_path / place / f"{at}.npy", probs.astype(np.float32))
    ms.add_member(project, name, oof=tmp_path / "oof", test=tmp_path / "test", folds=project / "folds.csv")


@pytest.fixture
def few(monkeypatch):
    """Few pixels and trees, so that it takes little time."""
    monkeypatch.setattr(stacking, "_TREES", 10)
    monkeypatch.setattr(steps_stack, "_PIXELS", 4000)


@pytest.mark.slow
def test_a_certain_gain_is_used_until_it_is_left(project, tmp_path, few):
    add_blurred(project, tmp_path)
    opened = Project.open(project)
    before = ms.tune(project, run="half")
    found = ms.stack(project, run="half")
    rows = {row["way"]: row for row in found.table}
    assert "pixels" in rows
    assert (set(rows) | set(found.left_out)) - {"both"} == {"pixels", "regions", "gate"}
    assert all(row["low"] <= row["high"] for row in found.table)
    assert found.kept
    assert found.chosen == "pixels"
    assert found.gain_low > 0
    assert found.present == pytest.approx(before["scores"]["plain"])
    assert read_json(opened.stack_json) == json.loads(json.dumps(found.to_json()))
    assert "taken: tune and submit again" in str(found)
    used = read_members(opened, None)
    assert {member.run.path.name for member in used} == {"stack"}
    assert [run.path.name for run in external_runs(opened)] == ["half"]  # it is no member beside others
    tuned = ms.tune(project)
    assert tuned["scores"]["plain"] == pytest.approx(rows["pixels"]["nested"])
    assert "trees (nested)" in tuned["chosen_on_fold"]
    assert ms.submit(project).ids == 8
    steps = {row.step: row for row in _tried_trees(opened, used)}
    assert steps["stack: pixels"].kept
    with pytest.raises(
        InputError, match=r"trees on predictions .* which a bundle does not carry; run `masksmith stack"
    ):
        ms.bundle(project, tmp_path / "m.msk")
    for run in (None, opened.run().path.name if not opened.run().is_external else "half"):
        with pytest.raises(
            InputError, match=r"a stack is used already; run `masksmith stack .* --off` first"
        ):
            ms.stack(project, run=run)
    with pytest.raises(InputError, match="no blend is used"):
        ms.blend(project, off=True)
    there = {path.parent.name for path in opened.runs_dir.glob("*/recipe.yaml")}
    ms.clean(project, remove=["runs"])  # what the trees are trained on stays
    assert {path.parent.name for path in opened.runs_dir.glob("*/recipe.yaml")} == there
    assert set(mean_of(opened, used).ids) == {sample.id for sample in opened.catalog.test}
    ms.remove_member(project, "half")
    with pytest.raises(InputError, match="the predictions that its trees were trained on have changed; run"):
        ms.tune(project)
    assert "used again" in ms.stack(project, off=True)
    assert {member.run.path.name for member in read_members(opened, None)} == {opened.run().path.name}
    with pytest.raises(InputError, match="no stack is used; there is nothing to go back from"):
        ms.stack(project, off=True)
    with pytest.raises(InputError, match="--off trains nothing; leave --run out"):
        ms.stack(project, run="half", off=True)


def test_trees_of_a_part_have_not_seen_it(project, tmp_path, few, monkeypatch):
    add_blurred(project, tmp_path)
    opened, seen = Project.open(project), []

    class Watched(stacking.ImageTrees):
        def gather(self, view, truth, rng):
            return view.present[:1, :1, 0].astype(np.float32), np.array([len(seen)])

        def fit(self, features, answers, *, seed):
            del answers, seed
            seen.append(set(features.ravel().tolist()))
            return seen[-1]

        def apply(self, model, view):
            assert float(view.present[0, 0, 0]) not in model
            return view.present

    monkeypatch.setattr(steps_stack, "_ways", lambda *_: ({"gate": Watched(1)}, {}))
    found = ms.stack(project, run="half")
    assert len(seen) == opened.folds.count + 1  # without each fold, and all
    oof = oof_of(opened, read_members(opened, "half"))
    codes = {float(oof[name][name][0, 0, 0]) for name in oof if name not in opened.blank_train}
    assert seen[-1] == codes
    assert not found.kept
    assert found.gain == 0
    assert "not taken: no certain gain" in str(found)
    assert {one.run.path.name for one in read_members(opened, None)} == {opened.run().path.name, "half"}


def test_refusals(project, tmp_path, few, monkeypatch):
    opened = Project.open(project)

    def stop():
        raise StoppedError("stopped by Ctrl-C", exit_code=130)

    with monkeypatch.context() as patch:
        patch.setattr(steps_stack, "check_stop", stop)
        with pytest.raises(StoppedError):
            ms.stack(project)
    assert not opened.stack_json.exists()
    with monkeypatch.context() as patch:
        patch.setattr(steps_stack, "parts_of", lambda *_, **__: np.zeros(20, np.int64))
        with pytest.raises(
            InputError, match=r"held-out images in 1 parts; .* expected two groups of images or more"
        ):
            ms.stack(project)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.ensemble", None)
    with pytest.raises(InputError, match="scikit-learn is not installed"):
        ms.stack(project)
