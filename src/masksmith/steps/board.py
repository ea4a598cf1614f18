"""The diary of a contest's public board: its scores beside those of cross-validation, and what of it is the draw.

A public score is that of few images, and the leader among many submissions is to a part the luckiest. Both have an
error that cross-validation knows: that of its own images, and of as many as the board has.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm, spearmanr  # type: ignore[import-untyped]

from masksmith.core.errors import InputError
from masksmith.core.files import atomic_path, digest, file_digest, read_json, write_json
from masksmith.core.progress import logger
from masksmith.core.randomness import stream
from masksmith.metrics import Metric
from masksmith.postprocess.bootstrap import paired_bootstrap
from masksmith.postprocess.rules import read_rule
from masksmith.postprocess.scoring import score_rows
from masksmith.project.folder import Project
from masksmith.project.members import read_members
from masksmith.recipes.recipe import load_recipe
from masksmith.steps.out_of_fold import beside_of, predictions_of
from masksmith.steps.predict import oof_of
from masksmith.steps.recipes import for_data
from masksmith.steps.submit import check_file
from masksmith.steps.tune import need_tuning

_Z80 = float(norm.ppf(0.9))
"""Standard errors on each side of an 80% interval."""
_RESAMPLES = 1000


@dataclass(frozen=True)
class Entry:
    """A submission and its public score."""

    date: str
    file: str
    digest: str
    run: str
    score: float
    note: str = ""
    cv: float | None = None
    """Score of cross-validation, as the submission has it; None for files that others made."""
    standard_error: float | None = None
    images: int = 0
    """That cross-validation scored."""
    rows: str = ""
    """File of the metric's rows of these images."""


@dataclass(frozen=True)
class Board:
    """What the diary shows."""

    metric: str
    higher_is_better: bool
    board_images: int
    guessed: bool
    """Whether the number of images on the board was not told: all test images."""
    entries: tuple[Entry, ...]
    lines: tuple[str, ...]
    """A line for each entry, the best public score first."""
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        what = (
            "taken to be all test images; --public-share tells" if self.guessed else "as --public-share says"
        )
        head = f"{self.metric}, {len(self.entries)} submissions; board of {self.board_images} images ({what})"
        return "\n".join([head, *self.lines, *self.remarks])


def add_score(
    project: Project,
    score: float,
    *,
    note: str = "",
    file: Path | None = None,
    metric: str | None = None,
    public_share: float | None = None,
) -> Board:
    """Write a public score into the diary; see pipeline.add_board_score.

    Raises:
        InputError: No submission, one of another contest, or a score of another metric; the file has another score.
    """
    path = file or project.submission_csv
    scored_by = _metric(project)
    _check_score(score, scored_by, metric)
    if public_share is not None and not 0 < public_share <= 1:
        raise InputError(
            f"--public-share {public_share:g}: expected the part of the test images, above 0 and up to 1"
        )
    check_file(project, path)
    content, (share, entries) = _digest(path), _read(project)
    before = next((entry for entry in entries if entry.digest == content), None)
    if before is not None and before.score != score:
        raise InputError(
            f"{path}: it has the score {before.score:g} already ({before.date}); a file has one score. Name another "
            f"with --file (earlier ones are in {project.submissions_dir})"
        )
    facts = _facts_of(project, path, content)
    entry = Entry(
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        file=path.name,
        digest=content,
        run=facts.get("run", "another program"),
        score=score,
        note=note,
        cv=facts.get("score") if facts.get("kind") in ("trained", "interim") else None,
        standard_error=facts.get("standard_error"),
        images=facts.get("images", 0),
        rows=_keep_rows(project, content) if path == project.submission_csv and facts.get("members") else "",
    )
    if before is not None:
        entry = replace(before, note=note or before.note)
    kept = [asdict(one) for one in [*(one for one in entries if one is not before), entry]]
    write_json(_json(project), {"public_share": public_share or share, "entries": kept})
    return show_board(project)


def _metric(project: Project) -> Metric:
    """Return the metric of the members; before there are any, that which ``auto`` takes for the data."""
    try:
        return project.metric(read_members(project, None)[0].scored_by)
    except InputError:
        return project.metric(for_data(project, load_recipe("auto"), "auto", ()))


