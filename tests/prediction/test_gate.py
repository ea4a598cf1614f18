"""The gate before a faster runtime: what it compares, what it refuses, and the choice that is kept."""

import dataclasses
import logging

import numpy as np
import pytest
from lightning_fabric import Fabric

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.prediction.gate import (
    FLIP_TOLERANCE,
    SCORE_TOLERANCE,
    Finding,
    choose_runtime,
    compare_runtime,
)
from masksmith.prediction.predict import predict_probs
from masksmith.prediction.runtimes import RUNTIMES, torch_runtime
from masksmith.prediction.store import open_codes
from masksmith.project.folder import Project
from tests.prediction.nets import SIZES, image_store, tiny

NAMES = [name for name, _ in SIZES]
OPENVINO = {"recipe": "smoke", "overrides": {"prediction.runtime": "openvino"}}


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def images(tmp_path):
    return image_store(tmp_path / "i.npy", 1)


def mean_prob(codes):
    """A stand-in for a metric: any number that the codes decide."""
    return float(np.mean([one.mean() / 65535 for _, one in codes]))


def shifted(by):
    """A planted bad runtime: every logit is off by ``by``."""

    def build(fabric, model, combine):
        return lambda planes: torch_runtime(fabric, model, combine)(planes) + np.float32(by)

    return build


@pytest.mark.slow
def test_openvino_is_accepted(fabric, images):
    finding, runtime = compare_runtime("openvino", fabric, tiny(), images, NAMES, mean_prob, batch_size=4)
    assert finding.accepted
    assert finding.images == len(NAMES)
    assert finding.score == pytest.approx(finding.torch_score, abs=1e-4)
    assert finding.flipped_share < 1e-3
    assert 0 < finding.conversion_s <= finding.seconds
    assert runtime(np.zeros((1, 1, 16, 16), np.float32)).shape == (1, 1, 16, 16)
    assert "openvino against torch on 6 images" in str(finding)


def test_the_finding_by_hand(fabric, images, monkeypatch):
    monkeypatch.setitem(RUNTIMES, "openvino", shifted(-1.0))
    model = tiny()
    finding, runtime = compare_runtime("openvino", fabric, model, images, NAMES, mean_prob, batch_size=2)
    options = {"tta": ["identity"], "batch_size": 2}
    own = [p.ravel() for _, p in predict_probs(fabric, model, images, NAMES, **options)]
    bad = [p.ravel() for _, p in predict_probs(fabric, model, images, NAMES, **options, runtime=runtime)]
    apart = np.abs(np.concatenate(own) - np.concatenate(bad))
    flips = (np.concatenate(own) > 0.5) != (np.concatenate(bad) > 0.5)
    assert finding.largest_difference == pytest.approx(apart.max(), abs=2e-5)
    assert finding.mean_difference == pytest.approx(apart.mean(), abs=2e-5)
    assert finding.flipped_share == pytest.approx(flips.mean(), abs=1e-3)
    assert finding.torch_score == pytest.approx(np.mean([one.mean() for one in own]), abs=1e-4)
    assert finding.score == pytest.approx(np.mean([one.mean() for one in bad]), abs=1e-4)
    assert not finding.accepted
    assert "the score falls from" in finding.refusal
    assert "of the pixels change sides, allowed 0.25%" in finding.refusal


