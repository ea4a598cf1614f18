"""The words of a recipe: every model, loss, metric, schedule … with its parameters and one line on what it does.

Read from the tables that the program itself looks names up in, so a word that is listed can be used.
"""

import ast
import inspect
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from masksmith.augment import AugmentConfig, GeometryConfig, IntensityConfig, MixingConfig
from masksmith.augment.presets import GEOMETRY_PRESETS
from masksmith.core.config import look_up
from masksmith.losses.build import LOSSES
from masksmith.metrics import METRICS
from masksmith.models.architectures import ARCHITECTURES
from masksmith.models.config import ModelConfig
from masksmith.prediction.runtimes import RUNTIMES
from masksmith.prediction.tta import TTA
from masksmith.preprocess import SizeConfig
from masksmith.recipes.ensemble import Ensemble, EnsembleMember
from masksmith.recipes.recipe import PseudoConfig
from masksmith.training.config import SamplerConfig, SwaConfig
from masksmith.training.optim import OPTIMIZERS, SCHEDULES

_COLUMN = 34
_FROM_PYTHON = {"cross_entropy": " From Python only: the masks of a recipe have one class."}


@dataclass(frozen=True)
class Word:
    """One name that a recipe can hold."""

    name: str
    describes: str
    """One line; empty where the name says it."""
    params: str = ""
    """Its parameters with their defaults, such as "gamma=2.0, alpha=None"."""
    default: str = ""
    """For a field: its default, as it stands in a recipe."""

    @property
    def shown(self) -> str:
        """How it is written: a name, a name with parameters, or a field with its default."""
        if self.default:
            return f"{self.name}: {self.default}"
        return f"{self.name}({self.params})" if self.params else self.name

    def __str__(self) -> str:
        if len(self.shown) > _COLUMN and self.describes:
            return f"{self.shown}\n{'':{_COLUMN + 3}s}{self.describes}"
        return f"{self.shown:{_COLUMN}s} {self.describes}".rstrip()


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    return [one for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY]


def _of_function(name: str, function: Callable[..., object], *, params: bool) -> Word:
    keywords = _parameters(function)
    shown = ", ".join(f"{one.name}={one.default!r}" for one in keywords) if params else ""
    return Word(name, _first_line(function) + _FROM_PYTHON.get(name, ""), shown)


def _functions(table: Mapping[str, Callable[..., object]], *, params: bool = False) -> list[Word]:
    return [_of_function(name, function, params=params) for name, function in table.items()]


def _names(table: Iterable[str]) -> list[Word]:
    return [Word(name, "") for name in table]


def _choices(model: type[BaseModel], field: str) -> list[Word]:
    return _names(typing.get_args(model.model_fields[field].annotation))


def _fields(*models: type[BaseModel]) -> list[Word]:
    """Return the fields of configurations, each described by the text under it."""
    words = []
    for model in models:
        texts = field_texts(model)
        for name, field in model.model_fields.items():
            words.append(Word(name, texts.get(name, ""), default=_in_yaml(field)))
    return words


def _in_yaml(field: FieldInfo) -> str:
    """Return a field's default as it is written in a recipe, on one line."""
    if field.is_required():
        return "(must be given)"
    value = field.get_default(call_default_factory=True)
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = yaml.safe_dump(
        list(plain) if isinstance(plain, tuple) else plain,
        default_flow_style=True,
        sort_keys=False,
        width=10_000,
    )
    return text.removesuffix("...\n").strip()


def field_texts(model: type[BaseModel]) -> dict[str, str]:
    """Return the texts that stand under the fields of a configuration in its source, on one line each."""
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        named = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if named and told:
            name = typing.cast(Any, statement).target.id
            texts[name] = " ".join(str(typing.cast(Any, after).value.value).split())
    return texts


def _metrics() -> list[Word]:
    return [
        Word(name, make().describes, ", ".join(f"{one.name}={one.default!r}" for one in _parameters(make)))
        for name, make in METRICS.items()
    ]


KINDS: dict[str, Callable[[], list[Word]]] = {
    "models": lambda: [Word(name, traits.describes) for name, traits in ARCHITECTURES.items()],
    "losses": lambda: _functions(LOSSES, params=True),
    "metrics": _metrics,
    "augmentation": lambda: _fields(GeometryConfig, IntensityConfig, MixingConfig, AugmentConfig),
    "presets": lambda: _names(GEOMETRY_PRESETS),
    "optimizers": lambda: _names(OPTIMIZERS),
    "schedules": lambda: _functions(SCHEDULES),
    "samplers": lambda: _choices(SamplerConfig, "name"),
    "sampling": lambda: _fields(SamplerConfig),
    "averaging": lambda: _fields(SwaConfig),
    "model options": lambda: _fields(ModelConfig),
    "size": lambda: _fields(SizeConfig),
    "pseudo-labels": lambda: _fields(PseudoConfig),
    "ensembles": lambda: _fields(Ensemble, EnsembleMember),
    "views": lambda: _names(TTA),
    "runtimes": lambda: _names(RUNTIMES),
}
"""Kind of word -> all words of that kind."""


@dataclass(frozen=True)
class Vocabulary:
    """Words by kind; ``print`` shows them."""

    words: dict[str, list[Word]]

    def __str__(self) -> str:
        return "\n\n".join(
            "\n".join([f"{kind}:", *(f"  {word}" for word in words)]) for kind, words in self.words.items()
        )


def read_vocabulary(kind: str | None = None) -> Vocabulary:
    """Return the words of a kind, or of all.

    Raises:
        InputError: An unknown kind; the message suggests the nearest.
    """
    if kind is None:
        return Vocabulary({name: listed() for name, listed in KINDS.items()})
    return Vocabulary({kind: look_up(KINDS, kind, where="vocabulary")()})
