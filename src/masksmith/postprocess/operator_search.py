"""What a list of operators lets the search try: all combinations, or those that Optuna draws where they are many."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np

from masksmith.core.arrays import Float
from masksmith.core.errors import InputError
from masksmith.metrics.protocol import Groups, Metric
from masksmith.postprocess.classes import ClassRule, rule_of_power
from masksmith.postprocess.config import (
    REGIONS,
    AreaOperator,
    ArgmaxOperator,
    CrfOperator,
    GateOperator,
    HolesOperator,
    LargestOperator,
    SplitOperator,
    ThresholdOperator,
    TripletOperator,
    TuningConfig,
)
from masksmith.postprocess.crf import Crf
from masksmith.postprocess.labels import LabelSweep
from masksmith.postprocess.objects import ObjectRule
from masksmith.postprocess.operator_rule import OperatorRule, Split, as_operators, simplest
from masksmith.postprocess.operator_sweep import OperatorSweep, Pictures, Table
from masksmith.postprocess.operators import Rule
from masksmith.postprocess.regions import Regions
from masksmith.prediction.store import code_of

_MOST_RULES = 100_000
"""Combinations that are scored one by one: about 20 µs each for 4,000 images."""
_MOST_KEPT = 2**12
"""Masks of each image whose rows are kept: half a GiB for 4,000 images."""

Values = dict[str, Any]
"""``operator.parameter`` -> its value."""


@dataclass(frozen=True)
class Space:
    """All combinations of a list's candidates."""

    config: TuningConfig
    axes: dict[str, list[Any]]
    """``operator.parameter`` -> candidates."""
    median_area: int
    """Of the images: pixels are counted for it, and are the same share of another."""
    shares: Float[np.ndarray, " classes"] | None = None
    """Of the classes of a class map."""

    def __len__(self) -> int:
        """Return the number of combinations."""
        return prod(map(len, self.axes.values()))

    def masks(self, *, counts: bool) -> int:
        """Return how many masks they take of an image; ``counts``: for a metric of counts of pixels."""
        sizes = {name: len(values) for name, values in self.axes.items() if name not in _BY_IMAGE}
        regions = [name for name in sizes if name.partition(".")[0] in REGIONS]
        at = set(self.axes.get("threshold_by.at", ())) | set(self.axes.get("threshold_by.above", ()))
        if at:
            del sizes["threshold_by.above"]
            sizes["threshold_by.at"] = len(at)
        if counts and "argmax.power" not in sizes and regions in ([], ["component_area.frac"]):
            left_out = (
                ["component_area.frac"] if regions else [name for name in sizes if name.endswith(".at")]
            )
            sizes = {name: size for name, size in sizes.items() if name not in left_out}
        return prod(sizes.values())

    def rules(self) -> Iterator[Any]:
        """Yield all of them."""
        for values in product(*self.axes.values()):
            yield self.rule(dict(zip(self.axes, values, strict=True)))

    def rule(self, values: Values) -> Any:  # noqa: ANN401
        """Return the rule of a combination."""
        made = OperatorRule(PLAIN_DECIDE)
        for one in self.config.operators or ():
            own = {
                name.partition(".")[2]: value
                for name, value in values.items()
                if name.startswith(f"{one.op}.")
            }
            made = self._with(made, one, own)
        return simplest(made)

    def _with(self, made: OperatorRule, one: Any, own: Values) -> OperatorRule:  # noqa: ANN401
        if isinstance(one, CrfOperator):
            return replace(made, crf=Crf(**own) if own["weight"] else None)
        if isinstance(one, GateOperator):
            return replace(made, gate=code_of(own["at"]) if own["at"] else None)
        if isinstance(one, AreaOperator | HolesOperator | LargestOperator):
            (value,) = own.values()
            return replace(made, regions=(*made.regions, Regions(one.op, float(value)))) if value else made
        if isinstance(one, ArgmaxOperator):
            assert self.shares is not None
            plain = ClassRule((1.0,) * len(self.shares))
            return replace(made, decide=rule_of_power(self.shares, own["power"]) if own["power"] else plain)
        if isinstance(one, ThresholdOperator | SplitOperator):
            bottom = code_of(own["at"])
            made = replace(made, decide=Rule(bottom, 0, bottom))
            if isinstance(one, SplitOperator) and own["above"] != own["at"]:
                made = replace(made, split=Split(one.of, own["cut"], code_of(own["above"])))
            return made
        if isinstance(one, TripletOperator):
            bottom, least = code_of(own["at"]), round(own["area"] * self.median_area)
            top = max(code_of(own["top"]), bottom) if least else bottom
            return replace(
                made, decide=Rule(top, least, bottom, of_pixels=self.median_area if least else None)
            )
        return replace(made, decide=ObjectRule(code_of(own["foreground"]), code_of(own["seed"])))


PLAIN_DECIDE = Rule(code_of(0.5), 0, code_of(0.5))
_BY_IMAGE = ("triplet.top", "triplet.area", "gate.at", "threshold_by.cut")


