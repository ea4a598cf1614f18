"""What a search may try: keys of a recipe with a range or a list of values each, and grids of values.

A space is YAML::

    training.stages.0.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}
    training.batch_size: {low: 8, high: 32, int: true, step: 8}
    model.encoder: {values: [resnet18, resnet34]}

Imports neither torch nor Optuna.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from pydantic import Field

from masksmith.core.config import Config, read_yaml, validate, write_yaml
from masksmith.core.errors import InputError
from masksmith.recipes.recipe import Recipe, change_recipe

_FIXED = {
    "folds": "all trials are judged on the same folds; set them with --set",
    "metric": "all trials are judged by one metric; set it with --set metric=…",
    "seed": "what differs by the seed is noise, which is measured; set it with --set",
    "name": "it changes no score",
    "tuning": "trials are judged at threshold 0.5, before any rule; `masksmith tune` searches the rule",
}
"""First part of a key -> why it is not searched."""
_DIGITS = 4
"""Significant digits of a number that is drawn."""

Values = dict[str, Any]
"""Dotted key of a recipe -> its value."""


class Range(Config):
    """Numbers between two bounds."""

    low: float
    high: float
    log: bool = False
    """Whether they are drawn evenly on a logarithmic scale."""
    int: bool = False
    """Whether they are whole numbers."""
    step: float | None = Field(default=None, gt=0)
    """Distance of neighbouring values from ``low`` on; None: 1 of whole numbers, and none of others."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse bounds that leave nothing between them."""
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} and high {self.high:g}; expected low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} with log: true; expected more than 0")
        if self.log and self.step is not None:
            raise ValueError(f"step {self.step:g} with log: true; expected one of them")
        if self.int and not all(float(one).is_integer() for one in (self.low, self.high, self.step or 1)):
            raise ValueError(f"low {self.low:g}, high {self.high:g} with int: true; expected whole numbers")
        if self.step is not None and not math.isclose(
            (self.high - self.low) / self.step, round((self.high - self.low) / self.step)
        ):
            raise ValueError(f"step {self.step:g} does not lead from {self.low:g} to {self.high:g}")

    @property
    def count(self) -> float:
        """Number of values; infinite where it has no steps."""
        if not self.int and self.step is None:
            return math.inf
        return round((self.high - self.low) / (self.step or 1)) + 1

    @property
    def corners(self) -> list[Any]:
        """Both bounds."""
        return [self.of_param(self.low), self.of_param(self.high)]

    @property
    def every(self) -> list[Any]:
        """All values, where their number is finite."""
        return [self.of_param(self.low + at * (self.step or 1)) for at in range(int(self.count))]

    def holds(self, value: Any) -> bool:  # noqa: ANN401
        """Whether a value of a recipe can be drawn."""
        if isinstance(value, bool) or not isinstance(value, float | int):
            return False
        steps = 0.0 if math.isinf(self.count) else (value - self.low) / (self.step or 1)
        return self.low <= value <= self.high and math.isclose(steps, round(steps), abs_tol=1e-8)

    def of_param(self, param: Any) -> Any:  # noqa: ANN401
        """Return the value of a recipe for a number that was drawn: of four digits, within the bounds."""
        if self.int:
            return round(param)
        return min(max(float(f"{param:.{_DIGITS}g}"), self.low), self.high)

    def to_param(self, value: Any) -> Any:  # noqa: ANN401
        """Return the number that is drawn for a value of a recipe."""
        return value


class Choice(Config):
    """Values of any kind."""

    values: list[Any] = Field(min_length=1)

    @property
    def count(self) -> float:
        """Number of values."""
        return len(self.values)

    @property
    def corners(self) -> list[Any]:
        """All of them."""
        return self.values

    @property
    def every(self) -> list[Any]:
        """All of them."""
        return self.values

    def holds(self, value: Any) -> bool:  # noqa: ANN401
        """Whether a value of a recipe is among them; 5.0 is 5, and true is not 1."""
        return any(_same(value, one) for one in self.values)

    def of_param(self, param: Any) -> Any:  # noqa: ANN401
        """Return the value for the text that was drawn."""
        return json.loads(param)

    def to_param(self, value: Any) -> Any:  # noqa: ANN401
        """Return the text that is drawn for a value: a table or a list cannot be drawn."""
        return json.dumps(next((one for one in self.values if _same(value, one)), value))


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


@dataclass(frozen=True)
class Space:
    """Keys of a recipe, and what each may be."""

    axes: dict[str, Range | Choice]

    @property
    def count(self) -> float:
        """Number of combinations; infinite with a range without steps."""
        return prod(axis.count for axis in self.axes.values())

    def combinations(self) -> list[Values]:
        """Return all combinations of a finite space."""
        return [
            dict(zip(self.axes, values, strict=True))
            for values in product(*(axis.every for axis in self.axes.values()))
        ]

    def to_yaml(self) -> str:
        """Return it as YAML, every field named."""
        return write_yaml({key: axis.model_dump(mode="json") for key, axis in self.axes.items()})


