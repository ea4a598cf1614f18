"""The harness of `make faults`: a sample of it survives, and it catches a planted bug."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def faults(*arguments):
    """Run the program; return (exit code, its output)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return done.returncode, done.stderr + done.stdout


@pytest.mark.slow
def test_a_sample_of_every_part_survives():
    code, text = faults("--sample", "2", "--jobs", "2")
    assert code == 0, text
    assert text.splitlines()[-1] == "12 of 12 survived"


@pytest.mark.slow
def test_random_state_that_is_not_restored_is_caught(tmp_path):
    code, text = faults(
        "--part", "points", "--sample", "4", "--jobs", "2", "--plant", "rng", "--scratch", str(tmp_path)
    )
    assert code == 1, text
    survived, _, total, _ = text.splitlines()[-1].split()
    assert int(survived) < int(total) == 4
    assert "final.safetensors" in text or "differs" in text
