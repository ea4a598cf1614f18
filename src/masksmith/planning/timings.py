"""How long a training step and a forward pass take on this machine, now.

Nothing is guessed from the number of weights: the model is built and really steps, on random data, with all that the
training does in a step but the making of the batch. ``Timings`` remembers what was measured while the process runs; a
later process measures again, as the machine may be busier then.
"""

import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from masksmith.core import interrupt
from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.losses.build import build_loss
from masksmith.models.config import ModelConfig
from masksmith.models.cpu import quicken_depthwise
from masksmith.models.segmentation import build_model, to_channels_last
from masksmith.prediction.combine import mask_only
from masksmith.prediction.runtimes import RUNTIMES, check_runtime
from masksmith.training.averaging import MovingAverage
from masksmith.training.config import LossTerm, OptimizerConfig, TrainingConfig
from masksmith.training.machine import keep_random, make_fabric, settle_machine, settle_threads
from masksmith.training.optim import build_optimizer

_AT_LEAST = 3  # timed steps after the first, which claims memory and chooses kernels
_FORWARD_SHARE = 0.25  # forward passes are timed for this share of the seconds given to steps
_MEASURE_S = 1.0  # seconds of steps timed for one size

Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """Seconds on this machine for one model at one canvas and batch."""

    build_s: float
    """Building the model and loading its weights; of a prediction runtime, its conversion."""
    first_step_s: float
    """What the first step took beyond an ordinary one."""
    step_s: float
    """One training step, median: forward, loss, backward, clipping, optimizer, moving average."""
    forward_s: float
    """One forward pass of prediction with its sigmoid, median; same canvas and batch."""


class Timings:
    """Measured times of models, each measured once a process."""

    def __init__(
        self,
        in_channels: int,
        *,
        classes: int = 1,
        exclusive: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        self.in_channels, self.classes, self.exclusive, self.clock = in_channels, classes, exclusive, clock
        self.spent_s = 0.0
        """Seconds spent on measuring so far."""
        self._known: dict[Hashable, Timing | None] = {}

    def of_model(
        self, model: ModelConfig, training: TrainingConfig, hw: tuple[int, int], batch_size: int
    ) -> Timing:
        """Return the seconds of a model's steps and forward passes at (height, width)."""

        def measured() -> Timing:
            timing = measure(
                model, training, in_channels=self.in_channels, classes=self.classes,
                exclusive=self.exclusive, canvas_hw=hw, batch_size=batch_size,
                seconds=_MEASURE_S, clock=self.clock,
            )  # fmt: skip
            logger.info(
                "measured: %s on %s, batch %d at %dx%d: %.0f images/s trained, %.0f predicted",
                model.architecture, model.encoder, batch_size, *hw,
                batch_size / timing.step_s, batch_size / timing.forward_s,
            )  # fmt: skip
            return timing

        timing = self._once(_key(model, training, hw, batch_size), measured)
        assert timing is not None
        return timing

    def of_runtime(
        self, runtime: str, model: ModelConfig, training: TrainingConfig, hw: tuple[int, int], batch_size: int
    ) -> Timing | None:
        """Return the seconds of a prediction runtime; None where it cannot work here."""

        def measured() -> Timing | None:
            try:
                return measure_runtime(
                    model, training, runtime=runtime, in_channels=self.in_channels,
                    classes=self.classes, exclusive=self.exclusive, canvas_hw=hw, batch_size=batch_size,
                    seconds=_FORWARD_SHARE * _MEASURE_S, clock=self.clock,
                )  # fmt: skip
            except InputError as error:
                logger.info("%s", error)
                return None

        return self._once((runtime, *_key(model, training, hw, batch_size)), measured)

    def _once(self, key: Hashable, measured: Callable[[], Timing | None]) -> Timing | None:
        if key not in self._known:
            interrupt.check_stop()
            began = self.clock()
            self._known[key] = measured()
            self.spent_s += self.clock() - began
        return self._known[key]


def _key(
    model: ModelConfig, training: TrainingConfig, hw: tuple[int, int], batch_size: int
) -> tuple[Hashable, ...]:
    """Return what the seconds depend on; the length of the stages is none of it."""
    shared = (
        training.precision,
        training.channels_last,
        training.device,
        training.devices,
        training.threads,
        training.ema_decay,
    )
    return str(model), *shared, _optimizer(training).name, str(training.stages[-1].loss), hw, batch_size


class Stepper:
    """Training steps and forward passes of one model on random data, made as in training and prediction."""

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainingConfig,
        *,
        in_channels: int,
        canvas_hw: tuple[int, int],
        batch_size: int,
        loss: Sequence[LossTerm],
        classes: int = 1,
        exclusive: bool = False,
    ) -> None:
        """Build the model and its optimizer; sets the number of threads (see make_fabric).

        Args:
            model_config: With "auto" settled.
            config: Settled; its first stage's optimizer is used.
            in_channels: Channels of the images.
            canvas_hw: Height and width, multiples of the model's divisor.
            batch_size: Images a step.
            loss: Summands of the loss.
            classes: Number of masks (see build_model).
            exclusive: Whether the classes exclude each other.

        Raises:
            InputError: An unknown architecture, encoder, loss or device.
        """
        self.fabric, self.config = make_fabric(config), config
        self.raw = build_model(
            model_config, in_channels=in_channels, seed=0, classes=classes, exclusive=exclusive
        )
        self.fabric.to_device(self.raw)
        if config.channels_last:
            to_channels_last(self.raw)
        if self.fabric.device.type == "cpu" and config.precision == "bf16-mixed":
            quicken_depthwise(self.raw)
        decay = config.ema_decay
        self.average = None if decay is None else MovingAverage(self.raw, decay=decay)
        self.loss_of = build_loss(loss, where="loss", classes=classes, exclusive=exclusive)
        optimizer = build_optimizer(self.raw, _optimizer(config), fused=config.precision != "16-mixed")
        self.model, self.optimizer = self.fabric.setup(self.raw, optimizer)
        draw = torch.Generator().manual_seed(0)
        image = torch.rand(batch_size, in_channels, *canvas_hw, generator=draw)
        shape = self.raw.target_shape(batch_size, canvas_hw)
        mask = (torch.rand(shape, generator=draw) < 0.3).to(torch.uint8)
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


