"""The charts of the report, as plotly figures."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#db2777")
_FAINT = "#6b7280"
_BINS = 40
_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "paper_bgcolor": "rgba(0,0,0,0)",  # the page is light or dark
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 56, "r": 16, "t": 36, "b": 48},
    "height": 340,
    "title_font_size": 14,
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "legend": {"orientation": "h", "y": -0.28, "x": 0},
}


def _html(figure: go.Figure) -> str:
    # plotly.js is in the page once, for all charts
    return figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
    )


def _series(
    events: list[dict[str, Any]], curve: str, split: str, name: str
) -> tuple[list[float], list[float]]:
    found = [e for e in events if (e["curve"], e["split"], e["name"]) == (curve, split, name)]
    return [e["epoch"] for e in found], [e["value"] for e in found]


def learning_curves(
    events: list[dict[str, Any]],
    split: str,
    name: str,
    title: str,
    axis: str,
    *,
    dashed: tuple[str, str, str] | None = None,
) -> str:
    """Draw a logged value over the epochs, with a line for each ``curve`` (a fold of a run) and marks at stages.

    Args:
        events: The log.
        split: Split of the value.
        name: Name of the value.
        title: Title of the chart.
        axis: Label of the y axis.
        dashed: Split, name and label of a second value, drawn as a dashed line for the curves that have it.
    """
    figure = go.Figure()
    for at, curve in enumerate(sorted({event["curve"] for event in events})):
        look = {"mode": "lines+markers", "line_color": _COLOURS[at % len(_COLOURS)]}
        epochs, values = _series(events, curve, split, name)
        figure.add_scatter(x=epochs, y=values, name=curve, **look)
        if dashed is not None and (second := _series(events, curve, *dashed[:2]))[0]:
            figure.add_scatter(
                x=second[0], y=second[1], name=f"{curve}, {dashed[2]}", line_dash="dash", **look
            )
    figure.update_layout(
        title=title, xaxis_title="epoch", yaxis_title=axis, showlegend=len(figure.data) > 1, **_LAYOUT
    )
    for epoch, stage in sorted(stage_starts(events)):
        figure.add_vline(
            x=epoch - 0.5, line_dash="dot", line_width=1, line_color=_FAINT, annotation_text=f"stage {stage + 1}",
            annotation_position="top right", annotation_font_size=11, annotation_font_color=_FAINT,
        )  # fmt: skip
    return _html(figure)


def stage_starts(events: list[dict[str, Any]]) -> set[tuple[float, int]]:
    """Return (first epoch, stage) of every stage after the first, for each curve."""
    starts = set()
    for curve in {event["curve"] for event in events}:
        epochs, stages = _series(events, curve, "train", "stage")
        pairs = list(zip(epochs, stages, strict=True))
        starts |= {pair for last, pair in pairwise(pairs) if pair[1] != last[1]}
    return {(epoch, int(stage)) for epoch, stage in starts}


def threshold_curve(
    curve: Sequence[Sequence[float]], *, metric: str, chosen: float, plain: float, higher_is_better: bool
) -> str:
    """Draw the score over a single threshold and mark the best, the plain and the chosen one."""
    ordered = sorted((float(at), float(score)) for at, score in curve)
    figure = go.Figure()
    figure.add_scatter(
        x=[p for p, _ in ordered],
        y=[s for _, s in ordered],
        mode="lines+markers" if len(ordered) < 3 else "lines",
        name=metric,
        line_color=_COLOURS[0],
    )
    _mark_best(figure, ordered, higher_is_better)
    figure.add_vline(
        x=0.5,
        line_dash="dot",
        line_color=_FAINT,
        annotation_text="plain 0.5",
        annotation_position="bottom left",
    )
    figure.add_vline(
        x=chosen,
        line_color="#059669",
        annotation_text=f"in use {chosen:.2f}",
        annotation_position="bottom right",
        annotation_yshift=16,  # above the other text
    )
    figure.add_hline(y=plain, line_dash="dot", line_color=_FAINT)
    figure.update_layout(
        title="score over the threshold",
        xaxis_title="threshold",
        yaxis_title=metric,
        showlegend=False,
        **_LAYOUT,
    )
    return _html(figure)


def _mark_best(figure: go.Figure, ordered: list[tuple[float, float]], higher_is_better: bool) -> None:
    """Mark the best point; of equal ones, that nearest to 0.5."""
    sign = 1 if higher_is_better else -1
    at, score = max(ordered, key=lambda point: (sign * point[1], -abs(point[0] - 0.5)))
    figure.add_scatter(
        x=[at], y=[score], mode="markers+text", text=[f"best {score:.4f} at {at:.2f}"], name="best",
        textposition="top left" if at > 0.5 else "top right", textfont_color="#dc2626", cliponaxis=False,
        marker={"symbol": "x", "size": 11, "color": "#dc2626"},
    )  # fmt: skip


def lr_curve(
    rates: Sequence[float], losses: Sequence[float], *, suggestion: float | None, peak: float
) -> str:
    """Return an offline page: smoothed loss over the learning rate, with the suggested rate and the recipe's."""
    figure = go.Figure()
    figure.add_scatter(x=list(rates), y=list(losses), mode="lines", name="loss", line_color=_COLOURS[0])
    if suggestion is not None:
        _mark_rate(figure, suggestion, f"suggested {suggestion:.2g}", at=1.0, colour="#dc2626", dash="solid")
    before = suggestion is not None and peak < suggestion  # keeps the text off the other line
    _mark_rate(figure, peak, f"recipe {peak:.2g}", at=0.9, colour=_FAINT, dash="dot", before=before)
    figure.update_layout(
        title="learning-rate range test",
        xaxis_title="learning rate",
        yaxis_title="training loss, smoothed",
        **_LAYOUT,
    )
    figure.update_xaxes(type="log")
    return str(figure.to_html(full_html=True, include_plotlyjs=True, config={"displayModeBar": False}))


