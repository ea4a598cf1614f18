import inspect
import math
import re

import pytest
import torch
import torch.nn.functional as F

from masksmith.errors import InputError
from masksmith.losses.build import IMAGE_LOSSES, LOSSES, MASK_LOSSES, build_loss
from masksmith.losses.image_head import image_bce
from masksmith.losses.options import IMAGE_PARAMETERS, MASK_PARAMETERS
from masksmith.losses.regions import dice, jaccard
from masksmith.models.segmentation import Output
from masksmith.training.config import LossTerm
from tests.losses import twins
from tests.losses.samples import PARAMS, PLAIN, sample


def term(name, weight=1.0, **params):
    return LossTerm(name=name, weight=weight, params=params)


def combination(*terms, **options):
    return build_loss(
        [term(*one) if isinstance(one, tuple) else one for one in terms], where="loss", **options
    )


def batch(seed=1):
    logits, target = sample("binary", seed)
    target[1][target[1] == 1] = 0  # one empty image
    return Output(logits, torch.tensor([[0.3], [-1.2], [2.0]])), target


def dice_coefficient(output, target):
    return 1 - twins.TWINS["dice"](output.mask_logits, target)


COMBINATIONS = {
    "bce and dice": (
        [("bce",), ("dice", 0.5)],
        lambda out, target: (
            twins.TWINS["bce"](out.mask_logits, target) + 0.5 * twins.TWINS["dice"](out.mask_logits, target)
        ),
    ),
    "1 + BCE - Dice": (
        [("bce",), ("dice",)],
        lambda out, target: 1 + twins.bce(out.mask_logits, target) - dice_coefficient(out, target),
    ),
    "BCE - log Dice": (
        [("bce",), term("log_dice", per_image=False)],
        lambda out, target: (
            twins.bce(out.mask_logits, target)
            - math.log(1 - twins.TWINS["dice"](out.mask_logits, target, per_image=False))
        ),
    ),
    "BCE, Dice and focal, 3-1-4": (
        [("bce", 3.0), ("dice", 1.0), ("focal", 4.0)],
        lambda out, target: (
            3 * twins.bce(out.mask_logits, target)
            + 1
            - dice_coefficient(out, target)
            + 4 * twins.focal(out.mask_logits, target)
        ),
    ),
    "focal and Lovász": (
        [term("focal", gamma=2.0), ("lovasz",)],
        lambda out, target: (
            twins.focal(out.mask_logits, target) + twins.TWINS["lovasz"](out.mask_logits, target)
        ),
    ),
    "Lovász (ELU) with a little BCE": (
        [("lovasz_elu",), ("bce", 0.1)],
        lambda out, target: (
            twins.TWINS["lovasz_elu"](out.mask_logits, target) + 0.1 * twins.bce(out.mask_logits, target)
        ),
    ),
    "Jaccard 1.0 and focal 0.1, per image": (
        [term("jaccard", per_image=True, smooth=1e-5), ("focal", 0.1)],
        lambda out, target: (
            twins.TWINS["jaccard"](out.mask_logits, target) + 0.1 * twins.focal(out.mask_logits, target)
        ),
    ),
    "2.7 BCE + 0.9 Dice + 0.1 BCE(empty)": (
        [("bce", 2.7), ("dice", 0.9), ("image_bce", 0.1)],
        lambda out, target: (
            2.7 * twins.bce(out.mask_logits, target)
            + 0.9 * (1 - dice_coefficient(out, target))
            + 0.1 * twins.image_bce(out.image_logits, target)
        ),
    ),
    "1024 BCE(masks) + BCE(class)": (
        [("bce", 1024.0), ("image_bce", 1.0)],
        lambda out, target: (
            1024 * twins.bce(out.mask_logits, target) + twins.image_bce(out.image_logits, target)
        ),
    ),
    "BCE with Dice on positives only": (
        [("bce",), term("dice", skip_empty=True)],
        lambda out, target: (
            twins.bce(out.mask_logits, target)
            + twins.TWINS["dice"](out.mask_logits[[0, 2]], target[[0, 2]])  # the image between is empty
        ),
    ),
    "regions and a boundary": (
        [("dice",), ("boundary", 0.01), ("hausdorff", 0.02)],
        lambda out, target: (
            1
            - dice_coefficient(out, target)
            + 0.01 * twins.boundary(out.mask_logits, target)
            + 0.02 * twins.hausdorff(out.mask_logits, target)
        ),
    ),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combinations(name):
    terms, twin = COMBINATIONS[name]
    for seed in (1, 2, 4):
        output, target = batch(seed)
        assert float(combination(*terms)(output, target)) == pytest.approx(twin(output, target), rel=1e-5)


def test_the_table_for_recipes_is_that_of_the_functions():
    for functions, table in ((MASK_LOSSES, MASK_PARAMETERS), (IMAGE_LOSSES, IMAGE_PARAMETERS)):
        assert list(functions) == list(table)
        for name, function in functions.items():
            signature = inspect.signature(function).parameters.values()
            keywords = [one for one in signature if one.kind is one.KEYWORD_ONLY]
            assert {one.name: (one.annotation, one.default) for one in keywords} == table[name], name


def test_parameters_reach_the_loss():
    output, target = batch()
    both = combination(term("dice", 2.0, smooth=2.0, per_image=False), ("jaccard", 3.0))
    expected = 2 * dice(output.mask_logits, target, smooth=2.0, per_image=False) + 3 * jaccard(
        output.mask_logits, target
    )
    torch.testing.assert_close(both(output, target), expected)


@pytest.mark.parametrize("name", PARAMS)
def test_every_parameter_can_be_given(name):
    case = next(one for one in PLAIN if one.name == name)
    logits, target = case.sample(1)
    classes = logits.shape[1]
    output = Output(logits) if name in MASK_LOSSES else Output(torch.zeros(3, classes, 5, 6), logits)
    for params in PARAMS[name]:
        built = combination(term(name, **params), classes=classes)
        assert torch.equal(built(output, target), LOSSES[name](logits, target, **params))


def test_whole_numbers_of_a_recipe_arrive_as_floats():
    target = torch.zeros(1, 12, 12, dtype=torch.uint8)
    target[:, :6] = 1
    output = Output(torch.linspace(-2, 2, 144).reshape(1, 1, 12, 12))
    assert LossTerm.model_validate_json('{"name": "band_bce", "params": {"radius": 2}}').params == {
        "radius": 2.0
    }
    narrow, wide = (combination(term("band_bce", radius=radius))(output, target) for radius in (1.0, 2.0))
    assert narrow != wide


def test_unknown_name():
    with pytest.raises(InputError, match=r"loss\[1\]\.name: 'dise' is unknown; did you mean 'dice'"):
        combination(("bce",), ("dise",))


def test_unknown_parameter():
    with pytest.raises(InputError, match=r"loss\[0\]\.params: 'dice' has no 'smoth'; did you mean 'smooth'"):
        combination(term("dice", smoth=1.0))
    with pytest.raises(InputError, match=r"'mse' has no 'gamma'; it has none"):
        combination(term("mse", gamma=1.0))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("focal", {"gamma": "fast"}, "loss[0].params: gamma: 'fast' is text, expected number"),
        (
            "focal",
            {"gamma": -1.5},
            "loss[0].params: gamma: -1.5 is a number, expected greater than or equal to 0",
        ),
        (
            "focal",
            {"alpha": 2.0},
            "loss[0].params: alpha: 2 is a whole number, expected less than or equal to 1",
        ),
        ("dice", {"smooth": 0.0}, "loss[0].params: smooth: 0 is a whole number, expected greater than 0"),
        (
            "dice",
            {"per_image": 1.0},
            "loss[0].params: per_image: 1 is a whole number, expected true or false",
        ),
        ("dice", {"smooth": True}, "loss[0].params: smooth: True is true/false, expected number"),
        ("bce", {"label_smoothing": 1.0}, "label_smoothing: 1 is a whole number, expected less than 1"),
        ("bce", {"pos_weight": math.inf}, "pos_weight: inf is a number, expected a finite number"),
        ("band_bce", {"radius": 2.5}, "loss[0].params: radius: 2.5 is a number, expected integer"),
        ("image_focal", {"gamma": "2"}, "loss[0].params: gamma: '2' is text, expected number"),
    ],
)
def test_a_parameter_of_a_wrong_type_or_range(name, params, message):
    terms = [LossTerm.model_construct(name=name, weight=1.0, params=params)]
    with pytest.raises(InputError, match=re.escape(message)):
        build_loss(terms, where="loss")


