"""From probabilities to masks by the triplet rule, and the search for its three numbers.

The order is that of SIIM-ACR's report: probabilities at the true size of the image, threshold, then small regions.

The rule (SIIM-ACR's first place, https://github.com/sneddy/pneumothorax-segmentation): an image has a mask only
if at least ``min_pixels`` of its pixels are above the top threshold; its mask is then every pixel above
the bottom threshold. Here the number is relative: it is meant for the median image, and in an image of another
size it is the same share of the area.

Where the metric needs counts of pixels, the search looks at each image once. A histogram of its codes over the
candidate thresholds, foreground and background apart, gives the counts of every threshold at once, and with them
the metric of every rule. A metric of objects or boundaries needs the masks themselves: they are made for every bottom
threshold, and the triplet is not searched, as it would cost a mask for each of some thousand rules. Where small regions
are removed, masks are made for every threshold too, once, and the triplet is searched on their counts.

What it finds is judged by the nested score (chosen on the other parts, scored on this one) and a paired
bootstrap over groups, and is kept only if the lower 80% bound of its gain is above zero.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, TypeVar

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16
from pydantic import Field

from masksmith.arrays import IGNORE, Codes, Mask
from masksmith.config import Config
from masksmith.metrics import Metric, count_stats
from masksmith.metrics.protocol import Groups
from masksmith.prediction.codes import code_of, prob_of
from masksmith.randomness import stream

BOUND_QUANTILE = 0.2
"""Below it lies the lower 80% bound of a gain."""
Pairs = Sequence[tuple[UInt16[np.ndarray, "..."], UInt8[np.ndarray, "..."]]]
"""Codes and target of each image, (h, w) both; the images may have many sizes."""
PARTS = 5  # group-wise parts for the nested score where only one fold was trained


Share = Annotated[float, Field(ge=0, le=1)]
Area = TypeVar("Area", int, Int[np.ndarray, " n"])


class TuningConfig(Config):
    """Candidates of the search."""

    bottom_thresholds: list[Share] = Field(default=[round(0.2 + 0.02 * i, 2) for i in range(31)])
    """Probabilities above which a pixel belongs to the mask."""
    top_thresholds: list[Share] = Field(default=[0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    """Probabilities that min_pixels pixels must exceed; only those not below the bottom are tried, and only for a
    metric of counts: one of objects or boundaries gets a bottom threshold alone."""
    min_area_fracs: list[Share] = Field(
        default=[0.0, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03]
    )
    """min_pixels as a share of the median image's area; in an image of another size it is the same share. For a metric
    of counts."""
    component_area_frac: float = Field(default=0.0, ge=0, lt=1)
    """Connected regions of a mask (8 neighbours) that are not larger than this share of the image's area are removed,
    after the thresholds and whatever the search finds; 0 keeps all."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""


@dataclass(frozen=True)
class Rule:
    """The triplet rule; thresholds are codes, a pixel exceeds one if ``code > threshold``."""

    top: int
    min_pixels: int
    bottom: int
    component_area_frac: float = 0.0
    """Regions of the mask up to this share of the image's area are removed."""
    of_pixels: int | None = None
    """Area of the image that ``min_pixels`` is meant for; None: it is the same number in an image of any size."""

    def least_of(self, area: Area) -> Area:
        """Return the pixels that must exceed the top threshold in images of these areas.

        It is ``min_pixels`` in an image of ``of_pixels``, and the same share of another, rounded up to a whole pixel.
        """
        if self.of_pixels is None:
            return 0 * area + self.min_pixels
        return -(
            -self.min_pixels * area // self.of_pixels
        )  # integers: exact up to 2**63, images have 2**28 at most

    def describe(self, *, many_sizes: bool = False) -> str:
        """Return the rule as a sentence; ``many_sizes`` says that the images have more than one area."""
        text = f"mask = p > {prob_of(self.bottom):.3f}"
        if self.min_pixels > 1 or self.top > self.bottom:
            of_area = f" of every {self.of_pixels}" if many_sizes and self.of_pixels is not None else ""
            text += f", where at least {self.min_pixels}{of_area} pixels have p > {prob_of(self.top):.3f}"
        if self.component_area_frac:
            text += f", without regions up to {self.component_area_frac:.3%} of the image"
        return text


PLAIN = Rule(top=code_of(0.5), min_pixels=0, bottom=code_of(0.5))


def plain_rule(config: TuningConfig) -> Rule:
    """Return what is done without a search: threshold 0.5, and the removal of small regions that is asked for."""
    return replace(PLAIN, component_area_frac=config.component_area_frac)


