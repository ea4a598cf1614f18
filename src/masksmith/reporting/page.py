"""Write ``report.html``: one file that needs no network. All text from the data is escaped."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from masksmith.core.arrays import AnyMask, Image, UInt8, judged_pixels
from masksmith.core.files import write_text
from masksmith.core.randomness import stream
from masksmith.data.store import Store
from masksmith.data.target import Target
from masksmith.folds.table import NUM_CLASSES, FoldRow
from masksmith.prediction.store import prob_of
from masksmith.reporting import figures
from masksmith.reporting.pictures import (
    Picture,
    Thumbnail,
    class_colours,
    class_error,
    covered,
    data_uri,
    error_cause,
    four_rows,
    label_error,
    object_error,
    overlay,
)
from masksmith.reporting.tables import (
    SHOWN_GROUPS,
    ClassLine,
    FoldLine,
    GroupLine,
    machine_of,
    metrics_beside,
    training_lines,
)

_SHOWN = 8  # samples in each part of the check plot
_PER_CLASS = 3  # samples of each coverage class
_COLUMNS = 12  # numeric columns with a chart
_NOTED = 2  # numbers on a thumbnail


@dataclass(frozen=True)
class ReportFacts:
    """Everything the page shows."""

    title: str
    run: str
    members: list[str]
    check: dict[str, Any] | None
    recipe_yaml: str
    environment: str
    folds: list[FoldLine]
    groups: list[GroupLine]
    """Lines of the metric's groups; empty if the recipe has no groups."""
    rows: list[FoldRow]
    """All training images with their coverage."""
    columns: dict[str, tuple[list[float], list[float]]]
    """Numeric column of a side table -> values of the training images, values of the test images."""
    values: dict[str, dict[str, float]]
    """Training id -> column -> number."""
    tuning: dict[str, Any]
    interim: bool
    hidden: str
    noise: str
    plan: dict[str, Any] | None
    budget: str
    events: list[dict[str, Any]]
    coverage_test: list[float]
    scores: dict[str, float]
    images: Store
    view: tuple[int, int, int] | None
    """Bands shown as red, green and blue; None: the first ones."""
    masks: Store
    target: Target
    classes: list[ClassLine]
    """A line for each class of a class map or each label; empty for other tasks."""
    preds: Mapping[str, AnyMask]
    """Id of a held-out image -> predicted mask, computed on access."""
    labels: list[str]
    """A line for each member that was trained on pseudo-labels."""
    predicted: dict[str, dict[str, float]]
    """Curve -> "held-out" and "test" -> seconds that their prediction took."""
    lower: frozenset[str]
    """Metrics beside the score that are better where they are lower."""
    ablation: list[dict[str, Any]]
    """A row a step of the last mile, as `masksmith ablate` measured it; none where it did not."""


@dataclass(frozen=True)
class Summary:
    """What the page needs of a predicted mask."""

    coverage: float
    wrong_px: int
    visible: bool
    """Whether the true or the predicted mask is not empty."""
    cause: str
    """The kind of error; see error_cause."""


def summaries(facts: ReportFacts) -> dict[str, Summary]:
    """Summarise every predicted mask, with one in memory at a time."""
    found = {}
    for name in facts.scores:
        pred, target = facts.preds[name], _truth(facts, name)
        judged = judged_pixels(target)
        truth = np.where(judged, target, 0)
        visible = bool(pred.any() or truth.any())
        if facts.target.task == "multilabel":
            wrong = int(((pred != truth) & judged).sum())
            cause = label_error(target, pred, facts.target.classes)
        elif facts.target.exclusive:
            wrong, cause = (
                int(((pred != truth) & judged).sum()),
                class_error(target, pred, facts.target.classes),
            )
        elif facts.target.task == "instances":
            wrong, cause = int(((pred > 0) != (truth > 0)).sum()), object_error(target, pred)
        else:
            wrong, cause = int((pred != truth).sum()), error_cause(target, pred)
        found[name] = Summary(float(covered(pred).mean()), wrong, visible, cause)
    return found


def _truth(facts: ReportFacts, name: str) -> AnyMask:
    """Return the true mask of a training image, (h, w), or a layer each label."""
    mask = np.asarray(facts.masks[name])
    return mask if facts.target.task == "multilabel" else mask[..., 0]


