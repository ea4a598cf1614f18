"""Objects from planes: the watershed against a slow twin, what it never loses, and the search over its rules."""

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.augment.object_planes import object_planes
from masksmith.core.arrays import DISTANCE_TOP
from masksmith.metrics import get_metric
from masksmith.postprocess.config import TuningConfig
from masksmith.postprocess.objects import (
    PLAIN_OBJECTS,
    ObjectRule,
    apply_rules,
    candidate_rules,
    flood,
)
from masksmith.postprocess.rule_sweep import AppliedRule, sweep_rules
from masksmith.postprocess.search import best_rule, make_sweep, search_rule
from masksmith.prediction.store import MAX_CODE, code_of, to_codes

REGIONS = ObjectRule(code_of(0.5), MAX_CODE)


def random_codes(seed, hw=(14, 18)):
    noise = np.random.default_rng(seed).normal(size=(*hw, 3))
    smooth = np.stack([cv2.GaussianBlur(noise[..., at], (0, 0), 1.5) for at in range(3)], -1)
    return to_codes(np.clip(0.55 + 1.5 * smooth, 0, 1))


def codes_of(labels):
    """What a perfect model says."""
    return to_codes(object_planes(labels) / np.array([1, 1, DISTANCE_TOP]))


def disks(*places, hw=(40, 60)):
    """Disks (row, column, radius), the later over the earlier ones."""
    labels = np.zeros(hw, np.int32)
    for number, (row, column, radius) in enumerate(places, start=1):
        y, x = np.ogrid[: hw[0], : hw[1]]
        labels[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = number
    return labels


def twin_flood(regions, seeds, height):
    labels = {at: int(number) for at, number in np.ndenumerate(seeds) if number}
    inside = [at for at, number in np.ndenumerate(regions) if number]
    for least in range(int(height.max(initial=0)), -1, -1):
        while True:
            found = {}
            for row, column in inside:
                if (row, column) not in labels and height[row, column] >= least:
                    near = [labels.get((row + y, column + x)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
                    if any(near):
                        found[row, column] = min(filter(None, near))
            labels |= found
            if not found:
                break
    rest = len(labels) + seeds.max(initial=0) + 1
    full = np.zeros(regions.shape, np.int64)
    for at in inside:
        full[at] = labels.get(at, rest + regions[at])
    return full


def in_order(labels):
    """Numbers by their first pixels."""
    order = {number: at for at, number in enumerate(dict.fromkeys(labels[labels > 0].tolist()), start=1)}
    return np.array([order.get(int(one), 0) for one in labels.ravel()]).reshape(labels.shape)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_the_flooding_equals_its_twin(seed):
    codes = random_codes(seed)
    _, regions = cv2.connectedComponents((codes[..., 0] > 30_000).astype(np.uint8))
    _, seeds = cv2.connectedComponents(((codes[..., 1] > 40_000) & (regions > 0)).astype(np.uint8))
    height = (codes[..., 2] >> 12).astype(np.uint8)
    labels = flood(regions, seeds, height)
    np.testing.assert_array_equal(in_order(labels), in_order(twin_flood(regions, seeds, height)))
    np.testing.assert_array_equal(labels[seeds > 0], seeds[seeds > 0])


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    foreground=st.integers(0, MAX_CODE),
    least=st.integers(0, MAX_CODE),
    small=st.integers(0, 9),
)
def test_no_foreground_is_lost_and_objects_are_numbered_in_order(seed, foreground, least, small):
    codes = random_codes(seed)
    rule = ObjectRule(foreground, least, min_seed_area=small)
    labels = rule.apply(codes)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels > 0, codes[..., 0] > foreground)
    np.testing.assert_array_equal(labels, in_order(labels))
    for number in range(1, labels.max(initial=0) + 1):
        assert cv2.connectedComponents((labels == number).astype(np.uint8))[0] == 2  # an object is one region
    kept = ObjectRule(foreground, least, min_area=6, min_seed_area=small).apply(codes)
    areas = np.bincount(labels.ravel())
    np.testing.assert_array_equal(kept > 0, (labels > 0) & (areas >= 6)[labels])
    np.testing.assert_array_equal(kept, in_order(kept))


def test_touching_cut_and_tiny_objects_come_back():
    labels = disks((12, 15, 9), (12, 31, 8), (28, 20, 9), (39, 50, 7), (0, 50, 5))
    labels[30, 55] = 6  # of one pixel
    found = PLAIN_OBJECTS.apply(codes_of(labels))
    assert found.max() == 6
    metric = get_metric("dsb_map")
    assert metric.score(metric.stats(found, labels)[None]) > 0.95
    assert (found == found[30, 55]).sum() == 1
    merged = REGIONS.apply(codes_of(labels))
    assert merged.max() == 4  # three touch
    gone = ObjectRule(code_of(0.5), code_of(0.35), min_area=2).apply(codes_of(labels))
    assert gone.max() == 5
    many = np.zeros((530, 530), np.int32)
    many[::2, ::2] = np.arange(1, 265**2 + 1).reshape(265, 265)  # 70,225 objects of one pixel
    np.testing.assert_array_equal(PLAIN_OBJECTS.apply(codes_of(many)), many)
    assert PLAIN_OBJECTS.apply(np.zeros((3, 4, 3), np.uint16)).max() == 0


def test_objects_of_two_sizes_meet_at_the_valley():
    """Not half-way between the seeds, as by flooding without heights."""
    codes = np.zeros((5, 28, 3), np.uint16)
    codes[..., 0] = MAX_CODE
    codes[..., 2] = 1000 * np.array(
        [*range(60, 20, -2), 20, 30, 40, 50, 60, 60, 60, 60]
    )  # the valley is column 20
    labels = ObjectRule(1, 55_000).apply(codes)
    assert (labels[:, :20] == 1).all()
    assert (labels[:, 21:] == 2).all()


def test_candidates_and_their_sentences():
    rules = candidate_rules()
    assert rules[0] == PLAIN_OBJECTS
    assert 20 <= len(rules) <= 40
    assert len(set(rules)) == len(rules)
    assert all(isinstance(rule, AppliedRule) for rule in rules)
    assert PLAIN_OBJECTS.describe() == (
        "foreground = p > 0.500, an object each seed: distance - border / 2 > 0.350"
    )
    assert REGIONS.describe() == "foreground = p > 0.500, an object each region"
    long = ObjectRule(code_of(0.5), code_of(0.35), 15, 5).describe()
    assert long.endswith("> 0.350 over at least 5 pixels, without objects below 15 pixels")


def images(num=10):
    """Touching disks; dirt of 3x3 pixels, that only a rule with a least area leaves out, in every image."""
    rng, data = np.random.default_rng(0), []
    for _ in range(num):
        row, column = rng.integers(10, 14, 2)
        labels = disks((row, column, 8), (row + 2, column + 15, 7))
        codes = codes_of(labels)
        codes[30:33, 50:53, 0] = 60_000
        data.append((codes, labels))
    return data


def test_a_sweep_of_rules_is_every_rule_alone_and_can_be_searched():
    data, metric, rules = images(), get_metric("dsb_map"), candidate_rules()
    sweep = sweep_rules(iter(data), rules, metric, apply_all=apply_rules)
    for rule in rules:
        rows = np.stack([metric.stats(rule.apply(codes), labels) for codes, labels in data])
        np.testing.assert_array_equal(sweep.rows_of(rule), rows)
    plain = sweep_rules(data, rules[:2], metric)
    np.testing.assert_array_equal(plain.rows, sweep.rows[:, :2])
    np.testing.assert_array_equal(
        plain.empty, [metric.stats(np.zeros_like(labels), labels) for _, labels in data]
    )
    part = sweep.part(np.arange(10) > 6)
    np.testing.assert_array_equal(part.rows_of(rules[3]), sweep.rows_of(rules[3])[7:])
    assert len(part.empty) == 3
    found = search_rule(
        sweep,
        metric,
        rules,
        parts=np.arange(10) % 5,
        groups=[str(i) for i in range(10)],
        resamples=100,
        seed=0,
    )
    assert found.kept
    assert found.rule.min_area > 0
    assert found.nested > found.plain
    assert found.curve == []
    assert found.to_json()["rule"]["min_area"] == found.rule.min_area
    assert (found.found, found.tuned) == best_rule(sweep, rules, metric)


def test_rules_of_masks_can_be_swept_too():
    """The two kinds of sweep say the same of a binary rule."""

    class Masks:
        def __init__(self, rule):
            self.rule = rule

        def apply(self, codes):
            return (codes > self.rule.bottom).astype(np.uint8)

    metric = get_metric("dice_per_image")
    data = [(codes[..., 0], (labels > 0).astype(np.uint8)) for codes, labels in images(3)]
    rules, thresholds = make_sweep(data, metric, TuningConfig(min_area_fracs=[0.0]))
    own = [Masks(rule) for rule in rules]
    sweep = sweep_rules(data, own, metric)
    for rule, mask in zip(rules, own, strict=True):
        np.testing.assert_array_equal(sweep.rows_of(mask), thresholds.rows_of(rule))
    np.testing.assert_array_equal(sweep.empty, thresholds.empty)
    assert [rule.bottom for _, rule in thresholds.curve()] == sorted({rule.bottom for rule in rules})
