"""The configuration of training. Imports no torch."""

from typing import Annotated, Any, Literal

from pydantic import Field

from masksmith.augment.geometry import GeometryConfig
from masksmith.augment.intensity import IntensityConfig
from masksmith.augment.mixing import MixingConfig
from masksmith.augment.sampling import AugmentConfig
from masksmith.config import Config


class LossTerm(Config):
    """One summand of a loss."""

    name: str
    """A key of LOSSES."""
    weight: float = Field(default=1.0, gt=0)
    """Factor of this summand."""
    params: dict[str, float | bool | str] = Field(default_factory=dict)
    """Keyword arguments of the loss, such as {gamma: 2.0}; those left out have its defaults."""


class OptimizerConfig(Config):
    """How weights move."""

    name: Literal["adamw", "sgd"] = "adamw"
    """A key of OPTIMIZERS."""
    lr: float = Field(default=3e-3, gt=0)
    """Peak learning rate; the schedule multiplies it."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Decoupled decay; biases and normalisation weights are spared."""
    encoder_lr_frac: float = Field(default=1.0, gt=0)
    """Learning rate of the encoder as a multiple of ``lr``."""


class ScheduleConfig(Config):
    """How the learning rate moves over the steps of its span: this stage and those after it that continue it."""

    name: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """A key of SCHEDULES."""
    warmup_frac: float = Field(default=0.15, ge=0, lt=1)
    """Share of the span with a rising rate."""
    final_frac: float = Field(default=1e-3, ge=0, le=1)
    """Learning rate at the end as a multiple of the peak."""


class Stage(Config):
    """One stage of a training."""

    epochs: int = Field(ge=1)
    """Passes over the training images."""
    loss: list[LossTerm] = Field(min_length=1)
    """Summands of the loss."""
    scale: float = Field(default=1.0, gt=0, le=4)
    """Zoom of the images in this stage; small images first is faster."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images a step in this stage; None: as for the whole training."""
    optimizer: OptimizerConfig | None = None
    """None continues the optimizer of the stage before, with its state."""
    schedule: ScheduleConfig | None = None
    """None continues the schedule of the stage before."""


class TrainingConfig(Config):
    """One training: its stages, and what they share."""

    batch_size: int = Field(default=32, ge=1)
    """Images a step."""
    crop_hw: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Train on random windows of this height and width; None trains on whole images."""
    clip_norm: float | None = Field(default=5.0, gt=0)
    """Largest norm of the gradient; None does not clip."""
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay a step of the moving average of the weights; it warms up as (1 + n) / (10 + n)."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """Precision of the forward pass; "auto" takes bfloat16 where the processor has it."""
    channels_last: bool = True
    """Memory layout with the channels innermost: faster convolutions, the same numbers."""
    device: str = "auto"
    """"cpu", "cuda", "mps", or "auto"."""
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Threads of the CPU; "auto" takes the cores this process may use."""
    evaluate_every: int = Field(default=4, ge=1)
    """Score the fold after every so many epochs (always after the last)."""
    select: Literal["last", "best"] = "last"
    """Which average is kept: of the last epoch, or of the best scored one (its optimism is then reported)."""
    start_run: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")] | None = None
    """A run of the same project: each fold starts from the weights that this run ended the same fold with (one more
    cycle of a trained net); None starts from the model's own weights."""
    geometry: GeometryConfig = GeometryConfig()
    """Geometric augmentation, or a preset's name: none, lossless, light, heavy."""
    intensity: IntensityConfig = IntensityConfig()
    """Intensity augmentation, or a preset's name."""
    mixing: MixingConfig = MixingConfig()
    """Mixing of the images of a batch."""
    augment: AugmentConfig = AugmentConfig()
    """How strongly, on which windows, and copies."""
    stages: list[Stage] = Field(min_length=1)
    """What is done in turn."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse a first stage that continues nothing."""
        first = self.stages[0]
        if first.optimizer is None or first.schedule is None:
            raise ValueError(
                "stages[0] must have an optimizer and a schedule; only later stages can continue them"
            )
