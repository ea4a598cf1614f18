"""Lists of operators: each operator, their order, and a search that scores what the rule does."""

import json
import tracemalloc
from dataclasses import asdict, replace
from itertools import repeat

import numpy as np
import pytest

from masksmith.core.arrays import IGNORE
from masksmith.core.config import validate
from masksmith.core.errors import InputError, StoppedError
from masksmith.data.target import OBJECTS, Target
from masksmith.metrics import get_metric, metric_for
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.config import TuningConfig, check_operators
from masksmith.postprocess.crf import Crf
from masksmith.postprocess.labels import LabelRules, best_of_labels, make_label_sweep
from masksmith.postprocess.objects import ObjectRule
from masksmith.postprocess.operator_rule import OperatorRule, Seen, Split, as_operators, simplest
from masksmith.postprocess.operator_search import (
    DrawnSweep,
    import_optuna,
    make_operator_sweep,
    num_rules,
    searched,
)
from masksmith.postprocess.operators import PLAIN
from masksmith.postprocess.regions import Regions
from masksmith.postprocess.rules import Beside, apply_rule, plain_of, read_rule
from masksmith.postprocess.search import best_rule, search_rule
from masksmith.prediction.store import MAX_CODE, code_of, to_codes

HALF = code_of(0.5)


def config(*operators, **more) -> TuningConfig:
    return validate(TuningConfig, {"operators": list(operators), **more}, where="recipe: tuning")


def pictures(count=12, *, planes=1, seed=0, ignore=False):
    """Return codes (h, w, planes), true masks, and image and depth beside them; sizes differ."""
    rng, found = np.random.default_rng(seed), []
    for at in range(count):
        hw = (14, 17 + at % 3)
        target = np.zeros(hw, np.uint8)
        if at % 3:
            target[3:11, 4 : 8 + at % 5] = 1
        if ignore:
            target[0, :3] = IGNORE
        probs = np.clip(0.2 + 0.5 * (target == 1)[..., None] + rng.normal(0, 0.22, (*hw, planes)), 0, 1)
        image = np.rint(60 + 120 * (target == 1)[..., None] + rng.normal(0, 9, (*hw, 3))).astype(np.uint8)
        found.append((to_codes(probs), target, Seen(image, {"z": float(at)})))
    return found


def the_same(data, metric, made, **more):
    """Every rule scores in the sweep what its masks score, image by image."""
    rules, sweep = make_operator_sweep(lambda: iter(data), metric, made, **({"plain": PLAIN} | more))
    scores = sweep.scores(rules, metric)
    for rule, score in zip(rules, scores, strict=True):
        masks = [as_operators(rule).apply(codes, seen) for codes, _, seen in data]
        rows = np.stack(
            [metric.stats(mask, target) for mask, (_, target, _) in zip(masks, data, strict=True)]
        )
        np.testing.assert_array_equal(sweep.rows_of(rule), rows, err_msg=rule.describe())
        assert score == pytest.approx(metric.score(rows))
    return rules, sweep


LISTS = {
    "thresholds": [{"op": "threshold", "at": [0.3, 0.5, 0.7]}],
    "triplets": [{"op": "triplet", "top": [0.4, 0.8], "area": [0.0, 0.1, 0.3], "at": [0.3, 0.5]}],
    "areas": [
        {"op": "triplet", "top": [0.8], "area": [0.0, 0.1], "at": [0.3, 0.5]},
        {"op": "component_area"},
    ],
    "regions": [
        {"op": "threshold", "at": [0.45, 0.5]},
        {"op": "holes", "frac": [0.0, 0.01]},
        {"op": "component_area", "frac": [0.0, 0.02]},
        {"op": "largest", "count": [0, 1]},
    ],
    "split": [
        {"op": "threshold_by", "cut": [0.2, 0.3], "at": [0.4, 0.5], "above": [0.5, 0.6]},
        {"op": "component_area", "frac": [0.0, 0.02]},
    ],
    "by depth": [{"op": "threshold_by", "of": "z", "cut": [3.5], "at": [0.3, 0.5]}],
    "field": [
        {"op": "crf", "weight": [0.0, 2.0]},
        {"op": "triplet", "top": [0.9], "area": [0.0, 0.2], "at": [0.4, 0.5]},
        {"op": "largest", "count": [0, 2]},
    ],
}


@pytest.mark.parametrize("name", LISTS)
def test_a_search_scores_what_the_rule_does(name):
    for metric in ("tgs_map",) if name == "field" else ("tgs_map", "iou_pooled", "boundary_f1"):
        the_same(pictures(3), get_metric(metric), config(*LISTS[name]))


