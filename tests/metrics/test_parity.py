"""The same numbers as segmentation-models-pytorch, MONAI and scipy give, where these have the metric."""

import numpy as np
import pytest

from masksmith.metrics import get_metric
from masksmith.metrics.boundary import boundary_stats
from masksmith.metrics.objects import label_components

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),  # MONAI's own call
]


def blobs(num, hw=(40, 50), seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((num, *hw), np.uint8)
    for mask in masks:
        for _ in range(4):
            i, j = rng.integers(0, hw[0] - 8), rng.integers(0, hw[1] - 8)
            mask[i : i + rng.integers(3, 16), j : j + rng.integers(3, 16)] = 1
    return masks


PREDS, TARGETS = blobs(6, seed=1), blobs(6, seed=2)


def rows(name, preds=PREDS, targets=TARGETS):
    metric = get_metric(name)
    return np.stack([metric.stats(pred, target) for pred, target in zip(preds, targets, strict=True)])


@pytest.mark.parametrize(
    ("name", "theirs", "reduction"),
    [
        ("iou_pooled", "iou_score", "micro"),
        ("iou_per_image", "iou_score", "micro-imagewise"),
        ("dice_pooled", "f1_score", "micro"),
        ("dice_per_image", "f1_score", "micro-imagewise"),
        ("precision_pooled", "precision", "micro"),
        ("precision_per_image", "precision", "micro-imagewise"),
        ("recall_pooled", "recall", "micro"),
        ("recall_per_image", "recall", "micro-imagewise"),
        ("accuracy", "accuracy", "micro"),
        ("accuracy_per_image", "accuracy", "micro-imagewise"),
    ],
)
def test_segmentation_models_pytorch(name, theirs, reduction):
    import torch
    from segmentation_models_pytorch import metrics as smp

    pair = [torch.from_numpy(masks[:, None].astype(np.int64)) for masks in (PREDS, TARGETS)]
    stats = smp.get_stats(*pair, mode="binary")
    expected = float(getattr(smp, theirs)(*stats, reduction=reduction))
    assert get_metric(name).score(rows(name)) == pytest.approx(expected, abs=1e-6)


def test_miou_of_segmentation_models_pytorch():
    import torch
    from segmentation_models_pytorch import metrics as smp

    rng = np.random.default_rng(0)
    preds, targets = rng.integers(0, 4, (2, 5, 20, 20)).astype(np.uint8)
    pair = [torch.from_numpy(masks.astype(np.int64)) for masks in (preds, targets)]
    stats = smp.get_stats(*pair, mode="multiclass", num_classes=4)
    expected = float(smp.iou_score(*stats, reduction="macro"))
    name = "miou(num_classes=4)"
    assert get_metric(name).score(rows(name, preds, targets)) == pytest.approx(expected, abs=1e-6)
    pair = [torch.from_numpy(masks.astype(np.int64)) for masks in (PREDS, TARGETS)]
    stats = smp.get_stats(*pair, mode="multiclass", num_classes=2)
    assert get_metric("miou").score(rows("miou")) == pytest.approx(
        float(smp.iou_score(*stats, reduction="macro")), abs=1e-6
    )


def test_hausdorff_of_monai():
    metrics = pytest.importorskip("monai.metrics")
    import torch

    pair = [torch.from_numpy(masks[:, None].astype(np.float32)) for masks in (PREDS, TARGETS)]
    expected = metrics.compute_hausdorff_distance(*pair, include_background=True, percentile=95)
    np.testing.assert_allclose(rows("hausdorff_95")[:, 0], expected[:, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5])
def test_near_boundary_pixels_of_monai(tolerance):
    """Its surface Dice is the near boundary pixels of both over all of both: the same four counts as ours."""
    metrics = pytest.importorskip("monai.metrics")
    import torch

    pair = [torch.from_numpy(masks[:, None].astype(np.float32)) for masks in (PREDS, TARGETS)]
    expected = metrics.compute_surface_dice(*pair, class_thresholds=[tolerance], include_background=True)
    share = tolerance / np.hypot(40, 50)
    own = np.stack([boundary_stats(p, t, tolerance_frac=share) for p, t in zip(PREDS, TARGETS, strict=True)])
    np.testing.assert_allclose((own[:, 0] + own[:, 2]) / (own[:, 1] + own[:, 3]), expected[:, 0].numpy())


@pytest.mark.parametrize("connectivity", [4, 8])
def test_components_of_scipy(connectivity):
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.random.default_rng(3).random((80, 90)) < 0.45
    labels, count = label_components(mask, connectivity=connectivity)
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    theirs, number = ndimage.label(mask, structure)
    assert count == number
    pairs = set(zip(labels.ravel().tolist(), theirs.ravel().tolist(), strict=True))
    assert len(pairs) == count + 1  # the same parts under other numbers, and the background
