import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.losses import lovasz_extension
from masksmith.losses.build import IMAGE_LOSSES, LOSSES
from masksmith.losses.pixelwise import balanced_bce, bce
from masksmith.losses.planes import separate_planes
from tests.losses.samples import ALONE, CASES, CLASSES, PLAIN, ignored_logits, sample

MEASURED = {"boundary", "boundary_bce", "hausdorff"}  # their distances come from the CPU
SEEDS = st.integers(0, 1000)


def with_gradient(case, logits, target):
    leaf = logits.clone().requires_grad_()
    value = case(leaf, target)
    value.backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("case", [one for one in CASES if one.name not in IMAGE_LOSSES], ids=str)
@settings(deadline=None, max_examples=3)
@given(seed=SEEDS)
def test_ignored_pixels_change_neither_value_nor_gradient(case, seed):
    logits, target = case.sample(seed)
    ignored = ignored_logits(logits, target)
    noise = 7.0 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    noise[0] = torch.inf
    value, gradient = with_gradient(case, logits, target)
    other_value, other_gradient = with_gradient(case, torch.where(ignored, noise, logits), target)
    assert torch.equal(value, other_value)
    assert torch.equal(gradient, other_gradient)
    assert not gradient[ignored].any()


@pytest.mark.parametrize("case", [one for one in PLAIN if one.name in IMAGE_LOSSES], ids=str)
def test_images_without_a_judged_pixel_are_left_out(case):
    logits, target = case.sample(1)
    target[1], logits[1] = 255, torch.inf
    value, gradient = with_gradient(case, logits, target)
    torch.testing.assert_close(value, case(logits[[0, 2]], target[[0, 2]]))
    assert not gradient[1].any()


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(deadline=None, max_examples=2)
@given(seed=SEEDS)
def test_order_of_the_batch_is_nothing(case, seed):
    logits, target = case.sample(seed)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(case(logits[order], target[order]), case(logits, target))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_flips_commute(case):
    logits, target = case.sample(2)
    # the forward differences of the active contour look one way; see its docstring
    rel = 0.1 if case.name == "active_contour" else 1e-5
    for dims in ((-1,), (-2,), (-1, -2)):
        flipped = logits if case.name in IMAGE_LOSSES else logits.flip(dims)
        value = float(case(flipped, target.flip(dims)))
        assert value == pytest.approx(float(case(logits, target)), rel=rel), dims


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_judged_costs_nothing(case):
    logits, target = case.sample(1)
    value, gradient = with_gradient(case, logits, torch.full_like(target, 255))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_empty_and_full_masks_are_finite(case):
    logits, target = case.sample(1)
    for label, logit in itertools.product((0, 1), (0.0, 200.0, -200.0)):
        value, gradient = with_gradient(case, torch.full_like(logits, logit), torch.full_like(target, label))
        assert torch.isfinite(value), (label, logit)
        assert torch.isfinite(gradient).all(), (label, logit)


def sure(case, target, size=30.0):
    """Logits that are right everywhere."""
    planes = target if target.ndim == 4 else target[:, None]
    if case.kind == "classes":
        planes = planes == torch.arange(CLASSES["classes"])[:, None, None]
    truth = (planes == 1).any(3).any(2) if case.name in IMAGE_LOSSES else planes == 1
    return size * (2.0 * truth - 1)


FREE = [
    (case, truth)
    for case in PLAIN
    for truth in ("empty", "full", "mixed")
    if case.name != "boundary"  # its least value is below 0
    and (case.name, truth) != ("active_contour", "mixed")  # a right contour still has a length
]


@pytest.mark.parametrize(("case", "truth"), FREE, ids=str)
def test_right_and_sure_is_almost_free(case, truth):
    _, target = case.sample(1, ignore=0.0)
    if truth != "mixed":
        target = torch.full_like(target, int(truth == "full"))
    value, gradient = with_gradient(case, sure(case, target), target)
    assert 0 <= value < 1e-3
    assert torch.isfinite(gradient).all()
    # no boundary to measure from, no class to look for
    silent = case.name == "hausdorff" or (case.name, truth) == ("lovasz_softmax", "empty")
    assert silent or float(case(-sure(case, target), target)) > 0.1


@pytest.mark.parametrize("label", [0, 1])
def test_balanced_bce_of_one_kind_is_bce(label):
    logits, target = sample("binary", 1)
    target[target != 255] = label
    torch.testing.assert_close(balanced_bce(logits, target), bce(logits, target))


