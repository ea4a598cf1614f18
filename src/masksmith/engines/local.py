"""The engine of one machine: tasks run in this process, one after another, in their order."""

import time
from collections.abc import Generator, Iterable
from pathlib import Path

from masksmith.core.processor import processor_name
from masksmith.engines import Done, Slot, Task

_NAME = "this machine"


class LocalEngine:
    """Runs tasks in this process (see Engine)."""

    name = "local"

    def run(self, tasks: Iterable[Task | None]) -> Generator[Done, None, None]:
        """Run each task when the one before it has finished and was taken; what it raises goes through as it is."""
        for task in tasks:
            assert task is not None, "nothing is under way that could be waited for"
            began = time.monotonic()
            value = task()
            yield Done(task, value, time.monotonic() - began, _NAME)

    def slots(self) -> list[Slot]:
        """Return this machine."""
        import torch

        from masksmith.training.machine import usable_cores
        from masksmith.training.memory import machine_bytes

        cards = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
        kind = ", ".join([processor_name(), *dict.fromkeys(cards)])
        return [Slot(_NAME, kind, usable_cores(), len(cards), machine_bytes() >> 20)]

    def need(self, folder: Path) -> None:
        """It is there."""

    def close(self) -> None:
        """Nothing is held."""
