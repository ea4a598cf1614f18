import pytest

from masksmith.core.config import read_yaml
from masksmith.core.errors import InputError
from masksmith.recipes.ensemble import Ensemble, load_any, parse_ensemble
from masksmith.recipes.recipe import Recipe, load_recipe, parse_recipe
from masksmith.recipes.sources import HEADER_KEYS, list_recipes, parse_header


def keys_of(value, path=""):
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path} | {found for key, part in parts for found in keys_of(part, f"{path}.{key}")}


@pytest.mark.slow
def test_bundled_recipes_are_complete_have_their_header_and_round_trip():
    for listing in list_recipes():
        name, recipe = listing.name, load_any(listing.name)
        written = read_yaml(listing.text, where=name)
        assert keys_of(written) == keys_of(recipe.model_dump(mode="json")), name
        assert tuple(listing.header) == HEADER_KEYS, name
        assert all(listing.header.values()), name
        assert written["name"] == name
        parse = parse_ensemble if isinstance(recipe, Ensemble) else parse_recipe
        assert parse(recipe.to_yaml(), where="x") == recipe, name


def test_the_hash_is_over_what_determines_the_weights(tmp_path):
    def hash_of(*overrides):
        return load_recipe("smoke", overrides).hash

    assert hash_of("folds.train=2", "prediction.tta=[identity, hflip]", "tuning.resamples=500") == hash_of()
    hashes = {hash_of(), hash_of("training.stages.0.epochs=3")}
    for content in (b"a", b"b"):
        (tmp_path / "w.safetensors").write_bytes(len(content * 2).to_bytes(8, "little") + b"{}" + content)
        hashes.add(hash_of(f"model.encoder_weights={tmp_path}/w.safetensors"))
    assert len(hashes) == 4
    with pytest.raises(InputError, match=r"'gone\.safetensors' is no file"):
        hash_of("model.encoder_weights=gone.safetensors")
    assert hash_of("model.encoder_weights=gone.safetensors", "model.encoder_weights_hash=ab12")  # resolved


def test_values_out_of_their_range():
    for override, message in (
        ("seed=-1", "seed: -1"),
        ("folds.count=1", "folds.count: 1"),
        ("folds.train=9", "folds.train: 9 of 5 folds"),
        ("training.threads=0", "training.threads"),
        ("training.crop_hw=[0, 5]", "training.crop_hw"),
        ("training.geometry.scale_range=[1.2, 0.8]", "expected the smaller number first"),
        ("training.geometry.scale_range=[0, 1]", "training.geometry.scale_range"),
        ("tuning.top_thresholds=[1.5]", r"tuning.top_thresholds\[0\]: 1.5"),
        ("model.decoder_channels=[8, 8, 8, 0]", r"model.decoder_channels\[3\]: 0"),
        ("prediction.tta=[hflop]", "prediction.tta: 'hflop' is unknown; did you mean 'hflip'"),
    ):
        with pytest.raises(InputError, match=message):
            load_recipe(overrides=(override,))
    with pytest.raises(InputError, match=r"x: training\.stages: missing; add it"):
        parse_recipe("name: x\ntraining: {}", where="x")


def test_overrides_change_only_what_they_name():
    changed = load_recipe(
        overrides=(
            "folds.train=1",
            "training.stages.1.optimizer.lr=1e-4",
            "training.stages.1.sampler={name: class_aware}",
        )
    )
    assert changed.folds.train == 1
    assert changed.training.stages[1].optimizer.lr == 1e-4
    assert changed.training.stages[1].sampler.name == "class_aware"
    assert changed.training.stages[0] == load_recipe().training.stages[0]


def test_headers_continue_and_a_schema_can_be_made():
    header = parse_header("# source: a\n#   and b\n# ours: c\nname: x\n# cost: d")
    assert header == {"source": "a and b", "ours": "c"}
    assert "training" in Recipe.model_json_schema()["properties"]


def test_a_recipe_that_is_not_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match=r"x\.yaml: not a UTF-8 text file \(byte 6\)"):
        load_recipe(str(tmp_path / "x.yaml"))
