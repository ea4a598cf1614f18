"""What holds for every metric: its twin, ignored pixels, flips, weights, order, leading axes; and how one is named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from masksmith.core.errors import InputError
from masksmith.metrics import METRICS, get_metric

from .twins import TWINS

MASK = arrays(np.uint8, (4, 5), elements=st.integers(0, 1))
TARGET = arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 255]))
EMPTY = st.just(np.zeros((4, 5), np.uint8))
SETS = st.lists(st.tuples(MASK | EMPTY, TARGET | EMPTY, st.sampled_from("abc")), min_size=1, max_size=5)
LOWER = {"hausdorff_95"}
NAMES = sorted(TWINS)


def split(triples):
    return [(pred, target) for pred, target, _ in triples], np.array([group for *_, group in triples])


def rows_of(metric, pairs):
    return np.stack([metric.stats(pred, target) for pred, target in pairs])


def is_symmetric(name):
    """Whether prediction and target may change places; beta weighs misses and false objects differently."""
    weighs = name == "f_beta_objects" or ("f_beta_objects" in name and "beta=" in name)
    return not weighs and not name.startswith(("precision", "recall", "fw_iou", "accuracy(background"))


@settings(deadline=None, max_examples=20)
@given(triples=SETS, seed=st.integers(0, 9))
def test_the_definition_and_weights_as_repetitions_and_no_order(triples, seed):
    assert {name.partition("(")[0] for name in TWINS} == set(METRICS)
    pairs, groups = split(triples)
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 3, len(pairs)) + (np.arange(len(pairs)) == 0)
    order = rng.permutation(len(pairs))
    for name in NAMES:
        metric = get_metric(name)
        rows = rows_of(metric, pairs)
        found = metric.score(rows, groups)
        assert found == pytest.approx(TWINS[name](pairs, groups.tolist()), abs=1e-6), name
        assert metric.score(rows[order], groups[order]) == pytest.approx(found), name
        repeated = metric.score(np.repeat(rows, counts, axis=0), np.repeat(groups, counts))
        for weights in (counts.astype(float), counts / 2):  # only the proportions count
            weighted = metric.reduce(rows, weights=weights, groups=groups)
            assert float(weighted) == pytest.approx(repeated), name


@settings(deadline=None, max_examples=20)
@given(pred=MASK, target=TARGET)
def test_ignored_pixels_flips_and_turns_change_nothing(pred, target):
    other = np.where(target == 255, 1 - pred, pred).astype(np.uint8)
    judged = np.where(target == 255, 0, target).astype(np.uint8)
    group = np.array(["g"])
    for name in NAMES:
        metric = get_metric(name)
        row = metric.stats(pred, target)
        np.testing.assert_array_equal(row, metric.stats(other, target), err_msg=name)
        for turn in (np.fliplr, np.flipud, np.transpose, np.rot90):
            turned = metric.stats(np.ascontiguousarray(turn(pred)), np.ascontiguousarray(turn(target)))
            np.testing.assert_allclose(turned, row, atol=1e-6, err_msg=name)
        if is_symmetric(name):
            there, back = (metric.stats(*pair)[None] for pair in ((pred, judged), (judged, pred)))
            assert metric.score(there, group) == pytest.approx(metric.score(back, group), abs=1e-6), name


def test_the_best_is_perfect_and_mistakes_cost():
    """A prediction that is the target scores best; an empty one where something is scores worst of all."""
    target = np.zeros((20, 24), np.uint8)
    target[4:12, 4:14] = 1
    near, none, group = np.roll(target, 2, axis=1), np.zeros_like(target), np.array(["g"])
    for name in NAMES:
        metric = get_metric(name)
        perfect, moved, missed = (
            metric.utility(metric.score(metric.stats(pred, target)[None], group))
            for pred in (target, near, none)
        )
        assert perfect == (0.0 if name in LOWER else 1.0), name
        # 2 pixels may be near enough
        assert perfect > moved or "objects_at" in name or "tolerance" in name, name
        assert moved > missed, name
        assert metric.higher_is_better == (name not in LOWER), name


def test_leading_axes_and_the_value_of_a_row():
    rng = np.random.default_rng(0)
    pairs = [[(rng.random((9, 9)) < 0.4).astype(np.uint8) for _ in range(2)] for _ in range(42)]
    groups, weights = np.array(list("abcabca")), rng.integers(1, 4, (3, 2, 7)).astype(float)
    for name in NAMES:
        metric = get_metric(name)
        flat = rows_of(metric, pairs)
        rows = flat.reshape(3, 2, 7, -1)
        together = metric.reduce(rows, groups=groups, weights=weights)
        assert together.shape == (3, 2), name
        alone = metric.reduce(rows[2, 1], groups=groups, weights=weights[2, 1])
        assert together[2, 1] == pytest.approx(float(alone)), name
        each = [metric.score(row[None], np.array(["g"])) for row in flat[:5]]
        np.testing.assert_allclose(metric.value(flat[:5]), each, err_msg=name)


def test_masks_of_two_sizes_are_no_pair():
    """Checklist T2: a mask of 100x100 is not the answer to an image of 101x101."""
    for name in NAMES:
        with pytest.raises(Exception, match=r"100|broadcast|shape|dimension"):
            get_metric(name).stats(np.ones((100, 100), np.uint8), np.ones((101, 101), np.uint8))


def test_a_name_with_numbers_is_a_metric():
    metric = get_metric("f_beta_objects( beta = 0.5,connectivity=4 )")
    assert metric.name == "f_beta_objects(beta=0.5, connectivity=4)"
    assert get_metric(metric.name).name == metric.name
    assert get_metric("f_beta_objects()").name == "f_beta_objects"
    assert "F0.5" in metric.describes


def test_bad_names():
    for text, message in [
        ("tgs_mpa", "metric: 'tgs_mpa' is unknown; did you mean 'tgs_map'"),
        ("dsb_mpa(connectivity=4)", "'dsb_mpa' is unknown; did you mean 'dsb_map'"),
        ("f_beta_objects(beta=2", r"the bracket of '\(beta=2' is not closed"),
        ("f_beta_objects(2)", "'2' is no parameter; expected name=number"),
        ("f_beta_objects(bata=2)", "f_beta_objects: 'bata' is unknown; did you mean 'beta'"),
        ("f_beta_objects(beta=2, beta=3)", "'beta' is given twice"),
        ("f_beta_objects(beta=two)", "beta: 'two'; expected a number"),
        ("f_beta_objects(beta=nan)", "beta: 'nan'; expected a number"),
        ("f_beta_objects(beta=-1)", "f_beta_objects: beta: -1; expected a number above 0"),
        ("f_beta_objects_at(iou=0.52)", "iou: 0.52 is none of the thresholds"),
        ("f_beta_objects_at(iou=0.45)", "iou: 0.45 is none of the thresholds"),
        ("f_beta_objects_at(beta=0)", "beta: 0; expected a number above 0"),
        ("dsb_map(connectivity=6)", "connectivity: 6; expected 4 or 8"),
        ("dsb_map(connectivity=4.5)", "connectivity: '4.5'; expected a whole number"),
        ("miou(num_classes=1)", "num_classes: 1; expected 2 to 65535, the background counted"),
        ("mdice(background=2)", "mdice: background: 2; expected 1, or 0 to leave class 0 out"),
        ("boundary_f1(tolerance_frac=2)", "tolerance_frac: 2; expected 0 to 1"),
        ("iou_by_group(empty_score=-1)", "empty_score: -1 is no score; expected 0 to 1"),
    ]:
        with pytest.raises(InputError, match=message):
            get_metric(text)


def test_bad_reductions():
    rows = np.ones((2, 4))
    for name, weights, message in [
        ("iou_by_group", None, "metric iou_by_group: it is a mean over groups and none were given"),
        ("iou_pooled", [0.0, 0.0], "metric iou_pooled: weights sum to 0"),
        ("iou_pooled", [-1.0, 2.0], "the least is -1"),
    ]:
        given = None if weights is None else np.array(weights)
        with pytest.raises(InputError, match=message):
            get_metric(name).reduce(rows, weights=given)
    with pytest.raises(InputError, match="metric tgs_map: 0 images were given"):
        get_metric("tgs_map").score(np.zeros((0, 4)))
