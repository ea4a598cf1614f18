"""Engines: where tasks run. ``local`` (the default) is this process, ``ray`` the workers of a Ray cluster.

A task is data: the name of a function and its arguments. It is idempotent and writes its result into the project, so
that it can be run again after a death, and then finds what is done. Importing this imports neither torch nor Ray.
"""

import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from masksmith.core.errors import InputError


@dataclass(frozen=True)
class Task:
    """A piece of work that any worker can do."""

    name: str
    """What a person reads: "smoke-12345678, fold 2"."""
    function: str
    """Module and function, "masksmith.steps.tasks:train_fold"."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function: plain values, as JSON has them."""
    cores: int = 1
    gpus: float = 0
    memory_mb: int = 0
    """Main memory in MiB; 0: not said."""
    on: str = ""
    """Name of the slot that it should run on, as long as that is there; "": any."""

    def __call__(self) -> Any:  # noqa: ANN401
        """Run it here and return what the function returns: plain values."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)(**self.arguments)


@dataclass(frozen=True)
class Done:
    """A finished task."""

    task: Task
    value: Any
    """What its function returned."""
    seconds: float
    """Wall-clock time of the function on its worker."""
    worker: str
    """Name of the slot that it ran on."""


@dataclass(frozen=True)
class Slot:
    """A machine that tasks run on."""

    name: str
    kind: str
    """Its processor, and its graphics cards where it has some: machines of one kind take the same time."""
    cores: int
    gpus: float = 0
    memory_mb: int = 0
    """0: not known."""

    def at_once(self, task: Task) -> int:
        """Return how many such tasks it can hold at a time."""
        holds = [self.cores // max(1, task.cores)]
        if task.gpus:
            holds.append(int(self.gpus / task.gpus + 1e-9))
        if task.memory_mb and self.memory_mb:
            holds.append(self.memory_mb // task.memory_mb)
        return max(0, min(holds))

    def __str__(self) -> str:
        memory = f", {self.memory_mb / 1024:.1f} GiB" if self.memory_mb else ""
        return f"{self.name}: {self.cores} cores, {self.gpus:g} GPUs{memory} ({self.kind})"


@runtime_checkable
class Engine(Protocol):
    """Runs tasks."""

    name: str
    """As it was asked for: "local", "ray", "ray:ADDRESS"."""

    def run(self, tasks: Iterable[Task | None]) -> Generator[Done, None, None]:
        """Run tasks and yield each as it finishes.

        The next task is taken from ``tasks`` when there is a worker for it, so that ``tasks`` may decide on it then.
        None says that nothing can begin until another task has finished; it is asked again then. Closing what is
        returned asks the tasks under way to stop.

        Raises:
            InputError: A task raised it, with the name of the task in front; or no worker can hold a task, or a task's
                workers died again and again. DivergedError likewise. Other tasks under way are asked to stop.
            StoppedError: A stop was asked for; tasks under way have been asked to stop, too.
        """
        ...

    def slots(self) -> list[Slot]:
        """Return the machines that there are."""
        ...

    def need(self, folder: Path) -> None:
        """Refuse machines that do not see a folder of this one.

        Raises:
            InputError: A line for each.
        """
        ...

    def close(self) -> None:
        """Let go of the workers."""
        ...


def open_engine(address: str = "local") -> Engine:
    """Open an engine by its name.

    Args:
        address: "local"; "ray" (the cluster that RAY_ADDRESS names or that runs on this machine, or one started on it);
            "ray:HOST:PORT" (the cluster with that address).

    Raises:
        InputError: An unknown engine, Ray is not installed, no answer at the address, or workers with another masksmith
            or none.
    """
    kind, _, place = address.partition(":")
    if address == "local":
        from masksmith.engines.local import LocalEngine

        return LocalEngine()
    if kind != "ray" or (":" in address and not place):
        raise InputError(f"--engine {address}: expected local, ray, or ray:HOST:PORT")
    os.environ.setdefault(
        "RAY_NUM_REDIS_GET_RETRIES", "4"
    )  # seconds to wait for an answer; read at the import
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise InputError(f"--engine {address}: Ray is not installed; install masksmith[ray]") from error
    from masksmith.engines.on_ray import RayEngine

    return RayEngine(address)
