"""READ FIRST: the whole way, each verb a function of about ten lines.

``compete`` = check → folds → train → predict → tune → submit → report. Every verb can be run alone on a project
folder; what is done and whose inputs have not changed is not done again. What a verb does with the project's files is
in ``steps``.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from masksmith import steps
from masksmith.augment import CallableAugment
from masksmith.core import interrupt
from masksmith.core.errors import InputError
from masksmith.core.locks import folder_lock
from masksmith.core.progress import logger
from masksmith.data.checks import CheckReport
from masksmith.data.synthetic import make_example
from masksmith.folds.table import Folds
from masksmith.planning.budget import Budget, parse_duration
from masksmith.project.folder import Project
from masksmith.project.members import read_members
from masksmith.project.runs import Run
from masksmith.recipes.ensemble import is_ensemble, load_any
from masksmith.recipes.sources import Listing, list_recipes
from masksmith.steps.recipes import (
    Overrides,
    dotted,
    for_data,
    last_recipe,
    load_asked,
    load_single,
    load_to_compete_in_budget,
    refuse_pseudo_labels,
    single_for_data,
)
from masksmith.steps.result import Result
from masksmith.steps.searching import search as search
from masksmith.steps.searching import sweep as sweep
from masksmith.submission.score import Scored, score_files, write_per_image
from masksmith.submission.validate import Verdict

if TYPE_CHECKING:
    from masksmith.deploy.apply import Applied
    from masksmith.deploy.bundle import Bundle
    from masksmith.deploy.convert_dicom import ConvertedImages
    from masksmith.deploy.export import Exported
    from masksmith.deploy.pack import Packed
    from masksmith.deploy.segmenter import Segmenter
    from masksmith.models.convert import Converted
    from masksmith.project.live import Live
    from masksmith.recipes.describe import EnsembleSummary, RecipeSummary
    from masksmith.recipes.verify import Verdicts
    from masksmith.recipes.vocabulary import Vocabulary
    from masksmith.steps.ablate import Ablation
    from masksmith.steps.blend import Blended
    from masksmith.steps.board import Board
    from masksmith.steps.bundle import Bundled
    from masksmith.steps.compare import Comparison
    from masksmith.steps.dataset import DataSet, LayoutReport
    from masksmith.steps.doctor import Line
    from masksmith.steps.explain import Explanation
    from masksmith.steps.explore import Explored
    from masksmith.steps.external import MemberLine
    from masksmith.steps.labels import Labels, LabelTrial, NextLabels
    from masksmith.steps.lr_test import LrFound
    from masksmith.steps.pseudo_rounds import Rounds
    from masksmith.steps.stack import Stacked
    from masksmith.steps.weights import Compared


def check(
    data: str | Path,
    out: str | Path | None = None,
    *,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    layout: str | Path | None = None,
) -> CheckReport:
    """Recognise the layout, decode everything once, and say what is wrong with the data.

    Args:
        data: Folder with the data; zip files stay closed.
        out: Project folder to begin or go on with: absent, empty, or made by masksmith; None uses a temporary one.
        dialect: Of the run-lengths: tgs, siim, airbus, dsb, severstal, or one of them with ``_row_major``. None infers
            it, or takes the one that the project was begun with.
        task: What the masks mean: binary, multiclass, multilabel or instances. None lets their values decide.
        ignore: Values of mask files that are not judged.
        layout: Name of a layout that is insisted on, or a file that describes the data in place of ``dataset.yaml``.

    Returns:
        Facts and findings; ``print`` shows them.

    Raises:
        InputError: The data cannot be used, or the folder holds files of others; nothing in it is touched then.
    """
    folder = None if out is None else Path(out)
    return steps.check.check_folder(
        Path(data), folder, dialect=dialect, task=task, ignore=ignore, layout=layout
    )


def read(
    data: str | Path,
    out: str | Path | None = None,
    *,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    layout: str | Path | None = None,
) -> "DataSet":
    """Read a data folder of any known layout.

    Examples:
        >>> import masksmith as ms
        >>> data = ms.read("camvid")  # doctest: +SKIP
        >>> data.train[0].image.shape, data.train[0].target.max()  # doctest: +SKIP

    Args:
        data: As for ``check``, and so are the others.
        out: Project folder in which what is decoded is kept; None: a temporary one that lives as long as the result.
        dialect: Of the run-lengths.
        task: What the masks mean.
        ignore: Values of mask files that are not judged.
        layout: Name of a layout, or a file that describes the data.

    Returns:
        ``task``, ``classes``, ``findings`` (those of ``check``), ``train`` and ``test``: samples with ``id``,
        ``group``, ``image`` (h, w, c) and ``target``, which are read when they are asked for.

    Raises:
        InputError: As ``check``.
    """
    folder = None if out is None else Path(out)
    return steps.dataset.read_folder(
        Path(data), folder, dialect=dialect, task=task, ignore=ignore, layout=layout
    )


def layout(
    data: str | Path,
    *,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    layout: str | Path | None = None,
    write: str | Path | None = None,
) -> "LayoutReport":
    """Say what is recognised in a data folder, and why.

    Args:
        data: As for ``check``, and so are the others.
        dialect: Of the run-lengths.
        task: What the masks mean.
        ignore: Values of mask files that are not judged.
        layout: Name of a layout, or a file that describes the data.
        write: File to write what was found to, as a ``dataset.yaml`` to be edited.

    Raises:
        InputError: As ``check``; the file to be written is there.
    """
    found = read(data, dialect=dialect, task=task, ignore=ignore, layout=layout)
    if write is not None:
        steps.dataset.write_description(found, Path(write))
    return steps.dataset.describe_layout(found)


def explore(
    data: str | Path,
    out: str | Path,
    *,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    layout: str | Path | None = None,
) -> "Explored":
    """Show a data set before training: ``out/explore.html``, one page without network, and ``out/explore.json``.

    Args:
        data: As for ``check``, and so are the others.
        out: Project folder to begin or go on with: absent, empty, or made by masksmith.
        dialect: Of the run-lengths.
        task: What the masks mean.
        ignore: Values of mask files that are not judged.
        layout: Name of a layout, or a file that describes the data.

    Returns:
        The paths of both, and the numbers.

    Raises:
        InputError: As ``check``.
    """
    return steps.explore.explore_folder(
        Path(data), Path(out), dialect=dialect, task=task, ignore=ignore, layout=layout
    )


def bundle(
    out: str | Path,
    path: str | Path,
    *,
    run: str | None = None,
    best: int | None = None,
    fold: int | None = None,
    licence: str | None = None,
    intended_use: str | None = None,
) -> "Bundled":
    """Write a project's model as one file, which segments new images without the project.

    Args:
        out: Project folder, trained and tuned.
        path: The file, which ends in ``.msk``.
        run: A run by name; None: what the submission is made of.
        best: Only so many members, those that score best on their held-out images.
        fold: Only the members trained without this fold: they give its out-of-fold probabilities again.
        licence: Of the weights, for the model card.
        intended_use: For the model card.

    Raises:
        InputError: Nothing is trained or tuned, or no such member.
    """
    project = Project.open(Path(out))
    with folder_lock(project.root):
        return steps.bundle.bundle_members(
            project,
            read_members(project, run),
            Path(path),
            best=best,
            fold=fold,
            licence=licence,
            intended_use=intended_use,
        )


def load(path: str | Path, *, device: str | None = None, runtime: str | None = None) -> "Segmenter":
    """Open a model that ``bundle`` or ``export`` made; ``load(path).segment(image)`` segments an array.

    Args:
        path: The file.
        device: "cpu", "cuda", "mps" or "auto"; None: what the project predicted on. An exported file runs on the CPU.
        runtime: "torch" or "openvino"; None: what the project predicted with, or that of the exported file.

    Raises:
        InputError: No such file, no model, or a damaged one.
    """
    from masksmith.deploy.exported import load_any

    return load_any(path, device=device, runtime=runtime)


def export(
    model: str | Path,
    out: str | Path,
    *,
    format: str,
    precision: str = "fp32",
    mask: bool = False,
    images: str | Path | Sequence[str | Path] = (),
    project: str | Path | None = None,
    drop: float | None = None,
) -> "Exported":
    """Write a model for another runtime: the whole ensemble in one file, from raw pixels to probabilities.

    The file takes images (b, h, w, c) of any size and number, of the type of the training images, and gives
    probabilities (b, h, w, k). Scaling, resizing, borders and the mean of the members are in it; views (test-time
    augmentation), tiles and the rule are not. ``load``, ``apply`` and ``serve`` take it, with FILE.json beside it.

    Args:
        model: What ``bundle`` made.
        out: The file: ``.onnx``, ``.xml`` (with its weights in ``.bin``) or ``.pt2``.
        format: "onnx", "openvino" or "torch" (torch.export).
        precision: "fp32", "fp16" (ONNX, OpenVINO), "bf16" or "int8" (OpenVINO).
        mask: Whether the file gives masks by the model's rule, where that is one of thresholds or classes.
        images: What the file is compared with the model on; none: some of the project's, or generated textures.
        project: What the model was made of; "int8" is calibrated on its training images, and judged on those that each
            member has not seen.
        drop: With "int8": by how much that score may fall; None: 0.005.

    Returns:
        Sizes, and how far the file is from the model.

    Raises:
        InputError: What was asked for is not possible, a package is missing, or the file is too far from the model; it
            is then removed.
    """
    from masksmith.deploy.export import DROP, export_model

    judge = None if project is None else steps.export.judge_of(Project.open(Path(project)), Path(model))
    return export_model(
        Path(model),
        Path(out),
        format=format,
        precision=precision,
        mask=mask,
        images=_several(images),
        judge=judge,
        drop=DROP if drop is None else drop,
    )


def _several(paths: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [paths] if isinstance(paths, str | Path) else list(paths)


def apply(
    model: str | Path,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    write: Sequence[str] = (),
    overlay: bool = False,
    dialect: str = "tgs",
    table: str | Path | None = None,
    watch: bool = False,
    every_s: float = 1.0,
    device: str | None = None,
    runtime: str | None = None,
) -> "Applied":
    """Segment files with a model: ``out/masks/ID.png`` and ``out/apply.csv``.

    Args:
        model: What ``bundle`` or ``export`` made.
        inputs: Files, folders (with sub-folders), archives or patterns of names, one or several.
        out: Folder of the results: absent, empty or one of an earlier call, which is gone on with.
        write: What else is written: overlay, tiff, geotiff (with georeference and no-data), geojson, probs,
            probs-geotiff, nifti, dicom-seg, coco, rle. Each has a folder or a file in ``out`` that is named so.
        overlay: The same as ``overlay`` in ``write``: pictures of the masks over the images, ``out/overlays/ID.png``.
        dialect: Of the run-lengths.
        table: CSV file with the numbers that the model takes beside each image, by id.
        watch: Whether to look for new and changed files until Ctrl-C or SIGTERM.
        every_s: Seconds between two looks.
        device: As for ``load``.
        runtime: As for ``load``.

    Returns:
        How many images were segmented, and what could not be used and why; such files do not stop the rest.

    Raises:
        InputError: The model or an input is not there, ``out`` holds files of others, or what is to be written is
            unknown or lacks its package.
        StoppedError: Ctrl-C or SIGTERM; what is finished stays.
    """
    from masksmith.deploy.apply import apply_model, read_scalars

    given = _several(inputs)
    segmenter = load(model, device=device, runtime=runtime)
    numbers = None if table is None else read_scalars(Path(table), segmenter.scalars)
    with interrupt.graceful():
        return apply_model(
            segmenter,
            given,
            Path(out),
            write=[*write, *["overlay"] * overlay],
            dialect=dialect,
            table=numbers,
            watch_s=every_s if watch else None,
        )


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    max_mb: float = 64,
    timeout_s: float = 60,
    queue: int = 8,
    device: str | None = None,
    runtime: str | None = None,
) -> None:
    """Serve a model over HTTP until Ctrl-C or SIGTERM.

    ``POST /segment`` segments, ``/`` is a page to try it, ``/docs`` and ``/openapi.json`` say the rest.

    Args:
        model: What ``bundle`` or ``export`` made.
        host: Name or address that is listened on; with another than this machine's own a token is needed.
        port: TCP port, 0: any that is free.
        token: What clients must send as ``Authorization: Bearer TOKEN``; None: what MASKSMITH_TOKEN says.
        max_mb: Largest file of an image, in MiB.
        timeout_s: Seconds for a request, with its wait.
        queue: Requests that wait; those beyond are answered 429 at once.
        device: As for ``load``.
        runtime: As for ``load``.

    Raises:
        InputError: The model, the host or the port cannot be used, or the extra ``serve`` is missing.
    """
    from masksmith.deploy.serve import Limits, serve_model

    if max_mb <= 0 or timeout_s <= 0 or queue < 0:
        raise InputError(
            f"serve: max_mb {max_mb:g}, timeout_s {timeout_s:g}, queue {queue}; expected numbers above 0, and "
            "a queue of 0 or more"
        )
    limits = Limits(max_bytes=int(max_mb * 2**20), timeout_s=timeout_s, queue=queue)
    serve_model(load(model, device=device, runtime=runtime), host=host, port=port, token=token, limits=limits)


def review(out: str | Path, *, run: str | None = None, port: int = 8766) -> None:
    """Serve a page over a project on this machine until Ctrl-C or SIGTERM: look at images, judge them, mend masks.

    The costliest or most doubtful images come first. Nothing of the data is changed: what is said of training images,
    and masks that are mended, go to ``corrections/``, masks that are drawn on test images to ``annotations/``. It works
    beside a training of the same project, and shows what is predicted by now.

    Args:
        out: Project folder.
        run: A run; None: the current one.
        port: TCP port of 127.0.0.1, 0: any that is free.

    Raises:
        InputError: No project, no such run, corrections that make no sense, a review of the project that is open
            already, a port in use, or the extra ``serve`` is missing.
    """
    from masksmith.steps.review import review_project

    review_project(Path(out), run=run, port=port)


def pack(model: str | Path, out: str | Path) -> "Packed":
    """Write what a code competition takes: a zip with model, code and a script that needs no network.

    Args:
        model: What ``bundle`` made.
        out: The zip file.

    Raises:
        InputError: No such model, or a name that does not end in ``.zip``.
    """
    from masksmith.deploy.pack import pack_model

    return pack_model(Path(model), Path(out))


def cache(out: str | Path, *, clear: bool = False) -> dict[str, int]:
    """Return the bytes of each decoded or prepared file of a project; ``clear`` removes them.

    The next command that needs them makes them again from the data.
    """
    project = Project.open(Path(out))
    with folder_lock(project.root):
        return project.cache_files(clear=clear)


def clean(out: str | Path, *, remove: Sequence[str] = ()) -> dict[str, int]:
    """Return the bytes that could be freed in a project, and free those that are named.

    Args:
        out: Project folder.
        remove: ``cache`` (decoded images, made again from the data), ``runs`` (those that the present submission is not
            made of) and ``submissions`` (earlier ones).

    Returns:
        Kind -> bytes.

    Raises:
        InputError: An unknown kind.
    """
    project = Project.open(Path(out))
    with folder_lock(project.root):
        return steps.clean.clean_project(project, remove)


def doctor(out: str | Path = ".") -> list["Line"]:
    """Return what this machine can do and what is within reach, a line each; ``out``: where a project would lie."""
    return steps.doctor.look(Path(out))


def folds(out: str | Path, *, recipe: str = "auto", overrides: Overrides = ()) -> Folds:
    """Make the folds of a project, once; later calls read them."""
    project, changes = Project.open(Path(out)), dotted(overrides)
    asked = load_any(recipe, changes)
    with folder_lock(project.root):
        return steps.folds.folds_of(project, for_data(project, asked, recipe, changes))


def train(
    out: str | Path,
    *,
    recipe: str = "auto",
    overrides: Overrides = (),
    augment: CallableAugment | None = None,
    scale: str | None = None,
    log: str | Sequence[str] = (),
    engine: str = "local",
) -> Run:
    """Train the folds of a recipe, or of all recipes of an ensemble, that are not trained yet.

    Args:
        out: Project folder.
        recipe: A bundled recipe or ensemble, or a YAML file.
        overrides: Dotted changes, as for ``compete``.
        augment: As for ``compete``.
        scale: As for ``compete``.
        log: As for ``compete``.
        engine: As for ``compete``.

    Returns:
        The run of the recipe, or of the first recipe of the ensemble.
    """
    loggers = _loggers(log)
    project, changes = Project.open(Path(out), augment=augment, loggers=loggers), dotted(overrides)
    asked = load_asked(recipe, changes, scale=scale)
    with steps.work.opened(engine) as workers, steps.work.working(project):
        workers.need(project.root)
        return steps.compete.train_asked(project, for_data(project, asked, recipe, changes), workers)


def _loggers(asked: str | Sequence[str]) -> tuple[str, ...]:
    from masksmith.training.loggers import check_loggers

    return check_loggers([asked] if isinstance(asked, str) else asked)


def predict(out: str | Path, *, run: str | None = None, engine: str = "local") -> Run:
    """Predict every trained fold's held-out images and the test images; ``engine`` as for ``compete``."""
    project = Project.open(Path(out))
    with steps.work.opened(engine) as workers, steps.work.working(project):
        workers.need(project.root)
        members = read_members(project, run)
        steps.tasks.predict_members(project, workers, members)
        return members[0].run


