"""The cost of an image against its definition: the score with that image alone predicted right, less the score."""

import numpy as np
import pytest

from masksmith.metrics import get_metric, metric_for
from masksmith.metrics.costs import image_costs

NAMES = ("tgs_map", "dice_per_image", "iou_pooled", "iou_by_group", "iou_per_image_by_group", "hausdorff_95")


@pytest.mark.parametrize("name", [*NAMES, "miou"])
def test_costs_are_gains_of_one_right_image(name):
    rng = np.random.default_rng(0)
    metric = metric_for(name, task="multiclass", classes=3) if name == "miou" else get_metric(name)
    target = rng.integers(0, 3 if name == "miou" else 2, (7, 12, 9)).astype(np.uint8)
    pred = np.where(rng.random(target.shape) < 0.3, 0, target).astype(np.uint8)
    target[1], pred[1] = 0, 0
    groups = np.array(list("aabbbcc"))
    rows, perfect = (
        np.stack([metric.stats(one, truth) for one, truth in zip(ones, target, strict=True)])
        for ones in (pred, target)
    )
    found = image_costs(metric, rows, perfect, groups)
    for at, cost in enumerate(found):
        better = rows.copy()
        better[at] = perfect[at]
        gain = metric.utility(metric.score(better, groups)) - metric.utility(metric.score(rows, groups))
        assert cost == pytest.approx(gain, abs=1e-12)
    assert (found > 0).any()
    assert found[1] == pytest.approx(0)