def test_unjudged_pixels_count_in_areas_alone():
    the_same(pictures(6, ignore=True), get_metric("dice_per_image"), config(*LISTS["areas"]))


def test_the_gate_looks_at_the_last_plane():
    made = config(
        {"op": "triplet", "top": [0.7], "area": [0.0, 0.2], "at": [0.5]}, {"op": "gate", "at": [0, 0.9]}
    )
    rules, _ = the_same(pictures(8, planes=2), get_metric("tgs_map"), made, gated=True)
    gated = next(one for one in rules if isinstance(one, OperatorRule))
    codes = np.full((4, 4, 2), MAX_CODE, np.uint16)
    assert gated.apply(codes).all()
    codes[..., 1] = gated.gate
    assert not gated.apply(codes).any()
    codes[2, 3, 1] += 1  # of the tiles one sees something
    assert gated.apply(codes).all()


def test_regions_of_a_mask():
    mask = np.zeros((10, 10), np.uint8)
    mask[1:6, 1:6] = 1
    mask[3, 3] = mask[1, 9] = 0
    mask[8, 8] = mask[9, 9] = 1  # two pixels that touch at a corner
    assert Regions("component_area", 0.02).apply(mask).sum() == 24
    assert Regions("component_area", 0.019).apply(mask).sum() == 26
    assert Regions("holes", 0.01).apply(mask).sum() == 27
    assert Regions("holes", 0.009).apply(mask).sum() == 26
    assert Regions("largest", 1).apply(mask).sum() == 24
    assert Regions("largest", 5).apply(mask).sum() == 26
    open_hole = mask.copy()
    open_hole[0:4, 3] = 0  # it reaches the border: no hole
    np.testing.assert_array_equal(Regions("holes", 0.5).apply(open_hole), open_hole)
    empty = np.zeros((5, 5), np.uint8)
    for op, value in (("component_area", 0.5), ("holes", 0.5), ("largest", 1)):
        assert not Regions(op, value).apply(empty).any()


def test_regions_of_objects():
    labels = np.zeros((10, 10), np.int32)
    labels[0:4, 0:4], labels[5:10, 0:5], labels[5:10, 5:10], labels[0, 9] = 1, 2, 3, 4
    labels[1, 1] = labels[7, 7] = labels[7, 4] = labels[7, 5] = (
        0  # a hole in 1, one in 3, one between 2 and 3
    )
    kept = Regions("component_area", 0.01).apply(labels)
    assert np.unique(kept).tolist() == [0, 1, 2, 3]
    filled = Regions("holes", 0.05).apply(labels)
    assert (filled[1, 1], filled[7, 7], filled[7, 4]) == (1, 3, 0)
    assert filled.dtype == np.int32
    two = Regions("largest", 2).apply(labels)
    assert [int((two == at).sum()) for at in (1, 2, 3)] == [24, 23, 0]


def test_small_regions_of_a_class_map_take_the_nearest_class():
    classes = np.zeros((8, 8), np.uint8)
    classes[:, 4:] = 2
    classes[2, 6] = 1
    made = Regions("component_area", 0.02).apply(classes, classes=True)
    assert made[2, 6] == 2
    assert made[2, 3] == 0
    np.testing.assert_array_equal(Regions("component_area", 0.9).apply(classes, classes=True), classes)


def test_the_field_moves_the_edge_to_the_colours():
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = 200
    probs = np.full((20, 20, 1), 0.1)
    probs[:, 8:] = 0.7  # two columns too many
    field = Crf(weight=4.0, reach=0.2, colour=0.1)
    mask = field.apply(to_codes(probs), image, exclusive=False)[..., 0] > HALF
    assert mask[:, 10:].all()
    assert not mask[:, :10].any()
    classes = field.apply(to_codes(np.concatenate([1 - probs, probs], axis=2)), image, exclusive=True)
    np.testing.assert_array_equal(classes.argmax(axis=2), mask)
    np.testing.assert_allclose(classes.astype(float).sum(axis=2), MAX_CODE, atol=2)
    flat = field.apply(to_codes(probs), np.zeros((20, 20, 1), np.uint8), exclusive=False)
    assert (flat[:, 12:] > HALF).all()


