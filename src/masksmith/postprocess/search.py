"""The search for the three numbers of the triplet rule, or for the best of other rules (see rule_sweep).

Where the metric needs counts of pixels, the search looks at each image once. A histogram of its codes over the
candidate thresholds, foreground and background apart, gives the counts of every threshold at once, and with them
the metric of every rule. A metric of objects or boundaries needs the masks themselves: they are made for every bottom
threshold, and the triplet is not searched, as it would cost a mask for each of some thousand rules. Where small regions
are removed, masks are made for every threshold too, once, and the triplet is searched on their counts.

What it finds is judged by the nested score (chosen on the other parts, scored on this one) and a paired
bootstrap over groups, and is kept only if the lower 80% bound of its gain is above zero.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16

from masksmith.core.arrays import IGNORE, Codes, Mask
from masksmith.core.randomness import stream
from masksmith.metrics import count_stats
from masksmith.metrics.protocol import Groups, Metric
from masksmith.postprocess.bootstrap import BOUND_QUANTILE, paired_bootstrap
from masksmith.postprocess.config import TuningConfig
from masksmith.postprocess.operators import Rule, plain_rule, remove_small
from masksmith.postprocess.rule_sweep import AnyRule, AnySweep, ScoredSweep
from masksmith.prediction.store import code_of, prob_of

Pairs = Iterable[tuple[UInt16[np.ndarray, "..."], UInt8[np.ndarray, "..."]]]
"""Codes and target of each image, (h, w) both; the images may have many sizes, and each is looked at once."""
_AT_ONCE = 1 << 20  # numbers of rows that are scored at once
PARTS = 5  # group-wise parts for the nested score where only one fold was trained


@dataclass(frozen=True)
class Sweep:
    """Rows of every image at every threshold.

    ``rows[i, t]`` is the metric's row of image i at ``thresholds[t]`` (counts: true and false positives, false and
    true negatives), ``above[i, t]`` the number of its pixels above it, ignored ones too, ``areas[i]`` that of all its
    pixels, ``empty[i]`` the row of an empty prediction and ``full[i]`` that of predicting every pixel.
    """

    thresholds: Int[np.ndarray, " t"]
    rows: Float[np.ndarray, "n t k"]
    above: Int[np.ndarray, "n t"]
    areas: Int[np.ndarray, " n"]
    empty: Float[np.ndarray, "n k"]
    full: Float[np.ndarray, "n k"]

    def rows_of(self, rule: Rule) -> Float[np.ndarray, "n k"]:
        """Return each image's row under a rule whose thresholds are among ``thresholds``."""
        top, bottom = np.searchsorted(self.thresholds, [rule.top, rule.bottom])
        has_mask = self.above[:, top] >= rule.least_of(self.areas)
        return np.where(has_mask[:, None], self.rows[:, bottom], self.empty)

    def part(self, chosen: Any) -> "Sweep":  # noqa: ANN401
        """Return the sweep of some images (an index array or a boolean one)."""
        return Sweep(
            self.thresholds,
            self.rows[chosen],
            self.above[chosen],
            self.areas[chosen],
            self.empty[chosen],
            self.full[chosen],
        )

    def curve(self) -> list[tuple[float, Rule]]:
        """Return each threshold as a probability, and the rule that has it alone."""
        return [(prob_of(int(t)), Rule(int(t), 0, int(t))) for t in self.thresholds]


def table_of(ordered: Int[np.ndarray, " t"]) -> Int[np.ndarray, " codes"]:
    """Return for each code how many of the thresholds, which ascend, it exceeds."""
    return np.searchsorted(ordered, np.arange(65536), side="left").astype(np.int64)


def counts_by_table(
    codes: Codes, target: Mask, lut: Int[np.ndarray, " codes"], num: int
) -> tuple[Float[np.ndarray, "t 4"], Int[np.ndarray, " t"]]:
    """Return an image's rows (t, 4) and its pixels above each threshold (t,), from one histogram."""
    exceeded = lut[codes]
    # a pixel of bin b exceeds the first b thresholds
    every, truth = (
        np.bincount(pixels.ravel(), minlength=num + 1) for pixels in (exceeded, exceeded[target == 1])
    )
    ignored = np.bincount(exceeded[target == IGNORE], minlength=num + 1)
    above = np.stack([truth, every - truth - ignored, every])[:, ::-1].cumsum(axis=1)[:, ::-1]
    hit, false = above[0, 1:], above[1, 1:]
    rows = np.stack([hit, false, above[0, 0] - hit, above[1, 0] - false], axis=1).astype(np.float64)
    return rows, above[2, 1:]


