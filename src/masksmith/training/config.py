"""The configuration of training. Imports no torch."""

from collections.abc import Sequence, Set
from typing import Annotated, Any, Literal

from pydantic import Field

from masksmith.augment.geometry import GeometryConfig
from masksmith.augment.intensity import IntensityConfig
from masksmith.augment.mixing import MixingConfig
from masksmith.augment.sampling import AugmentConfig
from masksmith.core.config import Config
from masksmith.folds.table import NUM_CLASSES


class LossTerm(Config):
    """One summand of a loss."""

    name: str
    """A key of LOSSES."""
    weight: float = Field(default=1.0, gt=0)
    """Factor of this summand."""
    params: dict[str, float | bool | str] = Field(default_factory=dict)
    """Keyword arguments of the loss, such as {gamma: 2.0}; those left out have its defaults."""


def _refuse_unused(config: Config, used: Set[str], who: str) -> None:
    """Refuse a field that is changed although nothing looks at it."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name not in used and value != field.get_default(call_default_factory=True):
            default = field.get_default(call_default_factory=True)
            raise ValueError(
                f"{name}: {value!r}, but {who} has no use for it; expected {default!r}, its default"
            )


class OptimizerConfig(Config):
    """How weights move."""

    name: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"
    """A key of OPTIMIZERS."""
    lr: float = Field(default=3e-3, gt=0)
    """Peak learning rate; the schedule multiplies it."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Decoupled (adamw) or added to the gradient (the others); biases and normalisation weights are spared."""
    momentum: float | None = Field(default=None, ge=0, lt=1)
    """Of sgd and rmsprop; None: 0.9 for sgd, 0 for rmsprop."""
    nesterov: bool = True
    """Whether the momentum of sgd looks ahead (Nesterov's form)."""
    encoder_lr_frac: float = Field(default=1.0, gt=0)
    """Learning rate of the encoder as a multiple of ``lr``."""
    encoder_layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the encoder's rate from each block to the one before it: early layers move less."""

    @property
    def settled_momentum(self) -> float:
        """The momentum in force; 0 for the Adams, whose first moment is not called so."""
        if self.momentum is None:
            return 0.9 if self.name == "sgd" else 0.0
        return self.momentum

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse fields that the named optimizer has no use for."""
        shared = {"name", "lr", "weight_decay", "encoder_lr_frac", "encoder_layer_decay"}
        own = {"sgd": {"momentum", "nesterov"}, "rmsprop": {"momentum"}}.get(self.name, set())
        _refuse_unused(self, shared | own, f"the optimizer {self.name!r}")
        if self.name == "sgd" and self.nesterov and not self.settled_momentum:
            raise ValueError(
                "nesterov: True with momentum 0; expected a momentum above 0, or nesterov: false"
            )


Watch = Literal["score", "loss", "val_loss"]
"""What is watched: the fold's score by the recipe's metric (higher is better), the mean training loss, or the mean loss
of the stage on the held-out images, without augmentation."""
CHOSEN_ON_HELD_OUT = ("best", "best_val_loss")
"""Choices of ``select`` that the held-out images make."""

VAL_LOSS = "val_loss"
"""The loss of the held-out images among ``metrics``."""
_KEPT = ("last", "raw", "best_score", "best_loss", "best_val_loss", "swa")

_SCHEDULE_USES: dict[str, Set[str]] = {
    "constant": set(),
    "cosine": {"final_frac"},
    "one_cycle": {"final_frac"},
    "cosine_restarts": {"final_frac", "cycles"},
    "cyclic": {"final_frac", "cycles"},
    "polynomial": {"final_frac", "power"},
    "step": {"milestones", "gamma"},
    "plateau": {"final_frac", "factor", "watch", "patience", "min_delta"},
}


class ScheduleConfig(Config):
    """How the learning rate moves over the steps of its span: this stage and those after it that continue it.

    A field that the named schedule has no use for must keep its default.
    """

    name: Literal[
        "one_cycle", "cosine", "cosine_restarts", "cyclic", "polynomial", "step", "plateau", "constant"
    ] = "one_cycle"
    """A key of SCHEDULES."""
    warmup_frac: float = Field(default=0.15, ge=0, lt=1)
    """Share of the span with a rising rate."""
    final_frac: float = Field(default=1e-3, ge=0, le=1)
    """Learning rate at the end as a multiple of the peak; the lower bound of cyclic and plateau."""
    cycles: int = Field(default=1, ge=1)
    """Equal cycles in the span (cosine_restarts, which keeps the weights of each cycle's end; cyclic)."""
    power: float = Field(default=0.9, gt=0)
    """Exponent of polynomial."""
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default=[0.5, 0.75])
    """Where the rate of step falls, as shares of the span."""
    gamma: float = Field(default=0.1, gt=0, lt=1)
    """Factor of step at each milestone."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    """Factor of plateau at each stall."""
    watch: Watch = "score"
    """What plateau watches."""
    patience: int = Field(default=5, ge=1)
    """Evaluations (score, val_loss) or epochs (loss) in a row without a gain, after which plateau multiplies the
    rate."""
    min_delta: float = Field(default=0.0, ge=0)
    """A gain that is not larger than this is none (plateau)."""

    @property
    def cuts(self) -> int:
        """Cycles at whose ends snapshots are taken: of cosine_restarts only, whose rate is low there."""
        return self.cycles if self.name == "cosine_restarts" else 0

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse fields that the named schedule has no use for, and a warm-up longer than the first cycle."""
        _refuse_unused(
            self, {"name", "warmup_frac"} | _SCHEDULE_USES[self.name], f"the schedule {self.name!r}"
        )
        if self.cuts and self.warmup_frac * self.cycles >= 1:
            raise ValueError(
                f"warmup_frac: {self.warmup_frac} of the span is longer than the first of {self.cycles} cycles; "
                f"expected less than {1 / self.cycles:.3g}"
            )
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones: {self.milestones}; expected rising numbers")


