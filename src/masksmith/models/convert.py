"""A foreign torch checkpoint as safetensors: weights only, no code of the file is ever run.

``torch.load(weights_only=True)`` builds tensors and plain containers and refuses every other name that a pickle
calls for; this cannot be switched off. Compressed or unfolding files are refused before memory is asked for.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # nothing else of pickle
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from masksmith.core.config import suggest
from masksmith.core.errors import InputError
from masksmith.core.files import write_bytes
from masksmith.models.config import CLASSIFIERS, is_safetensors

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "ema", "module", "encoder")
"""Where trainers put the weights inside a checkpoint, in the order they are looked for."""
PREFIXES = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.")
"""What DataParallel, torch.compile and outer models put before every name."""
_UNFOLDED = 8  # times the size of the file; weights that share memory are written once for each name
_ROOM = 2**20  # bytes that a small file may unfold to anyway
_SHOWN = 6  # names in a message
_DEPTH = 4  # wrappers within wrappers; a pickle can hold a table that holds itself
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}


@dataclass(frozen=True)
class Converted:
    """What ``convert`` did."""

    source: str
    target: str
    tensors: int
    num_bytes: int
    wrapper: str
    """Dotted path of the weights inside the checkpoint; empty where they lay on top."""
    prefix: str
    """What was taken off the names."""
    left_out: tuple[str, ...]
    """Entries that were not written: optimizers, epochs, other weights."""

    def __str__(self) -> str:
        shown = ", ".join(map(_printable, self.left_out[:_SHOWN]))
        shown += ", …" if len(self.left_out) > _SHOWN else ""
        left = f"{len(self.left_out)} entries ({shown})" if self.left_out else "nothing"
        return "\n".join(
            [
                f"{self.target}: {self.tensors} tensors, {self.num_bytes:,} bytes",
                f"taken from: {self.wrapper or 'the top of the file'}",
                f"prefix taken off: {_printable(self.prefix) or 'none'}",
                f"left out: {left}",
            ]
        )


def _printable(text: str) -> str:
    """Return a name from the file without control characters, which a terminal would obey."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def convert_checkpoint(
    source: Path, target: Path, *, key: str | None = None, only: str = "", force: bool = False
) -> Converted:
    """Read the weights of a torch checkpoint and write them as safetensors.

    Args:
        source: A file that ``torch.save`` wrote (.pth, .pt, .bin, .ckpt).
        target: The ``.safetensors`` file to write, whole or not at all.
        key: Dotted path of the weights inside the checkpoint ("state_dict_ema"); None looks in WRAPPERS.
        only: Write only the weights whose names begin so, without it ("encoder." of a whole U-Net).
        force: Replace a target that is there.

    Raises:
        InputError: The file is missing, damaged, no checkpoint, already safe, needs code to be read, holds no
            weights or none that safetensors can hold; or the target is there, or is the source.
    """
    _check_paths(source, target, force=force)
    _check_archive(source)
    content = _load(source)
    wrapper, state = _find_state(content, key, where=str(source))
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    left_out = [*_others(content, wrapper), *(str(name) for name in state if name not in tensors)]
    _check_tensors(tensors, source)
    left_out += [name for name in tensors if not name.startswith(only)]
    chosen = {name.removeprefix(only): value for name, value in tensors.items() if name.startswith(only)}
    if not chosen:
        raise InputError(
            f"{source}: no weight begins with {only!r}; the names begin with {', '.join(_heads_of(tensors))}"
        )
    prefix = common_prefix(list(chosen))
    own = {name.removeprefix(prefix): value.detach().contiguous().clone() for name, value in chosen.items()}
    raw = save(own, metadata={"format": "pt"})
    write_bytes(target, raw)
    return Converted(str(source), str(target), len(own), len(raw), wrapper, only + prefix, tuple(left_out))


def read_checkpoint(source: Path) -> dict[str, Tensor]:
    """Return the weights of a torch checkpoint, in its order; no code of the file is run.

    Raises:
        InputError: As convert_checkpoint, for what is inside the file.
    """
    _check_archive(source)
    _, state = _find_state(_load(source), None, where=str(source))
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    _check_tensors(tensors, source)
    return tensors


def common_prefix(names: list[str]) -> str:
    """Return what PREFIXES, one after the other, can be taken off every name.

    A classifier's names need not carry it (they are not loaded into an encoder); two names never become one.
    """
    taken = ""
    while True:
        body = [name for name in names if not name.removeprefix(taken).startswith(CLASSIFIERS)]
        fitting = [one for one in PREFIXES if body and all(name.startswith(taken + one) for name in body)]
        if not fitting or len({name.removeprefix(taken + fitting[0]) for name in names}) < len(names):
            return taken
        taken += fitting[0]


def _check_paths(source: Path, target: Path, *, force: bool) -> None:
    if not source.is_file():
        raise InputError(f"{source}: no such file; expected a checkpoint that torch.save wrote")
    if not source.stat().st_size:
        raise InputError(f"{source}: the file is empty; copy it again")
    if source.suffix == ".safetensors" or is_safetensors(source):
        raise InputError(f"{source}: already safe: this is a safetensors file, use it as it is")
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: expected a name that ends in .safetensors")
    if target.is_dir() or (target.exists() and target.samefile(source)):
        raise InputError(f"{target}: a folder, or the checkpoint itself; choose another name")
    if os.path.lexists(target) and not force:
        raise InputError(f"{target}: there already; choose another name, or replace it with --force")