def test_pixels_without_data_and_outliers_do_not_blind_the_field():
    image = np.zeros((20, 20, 2), np.float32)
    image[:, 10:] = (200, 0.02)
    probs = np.full((20, 20, 1), 0.1)
    probs[:, 8:] = 0.7
    field = Crf(weight=4.0, reach=0.2, colour=0.1)
    whole = field.apply(to_codes(probs), image, exclusive=False)[..., 0] > HALF
    assert whole[:, 10:].all()
    image[0, 0], image[5, 15] = np.nan, (1e6, 1e6)
    torn = field.apply(to_codes(probs), image, exclusive=False)[..., 0] > HALF
    assert (torn != whole).sum() <= 2
    lost = field.apply(to_codes(probs), np.full((20, 20, 1), np.nan, np.float32), exclusive=False)
    np.testing.assert_array_equal(lost[..., 0] > HALF, probs[..., 0] > 0.5)


def test_the_order_is_that_of_the_list():
    codes = np.zeros((10, 10, 1), np.uint16)
    codes[2:5, 2:5], codes[3, 3] = MAX_CODE, 0  # a ring of 8 pixels with a hole
    filled_first = OperatorRule(PLAIN, regions=(Regions("holes", 0.02), Regions("component_area", 0.08)))
    removed_first = OperatorRule(PLAIN, regions=(Regions("component_area", 0.08), Regions("holes", 0.02)))
    assert filled_first.apply(codes).sum() == 9
    assert removed_first.apply(codes).sum() == 0
    rules, _ = make_operator_sweep(
        lambda: pictures(2), get_metric("tgs_map"), config(*LISTS["regions"]), plain=PLAIN
    )
    assert {tuple(step.op for step in one.regions) for one in map(as_operators, rules)} >= {
        ("holes", "component_area", "largest")
    }


def test_classes_and_objects_have_lists_too():
    shares, rng = np.array([0.8, 0.15, 0.05]), np.random.default_rng(0)
    target = rng.choice(3, (9, 9), p=shares).astype(np.uint8)
    data = [
        (to_codes(rng.dirichlet(np.ones(3), (9, 9))), target, Seen(np.repeat(target[..., None], 3, 2) * 90))
    ]
    made = config(
        {"op": "crf", "weight": [0, 3.0]}, {"op": "argmax", "power": [0, 0.5]}, {"op": "component_area"}
    )
    classes = Target("multiclass", ("a", "b", "c"), (0, 1, 2))
    metric = metric_for("miou", task="multiclass", classes=3)
    rules, sweep = make_operator_sweep(
        lambda: iter(data), metric, made, plain=plain_of(classes, made), shares=shares
    )
    assert rules[0] == ClassRule((1.0, 1.0, 1.0))
    assert any(isinstance(one, ClassRule) and one.weights[2] > 1 for one in rules)
    for rule in rules:
        row = metric.stats(as_operators(rule).apply(data[0][0], data[0][2]), target)
        np.testing.assert_array_equal(sweep.rows_of(rule)[0], row)

    objects = config({"op": "watershed", "foreground": [0.5], "seed": [0.35, 1.0]}, *LISTS["regions"][1:])
    planes = rng.integers(0, MAX_CODE, (16, 16, 3)).astype(np.uint16)
    truth = np.zeros((16, 16), np.int32)
    truth[2:8, 2:8] = 1
    measure = get_metric("dsb_map")
    rules, sweep = make_operator_sweep(
        lambda: iter([(planes, truth, Seen())]), measure, objects, plain=plain_of(OBJECTS, objects)
    )
    assert {type(one) for one in rules} == {ObjectRule, OperatorRule}
    for rule in rules:
        np.testing.assert_array_equal(sweep.rows_of(rule)[0], measure.stats(rule.apply(planes), truth))


def test_labels_have_a_list_each():
    data = [
        (
            np.concatenate([codes[..., :1], codes[:, ::-1, :1], codes[..., 1:], codes[:, ::-1, 1:]], axis=2),
            target,
            seen,
        )
        for codes, target, seen in pictures(9, planes=2)
    ]
    truth = [np.stack([target, target[:, ::-1]], axis=2) for _, target, _ in data]
    metric, names = metric_for("dice_per_image", task="multilabel", classes=2), ("a", "b")
    made = config(
        {"op": "threshold", "at": [0.4, 0.5]},
        {"op": "largest", "count": [0, 1]},
        {"op": "gate", "at": [0, 0.8]},
    )

    def make(at, alone):
        def planes():
            for (codes, _, seen), target in zip(data, truth, strict=True):
                yield codes[..., at::2], target[..., at], seen

        return make_operator_sweep(planes, alone, made, plain=PLAIN, gated=True)

    rules, sweep = make_label_sweep(make, names, metric)
    found, score = best_of_labels(sweep, rules, metric)
    rows = [
        metric.stats(found.apply(codes), target) for (codes, _, _), target in zip(data, truth, strict=True)
    ]
    assert score == pytest.approx(metric.score(np.stack(rows)))
    assert score == pytest.approx(max(metric.score(sweep.rows_of(rule)) for rule in rules), abs=1e-9)
    assert searched(sweep, rules) == "operators: 8 combinations of each label"
    assert num_rules(sweep, rules) == 8