def sweep_counts(pairs: Pairs, thresholds: Sequence[int]) -> Sweep:
    """Count every image at every threshold."""
    ordered = np.unique(np.asarray(thresholds, np.int64))
    lut = table_of(ordered)
    rows, above, areas, full = [], [], [], []
    for codes, target in pairs:
        counts, pixels = counts_by_table(codes, target, lut, len(ordered))
        rows.append(counts)
        above.append(pixels)
        areas.append(codes.size)
        full.append(count_stats(np.ones_like(target), target))
    counted = np.stack(rows)
    empty = np.zeros((len(counted), 4))
    empty[:, 2:] = counted[:, 0, :2] + counted[:, 0, 2:]  # all foreground is missed, all background right
    return Sweep(ordered, counted, np.stack(above), np.array(areas), empty, np.stack(full))


def sweep_masks(
    pairs: Pairs,
    thresholds: Sequence[int],
    metric: Metric,
    *,
    component_area_frac: float = 0.0,
) -> Sweep:
    """Make every image's mask at every threshold: for a metric that needs more than counts, or to remove regions."""
    ordered = np.unique(np.asarray(thresholds, np.int64))
    rows, above, areas, empty, full = [], [], [], [], []
    for codes, target in pairs:
        counts = [np.count_nonzero(codes > at) for at in ordered]
        own: list[Float[np.ndarray, " k"]] = []
        for at, threshold in enumerate(ordered):
            same = at > 0 and counts[at] == counts[at - 1]  # no pixel lies between the two thresholds
            if same:
                own.append(own[-1])
                continue
            mask = remove_small((codes > threshold).astype(np.uint8), component_area_frac)
            own.append(metric.stats(mask, target))
        rows.append(np.stack(own))
        above.append(counts)
        areas.append(codes.size)
        empty.append(metric.stats(np.zeros(codes.shape, np.uint8), target))
        full.append(metric.stats(np.ones(codes.shape, np.uint8), target))
    return Sweep(
        ordered, np.stack(rows), np.array(above, np.int64), np.array(areas), np.stack(empty), np.stack(full)
    )


def make_sweep(pairs: Pairs, metric: Metric, config: TuningConfig) -> tuple[list[Rule], Sweep]:
    """Return the rules to try and the sweep that holds their thresholds, by what the metric needs.

    Args:
        pairs: Codes and target (h, w) of each image, at least one.
        metric: Of binary masks.
        config: Candidates.
    """
    share, rules = config.component_area_frac, threshold_rules(config)
    bottoms = [rule.bottom for rule in rules]
    if metric.needs != "counts":
        return rules, sweep_masks(pairs, bottoms, metric, component_area_frac=share)
    tops = [code_of(value) for value in config.top_thresholds if any(config.min_area_fracs)]
    thresholds = [*bottoms, *(top for top in tops if top >= min(bottoms))]
    if share:
        sweep = sweep_masks(pairs, thresholds, metric, component_area_frac=share)
    else:
        sweep = sweep_counts(pairs, thresholds)
    return candidate_rules(config, median_area=float(np.median(sweep.areas))), sweep


def threshold_rules(config: TuningConfig) -> list[Rule]:
    """Return the rules of one threshold, the plain one first."""
    bottoms = [code_of(value) for value in config.bottom_thresholds]
    share = config.component_area_frac
    return list(dict.fromkeys([plain_rule(config), *(Rule(bottom, 0, bottom, share) for bottom in bottoms)]))


def candidate_rules(config: TuningConfig, *, median_area: float) -> list[Rule]:
    """Return the rules to try, the plain one first; equal scores go to the earlier."""
    bottoms = [code_of(value) for value in config.bottom_thresholds]
    tops = [code_of(value) for value in config.top_thresholds]
    pixels = sorted({round(share * median_area) for share in config.min_area_fracs} - {0})
    rules = threshold_rules(config) + [
        Rule(top, least, bottom, config.component_area_frac, of_pixels=round(median_area))
        for bottom in bottoms
        for top in tops
        if top >= bottom
        for least in pixels
    ]
    return list(dict.fromkeys(rules))