def _mark_rate(
    figure: go.Figure, rate: float, text: str, *, at: float, colour: str, dash: str, before: bool = False
) -> None:
    """Draw a line at a rate with a text at the height ``at`` (0…1 of the figure); the axis is logarithmic."""
    figure.add_vline(x=rate, line_color=colour, line_dash=dash)
    figure.add_annotation(  # the text of add_vline would be placed at 10^rate
        x=math.log10(rate), y=at, yref="paper", text=text, showarrow=False, font_color=colour,
        xanchor="right" if before else "left", xshift=-4 if before else 4,
    )  # fmt: skip


def coverage_histogram(shares: dict[str, list[float]]) -> str:
    """Draw the share of images in each coverage class, with a bar for each set of masks."""
    labels = ["empty", *(f"≤{10 * i}%" for i in range(1, 11))]
    figure = go.Figure()
    for at, (name, values) in enumerate(shares.items()):
        classes = np.ceil(np.round(np.array(values) * 10, 9)).astype(int)
        counts = np.bincount(classes, minlength=11)[:11]
        figure.add_bar(
            x=labels,
            y=counts / max(len(values), 1),
            name=f"{name} ({len(values)})",
            marker_color=_COLOURS[at],
        )
    figure.update_layout(
        title="coverage: share of foreground pixels",
        yaxis_title="share of images",
        barmode="group",
        **_LAYOUT,
    )
    figure.update_yaxes(tickformat=".0%")
    return _html(figure)


def score_histogram(scores: list[float], *, metric: str) -> str:
    """Draw the distribution of the images' scores."""
    shares = max(scores, default=0.0) <= 1  # plotly chooses the bins of distances in pixels
    bins = {"start": -0.05, "end": 1.05, "size": 0.1} if shares else None
    figure = go.Figure(go.Histogram(x=scores, xbins=bins, marker_color=_COLOURS[0]))
    figure.update_layout(
        title="score of each image",
        xaxis_title=metric,
        yaxis_title="images",
        showlegend=False,
        bargap=0.08,
        **_LAYOUT,
    )
    return _html(figure)


def coverage_distribution(coverages: Sequence[float]) -> str:
    """Draw the distribution of the coverage of non-empty training masks; the title has the share of empty ones."""
    filled = [share for share in coverages if share > 0]
    empty_frac = 1 - len(filled) / max(len(coverages), 1)
    counts, edges = np.histogram(filled, bins=_BINS, range=(0, 1))
    figure = go.Figure()
    figure.add_bar(x=(edges[:-1] + edges[1:]) / 2, y=counts, width=1 / _BINS, marker_color=_COLOURS[0])
    figure.update_layout(
        title=f"training masks; {empty_frac:.1%} are empty",
        xaxis_title=f"foreground of the {len(filled)} others",
        yaxis_title="images",
        bargap=0.05,
        **_LAYOUT,
    )
    figure.update_xaxes(tickformat=".0%")
    return _html(figure)