def tune(out: str | Path, *, run: str | None = None) -> dict[str, Any]:
    """Search the triplet rule on out-of-fold probabilities; return what ``tuning.json`` holds."""
    project = Project.open(Path(out))
    with folder_lock(project.root):
        return steps.tune.tune_members(project, read_members(project, run))


def submit(
    out: str | Path,
    *,
    run: str | None = None,
    check: str | Path | None = None,
    write: Sequence[str] = (),
    dialect: str | None = None,
) -> Verdict:
    """Write masks and a validated submission.

    Args:
        out: Project folder.
        run: A run by name; None: the present members.
        check: Only validate this file (or folder of mask files, where the judge takes such), whoever made it.
        write: Other forms of the masks, each written to ``outputs/FORM``: tiff, geotiff, geojson, coco, dicom-seg, rle
            and the others of ``apply``.
        dialect: Of ``rle``; None: the submission's.

    Raises:
        InputError: Nothing is tuned, or the file is not valid: the message has every problem with its line.
    """
    project = Project.open(Path(out))
    if check is not None:
        if write or run or dialect:
            raise InputError("--check looks at a file alone; leave --run, --write and --dialect out")
        return steps.submit.check_file(project, Path(check))
    with folder_lock(project.root):
        members = read_members(project, run)
        verdict = steps.submit.submit_members(project, members)
        if not write:
            return verdict
        folders, refused = steps.outputs.write_forms(project, members, write, dialect=dialect)
        return replace(verdict, written=tuple(map(str, folders)), refused=tuple(refused))


