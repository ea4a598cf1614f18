"""Scores of predicted masks against true ones: two tables of run-lengths, two folders of masks, or one of each.

Images are read one by one, twice: first to find what the masks' values mean, then to score.
"""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from masksmith.core.arrays import Float, Int, Shaped
from masksmith.core.errors import InputError
from masksmith.core.files import atomic_path
from masksmith.core.progress import track
from masksmith.core.randomness import stream
from masksmith.data.dialect import Inferred
from masksmith.data.findings import refuse_all, some
from masksmith.data.table import need_column, parse_table
from masksmith.metrics import Metric, get_metric, metric_for
from masksmith.metrics.bootstrap import INTERVAL, resampled_scores
from masksmith.metrics.classes import class_confusion, class_dice, class_iou
from masksmith.metrics.counts import tgs_hits
from masksmith.metrics.tasks import OBJECT_METRICS
from masksmith.submission.meaning import Meaning, Survey, find_meaning, parse_ignored
from masksmith.submission.sources import (
    FolderMasks,
    Shape,
    Source,
    TableMasks,
    infer_table_dialect,
    open_folder,
    open_table,
    read_as,
    same_classes,
)

RESAMPLES = 1000
"""Draws of the bootstrap: the ends of an 80% interval then move by some 3% of its width."""
_DEFAULTS = {
    "binary": "dice_per_image",
    "multiclass": "miou",
    "multilabel": "dice_per_image",
    "instances": "dsb_map",
}
_TGS = "tgs_map"
_TGS_SHAPE = (101, 101)
_MOST_CONFUSED = 256  # classes up to which a confusion matrix is made
_SHOWN = 40  # lines of a table of classes or groups


@dataclass(frozen=True)
class Scored:
    """The score of predicted masks, and what it is made of; ``print`` shows it."""

    metric: str
    score: float
    nothing: float
    """Of predicting nothing; in class maps, of the most frequent true class everywhere."""
    images: int
    task: str = "binary"
    standard_error: float | None = None
    """Of the bootstrap over images, or over groups where they were given; None where there is but one of them."""
    interval: tuple[float, float] | None = None
    """In which the score of 80% of the draws lies."""
    per_class: dict[str, float] = field(default_factory=dict)
    """Class -> its score, NaN where it is nowhere; none in binary masks and objects."""
    per_image: dict[str, float] = field(default_factory=dict)
    """Id -> the score of that image alone, in the order of the true masks."""
    per_image_class: dict[str, dict[str, float]] = field(default_factory=dict)
    """Id -> the same of each class, NaN where it is neither true nor predicted; none in binary masks and objects."""
    per_group: dict[str, float] = field(default_factory=dict)
    """Group -> the score of its images alone, where groups were given."""
    groups: dict[str, str] = field(default_factory=dict)
    """Id -> its group, where groups were given."""
    confusion: Int[np.ndarray, "classes classes"] | None = None
    """Of class maps: pixels of each true class (row) by the predicted class (column), in the order of ``per_class``."""
    dialect: str = ""
    """Of the run-lengths, and why."""
    doubt: str = ""
    """What else fits."""
    constant: str = "nothing"
    """What ``nothing`` predicts everywhere."""
    notes: list[str] = field(default_factory=list)
    """How the masks were read."""
    explained: dict[str, str] = field(default_factory=dict)
    """Id -> how its score comes about, of the ids that were asked for."""

    def __str__(self) -> str:
        lines = [
            f"{self.metric}: {self.score:.4f} on {self.images} images (predicting {self.constant}: {self.nothing:.4f})"
        ]
        if self.interval is not None:
            drawn = f"{len(self.per_group)} groups" if self.groups else "images"
            low, high = self.interval
            lines.append(
                f"± {self.standard_error:.4f} (standard error), 80% interval {low:.4f} to {high:.4f}: {RESAMPLES} "
                f"draws of {drawn}"
            )
        if self.dialect:
            lines.append(f"run-lengths: {self.dialect}")
        if self.doubt:
            lines.append(f"run-length dialect: {self.doubt}")
        lines += [*self.notes, *self._class_lines(), *self._group_lines()]
        return "\n".join([*lines, *(f"\n{text}" for text in self.explained.values())])

    def _class_lines(self) -> list[str]:
        there = {name: value for name, value in self.per_class.items() if not math.isnan(value)}
        if not there:
            return []
        width = max(len("class"), *map(len, there))
        if self.confusion is None:
            lines = [f"{'class':{width}}  {self.metric}"]
            return lines + [f"{name:{width}}  {value:.4f}" for name, value in list(there.items())[:_SHOWN]]
        table = self.confusion
        row = np.concatenate([table.diagonal(), table.sum(axis=0), table.sum(axis=1)])[None].astype(
            np.float64
        )
        share = table.sum(axis=1) / max(1, table.sum())
        columns = dict(
            zip(self.per_class, zip(class_iou(row)[0], class_dice(row)[0], share, strict=True), strict=True)
        )
        lines = [f"{'class':{width}}     IoU    Dice  of true pixels"]
        for name in list(there)[:_SHOWN]:
            iou, dice, part = columns[name]
            lines.append(f"{name:{width}}  {iou:.4f}  {dice:.4f}  {part:.2%}")
        return lines

    def _group_lines(self) -> list[str]:
        if not self.per_group:
            return []
        width = max(len("group"), *map(len, self.per_group))
        images = Counter(self.groups.values())
        lines = [f"{'group':{width}}  {self.metric}  images"]
        for name, value in list(self.per_group.items())[:_SHOWN]:
            lines.append(f"{name:{width}}  {value:{len(self.metric)}.4f}  {images[name]}")
        if len(self.per_group) > _SHOWN:
            lines.append(f"… ({len(self.per_group)} groups in all)")
        return lines


