"""One training over several devices of this machine, each with a process of its own.

The process that trains leads: it draws what comes, decides, scores and writes, as if it were alone. The others follow:
they are told each step, make their part of its batch, and pass it through the net. torch's DistributedDataParallel
averages the gradients. No loss has to be a mean of parts: the outputs of all processes are gathered, and each computes
the loss of the whole batch, whose gradients it passes on through its own part.

Followers are commands that are started for one fold and end with it; they write nothing and hear no signal. They meet
over a file and talk over gloo; tensors of GPUs go over NCCL.
"""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from masksmith.core import interrupt
from masksmith.core.arrays import Int
from masksmith.core.errors import DivergedError, InputError, LostProcessError, StoppedError
from masksmith.training.config import TrainingConfig
from masksmith.training.machine import precision_of, ready_machine, settle_machine, settle_threads

if TYPE_CHECKING:
    from masksmith.training.epochs import Epoch
    from masksmith.training.state import Progress

_WAIT = timedelta(days=7)  # followers wait while the fold is scored; that a process died is heard at once
_NCCL_WAIT = timedelta(minutes=10)  # within a step
_END_S, _LOOK_S = 10.0, 0.05


class _Place(LightningEnvironment):
    """Which of the processes of this machine this is."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        """They are there already."""
        return True

    def local_rank(self) -> int:
        """Return the number of this process."""
        return self.rank

    def node_rank(self) -> int:
        """Return the number of this machine: there is one."""
        return 0


class _WithUnused(nn.Module):
    """A net beside a parameter that nothing uses.

    DDP is told that there are such (a head without a loss), and warns of waste at each net that has none.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.unused = net, nn.Parameter(torch.zeros((), device=next(net.parameters()).device))

    def forward(self, *inputs: Tensor) -> object:
        """Pass the inputs through the net."""
        return self.net(*inputs)


