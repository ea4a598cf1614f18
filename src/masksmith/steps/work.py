"""What holds while a verb works: the lock, stops between two items, the caller's threads, and an engine."""

import contextlib
from collections.abc import Iterator

import torch

from masksmith.core import interrupt
from masksmith.core.locks import folder_lock
from masksmith.engines import Engine, open_engine
from masksmith.project.folder import Project


@contextlib.contextmanager
def working(project: Project) -> Iterator[None]:
    """Hold the project's lock, answer SIGINT and SIGTERM between two items, and restore torch's threads afterwards."""
    with folder_lock(project.root), interrupt.graceful(), restored_threads():
        yield


@contextlib.contextmanager
def opened(address: str) -> Iterator[Engine]:
    """Open an engine by its name (see open_engine), and close it after the block."""
    engine = open_engine(address)
    try:
        yield engine
    finally:
        engine.close()


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Give torch its number of threads back after the block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
