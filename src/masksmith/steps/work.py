"""What holds while a verb works on a project: the lock, stops between two items, and the caller's threads."""

import contextlib
from collections.abc import Iterator

import torch

from masksmith.core import interrupt
from masksmith.core.locks import folder_lock
from masksmith.project.folder import Project


@contextlib.contextmanager
def working(project: Project) -> Iterator[None]:
    """Hold the project's lock, answer SIGINT and SIGTERM between two items, and restore torch's threads afterwards."""
    with folder_lock(project.root), interrupt.graceful(), restored_threads():
        yield


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Give torch its number of threads back after the block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
