import inspect
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from masksmith.core.errors import InputError
from masksmith.losses.build import IMAGE_LOSSES, LOSSES, MASK_LOSSES, build_loss
from masksmith.losses.image_head import image_bce
from masksmith.losses.options import EACH_CLASS_ALONE, IMAGE_PARAMETERS, MASK_PARAMETERS, check_losses
from masksmith.losses.pixelwise import weights_of_classes
from masksmith.losses.regions import dice, jaccard
from masksmith.models.segmentation import Output
from masksmith.training.config import LossTerm
from tests.losses import twins
from tests.losses.samples import PARAMS, plain_case, sample


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


def of_mask(name, **params):
    return lambda output, target: twins.TWINS[name](output.mask_logits, target, **params)


def of_image(name):
    return lambda output, target: twins.TWINS[name](output.image_logits, target)


def dice_of_images_with_foreground(output, target):
    return twins.TWINS["dice"](output.mask_logits[[0, 2]], target[[0, 2]])  # the image between is empty


COMBINATIONS = {
    "BCE - log Dice": (
        [("bce",), term("log_dice", per_image=False)],
        [(1, of_mask("bce")), (1, of_mask("log_dice", per_image=False))],
    ),
    "BCE, Dice and focal, 3-1-4": (
        [("bce", 3.0), ("dice", 1.0), ("focal", 4.0)],
        [(3, of_mask("bce")), (1, of_mask("dice")), (4, of_mask("focal"))],
    ),
    "Lovász (ELU) with a little BCE": (
        [("lovasz_elu",), ("bce", 0.1)],
        [(1, of_mask("lovasz_elu")), (0.1, of_mask("bce"))],
    ),
    "focal and Lovász, Jaccard": (
        [term("focal", gamma=2.0), ("lovasz",), term("jaccard", 0.5, per_image=True, smooth=1e-5)],
        [(1, of_mask("focal")), (1, of_mask("lovasz")), (0.5, of_mask("jaccard"))],
    ),
    "2.7 BCE + 0.9 Dice + 0.1 BCE(empty)": (
        [("bce", 2.7), ("dice", 0.9), ("image_bce", 0.1)],
        [(2.7, of_mask("bce")), (0.9, of_mask("dice")), (0.1, of_image("image_bce"))],
    ),
    "1024 BCE(masks) + BCE(class)": (
        [("bce", 1024.0), ("image_bce", 1.0)],
        [(1024, of_mask("bce")), (1, of_image("image_bce"))],
    ),
    "BCE with Dice on positives only": (
        [("bce",), term("dice", skip_empty=True)],
        [(1, of_mask("bce")), (1, dice_of_images_with_foreground)],
    ),
    "regions and a boundary": (
        [("dice",), ("boundary", 0.01), ("hausdorff", 0.02)],
        [(1, of_mask("dice")), (0.01, of_mask("boundary")), (0.02, of_mask("hausdorff"))],
    ),
}


def test_combinations():
    for name, (terms, parts) in COMBINATIONS.items():
        for seed in (1, 2, 4):
            output, target = batch(seed)
            expected = sum(weight * twin(output, target) for weight, twin in parts)
            assert float(combination(*terms)(output, target)) == pytest.approx(expected, rel=1e-5), name


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


def test_every_parameter_can_be_given():
    for name, given in PARAMS.items():
        logits, target = plain_case(name).sample(1)
        classes = logits.shape[1]
        output = Output(logits) if name in MASK_LOSSES else Output(torch.zeros(3, classes, 5, 6), logits)
        for params in given:
            built = combination(term(name, **params), classes=classes)
            assert torch.equal(built(output, target), LOSSES[name](logits, target, **params)), (name, params)


def test_whole_numbers_of_a_recipe_arrive_as_floats():
    target = torch.zeros(1, 12, 12, dtype=torch.uint8)
    target[:, :6] = 1
    output = Output(torch.linspace(-2, 2, 144).reshape(1, 1, 12, 12))
    assert LossTerm.model_validate_json('{"name": "band_bce", "params": {"radius": 2}}').params == {
        "radius": 2.0
    }
    narrow, wide = (combination(term("band_bce", radius=radius))(output, target) for radius in (1.0, 2.0))
    assert narrow != wide


