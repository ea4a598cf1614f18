"""The command line: a thin shell over ``pipeline``. Nothing heavy is imported before a verb runs."""

import json
import logging
import shutil
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import masksmith
from masksmith import cli_search
from masksmith.cli_options import (
    Data,
    Device,
    Dialect,
    EngineName,
    Folder,
    Ignore,
    Layout,
    Log,
    Metric,
    Out,
    RecipeName,
    RunName,
    Scale,
    Set,
    Task,
)
from masksmith.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_PARTLY,
    EXIT_REFUSED,
    EXIT_TERMINATED,
    DivergedError,
    InputError,
    LostProcessError,
    StoppedError,
)

app = typer.Typer(
    help="From a folder of images and masks to a winning segmentation, in one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def compete(
    data: Data,
    out: Out,
    recipe: RecipeName = "auto",
    overrides: Set = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", "-b", help="Wall-clock time: 20m, 1h30m; +20m adds to what is spent."),
    ] = None,
    device: Device = None,
    dialect: Dialect = None,
    task: Task = None,
    ignore: Ignore = None,
    metric: Metric = None,
    layout: Layout = None,
    from_model: Annotated[
        Path | None, typer.Option("--from", metavar="MODEL", help="Train the net of a bundle on.")
    ] = None,
    scale: Scale = None,
    log: Log = None,
    engine: EngineName = "local",
    pseudo_rounds: Annotated[
        int,
        typer.Option("--pseudo-rounds", metavar="N", help="With --budget: students of pseudo-labels, too."),
    ] = 0,
) -> None:
    """Go the whole way: check, folds, train, predict, tune, submit, report."""
    result = masksmith.compete(
        data,
        out=out,
        recipe=recipe,
        overrides=overrides or (),
        budget=budget,
        device=device,
        dialect=dialect,
        task=task,
        ignore=ignore or (),
        metric=metric,
        layout=layout,
        from_model=from_model,
        scale=scale,
        log=log or (),
        engine=engine,
        pseudo_rounds=pseudo_rounds,
    )
    print(result)
    if result.stopped is not None:
        raise typer.Exit(result.stopped)


app.command()(cli_search.search)
app.command()(cli_search.sweep)


@app.command()
def plan(
    data: Data,
    budget: Annotated[str, typer.Option("--budget", "-b", help="Wall-clock time, such as 2h.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Project folder to write plan.yaml to.")
    ] = None,
    recipe: RecipeName = "auto",
    overrides: Set = None,
    device: Device = None,
    dialect: Dialect = None,
    task: Task = None,
    ignore: Ignore = None,
    metric: Metric = None,
    layout: Layout = None,
) -> None:
    """Choose a recipe for a budget, with a reason beside each choice; train nothing."""
    text = masksmith.plan(
        data,
        budget=budget,
        out=out,
        recipe=recipe,
        overrides=overrides or (),
        device=device,
        dialect=dialect,
        task=task,
        ignore=ignore or (),
        metric=metric,
        layout=layout,
    )
    print(text, end="")


@app.command()
def noise(
    project: Folder,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="A bundled recipe, or a YAML file; default: the last one."),
    ] = None,
    overrides: Set = None,
) -> None:
    """Train one fold with three seeds and store the spread of their scores."""
    from masksmith.steps.seed_noise import noise_text

    print(noise_text(masksmith.noise(project, recipe=recipe, overrides=overrides or ())))


@app.command()
def lr(project: Folder, recipe: RecipeName = "auto", overrides: Set = None) -> None:
    """Sweep the learning rate over a short training, suggest one, and write lr.html."""
    print(masksmith.lr(project, recipe=recipe, overrides=overrides or ()))


@app.command()
def check(
    data: Data,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Project folder: absent, empty, or ours.")
    ] = None,
    dialect: Dialect = None,
    task: Task = None,
    ignore: Ignore = None,
    layout: Layout = None,
) -> None:
    """Recognise the layout and say what is wrong with the data."""
    print(masksmith.check(data, out, dialect=dialect, task=task, ignore=ignore or (), layout=layout))


@app.command()
def explore(
    data: Data,
    out: Out,
    dialect: Dialect = None,
    task: Task = None,
    ignore: Ignore = None,
    layout: Layout = None,
) -> None:
    """Write a page with everything there is to see of the data before training."""
    print(masksmith.explore(data, out, dialect=dialect, task=task, ignore=ignore or (), layout=layout))


