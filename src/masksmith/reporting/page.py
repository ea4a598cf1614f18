"""Write ``report.html``: one file that needs no network. All text from the data is escaped."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from masksmith.core.arrays import AnyMask, Image, Shaped, UInt8, judged_pixels
from masksmith.core.files import write_text
from masksmith.core.progress import error_text, gain_text
from masksmith.core.randomness import stream
from masksmith.data.catalog import BACKGROUND
from masksmith.data.store import Store
from masksmith.data.target import Target
from masksmith.folds.table import NUM_CLASSES, FoldRow
from masksmith.prediction.calibration import PixelCounts
from masksmith.prediction.store import prob_of
from masksmith.reporting import figures
from masksmith.reporting.causes import CAUSES, cause_of
from masksmith.reporting.next_steps import NextStep, best_is_late, headline, next_steps
from masksmith.reporting.pictures import (
    Picture,
    Thumbnail,
    class_colours,
    class_error,
    covered,
    error_cause,
    four_panels,
    joined,
    jpeg_uri,
    label_error,
    object_error,
    overlay,
    shrunk,
    to_rgb,
)
from masksmith.reporting.tables import (
    SHOWN_GROUPS,
    ClassLine,
    FoldLine,
    GroupLine,
    MemberLine,
    TrainingLine,
    machine_of,
    metrics_beside,
    training_lines,
)

_SHOWN = 8  # samples in each part of the check plot
_PER_CLASS = 3  # samples of each coverage class
_COLUMNS = 12  # numeric columns with a chart
_NOTED = 2  # numbers on a thumbnail
_OF_CAUSE = 16  # pictures of each cause of a loss
_AS_NET_SIDE = 192  # most pixels of a side of an image as the net gets it
_LABELS = 8  # labels with threshold curves


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
    as_net: Mapping[str, Shaped[np.ndarray, "_ _ _"]]
    """A few images by id as the net gets them: scaled, and on their canvas."""
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
    costs: Mapping[str, float]
    """Id of a held-out image -> what the score would gain if it were predicted right (see image_costs)."""
    calibration: list[tuple[str, PixelCounts]]
    """Name and pixels by probability: of the foreground, of each label, or of the most probable class."""
    members_table: list[MemberLine]
    weights: dict[str, Any] | None
    """What ``weights`` found in the run, if it was called."""
    repeat: list[tuple[str, str]]
    """(What it does, command): how to make this again."""
    ablation: list[dict[str, Any]]
    """A row a step of the last mile, as `masksmith ablate` measured it; none where it did not."""


@dataclass(frozen=True)
class Summary:
    """What the page needs of a predicted mask."""

    coverage: float
    wrong_px: int
    visible: bool
    """Whether the true or the predicted mask is not empty."""
    kind: str
    """The kind of error in words of the task; see error_cause."""
    cause: str
    """Why it loses score: a key of CAUSES."""


@dataclass(frozen=True)
class CauseLine:
    """The images that lose score for one cause."""

    cause: str
    means: str
    images: int
    cost: float
    """Sum of the images' costs."""
    share: float
    """Of the costs of all causes."""
    pictures: list[Picture]
    """The costliest images, with what each costs as its score."""
    kinds: list[tuple[str, int]]
    """Kinds of error in words of the task, and images of each."""


def summaries(facts: ReportFacts) -> dict[str, Summary]:
    """Summarise every predicted mask, with one in memory at a time."""
    found, background = {}, facts.target.classes[0] == BACKGROUND
    for name in facts.scores:
        pred, target = facts.preds[name], _truth(facts, name)
        judged = judged_pixels(target)
        truth = np.where(judged, target, 0)
        visible = bool(pred.any() or truth.any())
        if facts.target.task == "multilabel":
            wrong = int(((pred != truth) & judged).sum())
            kind = label_error(target, pred, facts.target.classes)
        elif facts.target.exclusive:
            wrong, kind = (
                int(((pred != truth) & judged).sum()),
                class_error(target, pred, facts.target.classes),
            )
        elif facts.target.task == "instances":
            wrong, kind = int(((pred > 0) != (truth > 0)).sum()), object_error(target, pred)
        else:
            wrong, kind = int((pred != truth).sum()), error_cause(target, pred)
        cause = cause_of(target, pred, facts.target, background=background)
        found[name] = Summary(float(covered(pred).mean()), wrong, visible, kind, cause)
    return found


