"""What decoding libraries print is caught: libjpeg, libpng and OpenCV write to standard error by themselves.

It never reaches the screen. What libjpeg says of damage, it says nowhere else, so it is returned.
"""

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_LIBRARIES = (
    "Corrupt JPEG", "Premature end of JPEG", "Invalid SOS", "Invalid JPEG", "Invalid component", "Unsupported marker",
    "Unsupported JPEG", "Bogus ", "Inconsistent progression", "Unknown Adobe", "Warning: unknown JFIF", "Not a JPEG",
    "Huffman table 0x", "Quantization table 0x", "Empty JPEG", "Application transferred", "libpng ", "TIFF", "[ WARN",
    "[ERROR", "[ INFO", "imread_(", "GIF", "WebP", ">",
)  # fmt: skip
"""How their lines begin."""
_LOCK = threading.Lock()
_STDERR = 2


def listen(work: Callable[[], Result]) -> tuple[Result, list[str]]:
    """Return what the work returns, and the lines that libraries printed meanwhile; other lines are passed on."""
    with _LOCK:
        sys.stderr.flush()
        caught, kept = _file(os.getpid()), os.dup(_STDERR)
        os.dup2(caught, _STDERR)
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
def _file(_process: int) -> int:
    """Return a file without a name, one for each process: to make one takes longer than to decode a small image."""
    number, name = tempfile.mkstemp()
    Path(name).unlink()
    return number


def _taken(file: int) -> list[str]:
    """Return the lines in the file, and empty it."""
    size = os.lseek(file, 0, os.SEEK_CUR)
    if size == 0:
        return []
    lines = os.pread(file, size, 0).decode("utf-8", "replace").splitlines()
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    return lines


def _is_muttered(line: str) -> bool:
    plain = line.strip()
    return not plain or plain.startswith(_LIBRARIES)
