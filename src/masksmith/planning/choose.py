"""From the data, a budget and measured times to a resolved recipe, with a reason beside each choice."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from masksmith.core.errors import InputError
from masksmith.core.progress import clock
from masksmith.models.architectures import ARCHITECTURES
from masksmith.models.config import ModelConfig
from masksmith.planning.cost import Cost, DataFacts, Measure, MeasureRuntime, cost_of, fit, view_of
from masksmith.planning.lengths import whole_epochs, with_epochs
from masksmith.planning.rules import Candidate, Rules
from masksmith.preprocess import round_up
from masksmith.recipes.recipe import Recipe
from masksmith.recipes.sources import is_auto

_WEIGHTS = {"encoder_weights", "encoder_weights_hash"}  # fields of ModelConfig that pin no model


@dataclass(frozen=True)
class Choice:
    """One value of the resolved recipe and why it is that."""

    key: str
    value: str
    reason: str


@dataclass(frozen=True)
class Chosen:
    """The reference recipe of a budget: at its whole length, resolved."""

    recipe: Recipe
    cost: Cost
    choices: list[Choice]
    seconds: float
    """Left when its length was settled."""


@dataclass(frozen=True)
class Tools:
    """What choosing needs from the machine; given as functions, so that tests need no machine."""

    measure: Measure
    weights_for: Callable[[Candidate, ModelConfig], str | None]
    """Weights for a candidate under what was asked: "none", "imagenet", a file; None where there are none."""
    resolve: Callable[[Recipe], Recipe]
    """Settles every "auto"."""
    largest_batch: Callable[[Recipe, DataFacts], int]
    """Largest batch that fits into memory; 0 where not one image does."""
    runtime: MeasureRuntime
    """Measures a prediction runtime, with its conversion in ``build_s``; None where it cannot work here."""
    device: str
    """The settled device: cpu, cuda or mps."""
    measured_s: Callable[[], float]
    """Seconds spent on measuring so far."""


@dataclass(frozen=True)
class _Case:
    """What the functions below choose by, and the choices so far."""

    keys: set[str]
    """Pinned by the user."""
    facts: DataFacts
    left: Callable[[], float]
    rules: Rules
    tools: Tools
    choices: list[Choice]

    @property
    def seconds(self) -> float:
        """Seconds left now: measuring takes time, too."""
        return self.left()

    def note(self, key: str, value: str, reason: str) -> None:
        self.choices.append(Choice(key, value, reason))

    def cost_of(self, recipe: Recipe, *, in_torch: bool = True) -> Cost:
        runtime = None if in_torch else self.tools.runtime
        return cost_of(recipe, self.facts, self.tools.measure, self.rules.time, runtime=runtime)


def choose(
    asked: Recipe,
    pinned: Iterable[str],
    facts: DataFacts,
    left: Callable[[], float],
    rules: Rules,
    tools: Tools,
) -> Chosen:
    """Choose model, size, batch, length and views for a budget.

    Args:
        asked: The recipe to start from.
        pinned: Dotted keys that the user set; they are obeyed.
        facts: The data.
        left: Returns the seconds left now, for measuring and everything that follows.
        rules: The rules.
        tools: The machine.

    Raises:
        InputError: A key is pinned that the budget decides, or no candidate can be used.
    """
    keys = set(pinned)
    if any(key.startswith("training.stages") and key.endswith("epochs") for key in keys):
        raise InputError(
            "--set training.stages…epochs cannot go with --budget: the budget decides the epochs; leave out one of them"
        )
    case = _Case(keys, facts, left, rules, tools, [])
    recipe = _model(_sized(asked, case), case)
    recipe = _views(recipe, case)
    recipe, cost = _runtime(recipe, case)
    seconds = _length(recipe, cost, case)
    why = "settled on this machine" if "training.precision" not in keys else "as asked"
    case.note("training.precision", recipe.training.precision, f"{why}, on {recipe.training.device}")
    return Chosen(recipe, cost, case.choices, seconds)


def second_recipe(
    chosen: Recipe, asked: Recipe, pinned: Iterable[str], facts: DataFacts, rules: Rules, tools: Tools
) -> Recipe | None:
    """Return the chosen recipe with the next candidate that fits; None where there is none, or the model is pinned."""
    if _pins_model(pinned, asked):
        return None
    for candidate, weights in _usable(asked.model, rules, tools):
        model = candidate.model(weights, left_out=_left_out(asked))
        if (model.architecture, model.encoder) != (chosen.model.architecture, chosen.model.encoder):
            recipe = _fitting(chosen.model_copy(update={"model": model}), pinned, facts, tools)
            if recipe is not None:
                return recipe
    return None


def _pins_model(pinned: Iterable[str], asked: Recipe) -> bool:
    """Whether the user or the recipe sets anything of the model but its weights: no candidate has it all."""
    keys = {key for key in pinned if key.startswith("model.")} - {f"model.{name}" for name in _WEIGHTS}
    given = asked.model.model_dump(exclude=_WEIGHTS, exclude_defaults=True)
    if is_auto(asked.name) and _left_out(asked):
        del given["decoder_channels"]  # chosen for the masks, as each candidate's then are
    return bool(keys or given)


def _left_out(recipe: Recipe) -> int:
    """Return how many of its last levels a recipe's decoder leaves out."""
    traits = ARCHITECTURES[recipe.model.architecture]
    if traits.decoder_channels != "levels":
        return 0
    return recipe.model.encoder_depth - len(recipe.model.decoder_channels)