def add_member(
    out: str | Path,
    name: str,
    *,
    oof: str | Path,
    test: str | Path | None = None,
    folds: str | Path | None = None,
    weight: float = 1.0,
    recipe: str | None = None,
    overrides: Overrides = (),
    metric: str | None = None,
) -> "MemberLine":
    """Take probabilities that another program made into tuning, ensembles and submission.

    ``oof`` and ``test`` are folders with a file for each image, ``ID.npy``, ``.npz``, ``.png`` (8 or 16 bits) or
    ``.tif``, at the image's true size: (h, w), or a plane for each class, (h, w, k) or (k, h, w), or a folder for
    each class; or they are an ``.npz`` with an array for each id. Floats lie in 0…1; 255 and 65,535 are 1 in uint8 and
    uint16.

    Args:
        out: Project folder.
        name: Of the member.
        oof: Out-of-fold probabilities of the training images, of all folds or some whole ones.
        test: Probabilities of the test images, the mean of its models.
        folds: CSV with the columns ``id`` and ``fold`` that they were made with, to be compared with the project's, or
            to be its folds where it has none; None: ``folds.csv`` in ``oof``, if it is there.
        weight: In the mean, beside the 1 of each run of the project.
        recipe: Its metric and tuning are used where nothing is trained here; None: that of the last run, or ``auto``.
        overrides: Dotted changes of the recipe.
        metric: The metric to win; the same as the override ``metric=…``.

    Raises:
        InputError: Other ids, sizes, classes or folds, or no probabilities; all images that are wrong are named.
    """
    project, changes = Project.open(Path(out)), dotted(overrides, None, metric)
    asked = recipe or last_recipe(project)
    loaded = load_single(asked, changes, what="a member is scored by")
    with folder_lock(project.root):
        return steps.external.add_member(
            project,
            single_for_data(project, loaded, asked, changes),
            name,
            Path(oof),
            None if test is None else Path(test),
            folds=None if folds is None else Path(folds),
            weight=weight,
        )


