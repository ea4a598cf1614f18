"""The engine of a Ray cluster."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import masksmith as ms
from masksmith.core.errors import InputError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

SMALL = {"folds.count": 3, "folds.train": 2, "training.threads": 1, "training.stages.0.epochs": 2}
SAME = ("submission.csv", "runs/*/checkpoints/*/final.safetensors", "runs/*/oof/*.npy", "runs/*/test/*.npy")


@pytest.mark.slow
@pytest.mark.heavy
def test_a_cluster_of_two_nodes_leaves_the_bytes_of_this_machine(tmp_path):
    data = ms.example(tmp_path / "example", train=18, test=3)
    local = ms.compete(data, out=tmp_path / "local", recipe="smoke", overrides=SMALL)
    words = [sys.executable, "-m", "tests.engines.cluster", str(data), str(tmp_path), json.dumps(SMALL)]
    quick = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    ran = subprocess.run(
        words, env=os.environ | quick, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["members"] == local.members
    for glob in SAME:
        ours = sorted((tmp_path / "local").glob(glob))
        assert ours, glob
        for path in ours:
            other = tmp_path / "ray" / path.relative_to(tmp_path / "local")
            assert path.read_bytes() == other.read_bytes(), other
    assert found["slots"] == [[1, True], [1, True]]
    assert found["died"] == ["alive"]
    assert found["refused"].startswith("wrong, on ")
    assert found["refused"].endswith(": a.png: no")
    assert ": large needs 2 cores, 0 GPUs, 0.0 GiB, and no worker has that (" in found["large"]
    text, address = found["absent"]
    assert text.startswith(f"--engine {address}: nothing answers there (")


def test_nodes_that_cannot_work_are_refused_all_at_once():
    from masksmith.engines.on_ray import Seen, refuse_nodes

    seen = [
        Seen("a 1", "0.1.0", "x"),
        Seen("b 2", "0.2.0", "x"),
        Seen("c 3", None),
        Seen("d 4", "0.1.0", "x", sees=False),
        Seen("e 5", None, trouble="it died"),
    ]
    with pytest.raises(InputError) as caught:
        refuse_nodes(seen, engine="ray", folder=Path("/p"), version="0.1.0")
    assert str(caught.value).splitlines() == [
        "--engine ray: b 2 has masksmith 0.2.0, and this is 0.1.0; install the same on both",
        "--engine ray: c 3 has no masksmith; install masksmith 0.1.0 there",
        "--engine ray: d 4 does not see /p; put the project into a folder that all machines share",
        "--engine ray: e 5 cannot run a task: it died; look at it, or take it out of the cluster",
    ]
    refuse_nodes(seen[:1], engine="ray", folder=Path("/p"), version="0.1.0")


def test_addresses_that_are_none_are_refused():
    from masksmith.engines import open_engine

    for address in ("ray:foo", "ray:foo:x", "ray::6379"):
        with pytest.raises(InputError, match=f"^--engine {address}: expected ray:HOST:PORT, such as"):
            open_engine(address)