def score_files(
    pred: Path,
    truth: Path,
    *,
    metric: str | None = None,
    shape: Shape | None = None,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[str | int] = (),
    groups: str | None = None,
    explain: Sequence[str] = (),
) -> Scored:
    """Score predicted masks against true ones.

    Args:
        pred: CSV of run-lengths, or a folder of masks; it may hold more ids than the truth.
        truth: CSV or folder of the same ids.
        metric: Name of a metric, with its parameters; None: ``tgs_map`` of two tables of plain masks, else
            ``dice_per_image`` (binary, several labels), ``miou`` (class maps) or ``dsb_map`` (objects).
        shape: (height, width) of every image of the tables. Not needed where the other side is a folder, the table has
            columns ``height`` and ``width``, or the metric is ``tgs_map`` (101x101).
        dialect: Of the run-lengths in the tables; None infers it from the true one.
        task: binary, multiclass, multilabel or instances; None: by the values and the metric.
        ignore: Values of the true masks that are not judged: numbers, or colours as #rrggbb.
        groups: ``CSV:COLUMN``, a table and its column with the group of each image: for metrics of groups, the table of
            groups and the bootstrap.
        explain: Ids whose ``tgs_map`` is shown threshold by threshold.

    Raises:
        InputError: Masks that are not there (all are listed), of another size (all are listed), or damaged; values
            that cannot be read or contradict the task; a metric that cannot drive it (those that can are listed).
    """
    if metric is not None:
        get_metric(metric, where="--metric")  # an unknown name is refused before files are read
    told = parse_ignored(ignore)
    given, true = (_open(path, as_planes=task == "multilabel") for path in (pred, truth))
    notes = _match(given, true)
    how = _settle_tables(given, true, metric=metric, shape=shape, dialect=dialect, task=task)
    if shape is None and any(one is _TGS_SHAPE for one in _sizes_of(given, true)):
        notes.append("sizes: 101x101, as in the contest of tgs_map; --shape names others")
    surveys = _survey(given, true)
    name = None if metric is None else metric.partition("(")[0].strip()
    if (
        name is None
        and how is not None
        and task is None
        and surveys[1].kinds == {"numbers"}
        and not surveys[1].objects
    ):
        name = metric = _TGS
    names = _plane_names(given, true)
    meaning = find_meaning(*surveys, metric=name, task=task, ignore=told, names=names)
    metric = metric or _DEFAULTS[meaning.task]
    judge = metric_for(metric, task=meaning.task, classes=len(meaning.classes) or 1, where="--metric")
    if judge.by_group and groups is None:
        raise InputError(
            f"--metric {judge.name}: it needs groups; name the table and the column: --groups CSV:COLUMN"
        )
    labels = None if groups is None else read_groups(groups, true.ids)
    _check_explained(explain, true, judge)
    tallies = _tally(given, true, meaning, judge)
    scored = _scored(judge, meaning, tallies, true.ids, labels, how, notes)
    rows = dict(zip(true.ids, tallies.rows, strict=True)) if explain else {}
    return replace(scored, explained={name: tgs_hits(name, rows[name]) for name in explain})


