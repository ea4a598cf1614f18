"""Runs beside each other: what is refused, what a difference is, and a page that needs nothing from outside."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.project.members import members_of_run
from masksmith.reporting.compare import ComparedRun
from masksmith.steps.compare import flat_values
from masksmith.steps.predict import oof_of


@pytest.fixture
def two(project):
    """A project with two runs: the second is the first one under another name, with other resamples of its tuning."""
    first = Project.open(project).run()
    path = project / "runs" / "other-00000000"
    shutil.copytree(first.path, path)
    recipe = path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("resamples: 200", "resamples: 100"))
    return project, first.path.name, path.name


def test_equal_runs_cannot_be_told_apart(two):
    project, first, other = two
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    found = ms.compare(project)
    assert {path: path.read_bytes() for path in before} == before
    names = [run["name"] for run in found.numbers["runs"]]
    assert names == [first, other]  # the present one first
    same = found.numbers["runs"][1]
    assert (same["gain"], same["gain_interval_80"], same["verdict"]) == (0, [0, 0], "no certain difference")
    assert found.numbers["differences"] == {"tuning.resamples": {first: "200", other: "100"}}
    assert "cannot be told apart" in str(found)
    page = found.page.read_text()
    assert found.page == project / "compare.html"
    outside = page[page.index("</script>") :]
    assert "https://" not in outside.replace("https://plot.ly", "")
    assert "images that every run holds out" in outside
    json.dumps(found.numbers)


def test_a_worse_run_is_worse_and_the_order_is_that_asked_for(two, tmp_path, monkeypatch):
    project, first, other = two
    real = oof_of

    def worse(opened, members):
        found = real(opened, members)
        if members[0].run.path.name != other:
            return found
        return {name: _Empty(codes.stores, codes.weights) for name, codes in found.items()}

    monkeypatch.setattr("masksmith.steps.compare.oof_of", worse)
    found = ms.compare(project, runs=[other, first], metric="dice_per_image", out=tmp_path / "page.html")
    one, two_ = found.numbers["runs"]
    assert (one["name"], two_["name"], found.numbers["metric"]) == (other, first, "dice_per_image")
    assert two_["gain"] == pytest.approx(two_["score"] - one["score"])
    assert two_["gain_interval_80"][0] <= two_["gain"] <= two_["gain_interval_80"][1]
    pairs = [(two_["scores"][name], one["scores"][name]) for name in one["scores"]]
    assert two_["images_better"] == sum(new > old for new, old in pairs)
    assert two_["images_worse"] == sum(new < old for new, old in pairs)
    assert len({*one["scores"]}) == found.numbers["images"] == one["held_out"]
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") >= 1


class _Empty(MeanCodes):
    def __getitem__(self, name):
        return np.zeros_like(super().__getitem__(name))


def test_what_is_refused(two, example, tmp_path):
    project, first, _ = two
    with pytest.raises(InputError, match="no project; expected one or several"):
        ms.compare()
    with pytest.raises(InputError, match="named twice"):
        ms.compare(project, project / "." / "")
    with pytest.raises(InputError, match=r"--run nope, no: no such run; there are .*other-00000000"):
        ms.compare(project, runs=["nope", first, "no"])
    with pytest.raises(InputError, match="alone has held-out predictions; expected two runs"):
        ms.compare(project, runs=[first])
    with pytest.raises(InputError, match="--metric: 'dise'"):
        ms.compare(project, metric="dise")
    begun = tmp_path / "begun"
    ms.check(example / "data", begun)
    with pytest.raises(InputError, match=r"no run has held-out predictions(.|\n)*no run yet"):
        ms.compare(begun)
    ms.example(tmp_path / "more", train=6, test=2)
    ms.check(tmp_path / "more/data", tmp_path / "a")
    ms.check(tmp_path / "more/data", tmp_path / "b")
    with pytest.raises(InputError) as refused:
        ms.compare(project, tmp_path / "a", tmp_path / "b")
    assert str(refused.value).count("expected projects of the same data") == 2
    with pytest.raises(InputError, match="not a masksmith project"):
        ms.compare(tmp_path)


def test_other_metric_other_task_other_images(two, example, tmp_path, monkeypatch):
    project, first, other = two
    begun = tmp_path / "objects"
    ms.check(example / "data", begun, task="instances")
    with pytest.raises(InputError, match=r"objects: task instances of 1 classes.*expected the same task"):
        ms.compare(project, begun)
    copy = shutil.copytree(project, tmp_path / "copy")
    found = ms.compare(project, copy)
    assert [run["name"].split("/")[0] for run in found.numbers["runs"]] == ["project"] * 2 + ["copy"] * 2
    opened = Project.open(project)
    oof = oof_of(opened, members_of_run(opened.run(first)))
    recipe = project / "runs" / other / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("metric: tgs_map", "metric: iou_pooled"))
    monkeypatch.setattr("masksmith.steps.compare.oof_of", lambda *_: oof)
    with pytest.raises(InputError, match=r"scored by different metrics \(.*tgs_map.*iou_pooled.*--metric"):
        ms.compare(project)
    half = {name: oof[name] for name in [*oof][1::2]}
    rest = {name: oof[name] for name in [*oof][::2]}
    monkeypatch.setattr(
        "masksmith.steps.compare.oof_of",
        lambda _, members: half if members[0].run.path.name == other else rest,
    )
    with pytest.raises(InputError, match=r"0 images are held out by all runs \(.*expected two or more"):
        ms.compare(project, metric="tgs_map")


def test_a_run_under_training_is_left_out_and_said(two):
    project, first, other = two
    third = shutil.copytree(project / "runs" / other, project / "runs" / "begun-11111111")
    shutil.rmtree(third / "oof")
    found = ms.compare(project)
    assert [run["name"] for run in found.numbers["runs"]] == [first, other]
    (line,) = found.numbers["left_out"]
    assert line.startswith("begun-11111111: ")
    assert "begun-11111111" in found.page.read_text()


def test_markup_in_names_is_text(two):
    project, _, other = two
    evil = "<img src=x onerror=alert(1)>"
    (project / "runs" / other).rename(project / "runs" / evil)
    page = ms.compare(project).page.read_text()
    outside = page[page.index("</script>") :]
    assert "<img src=x" not in outside
    assert "&lt;img src=x onerror=alert(1)&gt;" in outside
    assert members_of_run(Project.open(project).run(evil))


def test_of_one_group_no_run_is_better():
    alone = ComparedRun("x", 0.6, 0.6, 0.6, 0.1, 0.1, 0.1, 3, 0, {})
    assert alone.verdict == "no certain difference"
    assert dataclasses.replace(alone, gain_low=0.05, gain_high=0.2).verdict == "better"
    assert dataclasses.replace(alone, gain_low=-0.2, gain_high=-0.05).verdict == "worse"


def test_flat_values():
    value = {"a": {"b": [1, 2]}, "c": [{"d": None}, {"e": "x"}], "f": {}, "g": []}
    assert flat_values(value) == {"a.b": "[1, 2]", "c.0.d": "null", "c.1.e": "x", "f": "{}", "g": "[]"}
