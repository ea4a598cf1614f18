"""The same values and gradients as the field's libraries, where they define the same loss."""

import pytest
import torch
import torch.nn.functional as F

from masksmith.losses.contours import hausdorff
from masksmith.losses.lovasz_extension import lovasz, lovasz_softmax
from masksmith.losses.pixelwise import bce, cross_entropy, focal, smooth_l1
from masksmith.losses.regions import dice, focal_tversky, jaccard, log_dice, tversky
from tests.losses.samples import sample

pytestmark = pytest.mark.parity

MODES = {"binary": "binary", "multilabel": "multilabel", "classes": "multiclass"}


def agree(ours, theirs, kind, *, ignore=0.2, form=lambda target: target, change=None, **params):
    """Compare on a sample of a kind; ``form`` makes their target of ours, ``params`` are of our loss."""
    logits, target = sample(kind, 7, shape=(3, 12, 14), ignore=ignore)
    if change is not None:
        change(target)
    found = []
    for loss, truth in ((lambda *given: ours(*given, **params), target), (theirs, form(target))):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, truth)
        found.append((value, *torch.autograd.grad(value, leaf)))
    where = f"{ours.__name__}, {kind}, {params}"
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6, msg=lambda text: f"{where}: {text}")


def long(target):
    return target.long()


def channel(target):
    """With an axis of classes."""
    return target if target.ndim == 4 else target[:, None]


def channel_of_floats(target):
    return channel(target).float()


def test_segmentation_models_pytorch():
    smp = pytest.importorskip("segmentation_models_pytorch").losses
    for kind, mode in MODES.items():
        form = channel_of_floats if kind == "binary" else long
        pooled = {"form": form, "per_image": False}
        # theirs smooths (2 overlap) / 2: a half of our smooth
        agree(dice, smp.DiceLoss(mode, smooth=0.5, ignore_index=255), kind, smooth=1.0, **pooled)
        log = smp.DiceLoss(mode, log_loss=True, smooth=0.5, ignore_index=255)
        agree(log_dice, log, kind, smooth=1.0, **pooled)
        theirs = smp.TverskyLoss(mode, smooth=1.0, alpha=0.3, beta=0.7, ignore_index=255)
        agree(tversky, theirs, kind, alpha=0.3, beta=0.7, **pooled)
        # theirs ignores nothing
        agree(jaccard, smp.JaccardLoss(mode, smooth=1.0), kind, ignore=0.0, smooth=1.0, **pooled)
    of_floats = {"form": channel_of_floats}
    theirs = smp.TverskyLoss("binary", smooth=1.0, alpha=0.3, beta=0.7, gamma=0.5, ignore_index=255)
    agree(focal_tversky, theirs, "binary", gamma=2.0, per_image=False, **of_floats)
    for alpha in (None, 0.25):
        theirs = smp.FocalLoss("binary", alpha=alpha, gamma=2.0, ignore_index=255)
        agree(focal, theirs, "binary", alpha=alpha, **of_floats)
    # theirs divides by the ignored ones too
    theirs = smp.SoftBCEWithLogitsLoss(smooth_factor=0.05, pos_weight=torch.tensor(3.0))
    agree(bce, theirs, "binary", ignore=0.0, pos_weight=3.0, label_smoothing=0.1, **of_floats)


def test_lovasz_of_segmentation_models_pytorch():
    smp = pytest.importorskip("segmentation_models_pytorch").losses

    def without_class_1(target):
        target[target == 1] = 2

    for ignore in (0.0, 0.2):
        for per_image in (True, False):
            theirs = smp.LovaszLoss("binary", per_image=per_image, ignore_index=255)
            agree(lovasz, theirs, "binary", ignore=ignore, form=channel_of_floats, per_image=per_image)
        theirs = smp.LovaszLoss("multiclass", per_image=False, ignore_index=255)
        agree(lovasz_softmax, theirs, "classes", ignore=ignore, change=without_class_1, per_image=False)


def test_pytorch():
    def entropy(logits, target):
        return F.cross_entropy(logits, target, ignore_index=255, label_smoothing=0.1)

    def smooth(logits, target):
        return F.smooth_l1_loss(logits.sigmoid(), target, beta=0.3)

    agree(cross_entropy, entropy, "classes", form=long, label_smoothing=0.1)
    agree(smooth_l1, smooth, "multilabel", ignore=0.0, form=channel_of_floats, beta=0.3)


def test_monai():
    monai = pytest.importorskip("monai.losses")
    pytest.importorskip("scipy")
    for kind in MODES:
        given = {"softmax": True, "to_onehot_y": True} if kind == "classes" else {"sigmoid": True}
        for per_image in (True, False):
            options = {"smooth_nr": 1.0, "smooth_dr": 1.0, "batch": not per_image, **given}
            ours = {"ignore": 0.0, "form": channel, "per_image": per_image}
            agree(dice, monai.DiceLoss(**options), kind, **ours)
            # theirs smooths 2 overlap / 2 union: a half of our smooth
            agree(jaccard, monai.DiceLoss(jaccard=True, **options), kind, smooth=0.5, **ours)
            agree(tversky, monai.TverskyLoss(alpha=0.3, beta=0.7, **options), kind, **ours)
        theirs = monai.HausdorffDTLoss(alpha=2.0, include_background=True, **given)
        # in uint8 theirs would cut the distances to whole numbers
        agree(hausdorff, theirs, kind, ignore=0.0, form=channel_of_floats)
    for alpha in (None, 0.25):
        agree(
            focal, monai.FocalLoss(gamma=1.5, alpha=alpha), "multilabel", ignore=0.0, gamma=1.5, alpha=alpha
        )
    theirs = monai.FocalLoss(gamma=1.5, use_softmax=True, to_onehot_y=True)

    def by_pixel(logits, target):
        return theirs(logits, target) * logits.shape[1]  # theirs divides by the classes that are not true too

    agree(focal, by_pixel, "classes", ignore=0.0, form=channel, gamma=1.5)
