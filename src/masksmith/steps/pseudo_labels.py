"""Teachers: the recipes whose predictions on the test images are masks for the training of others.

Honest per fold: what is validated on fold k learns from the teachers' fold k alone, whose trainings have not seen fold
k either. A training on all images learns from the mean of the teachers' folds; nothing is scored on it. Several
teachers are averaged with their weights.

Sources:
    Pseudo-labels: Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method".
    Confident images, 0.2 and 0.8, and quotas of coverage: the first place of TGS Salt,
    https://arxiv.org/abs/1904.04445 and https://github.com/ybabakhin/kaggle_salt_bes_phalanx
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masksmith.augment.sampling import class_of
from masksmith.core.arrays import IGNORE, Codes, Int, Mask
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, remove, write_json, write_text
from masksmith.core.progress import logger
from masksmith.core.randomness import stream
from masksmith.data.rle import decode_rows, encode
from masksmith.data.run_tables import ID_COLUMNS, find_rle_columns
from masksmith.data.store import Store, StoreWriter
from masksmith.data.table import parse_table
from masksmith.folds.config import ALL, fold_name
from masksmith.folds.table import NUM_CLASSES
from masksmith.prediction.store import MAX_CODE, MeanCodes, code_of
from masksmith.project.corrections import Corrections
from masksmith.project.folder import Project
from masksmith.project.members import Member, with_weights
from masksmith.recipes.pseudo import PseudoConfig, QuotaConfig, TeacherConfig
from masksmith.recipes.recipe import table_hash
from masksmith.steps.predict import codes_digest, predict_member, test_of
from masksmith.steps.train import labels_of, soft_labels_of, train_member
from masksmith.training.config import TrainingConfig

_VERSION = "1"
_DRAW = 7011
"""Of the random numbers that fill quotas."""


def teachers_of(project: Project, member: Member) -> list[Member]:
    """Return the members whose mean labels the test images for a member: those that share its held-out fold."""
    pseudo, folds = member.run.recipe.pseudo, member.run.recipe.folds
    if pseudo is None or pseudo.table is not None:
        return []
    listed = pseudo.teacher_runs
    if pseudo.teacher_run is not None:
        listed = [TeacherConfig(run=pseudo.teacher_run)]
    assert listed, member.name  # settled when the run was made
    labelled_by = folds.trained if member.fold == ALL else [member.fold]
    found = []
    for one in listed:
        run = project.run(one.run)
        own = [fold for fold in labelled_by if one.folds is None or fold in one.folds]
        teachers = [
            Member(run, fold, weight=one.weight / len(own)) for fold in own
        ]  # its folds share its weight
        found += [each if one.weights is None else with_weights(each, one.weights) for each in teachers]
    return found


def with_teachers(project: Project, members: Sequence[Member]) -> list[Member]:
    """Return the members in their order, each after those teachers of it that were not there before."""
    asked = {_place(member): member for member in members}
    ordered: dict[tuple[str, int], Member] = {}

    def add(member: Member) -> None:
        if _place(member) in ordered:
            return
        for teacher in teachers_of(project, member):
            add(asked.get(_place(teacher), teacher))
        ordered[_place(member)] = member

    for member in members:
        add(member)
    return list(ordered.values())


def _place(member: Member) -> tuple[str, int]:
    return member.run.path.name, member.fold


def train_student(project: Project, member: Member) -> None:
    """Train a member with pseudo-labels unless it is trained: after its teachers, with the labels that they make.

    Raises:
        InputError: As train_member, or no label is sure enough.
        StoppedError: A stop was asked for.
    """
    for teacher in teachers_of(project, member):
        train_student(project, teacher)
    make_labels(project, member)
    train_member(project, member)


# --- labels ---


def label(codes: Codes, config: PseudoConfig) -> tuple[Mask, float]:
    """Return the mask that an image's probabilities make, and the share of its pixels that are confident.

    A pixel is unsure where ``low <= p <= high``, to within a code.
    """
    low, high = map(code_of, config.unsure)
    unsure = (codes >= low) & (codes <= high)
    mask = (codes > code_of(config.threshold)).astype(np.uint8)
    if config.ignore_unsure:
        mask[unsure] = IGNORE
    return mask, 1 - float(unsure.mean())


@dataclass(frozen=True)
class Labels:
    """The pseudo-labels of one fold."""

    teacher: list[str]
    """The members that made them."""
    images: int
    """Test images that were looked at."""
    blank: int
    """Those of them without content, which are left out."""
    classes: list[int]
    """Kept images of each coverage class 0 (empty) … 10."""

    @property
    def kept(self) -> int:
        """Images that are trained on."""
        return sum(self.classes)

    def __str__(self) -> str:
        return (
            f"{self.kept} of {self.images} test images kept ({self.blank} without content, "
            f"{self.images - self.blank - self.kept} unsure or over a quota), of coverage class 0 (empty) … 10: "
            f"{' '.join(map(str, self.classes))}; labelled by {', '.join(self.teacher)}"
        )


def make_labels(project: Project, member: Member) -> None:
    """Write the pseudo-labels that a member is trained on, unless that is done; its teachers are trained.

    ``runs/NAME/pseudo/fold_k.npy`` holds the masks of the images that are kept, ``fold_k.json`` beside it how many of
    which coverage class, and ``fold_k.labels.csv`` their run-lengths and confidence, as ``pseudo.table`` takes them.
    What a table's images weigh is in ``fold_k.weights.json``.
    Soft labels have their probabilities in ``fold_k.soft.npy``, too.

    Raises:
        InputError: No teacher, one that is not trained or whose probabilities are of other images, a table that is not
            of these images, or no image is kept.
    """
    run, pseudo, teachers = member.run, member.run.recipe.pseudo, teachers_of(project, member)
    if pseudo is None:
        return
    soft = pseudo.labels == "soft"
    without = {"teacher", "set", "teacher_run", "teacher_runs", "table", "table_hash"}
    without |= {"quotas"} if pseudo.quotas is None else set()
    rule = pseudo.model_dump_json(exclude=without if soft else without | {"labels"})
    codes = None if pseudo.table is not None else _predicted(project, teachers)
    by = pseudo.table_hash if codes is None else codes_digest(codes)
    assert by is not None, member.name  # settled when the run was made
    entry, path = f"{fold_name(member.fold)}/pseudo", run.pseudo(member.fold)
    key = project.key(_VERSION, rule, by)
    there = [labels_of(run, member.fold), *([soft_labels_of(run, member.fold)] if soft else [])]
    if run.ledger.is_done(entry, key) and all(one is not None and not one.damaged() for one in there):
        return
    rng = stream(run.recipe.seed, _DRAW, member.fold)
    source: _Predicted | TableLabels
    if codes is None:
        assert pseudo.table is not None
        source, made_by = read_labels(project, pseudo), [pseudo.table]
        _refuse_mixing(run.recipe.training, source)
    else:
        source, made_by = _Predicted(codes, pseudo), [teacher.name for teacher in teachers]
    kept, made = _select(project, source, pseudo, made_by, rng)
    logger.info(
        "run %s, %s: pseudo-labels: %s", run.path.name, fold_name(member.fold).replace("_", " "), made
    )
    if not kept:
        raise InputError(
            f"pseudo: no test image is sure enough for a label ({made}); lower {_limit(pseudo)}, narrow pseudo.unsure "
            f"(now {list(pseudo.unsure)}), or train the teacher longer"
        )
    run.ledger.forget(entry)
    shapes = project.cache.test_images
    sizes = [(name, (*shapes.shape(name), 1)) for name in kept]
    if soft:
        assert codes is not None  # a table is refused
        _write_soft(run.soft_labels(member.fold), sizes, codes)
    writer = StoreWriter(path, sizes, dtype=np.uint8)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    weights = source.weight if isinstance(source, TableLabels) else {}
    table.writerow(["id", "rle_mask", "confidence", *(["weight"] if weights else [])])
    for name in kept:  # labelled once more: all masks at once might not fit into memory
        mask, confident = source[name]
        writer.write(name, mask[..., None])
        runs = encode((mask == 1).astype(np.uint8), dialect=_dialect(project))
        table.writerow([name, runs, f"{confident:.4f}", *([weights[name]] if weights else [])])
    writer.close()
    if weights:
        write_json(path.with_suffix(".weights.json"), {name: weights[name] for name in kept})
    else:
        remove(path.with_suffix(".weights.json"))
    write_text(path.with_suffix(".labels.csv"), text.getvalue())
    write_json(path.with_suffix(".json"), vars(made))
    run.ledger.mark_done(entry, key)


def _write_soft(path: Path, sizes: list[tuple[str, tuple[int, int, int]]], codes: MeanCodes) -> None:
    writer = StoreWriter(path, sizes, dtype=np.uint8)
    for name, _ in sizes:
        writer.write(name, np.rint(codes[name][..., :1] / (MAX_CODE / 255)).astype(np.uint8))
    writer.close()


def _predicted(project: Project, teachers: Sequence[Member]) -> MeanCodes:
    if not teachers:
        raise InputError(
            "pseudo.teacher_runs: none of them has a fold that the student is validated on; a teacher must not have "
            "seen it: name runs that hold it out, in their folds"
        )
    for teacher in teachers:
        predict_member(project, teacher, stages=("test",))
    return test_of(project, teachers).first(project.target.outputs)


def _dialect(project: Project) -> str:
    return project.catalog.submission.dialect or "tgs"


@dataclass(frozen=True)
class _Predicted:
    codes: MeanCodes
    config: PseudoConfig

    @property
    def ids(self) -> Sequence[str]:
        return self.codes.ids

    def __getitem__(self, name: str) -> tuple[Mask, float]:
        return label(self.codes[name][..., 0], self.config)


@dataclass(frozen=True)
class TableLabels:
    """The labels of a CSV file: the runs of each image, its confidence, and what its loss weighs."""

    where: str
    runs: dict[str, list[str]]
    confidence: dict[str, float]
    weight: dict[str, float]
    """Of its loss; empty where the table has none."""
    shapes: Store
    dialect: str
    drawn: Corrections | None = None
    """The masks that people drew, in place of runs."""

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the images."""
        return list(self.runs)

    def __getitem__(self, name: str) -> tuple[Mask, float]:
        shape, where = self.shapes.shape(name), f"{self.where}: image {name!r}"
        if self.drawn is not None:
            return self.drawn.mask(name, hw=(shape[0], shape[1]), classes=2), self.confidence[name]
        mask = decode_rows(self.runs[name], shape=shape, dialect=self.dialect, where=where)
        return mask, self.confidence[name]


