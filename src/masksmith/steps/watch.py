"""``masksmith watch``: what ``project.live`` sees of a project, on a terminal or as plain lines, until it rests."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from masksmith.core.arrays import UInt8
from masksmith.core.errors import InputError
from masksmith.core.files import read_json
from masksmith.core.progress import clock, error_text
from masksmith.project.folder import Project
from masksmith.project.live import Curve, Live, Training, look
from masksmith.project.process import mtime

if TYPE_CHECKING:
    from masksmith.data.cache import Cache

_BLOCKS = "▁▂▃▄▅▆▇█"
_PATIENCE_S = 30.0  # between two parts of its work a process holds no lock for a moment
_PANEL = 22  # columns of a picture's panel in a terminal
_LOOKED_AT = 60  # held-out images that pictures are chosen from
_COLOURS = {
    "done": "green",
    "training": "cyan",
    "predicting": "cyan",
    "stopped": "yellow",
    "left out": "yellow",
}

RGB = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Shown:
    """A held-out image as the training that was predicted last sees it."""

    id: str
    training: str
    panels: list[RGB]
    """Image, truth, prediction and difference, all of one size."""


def last_pictures(live: Live, *, count: int = 3) -> list[Shown]:
    """Return held-out images of the training that was predicted last, such that have something on them first.

    Only files are read; none where nothing is predicted yet, or what is needed is just being written.

    Args:
        live: What ``look`` returned.
        count: So many at most.
    """
    project = Project(live.root)
    paths = [(one, project.runs_dir / one.run / "oof" / f"fold_{one.fold}.npy") for one in live.trainings]
    stores = [(mtime(path), one, path) for one, path in paths if path.exists()]
    if not stores or count < 1:
        return []
    _, training, path = max(stores, key=lambda found: found[0])
    try:
        return _shown(project, training, path, count)
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return []  # it is just being replaced


def _shown(project: Project, training: Training, path: Path, count: int) -> list[Shown]:
    from masksmith.data.cache import open_cache
    from masksmith.data.store import Store
    from masksmith.postprocess.rules import mask_of, plain_of, read_rule
    from masksmith.prediction.store import MeanCodes
    from masksmith.reporting.pictures import class_colours, four_panels
    from masksmith.steps.out_of_fold import beside_of

    cache, store = open_cache(project.cache_dir, forget=False), Store(path)
    recipe = project.run(training.run).recipe
    rule = plain_of(cache.target, recipe.tuning)
    if project.tuning_json.exists():
        rule = read_rule(read_json(project.tuning_json)["rule"])
    colours = class_colours(cache.target) if len(cache.target.classes) > 1 else None
    codes, found, beside = MeanCodes([store]), list[Shown](), beside_of(project)
    for name in _chosen(cache, store.ids, count):
        image = np.asarray(cache.train_images[name])
        image = image if recipe.input.view is None else image[..., recipe.input.view]
        mask = np.asarray(cache.train_masks[name])
        truth = mask if cache.target.task == "multilabel" else mask[..., 0]
        panels = four_panels(image, truth, np.asarray(mask_of(rule, codes, name, beside)), colours)
        found.append(Shown(name, training.name, panels))
    return found


def _chosen(cache: "Cache", names: Sequence[str], count: int) -> list[str]:
    """Return images spread over all, those first that have something on their mask."""
    some = list(names)[:: max(1, len(names) // _LOOKED_AT)][:_LOOKED_AT]
    filled = [name for name in some if np.asarray(cache.train_masks[name]).any()]
    some = filled or some
    return some[:: max(1, len(some) // count)][:count]


def follow(
    root: Path,
    *,
    every_s: float | None = None,
    once: bool = False,
    as_json: bool = False,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Live:
    """Show a project until no process is at work on it any more; return the last look.

    Args:
        root: Project folder.
        every_s: Seconds between two looks; None: 2 on a terminal, 10 elsewhere.
        once: Show it once, and go.
        as_json: Print a line of JSON for each look, in place of a page.
        console: Where it is shown; None: standard output.
        sleep: Waits.

    Raises:
        InputError: No project is there, or ``every_s`` is no time.
    """
    if every_s is not None and not (math.isfinite(every_s) and every_s >= 0.2):
        raise InputError(f"--every {every_s:g}: expected seconds between two looks, 0.2 or more")
    live = look(root)
    if live.state == "absent":
        raise InputError(
            f"{root}: not a masksmith project (no data.json); begin with `masksmith compete DATA --out {root}`"
        )
    out = console or Console()
    if as_json or not out.is_terminal or once:
        return _print(live, out, every_s or 10.0, once=once, as_json=as_json, sleep=sleep)
    with Screen(_page(live, out), console=out, auto_refresh=False) as screen:
        for now in _looks(live, every_s or 2.0, sleep):
            live = now
            screen.update(_page(now, out), refresh=True)
    return live


def _looks(live: Live, every_s: float, sleep: Callable[[float], None]) -> Iterator[Live]:
    """Yield looks until the project rests; Ctrl-C ends it, too."""
    patience = _PATIENCE_S
    try:
        while True:
            yield live
            if live.state != "working":
                if not (live.process and live.process.alive and patience > 0):
                    return
                patience -= every_s
            else:
                patience = _PATIENCE_S
            sleep(every_s)
            live = look(live.root)
    except KeyboardInterrupt:
        return


def _print(
    live: Live, out: Console, every_s: float, *, once: bool, as_json: bool, sleep: Callable[[float], None]
) -> Live:
    said = ""
    try:
        for now in [live] if once else _looks(live, every_s, sleep):
            live = now
            if once and out.is_terminal and not as_json:
                out.print(_page(live, out))
                continue
            line = json.dumps(live.to_json(), ensure_ascii=False) if as_json else line_of(live)
            if once and not as_json:
                print(summary(live), file=out.file, flush=True)
            elif live.state == "working" or line_of(live) != said:  # what rests is said once
                at = "" if as_json else f"{time.strftime('%H:%M:%S')} "
                print(f"{at}{line}", file=out.file, flush=True)
            said = line_of(live)
    except BrokenPipeError:  # whoever read it is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return live


# --- in words ---------------------------------------------------------------------------------------------


def line_of(live: Live) -> str:
    """Return a project at one moment as a line."""
    parts, one = [live.says], live.under_way
    if one is not None and one.state == "training":
        parts += [f"{name} {_last(one, name):.4g}" for name in ("loss", "score") if name in one.curves]
        if one.best is not None:
            parts.append(f"best {one.best:.4f} (epoch {one.best_epoch})")
    if live.score is not None:
        parts.append(f"out of fold {_score(live)}")
    if live.left_s is not None:
        parts.append(f"about {clock(live.left_s)} left")
    if live.process is not None and live.process.memory_gib is not None and live.state == "working":
        parts.append(f"{live.process.memory_gib:.1f} GiB")
    return _clean(", ".join(parts))


def summary(live: Live) -> str:
    """Return a project at one moment as text: a line of all, and a line a training."""
    lines = [line_of(live)]
    for one in live.trainings:
        best = "" if one.best is None else f", best {one.best:.4f} (epoch {one.best_epoch})"
        of = f"/{one.epochs}" if one.epochs else ""
        note = f"; {one.note}" if one.note else ""
        lines.append(_clean(f"  {one.state:10} {one.name}: epoch {one.epoch}{of}{best}{note}"))
    for path in [live.submission, live.report, *live.pictures[:1]]:
        if path is not None:
            lines.append(_clean(f"  {path}"))
    return "\n".join(lines)


def _score(live: Live) -> str:
    error = "" if live.standard_error is None else f" {error_text(live.standard_error)}"
    base = ", ".join(f"{name} {value:.4f}" for name, value in live.baselines.items())
    return f"{live.metric} {live.score:.4f}{error}{f' ({base})' if base else ''}"


def _last(one: Training, name: str) -> float:
    return one.curves[name][-1][1]


def _clean(text: str) -> str:
    """Return a text without control characters, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def sparkline(curve: Curve, width: int) -> str:
    """Return a curve as blocks of eight heights, the mean of the values under each; not finite ones are blank."""
    values = np.array([value for _, value in curve], np.float64)
    if len(values) > width:
        edges = np.linspace(0, len(values), width + 1).astype(int)
        values = np.array([values[a:b].mean() for a, b in pairwise(edges)])
    known = values[np.isfinite(values)]
    if not known.size:
        return " " * len(values)
    low, span = known.min(), np.ptp(known)
    return "".join(
        _BLOCKS[min(7, int(8 * (value - low) / span)) if span else 0] if math.isfinite(value) else " "
        for value in values
    )


