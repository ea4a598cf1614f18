"""The commands ``search`` and ``sweep``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import masksmith
from masksmith.cli_options import (
    Data,
    Device,
    Dialect,
    EngineName,
    Ignore,
    Layout,
    Metric,
    Out,
    RecipeName,
    Set,
    Task,
)

if TYPE_CHECKING:
    from masksmith.steps.searched import Searched

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def search(
    data: Data,
    out: Out,
    space: Annotated[
        Path, typer.Option("--space", help="YAML: a key of the recipe a line, {low, high} or {values: […]}.")
    ],
    budget: Annotated[
        str | None,
        typer.Option("--budget", "-b", help="Wall-clock time: 90m, 8h; +1h adds to what is spent."),
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", help="Most trials.")] = None,
    trial: Annotated[
        str | None,
        typer.Option("--trial", help="Time of one trial, such as 10m; default: the recipe's length."),
    ] = None,
    recipe: RecipeName = "auto",
    overrides: Set = None,
    device: Device = None,
    dialect: Dialect = None,
    task: Task = None,
    ignore: Ignore = None,
    metric: Metric = None,
    layout: Layout = None,
    engine: EngineName = "local",
    as_json: Json = False,
) -> None:
    """Search better values of a recipe, trial after trial, and judge the best on folds it was not chosen on."""
    found = masksmith.search(
        data,
        out=out,
        space=space,
        budget=budget,
        trials=trials,
        trial=trial,
        recipe=recipe,
        overrides=overrides or (),
        device=device,
        dialect=dialect,
        task=task,
        ignore=ignore or (),
        metric=metric,
        layout=layout,
        engine=engine,
    )
    _show(found, as_json=as_json)


def sweep(
    data: Data,
    out: Out,
    grid: Annotated[
        list[str],
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE,…", help="Values of a key; several: every combination."
        ),
    ],
    seeds: Annotated[int, typer.Option("--seeds", help="Trainings of each combination.")] = 3,
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help="Wall-clock time; default: all is trained.")
    ] = None,
    recipe: RecipeName = "auto",
    device: Device = None,
    dialect: Dialect = None,
    task: Task = None,
    ignore: Ignore = None,
    metric: Metric = None,
    layout: Layout = None,
    engine: EngineName = "local",
    as_json: Json = False,
) -> None:
    """Train every combination of some values of a recipe, each with several seeds, and compare them."""
    found = masksmith.sweep(
        data,
        grid,
        out=out,
        seeds=seeds,
        budget=budget,
        recipe=recipe,
        device=device,
        dialect=dialect,
        task=task,
        ignore=ignore or (),
        metric=metric,
        layout=layout,
        engine=engine,
    )
    _show(found, as_json=as_json)


def _show(found: "Searched", *, as_json: bool) -> None:
    print(json.dumps(found.numbers, indent=1, ensure_ascii=False) if as_json else found)
    if found.stopped is not None:
        raise typer.Exit(found.stopped)
