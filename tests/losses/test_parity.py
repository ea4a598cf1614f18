"""The same numbers as the field's libraries, where they define the same loss."""

import pytest
import torch
import torch.nn.functional as F

from masksmith.losses.contours import hausdorff
from masksmith.losses.lovasz_extension import lovasz, lovasz_softmax
from masksmith.losses.pixelwise import bce, cross_entropy, focal, smooth_l1
from masksmith.losses.regions import dice, focal_tversky, jaccard, log_dice, tversky
from tests.losses.samples import sample

pytestmark = pytest.mark.parity

SHAPE = (3, 12, 14)
MODES = {"binary": "binary", "multilabel": "multilabel", "classes": "multiclass"}


@pytest.fixture(scope="module")
def smp():
    return pytest.importorskip("segmentation_models_pytorch").losses


@pytest.fixture(scope="module")
def monai():
    return pytest.importorskip("monai.losses")


def agree(ours, theirs, logits, target, *, their_target=None):
    """Compare values and gradients."""
    found = []
    for loss, truth in ((ours, target), (theirs, target if their_target is None else their_target)):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, truth)
        found.append((value, *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def for_smp(target, kind):
    return target[:, None].float() if kind == "binary" else target.long()


REGIONS = {
    # theirs smooths (2 overlap) / 2: a half of our smooth
    "dice": (lambda smp, mode: smp.DiceLoss(mode, smooth=0.5, ignore_index=255), dice, {"smooth": 1.0}),
    "log_dice": (
        lambda smp, mode: smp.DiceLoss(mode, log_loss=True, smooth=0.5, ignore_index=255),
        log_dice,
        {"smooth": 1.0},
    ),
    "tversky": (
        lambda smp, mode: smp.TverskyLoss(mode, smooth=1.0, alpha=0.3, beta=0.7, ignore_index=255),
        tversky,
        {"alpha": 0.3, "beta": 0.7},
    ),
}


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("name", REGIONS)
def test_regions_of_smp(smp, name, kind):
    theirs, ours, params = REGIONS[name]
    logits, target = sample(kind, 7, shape=SHAPE)
    agree(
        lambda *given: ours(*given, per_image=False, **params),
        theirs(smp, MODES[kind]),
        logits,
        target,
        their_target=for_smp(target, kind),
    )


@pytest.mark.parametrize("kind", MODES)
def test_jaccard_of_smp(smp, kind):
    logits, target = sample(kind, 7, shape=SHAPE, ignore=0.0)  # theirs ignores nothing
    agree(
        lambda *given: jaccard(*given, per_image=False, smooth=1.0),
        smp.JaccardLoss(MODES[kind], smooth=1.0),
        logits,
        target,
        their_target=for_smp(target, kind),
    )


def test_focal_tversky_of_smp(smp):
    logits, target = sample("binary", 7, shape=SHAPE)
    agree(
        lambda *given: focal_tversky(*given, gamma=2.0, per_image=False),
        smp.TverskyLoss("binary", smooth=1.0, alpha=0.3, beta=0.7, gamma=0.5, ignore_index=255),
        logits,
        target,
        their_target=for_smp(target, "binary"),
    )


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_of_smp(smp, alpha):
    logits, target = sample("binary", 7, shape=SHAPE)
    agree(
        lambda *given: focal(*given, alpha=alpha),
        smp.FocalLoss("binary", alpha=alpha, gamma=2.0, ignore_index=255),
        logits,
        target,
        their_target=target[:, None].float(),
    )


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("ignore", [0.0, 0.2])
def test_lovasz_of_smp(smp, per_image, ignore):
    logits, target = sample("binary", 7, shape=SHAPE, ignore=ignore)
    agree(
        lambda *given: lovasz(*given, per_image=per_image),
        smp.LovaszLoss("binary", per_image=per_image, ignore_index=255),
        logits,
        target,
        their_target=target[:, None].float(),
    )


@pytest.mark.parametrize("ignore", [0.0, 0.2])
def test_lovasz_softmax_of_smp(smp, ignore):
    logits, target = sample("classes", 7, shape=SHAPE, ignore=ignore)
    target[target == 1] = 2  # an absent class
    agree(
        lambda *given: lovasz_softmax(*given, per_image=False),
        smp.LovaszLoss("multiclass", per_image=False, ignore_index=255),
        logits,
        target,
    )


def test_bce_of_smp(smp):
    logits, target = sample("binary", 7, shape=SHAPE, ignore=0.0)  # theirs divides by the ignored ones too
    agree(
        lambda *given: bce(*given, pos_weight=3.0, label_smoothing=0.1),
        smp.SoftBCEWithLogitsLoss(smooth_factor=0.05, pos_weight=torch.tensor(3.0)),
        logits,
        target,
        their_target=target[:, None].float(),
    )


def test_of_pytorch():
    logits, target = sample("classes", 7, shape=SHAPE)
    agree(
        lambda *given: cross_entropy(*given, label_smoothing=0.1),
        lambda *given: F.cross_entropy(*given, ignore_index=255, label_smoothing=0.1),
        logits,
        target,
        their_target=target.long(),
    )
    logits, target = sample("multilabel", 7, shape=SHAPE, ignore=0.0)
    agree(
        lambda *given: smooth_l1(*given, beta=0.3),
        lambda scores, truth: F.smooth_l1_loss(scores.sigmoid(), truth, beta=0.3),
        logits,
        target,
        their_target=target.float(),
    )


def monai_options(kind):
    return {"softmax": True, "to_onehot_y": True} if kind == "classes" else {"sigmoid": True}


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("per_image", [True, False])
def test_regions_of_monai(monai, kind, per_image):
    logits, target = sample(kind, 7, shape=SHAPE, ignore=0.0)
    options = {"smooth_nr": 1.0, "smooth_dr": 1.0, "batch": not per_image, **monai_options(kind)}
    pairs = [
        (lambda *given: dice(*given, per_image=per_image), monai.DiceLoss(**options)),
        # theirs smooths 2 overlap / 2 union: a half of our smooth
        (
            lambda *given: jaccard(*given, smooth=0.5, per_image=per_image),
            monai.DiceLoss(jaccard=True, **options),
        ),
        (
            lambda *given: tversky(*given, per_image=per_image),
            monai.TverskyLoss(alpha=0.3, beta=0.7, **options),
        ),
    ]
    for ours, theirs in pairs:
        agree(ours, theirs, logits, target, their_target=target if target.ndim == 4 else target[:, None])


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_of_monai(monai, alpha):
    logits, target = sample("multilabel", 7, shape=SHAPE, ignore=0.0)
    theirs = monai.FocalLoss(gamma=1.5, alpha=alpha)
    agree(lambda *given: focal(*given, gamma=1.5, alpha=alpha), theirs, logits, target)


def test_softmax_focal_of_monai(monai):
    logits, target = sample("classes", 7, shape=SHAPE, ignore=0.0)
    theirs = monai.FocalLoss(gamma=1.5, use_softmax=True, to_onehot_y=True)

    def theirs_by_pixel(scores, truth):
        return (
            theirs(scores, truth) * scores.shape[1]
        )  # theirs divides by the classes that are not true as well

    agree(
        lambda *given: focal(*given, gamma=1.5),
        theirs_by_pixel,
        logits,
        target,
        their_target=target[:, None],
    )


@pytest.mark.parametrize("kind", MODES)
def test_hausdorff_of_monai(monai, kind):
    pytest.importorskip("scipy")
    logits, target = sample(kind, 7, shape=SHAPE, ignore=0.0)
    agree(
        hausdorff,
        monai.HausdorffDTLoss(alpha=2.0, include_background=True, **monai_options(kind)),
        logits,
        target,
        # in uint8 theirs would cut the distances to whole numbers
        their_target=(target if target.ndim == 4 else target[:, None]).float(),
    )
