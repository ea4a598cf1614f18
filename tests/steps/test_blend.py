"""The ensemble of a project is searched, judged, used and left again."""

import json
from dataclasses import replace

import numpy as np
import pytest

import masksmith as ms
from masksmith.cli import app
from masksmith.core.errors import InputError, StoppedError
from masksmith.core.files import read_json, write_json
from masksmith.prediction.means import Blend
from masksmith.project.folder import Project
from masksmith.project.members import members_of_run, read_members, write_members
from masksmith.steps.blend import find_candidates, judged_images
from masksmith.steps.predict import oof_of
from masksmith.steps.predict import test_of as mean_of
from tests.blends import add, write_probs, write_recipe


def test_a_certain_gain_is_used_until_it_is_left(project, tmp_path):
    for seed, name in enumerate(("first", "second")):
        add(project, tmp_path, name, seed=seed, weight=0.2)
    opened = Project.open(project)
    run = opened.run().path.name
    before = ms.tune(project)
    found = ms.blend(project)
    assert {row["member"] for row in found.members} == {run, "first", "second"}
    assert 10 < found.images < 20  # those of the fold that is trained here
    assert found.kept
    assert found.gain_low > 0
    ways = {row["way"] for row in found.table}
    assert ways >= {
        "best single",
        "best pair",
        "greedy",
        "simplex",
        "equal, rank",
        "equal, vote",
        "equal, power 2",
    }
    assert set(found.compared) == {"equal, mean", "best single", "best pair"}
    table = np.array(found.correlation)
    assert np.allclose(np.diag(table), 1)
    assert table[0, 1] < 0.95
    assert read_json(opened.blend_json)["table"] == found.table
    assert "taken: predict, tune and submit again" in str(found)
    used = read_members(opened, None)
    assert {member.part: member.weight for member in used} == found.chosen["weights"]
    assert used[0].blend.kind == found.chosen["kind"]
    ms.predict(project)
    tuned = ms.tune(project)
    row = next(row for row in found.table if row["weights"] == found.chosen["weights"])
    assert tuned["scores"]["plain"] > before["scores"]["plain"]
    assert tuned["scores"]["plain"] == pytest.approx(row["nested"], abs=0.1)
    assert "ensemble (nested)" in tuned["chosen_on_fold"]
    assert ms.submit(project).ids == 8
    ms.report(project)
    taken = next(name for name in found.chosen["weights"] if name != run)
    with pytest.raises(
        InputError, match=rf"{taken}: the blend that is used takes it; run `masksmith blend .* --off`"
    ):
        ms.remove_member(project, taken)
    again = ms.blend(project, max_models=1)
    assert {len(row["weights"]) for row in again.table} == {1}
    assert not again.kept  # the present ensemble is better than any one
    assert "not taken: no certain gain" in str(again)
    assert "used again" in ms.blend(project, off=True)
    assert ms.tune(project)["scores"] == before["scores"]
    with pytest.raises(InputError, match="no blend is used; there is nothing to go back from"):
        ms.blend(project, off=True)


def test_refusals(project, tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match=r"1 candidate \(smoke-\w+\), expected two or more; train another recipe"
    ):
        ms.blend(project)
    add(project, tmp_path, "first")
    opened = Project.open(project)
    run = opened.run()
    for how, match in (
        ({"max_models": 0}, "--max-models 0: expected 1 or more"),
        ({"max_seconds": -1.0}, "--max-seconds -1: expected a number above 0"),
        ({"max_seconds": 1e-9}, r"--max-seconds 1e-09: no member takes so little \(first unknown, smoke"),
        ({"run": ["first", "absent"]}, "--run absent: no such run or member"),
        ({"off": True, "max_models": 2}, "--off searches nothing"),
        ({"off": True}, "no blend is used"),
    ):
        with pytest.raises(InputError, match=match):
            ms.blend(project, **how)
    other = opened.run("first")
    opened.import_run("first", other.recipe.model_copy(update={"metric": "iou_pooled"}))
    with pytest.raises(InputError, match=r"first is left out, its metric is iou_pooled, not"):
        ms.blend(project)
    opened.import_run(run.path.name, run.recipe.model_copy(update={"metric": "no_metric"}))
    with pytest.raises(InputError, match="no_metric"):
        ms.blend(project)
    opened.import_run("first", other.recipe)
    opened.import_run(run.path.name, run.recipe)

    def stop():
        raise StoppedError("stopped by Ctrl-C", exit_code=130)

    with monkeypatch.context() as patch:
        patch.setattr("masksmith.postprocess.blends.check_stop", stop)
        with pytest.raises(StoppedError):
            ms.blend(project)
    assert not opened.blend_json.exists()
    assert not opened.members_json.exists()
    assert ms.blend(project, run=["first", run.path.name]).metric == run.recipe.metric