@app.command()
def layout(
    data: Data,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Write a dataset.yaml to be edited.")
    ] = None,
    dialect: Dialect = None,
    task: Task = None,
    ignore: Ignore = None,
    layout: Layout = None,
) -> None:
    """Say which layout a data folder has, and why; what is read of it, and what is left out."""
    found = masksmith.layout(
        data, dialect=dialect, task=task, ignore=ignore or (), layout=layout, write=write
    )
    print(json.dumps(found.to_json(), indent=1, ensure_ascii=False) if as_json else found)


@app.command()
def bundle(
    project: Folder,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file, such as model.msk.")],
    run: RunName = None,
    best: Annotated[int | None, typer.Option("--best", help="Only the N best members.")] = None,
    single: Annotated[
        bool, typer.Option("--single", help="Only the best member: the fastest model.")
    ] = False,
    fold: Annotated[
        int | None, typer.Option("--fold", help="Only members trained without this fold.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Of the weights, for the model card.")
    ] = None,
    intended_use: Annotated[str | None, typer.Option("--intended-use", help="For the model card.")] = None,
) -> None:
    """Write the trained model as one file, to be used without the project."""
    kept = 1 if single else best
    print(
        masksmith.bundle(
            project, out, run=run, best=kept, fold=fold, licence=licence, intended_use=intended_use
        )
    )


@app.command()
def apply(
    model: Annotated[Path, typer.Argument(help="What `masksmith bundle` made.")],
    inputs: Annotated[list[str], typer.Argument(help="Images, folders, archives, or quoted patterns.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the masks and apply.csv.")],
    write: Annotated[
        list[str] | None,
        typer.Option(
            "--write",
            help="What else is written: overlay, tiff, geotiff, geojson, probs, probs-geotiff, nifti, dicom-seg, coco "
            "or rle; repeatable.",
        ),
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write pictures with the masks.")] = False,
    dialect: Annotated[str, typer.Option("--dialect", help="Of --write rle.")] = "tgs",
    table: Annotated[
        Path | None, typer.Option("--table", help="CSV with the numbers that the model takes, by id.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look for new and changed files until Ctrl-C.")
    ] = False,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks.")] = 1.0,
    device: Device = None,
    runtime: Annotated[str | None, typer.Option("--runtime", help="torch or openvino.")] = None,
) -> None:
    """Segment new images with a trained model."""
    done = masksmith.apply(
        model,
        inputs,
        out,
        write=write or (),
        overlay=overlay,
        dialect=dialect,
        table=table,
        watch=watch,
        every_s=every,
        device=device,
        runtime=runtime,
    )
    print(done)
    if done.refused:
        raise typer.Exit(EXIT_PARTLY)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="What `masksmith bundle` made.")],
    format: Annotated[str, typer.Option("--format", "-f", help="onnx, openvino or torch.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file: .onnx, .xml or .pt2.")],
    precision: Annotated[
        str, typer.Option("--precision", help="fp32, fp16 (onnx, openvino), bf16 or int8 (openvino).")
    ] = "fp32",
    mask: Annotated[bool, typer.Option("--mask", help="The file gives masks, not probabilities.")] = False,
    images: Annotated[
        Path | None, typer.Option("--images", help="Images that the file is compared with the model on.")
    ] = None,
    project: Annotated[
        Path | None,
        typer.Option(
            "--project", help="What the model was made of: int8 is calibrated and judged by its images."
        ),
    ] = None,
    drop: Annotated[
        float | None, typer.Option("--drop", help="By how much the score may fall in int8 (0.005).")
    ] = None,
) -> None:
    """Write a trained model for another runtime, and compare the two."""
    print(
        masksmith.export(
            model,
            out,
            format=format,
            precision=precision,
            mask=mask,
            images=images or (),
            project=project,
            drop=drop,
        )
    )


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="What `masksmith bundle` or `export` made.")],
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; others than this machine's own need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0: any that is free.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            "--token", help="What clients must send; better: the environment variable MASKSMITH_TOKEN."
        ),
    ] = None,
    max_mb: Annotated[float, typer.Option("--max-mb", help="Largest file of an image, MiB.")] = 64,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for a request.")] = 60,
    queue: Annotated[int, typer.Option("--queue", help="Requests that wait; more are answered 429.")] = 8,
    device: Device = None,
    runtime: Annotated[str | None, typer.Option("--runtime", help="torch or openvino.")] = None,
) -> None:
    """Serve a trained model: POST an image to /segment, or drop one on the page."""
    masksmith.serve(
        model,
        host=host,
        port=port,
        token=token,
        max_mb=max_mb,
        timeout_s=timeout,
        queue=queue,
        device=device,
        runtime=runtime,
    )


