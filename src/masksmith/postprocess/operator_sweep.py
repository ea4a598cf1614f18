"""Every image under every list of operators, from as few masks as it takes.

Rows are kept for what is made of pixels: by the random field, the threshold (or classes, or seeds), and the operators
on regions. Whether an image has a mask (triplet, gate) and which threshold it has are one number an image each, so
rules that differ in them share all rows. For a metric of counts thresholds come from one histogram, and least areas of
regions from the regions of each threshold, which are found once; other operators make their masks, each step of them
once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from masksmith.core import interrupt
from masksmith.core.arrays import IGNORE, Codes, Float, Int, Shaped
from masksmith.metrics.objects import label_components
from masksmith.metrics.protocol import Metric, Row, per_image, pooled
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.crf import Crf
from masksmith.postprocess.operator_rule import HALF, OperatorRule, Seen, as_operators, gate_code
from masksmith.postprocess.operators import Rule
from masksmith.postprocess.regions import Plane
from masksmith.postprocess.search import counts_by_table, table_of
from masksmith.prediction.store import prob_of

Pictures = Callable[[], Iterable[tuple[Codes, Plane, Seen]]]
"""Codes (h, w, k), target and what else there is of each image, always the same images in the same order."""
_Above = tuple[Crf | None, int]
_BLOCK = 256  # images whose rows are laid out by rule at once


def pixel_rule(rule: OperatorRule, bottom: int | None = None) -> OperatorRule:
    """Return what a rule does with every image that has a mask, with another bottom threshold where one is given."""
    decide = rule.decide
    if isinstance(decide, Rule):
        code = decide.bottom if bottom is None else bottom
        decide = Rule(code, 0, code)
    return OperatorRule(decide, rule.crf, rule.regions)


@dataclass
class Table:
    """Rows of all images under all pixel rules that were asked for; those that are new are made in one pass.

    Args:
        pictures: The images.
        metric: Of their masks.
        gated: Whether the last plane of the codes is that of the image head.
    """

    pictures: Pictures
    metric: Metric
    gated: bool = False
    areas: Int[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    empty: Float[np.ndarray, "n k"] = field(default_factory=lambda: np.zeros((0, 0)))
    """The row of an empty prediction of each image."""
    head: Int[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Code of the image head."""
    coverage: Float[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0))
    numbers: list[Any] = field(default_factory=list)
    rows: dict[OperatorRule, list[Float[np.ndarray, "m k"]]] = field(default_factory=dict)
    """In blocks of images, so that they are held once."""
    above: dict[_Above, list[Int[np.ndarray, " m"]]] = field(default_factory=dict)
    """Pixels above a code, after a random field; in blocks."""

    def rows_of(self, rule: OperatorRule) -> Float[np.ndarray, "n k"]:
        """Return each image's row under a pixel rule that was needed before."""
        return np.concatenate(self.rows[rule])

    def need(self, rules: Iterable[OperatorRule]) -> None:
        """Make what these rules need.

        Raises:
            StoppedError: Stopped; nothing of this pass is kept.
        """
        pixel: dict[OperatorRule, None] = {}
        tops: dict[_Above, None] = {}
        for rule in rules:
            pixel[pixel_rule(rule)] = None
            if rule.split is not None:
                pixel[pixel_rule(rule, rule.split.bottom)] = None
            if isinstance(rule.decide, Rule) and rule.decide.min_pixels:
                tops[rule.crf, rule.decide.top] = None
        new, above = (
            [one for one in pixel if one not in self.rows],
            [one for one in tops if one not in self.above],
        )
        if new or above or not len(self.areas):
            self._look(new, above)

    def _look(self, new: Sequence[OperatorRule], above: Sequence[_Above]) -> None:
        works = [
            _Work([at for at, one in enumerate(new) if one.crf == crf], new, crf, above, self.metric)
            for crf in dict.fromkeys([*(one.crf for one in new), *(crf for crf, _ in above)])
        ]
        facts, every, counted = [], _Blocks(new), _Blocks(above)
        for codes, target, seen in self.pictures():
            interrupt.check_stop()
            if not len(self.areas):
                facts.append(self._facts(codes, target, seen))
            planes = codes[..., :-1] if self.gated else codes
            width = len(facts[0][1]) if facts else self.empty.shape[1]
            rows, pixels = np.empty((len(new), width)), np.empty(len(above), np.int64)
            for work in works:
                work.of_image(planes, target, seen, rows, pixels)
            every.add(rows)
            counted.add(pixels)
        if facts:
            areas, empty, head, coverage, numbers = zip(*facts, strict=True)
            self.areas, self.empty, self.head = np.array(areas), np.stack(empty), np.array(head)
            self.coverage, self.numbers = np.array(coverage), list(numbers)
        self.rows |= every.taken()
        self.above |= counted.taken()

    def _facts(self, codes: Codes, target: Plane, seen: Seen) -> tuple[int, Row, int, float, Any]:
        area = codes.shape[0] * codes.shape[1]
        kind = np.int32 if target.dtype == np.int32 else np.uint8
        empty = self.metric.stats(np.zeros(codes.shape[:2], kind), target)
        head = gate_code(codes) if self.gated else 0
        return area, empty, head, np.count_nonzero(codes[..., 0] > HALF) / area, seen.numbers


