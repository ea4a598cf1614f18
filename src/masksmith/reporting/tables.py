"""The tables of the report: a line for each fold, a line for each group."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from masksmith.core.arrays import Float, Int, UInt8
from masksmith.folds.table import NUM_CLASSES, FoldRow
from masksmith.metrics import Metric

SHOWN_GROUPS = 40


@dataclass(frozen=True)
class ScoredImage:
    """A held-out image that was scored: its row of the metric, and its group of the metric."""

    stats: Float[np.ndarray, " k"]
    group: str


@dataclass(frozen=True)
class TrainingLine:
    """A training: how long it took, and the best epoch by each value that was measured on its held-out images."""

    curve: str
    epochs: float
    minutes: float
    images_per_s: float
    predicted: str
    """Minutes of its predictions; empty where an older masksmith made them."""
    best: list[tuple[str, float, float, float]]
    """(name, best value, its epoch, value after the last epoch)."""


def training_lines(
    events: Sequence[Mapping[str, Any]],
    *,
    predicted: Mapping[str, Mapping[str, float]] | None = None,
    lower: Collection[str] = (),
) -> list[TrainingLine]:
    """Return a line for each curve of the log.

    Args:
        events: Of metrics.jsonl, each with the name of its ``curve``.
        predicted: Curve -> what was predicted -> seconds.
        lower: Names of the metrics that are better where they are lower; losses are in any case.
    """
    lines = []
    for curve in sorted({event["curve"] for event in events}):
        own = [event for event in events if event["curve"] == curve]
        seconds = [event["value"] for event in own if event["name"] == "seconds"]
        pace = [event["value"] for event in own if event["name"] == "images_per_s"]
        spent = (predicted or {}).get(curve, {})
        names = [name for name in ("score", "val_loss") if _values(own, name)]
        best = [_best(name, _values(own, name), lower) for name in [*names, *metrics_beside(own)]]
        lines.append(
            TrainingLine(
                curve,
                max((event["epoch"] for event in own if event["split"] == "train"), default=0),
                sum(seconds) / 60,
                float(np.median(pace)) if pace else 0.0,
                ", ".join(f"{what} {seconds / 60:.1f}" for what, seconds in spent.items()),
                best,
            )
        )
    return lines


def metrics_beside(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the metrics that were measured beside the score, in the order of the log."""
    names = [event["name"] for event in events if event["split"] == "fold"]
    return [name for name in dict.fromkeys(names) if name not in ("score", "val_loss")]


