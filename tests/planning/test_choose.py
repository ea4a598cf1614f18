import re
from dataclasses import replace

import pytest

from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.planning.choose import Choice, choose, second_recipe
from masksmith.planning.describe import explain
from masksmith.planning.rules import load_rules
from masksmith.planning.units import Reference, next_unit
from masksmith.preprocess import SizeConfig
from masksmith.recipes.recipe import load_recipe, parse_recipe
from tests.planning.machine import FACTS, Machine

RULES = load_rules()


def chosen(machine, seconds, *, facts=FACTS, overrides=(), pinned=None):
    asked = load_recipe("auto", tuple(overrides))
    keys = [one.partition("=")[0] for one in overrides] if pinned is None else pinned
    return choose(asked, keys, facts, lambda: seconds, RULES, machine.tools())


def reason(found, key):
    (choice,) = [choice for choice in found.choices if choice.key == key]
    return choice


def test_the_first_affordable_candidate_is_taken():
    both = Machine(weights=("imagenet", "none"))
    found = chosen(both, 1800)
    assert found.recipe.model.encoder == "tf_efficientnet_lite0"
    assert {encoder for encoder, *_ in both.asked} == {
        "tf_efficientnet_lite0"
    }  # the others were not even measured
    assert "a whole fold takes" in reason(found, "model.encoder").reason
    slow = Machine(weights=("imagenet", "none"), pace={"tf_efficientnet_lite0": 1e5})
    assert chosen(slow, 1800).recipe.model.encoder == "mobilenet_v2"
    assert chosen(Machine(), 1800).recipe.model.encoder == "resnet18"  # no pretrained weights found


@pytest.mark.parametrize(
    ("paces", "encoder"),
    [
        ((3e5, 4e5, 6e5), "mobilenet_v2"),  # random weights gain less than twice the length
        ((3e5, 2e5, 5e5), "tf_efficientnet_lite0"),
        ((1e5, 1.2e5, 6e5), "resnet18"),
        ((5e5, 3e4, 2e6), "tf_efficientnet_lite0"),  # most of it fits; all of one from random weights is less
        ((1e5, 1e5, 2e6), "resnet18"),
    ],
)
def test_where_none_is_affordable_the_one_of_which_most_fits(paces, encoder):
    names = ("tf_efficientnet_lite0", "mobilenet_v2", "resnet18")
    machine = Machine(weights=("imagenet", "none"), pace=dict(zip(names, paces, strict=True)))
    assert chosen(machine, 1800).recipe.model.encoder == encoder


def test_a_gpu_gets_the_larger_net():
    machine = Machine(weights=("imagenet", "none"), device="cuda", pace={"resnet34": 1e8})
    assert chosen(machine, 1800).recipe.model.encoder == "resnet34"


def test_every_choice_has_a_reason():
    found = chosen(Machine(openvino=3.0), 1200)
    keys = {choice.key for choice in found.choices}
    assert keys == {
        "model.encoder", "training.batch_size", "training.crop_hw", "prediction.tta", "prediction.runtime",
        "training.stages", "folds.train", "training.precision",
    }  # fmt: skip
    assert all(choice.reason and choice.value for choice in found.choices)
    text = explain(found.recipe, found.choices, title="planned for 20m00s")
    lines = text.splitlines()
    for key in keys:
        last = key.split(".")[-1]
        (at,) = [i for i, line in enumerate(lines) if line.strip().startswith(f"{last}:")][:1]
        assert lines[at - 1].strip().startswith("# ")
    assert parse_recipe(text, where="plan.yaml") == found.recipe


def test_length_follows_the_data():
    few, many = replace(FACTS, train=300), replace(FACTS, train=50_000)
    epochs = [
        sum(
            stage.epochs
            for stage in chosen(Machine(pace={"resnet18": 1e9}), 1200, facts=facts).recipe.training.stages
        )
        for facts in (few, FACTS, many)
    ]
    assert epochs == [80, 39, 8]


@pytest.mark.parametrize(("train", "batch"), [(2500, 32), (500, 16), (50, 8)])
def test_batch_follows_the_number_of_images(train, batch):
    found = chosen(Machine(), 1200, facts=replace(FACTS, train=train))
    assert found.recipe.training.batch_size == batch


def test_a_batch_that_fits_into_memory():
    machine = Machine(largest=11)
    found = chosen(machine, 1200)
    assert found.recipe.training.batch_size == 8
    assert {batch for *_, batch in machine.asked} == {8}  # a larger one was not even measured
    pinned = chosen(Machine(largest=11), 1200, overrides=["training.batch_size=32"])
    assert pinned.recipe.training.batch_size == 32  # obeyed, and refused with the figures before training
    nothing = Machine(largest=0)
    with pytest.raises(InputError, match=r"not one image fits into memory with unet on resnet18.*crop_hw"):
        chosen(nothing, 1200)
    assert nothing.asked == []


