"""Who is at work in a project folder, found without taking its lock, and how much memory that process has."""

import contextlib
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from masksmith.core.locks import LOCK

_LOCK_TEXT = re.compile(r"pid (\d+) on (\S+)")
_RECENT_S = 120.0  # files of a process elsewhere that changed so lately mean that it is at work


@dataclass(frozen=True)
class Process:
    """Who holds, or held last, the project's lock."""

    pid: int
    host: str
    alive: bool | None
    """None: it is of another machine, and nothing is known of it."""
    works: bool
    """Whether it holds the lock; where the system does not tell, whether it is alive."""
    memory_gib: float | None = None
    peak_gib: float | None = None
    """Resident memory now and at its most, in GiB; None where the system does not tell."""


def process_of(root: Path) -> Process | None:
    """Return whom the lock file names; None where there is none."""
    try:
        found = _LOCK_TEXT.search((root / LOCK).read_text(errors="replace"))
    except OSError:
        return None
    if found is None:
        return None
    pid, host = int(found[1]), found[2]
    if host != socket.gethostname():
        recent = time.time() - _last_change(root) < _RECENT_S
        return Process(pid, host, None, recent)
    try:
        with contextlib.suppress(PermissionError):  # it is another user's, and alive
            os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # or a number that no process can have
        return Process(pid, host, False, False)
    memory = _memory_of(pid)
    return Process(pid, host, True, _holds(pid, root / LOCK), *memory)


def _holds(pid: int, lock: Path) -> bool:
    """Whether a process has the lock file open; a number that was given to another process does not count."""
    place = Path(f"/proc/{pid}/fd")
    try:
        wanted = lock.stat()
        files = [place / name for name in os.listdir(place)]  # noqa: PTH208
    except OSError:
        return not Path("/proc/self/fd").is_dir() or not os.access(place, os.R_OK)
    for file in files:
        with contextlib.suppress(OSError):
            if os.path.samestat(file.stat(), wanted):
                return True
    return False


def _memory_of(pid: int) -> tuple[float | None, float | None]:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None, None
    found = [re.search(rf"{name}:\s+(\d+) kB", text) for name in ("VmRSS", "VmHWM")]
    now, peak = (None if one is None else int(one[1]) / 2**20 for one in found)
    return now, peak


def mtime(path: Path) -> float:
    """Return when a file changed last, in seconds since 1970; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _last_change(root: Path) -> float:
    files = (root / LOCK, root / "budget.json", *root.glob("runs/*/metrics*.jsonl"), root / "cache")
    return max(map(mtime, files))
