"""What a recipe costs on this machine, in seconds, from measured steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from masksmith.models.config import ModelConfig
from masksmith.planning.rules import TimeRule
from masksmith.prediction.tiles import Tiling, passes_of
from masksmith.preprocess import TRUE_SIZE, SizeConfig, canvas_of
from masksmith.recipes.recipe import Recipe
from masksmith.training.config import Stage, TrainingConfig
from masksmith.training.epochs import build_epochs, work_ahead
from masksmith.training.windows import windows_of


class Timed(Protocol):
    """Measured seconds; see timings.Timing, which this module must not import: it needs torch."""

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


MeasureRuntime = Callable[[str, ModelConfig, TrainingConfig, tuple[int, int], int], Timed | None]
"""(runtime, model, training, (height, width), batch size) -> seconds; None where it cannot work here."""


Sizes = tuple[tuple[tuple[int, int], int], ...]
"""((height, width), number of images of that size), …"""


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
    """Largest height and width of the training images."""
    held_out_px: int
    """Pixels of a fold's images, padded."""
    test_px: int
    """Pixels of the test images, padded."""
    channels: int
    folds: int
    canvases: int = 1
    """Different canvases of a fold's images and the test images; a runtime is compiled for each."""
    size: SizeConfig = TRUE_SIZE
    """How images lie on the canvas."""
    train_sizes: Sizes = ()
    """True sizes of the images that a fold trains on; none given: all are ``hw``."""
    held_out_sizes: Sizes = ()
    """True sizes of a fold's images."""
    test_sizes: Sizes = ()
    """True sizes of the test images."""

    @property
    def more_images(self) -> float:
        """How many times the images that a fold trains on all images are."""
        return (self.train + self.held_out) / self.train

    @property
    def inner_hw(self) -> tuple[int, int]:
        """Largest height and width of the training images, resized."""
        return self.size.inner_hw(self.hw)

    def looks(self, training: TrainingConfig, stage: Stage | None = None) -> int:
        """Return how many images, or windows of images, an epoch of a training looks at, or of one of its stages."""
        counts = self.train_sizes or ((self.hw, self.train),)
        windows = windows_of(training, self.size, [hw for hw, _ in counts])
        looks = sum(num * count for num, (_, count) in zip(windows, counts, strict=True))
        if stage is None or stage.subset is None:
            return looks
        share = stage.subset / self.train if isinstance(stage.subset, int) else stage.subset
        return max(1, round(share * looks))


@dataclass(frozen=True)
class View:
    """What one view of test-time augmentation looks at."""

    held_out_px: int
    """Pixels of a fold's images, or of their tiles, padded."""
    px: int
    """These, and those of the test images."""
    canvases: int
    """Different canvases."""


def view_of(recipe: Recipe, facts: DataFacts) -> View:
    """Return what a view of all that is predicted with a fold looks at, tiles counted with their overlap."""
    tiling = Tiling.of(recipe.prediction)
    if tiling is None or not (facts.held_out_sizes or facts.test_sizes):
        return View(facts.held_out_px, facts.held_out_px + facts.test_px, facts.canvases)
    found: set[tuple[int, int]] = set()

    def pixels(sizes: Sizes) -> int:
        total = 0
        for hw, count in sizes:
            passes, canvas = passes_of(tiling, facts.size, hw, divisor=recipe.model.divisor)
            found.add(canvas)
            total += passes * canvas[0] * canvas[1] * count
        return total

    held_out = pixels(facts.held_out_sizes)
    return View(held_out, held_out + pixels(facts.test_sizes), max(1, len(found)))


@dataclass(frozen=True)
class Cost:
    """Seconds of one fold of a recipe."""

    train_s: float
    """All steps and scorings."""
    epoch_s: float
    """One epoch of the last stage."""
    predict_s: float
    """Held-out and test images, all views and weights."""
    view_s: float
    """One view of these with all weights, in torch."""
    finish_s: float
    """Tuning, submission and report."""
    paces: tuple[float, ...]
    """Seconds a pixel of each stage's training."""

    @property
    def reserve_s(self) -> float:
        """What has to follow a training."""
        return self.predict_s + self.finish_s

    def slower(self, factor: float) -> "Cost":
        """Return the cost on a machine that is slower by a factor (below 1: faster)."""
        seconds = {name: value * factor for name, value in vars(self).items() if name != "paces"}
        return Cost(**seconds, paces=tuple(pace * factor for pace in self.paces))