def _truth(facts: ReportFacts, name: str) -> AnyMask:
    """Return the true mask of a training image, (h, w), or a layer each label."""
    mask = np.asarray(facts.masks[name])
    return mask if facts.target.task == "multilabel" else mask[..., 0]


def write_report(path: Path, facts: ReportFacts) -> Path:
    """Write the page and return its path."""
    per_image = summaries(facts)
    lost = causes(facts, per_image)
    trainings = training_lines(facts.events, predicted=facts.predicted, lower=facts.lower)
    html = render(
        "report.html",
        facts=facts,
        tuning=facts.tuning,
        scores=facts.tuning["scores"],
        headline=headline(facts.tuning, len(facts.scores)),
        three=three_pictures(facts, per_image),
        todo=_todo(facts, lost, trainings),
        charts={name: Markup(chart) for name, chart in _charts(facts, per_image).items()},
        distributions=[Markup(chart) for chart in _distributions(facts)],
        columns_left_out=max(0, len(facts.columns) - _COLUMNS),
        class_samples=class_samples(facts),
        as_net=[
            (name, *image.shape, jpeg_uri(shrunk(to_rgb(image), _AS_NET_SIDE)))
            for name, image in facts.as_net.items()
        ],
        worst_groups=facts.groups[:SHOWN_GROUPS],
        gallery=gallery(facts, per_image),
        causes=lost,
        thresholds=[Markup(chart) for chart in _pixel_charts(facts)],
        pace=_pace(facts.events),
        curves=[Markup(chart) for chart in _curves(facts)],
        trainings=trainings,
        machine=machine_of(facts.environment),
    )
    write_text(path, html)
    return path


