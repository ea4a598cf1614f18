"""The search for an ensemble of stored predictions: kinds of means, pairs, greedy and simplex weights.

Each way to choose is a function of some images' rows, so that it can be repeated on the other folds and judged on
images that it has not seen. The rows of an image under a mix are made once, whoever asks for them.

Sources:
    Greedy selection with replacement: Caruana et al. 2004, https://doi.org/10.1145/1015330.1015432.
    Weights on the simplex by least squares: Breiman 1996, Stacked regressions, https://doi.org/10.1007/BF00117832.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from masksmith.core.arrays import Codes
from masksmith.core.interrupt import check_stop
from masksmith.metrics.protocol import Groups, Metric
from masksmith.postprocess.rules import AnyRule
from masksmith.prediction.means import KINDS, MEAN, Blend, Ranks

_PAIRED = 8  # of so many best members all pairs are tried
_LEAST_SHARE = 0.02  # simplex weights below it are not worth a member
_GREEDY_ROUNDS = 3  # times the number of members: how often greedy selection adds one


@dataclass(frozen=True)
class Mix:
    """A mean of members; frozen, so that its rows can be found again."""

    kind: str
    weights: tuple[float, ...]
    """Of each member, 0 or above; empty: what the project predicts with now."""

    @classmethod
    def of(cls, weights: Sequence[float], kind: str = MEAN) -> "Mix":
        """Return a mix; whole weights are divided by what they have in common, and one member is its own mean."""
        whole = all(float(weight).is_integer() for weight in weights)
        common = math.gcd(*(int(weight) for weight in weights)) if whole else 1
        shares = tuple(float(weight / (common or 1)) for weight in weights)
        return cls(kind if np.count_nonzero(shares) > 1 else MEAN, shares)

    @property
    def members(self) -> list[int]:
        """Which members take part."""
        return [at for at, weight in enumerate(self.weights) if weight > 0]


PRESENT = Mix(MEAN, ())
Fits = Callable[[Mix], bool]


@dataclass
class MixRows:
    """The metric's row of every image under every mix that was asked for.

    Attributes:
        names: Ids of the images.
        codes: Id -> the codes (h, w, k) of each member, then those of the present ensemble.
        target: Id -> true mask.
        metric: Of the rows.
        rule: How codes become a mask.
        exclusive: Whether planes are classes that exclude each other.
        ranks: A table of ranks of each member.
    """

    names: Sequence[str]
    codes: Callable[[str], Sequence[Codes]]
    target: Callable[[str], Any]
    metric: Metric
    rule: AnyRule
    exclusive: bool
    ranks: Sequence[Ranks]
    known: dict[Mix, Float[np.ndarray, "n k"]] = field(default_factory=dict)

    def fill(self, mixes: Iterable[Mix]) -> None:
        """Make the rows of mixes that are not known yet, in one pass over the images.

        Raises:
            StoppedError: A stop was asked for; what was known before stays.
        """
        wanted = [mix for mix in dict.fromkeys(mixes) if mix not in self.known]
        if not wanted:
            return
        rows = []
        for name in self.names:
            check_stop()
            each, target = self.codes(name), self.target(name)
            rows.append(
                [self.metric.stats(self.rule.apply(self._mixed(mix, each)), target) for mix in wanted]
            )
        self.known |= dict(zip(wanted, np.moveaxis(np.asarray(rows), 1, 0), strict=True))

    def _mixed(self, mix: Mix, each: Sequence[Codes]) -> Codes:
        if not mix.weights:
            return each[-1]
        used, weights = mix.members, [mix.weights[at] for at in mix.members]
        if len(used) == 1:
            return each[used[0]]
        return self.blend(mix)([each[at] for at in used], weights)

    def blend(self, mix: Mix, names: Sequence[str] | None = None) -> Blend:
        """Return the mean of a mix; ``names`` are those of all members."""
        names = names or [str(at) for at in range(len(self.ranks))]
        ranks = [(names[at], self.ranks[at]) for at in mix.members] if mix.kind == "rank" else []
        return Blend(mix.kind, self.exclusive, tuple(ranks))


@dataclass(frozen=True)
class MixSweep:
    """The rows of some images under any mix, made when they are asked for (an AnySweep)."""

    source: MixRows
    chosen: Int[np.ndarray, " n"]
    """Positions of the images."""

    @property
    def empty(self) -> Float[np.ndarray, "n k"]:
        """The row of an empty prediction, which no mix is judged by: zeros."""
        return np.zeros((len(self.chosen), 1))

    def rows_of(self, rule: Mix) -> Float[np.ndarray, "n k"]:
        """Return each image's row under a mix."""
        self.source.fill([rule])
        return self.source.known[rule][self.chosen]

    def part(self, chosen: Any) -> "MixSweep":  # noqa: ANN401
        """Return the sweep of some images (an index array or a boolean one)."""
        return MixSweep(self.source, self.chosen[chosen])

    def curve(self) -> list[tuple[float, Mix]]:
        """Return nothing: mixes lie on no curve."""
        return []


