"""Class maps of probabilities: the weighted rule against loops, its candidates, and what permuting classes does."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from masksmith.data.target import BINARY, OBJECTS, Target
from masksmith.metrics import metric_for
from masksmith.postprocess.classes import ClassRule, class_rules
from masksmith.postprocess.config import TuningConfig
from masksmith.postprocess.objects import PLAIN_OBJECTS
from masksmith.postprocess.operators import plain_rule
from masksmith.postprocess.rule_sweep import sweep_rules
from masksmith.postprocess.rules import plain_of, read_rule
from masksmith.postprocess.scoring import RuleMasks, constant, score_of, score_rows
from masksmith.postprocess.search import search_rule

CLASSES = Target("multiclass", ("a", "b", "c", "d"), (0, 1, 2, 3))


def random_codes(seed, hw=(7, 9), count=4):
    """Codes of a softmax, some of them equal."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(0, 1, (*hw, count)), 1)
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return np.rint(shares * 65535).astype(np.uint16)


def twin(codes, weights):
    """The first class of the largest product, pixel by pixel."""
    found = np.zeros(codes.shape[:2], np.uint8)
    for spot in np.ndindex(found.shape):
        products = [
            np.float32(code) * np.float32(weight) for code, weight in zip(codes[spot], weights, strict=True)
        ]
        found[spot] = products.index(max(products))
    return found


@settings(deadline=None)
@given(st.integers(0, 2**20), st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.25, 20.0]), min_size=4, max_size=4))
def test_a_rule_equals_its_twin(seed, weights):
    codes, rule = random_codes(seed), ClassRule(tuple(weights))
    np.testing.assert_array_equal(rule.apply(codes), twin(codes, weights))
    np.testing.assert_array_equal(ClassRule((1.0,) * 4).apply(codes), twin(codes, [1] * 4))


@settings(deadline=None)
@given(st.integers(0, 2**20), st.permutations(range(4)))
def test_permuted_classes_permute_masks_and_scores(seed, order):
    """Where no two products are equal: of two equal ones the first class is taken."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(7 * 9 * 4).reshape(7, 9, 4).astype(np.uint16) * 97
    truth = rng.integers(0, 5, (7, 9)).astype(np.uint8)
    truth[truth == 4] = 255
    weights = np.array([1.0, 1.4142135, 0.6180339, 1.7320508])
    products = np.sort(codes * weights.astype(np.float32), axis=-1)
    assume((np.diff(products, axis=-1) > 0).all())
    new = np.empty(256, np.uint8)
    new[255] = 255
    new[list(order)] = np.arange(4)  # class order[i] is now i
    mask = ClassRule(tuple(weights)).apply(codes)
    moved = ClassRule(tuple(weights[list(order)])).apply(codes[..., list(order)])
    np.testing.assert_array_equal(moved, new[mask])
    metric = metric_for("miou", task="multiclass", classes=4)
    rows = [metric.stats(*pair)[None] for pair in ((mask, truth), (moved, new[truth]))]
    assert metric.score(rows[0]) == pytest.approx(metric.score(rows[1]))
    np.testing.assert_allclose(metric.class_scores(rows[0])[list(order)], metric.class_scores(rows[1]))


def test_candidates():
    shares = np.array([0.9, 0.09, 0.01, 0.0])
    rules = class_rules(shares)
    assert rules[0] == ClassRule((1.0,) * 4)
    assert len(rules) == len(set(rules)) == 1 + 5 + 2 * 3
    assert all(rule.weights[3] == 1 for rule in rules)  # nothing is known of a class that never occurs
    assert rules[5].weights == (1.0, 3.98, 14.9, 1.0)
    assert max(max(rule.weights) for rule in class_rules(np.array([1 - 1e-9, 1e-9]))) == 20
    assert len(class_rules(np.full(30, 1 / 30))) == 1  # equal shares, and too many to try each alone
    assert rules[0].describe() == "the most probable class"
    assert rules[-1].describe(many_sizes=True).endswith("times its weight (1, 1, 1.5, 1)")


def test_each_task_has_its_plain_rule_and_reads_it_back():
    config = TuningConfig()
    for target, rule in (
        (BINARY, plain_rule(config)),
        (OBJECTS, PLAIN_OBJECTS),
        (CLASSES, ClassRule((1.0,) * 4)),
    ):
        assert plain_of(target, config) == rule
        assert read_rule(dict(vars(rule))) == rule
    assert read_rule({"weights": [1.0, 2.5]}) == ClassRule((1.0, 2.5))  # as JSON has it


def test_a_search_finds_the_weight_of_a_rare_class():
    """Two classes whose probabilities never exceed that of the background: weights bring them back."""
    rng, shape = np.random.default_rng(0), (16, 20)
    truth = {f"{at}": rng.choice(3, size=shape, p=[0.9, 0.05, 0.05]).astype(np.uint8) for at in range(12)}
    codes = {}
    for name, mask in truth.items():
        share = rng.uniform(0.5, 0.6, shape)
        own = np.stack([share, (1 - share) * 0.4, (1 - share) * 0.4], axis=-1)
        for at in (1, 2):
            own[mask == at] = [0.5, 0.05, 0.05]
            own[mask == at, at] = 0.45
        codes[name] = np.rint(own * 65535).astype(np.uint16)[..., :]
    metric = metric_for("miou", task="multiclass", classes=3)
    rules = class_rules(np.array([0.9, 0.05, 0.05]))
    sweep = sweep_rules(((codes[name], truth[name]) for name in truth), rules, metric)
    found = search_rule(
        sweep,
        metric,
        rules,
        parts=np.arange(12) % 3,
        groups=list(truth),
        labels=list(truth),
        resamples=100,
        seed=0,
    )
    assert (found.plain, found.kept) == (pytest.approx(0.3, abs=0.01), True)
    assert found.tuned == found.nested == 1
    masks = {name: mask[..., None] for name, mask in truth.items()}
    rows = score_rows(metric, codes.items(), masks, found.rule)
    assert score_of(metric, rows) == 1
    np.testing.assert_array_equal(RuleMasks({"0": codes}, found.rule)["0"], truth["0"])
    shapes = [(name, shape) for name in truth]
    everywhere = score_rows(metric, constant(shapes, channels=3, on=0), masks, rules[0])
    assert score_of(metric, everywhere) == pytest.approx(found.plain)