class Together(DDPStrategy):
    """Fabric's DDP, with outputs gathered.

    A net must be wrapped anew where other weights than before are trained: DDP looks at that when it wraps.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(process_group=group, find_unused_parameters=True)
        self.group = group
        """Of the device's tensors; None: gloo's, in which words are said too."""

    def setup_module(self, module: nn.Module) -> nn.parallel.DistributedDataParallel:
        """Return the net wrapped."""
        return super().setup_module(_WithUnused(module))

    def gather(self, own: Tensor, count: int) -> Tensor:
        """Return the rows of all processes in turn, the first ``count``; only this process's own have a gradient.

        The rest are the images that come again where ``count`` does not divide (see ``own_rows``).
        """
        sent = own.detach().contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.world_size)]
        dist.all_gather(parts, sent, group=self.group)
        parts[self.global_rank] = own
        return torch.cat(parts)[:count]


@dataclass(frozen=True)
class Begin:
    """Word of the leader: an epoch begins, or goes on."""

    progress: "Progress"
    epochs: "list[Epoch]"
    order: Int[np.ndarray, " drawn"]
    """Of the images. The losses that it may hang on could differ in the last bit from process to process."""


@dataclass(frozen=True)
class Next:
    """Word of the leader: a step of the epoch."""

    number: int
    """Of its batches (see StepBatches)."""
    lr_factor: float


class Restore:
    """Word of the leader: go back to the newest checkpoint, as it did; it waits until that is done."""


def tell_restored(fabric: Fabric) -> None:
    """Let the followers go back to the newest checkpoint, and wait for them."""
    tell(fabric, Restore())
    fabric.barrier()


def tell(fabric: Fabric, word: object) -> None:
    """Say to all followers what comes next; None: nothing more. A process alone talks to nobody."""
    if fabric.world_size > 1:
        dist.broadcast_object_list([word], src=0)


def told(fabric: Fabric) -> Iterator[Any]:
    """Yield what the leader says, until nothing more comes."""
    while True:
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0)
        if heard[0] is None:
            return
        yield heard[0]


def share_norms(model: nn.Module, fabric: Fabric) -> None:
    """Let batch norm see the images of all processes, as if there were one.

    Raises:
        InputError: On the CPU, for which torch has no such batch norm.
    """
    strategy = fabric.strategy
    if not isinstance(strategy, Together):
        return
    refuse_norms(model, fabric.device.type, fabric.world_size)
    if fabric.device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # torch's own drops the activations in timm's norms

        convert_sync_batchnorm(model, strategy.group)


def refuse_norms(model: nn.Module, device: str, devices: int) -> None:
    """Refuse batch norm on several devices where it cannot see the whole batch.

    Raises:
        InputError: On another device than a GPU.
    """
    norms = [name for name, one in model.named_modules() if isinstance(one, _BatchNorm)]
    if devices > 1 and device != "cuda" and norms:
        raise InputError(
            f"training.devices: {devices} on {device!r}, and the net has {len(norms)} batch norms (first "
            f"{norms[0]!r}), whose statistics only GPUs can share; expected model.norm=group and "
            "model.encoder_norm=group, or training.devices=1"
        )


def refuse_devices(config: TrainingConfig, model: nn.Module, *, custom: object = None) -> None:
    """Refuse several devices that cannot train together, before a process is started.

    Args:
        config: Settled.
        model: To be trained.
        custom: A callable of the user's for augmentation.

    Raises:
        InputError: Fewer devices than asked for, batches that they cannot share, batch norm on the CPU, or a callable.
    """
    settle_machine(config)  # a run may have been resolved on another machine
    refuse_norms(model, config.device, config.devices)
    if config.devices > 1 and custom is not None:
        raise InputError(
            f"training.devices: {config.devices} with training.augment.custom: the other processes do not have the "
            "callable that was given from Python; expected training.devices=1, or no callable"
        )


@contextlib.contextmanager
def leading(config: TrainingConfig, command: Sequence[str]) -> Iterator[Fabric]:
    """Start the followers and yield the leader's Fabric; at the end they have ended too.

    Args:
        config: Settled, with several devices.
        command: Starts a follower; a folder and the follower's number (1, 2, …) are added, see ``following``.

    Raises:
        InputError: A follower was refused its input.
        LostProcessError: A follower ended before the training did.
        StoppedError: A stop was asked for.
    """
    with tempfile.TemporaryDirectory(prefix="masksmith-") as name, contextlib.ExitStack() as ends:
        folder = Path(name)
        followers = [_start(command, folder, rank) for rank in range(1, config.devices)]
        ends.callback(_end, followers)
        ends.enter_context(_explained(followers, folder))
        _wait_for(followers, folder)
        fabric = _join(config, folder, rank=0)
        ends.callback(dist.destroy_process_group)
        try:
            yield fabric
            tell(fabric, None)
        except (StoppedError, DivergedError):  # both come between two steps
            with contextlib.suppress(RuntimeError):
                tell(fabric, None)
            raise


@contextlib.contextmanager
def following(config: TrainingConfig, folder: Path, rank: int) -> Iterator[Fabric]:
    """Join a leader that waits in ``folder``, and yield the Fabric of follower ``rank``."""
    fabric = _join(config, folder, rank=rank)
    try:
        yield fabric
    finally:
        dist.destroy_process_group()


def _ready(folder: Path, rank: int) -> Path:
    return folder / f"ready_{rank}"


def _said(folder: Path, rank: int) -> Path:
    return folder / f"follower_{rank}.txt"


def refuse_as_follower(folder: Path, rank: int, error: InputError) -> None:
    """Leave the leader word why this follower refuses its input."""
    (folder / f"refused_{rank}").write_text(str(error))


@contextlib.contextmanager
def _explained(followers: Sequence[subprocess.Popen[bytes]], folder: Path) -> Iterator[None]:
    """Raise why a follower has ended in the place of the broken connection that it leaves."""
    try:
        yield
    except (DivergedError, LostProcessError):
        raise
    except RuntimeError as error:
        failure = _failure_of(followers, folder, wait_s=_END_S / 2)
        if failure is None:
            raise
        raise failure from error


def _start(command: Sequence[str], folder: Path, rank: int) -> subprocess.Popen[bytes]:
    with _said(folder, rank).open("wb") as said:
        return subprocess.Popen(
            [*command, str(folder), str(rank)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # Ctrl-C is the leader's
        )


def _wait_for(followers: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    while not all(_ready(folder, rank).exists() for rank in range(1, len(followers) + 1)):
        if (failure := _failure_of(followers, folder)) is not None:
            raise failure
        interrupt.check_stop()
        time.sleep(_LOOK_S)


def _join(config: TrainingConfig, folder: Path, *, rank: int) -> Fabric:
    ready_machine(config)
    _ready(folder, rank).touch()
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", meeting, timeout=_WAIT, rank=rank, world_size=config.devices)
    group = dist.new_group(backend="nccl", timeout=_NCCL_WAIT) if config.device == "cuda" else None
    fabric = Fabric(
        accelerator=config.device,
        devices=config.devices,
        strategy=Together(group),
        plugins=[precision_of(config), _Place(rank)],
    )
    fabric.launch()
    torch.set_num_threads(
        max(1, settle_threads(config.threads) // config.devices)
    )  # after Fabric, which sets it too
    return fabric


def _failure_of(
    followers: Sequence[subprocess.Popen[bytes]], folder: Path, *, wait_s: float = 0.0
) -> Exception | None:
    """Return why a follower has ended; None where none has, within so many seconds."""
    until = time.monotonic() + wait_s
    while True:
        for rank, one in enumerate(followers, start=1):
            code = one.poll()
            refused = folder / f"refused_{rank}"
            if code and refused.exists():
                return InputError(refused.read_text())
            if code:
                lines = _said(folder, rank).read_text(errors="replace").strip().splitlines()
                killed = f"was killed (signal {-code}), perhaps for lack of memory"
                how = killed if code < 0 else f"ended: {lines[-1] if lines else f'exit code {code}'}"
                return LostProcessError(
                    f"training.devices: process {rank + 1} of {len(followers) + 1} {how}. What was trained is kept: "
                    "run the same command again, with training.devices=1 if it comes again"
                )
        if time.monotonic() >= until:
            return None
        time.sleep(_LOOK_S)


def _end(followers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for followers that were told that nothing more comes; end the others."""
    until = time.monotonic() + _END_S
    for one in followers:
        try:
            one.wait(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()