# --- on a terminal ----------------------------------------------------------------------------------------


def _page(live: Live, out: Console) -> RenderableType:
    colour = {"working": "cyan", "done": "green"}.get(live.state, "yellow")
    head = Text.assemble((_clean(live.root.resolve().name), "bold"), "  ", (_clean(live.says), colour))
    parts: list[RenderableType] = [Rule(style=colour), head, *_facts(live), _trainings(live, out.width)]
    one = live.under_way or next((one for one in reversed(live.trainings) if one.curves), None)
    if one is not None and one.curves:
        parts += [Text(), _curves(one, out.width)]
    parts += _pictures(live, out)
    return Group(*parts)


def _facts(live: Live) -> list[RenderableType]:
    found: list[RenderableType] = []
    if live.score is not None:
        found.append(Text(f"out of fold: {_clean(_score(live))}", "bold"))
    if live.budget_s is not None and live.spent_s is not None:
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(live.budget_s, 1e-9), completed=live.spent_s, width=30)
        line.add_row("budget", bar, f"{clock(live.spent_s)} of {clock(live.budget_s)}")
        found.append(line)
    words = [] if live.left_s is None else [f"about {clock(live.left_s)} left"]
    process = live.process
    if process is not None and live.state == "working":
        words.append(f"pid {process.pid} on {process.host}")
        if process.memory_gib is not None:
            words.append(f"memory {process.memory_gib:.2f} GiB (peak {process.peak_gib or 0:.2f})")
    if words:
        found.append(Text(_clean(" · ".join(words)), "dim"))
    return found


