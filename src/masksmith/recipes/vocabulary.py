"""The options of a recipe: every model, loss, metric, schedule … with its parameters and one line of description.

Read from the tables that masksmith looks names up in, so every listed option can be used.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from masksmith.augment import AugmentConfig, GeometryConfig, IntensityConfig, MixingConfig
from masksmith.augment.presets import GEOMETRY_PRESETS
from masksmith.core.config import look_up
from masksmith.losses.build import LOSSES
from masksmith.metrics import METRICS
from masksmith.models.architectures import ARCHITECTURES, encoder_family
from masksmith.models.config import ModelConfig
from masksmith.models.encoders import known_encoders
from masksmith.postprocess.config import Operator, TuningConfig
from masksmith.prediction.config import PredictionConfig
from masksmith.prediction.runtimes import RUNTIMES
from masksmith.prediction.tta import TTA
from masksmith.preprocess import SizeConfig
from masksmith.recipes.ensemble import Ensemble, EnsembleMember
from masksmith.recipes.pseudo import PseudoConfig, QuotaConfig, TeacherConfig
from masksmith.recipes.schema import field_texts
from masksmith.training.config import SamplerConfig, Stage, SwaConfig, TrainingConfig
from masksmith.training.optim import OPTIMIZERS, SCHEDULES

_COLUMN = 34
_FROM_PYTHON = {"cross_entropy": " From Python only: the masks of a recipe have one class."}


@dataclass(frozen=True)
class Option:
    """One name that a recipe can contain."""

    name: str
    description: str
    """One line; empty if the name says it all."""
    params: str = ""
    """Its parameters with their defaults, such as "gamma=2.0, alpha=None"."""
    default: str = ""
    """For a field: its default, as written in a recipe."""

    @property
    def shown(self) -> str:
        """How it is written: a name, a name with parameters, or a field with its default."""
        if self.default:
            return f"{self.name}: {self.default}"
        return f"{self.name}({self.params})" if self.params else self.name

    def __str__(self) -> str:
        if len(self.shown) > _COLUMN and self.description:
            return f"{self.shown}\n{'':{_COLUMN + 3}s}{self.description}"
        return f"{self.shown:{_COLUMN}s} {self.description}".rstrip()


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    return [one for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY]


def _of_function(name: str, function: Callable[..., object], *, params: bool) -> Option:
    keywords = _parameters(function)
    shown = ", ".join(f"{one.name}={one.default!r}" for one in keywords) if params else ""
    return Option(name, _first_line(function) + _FROM_PYTHON.get(name, ""), shown)


def _functions(table: Mapping[str, Callable[..., object]], *, params: bool = False) -> list[Option]:
    return [_of_function(name, function, params=params) for name, function in table.items()]


def _names(table: Iterable[str]) -> list[Option]:
    return [Option(name, "") for name in table]


def _choices(model: type[BaseModel], field: str) -> list[Option]:
    return _names(typing.get_args(model.model_fields[field].annotation))


def _fields(*models: type[BaseModel]) -> list[Option]:
    """Return the fields of configurations, each described by the docstring under it."""
    options = []
    for model in models:
        texts = field_texts(model)
        for name, field in model.model_fields.items():
            options.append(Option(name, texts.get(name, ""), default=_in_yaml(field)))
    return options


def _plain_fields(model: type[BaseModel]) -> list[Option]:
    """Return the fields of a configuration without those that are configurations, which have kinds of their own."""
    nested = {
        name
        for name, field in model.model_fields.items()
        if not field.is_required() and isinstance(field.get_default(call_default_factory=True), BaseModel)
    }
    return [option for option in _fields(model) if option.name not in nested]


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


def _metrics() -> list[Option]:
    return [
        Option(name, make().describes, ", ".join(f"{one.name}={one.default!r}" for one in _parameters(make)))
        for name, make in METRICS.items()
    ]


def _operators() -> list[Option]:
    models = typing.get_args(typing.get_args(Operator)[0])
    return [
        Option(
            typing.get_args(model.model_fields["op"].annotation)[0],
            _first_line(model),
            ", ".join(
                name if field.is_required() else f"{name}={_in_yaml(field)}"
                for name, field in model.model_fields.items()
                if name != "op"
            ),
        )
        for model in models
    ]


KINDS: dict[str, Callable[[], list[Option]]] = {
    "models": lambda: [Option(name, traits.describes) for name, traits in ARCHITECTURES.items()],
    "encoders": lambda: [Option(name, encoder_family(name)) for name in known_encoders()],
    "losses": lambda: _functions(LOSSES, params=True),
    "metrics": _metrics,
    "augmentation": lambda: _fields(GeometryConfig, IntensityConfig, MixingConfig, AugmentConfig),
    "presets": lambda: _names(GEOMETRY_PRESETS),
    "optimizers": lambda: _names(OPTIMIZERS),
    "schedules": lambda: _functions(SCHEDULES),
    "samplers": lambda: _choices(SamplerConfig, "name"),
    "sampling": lambda: _fields(SamplerConfig),
    "training": lambda: _plain_fields(TrainingConfig),
    "stages": lambda: _plain_fields(Stage),
    "prediction": lambda: _plain_fields(PredictionConfig),
    "tuning": lambda: _fields(TuningConfig),
    "operators": _operators,
    "averaging": lambda: _fields(SwaConfig),
    "model options": lambda: _fields(ModelConfig),
    "size": lambda: _fields(SizeConfig),
    "pseudo-labels": lambda: _fields(PseudoConfig, QuotaConfig, TeacherConfig),
    "ensembles": lambda: _fields(Ensemble, EnsembleMember),
    "views": lambda: _names(TTA),
    "runtimes": lambda: _names(RUNTIMES),
}
"""Kind of option -> function that lists all options of that kind."""


@dataclass(frozen=True)
class Vocabulary:
    """Options by kind; ``print`` shows them."""

    options: dict[str, list[Option]]

    def __str__(self) -> str:
        return "\n\n".join(
            "\n".join([f"{kind}:", *(f"  {option}" for option in options)])
            for kind, options in self.options.items()
        )


def read_vocabulary(kind: str | None = None) -> Vocabulary:
    """Return the options of a kind, or all.

    Raises:
        InputError: An unknown kind; the message suggests the nearest.
    """
    if kind is None:
        return Vocabulary({name: listed() for name, listed in KINDS.items()})
    return Vocabulary({kind: look_up(KINDS, kind, where="vocabulary")()})
