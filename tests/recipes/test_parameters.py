"""docs/systems/parameters.csv: what each source says, and that the recipe says it, or why not."""

import csv
from functools import cache
from pathlib import Path

import pytest
import yaml

from masksmith.recipes.ensemble import load_any, member_recipes
from masksmith.recipes.recipe import Recipe
from masksmith.recipes.sources import list_recipes

TABLE = Path(__file__).parents[2] / "docs" / "systems" / "parameters.csv"
OURS = "auto", "smoke", "tgs-best", "tgs-pseudo", "water-unet"
"""Recipes, or beginnings of their names, that come from no source."""


def rows():
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


@cache
def members_of(name):
    return member_recipes(load_any(name))


def value_of(recipe, key):
    """Return the value of a dotted key as YAML has it; a loss is {name: weight}, a member the recipe that it means."""
    if key.startswith("members."):
        _, number, key = key.split(".", 2)
        recipe = members_of(recipe.name)[int(number)]
    value = recipe.model_dump(mode="json")
    for part in key.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    return {term["name"]: term["weight"] for term in value} if key.endswith(".loss") else value


def faults(row, recipe):
    """Return what is wrong with a row, as texts."""
    ours = yaml.safe_load(row["ours"])
    found = value_of(recipe, row["key"])
    same = found == (pytest.approx(ours, abs=5e-5) if isinstance(ours, float) else ours)
    said = f"{row['recipe']} {row['key']}"
    wrong = [] if same else [f"{said}: {found!r}, and the table has {ours!r}"]
    if yaml.safe_load(row["source"]) != ours and not row["why"]:
        wrong.append(f"{said}: why {row['source']!r} became {row['ours']!r}")
    return wrong


def test_every_row_is_what_the_recipe_says():
    table = rows()
    recipes = {name: load_any(name) for name in {row["recipe"] for row in table}}
    assert [fault for row in table for fault in faults(row, recipes[row["recipe"]])] == []
    assert len({(row["recipe"], row["key"]) for row in table}) == len(table)


def test_every_published_recipe_has_rows():
    asked = {one.name for one in list_recipes() if not one.name.startswith(OURS)}
    assert asked == {row["recipe"] for row in rows()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ours": "0.3"}, "0.002, and the table has 0.3"),
        ({"source": "0.1"}, "why '0.1' became '0.002'"),
        ({}, None),
    ],
)
def test_rows_that_lie_are_found(change, message):
    row = {
        "recipe": "cloud-unet",
        "key": "training.stages.0.optimizer.lr",
        "source": "0.002",
        "ours": "0.002",
    }
    recipe = load_any("cloud-unet")
    assert isinstance(recipe, Recipe)
    found = faults(row | {"why": ""} | change, recipe)
    assert message is None or any(message in one for one in found)
    assert (found == []) == (message is None)