@dataclass(frozen=True)
class Moments:
    """What least squares need of every image: sums over its judged pixels and planes, p the members', y the truth.

    ``pp[i]`` holds the sums of p·pᵀ, ``py[i]`` of p·y, ``p[i]`` of p, ``y[i]`` of y (0 or 1, so of y² too), ``n[i]``
    their number.
    """

    pp: Float[np.ndarray, "i m m"]
    py: Float[np.ndarray, "i m"]
    p: Float[np.ndarray, "i m"]
    y: Float[np.ndarray, " i"]
    n: Float[np.ndarray, " i"]

    @classmethod
    def of(cls, each: Iterable[tuple[Float[np.ndarray, "m px"], Float[np.ndarray, " px"]]]) -> "Moments":
        """Sum probabilities (m, pixels) and truth (pixels,) of each image."""
        sums = [(p @ p.T, p @ y, p.sum(axis=1), y.sum(), y.size) for p, y in each]
        return cls(*(np.asarray(one, np.float64) for one in zip(*sums, strict=True)))

    def error_correlation(self) -> Float[np.ndarray, "m m"]:
        """Return how the members' errors p - y go together, -1…1: two that are alike gain little by their mean."""
        cross, total = self.py.sum(0), self.y.sum()
        products = (self.pp.sum(0) - cross[:, None] - cross[None] + total) / self.n.sum()
        means = (self.p.sum(0) - total) / self.n.sum()
        spread = products - np.outer(means, means)
        scale = np.sqrt(np.maximum(np.diag(spread), 1e-15))
        return np.asarray((spread / np.outer(scale, scale)).clip(-1, 1), np.float64)

    def simplex(self, chosen: Int[np.ndarray, " n"], fits: Fits) -> Mix | None:
        """Return the weights, 0 or above with the sum 1, whose mean has the least squared error on some images.

        Members of small weights are dropped until the mix fits; None where no mix does.
        """
        from scipy.optimize import nnls  # type: ignore[import-untyped]

        pp, py = self.pp[chosen].sum(0), self.py[chosen].sum(0)
        scale, used = pp.diagonal().max() or 1.0, np.arange(len(py))
        while len(used):
            block = pp[np.ix_(used, used)] / scale + 1e-9 * np.eye(len(used))
            low = np.linalg.cholesky(block)
            total = 1e3 * np.ones((1, len(used)))  # the row that makes the sum 1
            aim = np.append(np.linalg.solve(low, py[used] / scale), 1e3)
            found, _ = nnls(np.vstack([low.T, total]), aim)
            shares = np.round(found / max(found.sum(), 1e-12), 2)
            weights = np.zeros(len(py))
            weights[used] = shares
            mix = Mix.of(weights.tolist())
            small = shares < _LEAST_SHARE
            if mix.members and not small.any() and fits(mix):
                return mix
            drop = small if small.any() and not small.all() else np.arange(len(used)) == shares.argmin()
            used = used[~drop]
        return None