def write_report(path: Path, facts: ReportFacts) -> Path:
    """Write the page and return its path."""
    per_image = summaries(facts)
    environment = Environment(
        loader=PackageLoader("masksmith", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    html = environment.get_template("report.html").render(
        facts=facts,
        tuning=facts.tuning,
        scores=facts.tuning["scores"],
        style=Markup((resources.files("masksmith") / "reporting" / "report.css").read_text()),
        plotly=Markup(get_plotlyjs()),
        charts={name: Markup(chart) for name, chart in _charts(facts, per_image).items()},
        distributions=[Markup(chart) for chart in _distributions(facts)],
        columns_left_out=max(0, len(facts.columns) - _COLUMNS),
        class_samples=class_samples(facts),
        worst_groups=facts.groups[:SHOWN_GROUPS],
        gallery=gallery(facts, per_image),
        causes=causes(facts, per_image),
        pace=_pace(facts.events),
        curves=[Markup(chart) for chart in _curves(facts)],
        trainings=training_lines(facts.events, predicted=facts.predicted, lower=facts.lower),
        machine=machine_of(facts.environment),
    )
    write_text(path, html)
    return path


def _charts(facts: ReportFacts, per_image: Mapping[str, Summary]) -> dict[str, str]:
    tuning, metric = facts.tuning, facts.tuning["metric"]
    coverage = {"training, true": [row.coverage for row in facts.rows]}
    coverage["out of fold, predicted"] = [one.coverage for one in per_image.values()]
    if facts.coverage_test:
        coverage["test, predicted"] = facts.coverage_test
    return {
        "threshold": _threshold_chart(tuning),
        "coverage": figures.coverage_histogram(coverage),
        "scores": figures.score_histogram(list(facts.scores.values()), metric=metric),
    }


def _curves(facts: ReportFacts) -> list[str]:
    """Return the learning curves: score, loss and rate, and each metric that was measured beside the score.

    Training batches are a full line, held-out images a dashed one; a metric of held-out images alone is a full line.
    """
    events, tuning = facts.events, facts.tuning
    held_out = "held-out images"
    charts = [
        figures.learning_curves(
            events,
            "fold",
            "score",
            "held-out score (averaged weights, no TTA)",
            tuning["metric"] if tuning["higher_is_better"] else f"−{tuning['metric']}",
        ),
        figures.learning_curves(
            events, "train", "loss", "training loss", "loss", dashed=("fold", "val_loss", held_out)
        ),
        figures.learning_curves(events, "train", "lr", "learning rate", "rate"),
    ]
    for name in metrics_beside(events):
        if any(event["split"] == "train" and event["name"] == name for event in events):
            title = f"{name} of training batches and held-out images"
            chart = figures.learning_curves(
                events, "train", name, title, name, dashed=("fold", name, held_out)
            )
        else:
            chart = figures.learning_curves(events, "fold", name, f"{name} of held-out images", name)
        charts.append(chart)
    return charts


def _threshold_chart(tuning: dict[str, Any]) -> str:
    """Draw the score over the threshold; nothing where the rule has none."""
    if not tuning["curve"]:
        return ""
    return figures.threshold_curve(
        tuning["curve"],
        metric=tuning["metric"],
        chosen=prob_of(tuning["rule"]["bottom"]),
        plain=tuning["plain"],
        higher_is_better=tuning["higher_is_better"],
    )


def _colours(facts: ReportFacts) -> UInt8[np.ndarray, "k 3"] | None:
    return class_colours(facts.target) if len(facts.target.classes) > 1 else None


def _distributions(facts: ReportFacts) -> list[str]:
    """Return the charts of the training masks' coverage and of each numeric column."""
    columns = list(facts.columns.items())[:_COLUMNS]
    return [
        figures.coverage_distribution([row.coverage for row in facts.rows]),
        *(figures.value_distribution(name, train, test) for name, (train, test) in columns),
    ]


def class_samples(facts: ReportFacts) -> list[tuple[int, int, list[Thumbnail]]]:
    """Return (coverage class, number of images, random samples) for each class with images."""
    found = []
    for kind in range(NUM_CLASSES):
        rows = [row for row in facts.rows if row.coverage_class == kind]
        if rows:
            drawn = stream(0, kind).permutation(len(rows))[:_PER_CLASS]
            found.append((kind, len(rows), [_thumbnail(facts, rows[i]) for i in drawn]))
    return found


def _thumbnail(facts: ReportFacts, row: FoldRow) -> Thumbnail:
    shown = overlay(_bands(facts, row.id), _truth(facts, row.id), _colours(facts))
    numbers = [f"{name} {value:g}" for name, value in facts.values.get(row.id, {}).items()][:_NOTED]
    return Thumbnail(row.id, row.coverage_class, row.coverage, ", ".join(numbers), data_uri(shown))


def _bands(facts: ReportFacts, name: str) -> Image:
    """Return the bands of an image to show."""
    image = np.asarray(facts.images[name])
    return image if facts.view is None else image[..., facts.view]


def gallery(facts: ReportFacts, per_image: Mapping[str, Summary]) -> dict[str, list[Picture]]:
    """Return random samples, and the worst, median and best ones with a true or a predicted mask."""
    visible = [name for name, one in per_image.items() if one.visible]
    sign = 1 if facts.tuning["higher_is_better"] else -1
    ordered = sorted(visible, key=lambda name: (sign * facts.scores[name], -per_image[name].wrong_px, name))
    middle = max(0, (len(ordered) - _SHOWN) // 2)
    every = sorted(facts.scores)
    parts = {
        "random": [every[i] for i in stream(1).permutation(len(every))[:_SHOWN]],
        "worst": ordered[:_SHOWN],
        "median": ordered[middle : middle + _SHOWN],
        "best": ordered[::-1][:_SHOWN],
    }
    return {part: [_picture(facts, name, per_image[name]) for name in names] for part, names in parts.items()}


def _picture(facts: ReportFacts, name: str, summary: Summary) -> Picture:
    panels = four_rows(
        _bands(facts, name),
        _truth(facts, name),
        np.asarray(facts.preds[name]),
        _colours(facts),
    )
    return Picture(name, facts.scores[name], data_uri(panels), summary.cause)


def causes(facts: ReportFacts, per_image: Mapping[str, Summary]) -> list[tuple[str, int, float]]:
    """Return (kind of error, number of images, what they cost the mean score), the costliest first."""
    best, sign = (1.0, 1) if facts.tuning["higher_is_better"] else (0.0, -1)
    images: Counter[str] = Counter()
    lost: dict[str, float] = {}
    for name, score in facts.scores.items():
        cause = per_image[name].cause
        images[cause] += 1
        lost[cause] = lost.get(cause, 0.0) + sign * (best - score) / len(facts.scores)
    return sorted(((cause, images[cause], lost[cause]) for cause in images), key=lambda row: -row[2])


def _pace(events: list[dict[str, Any]]) -> dict[str, float]:
    seconds = [event["value"] for event in events if event["name"] == "seconds"]
    pace = [event["value"] for event in events if event["name"] == "images_per_s"]
    return {"minutes": sum(seconds) / 60, "images_per_s": float(np.median(pace)) if pace else 0.0}
