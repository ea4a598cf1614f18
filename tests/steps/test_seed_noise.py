import json
import statistics

import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.steps.seed_noise import noise_text, read_noise


@pytest.mark.slow
def test_three_seeds_of_the_same_recipe(project):
    def finals():
        return {path: path.read_bytes() for path in project.glob("runs/*/checkpoints/*/final.safetensors")}

    before, current = finals(), json.loads((project / "runs" / "current.json").read_text())
    noise = ms.noise(project)  # of the recipe that was worked on last
    assert json.loads((project / "noise.json").read_text()) == noise
    assert list(noise["scores"]) == ["0", "1", "2"]
    assert noise["sd"] == pytest.approx(statistics.stdev(noise["scores"].values()))
    assert noise["difference"] == pytest.approx(1.96 * 2**0.5 * noise["sd"])
    after = finals()
    assert len(after) == len(set(after.values())) == 3
    assert {path: after[path] for path in before} == before  # the first seed is the run that was there
    assert ms.noise(project, recipe="smoke") == noise  # nothing is trained again
    assert len(list(project.glob("runs/*/test/*.npy"))) == 1
    assert ms.tune(project)["run"] == noise["recipe"] == current  # the verbs still mean the run of before
    page = ms.report(project).read_text()
    assert f"sd {noise['sd']:.4f} over 3 seeds of {noise['recipe']}; differences" in page


def test_what_stands_beside_a_score(tmp_path):
    assert noise_text(None) == "seed noise: not measured (`masksmith noise`)"
    assert read_noise(tmp_path / "noise.json") is None
    (tmp_path / "noise.json").write_text("[]")
    with pytest.raises(InputError, match="not what `masksmith noise` writes"):
        read_noise(tmp_path / "noise.json")
