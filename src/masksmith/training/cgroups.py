"""What the control groups of Linux leave to this process: a container's share of memory and of processor time.

Sources:
    Version 2 (cpu.max, memory.max): https://docs.kernel.org/admin-guide/cgroup-v2.html. Version 1 (cpu.cfs_quota_us):
    https://docs.kernel.org/scheduler/sched-bwc.html.
"""

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def read_text(path: Path) -> str | None:
    """Return the text of a file of the system; None where it is not there or may not be read."""
    try:
        return path.read_text()
    except OSError:
        return None


def parse_cgroup(text: str, controller: str) -> list[tuple[int, str, str]]:
    """Return (version, mount below sys/fs/cgroup, path) of the groups that may limit ``controller``.

    Args:
        text: Of /proc/self/cgroup.
        controller: "memory" or "cpu".
    """
    found = []
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            found += [(2, "", path), (2, "unified", path)]
        elif controller in controllers.split(","):
            found += [(1, mount, path) for mount in dict.fromkeys((controller, controllers))]
    return found


def group_folders(controller: str, root: Path = _ROOT) -> Iterator[tuple[int, Path]]:
    """Yield (version, folder) of this process's control groups and of those above them; each of them may set a limit.

    Inside a container the path of the group may not exist below the mount; the mount's own files then count.

    Args:
        controller: "memory" or "cpu".
        root: Where proc and sys lie.
    """
    for version, mount, path in parse_cgroup(read_text(root / "proc/self/cgroup") or "", controller):
        group = Path(path.strip("/"))
        for folder in (group, *group.parents):
            yield version, root / "sys/fs/cgroup" / mount / folder


def _quota(version: int, folder: Path) -> float | None:
    """Return how many cores' time a group may take; None: no limit."""
    if version == 2:
        both = (read_text(folder / "cpu.max") or "max").split()
    else:
        both = [(read_text(folder / f"cpu.cfs_{name}_us") or "-1").strip() for name in ("quota", "period")]
    quota, period = both if len(both) == 2 else ("max", "")
    return None if quota in ("max", "-1") else int(quota) / int(period)


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return how many cores' time this process may take (``docker --cpus=0.5``: half of one's); None: no limit."""
    quotas = (_quota(version, folder) for version, folder in group_folders("cpu", root))
    return min((quota for quota in quotas if quota is not None), default=None)
