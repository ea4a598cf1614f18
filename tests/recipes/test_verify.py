import json
import subprocess
import sys

import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.preprocess import SizeConfig
from masksmith.recipes.recipe import load_recipe
from masksmith.recipes.sources import list_recipes
from masksmith.recipes.verify import (
    SCALES,
    Facts,
    Verdicts,
    Verified,
    _differences,
    _ends_at_once,
    golden,
    refuse_failed,
    scaled,
    scaled_size,
)

BUNDLED = [listing.name for listing in list_recipes("recipe")]
ENSEMBLES = [listing.name for listing in list_recipes("ensemble")]
FACTS = Facts(100, ["input 1 8x8", "head 1 8x8"], [1.0, 0.9, 0.8, 0.7])


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_recipes_are_what_they_were(name):
    print(ms.verify(name))


@pytest.mark.parametrize("name", ENSEMBLES)
def test_bundled_ensembles_have_members_that_agree(name):
    assert "members that agree on folds and metric" in str(ms.verify(name))


def test_golden_has_every_recipe_and_no_other():
    assert sorted(golden()) == sorted(BUNDLED)
    assert all(len(entry["losses"]) == 4 for entry in golden().values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": 101}, "100 weights, expected 101"),
        ({"trace": ["input 1 8x8", "head 1 9x9"]}, "size trace: 'head 1 8x8', expected 'head 1 9x9'"),
        ({"trace": ["input 1 8x8"]}, "size trace: it has another length"),
        ({"losses": [1.0, 0.9, 0.8, 0.702]}, "losses, expected 1.0000 0.9000 0.8000 0.7020"),
        ({"losses": [float("nan"), 0.9, 0.8, 0.7]}, "losses, expected nan 0.9000 0.8000 0.7000"),
    ],
)
def test_a_planted_change_is_found(change, said):
    assert _differences(FACTS, FACTS.to_json(), scale="small") == []
    assert _differences(FACTS, FACTS.to_json() | change, scale="small") == [said]


def test_losses_are_compared_at_the_scale_that_they_were_written_at():
    assert _differences(FACTS, FACTS.to_json() | {"losses": [9.0] * 4}, scale="full") == []
    assert "losses not compared" in str(Verified("a", FACTS, 0.97, [], "full"))
    assert "not compared" not in str(Verified("a", FACTS, 0.97, []))


def test_a_recipe_that_nothing_is_written_of():
    assert "nothing is written down of it" in _differences(FACTS, None, scale="small")[0]


def test_a_failed_check_is_an_error_that_names_it():
    good, bad = Verified("a", FACTS, 0.97, []), Verified("b", FACTS, 0.5, ["IoU 0.500 on the eight images"])
    refuse_failed(Verdicts([good]))
    assert str(Verdicts([good])).endswith("1 of 1 recipes verified")
    with pytest.raises(InputError, match=r"recipes: b failed the check:\na: .*\nb: .*IoU 0\.500"):
        refuse_failed(Verdicts([good, bad]))


def test_an_unknown_scale():
    with pytest.raises(InputError, match=r"--scale: 'smal' is unknown; did you mean 'small'"):
        scaled(load_recipe(), "smal")


def test_small_is_narrow_and_short_and_full_is_the_recipe():
    recipe = load_recipe(overrides=("size.pad_hw=[224, 224]", "size.resize_hw=[192, 192]"))
    small, full = scaled(recipe, "small"), scaled(recipe, "full")
    assert small.model.decoder_channels == [32, 16, 16, 16]
    assert small.size == SizeConfig(resize_hw=(55, 55), pad_hw=(64, 64))
    assert (full.model.decoder_channels, full.size) == (recipe.model.decoder_channels, recipe.size)
    assert scaled_size(SizeConfig(), 32, SCALES["small"].side) == SizeConfig()


@pytest.mark.parametrize(
    ("encoder", "light"),
    [
        ("resnet18", "resnet18"),
        ("resnet34", "tu-test_resnet"),
        ("tu-resnet101", "tu-test_resnet"),
        ("se_resnext50_32x4d", "tu-test_resnet"),
        ("tf_efficientnet_b4.ns_jft_in1k", "tf_efficientnet_b0"),
        ("tu-tf_efficientnetv2_s", "tf_efficientnetv2_b0"),
        ("efficientnet-b4", "efficientnet-b0"),
        ("vgg13", "vgg11"),
        ("mobilenet_v2", "mobilenet_v2"),
    ],
)
def test_heavy_encoders_have_a_light_one_at_the_small_scale(encoder, light):
    recipe = load_recipe(overrides=(f"model.encoder={encoder}",))
    assert scaled(recipe, "small").model.encoder == light
    assert scaled(recipe, "full").model.encoder == encoder


def test_a_stem_that_keeps_the_size_has_a_canvas_of_half_the_side():
    recipe = load_recipe(
        overrides=("size.pad_hw=[128, 128]", "model.encoder=resnet34", "model.stem=conv3x3_stride1")
    )
    assert scaled(recipe, "small").size.pad_hw == (32, 32)


def test_the_first_stage_is_looked_at_on_the_drawn_images_alone():
    recipe = load_recipe("tgs-resnet34-hyper")
    assert recipe.training.stages[0].data == "pseudo"
    assert _ends_at_once(recipe.training, 2).stages[0].data == "labelled"
    sampled = _ends_at_once(load_recipe("siim-unet-resnet50").training, 2).stages[0]
    assert sampled.sampler.name == "plain", "all drawn images have foreground"


def test_the_command_line_ends_with_2_where_a_recipe_has_changed(tmp_path):
    code = (
        "import sys, masksmith.recipes.verify as v\n"
        "v.golden = lambda: {}\n"
        "v.learn = lambda recipe, data: 1.0\n"
        "sys.argv = ['masksmith', 'recipes', 'auto', '--verify']\n"
        "from masksmith.cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "auto failed the check" in done.stderr


def test_golden_is_rounded_json():
    assert json.loads(json.dumps(FACTS.to_json())) == FACTS.to_json()