class StallConfig(Config):
    """When a watched value counts as stalled."""

    watch: Watch = "score"
    """What is watched; it is counted within a stage, because losses of two stages cannot be compared."""
    patience: int = Field(default=5, ge=1)
    """Evaluations (score, val_loss) or epochs (loss) in a row without a gain."""
    min_delta: float = Field(default=0.0, ge=0)
    """A gain that is not larger than this is none."""


_SAMPLER_USES: dict[str, Set[str]] = {
    "plain": set(),
    "class_aware": set(),
    "weighted": {"class_weights"},
    "non_empty": {"non_empty_frac"},
    "curriculum": {"by", "start_frac"},
}


class SamplerConfig(Config):
    """Which images an epoch is made of. Every epoch has as many as there are training images."""

    name: Literal["plain", "class_aware", "weighted", "non_empty", "curriculum"] = "plain"
    """plain: each image once. class_aware: a coverage class uniformly, then an image of it. weighted: images by the
    weight of their coverage class. non_empty: a given share with foreground. curriculum: the easiest images first."""
    class_weights: list[Annotated[float, Field(ge=0)]] | None = None
    """Weight of an image of each coverage class 0 (empty) … 10 (weighted)."""
    non_empty_frac: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (
        0.8,
        0.4,
    )
    """Share of images with foreground in the first and the last epoch of the stage, in a line between (non_empty)."""
    by: Literal["coverage", "loss"] = "coverage"
    """What is easy (curriculum): much foreground, empty images last; or a low loss when the image was last seen."""
    start_frac: float = Field(default=0.3, gt=0, le=1)
    """Share of the images, the easiest, in the first epoch; it grows in a line to 1 in the last one (curriculum)."""
    repeat_worst_of: int | None = Field(default=None, ge=2)
    """After every so many steps the one with the largest loss is made again; None: no repeats. Goes with any name."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse fields that the named sampler has no use for, and weights that are missing."""
        used = {"name", "repeat_worst_of"} | _SAMPLER_USES[self.name]
        _refuse_unused(self, used, f"the sampler {self.name!r}")
        if self.name == "weighted" and len(self.class_weights or ()) != NUM_CLASSES:
            raise ValueError(
                f"class_weights: {self.class_weights}; expected {NUM_CLASSES} numbers, for the coverage classes 0 … 10"
            )


