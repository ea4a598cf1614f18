import json
import subprocess
import sys

import numpy as np
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
    differences,
    drawn_images,
    facts_of,
    four_losses,
    golden,
    refuse_failed,
    scaled,
    scaled_size,
)

pytestmark = pytest.mark.slow

LEARNT = ["auto-classes", "auto-objects", "smoke", "water-unet"]
BUNDLED = [listing.name for listing in list_recipes("recipe")]
FACTS = Facts(100, ["input 1 8x8", "head 1 8x8"], [1.0, 0.9, 0.8, 0.7])


@pytest.mark.parametrize("name", LEARNT)
def test_a_recipe_is_verified(name):
    assert "eight images learnt" in str(ms.verify(name))


@pytest.mark.parametrize("name", sorted({*BUNDLED} - {*LEARNT}))
def test_bundled_recipes_have_their_golden_values(name):
    """That their networks learn is tested of each architecture, not of each recipe."""
    recipe = load_recipe(name)
    with drawn_images(scaled(recipe, "small")) as data:
        assert differences(facts_of(recipe, data, scale="small"), golden()[name], scale="small") == []


def test_golden_values_are_those_of_all_recipes_and_ensembles_agree():
    assert sorted(golden()) == sorted(BUNDLED)
    assert all(len(entry["losses"]) == 4 for entry in golden().values())
    assert json.loads(json.dumps(FACTS.to_json())) == FACTS.to_json()
    for listing in list_recipes("ensemble"):
        assert "members that agree on folds and metric" in str(ms.verify(listing.name))


def test_a_planted_change_is_found():
    assert differences(FACTS, FACTS.to_json(), scale="small") == []
    for change, message in (
        ({"weights": 101}, "100 weights, expected 101"),
        ({"trace": ["input 1 8x8", "head 1 9x9"]}, "size trace: 'head 1 8x8', expected 'head 1 9x9'"),
        ({"trace": ["input 1 8x8"]}, "size trace: it has another length"),
        ({"losses": [1.002, 0.9, 0.8, 0.7]}, "losses, expected 1.0020 0.9000 0.8000 0.7000"),
        ({"losses": [1.0, 0.9, 0.8, 0.711]}, "losses, expected 1.0000 0.9000 0.8000 0.7110"),
        ({"losses": [float("nan"), 0.9, 0.8, 0.7]}, "losses, expected nan 0.9000 0.8000 0.7000"),
    ):
        assert differences(FACTS, FACTS.to_json() | change, scale="small") == [message]
    rounded = {"losses": [1.0, 0.9005, 0.802, 0.708]}  # as another processor may have them
    assert differences(FACTS, FACTS.to_json() | rounded, scale="small") == []
    assert "nothing is written down of it" in differences(FACTS, None, scale="small")[0]
    # losses are compared at the small scale only
    assert differences(FACTS, FACTS.to_json() | {"losses": [9.0] * 4}, scale="full") == []
    assert "losses not compared" in str(Verified("a", FACTS, 0.97, [], "full"))
    assert "not compared" not in str(Verified("a", FACTS, 0.97, []))


def test_a_failed_check_is_an_error_with_the_name():
    good, bad = Verified("a", FACTS, 0.97, []), Verified("b", FACTS, 0.5, ["IoU 0.500 on the eight images"])
    refuse_failed(Verdicts([good]))
    assert str(Verdicts([good])).endswith("1 of 1 recipes verified")
    with pytest.raises(InputError, match=r"recipes: b failed the check:\na: .*\nb: .*IoU 0\.500"):
        refuse_failed(Verdicts([good, bad]))
    code = (
        "import sys, masksmith\nfrom masksmith.recipes import verify as v\n"
        "v.golden = lambda: {}\n"
        "v.learn = lambda recipe, data: 1.0\n"
        "sys.argv = ['masksmith', 'recipes', 'smoke', '--verify']\n"
        "from masksmith.cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "smoke failed the check" in done.stderr


def test_small_is_narrow_and_short_and_full_is_the_recipe():
    recipe = load_recipe(overrides=("size.pad_hw=[224, 224]", "size.resize_hw=[192, 192]"))
    small, full = scaled(recipe, "small"), scaled(recipe, "full")
    assert small.model.decoder_channels == [32, 16, 16, 16]
    assert small.size == SizeConfig(resize_hw=(55, 55), pad_hw=(64, 64))
    assert (full.model.decoder_channels, full.size) == (recipe.model.decoder_channels, recipe.size)
    assert scaled_size(SizeConfig(), 32, SCALES["small"].side) == SizeConfig()
    stride1 = ("size.pad_hw=[128, 128]", "model.encoder=resnet34", "model.stem=conv3x3_stride1")
    assert scaled(load_recipe(overrides=stride1), "small").size.pad_hw == (32, 32)
    with pytest.raises(InputError, match=r"--scale: 'smal' is unknown; did you mean 'small'"):
        scaled(recipe, "smal")


def test_large_encoders_have_a_small_one_at_the_small_scale():
    for encoder, light in (
        ("resnet18", "resnet18"),
        ("resnet34", "tu-test_resnet"),
        ("tu-resnet101", "tu-test_resnet"),
        ("se_resnext50_32x4d", "tu-test_resnet"),
        ("tf_efficientnet_b4.ns_jft_in1k", "tf_efficientnet_b0"),
        ("tu-tf_efficientnetv2_s", "tf_efficientnetv2_b0"),
        ("efficientnet-b4", "efficientnet-b0"),
        ("vgg13", "vgg11"),
        ("mobilenet_v2", "mobilenet_v2"),
    ):
        recipe = load_recipe(overrides=(f"model.encoder={encoder}",))
        assert scaled(recipe, "small").model.encoder == light
        assert scaled(recipe, "full").model.encoder == encoder


def test_stages_on_pseudo_labels_and_samplers_by_content_work_on_the_drawn_images():
    """They are labelled, and all have foreground."""
    stage = load_recipe("siim-unet-resnet50").training.stages[0]
    assert stage.sampler.name != "plain"
    small = scaled(load_recipe("smoke"), "small")
    stage = small.training.stages[0].model_copy(update={"data": "pseudo", "sampler": stage.sampler})
    training = small.training.model_copy(update={"stages": [stage]})
    with drawn_images(small) as data:
        assert np.isfinite(four_losses(small.model_copy(update={"training": training}), data)).all()
