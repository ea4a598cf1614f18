"""Write ``search.html`` and ``sweep.html``: scores of trials by what they change. One file, no network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from masksmith.core.files import write_text
from masksmith.reporting import figures
from masksmith.reporting.page import render

Point = figures.Point


@dataclass(frozen=True)
class KeyFacts:
    """A key of the recipe and what its values scored."""

    key: str
    points: list[Point]
    log: bool = False
    """Whether the values are drawn on a logarithmic axis."""
    listed: Sequence[Any] = ()
    """The values of a list, in its order; none: they are numbers of a range."""


@dataclass(frozen=True)
class SearchPage:
    """Everything the page shows."""

    title: str
    sub: str
    metric: str
    says: Sequence[str]
    columns: Sequence[str]
    table: Sequence[Sequence[str]]
    """Rows of texts."""
    best: str
    """The best recipe, as YAML."""
    keys: Sequence[KeyFacts] = ()
    history: Sequence[tuple[int, float]] = ()
    """(Number of a trial, its score) in the order of trials; none: no chart of it."""
    base: float | None = None
    """Score of the recipe itself."""
    higher_is_better: bool = True
    gains: Sequence[tuple[str, float, float, float]] = ()
    """(Name, gain, low, high) over the recipe itself, the best first."""
    reference: str = "the recipe itself"
    more: Sequence[str] = field(default_factory=tuple)
    """Further charts, as HTML."""


def write_search_page(path: Path, page: SearchPage) -> Path:
    """Write the page and return its path."""
    charts: list[Any] = list(page.more)
    if page.gains:
        charts.append(
            figures.gain_chart(list(reversed(page.gains)), reference=page.reference, metric=page.metric)
        )
    if page.history:
        charts.append(
            figures.history_chart(
                page.history, base=page.base, metric=page.metric, higher_is_better=page.higher_is_better
            )
        )
    by_key = [
        figures.value_chart(one.key, one.points, metric=page.metric, log=one.log, listed=one.listed)
        for one in page.keys
        if one.points
    ]
    html = render(
        "search.html",
        page=page,
        charts=[Markup(one) for one in charts],
        by_key=[Markup(one) for one in by_key],
    )
    write_text(path, html)
    return path