def test_members_of_other_folds_or_images_are_left_out(example, tmp_path):
    out = tmp_path / "p"
    ms.check(example / "data", out)
    ms.folds(out, overrides=["folds.count=3"])
    for seed, name in enumerate(("first", "second", "part")):
        probs = write_probs(Project.open(out), tmp_path / name, spread=0.2, seed=seed)
        if name == "part":
            for image in Project.open(out).folds.inside(2):
                (probs["oof"] / f"{image}.npy").unlink()
        ms.add_member(out, name, folds=out / "folds.csv", overrides=["folds.count=3"], **probs)
    opened = Project.open(out)
    names = opened.folds.inside(1) + opened.folds.inside(2)
    metric = opened.run("first").recipe.metric
    found, left_out = find_candidates(opened, metric, names)
    assert [one.name for one in found] == ["first", "second"]
    assert "held-out images are not predicted" in left_out["part"]
    with pytest.raises(
        InputError, match=r"--run part: \d+ of \d+ held-out images are not predicted, such as"
    ):
        find_candidates(opened, metric, names, ["part", "first"])
    present = read_members(opened, None)
    assert set(judged_images(opened, present, oof_of(opened, present))) <= {
        *opened.folds.inside(0),
        *opened.folds.inside(1),
    }
    swapped = opened.folds_csv.read_text().replace(",0\n", ",9\n").replace(",1\n", ",0\n")
    opened.folds_csv.write_text(swapped.replace(",9\n", ",1\n"))
    with pytest.raises(InputError, match="its probabilities are those of other folds or data"):
        ms.blend(out)


def test_a_bundle_predicts_as_the_blend(project, example, tmp_path):
    opened = Project.open(project)
    first = opened.run()
    recipe = write_recipe(tmp_path, "second", **{"folds.train": 1, "seed": 1, "training.stages.0.epochs": 1})
    for override in ("geometric", "rank"):
        run = ms.train(project, recipe=recipe, overrides=[f"folds.count={first.recipe.folds.count}"])
        ms.predict(project)
        members = [*members_of_run(opened.run(first.path.name)), *members_of_run(run)]
        names = list(dict.fromkeys(member.part for member in members))
        table = tuple((np.linspace(0, 1, 257) ** 2).tolist())
        ranks = tuple((name, table) for name in names) if override == "rank" else ()
        blend = Blend(override, ranks=ranks)
        shares = {names[0]: 1.0, names[1]: 3.0}
        write_members(opened, [replace(one, weight=shares[one.part], blend=blend) for one in members])
        assert read_members(opened, None)[0].blend == blend
        ms.tune(project)
        path = tmp_path / f"{override}.msk"
        ms.bundle(project, path)
        codes = mean_of(opened, read_members(opened, None))
        name = opened.catalog.test[0].id
        model = ms.load(path)
        assert (
            np.abs(model.segment(opened.cache.test_images[name]).codes.astype(int) - codes[name]).max() <= 70
        )
    with pytest.raises(InputError, match="mean is of the kind rank, and the exported file can average alone"):
        ms.export(path, tmp_path / "x.pt2", format="torch")
    broken = read_json(opened.members_json)
    broken["blend"]["kind"] = "median"
    write_json(opened.members_json, broken)
    with pytest.raises(InputError, match=r"members\.json: a mean of the kind 'median'"):
        ms.tune(project)


def test_ablate(project, tmp_path):
    opened = Project.open(project)
    alone = ms.ablate(project)
    rows = alone.to_json()
    assert all(set(row) == {"step", "score", "gain", "low", "high", "seconds", "kept"} for row in rows)
    tta = opened.run().recipe.prediction.tta
    assert [row["step"] for row in rows[: len(tta)]] == [
        f"one view ({tta[0]})",
        *(f"view {one}" for one in tta[1:]),
    ]
    assert rows[0]["gain"] == rows[0]["low"] == 0
    tuned = ms.tune(project)
    assert rows[len(tta) - 1]["score"] == pytest.approx(tuned["scores"]["plain"])
    rule = [row for row in rows if row["step"] == "threshold"]
    if tuned["num_rules"] > 1:
        assert rule
        assert rule[0]["score"] - rule[0]["gain"] == pytest.approx(tuned["scores"]["plain"])
    assert all(row["low"] <= row["high"] for row in rows)
    for seed, name in enumerate(("first", "second")):
        add(project, tmp_path, name, seed=seed, weight=0.2)
    ms.blend(project)
    ms.predict(project)
    ms.tune(project)
    found = ms.ablate(project)
    steps = {row.step: row for row in found.steps}
    assert any(step.startswith("ensemble of ") for step in steps)
    taken = [step for step, row in steps.items() if row.kept and step.startswith("blend: ")]
    assert taken
    assert not all(row.kept for row in steps.values())  # steps that did not help are there too
    assert "What each step is worth" in ms.report(project).read_text()
    assert "not kept" in str(found)
    ms.blend(project, off=True)
    ms.tune(project)
    assert "What each step is worth" not in ms.report(project).read_text()  # of other members


def test_cli(project, capsys):
    with pytest.raises(SystemExit) as done:
        app(["ablate", str(project), "--json"], standalone_mode=True)
    assert done.value.code == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)