class SwaConfig(Config):
    """Stochastic weight averaging: the equal mean of the weights at several points of the training."""

    start: Annotated[int, Field(ge=1)] | Annotated[float, Field(ge=0, lt=1)] = 0.75
    """First averaged epoch: its number (1, 2, …), or the share of all epochs before it (below 1)."""
    every: Literal["epoch", "cycle"] = "epoch"
    """Average at the end of each epoch, or of each cycle of a cosine_restarts schedule."""
    norm_batches: int = Field(default=50, ge=1)
    """Training batches that batch norm's statistics are measured on again at the end."""


Part = Literal["encoder", "encoder_norm", "decoder", "head", "all_but_head"]


class Stage(Config):
    """One stage of a training."""

    data: Literal["labelled", "pseudo", "both"] = "labelled"
    """Which images: the training set, the test images with pseudo-labels (the recipe's ``pseudo``), or both."""
    start: Literal["previous", "best"] = "previous"
    """Which weights it goes on from: those that the stage before ended with, or those of the best scored epoch so far;
    an average of the weights then starts over, too."""
    epochs: int = Field(ge=1)
    """Passes over the images; the most where ``until_plateau`` is set."""
    until_plateau: StallConfig | None = None
    """End the stage as soon as this stalls; None: after its epochs."""
    loss: list[LossTerm] = Field(min_length=1)
    """Summands of the loss."""
    scale: float = Field(default=1.0, gt=0, le=4)
    """Zoom of the images in this stage; small images first is faster."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images a batch in this stage; None: as for the whole training."""
    accumulate: int | None = Field(default=None, ge=1)
    """Batches a step in this stage; None: as for the whole training."""
    optimizer: OptimizerConfig | None = None
    """None continues the optimizer of the stage before, with its state."""
    schedule: ScheduleConfig | None = None
    """None continues the schedule of the stage before."""
    freeze: list[Part] = Field(default_factory=list)
    """Parts whose weights stay in this stage; encoder_norm: the encoder's batch norms, with their statistics."""
    subset: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Images of this stage: so many, or this share of them, drawn once a fold by the seed; None: all. A head on a
    frozen encoder needs few. A larger subset contains a smaller one of the same ``data``."""
    sampler: SamplerConfig | None = None
    """Which images an epoch of this stage is made of; None: as for the whole training."""
    geometry: GeometryConfig | None = None
    """Geometric augmentation of this stage; None: as for the whole training."""
    intensity: IntensityConfig | None = None
    """Intensity augmentation of this stage; None: as for the whole training."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse a stage that trains nothing."""
        if {"encoder", "decoder", "head"} <= set(self.freeze) or {"all_but_head", "head"} <= set(self.freeze):
            raise ValueError(f"freeze: {self.freeze} leaves nothing to train; leave out one of them")