def remove_small(mask: Mask, area_frac: float) -> Mask:
    """Return a mask of 0 and 1 without its connected regions (8 neighbours) of at most ``area_frac`` of its area."""
    if not area_frac or not mask.any():
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] > area_frac * mask.size
    large[0] = False  # the background
    return large.astype(np.uint8)[labels]


def apply_rule(codes: Codes, rule: Rule) -> Mask:
    """Return the mask of 0 and 1 that the rule makes of an image's codes."""
    if np.count_nonzero(codes > rule.top) < rule.least_of(codes.size):
        return np.zeros(codes.shape, np.uint8)
    return remove_small((codes > rule.bottom).astype(np.uint8), rule.component_area_frac)


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


def _counts_by_table(
    codes: Codes, target: Mask, lut: Int[np.ndarray, " codes"], num: int
) -> tuple[Float[np.ndarray, "t 4"], Int[np.ndarray, " t"]]:
    """Return an image's rows (t, 4) and its pixels above each threshold (t,), from one histogram."""
    # a pixel of bin b exceeds the first b thresholds; foreground, background and ignored get bins of their own
    kind = np.where(target == 1, 0, np.where(target == IGNORE, 2, 1))
    bins = np.bincount((kind * (num + 1) + lut[codes]).ravel(), minlength=3 * (num + 1)).reshape(3, num + 1)
    above = bins[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]  # (3, t): pixels above each threshold
    hit, false = above[0], above[1]
    rows = np.stack([hit, false, bins[0].sum() - hit, bins[1].sum() - false], axis=1).astype(np.float64)
    return rows, above.sum(axis=0)


def sweep_counts(pairs: Pairs, thresholds: Sequence[int]) -> Sweep:
    """Count every image at every threshold."""
    ordered = np.unique(np.asarray(thresholds, np.int64))
    lut = np.searchsorted(ordered, np.arange(65536), side="left").astype(np.int64)
    counted = [_counts_by_table(codes, target, lut, len(ordered)) for codes, target in pairs]
    rows = np.stack([row for row, _ in counted])
    empty = np.zeros((len(rows), 4))
    empty[:, 2:] = rows[:, 0, :2] + rows[:, 0, 2:]  # all foreground is missed, all background right
    full = np.stack([count_stats(np.ones_like(target), target) for _, target in pairs])
    return Sweep(ordered, rows, np.stack([above for _, above in counted]), areas_of(pairs), empty, full)


def sweep_masks(
    pairs: Pairs,
    thresholds: Sequence[int],
    metric: Metric,
    *,
    component_area_frac: float = 0.0,
) -> Sweep:
    """Make every image's mask at every threshold: for a metric that needs more than counts, or to remove regions."""
    ordered = np.unique(np.asarray(thresholds, np.int64))
    above = np.array([[np.count_nonzero(codes > at) for at in ordered] for codes, _ in pairs], np.int64)
    rows = []
    for (codes, target), counts in zip(pairs, above, strict=True):
        own: list[Float[np.ndarray, " k"]] = []
        for at, threshold in enumerate(ordered):
            same = at > 0 and counts[at] == counts[at - 1]  # no pixel lies between the two thresholds
            if same:
                own.append(own[-1])
                continue
            mask = remove_small((codes > threshold).astype(np.uint8), component_area_frac)
            own.append(metric.stats(mask, target))
        rows.append(np.stack(own))
    empty, full = (
        np.stack([metric.stats(np.full(codes.shape, value, np.uint8), target) for codes, target in pairs])
        for value in (0, 1)
    )
    return Sweep(ordered, np.stack(rows), above, areas_of(pairs), empty, full)


def areas_of(pairs: Pairs) -> Int[np.ndarray, " n"]:
    """Return the number of pixels of each image."""
    return np.array([codes.size for codes, _ in pairs], np.int64)