def _check_explained(explain: Sequence[str], true: Source, metric: Metric) -> None:
    """Refuse to explain another metric than tgs_map, and images that are not there, all of them."""
    if not explain:
        return
    if metric.name != _TGS:
        raise InputError(
            f"--explain: it shows the thresholds of {_TGS}, and the metric is {metric.name}; add --metric {_TGS}"
        )
    known = set(true.ids)
    absent = [name for name in explain if name not in known]
    if absent:
        raise InputError(
            f"--explain: {', '.join(map(repr, absent))} not in {true.path}, which has {len(known)} ids, such as "
            f"{true.ids[0]!r}; name some of these"
        )


# --- reading ----------------------------------------------------------------------------------------------


def _open(path: Path, *, as_planes: bool) -> Source:
    return open_folder(path, as_planes=as_planes) if path.is_dir() else open_table(path)


def _match(given: Source, true: Source) -> list[str]:
    """Refuse true masks without a prediction, all of them; say what is predicted besides."""
    known = set(given.ids)
    absent = [name for name in true.ids if name not in known]
    if absent:
        raise InputError(
            f"{given.path}: {len(absent)} ids of {true.path} are missing: {', '.join(map(repr, absent))}; it has "
            f"{len(known)} ids{f', such as {given.ids[0]!r}' if known else ''}"
        )
    more = len(known) - len(true.ids)
    return [f"{more} predictions have no true mask and are not scored"] if more else []


def _settle_tables(
    given: Source,
    true: Source,
    *,
    metric: str | None,
    shape: Shape | None,
    dialect: str | None,
    task: str | None,
) -> Inferred | None:
    """Find sizes, classes, objects and the dialect of the tables; None where there are none."""
    tables = [one for one in (given, true) if isinstance(one, TableMasks)]
    if not tables:
        _refuse_without_tables(given.path, shape=shape, dialect=dialect)
        return None
    same_classes(tables)
    if len(tables) == 2:
        _need_class_rows(*tables)
    folder = next((one for one in (given, true) if isinstance(one, FolderMasks)), None)
    name = (metric or _TGS).partition("(")[0].strip()
    for table in tables:
        table.shape_of = _Shapes(tables, folder, shape or _usual_shape(name, table))
    how = infer_table_dialect(tables[-1], asked=dialect)
    objects = task == "instances" or (task is None and name in OBJECT_METRICS)
    for table in tables:
        read_as(table, how.dialect)
    if objects and any(table.has_repeats for table in tables) and not tables[0].planes:
        for table in tables:
            table.objects = True
    return how


def _sizes_of(*sources: Source) -> list[Shape | None]:
    """Return the sizes that are taken for the images whose size no table tells."""
    return [
        one.shape_of.shape
        for one in sources
        if isinstance(one, TableMasks)
        and isinstance(one.shape_of, _Shapes)
        and not one.shape_of.told.keys() >= set(one.ids)
    ]


def _usual_shape(name: str, table: TableMasks) -> Shape | None:
    return _TGS_SHAPE if name == _TGS and not table.planes else None


def _refuse_without_tables(path: Path, *, shape: Shape | None, dialect: str | None) -> None:
    for option, value in (("--shape", shape), ("--dialect", dialect)):
        if value is not None:
            raise InputError(
                f"{option}: it is of run-lengths, and {path} is a folder of masks, which have their sizes; leave it out"
            )


def _need_class_rows(given: TableMasks, true: TableMasks) -> None:
    absent = [
        f"{name}_{kind}"
        for name, kinds in true.rows.items()
        for kind in kinds
        if true.planes and kind not in given.rows[name]
    ]
    if absent:
        raise InputError(
            f"{given.path}: {len(absent)} rows of an image and class of {true.path} are missing: "
            f"{', '.join(absent)}; an empty mask has a row too"
        )


