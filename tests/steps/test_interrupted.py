"""A stop leaves a complete submission, and what was stopped goes on to the very same end.

Within this process the handler is called as the system would; real signals go to processes of their own.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import masksmith as ms
from masksmith.core import interrupt
from masksmith.core.errors import StoppedError
from masksmith.training import loop
from masksmith.training.state import TrainingState
from tests.conftest import TINY

PARTS = (
    "runs/*/checkpoints/*/final.safetensors",
    "runs/*/oof/*",
    "runs/*/test/*",
    "submission.csv",
    "masks/*",
)


def content(project):
    found = {path.relative_to(project): path.read_bytes() for part in PARTS for path in project.glob(part)}
    assert len(found) > 10
    return found


def stop_at_step(monkeypatch, number, *, sign=signal.SIGTERM):
    """Send the signal after so many steps of this process."""
    made, inner = [0], loop.train_step

    def step(*args, **kwargs):
        made[0] += 1
        if made[0] == number:
            signal.raise_signal(sign)
        return inner(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", step)


def kind_of(project):
    return json.loads((project / "submission.json").read_text())["kind"]


@pytest.mark.parametrize(("number", "sign", "code"), [(2, signal.SIGTERM, 143), (7, signal.SIGINT, 130)])
def test_a_stop_in_training_submits_what_there_is_and_goes_on_exactly(
    example, trained, tmp_path, monkeypatch, number, sign, code
):
    with monkeypatch.context() as patch:
        stop_at_step(patch, number, sign=sign)
        result = ms.compete(example / "data", out=tmp_path / "p", overrides=TINY)
    assert result.stopped == code
    assert kind_of(tmp_path / "p") == "interim"
    assert result.submission.ids == 8
    assert result.tuning["covers"].endswith("left out")
    assert "interim fold 0" in result.members[0]
    assert result.report.exists()
    ms.submit(tmp_path / "p")  # the verbs mean the interim members now
    again = ms.compete(example / "data", out=tmp_path / "p", overrides=TINY)
    assert again.stopped is None
    assert kind_of(tmp_path / "p") == "trained"
    assert content(tmp_path / "p") == content(trained)
    assert not list((tmp_path / "p").glob("runs/*/interim"))


def test_a_stop_in_the_second_fold_leaves_the_first_ones_submission(example, tmp_path, monkeypatch):
    two = TINY | {"folds.train": 2}
    steps_a_fold = 3 * (26 // 8)
    with monkeypatch.context() as patch:
        stop_at_step(patch, steps_a_fold + 2)
        result = ms.compete(example / "data", out=tmp_path / "p", overrides=two)
    assert result.stopped == 143
    assert kind_of(tmp_path / "p") == "trained"
    assert [name.split("/")[1] for name in result.members] == ["fold 0"]
    assert ms.tune(tmp_path / "p")["members"] == result.members
    whole = ms.compete(example / "data", out=tmp_path / "p", overrides=two)
    assert [name.split("/")[1] for name in whole.members] == ["fold 0", "fold 1"]


def test_a_stop_before_the_first_step_leaves_the_baseline(example, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "begin_epoch", lambda state: signal.raise_signal(signal.SIGTERM))
        result = ms.compete(example / "data", out=tmp_path / "p", overrides=TINY)
    assert result.stopped == 143
    assert kind_of(tmp_path / "p") == "baseline"
    assert result.tuning is None
    assert "the submission is the baseline" in str(result)
    assert ms.submit(tmp_path / "p", check=tmp_path / "p" / "submission.csv").ids == 8


def test_a_stop_in_the_prediction_finishes_it(example, trained, tmp_path, monkeypatch):
    from masksmith.prediction import predict

    with monkeypatch.context() as patch:
        inner = predict._forward

        def forward(*args, **kwargs):
            if (
                list(tmp_path.glob("p/runs/*/checkpoints/fold_0/final.json"))
                and not interrupt.stop_requested()
            ):
                signal.raise_signal(signal.SIGTERM)
            return inner(*args, **kwargs)

        patch.setattr(predict, "_forward", forward)
        result = ms.compete(example / "data", out=tmp_path / "p", overrides=TINY)
    assert result.stopped == 143
    again = ms.compete(example / "data", out=tmp_path / "p", overrides=TINY)
    assert again.stopped is None
    assert content(tmp_path / "p") == content(trained)


def test_a_stop_while_the_data_is_read(example, tmp_path, monkeypatch):
    from masksmith.data import cache

    inner = cache.decode_image

    def decode(raw, *, where):
        if not interrupt.stop_requested():
            signal.raise_signal(signal.SIGINT)
        return inner(raw, where=where)

    monkeypatch.setattr(cache, "decode_image", decode)
    with pytest.raises(StoppedError, match="stopped by Ctrl-C") as stop, interrupt.graceful():
        ms.check(example / "data", tmp_path / "p")
    assert stop.value.exit_code == 130


def test_the_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with interrupt.graceful():
        assert signal.getsignal(signal.SIGTERM) is not before
        with interrupt.graceful():  # inside another one nothing changes
            signal.raise_signal(signal.SIGTERM)
        with interrupt.finishing():
            interrupt.check_stop()  # what finishes is not stopped
        with pytest.raises(StoppedError):
            interrupt.check_stop()
    assert signal.getsignal(signal.SIGTERM) is before
    interrupt.check_stop()  # the request ended with the block


def test_listeners_hear_every_heartbeat():
    heard = []
    with interrupt.on_heartbeat(lambda: heard.append(1)):
        interrupt.check_stop()
        interrupt.check_stop()
    interrupt.check_stop()
    assert len(heard) == 2


def test_outside_the_main_thread_there_are_no_handlers():
    import threading

    failures = []

    def work():
        try:
            with interrupt.graceful():
                interrupt.check_stop()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


def start(arguments, **more):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "masksmith", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **more,
    )  # fmt: skip


def wait_for(project, pattern, process, *, seconds=300):
    deadline = time.monotonic() + seconds
    while not list(project.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_real_signals(example, tmp_path):
    sets = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    arguments = ["compete", example / "data", "--out", tmp_path / "p", *sets]
    arguments += ["--set", "training.stages.2.epochs=2000"]  # long enough to be hit
    process = start(arguments)
    wait_for(tmp_path / "p", "runs/*/checkpoints/fold_0/epoch_0003*.json", process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 143, errors
    assert "interim fold 0" in output
    assert kind_of(tmp_path / "p") == "interim"
    process = start(arguments)
    wait_for(tmp_path / "p", "runs/*/checkpoints/fold_0/epoch_0006*.json", process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGSTOP)  # so that both signals are there before it goes on
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    for _ in range(3):
        time.sleep(0.2)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    assert not list((tmp_path / "p").glob("runs/*/checkpoints/fold_0/final.*"))


def test_interim_probabilities_are_of_the_average(example, tmp_path, monkeypatch):
    """The weights that are kept at a stop are those of the checkpoint's moving average."""
    from safetensors.numpy import load_file

    stop_at_step(monkeypatch, 5)
    ms.compete(example / "data", out=tmp_path / "p", overrides=TINY)
    (interim,) = (tmp_path / "p").glob("runs/*/interim/fold_0.safetensors")
    newest = sorted((tmp_path / "p").glob("runs/*/checkpoints/fold_0/epoch_*.safetensors"))[-1]
    kept, whole = load_file(interim), load_file(newest)
    assert "step" in newest.stem
    for name, value in kept.items():
        np.testing.assert_array_equal(value, whole[f"average/{name}"])
    shutil.rmtree(tmp_path / "p")
