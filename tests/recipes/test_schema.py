"""The JSON Schema for editors: it takes all bundled recipes, and refuses what a recipe's reader refuses."""

import copy
import json
import re

import jsonschema
import pytest
from typer.testing import CliRunner

import masksmith as ms
from masksmith.cli import app
from masksmith.core.config import Config, read_yaml
from masksmith.core.errors import InputError
from masksmith.recipes.ensemble import parse_ensemble
from masksmith.recipes.recipe import parse_recipe
from masksmith.recipes.schema import field_texts
from masksmith.recipes.sources import list_recipes


@pytest.fixture(scope="module")
def validator():
    schema = ms.recipe_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_it_takes_every_bundled_recipe_and_one_as_it_is_resolved(validator):
    texts = {listed.name: listed.text for listed in list_recipes()}
    texts["resolved"] = parse_recipe(texts["smoke"], where="smoke").to_yaml()
    for name, text in texts.items():
        errors = [
            f"{one.json_path}: {one.message}" for one in validator.iter_errors(read_yaml(text, where=name))
        ]
        assert not errors, (name, errors)


WRONG = (
    (("trainingx",), {}),
    (("training", "stages", 0, "epochs"), 0),
    (("training", "stages", 0, "epochs"), "3"),
    (("training", "stages", 0, "loss", 0, "name"), "dise"),
    (("training", "stages", 0, "schedule", "name"), "two_cycle"),
    (("training", "stages"), []),
    (("model", "architecture"), "u_net"),
    (("metric",), "iou"),
    (("metric",), "iou(empty_score=0)"),
    (("size", "pad_hw"), [224]),
    (("size", "pad_hw"), [224, 224, 3]),
    (("name",), "My recipe"),
    (("folds", "count"), 1),
    (("members",), []),
)


def test_what_it_refuses_is_refused_by_the_reader_too(validator):
    plain = read_yaml(next(one.text for one in list_recipes() if one.name == "smoke"), where="smoke")
    for path, value in WRONG:
        wrong = copy.deepcopy(plain)
        at = wrong
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value
        assert not validator.is_valid(wrong), path
        read = parse_ensemble if "members" in wrong else parse_recipe
        with pytest.raises(InputError):
            read(json.dumps(wrong), where="wrong")
    assert validator.is_valid(plain | {"metric": "f_beta_objects(beta=1)"})


def test_every_key_is_described(validator):
    def models(kind=Config):
        return [kind, *(one for sub in kind.__subclasses__() for one in models(sub))]

    by_name = {model.__name__: model for model in models() if model.__module__.startswith("masksmith.")}
    bare = {
        f"{name}.{key}"
        for name, part in validator.schema["$defs"].items()
        for key, field in part["properties"].items()
        if "description" not in field and not re.search(r"\$ref|const", json.dumps(field))
    }
    assert not bare
    for name, part in validator.schema["$defs"].items():
        texts = field_texts(by_name[name])
        assert all(
            part["properties"][key]["description"] == text.replace("``", "`") for key, text in texts.items()
        )


def test_the_command_prints_it_and_stands_alone(validator):
    done = CliRunner().invoke(app, ["recipes", "--schema"])
    assert json.loads(done.output) == validator.schema
    for more, came in ((["auto"], "'auto'"), (["--verify"], "--verify")):
        done = CliRunner().invoke(app, ["recipes", "--schema", *more])
        assert isinstance(done.exception, InputError)
        assert str(done.exception).startswith(f"recipes --schema: came with {came}; expected it alone")
