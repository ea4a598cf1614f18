"""Noise in the training masks: which ones the members contradict, what to do about it, and whether doing it helps.

An image is judged by members that have not seen it. What is proposed is never applied to what scores are made of: a
training takes a folder of corrections in (see training/corrections), and is judged with the masks of the data, on
held-out images that the folder does not change.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masksmith.core.arrays import AnyMask
from masksmith.core.errors import InputError
from masksmith.core.files import atomic_folder, read_json, write_bytes, write_json, write_text
from masksmith.core.interrupt import check_stop
from masksmith.core.progress import gain_text, is_interval, logger, track
from masksmith.core.randomness import stream
from masksmith.data.catalog import BACKGROUND
from masksmith.data.look import look
from masksmith.folds.config import ALL
from masksmith.postprocess.bootstrap import BOUND_QUANTILE, paired_bootstrap
from masksmith.postprocess.label_quality import (
    confident_frac,
    disagreement,
    noise_score,
    pick_diverse,
    shift_of,
    standardised,
    uncertainty,
)
from masksmith.postprocess.rules import plain_of
from masksmith.postprocess.scoring import one_layer, score_of
from masksmith.prediction.store import MAX_CODE, open_codes
from masksmith.project.folder import Project
from masksmith.project.members import Member, members_of_run
from masksmith.reporting.causes import cause_of
from masksmith.steps.out_of_fold import plain_rows, truth_planes
from masksmith.steps.predict import oof_of, predict_member
from masksmith.steps.pseudo_labels import train_student
from masksmith.steps.runs import open_run
from masksmith.submission.formats import mask_png
from masksmith.training.corrections import TABLE, corrections_hash, read_corrections

CAUSES = {
    "missing": "most of the difference is foreground that the members are sure of and the mask lacks",
    "extra": "most of it is foreground of the mask that the members do not see",
    "shifted": "the mask, moved by 3 to 25% of the side, agrees clearly better",
    "border": "most of it lies along the outline, within 1% of the side, two pixels at least",
    "class": "most of it has another class or label",
    "objects": "the pixels are about right, the number of objects is not",
    "none": "the members' mask is the same",
}
"""Why a mask is contradicted -> what that means."""
_CAUSE_OF = {
    "empty predicted": "extra",
    "missed": "extra",
    "small object": "extra",
    "false alarm": "missing",
    "too much": "missing",
    "border": "border",
    "class confusion": "class",
    "joined or split": "objects",
    "all right": "none",
}
"""Causes of errors, where the mask is right -> causes of noise, where the members are."""
SURE = 0.9
"""Score from which the members are sure that something is wrong."""
DOUBTFUL, WRONG = 0.25, 0.5
"""How much of a mask is contradicted, from which it is doubtful, and taken to be wrong."""
_CONFIDENT = 0.9  # of an image's pixels that are confident: the members' mask may stand in for the drawn one
_DOUBTFUL_WEIGHT = 0.5
_SHOWN = 15


@dataclass(frozen=True)
class LabelLine:
    """A training image: how surely the members contradict its mask, why, and what is proposed."""

    id: str
    fold: int
    score: float
    """How surely, 0 … 1 (see label_quality.noise_score): images are ranked by it."""
    contradicted: float
    """How much of its foreground, 0 … 1 (see label_quality.disagreement)."""
    cause: str
    """A key of CAUSES."""
    proposal: str
    """keep, down-weight, drop or relabel."""
    shift: str = ""
    """Rows and columns by which the mask would have to be moved."""


@dataclass(frozen=True)
class Labels:
    """The training images that members hold out, the most doubtful first."""

    lines: list[LabelLine]
    members: list[str]
    table: Path
    folder: Path
    """With the proposals, for ``training.corrections``."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        rows = [asdict(line) for line in self.lines]
        return {
            "members": self.members,
            "table": str(self.table),
            "folder": str(self.folder),
            "images": rows,
        }

    def __str__(self) -> str:
        counts = Counter(line.proposal for line in self.lines)
        said = ", ".join(f"{counts[one]} {one}" for one in ("relabel", "drop", "down-weight", "keep"))
        width = max(len(line.id) for line in self.lines[:_SHOWN])
        shown = [
            f"{line.id:<{width}}  {line.score:.3f}  {line.contradicted:4.0%}  {line.cause:<8} {line.proposal}"
            + (f", moved by {line.shift}" if line.shift else "")
            for line in self.lines[:_SHOWN]
        ]
        return "\n".join(
            [
                f"{len(self.lines)} training images by out-of-fold disagreement with their masks: {said}",
                *shown,
                f"all: {self.table}; proposals: {self.folder}, which nothing takes by itself: look, then "
                f"`masksmith labels {self.table.parent} --try {self.folder}` trains with them and says what it gains",
            ]
        )