def test_the_rule():
    fine = Finding("openvino", 1, 0.8, 0.8, 0.1, 0.1, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert fine.accepted
    for change, accepted in (
        ({"score": 0.8 - 0.9 * SCORE_TOLERANCE}, True),
        ({"score": 0.8 - 1.1 * SCORE_TOLERANCE}, False),
        ({"score": 0.9}, True),
        ({"score": float("nan")}, False),
        ({"flipped_share": FLIP_TOLERANCE}, True),
        ({"flipped_share": 1.01 * FLIP_TOLERANCE}, False),
        ({"s_per_batch": 9.0}, True),  # time does not decide
    ):
        assert dataclasses.replace(fine, **change).accepted is accepted, change


@pytest.mark.slow
def test_the_sample_is_bounded_and_spread(fabric, tmp_path, monkeypatch):
    monkeypatch.setitem(RUNTIMES, "openvino", shifted(0.0))
    names, seen = [f"{at:04d}" for at in range(1030)], []
    images = image_store(tmp_path / "many.npy", 1, sizes=[(name, (2, 2)) for name in names])

    def score(codes):
        seen.append([name for name, _ in codes])
        return 0.0

    finding, _ = compare_runtime("openvino", fabric, tiny(), images, names, score, batch_size=512)
    assert finding.images == len(seen[0]) == len(seen[1]) == 1024
    left_out = set(map(int, names)) - set(map(int, seen[0]))
    assert np.ptp(np.diff(sorted(left_out))) <= 1


def choose(fabric, images, record, *, model=None, names=NAMES, key="k", name="openvino"):
    return choose_runtime(
        name, fabric, model or tiny(), images, names, mean_prob, batch_size=4, record=record, key=key
    )


def test_a_bad_runtime_is_refused_and_the_choice_is_kept(fabric, images, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "masksmith")
    record, model = tmp_path / "oof" / "fold_0.runtime.json", tiny()
    monkeypatch.setitem(RUNTIMES, "openvino", shifted(-1.0))
    planes = np.random.default_rng(0).random((2, 1, 16, 16), np.float32)
    runtime = choose(fabric, images, record, model=model)
    np.testing.assert_array_equal(runtime(planes), torch_runtime(fabric, model)(planes))
    assert "openvino is not used: the score falls" in caplog.text
    written = read_json(record)
    assert (written["asked"], written["runtime"], written["key"]) == ("openvino", "torch", "k")
    assert written["finding"]["accepted"] is False
    monkeypatch.setitem(RUNTIMES, "openvino", shifted(0.0))  # good by now; but the choice stands
    choose(fabric, images, record, model=model)
    assert read_json(record) == written
    choose(fabric, images, record, model=model, key="other weights")
    assert (read_json(record)["runtime"], read_json(record)["reason"]) == ("openvino", "")
    monkeypatch.setitem(RUNTIMES, "openvino", shifted(7.0))  # nor is it measured again
    found = choose(fabric, images, record, model=model, key="other weights")(planes)
    np.testing.assert_allclose(found, torch_runtime(fabric, model)(planes) + 7, atol=1e-5)
    write_json(record, {"key": "k", "runtime": "openvin"})
    with pytest.raises(InputError, match=r"json: runtime: 'openvin' is unknown; did you mean 'openvino'"):
        choose(fabric, images, record)


def test_where_there_is_nothing_to_choose(fabric, images, tmp_path, caplog):
    choose(fabric, images, tmp_path / "r.json", name="torch")
    assert not (tmp_path / "r.json").exists()
    choose(fabric, images, tmp_path / "r.json", names=[])
    assert "openvino is not used: there are no held-out images to judge by" in caplog.text
    assert read_json(tmp_path / "r.json")["runtime"] == "torch"


@pytest.mark.slow
def test_the_whole_way(project, example, monkeypatch, caplog):
    """Refused first, where the planted runtime is wrong; then OpenVINO itself, which is accepted."""
    run = Project.open(project).run()
    record = run.oof(0).with_suffix(".runtime.json")
    weights = run.final(0).stat().st_mtime_ns

    def codes():
        stores = {"oof": open_codes(run.oof(0)), "test": open_codes(run.test(0))}
        return {
            (part, name): store[name].astype(np.int64) for part, store in stores.items() for name in store
        }

    before = codes()
    with monkeypatch.context() as patch:
        patch.setitem(RUNTIMES, "openvino", shifted(-3.0))
        ms.train(project, **OPENVINO)
        ms.predict(project)
    assert "openvino is not used" in caplog.text
    assert read_json(record)["runtime"] == "torch"
    assert all((image == before[place]).all() for place, image in codes().items())

    record.unlink()
    for path in (run.oof(0), run.test(0)):
        path.unlink()
    result = ms.compete(example / "data", out=project, **OPENVINO)
    assert run.final(0).stat().st_mtime_ns == weights  # prediction does not decide the weights
    choice = read_json(record)
    assert choice["runtime"] == "openvino"
    assert choice["finding"]["accepted"] is True
    largest = max(np.abs(image - before[place]).max() for place, image in codes().items())
    assert 0 < largest <= 7  # predicted anew, 1e-4 apart at most
    assert "prediction runtime" in result.tuning["chosen_on_fold"]
    assert result.submission.compared == 8
    stamp = record.stat().st_mtime_ns
    run.test(0).unlink()
    ms.predict(project)  # an interrupted run goes on with the recorded choice
    assert record.stat().st_mtime_ns == stamp
    assert open_codes(run.test(0)).ids

    monkeypatch.setattr("masksmith.training.machine.settle_device", lambda device: "mps")
    with pytest.raises(InputError, match=r"'openvino' runs on the CPU, and training\.device is 'mps'"):
        ms.train(project, recipe="smoke", overrides=OPENVINO["overrides"] | {"seed": 5})