class TrainingConfig(Config):
    """One training: its stages, and what they share."""

    batch_size: int = Field(default=32, ge=1)
    """Images a batch."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are averaged before a step. It spares memory; batch norm still sees single batches."""
    crop_hw: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Train on random windows of this height and width; None trains on whole images."""
    windows_per_image: Annotated[int, Field(ge=1)] | Literal["by_area"] = "by_area"
    """Windows of each image in an epoch; "by_area": the image's area over the window's, at most 16, so that an epoch
    looks at about as many pixels as there are. Whole images are looked at once."""
    clip_norm: float | None = Field(default=5.0, gt=0)
    """Largest norm of the gradient; None does not clip."""
    ema_decay: float | None = Field(default=0.99, ge=0, lt=1)
    """Decay a step of the moving average of the weights; it warms up as (1 + n) / (10 + n). None: no average, the
    weights themselves are scored and kept."""
    swa: SwaConfig | None = None
    """Average the weights of several epochs or cycles; None: do not."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """Precision of the forward pass; "auto" takes bfloat16 where the processor has it."""
    channels_last: bool = True
    """Memory layout with the channels innermost: faster convolutions, the same numbers."""
    device: str = "auto"
    """"cpu", "cuda", "mps", or "auto"."""
    devices: int = Field(default=1, ge=1, repr=False)
    """Devices of this machine that train a fold together, each with its part of every batch: GPUs, or on a CPU
    processes that share the threads. The batches and their order are those of one device, so the number is no part of
    what a run is: a training may go on with another."""
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Threads of the CPU; "auto" takes the cores this process may use."""
    evaluate_every: int = Field(default=4, ge=1)
    """Score the fold after every so many epochs (always after the last, and before a stage that starts from the
    best)."""
    metrics: list[str] = Field(default_factory=list)
    """What is measured beside the recipe's metric when the fold is scored: keys of METRICS, of the same predictions,
    and "val_loss", the loss of the held-out images. Metrics of pixels are measured on the training batches, too: as in
    Keras their mean over the batches, augmented as they are. All are in the log of the fold and in the report's curves;
    they decide nothing but what ``keep`` names."""
    early_stop: StallConfig | None = None
    """End the training as soon as this stalls; None: after the last stage."""
    select: Literal["last", "best", "best_val_loss", "swa"] = "last"
    """Which weights become final.safetensors: those of the last epoch, of the best scored one (its optimism is then
    reported), of the one in the last stage with the lowest loss on the held-out images (chosen on them, too), or the
    mean that ``swa`` describes."""
    keep: list[str] = Field(default_factory=list)
    """Weights that stay beside final.safetensors, for ``prediction.weights``: last, swa, raw (of the last step, without
    the average that ``ema_decay`` makes), best_score, best_loss (of the lowest mean training loss of the last stage),
    best_val_loss (of its lowest loss on the held-out images), and best_ with the name of one of ``metrics``
    (best_dice_pooled), the first epoch of equal ones."""
    top_k: int = Field(default=0, ge=0)
    """Keep the weights of so many best scored epochs, as top_1.safetensors and so on."""
    start_run: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")] | None = None
    """A run of the same project: each fold starts from the weights that this run ended the same fold with (one more
    cycle of a trained net); None starts from the model's own weights."""
    start_from: str | None = None
    """Weights of elsewhere that each fold starts from: a bundle (.msk), a .safetensors file, another project or a run
    in one. The encoder has to be the same; sizes, bands and classes may differ, and what was taken is said. None: the
    model's own weights."""
    start_from_hash: str | None = None
    """Hash of what ``start_from`` named; filled in when a recipe is resolved, so that a run does not need it."""
    corrections: str | None = None
    """Folder of corrected masks of training images, with ``corrections.csv``: id, action (keep, drop, wrong, mend) and
    if there is one weight (0…1). `masksmith labels` writes one. Held-out images are scored with the masks of the data.
    None: all images are trained on with these."""
    corrections_hash: str | None = None
    """Hash of what lies there; filled in when a recipe is resolved."""
    geometry: GeometryConfig = GeometryConfig()
    """Geometric augmentation, or a preset's name: none, lossless, light, heavy."""
    intensity: IntensityConfig = IntensityConfig()
    """Intensity augmentation, or a preset's name."""
    mixing: MixingConfig = MixingConfig()
    """Mixing of the images of a batch."""
    augment: AugmentConfig = AugmentConfig()
    """How strongly, on which windows, and copies."""
    aux_weight: float = Field(default=0.4, ge=0)
    """What the outputs of deep supervision weigh together in the losses of the mask, 1 being the mask itself."""
    sampler: SamplerConfig = SamplerConfig()
    """Which images an epoch is made of."""
    stages: list[Stage] = Field(min_length=1)
    """What is done in turn."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse a first stage that continues nothing, cycles that do not divide, and an average of nothing."""
        if self.crop_hw is None and self.windows_per_image != "by_area":
            raise ValueError(
                f"windows_per_image: {self.windows_per_image} has no effect without crop_hw; set that, or leave it at "
                "'by_area'"
            )
        if self.start_from is not None and self.start_run is not None and self.start_from_hash is None:
            raise ValueError(
                f"start_from: {self.start_from!r}, and start_run: {self.start_run!r}; a training starts from one of "
                "them, set the other to null"
            )
        first = self.stages[0]
        if first.optimizer is None or first.schedule is None:
            raise ValueError(
                "stages[0] must have an optimizer and a schedule; only later stages can continue them"
            )
        for span in self.spans():
            _check_cycles(self, span)
        _check_starts(self)
        _check_swa(self)
        _check_kept(self)
        if (problem := unshared_batches(self)) is not None:
            raise ValueError(problem)

    @property
    def snapshots(self) -> int:
        """How many snapshots are taken: one at the end of each cycle of cosine_restarts."""
        return sum(stage.schedule.cuts for stage in self.stages if stage.schedule is not None)

    def batches_of(self, stage: Stage) -> tuple[int, int]:
        """Return what is in force in a stage: images a batch, and batches a step."""
        return stage.batch_size or self.batch_size, stage.accumulate or self.accumulate

    def spans(self) -> list[list[int]]:
        """Return the stages that share one schedule, in turn."""
        spans: list[list[int]] = []
        for index, stage in enumerate(self.stages):
            if stage.schedule is not None:
                spans.append([])
            spans[-1].append(index)
        return spans