def rank_labels(project: Project, members: Sequence[Member]) -> Labels:
    """Rank the training masks by how surely members contradict them that have not seen them.

    ``labels.csv`` has all images; ``labels/`` what is proposed for the doubtful ones, in the form that
    ``training.corrections`` takes.

    Args:
        project: With folds.
        members: Trained and predicted.

    Raises:
        InputError: No image is held out; probabilities are missing or stale; ``labels/`` was edited since.
        StoppedError: Stopped; nothing has changed then.
    """
    oof = oof_of(project, members)
    names = [row.id for row in project.folds.rows if row.id in oof and row.id not in project.blank_train]
    if not names:
        raise InputError(f"{project.root}: no image is held out, so nothing contradicts a mask; train a fold")
    _refuse_edited(project)
    rule, target, masks = (
        plain_of(project.target, members[0].scored_by.tuning),
        project.target,
        project.cache.train_masks,
    )
    homes = {row.id: row.fold for row in project.folds.rows}
    background = target.classes[0] == BACKGROUND
    first = int(target.exclusive and background)

    def judge(name: str) -> LabelLine:
        codes, mask = oof[name][name], masks[name]
        whole = truth_planes(target, mask)
        truth = whole[..., first:]
        probs = codes[..., first : first + truth.shape[2]].astype(np.float32) / MAX_CODE
        score = noise_score(
            whole, codes[..., : whole.shape[2]].astype(np.float32) / MAX_CODE, exclusive=target.exclusive
        )
        much = disagreement(truth, probs)
        cause = _CAUSE_OF[cause_of(one_layer(mask), rule.apply(codes), target, background=background)]
        moved = shift_of(truth, probs) if score >= SURE and much >= DOUBTFUL else None
        sure = confident_frac(probs) >= _CONFIDENT
        where = "" if moved is None else f"{moved[0]:+d} {moved[1]:+d}"
        cause = cause if moved is None else "shifted"
        what = _proposal(score, much, cause, sure=sure)
        return LabelLine(name, homes[name], round(score, 4), round(much, 4), cause, what, where)

    lines = []
    for name in track(names, total=len(names), what="comparing masks with held-out predictions"):
        check_stop()
        lines.append(judge(name))
    lines.sort(key=lambda line: (-line.score, line.id))
    with atomic_folder(project.labels_dir) as folder:
        changed = [line for line in lines if line.proposal != "keep"]
        for line in changed:
            if line.proposal == "relabel":
                _write_mask(project, folder, line.id, rule.apply(oof[line.id][line.id]))
        write_text(folder / TABLE, _corrections(changed))
    write_text(project.labels_csv, _table(lines))
    _note(project, {"proposals": corrections_hash(str(project.labels_dir))})
    return Labels(lines, [member.name for member in members], project.labels_csv, project.labels_dir)


def _proposal(score: float, much: float, cause: str, *, sure: bool) -> str:
    if score < SURE or much < DOUBTFUL or cause in ("none", "objects"):
        return "keep"
    if much < WRONG or cause == "border":
        return "down-weight"
    return "relabel" if sure else "drop"


def _write_mask(project: Project, folder: Path, name: str, mask: AnyMask) -> None:
    target = project.target
    planes = [("", mask)]
    if target.task == "multilabel":
        planes = [(label, mask[..., at]) for at, label in enumerate(target.classes)]
    for label, one in planes:
        path = folder / label / f"{name}.png"
        write_bytes(path, mask_png(one, target, where=str(path)))