def test_terms_that_do_not_fit():
    """Each with the message that a recipe gets."""
    cases = [
        ("dise", {}, "loss[1].name: 'dise' is unknown; did you mean 'dice'"),
        ("dice", {"smoth": 1.0}, "loss[1].params: 'dice' has no 'smoth'; did you mean 'smooth'"),
        ("mse", {"gamma": 1.0}, "'mse' has no 'gamma'; it has none"),
        ("focal", {"gamma": "fast"}, "loss[1].params: gamma: 'fast' is text, expected number"),
        ("focal", {"gamma": -1.5}, "gamma: -1.5 is a number, expected greater than or equal to 0"),
        ("focal", {"alpha": 2.0}, "alpha: 2 is a whole number, expected less than or equal to 1"),
        ("dice", {"smooth": 0.0}, "smooth: 0 is a whole number, expected greater than 0"),
        ("dice", {"per_image": 1.0}, "per_image: 1 is a whole number, expected true or false"),
        ("dice", {"smooth": True}, "smooth: True is true/false, expected number"),
        ("bce", {"label_smoothing": 1.0}, "label_smoothing: 1 is a whole number, expected less than 1"),
        ("bce", {"pos_weight": math.inf}, "pos_weight: inf is a number, expected a finite number"),
        ("band_bce", {"radius": 2.5}, "loss[1].params: radius: 2.5 is a number, expected integer"),
        ("image_focal", {"gamma": "2"}, "gamma: '2' is text, expected number"),
        (
            "tversky",
            {"alpha": 0.0, "beta": 0.0},
            "loss[1].params: alpha 0 and beta 0: errors would cost nothing",
        ),
        (
            "cross_entropy",
            {},
            "loss[1].name: 'cross_entropy' needs 2 classes or more, the model has 1; use 'bce'",
        ),
        (
            "objects",
            {},
            "loss[1].name: 'objects' needs 3 planes or more (foreground, border, distance), the model",
        ),
    ]
    for name, params, message in cases:
        terms = [term("bce"), LossTerm.model_construct(name=name, weight=1.0, params=params)]
        with pytest.raises(InputError, match=re.escape(message)):
            check_losses(terms, where="loss")
    for name in sorted(EACH_CLASS_ALONE):
        message = f"loss[0].name: '{name}' judges each class alone, and the masks are maps of 4 classes that exclude"
        with pytest.raises(InputError, match=re.escape(message)):
            check_losses([term(name)], where="loss", classes=4, exclusive=True)
        assert check_losses([term(name)], where="loss", classes=4)  # labels that may overlap
    for name in sorted(MASK_PARAMETERS.keys() - EACH_CLASS_ALONE - {"objects"}):
        assert check_losses([term(name)], where="loss", classes=4, exclusive=True)
    for name in IMAGE_PARAMETERS:
        message = f"loss[1].name: '{name}' needs an image head; set model.image_head to avg, max or gem"
        with pytest.raises(InputError, match=re.escape(message)):
            build_loss([term("bce"), term(name, 0.1)], where="loss", image_head=False)
    combination(("cross_entropy",), classes=2)


def test_an_output_without_image_logits():
    output, target = batch()
    message = r"loss: 'image_bce' needs image logits, the model's output has none"
    with pytest.raises(ValueError, match=message):
        combination(("image_bce",))(output._replace(image_logits=None), target)


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


def test_rare_classes_weigh_more():
    assert weights_of_classes((900, 90, 10, 0), "none") == (1, 1, 1, 1)
    inverse = np.array([1 / 900, 1 / 90, 1 / 10])
    assert weights_of_classes((900, 90, 10, 0), "inverse_frequency") == pytest.approx(
        [*inverse / inverse.mean(), 1]
    )
    beta = 1 - 3 / 1_000_000  # of millions of pixels, as the paper has it
    effective = np.array([(1 - beta) / (1 - beta**n) for n in (900_000, 90_000, 10_000)])
    assert weights_of_classes((900_000, 90_000, 10_000, 0), "effective_number") == pytest.approx(
        [*effective / effective.mean(), 1], rel=1e-4
    )
    draw = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 4, 3, 5, generator=draw), torch.randint(0, 4, (2, 3, 5), generator=draw)
    target[0, 1, 1] = 255
    loss_of = build_loss(
        [term("cross_entropy", class_weights="inverse_frequency")],
        where="loss", classes=4, exclusive=True, pixels=[900, 90, 10, 0],
    )  # fmt: skip
    weights, total, parts = weights_of_classes((900, 90, 10, 0), "inverse_frequency"), 0.0, 0.0
    for b, y, x in np.ndindex(2, 3, 5):
        if target[b, y, x] != 255:
            weight = weights[target[b, y, x]]
            total += weight
            parts -= weight * float(logits[b, :, y, x].log_softmax(0)[target[b, y, x]])
    assert float(loss_of(Output(logits), target.to(torch.uint8))) == pytest.approx(parts / total, rel=1e-5)