def read_space(path: Path) -> Space:
    """Read a space from a file.

    Raises:
        InputError: No such file, no YAML, or entries that are neither a range nor a list; one line for each.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--space {path}: cannot be read ({error}); expected a YAML file") from error
    return parse_space(text, where=str(path))


def parse_space(text: str, *, where: str) -> Space:
    """Parse a space.

    Raises:
        InputError: As read_space.
    """
    value = read_yaml(text, where=where)
    if not isinstance(value, dict) or not value:
        raise InputError(
            f"{where}: no keys; expected a key of a recipe a line, such as "
            "training.batch_size: {values: [8, 16, 32]}"
        )
    axes, wrong = dict[str, Range | Choice](), list[str]()
    for key, entry in value.items():
        at = f"{where}: {key}"
        if not isinstance(entry, dict):
            wrong.append(f"{at}: {entry!r}; expected {{low: …, high: …}} or {{values: […]}}")
            continue
        model: type[Range] | type[Choice] = Choice if "values" in entry else Range
        try:
            axes[str(key)] = validate(model, entry, where=at)
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("\n".join(wrong))
    return Space(axes)


def parse_grid(settings: Sequence[str]) -> tuple[tuple[str, ...], Space]:
    """Return settings of one value, and the grid of those of several: KEY=VALUE,VALUE,…; a list is in brackets.

    Raises:
        InputError: No "=", no value, a key twice, or no key of several values; one line for each.
    """
    fixed, axes, wrong = list[str](), dict[str, Range | Choice](), list[str]()
    for setting in settings:
        key, equals, text = setting.partition("=")
        where = f"--set {setting}"
        if not equals or not text.strip():
            wrong.append(f"{where}: expected KEY=VALUE,VALUE,…, such as training.batch_size=8,16")
            continue
        try:
            values = read_yaml(f"[{text}]", where=where)
        except InputError as error:
            wrong.append(str(error))
            continue
        if key in axes or any(one.startswith(f"{key}=") for one in fixed):
            wrong.append(f"{where}: {key} comes twice; give all its values in one --set")
        elif len(values) == 1:
            fixed.append(f"{key}={json.dumps(values[0])}")
        elif any(value in values[:at] for at, value in enumerate(values)):
            wrong.append(f"{where}: a value comes twice; give each once")
        else:
            axes[key] = Choice(values=values)
    if not axes and not wrong:
        wrong.append("sweep: no key of several values; expected one, such as --set training.batch_size=8,16")
    if wrong:
        raise InputError("\n".join(wrong))
    return tuple(fixed), Space(axes)


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return a recipe with these values, as ``--set`` would give it.

    Raises:
        InputError: The recipe refuses one, or has no such key.
    """
    if not values:
        return recipe
    overrides = tuple(f"{key}={json.dumps(value)}" for key, value in values.items())
    return change_recipe(recipe, overrides, where=f"recipe {recipe.name}")


def values_in(recipe: Recipe, space: Space) -> Values:
    """Return the recipe's own value of each key of a space that fits it."""
    found = {}
    for key in space.axes:
        value: Any = recipe.model_dump(mode="json")
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, list) else (value or {}).get(part)
        found[key] = value
    return found


def check_space(space: Space, recipe: Recipe, *, where: str) -> None:
    """Refuse keys that the recipe does not have, or that a search must leave alone, and bounds that it refuses.

    Each bound, and each value of a list, is put into the recipe alone.

    Raises:
        InputError: A line for each.
    """
    wrong = []
    for key, axis in space.axes.items():
        if (why := _FIXED.get(key.partition(".")[0])) is not None:
            wrong.append(f"{where}: {key} cannot be searched: {why}")
            continue
        for value in axis.corners:
            try:
                with_values(recipe, {key: value})
            except InputError as error:
                wrong.append(_said(str(error), key, value, axis, where=where))
                if any(words in str(error) for words in ("no key", "has no parts", "is not an item")):
                    break
    if wrong:
        raise InputError("\n".join(wrong))


def _said(message: str, key: str, value: Any, axis: Range | Choice, *, where: str) -> str:  # noqa: ANN401
    """Return a refusal of the recipe as one of the space."""
    override = f"--set {key}={json.dumps(value)}"
    if message.startswith(f"{override}: "):
        return f"{where}: {key}: {message.removeprefix(f'{override}: ')}"
    hint = ""
    if isinstance(axis, Range) and not axis.int and "integer" in message:
        hint = "; add int: true"
    said = message.partition(f"with {override}: ")[2] or message
    return f"{where}: {key}: {json.dumps(value)} is refused: {said}{hint}"