def judged(sweep, rules, metric):
    parts = np.arange(12) % 3
    groups = [str(at) for at in range(12)]
    return search_rule(sweep, metric, rules, parts=parts, groups=groups, resamples=100, seed=0)


def test_the_search_finds_the_best_and_is_nested():
    data, metric = pictures(12), get_metric("tgs_map")
    rules, sweep = make_operator_sweep(lambda: data, metric, config(*LISTS["regions"]), plain=PLAIN)
    found = judged(sweep, rules, metric)
    assert found.tuned == pytest.approx(max(metric.score(sweep.rows_of(rule)) for rule in rules))
    assert found.tuned >= found.nested
    assert [threshold for threshold, _ in found.curve] == sorted(threshold for threshold, _ in found.curve)
    by_group = get_metric("iou_by_group")  # its rules are scored from their rows
    rules, sweep = make_operator_sweep(lambda: data, by_group, config(*LISTS["triplets"]), plain=PLAIN)
    labels = np.arange(12) % 4
    best, score = best_rule(sweep, rules, by_group, labels)
    assert score == pytest.approx(by_group.score(sweep.rows_of(best), labels))


MANY = [
    {"op": "threshold", "at": [0.3, 0.4, 0.5, 0.6, 0.7]},
    {"op": "holes", "frac": [0.0, 0.005, 0.01, 0.05]},
    {"op": "largest", "count": [0, 1, 2, 3]},
]


def test_rows_of_many_images_are_held_once():
    metric, one = get_metric("tgs_map"), pictures(1)[0]
    the_same(pictures(300), metric, config(*LISTS["thresholds"]))  # of several blocks
    made = config({"op": "threshold", "at": [(at + 0.5) / 120 for at in range(120)]})
    tracemalloc.start()
    _, sweep = make_operator_sweep(lambda: repeat(one, 2000), metric, made, plain=PLAIN)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = sum(block.nbytes for blocks in sweep.table.rows.values() for block in blocks)
    assert held >= 120 * 2000 * 4 * 8
    assert peak < 1.5 * held  # twice as much and more, where the rows of all images are laid out anew


def test_many_combinations_are_drawn():
    pytest.importorskip("optuna")
    data, metric, made = pictures(12), get_metric("tgs_map"), config(*MANY, most_masks=12)
    rules, sweep = make_operator_sweep(lambda: data, metric, made, plain=PLAIN)
    assert isinstance(sweep, DrawnSweep)
    assert searched(sweep, rules) == "operators: 12 drawn of 80 combinations"
    assert num_rules(sweep, rules) == 12
    found = judged(sweep, rules, metric)
    assert found.tuned >= found.plain
    assert found == judged(sweep, rules, metric)
    masks = [as_operators(found.found).apply(codes) for codes, _, _ in data]
    rows = np.stack([metric.stats(mask, target) for mask, (_, target, _) in zip(masks, data, strict=True)])
    assert found.tuned == pytest.approx(metric.score(rows))
    assert len(sweep.table.rows) <= 1 + 12 * 4  # of the whole and of three parts