class _Blocks:
    """What was found of image after image, laid out by what was asked, block by block: nothing is held twice."""

    def __init__(self, keys: Sequence[Any]) -> None:
        self.blocks: dict[Any, list[Any]] = {key: [] for key in keys}
        self.open: list[Shaped[np.ndarray, "keys *k"]] = []

    def add(self, found: Shaped[np.ndarray, "keys *k"]) -> None:
        """Take what an image has of each key."""
        self.open.append(found)
        if len(self.open) == _BLOCK:
            self.taken()

    def taken(self) -> dict[Any, list[Any]]:
        """Return the blocks of each key, the one that was begun too."""
        if self.open:
            for kept, own in zip(self.blocks.values(), np.stack(self.open, axis=1), strict=True):
                kept.append(own)
            self.open = []
        return self.blocks


class _Work:
    """What a pass does behind one random field, or behind none."""

    def __init__(
        self,
        own: Sequence[int],
        rules: Sequence[OperatorRule],
        crf: Crf | None,
        above: Sequence[_Above],
        metric: Metric,
    ) -> None:
        self.crf, self.metric = crf, metric
        tops = {code: at for at, (other, code) in enumerate(above) if other == crf}
        bottoms: dict[int, int] = {}  # threshold -> number of the rule
        by_area: dict[int, list[tuple[int, float]]] = {}  # threshold -> numbers and shares of the area
        self.others: list[tuple[int, OperatorRule]] = []
        for at in own:
            rule = rules[at]
            counts = metric.needs == "counts" and isinstance(rule.decide, Rule)
            if counts and not rule.regions:
                bottoms[rule.bottom] = at
            elif counts and [one.op for one in rule.regions] == ["component_area"]:
                by_area.setdefault(rule.bottom, []).append((at, rule.regions[0].value))
            else:
                self.others.append((at, rule))
        self.codes = np.unique([*bottoms, *tops]).astype(np.int64)
        self.table = table_of(self.codes)
        self.bottoms, self.tops = (
            (np.array(list(one.values()), np.int64), np.searchsorted(self.codes, list(one)))
            for one in (bottoms, tops)
        )
        self.by_area = [
            (bottom, np.array([at for at, _ in own]), np.array([frac for _, frac in own]))
            for bottom, own in sorted(by_area.items())
        ]

    def of_image(
        self,
        planes: Codes,
        target: Plane,
        seen: Seen,
        rows: Float[np.ndarray, "rules k"],
        pixels: Int[np.ndarray, " tops"],
    ) -> None:
        """Fill in the rows of an image, and its pixels above the top thresholds."""
        if self.crf is not None:
            assert seen.image is not None
            exclusive = any(isinstance(rule.decide, ClassRule) for _, rule in self.others)
            planes = self.crf.apply(planes, seen.image, exclusive=exclusive)
        if len(self.codes):
            judged = target if len(self.bottoms[0]) else np.zeros_like(planes[..., 0], np.uint8)
            found, above = counts_by_table(planes[..., 0], judged, self.table, len(self.codes))
            if len(self.bottoms[0]):
                rows[self.bottoms[0]] = found[self.bottoms[1]]
            pixels[self.tops[0]] = above[self.tops[1]]
        if self.by_area:
            self._areas(planes[..., 0], target, rows)
        if self.others:
            self._masks(planes, target, rows)

    def _areas(self, plane: Codes, target: Plane, rows: Float[np.ndarray, "rules k"]) -> None:
        """Find the regions at each threshold, and with them the counts without small ones."""
        truth, ignored = (np.count_nonzero(target == value) for value in (1, IGNORE))
        kinds = ((target == 1) + 2 * (target == IGNORE)).ravel()
        before, known = -1, np.zeros((0, 3), np.int64)
        for bottom, numbers, fracs in self.by_area:
            mask = plane > bottom
            count = int(np.count_nonzero(mask))
            if count != before:
                before, known = count, _by_region(mask, kinds)
            kept = known.sum(axis=1) > (fracs * mask.size)[:, None]  # (shares, regions)
            false, hit, _ = (kept.astype(np.int64) @ known).T
            rows[numbers] = np.stack([hit, false, truth - hit, mask.size - ignored - truth - false], axis=1)

    def _masks(self, planes: Codes, target: Plane, rows: Float[np.ndarray, "rules k"]) -> None:
        """Make the masks of the other rules, every step once; thresholds between which no pixel lies make one mask."""
        masks: dict[Any, Plane] = {}
        found: dict[Any, Row] = {}
        names: dict[Any, Any] = {}
        for at, rule in self.others:
            decide, name = rule.decide, names.get(rule.decide)
            if name is None:
                name = (
                    np.count_nonzero(planes[..., 0] > decide.bottom) if isinstance(decide, Rule) else decide
                )
                names[decide] = name
            if (name, ()) not in masks:
                masks[name, ()] = decide.apply(planes)
            made = masks[name, ()]
            for step in range(1, len(rule.regions) + 1):
                path = rule.regions[:step]
                if (name, path) not in masks:
                    masks[name, path] = path[-1].apply(made, classes=isinstance(decide, ClassRule))
                made = masks[name, path]
            if (name, rule.regions) not in found:
                found[name, rule.regions] = self.metric.stats(made, target)
            rows[at] = found[name, rule.regions]


