"""What was measured on this machine, remembered for the next command on it.

A measurement belongs to a machine (``machine_id``), and is kept in ``measurements.json`` in the user's cache folder.
"""

import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from masksmith.errors import InputError
from masksmith.files import digest, read_json, write_json
from masksmith.progress import logger
from masksmith.training.machine import settle_threads

FORMAT_VERSION = 1
_FLAGS = ("amx_bf16", "avx512_bf16")  # what decides the speed of bfloat16


@dataclass(frozen=True)
class Timing:
    """Seconds on this machine for one model at one canvas and batch."""

    build_s: float
    """Building the model and loading its weights."""
    first_step_s: float
    """What the first two steps took beyond two ordinary ones."""
    step_s: float
    """One training step, median: forward, loss, backward, clipping, optimizer, moving average."""
    forward_s: float
    """One forward pass of prediction with its sigmoid, median; same canvas and batch."""
    step_spread_s: tuple[float, float]
    """Shortest and longest timed step."""
    forward_spread_s: tuple[float, float]
    """Shortest and longest timed forward pass."""
    n: int
    """Number of timed steps."""


def _processor(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the model of the processor and its flags that matter, from the text of /proc/cpuinfo."""
    fields = dict.fromkeys(("model name", "flags"), "")
    for line in reversed(text.splitlines()):
        name, _, value = line.partition(":")
        if name.strip() in fields:
            fields[name.strip()] = value.strip()
    present = fields["flags"].split()
    return fields["model name"], tuple(flag for flag in _FLAGS if flag in present)


def machine_facts() -> dict[str, str]:
    """Return what the speed of this machine hangs on: processor, its flags, usable cores, GPU, torch, platform."""
    try:
        name, flags = _processor(Path("/proc/cpuinfo").read_text())
    except OSError:
        name, flags = "", ()
    return {
        "processor": name or platform.processor() or platform.machine(),
        "flags": " ".join(flags),
        "cores": str(settle_threads("auto")),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def machine_id() -> str:
    """Return a hash (16 hex digits) of machine_facts: measurements of another machine are not this one's."""
    return digest(*(f"{name}={value}" for name, value in machine_facts().items()))[:16]


def measurements_json() -> Path:
    """Return ``measurements.json`` in MASKSMITH_CACHE, or masksmith/ in XDG_CACHE_HOME, or ~/.cache/masksmith."""
    own = os.environ.get("MASKSMITH_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "masksmith"
    return folder / "measurements.json"


class Memory:
    """The measurements of this machine, in a file that all projects of a user share.

    Entries do not grow old: a change of processor, cores, GPU or torch is another machine, and a wrong one only makes
    a plan worse. A file that cannot be read or written costs a warning, and the measuring again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = measurements_json() if path is None else path

    def get(self, key: str) -> Timing | None:
        """Return what is remembered for ``key`` on this machine, or None."""
        fields = self._machines().get(machine_id(), {"timings": {}})["timings"].get(key)
        return None if fields is None else _timing(fields)

    def put(self, key: str, timing: Timing) -> None:
        """Remember a timing of this machine.

        The file is read again before it is written whole, so what another process has added meanwhile stays; of two
        that write in the same instant one entry is lost, and measured again.
        """
        machines = self._machines()
        own = machines.setdefault(machine_id(), {"facts": machine_facts(), "timings": {}})
        own["timings"][key] = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(timing)}
        self._write(machines)

    def forget(self) -> None:
        """Forget all timings of this machine: it has become faster than they say."""
        machines = self._machines()
        if machines.pop(machine_id(), None) is not None:
            self._write(machines)

    def _write(self, machines: dict[str, Any]) -> None:
        try:
            write_json(self.path, {"format": FORMAT_VERSION, "machines": machines})
        except (OSError, InputError) as error:
            logger.warning("%s: cannot be written (%s); timings will be measured again", self.path, error)

    def _machines(self) -> dict[str, Any]:
        """Return machine -> its facts and timings; a file that is not of this form is set aside."""
        machines: dict[str, Any] = self._read().get("machines", {})
        try:
            for one in machines.values():
                for fields in one["timings"].values():
                    _timing(fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._set_aside(f"it has another form ({type(error).__name__}: {error})")
            return {}
        return machines

    def _read(self) -> dict[str, Any]:
        try:
            if not self.path.exists():
                return {}
            value: Any = read_json(self.path)
        except OSError as error:
            logger.warning("%s: cannot be read (%s); measuring again", self.path, error)
            return {}
        except ValueError as error:  # not JSON, or not text
            self._set_aside(str(error))
            return {}
        version = value.get("format") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            self._set_aside(f"it is of format {version}, this masksmith reads {FORMAT_VERSION}")
            return {}
        return dict(value)

    def _set_aside(self, why: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.aside")
        logger.warning("%s: %s; set aside as %s, measuring again", self.path, why, aside.name)
        try:
            self.path.replace(aside)
        except OSError as error:
            logger.warning("%s: cannot be set aside (%s)", self.path, error)


def _timing(fields: dict[str, Any]) -> Timing:
    """Return the Timing of a JSON table; TypeError or ValueError where it is none."""
    spreads = {name: tuple(map(float, fields[name])) for name in ("step_spread_s", "forward_spread_s")}
    if any(len(spread) != 2 for spread in spreads.values()):
        raise ValueError(f"spreads {spreads}; expected two numbers each")
    numbers = {name: float(fields[name]) for name in ("build_s", "first_step_s", "step_s", "forward_s")}
    values: dict[str, Any] = {**numbers, **spreads, "n": int(fields["n"])}
    return Timing(**values)
