import pytest

from masksmith.errors import InputError
from masksmith.recipe import (
    HEADER_KEYS,
    Recipe,
    list_recipes,
    load_recipe,
    parse_header,
    parse_recipe,
    recipe_source,
)

BUNDLED = [listing.name for listing in list_recipes()]


def keys_of(value, path=""):
    if isinstance(value, dict):
        return {
            found
            for key, part in value.items()
            for found in {f"{path}.{key}"} | keys_of(part, f"{path}.{key}")
        }
    if isinstance(value, list):
        return {found for i, part in enumerate(value) for found in keys_of(part, f"{path}.{i}")}
    return set()


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_recipes_are_complete_and_have_their_header(name):
    from masksmith.config import read_yaml

    text, where = recipe_source(name)
    written = read_yaml(text, where=where)
    assert keys_of(written) == keys_of(load_recipe(name).model_dump(mode="json"))
    assert tuple(parse_header(text)) == HEADER_KEYS
    assert all(parse_header(text).values())
    assert written["name"] == name


@pytest.mark.parametrize("name", BUNDLED)
def test_yaml_round_trip(name):
    recipe = load_recipe(name)
    assert parse_recipe(recipe.to_yaml(), where="x") == recipe


def test_hash_changes_with_every_value_and_with_the_weights(tmp_path):
    recipe = load_recipe()
    assert load_recipe().hash == recipe.hash
    assert load_recipe(overrides=("training.stages.0.epochs=3",)).hash != recipe.hash
    hashes = []
    for content in (b"a", b"b"):
        (tmp_path / "w.safetensors").write_bytes(content)
        hashes.append(load_recipe(overrides=(f"model.encoder_weights={tmp_path}/w.safetensors",)).hash)
    assert hashes[0] != hashes[1]


def test_overrides_change_what_they_name_only():
    changed = load_recipe(overrides=("folds.train=1", "training.stages.1.optimizer.lr=1e-4"))
    assert changed.folds.train == 1
    assert changed.training.stages[1].optimizer.lr == 1e-4
    assert changed.training.stages[0] == load_recipe().training.stages[0]


def test_header_lines_continue():
    header = parse_header("# source: a\n#   and b\n# ours: c\nname: x\n# cost: d")
    assert header == {"source": "a and b", "ours": "c"}


def test_missing_key():
    with pytest.raises(InputError, match=r"x: training\.stages: missing; add it"):
        parse_recipe("name: x\ntraining: {}", where="x")


def test_a_schema_for_editors():
    schema = Recipe.model_json_schema()
    assert "training" in schema["properties"]
