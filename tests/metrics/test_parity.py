"""The same numbers as segmentation-models-pytorch, MONAI and scipy give, where these have the metric."""

import numpy as np
import pytest
import torch

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


def stats_of(smp, preds, targets, **mode):
    return smp.get_stats(*(torch.from_numpy(masks.astype(np.int64)) for masks in (preds, targets)), **mode)


def test_segmentation_models_pytorch():
    smp = pytest.importorskip("segmentation_models_pytorch").metrics
    stats = stats_of(smp, PREDS[:, None], TARGETS[:, None], mode="binary")
    of_theirs = {"iou": "iou_score", "dice": "f1_score", "precision": "precision", "recall": "recall"}
    cases = [(f"{ours}_pooled", theirs, "micro") for ours, theirs in of_theirs.items()]
    cases += [(f"{ours}_per_image", theirs, "micro-imagewise") for ours, theirs in of_theirs.items()]
    cases += [("accuracy", "accuracy", "micro"), ("accuracy_per_image", "accuracy", "micro-imagewise")]
    for name, theirs, reduction in cases:
        expected = float(getattr(smp, theirs)(*stats, reduction=reduction))
        assert get_metric(name).score(rows(name)) == pytest.approx(expected, abs=1e-6), name
    many = np.random.default_rng(0).integers(0, 4, (2, 5, 20, 20)).astype(np.uint8)
    for name, num_classes, pair in (("miou(num_classes=4)", 4, many), ("miou", 2, (PREDS, TARGETS))):
        stats = stats_of(smp, *pair, mode="multiclass", num_classes=num_classes)
        expected = float(smp.iou_score(*stats, reduction="macro"))
        assert get_metric(name).score(rows(name, *pair)) == pytest.approx(expected, abs=1e-6)


def test_boundaries_of_monai():
    """Its surface Dice is the near boundary pixels of both over all of both: the same four counts as ours."""
    metrics = pytest.importorskip("monai.metrics")
    pair = [torch.from_numpy(masks[:, None].astype(np.float32)) for masks in (PREDS, TARGETS)]
    expected = metrics.compute_hausdorff_distance(*pair, include_background=True, percentile=95)
    np.testing.assert_allclose(rows("hausdorff_95")[:, 0], expected[:, 0].numpy(), atol=1e-5)
    for tolerance in (0.0, 1.0, 2.5):
        expected = metrics.compute_surface_dice(*pair, class_thresholds=[tolerance], include_background=True)
        share = tolerance / np.hypot(40, 50)
        pairs = zip(PREDS, TARGETS, strict=True)
        own = np.stack([boundary_stats(*one, tolerance_frac=share) for one in pairs])
        found = (own[:, 0] + own[:, 2]) / (own[:, 1] + own[:, 3])
        np.testing.assert_allclose(found, expected[:, 0].numpy())


def test_components_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.random.default_rng(3).random((80, 90)) < 0.45
    for connectivity, rank in ((4, 1), (8, 2)):
        labels, count = label_components(mask, connectivity=connectivity)
        theirs, number = ndimage.label(mask, ndimage.generate_binary_structure(2, rank))
        assert count == number
        pairs = set(zip(labels.ravel().tolist(), theirs.ravel().tolist(), strict=True))
        assert len(pairs) == count + 1  # the same parts under other numbers, and the background
