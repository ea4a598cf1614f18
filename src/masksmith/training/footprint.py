"""What a model needs in memory for a step or a forward pass, measured on two small batches.

A small batch is really run, and every storage that is allocated or freed in it is counted; parameters and what else
was there before are not. The same operations run for any batch, so the bytes alive after the i-th allocation are
a line in the number of pixels: two runs give all the lines, and their highest point at the asked size is the peak.
An encoder whose attention looks at the whole image grows faster than a line, and is estimated too low.

What is not seen from Python (scratch memory of the convolutions, gaps between the blocks of the heap) is put
on top by factors that benchmarks/memory.py found; it prints the estimate beside the truth.
"""

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from masksmith.losses.build import build_loss
from masksmith.models.cpu import quicken_depthwise
from masksmith.models.segmentation import SegmentationModel, to_channels_last
from masksmith.preprocess import round_up
from masksmith.training.config import TrainingConfig
from masksmith.training.machine import keep_random, settle_machine
from masksmith.training.optim import num_moments

# of the bytes seen alive: scratch memory of the convolutions (more in half precision), gaps in the heap
_HIDDEN = {"training": {"32-true": 1.3, "mixed": 1.45}, "prediction": {"32-true": 1.9, "mixed": 1.9}}
_GROUND = 32 << 20  # kernels compiled at the first step, buffers of the threads
_COPIES = 3  # of weights, average and moments while a checkpoint is written
_STILL_HELD = 0.8  # of a step's memory: its end leaves gaps in the heap, too small for a checkpoint's copies
_SIDE_LEAST = 16  # pixels: the smallest maps of a net with small strides would be nothing
_BATCHES = (2, 4)  # batch norm needs more than one value
_PROBS = 16  # bytes a pixel: probabilities of two symmetries, their stack and their mean

Line = Float64[np.ndarray, " i"]