def read_labels(project: Project, pseudo: PseudoConfig) -> TableLabels:
    """Read ``pseudo.table``: several rows of an image are one mask; annotations name masks that people drew.

    Raises:
        InputError: It has changed, is no table of run-lengths, names images that are no test images, or a confidence is
            no number in 0…1, a weight none of 0 or more.
    """
    assert pseudo.table is not None
    where, path = f"pseudo.table: {pseudo.table}", Path(pseudo.table)
    if pseudo.table_hash not in (None, table_hash(pseudo.table)):
        raise InputError(
            f"{where}: it has changed since the run began; bring it back, or set pseudo.table_hash=null"
        )
    table = parse_table(path.read_bytes(), where=str(path))
    names = {column.lower(): column for column in table.columns}
    key = next((names[one] for one in ID_COLUMNS if one in names), table.columns[0])
    drawn = Corrections(path.parent) if "action" in names and path.stem == path.parent.name else None
    found = find_rle_columns(table, bare=True) if drawn is None else []
    if drawn is None and len(found) != 1:
        raise InputError(
            f"{where}: {len(found)} columns of run-lengths in {', '.join(table.columns)}; expected rle_mask"
        )
    rows = [(row[key], row) for row in table.rows]
    runs: dict[str, list[str]] = {}
    if drawn is not None:
        runs = {name: [] for name, one in drawn.rows.items() if one.action == "mend"}
        if not runs:
            raise InputError(f"{where}: no image in it has a mask; draw some with `masksmith review`")
    for name, row in rows if drawn is None else ():
        runs.setdefault(name, []).append(row[found[0]])
    sure = _numbers(rows, names.get("confidence"), where=where, most=1.0) or dict.fromkeys(runs, 1.0)
    weight = _numbers(rows, names.get("weight"), where=where, most=math.inf)
    test = set(project.cache.test_images)
    if foreign := sorted(set(runs) - test):
        train = set(foreign) & set(project.cache.train_images)
        what = f", of which {len(train)} are training images" if train else ""
        raise InputError(
            f"{where}: {len(foreign)} of {len(runs)} images are no test images (first {foreign[0]!r}){what}; only "
            "these can have pseudo-labels: training images are held out to be scored"
        )
    dialect = _dialect(project) if drawn is None else ""
    return TableLabels(where, runs, sure, weight, project.cache.test_images, dialect, drawn)