def list_members(out: str | Path) -> "list[MemberLine]":
    """Return the present members of a project by run: own ones, and those of other programs.

    Raises:
        InputError: Nothing is trained or added yet.
    """
    return steps.external.list_members(Project.open(Path(out)))


def remove_member(out: str | Path, name: str) -> None:
    """Remove the probabilities of another program from a project.

    Raises:
        InputError: No such member, or a run of the project itself.
    """
    project = Project.open(Path(out))
    with folder_lock(project.root):
        steps.external.remove_member(project, name)


def weights(out: str | Path, *, run: str | None = None) -> "Compared":
    """Compare all weights that a run's trainings kept on their held-out images, and take the best if that is certain.

    Final, last, best, SWA, EMA (``last``) and no average (``raw``), snapshots and the best k, as ``training.keep``,
    ``top_k`` and schedules with restarts have left them. ``prediction.weights`` of the run becomes the winner where the
    lower 80% bound of its nested gain is above zero.

    Args:
        out: Project folder.
        run: A run by name; None: the present one.

    Raises:
        InputError: Members of several runs, a fold that is not trained, or only one kind of weights was kept.
    """
    project = Project.open(Path(out))
    with steps.work.working(project):
        return steps.weights.compare_weights(project, read_members(project, run))


def blend(
    out: str | Path,
    *,
    run: Sequence[str] = (),
    max_models: int | None = None,
    max_seconds: float | None = None,
    off: bool = False,
) -> "Blended | str":
    """Search the best ensemble of all that a project has, and use it if its gain out of fold is certain.

    Candidates are runs (recipes, seeds, resolutions, repeats), their kinds of weights that ``weights`` compared, and
    members of other programs. Tried are the arithmetic, logit, geometric, harmonic and power means, mean ranks, maximum
    and majority vote with equal weights; the best single and pair; greedy and simplex weights. All are chosen on the
    other folds and scored on this one. From then on predict, tune, submit and bundle use it; a later training makes its
    own recipe the present one again.

    Args:
        out: Project folder, trained.
        run: Names of the runs and members that are candidates; none: all.
        max_models: Most members that take part.
        max_seconds: Most seconds for a test image, as measured here.
        off: Only go back to the members from before the blend.

    Raises:
        InputError: Fewer than two candidates, one of ``run`` that cannot be used, or no blend to go back from.
        StoppedError: Stopped; nothing has changed then.
    """
    project = Project.open(Path(out))
    if off and (run or max_models or max_seconds):
        raise InputError("--off searches nothing; leave --run, --max-models and --max-seconds out")
    with steps.work.working(project):
        if off:
            return steps.blend.stop_blend(project)
        present = read_members(project, None)
        return steps.blend.blend_members(
            project, present, runs=run, max_models=max_models, max_seconds=max_seconds
        )


