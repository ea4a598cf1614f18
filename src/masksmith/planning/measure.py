"""How long a training step and a forward pass take on this machine: measured once, then remembered.

Nothing is guessed from the number of weights: the model is built and really steps, on random data, with all that
the trainer does in a step but the making of the batch. A measurement belongs to a machine (``machine_id``), and is
kept in ``measurements.json`` in the user's cache folder for the next command there.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masksmith.errors import InputError
from masksmith.files import digest, read_json, write_json
from masksmith.losses import build_loss
from masksmith.models import ModelConfig, build_model, slice_strided_depthwise, to_channels_last
from masksmith.prediction.combine import mask_only
from masksmith.prediction.runtime import RUNTIMES, check_runtime
from masksmith.progress import logger
from masksmith.training.averaging import MovingAverage
from masksmith.training.config import LossTerm, OptimizerConfig, TrainingConfig
from masksmith.training.machine import make_fabric, settle_machine, settle_threads
from masksmith.training.optim import build_optimizer

FORMAT_VERSION = 1
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
_FLAGS = ("amx_bf16", "avx512_bf16")  # what decides the speed of bfloat16

Clock = Callable[[], float]

# --- this machine -------------------------------------------------------------------------------------------


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


# --- measuring ----------------------------------------------------------------------------------------------


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
        self.raw.train()
        with self.fabric.autocast():
            output = self.raw(self.image, *self.raw.zero_scalars(len(self.image)))
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


def cores_share(threads: int, *, seconds: float) -> float:
    """Return the share of ``threads`` cores that this process gets while it keeps them all busy, 0 to 1.

    About 1 on a quiet machine; a neighbour that keeps one of two cores busy leaves about 0.75. Sets the number of
    threads, as make_fabric does.
    """
    torch.set_num_threads(threads)
    matrix = torch.ones(512, 512)
    matrix @ matrix  # the threads begin
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds:
        matrix @ matrix
    return (time.process_time() - used) / (time.monotonic() - began) / threads


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


# --- remembering --------------------------------------------------------------------------------------------


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
