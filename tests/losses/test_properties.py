"""What holds for every loss, with every kind of target that it reads."""

import itertools

import pytest
import torch

from masksmith.losses.build import IMAGE_LOSSES, LOSSES
from masksmith.losses.pixelwise import balanced_bce, bce
from tests.losses.samples import ALONE, CASES, CLASSES, PLAIN, ignored_logits, plain_case, sample

MEASURED = {"boundary", "boundary_bce", "hausdorff"}  # their distances come from the CPU
SEEDS = (3, 5)  # with an empty image; with one that is not judged


def with_gradient(case, logits, target):
    leaf = logits.clone().requires_grad_()
    value = case(leaf, target)
    value.backward()
    return value.detach(), leaf.grad


def assert_close(case, found, expected):
    torch.testing.assert_close(found, expected, msg=lambda text: f"{case}: {text}")


def assert_finite(value, gradient, *where):
    assert torch.isfinite(value), [str(one) for one in where]
    assert torch.isfinite(gradient).all(), [str(one) for one in where]


def test_ignored_pixels_change_neither_value_nor_gradient():
    for case, seed in itertools.product(CASES, SEEDS):
        if case.name in IMAGE_LOSSES:
            continue
        logits, target = case.sample(seed)
        ignored = ignored_logits(logits, target)
        noise = 7.0 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
        noise[0] = torch.inf
        value, gradient = with_gradient(case, logits, target)
        other_value, other_gradient = with_gradient(case, torch.where(ignored, noise, logits), target)
        assert torch.equal(value, other_value), str(case)
        assert torch.equal(gradient, other_gradient), str(case)
        assert not gradient[ignored].any(), str(case)


def test_images_without_a_judged_pixel_are_left_out_of_the_image_losses():
    for case in PLAIN:
        if case.name in IMAGE_LOSSES:
            logits, target = case.sample(1)
            target[1], logits[1] = 255, torch.inf
            value, gradient = with_gradient(case, logits, target)
            assert_close(case, value, case(logits[[0, 2]], target[[0, 2]]))
            assert not gradient[1].any(), str(case)


def test_neither_the_order_of_the_batch_nor_a_flip_matters():
    for case in CASES:
        logits, target = case.sample(3)
        value = case(logits, target)
        assert_close(case, case(logits[[2, 0, 1]], target[[2, 0, 1]]), value)
        # the forward differences of the active contour look one way; see its docstring
        rel = 0.1 if case.name == "active_contour" else 1e-5
        for dims in ((-1,), (-2,), (-1, -2)):
            flipped = logits if case.name in IMAGE_LOSSES else logits.flip(dims)
            found = float(case(flipped, target.flip(dims)))
            assert found == pytest.approx(float(value), rel=rel), (str(case), dims)


def test_nothing_judged_costs_nothing_and_empty_and_full_masks_are_finite():
    for case in CASES:
        logits, target = case.sample(1)
        value, gradient = with_gradient(case, logits, torch.full_like(target, 255))
        assert value == 0, str(case)
        assert not gradient.any(), str(case)
        for label, logit in itertools.product((0, 1), (0.0, 200.0, -200.0)):
            found = with_gradient(case, torch.full_like(logits, logit), torch.full_like(target, label))
            assert_finite(*found, case, label, logit)


def sure(case, target, size=30.0):
    """Logits that are right everywhere."""
    planes = target if target.ndim == 4 else target[:, None]
    if case.kind == "classes":
        planes = planes == torch.arange(CLASSES["classes"])[:, None, None]
    truth = (planes == 1).any(3).any(2) if case.name in IMAGE_LOSSES else planes == 1
    if case.kind == "objects":
        right = size * (2.0 * truth - 1)
        right[:, -1] = torch.logit(target[:, -1] / 254.0).clamp(-size, size)
        return right
    return size * (2.0 * truth - 1)


def test_a_sure_and_right_prediction_costs_almost_nothing_and_a_wrong_one_does():
    for case, truth in itertools.product(PLAIN, ("empty", "full", "mixed")):
        # the least value of boundary is below 0, and the contour of a right prediction has a length
        if case.name == "boundary" or (case.name, truth) == ("active_contour", "mixed"):
            continue
        _, target = case.sample(1, ignore=0.0)
        if truth != "mixed":
            target = torch.full_like(target, int(truth == "full"))
        value, gradient = with_gradient(case, sure(case, target), target)
        assert_finite(value, gradient, case, truth)
        assert -1e-6 <= value < 1e-3, (str(case), truth)  # a divergence of 0 is rounded
        # no boundary to measure from, no class to look for
        silent = case.name == "hausdorff" or (case.name, truth) == ("lovasz_softmax", "empty")
        assert silent or float(case(-sure(case, target), target)) > 0.1, (str(case), truth)