@app.command()
def review(
    project: Folder,
    run: RunName = None,
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0: any that is free.")] = 8766,
) -> None:
    """Open a page on this machine: the worst images first, judged and mended by hand."""
    masksmith.review(project, run=run, port=port)


@app.command()
def pack(
    model: Annotated[Path, typer.Argument(help="What `masksmith bundle` made.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The zip file.")],
) -> None:
    """Write a zip for code competitions: model, code and a script that needs no network."""
    print(masksmith.pack(model, out))


@app.command()
def clean(
    project: Folder,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="cache, runs or submissions; may come several times.")
    ] = None,
) -> None:
    """Show what could be freed in a project, and free what --remove names."""
    for kind, size in masksmith.clean(project, remove=remove or ()).items():
        print(f"{size / 2**20:10.1f} MiB  {kind}{' (removed)' if kind in (remove or ()) else ''}")


@app.command()
def doctor(
    project: Annotated[Path, typer.Argument(help="Where a project would lie.")] = Path(),
) -> None:
    """Show what this machine can do and what is within reach."""
    for line in masksmith.doctor(project):
        print(line)


@app.command()
def cache(
    project: Folder,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove them; they are made again when needed.")
    ] = False,
) -> None:
    """Show the decoded and prepared files of a project with their sizes."""
    files = masksmith.cache(project, clear=clear)
    for name, size in files.items():
        print(f"{size / 2**20:10.1f} MiB  {name}")
    print(f"{sum(files.values()) / 2**20:10.1f} MiB  {'removed' if clear else 'in all'}")


@app.command()
def folds(project: Folder, recipe: RecipeName = "auto", overrides: Set = None) -> None:
    """Make the folds, once, and print their balance."""
    print(masksmith.folds(project, recipe=recipe, overrides=overrides or ()))


@app.command()
def train(
    project: Folder,
    recipe: RecipeName = "auto",
    overrides: Set = None,
    scale: Scale = None,
    log: Log = None,
    engine: EngineName = "local",
) -> None:
    """Train the folds that are not trained yet."""
    run = masksmith.train(
        project, recipe=recipe, overrides=overrides or (), scale=scale, log=log or (), engine=engine
    )
    print(run.path)


@app.command()
def predict(project: Folder, run: RunName = None, engine: EngineName = "local") -> None:
    """Predict held-out and test images at their true size."""
    print(masksmith.predict(project, run=run, engine=engine).path)


@app.command()
def tune(project: Folder, run: RunName = None) -> None:
    """Search the post-processing on out-of-fold predictions; keep it only if it helps."""
    found = masksmith.tune(project, run=run)
    scores = found["scores"]
    print(f"{found['metric']}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    if found["num_rules"] > 1:
        print(
            f"nested gain {found['gain_mean']:+.4f} (80% bounds {found['gain_low']:+.4f}, {found['gain_high']:+.4f}): "
            f"{'kept' if found['kept'] else 'not kept'}"
        )
    else:
        print("not searched: the recipe gives one rule")
    print(f"rule: {found['rule_text']}")


@app.command()
def submit(
    project: Folder,
    run: RunName = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="Only validate this file, whoever made it.")
    ] = None,
    write: Annotated[
        list[str] | None,
        typer.Option(
            "--write",
            help="The masks in another form, in outputs/: tiff, geotiff, geojson, coco, dicom-seg, nifti, rle, "
            "overlay, probs or probs-geotiff; repeatable.",
        ),
    ] = None,
    dialect: Annotated[
        str | None, typer.Option("--dialect", help="Of --write rle; default: the submission's.")
    ] = None,
) -> None:
    """Write masks and a validated submission."""
    done = masksmith.submit(project, run=run, check=check, write=write or (), dialect=dialect)
    print(done)
    if done.refused:
        raise typer.Exit(EXIT_PARTLY)


member = typer.Typer(help="Probabilities of other programs as members.", no_args_is_help=True)
app.add_typer(member, name="member")