def value_distribution(name: str, train: Sequence[float], test: Sequence[float]) -> str:
    """Draw the distribution of a numeric column over the training images and, if it is there, the test images."""
    sets = {"training": np.array(train), "test": np.array(test)}
    sets = {label: values for label, values in sets.items() if len(values)}
    edges = _bin_edges(np.concatenate(list(sets.values())))
    with np.errstate(over="ignore"):  # the range may exceed the largest float
        widths = np.diff(edges)
    figure = go.Figure()
    for at, (label, values) in enumerate(sets.items()):
        counts, _ = np.histogram(values, bins=edges)
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts / len(values),
            width=widths,
            name=f"{label} ({len(values)})",
            marker_color=_COLOURS[at],
            opacity=0.6,
        )
    gap = f": largest gap of the cumulative shares {cdf_gap(train, test):.3f}" if len(sets) > 1 else ""
    figure.update_layout(
        title=name + gap, xaxis_title=name, yaxis_title="share of images", barmode="overlay", **_LAYOUT
    )
    figure.update_yaxes(tickformat=".0%")
    return _html(figure)


def _bin_edges(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " edges"]:
    """Return the edges of equal bins over finite values, or of one bin if their range cannot be divided."""
    low, high = float(values.min()), float(values.max())
    with np.errstate(over="ignore", invalid="ignore"):
        edges = np.linspace(low, high, min(_BINS, math.ceil(math.sqrt(len(values)))) + 1)
        divided = bool(np.isfinite(edges).all() and (np.diff(edges) > 0).all())
    return edges if divided else np.array([np.nextafter(low, -np.inf), np.nextafter(high, np.inf)])