def _trainings(live: Live, width: int) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for name in ("", "training", "epoch", "", "best", "now"):
        table.add_column(Text(name), no_wrap=True)
    if width >= 100:
        for name in ("images/s", "time", "note"):
            table.add_column(Text(name), overflow="ellipsis", no_wrap=True)
    for one in live.trainings:
        colour = _COLOURS.get(one.state, "dim")
        of = f"/{one.epochs}" if one.epochs else ""
        cells: list[RenderableType] = [
            Text(one.state, colour),
            Text(_clean(one.name) + ("" if one.kind == "fold" else f" ({_clean(one.kind)})")),
            Text(f"{one.epoch}{of}"),
            ProgressBar(total=one.epochs or 1, completed=one.epoch if one.epochs else 0, width=12),
            Text("" if one.best is None else f"{one.best:.4f} @{one.best_epoch}"),
            Text("" if one.score is None else f"{one.score:.4f}"),
        ]
        if width >= 100:
            pace = "" if one.images_per_s is None else f"{one.images_per_s:.0f}"
            cells += [
                Text(pace),
                Text(clock(one.spent_s) if one.spent_s else ""),
                Text(_clean(one.note), "dim"),
            ]
        table.add_row(*cells)
    return table


def _curves(one: Training, width: int) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "", "now", "lowest", "highest"):
        table.add_column(Text(name, "dim"), no_wrap=True)
    order = {"loss": 0, "val_loss": 1, "score": 2, "lr": 9}
    for name, curve in sorted(one.curves.items(), key=lambda item: order.get(item[0], 5)):
        values = [value for _, value in curve if math.isfinite(value)] or [math.nan]
        numbers = [Text(f"{value:.4g}") for value in (curve[-1][1], min(values), max(values))]
        table.add_row(Text(_clean(name)), Text(sparkline(curve, max(8, width - 50)), "cyan"), *numbers)
    return Group(Text(_clean(f"curves of {one.name}"), "dim"), table)


def _pictures(live: Live, out: Console) -> list[RenderableType]:
    """Return the last pictures in half blocks; without colours, where the newest masks lie."""
    if out.color_system not in ("truecolor", "256"):
        return [Text(_clean(str(path)), "dim") for path in live.pictures[:3]]
    count = max(1, min(3, out.width // (3 * _PANEL + 4)))
    shown = last_pictures(live, count=count)
    if not shown:
        return []
    table = Table.grid(padding=(0, 2))
    table.add_row(*(Text(_clean(one.id), "dim", no_wrap=True, overflow="ellipsis") for one in shown))
    table.add_row(*(half_blocks(one.panels[:3], side=min(_PANEL, (out.width - 4) // 3)) for one in shown))
    said = f"image, truth and prediction of held-out images: {shown[0].training}"
    return [Text(), Text(_clean(said), "dim"), table]


def half_blocks(panels: Sequence[RGB], *, side: int) -> Text:
    """Return pictures beside each other as text: each character is an upper and a lower pixel.

    Args:
        panels: Of one size.
        side: Columns of the longer side of each.
    """
    import cv2

    height, width = panels[0].shape[:2]
    scale = side / max(height, width)
    columns, rows = max(1, round(width * scale)), max(2, 2 * round(height * scale / 2))
    small = [cv2.resize(panel, (columns, rows), interpolation=cv2.INTER_AREA) for panel in panels]
    text = Text(no_wrap=True)
    for row in range(0, rows, 2):
        for at, panel in enumerate(small):
            text.append(" " if at else "")
            for upper, lower in zip(panel[row].tolist(), panel[row + 1].tolist(), strict=True):
                text.append("▀", "rgb({},{},{}) on rgb({},{},{})".format(*upper, *lower))
        text.append("\n")
    return text