def stage_hw(training: TrainingConfig, stage: Stage, facts: DataFacts, divisor: int) -> tuple[int, int]:
    """Return height and width that a stage trains at."""
    hw = facts.size.window_hw(facts.hw)
    return canvas_of(facts.size, [hw], divisor=divisor, scale=stage.scale, crop_hw=training.crop_hw)


def cost_of(
    recipe: Recipe,
    facts: DataFacts,
    measure: Measure,
    rule: TimeRule,
    *,
    runtime: MeasureRuntime | None = None,
) -> Cost:
    """Return what one fold of a resolved recipe costs.

    Args:
        recipe: With "auto" settled.
        facts: The data.
        measure: The machine.
        rule: How measured times become estimates.
        runtime: Measures the recipe's prediction runtime; None reckons with torch.
    """
    training = recipe.training
    sizes = [_stage_size(recipe, stage, facts) for stage in training.stages]
    timed = [measure(recipe.model, training, hw, batch) for hw, batch in sizes]
    pixels = [hw[0] * hw[1] * batch for hw, batch in sizes]
    paces = tuple(one.step_s * rule.loop_frac / px for one, px in zip(timed, pixels, strict=True))
    looks = [facts.looks(training, stage) for stage in training.stages]
    epochs, view = build_epochs(training, looks), view_of(recipe, facts)
    work = work_ahead(epochs, [hw for hw, _ in sizes])
    last = len(sizes) - 1
    epoch_s = work[last] * paces[last] / training.stages[last].epochs
    forward_pace = timed[last].forward_s / pixels[last]
    scorings = -(-len(epochs) // training.evaluate_every)
    train_s = sum(px * paces[stage] for stage, px in work.items())
    train_s += scorings * view.held_out_px * forward_pace + timed[last].build_s + timed[last].first_step_s
    view_s = view.px * forward_pace * _weights(recipe)
    predict_s = view_s * recipe.prediction.passes
    if runtime is not None and recipe.prediction.runtime != "torch":
        predict_s = _converted_s(recipe, facts, view, runtime, view_s, forward_pace) or predict_s
    finish_s = rule.finish_s + rule.finish_s_per_image * (facts.held_out * facts.folds + facts.test)
    return Cost(train_s, epoch_s, predict_s, view_s, finish_s, paces)


def _stage_size(recipe: Recipe, stage: Stage, facts: DataFacts) -> tuple[tuple[int, int], int]:
    """Return ((height, width), batch size) of a stage."""
    hw = stage_hw(recipe.training, stage, facts, recipe.model.divisor)
    return hw, stage.batch_size or recipe.training.batch_size


def _weights(recipe: Recipe) -> int:
    """Return with how many weights the recipe predicts."""
    training = recipe.training
    kinds = {"snapshots": training.snapshots, "top_k": training.top_k}
    return max(1, kinds.get(recipe.prediction.weights, 1))


def _converted_s(
    recipe: Recipe,
    facts: DataFacts,
    view: View,
    runtime: MeasureRuntime,
    view_s: float,
    forward_pace: float,
) -> float | None:
    """Return the seconds of prediction with another runtime: conversions, the gate's comparisons, all views.

    Each of the weights is converted for each canvas.
    """
    hw, batch = _stage_size(recipe, recipe.training.stages[-1], facts)
    timed = runtime(recipe.prediction.runtime, recipe.model, recipe.training, hw, batch)
    if timed is None:
        return None
    speed_up = forward_pace * hw[0] * hw[1] * batch / timed.forward_s
    gate_s = view_s * view.held_out_px / view.px * (1 + 1 / speed_up)
    conversions_s = timed.build_s * _weights(recipe) * view.canvases
    return conversions_s + gate_s + view_s * recipe.prediction.passes / speed_up


@dataclass(frozen=True)
class Fit:
    """How much of a recipe fits a time."""

    epochs: int
    """Epochs of one fold."""
    whole: int
    """Epochs of its whole length."""
    share: float
    """Of the whole length, 0…1; below one epoch's share not even one fits."""
    folds: int
    """Folds of whole length."""


def fit(recipe: Recipe, cost: Cost, seconds: float, *, folds: int) -> Fit:
    """Return how much of a recipe fits ``seconds``, with what follows a training; of ``folds`` folds at most."""
    whole = sum(stage.epochs for stage in recipe.training.stages)
    share = min(1.0, (seconds - cost.reserve_s) / cost.train_s)
    fits = max(1, int(seconds / (cost.train_s + cost.reserve_s)))
    return Fit(max(1, int(share * whole + 0.05)), whole, share, min(folds, fits))
