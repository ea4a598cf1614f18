"""The live page of a review: what ``masksmith watch`` shows in a terminal, in a browser."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from masksmith.core.progress import clock, error_text
from masksmith.project.folder import Project
from masksmith.project.live import Live, Training, look
from masksmith.steps.review.views import MissingError
from masksmith.steps.watch import Shown, last_pictures

if TYPE_CHECKING:
    from fastapi import FastAPI

_COUNT = 3
_FRESH_S = 2.0
"""Two windows that look at the same moment share what was read."""
_SIDE = 160


class _Watch:
    """What was seen last, looked at again when it is older than two seconds."""

    def __init__(self, root: Path) -> None:
        self.root, self.at = root, 0.0
        self.live: Live | None = None
        self.pictures: list[Shown] = []

    def look(self) -> Live:
        if self.live is None or time.monotonic() - self.at > _FRESH_S:
            self.live = look(self.root)
            self.pictures = last_pictures(self.live, count=_COUNT)
            self.at = time.monotonic()
        return self.live


def add_live(app: "FastAPI", project: Project) -> None:
    """Add ``/live``, the part of it that changes, and its pictures."""
    from fastapi import Response
    from fastapi.responses import HTMLResponse

    environment = Environment(
        loader=PackageLoader("masksmith", "reporting"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    template = environment.get_template("review_live.html")
    watch, title = _Watch(project.root), Path(project.catalog.root).name

    def render(*, whole: bool) -> str:
        live = watch.look()
        return template.render(
            whole=whole, title=title, live=live, shown=_shown(live), pictures=watch.pictures, clock=clock, line=_line,
            error_text=error_text, version=int(live.at),
        )  # fmt: skip

    @app.get("/live")
    def page() -> Response:
        return HTMLResponse(render(whole=True))

    @app.get("/live/part")
    def part() -> Response:
        return HTMLResponse(render(whole=False))

    @app.get("/live/{number}.jpg")
    def picture(number: int) -> Response:
        watch.look()
        if not 0 <= number < len(watch.pictures):
            raise MissingError("there is no such picture any more")
        return Response(_joined(watch.pictures[number]), media_type="image/jpeg")


def _shown(live: Live) -> Training | None:
    """Return the training whose curves are shown: the one at work, or the last that has any."""
    if live.under_way is not None and live.under_way.curves:
        return live.under_way
    return next((one for one in reversed(live.trainings) if one.curves), None)


def _line(points: Sequence[tuple[float, float]]) -> str:
    """Return a curve as the points of a line in 240 x 80."""
    given = np.asarray(points, float)
    given = given[np.isfinite(given).all(axis=1)]
    if not len(given):
        return ""
    low, span = given.min(axis=0), np.maximum(np.ptp(given, axis=0), 1e-12)
    at = (given - low) / span * (232, -72) + (4, 76)
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in at)


def _joined(shown: Shown) -> bytes:
    """Return the panels side by side."""
    panels = [cv2.resize(one, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA) for one in shown.panels]
    rgb = np.concatenate(panels, axis=1)
    _, raw = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return raw.tobytes()