def pseudo(
    out: str | Path,
    *,
    rounds: int = 3,
    recipe: str | None = None,
    overrides: Overrides = (),
    images: int | None = None,
    off: bool = False,
) -> "Rounds | str":
    """Train students on pseudo-labels of the test images, round after round, as long as that helps out of fold.

    The present members teach the first round, the students of a round the next. The student of fold k learns from the
    mean of those that were trained without fold k. The rounds end with the first whose lower 80% bound of the paired
    gain is not above zero; the project then uses the round before it. The runs of all rounds stay, and a later
    ``blend`` can join them. What is done is not done again.

    Args:
        out: Project folder, trained.
        rounds: At most so many.
        recipe: Of the students; None: that of the present member with the largest weight. Where none of its stages is
            on pseudo-labels, all are on both then.
        overrides: Dotted changes of it, such as ``pseudo.labels=soft`` or ``pseudo.min_confident_frac=0.97``.
        images: At most so many labels a round, shared over ranges of coverage as the training masks are; None: as many
            as a fold trains on, or what the recipe's own ``pseudo`` says.
        off: Only go back to the members from before the rounds.

    Raises:
        InputError: No test images, masks that are not binary, members that cannot teach, labels that take no image, or
            no rounds to go back from.
        StoppedError: Stopped; the project predicts as before, and the same call goes on.
    """
    project, changes = Project.open(Path(out)), dotted(overrides)
    if off and (recipe or changes or images is not None):
        raise InputError("--off trains nothing; leave --recipe, --set and --images out")
    with steps.work.working(project):
        if off:
            return steps.pseudo_rounds.stop_rounds(project)
        asked = None
        if recipe is not None:
            single = load_single(recipe, changes, what="students are of")
            asked, changes = single_for_data(project, single, recipe, changes), ()
        present = read_members(project, None)
        return steps.pseudo_rounds.run_rounds(
            project, present, rounds=rounds, base=asked, overrides=changes, images=images
        )


def stack(out: str | Path, *, run: str | None = None, off: bool = False) -> "Stacked | str":
    """Train boosted trees on the members' out-of-fold predictions, and use them if their gain is certain.

    Of pixels (bands, probabilities, neighbourhood), of regions (is it right?), of images (is there anything?). Those of
    a fold have seen the predictions of the other folds alone. From then on predict, tune and submit use the
    best of the three if the lower 80% bound of its nested gain is above zero; a later training makes its own recipe the
    present one again. Bundles do not carry trees, and say so.

    Args:
        out: Project folder, trained and predicted.
        run: A run by name; None: the present members.
        off: Only go back to the members from before.

    Raises:
        InputError: scikit-learn is missing, too little is held out, or no stack to go back from.
        StoppedError: Stopped; nothing has changed then.
    """
    project = Project.open(Path(out))
    if off and run:
        raise InputError("--off trains nothing; leave --run out")
    with steps.work.working(project):
        if off:
            return steps.stack.stop_stack(project)
        return steps.stack.stack_members(project, read_members(project, run))


def labels(out: str | Path, *, run: str | None = None) -> "Labels":
    """Rank the training masks by how surely members contradict them that have not seen them, with cause and proposal.

    Writes ``labels.csv`` and, as proposals that nothing takes by itself, ``labels/``: see ``try_labels``.

    Args:
        out: Project folder, trained and predicted.
        run: A run by name; None: the present members.

    Raises:
        InputError: Nothing is held out, probabilities are missing, or ``labels/`` was edited.
    """
    project = Project.open(Path(out))
    with steps.work.working(project):
        return steps.labels.rank_labels(project, read_members(project, run))


def try_labels(out: str | Path, folder: str | Path, *, run: str | None = None) -> "LabelTrial":
    """Train a run again with corrections of training masks; take it if it is certainly better on unchanged images.

    Args:
        out: Project folder, trained.
        folder: With ``corrections.csv`` (id; action keep, drop, wrong or mend; weight) and masks ``ID.png``.
        run: A run by name; None: the present one.

    Raises:
        InputError: A folder that cannot be used, or changes nothing; members of several runs.
        StoppedError: Stopped; the same call goes on.
    """
    project = Project.open(Path(out))
    with steps.work.working(project):
        return steps.labels.try_labels(project, read_members(project, run), str(folder))


def next_labels(out: str | Path, count: int, *, run: str | None = None) -> "NextLabels":
    """Choose unlabelled images to label next: uncertain, and unlike each other. Writes ``annotate.csv``.

    Args:
        out: Project folder, trained.
        count: How many.
        run: A run by name; None: the present members.

    Raises:
        InputError: There are fewer test images.
    """
    project = Project.open(Path(out))
    with steps.work.working(project):
        return steps.labels.next_labels(project, read_members(project, run), count)


def ablate(out: str | Path, *, run: str | None = None) -> "Ablation":
    """Measure what each step of the last mile is worth: a row a step, with its gain out of fold and 80% bounds.

    Args:
        out: Project folder, trained and predicted.
        run: A run by name; None: the present members.

    Returns:
        The steps: views one by one, weights and ensembles that were tried, removal of small regions, threshold and
        rule, refit. ``report`` shows them as a table.

    Raises:
        InputError: Probabilities are missing or stale, or no image is held out.
    """
    project = Project.open(Path(out))
    with steps.work.working(project):
        return steps.ablate.ablate_members(project, read_members(project, run))


def add_board_score(
    out: str | Path,
    score: float,
    *,
    note: str = "",
    file: str | Path | None = None,
    metric: str | None = None,
    public_share: float | None = None,
) -> "Board":
    """Write the public score of a submission into the project's diary, beside its score of cross-validation.

    Args:
        out: Project folder.
        score: As the board shows it, in the units of the metric.
        note: What there is to say of it.
        file: The submission; None: ``submission.csv``. Earlier ones are in ``submissions/``.
        metric: Of the board, to be compared with the project's.
        public_share: The part of the test images that the public board scores, as the contest says; kept.

    Returns:
        The diary, as ``board`` does.

    Raises:
        InputError: A submission of another contest, a score that the metric cannot give, or another one of this file.
    """
    project = Project.open(Path(out))
    with folder_lock(project.root):
        return steps.board.add_score(
            project,
            score,
            note=note,
            file=None if file is None else Path(file),
            metric=metric,
            public_share=public_share,
        )