def unshared_batches(config: TrainingConfig) -> str | None:
    """Return what is wrong where a batch cannot be shared out over the devices, beginning with the key; else None."""
    count = config.devices
    for i, stage in enumerate(config.stages):
        size = config.batches_of(stage)[0]
        if size % count:
            key = "batch_size" if stage.batch_size is None else f"stages[{i}].batch_size"
            near = [str(n) for n in (size // count * count, -(-size // count) * count) if n]
            fit = [str(n) for n in range(1, size + 1) if size % n == 0]
            return (
                f"devices: {count} cannot share batches of {size} images ({key}); expected {' or '.join(near)} images, "
                f"or one of {', '.join(fit)} devices"
            )
    return None


def chosen_on_held_out(kept: str) -> bool:
    """Whether the weights of this name in ``keep`` are chosen by held-out images."""
    return kept.startswith("best_") and kept != "best_loss"


def best_of(config: TrainingConfig) -> dict[str, str]:
    """Return the name that ``keep`` and the file have for the best weights by each of ``metrics`` -> the metric.

    The name leaves out a metric's numbers; of two that then have the same name neither can be kept.
    """
    names = [f"best_{metric.partition('(')[0].strip()}" for metric in config.metrics]
    return {
        name: metric
        for name, metric in zip(names, config.metrics, strict=True)
        if metric != VAL_LOSS and names.count(name) == 1
    }


def _check_kept(config: TrainingConfig) -> None:
    """Refuse what is measured twice, and weights to keep that nothing chooses."""
    twice = sorted({name for name in config.metrics if config.metrics.count(name) > 1})
    if twice:
        raise ValueError(f"metrics: {', '.join(twice)} named twice; name each once")
    known = [*_KEPT, *best_of(config)]
    wrong = [name for name in config.keep if name not in known]
    if wrong:
        raise ValueError(
            f"keep: {', '.join(map(repr, wrong))}; expected {', '.join(known)}, or best_ with the name of one of "
            "training.metrics"
        )


def _check_starts(config: TrainingConfig) -> None:
    """Refuse a start from the best epoch where there is none yet, and with an optimizer that knows other weights."""
    for i, stage in enumerate(config.stages):
        if stage.start == "best" and i == 0:
            raise ValueError("stages[0]: start: 'best', but no epoch comes before it; expected 'previous'")
        if stage.start == "best" and stage.optimizer is None:
            raise ValueError(
                f"stages[{i}]: start: 'best', but it continues the optimizer of the stage before, whose moments belong "
                "to other weights; give it an optimizer"
            )


def _check_cycles(config: TrainingConfig, span: Sequence[int]) -> None:
    """Refuse snapshots that would not fall on the end of an epoch."""
    stages = config.stages
    schedule = stages[span[0]].schedule
    assert schedule is not None
    if not schedule.cuts:
        return
    where, epochs, cycles = (
        f"stages[{span[0]}].schedule",
        sum(stages[i].epochs for i in span),
        schedule.cycles,
    )
    _check_steps(config, span)
    if epochs % cycles:
        fit = [n for n in range(1, epochs + 1) if epochs % n == 0]
        near = sorted(
            {max(n for n in fit if n < cycles), min((n for n in fit if n > cycles), default=epochs)}
        )
        longer = cycles * (epochs // cycles + 1)
        shorter = [longer - cycles] if longer > cycles else []
        raise ValueError(
            f"{where}: cycles: {cycles} does not divide its {epochs} epochs; expected "
            f"{' or '.join(map(str, near))} cycles, or {' or '.join(map(str, [*shorter, longer]))} epochs"
        )


def _check_steps(config: TrainingConfig, span: Sequence[int]) -> None:
    """Refuse stages that share cycles and have epochs of other lengths, or may end early."""
    stages, first = config.stages, config.stages[span[0]]
    repeat = (first.sampler or config.sampler).repeat_worst_of
    for i in span:
        if stages[i].data != first.data:
            raise ValueError(
                f"stages[{i}]: data {stages[i].data!r} is not that of stages[{span[0]}] ({first.data!r}), whose cycles "
                "it continues; give it a schedule of its own"
            )
        size, accumulate = config.batches_of(stages[i])
        if (size, accumulate) != config.batches_of(first):
            raise ValueError(
                f"stages[{i}]: batch_size {size} and accumulate {accumulate} differ from those of stages[{span[0]}], "
                "whose cycles it continues; give it a schedule of its own"
            )
        own = (stages[i].sampler or config.sampler).repeat_worst_of
        if own != repeat:
            raise ValueError(
                f"stages[{i}]: sampler.repeat_worst_of {own} differs from the {repeat} of stages[{span[0]}], whose "
                "cycles it continues; give it a schedule of its own"
            )
        if stages[i].until_plateau is not None:
            raise ValueError(
                f"stages[{i}]: until_plateau may end it within a cycle of stages[{span[0]}].schedule; expected null, "
                "or a schedule other than cosine_restarts"
            )


def _check_swa(config: TrainingConfig) -> None:
    """Refuse an average that nobody asked for, that nobody keeps, or that begins after the end."""
    kept = config.select == "swa" or "swa" in config.keep
    if kept and config.swa is None:
        what = "select: 'swa'" if config.select == "swa" else f"keep: {config.keep}"
        raise ValueError(f"{what}, but swa is not set; expected for example swa: {{start: 0.75}}")
    if config.swa is None:
        return
    if not kept:
        raise ValueError(
            f"swa is set, but select is {config.select!r} and keep is {config.keep}: name 'swa' in one"
        )
    epochs = sum(stage.epochs for stage in config.stages)
    if isinstance(config.swa.start, int) and config.swa.start > epochs:
        raise ValueError(f"swa: start: {config.swa.start} is after the last of {epochs} epochs")
    if config.swa.every == "cycle" and not any(one.schedule and one.schedule.cuts for one in config.stages):
        raise ValueError("swa: every: 'cycle', but no stage has a cosine_restarts schedule; expected 'epoch'")