@dataclass(frozen=True)
class OperatorSweep:
    """The rows of some images of a table under any rule of operators."""

    table: Table
    chosen: Int[np.ndarray, " images"]
    """Numbers of the images."""

    @property
    def empty(self) -> Float[np.ndarray, "n k"]:
        """The row of an empty prediction of each image."""
        return self.table.empty[self.chosen]

    def part(self, chosen: Any) -> "OperatorSweep":  # noqa: ANN401
        """Return the sweep of some images (an index array or a boolean one)."""
        return replace(self, chosen=self.chosen[chosen])

    def rows_of(self, rule: Any) -> Float[np.ndarray, "n k"]:  # noqa: ANN401
        """Return each image's row under a rule; its mask is made where it is new."""
        one = as_operators(rule)
        self.table.need([one])
        rows = self.table.rows_of(pixel_rule(one))[self.chosen]
        if one.split is not None:
            other = self.table.rows_of(pixel_rule(one, one.split.bottom))[self.chosen]
            rows = np.where(self._beyond(one)[:, None], other, rows)
        there = self._there(one)
        return rows if there is None else np.where(there[:, None], rows, self.empty)

    def _beyond(self, rule: OperatorRule) -> Shaped[np.ndarray, " n"]:
        """Return which images have the second threshold."""
        split = rule.split
        assert split is not None
        if rule.column is None:
            return self.table.coverage[self.chosen] > split.cut
        return np.array([self.table.numbers[at][split.of] > split.cut for at in self.chosen])

    def _there(self, rule: OperatorRule) -> Shaped[np.ndarray, " n"] | None:
        """Return which images have a mask; None: all."""
        there = None
        if rule.gate is not None:
            there = self.table.head[self.chosen] > rule.gate
        if isinstance(rule.decide, Rule) and rule.decide.min_pixels:
            areas = self.table.areas[self.chosen]
            above = np.concatenate(self.table.above[rule.crf, rule.decide.top])[self.chosen]
            enough = above >= rule.decide.least_of(areas)
            there = enough if there is None else there & enough
        return there

    def scores(self, rules: Sequence[Any], metric: Metric) -> Float[np.ndarray, " rules"]:
        """Return the score of each rule; images are measured once for each mask, not for each rule."""
        listed = [as_operators(rule) for rule in rules]
        self.table.need(listed)
        if metric.average is per_image:
            measure = metric.value
        else:
            assert metric.average is pooled
            measure = lambda rows: rows  # noqa: E731  # summed below
        empty, known, scores = measure(self.empty), {}, []

        def of(key: OperatorRule) -> Float[np.ndarray, "n *k"]:
            if key not in known:
                known[key] = measure(self.table.rows_of(key)[self.chosen])
            return known[key]

        for rule in listed:
            values = of(pixel_rule(rule))
            if rule.split is not None:
                beyond = self._beyond(rule)
                values = _where(beyond, of(pixel_rule(rule, rule.split.bottom)), values)
            if (there := self._there(rule)) is not None:
                values = _where(there, values, empty)
            scores.append(values.sum(axis=0))
        sums = np.stack(scores)
        if metric.average is per_image:
            return sums / len(self.chosen)
        return np.asarray(metric.value(sums), np.float64)

    def curve(self) -> list[tuple[float, Any]]:
        """Return each threshold that was tried without other operators as a probability, and its rule."""
        codes = sorted(
            rule.bottom
            for rule in self.table.rows
            if isinstance(rule.decide, Rule) and rule.crf is None and not rule.regions
        )
        return [(prob_of(code), Rule(code, 0, code)) for code in codes]


def _where(
    chosen: Shaped[np.ndarray, " n"], these: Float[np.ndarray, "n *k"], others: Float[np.ndarray, "n *k"]
) -> Float[np.ndarray, "n *k"]:
    return np.where(chosen if these.ndim == 1 else chosen[:, None], these, others)


def _by_region(
    mask: Shaped[np.ndarray, "h w"], kinds: Shaped[np.ndarray, " pixels"]
) -> Int[np.ndarray, "regions 3"]:
    """Count the pixels of each region of a mask by their kind."""
    labels, count = label_components(mask)
    inside = np.flatnonzero(mask)
    at = (labels.ravel()[inside].astype(np.int64) - 1) * 3 + kinds[inside]
    return np.bincount(at, minlength=3 * count).reshape(count, 3)
