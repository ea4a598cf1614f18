"""How much memory there is, how much a plan needs, and a plan that will not fit refused before it is killed."""

import ctypes
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from masksmith.core.errors import InputError
from masksmith.models.segmentation import SegmentationModel
from masksmith.training.cgroups import group_folders, read_text
from masksmith.training.config import TrainingConfig
from masksmith.training.footprint import Footprint, prediction_footprint, training_footprint
from masksmith.training.machine import settle_device

_GIB = 2**30
_FEWEST = 2  # images a training step needs: batch norm of one is no training
_LIGHTER = "take a lighter model (model.encoder, model.decoder_channels), smaller images or a larger machine"

# --- what there is ------------------------------------------------------------------------------------------


def parse_meminfo(text: str) -> int | None:
    """Return MemAvailable in bytes from the text of /proc/meminfo; None where it is not said."""
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def parse_stat(text: str, name: str) -> int:
    """Return the field ``name`` of a memory.stat; 0 where it is not said."""
    fields = (line.split() for line in text.splitlines())
    return next((int(field[1]) for field in fields if len(field) == 2 and field[0] == name), 0)


def parse_limit(text: str) -> int | None:
    """Return a limit in bytes; None for "max"."""
    return None if text.strip() == "max" else int(text)


def _room(folder: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    """Return what a group may still take: its limit less its usage, cached files not counted; None: no limit."""
    texts = [read_text(folder / name) for name in (limit, usage, "memory.stat")]
    if texts[0] is None or texts[1] is None:
        return None
    most = parse_limit(texts[0])
    return None if most is None else most - int(texts[1]) + parse_stat(texts[2] or "", reclaimable)


_ROOM = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""Version of the control groups -> files of limit and usage, and the field of memory.stat that can be had back."""


def cgroup_bytes(root: Path = Path("/")) -> int | None:
    """Return the least that this process's control groups and those above them leave; None without a limit."""
    rooms = (_room(folder, *_ROOM[version]) for version, folder in group_folders("memory", root))
    return min((room for room in rooms if room is not None), default=None)


def address_bytes(root: Path = Path("/")) -> int | None:
    """Return what the limit of the address space (ulimit -v) leaves; None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    statm = read_text(root / "proc/self/statm")
    if limit == resource.RLIM_INFINITY:
        return None
    return limit - (int(statm.split()[0]) * os.sysconf("SC_PAGE_SIZE") if statm else 0)


_MALLINFO = ["arena", "ordblks", "smblks", "hblks", "hblkhd"]
_MALLINFO += ["usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class _MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc's malloc.h."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO]


def kept_bytes() -> int:
    """Return the bytes that this process freed and glibc keeps for it (see keep_memory); 0 where it is not glibc."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    statm = read_text(Path("/proc/self/statm"))
    if mallinfo is None or statm is None:
        return 0
    mallinfo.restype = _MallInfo
    resident = int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return min(int(mallinfo().fordblks), resident)


def machine_bytes(root: Path = Path("/")) -> int:
    """Return what the machine says is available; where it says nothing, its free pages."""
    stated = parse_meminfo(read_text(root / "proc/meminfo") or "")
    if stated is not None:
        return stated
    pages = (
        "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    )  # macOS has the latter
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def available_bytes(device: str) -> int:
    """Return the bytes that this process can still take on a device ("cpu", "cuda", "mps" or "auto").

    On a GPU what is free there and what torch holds unused. Otherwise the least of the machine's available
    memory, of what the control groups leave (a container's limit) and of what the limit of the address space leaves;
    on top comes what this process has freed and keeps.

    Raises:
        InputError: The device is not there.
    """
    if settle_device(device) == "cuda":
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    rooms = (machine_bytes(), cgroup_bytes(), address_bytes())
    return max(0, min(room for room in rooms if room is not None)) + kept_bytes()


# --- what is needed -----------------------------------------------------------------------------------------


def largest_batch(
    model: SegmentationModel,
    config: TrainingConfig,
    *,
    canvas_hw: tuple[int, int],
    available: int | None = None,
) -> int:
    """Return the largest batch size that can be trained at a canvas; 0 where not one image fits.

    Args:
        model: The model to be trained.
        config: "auto" is settled for this machine.
        canvas_hw: Height and width, multiples of the model's divisor.
        available: Bytes to stay within; None asks the machine.
    """
    room = _of_each_process(available_bytes(config.device) if available is None else available, config)
    return config.devices * training_footprint(model, config).largest_batch(canvas_hw, room)


def _of_each_process(room: int, config: TrainingConfig) -> int:
    """Return what each of the processes that train together may take: a GPU is its own, a CPU's memory is shared."""
    return room // config.devices if settle_device(config.device) == "cpu" else room


@dataclass(frozen=True)
class Estimate:
    """What a plan needs, in bytes; ``print`` shows it."""

    training: tuple[int, ...]
    """For each stage."""
    prediction: int
    """For a forward pass of a batch of the largest image."""
    available: int
    """What the machine had when it was asked."""

    @property
    def needed(self) -> int:
        """The most that is needed at any one time."""
        return max(*self.training, self.prediction)

    def __str__(self) -> str:
        return (
            f"memory: about {_gib(max(self.training))} GiB for training and {_gib(self.prediction)} GiB for "
            f"prediction; {_gib(self.available)} GiB available"
        )


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f}" if count >= _GIB else f"{count / _GIB:.2f}"


def refuse_too_large(
    model: SegmentationModel,
    config: TrainingConfig,
    canvases: Sequence[tuple[int, int]],
    *,
    prediction_hw: tuple[int, int],
    prediction_batch_size: int,
    available: int | None = None,
) -> Estimate:
    """Return what a plan needs, or refuse one that will not fit.

    Args:
        model: The model to be trained.
        config: "auto" is settled for this machine.
        canvases: Height and width of each stage (see canvas_hw in data).
        prediction_hw: Height and width of the largest image, padded to the model's divisor.
        prediction_batch_size: Images a forward pass.
        available: Bytes that may be taken; None asks the machine.

    Raises:
        InputError: It needs more than there is; the message says which batch size fits, or which crop.
    """
    room = available_bytes(config.device) if available is None else available
    own_room, devices = _of_each_process(room, config), config.devices
    training, prediction = training_footprint(model, config), prediction_footprint(model, config)
    sizes = [stage.batch_size or config.batch_size for stage in config.stages]
    needs = tuple(training.bytes_at(hw, size // devices) for hw, size in zip(canvases, sizes, strict=True))
    estimate = Estimate(needs, prediction.bytes_at(prediction_hw, prediction_batch_size), room)
    worst = needs.index(max(needs))
    if needs[worst] > own_room:
        own = config.stages[worst].batch_size is not None
        key = f"training.stages.{worst}.batch_size" if own else "training.batch_size"
        fits = training.largest_batch(canvases[worst], own_room)
        advice = (
            f"set {key}={fits * devices}"
            if fits >= _FEWEST
            else _crop(training, config, canvases, model.divisor, own_room, key)
        )
        what = "training" if devices == 1 else f"training in each of {devices} processes"
        raise InputError(
            _too_large(key, what, needs[worst], sizes[worst] // devices, canvases[worst], own_room, advice)
        )
    if estimate.prediction > room:
        key, fits = "prediction.batch_size", prediction.largest_batch(prediction_hw, room)
        advice = f"set {key}={fits}" if fits else f"not even one image fits; {_LIGHTER}"
        needed = estimate.prediction
        raise InputError(
            _too_large(key, "prediction", needed, prediction_batch_size, prediction_hw, room, advice)
        )
    return estimate


def _too_large(
    key: str, what: str, needed: int, size: int, hw: tuple[int, int], room: int, advice: str
) -> str:
    return (
        f"{key}: {what} needs about {_gib(needed)} GiB at batch {size} and {hw[0]}x{hw[1]}, and {_gib(room)} GiB are "
        f"available on this machine; {advice}"
    )


def _crop(
    training: Footprint,
    config: TrainingConfig,
    canvases: Sequence[tuple[int, int]],
    divisor: int,
    room: int,
    key: str,
) -> str:
    """Name the largest square crop at which every stage fits with the fewest images, or say that none does."""
    for side in range(max(max(hw) for hw in canvases), divisor, -divisor):
        if training.bytes_at((side, side), _FEWEST) <= room:
            crop = int(side / max(stage.scale for stage in config.stages))  # padded it is no larger than side
            fewest = _FEWEST * config.devices
            return f"not even {fewest} images fit; set training.crop_hw=[{crop}, {crop}] and {key}={fewest}"
    return f"not even a crop fits; {_LIGHTER}"
