"""Configuration: frozen pydantic models, strict YAML, dotted overrides, and error messages that say what to do."""

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from masksmith.core.errors import InputError

Value = TypeVar("Value")
Model = TypeVar("Model", bound=BaseModel)


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


_SCALARS = (str, int, float, type(None))  # bool is an int
_MAX_TEXT = 2**18  # a recipe has about 3,000 characters …
_MAX_NODES = 100_000  # … and 150 values; aliases of aliases can make billions of one page


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-3`` is a number and duplicate keys are an error."""


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads: text that looks like ``1e-3`` is quoted."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$"),
        list("-+0123456789."),
    )


def _mapping_without_duplicates(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, _SCALARS):
            raise yaml.constructor.ConstructorError(
                None, None, "a key must be text or a number", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def read_yaml(text: str, *, where: str) -> Any:  # noqa: ANN401
    """Parse YAML safely.

    Raises:
        InputError: ``where`` is not valid YAML, has a duplicate key or a value of a type that JSON lacks (a date), or
            is larger than any recipe, as text or with its aliases expanded.
    """
    if len(text) > _MAX_TEXT:
        raise InputError(
            f"{where}: {len(text):,} characters; expected a recipe, at most {_MAX_TEXT:,} are read"
        )
    try:
        value = yaml.load(text, Loader=_Loader)
        if _count_nodes(value, {}) > _MAX_NODES:
            raise InputError(
                f"{where}: it expands to more than {_MAX_NODES:,} values; write the values out, without aliases"
            )
        return value
    except RecursionError as error:
        raise InputError(f"{where}: nested too deeply to be a recipe") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise InputError(
            f"{where}:{line} not valid YAML: {getattr(error, 'problem', None) or error}"
        ) from error
    except InputError:
        raise
    except (ValueError, TypeError) as error:  # an impossible date, a number of thousands of digits, …
        raise InputError(f"{where}: a value cannot be read ({error}); put it in quotes") from error


def _count_nodes(value: Any, known: dict[int, int]) -> int:  # noqa: ANN401
    """Return the number of values of parsed YAML with every alias expanded; shared parts are visited once."""
    if isinstance(value, _SCALARS):
        return 1
    if not isinstance(value, dict | list):
        raise TypeError(f"{value!r} is read as {type(value).__name__}")
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count_nodes(part, known) for part in parts)
    return known[id(value)]


def write_yaml(value: Any) -> str:  # noqa: ANN401
    """Return ``value`` as YAML in the order of its keys."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def suggest(word: object, known: Iterable[object]) -> str:
    """Return "did you mean 'x'? Known: a, b, x", for the end of an error message."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"


def look_up(table: Mapping[str, Value], name: str, *, where: str) -> Value:
    """Return ``table[name]``.

    Raises:
        InputError: The name is unknown; the message suggests the nearest and lists all.
    """
    if name not in table:
        raise InputError(f"{where}: {name!r} is unknown; {suggest(name, table)}")
    return table[name]


def _name_of(value: object) -> str:
    kinds = {bool: "true/false", str: "text", int: "a whole number", float: "a number", type(None): "nothing"}
    return kinds.get(type(value), "a list" if isinstance(value, list | tuple) else "a table")


def _fields_at(model: Any, path: tuple[int | str, ...]) -> list[str]:  # noqa: ANN401
    """Return the field names that the model has at ``path`` (without its last part)."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        if len(path) <= 1:
            return list(model.model_fields)
        field = model.model_fields.get(str(path[0]))
        return _fields_at(field.annotation, path[1:]) if field else []
    found: list[str] = []
    for part in typing.get_args(model):
        skip = 0 if typing.get_origin(model) in (typing.Union, types.UnionType, typing.Annotated) else 1
        found = found or _fields_at(part, path[skip:])
    return found


def _explain(model: type[BaseModel], error: Any) -> str:  # noqa: ANN401
    path = tuple(part for part in error["loc"] if not (isinstance(part, str) and "[" in part))
    spot = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if error["type"] == "extra_forbidden":
        return f"{spot}: unknown key; {suggest(path[-1], _fields_at(model, path))}"
    if error["type"] == "missing":
        return f"{spot}: missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    message = re.sub(r"^Input should be (a valid )?", "expected ", message).replace(
        "boolean", "true or false"
    )
    if error["type"] == "value_error":
        return f"{spot}: {message}"
    return f"{spot}: {error['input']!r} is {_name_of(error['input'])}, {message}"


def validate(model: type[Model], value: Any, *, where: str) -> Model:  # noqa: ANN401
    """Check ``value`` (plain dicts and lists) against a configuration model.

    Raises:
        InputError: Unknown key, missing key or wrong type; one line each, with the path of the key.
    """
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(model, one) for one in error.errors()))
        raise InputError("\n".join(f"{where}: {line}" for line in lines)) from error


def apply_overrides(value: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of ``value`` with dotted overrides such as ``training.stages.0.epochs=3`` applied.

    Args:
        value: A complete recipe as plain dicts and lists.
        overrides: ``KEY=VALUE``; the value is read as YAML, list items are addressed by number. A last number with a
            colon means the items from there on: ``training.stages.3:=[]`` keeps only the first three stages.

    Raises:
        InputError: No "=", an unknown key (with the nearest known one), or items of a list replaced by no list.
    """
    changed = json.loads(json.dumps(value))
    for override in overrides:
        key, equals, text = override.partition("=")
        where = f"--set {override}"
        if not equals:
            raise InputError(f"{where}: expected KEY=VALUE, for example training.stages.0.epochs=3")
        _set(changed, key.split("."), read_yaml(text, where=where), where=where)
    return changed


def _set(node: Any, path: list[str], value: Any, *, where: str) -> None:  # noqa: ANN401
    head, rest = path[0], path[1:]
    if isinstance(node, list) and head.endswith(":") and not rest:
        _set_rest(node, head.removesuffix(":"), value, where=where)
        return
    if isinstance(node, list):
        if not head.isdigit() or int(head) >= len(node):
            raise InputError(
                f"{where}: {head!r} is not an item of a list of {len(node)}; expected 0 to {len(node) - 1}"
            )
        index: int | str = int(head)
    elif isinstance(node, dict):
        if head not in node:
            raise InputError(f"{where}: no key {head!r}; {suggest(head, node)}")
        index = head
    else:
        raise InputError(f"{where}: {head!r} would lie inside the value {node!r}, which has no parts")
    if not rest:
        node[index] = value
        return
    if node[index] is None:
        node[index] = {rest[0]: None}
    _set(node[index], rest, value, where=where)


def _set_rest(items: list[Any], first: str, value: Any, *, where: str) -> None:  # noqa: ANN401
    """Replace the items of a list from number ``first`` on."""
    if not first.isdigit() or int(first) > len(items):
        raise InputError(
            f"{where}: {first!r} is not a position in a list of {len(items)}; expected 0 to {len(items)}"
        )
    if not isinstance(value, list):
        raise InputError(
            f"{where}: {value!r} is {_name_of(value)}; items of a list are replaced by a list, such as []"
        )
    items[int(first) :] = value
