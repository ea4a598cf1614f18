"""The charts of the page of a data set, as plotly figures in colours that colour-blind people can tell apart.

Colours: Okabe & Ito 2008, https://jfly.uni-koeln.de/color/, and cividis (Nuñez et al. 2018).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from masksmith.core.arrays import Float, Int, Shaped

BLUE, ORANGE = "#0072b2", "#d55e00"
SETS = {"training": BLUE, "test": ORANGE}
_BANDS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_INK, _FAINT = "#111827", "#e5e7eb"
_BINS = 40
_MOST_POINTS = 2000
_MOST_CLASSES = 40
_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "paper_bgcolor": "rgba(0,0,0,0)",  # the page is light or dark
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 64, "r": 16, "t": 44, "b": 52},
    "height": 320,
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": _INK},
    "legend": {"orientation": "h", "y": -0.24, "x": 0, "yanchor": "top"},
    "barmode": "overlay",
}
_LEGEND_LINE = 19  # pixels
_SHARE = {"tickformat": ".0~%"}


def _html(figure: go.Figure, *, title: str, x: str, y: str, **layout: Any) -> str:  # noqa: ANN401
    beneath = max(0, len(figure.data) - 2)  # a narrow screen has a line of the legend for each
    figure.update_layout(
        **_LAYOUT
        | {
            "height": _LAYOUT["height"] + _LEGEND_LINE * beneath,
            "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 15}},
            "showlegend": len(figure.data) > 1,
        }
        | layout
    )
    figure.update_xaxes(title_text=x, title_font_size=13, automargin=True)
    figure.update_yaxes(title_text=y, title_font_size=13, automargin=True)
    return figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
    )


def short(text: str, most: int = 24) -> str:
    """Return a name that fits beside an axis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def histograms(
    sets: Mapping[str, Shaped[np.ndarray, " n"]],
    *,
    title: str,
    x: str,
    share: bool = False,
) -> str:
    """Draw the distribution of one number over each set, as shares of the set; ``share``: the number is one, 0…1."""
    kept = {name: np.asarray(values, np.float64) for name, values in sets.items() if len(values)}
    every = np.concatenate(list(kept.values()))
    low, high = (0.0, 1.0) if share else (float(every.min()), float(every.max()))
    edges = np.linspace(low, high, _BINS + 1)
    if high - low <= _BINS and not (every % 1).any():  # a bin for each whole number
        edges = np.arange(low - 0.5, high + 1)
    if not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
        edges = np.array([low - 0.5, low + 0.5])
    figure = go.Figure()
    for name, values in kept.items():
        counts, _ = np.histogram(values, bins=edges)
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts / len(values),
            width=np.diff(edges),
            name=f"{name} ({len(values):,})",
            marker_color=SETS.get(name, BLUE),
            opacity=0.65 if len(kept) > 1 else 1,
        )
    figure.update_yaxes(**_SHARE)
    if share:
        figure.update_xaxes(**_SHARE)
    return _html(figure, title=title, x=x, y="share of images")


def band_curves(bands: Mapping[str, Sequence[Shaped[np.ndarray, " p"]]], *, title: str, unit: str) -> str:
    """Draw the distribution of each band's values as a line, of the test images a dotted one."""
    every = np.concatenate([one for samples in bands.values() for one in samples if len(one)])
    low, high = (float(one) for one in np.percentile(every, [0.1, 99.9]))
    edges = np.linspace(low, high if high > low else low + 1, 65)
    figure = go.Figure()
    for name, samples in bands.items():
        for at, values in enumerate(samples):
            counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)
            figure.add_scatter(
                x=(edges[:-1] + edges[1:]) / 2,
                y=counts / max(1, len(values)),
                mode="lines",
                name=f"{name}, band {at}" if len(samples) > 1 else name,
                line={
                    "color": _BANDS[at % len(_BANDS)] if len(samples) > 1 else SETS.get(name, BLUE),
                    "dash": "dot" if name == "test" else "solid",
                },
            )
    figure.update_yaxes(**_SHARE)
    return _html(figure, title=title, x=unit, y="share of pixels")


def coverage_classes(counts: Sequence[int]) -> str:
    """Draw the number of images of each coverage class 0 … 10."""
    labels = ["empty", *(str(10 * at) for at in range(1, 11))]
    figure = go.Figure(
        go.Bar(
            x=labels,
            y=list(counts),
            text=list(counts),
            textposition="outside",
            textangle=0,
            marker_color=BLUE,
            cliponaxis=False,
        )
    )
    figure.update_xaxes(type="category")  # else names of numbers would be places on an axis
    return _html(figure, title="coverage classes", x="foreground of the image in %, at most", y="images")


def class_against_coverage(coverage: Sequence[float], classes: Sequence[int]) -> str:
    """Draw each image's coverage class over its coverage; of many images some in even steps."""
    order = np.argsort(np.asarray(coverage), kind="stable")
    order = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), _MOST_POINTS)).astype(int))]
    figure = go.Figure(
        go.Scatter(
            x=np.asarray(coverage)[order],
            y=np.asarray(classes)[order],
            mode="markers",
            marker={"color": BLUE, "size": 7, "opacity": 0.35},
        )
    )
    figure.update_xaxes(**_SHARE, range=[-0.03, 1.03])
    figure.update_yaxes(dtick=1, range=[-0.6, 10.6])
    return _html(
        figure, title="coverage class against coverage", x="foreground of the image", y="coverage class"
    )


