"""Plain SVG: boxes, arrows, text and charts, in the one style of `masksmith explain` and of docs/systems.

Every picture is a white card with a thin border, so that it can be read on a white and on a dark page.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np

from masksmith.core.files import write_text

BLUE, ORANGE, GREEN, PURPLE, RED = "#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626"
INK, FAINT, RULE = "#111827", "#6b7280", "#e5e7eb"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED)
TINTS = {
    RED: "#fee2e2",
    BLUE: "#dbeafe",
    GREEN: "#d1fae5",
    ORANGE: "#fef3c7",
    PURPLE: "#f3e8ff",
    FAINT: "#f3f4f6",
}
Point = tuple[float, float]


W = 760
"""Width of most pictures."""


def number(value: float) -> str:
    """Return a coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


class Drawing:
    """A picture under construction; coordinates are pixels from the left and the top."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size = (width, height)
        self.parts: list[str] = []
        self.title = title
        self.text(20, 28, title, size=15, weight="600")

    def text(
        self, x: float, y: float, words: str, *, size: int = 12, colour: str = INK, anchor: str = "start",
        weight: str = "400", turn: int = 0,
    ) -> None:  # fmt: skip
        """Write words; ``anchor`` is start, middle or end, ``turn`` an angle in degrees about (x, y)."""
        turned = f' transform="rotate({turn} {number(x)} {number(y)})"' if turn else ""
        self.parts.append(
            f'<text x="{number(x)}" y="{number(y)}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
            f'font-weight="{weight}"{turned}>{escape(words)}</text>'
        )

    def rect(
        self, x: float, y: float, w: float, h: float, *, fill: str, stroke: str = "none", opacity: float = 1
    ) -> None:
        """Draw a rectangle from its upper left corner."""
        round_px = 0 if stroke == "none" else 3
        self.parts.append(
            f'<rect x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}" rx="{round_px}" '
            f'fill="{fill}" stroke="{stroke}" fill-opacity="{opacity:g}"/>'
        )

    def box(
        self, x: float, y: float, w: float, h: float, lines: Sequence[str], *, colour: str = FAINT
    ) -> None:
        """Draw a box with lines of text in its middle, the first one bold."""
        self.rect(x, y, w, h, fill=TINTS[colour], stroke=colour)
        top = y + h / 2 - 7 * len(lines) + 11
        for at, words in enumerate(lines):
            self.text(
                x + w / 2, top + 14 * at, words, size=12 if at == 0 else 11, anchor="middle",
                colour=INK if at == 0 else FAINT, weight="600" if at == 0 else "400",
            )  # fmt: skip

    def path(self, points: Iterable[Point], *, colour: str = INK, width: float = 1.5, dash: str = "") -> None:
        """Draw a line through points."""
        joined = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashed}/>'
        )

    def arrow(self, *points: Point, colour: str = FAINT, dash: str = "") -> None:
        """Draw a line through points with a head at its end."""
        self.path(points, colour=colour, dash=dash)
        (x0, y0), (x, y) = points[-2:]
        angle = math.atan2(y - y0, x - x0)
        wings = [(x - 7 * math.cos(angle + turn), y - 7 * math.sin(angle + turn)) for turn in (-0.45, 0.45)]
        corners = " ".join(f"{number(a)},{number(b)}" for a, b in [(x, y), *wings])
        self.parts.append(f'<polygon points="{corners}" fill="{colour}"/>')

    def dots(self, points: Iterable[Point], *, colour: str = INK) -> None:
        """Mark points with small dots."""
        for x, y in points:
            self.parts.append(f'<circle cx="{number(x)}" cy="{number(y)}" r="2.2" fill="{colour}"/>')

    def cross(self, x: float, y: float, *, colour: str = RED) -> None:
        """Mark a point with a cross."""
        for side in (-1, 1):
            self.path([(x - 5, y - 5 * side), (x + 5, y + 5 * side)], colour=colour, width=2.5)

    def picture(self, x: float, y: float, w: float, rgb: np.ndarray, *, quality: int = 62) -> None:
        """Place pixels (h, w, 3), uint8, as a JPEG of this width."""
        fine, raw = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert fine
        h = w * rgb.shape[0] / rgb.shape[1]
        self.parts.append(
            f'<image x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}" '
            f'href="data:image/jpeg;base64,{base64.b64encode(raw.tobytes()).decode()}"/>'
        )

    def svg(self) -> str:
        """Return the picture."""
        width, height = self.size
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
            f"<title>{escape(self.title)}</title>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="#ffffff" stroke="{RULE}"/>',
            *self.parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Write the picture."""
        write_text(path, self.svg())