def _numbers(
    rows: Sequence[tuple[str, Mapping[str, str]]], column: str | None, *, where: str, most: float
) -> dict[str, float]:
    """Return a column's number of each image, the least of its rows; empty where there is no such column.

    Raises:
        InputError: Some are no numbers of 0 to ``most``.
    """
    found: dict[str, float] = {}
    bad: list[str] = []
    for name, row in rows if column is not None else ():
        assert column is not None
        try:
            value = float(row[column])
        except ValueError:
            value = math.nan
        if not (0 <= value <= most and math.isfinite(value)):
            bad.append(f"{name}: {row[column]!r}")
        found[name] = min(found.get(name, value), value)
    if bad:
        expected = "numbers in 0…1" if most == 1 else "numbers of 0 or more"
        raise InputError(f"{where}: {column} of {len(bad)} rows (first {bad[0]}); expected {expected}")
    if found and not any(found.values()):
        raise InputError(f"{where}: {column} of all {len(found)} images is 0; expected some above 0")
    return found


def _refuse_mixing(training: TrainingConfig, labels: TableLabels) -> None:
    if labels.weight and training.mixing.is_on:
        raise InputError(
            f"{labels.where}: it has weights, and training.mixing makes one image of several, which then weigh "
            "differently; leave the column weight out, or set the probabilities of training.mixing to 0"
        )


