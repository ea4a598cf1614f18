import dataclasses
import logging

import numpy as np
import pytest
from lightning_fabric import Fabric

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.prediction import gate
from masksmith.prediction.gate import (
    FLIP_TOLERANCE,
    SCORE_TOLERANCE,
    Finding,
    choose_runtime,
    compare_runtime,
)
from masksmith.prediction.runtimes import RUNTIMES, torch_runtime
from masksmith.prediction.store import open_codes
from masksmith.project.folder import Project
from tests.conftest import TINY
from tests.prediction.test_runtime import SIZES, image_store, tiny

NAMES = [name for name, _ in SIZES]


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
    from masksmith.prediction.predict import predict_probs

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


def test_the_sample_is_bounded_and_spread(images, monkeypatch):
    assert gate._sample(images, NAMES) == NAMES
    monkeypatch.setattr(gate, "_IMAGES", 3)
    assert gate._sample(images, NAMES) == ["a", "c", "e"]
    monkeypatch.setattr(gate, "_PIXELS", 1)
    assert gate._sample(images, NAMES) == ["a"]


def choose(fabric, images, record, *, model=None, names=NAMES, key="k", name="openvino"):
    return choose_runtime(
        name,
        fabric,
        model or tiny(),
        images,
        names,
        mean_prob,
        batch_size=4,
        record=record,
        key=key,
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
    assert read_json(record)["runtime"] == "openvino"
    assert read_json(record)["reason"] == ""


def test_a_recorded_choice_is_not_measured_again(fabric, images, tmp_path, monkeypatch):
    record = tmp_path / "r.json"
    write_json(record, {"key": "k", "runtime": "openvino"})
    monkeypatch.setitem(RUNTIMES, "openvino", shifted(7.0))
    model, planes = tiny(), np.zeros((1, 1, 16, 16), np.float32)
    found = choose(fabric, images, record, model=model)(planes)
    np.testing.assert_allclose(found, torch_runtime(fabric, model)(planes) + 7, atol=1e-5)
    write_json(record, {"key": "k", "runtime": "openvin"})
    with pytest.raises(InputError, match=r"r\.json: runtime: 'openvin' is unknown; did you mean 'openvino'"):
        choose(fabric, images, record)


def test_without_images_torch_is_used(fabric, images, tmp_path, caplog):
    choose(fabric, images, tmp_path / "r.json", names=[])
    assert "openvino is not used: there are no held-out images to judge by" in caplog.text
    assert read_json(tmp_path / "r.json")["runtime"] == "torch"


def test_torch_needs_no_gate(fabric, images, tmp_path):
    choose(fabric, images, tmp_path / "r.json", name="torch")
    assert not (tmp_path / "r.json").exists()


def test_the_whole_way_with_openvino(project, example):
    run = Project.open(project).run()
    before = {
        stage: {name: np.array(store[name], np.int64) for name in store}
        for stage, store in (("oof", open_codes(run.oof(0))), ("test", open_codes(run.test(0))))
    }
    weights = run.final(0).stat().st_mtime_ns
    overrides = TINY | {"prediction.runtime": "openvino"}
    result = ms.compete(example / "data", out=project, overrides=overrides)
    run = Project.open(project).run()
    assert run.final(0).stat().st_mtime_ns == weights  # prediction does not decide the weights
    choice = read_json(run.oof(0).with_suffix(".runtime.json"))
    assert choice["runtime"] == "openvino"
    assert choice["finding"]["accepted"] is True
    for stage, path in (("oof", run.oof(0)), ("test", run.test(0))):
        store = open_codes(path)
        apart = np.concatenate([np.abs(store[name] - codes).ravel() for name, codes in before[stage].items()])
        assert 0 < apart.max() <= 7, stage  # predicted anew, 1e-4 apart at most
    assert "prediction runtime" in result.tuning["chosen_on_fold"]
    assert result.submission is not None
    assert result.submission.compared == 8
    assert ms.submit(project, check=project / "submission.csv").ids == 8

    stamp = run.oof(0).with_suffix(".runtime.json").stat().st_mtime_ns
    run.test(0).unlink()
    ms.predict(project)  # an interrupted run goes on with the recorded choice
    assert run.oof(0).with_suffix(".runtime.json").stat().st_mtime_ns == stamp
    assert open_codes(run.test(0)).ids


def test_the_gate_refuses_on_the_way(project, monkeypatch, caplog):
    monkeypatch.setitem(RUNTIMES, "openvino", shifted(-3.0))
    run = Project.open(project).run()
    before = open_codes(run.oof(0))[open_codes(run.oof(0)).ids[0]].copy()
    ms.train(project, overrides=TINY | {"prediction.runtime": "openvino"})
    ms.predict(project)
    assert "openvino is not used" in caplog.text
    assert read_json(run.oof(0).with_suffix(".runtime.json"))["runtime"] == "torch"
    store = open_codes(run.oof(0))
    np.testing.assert_array_equal(store[store.ids[0]], before)


def test_openvino_on_another_device_is_refused_before_training(project, monkeypatch):
    from masksmith.training import machine

    monkeypatch.setattr(machine, "settle_device", lambda device: "mps")
    with pytest.raises(InputError, match=r"'openvino' runs on the CPU, and training\.device is 'mps'"):
        ms.train(project, overrides=TINY | {"prediction.runtime": "openvino", "seed": 5})
