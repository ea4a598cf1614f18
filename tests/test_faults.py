"""The harness of `make faults`: a sample of it survives, and it catches a planted bug."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def faults(*arguments):
    """Run the program; return (exit code, its output, survivors, faults)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--jobs", "2", *arguments],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    survived, _, total, _ = done.stdout.splitlines()[-1].split()
    return done.returncode, done.stderr + done.stdout, int(survived), int(total)


def test_a_sample_of_every_part_survives():
    code, text, survived, total = faults("--sample", "1")
    assert (code, survived, total) == (0, 6, 6), text


def test_another_task_survives():
    code, text, survived, total = faults("--task", "instances", "--part", "points", "--sample", "2")
    assert (code, survived, total) == (0, 2, 2), text


def test_random_state_that_is_not_restored_is_caught(tmp_path):
    code, text, survived, total = faults(
        "--part", "points", "--sample", "4", "--plant", "rng", "--scratch", str(tmp_path)
    )
    assert code == 1, text
    assert survived < total == 4
    assert "final.safetensors" in text or "differs" in text
