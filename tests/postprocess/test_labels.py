"""Rules of several labels: each label's own, searched alone and judged together."""

from dataclasses import asdict

import numpy as np
import pytest

from masksmith.core.arrays import IGNORE
from masksmith.core.files import read_json, write_json
from masksmith.data.target import Target
from masksmith.metrics import metric_for
from masksmith.metrics.planes import join_rows, metric_of_plane
from masksmith.postprocess.config import TuningConfig
from masksmith.postprocess.labels import LabelRules, best_of_labels, make_label_sweep
from masksmith.postprocess.operators import PLAIN, Rule
from masksmith.postprocess.rules import plain_of, read_rule
from masksmith.postprocess.search import make_sweep, search_rule
from masksmith.prediction.store import code_of

NAMES = ("disc", "box", "bar")
CONFIG = TuningConfig(
    bottom_thresholds=[0.3, 0.5, 0.7], top_thresholds=[0.5, 0.8], min_area_fracs=[0.0, 0.05], resamples=100
)
METRICS = (
    "dice_per_image",
    "dice_pooled",
    "tgs_map",
    "iou_per_image_by_group",
    "boundary_f1",
    "miou",
    "mdice",
    "fw_iou",
)


def drawn(count=12, hw=(10, 12)):
    """Codes (n, h, w, 3) and targets; each label is best cut at a threshold of its own."""
    rng = np.random.default_rng(3)
    targets = (rng.random((count, *hw, 3)) < [0.5, 0.3, 0.1]).astype(np.uint8)
    targets[::3, ..., 2] = 0
    probs = np.clip(targets * 0.4 + np.array([0.1, 0.3, 0.4]) + rng.normal(0, 0.15, targets.shape), 0, 1)
    targets[:, 0, :2, 1] = IGNORE
    return np.rint(probs * 65535).astype(np.uint16), targets


def swept(codes, targets, metric, names=NAMES):
    return make_label_sweep(
        lambda at, alone: make_sweep(
            ((one[..., at], target[..., at]) for one, target in zip(codes, targets, strict=True)), alone, CONFIG
        ),
        names, metric,
    )  # fmt: skip


def test_each_label_has_its_rule(tmp_path):
    codes = np.full((4, 5, 3), code_of(0.6), np.uint16)
    other = Rule(code_of(0.7), 0, code_of(0.7))
    rule = LabelRules((PLAIN, other, PLAIN), NAMES)
    assert rule.apply(codes).shape == (4, 5, 3)
    assert rule.apply(codes).any(axis=(0, 1)).tolist() == [True, False, True]
    assert rule.describe() == "disc: mask = p > 0.500; box: mask = p > 0.700; bar: mask = p > 0.500"
    plain = plain_of(Target("multilabel", NAMES), CONFIG)
    assert plain.describe() == "each label: mask = p > 0.500"
    write_json(tmp_path / "rule.json", asdict(rule))
    assert read_rule(read_json(tmp_path / "rule.json")) == rule


@pytest.mark.parametrize("name", METRICS)
def test_the_search_is_that_of_every_combination(name):
    codes, targets = drawn()
    metric = metric_for(name, task="multilabel", classes=3)
    rules, sweep = swept(codes, targets, metric)
    groups = np.arange(len(codes)) % 4
    assert rules[0] == LabelRules((PLAIN,) * 3, NAMES)
    for rule in (
        rules[0],
        rules[-1],
        LabelRules((rules[0].rules[0], rules[-1].rules[0], rules[1].rules[0]), NAMES),
    ):
        rows = [metric.stats(rule.apply(one), target) for one, target in zip(codes, targets, strict=True)]
        np.testing.assert_array_equal(sweep.rows_of(rule), np.stack(rows))
    nothing = np.zeros_like(targets[0])
    np.testing.assert_array_equal(sweep.empty[0], metric.stats(nothing, targets[0]))
    found, score = best_of_labels(sweep, rules, metric, groups)
    assert score == pytest.approx(metric.score(sweep.rows_of(found), groups))
    candidates = [one.rules[0] for one in rules]
    every = [
        LabelRules((a, b, c), NAMES)
        for a in candidates[::3] for b in candidates[::3] for c in candidates[::3]
    ]  # fmt: skip
    scores = [metric.score(sweep.rows_of(rule), groups) for rule in [*every, *rules]]
    assert metric.utility(score) >= max(map(metric.utility, scores)) - 1e-9


def test_labels_in_another_order_have_the_same_scores_and_rules():
    codes, targets = drawn()
    order = [2, 0, 1]
    for name in ("dice_per_image", "miou"):
        metric = metric_for(name, task="multilabel", classes=3)
        found = []
        for chosen in ([0, 1, 2], order):
            names = tuple(NAMES[at] for at in chosen)
            rules, sweep = swept(codes[..., chosen], targets[..., chosen], metric, names)
            groups = [str(at) for at in range(len(codes))]
            found.append(
                search_rule(
                    sweep, metric, rules, parts=np.arange(len(codes)) % 3, groups=groups, resamples=100, seed=0,
                    choose=best_of_labels,
                )
            )  # fmt: skip
        first, second = found
        assert second.found.rules == tuple(first.found.rules[at] for at in order)
        for score in ("plain", "tuned", "nested", "gain_low"):
            assert getattr(first, score) == pytest.approx(getattr(second, score))
        assert first.tuned > first.plain
        assert first.kept


def test_rows_of_planes():
    codes, targets = drawn(2)
    pred = (codes > code_of(0.5)).astype(np.uint8)
    for name in ("dice_per_image", "miou"):
        metric = metric_for(name, task="multilabel", classes=3)
        each = metric_of_plane(metric)
        parts = [
            np.stack([each.stats(p[..., at], t[..., at]) for p, t in zip(pred, targets, strict=True)])
            for at in range(3)
        ]
        rows = np.stack([metric.stats(p, t) for p, t in zip(pred, targets, strict=True)])
        np.testing.assert_array_equal(join_rows(metric, parts), rows)