def test_large_images_are_trained_in_windows():
    found = chosen(Machine(), 36_000, facts=replace(FACTS, hw=(1000, 800)))
    assert found.recipe.training.crop_hw == (256, 256)
    assert "1000x800" in reason(found, "training.crop_hw").reason
    middle = chosen(
        Machine(), 36_000, facts=of_size((360, 480))
    ).recipe  # for more steps; they are predicted whole
    assert (middle.training.crop_hw, middle.prediction.tile_hw) == ((256, 256), None)
    assert chosen(Machine(), 36_000, facts=of_size((384, 384))).recipe.training.crop_hw is None


def of_size(hw):
    facts = replace(FACTS, hw=hw, train=100, held_out=25, test=50, held_out_px=25 * hw[0] * hw[1])
    sizes = {"train_sizes": ((hw, 100),), "held_out_sizes": ((hw, 25),), "test_sizes": ((hw, 50),)}
    return replace(facts, test_px=50 * hw[0] * hw[1], **sizes)


def test_large_images_are_predicted_on_tiles_as_large_as_the_windows():
    found = chosen(Machine(largest=11), 1e6, facts=of_size((1000, 800)))
    prediction = found.recipe.prediction
    assert (prediction.tile_hw, prediction.overlap, prediction.batch_size) == ((256, 256), 0.25, 8)
    assert found.recipe.training.batch_size == 8
    assert "times the pixels" in reason(found, "prediction.tile_hw").reason
    assert reason(found, "prediction.batch_size").value == "8"
    text = explain(found.recipe, found.choices, title="planned")
    assert parse_recipe(text, where="plan.yaml") == found.recipe
    larger = chosen(Machine(), 1e6, facts=of_size((3000, 2000))).recipe
    assert (larger.training.crop_hw, larger.prediction.tile_hw) == ((512, 512), (512, 512))
    assert larger.prediction.overlap == 0.125
    pinned = ("prediction.tile_hw=[640, 640]", "prediction.overlap=0.5", "prediction.batch_size=20")
    obeyed = chosen(Machine(largest=11), 1e6, facts=of_size((1000, 800)), overrides=pinned).recipe.prediction
    assert (obeyed.tile_hw, obeyed.overlap, obeyed.batch_size) == ((640, 640), 0.5, 20)
    half = chosen(Machine(), 1e6, facts=of_size((1000, 800)), overrides=["prediction.overlap=0.5"])
    assert half.recipe.prediction.overlap == 0.5
    assert reason(half, "prediction.overlap").reason == "as asked"


def test_what_is_made_small_or_needs_whole_images_is_not_cut():
    facts = of_size((1000, 800))
    small = replace(facts, size=SizeConfig(resize_hw=(128, 128)))
    assert chosen(Machine(), 1e6, facts=small).recipe.training.crop_hw is None
    deep = ("model.derived_channels=depth_ramp", "prediction.tta=[identity]")
    found = chosen(Machine(), 1e6, facts=facts, overrides=deep).recipe
    assert (found.training.crop_hw, found.prediction.tile_hw) == (None, None)
    padded = ("size.pad_hw=[1024, 1024]",)
    found = chosen(
        Machine(), 1e6, facts=replace(facts, size=SizeConfig(pad_hw=(1024, 1024))), overrides=padded
    )
    assert found.recipe.prediction.tile_hw is None
    whole = chosen(Machine(), 1e6, facts=facts, overrides=["prediction.tile_hw=null"])
    assert whole.recipe.prediction.tile_hw is None
    assert reason(whole, "prediction.tile_hw") == Choice("prediction.tile_hw", "whole images", "as asked")


def test_the_second_view_is_left_out_where_it_costs_too_much():
    many = replace(FACTS, test=200_000, test_px=200_000 * 112**2)
    assert chosen(Machine(), 1500, facts=many).recipe.prediction.tta == ["identity"]
    assert chosen(Machine(), 1200).recipe.prediction.tta == ["identity", "hflip"]


def test_the_runtime_is_converted_where_that_pays():
    many = replace(FACTS, test=20_000, test_px=20_000 * 112**2)
    assert chosen(Machine(openvino=3.0), 1800, facts=many).recipe.prediction.runtime == "openvino"
    assert chosen(Machine(openvino=1.05), 1800, facts=many).recipe.prediction.runtime == "torch"
    assert chosen(Machine(openvino=None), 1800, facts=many).recipe.prediction.runtime == "torch"
    few = replace(FACTS, test=100, held_out=50, test_px=100 * 112**2, held_out_px=50 * 112**2)
    assert chosen(Machine(openvino=3.0), 1800, facts=few).recipe.prediction.runtime == "torch"


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("model.encoder=resnet50", lambda r: r.model.encoder, "resnet50"),
        ("model.decoder_channels=[64, 32, 16, 8]", lambda r: r.model.decoder_channels, [64, 32, 16, 8]),
        ("training.batch_size=7", lambda r: r.training.batch_size, 7),
        ("prediction.tta=[vflip]", lambda r: r.prediction.tta, ["vflip"]),
        ("prediction.runtime=torch", lambda r: r.prediction.runtime, "torch"),
        ("training.crop_hw=[64, 64]", lambda r: r.training.crop_hw, (64, 64)),
    ],
)
def test_what_is_pinned_is_obeyed(override, read, value):
    facts = replace(FACTS, hw=(1000, 800))
    assert read(chosen(Machine(openvino=3.0), 1e6, facts=facts, overrides=[override]).recipe) == value


