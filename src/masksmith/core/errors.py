"""Errors that a user can cause, and the exit codes that go with them."""

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class InputError(ValueError):
    """Input was refused: the message says where, what came, what was expected and what to do."""


class DiskFullError(InputError):
    """There was no room to finish a file; what had been written before is whole."""


class DivergedError(RuntimeError):
    """Training left the finite numbers twice; the last good checkpoint is kept."""


class StoppedError(Exception):
    """A request to stop (Ctrl-C, SIGTERM) was noticed between two steps; what was finished is whole."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