@member.command("add")
def member_add(
    project: Folder,
    name: Annotated[str, typer.Argument(help="Of the member: small letters, digits and -.")],
    oof: Annotated[
        Path, typer.Option("--oof", help="Folder of out-of-fold probabilities: ID.npy, .npz, .png or .tif.")
    ],
    test: Annotated[Path | None, typer.Option("--test", help="The same of the test images.")] = None,
    folds: Annotated[
        Path | None, typer.Option("--folds", help="CSV with id and fold that they were made with.")
    ] = None,
    weight: Annotated[float, typer.Option("--weight", help="In the mean, beside 1 of each own run.")] = 1.0,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", help="Its metric and tuning are used; default: the last run's, or auto."
        ),
    ] = None,
    overrides: Set = None,
    metric: Metric = None,
) -> None:
    """Take probabilities that another program made into tuning, ensembles and submission."""
    print(
        masksmith.add_member(
            project,
            name,
            oof=oof,
            test=test,
            folds=folds,
            weight=weight,
            recipe=recipe,
            overrides=overrides or (),
            metric=metric,
        )
    )


@member.command("list")
def member_list(project: Folder) -> None:
    """Show the members: folds, weight and score of each run."""
    for line in masksmith.list_members(project):
        print(line)


@member.command("remove")
def member_remove(project: Folder, name: Annotated[str, typer.Argument(help="Of the member.")]) -> None:
    """Remove the probabilities of another program."""
    masksmith.remove_member(project, name)


@app.command()
def weights(project: Folder, run: RunName = None) -> None:
    """Compare last, best, averaged and snapshot weights out of fold; take the best if that is certain."""
    print(masksmith.weights(project, run=run))