def render(template: str, **values: Any) -> str:  # noqa: ANN401
    """Return a page of a template of this package; it gets the style, and plotly.js once for all charts."""
    environment = Environment(
        loader=PackageLoader("masksmith", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    style = Markup((resources.files("masksmith") / "reporting" / "report.css").read_text())
    page = environment.get_template(template)
    return page.render(
        style=style, plotly=Markup(get_plotlyjs()), error_text=error_text, gain_text=gain_text, **values
    )


def three_pictures(facts: ReportFacts, per_image: Mapping[str, Summary]) -> list[tuple[str, Picture]]:
    """Return a good, a typical and the costliest image as strips; fewer where there are fewer images."""
    ordered = _ordered(facts, per_image)
    if not ordered:
        return []
    costliest = max(ordered, key=lambda name: (facts.costs[name], name))
    rest = [name for name in ordered if name != costliest]
    shown = [("costliest", costliest)]
    if len(rest) > 1:
        shown.insert(0, ("typical", rest[(len(rest) - 1) // 2]))
    if rest:
        shown.insert(0, ("good", rest[-max(1, len(rest) // 10)]))
    return [(what, _picture(facts, name, per_image[name], across=True)) for what, name in shown]


def _todo(facts: ReportFacts, lost: Sequence[CauseLine], trainings: Sequence[TrainingLine]) -> list[NextStep]:
    best = [(epoch, line.epochs) for line in trainings for name, _, epoch, _ in line.best if name == "score"]
    return next_steps(
        facts.tuning,
        interim=facts.interim,
        folds=[(line.fold, line.score is not None) for line in facts.folds],
        causes=[(line.cause, line.cost) for line in lost],
        late=best_is_late(best),
        calibration_error=max((counts.error for _, counts in facts.calibration), default=0.0),
    )


def _pixel_charts(facts: ReportFacts) -> list[str]:
    """Return the calibration, and precision, recall and Dice over the threshold (each label apart)."""
    if not facts.calibration:
        return []
    exclusive = facts.target.exclusive
    axis = "share that has this class" if exclusive else "share that is foreground"
    bins = [(name, counts.reliability()) for name, counts in facts.calibration[:_LABELS]]
    charts = [figures.reliability_chart(bins, axis=axis)]
    if not exclusive:
        for name, counts in facts.calibration[:_LABELS]:
            charts.append(figures.pixel_curves(counts.curves(), title=f"pixels over the threshold: {name}"))
    return charts


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
        chosen=prob_of(tuning["rule"].get("decide", tuning["rule"])["bottom"]),
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
    return Thumbnail(row.id, row.coverage_class, row.coverage, ", ".join(numbers), jpeg_uri(shown))


def _bands(facts: ReportFacts, name: str) -> Image:
    """Return the bands of an image to show."""
    image = np.asarray(facts.images[name])
    return image if facts.view is None else image[..., facts.view]


def _ordered(facts: ReportFacts, per_image: Mapping[str, Summary]) -> list[str]:
    """Return the images with a true or a predicted mask, the worst score first."""
    visible = [name for name, one in per_image.items() if one.visible]
    sign = 1 if facts.tuning["higher_is_better"] else -1
    return sorted(visible, key=lambda name: (sign * facts.scores[name], -per_image[name].wrong_px, name))


def gallery(facts: ReportFacts, per_image: Mapping[str, Summary]) -> dict[str, list[Picture]]:
    """Return random samples, and the median and best ones with a true or a predicted mask."""
    ordered, every = _ordered(facts, per_image), sorted(facts.scores)
    middle = max(0, (len(ordered) - _SHOWN) // 2)
    parts = {
        "random": [every[i] for i in stream(1).permutation(len(every))[:_SHOWN]],
        "median": ordered[middle : middle + _SHOWN],
        "best": ordered[::-1][:_SHOWN],
    }
    return {part: [_picture(facts, name, per_image[name]) for name in names] for part, names in parts.items()}


def _picture(facts: ReportFacts, name: str, summary: Summary, *, across: bool = False) -> Picture:
    panels = four_panels(
        _bands(facts, name),
        _truth(facts, name),
        np.asarray(facts.preds[name]),
        _colours(facts),
    )
    return Picture(
        name, facts.scores[name], jpeg_uri(joined(panels, across=across)), summary.kind, facts.costs[name]
    )


def causes(facts: ReportFacts, per_image: Mapping[str, Summary]) -> list[CauseLine]:
    """Return a line for each cause of a loss, the costliest first, with its costliest images."""
    of: dict[str, list[str]] = {}
    for name in facts.scores:
        of.setdefault(per_image[name].cause, []).append(name)
    total = sum(facts.costs[name] for name in facts.scores) or 1.0
    lines = []
    for cause, names in of.items():
        worst = sorted(names, key=lambda name: (-facts.costs[name], -per_image[name].wrong_px, name))
        cost = sum(facts.costs[name] for name in names)
        shown = [] if cause == "all right" else worst[:_OF_CAUSE]
        lines.append(
            CauseLine(
                cause,
                CAUSES[cause],
                len(names),
                cost,
                cost / total,
                [_picture(facts, name, per_image[name]) for name in shown],
                Counter(per_image[name].kind for name in names).most_common(4),
            )
        )
    return sorted(lines, key=lambda line: (-line.cost, line.cause))


def _pace(events: list[dict[str, Any]]) -> dict[str, float]:
    seconds = [event["value"] for event in events if event["name"] == "seconds"]
    pace = [event["value"] for event in events if event["name"] == "images_per_s"]
    return {"minutes": sum(seconds) / 60, "images_per_s": float(np.median(pace)) if pace else 0.0}