def _sized(asked: Recipe, case: _Case) -> Recipe:
    """Settle window, tiles, batch and length."""
    recipe = _windowed(asked, case)
    looks, keys = case.facts.looks(recipe.training), case.keys
    if "training.batch_size" in keys or not is_auto(asked.name):
        case.note("training.batch_size", str(asked.training.batch_size), "as asked")
    else:
        batch = next(line.batch_size for line in case.rules.batch if looks >= line.images)
        recipe = recipe.model_copy(
            update={"training": recipe.training.model_copy(update={"batch_size": batch})}
        )
        what = "images" if looks == case.facts.train else "windows in an epoch"
        case.note("training.batch_size", str(batch), f"for {looks} training {what}")
    if not is_auto(asked.name):
        return recipe
    return with_epochs(recipe, whole_epochs(case.rules.length, looks), case.rules.length)


def _windowed(asked: Recipe, case: _Case) -> Recipe:
    """Settle the windows of training and the tiles of prediction."""
    facts, divisor = case.facts, asked.model.divisor
    height, width = facts.inner_hw
    line = next((one for one in case.rules.size.windows if height * width > one.above_px), None)
    crop_hw, recipe = asked.training.crop_hw, asked
    if line is not None and crop_hw is None and "training.crop_hw" not in case.keys and _may_cut(asked):
        crop_hw, why = line.hw, f"windows, because images have {height}x{width}"
        recipe = asked.model_copy(update={"training": asked.training.model_copy(update={"crop_hw": crop_hw})})
    elif crop_hw is not None:
        why = "windows, as asked"
    else:
        why = (
            f"the true size {height}x{width}, padded to a multiple of {divisor}; smaller in the first stages"
        )
    shown = crop_hw or (round_up(height, divisor), round_up(width, divisor))
    case.note("training.crop_hw", f"{shown[0]}x{shown[1]}", why)
    if line is None or line.overlap is None or crop_hw is None:
        return recipe
    return _tiled(recipe, line.overlap, crop_hw, case)


def _may_cut(asked: Recipe) -> bool:
    """Whether nothing in the recipe needs whole images."""
    return asked.model.derived_channels == "none" and not asked.size.chain