class Chart:
    """Axes inside a drawing: a title, ticks, and what is drawn in the data's own units."""

    def __init__(
        self, drawing: Drawing, frame: tuple[float, float, float, float], *, x_range: Point, y_range: Point,
        title: str = "", x_label: str = "", y_label: str = "", percent: bool = False, ticks: bool = True,
    ) -> None:  # fmt: skip
        self.drawing, self.frame = drawing, frame
        self.x_range, self.y_range = x_range, y_range
        x, y, w, h = frame
        levels = {value: f"{value:.0%}" if percent else f"{value:g}" for value in nice_ticks(*y_range)}
        for value, shown in levels.items():
            level = self.at(x_range[0], value)[1]
            drawing.path([(x, level), (x + w, level)], colour=RULE, width=1)
            drawing.text(x - 6, level + 4, shown, size=11, colour=FAINT, anchor="end")
        for value in nice_ticks(*x_range) if ticks else ():
            place = self.at(value, y_range[0])[0]
            drawing.text(place, y + h + 16, f"{value:g}", size=11, colour=FAINT, anchor="middle")
        drawing.path([(x, y + h), (x + w, y + h)], colour=FAINT, width=1)
        drawing.text(x, y - 10, title, size=12, weight="600")
        drawing.text(x + w / 2, y + h + 34, x_label, size=12, colour=FAINT, anchor="middle")
        drawing.text(
            x - 16 - 6.5 * max(map(len, levels.values())),
            y + h / 2,
            y_label,
            size=12,
            colour=FAINT,
            anchor="middle",
            turn=-90,
        )

    def at(self, x: float, y: float) -> Point:
        """Return the pixel of a point of the data."""
        left, top, w, h = self.frame
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        return left + w * (x - x0) / (x1 - x0), top + h - h * (y - y0) / (y1 - y0)

    def line(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        *,
        colour: str = BLUE,
        width: float = 2,
        dash: str = "",
    ) -> None:
        """Draw a line through points of the data."""
        self.drawing.path(
            [self.at(x, y) for x, y in zip(xs, ys, strict=True)], colour=colour, width=width, dash=dash
        )

    def bars(
        self, lefts: Sequence[float], rights: Sequence[float], heights: Sequence[float], *, colour: str = BLUE,
        opacity: float = 0.85,
    ) -> None:  # fmt: skip
        """Draw bars that stand on the axis."""
        for left, right, height in zip(lefts, rights, heights, strict=True):
            (x, y), (end, bottom) = self.at(left, height), self.at(right, self.y_range[0])
            if height:
                self.drawing.rect(x, y, end - x - 0.6, bottom - y, fill=colour, opacity=opacity)

    def upright(
        self,
        x: float,
        words: str,
        *,
        colour: str = FAINT,
        dash: str = "4 3",
        row: int = 0,
        before: bool = False,
    ) -> None:
        """Draw a line across the chart at ``x``, with words after (or before) it; ``row`` moves them down."""
        top = self.frame[1]
        (place, bottom) = self.at(x, self.y_range[0])
        self.drawing.path([(place, top), (place, bottom)], colour=colour, dash=dash)
        side = "end" if before else "start"
        self.drawing.text(
            place + (-4 if before else 4), top + 10 + 14 * row, words, size=11, colour=colour, anchor=side
        )

    def key(self, names: Sequence[str], colours: Sequence[str] = SERIES, *, y: float | None = None) -> None:
        """Name the colours, to the right of the title or at another height."""
        x, top, w, _ = self.frame
        place = x + w
        for name, colour in reversed(list(zip(names, colours, strict=False))):
            place -= 7.6 * len(name)
            self.drawing.text(place, top - 10 if y is None else y, name, size=12, colour=colour, weight="600")
            place -= 14


def nice_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers within an interval."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]
