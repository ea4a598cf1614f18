"""Write ``compare.html``: runs beside each other on the images that all of them hold out. One file, no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from masksmith.core.arrays import AnyMask, Image, Shaped, UInt8
from masksmith.core.files import write_text
from masksmith.core.progress import gain_text, is_interval
from masksmith.data.store import Store
from masksmith.data.target import Target
from masksmith.reporting import figures
from masksmith.reporting.page import render
from masksmith.reporting.pictures import class_colours, four_panels, joined, jpeg_uri
from masksmith.reporting.tables import metrics_beside

_CHANGED = 6  # pictures of each direction


@dataclass(frozen=True)
class ComparedRun:
    """A run: its score on the shared images, and its gain over the first run."""

    name: str
    score: float
    low: float
    """80% interval of the score; so is ``high``."""
    high: float
    gain: float
    """Above 0 is for the better; 0 for the first run. So are the bounds of its 80% interval."""
    gain_low: float
    gain_high: float
    better: int
    """Images with a better score than under the first run."""
    worse: int
    scores: Mapping[str, float]
    """Id -> score of the image."""

    @property
    def verdict(self) -> str:
        """What the interval of the gain says."""
        certain = is_interval(self.gain_low, self.gain_high)
        if certain and self.gain_low > 0:
            return "better"
        return "worse" if certain and self.gain_high < 0 else "no certain difference"


@dataclass(frozen=True)
class CompareFacts:
    """Everything the page shows; the first run is the one that others are compared with."""

    title: str
    metric: str
    describes: str
    higher_is_better: bool
    images: int
    groups: int
    held_out: dict[str, int]
    """Run -> images that it holds out."""
    runs: list[ComparedRun]
    differences: list[tuple[str, list[str]]]
    """(Key of the recipe, its value in each run), of keys whose values differ."""
    left_out: list[str]
    """Runs that cannot be compared, and why."""
    events: list[list[dict[str, Any]]]
    """Of each run."""
    masks: Mapping[str, Mapping[str, AnyMask]]
    """Run -> id -> predicted mask, made on access."""
    pixels: Store
    view: tuple[int, int, int] | None
    truths: Store
    target: Target


@dataclass(frozen=True)
class Change:
    """An image whose score changed: ``src`` shows image, truth and the difference under both runs."""

    id: str
    before: float
    after: float
    src: str


def write_compare(path: Path, facts: CompareFacts) -> Path:
    """Write the page and return its path."""
    first, others = facts.runs[0], facts.runs[1:]
    bars = [(run.name, run.gain, run.gain_low, run.gain_high) for run in reversed(others)]
    html = render(
        "compare.html",
        facts=facts,
        first=first,
        others=others,
        sentences=[sentence(facts, run) for run in others],
        gains=Markup(figures.gain_chart(bars, reference=first.name, metric=facts.metric)),
        curves=[Markup(chart) for chart in _curves(facts)],
        changes={run.name: _changes(facts, run) for run in others},
    )
    write_text(path, html)
    return path


def sentence(facts: CompareFacts, run: ComparedRun) -> str:
    """Say how a run compares with the first one."""
    first = facts.runs[0].name
    interval = gain_text(run.gain, run.gain_low, run.gain_high)
    if is_interval(run.gain_low, run.gain_high):
        interval = f"{run.gain:+.4f}, 80% interval {run.gain_low:+.4f} to {run.gain_high:+.4f}"
    if run.verdict == "no certain difference":
        return f"{run.name} and {first} cannot be told apart on these images ({interval})."
    return f"{run.name} is {run.verdict} than {first} ({interval})."


def _curves(facts: CompareFacts) -> list[str]:
    named = [(run.name, events) for run, events in zip(facts.runs, facts.events, strict=True) if events]
    if not named:
        return []
    axis = facts.metric if facts.higher_is_better else f"−{facts.metric}"
    charts = [
        figures.run_curves(named, "fold", "score", "held-out score (averaged weights, no TTA)", axis),
        figures.run_curves(named, "train", "loss", "training loss", "loss"),
        figures.run_curves(named, "train", "lr", "learning rate", "rate"),
    ]
    every = [event for _, events in named for event in events]
    names = (["val_loss"] if any(event["name"] == "val_loss" for event in every) else []) + metrics_beside(
        every
    )
    return charts + [
        figures.run_curves(named, "fold", name, f"{name} of held-out images", name) for name in names
    ]


def _changes(facts: CompareFacts, run: ComparedRun) -> dict[str, list[Change]]:
    """Return the images that changed most, for the better and for the worse."""
    first, sign = facts.runs[0], 1 if facts.higher_is_better else -1
    gain = {name: sign * (run.scores[name] - first.scores[name]) for name in first.scores}
    ordered = sorted(gain, key=lambda name: (-gain[name], name))
    return {
        "better": [_change(facts, run, name) for name in ordered[:_CHANGED] if gain[name] > 0],
        "worse": [_change(facts, run, name) for name in ordered[::-1][:_CHANGED] if gain[name] < 0],
    }


def _change(facts: CompareFacts, run: ComparedRun, name: str) -> Change:
    first = facts.runs[0]
    image: Image = np.asarray(facts.pixels[name])
    image = image if facts.view is None else image[..., facts.view]
    stored: Shaped[np.ndarray, "h w c"] = np.asarray(facts.truths[name])
    truth = stored if facts.target.task == "multilabel" else stored[..., 0]
    colours: UInt8[np.ndarray, "k 3"] | None = (
        class_colours(facts.target) if len(facts.target.classes) > 1 else None
    )
    before = four_panels(image, truth, np.asarray(facts.masks[first.name][name]), colours)
    after = four_panels(image, truth, np.asarray(facts.masks[run.name][name]), colours)
    shown = joined([before[0], before[1], before[3], after[3]], across=True)
    return Change(name, first.scores[name], run.scores[name], jpeg_uri(shown))


def compare_json(facts: CompareFacts) -> dict[str, Any]:
    """Return what ``--json`` prints: plain dicts, lists and numbers."""
    runs: Sequence[ComparedRun] = facts.runs
    return {
        "format": 1,
        "metric": facts.metric,
        "higher_is_better": facts.higher_is_better,
        "images": facts.images,
        "groups": facts.groups,
        "reference": runs[0].name,
        "runs": [
            {
                "name": run.name,
                "held_out": facts.held_out[run.name],
                "score": run.score,
                "interval_80": [run.low, run.high],
                "gain": run.gain,
                "gain_interval_80": [run.gain_low, run.gain_high],
                "verdict": "reference" if run is runs[0] else run.verdict,
                "images_better": run.better,
                "images_worse": run.worse,
                "scores": dict(run.scores),
            }
            for run in runs
        ],
        "differences": {
            key: {run.name: value for run, value in zip(runs, values, strict=True)}
            for key, values in facts.differences
        },
        "left_out": facts.left_out,
    }