@app.command()
def blend(
    project: Folder,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", help="A run or member that is a candidate; all if none is named."),
    ] = None,
    max_models: Annotated[
        int | None, typer.Option("--max-models", metavar="N", help="Most members that take part.")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", help="Most seconds for a test image.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Go back to the members from before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search the best ensemble of all runs and members out of fold; use it if its gain is certain."""
    found = masksmith.blend(project, run=run or (), max_models=max_models, max_seconds=max_seconds, off=off)
    print(json.dumps(found if isinstance(found, str) else found.to_json(), indent=1) if as_json else found)


@app.command()
def pseudo(
    project: Folder,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="At most so many rounds.")] = 3,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Of the students; default: the present members'.")
    ] = None,
    overrides: Set = None,
    images: Annotated[
        int | None, typer.Option("--images", metavar="N", help="At most so many labels; default: as masks.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Go back to the members from before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train on pseudo-labels of the test images in rounds, as long as that helps out of fold."""
    found = masksmith.pseudo(
        project, rounds=rounds, recipe=recipe, overrides=overrides or (), images=images, off=off
    )
    print(json.dumps(found if isinstance(found, str) else found.to_json(), indent=1) if as_json else found)


@app.command()
def stack(
    project: Folder,
    run: RunName = None,
    off: Annotated[bool, typer.Option("--off", help="Go back to the members from before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train boosted trees on out-of-fold predictions: pixels, regions, images; use them if the gain is certain."""
    found = masksmith.stack(project, run=run, off=off)
    print(json.dumps(found if isinstance(found, str) else found.to_json(), indent=1) if as_json else found)


@app.command()
def labels(
    project: Folder,
    run: RunName = None,
    try_folder: Annotated[
        str | None,
        typer.Option(
            "--try", metavar="FOLDER", help="Train with its corrections; take them if that is certain."
        ),
    ] = None,
    following: Annotated[
        int | None, typer.Option("--next", metavar="N", help="Choose N unlabelled images to label next.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rank training masks by out-of-fold disagreement: cause and proposal of each, in labels.csv."""
    if try_folder is not None and following is not None:
        raise InputError("--try and --next: expected one of them")
    found: Any
    if try_folder is not None:
        found = masksmith.try_labels(project, try_folder, run=run)
    elif following is not None:
        found = masksmith.next_labels(project, following, run=run)
    else:
        found = masksmith.labels(project, run=run)
    print(json.dumps(found.to_json(), indent=1, ensure_ascii=False) if as_json else found)


@app.command()
def ablate(
    project: Folder,
    run: RunName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure each step of the last mile: views, weights, ensemble, rule; gain and interval of each."""
    found = masksmith.ablate(project, run=run)
    print(json.dumps(found.to_json(), indent=1, ensure_ascii=False) if as_json else found)


board = typer.Typer(help="The diary of the public board.", no_args_is_help=True)
app.add_typer(board, name="board")


@board.command("add")
def board_add(
    project: Folder,
    score: Annotated[float, typer.Argument(help="As the board shows it, in the units of the metric.")],
    note: Annotated[str, typer.Option("--note", help="What there is to say of it.")] = "",
    file: Annotated[
        Path | None,
        typer.Option("--file", help="The submission; default: submission.csv. Earlier ones: submissions/."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", "-m", help="Of the board, to be compared with the project's.")
    ] = None,
    public_share: Annotated[
        float | None,
        typer.Option("--public-share", help="Part of the test images that the public board scores; kept."),
    ] = None,
) -> None:
    """Write a public score into the diary, beside that of cross-validation."""
    print(
        masksmith.add_board_score(
            project, score, note=note, file=file, metric=metric, public_share=public_share
        )
    )


@board.command("show")
def board_show(project: Folder) -> None:
    """Show public scores beside cross-validation: what is noise, and signs of a shake-up."""
    print(masksmith.board(project))


@app.command()
def report(project: Folder, run: RunName = None) -> None:
    """Write report.html."""
    print(masksmith.report(project, run=run))


@app.command()
def watch(
    project: Folder,
    every: Annotated[
        float | None,
        typer.Option("--every", help="Seconds between two looks; default: 2 on a terminal, else 10."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once, and go.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each look.")] = False,
) -> None:
    """Look on while a project trains in another process: trainings, curves, time left, score, pictures."""
    from masksmith.steps.watch import follow

    follow(project, every_s=every, once=once, as_json=as_json)


@app.command()
def compare(
    projects: Annotated[list[Path], typer.Argument(help="Project folders of the same data, one or several.")],
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run", help="A run by name; the first is what others are compared with; default: all."
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", "-m", help="That scores all runs; default: their own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page; default: compare.html in the first project.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare runs on the images that all hold out: recipes, scores, curves, pictures that changed most."""
    found = masksmith.compare(*projects, runs=run or (), metric=metric, out=out)
    print(json.dumps(found.numbers, indent=1, ensure_ascii=False) if as_json else found)


@app.command()
def score(
    pred: Annotated[Path, typer.Argument(help="CSV of run-lengths, or a folder of masks named by id.")],
    truth: Annotated[Path, typer.Argument(help="CSV or folder of the true masks.")],
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            "-m",
            help="Any metric; default: tgs_map of CSVs, dice_per_image, miou, dsb_map by task.",
        ),
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", help="HEIGHTxWIDTH of the images, for CSVs that do not tell.")
    ] = None,
    dialect: Dialect = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="binary, multiclass, multilabel or instances; default: by the masks' values."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore", metavar="VALUE", help="Value of the true masks that is not judged; may be repeated."
        ),
    ] = None,
    groups: Annotated[
        str | None, typer.Option("--groups", metavar="CSV:COLUMN", help="Group of each image.")
    ] = None,
    per_image: Annotated[
        Path | None,
        typer.Option("--per-image", metavar="CSV", help="Write each image's own score to this file."),
    ] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option(
            "--explain", metavar="ID", help="Show an image's tgs_map threshold by threshold; may be repeated."
        ),
    ] = None,
) -> None:
    """Score predicted masks against true ones, of any task, with an interval, per class and per group."""
    print(
        masksmith.score(
            pred,
            truth,
            metric=metric,
            shape=None if shape is None else parse_shape(shape),
            dialect=dialect,
            task=task,
            ignore=ignore or (),
            groups=groups,
            per_image=per_image,
            explain=explain or (),
        )
    )


@app.command()
def explain(
    name: Annotated[
        str | None,
        typer.Argument(help="A metric, loss, view, augmentation or topic; none: what there is."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="A picture to explain it on; default: a drawn one.")
    ] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="Its true mask: above 0 is foreground.")] = None,
    pred: Annotated[
        Path | None, typer.Option("--pred", help="A predicted mask, or probabilities as grey values.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page with pictures: FILE.html.")
    ] = None,
) -> None:
    """Explain a metric, a loss or a method on an image, with pictures."""
    if name is None:
        from masksmith.steps.explain import names_by_kind

        for kind, names in names_by_kind().items():
            print(f"{kind}: {', '.join(names)}")
        return
    print(masksmith.explain(name, image=image, mask=mask, pred=pred, out=out))


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A foreign checkpoint (.pth, .pt, .bin, .ckpt); or DICOM: a folder, archive or .dcm file."
        ),
    ],
    target: Annotated[Path | None, typer.Argument(help="The .safetensors file to write.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The same; of DICOM the folder of PNG and convert.csv.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Where in it the weights lie, e.g. ema.")] = None,
    only: Annotated[str, typer.Option("--only", help="Only names that begin so, e.g. encoder.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace the .safetensors if it is there.")] = False,
    chain: Annotated[
        str,
        typer.Option("--chain", help="Contrast of DICOM, as input.chain: '[{name: clahe, tile_px: 32}]'."),
    ] = "[]",
    bits: Annotated[int, typer.Option("--bits", help="Of a pixel of the PNG: 8 or 16.")] = 8,
) -> None:
    """Make safe weights of a torch checkpoint (code in it is refused, never run), or PNG of DICOM files."""
    if (target is None) == (out is None):
        raise InputError(
            "convert: expected one of OUT and --out OUT: a .safetensors file, or a folder for pictures"
        )
    where = target or out
    assert where is not None
    given = "" if chain == "[]" else chain
    done = masksmith.convert(source, where, key=key, only=only, force=force, chain=given or (), bits=bits)
    print(done)
    if getattr(done, "refused", None):
        raise typer.Exit(EXIT_PARTLY)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show (or check) this one.")] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check weights, sizes, four losses, and that eight images are learnt."),
    ] = False,
    scale: Annotated[str, typer.Option("--scale", help="With --verify: small or full.")] = "small",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")
    ] = False,
) -> None:
    """List the bundled recipes by contest, or show one: header, every value, weights, size trace."""
    from masksmith.recipes.listing import listing_table
    from masksmith.recipes.sources import list_recipes

    if schema:
        if name is not None or verify:
            raise InputError(
                f"recipes --schema: came with {'--verify' if verify else repr(name)}; expected it alone: one schema is "
                "for all recipes"
            )
        print(json.dumps(masksmith.recipe_schema(), indent=1, ensure_ascii=False))
        return
    if verify:
        print(masksmith.verify(name, scale=scale))
        return
    if name is not None:
        print(masksmith.recipes(name))
        return
    print(listing_table(list_recipes(), width=shutil.get_terminal_size((120, 24)).columns))