def _check_score(score: float, metric: Metric, named: str | None) -> None:
    """Refuse a score that the project's metric cannot give.

    Raises:
        InputError: Another metric is named, or the number is out of its range.
    """
    if named is not None and named != metric.name:
        raise InputError(
            f"--metric {named}: this project is scored by {metric.name}; the score of another contest or metric "
            "belongs in a project of its own"
        )
    most = 1.0 if metric.higher_is_better else math.inf
    if not (math.isfinite(score) and 0 <= score <= most):
        raise InputError(
            f"{score:g}: no {metric.name}, which lies from 0 to {most:g}; expected the score as the board shows it (a "
            "percentage divided by 100), of this contest"
        )


def _json(project: Project) -> Path:
    return project.board_dir / "board.json"


def _read(project: Project) -> tuple[float | None, list[Entry]]:
    """Return the share of test images on the board, and the entries.

    Raises:
        InputError: The file was edited.
    """
    path = _json(project)
    if not path.exists():
        return None, []
    try:
        value = read_json(path)
        return value["public_share"], [Entry(**entry) for entry in value["entries"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not what masksmith writes ({error}); remove it") from error


def _digest(path: Path) -> str:
    if path.is_file():
        return file_digest(path)
    return digest(*(file_digest(one) for one in sorted(path.rglob("*")) if one.is_file()))


def _facts_of(project: Project, path: Path, content: str) -> dict[str, Any]:
    """Return what submission.json says, or said, of a file; nothing of one that is not ours."""
    current = project.submission_csv
    if path == current or (current.exists() and path.is_file() and file_digest(current) == content):
        facts: dict[str, Any] = read_json(project.submission_json) if project.submission_json.exists() else {}
        return facts
    earlier = project.earlier_json
    known: dict[str, dict[str, Any]] = read_json(earlier) if earlier.exists() else {}
    return known.get(content, {})


def _keep_rows(project: Project, content: str) -> str:
    """Keep the metric's rows of the held-out images under the rule of the submission; return the file's name.

    Nothing is kept where the members are others by now.
    """
    members = read_members(project, None)
    try:
        tuning, oof = need_tuning(project, members), oof_of(project, members)
    except InputError as error:
        logger.warning("%s; compared without the rows of its images", error)
        return ""
    scored = [row for row in project.folds.rows if row.id in oof and row.id not in project.blank_train]
    recipe = members[0].scored_by
    rows = score_rows(
        project.metric(recipe),
        predictions_of(oof, scored),
        project.cache.train_masks,
        read_rule(tuning["rule"]),
        beside_of(project),
    )
    name = f"rows-{content[:12]}.npz"
    with atomic_path(project.board_dir / name) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            ids=np.array(list(rows)),
            rows=np.stack(list(rows.values())),
            groups=project.folds.groups(list(rows)),
            labels=project.metric_groups(recipe, list(rows)),
        )
    return name


# --- show ---


def show_board(project: Project) -> Board:
    """Return the diary: each gap between both scores with its interval, and which differences are noise.

    Raises:
        InputError: There is no entry yet.
    """
    share, entries = _read(project)
    if not entries:
        raise InputError(f"{project.root}: no public score yet; `masksmith board add {project.root} SCORE`")
    metric, tests = _metric(project), len(project.catalog.submission.ids)
    size = max(1, round(tests * (share or 1.0)))
    ranked = sorted(entries, key=lambda entry: -metric.utility(entry.score))
    lines = [_line(project, entry, ranked[0], metric, size) for entry in ranked]
    return Board(
        metric.name,
        metric.higher_is_better,
        size,
        share is None,
        tuple(entries),
        tuple(lines),
        tuple(_remarks(project, ranked, metric, size)),
    )


def _board_error(entry: Entry, size: int) -> float | None:
    """Return the standard error of a score on so many images, by that of cross-validation."""
    if entry.standard_error is None or not entry.images:
        return None
    return entry.standard_error * math.sqrt(entry.images / size)


def _gap(entry: Entry, size: int) -> tuple[float, float] | None:
    """Return public score less cross-validation, and half of the 80% interval of what the draw alone makes of it."""
    error = _board_error(entry, size)
    if entry.cv is None or entry.standard_error is None or error is None:
        return None
    return entry.score - entry.cv, _Z80 * math.hypot(entry.standard_error, error)


def _noise(project: Project, one: Entry, two: Entry, metric: Metric, size: int) -> float | None:
    """Return half of the 80% interval of the difference of two submissions that are equally good, on the board.

    Of two whose rows are kept by a paired bootstrap of the images that both have; else as if they were unrelated.
    """
    if one.rows and two.rows:
        first, second = (dict(np.load(project.board_dir / each.rows)) for each in (one, two))
        shared, at, other = np.intersect1d(first["ids"], second["ids"], return_indices=True)
        if len(shared) > 1:
            gains, _, _ = paired_bootstrap(
                metric,
                first["rows"][at],
                second["rows"][other],
                first["groups"][at].tolist(),
                labels=first["labels"][at].tolist(),
                resamples=_RESAMPLES,
                rng=stream(0),
            )
            return _Z80 * float(gains.std()) * math.sqrt(len(shared) / size)
    errors = [_board_error(each, size) for each in (one, two)]
    known = [error for error in errors if error is not None]
    if not known:
        return None
    return _Z80 * math.sqrt(2) * float(np.mean(known))


def _line(project: Project, entry: Entry, best: Entry, metric: Metric, size: int) -> str:
    text = f"{entry.date}  public {entry.score:.5f}  "
    gap = _gap(entry, size)
    if entry.cv is None:
        text += "no cross-validation"
    elif gap is None:
        text += f"cv {entry.cv:.5f}"
    else:
        verdict = "within the draw" if abs(gap[0]) <= gap[1] else "more than the draw"
        text += f"cv {entry.cv:.5f} ± {_Z80 * (entry.standard_error or 0):.5f}  "
        text += f"gap {gap[0]:+.5f} (± {gap[1]:.5f}: {verdict})"
    if entry is not best:
        noise = _noise(project, best, entry, metric, size)
        behind = abs(best.score - entry.score)
        if noise is not None:
            verdict = "noise" if behind <= noise else "more than noise"
            text += f"  behind the first by {behind:.5f} (± {noise:.5f}: {verdict})"
    return f"{text}  {entry.run}{f': {entry.note}' if entry.note else ''}"


def _remarks(project: Project, ranked: Sequence[Entry], metric: Metric, size: int) -> list[str]:
    """Return what should be known before the last two submissions are chosen."""
    remarks = []
    first = ranked[0]
    judged = [entry for entry in ranked if entry.cv is not None]
    utility = [
        (metric.utility(entry.cv), metric.utility(entry.score)) for entry in judged if entry.cv is not None
    ]
    by_cv = max(judged, key=lambda entry: metric.utility(entry.cv or 0.0)) if judged else first
    tied = []
    for entry in ranked[1:]:
        noise = _noise(project, first, entry, metric, size)
        if noise is not None and abs(first.score - entry.score) <= noise:
            tied.append(entry)
    if by_cv is not first and first.cv is not None:
        lead = "is noise" if by_cv in tied else "is more than noise"
        remarks.append(
            f"shake-up: the first on the board is not the first of cross-validation, {by_cv.run} of {by_cv.date} (cv "
            f"{by_cv.cv:.5f}, public {by_cv.score:.5f}); its lag on the board {lead}. Keep it among the last ones"
        )
    if tied:
        remarks.append(
            f"shake-up: {len(tied) + 1} of {len(ranked)} submissions cannot be told apart on {size} images; their "
            "order on the board is the draw"
        )
    if len(utility) >= 4:
        order = float(spearmanr(*zip(*utility, strict=True)).statistic)
        if not order > 0:
            remarks.append(
                f"shake-up: cross-validation and board put {len(utility)} submissions in unlike orders (Spearman "
                f"{order:+.2f}): one of them does not measure what the other does; look at the folds, and at "
                "`masksmith check` on how the test images differ"
            )
    gaps = [gap for gap in (_gap(entry, size) for entry in judged) if gap is not None]
    if gaps and all(abs(gap) > half for gap, half in gaps) and len({gap > 0 for gap, _ in gaps}) == 1:
        where = "above" if gaps[0][0] > 0 else "below"
        remarks.append(
            f"every public score lies {where} cross-validation by more than the draw: the test images are others, or "
            "cross-validation is not that of the contest (metric, folds, a leak)"
        )
    errors = [error for error in (_board_error(entry, size) for entry in judged) if error is not None]
    if errors and len(ranked) > 2:
        draws = len(ranked)
        luck = float(np.mean(errors)) * float(norm.ppf((draws - 0.375) / (draws + 0.25)))  # Blom 1958
        remarks.append(
            f"the best of {draws} unrelated, equally good submissions would look {luck:.5f} better than it is on "
            f"{size} images"
        )
    return remarks
