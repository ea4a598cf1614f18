import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.core.randomness import stream
from masksmith.data.store import Store, StoreWriter
from masksmith.metrics import METRICS, get_metric
from masksmith.postprocess.bootstrap import paired_bootstrap
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.config import TuningConfig
from masksmith.postprocess.objects import PLAIN_OBJECTS
from masksmith.postprocess.operators import PLAIN, Rule, plain_rule, remove_small
from masksmith.postprocess.rules import mask_of
from masksmith.postprocess.search import (
    best_rule,
    candidate_rules,
    make_sweep,
    search_rule,
    sweep_counts,
    threshold_rules,
)
from masksmith.prediction.store import MeanCodes


def pairs(seed, num=12, hw=(9, 11), ignore=0.1):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        target = (rng.random(hw) < rng.choice([0, 0.3, 0.6])).astype(np.uint8)
        noise = rng.normal(size=hw)
        probs = 1 / (1 + np.exp(-(2.0 * target - 1.2 + noise)))
        target[rng.random(hw) < ignore] = 255
        found.append((np.rint(probs * 65535).astype(np.uint16), target))
    return found


CONFIG = TuningConfig(
    bottom_thresholds=[0.3, 0.5, 0.6], top_thresholds=[0.5, 0.7], min_area_fracs=[0.0, 0.05, 0.2]
)
RULES = candidate_rules(CONFIG, median_area=99.0)
BINARY = sorted(name for name in METRICS if get_metric(name).needs != "classes")


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000))
def test_histogram_counts_equal_counting(seed):
    (codes, target), *_ = pairs(seed)
    thresholds = np.unique(np.random.default_rng(seed).integers(0, 65536, 7))
    sweep = sweep_counts([(codes, target)], thresholds.tolist())
    rows, above = sweep.rows[0], sweep.above[0]
    metric = get_metric("tgs_map")
    for at, threshold in enumerate(thresholds):
        np.testing.assert_array_equal(rows[at], metric.stats((codes > threshold).astype(np.uint8), target))
        assert above[at] == (codes > threshold).sum()


@pytest.mark.slow
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 1000))
def test_sweep_equals_making_every_mask(seed):
    data, groups = pairs(seed), np.array(list("aabbccddeeff"))
    for metric in map(get_metric, BINARY):
        rules, sweep = make_sweep(data, metric, CONFIG)
        assert rules == (RULES if metric.needs == "counts" else threshold_rules(CONFIG))
        scores = [
            metric.score(np.stack([metric.stats(rule.apply(c), t) for c, t in data]), groups)
            for rule in rules
        ]
        for rule, score in zip(rules, scores, strict=True):
            assert metric.score(sweep.rows_of(rule), groups) == pytest.approx(score)
        found, best = best_rule(sweep, rules, metric, groups)
        useful = [metric.utility(score) for score in scores]
        assert metric.utility(best) == pytest.approx(max(useful))
        assert found == rules[int(np.argmax(np.round(useful, 12)))]


def test_baselines_by_hand():
    data = pairs(7)
    for metric in map(get_metric, BINARY):
        _, sweep = make_sweep(data, metric, CONFIG)
        for rows, value in ((sweep.empty, 0), (sweep.full, 1)):
            expected = np.stack([metric.stats(np.full_like(target, value), target) for _, target in data])
            np.testing.assert_array_equal(rows, expected)


def test_one_part_alone_is_scored_plain():
    data = pairs(1, num=6)
    sweep = sweep_counts(data, [code for rule in RULES for code in (rule.top, rule.bottom)])
    metric = get_metric("tgs_map")
    parts, groups = np.zeros(6, int), [str(i) for i in range(6)]
    found = search_rule(sweep, metric, RULES, parts=parts, groups=groups, resamples=100, seed=0)
    assert found.nested == found.plain
    assert not found.kept


def test_rule_on_one_image():
    codes = np.array([[100, 200], [300, 400]], np.uint16)
    assert Rule(top=250, min_pixels=2, bottom=150).apply(codes).tolist() == [[0, 1], [1, 1]]
    assert not Rule(top=250, min_pixels=3, bottom=150).apply(codes).any()
    assert Rule(top=400, min_pixels=0, bottom=399).apply(codes).tolist() == [[0, 0], [0, 1]]


