"""A Ray cluster of two nodes of one core on this machine: prints what test_ray.py asks for, as JSON.

A process of its own: Ray leaves threads and handlers behind.
"""

import json
import os
import signal
import sys
from pathlib import Path

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.engines import Task, open_engine


def die_once(path: str) -> str:
    """Die by SIGKILL, and the next time return."""
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def refuse(text: str) -> None:
    raise InputError(text)


def refused(call):
    try:
        call()
    except InputError as error:
        return str(error)
    return None


def main(data: str, folder: Path, overrides: dict[str, object]) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    address = f"ray:{cluster.address}"
    found = {}
    try:
        result = ms.compete(data, out=folder / "ray", recipe="smoke", overrides=overrides, engine=address)
        found["members"] = result.members
        engine = open_engine(address)
        found["slots"] = [(slot.cores, bool(slot.kind)) for slot in engine.slots()]
        dying = Task("dies", "tests.engines.cluster:die_once", {"path": str(folder / "mark")})
        found["died"] = [done.value for done in engine.run([dying])]
        wrong = [Task("wrong", "tests.engines.cluster:refuse", {"text": "a.png: no"}), Task("x", "time:time")]
        found["refused"] = refused(lambda: list(engine.run(wrong)))
        found["large"] = refused(lambda: list(engine.run([Task("large", "time:time", cores=2)])))
        engine.close()
        missing = f"ray:127.0.0.1:{int(address.rpartition(':')[2]) + 1}"
        found["absent"] = refused(lambda: open_engine(missing)), missing
    finally:
        cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
