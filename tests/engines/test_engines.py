"""Engines and what they ask of them that work side by side; a Ray cluster is in test_ray.py."""

import sys
from itertools import islice

import pytest

from masksmith.core.errors import InputError
from masksmith.engines import Engine, Slot, Task, open_engine


def tasks(seen, count):
    for at in range(count):
        seen.append(at)
        yield Task(f"t{at}", "json:dumps", {"obj": [at]})


def test_the_local_engine_takes_a_task_when_the_one_before_it_was_taken():
    seen, engine = [], open_engine()
    ended = engine.run(tasks(seen, 3))
    assert seen == []
    first = list(islice(ended, 2))
    assert seen == [0, 1]
    assert [(done.task.name, done.value) for done in first] == [("t0", "[0]"), ("t1", "[1]")]
    assert [done.value for done in ended] == ["[2]"]
    with pytest.raises(TypeError, match="missing 1 required"):
        next(engine.run([Task("wrong", "json:dumps", {})]))
    (slot,) = engine.slots()
    assert slot.cores >= 1
    assert slot.memory_mb > 0
    assert isinstance(engine, Engine)


def test_a_slot_holds_what_its_cores_gpus_and_memory_allow():
    slot = Slot("a", "x", cores=8, gpus=2, memory_mb=1000)
    for needs, count in (
        ({}, 8),
        ({"cores": 3}, 2),
        ({"cores": 9}, 0),
        ({"gpus": 1}, 2),
        ({"gpus": 0.5}, 4),
        ({"gpus": 3}, 0),
        ({"memory_mb": 400}, 2),
        ({"memory_mb": 1001}, 0),
    ):
        assert slot.at_once(Task("t", "", **needs)) == count, needs
    assert str(slot) == "a: 8 cores, 2 GPUs, 1.0 GiB (x)"
    assert Slot("a", "x", cores=1).at_once(Task("t", "", memory_mb=99)) == 1  # its memory is not known


def test_unknown_engines_and_a_missing_ray_are_refused(monkeypatch):
    for address in ("spark", "ray:", "", "local:1"):
        with pytest.raises(InputError, match=f"^--engine {address}: expected local, ray, or ray:HOST:PORT$"):
            open_engine(address)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^--engine ray: Ray is not installed; install masksmith\[ray\]$"):
        open_engine("ray")
