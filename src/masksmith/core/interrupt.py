"""What long loops call between two items: the time spent is written down, a request to stop is answered.

Signal handlers only set a flag (they may run in the middle of anything); ``beat`` looks at it. A second
Ctrl-C ends the process at once: every file is written whole or not at all, so nothing is lost by it.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from masksmith.core.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, StoppedError

_EXIT_CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
_NAMES = {EXIT_INTERRUPTED: "Ctrl-C", EXIT_TERMINATED: "SIGTERM"}


class _State:
    """The flag that the handlers set, and who wants to hear every beat."""

    asked: int | None = None  # exit code of the signal that came
    finishing = False
    listening = False
    listeners: tuple[Callable[[], None], ...] = ()


def tick() -> None:
    """Call the listeners."""
    for listener in _State.listeners:
        listener()


def beat() -> None:
    """Call the listeners, then answer a request to stop.

    Raises:
        StoppedError: A stop was asked for, and what runs is not the finishing itself.
    """
    tick()
    if _State.asked is not None and not _State.finishing:
        raise StoppedError(f"stopped by {_NAMES[_State.asked]}", exit_code=_State.asked)


def _on_signal(number: int, _frame: object) -> None:
    code = _EXIT_CODES[signal.Signals(number)]
    if _State.asked is not None:
        os._exit(code)
    _State.asked = code


@contextlib.contextmanager
def graceful() -> Iterator[None]:
    """Answer SIGINT and SIGTERM between two items while the block runs; the handlers are put back after it.

    Inside another such block, or outside the main thread, where Python allows no handlers, nothing changes.
    """
    if _State.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in _EXIT_CODES}
    _State.listening = True
    try:
        yield
    finally:
        _State.listening, _State.asked = False, None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Let the block run to its end although a stop was asked for (a second Ctrl-C still ends the process)."""
    outer, _State.finishing = _State.finishing, True
    try:
        yield
    finally:
        _State.finishing = outer


@contextlib.contextmanager
def listen(listener: Callable[[], None]) -> Iterator[None]:
    """Call ``listener`` at every beat while the block runs."""
    outer, _State.listeners = _State.listeners, (*_State.listeners, listener)
    try:
        yield
    finally:
        _State.listeners = outer
