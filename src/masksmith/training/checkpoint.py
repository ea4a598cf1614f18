"""Checkpoints: safetensors for the numbers, JSON for the rest; nothing is pickled.

A checkpoint is two files, ``NAME.safetensors`` and ``NAME.json``. The JSON is written last and holds the checksum
of the other, so it is the JSON's presence that makes a checkpoint.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from masksmith.core.errors import InputError
from masksmith.core.files import digest, read_json, remove, write_bytes, write_json
from masksmith.core.progress import logger

FORMAT_VERSION = 1
_NAME = re.compile(r"epoch_(\d{4,})(?:_step_(\d{6,}))?")  # finished epochs, and steps into the next


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU as safetensors takes them.

    It refuses channels-last strides; the layout is restored when a tensor is copied back.
    """
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write ``path`` (.safetensors) and, last, the JSON beside it."""
    raw = save(contiguous(tensors))
    write_bytes(path, raw)
    write_json(path.with_suffix(".json"), {"format": FORMAT_VERSION, "checksum": digest(raw), **facts})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Raises:
        InputError: A file is missing, the checksum is wrong, or a newer masksmith wrote it.
    """
    side = path.with_suffix(".json")
    if not path.exists() or not side.exists():
        raise InputError(f"checkpoint {path}: the file or its {side.name} is missing; train this fold again")
    facts = read_json(side)
    if facts.get("format", 0) > FORMAT_VERSION:
        raise InputError(
            f"checkpoint {path}: format {facts['format']}, masksmith reads up to {FORMAT_VERSION}; update it"
        )
    raw = path.read_bytes()
    if digest(raw) != facts.get("checksum"):
        raise InputError(f"checkpoint {path}: the checksum is wrong, the file was damaged or changed")
    return load(raw), facts


def copy_weights(model: nn.Module, tensors: dict[str, Tensor], *, where: str) -> None:
    """Copy tensors into a model's weights and buffers in place, keeping their memory layout.

    Raises:
        InputError: Names or shapes do not fit; the message counts them.
    """
    own = model.state_dict()
    wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    spare = sorted(set(tensors) - set(own))
    if wrong or spare:
        raise InputError(
            f"{where}: {len(wrong)} weights do not fit (first {wrong[:1]}) and {len(spare)} are unknown "
            f"(first {spare[:1]}); it belongs to another recipe, see recipe.yaml beside it"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def pack_state(
    model: nn.Module, averages: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return everything a training needs to go on exactly, as flat names.

    Args:
        model: What is trained.
        averages: Averages of its weights by name: "average" (the moving one), "swa".
        optimizer: With its moments.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for part, average in averages.items():
        tensors |= {f"{part}/{name}": value for name, value in average.state_dict().items()}
    names: dict[Tensor, str] = {weight: name for name, weight in model.named_parameters()}
    for weight, fields in optimizer.state.items():
        tensors |= {
            f"optimizer/{names[weight]}/{field}": value
            for field, value in fields.items()
            if value is not None
        }
    return tensors


def averaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the moving average of the weights out of what pack_state returned, or the weights where there is none."""
    return part_of(tensors, "average/") or part_of(tensors, "model/")


def unpack_state(
    tensors: dict[str, Tensor],
    model: nn.Module,
    averages: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    where: str,
) -> None:
    """Restore what pack_state returned, bit for bit."""
    copy_weights(model, part_of(tensors, "model/"), where=where)
    for part, average in averages.items():
        copy_weights(average, part_of(tensors, f"{part}/"), where=where)
    weights = dict(model.named_parameters())
    optimizer.state.clear()
    for name, value in part_of(tensors, "optimizer/").items():
        weight_name, field = name.rsplit("/", 1)
        weight = weights[weight_name]
        # the fused kernels walk raw memory, so the moments must have the strides of their weight
        restored = (
            torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value.to(weight.device)
        )
        optimizer.state[weight][field] = restored


def _position(stem: str) -> tuple[int, int] | None:
    """Return (epochs, steps) of a checkpoint of that name; the numbers may have any length. None: not ours."""
    found = _NAME.fullmatch(stem)
    return None if found is None else (int(found[1]), int(found[2] or 0))


class Checkpoints:
    """The rolling checkpoints of one fold: the newest two, so a damaged one has a predecessor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _all(self) -> list[Path]:
        """Return the checkpoints, the oldest first: by number, as 10000 comes before 9999 in the order of text."""
        found = {path: _position(path.stem) for path in self.folder.glob("epoch_*.json")}
        ours = {path.with_suffix(".safetensors"): at for path, at in found.items() if at is not None}
        return sorted(ours, key=lambda path: ours[path])

    def save(self, epoch: int, tensors: dict[str, Tensor], facts: dict[str, Any], *, step: int = 0) -> None:
        """Write the checkpoint of ``epoch`` finished epochs and ``step`` steps; drop all but the newest two."""
        name = f"epoch_{epoch:04d}" + (f"_step_{step:06d}" if step else "")
        save_tensors(self.folder / f"{name}.safetensors", tensors, {"epoch": epoch, **facts})
        self._drop_all_but(self._all()[-2:])

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest whole checkpoint, or None; damaged ones are named in the log and passed over."""
        for path in reversed(self._all()):
            try:
                return load_tensors(path)
            except InputError as error:
                logger.warning("%s; using the one before", error)
        return None

    def clear(self) -> None:
        """Remove the rolling checkpoints (the training is finished)."""
        self._drop_all_but([])

    def _drop_all_but(self, kept: list[Path]) -> None:
        stems = {path.stem for path in kept}
        for path in sorted(self.folder.glob("epoch_*")):  # .json first; one of a pair may be alone
            ours = _position(path.stem) is not None and path.suffix in (".json", ".safetensors")
            if ours and path.stem not in stems:
                remove(path)


def facts_of(path: Path) -> dict[str, Any]:
    """Return the JSON side of a checkpoint without reading its tensors."""
    facts: dict[str, Any] = read_json(path.with_suffix(".json"))
    return facts


@functools.lru_cache(maxsize=64)
def _digest_of(path: Path, _size: int, _mtime_ns: int) -> str:
    return digest(path.read_bytes())


def damage_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, None if they are whole; tensors are not built.

    A file is read once a process, unless its size or its time changes.
    """
    if not path.exists() or not path.with_suffix(".json").exists():
        return f"checkpoint {path}: the file or its {path.stem}.json is missing"
    try:
        checksum = facts_of(path).get("checksum")
    except InputError as error:
        return f"checkpoint {path}: {error}"
    stat = path.stat()
    if _digest_of(path, stat.st_size, stat.st_mtime_ns) != checksum:
        return f"checkpoint {path}: the checksum is wrong, the file was damaged or changed"
    return None


def is_finished(path: Path, key: str) -> bool:
    """Whether ``path`` is a whole checkpoint that was made from what ``key`` stands for."""
    return path.exists() and damage_of(path) is None and facts_of(path).get("key") == key != ""
