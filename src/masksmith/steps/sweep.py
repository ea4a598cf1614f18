"""A sweep: every combination of some values of a recipe, each with several seeds, on the same folds.

It needs no seed noise measured elsewhere: the seeds of all combinations say what differs by the seed alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masksmith.core import interrupt
from masksmith.core.errors import InputError, StoppedError
from masksmith.core.files import write_json
from masksmith.core.progress import clock, logger
from masksmith.engines import Engine
from masksmith.planning.budget import Budget
from masksmith.planning.space import Space, Values, check_space, values_in, with_values
from masksmith.project.folder import Project
from masksmith.recipes.recipe import Recipe
from masksmith.reporting import figures
from masksmith.reporting.search import SearchPage, write_search_page
from masksmith.steps.folds import folds_of
from masksmith.steps.searched import (
    Searched,
    gain_json,
    short_names,
    shown,
    verdict_json,
    verdict_of,
    write_best,
)
from masksmith.steps.trials import Court, Crew, Gain, Line, Trial

FORMAT_VERSION = 1
_MOST_LINES = 8
"""Lines in the chart."""


@dataclass
class Cell:
    """A combination of values, with a trial for each seed."""

    values: Values
    trials: list[Trial]

    def whole(self, folds: Sequence[int]) -> list[Trial]:
        """Return the trials of which all folds are scored."""
        return [one for one in self.trials if one.is_whole(folds)]

    @property
    def failed(self) -> str:
        """Why it cannot be trained; empty: it can."""
        return next((one.failed for one in self.trials if one.failed), "")


class Sweep:
    """A grid of trials in a project.

    Args:
        project: With folds; its lock is held.
        asked: The recipe that is changed.
        grid: Keys and their values.
        seeds: How many trainings each combination has.
        crew: Trains folds.

    Raises:
        InputError: Keys or values that the recipe refuses; one line for each.
    """

    def __init__(self, project: Project, asked: Recipe, grid: Space, crew: Crew, *, seeds: int) -> None:
        check_space(grid, asked, where="--set")
        self.project, self.asked, self.grid, self.crew = project, asked, grid, crew
        self.folds = list(asked.folds.trained)
        self.cells = [Cell(values, _trials(asked, values, seeds)) for values in grid.combinations()]
        self.court = Court(project, asked)

    def run(self) -> None:
        """Train all: first each combination with the first seed, then with the next one.

        Raises:
            StoppedError: A stop was asked for.
        """
        seeds = len(self.cells[0].trials)
        logger.info(
            "sweep: %d combinations, %d seeds, %d folds: %d trainings", len(self.cells), seeds, len(self.folds),
            len(self.cells) * seeds * len(self.folds),
        )  # fmt: skip
        self.crew.work(self._lines(seeds), self._judge)

    def _lines(self, seeds: int) -> Iterator[Line]:
        for at in range(seeds):
            for cell in self.cells:
                yield Line(cell.trials[at], list(self.folds))

    def _judge(self, trial: Trial) -> bool:
        if trial.failed:
            logger.warning("%s: %s; it is left out", trial.says, trial.failed)
        elif trial.is_whole(self.folds):
            logger.info("%.4f with %s, seed %d", self.court.score(trial), trial.says, trial.recipe.seed)
        return True


def _trials(asked: Recipe, values: Values, seeds: int) -> list[Trial]:
    failed = ""
    try:
        recipe = with_values(asked, values)
    except InputError as error:  # values that each go with the recipe, and not with one another
        recipe, failed = asked, str(error)
    every = range(asked.seed, asked.seed + seeds)
    return [Trial(values, recipe.model_copy(update={"seed": seed}), failed=failed) for seed in every]


def sweep_project(
    project: Project, asked: Recipe, grid: Space, budget: Budget, engine: Engine, *, seeds: int
) -> Searched:
    """Train a grid, and write ``sweep.json``, ``sweep.yaml`` (the best recipe) and ``sweep.html``.

    Raises:
        InputError: Keys or values that the recipe refuses, no time for a combination, or none can be trained.
        StoppedError: A stop before a combination was whole.
    """
    folds_of(project, asked)
    sweep = Sweep(project, asked, grid, Crew(project, engine, budget), seeds=seeds)
    stopped = None
    try:
        with interrupt.on_heartbeat(budget.beat):
            sweep.run()
    except StoppedError as stop:
        if not any(cell.whole(sweep.folds) for cell in sweep.cells):
            raise
        stopped = stop.exit_code
        logger.warning("%s; the same command goes on", stop)
    finally:
        budget.write()
    with interrupt.finishing():
        return conclude(sweep, stopped=stopped)


@dataclass(frozen=True)
class Row:
    """What a combination scored."""

    cell: Cell
    scores: list[float]
    """Of its seeds."""
    gain: Gain | None
    """Over the reference, of the seeds that both have; None: not one seed is whole."""

    @property
    def mean(self) -> float:
        """Mean of the scores."""
        return float(np.mean(self.scores))

    @property
    def sd(self) -> float | None:
        """Standard deviation of the scores (n - 1); None of one."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else None