class _Shapes:
    """(height, width) by id: from a table that tells, the masks of the other side, or one for all."""

    def __init__(self, tables: list[TableMasks], folder: FolderMasks | None, shape: Shape | None) -> None:
        self.told = {name: size for table in tables for name, size in table.shapes.items()}
        self.folder, self.shape, self.path = folder, shape, tables[-1].path

    def __call__(self, name: str) -> Shape:
        if name in self.told:
            return self.told[name]
        if self.folder is not None and name in self.folder.files:
            self.told[name] = self.folder.read(name).shape
            return self.told[name]
        if self.shape is None:
            raise InputError(
                f"{self.path}: run-lengths do not tell the size of an image; name it: --shape HEIGHTxWIDTH"
            )
        return self.shape


def _survey(given: Source, true: Source) -> tuple[Survey, Survey]:
    """Look at the values of all masks.

    Raises:
        InputError: Damaged masks, or masks of another size: all of them.
    """
    surveys = (
        Survey(str(given.path), objects=given.objects),
        Survey(str(true.path), objects=true.objects),
    )
    problems: list[str] = []
    differing: list[str] = []
    for name in track(true.ids, total=len(true.ids), what="looking at masks"):
        for source, survey in zip((given, true), surveys, strict=True):
            try:
                survey.add(name, source.read(name), where=source.where(name))
            except InputError as error:
                problems.append(str(error))
        sizes = [survey.shapes.get(name) for survey in surveys]
        if None not in sizes and sizes[0] != sizes[1]:
            predicted, expected = (f"{size[0]}x{size[1]}" for size in sizes if size is not None)
            differing.append(f"{given.where(name)}: {predicted}, the true mask is {expected}")
    refuse_all(problems, what="masks")
    if differing:
        raise InputError(
            f"{given.path}: {len(differing)} of {len(true.ids)} masks are of another size than the true ones:\n  "
            + "\n  ".join(differing)
        )
    return surveys


def _plane_names(given: Source, true: Source) -> list[str]:
    if given.planes and true.planes and given.planes != true.planes:
        raise InputError(
            f"{given.path}: the classes {', '.join(given.planes)}; expected those of {true.path}: "
            f"{', '.join(true.planes)}"
        )
    return true.planes or given.planes


def read_groups(text: str, ids: Sequence[str]) -> list[str]:
    """Return the group of each image from ``CSV:COLUMN``, a table and its column.

    The column of ids is the one that names most of the images, by id or by file.

    Raises:
        InputError: No such file or column, images without a row (all are listed), or with two groups.
    """
    file, _, column = text.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--groups {text}: no such file; expected CSV:COLUMN, such as places.csv:location")
    table = parse_table(path.read_bytes(), where=str(path))
    need_column(table, column)
    best: dict[str, set[str]] = {}
    for id_column in table.columns:
        for form in (str, lambda cell: PurePosixPath(cell).stem):
            found: dict[str, set[str]] = {}
            for row in table.rows:
                found.setdefault(form(row[id_column]), set()).add(row[column])
            if len(set(ids) & set(found)) > len(set(ids) & set(best)):
                best = found
    absent = [name for name in ids if name not in best]
    if absent:
        raise InputError(
            f"{path}: {len(absent)} of {len(ids)} images have no row, and so no {column!r}: "
            f"{', '.join(map(repr, absent))}"
        )
    torn = [name for name in ids if len(best[name]) > 1]
    if torn:
        raise InputError(
            f"{path}: the image {torn[0]!r} has several {column!r}: {some(sorted(best[torn[0]]))}; expected one"
        )
    return [next(iter(best[name])) for name in ids]


# --- scoring ----------------------------------------------------------------------------------------------


@dataclass
class _Tallies:
    rows: Float[np.ndarray, "n k"]
    nothing: Float[np.ndarray, "n k"]
    confusion: Int[np.ndarray, "classes classes"] | None
    unjudged: int
    pixels: int


