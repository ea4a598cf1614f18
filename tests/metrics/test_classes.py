"""Several classes: against loops over pixels, permuted, as planes; the confusion matrix; which metric drives what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from masksmith.core.errors import InputError
from masksmith.metrics import METRICS, confusion, get_metric, metric_for, metrics_of, per_class
from masksmith.metrics.classes import CLASS_METRICS, class_confusion, class_stats, plane_stats

from .twins import TWINS

NUM = 4
CLASS_MAPS = arrays(np.uint8, (3, 5), elements=st.integers(0, NUM - 1))
TARGETS = arrays(np.uint8, (3, 5), elements=st.sampled_from([*range(NUM), 255]))
CLASS_SETS = st.lists(st.tuples(CLASS_MAPS, TARGETS), min_size=1, max_size=3)
PLANES = arrays(np.uint8, (3, 5, 3), elements=st.integers(0, 1))
PLANE_TARGETS = arrays(np.uint8, (3, 5, 3), elements=st.sampled_from([0, 1, 255]))
PLANE_SETS = st.lists(st.tuples(PLANES, PLANE_TARGETS, st.sampled_from("ab")), min_size=1, max_size=4)


def rows_of(metric, pairs):
    return np.stack([metric.stats(*pair) for pair in pairs])


def pixels_of(pairs, number):
    """The predicted and the true pixels of a class, and all judged ones, of all images."""
    found, truth, judged = set(), set(), set()
    for at, (pred, target) in enumerate(pairs):
        for spot in np.ndindex(target.shape):
            if target[spot] != 255:
                judged.add((at, *spot))
                found |= {(at, *spot)} if pred[spot] == number else set()
                truth |= {(at, *spot)} if target[spot] == number else set()
    return found, truth, judged


def by_loops(pairs, first):
    """Every metric of classes from ``first`` on, and the IoU and Dice of each class."""
    sets = [pixels_of(pairs, number)[:2] for number in range(NUM)]
    ious = [len(p & t) / len(p | t) if p | t else None for p, t in sets]
    dices = [2 * len(p & t) / (len(p) + len(t)) if p | t else None for p, t in sets]
    kept = sets[first:]
    whole, predicted = (sum(len(one[side]) for one in kept) for side in (1, 0))
    nothing = 1.0 if not predicted else 0.0

    def mean(values):
        there = [value for value in values[first:] if value is not None]
        return sum(there) / len(there) if there else 1.0

    right = sum(len(p & t) for p, t in kept)
    weighted = sum(len(t) * value for (_, t), value in zip(kept, ious[first:], strict=True) if t)
    return {
        "miou": mean(ious),
        "mdice": mean(dices),
        "accuracy": right / whole if whole else nothing,
        "fw_iou": weighted / whole if whole else nothing,
    }, {"miou": ious, "mdice": dices, "fw_iou": ious}


@settings(deadline=None, max_examples=25)
@given(pairs=CLASS_SETS, background=st.integers(0, 1), order=st.permutations(range(NUM)))
def test_classes_equal_loops_and_permuted_classes_permute_scores(pairs, background, order):
    expected, of_each = by_loops(pairs, 1 - background)
    table = np.array([*order, *range(NUM, 256)], np.uint8)
    for name, value in expected.items():
        metric = metric_for(f"{name}(background={background})", task="multiclass", classes=NUM)
        rows = rows_of(metric, pairs)
        assert metric.needs == "classes"
        assert metric.score(rows) == pytest.approx(value), name
        assert float(metric.reduce(rows, weights=np.full(len(rows), 2.0))) == pytest.approx(value), name
        each = metric.class_scores(rows)
        if name in of_each:
            assert [None if np.isnan(one) else one for one in each] == pytest.approx(of_each[name]), name
        renamed = rows_of(metric, [(table[pred], table[target]) for pred, target in pairs])
        np.testing.assert_allclose(metric.class_scores(renamed)[list(order)], each, err_msg=name)
        if background:
            assert metric.score(renamed) == pytest.approx(value), name
        wide = [tuple(np.where(one == 255, np.uint16(65535), one) for one in pair) for pair in pairs]
        np.testing.assert_array_equal(rows_of(metric, wide), rows, err_msg=name)
    one_by_one = metric_for("accuracy_per_image", task="multiclass", classes=NUM)
    alone = [by_loops([pair], 0)[0]["accuracy"] for pair in pairs]
    assert one_by_one.score(rows_of(one_by_one, pairs)) == pytest.approx(np.mean(alone))


@settings(deadline=None, max_examples=30)
@given(pairs=CLASS_SETS)
def test_the_confusion_of_a_set(pairs):
    expected = np.zeros((NUM, NUM), int)
    for pred, target in pairs:
        for spot in np.ndindex(target.shape):
            if target[spot] != 255:
                expected[target[spot], pred[spot]] += 1
    table = confusion(iter(pairs), num_classes=NUM)
    np.testing.assert_array_equal(table, expected)
    summed = sum(class_stats(*pair, num_classes=NUM) for pair in pairs)
    np.testing.assert_array_equal(
        summed, np.concatenate([table.diagonal(), table.sum(axis=0), table.sum(axis=1)])
    )
    large = class_confusion(*pairs[0], num_classes=3000)  # of so many classes the table is made by sorting
    np.testing.assert_array_equal(large[:NUM, :NUM], confusion(pairs[:1], num_classes=NUM))


@settings(deadline=None, max_examples=6)
@given(triples=PLANE_SETS, order=st.permutations(range(3)))
def test_planes_equal_each_plane_alone_under_every_average(triples, order):
    groups = np.array([group for *_, group in triples])
    pairs = [(pred, target) for pred, target, _ in triples]
    for name in TWINS:
        if name.startswith(("miou", "mdice", "fw_iou", "accuracy(")):
            continue
        metric = metric_for(name, task="multilabel", classes=3)
        rows = rows_of(metric, pairs)
        each = [
            TWINS[name]([(pred[..., at], target[..., at]) for pred, target in pairs], groups.tolist())
            for at in range(3)
        ]
        np.testing.assert_allclose(metric.class_scores(rows, groups=groups), each, atol=1e-6, err_msg=name)
        assert metric.score(rows, groups) == pytest.approx(np.mean(each), abs=1e-6), name
        swapped = rows_of(
            metric, [tuple(np.ascontiguousarray(one[..., list(order)]) for one in pair) for pair in pairs]
        )
        permuted = metric.class_scores(swapped, groups=groups)
        np.testing.assert_allclose(permuted, np.array(each)[list(order)], atol=1e-6, err_msg=name)
        own = metric.each
        first = np.stack([own.stats(pred[..., 0].copy(), target[..., 0].copy()) for pred, target in pairs])
        np.testing.assert_array_equal(first, rows[:, : first.shape[1]], err_msg=name)
        both = np.stack([rows, rows[::-1]])  # leading axes, as a search and the bootstrap have them
        assert metric.reduce(rows[None, None], groups=groups).shape == (1, 1)
        assert metric.class_scores(both, groups=groups).shape == (2, 3)


@settings(deadline=None, max_examples=30)
@given(triples=PLANE_SETS)
def test_a_plane_that_is_nowhere_is_left_out_of_miou(triples):
    pairs = [(pred, target) for pred, target, _ in triples]
    for name, twin in (("miou", "iou_pooled"), ("mdice", "dice_pooled")):
        metric, own = (metric_for(one, task="multilabel", classes=3) for one in (name, twin))
        rows = rows_of(metric, pairs)
        assert metric.needs == "planes"
        hits, found, truth = np.split(sum(plane_stats(*pair) for pair in pairs), 3)
        there = found + truth > 0
        each = own.class_scores(rows_of(own, pairs))
        np.testing.assert_array_equal(np.isnan(metric.class_scores(rows)), ~there)
        assert metric.score(rows) == pytest.approx(each[there].mean() if there.any() else 1.0), name
        assert (hits <= np.minimum(found, truth)).all()


def test_which_metric_drives_which_task():
    for task, classes in (("binary", 1), ("multiclass", 5), ("multilabel", 3), ("instances", 1)):
        names = metrics_of(task)
        assert [metric_for(name, task=task, classes=classes).name for name in names] == names
        for name in set(METRICS) - set(names):
            with pytest.raises(
                InputError, match=rf"{name}' cannot score .*\(task {task}\); expected one of .*"
            ):
                metric_for(name, task=task, classes=classes)
    assert metrics_of("multiclass") == list(CLASS_METRICS)
    assert metrics_of("binary") == metrics_of("multilabel") == list(METRICS)
    assert "dsb_map, f_beta_objects, f_beta_objects_at" in refusal("iou_pooled", "instances", 1)
    assert "miou, mdice, fw_iou, accuracy, accuracy_per_image" in refusal("dice_per_image", "multiclass", 11)
    assert "num_classes=3, but the masks are of 11 classes" in refusal(
        "miou(num_classes=3)", "multiclass", 11
    )
    assert "num_classes=3, but the masks are of a background and a" in refusal(
        "mdice(num_classes=3)", "binary", 1
    )
    assert "num_classes=2, but the masks are of 2 classes" in refusal("mdice(num_classes=2)", "multilabel", 2)
    assert "fw_iou: background: labels that may overlap have none" in refusal(
        "fw_iou(background=0)", "multilabel", 3
    )
    assert "recipe.yaml: metric: miou: num_classes: 1; expected 2 to 65535" in refusal(
        "miou", "multiclass", 1
    )
    assert "task: 'multi' is unknown; did you mean 'multi" in refusal("miou", "multi", 1)
    assert metric_for("miou(num_classes=5)", task="multiclass", classes=5).score(np.ones((1, 15))) == 1
    assert metric_for("miou", task="multiclass", classes=2).needs == "classes"
    assert metric_for("f_beta_objects(beta=1)", task="multilabel", classes=2).name == "f_beta_objects(beta=1)"
    assert metric_for("hausdorff_95", task="multilabel", classes=2).higher_is_better is False


def refusal(text, task, classes):
    with pytest.raises(InputError) as caught:
        metric_for(text, task=task, classes=classes, where="recipe.yaml: metric")
    return str(caught.value)


def test_planes_that_are_refused():
    plain = get_metric("iou_pooled")
    with pytest.raises(InputError, match="metric iou_pooled: 0 classes; expected 1 or more"):
        per_class(plain, 0)
    for metric, what in ((get_metric("miou(num_classes=3)"), "class maps"), (per_class(plain, 2), "planes")):
        with pytest.raises(InputError, match=rf"it is of {what}; expected one of binary masks"):
            per_class(metric, 2)
    masks = np.zeros((3, 4, 2), np.uint8)
    for pred, target in ((masks, masks[:2]), (masks[..., :1], masks[..., :1])):
        with pytest.raises(InputError, match=r"metric iou_pooled: masks of .*; expected both \(h, w, 2\)"):
            per_class(plain, 2).stats(pred, target)


def test_a_metric_without_classes_has_one():
    metric = get_metric("tgs_map")
    rows = np.array([[872.0, 477, 0, 0], [0, 0, 0, 9]])
    assert metric.class_scores(rows).tolist() == [metric.score(rows)]
    nowhere = metric_for("miou", task="multiclass", classes=3)
    assert np.isnan(nowhere.class_scores(np.zeros((1, 9)))).all()
    assert nowhere.score(np.zeros((1, 9))) == 1
