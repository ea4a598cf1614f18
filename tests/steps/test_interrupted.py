"""A stop leaves a complete submission, and what was stopped goes on to the very same end."""

import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import masksmith as ms
from masksmith.core import interrupt
from masksmith.core.errors import StoppedError
from tests.stops import content, stop


def kind_of(project):
    return json.loads((project / "submission.json").read_text())["kind"]


@pytest.mark.slow
def test_a_run_stopped_again_and_again_ends_with_the_bits_of_a_whole_one(example, trained, tmp_path):
    out = tmp_path / "p"

    def compete():
        return ms.compete(example / "data", out=out, recipe="smoke")

    with stop("*/fold_0/epoch_0000.json"):  # before the first step
        result = compete()
    assert (result.stopped, result.tuning, kind_of(out)) == (143, None, "baseline")
    assert "the submission is the baseline" in str(result)
    assert ms.submit(out, check=out / "submission.csv").ids == 8
    for epoch, items, sign, code in ((1, 2, signal.SIGTERM, 143), (3, 1, signal.SIGINT, 130)):
        with stop(f"*/fold_0/epoch_{epoch:04d}.json", items=items, sign=sign):
            result = compete()
        assert (result.stopped, kind_of(out), result.submission.ids) == (code, "interim", 8)
        assert result.tuning["covers"].endswith("left out")
        assert "interim fold 0" in result.members[0]
        assert result.report.exists()
        ms.submit(out)  # the verbs mean the interim members now
        (interim,) = out.glob("runs/*/interim/fold_0.safetensors")
        newest = sorted(out.glob("runs/*/checkpoints/fold_0/epoch_*.safetensors"))[-1]
        assert "step" in newest.stem
        whole = load_file(newest)
        for name, value in load_file(interim).items():  # the moving average is kept
            np.testing.assert_array_equal(value, whole[f"average/{name}"])
    with stop("*/checkpoints/fold_0/final.json"):  # in the prediction, which is finished
        result = compete()
    assert (result.stopped, kind_of(out)) == (143, "trained")
    assert compete().stopped is None
    assert content(out) == content(trained)
    assert not list(out.glob("runs/*/interim"))


@pytest.mark.slow
def test_a_stop_in_the_second_fold_leaves_the_first_ones_submission(example, project):
    two = {"folds.train": 2}
    with stop("*/fold_1/epoch_0001.json"):
        result = ms.compete(example / "data", out=project, recipe="smoke", overrides=two)
    assert (result.stopped, kind_of(project)) == (143, "trained")
    assert [name.split("/")[1] for name in result.members] == ["fold 0"]
    assert ms.tune(project)["members"] == result.members
    whole = ms.compete(example / "data", out=project, recipe="smoke", overrides=two)
    assert [name.split("/")[1] for name in whole.members] == ["fold 0", "fold 1"]


def test_a_stop_while_the_data_is_read(example, tmp_path):
    with (
        pytest.raises(StoppedError, match="stopped by Ctrl-C") as told,
        stop("*/data.json", items=9, sign=signal.SIGINT),
        interrupt.graceful(),
    ):
        ms.check(example / "data", tmp_path / "p")
    assert told.value.exit_code == 130


def test_handlers_and_listeners_last_as_long_as_their_block():
    before, heard = signal.getsignal(signal.SIGTERM), []
    with interrupt.graceful(), interrupt.on_heartbeat(lambda: heard.append(1)):
        assert signal.getsignal(signal.SIGTERM) is not before
        with interrupt.graceful():  # inside another one nothing changes
            signal.raise_signal(signal.SIGTERM)
        with interrupt.finishing():
            interrupt.check_stop()  # what finishes is not stopped
        with pytest.raises(StoppedError, match="SIGTERM"):
            interrupt.check_stop()
    assert signal.getsignal(signal.SIGTERM) is before
    interrupt.check_stop()  # the request ended with the block
    assert len(heard) == 2
    failures = []

    def work():  # outside the main thread there are no handlers
        try:
            with interrupt.graceful():
                interrupt.check_stop()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


def newest_epoch(out):
    """The number of the newest checkpoint of fold 0, -1 for none."""
    return max(
        (int(path.stem[6:10]) for path in out.glob("runs/*/checkpoints/fold_0/epoch_*.json")), default=-1
    )


@pytest.mark.slow
def test_real_signals(example, tmp_path):
    """SIGTERM, Ctrl-C, and Ctrl-C twice, each while an epoch is trained."""
    out = tmp_path / "p"
    command = [
        sys.executable,
        "-m",
        "masksmith",
        "compete",
        example / "data",
        "--out",
        out,
        "--recipe",
        "smoke",
    ]
    command += ["--set", "training.stages.0.epochs=2000"]  # long enough to be hit
    for signs, code in (
        ([signal.SIGTERM], 143),
        ([signal.SIGINT], 130),
        ([signal.SIGINT, signal.SIGSTOP, signal.SIGINT, signal.SIGCONT], 130),  # both before it goes on
    ):
        began, deadline = newest_epoch(out), time.monotonic() + 300  # two processes may share a slow core
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            while newest_epoch(out) < began + 2:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            for sign in signs:
                process.send_signal(sign)
            for _ in range(3 if len(signs) > 1 else 0):
                time.sleep(0.2)
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=300)
        assert process.returncode == code
        assert ("interim fold 0" in output) == (len(signs) == 1)
        assert kind_of(out) == "interim"
        assert not list(out.glob("runs/**/*.masksmith-tmp")) or len(signs) > 1
    assert not list(out.glob("runs/*/checkpoints/fold_0/final.*"))