def best_mix(
    sweep: MixSweep, mixes: Sequence[Mix], metric: Metric, groups: Groups | None
) -> tuple[Mix, float]:
    """Return the mix of the best score and that score; equal scores go to the earlier."""
    sweep.source.fill(mixes)
    scores = [metric.score(sweep.rows_of(mix), groups) for mix in mixes]
    best = int(np.argmax(np.round([metric.utility(score) for score in scores], 12)))
    return mixes[best], scores[best]


def _singles(num: int, fits: Fits) -> list[Mix]:
    return [mix for mix in (Mix.of(np.eye(num)[at].tolist()) for at in range(num)) if fits(mix)]


def _ranked(sweep: MixSweep, singles: Sequence[Mix], metric: Metric, groups: Groups | None) -> list[int]:
    sweep.source.fill(singles)
    utility = [metric.utility(metric.score(sweep.rows_of(mix), groups)) for mix in singles]
    return [singles[at].members[0] for at in np.argsort(-np.round(utility, 12), kind="stable")]


def _equal(members: Sequence[int], num: int, kind: str = MEAN) -> Mix:
    return Mix.of([int(at in members) for at in range(num)], kind)


def _greedy(sweep: MixSweep, start: Mix, num: int, metric: Metric, groups: Groups | None, fits: Fits) -> Mix:
    """Add the member that raises the score most, again and again, until none does; members may be taken repeatedly."""
    counts = np.asarray(start.weights)
    best, score = best_mix(sweep, [start], metric, groups)
    for _ in range(_GREEDY_ROUNDS * num):
        trials = [counts + np.eye(num)[at] for at in range(num)]
        fitting = [trial for trial in trials if fits(Mix.of(trial.tolist()))]
        mixes = [Mix.of(trial.tolist()) for trial in fitting]
        if not mixes:
            break
        mix, found = best_mix(sweep, mixes, metric, groups)
        if metric.utility(found) <= metric.utility(score) + 1e-12:
            break
        best, score, counts = mix, found, fitting[mixes.index(mix)]
    return best


def ways_to_mix(
    sweep: MixSweep,
    metric: Metric,
    groups: Groups | None,
    *,
    moments: Moments,
    kinds: Sequence[str] = KINDS,
    fits: Fits = lambda _: True,
) -> Mapping[str, Mix]:
    """Return what each way to choose takes, by these images alone: name of the way -> mix.

    Args:
        sweep: Of the images that may be looked at.
        metric: What is to be made best.
        groups: Of the images, for a metric of groups.
        moments: Of all images.
        kinds: Of means with equal weights, of as many members as fit, the best first.
        fits: Whether a mix is not too expensive.
    """
    num = len(sweep.source.ranks)
    singles = _singles(num, fits)
    ranked = _ranked(sweep, singles, metric, groups)
    ways = {"best single": _equal(ranked[:1], num)}
    many = [ranked[:count] for count in range(len(ranked), 1, -1) if fits(_equal(ranked[:count], num))]
    pairs = [_equal(pair, num) for pair in combinations(sorted(ranked[:_PAIRED]), 2)]
    pairs = [pair for pair in pairs if fits(pair)]
    sweep.source.fill([*pairs, *(_equal(many[0], num, kind) for kind in kinds if many)])
    if pairs:
        ways["best pair"], _ = best_mix(sweep, pairs, metric, groups)
    if many:
        ways |= {f"equal, {kind}": _equal(many[0], num, kind) for kind in kinds}
    ways["greedy"] = _greedy(sweep, ways["best single"], num, metric, groups, fits)
    simplex = moments.simplex(sweep.chosen, fits)
    return ways if simplex is None else ways | {"simplex": simplex}
