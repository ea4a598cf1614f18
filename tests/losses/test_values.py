"""The value and the gradient of every loss: by its definition, and as they were."""

import itertools

import pytest
import torch

from masksmith.losses.build import LOSSES
from tests.losses.samples import CASES, plain_case
from tests.losses.twins import TWINS


def test_equals_the_twin():
    assert set(TWINS) == set(LOSSES)
    for case, seed in itertools.product(CASES, (1, 3, 5)):
        logits, target = case.sample(seed)
        expected = TWINS[case.name](logits, target, **case.params)
        found = float(case(logits, target))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), (str(case), seed)


def test_gradient_is_the_slope():
    for case in CASES:
        logits, target = case.sample(1)
        logits = logits + 0.05 * logits.sign()  # the prediction of the Hausdorff loss has a step at 0
        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(case(leaf, target), leaf)
        norm = float(gradient.norm())
        assert norm > 1e-3, str(case)
        for seed in range(3):
            way = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
            # half along the gradient, so that a missing part shows
            way = 0.01 * (way / way.norm() + gradient / norm)
            slope = (case(logits + way, target) - case(logits - way, target)) / 2
            expected = float((gradient * way).sum())
            assert float(slope) == pytest.approx(expected, abs=2e-4 * norm), str(case)


GOLDEN = {  # of seeds 0 to 3; the binary kind where there is one
    "bce": [0.776648, 0.769246, 0.712195, 0.773425],
    "balanced_bce": [0.741646, 0.772944, 0.713262, 0.784102],
    "focal": [0.306143, 0.292599, 0.269125, 0.340718],
    "cross_entropy": [1.515098, 1.355183, 1.390717, 1.446676],
    "mse": [0.286754, 0.282016, 0.254599, 0.270268],
    "smooth_l1": [0.143377, 0.141008, 0.127300, 0.135134],
    "dice": [0.700820, 0.519279, 0.434037, 0.614458],
    "log_dice": [1.596764, 0.734917, 0.579027, 1.231811],
    "jaccard": [0.833439, 0.702343, 0.617996, 0.768206],
    "tversky": [0.609492, 0.488651, 0.424811, 0.551922],
    "focal_tversky": [0.684789, 0.584310, 0.525101, 0.636336],
    "lovasz": [1.889652, 1.417431, 1.218142, 2.334315],
    "lovasz_elu": [2.861750, 2.405106, 2.185157, 3.320812],
    "lovasz_softmax": [0.576623, 0.588234, 0.536842, 0.559600],
    "boundary_bce": [4.780757, 8.287754, 7.664595, 5.878943],
    "band_bce": [0.800993, 0.769246, 0.712195, 0.751026],
    "boundary": [0.173767, 0.286954, 0.197095, 0.156003],
    "hausdorff": [0.597392, 0.784623, 0.672818, 0.586954],
    "active_contour": [0.714396, 0.723091, 0.704348, 0.756039],
    "objects": [3.486915, 2.959780, 2.778962, 3.413462],
    "image_bce": [0.759683, 0.480391, 0.837412, 1.766429],
    "image_focal": [0.215160, 0.073536, 0.282241, 1.346344],
}


def test_golden_values():
    assert set(GOLDEN) == set(LOSSES)
    for name, expected in GOLDEN.items():
        case = plain_case(name)
        values = [float(case(*case.sample(seed))) for seed in range(4)]
        assert values == pytest.approx(expected, rel=1e-4), name