@pytest.mark.parametrize("name", ["image_bce", "image_focal"])
def test_a_loss_that_needs_a_head_the_model_lacks(name):
    message = (
        rf"training\.stages\[0\]\.loss\[2\]\.name: '{name}' needs an image head; "
        "set model.image_head to avg, max or gem"
    )
    terms = [term("bce"), term("dice"), term(name, 0.1)]
    with pytest.raises(InputError, match=message):
        build_loss(terms, where="training.stages[0].loss", image_head=False)


def test_an_output_without_image_logits():
    output, target = batch()
    with pytest.raises(
        ValueError, match=r"loss: 'image_bce' needs image logits, the model's output has none"
    ):
        combination(("image_bce",))(output._replace(image_logits=None), target)


def test_cross_entropy_of_a_single_class():
    with pytest.raises(
        InputError, match=r"loss\[0\]\.name: 'cross_entropy' needs 2 classes or more, .* has 1"
    ):
        combination(("cross_entropy",), classes=1)
    combination(("cross_entropy",), classes=2)


def test_deep_supervision():
    output, target = batch()
    draw = torch.Generator().manual_seed(0)
    aux = tuple(torch.randn(3, 1, *hw, generator=draw) for hw in ((3, 3), (2, 4), (5, 6)))
    terms = [("dice", 2.0), ("image_bce", 3.0)]
    expected = 2 * dice(output.mask_logits, target) + 3 * image_bce(output.image_logits, target)
    for logits in aux:
        resized = F.interpolate(logits, size=(5, 6), mode="bilinear", align_corners=False)
        expected = expected + 0.6 / 3 * 2 * dice(resized, target)
    deep = output._replace(aux=aux)
    torch.testing.assert_close(combination(*terms, aux_weight=0.6)(deep, target), expected)
    ordinary = combination(*terms)(deep, target) - combination(*terms)(output, target)
    torch.testing.assert_close(ordinary, (expected - combination(*terms)(output, target)) * 0.4 / 0.6)


def test_autocast_is_off(monkeypatch):
    output, target = batch()
    built = combination(("bce",))
    seen = []

    def look(logits, _target):
        seen.append(torch.is_autocast_enabled("cpu"))
        return logits.sum()

    monkeypatch.setitem(MASK_LOSSES, "bce", look)
    with torch.autocast("cpu", torch.bfloat16):
        built(output, target)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False]


def test_rough_auxiliary_logits():
    output, target = batch()
    rough = output._replace(aux=(output.mask_logits[..., ::2, ::2].bfloat16(),))
    value = combination(("lovasz",))(rough, target)
    assert value.dtype == torch.float32
    same = rough._replace(aux=(rough.aux[0].float(),))
    assert torch.equal(value, combination(("lovasz",))(same, target))
