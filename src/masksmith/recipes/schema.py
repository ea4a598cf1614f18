"""The JSON Schema of a recipe, for editors: every key with its docstring, type, range and default. Imports no torch.

It says what pydantic checks of one value. What two values must agree on (a schedule and its fields, a loss and a head)
is checked when a recipe is read, and not by the schema.
"""

import ast
import inspect
import textwrap
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

from masksmith.losses.options import PARAMETERS
from masksmith.metrics import METRICS
from masksmith.models.architectures import ARCHITECTURES
from masksmith.models.config import ModelConfig
from masksmith.recipes.ensemble import Ensemble
from masksmith.recipes.recipe import Recipe
from masksmith.training.config import LossTerm

DIALECT = "http://json-schema.org/draft-07/schema#"
"""What editors' YAML extensions read."""


def field_texts(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings under the fields of a configuration, each on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        named = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if named and documented:
            name = typing.cast(Any, statement).target.id
            texts[name] = " ".join(str(typing.cast(Any, after).value.value).split())
    return texts


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 07) of a recipe or ensemble: a table with ``members`` is an ensemble."""
    kinds = [(Recipe, "validation"), (Ensemble, "validation")]
    _, schema = models_json_schema(typing.cast(Any, kinds), schema_generator=_Documented)
    return {
        "$schema": DIALECT,
        "title": "masksmith recipe",
        "type": "object",
        "if": {"required": ["members"]},
        "then": {"$ref": "#/$defs/Ensemble"},
        "else": {"$ref": "#/$defs/Recipe"},
        "$defs": _draft_07(schema["$defs"]),
    }


def _names(model: type[BaseModel], field: str) -> JsonSchemaValue | None:
    """Return the names that a text field is looked up among; None where it is not looked up in a table."""
    if (model, field) == (LossTerm, "name"):
        return {"enum": sorted(PARAMETERS)}
    if (model, field) == (ModelConfig, "architecture"):
        return {"enum": sorted(ARCHITECTURES)}
    if field == "metric" and model in (Recipe, Ensemble):
        with_numbers = {"type": "string", "pattern": rf"^({'|'.join(sorted(METRICS))})\(.*\)$"}
        return {"anyOf": [{"enum": sorted(METRICS)}, with_numbers]}
    return None


class _Documented(GenerateJsonSchema):
    """Adds the docstrings of fields and the names of tables; drops titles that repeat a field's name."""

    def model_schema(self, schema: Any) -> JsonSchemaValue:  # noqa: ANN401
        """Return the schema of one configuration."""
        made = super().model_schema(schema)
        model = schema["cls"]
        texts = field_texts(model)
        for name, field in made.get("properties", {}).items():
            field.pop("title", None)
            if (names := _names(model, name)) is not None:
                field.pop("type", None)
                field.update(names)
            if name in texts:
                field["description"] = texts[name].replace("``", "`")
        return made


def _draft_07(node: Any) -> Any:  # noqa: ANN401
    """Return a part of a schema as draft 07 has it: tuples as ``items``, nothing beside a ``$ref``."""
    if isinstance(node, list):
        return [_draft_07(part) for part in node]
    if not isinstance(node, dict):
        return node
    made = {key: _draft_07(part) for key, part in node.items() if key != "discriminator"}
    if "prefixItems" in made:
        made |= {"items": made.pop("prefixItems"), "additionalItems": False}
    if isinstance(made.get("$ref"), str) and len(made) > 1:
        made["allOf"] = [{"$ref": made.pop("$ref")}]
    return made
