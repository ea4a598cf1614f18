"""Silence for decoding libraries: what they mutter never reaches the screen, damage is told by our own errors."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silence(*loggers: str, everything: bool = False) -> Iterator[None]:
    """Keep Python's warnings, and what these loggers say, off the screen.

    Args:
        loggers: Names of the libraries' loggers.
        everything: Also what libraries in C write to the standard error output past Python. It is the whole process's:
            no other thread should write to it meanwhile.
    """
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.disabled for logger in found]
    copy = _close_stderr() if everything else None
    try:
        for logger in found:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(found, before, strict=True):
            logger.disabled = disabled
        if copy is not None:
            os.dup2(copy, 2)
            os.close(copy)


def _close_stderr() -> int | None:
    """Send the standard error output to nowhere and return a copy of it, None where there is none."""
    try:
        sys.stderr.flush()
        copy = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except (AttributeError, OSError, ValueError):
        return None
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return copy
