"""The engine of a Ray cluster: each task is a Ray task, which declares its cores, GPUs and memory.

A worker that dies costs its task alone: Ray gives it to another one, three times at most. The driver's death ends the
tasks of its job. See https://docs.ray.io/en/latest/ray-core/fault-tolerance.html
"""

import contextlib
import os
import socket
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from masksmith.core import interrupt
from masksmith.core.errors import DivergedError, InputError, StoppedError
from masksmith.core.files import remove, write_text
from masksmith.core.progress import logger
from masksmith.engines import Done, Slot, Task

_TRIES = 3
"""How often a task whose workers die, or are told to stop, is given to another one."""
_ANSWER_S = 5.0
_PROBE_S = 90.0
"""Seconds that the first task of a node may take: it starts a process and imports what it needs."""
_STOP_S = 30.0
"""Seconds that tasks under way have for their checkpoint when a stop was asked for."""
_WAIT_S = 0.5


@dataclass(frozen=True)
class Seen:
    """What a node says of itself."""

    node: str
    version: str | None
    """Of masksmith; None: there is none."""
    kind: str = ""
    sees: bool = True
    """Whether it finds the project folder."""
    trouble: str = ""


class RayEngine:
    """Runs tasks on the workers of a Ray cluster (see Engine).

    Args:
        address: "ray" or "ray:HOST:PORT".

    Raises:
        InputError: As open_engine.
    """

    def __init__(self, address: str) -> None:
        self.name = address
        self._own = _connect(address)
        self._kinds: dict[str, str] = {}
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the cluster; one that was started for this engine ends."""
        if self._own and ray.is_initialized():
            ray.shutdown()

    def slots(self) -> list[Slot]:
        """Return the nodes that are alive, by name."""
        found = []
        for node in _alive():
            has, name = node["Resources"], _name_of(node)
            if name not in self._kinds:  # it came later
                self._kinds |= {seen.node: seen.kind for seen in _probe([node], None)}
            cards = [key.partition(":")[2] for key in has if key.startswith("accelerator_type:")]
            kind = ", ".join([self._kinds[name], *cards])
            memory = int(has.get("memory", 0)) >> 20
            found.append(Slot(name, kind, int(has.get("CPU", 0)), has.get("GPU", 0.0), memory))
        return sorted(found, key=lambda slot: slot.name)

    def need(self, folder: Path) -> None:
        """Refuse nodes that do not see a folder of this machine: a file is written there, and every node looks for it.

        Raises:
            InputError: A line for each.
        """
        probe = folder / f".{uuid4().hex}.{os.getpid()}.masksmith-tmp"  # the next lock would clear it away
        write_text(probe, "masksmith")
        try:
            self._check(probe)
        finally:
            remove(probe)

    def _check(self, probe: Path | None = None) -> None:
        nodes = _alive()
        if not nodes:
            raise InputError(f"--engine {self.name}: the cluster has no node that is alive; start one")
        seen = _probe(nodes, None if probe is None else str(probe.resolve()))
        folder = None if probe is None else probe.parent
        refuse_nodes(seen, engine=self.name, folder=folder, version=metadata.version("masksmith"))
        self._kinds = {one.node: one.kind for one in seen}

    def run(self, tasks: Iterable[Task | None]) -> Generator[Done, None, None]:
        """Run tasks side by side; see Engine."""
        waiting, under_way, tries = iter(tasks), dict[Any, Task](), dict[Any, int]()
        room, is_over = 1, False
        try:
            while True:
                while not is_over and len(under_way) < room:
                    task = next(waiting, _OVER)
                    if isinstance(task, _Over):
                        is_over = True
                    elif task is None:
                        break
                    else:
                        room = self._room_for(task)
                        reference = _begin(task)
                        under_way[reference], tries[reference] = task, 1
                if not under_way:
                    return
                interrupt.check_stop()
                ready, _ = ray.wait(list(under_way), num_returns=1, timeout=_WAIT_S)
                for reference in ready:
                    task, tried = under_way.pop(reference), tries.pop(reference)
                    done = _result(task, reference)
                    if done is None and tried < _TRIES:
                        logger.warning("%s: its worker was told to stop; it goes to another one", task.name)
                        again = _begin(task)
                        under_way[again], tries[again] = task, tried + 1
                    elif done is None:
                        raise InputError(
                            f"{task.name}: its workers were told to stop {tried} times; repeat the command"
                        )
                    else:
                        yield done
        finally:
            _stop(list(under_way))

    def _room_for(self, task: Task) -> int:
        """Return how many such tasks run at once.

        Raises:
            InputError: None: no node can hold it.
        """
        slots = self.slots()
        room = sum(slot.at_once(task) for slot in slots)
        if not room:
            wants = f"{task.cores} cores, {task.gpus:g} GPUs, {task.memory_mb / 1024:.1f} GiB"
            raise InputError(
                f"--engine {self.name}: {task.name} needs {wants}, and no worker has that "
                f"({'; '.join(map(str, slots))}); add a larger one, or set training.threads, training.device or the "
                "batch to what there is"
            )
        return room


class _Over:
    """There are no more tasks."""


_OVER = _Over()


def refuse_nodes(seen: Sequence[Seen], *, engine: str, folder: Path | None, version: str) -> None:
    """Refuse nodes that cannot work for this driver, which has masksmith in ``version``.

    Raises:
        InputError: A line for each.
    """
    wrong = []
    for one in seen:
        if one.trouble:
            wrong.append(
                f"{one.node} cannot run a task: {one.trouble}; look at it, or take it out of the cluster"
            )
        elif one.version is None:
            wrong.append(f"{one.node} has no masksmith; install masksmith {version} there")
        elif one.version != version:
            wrong.append(
                f"{one.node} has masksmith {one.version}, and this is {version}; install the same on both"
            )
        elif not one.sees:
            wrong.append(
                f"{one.node} does not see {folder}; put the project into a folder that all machines share"
            )
    if wrong:
        raise InputError("\n".join(f"--engine {engine}: {line}" for line in wrong))


def _connect(address: str) -> bool:
    """Connect to the cluster, or start one here; return whether this process was not connected before.

    Raises:
        InputError: No answer.
    """
    place = address.partition(":")[2]
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # folds say the same things
    os.environ.setdefault("RAY_worker_niceness", "0")  # of workers that are started here; Ray's own is 15
    options: dict[str, Any] = {"log_to_driver": True, "logging_level": "ERROR", "configure_logging": True}
    if place:
        _knock(address, place)
        try:
            ray.init(address=place, **options)
        except Exception as error:  # Ray raises many kinds, RuntimeError and ConnectionError among them
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"--engine {address}: no Ray cluster answers there ({reason})") from error
        return True
    try:
        ray.init(address="auto", **options)
    except ConnectionError:  # none here
        from masksmith.training.machine import usable_cores

        ray.init(address="local", num_cpus=usable_cores(), include_dashboard=False, **options)
    return True


def _knock(address: str, place: str) -> None:
    """Refuse an address that nothing listens at; Ray itself would try for minutes."""
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--engine {address}: expected ray:HOST:PORT, such as ray:10.0.0.5:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--engine {address}: nothing answers there ({error}); start the cluster (`ray start --head`), or "
            "correct the address"
        ) from error


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _name_of(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} {node['NodeID'][:8]}"


def _probe(nodes: Sequence[dict[str, Any]], path: str | None) -> list[Seen]:
    """Ask each node what it has; it need not have masksmith for that."""

    def look(path: str | None) -> tuple[str | None, str, bool]:  # sent as code: masksmith may not be there
        from importlib import metadata
        from pathlib import Path

        sees = path is None or Path(path).exists()
        try:
            from masksmith.core.processor import processor_name

            return metadata.version("masksmith"), processor_name(), sees
        except ImportError:  # PackageNotFoundError is one
            return None, "", sees

    remote = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[_name_of(node)] = remote.options(scheduling_strategy=there).remote(path)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_PROBE_S)
    found = []
    for name, reference in asked.items():
        try:
            version, kind, sees = ray.get(reference, timeout=0)
            found.append(Seen(name, version, kind, sees))
        except RayError as error:
            found.append(Seen(name, None, trouble=str(error).strip().splitlines()[-1]))
    return found


def _begin(task: Task) -> Any:  # noqa: ANN401 (a reference of Ray)
    options: dict[str, Any] = {"num_cpus": task.cores, "num_gpus": task.gpus, "name": task.name}
    if task.memory_mb:
        options["memory"] = task.memory_mb << 20
    node = next((node for node in _alive() if _name_of(node) == task.on), None)
    if node is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
    return ray.remote(work).options(max_retries=_TRIES, **options).remote(task)


def work(task: Task) -> tuple[str, Any, float, str]:
    """Run a task on a worker; return what became of it, its value or message, its seconds, and where.

    What masksmith raises goes back as a name and a text. Ray asks for a stop by a SIGINT, a node that ends by a
    SIGTERM.
    """
    import logging
    import sys

    import torch

    if not logger.handlers:
        logging.basicConfig(stream=sys.stderr, format="%(message)s")
        logger.setLevel(logging.INFO)
    torch.set_num_threads(task.cores)
    began, name, value = time.monotonic(), "", None
    try:
        with interrupt.graceful():
            value = task()
    except (DivergedError, InputError, StoppedError) as error:
        name, value = type(error).__name__, str(error)
    node = f"{socket.gethostname()} {ray.get_runtime_context().get_node_id()[:8]}"
    return name, value, time.monotonic() - began, node


def _result(task: Task, reference: Any) -> Done | None:  # noqa: ANN401
    """Return what a finished task returned; None where its worker was told to stop.

    Raises:
        InputError: The task raised it, or its workers died.
        DivergedError: The task raised it.
    """
    try:
        name, value, seconds, worker = ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise  # a mistake of ours
    except RayError as error:
        raise InputError(
            f"{task.name}: its worker died {_TRIES + 1} times ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}); what was finished before is whole. Give it more memory, or look "
            "at the machine, and repeat the command"
        ) from error
    if name == "StoppedError":
        return None
    if name == "DivergedError":
        raise DivergedError(f"{task.name}, on {worker}: {value}")
    if name:
        raise InputError(f"{task.name}, on {worker}: {value}")
    return Done(task, value, seconds, worker)


def _stop(references: Sequence[Any]) -> None:
    """Ask tasks under way to stop, and give them time for their checkpoints."""
    if not references or not ray.is_initialized():
        return
    for reference in references:
        with contextlib.suppress(RayError):
            ray.cancel(reference, force=False)
    ray.wait(list(references), num_returns=len(references), timeout=_STOP_S)
