"""Draw the figures of docs/systems: nets and schemes, the numbers of a project's run, and pictures of generated images.

    python tools/system_figures.py [--project PROJECT] [--pictures EXAMPLE] [--run PROJECT …]

PROJECT is any project folder with a report (for the pages: a run on TGS Salt); only its numbers are drawn, never its
pixels. EXAMPLE is a project folder made on `masksmith example`: its images are drawn, so it must be no other data. Of a
project of ``--run``, which may still be in training, the plots of its source are drawn, named after the recipe.
Without an option the figures that need it stay as they are.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from run_figures import run_figures, threshold
from system_drawings import DRAWINGS

from masksmith.project.folder import Project
from masksmith.project.members import read_members
from masksmith.reporting import ReportFacts
from masksmith.reporting.drawing import BLUE, FAINT, GREEN, ORANGE, SERIES, Chart, Drawing
from masksmith.reporting.figures import cdf_gap, stage_starts
from masksmith.reporting.page import class_samples
from masksmith.reporting.pictures import four_panels, joined, overlay
from masksmith.steps.report import report_facts

OUT = Path(__file__).parents[1] / "docs" / "systems" / "figures"
LARGEST = 60_000  # bytes of a file
_W = 760
_SHOWN = 6  # samples of the check plot


# --- of a run's numbers -------------------------------------------------------------------------------------


def coverage(facts: ReportFacts) -> Drawing:
    """Return how the coverage of the masks is spread."""
    shares = np.array([row.coverage for row in facts.rows])
    filled = shares[shares > 0]
    drawing = Drawing(_W, 290, f"Mask coverage: {np.mean(shares == 0):.1%} of {len(shares)} masks are empty")
    counts, edges = np.histogram(100 * filled, bins=40, range=(0, 100))
    chart = Chart(
        drawing, (70, 60, 660, 170), x_range=(0, 100), y_range=(0, counts.max() * 1.1), y_label="images",
        x_label=f"foreground of an image, % ({len(filled)} masks that are not empty)",
    )  # fmt: skip
    chart.bars(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist())
    return drawing


def coverage_classes(facts: ReportFacts) -> Drawing:
    """Return the images of each coverage class, and which coverages a class holds."""
    drawing = Drawing(_W, 300, "Eleven coverage classes: 0 is exactly empty, class i up to 10·i %")
    counts = np.bincount([row.coverage_class for row in facts.rows], minlength=11)
    chart = Chart(
        drawing, (70, 74, 290, 160), x_range=(-0.5, 10.5), y_range=(0, counts.max() * 1.15), title="images of a class",
        x_label="class",
    )  # fmt: skip
    chart.bars((np.arange(11) - 0.4).tolist(), (np.arange(11) + 0.4).tolist(), counts.tolist())
    ranges = Chart(
        drawing, (440, 74, 290, 160), x_range=(-0.5, 10.5), y_range=(0, 1), title="coverages in a class",
        x_label="class", percent=True,
    )  # fmt: skip
    for kind in range(11):
        inside = [row.coverage for row in facts.rows if row.coverage_class == kind]
        if inside:
            ranges.line([kind, kind], [min(inside), max(inside) + 0.005], colour=GREEN, width=12)
    return drawing


def column(facts: ReportFacts) -> Drawing | None:
    """Return the first column of numbers, training against test; None where there is none."""
    if not facts.columns:
        return None
    name, (train, test) = next(iter(facts.columns.items()))
    sets = {f"training ({len(train)})": np.array(train), f"test ({len(test)})": np.array(test)}
    sets = {label: values for label, values in sets.items() if len(values)}
    gap = f": largest gap of the cumulative shares {cdf_gap(train, test):.3f}" if test else ""
    drawing = Drawing(_W, 290, f"{name}, training against test{gap}")
    edges = np.histogram_bin_edges([*train, *test], bins=30)
    shares = [np.histogram(values, edges)[0] / len(values) for values in sets.values()]
    chart = Chart(
        drawing, (70, 66, 660, 164), x_range=(edges[0], edges[-1]), y_range=(0, max(map(np.max, shares)) * 1.1),
        x_label=name, y_label="share of images",
    )  # fmt: skip
    for share, colour in zip(shares, (BLUE, ORANGE), strict=False):
        chart.bars(edges[:-1].tolist(), edges[1:].tolist(), share.tolist(), colour=colour, opacity=0.5)
    chart.key(list(sets))
    return drawing


def learning(facts: ReportFacts) -> Drawing:
    """Return loss, score and learning rate over the epochs, a line for each fold."""
    drawing = Drawing(_W, 270, "Learning curves: averaged weights, judged on images that were held out")
    panels = (
        ("train", "loss", "training loss"),
        ("fold", "score", facts.tuning["metric"]),
        ("train", "lr", "rate"),
    )
    curves = sorted({event["curve"] for event in facts.events})
    for at, (split, name, title) in enumerate(panels):
        lines = [_series(facts, curve, split, name) for curve in curves]
        xs, ys = ([value for line in lines for value in line[axis]] for axis in (0, 1))
        chart = Chart(
            drawing, (70 + 240 * at, 74, 180, 132), x_range=(min(xs), max(*xs, min(xs) + 1)), x_label="epoch",
            y_range=(min(0, *ys), max(ys) * 1.1), title=title,
        )  # fmt: skip
        for line, colour in zip(lines, _repeated(len(lines)), strict=True):
            chart.line(*line, colour=colour)
        for epoch, stage in sorted(stage_starts(facts.events)):
            chart.upright(epoch - 0.5, str(stage + 1))
    for at, (curve, colour) in enumerate(zip(curves, SERIES, strict=False)):
        drawing.text(70 + 90 * at, 260, curve, colour=colour, weight="600")
    return drawing


def _repeated(count: int) -> list[str]:
    return [SERIES[at % len(SERIES)] for at in range(count)]


def _series(facts: ReportFacts, curve: str, split: str, name: str) -> tuple[list[float], list[float]]:
    found = [
        event
        for event in facts.events
        if (event["curve"], event["split"], event["name"]) == (curve, split, name)
    ]
    return [event["epoch"] for event in found], [event["value"] for event in found]


# --- of generated images --------------------------------------------------------------------------------------


def check_plot(facts: ReportFacts) -> Drawing:
    """Return image, truth, prediction and difference of held-out samples, from the worst to the best."""
    mixed = [name for name, pred in facts.preds.items() if pred.any() and (facts.masks[name] == 1).any()]
    names = sorted(mixed, key=lambda name: (facts.scores[name], name))
    shown = [names[int(at)] for at in np.linspace(0, len(names) - 1, min(_SHOWN, len(names)))]
    drawing = Drawing(_W, 488, "Check plot: green is falsely found, red is missed")
    for row, words in enumerate(("image", "truth", "prediction", "difference")):
        drawing.text(20, 92 + 105 * row, words, size=11, colour=FAINT)
    for at, name in enumerate(shown):
        truth = np.asarray(facts.masks[name][..., 0])
        sheet = joined(four_panels(np.asarray(facts.images[name]), truth, facts.preds[name]))
        drawing.picture(90 + 110 * at, 42, 104, _plain(sheet), quality=45)
        drawing.text(
            142 + 110 * at, 478, f"score {facts.scores[name]:.2f}", size=11, colour=FAINT, anchor="middle"
        )
    return drawing


def class_grid(facts: ReportFacts) -> Drawing:
    """Return one sample of each coverage class with its class, coverage and first number."""
    drawing = Drawing(_W, 230, "Samples by coverage class, the true mask in green")
    for at, (kind, count, thumbnails) in enumerate(class_samples(facts)):
        one = thumbnails[0]
        x, y = 20 + 122 * (at % 6), 46 + 88 * (at // 6)
        pixels = overlay(np.asarray(facts.images[one.id]), np.asarray(facts.masks[one.id][..., 0]))
        drawing.picture(x, y, 64, _plain(pixels), quality=70)
        noted = (f"class {kind}", f"{one.coverage:.1%}", one.numbers, f"of {count}")
        for row, words in enumerate(noted):
            drawing.text(x + 68, y + 12 + 16 * row, words, size=10, weight="400" if row else "600")
    return drawing


def _plain(rgb: np.ndarray) -> np.ndarray:
    """Return a picture without the finest noise, which a JPEG spends its bytes on."""
    return cv2.GaussianBlur(rgb, (3, 3), 0.6)


NUMBERS: dict[str, Callable[[ReportFacts], Drawing | None]] = {
    "coverage": coverage,
    "coverage-classes": coverage_classes,
    "column": column,
    "learning-curves": learning,
    "threshold": lambda facts: threshold(facts.tuning),
}
PICTURES: dict[str, Callable[[ReportFacts], Drawing | None]] = {
    "check-plot": check_plot,
    "class-grid": class_grid,
}


def facts_of(folder: Path) -> ReportFacts:
    """Return what the report of a project shows."""
    project = Project.open(folder)
    return report_facts(project, read_members(project, None))


def draw(figures: dict[str, Drawing | None], out: Path) -> list[Path]:
    """Write drawings and return their files.

    Raises:
        ValueError: A file is larger than it may be.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, drawing in figures.items():
        if drawing is None:
            continue
        path = out / f"{name}.svg"
        drawing.write(path)
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path}: {path.stat().st_size} bytes; expected at most {LARGEST}")
        written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--project", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--run", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    figures: dict[str, Drawing | None] = {name: make() for name, make in DRAWINGS.items()}
    for folder, table in ((options.project, NUMBERS), (options.pictures, PICTURES)):
        if folder is not None:
            facts = facts_of(folder)
            figures |= {name: make(facts) for name, make in table.items()}
    for folder in options.run:
        figures |= run_figures(folder)
    for path in draw(figures, options.out):
        print(f"{path} {path.stat().st_size}")


if __name__ == "__main__":
    main()