def best_rule(
    sweep: AnySweep[AnyRule], rules: Sequence[AnyRule], metric: Metric, groups: Groups | None = None
) -> tuple[AnyRule, float]:
    """Return the rule with the best score, and that score."""
    scores = sweep.scores(rules, metric) if isinstance(sweep, ScoredSweep) and not metric.by_group else None
    if scores is None:
        at_once = max(1, _AT_ONCE // sweep.rows_of(rules[0]).size)
        parts = [rules[at : at + at_once] for at in range(0, len(rules), at_once)]
        found = (np.stack([sweep.rows_of(rule) for rule in part]) for part in parts)
        scores = np.concatenate([metric.reduce(rows, groups=groups) for rows in found])
    useful = [metric.utility(float(score)) for score in scores]
    best = rules[int(np.argmax(np.round(useful, 12)))]  # sums in another order must not break a tie
    return best, metric.score(sweep.rows_of(best), groups)


def chooser(sweep: AnySweep[AnyRule]) -> Callable[..., tuple[AnyRule, float]]:
    """Return what finds the best rule of a sweep: its own search where it has one, else all rules are scored."""
    return getattr(type(sweep), "choose", best_rule)


@dataclass(frozen=True)
class Tuning(Generic[AnyRule]):
    """What the search found, and whether it is kept; a gain above 0 is for the better, whatever the metric."""

    rule: AnyRule
    kept: bool
    found: AnyRule
    plain: float
    tuned: float
    nested: float
    gain_mean: float
    gain_low: float
    gain_high: float
    standard_error: float
    """Of the score that is shown: the nested one where the rule is kept, else the plain one."""
    standard_error_plain: float
    curve: list[tuple[float, float]]
    """Threshold and score of the rules that lie on a curve."""
    parts: list[tuple[AnyRule, float]]

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return asdict(self)


def search_rule(
    sweep: AnySweep[AnyRule],
    metric: Metric,
    rules: Sequence[AnyRule],
    *,
    parts: Int[np.ndarray, " n"],
    groups: Sequence[str],
    labels: Sequence[str] | None = None,
    resamples: int,
    seed: int,
    choose: Callable[..., tuple[AnyRule, float]] | None = None,
) -> Tuning[AnyRule]:
    """Search the best rule, and judge whether choosing it helps on images it was not chosen on.

    Args:
        sweep: Rows of all judged images.
        metric: What is to be made best.
        rules: Candidates, the plain one first: what is found is compared with that. A single one is not searched.
        parts: Part of each image for the nested score: its fold, or a group-wise fifth of a single fold.
        groups: Group of each image: the bootstrap draws groups.
        labels: Group of each image that a metric of groups means (a location); None: the same. Locations that share an
            image are one group of the bootstrap, and two of the metric.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.
        choose: From a sweep, rules, the metric and groups to the best rule and its score; None: the sweep's own, or
            best_rule.
    """
    choose = choose or chooser(sweep)
    labels = groups if labels is None else labels
    _, members = np.unique(np.asarray(labels), return_inverse=True)
    found, tuned = choose(sweep, rules, metric, members)
    plain = rules[0]
    plain_rows = sweep.rows_of(plain)
    own_rows, chosen = nested_rows(sweep, metric, rules, parts=parts, groups=members, choose=choose)
    gains, nested_scores, plain_scores = paired_bootstrap(
        metric, own_rows, plain_rows, groups, labels=labels, resamples=resamples, rng=stream(seed)
    )
    low, high = np.quantile(gains, [BOUND_QUANTILE, 1 - BOUND_QUANTILE])
    kept = bool(low > 0)
    curve = [(threshold, metric.score(sweep.rows_of(rule), members)) for threshold, rule in sweep.curve()]
    return Tuning(
        rule=found if kept else plain,
        kept=kept,
        found=found,
        plain=metric.score(plain_rows, members),
        tuned=tuned,
        nested=metric.score(own_rows, members),
        gain_mean=float(gains.mean()),
        gain_low=float(low),
        gain_high=float(high),
        standard_error=float((nested_scores if kept else plain_scores).std()),
        standard_error_plain=float(plain_scores.std()),
        curve=curve,
        parts=chosen,
    )


def nested_rows(
    sweep: AnySweep[AnyRule],
    metric: Metric,
    rules: Sequence[AnyRule],
    *,
    parts: Int[np.ndarray, " n"],
    groups: Groups,
    choose: Callable[..., tuple[AnyRule, float]] | None = None,
) -> tuple[Float[np.ndarray, "n k"], list[tuple[AnyRule, float]]]:
    """Return each image's row under the rule that was chosen on the other parts, and rule and score of each part.

    Where there is one part alone, its rule is the first one. Arguments are those of search_rule; ``groups`` are the
    metric's.
    """
    choose = choose or chooser(sweep)
    rows = np.empty_like(sweep.rows_of(rules[0]))
    chosen = []
    for part in np.unique(parts):
        inside = parts == part
        rule = rules[0]
        if not inside.all():
            rule, _ = choose(sweep.part(~inside), rules, metric, groups[~inside])
        rows[inside] = sweep.part(inside).rows_of(rule)
        chosen.append((rule, metric.score(rows[inside], groups[inside])))
    return rows, chosen