def _is_archive(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_archive(source: Path) -> None:
    """Refuse a TorchScript archive, and compressed members: torch.save compresses nothing, and a bomb does."""
    if not _is_archive(source):
        return
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
    except Exception as error:  # whatever a damaged directory leads to
        raise InputError(f"{source}: not a whole checkpoint ({error}); copy it again") from error
    if any(info.filename.endswith("/constants.pkl") for info in members):
        raise InputError(
            f"{source}: a TorchScript archive, which holds code; save the model's state_dict() instead"
        )
    packed = [info for info in members if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise InputError(
            f"{source}: its member {packed[0].filename!r} is compressed, which torch.save never does; unpack the "
            "archive if it contains a checkpoint"
        )


def _load(source: Path) -> object:
    """Return what torch.load makes of the file with weights_only=True; zip files are mapped, not read."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # on pickle protocols and TorchScript: the error below says it
            return torch.load(source, map_location="cpu", weights_only=True, mmap=_is_archive(source))
    except UnpicklingError as error:
        raise InputError(f"{source}: {_reason(str(error))}") from None
    except Exception as error:  # whatever damaged bytes lead the reader to
        raise InputError(
            f"{source}: not a whole checkpoint that torch.save wrote ({type(error).__name__}); copy it again"
        ) from error


def _reason(message: str) -> str:
    """Say in one sentence why the safe reader refused a file; its own message tells to switch the safety off."""
    unsafe = re.search(r"GLOBAL (\S+)", message)
    if unsafe:
        return (
            f"reading it would run code: it calls for {unsafe[1]!r}, which is neither a tensor nor a plain value; "
            "it was not read. Ask its author for a state_dict() alone"
        )
    operand = re.search(r"Unsupported operand (\d+)", message)
    if operand:
        return (
            f"not a checkpoint that can be read safely (pickle code {operand[1]}); expected what torch.save writes "
            "by default"
        )
    first = next(
        (line for line in reversed(message.splitlines()) if line and "https://" not in line), message
    )
    return f"not a checkpoint that can be read safely ({first.strip()[:200]})"


def _find_state(content: object, key: str | None, *, where: str) -> tuple[str, Mapping[Any, Any]]:
    """Return (dotted path, mapping) of the weights inside a checkpoint."""
    if key is not None:
        return key, _at(content, key, where=where)
    path: list[str] = []
    while isinstance(content, Mapping) and len(path) < _DEPTH:
        inner = next((name for name in WRAPPERS if _holds_tensors(content.get(name))), None)
        if inner is None:
            break
        path.append(inner)
        content = content[inner]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        names = ", ".join(map(repr, list(content)[:_SHOWN])) if isinstance(content, Mapping) else ""
        raise InputError(
            f"{where}: no weights found; expected a table of tensors, plain or under {', '.join(WRAPPERS)}; "
            f"it holds {names or type(content).__name__}; name another entry with --key"
        )
    return ".".join(path), content


def _holds_tensors(value: object, depth: int = _DEPTH) -> bool:
    """Whether a mapping holds a tensor, itself or under one of WRAPPERS."""
    if not isinstance(value, Mapping) or not depth:
        return False
    return any(isinstance(part, Tensor) for part in value.values()) or any(
        _holds_tensors(value.get(name), depth - 1) for name in WRAPPERS
    )


def _at(content: object, key: str, *, where: str) -> Mapping[Any, Any]:
    for part in key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            known = content if isinstance(content, Mapping) else ()
            raise InputError(f"{where}: no entry {part!r} (--key {key}); {suggest(part, list(known)[:50])}")
        content = content[part]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{where}: --key {key} is {type(content).__name__}; expected a table of tensors")
    return content


def _others(content: Any, wrapper: str) -> list[str]:  # noqa: ANN401
    """Return the dotted names of the entries besides the weights."""
    names: list[str] = []
    path: list[str] = []
    for part in wrapper.split(".") if wrapper else []:
        names += [".".join([*path, str(name)]) for name in content if name != part]
        path.append(part)
        content = content[part]
    return names


def _check_tensors(tensors: Mapping[Any, Tensor], source: Path) -> None:
    """Refuse what safetensors cannot hold, and views that would unfold to far more than the file has."""
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise InputError(f"{source}: the weight {name!r} has no text for a name; expected a state_dict()")
        if tensor.layout != torch.strided or tensor.dtype not in _DTYPES or tensor.is_meta:
            kind = "without data" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
            raise InputError(f"{source}: the weight {name!r} is {kind}; expected dense numbers")
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > max(_ROOM, _UNFOLDED * source.stat().st_size):
        raise InputError(
            f"{source}: its tensors unfold to {total:,} bytes from a file of {source.stat().st_size:,}; "
            "do not trust this file"
        )


def _heads_of(names: Mapping[str, Any]) -> list[str]:
    return sorted({name.split(".")[0] + "." for name in names})[:_SHOWN]