def make_sweep(pairs: Pairs, metric: Metric, config: TuningConfig) -> tuple[list[Rule], Sweep]:
    """Return the rules to try and the sweep that holds their thresholds, by what the metric needs.

    Args:
        pairs: Codes and target (h, w) of each image, at least one.
        metric: Of binary masks.
        config: Candidates.
    """
    share = config.component_area_frac
    if metric.needs != "counts":
        rules = threshold_rules(config)
        bottoms = [rule.bottom for rule in rules]
        return rules, sweep_masks(pairs, bottoms, metric, component_area_frac=share)
    rules = candidate_rules(config, median_area=float(np.median(areas_of(pairs))))
    thresholds = [code for rule in rules for code in (rule.top, rule.bottom)]
    if share:
        return rules, sweep_masks(pairs, thresholds, metric, component_area_frac=share)
    return rules, sweep_counts(pairs, thresholds)


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
    sweep: Sweep, rules: Sequence[Rule], metric: Metric, groups: Groups | None = None
) -> tuple[Rule, float]:
    """Return the rule with the best score, and that score."""
    scores = [metric.score(sweep.rows_of(rule), groups) for rule in rules]
    useful = [metric.utility(score) for score in scores]
    best = int(np.argmax(np.round(useful, 12)))  # sums in another order must not break a tie
    return rules[best], scores[best]


@dataclass(frozen=True)
class Tuning:
    """What the search found, and whether it is kept; a gain above 0 is for the better, whatever the metric."""

    rule: Rule
    kept: bool
    found: Rule
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
    parts: list[tuple[Rule, float]]

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return asdict(self)


def search_rule(
    sweep: Sweep,
    metric: Metric,
    rules: Sequence[Rule],
    *,
    parts: Int[np.ndarray, " n"],
    groups: Sequence[str],
    labels: Sequence[str] | None = None,
    resamples: int,
    seed: int,
) -> Tuning:
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
    """
    labels = groups if labels is None else labels
    _, members = np.unique(np.asarray(labels), return_inverse=True)
    found, tuned = best_rule(sweep, rules, metric, members)
    plain = rules[0]
    plain_rows = sweep.rows_of(plain)
    nested_rows = np.empty_like(plain_rows)
    chosen = []
    for part in np.unique(parts):
        inside = parts == part
        rule = plain
        if not inside.all():
            rule, _ = best_rule(sweep.part(~inside), rules, metric, members[~inside])
        nested_rows[inside] = sweep.part(inside).rows_of(rule)
        chosen.append((rule, metric.score(nested_rows[inside], members[inside])))
    gains, nested_scores, plain_scores = paired_bootstrap(
        metric, nested_rows, plain_rows, groups, labels=labels, resamples=resamples, rng=stream(seed)
    )
    low, high = np.quantile(gains, [BOUND_QUANTILE, 1 - BOUND_QUANTILE])
    kept = bool(low > 0)
    curve = [
        (prob_of(int(t)), metric.score(sweep.rows_of(Rule(int(t), 0, int(t))), members))
        for t in sweep.thresholds
    ]
    return Tuning(
        rule=found if kept else plain,
        kept=kept,
        found=found,
        plain=metric.score(plain_rows, members),
        tuned=tuned,
        nested=metric.score(nested_rows, members),
        gain_mean=float(gains.mean()),
        gain_low=float(low),
        gain_high=float(high),
        standard_error=float((nested_scores if kept else plain_scores).std()),
        standard_error_plain=float(plain_scores.std()),
        curve=curve,
        parts=chosen,
    )


def paired_bootstrap(
    metric: Metric,
    rows: Float[np.ndarray, "n k"],
    other: Float[np.ndarray, "n k"],
    groups: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """Resample groups with replacement; return the gains of ``rows`` over ``other``, and the scores of both.

    A gain above 0 is for the better. In a metric of groups, a group that is drawn twice counts as two; ``labels`` are
    the metric's groups where they are others (see search_rule).
    """
    _, membership = np.unique(np.asarray(groups), return_inverse=True)
    num = int(membership.max()) + 1
    images = [np.flatnonzero(membership == group) for group in range(num)] if metric.by_group else []
    names, own = np.unique(np.asarray(groups if labels is None else labels), return_inverse=True)
    gains, own_scores, other_scores = [], [], []
    for _ in range(resamples):
        drawn = rng.integers(num, size=num)
        if metric.by_group:
            chosen = np.concatenate([images[group] for group in drawn])
            draws = np.repeat(np.arange(num), [len(images[group]) for group in drawn])
            homes = draws * len(names) + own[chosen]  # a location of each draw
            before, after = metric.score(other[chosen], homes), metric.score(rows[chosen], homes)
        else:
            weights = np.bincount(drawn, minlength=num)[membership].astype(np.float64)
            before, after = (float(metric.reduce(one, weights=weights)) for one in (other, rows))
        gains.append(metric.utility(after) - metric.utility(before))
        own_scores.append(after)
        other_scores.append(before)
    return np.array(gains), np.array(own_scores), np.array(other_scores)