def time_repeated(action: Callable[[], object], seconds: float, clock: Clock) -> tuple[float, float]:
    """Return the seconds of the first call, and the median of those after it.

    It is called until ``seconds`` have passed, at least three times after the first. Where the first call alone takes
    longer than that, it is taken for the others too: a short budget is not spent on measuring.
    """
    start = before = clock()
    times: list[float] = []
    while len(times) < 1 + _AT_LEAST or before - start < seconds:
        action()
        now = clock()
        times.append(now - before)
        before = now
        if times[0] > seconds:
            return times[0], times[0]
    return times[0], statistics.median(times[1:])


def measure(
    model_config: ModelConfig,
    training_config: TrainingConfig,
    *,
    in_channels: int,
    canvas_hw: tuple[int, int],
    batch_size: int,
    seconds: float,
    classes: int = 1,
    exclusive: bool = False,
    clock: Clock = time.monotonic,
) -> Timing:
    """Build the model and time its steps and forward passes on random data.

    Steps are timed until ``seconds`` have passed, then forward passes for a quarter of that (see time_repeated). Where
    several devices train together, one makes its part of the step, with its share of the threads. The
    global random numbers are left as they were; the number of threads and the keeping of memory stay as make_fabric
    sets them.

    Args:
        model_config: With "auto" settled.
        training_config: Precision, layout, device, threads, clipping, the first stage's optimizer and the last one's
            loss count.
        in_channels: Channels of the images.
        canvas_hw: Height and width, multiples of the model's divisor.
        batch_size: Images a step and a forward pass.
        seconds: Time for the steps; a slow machine takes longer, for one of them.
        classes: Number of masks (see build_model).
        exclusive: Whether the classes exclude each other.
        clock: Seconds that only grow.

    Raises:
        InputError: An unknown architecture, encoder, loss or device.
    """
    config = settle_machine(training_config)
    if config.devices > 1:
        return _measure_shared(config, partial(
            measure, model_config, in_channels=in_channels, canvas_hw=canvas_hw, seconds=seconds, classes=classes,
            exclusive=exclusive, clock=clock,
        ), batch_size)  # fmt: skip
    with keep_random(config.device):
        start = clock()
        stepper = Stepper(
            model_config,
            config,
            in_channels=in_channels,
            canvas_hw=canvas_hw,
            batch_size=batch_size,
            loss=config.stages[-1].loss,
            classes=classes,
            exclusive=exclusive,
        )
        built = clock()
        first_s, step_s = time_repeated(stepper.step, seconds, clock)
        _, forward_s = time_repeated(stepper.forward, _FORWARD_SHARE * seconds, clock)
    return Timing(built - start, max(0.0, first_s - step_s), step_s, forward_s)


def _measure_shared(config: TrainingConfig, timed: Callable[..., Timing], batch_size: int) -> Timing:
    """Time the step of one of several devices, and a forward pass of the whole batch on one."""
    threads = max(1, settle_threads(config.threads) // config.devices)
    whole = timed(training_config=config.model_copy(update={"devices": 1}), batch_size=batch_size)
    part = config.model_copy(update={"devices": 1, "threads": threads})
    timing = timed(training_config=part, batch_size=-(-batch_size // config.devices))
    return replace(timing, forward_s=whole.forward_s)


def measure_runtime(
    model_config: ModelConfig,
    training_config: TrainingConfig,
    *,
    runtime: str,
    in_channels: int,
    canvas_hw: tuple[int, int],
    batch_size: int,
    seconds: float,
    classes: int = 1,
    exclusive: bool = False,
    clock: Clock = time.monotonic,
) -> Timing:
    """Time a prediction runtime: ``build_s`` is its conversion with the first batch, ``forward_s`` each further batch.

    Training has no part in it, so the seconds of a step are 0. The arguments are those of ``measure``.

    Raises:
        InputError: The runtime is unknown, or cannot work here (see check_runtime).
    """
    config = settle_machine(training_config)
    check_runtime(runtime, device=config.device, precision=config.precision, scalars=model_config.scalars)
    with keep_random(config.device):
        fabric = make_fabric(config)
        model = build_model(
            model_config,
            in_channels=in_channels,
            seed=0,
            classes=classes,
            exclusive=exclusive,
            load_weights=False,
        )
        draw = np.random.default_rng(0)
        planes = draw.random((batch_size, in_channels, *canvas_hw), dtype=np.float32)
        numbers = [zeros.numpy() for zeros in model.zero_scalars(batch_size)]
        start = clock()
        forward = RUNTIMES[runtime](fabric, model.eval(), mask_only)
        loaded = clock()
        with torch.inference_mode():
            first_s, forward_s = time_repeated(lambda: forward(planes, *numbers), seconds, clock)
    return Timing(loaded - start + first_s, 0.0, 0.0, forward_s)
