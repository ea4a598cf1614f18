"""Summaries of one recipe or ensemble: header, every value, number of weights, size trace."""

from dataclasses import dataclass
from typing import Any

from masksmith.models.config import ModelConfig
from masksmith.models.encoders import settle_encoder
from masksmith.models.segmentation import build_model, size_trace
from masksmith.preprocess import Frame
from masksmith.recipes.ensemble import Ensemble, load_ensemble, member_recipes
from masksmith.recipes.recipe import Recipe, load_recipe
from masksmith.recipes.sources import parse_header, recipe_source


@dataclass(frozen=True)
class RecipeSummary:
    """Header, values, number of weights and size trace of a recipe."""

    name: str
    header: dict[str, str]
    values: str
    num_weights: int
    channels: int
    canvas_hw: tuple[int, int]
    trace: list[Any]

    def __str__(self) -> str:
        lines = [f"# {key}: {text}" for key, text in self.header.items()]
        return "\n".join([*lines, "", self.values.rstrip(), "", *self.net_lines()])

    def net_lines(self) -> list[str]:
        """Return the lines about the network: number of weights and size trace."""
        seen = "one channel" if self.channels == 1 else f"{self.channels} channels"
        where = f"101x101 on a canvas of {self.canvas_hw[0]}x{self.canvas_hw[1]}"
        trace = [f"  {line.block:12s} {line.channels:5d} x {line.hw[0]}x{line.hw[1]}" for line in self.trace]
        return [f"weights: {self.num_weights:,}", f"size trace ({seen}, {where}):", *trace]


@dataclass(frozen=True)
class EnsembleSummary:
    """Header and values of an ensemble, and the summaries of its members."""

    name: str
    header: dict[str, str]
    values: str
    members: list[tuple[str, RecipeSummary]]
    """A line about each member, and the summary of its recipe with the member's overrides."""

    def __str__(self) -> str:
        lines = [*(f"# {key}: {text}" for key, text in self.header.items()), "", self.values.rstrip()]
        for line, summary in self.members:
            lines += ["", line, *summary.net_lines()]
        return "\n".join(lines)


def describe_recipe(name: str) -> RecipeSummary:
    """Return header, values, number of weights and size trace of a recipe; weights are not loaded."""
    return _summary(load_recipe(name), recipe_source(name)[0])


def describe_ensemble(name: str) -> EnsembleSummary:
    """Return header and values of an ensemble, and the summaries of its members; weights are not loaded."""
    ensemble: Ensemble = load_ensemble(name)
    summaries = []
    for at, (member, recipe) in enumerate(zip(ensemble.members, member_recipes(ensemble), strict=True)):
        changes = f" with {', '.join(member.set)}" if member.set else ""
        line = f"member {at}: {recipe.name}, weight {member.weight:g} ({member.recipe}{changes})"
        summaries.append((line, _summary(recipe, recipe_source(member.recipe)[0])))
    header = parse_header(recipe_source(name)[0])
    return EnsembleSummary(ensemble.name, header, ensemble.to_yaml(), summaries)


def _summary(recipe: Recipe, text: str) -> RecipeSummary:
    """Return the summary of a recipe whose header is in ``text``."""
    settled = settle_encoder(recipe.model.encoder, "none") if recipe.model.encoder == "auto" else None
    encoder = settled.encoder if settled else recipe.model.encoder
    model_config: ModelConfig = recipe.model.model_copy(
        update={"encoder": encoder, "encoder_weights": "none"}
    )
    channels = recipe.input.channels(1)
    model = build_model(model_config, in_channels=channels, seed=0)
    canvas_hw = Frame.of((101, 101), recipe.size, divisor=model.divisor).canvas_hw
    trace = size_trace(model, in_channels=channels, hw=canvas_hw)
    num_weights = sum(weight.numel() for weight in model.parameters())
    return RecipeSummary(
        recipe.name, parse_header(text), recipe.to_yaml(), num_weights, channels, canvas_hw, trace
    )
