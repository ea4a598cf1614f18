"""Faults by the seams of masksmith.core: what happens at a write point, and a stop so many items after it."""

import signal
from contextlib import contextmanager
from fnmatch import fnmatch

import pytest

from masksmith.core import files, interrupt

PARTS = (
    "runs/*/checkpoints/*/final.safetensors",
    "runs/*/oof/*",
    "runs/*/test/*",
    "submission.csv",
    "masks/*",
)


def content(project):
    """The bytes of what a run ends with, by path."""
    found = {path.relative_to(project): path.read_bytes() for part in PARTS for path in project.glob(part)}
    assert len(found) > 10
    return found


@contextmanager
def at_write(pattern, act, *, phase="renamed"):
    """Call ``act`` once, at the first write point of the phase whose path matches."""
    done = []

    def look(path, now):
        if now == phase and not done and fnmatch(str(path), pattern):
            done.append(path)
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "on_write", look)
        yield
    assert done, f"nothing was written to {pattern}"


@contextmanager
def stop(pattern, *, items=0, sign=signal.SIGTERM, phase="renamed"):
    """Send the signal once so many items (steps of a training, batches) are done after a write point."""
    begun, heard = [], []

    def listen():
        if begun:
            heard.append(1)
            if len(heard) == items + 1:
                signal.raise_signal(sign)

    with at_write(pattern, lambda: begun.append(1), phase=phase), interrupt.on_heartbeat(listen):
        yield