def test_many_combinations_need_optuna(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    message = r"tuning.operators: more combinations than tuning.most_masks .*pip install masksmith\[search\]"
    with pytest.raises(InputError, match=message):
        import_optuna()
    looked = []
    with pytest.raises(InputError, match=message):
        make_operator_sweep(
            lambda: looked.append(1) or [], get_metric("tgs_map"), config(*MANY, most_masks=12), plain=PLAIN
        )
    assert not looked  # nothing was read before
    make_operator_sweep(lambda: pictures(2), get_metric("tgs_map"), config(*MANY, most_masks=80), plain=PLAIN)


def test_a_stop_keeps_nothing_of_a_pass(monkeypatch):
    def stop():
        raise StoppedError("stopped", exit_code=143)

    _, sweep = make_operator_sweep(
        lambda: pictures(3), get_metric("tgs_map"), config(*LISTS["thresholds"]), plain=PLAIN
    )
    before = dict(sweep.table.rows)
    monkeypatch.setattr("masksmith.core.interrupt.check_stop", stop)
    with pytest.raises(StoppedError):
        sweep.rows_of(OperatorRule(PLAIN, regions=(Regions("largest", 1),)))
    assert sweep.table.rows.keys() == before.keys()


def test_what_a_list_comes_to_is_read_back():
    split = Split("z", 3.0, code_of(0.4))
    rules = [
        OperatorRule(PLAIN, Crf(1.0, 0.05, 0.1), (Regions("holes", 0.01),), 2000),
        OperatorRule(PLAIN, split=split),
        OperatorRule(ClassRule((1.0, 2.0)), regions=(Regions("component_area", 0.1),)),
        OperatorRule(ObjectRule(HALF, 20000), regions=(Regions("largest", 3.0),)),
    ]
    for rule in [*rules, LabelRules((PLAIN, rules[1]), ("a", "b"))]:
        assert read_rule(json.loads(json.dumps(asdict(rule)))) == rule
    assert "the image head is above 0.031" in rules[0].describe()
    assert "p > 0.400 where z is above 3" in rules[1].describe()
    assert "3 largest regions" in rules[3].describe()


def test_a_list_that_another_rule_says_is_that_rule():
    assert simplest(OperatorRule(PLAIN)) == PLAIN
    small = Regions("component_area", 0.01)
    assert simplest(OperatorRule(PLAIN, regions=(small,))) == replace(PLAIN, component_area_frac=0.01)
    two = OperatorRule(PLAIN, regions=(small, Regions("holes", 0.01)))
    assert simplest(two) is two
    assert as_operators(replace(PLAIN, component_area_frac=0.01)) == OperatorRule(PLAIN, regions=(small,))


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ([{"op": "thresholds"}], r"recipe: tuning: operators\[0\].*'thresholds'.*threshold"),
        ([{"at": [0.5]}], r"operators\[0\].*op"),
        ([{"op": "threshold", "at": [1.5]}], r"operators\[0\].*at\[0\].*1.5"),
        ([{"op": "threshold", "at": []}], r"operators\[0\].*at"),
        ([{"op": "threshold", "frac": [0.1]}], r"operators\[0\].*frac"),
        ([{"op": "threshold"}, {"op": "largest", "count": [-1]}], r"operators\[1\].*count\[0\]"),
        ([{"op": "crf", "reach": [0.9]}, {"op": "threshold"}], r"operators\[0\].*reach\[0\]"),
        ([{"op": "threshold_by", "cut": [3.0]}], r"cut: \[3.0\] of the coverage; expected shares"),
        ([], "operators"),
        ([{"op": "holes"}], r"operators: 0 of them make a mask; expected one of threshold"),
        ([{"op": "threshold"}, {"op": "triplet"}], "2 of them make a mask"),
        ([{"op": "threshold"}, {"op": "holes"}, {"op": "holes"}], "'holes' is there twice"),
        ([{"op": "holes"}, {"op": "threshold"}], "'holes' needs a mask; put it behind 'threshold'"),
        ([{"op": "threshold"}, {"op": "crf"}], "'crf' needs probabilities; put it before 'threshold'"),
    ],
)
def test_bad_lists(operators, message):
    with pytest.raises(InputError, match=message):
        config(*operators)


def test_two_ways_to_remove_regions():
    with pytest.raises(
        InputError, match=r"component_area_frac 0.1 has no effect .* add \{op: component_area\}"
    ):
        config({"op": "threshold"}, component_area_frac=0.1)


def test_lists_that_the_data_cannot_have():
    of_masks = config({"op": "threshold_by", "of": "dept", "cut": [3.0]}, {"op": "gate"}, {"op": "largest"})
    with pytest.raises(InputError) as caught:
        check_operators(of_masks, task="multiclass", image_head="ignore", columns=["z"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 5  # all at once
    assert lines[0].startswith(
        "tuning.operators[0]: 'threshold_by' is not for multiclass, but for binary, multilabel"
    )
    assert (
        lines[1]
        == "tuning.operators[0].of: no column 'dept' of numbers that every image has; expected coverage, z"
    )
    assert "'gate' with prediction.image_head 'ignore'; set model.image_head" in lines[3]
    check_operators(config(*LISTS["by depth"]), task="binary", image_head=None, columns=["z"])
    check_operators(TuningConfig(), task="instances", image_head=None, columns=[])


def test_an_image_without_the_number_is_refused():
    rule = OperatorRule(PLAIN, split=Split("z", 3.0, HALF))
    codes = np.zeros((4, 4, 1), np.uint16)
    with pytest.raises(
        InputError, match="image 'a': no 'z', by which the rule chooses its threshold; give a table"
    ):
        apply_rule(rule, codes, "a", Beside(None, {"b": {"z": 1.0}}))
    assert not apply_rule(rule, codes, "b", Beside(None, {"b": {"z": 1.0}})).any()