def _corrections(lines: Sequence[LabelLine]) -> str:
    action = {"relabel": "mend", "drop": "drop", "down-weight": "keep"}
    weight = {"down-weight": _DOUBTFUL_WEIGHT}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", "action", "weight", "note"])
    for line in lines:
        note = f"{line.cause}, score {line.score:.3f}"
        table.writerow([line.id, action[line.proposal], weight.get(line.proposal, 1), note])
    return text.getvalue()


def _table(lines: Sequence[LabelLine]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(LabelLine.__dataclass_fields__), lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(line) for line in lines)
    return text.getvalue()


def _read_notes(project: Project) -> dict[str, Any]:
    value: dict[str, Any] = read_json(project.labels_json) if project.labels_json.exists() else {}
    return value


def _note(project: Project, facts: Mapping[str, Any]) -> None:
    write_json(project.labels_json, _read_notes(project) | dict(facts))


def _refuse_edited(project: Project) -> None:
    folder = project.labels_dir
    if not (folder / TABLE).is_file():
        return
    if _read_notes(project).get("proposals") != corrections_hash(str(folder)):
        raise InputError(
            f"{folder}: edited since it was written, and it would be written again; rename the folder (a training "
            "takes it by training.corrections=FOLDER under any name)"
        )


# --- are they worth it? ---


@dataclass(frozen=True)
class LabelTrial:
    """A training with corrections beside the one without, on the same held-out images."""

    folder: str
    corrections: str
    """How many of which kind."""
    metric: str
    before: str
    """Run without."""
    after: str
    """Run with."""
    images: int
    """Held-out images that are compared: those that the corrections do not change."""
    left_out: int
    """Held-out images that they change."""
    score_before: float
    score_after: float
    gain: float
    low: float
    high: float
    """80% bounds."""
    gain_all: float
    """On all held-out images, with the masks of the data: members agree with those that do not change."""
    kept: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = (
            f"{self.after} is taken: tune and submit again"
            if self.kept
            else f"no certain gain, {self.before} stays"
        )
        return (
            f"{self.folder}: {self.corrections}\n"
            f"{self.metric} of {self.images} held-out images whose masks it does not change ({self.left_out} are left "
            "out): "
            f"{self.score_after:.4f} with it, {self.score_before:.4f} without; gain "
            f"{gain_text(self.gain, self.low, self.high)}, on all of them {self.gain_all:+.4f}; {verdict}"
        )


def try_labels(project: Project, members: Sequence[Member], folder: str) -> LabelTrial:
    """Train the present run once more with a folder of corrections, and take it if it is certainly better.

    Both are judged with the masks of the data, on held-out images that the folder does not change.

    Args:
        project: With folds.
        members: Of one run, trained.
        folder: See training/corrections.

    Raises:
        InputError: Members of several runs or of other programs; a folder that cannot be used, or that changes nothing
            that is trained on; nothing is left to compare.
        StoppedError: Stopped; the same call goes on.
    """
    runs = {member.run.path: member.run for member in members}
    if len(runs) > 1 or members[0].run.is_external or members[0].interim:
        raise InputError(
            f"--try: the present members are {', '.join(member.name for member in members)}; expected the trained "
            "folds of one run: name it by --run"
        )
    run = members[0].run
    held_out = [member for member in members if member.fold != ALL]
    found = read_corrections(folder, project.cache.train_masks, project.target)
    trained_on = set[str]().union(*(project.folds.outside(member.fold) for member in held_out))
    if not found.changed & trained_on:
        raise InputError(
            f"--try {folder}: it changes {len(found.changed)} images, and none that the folds of {run.path.name} are "
            "trained on; expected some that are"
        )
    training = run.recipe.training.model_copy(update={"corrections": folder, "corrections_hash": None})
    if corrections_hash(folder) == run.recipe.training.corrections_hash:
        raise InputError(f"--try {folder}: {run.path.name} is trained with it already; name another --run")
    other = open_run(project, run.recipe.model_copy(update={"training": training}))
    folds = {member.fold for member in members}
    after = [member for member in members_of_run(other) if member.fold in folds]
    for member in after:
        train_student(project, member)
        predict_member(project, member)
    recipe, metric = run.recipe, project.metric(run.recipe)
    rows = [
        plain_rows(project, recipe, oof_of(project, own))
        for own in (held_out, [one for one in after if one.fold != ALL])
    ]
    names = [name for name in rows[0] if name not in found.changed]
    if not names:
        raise InputError(f"--try {folder}: it changes all held-out images, so nothing is left to compare on")
    groups = project.metric_groups(recipe, names).tolist()
    inside = np.unique(groups, return_inverse=True)[1]
    without, with_it = (np.stack([own[name] for name in names]) for own in rows)
    gains, _, _ = paired_bootstrap(
        metric, with_it, without, project.folds.groups(names).tolist(), labels=groups,
        resamples=recipe.tuning.resamples, rng=stream(recipe.seed),
    )  # fmt: skip
    low, high = (float(one) for one in np.quantile(gains, [BOUND_QUANTILE, 1 - BOUND_QUANTILE]))
    before_score, after_score = metric.score(without, inside), metric.score(with_it, inside)
    of_all = project.metric_groups(recipe, list(rows[0]))
    all_before, all_after = (metric.utility(score_of(metric, own, of_all)) for own in rows)
    trial = LabelTrial(
        folder, str(found), metric.name, run.path.name, other.path.name, len(names), len(rows[0]) - len(names),
        before_score, after_score, metric.utility(after_score) - metric.utility(before_score), low, high,
        all_after - all_before, low > 0 and is_interval(low, high),
    )  # fmt: skip
    if trial.kept:
        project.make_current(other)
    known = [one for one in _read_notes(project).get("trials", []) if one["after"] != trial.after]
    _note(project, {"trials": [*known, trial.to_json()]})
    logger.info("%s", trial)
    return trial


