"""What a search or a sweep found: judged, written as numbers, a page, and the best recipe as a file of its own."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masksmith.core.files import write_json, write_text
from masksmith.core.progress import clock
from masksmith.planning.space import Range, Values, values_in, with_values
from masksmith.recipes.recipe import Recipe
from masksmith.reporting.search import KeyFacts, Point, SearchPage, write_search_page
from masksmith.steps.search import Search
from masksmith.steps.seed_noise import noise_text
from masksmith.steps.trials import Gain, Trial

FORMAT_VERSION = 1
_SHOWN = 20
"""Lines of the table in a terminal."""


@dataclass(frozen=True)
class Searched:
    """What ``search`` or ``sweep`` ends with."""

    numbers: dict[str, Any]
    """What ``search.json`` or ``sweep.json`` holds."""
    best: Path
    """The recipe that scored best."""
    page: Path
    stopped: int | None = None
    """Exit code of the signal that stopped it, None where it came to its end."""

    def __str__(self) -> str:
        columns, rows = self.numbers["columns"], self.numbers["table"]
        shown = [columns, *rows[:_SHOWN]]
        widths = [max(len(row[at]) for row in shown) for at in range(len(columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in shown
        ]
        if len(rows) > _SHOWN:
            lines.append(f"… and {len(rows) - _SHOWN} more, in {self.page}")
        return "\n".join([*lines, "", *self.numbers["says"], f"best recipe: {self.best}", str(self.page)])


@dataclass(frozen=True)
class Verdict:
    """Whether the best is better than what it is compared with."""

    says: list[str]
    """In sentences."""
    nested: Gain | None
    """Of choosing the best: each fold judged by the one that was best on the others; None: only one fold, or one."""
    optimism: float | None
    """By how much the best looks better than that."""
    is_better: bool


def verdict_of(
    name: str,
    best: Gain,
    reference: str,
    nested: Gain | None,
    *,
    folds: int,
    tried: int,
    noise: float,
    metric: str,
) -> Verdict:
    """Judge the best of several.

    Args:
        name: Of the best; empty: it is what the others are compared with.
        best: Its score and gain on the folds that it was chosen on.
        reference: What it is compared with, in words.
        nested: The gain of choosing it on other folds than those that judge it.
        folds: Number of folds.
        tried: From how many it was chosen.
        noise: What differs less may be the seeds alone.
        metric: Of the scores.
    """
    if not name:
        return Verdict(
            [f"None of {tried} scored above {reference}: {metric} {best.score:.4f}."], None, None, False
        )
    seen = f"{name} scored best of {tried}: {metric} {best.score:.4f}, {_interval(best)} over {reference}"
    says = [f"{seen}, on the folds that it was chosen on, which flatters it."]
    if nested is None and folds > 1:
        says.append(
            "By how much cannot be told before all of its trainings, and those of what it is compared with, are there."
        )
        return Verdict(says, None, None, False)
    if nested is None:
        says.append(
            "By how much cannot be told: only one fold is trained, and there is none that it was not chosen on. It is "
            "not shown to be better; train two folds or more (folds.train) to find out."
        )
        return Verdict(says, None, None, False)
    optimism = best.gain - nested.gain
    says.append(
        f"Each fold judged by the one that was best on the other folds, the gain is {_interval(nested)}: the best "
        f"looks about {max(0.0, optimism):.4f} better than it is."
    )
    is_better = nested.low > 0 and nested.gain > noise
    if is_better:
        says.append(
            f"So it is better than {reference}, beyond draws of images and seeds (below {noise:.4f})."
        )
    elif nested.low > 0:
        says.append(
            f"The images' draw does not explain that, but seeds alone may (they differ by up to {noise:.4f}): it is "
            "not shown to be better."
        )
    else:
        says.append(f"So it cannot be told apart from {reference}.")
    return Verdict(says, nested, optimism, is_better)


def _interval(gain: Gain) -> str:
    return f"{gain.gain:+.4f} (80% bounds {gain.low:+.4f} and {gain.high:+.4f})"


def gain_json(gain: Gain | None) -> dict[str, float] | None:
    """Return a gain as plain values."""
    return None if gain is None else dict(vars(gain))


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as plain values."""
    return {
        "better": verdict.is_better, "nested": gain_json(verdict.nested), "optimism": verdict.optimism,
        "says": verdict.says,
    }  # fmt: skip