def space_of(
    config: TuningConfig, *, median_area: int, shares: Float[np.ndarray, " classes"] | None = None
) -> Space:
    """Return the combinations of the operators of a config."""
    given = {"at": config.bottom_thresholds, "top": config.top_thresholds, "area": config.min_area_fracs}
    axes: dict[str, list[Any]] = {}
    for one in config.operators or ():
        for name, value in one:
            if name == "above" and value is None:
                value = axes[f"{one.op}.at"]
            if name not in ("op", "of"):
                axes[f"{one.op}.{name}"] = list(dict.fromkeys(given[name] if value is None else value))
    return Space(config, axes, median_area, shares)


@dataclass(frozen=True)
class DrawnSweep(OperatorSweep):
    """A sweep of more combinations than can be tried; Optuna draws some."""

    space: Space

    def choose(self, rules: Sequence[Any], metric: Metric, groups: Groups | None = None) -> tuple[Any, float]:
        """Return the best of the plain rule and of those that Optuna draws (TPE), and its score.

        Each part of a nested score draws its own, by what is known of that part.

        Raises:
            StoppedError: Stopped.
        """
        optuna = import_optuna()
        tried: dict[Any, float] = {rules[0]: metric.utility(metric.score(self.rows_of(rules[0]), groups))}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))

        def useful(trial: Any) -> float:  # noqa: ANN401
            values = {
                name: own[trial.suggest_int(name, 0, len(own) - 1)] for name, own in self.space.axes.items()
            }
            rule = self.space.rule(values)
            if rule not in tried:
                tried[rule] = metric.utility(metric.score(self.rows_of(rule), groups))
            return tried[rule]

        study.optimize(useful, n_trials=self.space.config.most_masks)
        best = max(tried, key=lambda rule: round(tried[rule], 12))  # of two as good the earlier
        return best, metric.score(self.rows_of(best), groups)


_DRAWN = "tuning.operators: more combinations than tuning.most_masks are drawn by Optuna"
_FEWER = "give fewer candidates, or raise tuning.most_masks"


def import_optuna(why: str = _DRAWN, instead: str = _FEWER) -> Any:  # noqa: ANN401
    """Import Optuna.

    Args:
        why: What needs it, for the message.
        instead: What may be done without it.

    Raises:
        InputError: It is not installed.
    """
    import importlib

    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise InputError(
            f"{why}, which cannot be imported ({error}); run `pip install masksmith[search]`, or {instead}"
        ) from error


def make_operator_sweep(
    pictures: Pictures,
    metric: Metric,
    config: TuningConfig,
    *,
    plain: Any,  # noqa: ANN401
    gated: bool = False,
    shares: Float[np.ndarray, " classes"] | None = None,
) -> tuple[list[Any], OperatorSweep]:
    """Return the rules to try, the plain one first, and the sweep of all images.

    Where Optuna is to draw the rules, only the plain one and a first one are returned, and the sweep has a search of
    its own (``choose``).

    Args:
        pictures: At least one image.
        metric: Of their masks.
        config: With operators.
        plain: The rule that the others are compared with.
        gated: Whether the last plane of the codes is that of the image head.
        shares: Of the classes of a class map.

    Raises:
        InputError: Optuna is needed, and is not installed.
        StoppedError: Stopped.
    """
    first = space_of(config, median_area=10**6, shares=shares)  # the masks do not depend on it
    drawn = first.masks(counts=metric.needs == "counts") > config.most_masks
    drawn |= len(first) > _MOST_RULES or first.masks(counts=False) > _MOST_KEPT
    if drawn:
        import_optuna()
    table = Table(pictures, metric, gated=gated)
    table.need([] if drawn else [as_operators(rule) for rule in (plain, *first.rules())])
    space = replace(first, median_area=round(float(np.median(table.areas))))
    every = np.arange(len(table.areas))
    if not drawn:
        return list(dict.fromkeys([plain, *space.rules()])), OperatorSweep(table, every)
    one = space.rule({name: values[0] for name, values in space.axes.items()})
    return list(dict.fromkeys([plain, one])), DrawnSweep(table, every, space)


def num_rules(sweep: Any, rules: Sequence[Any]) -> int:  # noqa: ANN401
    """Return how many rules a search tries, of one label."""
    first = sweep.planes[0] if isinstance(sweep, LabelSweep) else sweep
    return first.space.config.most_masks if isinstance(first, DrawnSweep) else len(rules)


def searched(sweep: Any, rules: Sequence[Any]) -> str:  # noqa: ANN401
    """Return in words what was searched; "" where it was no list of operators."""
    first = sweep.planes[0] if isinstance(sweep, LabelSweep) else sweep
    if not isinstance(first, OperatorSweep):
        return ""
    each = " of each label" if first is not sweep else ""
    if isinstance(first, DrawnSweep):
        count = first.space.config.most_masks
        return f"operators: {count} drawn of {len(first.space):,} combinations{each}"
    return f"operators: {len(rules):,} combinations{each}"
