"""What this machine can do: device, precision, threads. "auto" becomes a fixed value in the resolved recipe."""

import contextlib
import ctypes
import logging
import math
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from packaging.version import Version

from masksmith.core.errors import InputError
from masksmith.core.processor import processor_name
from masksmith.training.cgroups import cpu_quota
from masksmith.training.config import TrainingConfig, unshared_batches

_BF16_FLAGS = ("amx_bf16", "avx512_bf16")
_LIGHTNING = ("lightning-fabric", "lightning", "pytorch-lightning")
_LIGHTNING_FROM = "2.6.6"


def settle_device(device: str) -> str:
    """Return "cuda", "mps" or "cpu" for "auto", or check the asked one.

    Raises:
        InputError: The device is not there.
    """
    present = ["cpu"]
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    elif torch.backends.mps.is_available():
        present.insert(0, "mps")
    if device == "auto":
        return present[0]
    if device not in present:
        raise InputError(f"training.device: {device!r} is not there; this machine has {', '.join(present)}")
    return device


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def settle_precision(precision: str, device: str) -> str:
    """Return a fixed precision for "auto".

    bfloat16 on processors with instructions for it (1.9 to 3.9 times float32 in training) and on GPUs that have it;
    without them bfloat16 is slower than float32. float16 with gradient scaling on older GPUs.
    """
    if precision == "16-mixed" and device == "cpu":
        raise InputError(
            "training.precision: '16-mixed' needs a GPU; on a CPU choose 'bf16-mixed', '32-true' or 'auto'"
        )
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if device == "cpu" and _processor_flags() & set(_BF16_FLAGS):
        return "bf16-mixed"
    return "32-true"


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process can keep busy: those it may run on, or its quota of their time, rounded up.

    ``docker --cpus=2`` limits the time, not the cores: of 64 all are seen, and 64 threads would wait for each other.

    Args:
        root: Where proc and sys lie.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = cpu_quota(root)
    return seen if quota is None else max(1, min(seen, math.ceil(quota)))


def describe_machine() -> str:
    """Return processor, cores, memory and graphics cards in a line; no name of the machine."""
    cores, seen = usable_cores(), os.cpu_count() or 1
    of = f" of {seen}" if cores != seen else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cards = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    return ", ".join([processor_name(), f"{cores}{of} cores", f"{memory:.0f} GiB", *cards])


def settle_threads(threads: int | str) -> int:
    """Return the number of threads for "auto": the cores this process may use."""
    return threads if isinstance(threads, int) else usable_cores()


def settle_devices(devices: int, device: str) -> int:
    """Return the number of devices that train together, checked.

    Args:
        devices: As asked for.
        device: Their kind, settled. On a CPU each is a process with a share of the threads.

    Raises:
        InputError: There are fewer.
    """
    there = {"cuda": torch.cuda.device_count(), "cpu": os.cpu_count() or 1}.get(device, 1)
    if devices > max(1, there):
        kind = "core" if device == "cpu" else "GPU"
        has, expected = (f"{there} {kind}s", f"1 to {there}") if there > 1 else (f"one {kind}", "1")
        raise InputError(f"training.devices: {devices}, and this machine has {has}; expected {expected}")
    return devices


def settle_machine(config: TrainingConfig) -> TrainingConfig:
    """Return the configuration with device, precision and threads as fixed values.

    Raises:
        InputError: The device is not there, or so many devices, or they cannot share the batches.
    """
    device = settle_device(config.device)
    settle_devices(config.devices, device)
    if (problem := unshared_batches(config)) is not None:
        raise InputError(f"training.{problem}")
    return config.model_copy(
        update={
            "device": device,
            "precision": settle_precision(config.precision, device),
            "threads": settle_threads(config.threads),
        }
    )


def keep_memory() -> bool:
    """Tell glibc to keep freed memory for the next step in place of giving it back to the system.

    Activations are tens of megabytes each; by default every one is mapped, zeroed page by page and unmapped in each
    step. Keeping them made training steps 1.2 to 1.7 times as fast here (benchmarks/train_step.py). The process holds
    on to its peak memory.

    Returns:
        Whether the C library took the settings; False where it is not glibc.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, -1))


def check_lightning() -> None:
    """Refuse Lightning versions whose checkpoints can run code when they are read (CVE-2026-58659).

    Raises:
        InputError: lightning-fabric, lightning or pytorch-lightning is installed below 2.6.6.
    """
    for name in _LIGHTNING:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if Version(version) < Version(_LIGHTNING_FROM):
            raise InputError(
                f"{name} {version} is installed, which can run code hidden in a checkpoint (CVE-2026-58659); "
                f"install {_LIGHTNING_FROM} or newer: pip install '{name}>={_LIGHTNING_FROM}'"
            )


def keep_random(device: str | torch.device) -> contextlib.AbstractContextManager[None]:
    """Leave torch's random numbers as they were after a block, on the CPU and on the present device of a kind.

    torch's own default wakes every GPU of the machine, in each of several processes.
    """
    cuda = torch.device(device).type == "cuda"
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else [])


class ImageInFloat32(MixedPrecision):
    """Lightning's mixed precision, but for the images: they reach the model in float32, as in prediction."""

    def convert_input(self, data: Any) -> Any:  # noqa: ANN401
        """Return the arguments of the model's forward as they are; autocast chooses operation by operation."""
        return data


def precision_of(config: TrainingConfig) -> Precision:
    """Return what Fabric is to compute in."""
    if config.precision == "32-true":
        return Precision()
    precision: Any = config.precision
    return ImageInFloat32(precision, device=config.device)


def ready_machine(config: TrainingConfig) -> None:
    """Set the number of threads and, on a CPU, how memory is kept.

    Raises:
        InputError: The device is not there, or a Lightning with a known hole is installed.
    """
    import cv2

    check_lightning()
    cv2.setNumThreads(1)  # OpenCV's own pool beside torch's would slow both
    if config.device == "cpu":
        keep_memory()
    torch.set_num_threads(settle_threads(config.threads))
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # our log names the precision
    settle_device(config.device)  # a run may have been resolved on another machine


def make_fabric(config: TrainingConfig) -> Fabric:
    """Return the Fabric of a settled configuration, for one device; sets threads and memory (see ready_machine).

    Raises:
        InputError: As ready_machine.
    """
    ready_machine(config)
    return Fabric(accelerator=config.device, devices=1, plugins=[precision_of(config)])