def _limit(config: PseudoConfig) -> str:
    if config.quotas is None:
        return f"pseudo.min_confident_frac (now {config.min_confident_frac:g})"
    return "the min_confident_frac of pseudo.quotas"


def _select(
    project: Project,
    source: _Predicted | TableLabels,
    config: PseudoConfig,
    teacher: list[str],
    rng: np.random.Generator,
) -> tuple[list[str], Labels]:
    """Return the images that are kept, and what there is to say of their masks."""
    seen = [name for name in source.ids if name not in project.blank_test]
    found: dict[str, tuple[float, float, int]] = {}  # coverage, share of confident pixels, coverage class
    for name in seen:
        mask, confident = source[name]
        found[name] = float((mask == 1).mean()), confident, class_of(mask[..., None])
    if config.quotas is None:
        kept = [name for name, (_, confident, _) in found.items() if confident >= config.min_confident_frac]
    else:
        kept = fill_quotas({name: one[:2] for name, one in found.items()}, config.quotas, rng)
    classes: Int[np.ndarray, " classes"] = np.zeros(NUM_CLASSES, np.int64)
    for name in kept:
        classes[found[name][2]] += 1
    return kept, Labels(teacher, len(source.ids), len(source.ids) - len(seen), classes.tolist())


def fill_quotas(
    labels: Mapping[str, tuple[float, float]], quotas: Sequence[QuotaConfig], rng: np.random.Generator
) -> list[str]:
    """Return the images that fill the quotas, in the order of ``labels``.

    Args:
        labels: Id -> coverage of its mask, share of its confident pixels; both 0 to 1.
        quotas: An image counts in the first whose range of coverage holds it.
        rng: Draws which, where there are more than a quota takes.
    """
    inside: list[list[str]] = [[] for _ in quotas]
    for name, (coverage, confident) in labels.items():
        at = next((i for i, quota in enumerate(quotas) if quota.holds(coverage)), None)
        if at is not None and confident >= quotas[at].min_confident_frac:
            inside[at].append(name)
    drawn = (rng.permutation(len(names))[: quota.images] for names, quota in zip(inside, quotas, strict=True))
    chosen = {names[i] for names, order in zip(inside, drawn, strict=True) for i in order}
    return [name for name in labels if name in chosen]


def labelling_of(members: Sequence[Member]) -> dict[str, Labels]:
    """Return what there is to say of the members' pseudo-labels, by the member's name."""
    paths = {member.name: member.run.pseudo(member.fold).with_suffix(".json") for member in members}
    return {name: Labels(**read_json(path)) for name, path in paths.items() if path.exists()}