def write_best(path: Path, recipe: Recipe, says: Sequence[str], values: Values) -> None:
    """Write a recipe as a file that ``compete --recipe`` takes; its first lines say what is known of it."""
    changed = ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
    lines = [*says, f"It changes: {changed}" if changed else "It changes nothing."]
    head = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    write_text(path, head + recipe.to_yaml())


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest end of each dotted key that no other key has; it begins with a word."""

    def ends(key: str) -> list[str]:
        parts = key.split(".")
        found = [".".join(parts[at:]) for at in reversed(range(len(parts))) if not parts[at].isdigit()]
        return found or [key]

    every = [end for key in keys for end in ends(key)]
    return {key: next((end for end in ends(key) if every.count(end) == 1), key) for key in keys}


def shown(value: Any) -> str:  # noqa: ANN401
    """Return a value of a recipe for a table."""
    return (
        f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    )


# --- a search ---


def conclude(search: Search, *, stopped: int | None) -> Searched:
    """Judge the trials, and write ``search.json``, ``best.yaml`` and ``search.html``."""
    project, court, folds = search.project, search.court, search.folds
    whole, best = search.whole, search.best
    gains = {id(one): court.gain([one], [search.base], sorted(one.folds)) for one in _scored(search)}
    nested, chosen = None, list[int]()
    if len(folds) > 1 and best is not search.base:
        nested, chosen = court.nested([[one] for one in whole], [search.base], folds)
    verdict = verdict_of(
        "" if best is search.base else f"Trial {best.number}", gains[id(best)], "the recipe itself", nested,
        folds=len(folds), tried=len(whole), noise=search.difference(len(folds)), metric=court.metric.name,
    )  # fmt: skip
    rows = [_row(search, one, gains.get(id(one))) for one in (search.base, *search.trials)]
    rows.sort(key=lambda row: (_ORDER[row["state"]], -court.metric.utility(row["score"] or 0.0)))
    says = [
        *verdict.says,
        noise_text(search.noise),
        f"Trials were trained {search.length}. It ended because {search.ended}; {search.crew.budget}.",
    ]
    names = short_names(list(search.space.axes))
    numbers: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "metric": court.metric.name,
        "higher_is_better": court.metric.higher_is_better,
        "recipe": search.asked.name,
        "data": project.catalog.content_hash,
        "key": search.length.key,
        "folds": folds,
        "epochs": search.length.epochs,
        "noise": search.noise,
        "trials": rows,
        "best": best.number,
        "chosen": [whole[at].number for at in chosen],
        "verdict": verdict_json(verdict),
        "says": says,
        "ended": search.ended,
        "columns": ["trial", "score", "gain (80% bounds)", "folds", "took", *names.values(), ""],
        "table": [_cells(row, search, list(names)) for row in rows],
    }
    write_json(project.search_json, numbers)
    write_best(project.best_yaml, with_values(search.asked, best.values), verdict.says, best.values)
    page = SearchPage(
        title=f"{Path(project.catalog.root).name}: search around {search.asked.name}",
        sub=f"{court.metric.name} ({court.metric.describes}); {len(search.trials)} trials, {len(folds)} folds each",
        metric=court.metric.name,
        says=says,
        columns=numbers["columns"],
        table=numbers["table"],
        keys=[_key_facts(search, key, rows) for key in search.space.axes],
        history=[
            (row["trial"], row["score"]) for row in sorted(rows, key=lambda row: row["trial"] or 0)
            if row["state"] == "whole" and row["trial"] is not None
        ],
        base=court.score(search.base),
        higher_is_better=court.metric.higher_is_better,
        gains=[
            (_name(row), row["gain"]["gain"], row["gain"]["low"], row["gain"]["high"])
            for row in rows if row["state"] == "whole" and row["trial"] is not None
        ][:12],
        best=project.best_yaml.read_text(encoding="utf-8"),
    )  # fmt: skip
    write_search_page(project.search_html, page)
    return Searched(numbers, project.best_yaml, project.search_html, stopped)


_ORDER = {"whole": 0, "under way": 1, "given up": 2, "failed": 3}


def _scored(search: Search) -> list[Trial]:
    return [one for one in (search.base, *search.trials) if one.folds]


def _row(search: Search, trial: Trial, gain: Gain | None) -> dict[str, Any]:
    state = "under way"
    if trial.failed:
        state = "failed"
    elif trial.is_whole(search.folds):
        state = "whole"
    elif trial.number in search.pruned:
        state = "given up"
    values = trial.values or values_in(search.asked, search.space)
    return {
        "trial": trial.number,
        "state": state,
        "score": None if gain is None else gain.score,
        "gain": gain_json(gain),
        "folds": sorted(trial.folds),
        "seconds": round(trial.seconds, 1),
        "values": values,
        "run": "" if trial.failed and not trial.folds else search.crew.run_of(trial.recipe) or "",
        "why": trial.failed,
    }


def _name(row: dict[str, Any]) -> str:
    return "the recipe" if row["trial"] is None else f"trial {row['trial']}"


def _cells(row: dict[str, Any], search: Search, keys: Sequence[str]) -> list[str]:
    gain = row["gain"]
    is_base = row["trial"] is None
    return [
        _name(row),
        "–" if gain is None else f"{row['score']:.4f}",
        "–" if gain is None or is_base else f"{gain['gain']:+.4f} ({gain['low']:+.4f} … {gain['high']:+.4f})",
        f"{len(row['folds'])}/{len(search.folds)}",
        clock(row["seconds"]),
        *(shown(row["values"][key]) for key in keys),
        "best" if row["trial"] == search.best.number else "" if row["state"] == "whole" else row["state"],
    ]


def _key_facts(search: Search, key: str, rows: Sequence[dict[str, Any]]) -> KeyFacts:
    axis = search.space.axes[key]
    points = [
        Point(
            row["values"][key],
            row["score"],
            "the recipe" if row["trial"] is None else row["state"],
            _name(row),
        )
        for row in rows
        if row["score"] is not None
    ]
    if isinstance(axis, Range):
        return KeyFacts(key, points, log=axis.log)
    return KeyFacts(key, points, listed=axis.values)