def _tiled(recipe: Recipe, least_overlap: float, tile_hw: tuple[int, int], case: _Case) -> Recipe:
    """Settle the tiles of prediction where large images are trained on in windows: as large as these."""
    asked = recipe.prediction
    if asked.tile_hw is not None or "prediction.tile_hw" in case.keys:
        shown = "whole images" if asked.tile_hw is None else "x".join(map(str, asked.tile_hw))
        case.note("prediction.tile_hw", shown, "as asked")
        return recipe
    if recipe.size.pad_hw is not None or not _may_cut(recipe):
        return recipe
    pinned = {name for name in ("overlap",) if f"prediction.{name}" in case.keys}
    overlap = asked.overlap if pinned else least_overlap
    tiled = asked.model_copy(update={"tile_hw": tile_hw, "overlap": overlap})
    recipe = recipe.model_copy(update={"prediction": tiled})
    times = view_of(recipe, case.facts).px / max(
        1, view_of(recipe.model_copy(update={"prediction": asked}), case.facts).px
    )
    reason = f"tiles as large as the windows of training, {times:.2f} times the pixels of the images"
    case.note("prediction.tile_hw", f"{tile_hw[0]}x{tile_hw[1]}", reason)
    case.note("prediction.overlap", f"{overlap:g}", "as asked" if pinned else "of a tile's side, at least")
    return recipe


def _usable(asked: ModelConfig, rules: Rules, tools: Tools) -> Iterable[tuple[Candidate, str]]:
    """Yield the candidates for this device whose weights there are, with these weights."""
    for candidate in rules.candidates:
        if tools.device in candidate.devices:
            weights = tools.weights_for(candidate, asked)
            if weights is not None:
                yield candidate, weights


def _model(base: Recipe, case: _Case) -> Recipe:
    """Take the first candidate whose whole training is affordable, else the one of which most fits.

    Of a training from random weights less counts: a pretrained one that is cut short is as good.
    """
    facts, tools = case.facts, case.tools
    if _pins_model(case.keys, base):
        # one that is too large is refused with the figures, before it is trained
        recipe = _fitting(base, case.keys, facts, tools) or tools.resolve(base)
        why = "as asked" if base.model.encoder != "auto" else "settled for the model that was asked for"
        case.choices.insert(0, Choice("model.encoder", recipe.model.encoder, why))
        return recipe
    best: tuple[float, Recipe, str] | None = None
    too_large: list[str] = []
    for candidate, weights in _usable(base.model, case.rules, tools):
        fitting = _fitting(
            base.model_copy(update={"model": candidate.model(weights, left_out=_left_out(base))}),
            case.keys,
            facts,
            tools,
        )
        if fitting is None:
            too_large.append(candidate.name)
            continue
        cost = case.cost_of(fitting)
        share = (case.seconds - cost.reserve_s) / cost.train_s
        reason = (
            f"{candidate.name}, {'weights: ' + weights if candidate.pretrained else 'no pretrained weights found'}; "
            f"a whole fold takes {clock(cost.train_s)} here; {candidate.evidence}"
        )
        worth = min(share, 1.0) * (1.0 if candidate.pretrained else case.rules.length.scratch_frac)
        if best is None or worth > best[0]:
            best = (worth, fitting, reason)
        if share >= 1 or tools.measured_s() > case.rules.time.measure_frac * case.seconds:
            break
    if best is None:
        raise InputError(_no_candidate(base, too_large, tools.device))
    if best[1].prediction.batch_size != base.prediction.batch_size:
        tiles = str(best[1].prediction.batch_size)
        case.note("prediction.batch_size", tiles, "tiles a forward pass, as many as windows a training step")
    if best[1].training.batch_size != base.training.batch_size:
        batch = str(best[1].training.batch_size)
        case.note("training.batch_size", batch, "the largest power of two that fits into memory")
    case.choices.insert(0, Choice("model.encoder", best[1].model.encoder, best[2]))
    return best[1]


def _no_candidate(base: Recipe, too_large: list[str], device: str) -> str:
    if too_large:
        return (
            f"training.batch_size: not one image fits into memory with {', '.join(too_large)}; train on windows with "
            "--set training.crop_hw=[256,256]"
        )
    return (
        f"model.encoder_weights: {base.model.encoder_weights!r} fits none of the models that planning knows for "
        f"{device}; name the encoder with --set model.encoder=…"
    )


