import json
import statistics

import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.steps.seed_noise import noise_text, read_noise
from tests.conftest import TINY


def test_three_seeds_of_the_same_recipe(project, capsys):
    before = {path: path.read_bytes() for path in project.glob("runs/*/checkpoints/*/final.safetensors")}
    noise = ms.noise(project, overrides=TINY)
    assert json.loads((project / "noise.json").read_text()) == noise
    assert list(noise["scores"]) == ["0", "1", "2"]
    assert noise["sd"] == pytest.approx(statistics.stdev(noise["scores"].values()))
    assert noise["difference"] == pytest.approx(1.96 * 2**0.5 * noise["sd"])
    finals = {path: path.read_bytes() for path in project.glob("runs/*/checkpoints/*/final.safetensors")}
    assert len(finals) == 3
    assert {path: finals[path] for path in before} == before  # the first seed is the run that was there
    assert len(set(finals.values())) == 3
    assert ms.noise(project, overrides=TINY) == noise  # nothing is trained again
    assert not list(project.glob("runs/*/test/*")) or len(list(project.glob("runs/*/test/*.npy"))) == 1
    assert ms.tune(project)["run"] == noise["recipe"]  # the verbs still mean the run of before
    page = ms.report(project).read_text()
    assert f"sd {noise['sd']:.4f} over 3 seeds of {noise['recipe']}; differences" in page


def test_without_folds_of_a_run_the_default_is_meant(project):
    recipe = ms.noise(project)["recipe"]  # the recipe that was worked on last
    assert recipe == json.loads((project / "runs" / "current.json").read_text())


def test_what_stands_beside_a_score(tmp_path):
    assert noise_text(None) == "seed noise: not measured (`masksmith noise`)"
    assert read_noise(tmp_path / "noise.json") is None
    (tmp_path / "noise.json").write_text("[]")
    with pytest.raises(InputError, match="not what `masksmith noise` writes"):
        read_noise(tmp_path / "noise.json")