def test_balanced_bce_of_one_label_is_bce_and_leaves_out_a_class_that_is_not_judged():
    for label in (0, 1):
        logits, target = sample("binary", 1)
        target[target != 255] = label
        torch.testing.assert_close(balanced_bce(logits, target), bce(logits, target))
    logits, target = sample("multilabel", 1)
    target[:, 1] = 255
    expected = balanced_bce(logits[:, [0, 2]], target[:, [0, 2]])
    torch.testing.assert_close(balanced_bce(logits, target), expected)


def test_boundary_is_least_where_all_is_right():
    case = plain_case("boundary")
    _, target = case.sample(1, ignore=0.0)
    assert case(sure(case, target), target) < 0 < case(-sure(case, target), target)


def test_active_contour_costs_the_length_of_the_contour():
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target[:, :, 4:] = 1
    case = plain_case("active_contour")
    assert float(case(sure(case, target), target)) == pytest.approx(8 / 64, abs=1e-3)  # 8 of 64 pixels step


def test_skip_empty_leaves_empty_images_out():
    for name in ("dice", "log_dice", "jaccard", "tversky", "focal_tversky", "lovasz", "lovasz_elu"):
        case = plain_case(name)
        logits, target = case.sample(1)
        target[1][target[1] == 1] = 0
        value, gradient = with_gradient(case._replace(params={"skip_empty": True}), logits, target)
        assert_close(case, value, case(logits[[0, 2]], target[[0, 2]]))
        assert not gradient[1].any(), name
        assert case(logits, target) != value, name


def test_computed_in_float32_on_images_of_any_size():
    for case in PLAIN:
        logits, target = case.sample(0, shape=(2, 40, 40))
        rough = logits.bfloat16()
        value = case(rough, target)
        assert value.dtype == torch.float32, str(case)
        assert_close(case, value, case(rough.float(), target))
        for shape in ((1, 1, 1), (1, 1, 7), (2, 3, 1)):
            assert_finite(*with_gradient(case, *case.sample(1, shape=shape, ignore=0.0)), case, shape)


def test_one_class_may_have_an_axis_of_its_own():
    for name in LOSSES.keys() - IMAGE_LOSSES.keys() - {"cross_entropy", "objects"}:
        case = plain_case(name)
        logits, target = case.sample(1)
        assert torch.equal(case(logits, target), case(logits, target[:, None])), name


def test_stays_on_the_device():
    """The meta device refuses what would mix devices or wait for a number."""
    for case in PLAIN:
        if case.name not in MEASURED:
            logits, target = case.sample(1)
            assert case(logits.to("meta"), target.to("meta")).device.type == "meta", str(case)


def test_targets_that_do_not_fit_are_refused():
    logits, classes = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)
    cases = [
        (name, logits, classes, {}, rf"{name}: target of shape \(2, 4, 4\) for 3 channels .* use ")
        for name in sorted(ALONE)
    ]
    cases += [
        (
            "cross_entropy",
            logits[:, :1],
            target,
            {},
            r"cross_entropy: target of shape \(2, .*4, 4\) for 1 chan",
        )
        for target in (classes, classes[:, None])
    ]
    two = classes[:, None].expand(2, 2, 4, 4)
    cases += [
        ("focal", logits, classes, {"alpha": 0.25}, r"focal: alpha = 0.25 for a class map of 3 classes"),
        ("dice", logits, two, {}, r"target of shape \(2, 2, 4, 4\) for 3 channels of logits; expected"),
        ("dice", logits[:, :1], classes + 2, {}, "target holds the value 2; expected 0 to 1"),
        ("dice", logits[:, :2], two + 2, {}, "target holds the value 2; expected 0 to 1"),
        ("dice", logits, classes + 3, {}, "target holds the value 3; expected 0 to 2"),
        (
            "objects",
            logits,
            classes,
            {},
            r"objects: target of shape \(2, 4, 4\) for 3 channels of logits; expected",
        ),
        ("objects", logits[:, :2], two, {}, r"objects: target of shape \(2, 2, 4, 4\) for 2 channels"),
        (
            "objects",
            logits[:, :2],
            logits.byte(),
            {},
            r"objects: target of shape \(2, 3, 4, 4\) for 2 channels",
        ),
        ("objects", logits, logits.byte() + 2, {}, "target holds the value 2; expected 0 to 1"),
    ]
    for name, given, target, params, message in cases:
        with pytest.raises(ValueError, match=message):
            LOSSES[name](given, target, **params)


def test_objects_takes_several_foregrounds_and_weighs_its_parts():
    case = plain_case("objects")
    logits, target = case.sample(1)
    two = [torch.cat([one[:, :1], one], 1) for one in (logits, target)]
    torch.testing.assert_close(case(*two), case(logits, target))  # the same class twice: its mean
    parts = {"border_weight": 0.0, "distance_weight": 0.0}
    alone = case._replace(params=parts)(logits, target)
    full = case(logits, target)
    shares = [case._replace(params=parts | {name: 1.0})(logits, target) - alone for name in parts]
    torch.testing.assert_close(alone + sum(shares), full)
    assert min(shares) > 0