def trials_of(project: Project) -> list[dict[str, Any]]:
    """Return the trials of corrections so far, as LabelTrial.to_json."""
    found: list[dict[str, Any]] = _read_notes(project).get("trials", [])
    return found


# --- what to label next ---


@dataclass(frozen=True)
class NextLabels:
    """Unlabelled images that are worth a mask, in this order."""

    lines: list[dict[str, Any]]
    """id, uncertainty (mean entropy, bits) and disagreement (the members' part of it)."""
    table: Path

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"table": str(self.table), "images": self.lines}

    def __str__(self) -> str:
        rows = [
            f"{row['id']}  uncertainty {row['uncertainty']:.4f}  disagreement {row['disagreement']:.4f}"
            for row in self.lines[:_SHOWN]
        ]
        return "\n".join([f"{len(self.lines)} images to label next: {self.table}", *rows])


def next_labels(project: Project, members: Sequence[Member], count: int) -> NextLabels:
    """Choose unlabelled images to label next: those on which the members disagree, and that look unlike each other.

    Uncertain is the mutual information of prediction and member where there are several, else the entropy.

    Raises:
        InputError: No test images, more than there are, or probabilities are missing or stale.
    """
    names = [sample.id for sample in project.catalog.test if sample.id not in project.blank_test]
    if not names:
        raise InputError(f"--next {count}: {project.catalog.root} has no unlabelled images with content")
    for member in members:
        predict_member(project, member, stages=("test",))
    stores = [open_codes(path) for path in dict.fromkeys(member.codes("test") for member in members)]
    found, planes = [], 1 if project.target.task == "instances" else project.target.outputs
    for name in track(names, total=len(names), what="measuring uncertainty"):
        check_stop()
        each = [store[name][..., :planes] for store in stores]
        found.append(uncertainty(each, exclusive=project.target.exclusive))
    scores = np.array(found)[:, int(len(stores) > 1)]
    seen = look(project.cache.test_images)
    places = {str(name): at for at, name in enumerate(seen.names)}
    own = [places[name] for name in names]
    bits = np.unpackbits(seen.hashes[own], axis=1).astype(np.float64)
    picked = pick_diverse(scores, standardised([seen.numbers[own], bits]), count)
    lines: list[dict[str, Any]] = [
        {"id": names[at], "uncertainty": round(found[at][0], 5), "disagreement": round(found[at][1], 5)}
        for at in picked
    ]
    text = io.StringIO()
    table = csv.DictWriter(text, ["id", "uncertainty", "disagreement"], lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    write_text(project.annotate_csv, text.getvalue())
    return NextLabels(lines, project.annotate_csv)
