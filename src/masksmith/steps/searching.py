"""The verbs ``search`` and ``sweep``: from the words of a call to a project, a recipe and an engine."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksmith.core import interrupt
from masksmith.core.config import write_yaml
from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.planning.budget import Budget, Duration, parse_duration
from masksmith.planning.space import Space, parse_grid, parse_space, read_space
from masksmith.recipes.recipe import Recipe
from masksmith.steps.recipes import Overrides, dotted, load_single, single_for_data

if TYPE_CHECKING:
    from masksmith.engines import Engine
    from masksmith.project.folder import Project
    from masksmith.steps.searched import Searched


def search(
    data: str | Path,
    *,
    out: str | Path,
    space: str | Path | dict[str, Any],
    budget: str | None = None,
    trials: int | None = None,
    trial: str | None = None,
    recipe: str = "auto",
    overrides: Overrides = (),
    device: str | None = None,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    metric: str | None = None,
    layout: str | Path | None = None,
    engine: str = "local",
) -> "Searched":
    """Search better values of a recipe: train trial after trial, each judged beside the recipe on the same images.

    The recipe itself is trained first, and its first fold with two seeds more. Then Optuna (TPE) draws values by what
    was tried; a trial's folds are trained one after another, and one that is worse than the best beyond draws of images
    and seeds is given up. The best is judged on folds that it was not chosen on.

    Source:
        TPE: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization

    Args:
        data: Folder with the data, as for ``compete``.
        out: Project folder; the same call again goes on. Trials are ordinary runs of it.
        space: YAML file, or a dictionary: key of a recipe -> ``{low, high}`` (``log``, ``int``, ``step``) or
            ``{values: […]}``; see docs/how-to/search.md.
        budget: Wall-clock time such as "8h", or "+1h" on top of what is spent; it ends between two folds.
        trials: Most trials; None: as many as there is time for.
        trial: Time of one trial such as "10m", which decides its epochs; None: as many as the recipe says.
        recipe: What is changed: a bundled recipe, or a YAML file.
        overrides: Dotted changes of it, which all trials have.
        device: As for ``compete``, and so are the others.
        dialect: Of the run-lengths.
        task: What the masks mean.
        ignore: Values of mask files that are not judged.
        metric: The metric to win.
        layout: Name of a layout, or a file that describes the data.
        engine: "local", "ray" or "ray:HOST:PORT": where trials are trained, side by side where there is room.

    Returns:
        The numbers of ``search.json``; ``print`` shows the table. ``best.yaml`` is the best recipe, ``search.html`` a
        page.

    Raises:
        InputError: Data, recipe or space cannot be used, another search was begun in ``out``, Optuna is missing, or the
            budget is too short for one trial.
        StoppedError: Stopped before there was anything to judge.
    """
    began, asked_space = time.monotonic(), _space_of(space)
    where = "space" if isinstance(space, dict) else str(space)
    each = None if trial is None else _duration(trial, "--trial")
    duration = None if budget is None else parse_duration(budget)
    if duration is None and trials is None and asked_space.count > _MOST_ALONE:
        raise InputError(
            "search: no end; give --budget (such as 8h) or --trials: the space has "
            f"{'endlessly many' if asked_space.count == float('inf') else f'{asked_space.count:,.0f}'} combinations"
        )
    if trials is not None and trials < 1:
        raise InputError(f"--trials {trials}: expected 1 or more")
    from masksmith.steps.study import need_optuna

    need_optuna()  # said before the data are read
    source = Source(Path(data), Path(out), dialect, task, ignore, layout)
    with _opened(source, recipe, dotted(overrides, device, metric), engine) as (project, asked, workers):
        from masksmith.steps.search import begin, search_project
        from masksmith.steps.searched import conclude

        length = begin(
            project, asked, asked_space, trial or "", None if each is None else each.seconds, where=where
        )
        clock = Budget(project.search_dir / "budget.json", duration, started=began)
        found, stopped = search_project(
            project, asked, asked_space, clock, workers, length=length, most=trials
        )
        with interrupt.finishing():
            return conclude(found, stopped=stopped)


def sweep(
    data: str | Path,
    grid: Sequence[str] | dict[str, Sequence[Any]],
    *,
    out: str | Path,
    seeds: int = 3,
    budget: str | None = None,
    recipe: str = "auto",
    device: str | None = None,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    metric: str | None = None,
    layout: str | Path | None = None,
    engine: str = "local",
) -> "Searched":
    """Train every combination of some values of a recipe, with several seeds, and compare them on the same images.

    Args:
        data: Folder with the data, as for ``compete``.
        grid: ``["training.batch_size=8,16", "model.encoder=resnet18,resnet34"]``, or a dictionary of lists; a key with
            one value is fixed.
        out: Project folder; the same call again goes on, another grid uses what it shares.
        seeds: Trainings of each combination, with the recipe's seed and the following ones.
        budget: Wall-clock time, which ends between two folds; None: all of it is trained.
        recipe: What is changed: a bundled recipe, or a YAML file.
        device: As for ``compete``, and so are the others.
        dialect: Of the run-lengths.
        task: What the masks mean.
        ignore: Values of mask files that are not judged.
        metric: The metric to win.
        layout: Name of a layout, or a file that describes the data.
        engine: As for ``search``.

    Returns:
        The numbers of ``sweep.json``; ``print`` shows the table. ``sweep.yaml`` is the best recipe, ``sweep.html`` a
        page.

    Raises:
        InputError: Data, recipe or values cannot be used, or the budget is too short for one combination.
        StoppedError: Stopped before a combination was whole.
    """
    began = time.monotonic()
    settings = (
        [f"{key}={write_flow(values)}" for key, values in grid.items()] if isinstance(grid, dict) else grid
    )
    fixed, asked_grid = parse_grid(list(settings))
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: expected 1 or more")
    if asked_grid.count > _MOST_ALONE:
        raise InputError(
            f"sweep: {asked_grid.count:,.0f} combinations; expected {_MOST_ALONE:,} at most: give fewer values, or use "
            "`masksmith search`"
        )
    duration = None if budget is None else parse_duration(budget)
    source = Source(Path(data), Path(out), dialect, task, ignore, layout)
    with _opened(source, recipe, dotted(fixed, device, metric), engine) as (project, asked, workers):
        from masksmith.steps.sweep import sweep_project

        clock = Budget(project.trials_dir / "budget.json", duration, started=began)
        return sweep_project(project, asked, asked_grid, clock, workers, seeds=seeds)


_MOST_ALONE = 10_000
"""Combinations of a grid, and of a space without a budget."""


def write_flow(values: Sequence[Any]) -> str:
    """Return values as the comma-separated text of a setting."""
    return ",".join(json.dumps(value) for value in values)


@dataclass(frozen=True)
class Source:
    """The data of a call, and the project."""

    data: Path
    out: Path
    dialect: str | None
    task: str | None
    ignore: Sequence[int]
    layout: str | Path | None


@contextmanager
def _opened(
    source: Source, recipe: str, changes: tuple[str, ...], engine: str
) -> "Iterator[tuple[Project, Recipe, Engine]]":
    """Check the data, and open project, recipe and engine under the project's lock."""
    from masksmith.project.folder import Project
    from masksmith.steps.check import check_folder
    from masksmith.steps.search import held_out
    from masksmith.steps.work import opened, working

    loaded = load_single(recipe, changes, what="a search or a sweep changes")
    given: dict[str, Any] = {
        "dialect": source.dialect,
        "task": source.task,
        "ignore": source.ignore,
        "layout": source.layout,
    }
    with opened(engine) as workers, interrupt.graceful():
        report = check_folder(source.data, source.out, **given)
        for line in str(report).splitlines():
            logger.info("%s", line)
        project = Project.open(source.out)
        with working(project):
            workers.need(project.root)
            yield project, held_out(single_for_data(project, loaded, recipe, changes)), workers


def _space_of(space: str | Path | dict[str, Any]) -> Space:
    if isinstance(space, dict):
        return parse_space(write_yaml(space), where="space")
    return read_space(Path(space))


def _duration(text: str, where: str) -> Duration:
    try:
        found = parse_duration(text)
    except InputError as error:
        raise InputError(str(error).replace("--budget", where, 1)) from error
    if found.more:
        raise InputError(f"{where} {text}: expected a duration such as 10m, without a sign")
    return found