def mean_mask(grid: Float[np.ndarray, "64 64"], *, title: str) -> str:
    """Draw where the masks lie: the share of images that have foreground at each place."""
    figure = go.Figure(
        go.Heatmap(
            z=np.round(grid, 4),
            x0=0.5 / len(grid),
            dx=1 / len(grid),
            y0=0.5 / len(grid),
            dy=1 / len(grid),
            colorscale="Cividis",
            colorbar={
                "tickformat": ".1~%",
                "title": {"text": "share of images", "side": "right"},
                "thickness": 10,
            },
        )
    )
    figure.update_xaxes(**_SHARE, range=[0, 1], dtick=0.25)
    figure.update_yaxes(**_SHARE, range=[1, 0], dtick=0.25)
    return _html(figure, title=title, x="from left to right", y="from top to bottom")


def class_bars(names: Sequence[str], shares: Sequence[float], images: Sequence[float]) -> str:
    """Draw each class's share of the pixels and of the images, on a logarithmic axis."""
    figure = go.Figure()
    labels = [f"{short(name)}" for name in names]
    for name, values, colour in (("of pixels", shares, BLUE), ("of images", images, ORANGE)):
        figure.add_scatter(
            x=[value if value > 0 else None for value in values],
            y=labels,
            mode="markers",
            name=name,
            marker={"color": colour, "size": 10, "symbol": "circle" if name == "of pixels" else "diamond"},
        )
    figure.update_xaxes(type="log", tickformat="~%", dtick=1, gridcolor=_FAINT)
    figure.update_yaxes(type="category", autorange="reversed", dtick=1, gridcolor=_FAINT)
    return _html(
        figure,
        title="how rare each class is",
        x="share (logarithmic)",
        y="",
        height=max(300, 110 + 24 * len(names)),
    )


def together(names: Sequence[str], counts: Int[np.ndarray, "k k"]) -> str:
    """Draw how often the images with one class (rows) have another too (columns); at most 40 classes."""
    names, counts = names[:_MOST_CLASSES], counts[:_MOST_CLASSES, :_MOST_CLASSES]
    own = np.maximum(1, np.diag(counts))[:, None]
    labels = [short(name, 18) for name in names]
    figure = go.Figure(
        go.Heatmap(
            z=np.round(counts / own, 3),
            x=labels,
            y=labels,
            text=counts if len(names) <= 12 else None,
            texttemplate="%{text}" if len(names) <= 12 else None,
            customdata=counts,
            hovertemplate="of the images with %{y}, %{z:.0%} have %{x} (%{customdata})<extra></extra>",
            colorscale="Cividis",
            zmin=0,
            zmax=1,
            colorbar={"tickformat": ".0%", "thickness": 12},
        )
    )
    figure.update_yaxes(type="category", autorange="reversed", dtick=1)
    figure.update_xaxes(type="category", tickangle=-45, dtick=1)
    return _html(
        figure, title="classes in one image", x="have this class too", y="images with this class",
        height=max(340, 170 + 24 * len(names)),
    )  # fmt: skip


def object_counts(counts: Shaped[np.ndarray, " n"]) -> str:
    """Draw how many objects an image has."""
    return histograms({"training": counts}, title="objects in an image", x="objects")


def object_areas(areas: Counter[int]) -> str:
    """Draw the areas of the objects on a logarithmic axis."""
    values = np.array(sorted(areas), np.float64)
    top = math.log10(max(values.max(), 2))
    edges = np.linspace(0, top, _BINS + 1)
    counts, _ = np.histogram(np.log10(values), bins=edges, weights=[areas[int(one)] for one in values])
    centres = 10 ** ((edges[:-1] + edges[1:]) / 2)
    figure = go.Figure(
        go.Bar(x=centres, y=counts, width=10 ** edges[1:] - 10 ** edges[:-1], marker_color=BLUE)
    )
    figure.update_xaxes(type="log", dtick=1)
    return _html(figure, title="areas of the objects", x="area in pixels (logarithmic)", y="objects")


def kinds(train: Counter[str], test: Counter[str], *, name: str, title: str) -> str:
    """Draw the share of each kind of a column of text, of training and test images."""
    order = [kind for kind, _ in (train + test).most_common(20)]
    figure = go.Figure()
    for split, counts in (("training", train), ("test", test)):
        if counts:
            total = sum(counts.values())
            figure.add_bar(
                x=[short(kind, 16) for kind in order],
                y=[counts[kind] / total for kind in order],
                name=f"{split} ({total:,})",
                marker_color=SETS[split],
            )
    figure.update_xaxes(type="category")
    figure.update_yaxes(**_SHARE)
    return _html(figure, title=title, x=name, y="share of images", barmode="group")


def against_coverage(
    values: Shaped[np.ndarray, " n"], coverage: Shaped[np.ndarray, " n"], *, name: str
) -> str:
    """Draw the mean coverage in tenths of a column's values, with its standard error."""
    order = np.argsort(values, kind="stable")
    parts = [part for part in np.array_split(order, min(10, len(order))) if len(part)]
    figure = go.Figure(
        go.Scatter(
            x=[float(np.median(values[part])) for part in parts],
            y=[float(coverage[part].mean()) for part in parts],
            error_y={
                "array": [float(coverage[part].std() / math.sqrt(len(part))) for part in parts],
                "color": BLUE,
                "thickness": 1,
            },
            mode="lines+markers",
            line_color=BLUE,
        )
    )
    figure.update_yaxes(**_SHARE, rangemode="tozero")
    return _html(
        figure,
        title=f"mean coverage over {short(name)}",
        x=f"{name}, in tenths of the images",
        y="mean coverage",
    )