def conclude(sweep: Sweep, *, stopped: int | None) -> Searched:
    """Judge the combinations and write what was found.

    Raises:
        InputError: No combination is whole.
    """
    court, folds, project = sweep.court, sweep.folds, sweep.project
    done = [cell for cell in sweep.cells if cell.whole(folds)]
    if not done:
        why = next((cell.failed for cell in sweep.cells if cell.failed), "")
        raise InputError(
            f"sweep: no combination could be trained: {why}"
            if why
            else f"--budget: {sweep.crew.budget}: no combination is trained; give more, what is trained is kept"
        )
    own = values_in(sweep.asked, sweep.grid)
    reference = next((cell for cell in done if cell.values == own), done[0])
    rows = [_row(court, cell, reference, folds) for cell in sweep.cells]
    rows.sort(key=lambda row: -court.metric.utility(row.mean) if row.scores else np.inf)
    seeds = len(reference.trials)
    spread = [row.sd**2 for row in rows if row.sd is not None]
    noise = 1.96 * (2 / seeds) ** 0.5 * float(np.mean(spread)) ** 0.5 if spread else 0.0
    full = [cell for cell in done if len(cell.whole(folds)) == seeds]
    best = next(row for row in rows if row.gain is not None)  # that of the reference always is one
    nested = None
    if len(folds) > 1 and best.cell is not reference and best.cell in full and reference in full:
        nested, _ = court.nested([cell.trials for cell in full], reference.trials, folds)
    assert best.gain is not None  # mypy
    names = short_names(list(sweep.grid.axes))
    said = "the recipe itself" if reference.values == own else f"the first ({_said(reference.values, names)})"
    verdict = verdict_of(
        "" if best.cell is reference else _said(best.cell.values, names), best.gain, said, nested,
        folds=len(folds), tried=len(done), noise=noise, metric=court.metric.name,
    )  # fmt: skip
    missing = sum(len(cell.trials) - len(cell.whole(folds)) for cell in sweep.cells)
    says = [
        *verdict.says,
        f"Seeds: sd {np.mean(spread) ** 0.5:.4f} in the mean of combinations; means of {seeds} differ by up to "
        f"{noise:.4f} by the seed alone."
        if spread
        else "Seeds: one each, so that nothing is known of their noise; --seeds 3 measures it.",
        *(
            [f"{missing} trainings are missing ({sweep.crew.budget}); the same command goes on."]
            if missing
            else []
        ),
    ]
    columns = [*names.values(), "mean", "sd", "seeds", f"gain over {said} (80% bounds)", "took", ""]
    numbers: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "metric": court.metric.name,
        "higher_is_better": court.metric.higher_is_better,
        "recipe": sweep.asked.name,
        "folds": folds,
        "seeds": seeds,
        "noise": noise if spread else None,
        "reference": reference.values,
        "best": best.cell.values,
        "combinations": [_json(row, sweep) for row in rows],
        "verdict": verdict_json(verdict),
        "says": says,
        "columns": columns,
        "table": [_cells(row, best, reference, list(names)) for row in rows],
    }
    write_json(project.sweep_json, numbers)
    write_best(project.sweep_yaml, with_values(sweep.asked, best.cell.values), verdict.says, best.cell.values)
    page = SearchPage(
        title=f"{Path(project.catalog.root).name}: sweep around {sweep.asked.name}",
        sub=f"{court.metric.name} ({court.metric.describes}); {len(rows)} combinations, {seeds} seeds, "
        f"{len(folds)} folds each",
        metric=court.metric.name,
        says=says,
        columns=columns,
        table=numbers["table"],
        higher_is_better=court.metric.higher_is_better,
        gains=[
            (_said(row.cell.values, names), row.gain.gain, row.gain.low, row.gain.high)
            for row in rows
            if row.gain is not None and row.cell is not reference
        ][:12],
        reference=said,
        more=[_chart(rows, sweep, names)],
        best=project.sweep_yaml.read_text(encoding="utf-8"),
    )
    write_search_page(project.sweep_html, page)
    return Searched(numbers, project.sweep_yaml, project.sweep_html, stopped)


