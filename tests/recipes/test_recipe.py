import pytest

from masksmith.core.errors import InputError
from masksmith.recipes.ensemble import Ensemble, load_judge, parse_ensemble
from masksmith.recipes.recipe import (
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
    from masksmith.core.config import read_yaml

    text, where = recipe_source(name)
    written = read_yaml(text, where=where)
    assert keys_of(written) == keys_of(load_judge(name).model_dump(mode="json"))
    assert tuple(parse_header(text)) == HEADER_KEYS
    assert all(parse_header(text).values())
    assert written["name"] == name


@pytest.mark.parametrize("name", BUNDLED)
def test_yaml_round_trip(name):
    judge = load_judge(name)
    parse = parse_ensemble if isinstance(judge, Ensemble) else parse_recipe
    assert parse(judge.to_yaml(), where="x") == judge


def test_hash_changes_with_every_value_and_with_the_weights(tmp_path):
    recipe = load_recipe()
    assert load_recipe().hash == recipe.hash
    assert load_recipe(overrides=("training.stages.0.epochs=3",)).hash != recipe.hash
    hashes = []
    for content in (b"a", b"b"):
        (tmp_path / "w.safetensors").write_bytes(len(content * 2).to_bytes(8, "little") + b"{}" + content)
        hashes.append(load_recipe(overrides=(f"model.encoder_weights={tmp_path}/w.safetensors",)).hash)
    assert hashes[0] != hashes[1]


def test_what_does_not_decide_the_weights_is_not_in_the_hash():
    free = ("folds.train=1", "prediction.tta=[identity]", "tuning.resamples=500")
    assert load_recipe(overrides=free).hash == load_recipe().hash


def test_a_resolved_recipe_does_not_need_the_weights_file():
    recipe = load_recipe(overrides=("model.encoder_weights=gone.safetensors",))
    with pytest.raises(InputError, match=r"'gone\.safetensors' is no file"):
        recipe.hash  # noqa: B018
    assert load_recipe(
        overrides=("model.encoder_weights=gone.safetensors", "model.encoder_weights_hash=ab12")
    ).hash


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed: -1 is a whole number, expected|seed: -1"),
        ("folds.count=1", "folds.count: 1"),
        ("training.threads=0", "training.threads"),
        ("training.crop_hw=[0, 5]", "training.crop_hw"),
        ("training.geometry.scale_range=[1.2, 0.8]", "expected the smaller number first"),
        ("training.geometry.scale_range=[0, 1]", "training.geometry.scale_range"),
        ("tuning.top_thresholds=[1.5]", r"tuning.top_thresholds\[0\]: 1.5"),
        ("model.decoder_channels=[8, 8, 8, 0]", r"model.decoder_channels\[3\]: 0"),
        ("prediction.tta=[hflop]", "prediction.tta: 'hflop' is unknown; did you mean 'hflip'"),
    ],
)
def test_values_out_of_their_range(override, message):
    with pytest.raises(InputError, match=message):
        load_recipe(overrides=(override,))


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


def test_a_recipe_that_is_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match=r"x\.yaml: not a UTF-8 text file \(byte 6\)"):
        load_recipe(str(tmp_path / "x.yaml"))