class _Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations allocate, and notes the sum after each allocation."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self._known = list(known)  # held, so that their addresses stay theirs
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self._now = 0
        self.history: list[int] = []

    def add(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor``, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.history.append(self._now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._now -= self._sizes.pop(key)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and count what it returns."""
        del types
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


@dataclass(frozen=True)
class Footprint:
    """The memory of a step or a forward pass, for any canvas and batch."""

    state: int
    """Bytes of weights, average and moments (training), or of the weights (prediction)."""
    checkpoint: int
    """Bytes of the copies that are made to write a checkpoint; 0 for prediction."""
    hidden: float
    """Factor for what is not seen alive."""
    fixed: Line
    """Bytes alive after each allocation, at no pixels."""
    slope: Line
    """Bytes alive after each allocation, for each pixel of the batch."""

    def bytes_at(self, canvas_hw: tuple[int, int], batch_size: int) -> int:
        """Return the bytes needed at a canvas (height, width) and a batch size."""
        pixels = canvas_hw[0] * canvas_hw[1] * batch_size
        working = _GROUND + self.hidden * float((self.fixed + self.slope * pixels).max())
        if self.checkpoint:
            working = max(working, _STILL_HELD * working + self.checkpoint)
        return self.state + round(working)

    def largest_batch(self, canvas_hw: tuple[int, int], available: int) -> int:
        """Return the largest batch size that needs no more than ``available`` bytes; 0 where not one image fits."""
        if self.bytes_at(canvas_hw, 1) > available:
            return 0
        fits, fails = 1, 2
        while self.bytes_at(canvas_hw, fails) <= available:
            fits, fails = fails, 2 * fails
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if self.bytes_at(canvas_hw, middle) <= available:
                fits = middle
            else:
                fails = middle
        return fits


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _twin(model: SegmentationModel, config: TrainingConfig) -> SegmentationModel:
    """Return a copy laid out as the trainer does it; the model itself stays as it is."""
    twin = copy.deepcopy(model).to(config.device)
    if config.channels_last:
        to_channels_last(twin)
    if config.device == "cpu" and config.precision == "bf16-mixed":
        quicken_depthwise(twin)
    return twin


def _autocast(config: TrainingConfig) -> torch.autocast:
    dtype = torch.float16 if config.precision == "16-mixed" else torch.bfloat16
    return torch.autocast(config.device, dtype, enabled=config.precision != "32-true")


def _hidden(config: TrainingConfig, work: str) -> float:
    return _HIDDEN[work]["32-true" if config.precision == "32-true" else "mixed"]


def _lines(
    twin: SegmentationModel,
    config: TrainingConfig,
    run: Callable[[Tensor, Tensor], object],
    batches: tuple[int, int] = _BATCHES,
) -> tuple[Line, Line]:
    """Return the bytes alive after each allocation of ``run(image, mask)`` as lines: at no pixels, and a pixel."""
    known = [*twin.parameters(), *twin.buffers()]
    channels, side = twin.in_channels, round_up(max(_SIDE_LEAST, 2 * twin.divisor), twin.divisor)
    histories: list[Line] = []
    for batch_size in batches:
        twin.zero_grad()
        with _Alive(known) as alive:
            image = torch.rand(batch_size, channels, side, side, device=config.device)
            mask = torch.zeros(
                twin.target_shape(batch_size, (side, side)), dtype=torch.uint8, device=config.device
            )
            run(image, mask)
        histories.append(np.array(alive.history, np.float64))
    few, many = (batch_size * side * side for batch_size in batches)
    if len(histories[0]) != len(histories[1]):  # what is run hangs on the batch: keep the peaks alone
        histories = [history.max(keepdims=True) for history in histories]
    slope = (histories[1] - histories[0]) / (many - few)
    return histories[0] - slope * few, slope


def training_footprint(
    model: SegmentationModel, config: TrainingConfig, *, batches: tuple[int, int] = _BATCHES
) -> Footprint:
    """Return the memory of a training step; the terms of all stages' losses are counted together.

    A forward and a backward pass at two batches of small images are run on a copy of the model; the
    model, its statistics and the global random numbers are left as they were. On a GPU the copies of a checkpoint
    lie in the memory of the computer, and are not counted.

    Args:
        model: The model to be trained.
        config: "auto" is settled for this machine.
        batches: Images of the two batches.

    Raises:
        InputError: An unknown loss, or a device that is not there.
    """
    config = settle_machine(config)
    terms = {str(term): term for stage in config.stages for term in stage.loss}
    loss_of = build_loss(
        [terms[name] for name in sorted(terms)],
        where="training.stages",
        classes=model.classes,
        exclusive=model.exclusive,
    )
    with keep_random(config.device):
        twin = _twin(model, config).train()

        def step(image: Tensor, mask: Tensor) -> None:
            with _autocast(config):
                output = twin(image, *twin.zero_scalars(len(image)))
            loss_of(output, mask).backward()

        fixed, slope = _lines(twin, config, step, batches)
    weights = _size([*twin.parameters(), *twin.buffers()])
    trained = _size(
        [weight for weight in twin.parameters() if weight.grad is not None]
    )  # a cut encoder keeps others
    moments = max(num_moments(stage.optimizer) for stage in config.stages if stage.optimizer)
    copies_of_all = 1 + (config.ema_decay is not None) + (config.swa is not None)
    gathers = any(config.batches_of(stage)[1] > 1 for stage in config.stages)
    state = copies_of_all * weights + (moments + gathers) * trained  # gathered gradients outlive their batch
    copies = _COPIES * state if config.device == "cpu" else 0
    return Footprint(state, copies, _hidden(config, "training"), fixed, slope)


def prediction_footprint(model: SegmentationModel, config: TrainingConfig) -> Footprint:
    """Return the memory of a forward pass with its sigmoid and its arrays; the model is left as it was.

    Args:
        model: The model that predicts.
        config: Of its training, for device and precision; "auto" is settled for this machine.

    Raises:
        InputError: A device that is not there.
    """
    config = settle_machine(config)
    with keep_random(config.device):
        twin = _twin(model, config).eval().requires_grad_(False)

        def forward(image: Tensor, mask: Tensor) -> Tensor:
            del mask
            with torch.inference_mode(), _autocast(config):
                return torch.sigmoid(twin(image, *twin.zero_scalars(len(image))).mask_logits.float())

        fixed, slope = _lines(twin, config, forward)
    arrays = 4 * model.in_channels + _PROBS  # integers and their padded copy, two bytes each at most
    weights = _size([*twin.parameters(), *twin.buffers()])
    return Footprint(weights, 0, _hidden(config, "prediction"), fixed, slope + arrays)