def _row(court: Court, cell: Cell, reference: Cell, folds: Sequence[int]) -> Row:
    pairs = [
        (own, other)
        for own, other in zip(cell.trials, reference.trials, strict=True)
        if own.is_whole(folds) and other.is_whole(folds)
    ]
    gain = court.gain([own for own, _ in pairs], [other for _, other in pairs], folds) if pairs else None
    return Row(cell, [court.score(one) for one in cell.whole(folds)], gain)


def _said(values: Values, names: dict[str, str]) -> str:
    return ", ".join(f"{names[key]}={shown(value)}" for key, value in values.items())


def _json(row: Row, sweep: Sweep) -> dict[str, Any]:
    return {
        "values": row.cell.values,
        "scores": row.scores,
        "mean": row.mean if row.scores else None,
        "sd": row.sd,
        "gain": gain_json(row.gain),
        "runs": [
            "" if row.cell.failed and not one.folds else sweep.crew.run_of(one.recipe) or ""
            for one in row.cell.trials
        ],
        "why": row.cell.failed,
    }


def _cells(row: Row, best: Row, reference: Cell, keys: Sequence[str]) -> list[str]:
    gain, said = row.gain, "best" if row is best else ""
    if row.cell is reference:
        said = f"{said} reference".strip()
    if row.cell.failed:
        said = "failed"
    return [
        *(shown(row.cell.values[key]) for key in keys),
        f"{row.mean:.4f}" if row.scores else "–",
        "–" if row.sd is None else f"{row.sd:.4f}",
        f"{len(row.scores)}/{len(row.cell.trials)}",
        "–"
        if gain is None or row.cell is reference
        else f"{gain.gain:+.4f} ({gain.low:+.4f} … {gain.high:+.4f})",
        clock(sum(one.seconds for one in row.cell.trials)),
        said,
    ]


def _chart(rows: Sequence[Row], sweep: Sweep, names: dict[str, str]) -> str:
    """Draw means over the values of the first key, with a line for each combination of the others."""
    first, *others = sweep.grid.axes
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row.scores:
            rest = {key: row.cell.values[key] for key in others}
            lines.setdefault(_said(rest, names), []).append(row)
    order = sweep.grid.axes[first].corners
    drawn = []
    for name, own in list(lines.items())[:_MOST_LINES]:
        own.sort(key=lambda row: order.index(row.cell.values[first]))
        drawn.append(
            (
                name,
                [row.cell.values[first] for row in own],
                [row.mean for row in own],
                [row.scores for row in own],
            )
        )
    return figures.sweep_chart(first, drawn, metric=sweep.court.metric.name)