def test_balanced_bce_leaves_out_a_class_that_is_not_judged():
    logits, target = sample("multilabel", 1)
    target[:, 1] = 255
    torch.testing.assert_close(
        balanced_bce(logits, target), balanced_bce(logits[:, [0, 2]], target[:, [0, 2]])
    )


def test_boundary_is_least_where_all_is_right():
    case = next(one for one in PLAIN if one.name == "boundary")
    _, target = case.sample(1, ignore=0.0)
    assert case(sure(case, target), target) < 0 < case(-sure(case, target), target)


def test_active_contour_costs_the_length_of_the_contour():
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target[:, :, 4:] = 1
    case = next(one for one in PLAIN if one.name == "active_contour")
    assert float(case(sure(case, target), target)) == pytest.approx(8 / 64, abs=1e-3)  # 8 of 64 pixels step


@pytest.mark.parametrize(
    "name", ["dice", "log_dice", "jaccard", "tversky", "focal_tversky", "lovasz", "lovasz_elu"]
)
def test_positives_only(name):
    case = next(one for one in PLAIN if one.name == name)
    logits, target = case.sample(1)
    target[1][target[1] == 1] = 0
    value, gradient = with_gradient(case._replace(params={"skip_empty": True}), logits, target)
    torch.testing.assert_close(value, case(logits[[0, 2]], target[[0, 2]]))
    assert not gradient[1].any()
    assert case(logits, target) != value


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_computed_in_float32(case):
    logits, target = case.sample(0, shape=(2, 40, 40))
    rough = logits.bfloat16()
    value = case(rough, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, case(rough.float(), target))


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_smallest_images(case):
    for shape in ((1, 1, 1), (1, 1, 7), (2, 3, 1)):
        value, gradient = with_gradient(case, *case.sample(1, shape=shape, ignore=0.0))
        assert torch.isfinite(value), shape
        assert torch.isfinite(gradient).all(), shape


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - IMAGE_LOSSES.keys() - {"cross_entropy"}))
def test_one_class_reads_both_shapes(name):
    case = next(one for one in PLAIN if one.name == name)
    logits, target = case.sample(1)
    assert torch.equal(case(logits, target), case(logits, target[:, None]))


@pytest.mark.parametrize("name", sorted(ALONE))
def test_a_class_map_is_refused_where_classes_are_judged_alone(name):
    target = torch.zeros(2, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"{name}: target of shape \(2, 4, 4\) for 3 channels .* use "):
        LOSSES[name](torch.zeros(2, 3, 4, 4), target)


def test_cross_entropy_refuses_what_is_no_class_map():
    for target in (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"cross_entropy: target of shape \(2, .*4, 4\) for 1 channels"):
            LOSSES["cross_entropy"](torch.zeros(2, 1, 4, 4), target)


def test_alpha_of_a_class_map():
    with pytest.raises(ValueError, match=r"focal: alpha = 0.25 for a class map of 3 classes"):
        LOSSES["focal"](torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8), alpha=0.25)


def test_another_number_of_classes():
    with pytest.raises(
        ValueError, match=r"target of shape \(2, 2, 4, 4\) for 3 channels of logits; expected"
    ):
        LOSSES["dice"](torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("kind", "wrong", "highest"), [("binary", 2, 1), ("multilabel", 2, 1), ("classes", 3, 2)]
)
def test_a_class_that_the_logits_do_not_have(kind, wrong, highest):
    case = next(one for one in PLAIN if (one.name, one.kind) == ("dice", kind))
    logits, target = case.sample(1)
    target.flatten()[0] = wrong
    with pytest.raises(ValueError, match=f"target holds the value {wrong}; expected 0 to {highest}"):
        case(logits, target)


@pytest.mark.parametrize("case", [one for one in PLAIN if one.name not in MEASURED], ids=str)
def test_stays_on_the_device(case):
    """The meta device refuses what would mix devices or wait for a number."""
    logits, target = case.sample(1)
    assert case(logits.to("meta"), target.to("meta")).device.type == "meta"


@pytest.mark.parametrize("per_image", [True, False])
def test_lovasz_of_positive_errors_is_that_of_all(per_image):
    logits, target = sample("multilabel", 1, shape=(3, 20, 20))
    planes = separate_planes(logits.requires_grad_(), target, loss="lovasz", instead="")
    options = {"per_image": per_image, "skip_empty": False}
    values = [
        lovasz_extension._extension(
            lovasz_extension._hinge_errors(planes), planes, F.relu, only_positive=choice, **options
        )
        for choice in (True, False)
    ]
    torch.testing.assert_close(values[0], values[1])
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in values]
    torch.testing.assert_close(gradients[0], gradients[1])