def test_epochs_and_a_budget_contradict():
    with pytest.raises(InputError, match="the budget decides the epochs"):
        chosen(Machine(), 1200, overrides=["training.stages.0.epochs=3"])


def test_too_little_for_one_epoch_says_what_is_needed():
    with pytest.raises(
        InputError, match=r"10s are left .* an epoch of resnet18 on 2500 images \(\d+s\).* take \d+s; nothing"
    ) as error:
        chosen(Machine(), 10)
    least = int(re.search(r"take (\d+)s", str(error.value))[1])
    found = chosen(Machine(), least + 1)
    reference = Reference(found.recipe, found.cost, folds=5)
    none = {"run_recipe": lambda _: found.recipe, "second": lambda: None}
    wish = next_unit(reference, [], least, RULES, **none)  # which agrees with the plan
    assert wish.unit.epochs == 1


def test_measuring_counts():
    machine = Machine()
    tools = replace(machine.tools(), measured_s=lambda: 100.0 * len(machine.asked))

    def left():
        return 150 - tools.measured_s()

    with pytest.raises(InputError, match="--budget: 0s are left after measuring"):
        choose(load_recipe("auto"), [], FACTS, left, RULES, tools)
    machine.asked.clear()
    long = choose(load_recipe("auto"), [], FACTS, lambda: 5000 - tools.measured_s(), RULES, tools)
    assert long.seconds == 5000 - tools.measured_s() < 5000


def test_weights_that_no_candidate_has():
    with pytest.raises(InputError, match=r"fits none of the models.*model\.encoder="):
        chosen(Machine(weights=()), 1200)


def test_the_second_recipe_differs():
    machine = Machine(weights=("imagenet", "none"))
    asked, first = load_recipe("auto"), chosen(machine, 1800).recipe

    def second(machine, asked=asked, pinned=()):
        return second_recipe(first, asked, pinned, FACTS, RULES, machine.tools())

    other = second(machine)
    assert (other.model.architecture, other.model.encoder) == ("unet", "mobilenet_v2")
    assert other.training.stages == first.training.stages
    assert second(Machine(weights=())) is None
    assert second(Machine(weights=("imagenet", "none"), largest=0)) is None
    assert second(machine, pinned=["model.decoder_channels"]) is None
    named = asked.model_copy(update={"model": asked.model.model_copy(update={"encoder": "resnet50"})})
    assert second(machine, asked=named) is None


def test_another_recipe_keeps_its_own_length():
    asked = load_recipe("auto").model_copy(update={"name": "mine"})
    found = choose(asked, [], FACTS, lambda: 1200, RULES, Machine().tools())
    assert found.recipe.training.stages == asked.training.stages


@pytest.mark.parametrize(
    "model",
    [
        {"architecture": "house_unet", "image_head": "gem"},
        {"scalars": ["depth"]},
        {"attention": "scse"},
        {"decoder_channels": [64, 32, 16, 16]},
    ],
)
def test_a_model_in_a_recipe_is_kept_where_its_encoder_is_not_named(model):
    base = load_recipe("auto")
    asked = base.model_copy(update={"name": "mine", "model": ModelConfig(**model)})

    def settle(recipe):
        return recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"encoder": "mobilenet_v2"})}
        )

    tools = replace(Machine(weights=("imagenet", "none")).tools(), resolve=settle)
    found = choose(asked, [], FACTS, lambda: 1e5, RULES, tools)
    assert found.recipe.model == ModelConfig(**model, encoder="mobilenet_v2")
    assert reason(found, "model.encoder") == Choice(
        "model.encoder", "mobilenet_v2", "settled for the model that was asked for"
    )
    assert second_recipe(found.recipe, asked, [], FACTS, RULES, tools) is None


def test_weights_alone_pin_no_model():
    weights = {"encoder_weights": "imagenet", "encoder_weights_hash": "0" * 64}
    asked = load_recipe("auto").model_copy(update={"model": ModelConfig(**weights)})
    found = choose(asked, ["model.encoder_weights"], FACTS, lambda: 1800, RULES, Machine().tools())
    assert found.recipe.model.encoder == "resnet18"
