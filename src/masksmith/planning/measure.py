"""How long a training step and a forward pass take on this machine: measured once, then remembered.

Nothing is guessed from the number of weights: the model is built and really steps, on random data, with all that
the trainer does in a step but the making of the batch. What was measured is remembered (``timings.py``).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masksmith.files import digest
from masksmith.losses.build import build_loss
from masksmith.models.config import ModelConfig
from masksmith.models.cpu import slice_strided_depthwise
from masksmith.models.segmentation import build_model, to_channels_last
from masksmith.planning.timings import Memory, Timing
from masksmith.prediction.combine import mask_only
from masksmith.prediction.runtime import RUNTIMES, check_runtime
from masksmith.training.averaging import MovingAverage
from masksmith.training.config import LossTerm, OptimizerConfig, TrainingConfig
from masksmith.training.machine import make_fabric, settle_machine
from masksmith.training.optim import build_optimizer

_WARM_UP = 2  # steps that claim memory and choose kernels
_AT_LEAST = 3  # timed steps, however little time there is
_FORWARD_SHARE = 0.25  # forward passes are timed for this share of the seconds given to steps
_NAMED = {
    "architecture",
    "encoder",
    "encoder_weights",
    "encoder_weights_hash",
    "encoder_depth",
    "decoder_channels",
}

Clock = Callable[[], float]


class Stepper:
    """Training steps and forward passes of one model on random data, made as the trainer and predict make them."""

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainingConfig,
        *,
        in_channels: int,
        canvas_hw: tuple[int, int],
        batch_size: int,
        loss: Sequence[LossTerm],
    ) -> None:
        """Build the model and its optimizer; sets the number of threads (see make_fabric).

        Args:
            model_config: With "auto" settled.
            config: Settled; its first stage's optimizer is used.
            in_channels: Channels of the images.
            canvas_hw: Height and width, multiples of the model's divisor.
            batch_size: Images a step.
            loss: Summands of the loss.

        Raises:
            InputError: An unknown architecture, encoder, loss or device.
        """
        self.fabric, self.config = make_fabric(config), config
        self.raw = build_model(model_config, in_channels=in_channels, seed=0)
        self.fabric.to_device(self.raw)
        if config.channels_last:
            to_channels_last(self.raw)
        if self.fabric.device.type == "cpu" and config.precision == "bf16-mixed":
            slice_strided_depthwise(self.raw)
        decay = config.ema_decay
        self.average = None if decay is None else MovingAverage(self.raw, decay=decay)
        self.loss_of = build_loss(loss, where="loss")
        optimizer = build_optimizer(self.raw, _optimizer(config), fused=config.precision != "16-mixed")
        self.model, self.optimizer = self.fabric.setup(self.raw, optimizer)
        draw = torch.Generator().manual_seed(0)
        image = torch.rand(batch_size, in_channels, *canvas_hw, generator=draw)
        mask = (torch.rand(batch_size, *canvas_hw, generator=draw) < 0.3).to(torch.uint8)
        self.image, self.mask = self.fabric.to_device(image), self.fabric.to_device(mask)

    def step(self) -> None:
        """Make one training step and wait until it is done."""
        self.model.train()
        output = self.model(self.image, *self.raw.zero_scalars(len(self.image)))
        self.fabric.backward(self.loss_of(output, self.mask))
        if self.config.clip_norm is not None:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.raw)
        self._wait()

    def forward(self) -> Tensor:
        """Return the probabilities (b, 1, h, w) on the CPU, of the average where there is one."""
        model = (self.average.model if self.average else self.raw).eval()
        with torch.inference_mode(), self.fabric.autocast():
            logits = model(self.image, *model.zero_scalars(len(self.image))).mask_logits
            return torch.sigmoid(logits.float()).cpu()

    def _wait(self) -> None:
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        elif self.fabric.device.type == "mps":
            torch.mps.synchronize()


def _optimizer(config: TrainingConfig) -> OptimizerConfig:
    first = config.stages[0].optimizer
    assert first is not None  # TrainingConfig refuses a first stage without one
    return first


def _repeat(action: Callable[[], object], seconds: float, clock: Clock) -> list[float]:
    """Repeat ``action`` until ``seconds`` have passed, at least three times; return the seconds of each."""
    times: list[float] = []
    start = before = clock()
    while len(times) < _AT_LEAST or before - start < seconds:
        action()
        now = clock()
        times.append(now - before)
        before = now
    return times


def measure(
    model_config: ModelConfig,
    training_config: TrainingConfig,
    *,
    in_channels: int,
    canvas_hw: tuple[int, int],
    batch_size: int,
    loss: Sequence[LossTerm],
    seconds: float,
    clock: Clock = time.monotonic,
) -> Timing:
    """Build the model and time its steps and forward passes on random data.

    Two steps warm up, then steps are timed until ``seconds`` have passed (at least three), then forward passes for a
    quarter of that (one warms up, at least three). The global random numbers are left as they were; the number
    of threads and the keeping of memory stay as make_fabric sets them.

    Args:
        model_config: With "auto" settled.
        training_config: Precision, layout, device, threads, clipping and the first stage's optimizer count.
        in_channels: Channels of the images.
        canvas_hw: Height and width, multiples of the model's divisor.
        batch_size: Images a step and a forward pass.
        loss: Summands of the loss.
        seconds: Time for the steps; a slow machine takes longer, for three of them.
        clock: Seconds that only grow.

    Raises:
        InputError: An unknown architecture, encoder, loss or device.
    """
    config = settle_machine(training_config)
    with torch.random.fork_rng():
        start = clock()
        stepper = Stepper(
            model_config,
            config,
            in_channels=in_channels,
            canvas_hw=canvas_hw,
            batch_size=batch_size,
            loss=loss,
        )
        built = clock()
        for _ in range(_WARM_UP):
            stepper.step()
        warm_up = clock() - built
        steps = _repeat(stepper.step, seconds, clock)
        stepper.forward()
        forwards = _repeat(stepper.forward, _FORWARD_SHARE * seconds, clock)
    step_s = statistics.median(steps)
    return Timing(
        build_s=built - start,
        first_step_s=max(0.0, warm_up - _WARM_UP * step_s),
        step_s=step_s,
        forward_s=statistics.median(forwards),
        step_spread_s=(min(steps), max(steps)),
        forward_spread_s=(min(forwards), max(forwards)),
        n=len(steps),
    )


def measure_runtime(
    model_config: ModelConfig,
    training_config: TrainingConfig,
    *,
    runtime: str,
    in_channels: int,
    canvas_hw: tuple[int, int],
    batch_size: int,
    seconds: float,
    clock: Clock = time.monotonic,
) -> Timing:
    """Time a prediction runtime: ``build_s`` is its conversion with the first batch, ``forward_s`` each further batch.

    Training has no part in it, so the seconds of a step are 0. The arguments are those of ``measure``.

    Raises:
        InputError: The runtime is unknown, or cannot work here (see check_runtime).
    """
    config = settle_machine(training_config)
    check_runtime(runtime, device=config.device, precision=config.precision, scalars=model_config.scalars)
    with torch.random.fork_rng():
        fabric = make_fabric(config)
        model = build_model(model_config, in_channels=in_channels, seed=0, load_weights=False)
        draw = np.random.default_rng(0)
        planes = draw.random((batch_size, in_channels, *canvas_hw), dtype=np.float32)
        numbers = [zeros.numpy() for zeros in model.zero_scalars(batch_size)]
        start = clock()
        forward = RUNTIMES[runtime](fabric, model.eval(), mask_only)
        with torch.inference_mode():
            forward(planes, *numbers)
            converted = clock()
            times = _repeat(lambda: forward(planes, *numbers), seconds, clock)
    spread = (min(times), max(times))
    return Timing(converted - start, 0.0, 0.0, statistics.median(times), (0.0, 0.0), spread, len(times))


def timing_key(
    model_config: ModelConfig,
    training_config: TrainingConfig,
    *,
    in_channels: int,
    canvas_hw: tuple[int, int],
    batch_size: int,
    loss: Sequence[LossTerm],
) -> str:
    """Return the readable key of a timing: all that the seconds hang on besides the machine."""
    config = settle_machine(training_config)
    decoder = "-".join(map(str, model_config.decoder_channels))
    layout = "channels-last" if config.channels_last else "channels-first"
    return (
        f"{model_config.architecture}/{model_config.encoder}, depth {model_config.encoder_depth}, decoder {decoder}, "
        f"{in_channels} channels, {batch_size}x{canvas_hw[0]}x{canvas_hw[1]}, "
        f"{'+'.join(sorted(term.name for term in loss))}, {_optimizer(config).name}, "
        f"{config.precision}, {layout}, {config.device}, {config.threads} threads"
        f"{_off_defaults(model_config, config, loss)}"
    )


def _off_defaults(model_config: ModelConfig, config: TrainingConfig, loss: Sequence[LossTerm]) -> str:
    """Return a short digest of what else the seconds hang on, "" where all of it is at its defaults."""
    changed = [
        *sorted(model_config.model_dump(exclude=_NAMED, exclude_defaults=True).items()),
        *sorted(f"{term.name} {sorted(term.params.items())}" for term in loss if term.params),
        *(["no moving average"] if config.ema_decay is None else []),
    ]
    return f", options {digest(*map(str, changed))[:8]}" if changed else ""


def timing_of(
    model_config: ModelConfig,
    training_config: TrainingConfig,
    *,
    in_channels: int,
    canvas_hw: tuple[int, int],
    batch_size: int,
    loss: Sequence[LossTerm],
    seconds: float,
    memory: Memory,
    clock: Clock = time.monotonic,
) -> tuple[Timing, bool]:
    """Return the remembered timing, or measure and remember it; and whether it was remembered.

    The arguments are those of ``measure``.

    Raises:
        InputError: As ``measure``.
    """
    options: dict[str, Any] = {
        "in_channels": in_channels,
        "canvas_hw": canvas_hw,
        "batch_size": batch_size,
        "loss": loss,
    }
    key = timing_key(model_config, training_config, **options)
    known = memory.get(key)
    if known is not None:
        return known, True
    timing = measure(model_config, training_config, **options, seconds=seconds, clock=clock)
    memory.put(key, timing)
    return timing, False
