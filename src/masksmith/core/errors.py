"""Errors that a user can cause, and the exit codes that go with them."""

EXIT_REFUSED = 2
EXIT_PARTLY = 3
"""Done, but for some inputs that were refused."""
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class InputError(ValueError):
    """Input was refused: the message says where, what was given, what was expected and what to do."""


class DiskFullError(InputError):
    """No room to finish a file; files written before are complete."""


class DivergedError(RuntimeError):
    """The loss became infinite or NaN twice; the last good checkpoint is kept."""


class LostProcessError(RuntimeError):
    """Another process of a training has ended before it; the last checkpoint is kept."""


class StoppedError(Exception):
    """A request to stop (Ctrl-C, SIGTERM), raised between two steps; finished files are complete."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
