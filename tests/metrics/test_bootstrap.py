"""The bootstrap equals drawing the images themselves, in blocks or not."""

import numpy as np
import pytest

from masksmith.metrics import bootstrap, get_metric, metric_for


def test_draws_equal_images_taken_as_often(monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 40, (2, 9, 4)).astype(float)
    groups, labels = list("aabbbcdde"), list("xxyyxxyxz")
    for name in ("iou_pooled", "dice_per_image", "iou_by_group", "iou_per_image_by_group"):
        metric = get_metric(name)
        for own in (None, labels):
            options = {"labels": own, "resamples": 40}
            found = bootstrap.resampled_scores(
                metric, list(rows), groups, rng=np.random.default_rng(1), **options
            )
            draws, expected = np.random.default_rng(1), []
            for _ in range(40):
                drawn = draws.integers(5, size=5)  # of the groups a to e
                taken = [
                    (number, at)
                    for number, one in enumerate(drawn)
                    for at in range(9)
                    if groups[at] == "abcde"[one]
                ]
                homes = np.array([f"{number}{(own or groups)[at]}" for number, at in taken])
                expected.append([metric.score(one[[at for _, at in taken]], homes) for one in rows])
            np.testing.assert_allclose(found.T, expected, err_msg=name)
            with monkeypatch.context() as patch:
                patch.setattr(bootstrap, "_AT_ONCE", 100)  # two draws at once
                again = bootstrap.resampled_scores(
                    metric, list(rows), groups, rng=np.random.default_rng(1), **options
                )
            np.testing.assert_allclose(again, found)
    planes = metric_for("dice_pooled", task="multilabel", classes=1)
    alone = bootstrap.resampled_scores(planes, [rows[0]], groups, resamples=5, rng=np.random.default_rng(1))
    assert alone.shape == (1, 5)
    assert alone.std() == pytest.approx(0.02, abs=0.1)