def _values(events: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [
        (event["epoch"], event["value"])
        for event in events
        if event["split"] == "fold" and event["name"] == name
    ]


def _best(
    name: str, values: Sequence[tuple[float, float]], lower: Collection[str]
) -> tuple[str, float, float, float]:
    sign = -1 if name == "val_loss" or name in lower else 1
    epoch, value = max(values, key=lambda one: (sign * one[1], -one[0]))
    return name, value, epoch, values[-1][1]


def machine_of(environment: str) -> str:
    """Return what environment.txt says of the machine; empty where an older masksmith wrote it."""
    lines = [line for line in environment.splitlines() if line.startswith("machine ")]
    return lines[0].removeprefix("machine ") if lines else ""


@dataclass(frozen=True)
class MemberLine:
    """A member of the ensemble, or the fold of the one run."""

    name: str
    weight: float
    """Share of the mean of test images."""
    what: str
    """Encoder and architecture, or the program that made its probabilities."""


@dataclass(frozen=True)
class FoldLine:
    """A fold: its size, its coverage and, if it was predicted, its score under the rule in use."""

    fold: int
    images: int
    coverage: float
    classes: list[int]
    score: float | None


@dataclass(frozen=True)
class GroupLine:
    """A group of the metric: size, coverage and score of its scored images."""

    group: str
    images: int
    coverage: float
    score: float


@dataclass(frozen=True)
class ClassLine:
    """A class of a class map, or a label: its scores over the held-out images, and what it is most often taken for."""

    name: str
    colour: str
    """As CSS."""
    share: float
    """Of the judged pixels."""
    iou: float | None
    """None where it is neither in the masks nor predicted; so are the others."""
    dice: float | None
    precision: float | None
    recall: float | None
    taken_for: str
    """The commonest wrong class and its share of the class's pixels."""


def class_lines(
    table: Int[np.ndarray, "k k"], names: Sequence[str], colours: UInt8[np.ndarray, "k 3"]
) -> list[ClassLine]:
    """Return a line for each class.

    Args:
        table: Pixels of the confusion: a row a true class, a column a predicted one.
        names: Of the classes.
        colours: Of the classes.
    """
    hits, truth, found = (one.tolist() for one in (np.diag(table), table.sum(axis=1), table.sum(axis=0)))

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    lines = []
    for at, name in enumerate(names):
        wrong = table[at].copy()
        wrong[at] = 0
        other = int(wrong.argmax())
        taken = f"{names[other]} ({wrong[other] / truth[at]:.1%})" if wrong[other] else ""
        lines.append(
            ClassLine(
                name,
                "#{:02x}{:02x}{:02x}".format(*colours[at].tolist()),
                truth[at] / max(1, sum(truth)),
                share(hits[at], truth[at] + found[at] - hits[at]),
                share(2 * hits[at], truth[at] + found[at]),
                share(hits[at], found[at]),
                share(hits[at], truth[at]),
                taken,
            )
        )
    return lines


def label_lines(
    row: Float[np.ndarray, " counts"],
    judged: Int[np.ndarray, " k"],
    names: Sequence[str],
    colours: UInt8[np.ndarray, "k 3"],
) -> list[ClassLine]:
    """Return a line for each label; labels may overlap, so none is taken for another.

    Args:
        row: Right, predicted and true pixels of each label, 3 * k counts.
        judged: Judged pixels of each label.
        names: Of the labels.
        colours: Of the labels.
    """
    hits, found, truth = np.split(row, 3)
    lines = []
    for at, name in enumerate(names):
        confused = np.array(
            [
                [judged[at] - found[at] - truth[at] + hits[at], found[at] - hits[at]],
                [truth[at] - hits[at], hits[at]],
            ]
        ).astype(np.int64)
        line = class_lines(confused, ["", name], colours[[at, at]])[1]
        lines.append(replace(line, taken_for=""))
    return lines


def fold_lines(rows: Sequence[FoldRow], scored: Mapping[str, ScoredImage], metric: Metric) -> list[FoldLine]:
    """Return a line for each fold; in repeated folds an image has one score, of its mean prediction.

    Args:
        rows: All rows of folds.csv.
        scored: Id -> scored image.
        metric: The metric of the recipe.
    """
    lines = []
    for fold in sorted({fold for row in rows for fold in row.folds}):
        inside = [row for row in rows if fold in row.folds]
        counts = np.bincount([row.coverage_class for row in inside], minlength=NUM_CLASSES).tolist()
        mean = float(np.mean([row.coverage for row in inside]))
        found = [scored[row.id] for row in inside if row.id in scored]
        lines.append(FoldLine(fold, len(inside), mean, counts, _score(found, metric) if found else None))
    return lines


def group_lines(
    rows: Sequence[FoldRow], scored: Mapping[str, ScoredImage], metric: Metric
) -> list[GroupLine]:
    """Return a line for each group of scored images, the worst first; see fold_lines for the arguments."""
    members: dict[str, list[FoldRow]] = {}
    for row in rows:
        if row.id in scored:
            members.setdefault(scored[row.id].group, []).append(row)
    lines = [
        GroupLine(
            group,
            len(inside),
            float(np.mean([row.coverage for row in inside])),
            _score([scored[row.id] for row in inside], metric),
        )
        for group, inside in members.items()
    ]
    return sorted(lines, key=lambda line: (metric.utility(line.score), line.group))


def _score(found: Sequence[ScoredImage], metric: Metric) -> float:
    groups = np.array([one.group for one in found]) if metric.by_group else None
    return metric.score(np.stack([one.stats for one in found]), groups)
