"""What decoding libraries print is caught: libjpeg, libpng and OpenCV write to the process's standard error by themselves.

It never reaches the screen. What libjpeg says of damage, it says nowhere else, so it is returned.
"""

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from typing import BinaryIO, TypeVar

Result = TypeVar("Result")

_LIBRARIES = ("Corrupt JPEG", "Premature end of JPEG", "Invalid SOS", "libpng ", "TIFF", "[ WARN", "[ERROR", "[ INFO")
_JPEG_NAMES = ("JPEG", "marker", "Huffman", "DCT", "restart")
_LOCK = threading.Lock()
_STDERR = 2


def listen(work: Callable[[], Result]) -> tuple[Result, list[str]]:
    """Return what the work returns, and the lines that libraries printed meanwhile; other lines are passed on."""
    with _LOCK:
        sys.stderr.flush()
        caught, kept = _file(os.getpid()), os.dup(_STDERR)
        os.dup2(caught.fileno(), _STDERR)
        try:
            result = work()
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            lines = _taken(caught)
            others = [line for line in lines if not _is_muttered(line)]
            if others:  # of another thread
                os.write(_STDERR, ("\n".join(others) + "\n").encode())
    return result, [line.strip() for line in lines if _is_muttered(line)]


@cache
def _file(_process: int) -> BinaryIO:
    """Return a file without a name, one for each process; to make one takes longer than to decode a small image."""
    return tempfile.TemporaryFile(buffering=0)  # noqa: SIM115: it is open as long as the process lives


def _taken(file: BinaryIO) -> list[str]:
    """Return the lines in the file, and empty it."""
    if os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0:
        return []
    file.seek(0)
    lines = file.read().decode("utf-8", "replace").splitlines()
    file.truncate(0)
    file.seek(0)
    return lines


def _is_muttered(line: str) -> bool:
    return line.lstrip().startswith(_LIBRARIES) or any(name in line for name in _JPEG_NAMES)
