"""What holds for every metric: its twin, ignored pixels, flips, weights, order, leading axes; and how one is named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from masksmith.errors import InputError
from masksmith.metrics import METRICS, get_metric

from .twins import TWINS

MASK = arrays(np.uint8, (4, 5), elements=st.integers(0, 1))
TARGET = arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 255]))
EMPTY = st.just(np.zeros((4, 5), np.uint8))
SETS = st.lists(st.tuples(MASK | EMPTY, TARGET | EMPTY, st.sampled_from("abc")), min_size=1, max_size=5)
LOWER = {"hausdorff_95"}
by_name = pytest.mark.parametrize("name", sorted(TWINS))


def split(triples):
    return [(pred, target) for pred, target, _ in triples], np.array([group for *_, group in triples])


def rows_of(metric, pairs):
    return np.stack([metric.stats(pred, target) for pred, target in pairs])


def test_every_metric_has_a_twin():
    assert {name.partition("(")[0] for name in TWINS} == set(METRICS)


@by_name
@settings(deadline=None, max_examples=20)
@given(triples=SETS)
def test_equals_the_definition(name, triples):
    metric, (pairs, groups) = get_metric(name), split(triples)
    expected = TWINS[name](pairs, groups.tolist())
    assert metric.score(rows_of(metric, pairs), groups) == pytest.approx(expected, abs=1e-6)


@by_name
@settings(deadline=None, max_examples=15)
@given(triples=SETS, seed=st.integers(0, 9))
def test_weights_are_repetitions_and_order_is_nothing(name, triples, seed):
    metric, rng, (pairs, groups) = get_metric(name), np.random.default_rng(seed), split(triples)
    rows = rows_of(metric, pairs)
    counts = rng.integers(0, 3, len(rows)) + (np.arange(len(rows)) == 0)
    repeated = metric.score(np.repeat(rows, counts, axis=0), np.repeat(groups, counts))
    weighted = metric.reduce(rows, weights=counts.astype(float), groups=groups)
    assert float(weighted) == pytest.approx(repeated)
    order = rng.permutation(len(rows))
    assert metric.score(rows[order], groups[order]) == pytest.approx(metric.score(rows, groups))
    half = metric.reduce(rows, weights=counts / 2, groups=groups)  # only the proportions count
    assert float(half) == pytest.approx(repeated)


@by_name
@settings(deadline=None, max_examples=20)
@given(pred=MASK, target=TARGET)
def test_ignored_pixels_do_not_count(name, pred, target):
    metric = get_metric(name)
    other = np.where(target == 255, 1 - pred, pred).astype(np.uint8)
    np.testing.assert_array_equal(metric.stats(pred, target), metric.stats(other, target))


@by_name
@settings(deadline=None, max_examples=15)
@given(pred=MASK, target=TARGET)
def test_flips_and_turns_of_both_change_nothing(name, pred, target):
    metric = get_metric(name)
    row = metric.stats(pred, target)
    for turn in (np.fliplr, np.flipud, np.transpose, np.rot90):
        turned = metric.stats(np.ascontiguousarray(turn(pred)), np.ascontiguousarray(turn(target)))
        np.testing.assert_allclose(turned, row, atol=1e-6)


@pytest.mark.parametrize(
    "name", sorted(set(TWINS) - {name for name in TWINS if name[:4] in ("prec", "reca")})
)
@settings(deadline=None, max_examples=15)
@given(pred=MASK, target=MASK)
def test_prediction_and_target_may_change_places(name, pred, target):
    metric = get_metric(name)
    if ("f_beta_objects" in name and "beta=" in name) or name == "f_beta_objects":
        return  # beta weighs misses and false objects differently
    there, back = (metric.stats(one, two)[None] for one, two in ((pred, target), (target, pred)))
    group = np.array(["g"])
    assert metric.score(there, group) == pytest.approx(metric.score(back, group), abs=1e-6)


@by_name
def test_the_best_is_perfect_and_mistakes_cost(name):
    """A prediction that is the target scores best; an empty one where something is scores worst of all."""
    metric = get_metric(name)
    target = np.zeros((20, 24), np.uint8)
    target[4:12, 4:14] = 1
    near, none = np.roll(target, 2, axis=1), np.zeros_like(target)
    group = np.array(["g"])
    perfect, moved, missed = (
        metric.utility(metric.score(metric.stats(pred, target)[None], group)) for pred in (target, near, none)
    )
    assert perfect == (0.0 if name in LOWER else 1.0)
    assert perfect > moved or "objects_at" in name or "tolerance" in name  # 2 pixels may be near enough
    assert moved > missed
    assert metric.higher_is_better == (name not in LOWER)


@by_name
def test_leading_axes(name):
    metric, rng = get_metric(name), np.random.default_rng(0)
    pairs = [[(rng.random((9, 9)) < 0.4).astype(np.uint8) for _ in range(2)] for _ in range(42)]
    rows = rows_of(metric, pairs).reshape(3, 2, 7, -1)
    groups, weights = np.array(list("abcabca")), rng.integers(1, 4, (3, 2, 7)).astype(float)
    together = metric.reduce(rows, groups=groups, weights=weights)
    assert together.shape == (3, 2)
    alone = metric.reduce(rows[2, 1], groups=groups, weights=weights[2, 1])
    assert together[2, 1] == pytest.approx(float(alone))


@by_name
def test_value_of_a_row_is_the_score_of_the_image(name):
    metric, rng = get_metric(name), np.random.default_rng(1)
    rows = np.stack([metric.stats(*(rng.random((2, 9, 9)) < 0.5).astype(np.uint8)) for _ in range(5)])
    alone = [metric.score(row[None], np.array(["g"])) for row in rows]
    np.testing.assert_allclose(metric.value(rows), alone)


@by_name
def test_masks_of_two_sizes_are_no_pair(name):
    """Checklist T2: a mask of 100x100 is not the answer to an image of 101x101."""
    with pytest.raises(Exception, match=r"100|broadcast|shape|dimension"):
        get_metric(name).stats(np.ones((100, 100), np.uint8), np.ones((101, 101), np.uint8))


def test_a_name_with_numbers_is_a_metric():
    metric = get_metric("f_beta_objects( beta = 0.5,connectivity=4 )")
    assert metric.name == "f_beta_objects(beta=0.5, connectivity=4)"
    assert get_metric(metric.name).name == metric.name
    assert get_metric("f_beta_objects()").name == "f_beta_objects"
    assert "F0.5" in metric.describes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tgs_mpa", "metric: 'tgs_mpa' is unknown; did you mean 'tgs_map'"),
        ("dsb_mpa(connectivity=4)", "'dsb_mpa' is unknown; did you mean 'dsb_map'"),
        ("f_beta_objects(beta=2", r"the bracket of '\(beta=2' is not closed"),
        ("f_beta_objects(2)", "'2' is no parameter; expected name=number"),
        ("f_beta_objects(bata=2)", "f_beta_objects: 'bata' is unknown; did you mean 'beta'"),
        ("f_beta_objects(beta=2, beta=3)", "'beta' stands twice"),
        ("f_beta_objects(beta=two)", "beta: 'two'; expected a number"),
        ("f_beta_objects(beta=nan)", "beta: 'nan'; expected a number"),
        ("f_beta_objects(beta=-1)", "f_beta_objects: beta: -1; expected a number above 0"),
        ("f_beta_objects_at(iou=0.52)", "iou: 0.52 is none of the thresholds"),
        ("f_beta_objects_at(iou=0.45)", "iou: 0.45 is none of the thresholds"),
        ("f_beta_objects_at(beta=0)", "beta: 0; expected a number above 0"),
        ("dsb_map(connectivity=6)", "connectivity: 6; expected 4 or 8"),
        ("dsb_map(connectivity=4.5)", "connectivity: '4.5'; expected a whole number"),
        ("miou(num_classes=1)", "num_classes: 1; expected 2 to 255"),
        ("boundary_f1(tolerance_frac=2)", "tolerance_frac: 2; expected 0 to 1"),
        ("iou_by_group(empty_score=-1)", "empty_score: -1 is no score; expected 0 to 1"),
    ],
)
def test_bad_names(text, message):
    with pytest.raises(InputError, match=message):
        get_metric(text)


@pytest.mark.parametrize(
    ("name", "weights", "groups", "message"),
    [
        ("iou_by_group", None, None, "metric iou_by_group: it is a mean over groups and none were given"),
        ("iou_pooled", [0.0, 0.0], None, "metric iou_pooled: weights sum to 0"),
        ("iou_pooled", [-1.0, 2.0], None, "the least is -1"),
    ],
)
def test_bad_reductions(name, weights, groups, message):
    rows = np.ones((2, 4))
    with pytest.raises(InputError, match=message):
        get_metric(name).reduce(rows, weights=None if weights is None else np.array(weights), groups=groups)


def test_no_images():
    with pytest.raises(InputError, match="metric tgs_map: 0 images were given"):
        get_metric("tgs_map").score(np.zeros((0, 4)))