def board(out: str | Path) -> "Board":
    """Return the diary of public scores: gaps to cross-validation, what is noise, and the signs of a shake-up.

    Raises:
        InputError: No score was added yet.
    """
    return steps.board.show_board(Project.open(Path(out)))


def report(out: str | Path, *, run: str | None = None) -> Path:
    """Write ``report.html`` and return its path.

    Raises:
        InputError: Nothing is trained yet, or another process is at work here: ``watch`` looks on.
    """
    project = Project.open(Path(out))
    with folder_lock(project.root, instead=f"or look on with `masksmith watch {project.root}`"):
        return steps.report.report_members(project, read_members(project, run))


def watch(out: str | Path) -> "Live":
    """Return what a project is doing now, of its files alone; nothing is locked or written.

    Args:
        out: Project folder.

    Returns:
        ``state`` (working, done, stopped or absent), ``says``, ``trainings`` with their curves, ``left_s``, ``score``,
        ``process`` with its memory, ``pictures`` and more; ``to_json()`` gives plain values. ``masksmith watch`` shows
        it until the project rests.
    """
    from masksmith.project.live import look

    return look(Path(out))


def compare(
    *projects: str | Path,
    runs: Sequence[str] = (),
    metric: str | None = None,
    out: str | Path | None = None,
) -> "Comparison":
    """Compare the runs of one or several projects, and write ``compare.html``.

    Recipes key by key, scores on the images that every run holds out with a paired bootstrap over groups, curves on one
    axis, and the pictures that changed most. Nothing is trained. Of a project under training the folds that are
    predicted by now are compared.

    Args:
        projects: Project folders of the same data.
        runs: Names of runs, the first of them the one that others are compared with; empty: all runs that have held-out
            predictions (the present one of the first project first), and each project's ensemble of several runs.
        metric: That scores all runs; None: their own, where it is the same.
        out: Where the page is written; None: ``compare.html`` in the first project.

    Raises:
        InputError: Other data, task or metric; a run that is not there; fewer than two runs, or fewer than two images
            that all of them hold out.
    """
    roots = [Path(project) for project in projects]
    if not roots:
        raise InputError("compare: no project; expected one or several project folders")
    page = None if out is None else Path(out)
    return steps.compare.compare_projects(roots, runs=runs, metric=metric, out=page)


def compete(
    data: str | Path,
    *,
    out: str | Path,
    recipe: str = "auto",
    overrides: Overrides = (),
    budget: str | None = None,
    device: str | None = None,
    augment: CallableAugment | None = None,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    metric: str | None = None,
    layout: str | Path | None = None,
    from_model: str | Path | None = None,
    scale: str | None = None,
    log: str | Sequence[str] = (),
    pseudo_rounds: int = 0,
    engine: str = "local",
) -> Result:
    """Go the whole way from a data folder to a validated submission, masks and a report.

    A baseline submission is written at once, a better one after each trained fold. Ctrl-C and SIGTERM leave a complete
    submission of what has been trained until then; a second one ends the process at once.

    Args:
        data: Folder with the data, as it was downloaded.
        out: Project folder; the same call again does only what is missing.
        recipe: The name of a bundled recipe or ensemble, or a YAML file. Of an ensemble all recipes are trained, and
            their probabilities are averaged; a recipe with pseudo-labels trains its teacher first.
        overrides: Dotted changes of the recipe: ``["folds.train=1"]`` or ``{"folds.train": 1}``. Those of an ensemble
            change each of its recipes, but name, members and tuning, which are the ensemble's own.
        budget: Wall-clock time such as "20m" for the project as a whole, or "+20m" on top of what is spent: model,
            length and folds are planned for it, and more time adds to what is trained. None trains the recipe.
        device: "cpu", "cuda", "mps" or "auto".
        augment: A callable of your own in albumentations' form; the recipe must name it in
            ``training.augment.custom``, so that the name stands in its hash.
        dialect: Of the run-lengths, as for ``check``.
        task: As for ``check``.
        ignore: As for ``check``.
        metric: The metric to win; the same as the override ``metric=…``.
        layout: As for ``check``.
        scale: "small" makes a published recipe small, to see it go the whole way in minutes: an eighth of the size, a
            narrow net, an epoch a stage (see recipes/trial.py).
        from_model: A bundle whose net is trained on, with a lower rate and half its epochs; ``recipe`` is its own.
        log: Experiment trackers that get the events of all trainings, too: tensorboard, mlflow, wandb (see
            docs/watch.md).
        pseudo_rounds: With a budget: train so many students of pseudo-labels for each fold, once all folds are trained
            and where one fits; each joins if it does not lower its fold's score. Without a budget see ``pseudo``.
        engine: Where folds are trained and predicted: "local", this process; "ray" or "ray:HOST:PORT", the machines of
            a Ray cluster, side by side (see docs/how-to/several-machines.md).

    Raises:
        InputError: Data, recipe, budget, engine or folder cannot be used; nothing already written is lost.
        StoppedError: Stopped before the data had been read.
    """
    began, duration = time.monotonic(), None if budget is None else parse_duration(budget)
    pinned, planned = dotted(overrides, device, metric), duration is not None
    model = None if from_model is None else open_model(from_model, recipe)
    if pseudo_rounds and not planned:
        raise InputError(
            f"--pseudo-rounds {pseudo_rounds} without --budget; run `masksmith pseudo {out} --rounds {pseudo_rounds}` "
            "after it"
        )
    if scale is not None and (planned or model is not None):
        raise InputError(f"--scale {scale} with --{'budget' if planned else 'from'}: expected one of them")
    asked = load_to_compete_in_budget(recipe, pinned) if planned else load_asked(recipe, pinned, scale=scale)
    loggers = _loggers(log)
    with steps.work.opened(engine) as workers, interrupt.graceful():
        checked = check(data, out, dialect=dialect, task=task, ignore=ignore, layout=layout)
        for line in str(checked).splitlines():
            logger.info("%s", line)
        project = Project.open(Path(out), augment=augment, loggers=loggers)
        if model is not None:
            with folder_lock(project.root):
                recipe = str(steps.fine_tuning.recipe_from_model(project, model))
            asked = load_any(recipe, pinned)
        asked = for_data(project, asked, recipe, pinned)
        with steps.work.working(project):
            workers.need(project.root)
            clock = Budget(project.budget_json, duration, started=began)
            return steps.compete.compete_project(
                project, asked, clock, pinned=pinned, planned=planned, rounds=pseudo_rounds, engine=workers
            )