def _tally(given: Source, true: Source, meaning: Meaning, metric: Metric) -> _Tallies:
    """Make the rows of all images, and those of predicting nothing.

    Raises:
        InputError: Values of predictions that cannot be.
    """
    rows: list[Shaped[np.ndarray, " k"]] = []
    nothing: list[Shaped[np.ndarray, " k"]] = []
    problems: list[str] = []
    count, unjudged, pixels = len(meaning.classes), 0, 0
    confused = np.zeros((count, count), np.int64) if _has_confusion(meaning) else None
    for name in track(true.ids, total=len(true.ids), what="scoring"):
        try:
            pred, target, left_out = meaning.pair(given.read(name), true.read(name))
        except InputError as error:
            problems.append(f"{given.where(name)}: {error}")
            continue
        unjudged, pixels = unjudged + left_out, pixels + target.size
        rows.append(metric.stats(pred, target))
        nothing.append(metric.stats(np.full_like(pred, meaning.most), target))
        if confused is not None:
            confused += class_confusion(pred, target, num_classes=count)
    refuse_all(problems, what="predictions")
    return _Tallies(np.stack(rows), np.stack(nothing), confused, unjudged, pixels)


def _has_confusion(meaning: Meaning) -> bool:
    return meaning.task == "multiclass" and len(meaning.classes) <= _MOST_CONFUSED


def _scored(
    metric: Metric,
    meaning: Meaning,
    tallies: _Tallies,
    ids: Sequence[str],
    labels: list[str] | None,
    how: Inferred | None,
    notes: list[str],
) -> Scored:
    rows, names = tallies.rows, None if labels is None else np.array(labels)
    members = {} if names is None else {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
    values = metric.value(rows)
    each = metric.class_scores(rows, groups=names) if meaning.classes else np.zeros(0)
    alone = metric.class_scores(rows[:, None], groups=np.zeros(1, str)) if meaning.classes else ()
    units = list(ids) if labels is None else labels
    drawn = (
        resampled_scores(metric, [rows], units, resamples=RESAMPLES, rng=stream(0))[0]
        if len(set(units)) > 1
        else None
    )
    return Scored(
        metric.name,
        metric.score(rows, names),
        metric.score(tallies.nothing, names),
        len(ids),
        meaning.task,
        None if drawn is None else float(drawn.std()),
        None
        if drawn is None
        else (float(np.quantile(drawn, INTERVAL[0])), float(np.quantile(drawn, INTERVAL[1]))),
        dict(zip(meaning.classes, each.tolist(), strict=True)),
        dict(zip(ids, values.tolist(), strict=True)),
        {
            name: dict(zip(meaning.classes, own.tolist(), strict=True))
            for name, own in zip(ids, alone, strict=False)
        },
        {name: metric.score(rows[at], names[at]) for name, at in members.items() if names is not None},
        {} if labels is None else dict(zip(ids, labels, strict=True)),
        tallies.confusion,
        "" if how is None else f"{how.dialect}: {how.reason}",
        "" if how is None else how.doubt,
        f"class {meaning.classes[meaning.most]} everywhere" if meaning.task == "multiclass" else "nothing",
        [*_said(meaning, tallies), *notes],
    )


def _said(meaning: Meaning, tallies: _Tallies) -> list[str]:
    said = [f"task: {meaning.task} ({meaning.why})", *meaning.notes]
    if meaning.ignored:
        share = tallies.unjudged / tallies.pixels
        said.append(f"not judged: {', '.join(meaning.ignored)} in the true masks ({share:.2%} of the pixels)")
    if tallies.confusion is not None:
        found, truth = tallies.confusion.sum(axis=0), tallies.confusion.sum(axis=1)
        only = [meaning.classes[at] for at in np.flatnonzero((found > 0) & (truth == 0))]
        if only:
            said.append(f"predicted, but in no true mask: class {some(only)}; it scores 0")
    return said


def write_per_image(scored: Scored, path: Path) -> None:
    """Write a CSV file of each image's own score, with its group where there are groups, and that of each class.

    The cell of a class that is neither true nor predicted, where the metric leaves it out, is empty.

    Raises:
        InputError: The folder of the file is not there.
    """
    if not path.parent.is_dir():
        raise InputError(f"--per-image {path}: no such folder; expected a file in one that is there")
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        named = [f"{scored.metric}: {label}" for label in scored.per_class]
        writer.writerow(["id", *(["group"] if scored.groups else []), scored.metric, *named])
        for name, value in scored.per_image.items():
            each = scored.per_image_class.get(name, {}).values()
            cells = ["" if math.isnan(one) else f"{one:.6f}" for one in (value, *each)]
            writer.writerow([name, *([scored.groups[name]] if scored.groups else []), *cells])
