"""The plots that the sources show of a training, drawn of a run of ours as far as it came, from its log alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masksmith.core.files import read_json
from masksmith.prediction.store import prob_of
from masksmith.project.folder import Project
from masksmith.project.runs import Run
from masksmith.reporting.drawing import BLUE, GREEN, RED, Chart, Drawing
from masksmith.training.events import read_events

_W, _COLUMNS, _ROW = 760, 3, 226
_NOT_DRAWN = {"lr", "stage"}
Line = tuple[list[int], list[float]]


def run_figures(folder: Path) -> dict[str, Drawing]:
    """Return the curves of a project's run and, where it was searched, its threshold, named after the recipe.

    Raises:
        ValueError: No epoch is trained yet.
    """
    project = Project.open(folder)
    run = project.run()
    name = run.recipe.name
    figures = {f"curves-{name}": curves(run)}
    tuning = read_json(project.tuning_json) if project.tuning_json.exists() else {"curve": []}
    if len(tuning["curve"]) > 1:
        figures[f"threshold-{name}"] = threshold(tuning, f"{name}: threshold against score, out of fold")
    return figures


def curves(run: Run) -> Drawing:
    """Return a panel for each logged value of the first trained fold: training images blue, held-out ones green.

    Raises:
        ValueError: No epoch is trained yet.
    """
    fold = run.recipe.folds.trained[0]
    events = [event for event in read_events(run.events(fold)) if event["fold"] == fold]
    lines: dict[str, dict[str, Line]] = {}
    for event in events:
        name = event["name"].removeprefix("val_")
        if event["split"] in ("train", "fold") and name not in _NOT_DRAWN:
            epochs, values = lines.setdefault(name, {}).setdefault(event["split"], ([], []))
            epochs.append(event["epoch"])
            values.append(event["value"])
    if not lines:
        raise ValueError(f"{run.path}: no epoch is trained yet; expected a run with at least one")
    asked = sum(stage.epochs for stage in run.recipe.training.stages)
    done = max(lines["loss"]["train"][0])
    order = sorted(lines, key=lambda name: (name != "loss", name == "score", name))
    rows = -(-len(order) // _COLUMNS)
    drawing = Drawing(
        _W, 48 + _ROW * rows, f"{run.recipe.name}: {done} of {asked} epochs, fold {events[0]['fold']}"
    )
    drawing.text(_W - 170, 28, "training", colour=BLUE, weight="600")
    drawing.text(_W - 100, 28, "held out", colour=GREEN, weight="600")
    for at, name in enumerate(order):
        title = run.recipe.metric if name == "score" else name
        frame = (62 + 240 * (at % _COLUMNS), 76 + _ROW * (at // _COLUMNS), 180, 132)
        _panel(drawing, frame, lines[name], done, title)
    return drawing


def _panel(
    drawing: Drawing, frame: tuple[float, float, float, float], lines: dict[str, Line], last: int, title: str
) -> None:
    ys = [value for _, values in lines.values() for value in values]
    margin = 0.08 * (max(ys) - min(ys)) or 0.05
    chart = Chart(
        drawing, frame, x_range=(1, max(last, 2)), y_range=(min(ys) - margin, max(ys) + margin), title=title,
        x_label="epoch",
    )  # fmt: skip
    for split, colour in (("train", BLUE), ("fold", GREEN)):
        if split in lines:
            chart.line(*lines[split], colour=colour)
            drawing.dots([chart.at(*point) for point in zip(*lines[split], strict=True)], colour=colour)


def threshold(tuning: Mapping[str, Any], title: str = "Threshold against score, out of fold") -> Drawing:
    """Return the score of a threshold, with the best, the plain and the used one."""
    points = sorted((float(at), float(score)) for at, score in tuning["curve"])
    xs, ys = ([point[axis] for point in points] for axis in (0, 1))
    sign = 1 if tuning["higher_is_better"] else -1
    best = max(points, key=lambda point: (sign * point[1], -abs(point[0] - 0.5)))
    span = max(ys) - min(ys) or 0.1
    drawing = Drawing(_W, 300, title)
    chart = Chart(
        drawing, (80, 60, 650, 180), x_range=(xs[0], max(xs[-1], xs[0] + 0.1)), x_label="threshold",
        y_range=(min(ys) - 0.08 * span, max(ys) + 0.15 * span), y_label=tuning["metric"],
    )  # fmt: skip
    chart.upright(0.5, "plain 0.50", row=9)
    in_use = prob_of(tuning["rule"]["bottom"])
    chart.upright(in_use, f"in use {in_use:.2f}", colour=GREEN, row=11)
    chart.line(xs, ys)
    x, y = chart.at(*best)
    drawing.cross(x, y)
    fits = best[0] >= 0.5 and x < _W - 180  # beside the plain line, and inside the drawing
    side = ("start", 10) if fits else ("end", -10)
    words = f"best {best[1]:.4f} at {best[0]:.2f}"
    drawing.text(x + side[1], y - 8, words, colour=RED, weight="600", anchor=side[0])
    return drawing
