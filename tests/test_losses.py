import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.errors import InputError
from masksmith.losses import LOSSES, bce, build_loss, dice, lovasz, lovasz_elu
from masksmith.models import Output
from masksmith.training.config import LossTerm


def sample(seed, *, ignore=0.2, shape=(3, 5, 6)):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(shape[0], 1, *shape[1:])).astype(np.float32))
    target = rng.integers(0, 2, shape).astype(np.uint8)
    target[rng.random(shape) < ignore] = 255
    return logits, torch.from_numpy(target)


def term(name, weight=1.0, **params):
    return LossTerm(name=name, weight=weight, params=params)


def judged(logits, target, image):
    keep = target[image] != 255
    return logits[image, 0][keep].double(), target[image][keep].double()


def bce_by_loop(logits, target):
    parts = [
        F.binary_cross_entropy_with_logits(*judged(logits, target, i), reduction="sum")
        for i in range(len(logits))
    ]
    return sum(parts) / (target != 255).sum()


def dice_by_loop(logits, target):
    values = []
    for i in range(len(logits)):
        scores, truth = judged(logits, target, i)
        probs = 1 / (1 + torch.exp(-scores))
        values.append(1 - (2 * (probs * truth).sum() + 1) / (probs.sum() + truth.sum() + 1))
    return sum(values) / len(values)


def lovasz_by_subsets(logits, target, clip):
    """The Lovász extension by its definition: Jaccard losses of the growing sets of the worst pixels."""
    values = []
    for i in range(len(logits)):
        scores, truth = judged(logits, target, i)
        errors = 1 - scores * (2 * truth - 1)
        order = sorted(range(len(errors)), key=lambda at: -errors[at])
        total, before, chosen = 0.0, 0.0, set()
        positive = {at for at in range(len(errors)) if truth[at]}
        for at in order:
            chosen.add(at)
            now = len(chosen) / len(positive | chosen)
            total += clip(errors[at]) * (now - before)
            before = now
        values.append(total)
    return sum(values) / len(values)


TWINS = {
    "bce": bce_by_loop,
    "dice": dice_by_loop,
    "lovasz": lambda logits, target: lovasz_by_subsets(logits, target, lambda e: e.clamp(min=0)),
    "lovasz_elu": lambda logits, target: lovasz_by_subsets(logits, target, lambda e: F.elu(e) + 1),
}


def test_every_loss_has_a_twin():
    assert set(TWINS) == set(LOSSES)


@pytest.mark.parametrize("name", sorted(LOSSES))
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_equals_the_twin(name, seed):
    logits, target = sample(seed)
    assert float(LOSSES[name](logits, target)) == pytest.approx(float(TWINS[name](logits, target)), rel=1e-4)


@pytest.mark.parametrize("name", sorted(LOSSES))
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_ignored_pixels_change_neither_value_nor_gradient(name, seed):
    logits, target = sample(seed)
    ignored = (target == 255)[:, None]
    other = torch.where(
        ignored, 7.0 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)), logits
    )
    values, gradients = [], []
    for given_logits in (logits, other):
        leaf = given_logits.clone().requires_grad_()
        value = LOSSES[name](leaf, target)
        value.backward()
        values.append(value.item())
        gradients.append(leaf.grad)
    assert values[0] == pytest.approx(values[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert not gradients[0][ignored].any()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_order_of_the_batch_is_nothing(name):
    logits, target = sample(4)
    turned = LOSSES[name](logits.flip(0), target.flip(0))
    torch.testing.assert_close(turned, LOSSES[name](logits, target))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_nothing_judged_costs_nothing(name):
    logits = torch.randn(2, 1, 3, 3, requires_grad=True)
    value = LOSSES[name](logits, torch.full((2, 3, 3), 255, dtype=torch.uint8))
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("truth", [0, 1])
def test_right_and_sure_is_almost_free(name, truth):
    target = torch.full((2, 4, 4), truth, dtype=torch.uint8)
    logits = torch.full((2, 1, 4, 4), 30.0 if truth else -30.0)
    assert float(LOSSES[name](logits, target)) < 1e-3


def test_computed_in_float32():
    logits, target = sample(0, shape=(2, 40, 40))
    for loss in (bce, dice, lovasz, lovasz_elu):
        assert loss(logits.bfloat16(), target).dtype == torch.float32


def test_same_as_segmentation_models_pytorch():
    smp = pytest.importorskip("segmentation_models_pytorch")
    logits, target = sample(3, ignore=0.0)
    theirs = smp.losses.LovaszLoss("binary", per_image=True)(logits, target[:, None].float())
    torch.testing.assert_close(lovasz(logits, target), theirs)


def test_weighted_sum():
    logits, target = sample(1)
    both = build_loss([term("bce", 0.5), term("dice", 2.0, smooth=2.0)], where="loss")(Output(logits), target)
    torch.testing.assert_close(both, 0.5 * bce(logits, target) + 2 * dice(logits, target, smooth=2.0))


def test_unknown_name():
    with pytest.raises(InputError, match=r"loss\[1\]\.name: 'dise' is unknown; did you mean 'dice'"):
        build_loss([term("bce"), term("dise")], where="loss")


def test_unknown_parameter():
    with pytest.raises(InputError, match=r"loss\[0\]\.params: 'dice' has no 'smoth'; did you mean 'smooth'"):
        build_loss([term("dice", smoth=1.0)], where="loss")
    with pytest.raises(InputError, match=r"'bce' has no 'gamma'; it has none"):
        build_loss([term("bce", gamma=1.0)], where="loss")