def cdf_gap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the largest gap between two cumulative distributions (Kolmogorov-Smirnov): 0 for equal ones, at most 1."""
    points = np.concatenate([one, other])
    shares = [np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def run_curves(
    runs: Sequence[tuple[str, list[dict[str, Any]]]], split: str, name: str, title: str, axis: str
) -> str:
    """Draw a logged value of several runs over the epochs: a colour each run, a line each fold.

    Args:
        runs: Name and events of each run, each event with its ``curve`` (the fold).
        split: Split of the value.
        name: Name of the value.
        title: Title of the chart.
        axis: Label of the y axis.
    """
    figure = go.Figure()
    for at, (run, events) in enumerate(runs):
        for number, curve in enumerate(sorted({event["curve"] for event in events})):
            epochs, values = _series(events, curve, split, name)
            if epochs:
                figure.add_scatter(
                    x=epochs, y=values, name=run, legendgroup=run, showlegend=number == 0, mode="lines+markers",
                    line_color=_COLOURS[at % len(_COLOURS)], hovertext=f"{run}, {curve}",
                )  # fmt: skip
    figure.update_layout(title=title, xaxis_title="epoch", yaxis_title=axis, showlegend=True, **_LAYOUT)
    return _html(figure)


def gain_chart(lines: Sequence[tuple[str, float, float, float]], *, reference: str, metric: str) -> str:
    """Draw the gain of each run over the reference, with its interval: (name, gain, low, high)."""
    names = [name for name, *_ in lines]
    gains, lows, highs = (np.array([line[at] for line in lines]) for at in (1, 2, 3))
    figure = go.Figure()
    figure.add_scatter(
        x=gains, y=list(range(len(lines))), mode="markers", marker={"size": 11, "color": _COLOURS[0]},
        error_x={"type": "data", "array": highs - gains, "arrayminus": gains - lows, "color": _COLOURS[0]},
    )  # fmt: skip
    figure.add_vline(x=0, line_dash="dot", line_color=_FAINT)
    height = 130 + 44 * len(lines)
    layout = _LAYOUT | {"height": height, "margin": {"l": 16, "r": 16, "t": 40, "b": 48}}
    figure.update_layout(
        title=f"gain over {reference}",
        xaxis_title=f"{metric} (right is better)",
        showlegend=False,
        **layout,
    )
    figure.update_yaxes(
        tickvals=list(range(len(lines))), ticktext=names, range=[-0.6, len(lines) - 0.4], automargin=True
    )
    return _html(figure)


class Point(NamedTuple):
    """A value of a key, what a trial with it scored, and how it ended."""

    value: Any
    score: float
    kind: str
    name: str


def value_chart(
    key: str, points: Sequence[Point], *, metric: str, log: bool = False, listed: Sequence[Any] = ()
) -> str:
    """Draw the scores of trials over their values of one key; those of a list stand beside each other in its order."""
    figure = go.Figure()
    for at, kind in enumerate(dict.fromkeys(one.kind for one in points)):
        own = [one for one in points if one.kind == kind]
        xs = [_short(one.value) if listed else one.value for one in own]
        whole = kind in ("whole", "the recipe")
        figure.add_scatter(
            x=xs, y=[one.score for one in own], text=[one.name for one in own], mode="markers", name=kind,
            marker={
                "size": 12 if kind == "the recipe" else 9, "color": _COLOURS[at % len(_COLOURS)],
                "symbol": "diamond" if kind == "the recipe" else "circle" if whole else "x",
                "opacity": 0.85 if whole else 0.5,
            },
        )  # fmt: skip
    figure.update_layout(title=key, yaxis_title=metric, **_LAYOUT)
    if listed:
        order = list(dict.fromkeys(map(_short, [*listed, *(one.value for one in points)])))
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    else:
        figure.update_xaxes(type="log" if log else "linear")
    return _html(figure)


def _short(value: Any) -> str:  # noqa: ANN401
    text = str(value)
    return text if len(text) <= 28 else f"{text[:27]}…"


def history_chart(
    scores: Sequence[tuple[int, float]], *, base: float | None, metric: str, higher_is_better: bool
) -> str:
    """Draw the scores of trials in their order, and the best one until then."""
    figure = go.Figure()
    numbers, values = [number for number, _ in scores], [score for _, score in scores]
    best = max if higher_is_better else min
    until = [best(values[: at + 1]) for at in range(len(values))]
    figure.add_scatter(
        x=numbers, y=values, mode="markers", name="trials", marker={"size": 9, "color": _COLOURS[0]}
    )
    figure.add_scatter(
        x=numbers, y=until, mode="lines", name="best until then", line={"shape": "hv", "color": _COLOURS[1]}
    )
    if base is not None:
        figure.add_hline(y=base, line_dash="dot", line_color=_FAINT, annotation_text="the recipe itself")
    figure.update_layout(title="trials in their order", xaxis_title="trial", yaxis_title=metric, **_LAYOUT)
    return _html(figure)


def sweep_chart(
    key: str,
    lines: Sequence[tuple[str, Sequence[Any], Sequence[float], Sequence[Sequence[float]]]],
    *,
    metric: str,
) -> str:
    """Draw mean scores over the values of a key: (name, values, means, scores of the seeds) of each line."""
    figure = go.Figure()
    for at, (name, values, means, seeds) in enumerate(lines):
        colour, xs = _COLOURS[at % len(_COLOURS)], [_short(value) for value in values]
        figure.add_scatter(x=xs, y=list(means), mode="lines+markers", name=name or "mean", line_color=colour)
        figure.add_scatter(
            x=[x for x, own in zip(xs, seeds, strict=True) for _ in own],
            y=[score for own in seeds for score in own],
            mode="markers", name="seeds", legendgroup=name, showlegend=False,
            marker={"size": 6, "color": colour, "opacity": 0.45},
        )  # fmt: skip
    figure.update_layout(
        title="mean over seeds, and each seed", xaxis_title=key, yaxis_title=metric,
        showlegend=len(lines) > 1, **_LAYOUT,
    )  # fmt: skip
    figure.update_xaxes(type="category")
    return _html(figure)


def reliability_chart(curves: Sequence[tuple[str, list[tuple[float, float, int]]]], *, axis: str) -> str:
    """Draw how often pixels of each predicted probability are right; the diagonal is perfect calibration."""
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": _FAINT}, name="perfect"
    )
    for at, (name, bins) in enumerate(curves):
        figure.add_scatter(
            x=[p for p, *_ in bins],
            y=[share for _, share, _ in bins],
            text=[f"{pixels:,} pixels" for *_, pixels in bins],
            mode="lines+markers",
            name=name,
            line_color=_COLOURS[at % len(_COLOURS)],
        )
    figure.update_layout(
        title="calibration", xaxis_title="predicted probability", yaxis_title=axis, showlegend=len(curves) > 1,
        **_LAYOUT,
    )  # fmt: skip
    return _html(figure)


def pixel_curves(curves: dict[str, Float[np.ndarray, " n"]], *, title: str) -> str:
    """Draw precision, recall and Dice of all held-out pixels over the threshold, which runs from 0 to 1."""
    figure = go.Figure()
    for at, (name, values) in enumerate(curves.items()):
        shown = [None if value != value else round(float(value), 5) for value in values]
        figure.add_scatter(
            x=(np.arange(len(values)) / len(values)).round(4).tolist(), y=shown, mode="lines", name=name,
            line_color=_COLOURS[at],
        )  # fmt: skip
    figure.update_layout(
        title=title, xaxis_title="threshold", yaxis_title="of all held-out pixels", showlegend=True, **_LAYOUT
    )
    figure.update_yaxes(range=[0, 1.02])
    return _html(figure)