def test_the_pixels_of_a_rule_are_a_share_of_the_image():
    """40 of 10201 pixels: of an image of another size the same share, rounded up to a whole pixel."""
    rule = Rule(top=49151, min_pixels=40, bottom=20000, of_pixels=10201)
    expected = {10201: 40, 2 * 10201: 80, 202 * 202: 160, 255: 1, 256: 2, 1: 1, 2**28: 1052585}
    assert {area: rule.least_of(area) for area in expected} == expected
    for area, least in expected.items():
        assert (least - 1) * 10201 < 40 * area <= least * 10201
    assert Rule(top=5, min_pixels=7, bottom=3, component_area_frac=0.0).least_of(99) == 7  # of 0.1.0
    for side, bright, has_mask in ((10, 3, 0), (10, 4, 1), (20, 15, 0), (20, 16, 1), (5, 1, 1)):
        codes = np.zeros((side, side), np.uint16)
        codes.ravel()[:bright] = 60000
        made = Rule(50000, 4, 100, of_pixels=100).apply(codes)
        assert made.sum() == has_mask * bright, (side, bright)


def flecked(sides):
    """Images with a mask at 0.9, and empty ones with a fleck of 3% of their area at 0.9."""
    data = []
    for at, side in enumerate(sides):
        target, probs = np.zeros((side, side), np.uint8), np.full((side, side), 0.1)
        if at % 2:
            target[: side // 5] = 1
        probs.ravel()[: target.sum() or round(0.03 * side**2)] = 0.9
        data.append((np.rint(probs * 65535).astype(np.uint16), target))
    return data


def test_a_rule_found_on_images_of_one_size_holds_for_another():
    """A mask of the small image has as many pixels as the fleck of the large one: no absolute number parts them."""
    metric, one = get_metric("dice_per_image"), {"bottom_thresholds": [0.5], "top_thresholds": [0.5]}
    small, large, mixed = flecked([20] * 8), flecked([60] * 8), flecked([20, 20, 60, 60] * 3 + [20, 20])
    for share, seen in itertools.product((0.0, 0.01), (small, large, mixed)):
        config = TuningConfig(**one, min_area_fracs=[0.0, 0.05, 0.2], component_area_frac=share)
        rules, sweep = make_sweep(seen, metric, config)
        found, score = best_rule(sweep, rules, metric)
        assert (found.min_pixels, score) == (found.of_pixels // 20, 1.0)
        for rule in rules:
            made = [metric.stats(rule.apply(codes), target) for codes, target in seen]
            np.testing.assert_array_equal(sweep.rows_of(rule), made)
        for codes, target in [*small, *large]:
            np.testing.assert_array_equal(found.apply(codes), target)


def test_regions_are_removed_by_their_share_of_each_image():
    for side in (10, 30):
        mask = np.zeros((side, side), np.uint8)
        mask[0, : side // 5] = mask[4, : side // 2] = 1  # 2% and 5% at 10, 0.7% and 1.7% at 30
        kept = {10: side // 2, 30: 0}[side]
        assert remove_small(mask, 0.02).sum() == kept


def test_candidates():
    assert RULES[0] == PLAIN
    assert [(r.top, r.min_pixels) for r in RULES[3:5]] == [(32767, 5), (32767, 20)]
    assert {rule.of_pixels for rule in RULES if rule.min_pixels} == {99}
    assert all(rule.top >= rule.bottom for rule in RULES)
    assert len(set(RULES)) == len(RULES)


def test_describe():
    assert PLAIN.describe() == "mask = p > 0.500"
    rule = Rule(49151, 40, 20000, of_pixels=10201)
    assert "where at least 40 pixels have p > 0.750" in rule.describe()
    assert "where at least 40 of every 10201 pixels have p > 0.750" in rule.describe(many_sizes=True)
    assert PLAIN.describe(many_sizes=True) == PLAIN.describe()


def search(data, *, seed=0):
    sweep = sweep_counts(data, [code for rule in RULES for code in (rule.top, rule.bottom)])
    groups = [str(i) for i in range(len(data))]
    parts = np.arange(len(data)) % 5
    return search_rule(
        sweep, get_metric("tgs_map"), RULES, parts=parts, groups=groups, resamples=300, seed=seed
    )


def test_a_certain_gain_is_kept():
    """Empty images with a few bright pixels: a rule on the number of pixels must win, on unseen parts too."""
    rng = np.random.default_rng(0)
    data = []
    for index in range(60):
        target = np.zeros((10, 10), np.uint8)
        if index % 2:
            target[:, :5] = 1
        probs = np.where(target == 1, 0.9, 0.1)
        probs.ravel()[rng.choice(100, 2, replace=False)] = 0.9
        data.append((np.rint(probs * 65535).astype(np.uint16), target))
    found = search(data)
    assert found.kept
    assert found.rule == found.found
    assert found.rule.min_pixels > 2
    assert found.nested - found.plain > 0.4
    assert found.gain_low > 0


def test_the_error_is_that_of_the_score_that_is_shown():
    """By hand: groups are drawn, the nested and the plain rows of each draw are scored, and their deviations taken."""
    metric = get_metric("dice_per_image")
    unsure = [(codes, target) for codes, target in pairs(10, num=30) if (target == 1).any()]
    for data, kept in ((pairs(1, num=30), True), (unsure, False)):
        rules, sweep = make_sweep(data, metric, CONFIG)
        groups = np.array([index // 3 for index in range(len(data))])
        parts = groups % 5
        found = search_rule(
            sweep, metric, rules, parts=parts, groups=[f"g{g:03d}" for g in groups], resamples=200, seed=4
        )
        assert found.kept == kept
        nested = np.empty(len(data))
        for part in range(5):
            inside = parts == part
            rule, _ = best_rule(sweep.part(~inside), rules, metric)
            nested[inside] = metric.value(sweep.part(inside).rows_of(rule))
        plain, rng = metric.value(sweep.rows_of(rules[0])), stream(4)
        draws = [rng.integers(groups.max() + 1, size=groups.max() + 1) for _ in range(200)]
        chosen = [np.concatenate([np.flatnonzero(groups == group) for group in draw]) for draw in draws]
        errors = [np.std([scores[at].mean() for at in chosen]) for scores in (nested, plain)]
        assert errors[0] != pytest.approx(errors[1], rel=0.01)
        assert found.standard_error == pytest.approx(errors[0 if kept else 1])
        assert found.standard_error_plain == pytest.approx(errors[1])


def test_luck_is_not_kept():
    """On pure noise the best rule looks better than the plain one, and is not kept."""
    rng = np.random.default_rng(3)
    data = []
    for index in range(25):
        target = np.zeros((10, 10), np.uint8)
        target[: 1 + index % 9] = 1
        sharp = np.where(target == 1, 0.8, 0.2) + rng.normal(0, 0.02, (10, 10))
        data.append((np.rint(np.clip(sharp, 0, 1) * 65535).astype(np.uint16), target))
    found = search(data)
    assert not found.kept
    assert found.rule == PLAIN
    assert found.tuned >= found.plain
    assert search(data).gain_low == found.gain_low  # the same seed, the same bounds


def speckled(num=40):
    """Squares at 0.9 on 0.1, with speckles far away at 0.6: a threshold above 0.6 must win for any metric."""
    rng, data = np.random.default_rng(5), []
    for index in range(num):
        target = np.zeros((16, 16), np.uint8)
        target[2 : 8 + index % 3, 2:8] = 1
        probs = np.where(target == 1, 0.9, 0.1)
        probs[rng.integers(12, 16, 3), rng.integers(10, 16, 3)] = 0.6
        data.append((np.rint(probs * 65535).astype(np.uint16), target))
    return data


@pytest.mark.slow
def test_the_search_gains_with_every_metric():
    """Plain, tuned, nested, bootstrap and verdict; of a distance the scores fall, and the gain is above 0."""
    data = speckled()
    config = TuningConfig(
        bottom_thresholds=[0.3, 0.5, 0.7], top_thresholds=[0.5, 0.7], min_area_fracs=[0.0, 0.05]
    )
    places = np.arange(len(data)) // 4
    split = {"parts": places % 5, "groups": [f"place {place}" for place in places]}
    for name in BINARY:
        metric = get_metric(name)
        rules, sweep = make_sweep(data, metric, config)
        found = search_rule(sweep, metric, rules, **split, resamples=100, seed=0)
        if name.startswith("recall"):  # more pixels never lower the recall: the plain rule stays
            assert (found.kept, found.rule, found.gain_mean) == (False, PLAIN, 0)
            continue
        assert found.kept
        assert found.rule.bottom > 0.6 * 65535
        assert found.gain_low > 0
        better = metric.utility(found.nested) - metric.utility(found.plain)
        assert found.gain_mean == pytest.approx(better, abs=0.1 * abs(better))
        assert found.tuned == found.nested == pytest.approx(1.0 if metric.higher_is_better else 0.0)


def test_equal_masks_are_scored_once():
    """Between two thresholds without a pixel the mask is the same, and is not made again."""
    calls, metric = [], get_metric("hausdorff_95")

    def stats(pred, target):
        calls.append(int(pred.sum()))
        return metric.stats(pred, target)

    counted = dataclasses.replace(metric, stats=stats)
    data = speckled(1)
    _, sweep = make_sweep(data, counted, TuningConfig())  # 31 thresholds
    assert len(calls) == 2 + 2  # above and below 0.6, nothing and everything
    assert sweep.rows.shape == (1, 31, 1)


def test_bootstrap_draws_groups():
    """With all images in one group there is nothing to resample: every gain is the gain."""
    metric, data = get_metric("tgs_map"), pairs(2)
    sweep = sweep_counts(data, [PLAIN.top, 20000])
    first, second = sweep.rows_of(PLAIN), sweep.rows_of(Rule(20000, 0, 20000))
    gains, own, base = paired_bootstrap(
        metric, first, second, ["g"] * len(data), resamples=20, rng=np.random.default_rng(0)
    )
    assert np.ptp(gains) == 0
    assert gains[0] == pytest.approx(metric.score(first) - metric.score(second))
    assert (own[0], base[0]) == pytest.approx((metric.score(first), metric.score(second)))


def test_a_group_drawn_twice_counts_as_two():
    """The bootstrap of a mean over groups is a bootstrap of the groups' own scores."""
    metric, data = get_metric("iou_by_group"), pairs(4)
    sweep = sweep_counts(data, [PLAIN.top, 20000])
    first, second = sweep.rows_of(PLAIN), sweep.rows_of(Rule(20000, 0, 20000))
    groups = np.array(list("abbcccddddee"))
    names, seen = sorted(set(groups)), np.random.default_rng(9)
    own = [[metric.score(rows[groups == g], groups[groups == g]) for g in names] for rows in (first, second)]
    drawn = [seen.integers(len(names), size=len(names)) for _ in range(50)]
    gains, scores, base = paired_bootstrap(
        metric, first, second, groups.tolist(), resamples=50, rng=np.random.default_rng(9)
    )
    for found, by_hand in ((scores, own[0]), (base, own[1])):
        np.testing.assert_allclose(found, [np.mean(np.array(by_hand)[draw]) for draw in drawn])
    np.testing.assert_allclose(gains, [np.mean((np.array(own[0]) - own[1])[draw]) for draw in drawn])


def test_locations_that_share_an_image_are_two_of_the_metric_and_one_of_the_bootstrap():
    metric = get_metric("iou_by_group")
    rows = np.array([[90.0, 10, 0, 0], [90, 10, 0, 0], [0, 1, 9, 90], [5, 5, 0, 90]])
    labels, groups = ["a", "a", "b", "c"], ["a + b", "a + b", "a + b", "c"]
    apart = [0.9, 0.0, 0.5]
    assert metric.score(rows, np.array(labels)) == pytest.approx(np.mean(apart))
    _, _, base = paired_bootstrap(
        metric, rows, rows, groups, labels=labels, resamples=200, rng=np.random.default_rng(0)
    )
    twice_c, one_each, twice_ab = 0.5, np.mean(apart), np.mean([0.9, 0.0])
    assert sorted({round(value, 6) for value in base}) == sorted(
        {round(v, 6) for v in (twice_c, one_each, twice_ab)}
    )


def flood_fill(mask, area_frac):
    """The naive twin of remove_small: visit every pixel's region by hand."""
    kept, seen = np.zeros_like(mask), np.zeros(mask.shape, bool)
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        region, waiting = [], [start]
        seen[start] = True
        while waiting:
            row, column = waiting.pop()
            region.append((row, column))
            for y in range(max(row - 1, 0), min(row + 2, mask.shape[0])):
                for x in range(max(column - 1, 0), min(column + 2, mask.shape[1])):
                    if mask[y, x] and not seen[y, x]:
                        seen[y, x] = True
                        waiting.append((y, x))
        if len(region) > area_frac * mask.size:
            for spot in region:
                kept[spot] = 1
    return kept


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0, 0.3), st.floats(0.05, 0.6))
def test_small_regions_go_as_in_a_flood_fill(seed, area_frac, density):
    rng = np.random.default_rng(seed)
    mask = (rng.random((int(rng.integers(1, 14)), int(rng.integers(1, 14)))) < density).astype(np.uint8)
    np.testing.assert_array_equal(remove_small(mask, area_frac), flood_fill(mask, area_frac))


def test_small_regions_of_a_large_mask_go_in_bands_of_rows(monkeypatch):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        mask = (
            rng.random((int(rng.integers(2, 40)), int(rng.integers(1, 30)))) < rng.uniform(0.1, 0.7)
        ).astype(np.uint8)
        area_frac = float(rng.uniform(0, 0.2))
        whole = remove_small(mask, area_frac)
        with monkeypatch.context() as patched:
            patched.setattr("masksmith.postprocess.operators._BAND_PIXELS", int(rng.integers(1, mask.size)))
            np.testing.assert_array_equal(remove_small(mask, area_frac), whole)


def test_a_region_of_just_the_share_is_removed():
    mask = np.zeros((10, 10), np.uint8)
    mask[0, :4] = mask[4, :5] = 1
    mask[9, 9] = mask[8, 8] = 1  # corners touch: one region of two
    assert remove_small(mask, 0.0) is mask
    assert remove_small(mask, 0.02).sum() == 9
    assert remove_small(mask, 0.04).sum() == 5
    assert remove_small(mask, 0.05).sum() == 0


REMOVING = CONFIG.model_copy(update={"component_area_frac": 0.03})


def test_a_search_removes_small_regions_as_the_submission_does():
    data = pairs(3)
    for metric in map(get_metric, ("tgs_map", "dice_per_image", "hausdorff_95")):
        rules, sweep = make_sweep(data, metric, REMOVING)
        assert rules[0] == plain_rule(REMOVING) == Rule(PLAIN.top, 0, PLAIN.bottom, 0.03)
        assert {rule.component_area_frac for rule in rules} == {0.03}
        changed = 0
        for rule in rules:
            made = [rule.apply(codes) for codes, _ in data]
            rows = [metric.stats(mask, target) for mask, (_, target) in zip(made, data, strict=True)]
            np.testing.assert_array_equal(sweep.rows_of(rule), rows)
            whole = Rule(rule.top, rule.min_pixels, rule.bottom)
            changed += sum((m != whole.apply(codes)).any() for m, (codes, _) in zip(made, data, strict=True))
        assert changed


def test_a_recipe_with_one_rule_searches_nothing():
    one = TuningConfig(
        bottom_thresholds=[0.5], top_thresholds=[0.5], min_area_fracs=[0.0], component_area_frac=0.02
    )
    metric, data = get_metric("dice_per_image"), pairs(5)
    rules, sweep = make_sweep(data, metric, one)
    assert rules == [plain_rule(one)]
    found = search_rule(
        sweep, metric, rules, parts=np.arange(12) % 3, groups=list("abcdefghijkl"), resamples=100, seed=0
    )
    assert not found.kept
    assert found.rule == found.found == rules[0]
    assert found.plain == found.tuned == found.nested
    assert len(found.curve) == 1
    assert "without regions up to 2.000% of the image" in found.rule.describe()


def test_a_large_image_is_read_in_bands_and_its_mask_is_the_same(tmp_path):
    """Of one store and of the mean of three, for rules that look at each pixel alone and for others."""
    rng = np.random.default_rng(0)
    stores = []
    for at in range(3):
        writer = StoreWriter(tmp_path / f"{at}.npy", [("a", (50, 40, 3)), ("b", (7, 9, 3))], dtype=np.uint16)
        for name, hw in (("a", (50, 40, 3)), ("b", (7, 9, 3))):
            writer.write(name, rng.integers(0, 65536, hw, dtype=np.uint16))
        writer.close()
        stores.append(Store(tmp_path / f"{at}.npy"))
    for codes in (MeanCodes(stores[:1]), MeanCodes(stores), MeanCodes(stores, [1.0, 2.0, 0.5])):
        assert [len(band) for band in codes.bands("a", at_once=40 * 3 * 8)] == [8] * 6 + [2]
        for name in ("a", "b"):
            bands = list(codes.bands(name, at_once=40 * 3 * 8))
            np.testing.assert_array_equal(np.concatenate(bands), codes[name])
            for rule in (ClassRule((1.0, 1.0, 1.0)), ClassRule((1.0, 0.7, 2.0))):
                found = rule.apply_bands(bands, codes.shape(name)[:2])
                np.testing.assert_array_equal(found, rule.apply(codes[name]))
                np.testing.assert_array_equal(mask_of(rule, codes, name), found)
            np.testing.assert_array_equal(
                mask_of(PLAIN_OBJECTS, codes, name), PLAIN_OBJECTS.apply(codes[name])
            )
    first = MeanCodes([store_of_one_channel(tmp_path, stores[0])])
    for rule in (Rule(60_000, 30, 40_000), Rule(65_000, 900, 40_000), Rule(30_000, 0, 30_000, 0.01)):
        found = rule.apply_bands(first.bands("a", at_once=80), (50, 40))
        np.testing.assert_array_equal(found, rule.apply(first["a"]))
        np.testing.assert_array_equal(mask_of(rule, first, "a"), found)


def store_of_one_channel(folder, store):
    writer = StoreWriter(folder / "one.npy", [("a", (50, 40, 1))], dtype=np.uint16)
    writer.write("a", store["a"][..., :1])
    writer.close()
    return Store(folder / "one.npy")
