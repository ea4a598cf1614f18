"""What a recipe costs on this machine, in seconds, from measured steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from masksmith.models.config import ModelConfig
from masksmith.planning.rules import TimeRule
from masksmith.preprocess import round_up
from masksmith.recipe import Recipe
from masksmith.training.config import Stage, TrainingConfig


@runtime_checkable
class Timed(Protocol):
    """Measured seconds; see measure.Timing."""

    @property
    def build_s(self) -> float:
        """Building the model and loading its weights."""

    @property
    def first_step_s(self) -> float:
        """What the first steps take beyond the usual."""

    @property
    def step_s(self) -> float:
        """One training step."""

    @property
    def forward_s(self) -> float:
        """One forward pass of a batch in prediction."""


Measure = Callable[[ModelConfig, TrainingConfig, tuple[int, int], int], Timed]
"""(model, training, (height, width), batch size) -> seconds."""


@dataclass(frozen=True)
class DataFacts:
    """What the estimates need to know of the data."""

    train: int
    """Images that a fold trains on."""
    held_out: int
    """Images of a fold."""
    test: int
    """Test images."""
    hw: tuple[int, int]
    """Largest height and width."""
    channels: int
    folds: int


@dataclass(frozen=True)
class Cost:
    """Seconds of one fold of a recipe."""

    train_s: float
    """All steps and scorings."""
    epoch_s: float
    """One epoch of the last stage."""
    predict_s: float
    """Held-out and test images, all views."""
    view_s: float
    """One view of these."""
    finish_s: float
    """Tuning, submission and report."""
    pace: float
    """Seconds a pixel of the training's last stage."""

    @property
    def reserve_s(self) -> float:
        """What has to follow a training."""
        return self.predict_s + self.finish_s

    def slower(self, factor: float) -> "Cost":
        """Return the cost on a machine that is slower by a factor (below 1: faster)."""
        return Cost(*(value * factor for value in vars(self).values()))


def stage_hw(training: TrainingConfig, stage: Stage, facts: DataFacts, divisor: int) -> tuple[int, int]:
    """Return height and width that a stage trains at."""
    height, width = facts.hw
    if training.crop_hw is not None:
        height, width = min(height, training.crop_hw[0]), min(width, training.crop_hw[1])
    return round_up(round(height * stage.scale), divisor), round_up(round(width * stage.scale), divisor)


def cost_of(recipe: Recipe, facts: DataFacts, measure: Measure, rule: TimeRule) -> Cost:
    """Return what one fold of a resolved recipe costs."""
    model, training = recipe.model, recipe.training
    divisor = 2**model.encoder_depth
    seconds, epoch_s, pace, forward_pace = 0.0, 0.0, 0.0, 0.0
    start_s = 0.0
    for stage in training.stages:
        hw, batch = stage_hw(training, stage, facts, divisor), stage.batch_size or training.batch_size
        timed = measure(model, training, hw, batch)
        steps = max(1, facts.train // batch)
        epoch_s = steps * timed.step_s * rule.loop_frac
        pace = timed.step_s * rule.loop_frac / (hw[0] * hw[1] * batch)
        forward_pace = timed.forward_s / (hw[0] * hw[1] * batch)
        start_s = timed.build_s + timed.first_step_s
        seconds += stage.epochs * epoch_s
    image_s = forward_pace * round_up(facts.hw[0], divisor) * round_up(facts.hw[1], divisor)
    epochs = sum(stage.epochs for stage in training.stages)
    scorings = -(-epochs // training.evaluate_every)
    seconds += scorings * facts.held_out * image_s + start_s
    view_s = (facts.held_out + facts.test) * image_s
    finish_s = rule.finish_s + rule.finish_s_per_image * (facts.held_out * facts.folds + facts.test)
    return Cost(seconds, epoch_s, view_s * len(recipe.prediction.tta), view_s, finish_s, pace)
