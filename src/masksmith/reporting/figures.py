"""The charts of the report, as plotly figures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#db2777")
_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "margin": {"l": 56, "r": 16, "t": 36, "b": 48},
    "height": 340,
    "title_font_size": 14,
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "legend": {"orientation": "h", "y": -0.28, "x": 0},
}


def _html(figure: go.Figure) -> str:
    # the page holds plotly.js once, above all charts
    return figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
    )


def _series(
    events: list[dict[str, Any]], curve: str, split: str, name: str
) -> tuple[list[float], list[float]]:
    found = [e for e in events if (e["curve"], e["split"], e["name"]) == (curve, split, name)]
    return [e["epoch"] for e in found], [e["value"] for e in found]


def learning_curves(events: list[dict[str, Any]], split: str, name: str, title: str, axis: str) -> str:
    """Return one line for each ``curve`` of the events (a fold of a run) over the epochs."""
    figure = go.Figure()
    for at, curve in enumerate(sorted({event["curve"] for event in events})):
        epochs, values = _series(events, curve, split, name)
        colour = _COLOURS[at % len(_COLOURS)]
        figure.add_scatter(x=epochs, y=values, mode="lines+markers", name=curve, line_color=colour)
    figure.update_layout(
        title=title, xaxis_title="epoch", yaxis_title=axis, showlegend=len(figure.data) > 1, **_LAYOUT
    )
    return _html(figure)


def threshold_curve(curve: Sequence[Sequence[float]], *, metric: str, chosen: float, plain: float) -> str:
    """Return the score of a single threshold, with the plain and the chosen one marked."""
    ordered = sorted((float(at), float(score)) for at, score in curve)
    figure = go.Figure()
    figure.add_scatter(
        x=[p for p, _ in ordered],
        y=[s for _, s in ordered],
        mode="lines",
        name=metric,
        line_color=_COLOURS[0],
    )
    figure.add_vline(x=0.5, line_dash="dot", line_color="#6b7280", annotation_text="plain 0.5")
    figure.add_vline(
        x=chosen, line_color="#dc2626", annotation_text="bottom threshold", annotation_position="bottom right"
    )
    figure.add_hline(y=plain, line_dash="dot", line_color="#6b7280")
    figure.update_layout(
        title="score of one threshold for all pixels",
        xaxis_title="threshold",
        yaxis_title=metric,
        showlegend=False,
        **_LAYOUT,
    )
    return _html(figure)


def lr_curve(
    rates: Sequence[float], losses: Sequence[float], *, suggestion: float | None, peak: float
) -> str:
    """Return a whole page that needs no network: smoothed loss over the rate, the suggested and the recipe's one."""
    figure = go.Figure()
    figure.add_scatter(x=list(rates), y=list(losses), mode="lines", name="loss", line_color=_COLOURS[0])
    if suggestion is not None:
        _mark_rate(figure, suggestion, f"suggested {suggestion:.2g}", at=1.0, colour="#dc2626", dash="solid")
    before = suggestion is not None and peak < suggestion  # its text must not lie on the other line
    _mark_rate(figure, peak, f"recipe {peak:.2g}", at=0.9, colour="#6b7280", dash="dot", before=before)
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
    """Draw a line at a rate, with its text at a height (0…1 of the figure); the axis is logarithmic."""
    figure.add_vline(x=rate, line_color=colour, line_dash=dash)
    figure.add_annotation(  # a line's own text would stand at 10^rate
        x=math.log10(rate), y=at, yref="paper", text=text, showarrow=False, font_color=colour,
        xanchor="right" if before else "left", xshift=-4 if before else 4,
    )  # fmt: skip


def coverage_histogram(shares: dict[str, list[float]]) -> str:
    """Return the share of images in each coverage class, a bar for each set of masks."""
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
        title="coverage: foreground of an image",
        yaxis_title="share of images",
        barmode="group",
        **_LAYOUT,
    )
    figure.update_yaxes(tickformat=".0%")
    return _html(figure)


def score_histogram(scores: list[float], *, metric: str) -> str:
    """Return how the images' own scores are spread."""
    shares = max(scores, default=0.0) <= 1  # a distance in pixels gets bins of its own
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
