"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path, typer.Argument(help="Folder with the data, as it was downloaded; zip files stay closed.")
]
Folder = Annotated[Path, typer.Argument(help="Project folder (what --out named).")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Project folder: absent, empty, or a project to go on with.")
]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A bundled recipe, or a YAML file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a value, e.g. training.stages.0.epochs=3."),
]
RunName = Annotated[str | None, typer.Option("--run", help="A run by name; default: the last one worked on.")]


Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps or auto.")]
Dialect = Annotated[
    str | None,
    typer.Option(
        "--dialect",
        help="Of run-lengths: tgs, siim, airbus, dsb, severstal (_row_major, _zero_based); default: inferred.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task", help="binary, multiclass, multilabel or instances; default: by the masks' values."
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout", help="A layout by name, or a YAML file that describes the data (see docs/layouts.md)."
    ),
]
Metric = Annotated[str | None, typer.Option("--metric", "-m", help="The metric to win.")]
Scale = Annotated[
    str | None,
    typer.Option(
        "--scale", help="small: a published recipe made small, to see it go the whole way in minutes."
    ),
]
Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log", help="Hand the events on to tensorboard, mlflow or wandb (offline); may be repeated."
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        help="local, ray, or ray:HOST:PORT: the machines of a Ray cluster, side by side.",
    ),
]
Ignore = Annotated[
    list[int] | None,
    typer.Option("--ignore", metavar="VALUE", help="Value of mask files that is not judged."),
]