def open_model(path: str | Path, recipe: str) -> "Bundle":
    """Open a bundle to be trained on.

    Raises:
        InputError: As Bundle; a recipe was asked for, too.
    """
    from masksmith.deploy.bundle import Bundle

    if recipe != "auto":
        raise InputError(
            f"--from {path} and --recipe {recipe}: the model has a recipe of its own; leave --recipe out"
        )
    return Bundle(Path(path))


def plan(
    data: str | Path,
    *,
    budget: str,
    out: str | Path | None = None,
    recipe: str = "auto",
    overrides: Overrides = (),
    device: str | None = None,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    metric: str | None = None,
    layout: str | Path | None = None,
) -> str:
    """Choose a recipe for a budget, with a reason beside each choice; train nothing.

    Args:
        data: Folder with the data.
        budget: Such as "2h".
        out: Project folder, where ``plan.yaml`` is written too; None leaves nothing behind.
        recipe: What to start from.
        overrides: Values that are obeyed.
        device: "cpu", "cuda", "mps" or "auto".
        dialect: Of the run-lengths, as for ``check``.
        task: As for ``check``.
        ignore: As for ``check``.
        metric: The metric to win; the same as the override ``metric=…``.
        layout: As for ``check``.

    Returns:
        The resolved recipe as YAML.

    Raises:
        InputError: The budget is too short for one epoch, or the device is not there.
    """
    end = time.monotonic() + parse_duration(budget).seconds
    pinned = dotted(overrides, device, metric)
    asked = load_single(recipe, pinned, what="a budget plans")
    refuse_pseudo_labels(asked)
    with TemporaryDirectory() as folder:
        root = Path(folder) / "project" if out is None else Path(out)
        check(data, root, dialect=dialect, task=task, ignore=ignore, layout=layout)
        project = Project.open(root)
        single = single_for_data(project, asked, recipe, pinned)
        with steps.work.working(project):
            return steps.plan.propose_plan(project, single, pinned, lambda: end - time.monotonic())


def noise(out: str | Path, *, recipe: str | None = None, overrides: Overrides = ()) -> dict[str, Any]:
    """Train fold 0 with three seeds and store the spread of their scores in ``noise.json``.

    Args:
        out: Project folder, with folds.
        recipe: A bundled recipe or a YAML file; None takes the recipe of the last run, or the default.
        overrides: Dotted changes of the recipe.
    """
    project, changes = Project.open(Path(out)), dotted(overrides)
    name = recipe or last_recipe(project)
    asked = load_single(name, changes, what="seed noise is that of")
    with steps.work.working(project):
        single = single_for_data(project, asked, name, changes)
        steps.folds.folds_of(project, single)
        return steps.seed_noise.measure_noise(project, single)


def lr(out: str | Path, *, recipe: str = "auto", overrides: Overrides = ()) -> "LrFound":
    """Sweep the learning rate over a short training of fold 0, and write ``lr.html``; no run is made.

    Args:
        out: Project folder.
        recipe: A bundled recipe's name, or a YAML file; its first stage is trained.
        overrides: Dotted changes of the recipe.

    Raises:
        InputError: No such project, or the recipe cannot be trained.
    """
    project, changes = Project.open(Path(out)), dotted(overrides)
    asked = load_single(recipe, changes, what="a range test is made with")
    with steps.work.working(project):
        return steps.lr_test.range_test(project, single_for_data(project, asked, recipe, changes))


def score(
    pred: str | Path,
    truth: str | Path,
    *,
    metric: str | None = None,
    shape: tuple[int, int] | None = None,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[str | int] = (),
    groups: str | None = None,
    per_image: str | Path | None = None,
    explain: Sequence[str] = (),
) -> Scored:
    """Score predicted masks against true ones: tables of run-lengths, or folders of masks of any task.

    Args:
        pred: CSV with ids and run-lengths, or a folder of masks named by id (PNG, TIFF, .npy, …); ids that the truth
            does not have are left out.
        truth: CSV or folder of the true masks.
        metric: Name of any metric; None: ``tgs_map`` of two tables, else ``dice_per_image``, ``miou`` or ``dsb_map`` by
            the task.
        shape: (height, width) of every image, for tables that do not tell; 101x101 for ``tgs_map``.
        dialect: Of the tables' run-lengths, as for ``check``; None infers it from the true ones.
        task: binary, multiclass, multilabel or instances; None: by the values and the metric.
        ignore: Values of the true masks that are not judged, such as 255, or colours as ``"#rrggbb"``.
        groups: ``"CSV:COLUMN"`` with the group of each image.
        per_image: CSV file to write each image's own score to.
        explain: Ids whose ``tgs_map`` is shown threshold by threshold.

    Returns:
        ``score``, ``standard_error``, ``interval`` (80%), ``per_class``, ``per_image``, ``per_group``, ``nothing`` and
        more; ``print`` shows them.

    Raises:
        InputError: Masks that are missing, of another size or unreadable, values that contradict the task, or a metric
            that cannot drive it.
    """
    scored = score_files(
        Path(pred),
        Path(truth),
        metric=metric,
        shape=shape,
        dialect=dialect,
        task=task,
        ignore=ignore,
        groups=groups,
        explain=explain,
    )
    if per_image is not None:
        write_per_image(scored, Path(per_image))
    return scored


