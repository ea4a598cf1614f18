"""Stop between two items of a long loop when Ctrl-C or SIGTERM asked for it.

The signal handlers only set a flag; ``check_stop`` looks at it. A second signal ends the process at once: every file is
written atomically, so nothing is lost.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from masksmith.core.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, StoppedError

_EXIT_CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
_NAMES = {EXIT_INTERRUPTED: "Ctrl-C", EXIT_TERMINATED: "SIGTERM"}


class _Process:
    """State of the process, which a signal handler cannot be passed."""

    exit_code: int | None = None  # of the signal that came
    finishing = False
    listeners: tuple[Callable[[], None], ...] = ()


def heartbeat() -> None:
    """Call the listeners."""
    for listener in _Process.listeners:
        listener()


def check_stop() -> None:
    """Call the listeners, then stop if that was asked for.

    Raises:
        StoppedError: A stop was asked for, outside ``finishing``.
    """
    heartbeat()
    if _Process.exit_code is not None and not _Process.finishing:
        raise StoppedError(f"stopped by {_NAMES[_Process.exit_code]}", exit_code=_Process.exit_code)


def _on_signal(number: int, _frame: object) -> None:
    code = _EXIT_CODES[signal.Signals(number)]
    if _Process.exit_code is not None:
        os._exit(code)
    _Process.exit_code = code


@contextlib.contextmanager
def graceful() -> Iterator[None]:
    """Let SIGINT and SIGTERM ask for a stop during the block; the previous handlers are restored after it.

    Nested in another such block, or outside the main thread, where Python allows no handlers, it changes nothing.
    """
    nested = signal.getsignal(signal.SIGINT) is _on_signal
    if nested or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in _EXIT_CODES}
    try:
        yield
    finally:
        _Process.exit_code = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Let the block run to its end although a stop was asked for; a second signal still ends the process."""
    outer, _Process.finishing = _Process.finishing, True
    try:
        yield
    finally:
        _Process.finishing = outer


@contextlib.contextmanager
def on_heartbeat(listener: Callable[[], None]) -> Iterator[None]:
    """Call ``listener`` at every heartbeat during the block."""
    outer, _Process.listeners = _Process.listeners, (*_Process.listeners, listener)
    try:
        yield
    finally:
        _Process.listeners = outer