def _fitting(recipe: Recipe, pinned: Iterable[str], facts: DataFacts, tools: Tools) -> Recipe | None:
    """Return the recipe resolved, with smaller batches where memory asks for it; None where not one image fits.

    Tiles go through the model in batches no larger than those of training.

    A pinned batch stays: if it does not fit, the training is refused with the figures.
    """
    recipe, keys = tools.resolve(recipe), set(pinned)
    if "training.batch_size" not in keys:
        largest = tools.largest_batch(recipe, facts)
        if largest < 1:
            return None
        if largest < recipe.training.batch_size:
            training = {"batch_size": 2 ** (largest.bit_length() - 1)}
            recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})
    asked, batch = recipe.prediction, recipe.training.batch_size
    if asked.tile_hw is None or asked.batch_size <= batch or "prediction.batch_size" in keys:
        return recipe
    # a batch of tiles takes less memory than one of windows of that size with its gradients
    return recipe.model_copy(update={"prediction": asked.model_copy(update={"batch_size": batch})})


def _views(recipe: Recipe, case: _Case) -> Recipe:
    """Settle test-time augmentation."""
    asked, rule = recipe.prediction.tta, case.rules.prediction
    if "prediction.tta" in case.keys or not is_auto(recipe.name):
        case.note("prediction.tta", ", ".join(asked), "as asked")
        return recipe
    view_s, views = case.cost_of(recipe).view_s, rule.tta
    if view_s * (len(views) - 1) > rule.tta_most_frac * case.seconds:
        views = views[:1]
    held_out, test = case.facts.held_out, case.facts.test
    reason = f"a view of {held_out} held-out and {test} test images takes {clock(view_s)}"
    case.note("prediction.tta", ", ".join(views), reason)
    return recipe.model_copy(update={"prediction": recipe.prediction.model_copy(update={"tta": views})})


def _runtime(recipe: Recipe, case: _Case) -> tuple[Recipe, Cost]:
    """Settle the prediction runtime: OpenVINO where its conversion pays. The held-out images may still refuse it."""
    asked, rule = recipe.prediction.runtime, case.rules.prediction
    if "prediction.runtime" in case.keys or not is_auto(recipe.name) or case.tools.device != "cpu":
        case.note("prediction.runtime", asked, "as asked")
        return recipe, case.cost_of(recipe, in_torch=False)
    prediction = recipe.prediction.model_copy(update={"runtime": "openvino"})
    converted = recipe.model_copy(update={"prediction": prediction})
    other = cost = case.cost_of(recipe)
    if cost.predict_s > rule.convert_least_s:
        other = case.cost_of(converted, in_torch=False)
    if other.predict_s < rule.convert_below_frac * cost.predict_s:
        took = clock(other.predict_s)
        reason = f"{took} with conversion and its check on the held-out images; torch {clock(cost.predict_s)}"
        case.note("prediction.runtime", "openvino", reason)
        return converted, other
    why = "converting would not pay, or OpenVINO is not installed"
    case.note("prediction.runtime", "torch", f"prediction takes {clock(cost.predict_s)}: {why}")
    return recipe, cost


def _length(recipe: Recipe, cost: Cost, case: _Case) -> float:
    """Say how long a whole training is, and how many folds of it fit; return the seconds that were left then.

    Raises:
        InputError: Not one epoch fits.
    """
    facts, seconds = case.facts, case.seconds
    part = fit(recipe, cost, seconds, folds=recipe.folds.train or facts.folds)
    epoch_s = cost.train_s / part.whole
    if seconds < epoch_s + cost.reserve_s:
        raise InputError(
            f"--budget: {clock(max(0.0, seconds))} are left after measuring this machine, but an epoch of "
            f"{recipe.model.encoder} on {facts.train} images ({clock(epoch_s)}), the prediction of "
            f"{facts.held_out + facts.test} images ({clock(cost.predict_s)}) and what follows ({clock(cost.finish_s)}) "
            f"take {clock(epoch_s + cost.reserve_s)}; nothing was trained; give at least that much more"
        )
    why = (
        f"a whole training is {part.whole} epochs, {clock(cost.train_s)} a fold; {part.share:.0%} of it fits"
    )
    case.note("training.stages", f"{part.epochs} epochs", why)
    each = f"of {facts.folds}; {clock(cost.train_s + cost.reserve_s)} each with prediction"
    case.note("folds.train", str(part.folds), each)
    return seconds