def example(
    out: str | Path,
    *,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    task: str = "binary",
    large: bool = False,
    layout: str | None = None,
    side: int | None = None,
) -> Path:
    """Generate a small data set to try masksmith on: ``out/data``, with the answers to its test set beside it.

    Args:
        out: Folder to make.
        train: Training images; None: 300, or 20 large ones.
        test: Test images; None: 100, or 5 large ones.
        seed: Of the generator.
        task: "binary" (seismic sections in Kaggle's layout, ``solution.csv``), "multilabel" (labels that overlap, in
            Severstal's layout, ``solution.csv``), "multiclass" or "instances" (a folder ``solution`` of masks).
        large: Whether images have 1,024 to 1,536 pixels a side.
        layout: The files of a contest's download: "tgs", "siim", "oncloud", "carvana" (whole cars of 16 views),
            "dsb2018", "severstal", "airbus" or "uwmadison"; task and size are the contest's then.
        side: Pixels of the shorter side of a contest's images; None: 64.

    Returns:
        The data folder.

    Raises:
        InputError: A task or layout that no example has, or both, or files that no earlier example made.
    """
    num_train, num_test = (20 if large else 300) if train is None else train, test
    num_test = (5 if large else 100) if num_test is None else num_test
    return make_example(
        Path(out),
        num_train=num_train,
        num_test=num_test,
        seed=seed,
        task=task,
        large=large,
        layout=layout,
        side=side,
    )


def explain(
    name: str,
    *,
    image: str | Path | None = None,
    mask: str | Path | None = None,
    pred: str | Path | None = None,
    out: str | Path | None = None,
) -> "Explanation":
    """Explain a metric, a loss, a view, an augmentation or a topic of theory on an image.

    Args:
        name: As a recipe writes it (``tgs_map``, ``lovasz``, ``hflip``, ``elastic``), or a topic such as ``unet``; an
            unknown one is answered with all that there are.
        image: A picture; None: a drawn one, of intersection 872 and union 1349 pixels.
        mask: Its true mask, of the same size: above 0 is foreground.
        pred: A predicted mask, or probabilities from 0 to the largest value of the type; None: the true mask, moved.
        out: Page with the pictures to write, FILE.html; it needs no network.

    Returns:
        What there is to say; ``print`` shows its text and numbers.

    Raises:
        InputError: An unknown name, files that cannot be read or have other sizes, or ``out`` is somebody else's file.
    """
    places = (None if one is None else Path(one) for one in (image, mask, pred, out))
    own, truth, found, page = places
    return steps.explain.explain_name(name, image=own, mask=truth, pred=found, out=page)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    key: str | None = None,
    only: str = "",
    force: bool = False,
    chain: "str | Sequence[dict[str, Any]]" = (),
    bits: int = 8,
) -> "Converted | ConvertedImages":
    """Write a foreign torch checkpoint as safetensors (code in it is refused, never run), or DICOM files as PNG.

    Args:
        source: A .pth, .pt, .bin or .ckpt file; or DICOM: a .dcm file, a folder or an archive.
        out: The .safetensors file to write, for ``model.encoder_weights``; or the folder of the pictures, which also
            gets ``convert.csv``: what was done to each file.
        key: Of a checkpoint: dotted path of the weights in it; None looks in the usual places.
        only: Of a checkpoint: write only the weights whose names begin so, without it.
        force: Of a checkpoint: replace a file that is there.
        chain: Of pictures: what is done to the values after rescaling and window, as ``input.chain``, or its YAML.
        bits: Of pictures: 8 or 16 a pixel.

    Raises:
        InputError: The checkpoint needs code to be read or holds no weights; there is no DICOM, or ``out`` is not ours;
            an option of the other kind.
    """
    place = Path(source)
    from masksmith.deploy.convert_dicom import convert_images, is_of_images

    if is_of_images(place):
        _refuse_options("DICOM files", {"--key": key, "--only": only, "--force": force})
        with interrupt.graceful():
            return convert_images(place, Path(out), chain=chain, bits=bits)
    _refuse_options("a checkpoint", {"--chain": chain, "--bits": bits != 8})
    from masksmith.models.convert import convert_checkpoint  # not before: torch

    return convert_checkpoint(place, Path(out), key=key, only=only, force=force)


def _refuse_options(what: str, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value:
            raise InputError(f"{name}: it has no meaning for {what}; leave it out")


def recipes(name: str | None = None) -> "list[Listing] | RecipeSummary | EnsembleSummary":
    """Return the bundled recipes, or all about one: header, every value, weights, size trace.

    Of an ensemble: header, every value, and the summaries of its recipes.
    """
    if name is None:
        return list_recipes()
    from masksmith.recipes.describe import describe_ensemble, describe_recipe  # not before: torch

    return describe_ensemble(name) if is_ensemble(name) else describe_recipe(name)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 07) of a recipe, with which editors complete and check a recipe's file.

    What two values must agree on is checked when a recipe is read, and not by the schema.
    """
    from masksmith.recipes import schema  # not before: it reads the source of every configuration

    return schema.recipe_schema()


def verify(name: str | None = None, *, scale: str = "small") -> "Verdicts":
    """Check a bundled recipe, or all: weights, size trace, four losses, and that its net learns eight images.

    Of an ensemble: that its recipes are there, can be read, and agree on folds and metric.

    Args:
        name: Of the recipe or ensemble; None: all.
        scale: "small" (narrow decoders, at most 64 pixels) or "full".

    Raises:
        InputError: An unknown recipe or scale, or a recipe is not what it was; the message says in what.
    """
    return steps.verify.verify_recipes(name, scale=scale)


def vocabulary(kind: str | None = None) -> "Vocabulary":
    """Return the words that a recipe can hold, with their parameters: of one kind, such as "losses", or all.

    Raises:
        InputError: An unknown kind.
    """
    from masksmith.recipes.vocabulary import read_vocabulary  # not before: torch

    return read_vocabulary(kind)
