"""From the data, a budget and measured times to a resolved recipe, with a reason beside each choice."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from masksmith.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.planning.cost import Cost, DataFacts, Measure, MeasureRuntime, cost_of, fit
from masksmith.planning.lengths import whole_epochs, with_epochs
from masksmith.planning.rules import Candidate, Rules
from masksmith.preprocess import round_up
from masksmith.progress import clock
from masksmith.recipe import Recipe

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


@dataclass(frozen=True)
class Tools:
    """What choosing needs from the machine; given as functions, so that tests need no machine."""

    measure: Measure
    weights_for: Callable[[Candidate, ModelConfig], str | None]
    """Weights for a candidate under what was asked: "none", "imagenet", a file; None where it is not to be had."""
    resolve: Callable[[Recipe], Recipe]
    """Settles every "auto"."""
    largest_batch: Callable[[Recipe, DataFacts], int]
    """Largest batch that fits into memory; 0 where not one image does."""
    runtime: MeasureRuntime
    """Measures a prediction runtime, with its conversion in ``build_s``; None where it cannot work here."""
    drift: Callable[[Recipe, DataFacts], None]
    """Compares what is remembered with the machine as it is now; later measurements heed it."""
    threads: Callable[[Recipe, DataFacts], Mapping[int, float]]
    """Seconds of a step now by the number of threads; empty where the cores are free."""
    cores_share: Callable[[int], float]
    """Share of so many cores that this process gets now."""
    device: str
    """The settled device: cpu, cuda or mps."""
    measured_s: Callable[[], float]
    """Seconds spent on measuring so far."""


def choose(
    asked: Recipe, pinned: Iterable[str], facts: DataFacts, seconds: float, rules: Rules, tools: Tools
) -> Chosen:
    """Choose model, size, batch, length and views for a budget.

    Args:
        asked: The recipe to start from.
        pinned: Dotted keys that the user set; they are obeyed.
        facts: The data.
        seconds: Time for everything that follows.
        rules: The rules.
        tools: The machine.

    Raises:
        InputError: A key is pinned that the budget decides, or no candidate is to be had.
    """
    keys = set(pinned)
    if any(key.startswith("training.stages") and key.endswith("epochs") for key in keys):
        raise InputError(
            "--set training.stages…epochs cannot go with --budget: the budget decides the epochs; leave out one of them"
        )
    choices: list[Choice] = []
    base = _sized(asked, keys, facts, rules, choices)
    chosen = _model(base, keys, facts, seconds, rules, tools, choices)
    if asked.training.threads == "auto":
        chosen = _threads(chosen, facts, rules, tools, choices)
    recipe, cost = _views(chosen, keys, facts, seconds, rules, tools, choices)
    recipe, cost = _runtime(recipe, cost, keys, facts, rules, tools, choices)
    _length(recipe, cost, facts, seconds, choices)
    training = recipe.training
    why = "settled on this machine" if "training.precision" not in keys else "as asked"
    choices.append(Choice("training.precision", training.precision, f"{why}, on {training.device}"))
    return Chosen(recipe, cost, choices)


def _threads(recipe: Recipe, facts: DataFacts, rules: Rules, tools: Tools, choices: list[Choice]) -> Recipe:
    """Settle the threads: fewer where others hold up the cores."""
    choice = choose_threads(tools.threads(recipe, facts), rules)
    if choice is None:
        return recipe
    choices.append(choice)
    own = {"threads": int(choice.value)}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=own)})


def choose_threads(step_s: Mapping[int, float], rules: Rules) -> Choice | None:
    """Return the choice of fewer threads where their steps are the faster ones by enough; None leaves all threads.

    Args:
        step_s: Seconds of a step now by the number of threads; empty: not measured.
        rules: The rules.
    """
    if len(step_s) < 2:
        return None
    most, few = max(step_s), min(step_s, key=lambda number: (step_s[number], -number))
    if step_s[few] > rules.time.fewer_threads_below_frac * step_s[most]:
        return None
    reason = (
        f"not all cores are free: a step takes {step_s[few]:.2f} s with {few} thread{'s' if few > 1 else ''}, "
        f"{step_s[most]:.2f} s with {most}, which wait for each other"
    )
    return Choice("training.threads", str(few), reason)


def second_recipe(
    chosen: Recipe, asked: Recipe, pinned: Iterable[str], facts: DataFacts, rules: Rules, tools: Tools
) -> Recipe | None:
    """Return the chosen recipe with the next candidate that fits; None where there is none, or the model is pinned."""
    if _pins_model(pinned, asked):
        return None
    for candidate, weights in _at_hand(asked.model, rules, tools):
        model = candidate.model(weights)
        if (model.architecture, model.encoder) != (chosen.model.architecture, chosen.model.encoder):
            recipe = _fitting(chosen.model_copy(update={"model": model}), pinned, facts, tools)
            if recipe is not None:
                return recipe
    return None


def _pins_model(pinned: Iterable[str], asked: Recipe) -> bool:
    """Whether anything of the model was set or stands in the recipe, its weights aside: no candidate has it all."""
    keys = {key for key in pinned if key.startswith("model.")} - {f"model.{name}" for name in _WEIGHTS}
    return bool(keys or asked.model.model_dump(exclude=_WEIGHTS, exclude_defaults=True))


def _sized(asked: Recipe, keys: set[str], facts: DataFacts, rules: Rules, choices: list[Choice]) -> Recipe:
    """Settle batch, window and length."""
    training: dict[str, Any] = {}
    batch = next(line.batch_size for line in rules.batch if facts.train >= line.images)
    if "training.batch_size" in keys or asked.name != "auto":
        batch = asked.training.batch_size
        choices.append(Choice("training.batch_size", str(batch), "as asked"))
    else:
        training["batch_size"] = batch
        choices.append(Choice("training.batch_size", str(batch), f"for {facts.train} training images"))
    height, width = facts.hw
    divisor = asked.model.divisor
    padded = f"{round_up(height, divisor)}x{round_up(width, divisor)}"
    size_reason = (
        f"the true size {height}x{width}, padded to a multiple of {divisor}; smaller in the first stages"
    )
    if (
        height * width > rules.size.crop_above_px
        and "training.crop_hw" not in keys
        and not asked.training.crop_hw
    ):
        training["crop_hw"] = rules.size.crop_hw
        padded, size_reason = (
            "x".join(map(str, rules.size.crop_hw)),
            f"windows, because images have {height}x{width}",
        )
    choices.append(Choice("training.crop_hw", padded, size_reason))
    recipe = asked.model_copy(update={"training": asked.training.model_copy(update=training)})
    if asked.name == "auto":
        recipe = with_epochs(recipe, whole_epochs(rules.length, facts.train), rules.length)
    return recipe


def _at_hand(asked: ModelConfig, rules: Rules, tools: Tools) -> Iterable[tuple[Candidate, str]]:
    """Yield the candidates for this device whose weights are to be had."""
    for candidate in rules.candidates:
        if tools.device in candidate.devices:
            weights = tools.weights_for(candidate, asked)
            if weights is not None:
                yield candidate, weights


def _model(
    base: Recipe,
    keys: set[str],
    facts: DataFacts,
    seconds: float,
    rules: Rules,
    tools: Tools,
    choices: list[Choice],
) -> Recipe:
    """Take the first candidate whose whole training is affordable, else the one of which most fits."""
    if _pins_model(keys, base):
        # one that is too large is refused with the figures, before it is trained
        recipe = _fitting(base, keys, facts, tools) or tools.resolve(base)
        why = "as asked" if base.model.encoder != "auto" else "settled for the model that was asked for"
        choices.insert(0, Choice("model.encoder", recipe.model.encoder, why))
        return recipe
    best: tuple[float, Recipe, str] | None = None
    too_large: list[str] = []
    for candidate, weights in _at_hand(base.model, rules, tools):
        fitting = _fitting(base.model_copy(update={"model": candidate.model(weights)}), keys, facts, tools)
        if fitting is None:
            too_large.append(candidate.name)
            continue
        cost = cost_of(fitting, facts, tools.measure, rules.time)
        share = (seconds - cost.reserve_s) / cost.train_s
        reason = (
            f"{candidate.name}, {'weights: ' + weights if candidate.pretrained else 'no pretrained weights at hand'}; "
            f"a whole fold takes {clock(cost.train_s)} here; {candidate.evidence}"
        )
        if best is None or share > best[0]:
            best = (share, fitting, reason)
        if share >= 1 or tools.measured_s() > rules.time.measure_frac * seconds:
            break
    if best is None:
        raise InputError(_no_candidate(base, too_large, tools.device))
    if best[1].training.batch_size != base.training.batch_size:
        batch = str(best[1].training.batch_size)
        choices.append(Choice("training.batch_size", batch, "the largest power of two that fits into memory"))
    choices.insert(0, Choice("model.encoder", best[1].model.encoder, best[2]))
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
    """Return the recipe resolved, with a smaller batch where memory asks for it; None where not one image fits.

    A pinned batch stays: if it does not fit, the training is refused with the figures.
    """
    recipe = tools.resolve(recipe)
    if "training.batch_size" in set(pinned):
        return recipe
    largest = tools.largest_batch(recipe, facts)
    if largest >= recipe.training.batch_size:
        return recipe
    if largest < 1:
        return None
    batch = 2 ** (largest.bit_length() - 1)
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"batch_size": batch})})


def _views(
    recipe: Recipe,
    keys: set[str],
    facts: DataFacts,
    seconds: float,
    rules: Rules,
    tools: Tools,
    choices: list[Choice],
) -> tuple[Recipe, Cost]:
    """Settle test-time augmentation."""
    cost = cost_of(recipe, facts, tools.measure, rules.time)
    asked = recipe.prediction.tta
    if "prediction.tta" in keys or recipe.name != "auto":
        choices.append(Choice("prediction.tta", ", ".join(asked), "as asked"))
        return recipe, cost
    views = rules.prediction.tta
    extra = cost.view_s * (len(views) - 1)
    if extra > rules.prediction.tta_most_frac * seconds:
        views = views[:1]
    reason = f"a view of {facts.held_out} held-out and {facts.test} test images takes {clock(cost.view_s)}"
    choices.append(Choice("prediction.tta", ", ".join(views), reason))
    if views == asked:
        return recipe, cost
    recipe = recipe.model_copy(update={"prediction": recipe.prediction.model_copy(update={"tta": views})})
    return recipe, cost_of(recipe, facts, tools.measure, rules.time)


def _runtime(
    recipe: Recipe,
    cost: Cost,
    keys: set[str],
    facts: DataFacts,
    rules: Rules,
    tools: Tools,
    choices: list[Choice],
) -> tuple[Recipe, Cost]:
    """Settle the prediction runtime: OpenVINO where its conversion pays. The held-out images may still refuse it."""
    asked = recipe.prediction.runtime
    if "prediction.runtime" in keys or recipe.name != "auto" or tools.device != "cpu":
        choices.append(Choice("prediction.runtime", asked, "as asked"))
        return recipe, cost_of(recipe, facts, tools.measure, rules.time, runtime=tools.runtime)
    prediction = recipe.prediction.model_copy(update={"runtime": "openvino"})
    converted = recipe.model_copy(update={"prediction": prediction})
    other = cost
    if cost.predict_s > rules.prediction.convert_least_s:
        other = cost_of(converted, facts, tools.measure, rules.time, runtime=tools.runtime)
    if other.predict_s < rules.prediction.convert_below_frac * cost.predict_s:
        took = clock(other.predict_s)
        reason = f"{took} with conversion and its check on the held-out images; torch {clock(cost.predict_s)}"
        choices.append(Choice("prediction.runtime", "openvino", reason))
        return converted, other
    reason = (
        f"prediction takes {clock(cost.predict_s)}: converting would not pay, or OpenVINO is not installed"
    )
    choices.append(Choice("prediction.runtime", "torch", reason))
    return recipe, cost


def _length(recipe: Recipe, cost: Cost, facts: DataFacts, seconds: float, choices: list[Choice]) -> None:
    """Say how long a whole training is, and how many folds of it fit; refuse a budget without one epoch."""
    least = cost.epoch_s + cost.reserve_s
    if seconds < least:
        raise InputError(
            f"--budget: {clock(seconds)} are left, but one epoch of {recipe.model.encoder} on {facts.train} images "
            f"({clock(cost.epoch_s)}), the prediction of {facts.held_out + facts.test} images "
            f"({clock(cost.predict_s)}) and what follows ({clock(cost.finish_s)}) take "
            f"{clock(least)} on this machine; give at least that much more"
        )
    part = fit(recipe, cost, seconds, folds=recipe.folds.train or facts.folds)
    why = (
        f"a whole training is {part.whole} epochs, {clock(cost.train_s)} a fold; {part.share:.0%} of it fits"
    )
    each = f"of {facts.folds}; {clock(cost.train_s + cost.reserve_s)} each with prediction"
    choices += [
        Choice("training.stages", f"{part.epochs} epochs", why),
        Choice("folds.train", str(part.folds), each),
    ]
