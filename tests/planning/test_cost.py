from dataclasses import replace

import pytest

from masksmith.planning.cost import View, cost_of, view_of
from masksmith.planning.rules import load_rules
from masksmith.recipes.recipe import load_recipe
from tests.planning.machine import FACTS, Machine

RULE = load_rules().time


def cost(*overrides, machine=None, facts=FACTS):
    machine = machine or Machine()
    return cost_of(
        load_recipe("auto", overrides), facts, machine.measure, RULE, runtime=machine.tools().runtime
    )


RESTARTS = (
    "training.stages.0.schedule={name: cosine_restarts, cycles: 2}",
    "training.stages.2.schedule={name: cosine_restarts, cycles: 4}",
    "training.stages.2.optimizer={name: adamw}",
    "training.stages.2.epochs=20",
)


@pytest.mark.parametrize(
    ("kept", "weights", "number"),
    [
        (RESTARTS, "snapshots", 6),
        (("training.top_k=3",), "top_k", 3),
        (("training.top_k=3",), "final", 1),
        (RESTARTS, "final", 1),
    ],
)
def test_every_weight_predicts(kept, weights, number):
    one, several = cost(*kept), cost(*kept, f"prediction.weights={weights}")
    assert several.predict_s == pytest.approx(number * one.predict_s)
    assert several.view_s == pytest.approx(number * one.view_s)
    assert several.reserve_s - one.reserve_s == pytest.approx((number - 1) * one.predict_s)
    assert several.train_s == one.train_s


def test_every_weight_is_converted():
    machine = Machine(openvino=2.0)
    asked = ("training.top_k=3", "prediction.runtime=openvino")
    one = cost(*asked, machine=machine)
    several = cost(*asked, "prediction.weights=top_k", machine=machine)
    assert one.predict_s > 2.0  # the conversion
    assert several.predict_s == pytest.approx(3 * one.predict_s)


def test_every_canvas_is_converted_for():
    asked = ("training.top_k=3", "prediction.runtime=openvino", "prediction.weights=top_k")
    machine = Machine(openvino=2.0)
    one = cost(*asked, machine=machine)
    many = cost(*asked, machine=machine, facts=replace(FACTS, canvases=35))
    assert many.predict_s - one.predict_s == pytest.approx(
        34 * 3 * 2.0
    )  # seconds of the machine's conversion
    assert cost(facts=replace(FACTS, canvases=35)) == cost()  # torch


def test_windows_and_tiles_are_counted():
    """Of 10 images of 800x600 an epoch looks at 70 windows of 256x256; 4x3 tiles with a quarter in common are 12."""
    sizes = {
        "train_sizes": (((800, 600), 10),),
        "held_out_sizes": (((800, 600), 3),),
        "test_sizes": (((90, 40), 7),),
    }
    facts = replace(FACTS, hw=(800, 600), train=10, held_out_px=3 * 800 * 608, test_px=7 * 96 * 48, **sizes)
    windows = load_recipe("auto", ("training.crop_hw=[256, 256]", "training.batch_size=4"))
    assert facts.looks(windows.training) == 70
    assert facts.looks(load_recipe("auto").training) == 10
    assert view_of(windows, facts) == View(facts.held_out_px, facts.held_out_px + facts.test_px, 1)
    tiled = load_recipe("auto", ("prediction.tile_hw=[256, 256]",))
    assert view_of(tiled, facts) == View(3 * 12 * 256**2, 3 * 12 * 256**2 + 7 * 96 * 48, 2)
    both = ("training.crop_hw=[256, 256]", "training.batch_size=4", "prediction.tile_hw=[256, 256]")
    one, other = cost(*both[:2], facts=facts), cost(*both, facts=facts)
    ratio = view_of(tiled, facts).px / (facts.held_out_px + facts.test_px)
    assert other.view_s == pytest.approx(ratio * one.view_s)
    assert (
        one.epoch_s
        > 6
        * cost(
            "training.crop_hw=[256, 256]",
            "training.batch_size=4",
            "training.windows_per_image=1",
            facts=facts,
        ).epoch_s
    )