@app.command()
def vocabulary(
    kind: Annotated[
        str | None, typer.Argument(help="models, losses, metrics, augmentation, …; default: all.")
    ] = None,
) -> None:
    """List the words of a recipe: models, losses, metrics, augmentation, optimizers, schedules and more."""
    print(masksmith.vocabulary(kind))


@app.command()
def example(
    out: Annotated[
        Path, typer.Argument(help="Folder to make: OUT/data and OUT/solution.csv (or OUT/solution/).")
    ],
    train: Annotated[
        int | None, typer.Option(min=10, help="Training images; default: 300, or 20 large.")
    ] = None,
    test: Annotated[int | None, typer.Option(min=1, help="Test images; default: 100, or 5 large.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generator.")] = 0,
    task: Annotated[
        str, typer.Option("--task", help="binary, multiclass, multilabel or instances.")
    ] = "binary",
    large: Annotated[bool, typer.Option("--large", help="Images of 1,024 to 1,536 pixels a side.")] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            help="A contest's download: tgs, siim, oncloud, carvana, dsb2018, severstal, airbus or uwmadison.",
        ),
    ] = None,
    side: Annotated[
        int | None, typer.Option("--side", min=16, help="With --layout: shorter side in pixels; default: 64.")
    ] = None,
) -> None:
    """Generate a small data set, to try masksmith on."""
    print(
        masksmith.example(
            out, train=train, test=test, seed=seed, task=task, large=large, layout=layout, side=side
        )
    )


def parse_shape(text: str) -> tuple[int, int]:
    """Return (height, width) of a text like "101x101".

    Raises:
        InputError: Another form.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--shape {text}: expected HEIGHTxWIDTH in pixels, for example 101x101")
    return int(parts[0]), int(parts[1])


def _version(asked: bool) -> bool:
    if asked:
        print(f"masksmith {masksmith.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the result and warnings.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del version
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("masksmith")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def _terminated(_signal: int, _frame: object) -> None:
    raise SystemExit(EXIT_TERMINATED)


def main() -> None:
    """Run the command line; see errors.py for the exit codes."""
    signal.signal(signal.SIGTERM, _terminated)  # long verbs answer it between two steps: see core.interrupt
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        print(f"masksmith: {error}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    except StoppedError as error:
        print(f"masksmith: {error}; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(error.exit_code)
    except (DivergedError, LostProcessError) as error:
        print(f"masksmith: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        print("masksmith: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # a usage error of the command line
            error.show()
            sys.exit(error.exit_code)
        raise
    sys.exit(code if isinstance(code, int) else 0)
